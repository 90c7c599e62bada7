"""The report road: the plan of its runs, its claims on planted records, and a tiny study."""

import numpy as np
import pandas as pd
import pytest

from qa_lib.data import selection
from qa_lib.evidence import claims, verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.reports import comparisons, plans, road
from qa_lib.settings import encoder_files, params
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import study

SETS = ("naturalquestions", "qamr", "relation-extraction", "boolq", "mnli", "snli", "sst", "quora")
TINY = {
    "train_rows": 12,
    "validation_rows": 8,
    "pretraining": {"search": 16, "nli": 16, "sentiment": 16},
    "pretraining_batch": 8,
    "steps": 2,
    "epochs": 1.0,
    "max_length": 64,
    "stride": 16,
    "blocks": None,
    "start_rows": 16,
    "sweep_passes": [1, 2, 8],
}


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads parameters for which no data and no encoder are read."""
    monkeypatch.setattr(encoder_files, "identify_weights", lambda name: name.ljust(64, "w"))
    monkeypatch.setattr(selection, "fingerprint", lambda name, *_: name.ljust(64, "f"))

    def load(profile="real", size=None, **changes):
        if profile == "paper":
            changes = {"source": "folder", "pretraining": {"mnli": 9, "sst": 9}} | changes
            changes = {"domains": ["squad", "newsqa"], "sentences": ["mnli", "quora"]} | changes
            whole, _ = params.read_yaml(params.ROOT / "params" / "road.yaml")
            changes = {name: whole[name] for name in ("experiments", "seeds", "steps")} | changes
        if profile != "quick":
            changes = {"data": "data"} | changes
        return plans.load_params("road", profile, changes, size)

    return load


def find_variants(specs: list[Spec]) -> dict[str, Spec]:
    """Return the first run of each variant."""
    found = {}
    for spec in specs:
        found.setdefault(spec.variant, spec)
    return found


# ---- the plan ----


def test_the_first_runs_on_real_data_are_pre_trained_and_then_fine_tuned(load):
    specs = plans.plan(load(size="small"))
    of = find_variants(specs)
    fine_tuned = ["baseline", "joint-head", "mt-dnn", "mtl", *road.FOLLOWERS]
    assert {s.variant for s in specs if s.tests} == set(fine_tuned)
    assert {s.precision for s in specs} == {"fp32"}
    for model in fine_tuned:
        spec = of[model]
        assert (spec.domains, spec.rows, spec.epochs) == (["squad"], [2000], 2), model
        assert spec.tests == ["squad", "newsqa"]
        assert spec.multitask is None
        start = spec.start
        if model in ("baseline", "joint-head"):
            assert start is None
            continue
        assert start.variant == f"{model}-pretraining"
        assert start.tests == []
        assert start.held_out == ["squad", "newsqa", "squad2"]
        assert (start.multitask.rounds, start.batch_size, start.epochs) == (600, 32, 1)
        assert (start.layer_decay.rate, start.layer_decay.top) == (0.75, 2)
        # the head of the target goes on where the datasets of a task share one
        assert spec.heads.one_for == start.heads.one_for
        if model != "target-only":
            assert tuple(start.domains) == SETS
    assert of["target-only"].start.domains == ["squad"]
    assert of["target-only"].start.rows == of["baseline"].rows
    assert of["target-only"].start.places == of["baseline"].places


def test_recipes_differ_in_draws_law_and_heads_alone(load):
    of = find_variants(plans.plan(load("paper", arms=["printed"])))
    recipes = {}
    for model in ("mt-dnn", "mtl", "mtl-one-draw", "mtl-own-heads"):
        start = of[model].start
        recipes[model] = (start.multitask.passes, start.multitask.sampling, start.heads.one_for)
        same = start.model_dump(exclude={"variant", "multitask", "heads"})
        assert same == of["mtl"].start.model_dump(exclude={"variant", "multitask", "heads"})
    assert recipes == {
        "mt-dnn": (1, "proportional", "dataset"),
        "mtl": (4, "uniform", "task"),
        "mtl-one-draw": (1, "uniform", "task"),
        "mtl-own-heads": (4, "uniform", "dataset"),
    }
    assert of["joint-head"].heads.span == "joint"
    assert of["baseline"].heads.span == "independent"
    start = of["mtl"].start
    assert (start.batch_size, start.learning_rate) == (512, 3e-4)
    assert round(start.warmup * start.multitask.rounds) == 500
    for passes in (1, 2, 4, 8):
        assert of[f"mtl-passes-{passes}"].start.multitask.passes == passes
    assert of["mtl-passes-4"].hash == of["mtl"].hash
    of = find_variants(plans.plan(load("paper", arms=["printed"], probes=5)))
    probed = {variant for variant, spec in of.items() if spec.probes}
    # runs of one hash are measured alike
    assert {v for v in probed if "-bert" not in v and "-albert" not in v} == {
        "mtl-pretraining",
        "mtl-passes-4-pretraining",
        "mt-dnn-pretraining",
    }
    assert of["mtl-passes-1"].hash == of["mtl-one-draw"].hash


def test_other_targets_and_encoders_have_their_own_runs(load):
    specs = plans.plan(load("real", experiments=["unanswerable", "sentences", "blocks"]))
    of = find_variants(specs)
    assert of["baseline-unanswerable"].domains == ["squad2"]
    assert of["mtl-unanswerable"].start.hash == of["mtl"].start.hash
    targets = {tuple(s.domains) for s in specs if s.variant == "mtl"}
    assert targets == {("mnli",), ("quora",)}
    assert of["mtl-blocks"].blocks == of["mtl-blocks"].start.blocks == 3
    specs = plans.plan(load("paper", arms=["printed"], experiments=["encoders"]))
    of = find_variants(specs)
    assert of["mtl-bert"].encoder == of["mtl-bert"].start.encoder == "bert-large-uncased"
    assert of["mt-dnn-albert"].weights.startswith("albert")


def test_the_quick_plan_is_small_and_has_all_six_heads(load):
    specs = plans.plan(load("quick"))
    assert len({s.hash for s in specs}) <= 20
    of = find_variants(specs)
    heads = set()
    for name in of["mtl"].start.domains:
        heads.add(selection.find_dataset(name, "embedded").head)
    assert heads == {"mrc", "yesno", "continuing", "nli", "sentiment", "paraphrase"}
    assert all(s.start for s in specs if s.variant != "start")


def test_every_model_of_a_plan_has_a_name_and_a_colour_of_its_own(load):
    for profile in ("paper", "real", "quick"):
        for spec in plans.plan(load(profile, arms=["printed"])):
            if spec.variant != "start":
                assert plans.display_name("road", spec.variant)
    names, colours = zip(*road.MODELS.values(), strict=True)
    assert len(set(names)) == len(names)
    assert len(set(colours)) == len(colours)
    comparisons.check_chain(road.STEPS)


def test_the_central_comparisons_are_claims(load):
    listed = {claim.id: claim for claim in claims.read_claims("road")}
    for comparison in road.COMPARISONS:
        assert listed[comparison.claim].contrast is not None


# ---- equal tuning ----


def test_every_tuned_model_has_eight_trials_and_the_controls_take_road_s(load):
    params = load(size="small", arms=["tuned"])
    waiting = road.plan(params, lambda spec: None)
    tried = [s for s in waiting if s.variant.endswith("-trial")]
    assert len(tried) == 24
    assert {selection.trial_column(s) for s in tried} == {"validation_f1"}
    assert {s.seed for s in waiting} == {0}
    assert not any(s.tests for s in waiting)
    settings = {}
    for s in tried:
        before = s.start and (s.start.learning_rate, s.start.layer_decay is None)
        settings.setdefault(s.variant, set()).add((s.learning_rate, s.epochs, before))
    assert settings["baseline-trial"] == {
        (rate, e, None) for rate in (2e-5, 5e-5, 1e-4, 2e-4) for e in (2, 4)
    }
    for model in ("mt-dnn", "mtl"):
        assert settings[f"{model}-trial"] == {
            (rate, 2, (before, is_flat))
            for rate in (5e-5, 1e-4)
            for before in (1e-4, 3e-4)
            for is_flat in (False, True)
        }
    # a pre-training is shared by the trials that differ in fine-tuning alone
    assert len({s.hash for s in waiting if s not in tried}) == 8

    def score(spec):
        before = spec.start.learning_rate if spec.start else 0
        return (spec.learning_rate + spec.epochs - before, 0.0)

    specs = road.plan(params, score)
    of = find_variants([s for s in specs if s.tests])
    assert set(of) == {*road.TUNED, *road.FOLLOWERS}
    assert (of["baseline"].learning_rate, of["baseline"].epochs) == (2e-4, 4)
    for model in ("mtl", *road.FOLLOWERS):
        assert (of[model].learning_rate, of[model].start.learning_rate) == (1e-4, 1e-4), model
    assert {s.arm for s in specs} == {"tuned"}


# ---- what is refused ----


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"passes": 3}, "pretraining_batch: 16 does not divide among 3 passes"),
        ({"sweep_passes": [1, 5]}, "pretraining_batch: 16 does not divide among 5 passes"),
        ({"pretraining": {"nli": 8, "news": 8}}, "pretraining: news stands in domains, and is"),
        ({"domains": ["nli", "news"], "pretraining": {"yesno": 8, "search": 8}}, "domains: nli is"),
        ({"pretraining": {"similarity": 8, "search": 8}}, "pretraining: similarity names no head"),
        ({"experiments": ["unanswerable"]}, "unanswerable: the part unanswerable of experiments"),
        ({"experiments": ["sentences"]}, "sentences: the part sentences of experiments needs"),
    ],
)
def test_wrong_parameters_are_one_sentence(load, changes, words):
    with pytest.raises(UserError) as error:
        plans.plan(load("quick", **changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# ---- claims, on planted records ----


def plant_record(spec: Spec, rows=40) -> tuple[dict, pd.DataFrame]:
    """Return a run's record and examples with random scores, as training writes them."""
    rng = np.random.default_rng(int(spec.hash[:8], 16))
    frames = [pd.DataFrame({"set": [], "id": [], "cluster": []})]
    scores = {}
    for name in spec.tests:
        metrics = ["accuracy"] if name in ("mnli", "quora") else ["em", "f1"]
        columns = {m: rng.choice([0.0, 100.0], rows, p=[0.4, 0.6]) for m in metrics}
        numbers = np.arange(rows).astype(str)
        frames.append(pd.DataFrame({"set": name, "id": numbers, "cluster": numbers} | columns))
        scores[name] = {m: v.mean() for m, v in columns.items()}
        scores[name] |= {"n": rows, "clusters": rows}
    history = []
    for epoch in range(1, int(spec.epochs) + 1) if spec.validation_rows else []:
        losses = {"train_loss": rng.uniform(1, 2), "validation_loss": rng.uniform(1, 2)}
        columns = {f"validation_{name}": rng.uniform(0, 100) for name in ("em", "f1", "accuracy")}
        history.append({"epoch": float(epoch), "step": epoch} | losses | columns)
    environment = {"device": "CPU, 1 thread", "precision": "fp32"}
    record = {"metrics": scores, "history": history, "environment": environment}
    return record, pd.concat(frames)


def test_claims_about_models_that_were_run_are_judged(load):
    parts = ["heads", "pretraining", "controls"]
    params = load("real", experiments=parts, arms=["printed"], seeds=[0, 1, 2])
    for spec in plans.plan(params):
        if runs.find_record(spec) is None:
            runs.save(spec, *plant_record(spec))
    specs = plans.plan(params)
    table = verify.judge_records(params, specs, claims.read_claims("road"))
    table = verify.select(table)
    run_here = {s.variant for s in specs}
    judged = set()
    for claim in claims.read_claims("road"):
        named = set()
        for side in claim.contrast.sides() if claim.contrast else []:
            named.update(np.ravel(side["variant"]))
        if "real" in claim.profiles and named <= run_here:
            assert table.loc[claim.id, "n"] == 3, claim.id
            assert table.loc[claim.id, "verdict"] != Verdict.NOT_TESTED, claim.id
            judged.add(claim.id)
        else:
            assert table.loc[claim.id, "verdict"] == Verdict.NOT_TESTED, claim.id
    assert {c.claim for c in road.COMPARISONS} <= judged
    assert len(judged) == 10


# ---- a tiny study ----


def test_a_small_study_runs_to_the_end(small_encoder):
    changes = TINY | {"encoder": small_encoder, "arms": ["printed"]}
    params = plans.load_params("road", "quick", changes)
    study.run(params, plans.plan, workers=1, live=False)
    specs = plans.plan(params)
    ledger = runs.collect_ledger(specs)
    assert np.isfinite(ledger["value"]).all()
    assert set(ledger["variant"]) >= {"baseline", "joint-head", "mt-dnn", "mtl", *road.FOLLOWERS}
    assert len(verify.claims_table(params)) > 0
    # nothing of it is trained twice
    assert set(study.run(params, plans.plan, live=False)["trained"]) == {"found"}
