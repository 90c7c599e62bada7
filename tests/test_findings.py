"""The findings in prose. Each paragraph leaves the page if the records no longer bear it out."""

import argparse
import re
from functools import cache

import pandas as pd
import pytest

from qa_lib.evidence import verify
from qa_lib.own_data import advice
from qa_lib.page import findings, tables
from qa_lib.reports import plans
from qa_lib.settings.params import ROOT
from qa_lib.store import runs


@cache
def inputs(report: str) -> dict:
    """Return what a report's findings are written from, read from the committed records.

    It is read once, because no test changes it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RECORDS", ROOT / "records")
        runs.read_committed.cache_clear()
        runs._read_committed_examples.cache_clear()
        args = argparse.Namespace(report=report, profile="real", size=None, data=None, p=[])
        p = plans.parameters_to_render(args)
        specs = plans.plan(p)
        claims = verify.claims_table(p)
        if report == "moe":
            experts = []
            for spec in specs:
                if spec.variant == "moe":
                    experts += spec.parents
            return {
                "P": p,
                "scores": runs.collect_ledger(specs),
                "claims": claims,
                "experts": runs.collect_histories(experts),
            }
        trials = tables.trials_table([s for s in specs if s.variant.endswith("-trial")])
        routed = tables.collect_router_steps([s for s in specs if s.variant == "exbert-tuned"])
        return {
            "P": p,
            "ledger": tables.add_display_names(runs.collect_ledger([s for s in specs if s.tests])),
            "trials": trials,
            "claims": claims,
            "routed": routed,
            "plain": advice.estimates(p),
            "dense": advice.estimates(p, "dense-compute"),
        }


def write_findings(report: str, monkeypatch, **changed) -> str:
    """Return a report's findings, with some of what they are written from changed."""
    values = inputs(report) | changed
    monkeypatch.setattr(
        advice, "estimates", lambda P, control="plain", arm="tuned": values[control.split("-")[0]]
    )
    arguments = {k: v for k, v in values.items() if k not in ("plain", "dense")}
    return getattr(findings, report)(**arguments)


def move_values(frame: pd.DataFrame, by: float, column: str = "value", **which) -> pd.DataFrame:
    """Return a frame with a column moved in the rows whose other columns have given values."""
    at = (frame[[*which]] == pd.Series(which)).all(axis=1)
    assert at.any()
    return frame.assign(**{column: frame[column] + by * at})


def change_claim(claims: pd.DataFrame, claim: str, **values) -> pd.DataFrame:
    """Return a table of claims in which one claim has other values."""
    at = claims["claim"] == claim
    return claims.assign(**{k: claims[k].mask(at, v) for k, v in values.items()})


def change_params(p, **fields):
    """Return parameters with other values."""
    return p.model_copy(update=fields)


# A report, a paragraph's title, and a change of its inputs that the paragraph does not survive:
# which input, how it is changed, and the arguments of that change.
TURNS = [
    ("exbert", "On what floor", "P", change_params, {"encoder": "elsewhere"}),
    ("exbert", "What these records", "P", change_params, {"encoder": "elsewhere"}),
    ("moe", "What these records", "P", change_params, {"encoder": "elsewhere"}),
    (
        "exbert",
        "What reproduces",
        "claims",
        change_claim,
        {"claim": "squad-plus-8", "verdict": "inconclusive: seeds"},
    ),
    ("exbert", "What reproduces", "claims", change_claim, {"claim": "headline", "low": -0.1}),
    ("exbert", "What reproduces", "claims", change_claim, {"claim": "headline", "high": 9.5}),
    (
        "exbert",
        "Points or percent",
        "claims",
        change_claim,
        {"claim": "mixed-gain-relative", "low": -0.1},
    ),
    (
        "exbert",
        "Points or percent",
        "ledger",
        move_values,
        {"by": 9, "variant": "v-db", "arm": "printed", "set": "squad"},
    ),
    (
        "exbert",
        "On what floor",
        "ledger",
        move_values,
        {"by": 9, "variant": "v-db", "arm": "printed", "set": "squad"},
    ),
    (
        "exbert",
        "Why it gains",
        "ledger",
        move_values,
        {"by": -3, "variant": "plain-tuned", "arm": "printed", "set": "bioasq"},
    ),
    (
        "exbert",
        "Why it gains",
        "trials",
        move_values,
        {"by": -20, "column": "validation_em", "variant": "v-db-trial"},
    ),
    (
        "exbert",
        "The same trials",
        "ledger",
        move_values,
        {"by": -20, "variant": "v-db", "arm": "tuned", "set": "squad"},
    ),
    (
        "exbert",
        "The same trials",
        "ledger",
        move_values,
        {"by": 30, "variant": "exbert-tuned", "arm": "printed", "set": "bioasq"},
    ),
    ("exbert", "What the block adds", "plain", move_values, {"by": -4, "column": "low", "n": 6}),
    (
        "exbert",
        "What the block adds",
        "plain",
        move_values,
        {"by": -9, "column": "d", "domain": "bioasq"},
    ),
    (
        "exbert",
        "What the block adds",
        "ledger",
        move_values,
        {"by": 2, "variant": "exbert-tuned", "arm": "tuned", "set": "bioasq"},
    ),
    (
        "exbert",
        "What the block adds",
        "ledger",
        move_values,
        {"by": 9, "variant": "plain-tuned", "arm": "tuned", "ratio": 0.2},
    ),
    (
        "exbert",
        "Whether it takes experts",
        "ledger",
        move_values,
        {"by": -9, "variant": "dense-compute", "arm": "tuned", "set": "squad"},
    ),
    (
        "exbert",
        "Whether it takes experts",
        "routed",
        move_values,
        {"by": -0.4, "column": "dropped", "variant": "exbert-tuned"},
    ),
    (
        "exbert",
        "Whether it takes experts",
        "dense",
        move_values,
        {"by": 9, "column": "low", "domain": "squad"},
    ),
    (
        "exbert",
        "Whether it takes experts",
        "dense",
        move_values,
        {"by": 9, "column": "d", "domain": "bioasq"},
    ),
    (
        "exbert",
        "Length of answers",
        "claims",
        change_claim,
        {"claim": "longer-answers", "high": 0.1},
    ),
    (
        "exbert",
        "Length of answers",
        "claims",
        change_claim,
        {"claim": "longer-answers", "tuned_ours": 0.1},
    ),
    (
        "exbert",
        "Length of answers",
        "ledger",
        move_values,
        {"by": -1, "variant": "plain-tuned", "metric": "tokens", "set": "bioasq"},
    ),
    ("exbert", "To someone", "plain", move_values, {"by": 30, "column": "d", "domain": "squad"}),
    (
        "moe",
        "What reproduces",
        "scores",
        move_values,
        {"by": 20, "variant": "moe", "set": "out-of-domain"},
    ),
    (
        "moe",
        "Why the mixture",
        "scores",
        move_values,
        {"by": 20, "variant": "oracle", "set": "out-of-domain"},
    ),
    (
        "moe",
        "Why the mixture",
        "scores",
        move_values,
        {"by": 20, "variant": "own-expert", "set": "newsqa"},
    ),
    (
        "moe",
        "Why the mixture",
        "experts",
        move_values,
        {"by": 90, "column": "validation_f1", "epoch": 1.0},
    ),
    (
        "moe",
        "Has the gate",
        "scores",
        move_values,
        {"by": 5, "variant": "moe", "set": "out-of-domain-test"},
    ),
    (
        "moe",
        "Has the gate",
        "claims",
        change_claim,
        {"claim": "gate-below-told", "verdict": "reproduced"},
    ),
    (
        "moe",
        "Starting blocks",
        "scores",
        move_values,
        {"by": 20, "variant": "reinit-4", "set": "out-of-domain"},
    ),
    (
        "moe",
        "Starting blocks",
        "scores",
        move_values,
        {"by": 20, "variant": "reload-4", "set": "out-of-domain"},
    ),
    (
        "moe",
        "To someone",
        "scores",
        move_values,
        {"by": 20, "variant": "oracle", "set": "out-of-domain-test"},
    ),
]


@pytest.mark.parametrize("report", ["exbert", "moe"])
def test_every_paragraph_stands_on_the_committed_records(report, monkeypatch):
    text = write_findings(report, monkeypatch)
    assert "left out" not in text
    assert "nan" not in text


@pytest.mark.parametrize(("report", "title", "which", "change", "how"), TURNS)
def test_a_paragraph_goes_with_the_records_that_bore_it_out(
    report, title, which, change, how, monkeypatch
):
    other = write_findings(report, monkeypatch, **{which: change(inputs(report)[which], **how)})
    assert f"**{title}" in write_findings(report, monkeypatch)
    assert f"**{title}" not in other
    assert "left out" in other


def test_what_is_reproduced_is_said_only_while_it_is(monkeypatch):
    claims = change_claim(
        inputs("moe")["claims"], "pooling-generalises", verdict="inconclusive: seeds"
    )
    assert "Reproduced is" in write_findings("moe", monkeypatch)
    assert "Reproduced is" not in write_findings("moe", monkeypatch, claims=claims)
    claims = change_claim(inputs("moe")["claims"], "both-hurt", verdict="inconclusive: seeds")
    assert "a mere direction" in write_findings("moe", monkeypatch)
    assert "a mere direction" not in write_findings("moe", monkeypatch, claims=claims)


@pytest.mark.parametrize(
    ("seeds", "warning"),
    [
        ({}, ""),
        ({"moe-test": 2}, "Two seeds can refute a claim, not confirm one."),
        ({"reinit-dev": 1}, "One seed: seen, not decided."),
        # a claim that was not run makes nothing weaker
        ({"reinit-dev": 0}, ""),
    ],
)
def test_a_result_warns_of_the_fewest_seeds_of_what_it_names(seeds, warning):
    claims = inputs("moe")["claims"]
    seeds = {"moe-dev": 3, "moe-test": 3, "reinit-dev": 3} | seeds
    claims = claims.assign(n=claims["claim"].map(seeds).fillna(0))
    text = findings.result("moe", claims)
    assert text.split("no answer of one token.")[1].strip() == warning
    assert ("four blocks started anew" in text) == (seeds["reinit-dev"] != 0)


def test_a_result_leaves_out_what_was_not_run():
    claims = inputs("exbert")["claims"]
    assert re.search(
        "same trials of rate and epochs it is .* behind V-DB, .* these blocks",
        findings.result("exbert", claims),
    )
    not_run = dict.fromkeys(("tuned_ours", "control_ours", "fair_ours"), float("nan"))
    lacks = claims.assign(**not_run)
    assert findings.result("exbert", lacks).endswith("percent relative).")
