"""The findings in prose: each paragraph stands on the committed records.

It leaves the page where they no longer bear it out.
"""

import argparse
import importlib
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
    """What a report's findings are written of, from the committed records: once, since they are
    only read.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RECORDS", ROOT / "records")
        runs.read_committed.cache_clear()
        runs._read_committed_examples.cache_clear()
        p = plans.parameters_to_render(
            argparse.Namespace(report=report, profile="real", size=None, data=None, p=[])
        )
        specs, claims = plans.plan(p), verify.claims_table(p)
        if report == "moe":
            return {"P": p, "claims": claims}
        trials = tables.trials_table([s for s in specs if s.variant.endswith("-trial")])
        routing = tables.collect_router_steps([s for s in specs if s.variant == "exbert-tuned"])
        return {
            "P": p,
            "ledger": tables.add_display_names(runs.collect_ledger([s for s in specs if s.tests])),
            "trials": trials,
            "claims": claims,
            "routing": routing,
            "plain": advice.estimates(p),
            "dense": advice.estimates(p, "dense-compute"),
        }


def said(report: str, monkeypatch, **changed) -> str:
    given = inputs(report) | changed
    monkeypatch.setattr(
        advice, "estimates", lambda P, control="plain", arm="tuned": given[control.split("-")[0]]
    )
    write = importlib.import_module(f"qa_lib.page.findings_{report}").write_findings
    return write(**{k: v for k, v in given.items() if k not in ("plain", "dense")})


def moved(frame: pd.DataFrame, by: float, column: str = "value", **which) -> pd.DataFrame:
    """The frame with a column moved by so much where others are as given."""
    at = (frame[[*which]] == pd.Series(which)).all(axis=1)
    assert at.any()
    return frame.assign(**{column: frame[column] + by * at})


def claimed(claims: pd.DataFrame, claim: str, arm: str = "printed", **values) -> pd.DataFrame:
    """Return the long table with other values of one claim in one arm."""
    at = (claims["claim"] == claim) & (claims["arm"] == arm) & (claims["comparison"] == "claim")
    assert at.sum() == 1
    return claims.assign(**{name: claims[name].mask(at, value) for name, value in values.items()})


def of(p, **fields):
    return p.model_copy(update=fields)


TURNS = [
    ("exbert", "On what floor", "P", of, {"encoder": "elsewhere"}),
    ("exbert", "What these records", "P", of, {"encoder": "elsewhere"}),
    (
        "exbert",
        "What reproduces",
        "claims",
        claimed,
        {"claim": "squad-plus-8", "verdict": "undecided"},
    ),
    ("exbert", "What reproduces", "claims", claimed, {"claim": "headline", "low": -0.1}),
    ("exbert", "What reproduces", "claims", claimed, {"claim": "headline", "high": 9.5}),
    (
        "exbert",
        "Points or percent",
        "claims",
        claimed,
        {"claim": "mixed-gain-relative", "low": -0.1},
    ),
    (
        "exbert",
        "Points or percent",
        "ledger",
        moved,
        {"by": 9, "variant": "v-db", "arm": "printed", "set": "squad"},
    ),
    (
        "exbert",
        "On what floor",
        "ledger",
        moved,
        {"by": 9, "variant": "v-db", "arm": "printed", "set": "squad"},
    ),
    (
        "exbert",
        "Why it gains",
        "ledger",
        moved,
        {"by": -3, "variant": "plain-tuned", "arm": "printed", "set": "bioasq"},
    ),
    (
        "exbert",
        "Why it gains",
        "trials",
        moved,
        {"by": -20, "column": "validation_em", "variant": "v-db-trial"},
    ),
    (
        "exbert",
        "Equal tuning",
        "ledger",
        moved,
        {"by": -20, "variant": "v-db", "arm": "tuned", "set": "squad"},
    ),
    (
        "exbert",
        "Equal tuning",
        "ledger",
        moved,
        {"by": 30, "variant": "exbert-tuned", "arm": "printed", "set": "bioasq"},
    ),
    ("exbert", "What the block adds", "plain", moved, {"by": -4, "column": "low", "n": 6}),
    (
        "exbert",
        "What the block adds",
        "plain",
        moved,
        {"by": -9, "column": "d", "domain": "bioasq"},
    ),
    (
        "exbert",
        "What the block adds",
        "ledger",
        moved,
        {"by": 2, "variant": "exbert-tuned", "arm": "tuned", "set": "bioasq"},
    ),
    (
        "exbert",
        "What the block adds",
        "ledger",
        moved,
        {"by": 9, "variant": "plain-tuned", "arm": "tuned", "ratio": 0.2},
    ),
    (
        "exbert",
        "Whether it takes experts",
        "ledger",
        moved,
        {"by": -9, "variant": "dense-compute", "arm": "tuned", "set": "squad"},
    ),
    (
        "exbert",
        "Whether it takes experts",
        "routing",
        moved,
        {"by": -0.4, "column": "dropped", "variant": "exbert-tuned"},
    ),
    (
        "exbert",
        "Whether it takes experts",
        "dense",
        moved,
        {"by": 9, "column": "low", "domain": "squad"},
    ),
    (
        "exbert",
        "Whether it takes experts",
        "dense",
        moved,
        {"by": 9, "column": "d", "domain": "bioasq"},
    ),
    ("exbert", "Length of answers", "claims", claimed, {"claim": "longer-answers", "high": 0.1}),
    (
        "exbert",
        "Length of answers",
        "claims",
        claimed,
        {"claim": "longer-answers", "arm": "tuned", "ours": 0.1},
    ),
    (
        "exbert",
        "Length of answers",
        "ledger",
        moved,
        {"by": -1, "variant": "plain-tuned", "metric": "tokens", "set": "bioasq"},
    ),
    ("exbert", "To someone", "plain", moved, {"by": 30, "column": "d", "domain": "squad"}),
]


@pytest.mark.parametrize("report", ["exbert"])
def test_every_paragraph_stands_on_the_committed_records(report, monkeypatch):
    assert "left out" not in said(report, monkeypatch) and "nan" not in said(report, monkeypatch)


@pytest.mark.parametrize(("report", "title", "which", "change", "how"), TURNS)
def test_a_paragraph_goes_with_the_records_that_bore_it_out(
    report, title, which, change, how, monkeypatch
):
    other = said(report, monkeypatch, **{which: change(inputs(report)[which], **how)})
    assert f"**{title}" in said(report, monkeypatch)
    assert f"**{title}" not in other
    assert "left out" in other


@pytest.mark.parametrize(
    ("seeds", "warning"),
    [
        ({}, ""),
        ({"reinit-dev": 2}, "Two seeds can refute a claim, not confirm one."),
        ({"moe-test": 1}, ""),  # not named
        ({"reinit-dev": 1}, "One seed: seen, not decided."),
        ({"reinit-dev": 0}, ""),
    ],
)  # not run: it makes nothing weaker
def test_a_result_warns_of_the_fewest_seeds_of_what_it_names(seeds, warning):
    claims = inputs("moe")["claims"]
    counts = {"moe-dev": 3, "moe-test": 3, "reinit-dev": 3} | seeds
    ran = claims["n"] > 0
    claims = claims.assign(n=claims["claim"].map(counts).fillna(0).where(ran, 0))
    result = findings.result("moe", claims)
    last = ("has not been run.", "(printed: 1.771 behind).")[seeds.get("reinit-dev") != 0]
    assert result.split(last)[1].strip() == warning
    assert ("four blocks started anew" in result) == (seeds.get("reinit-dev") != 0)


def test_a_result_leaves_out_what_was_not_run():
    claims = inputs("exbert")["claims"]
    assert re.fullmatch(
        r"Result: With equal tuning ExBERT \(final\) is .* behind V-DB, the plain span model, and "
        r".* ahead of its own encoder blocks without the expert layer\. At the report's settings "
        r"it is .* ahead of V-DB \(printed: 9 to 13 %\), and .* ahead of these blocks\.",
        findings.result("exbert", claims),
    )
    elsewhere = (claims["arm"] == "tuned") | (claims["comparison"] == "control")
    lacks = claims.assign(n=claims["n"].mask(elsewhere, 0))
    assert re.fullmatch(
        r"Result: At the report's settings ExBERT \(final\) is .* EM ahead of V-DB, the plain span "
        r"model \(printed: 9 to 13 %\)\.",
        findings.result("exbert", lacks),
    )


def test_a_gap_is_said_by_the_rule_under_which_it_was_printed():
    claims = inputs("moe")["claims"]
    text = findings.result("moe", claims)
    assert text.startswith("Result: At the report's settings, scored as in the report, the mixture")
    assert "is 7.0 [4.3, 9.6] EM behind one model of all the data" in text
    official = findings.result("moe", claims[claims["comparison"] != "starter"])
    assert (
        "At the report's settings the mixture of experts is 9.4 [6.5, 12.4] EM behind" in official
    )


def test_equal_tuning_is_said_first():
    claims = inputs("moe")["claims"]
    assert "; equal tuning has not been run." in findings.result("moe", claims)
    tuned = claims[claims["claim"] == "moe-dev"].assign(arm="tuned")
    given = pd.concat([claims[claims["arm"] == "printed"], tuned[tuned["n"] > 0]])
    assert findings.result("moe", given).startswith(
        "Result: With equal tuning the mixture is 7.0 [4.3, 9.6] EM behind one model. At the report"
    )
