"""The net under every change: landed records keep their hashes, plans find them, and pages hold
what they hold.

tests/net/ holds what the pages at `real` said when a change of them was last meant: a digest for
each run in results.csv, and each claim's numbers. A test that fails here says that a change has
moved a result; `python tests/test_net.py` writes the files anew, for a change that means to, and
LOG.md says what moved and why.
"""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from pydantic import BaseModel

from qa_lib.evidence import verdicts, verify
from qa_lib.page import figures_road, figures_smart, pieces, written
from qa_lib.reports import plans
from qa_lib.settings import parameters, params
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

ROOT = Path(__file__).parent.parent
NET = Path(__file__).parent / "net"
LANDED = {"exbert": 262, "moe": 69, "smart": 40, "road": 34}


@pytest.fixture(autouse=True)
def committed_records(monkeypatch):
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    monkeypatch.setattr(runs, "FIGURES", ROOT / "figures")
    runs.read_committed.cache_clear()
    yield
    runs.read_committed.cache_clear()


def test_a_record_that_stands_twice_is_refused(monkeypatch, tmp_path):
    """As after a merge: of two lines the last would count alone."""
    (tmp_path / "road").mkdir()
    lines = (ROOT / "records" / "road" / "runs.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "road" / "runs.jsonl").write_bytes(b"".join([*lines, lines[0]]))
    monkeypatch.setattr(runs, "RECORDS", tmp_path)
    runs.read_committed.cache_clear()
    name = json.loads(lines[0])["run"]
    with pytest.raises(UserError, match=f"line {len(lines) + 1}: {name} has an earlier line"):
        runs.read_committed("road")


def test_what_has_landed_was_frozen():
    assert all(verdicts.is_frozen(slug) for slug in LANDED)


def rebuild(record: dict, records: dict[str, dict]) -> Spec:
    """Return the specification of a landed record, from its stored fields and its parents'."""
    fields = {
        name: value for name, value in record["spec"].items() if name != "model"
    }  # a dead field
    parents = [rebuild(records[parent], records) for parent in record["parents"]]
    teachers = [rebuild(records[teacher], records) for teacher in record.get("teachers", [])]
    return Spec(**fields, parents=parents, teachers=teachers)


@pytest.mark.parametrize("slug", LANDED)
def test_every_landed_record_has_the_hash_of_its_fields(slug):
    records = runs.read_committed(slug)
    assert len(records) == LANDED[slug]
    for expected, record in records.items():
        assert rebuild(record, records).hash == expected, record["run"]


@pytest.mark.parametrize("slug", LANDED)
def test_todays_plan_of_real_finds_every_record(slug):
    plan = plans.plan(plans.load_params(slug, "real", size="small"))
    found = {runs.find_record(spec)["hash"] for spec in plan}
    assert found == set(runs.read_committed(slug))


@pytest.mark.parametrize("slug", LANDED)
def test_every_landed_record_has_todays_scoring(slug):
    for record in runs.read_committed(slug).values():
        assert record.get("scoring", 1) == runs.SCORING, record["run"]


# ---- what the pages hold ----


def digest_runs(slug: str) -> pd.DataFrame:
    """Return a row for each run in results.csv, with a digest of its scores; columns may be named
    or ordered anew.
    """
    ledger = pd.read_csv(
        ROOT / "figures" / slug / "real" / "results.csv", dtype=str, keep_default_na=False
    )
    metrics = list(ledger.columns)[list(ledger.columns).index("n") + 1 :]
    rows = []
    for (run, variant, arm), group in ledger.groupby(["run", "variant", "arm"]):
        scores = sorted(
            (row["set"], metric, row[metric], row["n"])
            for row in group.to_dict("records")
            for metric in metrics
            if row[metric]
        )
        digest = hashlib.sha256(json.dumps(scores).encode()).hexdigest()[:16]
        rows.append(
            {"run": run, "variant": variant, "arm": arm, "scores": len(scores), "digest": digest}
        )
    return pd.DataFrame(rows).astype(str)


# What claims.csv called an arm and a comparison when the net was first written.
COMPARISONS = {
    "printed": ("printed", "claim"),
    "tuned": ("tuned", "claim"),
    "control": ("printed", "control"),
    "control, tuned": ("tuned", "control"),
}
# And how it worded a verdict and its reason. A control has none.
WORDS = {
    "": "",
    "reproduced": "reproduced",
    "reproduced, smaller": "reproduced in direction, smaller",
    "not reproduced": "not reproduced",
    "undecided": "inconclusive: {reason}",
    "not tested": "not tested at this profile: {reason}",
}


def list_claims(slug: str) -> pd.DataFrame:
    """Return a row for each claim and comparison in claims.csv: ours, low, high and the verdict."""
    file = ROOT / "figures" / slug / "real" / "claims.csv"
    claims = pd.read_csv(file, dtype=str, keep_default_na=False)
    rows = []
    for comparison, (arm, name) in COMPARISONS.items():
        of_both = (claims["arm"] == arm) & (claims["comparison"] == name)
        for _, claim in claims[of_both].iterrows():
            row = {"claim": claim["claim"], "comparison": comparison}
            row |= {column: claim[column] for column in ("ours", "low", "high", "part")}
            row["verdict"] = WORDS[claim["verdict"]].format(reason=claim["reason"])
            rows.append(row)
    return pd.DataFrame(rows)


NETS = {"results": digest_runs, "claims": list_claims}


@pytest.mark.parametrize("slug", LANDED)
@pytest.mark.parametrize("name", NETS)
def test_pages_hold_what_they_held(slug, name):
    held = pd.read_csv(NET / f"{name}-{slug}.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(NETS[name](slug), held)


@pytest.mark.parametrize("slug", LANDED)
def test_pages_hold_what_the_records_say(slug, tmp_path, monkeypatch):
    p = plans.load_params(slug, "real", size="small")
    folder = ROOT / "figures" / slug / "real"
    assert runs.format_csv(runs.collect_results(plans.plan(p))) == (
        folder / "results.csv"
    ).read_text(encoding="utf-8")
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    verify.write_claims(p)
    drawn = (tmp_path / slug / "real" / "claims.csv").read_text(encoding="utf-8")
    assert drawn == (folder / "claims.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("slug", LANDED)
def test_results_say_what_the_ledger_says(slug):
    specs = plans.plan(plans.load_params(slug, "real", size="small"))
    scores = runs.collect_results(specs)
    assert scores.columns.is_unique  # a metric of a setting's name would take its column
    labels = list(scores.columns[: list(scores.columns).index("n") + 1])
    melted = scores.melt(labels, var_name="metric").dropna(subset="value")
    columns = ["run", "variant", "arm", "set", "metric", "value", "n"]
    both = [
        frame[columns].sort_values(columns).reset_index(drop=True)
        for frame in (melted, runs.collect_ledger(specs))
    ]
    pd.testing.assert_frame_equal(*both)


# ---- answers that two models give differently ----


def read_spans(P, variant: str, test_set: str) -> dict[str, tuple]:
    """Return question → (start, end) of a variant's run of seed 0."""
    [spec] = [spec for spec in plans.plan(P) if (spec.variant, spec.seed) == (variant, 0)]
    rows = runs.read_examples(runs.find_record(spec))
    rows = rows[rows["set"] == test_set]
    return {row.id: (row.start, row.end) for row in rows.itertuples()}


@pytest.mark.parametrize("test_set", ["squad", "newsqa"])
def test_findings_count_the_answers_that_differ(test_set):
    P = plans.load_params("road", "real", size="small")
    differing = written.collect_names(P)["differing"]
    for other in ("weighted-kd", "mtl", "mtl-ensemble"):
        ours, theirs = read_spans(P, "kd", test_set), read_spans(P, other, test_set)
        changed = sum(ours[question] != theirs[question] for question in ours)
        assert differing("kd", other, test_set) == pytest.approx(changed / len(ours)), other
    assert differing("kd", "mtl-ensemble", test_set) > differing("kd", "mtl", test_set) > 0
    with pytest.raises(written.UnknownName, match="no run of absent has spans on"):
        differing("kd", "absent", test_set)


def test_answers_of_one_mixture_are_compared():
    P = plans.load_params("exbert", "real", size="small")
    answers = {}
    for spec in plans.plan(P):
        if spec.variant in ("v-db", "dense-compute") and spec.arm == "printed" and spec.seed == 0:
            rows = runs.read_examples(runs.find_record(spec))
            rows = rows[rows["set"] == "squad"].assign(mixture=str(spec.rows))
            answers.setdefault(spec.variant, []).append(rows)
    ours, theirs = (pd.concat(answers[name]) for name in ("v-db", "dense-compute"))
    both = ours.merge(theirs, on=["mixture", "id"], validate="1:1")
    assert len(both) == 3 * both["id"].nunique()
    changed = (both["start_x"] != both["start_y"]) | (both["end_x"] != both["end_y"])
    names = written.collect_names(P)
    of_seed_0 = [spec for spec in plans.plan(P) if spec.seed == 0]
    runs_of_seed_0 = written.RunNames(P, of_seed_0)
    assert runs_of_seed_0.differing("v-db", "dense-compute", "squad") == changed.mean()
    assert names["differing"]("v-db", "dense-compute", "squad") == pytest.approx(0.775, abs=0.01)


# ---- defaults that records leave out ----


def list_defaults() -> dict[str, dict]:
    """Return model → field → default, of a run and of all that it is made of."""
    defaults = {}
    for name, model in [*vars(parameters).items(), ("Spec", Spec)]:
        is_model = isinstance(model, type) and issubclass(model, BaseModel)
        if not is_model or issubclass(model, parameters.Study | parameters.Dataset):
            continue
        of_model = {}
        for field, info in model.model_fields.items():
            if not info.is_required():
                of_model[field] = repr(info.get_default(call_default_factory=True))
        if of_model:
            defaults[name] = of_model
    return defaults


def test_no_default_has_changed():
    """A run's hash and record leave defaults out: a changed one would pass old records off as new.

    A field that is added gets a line in tests/net/defaults.json. A line there never changes.
    """
    assert list_defaults() == json.loads((NET / "defaults.json").read_text())


# ---- heads that datasets share ----

# The heads of ROaD's landed runs. A line here never changes.
HEADS = {
    "boolq": "yesno",
    "mnli": "nli",
    "naturalquestions": "mrc",
    "qamr": "mrc",
    "quora": "paraphrase",
    "relation-extraction": "mrc",
    "snli": "nli",
    "squad": "mrc",
    "sst": "sentiment",
}


def test_landed_datasets_share_the_heads_that_they_shared():
    """A run's hash leaves the name of a dataset's head out: with other groups old records would
    pass for runs of them. A dataset of a new record gets a line in HEADS.
    """
    trained = {
        name
        for record in runs.read_committed("road").values()
        for name in record["spec"]["domains"]
    }
    known = params.read_datasets("folder")
    assert {name: known[name].head for name in trained} == HEADS


# ---- gradients of different lengths ----


def test_orthogonal_gradients_of_other_lengths_leave_more(monkeypatch):
    """Of two that are orthogonal, one three times as long, the mean has 0.79 of the mean length."""
    P = plans.load_params("road", "real", size="small")
    [spec] = [s for s in plans.plan(P) if (s.variant, s.seed) == ("mtl-pretraining", 0)]
    gradients = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    left = float(gradients.mean(0).norm() / gradients.norm(dim=1).mean())
    probe = {"step": 1, "norms": {"mnli": 3.0, "sst": 1.0}, "cosines": {"mnli/sst": 0.0}}
    record = runs.find_record(spec) | {"gradients": [probe | {"left": left}]}
    monkeypatch.setattr(runs, "require_records", lambda specs: [(spec, record)])
    [orthogonal] = figures_road.collect_cosines(P)["orthogonal"]
    assert orthogonal == pytest.approx(left) == pytest.approx(10**0.5 / 4)


# ---- a seed that is left out, and what a figure says of its examples ----


def test_without_a_seed_that_no_run_has_a_claim_is_what_the_page_says():
    P = plans.load_params("exbert", "real", size="small")
    names = written.collect_names(P)
    ours = names["claims"]["headline"]["equal"]
    same = names["without_seed"]("headline", 99, "equal")
    assert (same.ours, same.low, same.high, same.n) == (ours.ours, ours.low, ours.high, 6)
    fewer = names["without_seed"]("headline", 0, "equal")
    assert fewer.n == 5
    assert fewer.low < ours.low
    # where a claim names a score, ours is a score, as on the page
    score = names["claims"]["fifty_on_1600"]["equal"]
    other = names["without_seed"]("fifty-on-1600", 99, "equal")
    assert (other.ours, other.low, other.high) == (score.ours, score.low, score.high)
    with pytest.raises(written.UnknownName, match="no runs of headlines without seed 0"):
        names["without_seed"]("headlines", 0)


@pytest.mark.parametrize(
    "slug, of_control, of_claim, sign",
    [
        ("moe", "moe-dev", "gate-not-learned", -1),
        ("road", "final-newsqa", "weighted-adds-no-newsqa", 1),
        ("road", "weighted-over-single", "weighted-over-kd", 1),
    ],
)
def test_two_models_have_one_interval_as_claim_and_as_control(slug, of_control, of_claim, sign):
    """A claim compares the two models that the control of another claim compares."""
    table = verify.claims_table(plans.load_params(slug, "real", size="small"))
    claim = verify.select(table).loc[of_claim]
    control = verify.select(table, comparison="control").loc[of_control]
    assert sorted([sign * claim["low"], sign * claim["high"]]) == [control["low"], control["high"]]
    assert sign * claim["ours"] == control["ours"]
    assert claim["run"] == control["run"]


def test_a_figure_says_its_seeds_its_examples_and_whether_it_has_intervals():
    P = plans.load_params("road", "real", size="small")
    made = pd.DataFrame({"n": [1, 1], "claim": ["mtl-over-baseline", "newsqa-gain"]})
    made["low"] = float("nan")
    assert pieces.describe_intervals(P, made) == (
        "One seed: no intervals; 400 or 2,012 test examples."
    )
    made = pd.DataFrame({"n": [1, 3], "claim": ["mtl-over-baseline"] * 2, "low": [0.0, 0.0]})
    assert pieces.describe_intervals(P, made) == (
        "Bars are 95 % intervals over 1 to 3 seeds (one: spread borrowed from the others) and "
        "2,012 test examples."
    )


def test_tables_name_what_was_run_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    noise = figures_smart.table_noise(plans.load_params("smart", "real", size="small"))
    assert "SMART, variants of it: accuracy on sentiment." in noise
    datasets = figures_road.table_datasets(plans.load_params("road", "real", size="small"))
    assert "another target" not in datasets


if __name__ == "__main__":
    NET.mkdir(exist_ok=True)
    for slug in LANDED:
        for name, read in NETS.items():
            read(slug).to_csv(NET / f"{name}-{slug}.csv", index=False, lineterminator="\n")
