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
from qa_lib.page import findings
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
        if report == "exbert":  # its paragraphs are in params/findings/
            return {"claims": claims}
        experts = runs.collect_histories(
            [e for s in specs if s.variant == "moe" for e in s.parents]
        )
        return {
            "P": p,
            "scores": runs.collect_ledger(specs),
            "claims": claims,
            "experts": experts,
        }


def said(report: str, monkeypatch, **changed) -> str:
    given = inputs(report) | changed
    write = importlib.import_module(f"qa_lib.page.findings_{report}").write_findings
    return write(**given)


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
    ("moe", "What these records", "P", of, {"encoder": "elsewhere"}),
    (
        "moe",
        "What reproduces",
        "scores",
        moved,
        {"by": 20, "variant": "moe", "set": "out-of-domain"},
    ),
    (
        "moe",
        "Why the mixture",
        "scores",
        moved,
        {"by": 20, "variant": "oracle", "set": "out-of-domain"},
    ),
    (
        "moe",
        "Why the mixture",
        "scores",
        moved,
        {"by": 20, "variant": "own-expert", "set": "newsqa"},
    ),
    (
        "moe",
        "Why the mixture",
        "experts",
        moved,
        {"by": 90, "column": "validation_f1", "epoch": 1.0},
    ),
    (
        "moe",
        "Has the gate",
        "scores",
        moved,
        {"by": 5, "variant": "moe", "set": "out-of-domain-test"},
    ),
    (
        "moe",
        "Has the gate",
        "claims",
        claimed,
        {"claim": "gate-below-told", "verdict": "reproduced"},
    ),
    (
        "moe",
        "Starting blocks",
        "scores",
        moved,
        {"by": 20, "variant": "reinit-4", "set": "out-of-domain"},
    ),
    (
        "moe",
        "Starting blocks",
        "scores",
        moved,
        {"by": 20, "variant": "reload-4", "set": "out-of-domain"},
    ),
    (
        "moe",
        "To someone",
        "scores",
        moved,
        {"by": 20, "variant": "oracle", "set": "out-of-domain-test"},
    ),
]


@pytest.mark.parametrize("report", ["moe"])
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


def test_what_is_reproduced_is_said_only_while_it_is(monkeypatch):
    claims = claimed(inputs("moe")["claims"], "pooling-generalises", verdict="undecided")
    assert "Reproduced is" in said("moe", monkeypatch)
    assert "Reproduced is" not in said("moe", monkeypatch, claims=claims)
    claims = claimed(inputs("moe")["claims"], "both-hurt", verdict="undecided")
    assert "a mere direction" in said("moe", monkeypatch)
    assert "a mere direction" not in said("moe", monkeypatch, claims=claims)


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
