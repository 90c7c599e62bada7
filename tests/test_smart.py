"""SMART against float64, against smart-pytorch, at its limits, and as a part of a training."""

import copy
import statistics

import pytest
import torch
from smart_pytorch import SMARTLoss, kl_loss, sym_kl_loss
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, DistilBertConfig

from qa_lib.losses import smart as smart_module
from qa_lib.losses.smart import SmartLoss, adversarial_term, count_forward_equivalents
from qa_lib.models import heads
from qa_lib.models.shared_encoder import SharedEncoder, make_head
from qa_lib.settings.parameters import Smart
from qa_lib.settings.params import UserError, validate

B, T, D = 3, 16, 32
SIZES = {
    "vocab_size": 60,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
# Dataset → its head and the divergence that fits it. All read pairs but the first.
HEADS = {
    "sst": "classes",
    "quora": "pair",
    "sts": "cosine",
    "bins": "distribution",
    "related": "relational_pair",
    "rated": "relational_score",
}
LABELS = {
    "sst": torch.tensor([0, 4, 2]),
    "quora": torch.tensor([0, 1, 1]),
    "sts": torch.tensor([0.4, 5.0, 2.75]),
    "bins": torch.tensor([0.4, 5.0, 2.75]),
    "related": torch.tensor([1, 0, 1]),
    "rated": torch.tensor([0.4, 5.0, 2.75]),
}
SPAN = {"start_positions": torch.tensor([3, 2, 1]), "end_positions": torch.tensor([4, 2, 5])}


def make_encoder(dropout: float = 0.1, scale: float = 4.0) -> torch.nn.Module:
    """Return a small BERT. scale: of its linear weights, so that outputs differ by input."""
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    torch.manual_seed(0)
    encoder = AutoModel.from_config(BertConfig(**SIZES, **rates), add_pooling_layer=False)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(scale)
    return encoder


def make_model(dropout: float = 0.1) -> SharedEncoder:
    """Return a shared encoder with every head, in training mode."""
    encoder = make_encoder(dropout)
    torch.manual_seed(1)
    by_dataset = {
        name: make_head(head, D, dropout, classes=5, low=0.0, high=5.0)
        for name, head in HEADS.items()
    }
    model = SharedEncoder(encoder, by_dataset, pooling="mean", dropout=dropout)
    with torch.no_grad():
        for module in [*model.heads.modules(), *model.relations.modules()]:
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(10)
    return model.train()


def make_span_model(dropout: float = 0.1) -> heads.SpanModel:
    """Return a span model in training mode."""
    encoder = make_encoder(dropout)
    return heads.SpanModel(encoder, dropout).train()


def draw_text(seed: int, length: int = T) -> dict:
    """Return three random texts, two of which have padding."""
    ids = torch.randint(1, 60, (B, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    mask[2, 5:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def draw_batch(dataset: str) -> dict:
    """Return a batch of a dataset, or of spans."""
    batch = draw_text(1)
    if dataset == "spans":
        return batch | SPAN
    if dataset != "sst":
        batch |= {f"pair_{name}": value for name, value in draw_text(2, T + 8).items()}
    return batch | {"dataset": dataset, "labels": LABELS[dataset]}


def make(dataset: str, dropout: float = 0.1) -> tuple[torch.nn.Module, dict]:
    """Return a model and a batch of a dataset, or of spans."""
    model = make_span_model(dropout) if dataset == "spans" else make_model(dropout)
    return model, draw_batch(dataset)


def make_loss(model, seed: int = 0, updates: int = 100, **changes) -> SmartLoss:
    """Return SMART's terms for a model."""
    return SmartLoss(Smart(**changes), model, seed, updates)


def compare(model, batch):
    """Return f of `adversarial_term`: the outputs of a model on embeddings."""
    return lambda x: model.compared_outputs(model.forward_embeddings(x, batch))


EVERY_KIND = ["spans", *HEADS]


pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the term itself ----


def in_float64(model, batch: dict):
    """Return model and batch in float64, where real numbers are."""
    real = {k: v for k, v in batch.items() if torch.is_tensor(v) and v.is_floating_point()}
    wide = {name: value.double() for name, value in real.items()}
    return copy.deepcopy(model).double(), batch | wide


def find_terms(model, batch: dict, seed: int, monkeypatch) -> tuple[float, float, float]:
    """Return the term in fp32, in float64 at fp32's perturbation, and in float64 at its own.

    All start from the same noise. Each number's type is checked.
    """
    settings = Smart(radius=1e-5)
    drawn = smart_module.draw_noise(
        model.embed(batch), model.token_mask(batch), 1e-5, torch.Generator().manual_seed(seed)
    )
    values = []
    deltas = []
    with monkeypatch.context() as patch:
        patch.setattr(smart_module, "draw_noise", lambda x, *_: drawn.to(x.dtype))
        for net, inputs in ((model, batch), in_float64(model, batch)):
            f = compare(net, inputs)
            x = net.embed(inputs)
            divergence = smart_module.DIVERGENCES[net.output_kind(inputs)]
            term = adversarial_term(
                f, x, f(x), net.token_mask(inputs), settings, divergence, torch.Generator()
            )
            values.append(term.value.item())
            deltas.append(term.perturbation)
            assert term.value.dtype == x.dtype
    # once more in float64, where fp32 went
    there = divergence(f(x + deltas[0].double()), f(x), False).mean().item()
    return values[0], there, values[1]


@pytest.mark.parametrize("dataset", EVERY_KIND)
def test_the_term_is_that_of_float64(dataset, monkeypatch):
    """At the paper's radius: where fp32 went, from every start; and at float64's own perturbation.

    The latter is the median of five starts. From some starts fp32 sees the output of an example not
    move at all, and then the ascent has no gradient to follow there.
    """
    model, batch = make(dataset)
    model.eval()
    # Spans' logits are fp32 by themselves: the reference keeps what its linear layer has said.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    ratios = []
    for seed in range(5):
        ours, there, theirs = find_terms(model, batch, seed, monkeypatch)
        assert 0 < ours == pytest.approx(there, rel=0.05)
        ratios.append(ours / theirs)
    assert statistics.median(ratios) == pytest.approx(1, rel=0.05)


def measure_term(model, batch, **changes) -> smart_module.Term:
    """Return the adversarial term of a batch, with noise of the same seed each time."""
    f = compare(model, batch)
    x = model.embed(batch)
    return adversarial_term(
        f,
        x,
        f(x),
        model.token_mask(batch),
        Smart(**changes),
        smart_module.DIVERGENCES[model.output_kind(batch)],
        torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("dataset", EVERY_KIND)
def test_without_a_radius_the_term_is_0(dataset):
    model, batch = make(dataset)
    assert measure_term(model.eval(), batch, radius=0.0).value == 0


@pytest.mark.parametrize("dataset", EVERY_KIND)
def test_the_term_is_more_than_rounding_on_every_head(dataset):
    """With twice the radius it is four times as large, as the second order has it."""
    model, batch = make(dataset)
    small = measure_term(model.eval(), batch, radius=1e-4, step_size=1.0).value.item()
    large = measure_term(model, batch, radius=2e-4, step_size=1.0).value.item()
    assert small > 0
    assert large / small == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("per", ["token", "example"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_perturbation_stays_in_the_ball(norm, per, steps):
    settings = {"norm": norm, "per": per, "steps": steps, "radius": 1e-3}
    model, batch = make("quora")
    delta = measure_term(model.eval(), batch, **settings).perturbation
    assert delta.shape == (B, 2 * (T + 8), D)
    order = torch.inf if norm == "inf" else 2
    dims = -1 if per == "token" else (1, 2)
    norms = torch.linalg.vector_norm(delta, order, dims)
    assert norms.max() <= 1e-3 * (1 + 1e-6)
    assert norms.max() == pytest.approx(1e-3, rel=1e-4)  # the ascent goes to its surface


def test_a_norm_of_2_is_projected_onto_the_ball_and_not_into_its_cube():
    delta = torch.tensor([[[3.0, 4.0], [0.3, 0.4]]])
    of_tokens = smart_module.project(delta, Smart(norm="2", per="token", radius=1.0))
    torch.testing.assert_close(of_tokens, torch.tensor([[[0.6, 0.8], [0.3, 0.4]]]))
    of_example = smart_module.project(delta, Smart(norm="2", per="example", radius=1.0))
    torch.testing.assert_close(of_example, delta / delta.norm())


@pytest.mark.parametrize("variant", ["paper", "unit_norm", "r3f"])
def test_padding_is_neither_perturbed_nor_counted(variant):
    model, batch = make("sts")
    model.eval()
    mask = model.token_mask(batch).bool()
    assert not mask.all()
    term = measure_term(model, batch, variant=variant)
    assert (term.perturbation[~mask] == 0).all()
    embed = model.embed
    other = torch.randn(B, 2 * (T + 8), D)
    model.embed = lambda batch: embed(batch).where(mask.unsqueeze(-1), other)
    changed = measure_term(model, batch, variant=variant)
    torch.testing.assert_close(changed.value, term.value, rtol=1e-3, atol=0)


@pytest.mark.parametrize("variant", ["paper", "unit_norm"])
def test_padding_is_not_perturbed_even_where_a_model_reads_it(variant):
    mask = draw_text(1)["attention_mask"]
    weight = torch.randn(T * D, 5, generator=torch.Generator().manual_seed(1))

    def f(x):
        return x.flatten(1) @ weight

    x = torch.randn(B, T, D)
    settings = Smart(variant=variant)
    term = adversarial_term(
        f, x, f(x), mask, settings, smart_module.symmetric_kl, torch.Generator()
    )
    assert (term.perturbation[mask == 0] == 0).all()
    assert (term.perturbation[mask == 1] != 0).any(-1).all()


def test_positions_of_padding_have_no_part_in_the_divergence_of_spans():
    lowest = torch.finfo(torch.float32).min
    logits = torch.randn(2, 2, 5)
    other = torch.randn(2, 2, 5)
    padded = [torch.nn.functional.pad(x, (0, 3), value=lowest) for x in (logits, other)]
    torch.testing.assert_close(smart_module.span_kl(*padded), smart_module.span_kl(logits, other))


# ---- divergences ----

LOGITS = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(3))
OTHER = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(4))
OUTPUTS = {
    "classes": (LOGITS[:, 0], OTHER[:, 0]),
    "span": (LOGITS, OTHER),
    "binary": (LOGITS[:, 0, 0], OTHER[:, 0, 0]),
    "score": (LOGITS[:, 0, 0], OTHER[:, 0, 0]),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_divergence_is_symmetric_and_0_of_equals(kind):
    divergence = smart_module.DIVERGENCES[kind]
    a, b = OUTPUTS[kind]
    assert divergence(a, b).shape == (4,)
    assert (divergence(a, b) > 0).all()
    torch.testing.assert_close(divergence(a, b), divergence(b, a))
    assert (divergence(a, a) == 0).all()


def test_divergences_are_those_of_their_names():
    """Against the KL divergences of torch.distributions."""

    def kl(p, q):
        both = torch.distributions.kl_divergence
        return both(p, q) + both(q, p)

    a, b = OUTPUTS["classes"]
    classes = torch.distributions.Categorical
    torch.testing.assert_close(
        smart_module.symmetric_kl(a, b), kl(classes(logits=a), classes(logits=b))
    )
    of_ends = kl(classes(logits=LOGITS), classes(logits=OTHER))  # (4, 2)
    torch.testing.assert_close(smart_module.span_kl(LOGITS, OTHER), of_ends.mean(1))
    a, b = OUTPUTS["binary"]
    coin = torch.distributions.Bernoulli
    torch.testing.assert_close(smart_module.bernoulli_kl(a, b), kl(coin(logits=a), coin(logits=b)))


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_a_divergence_of_extreme_logits_is_finite(kind, size):
    a, b = ((size * x).requires_grad_() for x in OUTPUTS[kind])
    value = smart_module.DIVERGENCES[kind](a, b).sum()
    value.backward()
    assert value.isfinite()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_a_class_that_both_sides_exclude_adds_nothing():
    a, b = (x[:, 0].clone() for x in (LOGITS, OTHER))
    expected = smart_module.symmetric_kl(a[:, 1:], b[:, 1:])
    a[:, 0] = -torch.inf
    b[:, 0] = -torch.inf
    a.requires_grad_()
    value = smart_module.symmetric_kl(a, b)
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    assert a.grad.isfinite().all()
    # what one side alone excludes is not left out
    assert smart_module.symmetric_kl(a.detach(), OTHER[:, 0]).isinf().all()


def test_the_report_s_code_does_nothing_for_one_logit_nor_for_a_batch_of_one():
    report = smart_module.REPORT_DIVERGENCES
    a, b = OUTPUTS["binary"]
    assert (report["binary"](a, b) == 0).all()
    assert (report["score"](a[:1], b[:1]) == 0).all()
    assert (report["score"](a, b) > 0).all()
    assert report["classes"] is smart_module.symmetric_kl
    model, batch = make("quora")
    terms = make_loss(model, divergence="softmax")
    terms.loss(model, batch, model(**batch), 0)
    assert terms.read_log()["adversarial_loss"] == 0


# ---- against smart-pytorch ----


@pytest.mark.parametrize("steps", [1, 2])
def test_the_unit_norm_equals_smart_pytorch_s(steps):
    """Value and gradients of its loss for classes. Its texts have no padding."""
    model = make_model().eval()
    batch = {"input_ids": draw_text(5)["input_ids"].clamp(min=1), "dataset": "sst"}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    f = compare(model, batch)
    gradients = []
    values = []
    for ours in (True, False):
        model.zero_grad()
        x = model.embed(batch)
        if ours:
            settings = Smart(
                variant="unit_norm", radius=1e-6, steps=steps, start_sd=1e-5, reduction="sum"
            )
            generator = torch.Generator().manual_seed(7)
            mask = batch["attention_mask"]
            term = adversarial_term(
                f, x, f(x), mask, settings, smart_module.symmetric_kl, generator
            )
            value = term.value
        else:
            torch.manual_seed(7)
            peer = SMARTLoss(f, kl_loss, sym_kl_loss, num_steps=steps)
            value = peer(x, f(x))
        value.backward()
        values.append(value.item())
        trained = [p.grad for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.flatten() for g in trained]))
    assert values[0] > 0.01
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * gradients[1].abs().max())


# ---- what it costs, and what it leaves alone ----


def count_flops(step) -> int:
    """Count the floating-point operations of a step's matrix products."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()


COSTS = {
    "the whole definition": ({}, 12),
    "a stopped clean side": ({"clean_side": "stopped"}, 10),
    "dropout on": ({"dropout": "on"}, 9),
    "no Bregman term": ({"bregman": 0.0}, 11),
    "no Bregman term, stopped": ({"bregman": 0.0, "clean_side": "stopped"}, 9),
    "the Bregman term alone": ({"adversarial": 0.0}, 7),
    "the Bregman term alone, stopped": ({"adversarial": 0.0, "clean_side": "stopped"}, 4),
    "neither": ({"adversarial": 0.0, "bregman": 0.0}, 3),
    "two steps": ({"steps": 2}, 14),
    "unit norm": ({"variant": "unit_norm"}, 12),
    "R3F": ({"variant": "r3f", "draws": 2, "bregman": 0.0}, 12),
    "noise": ({"variant": "gaussian", "draws": 3, "bregman": 0.0}, 12),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("dataset", ["spans", "sts"])
def test_a_step_costs_what_is_counted(name, dataset):
    """In operations of matrix products, within 1.05 of the count."""
    changes, passes = COSTS[name]
    assert count_forward_equivalents(Smart(**changes)) == passes
    model, batch = make(dataset)
    model.encoder.set_attn_implementation("eager")  # other products than these are not counted
    terms = make_loss(model, **changes)

    def train_plainly():
        model(**batch).loss.backward()

    def train_with_terms():
        outputs = model(**batch)
        # not at a step that measures the gradients' norms
        (outputs.loss + terms.loss(model, batch, outputs, 1)).backward()

    ratio = count_flops(train_with_terms) / count_flops(train_plainly)
    assert 0.99 < ratio / (passes / 3) < 1.05


def test_the_ascent_computes_no_gradient_of_a_parameter():
    model, batch = make("quora")
    model.eval().encoder.set_attn_implementation("eager")
    f = compare(model, batch)
    mask = model.token_mask(batch)
    with torch.no_grad():
        x = model.embed(batch)
        clean = f(x)

    def ascend():
        noise = torch.randn_like(x)
        smart_module.ascend(f, x, clean, noise, mask, Smart(), smart_module.bernoulli_kl)

    def run_forward():
        with torch.no_grad():
            f(x)

    # A forward pass, and the gradients of the activations alone. Attention multiplies activations,
    # so of it there are two each. With those of the parameters it would be 3.
    assert 2 <= count_flops(ascend) / count_flops(run_forward) < 2.2
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dataset", EVERY_KIND)
@pytest.mark.parametrize("variant", ["paper", "unit_norm", "r3f", "gaussian"])
def test_every_head_trains_with_every_variant(dataset, variant):
    model, batch = make(dataset)
    terms = make_loss(model, variant=variant)
    outputs = model(**batch)
    total = terms.loss(model, batch, outputs, 0)
    total.backward()
    assert total.dim() == 0
    assert total > 0
    gradients = [p.grad for p in model.encoder.parameters() if p.grad is not None]
    assert len(gradients) > 30
    assert all(g.isfinite().all() for g in gradients)


def test_a_stopped_clean_side_has_no_gradient():
    model, batch = make("sst")
    model.eval()
    f = compare(model, batch)
    x = model.embed(batch).detach().requires_grad_()
    clean = f(x).detach().requires_grad_()
    settings = Smart(clean_side="stopped", bregman=0.0)
    terms = SmartLoss(settings, model, 0, 100)
    terms.perturb(model, x, clean, batch, 0).value.backward()
    assert clean.grad is None
    terms = SmartLoss(Smart(bregman=0.0), model, 0, 100)
    terms.perturb(model, x, clean, batch, 0).value.backward()
    assert clean.grad.abs().max() > 0


@pytest.mark.parametrize("dropout", ["off", "on"])
def test_every_module_is_in_its_mode_again(dropout):
    model, batch = make("sst")
    model.encoder.encoder.layer[0].eval()  # a mode of its own
    modes = [module.training for module in model.modules()]
    seen = []
    embed = model.embed
    model.embed = lambda batch: seen.append([m.training for m in model.modules()]) or embed(batch)
    terms = make_loss(model, dropout=dropout, bregman=0.0)
    terms.loss(model, batch, model(**batch), 0)
    assert [module.training for module in model.modules()] == modes
    assert seen == [modes if dropout == "on" else [False] * len(modes)]
    model.embed = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        terms.loss(model, batch, model(**batch), 0)
    assert [module.training for module in model.modules()] == modes


def test_with_dropout_on_the_term_is_dropout():
    """It stays large where the radius shrinks, which the report turns dropout off for."""
    model, batch = make("sst")
    values = {}
    for dropout in ("off", "on"):
        terms = make_loss(model, dropout=dropout, bregman=0.0)
        terms.loss(model, batch, model(**batch), 0)
        values[dropout] = terms.read_log()["adversarial_loss"]
    assert values["off"] < 1e-8
    assert values["on"] > 1e-3


def test_under_autocast_the_terms_are_in_fp32():
    model, batch = make("sst", dropout=0.0)
    terms = make_loss(model, bregman=0.0)
    values = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(**batch)
            terms.loss(model, batch, outputs, 1)
        values.append(terms.read_log()["adversarial_loss"])
    assert values[0] == values[1]


def test_the_terms_of_a_bf16_training_compare_passes_in_fp32():
    """The training pass, which accelerate runs in bf16 and hands on in fp32, is none of them."""
    model, batch = make("sst", dropout=0.0)
    settings = Smart(dropout="on", bregman=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(**batch)
    values = {}
    for precision, outputs in (("fp32", model(**batch)), ("bf16", rounded)):
        terms = SmartLoss(settings, model, 0, 100, precision)
        terms.loss(model, batch, outputs, 1)
        values[precision] = terms.read_log()["adversarial_loss"]
    assert values["bf16"] == values["fp32"] < 1e-8


def test_a_wrapped_forward_pass_is_not_asked():
    """A trainer puts autocast around a model's own forward pass."""
    for dataset in ("spans", "sst"):
        model, batch = make(dataset)
        outputs = model(**batch)
        model.forward = lambda **batch: 1 / 0
        make_loss(model).loss(model, batch, outputs, 0)


# ---- as a part of a training ----


def train(model, terms: SmartLoss | None, steps: range, optimizer=None):
    """Train a model on a batch of each dataset in turn; return the optimizer and the losses.

    The dropout of each step is the same each time.
    """
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in steps:
        torch.manual_seed(step)
        batch = draw_batch(list(HEADS)[step % len(HEADS)])
        outputs = model(**batch)
        loss = outputs.loss
        if terms:
            loss = loss + terms.loss(model, batch, outputs, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if terms:
            terms.after_step(model)
        losses.append(loss.item())
    return optimizer, losses


def list_weights(model) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(list_weights(a), list_weights(b), strict=True))


def test_without_weights_it_is_plain_fine_tuning():
    """Bit for bit."""
    plain = make_model()
    zero = make_model()
    terms = make_loss(zero, adversarial=0.0, bregman=0.0)
    assert train(plain, None, range(8))[1] == train(zero, terms, range(8))[1]
    assert same(plain, zero)


def test_the_training_pass_has_the_dropout_it_would_have():
    """The terms draw nothing from the generator of dropout."""
    model, batch = make("sst")
    terms = make_loss(model)
    states = []
    for with_terms in (False, True):
        torch.manual_seed(3)
        outputs = model(**batch)
        if with_terms:
            terms.loss(model, batch, outputs, 0)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_noise_is_of_the_seed_and_the_step():
    model, batch = make("quora")
    outputs = model(**batch)

    def run(seed: int, step: int) -> float:
        return make_loss(model, seed, variant="r3f").loss(model, batch, outputs, step).item()

    assert run(0, 1) == run(0, 1)
    assert len({run(0, 1), run(0, 2), run(1, 1)}) == 3


def test_a_run_that_goes_on_has_the_same_numbers():
    """Log, weights and averaged weights, where it stopped between two reads of the log."""
    whole = make_model()
    terms = make_loss(whole)
    train(whole, terms, range(9))

    first = make_model()
    first_terms = make_loss(first)
    optimizer, _ = train(first, first_terms, range(5))
    state = {name: value.clone() for name, value in first_terms.state_dict().items()}
    second = copy.deepcopy(first)
    second_terms = make_loss(second)
    second_terms.load_state_dict(state)
    again = torch.optim.AdamW(second.parameters(), lr=1e-3)
    again.load_state_dict(optimizer.state_dict())
    train(second, second_terms, range(5, 9), again)

    assert same(second, whole)
    assert same(second_terms.averaged, terms.averaged)
    assert not same(terms.averaged, whole)
    assert second_terms.read_log() == terms.read_log()


def test_the_averaged_weights_are_the_paper_s():
    """Those of a loop, and those of the start before any update."""
    model = make_model()
    start = copy.deepcopy(model)
    terms = make_loss(model, beta=0.9)
    assert same(terms.averaged, start)
    assert not set(map(id, model.parameters())) & set(map(id, terms.averaged.parameters()))
    expected = {name: value.clone() for name, value in model.named_parameters()}
    for step in range(3):
        train(model, terms, range(step, step + 1))
        for name, value in model.named_parameters():
            expected[name] = 0.1 * value.detach() + 0.9 * expected[name]
    for name, value in terms.averaged.named_parameters():
        torch.testing.assert_close(value, expected[name])
    assert not terms.averaged.training
    assert not any(p.requires_grad for p in terms.averaged.parameters())


def test_the_bregman_term_is_0_at_the_start_and_grows():
    model, batch = make("sst")
    terms = make_loss(model, adversarial=0.0)
    assert terms.loss(model, batch, model(**batch), 0) == 0
    terms.after_step(model)
    with torch.no_grad():
        model.heads["sst"].linear.bias[0] += 1
    assert terms.loss(model, batch, model(**batch), 1) > 0.1


def test_beta_follows_its_schedule():
    model = make_model()
    constant = make_loss(model, updates=20)
    paper = make_loss(model, updates=20, beta_schedule="paper")
    betas = []
    for _ in range(4):
        betas.append((constant.beta(), paper.beta()))
        constant.after_step(model)
        paper.after_step(model)
    assert betas == [(0.995, 0.99), (0.995, 0.99), (0.995, 0.999), (0.995, 0.999)]


def test_gaussian_noise_is_the_loss_on_noisy_embeddings():
    model, batch = make("sts", dropout=0.0)
    terms = make_loss(model, variant="gaussian", start_sd=0.1, draws=2, bregman=0.0)
    total = terms.loss(model, batch, model(**batch), 0)
    plain = model(**batch).loss
    assert 0 < abs(total / 5 - plain) < 0.5 * plain
    terms = make_loss(model, variant="gaussian", start_sd=0.0, bregman=0.0)
    torch.testing.assert_close(terms.loss(model, batch, model(**batch), 0), 5 * plain)


def test_the_log_says_whether_the_term_could_matter():
    model, batch = make("quora", dropout=0.0)
    terms = make_loss(model, bregman=0.0, adversarial=3.0, radius=1e-4)
    outputs = model(**batch)
    total = terms.loss(model, batch, outputs, 0)
    norms = []
    for loss in (total, outputs.loss):
        model.zero_grad()
        loss.backward(retain_graph=True)
        norms.append(
            torch.nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None]
            )
        )
    log = terms.read_log()
    names = {"adversarial_loss", "adversarial_weighted", "perturbation", "gradient_ratio"}
    assert set(log) == names | {f"{name}_quora" for name in names}
    assert log["gradient_ratio"] == pytest.approx((norms[0] / norms[1]).item(), rel=1e-4)
    assert log["adversarial_weighted"] == pytest.approx(3 * log["adversarial_loss"])
    assert log["adversarial_weighted"] == pytest.approx(total.item())
    assert log["perturbation"] == pytest.approx(1e-4)
    assert terms.read_log() == {}
    terms.loss(model, batch, outputs, 1)
    assert "gradient_ratio" not in terms.read_log()


def test_an_encoder_without_token_types_is_perturbed_too():
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    model = heads.SpanModel(AutoModel.from_config(config)).train()
    batch = draw_batch("spans")
    assert make_loss(model).loss(model, batch, model(**batch), 0) > 0


# ---- what is refused ----


@pytest.mark.parametrize(
    "values, says",
    [
        ({"adversarial": -1.0}, "adversarial: -1.0 is too small; write a number greater than or"),
        ({"adversarial": 2000.0}, "adversarial: 2000.0 is too large; write a number less than or"),
        ({"radius": -1e-5}, "radius: -1e-05 is too small"),
        ({"radius": 2.0}, "radius: 2.0 is too large; write a number less than or equal to 1"),
        ({"bregman": -0.5}, "bregman: -0.5 is too small"),
        ({"bregman": 1001.0}, "bregman: 1001.0 is too large"),
        ({"beta": 1.0}, "beta: 1.0 is too large; write a number less than 1"),
        ({"beta": -0.1}, "beta: -0.1 is too small"),
        ({"steps": 0}, "steps: 0 is too small"),
        ({"norm": "1"}, "norm: '1' is not known; known: 'inf' or '2'"),
        ({"epsilon": 1e-5}, "epsilon is not a parameter; known: adversarial"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(values, says):
    with pytest.raises(UserError) as error:
        validate(Smart, values, {})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("clean_side", ["gradient", "stopped"])
def test_the_bregman_term_is_the_weighted_divergence_from_the_averaged_model(clean_side, reduction):
    """Its value, and its gradient by the trained model alone."""
    model, batch = make("sst", dropout=0.0)
    settings = {"adversarial": 0.0, "clean_side": clean_side, "reduction": reduction}
    terms = make_loss(model, bregman=3.0, **settings)
    with torch.no_grad():
        terms.averaged.heads["sst"].linear.weight.mul_(0.5)
        averaged = terms.averaged(**batch).logits
    outputs = model(**batch)
    distances = smart_module.symmetric_kl(outputs.logits, averaged)
    expected = 3 * (distances.sum() if reduction == "sum" else distances.mean())
    term = terms.loss(model, batch, outputs, 0)
    torch.testing.assert_close(term, expected)
    weight = model.heads["sst"].linear.weight
    (of_expected,) = torch.autograd.grad(expected, weight, retain_graph=True)
    torch.testing.assert_close(*torch.autograd.grad(term, weight), of_expected)


def test_r3f_is_the_mean_over_draws_of_noise_in_the_ball():
    weight = 0.1 * torch.randn(T * D, 5, generator=torch.Generator().manual_seed(1))
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(2))
    mask = draw_text(1)["attention_mask"]

    def f(x):
        return x.flatten(1) @ weight

    settings = Smart(variant="r3f", draws=2, radius=0.1, start_sd=0.2)
    term = adversarial_term(
        f, x, f(x), mask, settings, smart_module.symmetric_kl, torch.Generator().manual_seed(7)
    )
    again = torch.Generator().manual_seed(7)
    values = []
    for _ in range(2):
        noise = 0.2 * torch.randn(x.shape, generator=again) * mask.unsqueeze(-1)
        moved = f(x + noise.clamp(-0.1, 0.1))
        values.append(smart_module.symmetric_kl(moved, f(x)).mean())
    torch.testing.assert_close(term.value, (values[0] + values[1]) / 2)
