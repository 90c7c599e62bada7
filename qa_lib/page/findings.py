"""What the real records say of a report, in prose: paragraphs with numbers from the ledger.

The paragraphs of a report stand in findings_<slug>.py. A paragraph comes with the condition on the
records under which it is true; one that new records do not bear out leaves the page.
"""

import importlib
import importlib.util

import pandas as pd

from qa_lib.evidence import verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.own_data import advice
from qa_lib.page import report
from qa_lib.reports import plans
from qa_lib.store import runs

Paragraph = tuple[bool, str]  # whether the records bear it out, and the text


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
    """Return a report's central comparison in two sentences; empty where no run has made it.

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
