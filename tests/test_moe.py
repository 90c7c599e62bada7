"""The mixture of experts: gate, mixing, stored outputs, re-initialised blocks, the plan of its runs."""

import hashlib

import numpy as np
import pytest
import torch

from qa_lib.data import features, selection
from qa_lib.evidence.claims import read_claims
from qa_lib.models import encoders, gated_mixture
from qa_lib.reports import moe, plans
from qa_lib.settings import params
from qa_lib.settings.parameters import Gate
from qa_lib.settings.params import UserError
from qa_lib.store import runs
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


def load(**changes) -> moe.Parameters:
    return plans.load_params("moe", "quick", TINY | changes)


def whole_plan(profile="quick", size=None, **changes):
    return plans.plan(plans.load_params("moe", profile, changes, size))


@pytest.fixture
def experts(monkeypatch):
    """Three experts with random heads that learn nothing, as build.load_trained_model gives them; the rows of all, and their windows."""
    spec = next(s for s in plans.plan(load()) if s.variant == "moe")
    models = {}
    for e in spec.parents:
        models[e.hash] = build.build_model(e)[0]
        torch.nn.init.normal_(
            models[e.hash].head.weight,
            std=1.0,
            generator=torch.Generator().manual_seed(int(e.hash[:8], 16)),
        )
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
    assert sum(isinstance(m, torch.nn.Linear) for m in gate) == layers and (g > 0).all()


def batch(B=4, E=3, T=9, D=5, seed=0) -> dict:
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
    b = batch()
    out = gated_mixture.Mixture(None, mixed, None)(**b)
    for i in range(4):
        n, g = int(b["attention_mask"][i].sum()), b["weights"][i].double()
        z = b["starts"][i, :, :n].double()
        if mixed == "logits":
            torch.testing.assert_close(
                out.start_logits[i, :n].double(),
                sum(g[k] * z[k] for k in range(3)),
                atol=1e-6,
                rtol=1e-5,
            )
        else:
            p = sum(g[k] * torch.exp(z[k]) / torch.exp(z[k]).sum() for k in range(3))
            torch.testing.assert_close(
                out.start_logits[i, :n].double().exp(), p, atol=1e-6, rtol=1e-5
            )
        assert (out.start_logits[i, n:] == gated_mixture.LOWEST).all()
    at = torch.arange(4)
    loss = (
        -(
            out.start_logits.log_softmax(1)[at, b["start_positions"]]
            + out.end_logits.log_softmax(1)[at, b["end_positions"]]
        )
        / 2
    )
    torch.testing.assert_close(out.loss, loss.mean())


def test_one_expert_is_that_expert():
    b = batch(E=1) | {"weights": torch.ones(4, 1)}
    for mixed in ("logits", "probabilities"):
        start = gated_mixture.Mixture(None, mixed, None)(**b).start_logits
        alone = b["starts"][:, 0].masked_fill(b["attention_mask"] == 0, gated_mixture.LOWEST)
        torch.testing.assert_close(start.softmax(-1), alone.softmax(-1))


def test_a_mixture_says_what_its_experts_say(experts):
    """Weight 1 on one expert: its answers on every window, through the store, to half precision."""
    spec, models, rows, windows, tokenizer = experts
    own = spec.model_copy(update={"gate": Gate(rule="own")})
    mixture, _ = build.build_model(own)
    start, _, _ = evaluate.compute_logits(
        mixture, mixture.prepare(windows, rows), mixture.collate(tokenizer), "fp32"
    )
    for k, model in enumerate(models):
        mine = [i for i, r in enumerate(windows["row"]) if rows[r]["domain"] == spec.domains[k]]
        alone, _, _ = evaluate.compute_logits(model, windows, model.collate(tokenizer), "fp32")
        assert mine
        for i in mine:
            np.testing.assert_array_equal(start[i], alone[i].astype(np.float16).astype(np.float32))


def test_the_best_single_expert_is_the_one_with_the_highest_em(experts, monkeypatch):
    spec, models, *_ = experts
    said = iter([10.0, 30.0, 20.0])  # of the three experts
    monkeypatch.setattr(evaluate, "score_rows", lambda *_: (None, {"exact_match": next(said)}, 0.0))
    mixture, _ = build.build_model(spec.model_copy(update={"gate": Gate(rule="best")}))
    assert mixture.prepare.keywords["best"] == 1


def test_a_gate_is_asked_on_its_own_device(experts, monkeypatch):
    """The device `meta` stands for a GPU: it refuses what lies elsewhere."""
    spec, _, rows, windows, _ = experts
    mixture, _ = build.build_model(spec)
    mixture.prepare(windows, rows)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: torch.zeros(x.shape))
    assert {x.shape for x in mixture.to("meta").window_details(windows, rows).values()} == {
        (len(windows),)
    }


def test_weights_told_the_dataset_are_fitted(experts):
    """From equal weights to nearly the lowest loss there is on the few examples, as L-BFGS finds it."""
    told = next(
        s
        for s in plans.plan(load(experiments=["mixture", "controls"]))
        if s.variant == "told-dataset"
    )
    train.train(told, progress=lambda line: None, keep_weights=True)
    mixture, tokenizer = build.build_model(told)
    rows, _, _ = selection.draw_mixture(told)
    made = mixture.prepare(
        features.load_windows(rows, tokenizer, told.max_length, told.stride, evaluate.CACHE), rows
    )
    batch = gated_mixture.collate([made[i] for i in range(len(made))])
    mixture.load_state_dict(build.load_weights(told))
    fitted = mixture(**batch).loss.item()
    mixture, _ = build.build_model(told)
    search = torch.optim.LBFGS(mixture.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    equal = mixture(**batch).loss.item()

    def loss():
        search.zero_grad()
        found = mixture(**batch).loss
        found.backward()
        return found

    search.step(loss)
    best = mixture(**batch).loss.item()
    assert best < equal - 0.01 and fitted - best < 0.05 * (equal - best)


def test_everything_is_fetched(capsys):
    p = load(start="relations")
    study.fetch_inputs(p)
    shown = capsys.readouterr().out
    assert all(
        f"{name}: " in shown
        for name in (*p.domains, *p.few_shot, *p.pools, p.start, "encoder minilm")
    )


def test_an_expert_s_own_scoring_stores_what_a_mixture_asks_for(experts, store, monkeypatch):
    """Byte by byte the scores without the store; afterwards no expert is run again."""
    monkeypatch.setattr(evaluate, "CACHE", store / "cache")
    spec, models, rows, windows, tokenizer = experts
    for model, e in zip(models, spec.parents, strict=True):
        _, *plain, loss = evaluate.predict_spans(model, tokenizer, e, rows)
        again, *kept, same = frozen.predict_and_store(model, tokenizer, e, rows)
        assert loss == same
        assert all(
            np.array_equal(a, b)
            for x, y in zip(plain, kept, strict=True)
            for a, b in zip(x, y, strict=True)
        )
        read = frozen.read_outputs(
            e.hash, again, tokenizer, lambda: pytest.fail("run again"), e.precision
        )
        assert np.array_equal(read.start, np.concatenate(plain[0]).astype(np.float16))
        frozen.drop_outputs(e)  # trained again: what earlier weights said does not count
        with pytest.raises(pytest.fail.Exception, match="run again"):
            frozen.read_outputs(
                e.hash, again, tokenizer, lambda: pytest.fail("run again"), e.precision
            )


def test_training_on_stored_outputs_equals_training_on_live_ones(experts, monkeypatch):
    """Bit for bit, where the live ones are rounded to half precision too; and only the gate learns."""
    spec, models, rows, windows, tokenizer = experts
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]

    def weights() -> dict:
        mixture, _ = build.build_model(spec)
        assert {n.split(".")[0] for n, _ in mixture.named_parameters()} == {"gate"}
        made = mixture.prepare(windows, rows)
        optimizer = torch.optim.AdamW(mixture.parameters(), lr=1e-2)
        for at in range(0, 32, 8):
            mixture(
                **mixture.collate(tokenizer)([made[i] for i in range(at, at + 8)])
            ).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return mixture.state_dict()

    def live(key, windows, tokenizer, make, precision) -> frozen.Outputs:
        now, _ = frozen.compute_outputs(make(), windows, tokenizer, precision)
        return frozen.Outputs(**{k: v.astype(np.float16) for k, v in now.items()})

    stored = weights()
    monkeypatch.setattr(frozen, "read_outputs", live)
    again = weights()
    start, _ = (build.build_model(spec)[0].state_dict(), None)
    assert all(torch.equal(v, again[k]) for k, v in stored.items())
    assert any(not torch.equal(v, start[k]) for k, v in stored.items())
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


def test_what_a_gate_can_see(experts):
    spec, _, rows, windows, tokenizer = experts
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


# ---- re-initialisation ----


def digest(module) -> str:
    return hashlib.sha256(
        b"".join(v.numpy().tobytes() for v in module.state_dict().values())
    ).hexdigest()


@pytest.mark.parametrize("top", [1, 4])
@pytest.mark.parametrize("source", ["random", "lower"])
def test_reinitialised_blocks_differ_and_the_rest_is_byte_equal(top, source):
    plain, _ = encoders.load_encoder("minilm")
    again, _ = encoders.load_encoder("minilm")
    encoders.reinitialise(again, top, 0, source)
    a, b = ([digest(x) for x in encoders.blocks_of(m)] for m in (plain, again))
    assert a[: 6 - top] == b[: 6 - top]
    assert all(x != y for x, y in zip(a[6 - top :], b[6 - top :], strict=True))
    assert digest(plain.embeddings) == digest(again.embeddings)
    last = encoders.blocks_of(again)[-1]
    if source == "lower":
        assert b[6 - top :] == [b[i % (6 - top)] for i in range(top)]
    else:
        dense, norm = last.intermediate.dense, last.output.LayerNorm
        assert abs(dense.weight.std().item() - 0.02) < 1e-3 and not dense.bias.any()
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.bias.any()
    with pytest.raises(UserError, match="reinit: 6 of 6 blocks"):
        encoders.reinitialise(again, 6, 0)


def test_reinitialisation_leaves_head_and_draws_alone():
    plain = next(s for s in plans.plan(load()) if s.variant == "baseline").model_copy(
        update={"blocks": 3}
    )
    models, after = [], []
    for spec in (plain, plain.model_copy(update={"reinit": 2})):
        models.append(build.build_model(spec)[0])
        after.append(torch.rand(3))
    assert torch.equal(models[0].head.weight, models[1].head.weight) and torch.equal(*after)


# ---- evaluation ----


def test_the_starter_code_s_rule_differs_on_answers_of_one_token_only(experts):
    _, models, rows, windows, tokenizer = experts
    start, end, _ = evaluate.compute_logits(
        models[0], windows, models[0].collate(tokenizer), "fp32"
    )
    free, starter = (
        span.predict_answers(rows, windows, start, end, one_token=x) for x in (True, False)
    )
    differ = [a["tokens"] for a, b in zip(free, starter, strict=True) if a != b]
    assert differ
    assert set(differ) == {1}
    assert all(b["tokens"] != 1 for b in starter)


# ---- runs ----


def test_the_quick_plan():
    specs = whole_plan()
    trained = [s for s in specs if not s.gate or s.gate.rule == "learned"]
    assert len(trained) <= 24
    names = {s.variant for s in specs}
    assert names >= {
        "baseline",
        "moe",
        "moe-probabilities",
        "baseline-4",
        "reinit-4",
        "reload-4",
        "moe-reinit-4",
        "uniform-weights",
        "best-single",
        "told-dataset",
        "own-expert",
        "other-experts",
        "oracle",
    }
    moe_run = next(s for s in specs if s.variant == "moe")
    assert [e.domains for e in moe_run.parents] == [[d] for d in moe_run.domains]
    assert moe_run.gate == Gate()
    assert {s.gate.layers for s in specs if s.gate and s.gate.rule == "learned"} >= {1, 3, 5}
    with pytest.raises(UserError, match="experiments: 'gate' is not known; known: 'mixture'"):
        whole_plan(experiments=["gate"])
    for name in ("few_shot", "pools", "longer"):
        with pytest.raises(UserError, match=rf"{name}: .* write at least 1"):
            whole_plan(**{name: []})


def test_training_curves_may_have_more_seeds():
    """The same runs that these seeds would have among all others, but scored on no test set."""
    more = [s for s in whole_plan(seeds=[0], curve_seeds=[1]) if s.seed == 1]
    assert [s.variant for s in more if not s.gate] == [
        "baseline",
        *(f"expert-reinit-4-{d}" for d in more[0].domains),
    ]
    assert [s.variant for s in more if s.gate] == ["moe-reinit-4"]
    assert not any(s.tests for s in more)
    assert {s.hash for s in more} < {s.hash for s in whole_plan(seeds=[1])}
    with pytest.raises(
        UserError, match=r"curve_seeds: 1 is among seeds \[0, 1\] already; leave it away"
    ):
        whole_plan(seeds=[0, 1], curve_seeds=[1])
    with pytest.raises(
        UserError,
        match="curve_seeds: they are of the part reinit, which experiments lacks; name it there",
    ):
        whole_plan(curve_seeds=[1], experiments=["mixture"])


def test_the_estimate_counts_what_experts_say_once():
    """For the first of a seed's gates: a third of a training pass for each expert and for the plain encoder."""
    specs = {s.variant: s for s in whole_plan(experiments=["mixture", "gates"])}
    known = {}
    plain, first, second = (
        study.estimate_tokens(specs[v], known) for v in ("baseline", "moe", "moe-layers-1")
    )
    assert first > plain / 3 > plain / 9 > second > 0


def test_the_report_s_settings():
    p = plans.load_params("moe", "paper")
    assert (p.batch_size, p.epochs, p.learning_rate, p.max_length, p.stride) == (
        16,
        3,
        3e-5,
        384,
        128,
    )
    assert (p.schedule, p.checkpoint, p.gate_layers, p.gate_hidden, p.reinit_blocks) == (
        "constant",
        "best",
        3,
        768,
        4,
    )


def test_the_real_plan_covers_the_claims():
    """Every variant and set that a claim testable at real names has runs in the full plan."""
    specs = whole_plan("real", "full", data="data")
    names, sets = {s.variant for s in specs}, {t for s in specs for t in s.tests} | {"training"}
    for c in read_claims("moe"):
        for side in c.contrast.sides() if c.contrast and "real" in c.profiles else []:
            assert set(np.ravel(side["variant"])) <= names, c.id
            assert set(np.ravel(side["set"])) <= sets, c.id
        assert not c.control or c.control in names, c.id


def test_an_expert_learns_the_rows_that_the_baseline_has_of_its_dataset():
    """Drawn alone or with others, for training and for validation; so the gate meets every expert on rows it has learnt."""
    specs = {
        s.variant: s
        for s in whole_plan(experiments=["mixture", "controls", "outside"])
        if s.seed == 0
    }
    drawn = {
        v: selection.draw_mixture(s)[:2]
        for v, s in specs.items()
        if not s.gate or s.gate.rule == "learned"
    }

    def ids(variant: str, part: int, name: str) -> list[str]:
        return [r["id"] for r in drawn[variant][part] if r["domain"] == name]

    for name in specs["baseline"].domains:
        assert ids(f"expert-{name}", 0, name) == ids("baseline", 0, name) == ids("moe", 0, name)
        for_all = ids("baseline", 1, name)
        assert for_all and ids(f"expert-{name}", 1, name)[: len(for_all)] == for_all
    for name in specs["told-dataset"].domains:
        assert (
            ids(f"outside-{name}", 0, name)
            == ids("told-dataset", 0, name)
            == ids("moe-outside", 0, name)
        )


def test_no_out_of_domain_test_text_is_ever_trained_on():
    for spec in whole_plan(
        experiments=moe.Parameters.model_json_schema()["properties"]["experiments"]["items"]["enum"]
    ):
        held = {
            selection.normalise_text(r["context"])
            for name in moe_tests(spec)
            for r in selection.load_splits(name, spec.source).test
        }
        if not spec.gate or spec.gate.rule == "learned":
            assert not held & {
                selection.normalise_text(r["context"]) for r in selection.draw_mixture(spec)[0]
            }, spec.run


def moe_tests(spec) -> list[str]:
    return [n for n in params.read_datasets(spec.source) if n.startswith("out-of-domain")]


def test_a_pool_is_its_members_together():
    whole = selection.load_splits("out-of-domain", "embedded").test
    parts = [selection.load_splits(n, "embedded").test for n in ("plots", "exams", "dialogue")]
    assert whole == sum(parts, [])
    assert {r["domain"] for r in whole} == {
        "plots",
        "exams",
        "dialogue",
    }
    later = selection.load_splits("plots-test", "embedded").test
    assert {r["domain"] for r in later} == {"plots"}
    assert not {selection.row_key(r) for r in later} & {selection.row_key(r) for r in parts[0]}
    titles = [
        {selection.normalise_text(r["title"]) for r in rows}
        for rows in (later, selection.load_splits("plots", "embedded").train)
    ]
    assert not titles[0] & titles[1]


def test_a_small_study_to_the_end(store, monkeypatch):
    """Experts, a gate, its controls: trained in order, with every test set, the best checkpoint and the training curve."""
    monkeypatch.setattr(evaluate, "CACHE", store / "cache")
    p = load(experiments=["mixture", "controls"])
    study.run(p, plans.plan, workers=1, live=False)
    specs = plans.plan(p)
    ledger = runs.collect_ledger(specs)
    em = ledger[ledger["metric"] == "em"].pivot(index="variant", columns="set", values="value")
    examples = runs.collect_examples(specs)
    oracle, single = em.loc["oracle"], em.loc[[v for v in em.index if v.startswith("expert-")]]
    assert (oracle >= single.max() - 1e-6).all() and set(em.columns) == {*p.domains, *p.pools}
    for name in p.domains:
        own, others = em.loc["own-expert", name], em.loc["other-experts", name]
        assert own == pytest.approx(em.loc[f"expert-{name}", name], abs=100 / 24)  # half precision
        assert others == pytest.approx(
            np.mean([em.loc[f"expert-{d}", name] for d in p.domains if d != name]), abs=1e-3
        )
    assert {"em_starter", "f1_starter"} <= set(ledger["metric"])
    gates = examples[examples["variant"] == "moe"][["gate_1", "gate_2", "gate_3"]]
    assert np.allclose(gates.sum(axis=1), 1, atol=1e-5) and gates.std().min() > 0
    assert (
        examples[examples["variant"] == "uniform-weights"][["gate_1", "gate_3"]]
        == np.float32(1 / 3)
    ).all(axis=None)
    pooled = examples[(examples["set"] == "out-of-domain") & (examples["variant"] == "moe")]
    assert pooled["part"].notna().all()
    assert pooled["em"].mean() == pytest.approx(em.loc["moe", "out-of-domain"], abs=1e-3)
    curves = ledger[ledger["set"] == "training"].pivot(
        index="variant", columns="metric", values="value"
    )
    assert curves.loc["baseline", ["plateau", "train_em_early"]].between(0, 100).all()
    assert "uniform-weights" not in curves.index
    record = runs.find_record(next(s for s in specs if s.variant == "baseline"))
    best = max(record["history"][1:], key=lambda h: (h["validation_f1"], -h["step"]))
    assert record["chosen_step"] == best["step"]
    steps = [h["step"] for h in record["history"]]
    assert steps == sorted(set(steps))
    # no look twice
    assert all(h["train_loss"] for h in record["history"][1:])
    assert steps[0] == 0 and record["history"][0]["train_loss"] is None  # and one before training
    moe_run = runs.find_record(next(s for s in specs if s.variant == "moe"))
    assert moe_run["parameters"] > 3 * record["parameters"]
    table = study.run(p, plans.plan, workers=1, live=False)
    assert set(table["trained"]) == {"found"}


@pytest.mark.parametrize(
    "em, early, flat",
    [
        ([0.0, 40, 50, 50.5, 50], 16.0, 50.0),
        ([50, 50, 50, 50, 50], 50.0, 0.0),
        ([10, 20, 30, 40, 50], 14.0, 100.0),
    ],
)
def test_early_and_flat(em, early, flat):
    past = [{"step": 2 * i, "train_em": float(x), "train_f1": 0.0} for i, x in enumerate(em)]
    found = train.describe_curve(past)
    assert (found["train_em_early"], found["plateau"]) == pytest.approx((early, flat))
