"""The mixture of experts: gate, mixing, stored outputs, re-initialised blocks, and its runs."""

import hashlib
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_multitask import kill_at_step, show_nothing

from qa_lib.data import features, selection
from qa_lib.evidence.claims import read_claims
from qa_lib.models import encoders, gated_mixture, heads
from qa_lib.reports import moe, plans
from qa_lib.settings import params
from qa_lib.settings.parameters import Gate, Layer
from qa_lib.settings.params import UserError
from qa_lib.store import code_hashes, runs
from qa_lib.tasks import span
from qa_lib.training import build, evaluate, frozen, study, train

TINY = {
    "train_rows": 16,
    "validation_rows": 6,
    "epochs": 1.0,
    "seeds": [0],
    "experiments": ["mixture"],
    "few_rows": 8,
    "start": None,
    "max_length": 128,
    "stride": 32,
    "blocks": 1,
    "batch_size": 8,
    "looks": 2,
    "watched": 4,
    "gate_epochs": 1.0,
    "reinit_epochs": 1.0,
    "precision": "fp32",
}


def load_tiny(**changes) -> moe.Parameters:
    """Return parameters of trainings that take seconds, with changes."""
    return plans.load_params("moe", "quick", TINY | changes)


def plan_moe(profile="quick", size=None, **changes):
    """Return the runs of the report moe, with changed parameters."""
    return plans.plan(plans.load_params("moe", profile, changes, size))


def find_variant(specs, variant: str):
    """Return the first run of a variant."""
    return next(s for s in specs if s.variant == variant)


@pytest.fixture
def experts(monkeypatch):
    """Return (run, models, rows, windows, tokenizer) of a mixture of three untrained experts.

    `build.load_trained_model` returns these models, which have random heads. The rows are those
    of all experts.
    """
    spec = find_variant(plans.plan(load_tiny()), "moe")
    models = {}
    for expert in spec.parents:
        model, _ = build.build_model(expert)
        rng = torch.Generator().manual_seed(int(expert.hash[:8], 16))
        torch.nn.init.normal_(model.head.weight, std=1.0, generator=rng)
        models[expert.hash] = model
    monkeypatch.setattr(build, "load_trained_model", lambda e: models[e.hash])
    rows = selection.draw_mixture(spec)[0]
    _, tokenizer = encoders.load_encoder("minilm")
    windows = features.load_windows(rows, tokenizer, spec.max_length, spec.stride, evaluate.CACHE)
    return spec, [models[e.hash] for e in spec.parents], rows, windows, tokenizer


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_gate_rows_sum_to_one(layers):
    gate = gated_mixture.MLP(8, 3, Gate(layers=layers, hidden=16))
    g = gate(torch.randn(10, 8))
    torch.testing.assert_close(g.sum(1), torch.ones(10))
    assert sum(isinstance(m, torch.nn.Linear) for m in gate) == layers
    assert (g > 0).all()


def draw_batch(B=4, E=3, T=9, D=5, seed=0) -> dict:
    """Return a random batch of a mixture: B windows of T tokens, E experts, D inputs of the gate.

    The first window has padding behind its sixth token.
    """
    rng = torch.Generator().manual_seed(seed)
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, 6:] = 0
    return {
        "starts": 4 * torch.randn(B, E, T, generator=rng),
        "ends": 4 * torch.randn(B, E, T, generator=rng),
        "attention_mask": mask,
        "x": torch.randn(B, D, generator=rng),
        "weights": torch.rand(B, E, generator=rng).softmax(-1),
        "start_positions": torch.tensor([1, 2, 3, 4]),
        "end_positions": torch.tensor([2, 2, 5, 8]),
    }


@pytest.mark.parametrize("mixed", ["logits", "probabilities"])
def test_mixing_equals_a_float64_loop(mixed):
    b = draw_batch()
    out = gated_mixture.Mixture(None, mixed, None)(**b)
    for i in range(4):
        n = int(b["attention_mask"][i].sum())
        g = b["weights"][i].double()
        z = b["starts"][i, :, :n].double()
        ours = out.start_logits[i, :n].double()
        if mixed == "logits":
            expected = sum(g[k] * z[k] for k in range(3))
        else:
            ours = ours.exp()
            expected = sum(g[k] * torch.exp(z[k]) / torch.exp(z[k]).sum() for k in range(3))
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
        assert (out.start_logits[i, n:] == gated_mixture.LOWEST).all()
    at = torch.arange(4)
    start = out.start_logits.log_softmax(1)[at, b["start_positions"]]
    end = out.end_logits.log_softmax(1)[at, b["end_positions"]]
    torch.testing.assert_close(out.loss, (-(start + end) / 2).mean())


def test_one_expert_is_that_expert():
    b = draw_batch(E=1) | {"weights": torch.ones(4, 1)}
    for mixed in ("logits", "probabilities"):
        start = gated_mixture.Mixture(None, mixed, None)(**b).start_logits
        alone = b["starts"][:, 0].masked_fill(b["attention_mask"] == 0, gated_mixture.LOWEST)
        torch.testing.assert_close(start.softmax(-1), alone.softmax(-1))


@pytest.mark.parametrize("mixed", ["logits", "probabilities"])
def test_an_expert_of_weight_0_has_no_say(mixed):
    trusted = [0, 1, 2, 0]
    b = draw_batch() | {"weights": torch.eye(3)[trusted]}
    start = gated_mixture.Mixture(None, mixed, None)(**b).start_logits
    alone = b["starts"][torch.arange(4), trusted]
    alone = alone.masked_fill(b["attention_mask"] == 0, gated_mixture.LOWEST)
    torch.testing.assert_close(start.softmax(-1), alone.softmax(-1))


def test_a_mixture_says_what_its_experts_say(experts):
    """With weight 1 on one expert the logits are its own, stored in half precision.

    They may differ in its last place, since some processors round by where memory lies.
    """
    spec, models, rows, windows, tokenizer = experts
    own = spec.model_copy(update={"gate": Gate(rule="own")})
    mixture, _ = build.build_model(own)
    prepared = mixture.prepare(windows, rows)
    outputs, _ = evaluate.compute_outputs(mixture, prepared, gated_mixture.collate, "fp32", span)
    start = outputs["start"]
    for k, model in enumerate(models):
        mine = [i for i, r in enumerate(windows["row"]) if rows[r]["domain"] == spec.domains[k]]
        collate = model.collate(tokenizer, span, spec.domains[0])
        outputs, _ = evaluate.compute_outputs(model, windows, collate, "fp32", span)
        alone = outputs["start"]
        assert mine
        for i in mine:
            half = alone[i].astype(np.float16).astype(np.float32)
            np.testing.assert_allclose(start[i], half, rtol=2**-10, atol=1e-4)


def test_the_best_single_expert_is_the_one_with_the_highest_em(experts, monkeypatch):
    """On validation rows, none of which is a test row."""
    spec, models, *_ = experts
    em = iter([10.0, 30.0, 20.0])  # of the three experts
    scored = []

    def score(model, tokenizer, spec, rows):
        scored.append(rows)
        return {"em": next(em)}

    monkeypatch.setattr(evaluate, "score_run_rows", score)
    mixture, _ = build.build_model(spec.model_copy(update={"gate": Gate(rule="best")}))
    assert mixture.prepare.keywords["best"] == 1
    assert scored == [selection.draw_mixture(spec)[1]] * 3
    tested = set()
    for _, rows in selection.load_test_sets(spec).values():
        tested |= {selection.row_key(row) for row in rows}
    assert scored[0]
    assert not tested & {selection.row_key(row) for row in scored[0]}


def plan_combined(rule: str, monkeypatch):
    """Return a run that combines three experts by a rule, whose answers are planted.

    Of the set `a`, that of the first expert, a mean over rows counts, of `b` one within clusters
    first.
    """
    spec = find_variant(plans.plan(load_tiny()), "moe")
    scores = {
        ("a", "q1", "c1"): (100.0, 0.0, 40.0),
        ("a", "q2", "c1"): (0.0, 20.0, 40.0),
        ("a", "q3", "c2"): (0.0, 60.0, 100.0),
        ("b", "q4", "c1"): (0.0, 30.0, 60.0),
        ("b", "q5", "c1"): (90.0, 0.0, 0.0),
        ("b", "q6", "c2"): (10.0, 20.0, 30.0),
    }
    rows = []
    for (name, id_, cluster), of_experts in scores.items():
        for expert, em in zip(("a", "x", "y"), of_experts, strict=True):
            row = {"set": name, "id": id_, "cluster": cluster, "expert": expert}
            rows.append(row | {"em": em, "f1": em / 2})
    monkeypatch.setattr(runs, "collect_expert_examples", lambda spec: pd.DataFrame(rows))
    averages = {"a": "rows", "b": "clusters"}
    monkeypatch.setattr(
        selection, "find_dataset", lambda name, *_: SimpleNamespace(average=averages[name])
    )
    return spec.model_copy(update={"gate": Gate(rule=rule), "tests": ["a", "b"]})


def test_the_other_experts_count_as_their_mean(monkeypatch):
    """On a set of its own the expert of that set is left out; on another none is."""
    scores, examples = evaluate.combine_expert_scores(plan_combined("others", monkeypatch))
    assert examples["em"].tolist() == [20, 30, 80, 30, 30, 20]
    assert examples["id"].tolist() == ["q1", "q2", "q3", "q4", "q5", "q6"]
    assert scores["a"]["em"] == pytest.approx(130 / 3)
    assert scores["a"]["f1"] == pytest.approx(65 / 3)
    assert scores["b"]["em"] == pytest.approx((30 + 20) / 2)  # within clusters first
    assert (scores["a"]["n"], scores["a"]["clusters"]) == (3, 2)
    assert "overflowed" not in scores["a"]  # nothing has counted windows


def test_the_oracle_takes_the_best_expert_of_each_question(monkeypatch):
    scores, examples = evaluate.combine_expert_scores(plan_combined("oracle", monkeypatch))
    assert examples["em"].tolist() == [100, 40, 100, 60, 90, 30]
    assert scores["a"]["em"] == pytest.approx(80)
    assert scores["b"]["em"] == pytest.approx((75 + 30) / 2)
    assert scores["b"]["f1"] == pytest.approx((75 + 30) / 4)


def test_a_gate_is_asked_on_its_own_device(experts, monkeypatch):
    """The device `meta` stands for a GPU, because it refuses tensors of another device."""
    spec, _, rows, windows, _ = experts
    mixture, _ = build.build_model(spec)
    mixture.prepare(windows, rows)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: torch.zeros(x.shape))
    details = mixture.to("meta").window_details(windows, rows)
    assert {x.shape for x in details.values()} == {(len(windows),)}


def test_weights_told_the_dataset_are_fitted(experts):
    """The fit leads from equal weights nearly to the lowest loss on the rows, found by L-BFGS."""
    spec = find_variant(plans.plan(load_tiny(experiments=["mixture", "controls"])), "told-dataset")
    train.train(spec, progress=lambda line: None, keep_weights=True)
    mixture, tokenizer = build.build_model(spec)
    rows, _, _ = selection.draw_mixture(spec)
    windows = features.load_windows(rows, tokenizer, spec.max_length, spec.stride, evaluate.CACHE)
    prepared = mixture.prepare(windows, rows)
    batch = gated_mixture.collate([prepared[i] for i in range(len(prepared))])
    mixture.load_state_dict(build.load_weights(spec))
    fitted = mixture(**batch).loss.item()
    mixture, _ = build.build_model(spec)
    with torch.no_grad():
        weights = mixture.gate(torch.eye(mixture.gate[0].in_features))
    assert torch.equal(weights, torch.full_like(weights, 1 / weights.shape[1]))
    search = torch.optim.LBFGS(mixture.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    equal = mixture(**batch).loss.item()

    def backpropagate():
        search.zero_grad()
        loss = mixture(**batch).loss
        loss.backward()
        return loss

    search.step(backpropagate)
    best = mixture(**batch).loss.item()
    assert best < equal - 0.01
    assert fitted - best < 0.05 * (equal - best)


def test_every_dataset_and_the_encoder_are_fetched(capsys):
    p = load_tiny(start="relations")
    study.fetch_inputs(p)
    output = capsys.readouterr().out
    for name in (*p.domains, *p.few_shot, *p.pools, p.start, "encoder minilm"):
        assert f"{name}: " in output


def test_an_expert_s_own_scoring_stores_what_a_mixture_asks_for(experts, store, monkeypatch):
    """The scores equal those without the store, and no expert is run again for a mixture."""
    monkeypatch.setattr(evaluate, "CACHE", store / "cache")
    spec, models, rows, _, tokenizer = experts

    def run_again():
        pytest.fail("run again")

    for model, expert in zip(models, spec.parents, strict=True):
        _, outputs, loss = evaluate.predict_outputs(
            model, tokenizer, expert, expert.domains[0], rows
        )
        start, end = outputs["start"], outputs["end"]
        windows, logits, same = frozen.predict_and_store(
            model, tokenizer, expert, expert.domains[0], rows
        )
        assert loss == same
        for plain, stored in ((start, logits["start"]), (end, logits["end"])):
            for a, b in zip(plain, stored, strict=True):
                assert np.array_equal(a, b)
        asked = (expert.hash, windows, tokenizer, run_again, expert.precision)
        read = frozen.read_outputs(*asked, code_hashes.list_modules(expert))
        assert np.array_equal(read.start, np.concatenate(start).astype(np.float16))
        # outputs of earlier weights do not count once the expert is trained again
        frozen.drop_outputs(expert)
        with pytest.raises(pytest.fail.Exception, match="run again"):
            frozen.read_outputs(*asked, code_hashes.list_modules(expert))


def test_outputs_of_a_sparse_model_are_known_by_the_code_of_its_layer(experts, store, monkeypatch):
    monkeypatch.setattr(evaluate, "CACHE", store / "cache")
    spec, models, rows, _, tokenizer = experts
    expert = spec.parents[0].model_copy(update={"layer": Layer()})
    dataset = expert.domains[0]
    frozen.predict_and_store(models[0], tokenizer, expert, dataset, rows)
    assert len(list_outputs(store)) == 1
    frozen.predict_and_store(models[0], tokenizer, expert, dataset, rows)
    assert len(list_outputs(store)) == 1
    hash_module = code_hashes.hash_module

    def hash_edited(name: str) -> str:
        return "edited" if name == "models/st_moe.py" else hash_module(name)

    monkeypatch.setattr(code_hashes, "hash_module", hash_edited)
    frozen.predict_and_store(models[0], tokenizer, expert, dataset, rows)
    assert len(list_outputs(store)) == 2


def list_outputs(store) -> list:
    """Return the folders of stored outputs."""
    return [path for path in (store / "cache" / "frozen").iterdir() if path.is_dir()]


def test_training_on_stored_outputs_equals_training_on_live_ones(experts, monkeypatch):
    """They are equal if live outputs are rounded to half. Only the gate learns.

    Four steps move a weight by up to 0.04. What half precision rounds otherwise, since some
    processors round by where memory lies, is far less on average.
    """
    spec, models, rows, windows, tokenizer = experts
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]

    def train_gate() -> dict:
        mixture, _ = build.build_model(spec)
        assert {n.split(".")[0] for n, _ in mixture.named_parameters()} == {"gate"}
        prepared = mixture.prepare(windows, rows)
        collate = gated_mixture.collate
        optimizer = torch.optim.AdamW(mixture.parameters(), lr=1e-2)
        for first in range(0, 32, 8):
            batch = collate([prepared[i] for i in range(first, first + 8)])
            mixture(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return mixture.state_dict()

    def compute_live(key, windows, tokenizer, make, precision, modules=()) -> frozen.Outputs:
        outputs, _ = frozen.compute_outputs(make(), windows, tokenizer, precision)
        return frozen.Outputs(**{k: v.astype(np.float16) for k, v in outputs.items()})

    stored = train_gate()
    monkeypatch.setattr(frozen, "read_outputs", compute_live)
    live = train_gate()
    untrained = build.build_model(spec)[0].state_dict()
    assert all((v - live[k]).abs().mean() < 1e-5 for k, v in stored.items())
    assert any(not torch.equal(v, untrained[k]) for k, v in stored.items())
    for model, weights in zip(models, before, strict=True):
        assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


def test_a_gate_sees_the_input_that_it_names(experts):
    spec, _, rows, windows, tokenizer = experts
    # The encoders of the untrained experts are the plain one, so the gate has one of more blocks.
    spec = spec.model_copy(update={"blocks": 2})
    seen = {}
    for name in ("mean", "cls", "experts", "dataset"):
        mixture, _ = build.build_model(spec.model_copy(update={"gate": Gate(input=name, layers=1)}))
        seen[name] = mixture.prepare(windows, rows).x
        assert mixture.gate[0].in_features == seen[name].shape[1]
    assert seen["mean"].shape == seen["cls"].shape == seen["experts"].shape == (len(windows), 384)
    assert not np.allclose(seen["mean"], seen["cls"], atol=1e-2)
    assert not np.allclose(seen["mean"], seen["experts"], atol=1e-2)
    domains = [rows[r]["domain"] for r in windows["row"]]
    assert [spec.domains[i] for i in seen["dataset"].argmax(1)] == domains
    assert (seen["dataset"].sum(1) == 1).all()


def test_a_stored_mean_leaves_padding_out(experts):
    _, models, _, windows, tokenizer = experts
    model = models[0]
    outputs, _ = frozen.compute_outputs(model, windows, tokenizer, "fp32")
    shortest = min(range(len(windows)), key=lambda i: len(windows[i]["input_ids"]))
    window = windows[shortest]
    ids = torch.tensor([window["input_ids"]])
    types = torch.tensor([window["type_ids"]])
    with torch.inference_mode():
        states = model.encoder(input_ids=ids, token_type_ids=types).last_hidden_state
    mean = torch.from_numpy(outputs["mean"][shortest])
    torch.testing.assert_close(mean, states[0].mean(0), atol=1e-4, rtol=1e-3)


def test_a_gate_that_reads_no_encoder_counts_none():
    spec = find_variant(plans.plan(load_tiny()), "moe")
    told = spec.model_copy(update={"gate": Gate(input="dataset", layers=1)})
    mixture, _ = build.build_model(told)
    own = sum(p.numel() for p in mixture.parameters())
    alone = told.model_copy(update={"experts": []})
    assert build.count_parameters(mixture, alone) == (own, own)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_gate_reads_an_encoder_with_the_run_s_blocks(blocks, experts):
    spec, _, rows, windows, tokenizer = experts
    spec = spec.model_copy(update={"blocks": blocks})
    encoder, _ = encoders.load_encoder(spec.encoder, blocks)
    plain = heads.SpanModel(encoder)
    outputs, _ = frozen.compute_outputs(plain, windows, tokenizer, spec.precision)
    mixture, _ = build.build_model(spec)
    seen = mixture.prepare(windows, rows).x
    assert np.array_equal(seen, outputs[spec.gate.input].astype(np.float16))
    own = sum(p.numel() for p in mixture.parameters())
    counted, _ = build.count_parameters(mixture, spec)
    alone = spec.model_copy(update={"experts": []})
    of_encoder = sum(p.numel() for p in encoder.parameters())
    assert build.count_parameters(mixture, alone) == (own + of_encoder, own + of_encoder)
    assert counted > own + of_encoder


# ---- re-initialisation ----


def hash_weights(module) -> str:
    """Return the sha256 of a module's weights."""
    weights = b"".join(v.numpy().tobytes() for v in module.state_dict().values())
    return hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("top", [1, 4])
@pytest.mark.parametrize("source", ["random", "lower"])
def test_reinitialised_blocks_differ_and_the_rest_is_byte_equal(top, source):
    plain, _ = encoders.load_encoder("minilm")
    again, _ = encoders.load_encoder("minilm")
    encoders.reinitialise(again, top, 0, source)
    a = [hash_weights(block) for block in encoders.blocks_of(plain)]
    b = [hash_weights(block) for block in encoders.blocks_of(again)]
    assert a[: 6 - top] == b[: 6 - top]
    assert all(x != y for x, y in zip(a[6 - top :], b[6 - top :], strict=True))
    assert hash_weights(plain.embeddings) == hash_weights(again.embeddings)
    last = encoders.blocks_of(again)[-1]
    if source == "lower":
        assert b[6 - top :] == [b[i % (6 - top)] for i in range(top)]
    else:
        dense = last.intermediate.dense
        norm = last.output.LayerNorm
        assert abs(dense.weight.std().item() - 0.02) < 1e-3
        assert not dense.bias.any()
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert not norm.bias.any()
    with pytest.raises(UserError, match="a run is to re-initialise 6 blocks of an encoder of 6"):
        encoders.reinitialise(again, 6, 0)


def test_reinitialisation_leaves_head_and_draws_alone():
    plain = find_variant(plans.plan(load_tiny()), "baseline").model_copy(update={"blocks": 3})
    models = []
    after = []
    for spec in (plain, plain.model_copy(update={"reinit": 2})):
        models.append(build.build_model(spec)[0])
        after.append(torch.rand(3))
    assert torch.equal(models[0].head.weight, models[1].head.weight)
    assert torch.equal(*after)


def test_reinitialised_weights_follow_from_the_seed():
    drawn = []
    for seed in (0, 0, 1):
        encoder, _ = encoders.load_encoder("minilm", 2)
        encoders.reinitialise(encoder, 1, seed)
        drawn.append(hash_weights(encoders.blocks_of(encoder)[-1]))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_top_blocks_of_a_start_are_reinitialised_too(monkeypatch):
    plain = find_variant(plans.plan(load_tiny()), "baseline").model_copy(update={"blocks": 2})
    model, _ = build.build_model(plain)
    trained = {name: weight + 1 for name, weight in model.state_dict().items()}
    monkeypatch.setattr(build, "load_weights", lambda spec: trained)
    start = plain.model_copy(update={"seed": 5})
    model, _ = build.build_model(plain.model_copy(update={"start": start, "reinit": 1}))
    lower, upper = encoders.blocks_of(model.encoder)
    bias = trained["encoder.encoder.layer.0.output.dense.bias"]
    assert torch.equal(lower.output.dense.bias, bias)
    assert not upper.output.dense.bias.any()


# ---- evaluation ----


def test_the_starter_code_s_rule_differs_on_answers_of_one_token_only(experts):
    _, models, rows, windows, tokenizer = experts
    model = models[0]
    collate = model.collate(tokenizer, span, "news")
    outputs, _ = evaluate.compute_outputs(model, windows, collate, "fp32", span)
    start, end = outputs["start"], outputs["end"]
    free = span.predict_answers(rows, windows, {"start": start, "end": end}, one_token=True)
    starter = span.predict_answers(rows, windows, {"start": start, "end": end}, one_token=False)
    # some answers differ, and all of these have one token
    assert {a["tokens"] for a, b in zip(free, starter, strict=True) if a != b} == {1}
    assert all(b["tokens"] != 1 for b in starter)


# ---- runs ----


def test_the_quick_plan_has_every_variant():
    specs = plan_moe()
    trained = [s for s in specs if not s.gate or s.gate.rule == "learned"]
    assert len(trained) <= 24
    names = {s.variant for s in specs}
    assert names >= {
        "baseline",
        "moe",
        "moe-probabilities",
        "baseline-4",
        "reinit-2",
        "reload-2",
        "moe-reinit-2",
        "uniform-weights",
        "best-single",
        "told-dataset",
        "own-expert",
        "other-experts",
        "oracle",
    }
    moe_run = find_variant(specs, "moe")
    assert [e.domains for e in moe_run.parents] == [[d] for d in moe_run.domains]
    assert moe_run.gate == Gate()
    assert {s.gate.layers for s in specs if s.gate and s.gate.rule == "learned"} >= {1, 3, 5}
    with pytest.raises(UserError, match="experiments: 'gate' is not known; known: 'mixture'"):
        plan_moe(experiments=["gate"])
    for name in ("few_shot", "pools", "longer"):
        with pytest.raises(UserError, match=rf"{name}: .* write at least 1"):
            plan_moe(**{name: []})


def test_training_curves_may_have_more_seeds():
    """They have the runs of other seeds with the same hashes, but are scored on no test set."""
    more = [s for s in plan_moe(seeds=[0], curve_seeds=[1]) if s.seed == 1]
    reinitialised = [f"expert-reinit-2-{d}" for d in more[0].domains]
    assert [s.variant for s in more if not s.gate] == ["baseline", *reinitialised]
    assert [s.variant for s in more if s.gate] == ["moe-reinit-2"]
    assert not any(s.tests for s in more)
    assert {s.hash for s in more} < {s.hash for s in plan_moe(seeds=[1])}
    words = r"curve_seeds: 1 is among seeds \[0, 1\] already; leave it away"
    with pytest.raises(UserError, match=words):
        plan_moe(seeds=[0, 1], curve_seeds=[1])
    words = "curve_seeds: they are of the part reinit, which experiments lacks; name it there"
    with pytest.raises(UserError, match=words):
        plan_moe(curve_seeds=[1], experiments=["mixture"])


def test_the_estimate_counts_what_experts_say_once():
    """The first gate of a seed costs a third of a training pass for each frozen model.

    The frozen models are the experts and the plain encoder.
    """
    specs = {s.variant: s for s in plan_moe(experiments=["mixture", "gates"])}
    known = {}
    plain = study.estimate_tokens(specs["baseline"], known)
    first = study.estimate_tokens(specs["moe"], known)
    second = study.estimate_tokens(specs["moe-layers-1"], known)
    assert first > plain / 3 > plain / 9 > second > 0


def plant_records(monkeypatch, specs):
    """Let runs be recorded on their test sets, without weights, as committed ones are."""
    recorded = {spec.hash for spec in specs}
    monkeypatch.setattr(
        runs, "find_record", lambda spec, fresh=False: {} if spec.hash in recorded else None
    )


def test_a_combination_of_experts_reads_their_records_and_no_weights(monkeypatch):
    specs = plans.plan(load_tiny(experiments=["mixture", "controls"]))
    oracle, others = find_variant(specs, "oracle"), find_variant(specs, "other-experts")
    plant_records(monkeypatch, [s for s in specs if s.hash not in (oracle.hash, others.hash)])
    assert study.list_missing(specs) == [others, oracle]
    # an expert without a record is trained before them
    first, *further = oracle.experts
    plant_records(monkeypatch, further)
    assert [s.hash for s in study.list_missing([others, oracle])] == [
        first.hash,
        others.hash,
        oracle.hash,
    ]
    # a mixture asks the experts themselves
    uniform = find_variant(specs, "uniform-weights")
    plant_records(monkeypatch, oracle.experts)
    assert study.list_missing([uniform]) == [*uniform.experts, uniform]


def test_a_combination_of_experts_costs_no_pass(monkeypatch, capsys):
    specs = {s.variant: s for s in plan_moe(experiments=["mixture", "controls"])}
    assert study.estimate_tokens(specs["uniform-weights"], {}) > 0
    todo = [specs["oracle"], specs["other-experts"]]
    tokens = {spec.hash: study.estimate_tokens(spec, {}) for spec in todo}
    assert set(tokens.values()) == {0.0}
    monkeypatch.setattr(study, "_train_one", lambda spec, keep, live: None)
    study._train(todo, tokens, 1, set(), False)
    assert capsys.readouterr().out == "1/2 runs\n2/2 runs\n"


def test_profile_paper_has_the_report_s_settings():
    p = plans.load_params("moe", "paper")
    settings = {
        "batch_size": 16,
        "epochs": 3,
        "learning_rate": 3e-5,
        "max_length": 384,
        "stride": 128,
        "schedule": "constant",
        "checkpoint": "best",
        "gate_layers": 3,
        "gate_hidden": 768,
        "reinit_blocks": 4,
    }
    assert {name: getattr(p, name) for name in settings} == settings


def test_some_models_are_tuned_with_the_controls_of_their_experts(monkeypatch):
    def find_record(spec, fresh=False):
        """Return a record by which 1e-4 and four epochs are best."""
        of_experts = spec.parents[0] if spec.gate else spec
        em = 9.0 if (of_experts.learning_rate, of_experts.epochs) == (1e-4, 4) else 5.0
        row = {"step": 1, "validation_em": em, "validation_f1": em, "validation_loss": 1.0}
        return {"history": [row]}

    monkeypatch.setattr(selection, "fingerprint", lambda *a: "f")
    monkeypatch.setattr(runs, "find_record", find_record)
    changes = {"arms": ["tuned"], "tuned_models": ["moe", "baseline"], "tuned_seeds": [1, 2]}
    specs = plan_moe("real", "small", data="data", **changes)
    final = [s for s in specs if not s.variant.endswith("-trial")]
    assert {s.seed for s in final} == {1, 2}
    assert {s.variant for s in final} >= {"baseline", "moe", *moe.RULES, "told-dataset"}
    assert not any("reinit" in s.variant for s in specs)
    for spec in final:
        for trained in [s for s in (spec, *spec.parents) if not s.gate]:
            assert (trained.learning_rate, trained.epochs) == (1e-4, 4), trained.variant


def test_longer_baselines_may_have_seeds_of_their_own():
    specs = plan_moe(seeds=[0, 1], longer_seeds=[1])
    assert {s.seed for s in specs if s.variant == "baseline-4"} == {1}
    assert {s.seed for s in specs if s.variant == "baseline"} == {0, 1}


def test_the_real_plan_covers_the_claims():
    """The full plan has runs of each variant and set that a claim testable at real names."""
    specs = plan_moe("real", "full", data="data")
    names = {s.variant for s in specs}
    sets = {"training"}.union(*[s.tests for s in specs])
    for c in read_claims("moe"):
        assert not c.control or c.control in names, c.id
        if not c.contrast or "real" not in c.profiles:
            continue
        for side in c.contrast.sides():
            assert set(np.ravel(side["variant"])) <= names, c.id
            assert set(np.ravel(side["set"])) <= sets, c.id


def is_drawn(spec) -> bool:
    """Return whether rows are drawn for a run: it trains a plain model, an expert or a gate."""
    return not spec.gate or spec.gate.rule == "learned"


def test_an_expert_learns_the_rows_that_the_baseline_has_of_its_dataset():
    """That holds for training and validation rows, drawn alone or with others.

    So the gate meets every expert on rows that the expert has learnt.
    """
    planned = plan_moe(experiments=["mixture", "controls", "outside"])
    specs = {s.variant: s for s in planned if s.seed == 0}
    train_rows = {}
    validation_rows = {}
    for variant, spec in specs.items():
        if is_drawn(spec):
            train_rows[variant], validation_rows[variant], _ = selection.draw_mixture(spec)

    def ids(rows: list[dict], name: str) -> list[str]:
        return [r["id"] for r in rows if r["domain"] == name]

    for name in specs["baseline"].domains:
        expected = ids(train_rows["baseline"], name)
        assert ids(train_rows[f"expert-{name}"], name) == expected
        assert ids(train_rows["moe"], name) == expected
        for_all = ids(validation_rows["baseline"], name)
        assert for_all
        assert ids(validation_rows[f"expert-{name}"], name)[: len(for_all)] == for_all
    for name in specs["told-dataset"].domains:
        expected = ids(train_rows["told-dataset"], name)
        assert ids(train_rows[f"outside-{name}"], name) == expected
        assert ids(train_rows["moe-outside"], name) == expected


def normalised_contexts(rows: list[dict]) -> set[str]:
    """Return the contexts of rows as they are compared, without case and spaces."""
    return {selection.normalise_text(r["context"]) for r in rows}


def test_no_out_of_domain_test_text_is_ever_trained_on():
    experiments = moe.Parameters.model_json_schema()["properties"]["experiments"]["items"]["enum"]
    for spec in filter(is_drawn, plan_moe(experiments=experiments)):
        trained_on = normalised_contexts(selection.draw_mixture(spec)[0])
        for name in params.read_datasets(spec.source):
            if name.startswith("out-of-domain"):
                tested_on = normalised_contexts(selection.load_splits(name, spec.source).test)
                assert not tested_on & trained_on, spec.run


def test_a_pool_is_its_members_together():
    whole = selection.load_splits("out-of-domain", "embedded").test
    parts = [selection.load_splits(n, "embedded").test for n in ("plots", "exams", "dialogue")]
    assert whole == sum(parts, [])
    assert {r["domain"] for r in whole} == {"plots", "exams", "dialogue"}


def test_a_second_test_set_shares_no_row_and_no_title():
    first = selection.load_splits("plots", "embedded")
    second = selection.load_splits("plots-test", "embedded").test
    assert {r["domain"] for r in second} == {"plots"}
    assert not {selection.row_key(r) for r in second} & {selection.row_key(r) for r in first.test}
    titles = {selection.normalise_text(r["title"]) for r in second}
    assert not titles & {selection.normalise_text(r["title"]) for r in first.train}


def check_mixture_scores(em, p) -> None:
    """Assert that mixtures with a fixed gate score as the experts that they consist of."""
    experts = em.loc[[v for v in em.index if v.startswith("expert-")]]
    assert (em.loc["oracle"] >= experts.max() - 1e-6).all()
    assert set(em.columns) == {*p.domains, *p.pools}
    for name in p.domains:
        # stored outputs have half precision, so one answer of 24 may differ
        expert = em.loc[f"expert-{name}", name]
        assert em.loc["own-expert", name] == pytest.approx(expert, abs=100 / 24)
        others = [em.loc[f"expert-{d}", name] for d in p.domains if d != name]
        assert em.loc["other-experts", name] == pytest.approx(np.mean(others), abs=1e-3)


def check_gate_weights(examples) -> None:
    """Assert that a gate's weights add up to one, and differ from row to row if it has learnt."""
    weights = examples[examples["variant"] == "moe"][["gate_1", "gate_2", "gate_3"]]
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert weights.std().min() > 0
    uniform = examples[examples["variant"] == "uniform-weights"][["gate_1", "gate_3"]]
    assert (uniform == np.float32(1 / 3)).all(axis=None)


def check_history(record: dict) -> None:
    """Assert that the best checkpoint was chosen and no step was evaluated twice."""
    before, *history = record["history"]
    best = max(history, key=lambda h: (h["validation_f1"], -h["step"]))
    assert record["chosen_step"] == best["step"]
    steps = [h["step"] for h in record["history"]]
    assert steps == sorted(set(steps))
    assert all(h["train_loss"] for h in history)
    # one evaluation comes before training
    assert before["step"] == 0
    assert before["train_loss"] is None


def test_a_small_study_runs_to_the_end(store, monkeypatch, small_encoder):
    """Experts, a gate and its controls are trained, scored on every test set, and recorded."""
    monkeypatch.setattr(evaluate, "CACHE", store / "cache")
    p = load_tiny(experiments=["mixture", "controls"], encoder=small_encoder)
    study.run(p, plans.plan, workers=1, live=False)
    specs = plans.plan(p)
    ledger = runs.collect_ledger(specs)
    examples = runs.collect_examples(specs)
    em = ledger[ledger["metric"] == "em"].pivot(index="variant", columns="set", values="value")
    check_mixture_scores(em, p)
    check_gate_weights(examples)
    assert {"em_starter", "f1_starter"} <= set(ledger["metric"])
    pooled = examples[(examples["set"] == "out-of-domain") & (examples["variant"] == "moe")]
    assert pooled["part"].notna().all()
    assert pooled["em"].mean() == pytest.approx(em.loc["moe", "out-of-domain"], abs=1e-3)
    curves = ledger[ledger["set"] == "training"]
    curves = curves.pivot(index="variant", columns="metric", values="value")
    assert curves.loc["baseline", ["plateau", "train_em_early"]].between(0, 100).all()
    assert "uniform-weights" not in curves.index
    baseline = runs.find_record(find_variant(specs, "baseline"))
    check_history(baseline)
    mixture = runs.find_record(find_variant(specs, "moe"))
    assert mixture["parameters"] > 3 * baseline["parameters"]
    table = study.run(p, plans.plan, workers=1, live=False)
    assert set(table["trained"]) == {"found"}


@pytest.mark.slow
def test_a_gate_is_killed_and_ends_with_the_same_numbers(store, monkeypatch, small_encoder):
    """Its experts stay as they are, and the best of its checkpoints is the same."""
    monkeypatch.setattr(evaluate, "CACHE", store / "cache")
    p = load_tiny(encoder=small_encoder, gate_epochs=2.0)
    spec = find_variant(plans.plan(p), "moe")
    assert spec.checkpoint == "best"
    assert spec.looks == 2
    for expert in spec.experts:
        train.train(expert, progress=show_nothing, keep_weights=True)
    undisturbed = train.train(spec, progress=show_nothing, keep_weights=True)
    folder = runs.run_folder(spec)
    weights = load_file(folder / "model.safetensors")
    shutil.rmtree(folder)
    kill_at_step(spec, 8, monkeypatch)
    lines = []
    again = train.train(spec, progress=lines.append, keep_weights=True)
    assert any("goes on from checkpoint-" in line for line in lines)
    assert again["metrics"] == undisturbed["metrics"]
    # the first evaluation comes before any training loss
    histories = [pd.DataFrame(record["history"]) for record in (again, undisturbed)]
    pd.testing.assert_frame_equal(*histories, rtol=1e-6)
    assert again["chosen_step"] == undisturbed["chosen_step"]
    for name, tensor in load_file(runs.run_folder(spec) / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize(
    "em, early, flat",
    [
        ([0.0, 40, 50, 50.5, 50], 16.0, 50.0),
        ([50, 50, 50, 50, 50], 50.0, 0.0),
        ([10, 20, 30, 40, 50], 14.0, 100.0),
        # a score above the last one is none of the plateau either
        ([0, 40, 50, 51.5, 50], 16.0, 100.0),
        # one that is 1 away is
        ([0, 40, 49, 51, 50], 16.0, 50.0),
    ],
)
def test_a_curve_has_its_early_score_and_its_plateau(em, early, flat):
    past = [{"step": 2 * i, "train_em": float(x), "train_f1": 0.0} for i, x in enumerate(em)]
    curve = train.describe_curve(past, "em")
    assert (curve["train_em_early"], curve["plateau"]) == pytest.approx((early, flat))


def test_an_expert_that_is_best_in_its_last_epoch_still_learns(monkeypatch):
    """Of four epochs the first run is best at the end of the third, the second run after it."""
    history = pd.DataFrame(
        {
            "run": ["a", "a", "b", "b"],
            "epoch": [3.0, 4.0, 3.5, 4.0],
            "epochs": 4.0,
            "validation_f1": [60.0, 50.0, 60.0, 50.0],
        }
    )
    monkeypatch.setattr(runs, "collect_histories", lambda specs: history)
    values = moe.collect_values(load_tiny())
    assert (values["experts"], values["experts_still_learning"]) == (2, 1)
