"""Heads, the rich relational layer, the shared encoder, and embeddings that are replaced."""

import copy

import pytest
import torch
from safetensors.torch import load, save
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from qa_lib.models import encoders, heads
from qa_lib.models.exbert import ExBERT
from qa_lib.models.shared_encoder import SharedEncoder, make_head, stack_texts
from qa_lib.settings.parameters import Layer

D = 16
SMALL = {
    "vocab_size": 50,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
ENCODERS = {
    "bert": BertConfig(**SMALL),
    "electra": ElectraConfig(**SMALL, embedding_size=8),
    "albert": AlbertConfig(**SMALL, embedding_size=8),
    "roberta": RobertaConfig(**SMALL, pad_token_id=1),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=D, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64
    ),
}
TRIO = {
    "sst": ("classes", {"classes": 5}),
    "quora": ("pair", {}),
    "sts": ("cosine", {"low": 0.0, "high": 5.0}),
}
RELATED = {
    "sst": ("classes", {"classes": 5}),
    "quora": ("relational_pair", {}),
    "sts": ("relational_score", {"low": 0.0, "high": 5.0}),
}
LABELS = {
    "sst": torch.tensor([0, 4, 2]),
    "quora": torch.tensor([0, 1, 1]),
    "sts": torch.tensor([0.4, 5.0, 2.75]),
}


def make_encoder(kind: str = "bert") -> torch.nn.Module:
    """Return a small encoder whose weights are the same each time."""
    torch.manual_seed(0)
    return AutoModel.from_config(ENCODERS[kind])


def make_model(chosen=TRIO, kind: str = "bert", **options) -> SharedEncoder:
    """Return a small shared encoder at evaluation."""
    encoder = make_encoder(kind)
    torch.manual_seed(1)
    by_dataset = {
        name: make_head(head, D, 0.1, **details) for name, (head, details) in chosen.items()
    }
    return SharedEncoder(encoder, by_dataset, **options).eval()


def draw_text(seed: int, length: int, pad: int = 0) -> dict:
    """Return three random texts, two of which have padding."""
    ids = torch.randint(3, 50, (3, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    mask[2, 5:] = 0
    return {"input_ids": ids.where(mask == 1, pad), "attention_mask": mask}


def draw_batch(dataset: str = "quora", pad: int = 0, labels: bool = True) -> dict:
    """Return a batch of a dataset. Second texts are longer than first ones."""
    batch = draw_text(1, 12, pad)
    if dataset != "sst":
        batch |= {f"pair_{name}": value for name, value in draw_text(2, 20, pad).items()}
    batch["dataset"] = dataset
    if labels:
        batch["labels"] = LABELS[dataset]
    return batch


U = torch.randn(3, D, generator=torch.Generator().manual_seed(5))
V = torch.randn(3, D, generator=torch.Generator().manual_seed(6))


# ---- heads ----


def test_the_head_for_classes():
    head = make_head("classes", D, 0.5, classes=5).eval()
    logits = head(U)
    assert logits.shape == (3, 5)
    expected = torch.where(U > 0, U, 0.01 * U) @ head.linear.weight.T
    torch.testing.assert_close(logits, expected)
    losses = head.losses(logits, LABELS["sst"])
    picked = -logits.log_softmax(-1)[torch.arange(3), LABELS["sst"]]
    torch.testing.assert_close(losses, picked)
    assert head.predict(logits) is logits


def test_the_head_for_pairs():
    head = make_head("pair", D, 0.5).eval()
    logits = head(U, V)
    assert logits.shape == (3,)
    expected = torch.cat([U, V, (U - V).abs()], 1) @ head.linear.weight.squeeze()
    torch.testing.assert_close(logits, expected)
    probability = logits.sigmoid()
    expected = torch.stack([-(1 - probability[0]).log(), -probability[1].log()])
    torch.testing.assert_close(head.losses(logits, LABELS["quora"])[:2], expected)
    assert head.kind == "binary"


def test_the_cosine_is_scaled_to_the_range():
    """Its loss is on the scale from 0 to 1, as in the report's code."""
    head = make_head("cosine", D, 0.1, low=1.0, high=5.0)
    assert not list(head.parameters())
    scores = head(U, V)
    cosine = (U * V).sum(1) / (U.norm(dim=1) * V.norm(dim=1))
    torch.testing.assert_close(scores, cosine)
    torch.testing.assert_close(head.predict(scores), 1 + 4 * cosine)
    labels = torch.tensor([1.0, 5.0, 2.5])
    expected = (cosine - torch.tensor([0.0, 1.0, 0.375])).square()
    torch.testing.assert_close(head.losses(scores, labels), expected)
    assert head.predict(head(U, U)).tolist() == pytest.approx([5, 5, 5])


def test_a_score_that_is_no_whole_number_stays_one():
    head = make_head("cosine", D, 0.1, low=0.0, high=5.0)
    scores = torch.tensor([0.5, 0.5, 0.5])
    losses = head.losses(scores, torch.tensor([2.5, 2.75, 2.0]))
    assert losses.tolist() == pytest.approx([0, 0.05**2, 0.1**2])


def test_the_mean_of_the_distribution_is_the_score():
    head = make_head("distribution", D, 0.1, low=0.0, high=5.0).eval()
    logits = head(U, V)
    assert logits.shape == (3, 11)
    assert head.kind == "classes"
    centres = torch.arange(11) / 2
    torch.testing.assert_close(head.predict(logits), logits.softmax(1) @ centres)
    # The gradient of cross-entropy is the distribution less its target, whose mean is the label.
    labels = torch.tensor([0.4, 5.0, 2.75])
    (gradient,) = torch.autograd.grad(head.losses(logits, labels).sum(), logits)
    target = logits.softmax(1) - gradient
    torch.testing.assert_close(target @ centres, labels)
    assert target[0, :3].tolist() == pytest.approx([0.2, 0.8, 0], abs=1e-6)
    assert target[1, -2:].tolist() == pytest.approx([0, 1], abs=1e-6)


# ---- the rich relational layer ----


def test_the_relational_layer_reads_four_parts():
    layer = heads.RelationalLayer(D, 0.1).eval()
    parts = layer.relate(U, V)
    assert parts.shape == (3, 4 * D)
    u, v, difference, product = parts.chunk(4, 1)
    torch.testing.assert_close(u, U)
    torch.testing.assert_close(v, V)
    torch.testing.assert_close(difference, (U - V).abs())
    # the parts of the cosine
    torch.testing.assert_close(product.sum(1), torch.cosine_similarity(U, V))
    assert layer(U, V).shape == (3, D)


def test_the_relational_layer_is_symmetric_where_it_should_be():
    """Swapped texts swap the first two parts and leave the others."""
    layer = heads.RelationalLayer(D).eval()
    there = layer.relate(U, V).chunk(4, 1)
    back = layer.relate(V, U).chunk(4, 1)
    torch.testing.assert_close(back, (there[1], there[0], there[2], there[3]))


def test_a_text_without_length_relates_to_none():
    parts = heads.RelationalLayer(D).relate(torch.zeros(3, D), V)
    assert parts.isfinite().all()
    assert (parts[:, 3 * D :] == 0).all()


def test_a_relational_score_is_within_the_range():
    head = make_head("relational_score", D, 0.1, low=0.0, high=5.0).eval()
    scores = head.predict(head(100 * U))
    assert scores.shape == (3,)
    assert (scores >= 0).all()
    assert (scores <= 5).all()


def test_quora_and_sts_share_the_layer_or_have_their_own():
    shared = make_model(RELATED)
    own = make_model(RELATED, relational="own")
    assert list(shared.relations) == ["shared"]
    assert list(own.relations) == ["quora", "sts"]
    assert not make_model(TRIO).relations
    for model, moves in ((shared, True), (own, False)):
        before = model(**draw_batch("sts")).logits
        model.zero_grad()
        model(**draw_batch("quora")).loss.backward()
        with torch.no_grad():
            for relation in model.relations.values():
                for p in relation.parameters():
                    p.sub_(0 if p.grad is None else 10 * p.grad)
        after = model(**draw_batch("sts")).logits
        assert (before - after).abs().max().item() > 1e-6 if moves else torch.equal(before, after)


@pytest.mark.parametrize(
    "name",
    [
        "span",
        "joint_span",
        "classes",
        "pair",
        "distribution",
        "relational_pair",
        "relational_score",
        "relational layer",
    ],
)
def test_a_head_has_dropout_in_training_alone(name):
    torch.manual_seed(0)
    states = torch.randn(3, 5, D)
    inputs = (states[:, 0],)
    if "span" in name:
        inputs = (states, torch.ones(3, 5))
    elif name in ("pair", "distribution", "relational layer"):
        inputs = (states[:, 0], states[:, 1])
    is_layer = name == "relational layer"
    head = heads.RelationalLayer(D, 0.5) if is_layer else make_head(name, D, 0.5)

    def read() -> torch.Tensor:
        output = head(*inputs)
        return output.start_logits if name == "joint_span" else output

    assert not torch.equal(read(), read())
    head.eval()
    assert torch.equal(read(), read())


def test_the_span_model_has_dropout_between_encoder_and_head():
    model = heads.SpanModel(make_encoder(), head_dropout=0.5)
    model.encoder.eval()
    text = draw_text(1, 12)
    assert not torch.equal(model(**text).start_logits, model(**text).start_logits)
    model.eval()
    assert torch.equal(model(**text).start_logits, model(**text).start_logits)


# ---- the shared encoder ----


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("dataset", TRIO)
def test_a_pair_is_two_texts_of_the_same_encoder(kind, dataset):
    """Outputs are those of a head on texts that are encoded by themselves."""
    pad = ENCODERS[kind].pad_token_id
    model = make_model(kind=kind, pooling="mean")
    batch = draw_batch(dataset, pad)
    summaries = []
    for prefix in ("", "pair_") if dataset != "sst" else ("",):
        mask = batch[f"{prefix}attention_mask"]
        inputs = {"input_ids": batch[f"{prefix}input_ids"], "attention_mask": mask}
        states = model.encoder(**inputs).last_hidden_state
        rows = [text[:n].mean(0) for text, n in zip(states, mask.sum(1), strict=True)]
        summaries.append(torch.stack(rows))
    raw = model.heads[dataset](*summaries)
    output = model(**batch)
    torch.testing.assert_close(output.raw, raw)
    torch.testing.assert_close(output.logits, model.heads[dataset].predict(raw))
    losses = model.heads[dataset].losses(raw, batch["labels"])
    torch.testing.assert_close(output.loss, losses.mean())
    assert model(**draw_batch(dataset, pad, labels=False)).loss is None


def test_token_types_are_stacked_too():
    batch = draw_batch("quora")
    batch["token_type_ids"] = torch.ones_like(batch["input_ids"])
    batch["pair_token_type_ids"] = torch.zeros_like(batch["pair_input_ids"])
    texts = stack_texts(batch, 7)
    assert {name: tuple(value.shape) for name, value in texts.items()} == {
        "input_ids": (6, 20),
        "attention_mask": (6, 20),
        "token_type_ids": (6, 20),
    }
    assert (texts["input_ids"][:3, 12:] == 7).all()
    assert (texts["attention_mask"][:3, 12:] == 0).all()
    assert texts["token_type_ids"].sum() == 3 * 12
    model = make_model()
    plain = model(**draw_batch("quora")).logits
    assert not torch.allclose(model(**batch).logits, plain, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
def test_pooling_reads_what_its_name_says(pooling):
    model = make_model(pooling=pooling)
    states = torch.randn(3, 12, D)
    mask = draw_batch("sst")["attention_mask"]
    summary = model.pool(states, mask)
    if pooling == "mean":
        torch.testing.assert_close(summary[2], states[2, :5].mean(0))
    elif pooling == "cls":
        assert torch.equal(summary, states[:, 0])
    else:
        layer = model.pooler.linear
        torch.testing.assert_close(summary, layer(states[:, 0]).tanh())
    assert (model.pooler is not None) == (pooling == "pooler")


def test_padding_changes_nothing():
    for pooling in ("cls", "mean"):
        model = make_model(pooling=pooling)
        batch = draw_batch("quora")
        noisy = copy.deepcopy(batch)
        for prefix in ("", "pair_"):
            padding = noisy[f"{prefix}attention_mask"] == 0
            noisy[f"{prefix}input_ids"][padding] = 9
        torch.testing.assert_close(model(**noisy).logits, model(**batch).logits)


def test_a_frozen_encoder_is_not_trained():
    model = make_model(RELATED, pooling="pooler", frozen=True).train()
    for dataset in RELATED:
        model(**draw_batch(dataset)).loss.backward()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.encoder.parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    assert all(p.grad is not None for p in others)


def make_divided(*args, **options):
    """Return a model that counts as in training, where divisors are; its parts have no dropout."""
    model = make_model(*args, **options)
    model.training = True
    return model


def test_a_loss_is_the_mean_over_its_rows_or_has_the_report_s_divisor():
    plain = make_model()
    divided = make_divided(divisors={"sst": 64})
    batch = draw_batch("sst")
    mean = plain(**batch).loss
    torch.testing.assert_close(divided(**batch).loss, mean * 3 / 64)
    two = {n: v[:2] if torch.is_tensor(v) else v for n, v in batch.items()}
    rows = plain.heads["sst"].losses(plain(**batch).raw, batch["labels"])
    torch.testing.assert_close(plain(**two).loss, rows[:2].mean())
    assert torch.equal(divided(**draw_batch("sts")).loss, plain(**draw_batch("sts")).loss)


def test_a_divisor_is_the_dataset_s_where_datasets_share_a_head():
    heads_by_name = {"five": TRIO["sst"]}
    head_of = {"sst": "five", "reviews": "five"}
    plain = make_model(heads_by_name, head_of=head_of)
    divided = make_divided(heads_by_name, head_of=head_of, divisors={"sst": 64})
    batch = draw_batch("sst")
    mean = plain(**batch).loss
    torch.testing.assert_close(divided(**batch).loss, mean * 3 / 64)
    assert torch.equal(divided(**batch | {"dataset": "reviews"}).loss, mean)


def test_a_divisor_divides_the_loss_of_spans_too():
    batch = draw_batch("sst") | {"dataset": "news"}
    batch["start_positions"] = batch.pop("labels")
    batch["end_positions"] = batch["start_positions"]
    mean = make_model({"news": ("span", {})})(**batch).loss
    divided = make_divided({"news": ("span", {})}, divisors={"news": 64})(**batch).loss
    torch.testing.assert_close(divided, mean * 3 / 64)


def test_the_dataset_names_the_head():
    model = make_model()
    batch = draw_batch("sst")
    with pytest.raises(ValueError, match="no head for dataset imdb; there are sst, quora, sts"):
        model(**batch | {"dataset": "imdb"})
    with pytest.raises(ValueError, match="no head for dataset None"):
        model(**batch | {"dataset": None})
    alone = make_model({"sst": TRIO["sst"]})
    assert torch.equal(alone(**batch | {"dataset": None}).logits, alone(**batch).logits)
    kinds = [model.output_kind({"dataset": name}) for name in TRIO]
    assert kinds == ["classes", "binary", "score"]


def test_weights_are_saved_once_and_give_the_same_outputs():
    model = make_model(RELATED, pooling="pooler")
    other = make_model(RELATED, pooling="pooler")
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(load(save(model.state_dict())))
    for dataset in RELATED:
        batch = draw_batch(dataset)
        assert torch.equal(model(**batch).logits, other(**batch).logits)


def test_a_head_starts_from_small_weights():
    torch.manual_seed(0)
    head = make_head("pair", 400, 0.1)
    assert head.linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (head.linear.bias == 0).all()


# ---- replaced embeddings ----


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("dataset", TRIO)
def test_the_model_on_its_own_embeddings_is_the_model(kind, dataset):
    model = make_model(kind=kind)
    batch = draw_batch(dataset, ENCODERS[kind].pad_token_id)
    embeddings = model.embed(batch)
    width = 12 if dataset == "sst" else 2 * 20
    assert embeddings.shape[:2] == model.token_mask(batch).shape == (3, width)
    output = model(**batch)
    again = model.forward_embeddings(embeddings, batch)
    assert torch.equal(again.logits, output.logits)
    assert torch.equal(again.loss, output.loss)
    # an example's embeddings are in its own row, for both texts
    changed = embeddings.clone()
    changed[1] += 1
    moved = model.forward_embeddings(changed, batch).raw != output.raw
    assert moved.reshape(3, -1).any(1).tolist() == [False, True, False]
    assert torch.equal(model(**batch).logits, output.logits)


@pytest.mark.parametrize("sparse, kind", [*((False, k) for k in ENCODERS), (True, "bert")])
def test_a_span_model_on_its_own_embeddings_is_the_model(kind, sparse):
    encoder = make_encoder(kind)
    layer = Layer(experts=4)
    model = (ExBERT(encoder, 0.1, layer) if sparse else heads.SpanModel(encoder)).eval()
    batch = draw_text(1, 12, ENCODERS[kind].pad_token_id)
    batch |= {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 2, 4])}
    output = model(**batch)
    embeddings = model.embed(batch)
    again = model.forward_embeddings(embeddings, batch)
    assert torch.equal(again.loss, output.loss)
    compared = model.compared_outputs(again)
    assert torch.equal(compared, torch.stack([output.start_logits, output.end_logits], 1))
    moved = model.forward_embeddings(embeddings + torch.randn_like(embeddings), batch)
    assert (moved.start_logits != output.start_logits).any()
    assert torch.equal(model.token_mask(batch), batch["attention_mask"])
    assert model.output_kind(batch) == "span"


def test_the_gradient_reaches_replaced_embeddings_alone():
    encoder = make_encoder()
    batch = draw_text(1, 12)
    embeddings = encoders.embed_tokens(encoder, batch["input_ids"]).detach().requires_grad_()
    with encoders.replace_embeddings(encoder, embeddings):
        encoder(**batch).last_hidden_state.square().sum().backward()
    assert embeddings.grad.abs().max() > 0
    assert all(p.grad is None for p in encoder.embeddings.parameters())


def test_embeddings_are_the_encoder_s_own_again():
    encoder = make_encoder().eval()
    batch = draw_text(1, 12)
    before = encoder(**batch).last_hidden_state
    with pytest.raises(ZeroDivisionError):
        with encoders.replace_embeddings(encoder, torch.zeros(3, 12, D)):
            assert not torch.equal(encoder(**batch).last_hidden_state, before)
            raise ZeroDivisionError
    assert torch.equal(encoder(**batch).last_hidden_state, before)
