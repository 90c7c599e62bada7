"""Stored answers are scored again. Scores of two versions are never put together."""

import re
import sys

import pandas as pd
import pytest

from qa_lib.__main__ import run_verb
from qa_lib.data import selection
from qa_lib.reports import exbert, plans
from qa_lib.settings import parameters
from qa_lib.settings.params import UserError
from qa_lib.store import runs
from qa_lib.training import rescore

ROWS = [
    {
        "id": "a",
        "context": "Tea in a cafe\u0301 again",
        "question": "?",
        "answers": {"text": ["cafe\u0301"]},
    },
    {"id": "b", "context": "Tea in May", "question": "?", "answers": {"text": ["May"]}},
]
# The first span lacks the accent, because scoring of version 1 cut it off.
SPANS = [(9, 13), (7, 10)]


@pytest.fixture
def old_run(tiny, monkeypatch):
    """Return a run whose record has scores of version 1, and which is all that is planned."""
    spec = exbert.plan(tiny())[0].model_copy(update={"tests": ["encyclopaedia"]})
    dataset = parameters.Dataset(train=["x"], test=["y"])
    monkeypatch.setattr(plans, "plan", lambda p: [spec])
    monkeypatch.setattr(
        selection, "load_test_sets", lambda spec: {name: (dataset, ROWS) for name in spec.tests}
    )
    spans = pd.DataFrame(SPANS, columns=["start", "end"]).astype("int32")
    examples = spans.assign(
        set="encyclopaedia", id=["a", "b"], cluster=["x", "y"], em=[0.0, 100.0], f1=[0.0, 100.0]
    )
    scores = {
        "em": 50.0,
        "f1": 50.0,
        "em_rows": 50.0,
        "f1_rows": 50.0,
        "contains": 0.0,
        "loss": 3.5,
        "n": 2,
        "clusters": 2,
    }
    environment = {"device": "CPU, 1 thread", "precision": "fp32"}
    record = {
        "metrics": {"encyclopaedia": scores},
        "history": [],
        "environment": environment,
        "scoring": 1,
    }
    runs.save(spec, record, examples)
    return spec


def score_again(monkeypatch):
    """Run `python -m qa_lib rescore exbert`."""
    monkeypatch.setattr(sys, "argv", ["rescore", "exbert", "--profile", "quick"])
    run_verb(sys.argv)


def test_scores_of_an_earlier_version_are_refused_and_scored_again(old_run, monkeypatch, capsys):
    with pytest.raises(UserError, match="scores of version 1 .* qa_lib rescore exbert"):
        runs.collect_ledger([old_run])
    score_again(monkeypatch)
    assert "1 of 2 answers scored otherwise" in capsys.readouterr().out
    record = runs.find_record(old_run)
    assert record["scoring"] == runs.SCORING
    scores = record["metrics"]["encyclopaedia"]
    assert (scores["em"], scores["f1"], scores["loss"], scores["n"]) == (100.0, 100.0, 3.5, 2)
    frame = runs.collect_examples([old_run])
    assert frame["em"].tolist() == [100.0, 100.0]
    assert frame["end"].tolist() == [14, 10]
    assert len(list(record["folder"].glob("examples*.parquet"))) == 1


def test_the_parts_with_and_without_an_answer_are_scored_again():
    rows = [
        ROWS[0] | {"is_impossible": False},
        ROWS[1] | {"is_impossible": True, "answers": {"text": []}},
    ]
    frame = pd.DataFrame({"id": ["a", "b"], "cluster": ["x", "y"], "start": [9, 0], "end": [13, 0]})
    by_id = {row["id"]: row for row in rows}
    dataset = parameters.Dataset(train=["x"], test=["y"])
    scored = rescore.rescore_answers(frame, by_id)
    names = ["em_answerable", "em_impossible", "f1_answerable", "f1_impossible"]
    assert rescore.average_parts(scored, by_id, dataset) == dict.fromkeys(names, 100.0)


def test_an_answer_that_holds_the_right_one_and_more_contains_it_again():
    frame = pd.DataFrame({"id": ["a", "b"], "start": [9, 0], "end": [13, 10]})
    scored = rescore.rescore_answers(frame, {row["id"]: row for row in ROWS})
    assert scored["em"].tolist() == [100.0, 0.0]
    assert scored["contains"].tolist() == [0.0, 100.0]


def test_scores_are_averaged_within_clusters_again():
    values = {"em": [100.0, 0.0, 100.0], "f1": [100.0, 50.0, 0.0], "contains": [0.0, 0.0, 100.0]}
    frame = pd.DataFrame(values | {"cluster": ["q", "q", "r"]})
    dataset = parameters.Dataset(train=["x"], test=["y"], cluster="question", average="clusters")
    scores = rescore.average_test_set(frame, dataset)
    assert (scores["em"], scores["f1"], scores["contains"]) == (75.0, 37.5, 50.0)
    assert (scores["em_rows"], scores["f1_rows"]) == pytest.approx((200 / 3, 50.0))


def test_answers_to_rows_that_are_gone_are_one_sentence(old_run, monkeypatch):
    dataset = parameters.Dataset(train=["x"], test=["y"])
    monkeypatch.setattr(
        selection, "load_test_sets", lambda spec: {name: (dataset, ROWS[:1]) for name in spec.tests}
    )
    with pytest.raises(UserError, match="has answered encyclopaedia lacks 1 today, first b;"):
        rescore.rescore("exbert", [old_run])


def test_a_record_of_todays_scoring_is_left_as_it_is(old_run, monkeypatch, capsys):
    score_again(monkeypatch)
    before = (runs.run_folder(old_run) / "metrics.json").read_bytes()
    capsys.readouterr()
    score_again(monkeypatch)
    told = capsys.readouterr().out
    assert re.fullmatch(r"no record of these \d+ runs of exbert is of an earlier scoring\n", told)
    assert (runs.run_folder(old_run) / "metrics.json").read_bytes() == before


def test_committed_records_are_rescored_in_place(old_run, monkeypatch):
    monkeypatch.setattr(runs, "SCORING", 1)
    assert runs.land("exbert", [old_run]) == 1
    runs.shutil.rmtree(runs.RUNS)
    monkeypatch.setattr(runs, "SCORING", 2)
    score_again(monkeypatch)
    record = runs.read_committed("exbert")[old_run.hash]
    assert record["scoring"] == 2
    assert record["metrics"]["encyclopaedia"]["em"] == 100.0
    assert runs.collect_examples([old_run])["em"].tolist() == [100.0, 100.0]


def test_scores_of_an_earlier_version_are_not_landed(old_run):
    with pytest.raises(UserError, match="version 2 is landed"):
        runs.land("exbert", [old_run])


def test_every_report_sets_its_recipe():
    for slug in ("exbert", "moe"):
        specs = plans.plan(plans.load_params(slug, "quick"))
        assert {spec.recipe for spec in specs} == {1}
        other = specs[0].model_copy(update={"recipe": 2})
        assert other.hash != specs[0].hash
