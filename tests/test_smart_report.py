"""The report smart: the plan of its runs, its claims on planted records, and a tiny study."""

import numpy as np
import pandas as pd
import pytest

from qa_lib.data import selection
from qa_lib.evidence import claims, compare, stats, verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.page import figures_smart, pieces, report, tables
from qa_lib.reports import comparisons, plans, smart
from qa_lib.settings import encoder_files
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import study

ROWS = {
    "pretrain": {"sst": 2000},
    "finetune": {"sst": 2000},
    "pretrain-cfimdb": {"cfimdb": 1500},
    "finetune-cfimdb": {"cfimdb": 1500},
    "smart": {"sst": 2000},
    "rrobin": {"sst": 2000, "quora": 2000, "sts": 2000},
    "rrobin-smart": {"sst": 2000, "quora": 2000, "sts": 2000},
    "rrobin-16": {"sst": 2000, "quora": 2000, "sts": 2000},
    "rrobin-full": {"sst": 2000, "quora": 14_000, "sts": 2000},
    "rrobin-full-layer": {"sst": 2000, "quora": 14_000, "sts": 2000},
    "rrobin-full-scaled": {"sst": 2000, "quora": 14_000, "sts": 2000},
    "rrobin-full-no-quora": {"sst": 2000, "sts": 2000},
    "layer-unshared": {"sst": 2000, "quora": 14_000, "sts": 2000},
    "smart-dropout": {"sst": 2000},
}
TINY = {
    "train_rows": 24,
    "pair_rows": 24,
    "full_rows": 32,
    "validation_rows": 10,
    "epochs": 1.0,
    "seeds": [0],
    "max_length": 48,
    "stride": 8,
    "blocks": None,
    "batch_size": 8,
    "smart_batch": 4,
    "trial_epochs": [1, 2],
}


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads parameters for which no data and no encoder are read."""
    monkeypatch.setattr(encoder_files, "identify_weights", lambda name: "w" * 64)
    monkeypatch.setattr(selection, "fingerprint", lambda *_: "f" * 64)

    def load(profile="real", size=None, **changes):
        if profile != "quick":
            changes = {"source": "folder", "data": "data"} | changes
        if profile == "paper":  # the whole report
            changes = {"experiments": list(smart.EXPERIMENTS)} | changes
        return plans.load_params("smart", profile, changes, size)

    return load


def find_variants(specs: list[Spec]) -> dict[str, Spec]:
    """Return the first run of each variant."""
    found = {}
    for spec in specs:
        found.setdefault(spec.variant, spec)
    return found


# ---- the plan ----


def test_the_first_runs_on_real_data_are_the_rows_and_controls_that_they_are_named_for(load):
    params = load(size="small")
    specs = plans.plan(params)
    assert {s.variant: dict(zip(s.domains, s.rows, strict=True)) for s in specs} == ROWS
    assert "2,000 of STS; 1,500 of CFIMDB alone; 1 to 3 seeds" in params.describe_training()
    for variant in ROWS:
        seeds = [s.seed for s in specs if s.variant == variant]
        assert seeds == params.list_seeds(variant.removesuffix("-cfimdb"))
        assert seeds in ([0], [0, 1, 2])
    assert {s.precision for s in specs} == {"fp32"}
    assert {s.threads for s in specs} == {1}
    assert {s.epochs for s in specs} == {4}


def test_a_part_that_was_not_run_is_called_as_parameters_call_it(load):
    params = load(size="small", experiments=["reviews"], arms=["printed"])
    parts = {
        "single": figures_smart.table_altered,
        "controls": figures_smart.table_controls,
        "weights": figures_smart.figure_weights,
        "imbalance": figures_smart.figure_imbalance,
        "quora": figures_smart.figure_quora,
    }
    for part, draw in parts.items():
        assert draw(params) == report.note_absent(part)
    assert set(parts) <= set(report.name_parts_not_run(params))


def test_a_model_may_have_further_seeds(load):
    further = {"finetune": [1, 2], "smart": [0, 1, 2]}
    parts = ["single", "rrobin"]
    params = load(seeds=[0], arms=["printed"], experiments=parts, further_seeds=further)
    seeds = {}
    for s in plans.plan(params):
        seeds.setdefault(s.variant, []).append(s.seed)
    assert seeds.pop("finetune") == seeds.pop("smart") == [0, 1, 2]
    assert {"pretrain", "rrobin", "rrobin-smart"} <= set(seeds)
    assert all(own == [0] for own in seeds.values())
    assert params.describe_training().endswith("; 1 to 3 seeds of each model")
    # with other seeds a model's own come to them
    params = load(seeds=[1, 3], experiments=["single"], further_seeds=further)
    assert params.list_seeds("smart") == [1, 3, 0, 2]
    assert params.describe_training().endswith("; 2 to 4 seeds of each model")
    params = load(seeds=[1, 3], experiments=["single", "radius"], further_seeds=further)
    text = params.describe_training()
    assert text.endswith("; 2 to 4 seeds of each model, 1 in sweeps")


def test_every_sweep_is_known_as_one(load):
    for part in smart.EXPERIMENTS:
        of_seeds = []
        for seeds in ([7], [8]):
            params = load(experiments=[part], arms=["printed"], sweep_seeds=seeds)
            of_seeds.append({(s.variant, s.seed) for s in plans.plan(params)})
        assert (of_seeds[0] != of_seeds[1]) == (part in smart.SWEEPS), part


def test_every_row_has_the_report_s_settings(load):
    of = find_variants(plans.plan(load("paper", arms=["printed"])))
    for variant, spec in of.items():
        has_smart = "smart" in variant
        is_small = has_smart or variant.endswith("-16")
        assert spec.batch_size == (16 if is_small else 64), variant
        assert bool(spec.smart) == has_smart, variant
        assert spec.clip == (1.0 if has_smart else 1e6), variant
        is_frozen = variant.startswith(("pretrain", "heads-only"))
        assert spec.heads.frozen == is_frozen, variant
        assert spec.learning_rate == (1e-3 if is_frozen else 1e-5), variant
        assert (spec.epochs, spec.head_dropout, spec.schedule) == (10, 0.3, "constant")
    values = of["smart"].smart.model_dump(
        include={"adversarial", "radius", "start_sd", "beta", "bregman", "step_size", "steps"}
    )
    assert values == {
        "adversarial": 5.0,
        "radius": 1e-5,
        "start_sd": 1e-5,
        "beta": 0.995,
        "bregman": 1.0,
        "step_size": 1e-3,
        "steps": 1,
    }
    # the report's divisor stands wherever its batches are uneven, but in the control
    for variant, spec in of.items():
        by_size = spec.multitask is not None and spec.multitask.schedule == "rrobin-full"
        if by_size:
            fixed = [] if variant == "rrobin-full-scaled" else ["sst"]
            assert spec.multitask.fixed_divisor == fixed, variant
    assert of["rrobin-full-layer"].heads.relational == "shared"
    assert of["layer-unshared"].heads.relational == "own"
    assert of["rrobin-pre-smart"].start.domains == ["quora"]
    assert of["rrobin-pre-smart"].start.rows == of["rrobin-full"].rows[1:2]
    assert of["heads-only"].start.hash == of["finetune"].hash


def test_controls_have_as_many_steps_as_what_they_stand_beside(load):
    params = load(size="small", experiments=["full", "controls", "steps", "quora"])
    specs = plans.plan(params)
    of = find_variants(specs)
    rounds = smart.count_rounds(params)
    assert rounds == 14000 // 64
    assert of["rrobin-full"].multitask.rounds is None
    for variant in ("rrobin-long", "rrobin-full-no-quora"):
        assert of[variant].multitask.rounds == rounds
    of_sizes = [s for s in specs if s.variant == "rrobin-full-size"]
    assert [(s.rows[1], s.multitask.rounds) for s in of_sizes] == [
        (2000, rounds),
        (7000, rounds),
        (14000, None),
    ]
    assert of_sizes[-1].hash == of["rrobin-full"].hash


def test_a_dataset_gives_the_same_rows_alone_and_among_others(load):
    of = find_variants(plans.plan(load("paper", arms=["printed"])))
    assert of["finetune"].places is None
    assert of["rrobin"].places is None
    assert of["pre"].places == [1]
    assert of["heads-only"].places == [1, 2]
    assert of["rrobin-full-no-quora"].places == [0, 2]
    for spec in of.values():
        assert spec.validation_rows == 500 * len(spec.domains)


def test_sweeps_and_noise_differ_from_smart_in_their_own_field_alone(load):
    specs = plans.plan(load("paper", arms=["printed"], experiments=["weights", "single"]))
    weights = [s.smart.adversarial for s in specs if s.variant == "smart-weight"]
    assert weights == [0.01, 0.1, 1, 5, 10, 100]
    of = find_variants(specs)
    same = [s for s in specs if s.variant == "smart-weight" and s.hash == of["smart"].hash]
    assert [s.smart.adversarial for s in same] == [5]
    noise = plans.plan(load("paper", arms=["printed"], experiments=["noise"]))
    costs = {study.count_plain_steps(s) for s in [of["smart"], *noise]}
    assert costs == {4.0}
    assert {s.smart.bregman for s in noise} == {0.0}
    codes = find_variants(plans.plan(load("paper", arms=["printed"], experiments=["codes"])))
    assert codes["rrobin-smart-softmax"].smart.divergence == "softmax"
    assert codes["smart-unit-norm"].smart.variant == "unit_norm"


def test_the_quick_plan_is_small_and_has_the_three_generated_tasks(load):
    specs = plans.plan(load("quick"))
    assert {name for s in specs for name in s.domains} == {"sentiment", "paraphrase", "similarity"}
    assert {s.blocks for s in specs} == {3}
    of_three = {variant for variant in ROWS if not variant.endswith("-cfimdb")}
    assert {*of_three, "rrobin-pre-smart", "rrobin-full-smart"} <= {s.variant for s in specs}
    assert len({s.hash for s in specs}) <= 30


def test_a_dataset_without_training_rows_takes_no_memory(load, monkeypatch):
    """Before a study is refused for it, its memory is estimated."""
    spec = plans.plan(load(experiments=["rrobin"], arms=["printed"]))[0]
    no_rows = selection.Splits([], [], [], {}, "classes")
    monkeypatch.setattr(selection, "load_splits", lambda *place: no_rows)
    assert study.longest_row(spec) == 0


def test_every_model_of_a_plan_has_a_name_and_a_colour_of_its_own(load):
    for spec in plans.plan(load("paper", arms=["printed"])):
        assert plans.display_name("smart", spec.variant)
    names, colours = zip(*smart.MODELS.values(), strict=True)
    assert len(set(names)) == len(names)
    assert len(set(colours)) == len(colours)
    comparisons.check_chain(smart.STEPS)


def test_every_claim_s_variants_and_sets_are_planned(load):
    scored = {}
    for spec in plans.plan(load("paper", arms=["printed"])):
        scored.setdefault(spec.variant, set()).update([*spec.tests, "validation", "training"])
    of_claims = {c.id: c for c in claims.read_claims("smart")}
    for claim in of_claims.values():
        for side in claim.contrast.sides() if claim.contrast else []:
            for variant in np.ravel(side["variant"]):
                # a control that trains no head of a set is not scored there
                assert set(np.ravel(side["set"])) <= scored[variant], claim.id
        assert claim.control is None or claim.control in scored
    assert {c.claim for c in smart.COMPARISONS} <= set(of_claims)


def test_classes_are_as_unequal_as_asked_on_as_many_rows(load):
    of = plans.plan(load("quick", experiments=["imbalance"], sweep_imbalance=[1.0, 16.0]))
    counts = {}
    for spec in of:
        rows, _, _ = selection.draw_mixture(spec.model_copy(update={"rows": [400]}))
        labels = [row["label"] for row in rows]
        counts[spec.imbalance.ratio, spec.variant] = [labels.count(label) for label in range(5)]
    assert counts[1.0, "smart-imbalance"] == [80] * 5
    skewed = counts[16.0, "finetune-imbalance"]
    assert skewed == counts[16.0, "smart-imbalance"]
    assert sum(skewed) == 400
    assert skewed[0] / skewed[-1] == pytest.approx(16, rel=0.1)
    with pytest.raises(UserError, match="2300 training rows of sentiment at an imbalance of 16"):
        selection.draw_mixture(of[-1].model_copy(update={"rows": [2300]}))


# ---- equal tuning ----


def test_every_tuned_model_has_four_trials_and_their_followers_take_round_robin_s(load):
    parts = ["single", "rrobin", "full", "controls"]
    params = load(size="small", arms=["tuned"], experiments=parts)
    waiting = plans.find_report("smart").plan(params, lambda spec: None)
    assert len(waiting) == 16
    assert {s.variant for s in waiting} == {f"{model}-trial" for model in smart.TUNED}
    assert not any(s.tests for s in waiting)
    assert {s.seed for s in waiting} == {0}
    settings = {}
    for s in waiting:
        weight = s.smart.adversarial if s.smart else None
        settings.setdefault(s.variant, set()).add((s.learning_rate, s.epochs, weight))
    rates = (3e-5, 1e-4)
    assert settings["finetune-trial"] == {(rate, e, None) for rate in rates for e in (4, 8)}
    assert settings["rrobin-smart-trial"] == {(rate, 8, x) for rate in rates for x in (1, 5)}

    def score(spec):
        weight = spec.smart.adversarial if spec.smart else 0
        return (spec.learning_rate * 1e5 + spec.epochs - weight, 0.0)

    specs = smart.plan(params, score)
    assert specs[:16] == waiting  # no further trial, though the best lies at an edge
    of = find_variants([s for s in specs if s.tests])
    assert set(of) == {*smart.TUNED, *smart.FOLLOWERS}
    for model in ("finetune", "rrobin", *smart.FOLLOWERS):
        assert (of[model].learning_rate, of[model].epochs) == (1e-4, 8), model
    assert of["rrobin-smart"].smart.adversarial == 1
    assert of["rrobin-full-layer"].heads.relational == "shared"
    assert {s.arm for s in specs} == {"tuned"}


def test_terms_of_one_model_are_told_as_one(monkeypatch):
    rows = pd.DataFrame({"model": ["SMART", "SMART", "Both"], "gradient_ratio": [1e-3, 3e-3, 0.5]})
    monkeypatch.setattr(figures_smart, "collect_terms", lambda P: rows)
    text = figures_smart.describe_terms(None)
    assert text.startswith("The models' median ratios are 0.2 % to 50 %, and the highest ratio is")
    rows = rows[:2]
    text = figures_smart.describe_terms(None)
    assert text.startswith("The median ratio of SMART is 0.2 %, and the highest ratio is 0.3 % (SM")
    # of the Bregman term alone no gradient is measured
    rows = rows.assign(gradient_ratio=np.nan)
    assert figures_smart.describe_terms(None) == ""


# ---- what is refused ----


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"adversarial": -1.0}, "adversarial: -1.0 is too small"),
        ({"radius": 2.0}, "radius: 2.0 is too large"),
        ({"bregman": -0.1}, "bregman: -0.1 is too small"),
        ({"beta": 1.0}, "beta: 1.0 is too large; write a number less than 1"),
        ({"full_rows": 10}, "full_rows: 10 is fewer than the"),
        ({"experiments": ["reviews"]}, "reviews: the part reviews of experiments needs a dataset"),
        ({"further_seeds": {"smrt": [0]}}, "further_seeds: smrt is no model of this report"),
        (
            {"further_seeds": {"heads-only": [0]}},
            "further_seeds: heads-only has the seeds of finetune; write those instead",
        ),
        ({"further_seeds": {"smart": [0, 0]}}, "further_seeds: smart has the seed 0 twice"),
        ({"further_seeds": {"smart": None}}, "smart has null; write a list, {smart: […]}"),
        ({"further_seeds": {"smart": 3}}, "further_seeds: smart has 3; write a list, {smart: [3]}"),
        ({"sweep_full_rows": [10**6]}, "sweep_full_rows: 1000000 is more than full_rows"),
        (
            {"arms": ["tuned"], "trial_weights": [1.0], "trial_epochs": [2, 3]},
            "trial_weights: with the arm tuned a model with SMART tries 1 of them at each rate, "
            "and the others 2 of trial_epochs; name as many of both",
        ),
        (
            {"domains": ["paraphrase", "sentiment", "similarity"]},
            "domains: paraphrase has pairs of the task classes where the report needs single texts",
        ),
        (
            {"domains": ["sentiment", "paraphrase", "news"]},
            "domains: news has single texts of the task span where the report needs pairs of the "
            "task score",
        ),
        (
            {"domains": ["sentiment-typos", "paraphrase", "similarity"]},
            "altered_tests: sentiment-typos is no test set of sentiment-typos, the first of "
            "domains",
        ),
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
        metric = "pearson" if name in ("sts", "similarity") else "accuracy"
        values = rng.choice([0.0, 100.0], rows, p=[0.4, 0.6])
        numbers = np.arange(rows).astype(str)
        frames.append(
            pd.DataFrame({"set": name, "id": numbers, "cluster": numbers, metric: values})
        )
        scores[name] = {metric: values.mean(), "truncated": 0, "n": rows, "clusters": rows}
    if spec.smart:
        scores["training"] = {"adversarial_loss": rng.uniform(0, 1e-3), "n": 10}
    history = []
    for e in range(int(spec.epochs)):
        column = selection.trial_column(spec)
        history.append(
            {
                "epoch": float(e + 1),
                "step": e + 1,
                "train_loss": rng.uniform(1, 2),
                "validation_loss": rng.uniform(1, 2),
                column: rng.uniform(0, 100),
                "validation_mean": rng.uniform(0, 100),
            }
        )
    environment = {"device": "CPU, 1 thread", "precision": "fp32"}
    return {"metrics": scores, "history": history, "environment": environment}, pd.concat(frames)


def save_missing(params, plant=plant_record):
    """Plant a record for every run of a plan; those that trials choose come last."""
    while missing := [s for s in plans.plan(params) if runs.find_record(s) is None]:
        for spec in missing:
            runs.save(spec, *plant(spec))


def test_every_contrast_finds_its_planned_runs_and_no_others(load):
    params = load("paper", arms=["printed"])
    save_missing(params)
    specs = plans.plan(params)
    table = verify.judge_records(params, specs, claims.read_claims("smart"))
    table = verify.select(table)
    for claim in claims.read_claims("smart"):
        row = table.loc[claim.id]
        if claim.contrast and claim.contrast.metric == "seconds":
            assert row["reason"] == "no undisturbed machine"
            assert row["verdict"] == Verdict.NOT_TESTED
            continue
        assert (row["verdict"] == Verdict.NOT_TESTED) == ("paper" not in claim.profiles), claim.id
        assert (row["n"] == 3) == (claim.contrast is not None), (claim.id, row["reason"])


def test_a_set_s_own_score_stands_in_the_ledger_and_in_the_bootstrap(load):
    params = load(size="small", experiments=["rrobin"], seeds=[0, 1, 2])
    save_missing(params)
    specs = plans.plan(params)
    ledger = runs.collect_ledger(specs)
    of_sets = ledger.pivot_table(index=["run", "set"], columns="metric", values="value")
    own = of_sets["accuracy"].fillna(of_sets["pearson"])
    tested = own.notna()
    assert of_sets.loc[tested, "score"].tolist() == own[tested].tolist()
    histories = stats.collect_curve_rows(runs.collect_histories(specs))
    assert not [c for c in histories if c.startswith("validation_") and c != "validation_rows"]
    whole = pd.concat([ledger, histories], ignore_index=True)
    table = stats.judge_claims(
        "smart", whole, runs.collect_examples(specs), "real", params.domains, times=50
    )
    row = table.set_index("id").loc["smart-small-quora"]
    assert row["n"] == 3
    assert row["clusters"] == 40


@pytest.fixture
def uneven(load, monkeypatch, tmp_path):
    """Return parameters whose records have three seeds of some models and one of the others."""
    models = ("finetune", "smart", "rrobin", "rrobin-smart", "pretrain")
    of_models = {model: [1, 2] for model in models}
    monkeypatch.setattr(runs, "FIGURES", tmp_path / "figures")
    params = load(size="small", further_seeds=of_models)
    save_missing(params)
    return params


def test_a_part_with_its_interval_stands_beside_its_own_seeds(uneven):
    """Of a claim about two models the one may have three seeds and the other one."""
    table = verify.select(verify.claims_table(uneven))
    assert table.loc["smart-best-single", "n"] == 3
    rich = table.loc["rich-data-costs-sst"]
    assert rich["n"] == 1
    assert rich["parts"] == 2
    # every pair of these models has one seed, and borrows the spread of other comparisons on sst
    assert rich["low"] < rich["ours"] < rich["high"]


def test_what_a_control_leaves_is_no_share_of_an_effect_of_other_seeds(uneven):
    table = verify.claims_table(uneven)
    of_claim = verify.select(table).loc["smart-small-sst"]
    control = verify.select(table, comparison="control").loc["smart-small-sst"]
    assert (of_claim["n"], control["n"]) == (3, 1)
    of_claim["ours"], control["ours"] = 5.0, 2.5
    told = verify.format_control("smart", control, of_claim)
    assert told.startswith("Round-robin, small batches: 2.5 ")
    control["n"] = 3
    told = verify.format_control("smart", control, of_claim)
    assert told.startswith("Round-robin, small batches: 2.5 of the 5.0 points")


@pytest.mark.parametrize("claim", ["smart-small-sst", "smart-best-small"])
def test_one_comparison_has_one_interval_whatever_is_asked_beside_it(uneven, claim):
    """The claims are of accuracy and of Pearson's r, and what is asked beside them is accuracy."""
    pair = compare.Pair(claim, "rrobin-smart", "smart")
    others = []
    for model in ("rrobin", "smart", "rrobin-full"):
        others.append(compare.Pair("smart-small-sst", model, "pretrain"))
    alone = compare.measure_pairs(uneven, [pair], ("printed",)).iloc[0]
    among = compare.measure_pairs(uneven, [*others[:-1], pair, others[-1]], ("printed",))
    among = among[among["ours"] == "rrobin-smart"].iloc[0]
    assert among["low"] < among["value"] < among["high"]
    numbers = ["value", "low", "high", "n"]
    assert alone[numbers].tolist() == among[numbers].tolist()


def test_a_comparison_that_another_claim_s_control_makes_is_taken_from_there(uneven):
    """The control of smart-small-sst compares the same two models as this pair does."""
    listed = claims.read_claims("smart")
    [claim] = [one for one in listed if one.id == "smart-small-sst"]
    table = verify.claims_table(uneven)
    control = verify.select(table, comparison="control").loc[claim.id]
    pair = compare.Pair("smart-best-single", "rrobin-smart", claim.control)
    assert (claim.id, "control", 1) in compare.find_same(
        listed, compare.find_claim(uneven, pair.claim), pair
    )
    row = compare.measure_pairs(uneven, [pair], ("printed",)).iloc[0]
    assert row["value"] == control["ours"]
    assert row["n"] == control["n"] == 1


def test_captions_say_when_steps_and_bars_are_of_different_seeds(uneven):
    html = str(pieces.figure_steps(uneven, "layer-sst", smart.STEPS))
    told = "Each step compares the seeds that both models have (1 to 3), so they need not"
    assert told in " ".join(html.split())
    made = pd.DataFrame(
        {
            "n": [1, 1, 3],
            "low": [np.nan, -1.0, -1.0],
            "claim": ["smart-small-sst"] * 3,
        }
    )
    told = pieces.describe_intervals(uneven, made)
    assert "1 to 3 seeds (one: spread borrowed from the others, or no bar)" in told
    told = pieces.describe_intervals(uneven, made.iloc[[0, 2]])
    assert "1 to 3 seeds (one: no bar)" in told


def test_test_sets_of_one_size_are_told_once(uneven, monkeypatch):
    rows = [{"set": name, "id": str(i)} for name in ("sst", "quora", "sts") for i in range(300)]
    monkeypatch.setattr(stats, "rename_sets", lambda sets, places: sets)
    monkeypatch.setattr(verify, "collect_scores", lambda specs: (None, pd.DataFrame(rows)))
    listed = claims.read_claims("smart", uneven.mixtures)
    every = [claim.id for claim in listed if claim.contrast is not None]
    assert compare.count_examples(uneven, every) == [300]


def test_a_gain_over_the_frozen_encoder_is_of_the_same_seeds(uneven):
    ledger = runs.collect_ledger(plans.plan(uneven))
    scores = ledger[(ledger["set"] == "sst") & (ledger["metric"] == "accuracy")]
    scores = scores.pivot(index="seed", columns="variant", values="value")
    expected = (scores["rrobin-full"] - scores["pretrain"]).mean()
    figures_smart.table_contamination(uneven)
    file = runs.page_folder(uneven) / "table_contamination.csv"
    table = pd.read_csv(file).set_index("dataset")
    assert table.loc["SST-5", "gain of All paraphrases"] == pytest.approx(expected, abs=0.01)


def test_generated_sets_stand_in_for_those_of_the_claims_and_no_verdict_follows(load):
    """The figures of generated text have its numbers; no claim is judged on it."""
    params = load("quick")
    assert params.stand_ins == {"sentiment": "sst", "paraphrase": "quora", "similarity": "sts"}
    save_missing(params)
    table = verify.claims_table(params)
    assert set(table.loc[table["comparison"] == "claim", "verdict"]) == {Verdict.NOT_TESTED}
    own = verify.select(table)
    assert own.loc["more-data-wins", "part"] in ("paraphrase", "similarity")
    assert "sst" not in set(own["part"])
    forest = compare.collect_comparisons(params, smart.COMPARISONS)
    ours = forest[(forest["setting"] == "report") & (forest["control"] == "")]
    assert ours["n"].tolist() == [1] * len(smart.COMPARISONS)
    scores = runs.collect_ledger(plans.plan(params)).set_index(["variant", "set", "metric"])
    means = scores["value"].groupby(level=[0, 1, 2]).mean()
    expected = means["smart", "sentiment", "accuracy"] - means["finetune", "sentiment", "accuracy"]
    assert ours["value"].iloc[1] == pytest.approx(expected)
    steps = compare.collect_steps(params, "layer-sst", smart.STEPS, "printed")
    assert steps["known"].all()
    assert steps["value"].iloc[:-1].sum() == pytest.approx(steps["value"].iloc[-1])


def test_on_real_data_a_set_is_what_the_claims_call_it(load):
    assert load("real").stand_ins == {}
    assert load("paper").stand_ins == {}
    assert load("real", domains=["sst-typos", "quora", "sts"]).stand_ins == {}
    domains = load("paper").domains
    assert tuple(domains) == smart.SETS
    assert load("paper").reviews == smart.REVIEWS
    named = set()
    for claim in claims.read_claims("smart"):
        for side in claim.contrast.sides() if claim.contrast else []:
            named.update(np.ravel(side["set"]))
    assert named == {*smart.SETS, smart.REVIEWS, "validation", "training"}


def test_reviews_are_of_all_models_or_of_the_named_ones(load):
    changes = {"seeds": [0], "further_seeds": {}, "arms": ["printed"], "experiments": ["reviews"]}

    def list_variants(**more):
        return [
            spec.variant for spec in plans.plan(load("real", **changes, reviews="cfimdb", **more))
        ]

    assert list_variants() == ["pretrain-cfimdb", "finetune-cfimdb", "smart-cfimdb"]
    of_two = list_variants(review_models=["pretrain", "finetune"])
    assert of_two == ["pretrain-cfimdb", "finetune-cfimdb"]


def test_seconds_of_an_epoch_stand_beside_the_printed_ones(load, monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "FIGURES", tmp_path)

    def plant(spec: Spec) -> tuple[dict, pd.DataFrame]:
        record, examples = plant_record(spec)
        return record | {"training_seconds": 100.0 * (1 + spec.seed)}, examples

    params = load(size="small", arms=["printed"], experiments=["single"], epochs=4)
    save_missing(params, plant)
    figures_smart.table_seconds(params)
    table = pd.read_csv(runs.page_folder(params) / "table2_seconds.csv")
    ours = table.loc[table["model"] == "Fine-tuned", "value"]
    assert ours.tolist() == [50.0]  # of 100, 200 and 300 seconds, each of four epochs
    text = (runs.page_folder(params) / "table2_seconds.md").read_text(encoding="utf-8")
    assert "161" in text  # as printed of SMART
    _, rows = text.split("|", 1)
    assert "**" not in rows  # how long a run took is no achievement


def test_trials_are_known_by_their_rate_and_weight_or_epochs(load):
    params = load(size="small", arms=["tuned"], experiments=["rrobin"])
    save_missing(params)
    tried = [s for s in plans.plan(params) if s.variant.endswith("-trial")]
    frame = tables.trials_table(tried)
    assert list(frame["setting"].cat.categories) == ["4 epochs", "8 epochs", "λ = 1", "λ = 5"]
    assert frame.groupby("model", observed=True).size().tolist() == [4, 4, 4, 4]
    assert frame["chosen_by"].between(0, 100).all()


# ---- a tiny study ----


def test_a_small_study_runs_to_the_end(small_encoder, monkeypatch, capsys):
    changes = TINY | {
        "encoder": small_encoder,
        "experiments": ["single", "heads"],
        "arms": ["printed"],
    }
    params = plans.load_params("smart", "quick", changes)
    measured = []
    measure = study.measure_speed
    monkeypatch.setattr(study, "measure_speed", lambda spec: measured.append(spec) or measure(spec))
    table = study.run(params, plans.plan, workers=1, live=False)
    specs = plans.plan(params)
    assert set(table["run"]) == {runs.find_record(s)["run"] for s in specs}
    # one measurement for each size of a batch
    assert len(measured) == 2
    output = capsys.readouterr().out
    assert "sentiment accuracy " in output
    assert "similarity 100 r " in output
    ledger = runs.collect_ledger(specs)
    assert np.isfinite(ledger["value"]).all()
    of_smart = ledger[(ledger["set"] == "training") & (ledger["variant"] == "smart")]
    assert of_smart["metric"].tolist() == ["adversarial_loss"]
    assert of_smart["value"].item() > 0
    assert len(verify.claims_table(params)) > 0
    # nothing of it is trained twice
    assert set(study.run(params, plans.plan, live=False)["trained"]) == {"found"}


def test_smart_is_counted_by_its_passes(load):
    params = load("quick", experiments=["single", "full"])
    of = find_variants(plans.plan(params))
    known = {}
    plain = study.estimate_tokens(of["finetune"], known)
    dear = study.estimate_tokens(of["smart"], known)
    cheap = study.estimate_tokens(of["pretrain"], known)
    assert cheap < plain < dear
    assert dear - plain == pytest.approx(4.5 * (plain - cheap))
    # with dropout on the training pass is the clean one, but for runs in bf16
    with_dropout = of["smart"].smart.model_copy(update={"dropout": "on"})
    steps = []
    for precision in ("fp32", "bf16"):
        how = {"smart": with_dropout, "precision": precision}
        steps.append(study.count_plain_steps(of["smart"].model_copy(update=how)))
    assert steps == [3, 4]
    # of the parts that are scored alone, the three runs have as many
    assert study.speed_class(of["smart"]) != study.speed_class(of["finetune"])  # batch size
    assert study.speed_class(of["pretrain"]) == study.speed_class(of["rrobin-full"])
    assert study.batch_memory(of["finetune"]) < 2
    # beside the 1.2 GB of every run
    without = of["smart"].model_copy(update={"smart": None})
    states = study.batch_memory(without) - 1.2
    assert study.batch_memory(of["smart"]) - 1.2 == pytest.approx(3 * states)
