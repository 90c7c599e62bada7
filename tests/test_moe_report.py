"""The page of moe on planted records: claims, comparisons, and what the gate trusts."""

import numpy as np
import pandas as pd
import pytest
from test_smart_report import save_missing

from qa_lib.data import selection
from qa_lib.evidence import claims, compare, verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.page import charts, figures_moe, looks, verdict_groups
from qa_lib.reports import comparisons, moe, plans
from qa_lib.settings import encoder_files
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import evaluate

FEW_SHOT = ("duorc", "race", "relations")
SCORES = ("em", "f1", "em_starter", "f1_starter")


# ---- planted records ----


def plant_record(spec: Spec, rows=42) -> tuple[dict, pd.DataFrame]:
    """Return a run's record and examples with random scores, as training writes them."""
    rng = np.random.default_rng(int(spec.hash[:8], 16))
    frames = [pd.DataFrame({"set": [], "id": [], "cluster": []})]
    scores = {}
    for name in spec.tests:
        numbers = np.arange(rows).astype(str)
        columns = {metric: rng.choice([0.0, 100.0], rows, p=[0.6, 0.4]) for metric in SCORES}
        if name.startswith("out-of-domain"):
            columns["part"] = np.resize(FEW_SHOT, rows)
        if spec.gate:
            weights = rng.dirichlet(np.ones(len(spec.experts)), rows)
            columns |= {f"gate_{k}": of_expert for k, of_expert in enumerate(weights.T, 1)}
        frames.append(pd.DataFrame({"set": name, "id": numbers, "cluster": numbers} | columns))
        scores[name] = {metric: columns[metric].mean() for metric in SCORES}
        scores[name] |= {"n": rows, "clusters": rows}
        if not evaluate.is_combined(spec):
            scores[name]["overflowed"] = 0
    record = {"metrics": scores, "history": plant_history(spec, rng)}
    if record["history"] and spec.watched:
        last = record["history"][-1]
        measured = {name: last[name] for name in ("train_em", "train_f1")}
        early = {"train_em_early": rng.uniform(0, 50), "plateau": rng.uniform(0, 100)}
        scores["training"] = measured | early | {"n": len(record["history"])}
    record["environment"] = {"device": "CPU, 1 thread", "precision": "bf16"}
    return record, pd.concat(frames)


def plant_history(spec: Spec, rng: np.random.Generator) -> list[dict]:
    """Return evaluations during training; of a mixture whose weights are given none."""
    if spec.gate and spec.gate.rule != "learned":
        return []
    number = max(1, round(spec.looks * spec.epochs))
    history = []
    for look in range(1, number + 1):
        evaluation = {"epoch": spec.epochs * look / number, "step": look}
        for name in ("train_loss", "validation_loss"):
            evaluation[name] = rng.uniform(1, 2)
        for name in ("train_em", "train_f1", "validation_em", "validation_f1"):
            evaluation[name] = rng.uniform(0, 100)
        history.append(evaluation)
    return history


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return the folder of the planted records, which all tests read and none changes."""
    return tmp_path_factory.mktemp("planted")


@pytest.fixture
def planted(places, monkeypatch):
    """Return parameters of the committed study's parts, all of whose runs have a record.

    No data and no encoder are read to know a run by its hash.
    """
    monkeypatch.setattr(encoder_files, "identify_weights", lambda name: "w" * 64)
    monkeypatch.setattr(selection, "fingerprint", lambda name, *_: name.ljust(64, "f"))
    monkeypatch.setattr(runs, "RUNS", places)
    P = plans.load_params("moe", "real", {"data": "data"}, "small")
    save_missing(P, plant_record)
    return P


# ---- what the page leads with ----


def test_every_model_has_a_name_and_a_colour_of_its_own():
    names, colours = zip(*moe.MODELS.values(), strict=True)
    assert len(set(names)) == len(names)
    assert len(set(colours)) == len(colours)


def test_steps_lead_from_the_baseline_to_the_final_model(planted):
    steps = moe.list_steps(planted)
    comparisons.check_chain(steps)
    rows = compare.collect_steps(planted, "moe-dev", steps, "printed")
    assert rows["known"].all()
    assert rows["by_starter"].all()
    assert rows["value"].iloc[:-1].sum() == pytest.approx(rows["value"].iloc[-1])
    scores = runs.collect_ledger(plans.plan(planted)).set_index(["variant", "set", "metric"])
    means = scores["value"].groupby(level=[0, 1, 2]).mean()
    at = ("out-of-domain", "em_starter")
    expected = means[("moe-reinit-4", *at)] - means[("baseline", *at)]
    assert rows["value"].iloc[-1] == pytest.approx(expected)


def test_comparisons_are_scored_as_what_is_printed(planted):
    table = verify.claims_table(planted)
    rows = compare.collect_comparisons(planted, moe.COMPARISONS)
    assert rows["by_starter"].all()
    own = rows[(rows["setting"] == "report") & (rows["control"] == "")]
    starter = verify.select(table, comparison="starter")
    signs = {"moe-dev": -1, "moe-test": -1, "reinit-dev": -1, "moe-reinit-test": -1}
    for sign, claim, value in zip(signs.values(), signs, own["value"], strict=True):
        assert value == pytest.approx(sign * starter.loc[claim, "ours"]), claim


def test_the_first_figure_says_by_which_scoring(planted):
    rows = compare.collect_comparisons(planted, moe.COMPARISONS[:1])
    for look in (looks.WIDE, looks.NARROW):
        fig = charts.draw_forest("moe", rows, look)
        label = fig.axes[0].xaxis.label
        assert " ".join(label.get_text().split()) == (
            "EM behind (−) or ahead (+), by the report's scoring"
        )
        fig.canvas.draw()
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= fig.bbox.x1 and box.y0 >= 0
    official = rows.assign(by_starter=False)
    axes = charts.draw_forest("moe", official, looks.WIDE).axes[0]
    assert axes.get_xlabel() == "EM behind (−) or ahead (+)"


def test_a_comparison_that_another_claim_makes_has_its_interval(planted):
    """The gate against equal weights is the control of one claim, and what another is about."""
    rows = compare.collect_comparisons(planted, moe.COMPARISONS[:1])
    beside = rows.set_index(["setting", "control"]).loc[("report", "uniform-weights")]
    starter = verify.select(verify.claims_table(planted), comparison="starter")
    made = starter.loc["gate-not-learned"]
    assert [beside["low"], beside["high"]] == pytest.approx([made["low"], made["high"]])


def test_claims_about_one_gap_have_one_interval_by_the_reports_scoring(planted):
    rows = compare.measure_by_starter(planted, verify.claims_table(planted))
    rows = rows[rows["arm"] == "printed"].set_index("claim")
    # the second of each two has the two models in each other's place, or the other direction
    for claim, other in (("moe-close-dev", "moe-dev"), ("combined-close-test", "moe-reinit-test")):
        assert rows.loc[claim, "part"] == "EM"
        assert rows.loc[claim, "ours"] == pytest.approx(-rows.loc[other, "ours"])
        assert rows.loc[claim, "low"] == -rows.loc[other, "high"]
        assert rows.loc[claim, "high"] == -rows.loc[other, "low"]


def test_a_turned_claim_is_shown_from_the_side_of_the_idea(planted):
    rows = compare.collect_comparisons(planted, moe.COMPARISONS[-1:]).set_index("setting")
    assert rows.loc["printed", "value"] == -0.262
    assert set(rows["variant"]) == {"moe-reinit-4"}
    assert rows.loc["report", "low"] < rows.loc["report", "value"] < rows.loc["report", "high"]


# ---- printed gaps beside ours ----


def test_every_printed_gap_has_ours_by_the_same_rule(planted):
    table = verify.claims_table(planted)
    by_starter = verify.select(compare.measure_by_starter(planted, table), comparison="starter")
    for claim in claims.read_claims("moe"):
        row = verify.select(table).loc[claim.id]
        has_gap = claim.printed is not None and claim.contrast and claim.contrast.against
        if not has_gap or claim.unit not in ("EM", "F1") or not row["n"]:
            continue
        assert by_starter.loc[claim.id, "n"] == 3, claim.id
    scores = runs.collect_ledger(plans.plan(planted)).set_index(["variant", "set", "metric"])
    means = scores["value"].groupby(level=[0, 1, 2]).mean()
    at = ("out-of-domain", "f1_starter")
    expected = means[("baseline", *at)] - means[("moe", *at)]
    assert by_starter.loc["moe-dev-f1", "ours"] == pytest.approx(expected)
    shown = verdict_groups.show_groups(planted, table)
    assert "scored as in the report" in shown
    assert "report's settings, SQuAD's scoring" in shown


def test_the_long_table_has_no_further_rows(planted):
    table = verify.claims_table(planted)
    starters = verify.select(table, comparison="starter")
    metrics = {claim.id: claim.contrast for claim in claims.read_claims("moe") if claim.contrast}
    assert {metrics[name].metric for name in starters.index} == {"em"}
    assert set(starters["verdict"]) == {""}
    untested = verify.select(table)["verdict"] == Verdict.NOT_TESTED
    assert untested["baseline-dev"]


# ---- what the gate trusts ----


def test_the_gate_trusts_one_expert_of_each_question(planted):
    mixtures = figures_moe.find_mixtures(planted)
    assert len(mixtures) == 3
    rows = figures_moe.collect_trust(planted, mixtures)
    of_question = rows.groupby(["run", "question"])
    assert (of_question.size() == 3).all()
    assert (of_question["trusted"].sum() == 1).all()
    assert (of_question["weight"].sum().round(6) == 1).all()
    assert of_question["alone"].sum().isin([0, 1]).all()
    alone = rows[rows["alone"]]
    assert alone["right"].all()
    datasets = figures_moe.list_datasets(planted, rows)
    assert datasets == [*planted.domains, *planted.few_shot]
    choice = figures_moe.measure_choice(planted, mixtures)
    assert choice["questions"].sum() == len(alone)
    mean = np.average(choice["share"], weights=choice["questions"])
    assert mean == pytest.approx(100 * alone["trusted"].mean())
    assert (choice["best"] >= 100 / 3).all()


def test_findings_know_whether_experts_still_learn(planted):
    values = moe.collect_values(planted)
    assert values["experts"] == 9
    assert 0 <= values["experts_still_learning"] <= 9


def test_a_longer_baseline_stands_once(monkeypatch):
    named = []
    monkeypatch.setattr(figures_moe, "collect_rows", lambda P, names, columns: named.append(names))
    monkeypatch.setattr(figures_moe.pieces, "save_grid", lambda *given: None)
    for changes in ({"epochs": 4.0}, {"checkpoint": "last"}):
        changes |= {"experiments": ["longer", "last"], "longer": [4, 5]}
        figures_moe.table_longer(plans.load_params("moe", "quick", changes))
    assert list(named[0].values()) == [
        "4 epochs, best checkpoint",
        "5 epochs, best checkpoint",
        "4 epochs, last checkpoint",
        "5 epochs, last checkpoint",
    ]
    assert [name for name in named[1].values() if "best" in name] == []
    assert list(named[1]) == ["baseline", "baseline-4", "baseline-5"]
