"""What the real records say of a report, in prose: paragraphs with numbers from the ledger.

The paragraphs of a report stand in findings_<slug>.py. A paragraph comes with the condition on the
records under which it is true; one that new records do not bear out leaves the page.
"""

import importlib
import importlib.util
from dataclasses import dataclass

import pandas as pd

from qa_lib.evidence import verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.own_data import advice
from qa_lib.page import report
from qa_lib.reports import plans
from qa_lib.store import runs

Paragraph = tuple[bool, str]  # whether the records bear it out, and the text


@dataclass(frozen=True)
class Central:
    """A comparison of two models that says what a report's idea is worth.

    model: the model of the idea. against: what it is compared with. claim: the claim that makes
    the comparison, by its id. comparison: `claim`, or `control`, as in the long table. is_behind:
    the claim says by how much the model is below the other.
    """

    model: str
    against: str
    claim: str
    comparison: str = "claim"
    is_behind: bool = False


def list_central(slug: str) -> tuple[Central, ...]:
    """Return a report's central comparisons, that which answers its question first."""
    module = f"qa_lib.page.findings_{slug}"
    if importlib.util.find_spec(module) is None:  # none are written yet
        return ()
    return importlib.import_module(module).CENTRAL


def select_central(central: Central, claims: pd.DataFrame, arm: str) -> pd.Series | None:
    """Return the row of a central comparison in one arm; None where no run has made it.

    ours, low and high say how far the model of the idea is ahead. Where the report was scored by
    the starter code's rule, so is this row. claims: of verify.claims_table.
    """
    comparisons = [central.comparison]
    if central.comparison == "claim":
        comparisons.insert(0, "starter")
    for comparison in comparisons:
        rows = verify.select(claims, arm, comparison)
        if central.claim in rows.index and rows.loc[central.claim, "n"]:
            row = rows.loc[central.claim].copy()
            if central.is_behind:
                row["ours"], row["low"], row["high"] = -row["ours"], -row["high"], -row["low"]
            return row
    return None


def say_lead(row: pd.Series) -> str:
    """Return "2.0 [1.0, 3.0] EM ahead of", or behind, from a row of `select_central`."""
    if row["ours"] >= 0:
        return f"{verify.format_effect(row)} ahead of"
    turned = row.copy()
    turned["ours"], turned["low"], turned["high"] = -row["ours"], -row["high"], -row["low"]
    return f"{verify.format_effect(turned)} behind"


def head(P) -> str:
    """Return the sentence of a page's head, where all runs are there.

    On own data it is the advice, on real data the result; then how the claims fare.
    """
    if not all(runs.find_record(spec) for spec in plans.plan(P)):
        return ""
    if P.profile == "own":
        return advice.describe_advice(P)
    claims = verify.claims_table(P)
    sentence = result(P.report, claims) if P.profile in ("real", "paper") else ""
    return f"{sentence} {verify.count_verdicts(claims)}".strip()


def result(slug: str, claims: pd.DataFrame) -> str:
    """Return what was found in two sentences; empty where no run has made the comparison.

    claims: of verify.claims_table.
    """
    module = f"qa_lib.page.findings_{slug}"
    if importlib.util.find_spec(module) is None:  # none are written yet
        return ""
    text, seeds = importlib.import_module(module).result(claims)
    if not text:
        return ""
    few = {1: " One seed: seen, not decided.", 2: " Two seeds can refute a claim, not confirm one."}
    return f"Result: {text}{few.get(seeds, '')}"


def join_paragraphs(paragraphs: list[Paragraph]) -> report.Markdown:
    """Return the paragraphs whose condition holds, and a note of how many were left out."""
    texts = [text for holds, text in paragraphs if holds]
    gone = len(paragraphs) - len(texts)
    if gone:
        texts.append(
            f"{gone} of {len(paragraphs)} paragraphs are left out: they were written of other "
            "records, which these do not bear out."
        )
    return report.Markdown("\n\n".join(texts))


def spread(x: pd.Series) -> str:
    """Return mean ± sd over seeds; of one seed without ±, of none "–"."""
    x = x.dropna()
    if not len(x):
        return "–"
    return f"{x.mean():.1f} ± {x.std():.1f}" if len(x) > 1 else f"{x.mean():.1f}"


def rate(x: float) -> str:
    """Return a rate as one would write it: 3e-5, not 3e-05."""
    return f"{x:g}".replace("e-0", "e-")


def state(P, claims: pd.DataFrame) -> str:
    """Return how far the records reach: seeds, and claims without a verdict."""
    rows = verify.select(claims)
    undecided = rows["verdict"] == Verdict.UNDECIDED
    untested = rows["verdict"] == Verdict.NOT_TESTED
    judged = rows[~undecided & ~untested]
    text = (
        f"{undecided.sum()} of {len(rows)} claims stay undecided, {untested.sum()} are not tested; "
        f"the {len(judged)} others rest on {judged['run'].nunique()} different sets of runs."
    )
    if P.fewest_seeds == 2:
        text += " Below three seeds a claim can be refuted, never confirmed."
    if len(P.seeds) == 1:
        text += " One seed gives no interval: what stands here is observed, not decided."
    return text
