"""The verdicts of a report as a page shows them: by the models that a claim compares."""

import re
from html import escape

import numpy as np
import pandas as pd

from qa_lib.evidence import claims, compare, verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.page import report
from qa_lib.reports import plans

# Verdict → its class in page.css.
CLASSES = {
    Verdict.REPRODUCED: "yes",
    Verdict.SMALLER: "partly",
    Verdict.NOT_REPRODUCED: "no",
    Verdict.UNDECIDED: "open",
    Verdict.NOT_TESTED: "open",
}
STANCES = {
    "result": "What the report states as a result",
    "hope": "What it hopes",
    "explanation": "How it explains its results",
}
LEGEND = (
    "A claim stands under the models that it compares. Behind “not reproduced” stands what it "
    "means: the effect is less than half of what is printed, in the direction but below it, below "
    "it with the direction open, larger, or opposite; where no size is printed, too small to "
    "count; of an equality, different. “Undecided” says what is missing. In brackets stands the "
    "95 % interval, of several parts that of the one shown."
)
MARK = "†"


def name_sides(P, claim: claims.Claim) -> str:
    """Return the models that a claim compares: "ExBERT (final) against V-DB".

    Of two differences it says where the first is, and where the other: "ROaD against Plain, on
    NewsQA more than on SQuAD"; or of which other model.
    """
    if claim.contrast is None:
        return ""
    sides = claim.contrast.sides()
    ours, *others = [name_models(P, side) for side in sides]
    if not others:
        return f"{ours}, by itself"
    if others[0] == ours:
        return f"{ours}, against itself"
    pair = f"{ours} against {others[0]}"
    if not claim.contrast.beyond:
        return pair
    if others[1:] == [ours, others[0]]:
        first = name_place(P, sides[0], sides[2])
        second = name_place(P, sides[2], sides[0])
        return f"{pair}, {first} more than {second}"
    return f"{pair}, more than {' against '.join(dict.fromkeys(others[1:]))}"


def name_place(P, side: dict, other: dict) -> str:
    """Return the test sets and the mixtures of one side of a contrast, where the other has others.

    Their difference is what a claim about two differences is about.
    """
    places = []
    if side.get("ratio") != other.get("ratio"):
        places.append(f"at {', '.join(map(plans.name_mixture, np.ravel(side['ratio'])))}")
    if side["set"] != other["set"]:
        sets = [verify.name_set(P, test_set) for test_set in np.ravel(side["set"])]
        places.append(f"on {' and '.join(sets)}")
    return " ".join(places)


def name_models(P, side: dict) -> str:
    """Return the models of one side of a contrast; of many the first, and how many more."""
    names = []
    for variant in np.ravel(side["variant"]):
        names.append(plans.display_name(P.report, str(variant)))
    first, *others = dict.fromkeys(names)
    if len(others) > 1:
        return f"{first} and {len(others)} more"
    return " and ".join([first, *others])


def show_verdict(row) -> str:
    """Return a verdict as HTML: the word in its colour, then what it means, or why."""
    word = f'<span class="verdict {CLASSES[Verdict(row.verdict)]}">{escape(row.verdict)}</span>'
    if row.unpooled and row.unpooled != row.verdict:
        word += MARK
    if not row.reason or row.verdict == Verdict.NOT_TESTED:
        return word
    reason = verify.format_verdict(row).removeprefix(f"{row.verdict}: ")
    return f"{word}: {escape(reason)}"


def show_arm(name: str, row) -> str:
    """Return what an arm says of a claim, as HTML; empty where no run has made the comparison."""
    if row is None or not row.n:
        return ""
    return f"{name} {escape(verify.format_effect(row))} {show_verdict(row)}"


def show_starter(arm: str, row, starter: pd.DataFrame) -> str:
    """Return a claim's value by the rule under which the report was scored; empty without one.

    starter: the rows of an arm by the starter code's rule, by claim.
    """
    if row.claim not in starter.index:
        return ""
    return f"{arm}scored as in the report {escape(verify.format_effect(starter.loc[row.claim]))}"


def show_claim(P, row, tables: dict[str, pd.DataFrame]) -> str:
    """Return a claim as HTML: what it says; printed, ours in both arms, and what a control leaves.

    tables: arm or comparison → its rows by claim, and `tested` → those of verify.select_tested.
    """
    values = [f"printed {escape(verify.format_printed(row))}" if row.printed != "–" else ""]
    by_starter = show_starter("", row, tables["starter"])
    rule = ", SQuAD's scoring" if by_starter else ""  # verdicts are always by this one
    values.append(by_starter)
    values.append(show_arm(f"report's settings{rule}", row))
    tuned = tables["tuned"]
    if row.claim in tuned.index:
        values.append(show_starter("equal tuning, ", row, tables["starter tuned"]))
        values.append(show_arm(f"equal tuning{rule}", tuned.loc[row.claim]))
    for arm, words in (("printed", ""), ("tuned", "equal tuning: ")):
        beside = tables[f"control {arm}"]
        if row.claim in beside.index and beside.loc[row.claim, "n"]:
            of_claim = row if arm == "printed" else tuned.loc[row.claim]
            control = verify.format_control(P.report, beside.loc[row.claim], of_claim)
            values.append(escape(f"{words}against {control}"))
    line = "; ".join(filter(None, values))
    primary = ", primary" if row.primary else ""
    says = f"{escape(row.says)} ({escape(row.where)}{primary})"
    return f"<li><p>{says}</p><p>{line}</p></li>"


def show_group(P, heading: str, rows: list, tables: dict[str, pd.DataFrame]) -> str:
    """Return the claims about the same models, of which one is shown.

    It is a primary one, if any, or else what the page's first figure leads with.
    """
    first, *others = sorted(rows, key=lambda r: (not r.primary, not is_of_first_figure(P, r)))
    text = f"<h4>{escape(heading)}</h4><ul>{show_claim(P, first, tables)}</ul>"
    if not others:
        return text
    folded = "".join(show_claim(P, row, tables) for row in others)
    summary = f"{len(others)} more of the same models: {count_each_verdict(others, tables)}"
    return f"{text}{fold_items(summary, folded)}"


def is_of_first_figure(P, row) -> bool:
    """Return whether a claim is what the page's first figure leads with."""
    return row.claim == plans.find_report(P.report).COMPARISONS[0].claim


def count_each_verdict(rows: list, tables: dict[str, pd.DataFrame]) -> str:
    """Return how many claims have each verdict: "2 reproduced, 1 undecided"."""
    tested = tables["tested"]
    verdicts = [tested.loc[row.claim, "verdict"] for row in rows]
    counts = pd.Series(verdicts, dtype=object).value_counts()
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if verdict in counts)


def show_stance(P, name: str, of_stance: dict[str, list], tables: dict[str, pd.DataFrame]) -> str:
    """Return the groups of one stance.

    Those that have neither a primary claim nor what the page's first figure leads with are folded
    together.

    name: what the stance is called. of_stance: heading → the claims below it. Where all are folded
    the name stands in the summary, since paper shows no fold.
    """
    shown = []
    folded = []
    rows_folded = []
    for heading, rows in of_stance.items():
        group = show_group(P, heading, rows, tables)
        if any(row.primary or is_of_first_figure(P, row) for row in rows):
            shown.append(group)
        else:
            folded.append(group)
            rows_folded += rows
    title = f"<strong>{name}</strong>"
    text = f"<p>{title}</p>{''.join(shown)}" if shown else ""
    if not folded:
        return text
    counts = escape(count_each_verdict(rows_folded, tables))
    claim = "claim" if len(rows_folded) == 1 else "claims"
    summary = f"{len(rows_folded)} more {claim}: {counts}" if shown else f"{title}: {counts}"
    return f"{text}<details><summary>{summary}</summary>{''.join(folded)}</details>"


def fold_items(summary: str, items: str) -> str:
    """Return items of a list, folded under a summary."""
    return f"<details><summary>{escape(summary)}</summary><ul>{items}</ul></details>"


def show_remarks(rows: list) -> str:
    """Return what is to be borne in mind with claims, folded; empty where there is nothing."""
    items = []
    for row in rows:
        if row.confound:
            remark = f"<p>{escape(row.says)}</p><p>{escape(row.confound)}</p>"
            items.append(f"<li>{remark}</li>")
    return fold_items("What to bear in mind with these claims", "".join(items)) if items else ""


def show_untested(rows: list) -> str:
    """Return the claims that are not tested and why, folded; empty where there are none."""
    if not rows:
        return ""
    items = []
    for row in rows:
        items.append(f"<li><p>{escape(row.says)}</p><p>{escape(row.reason)}</p></li>")
    number = "1 claim is" if len(rows) == 1 else f"{len(rows)} claims are"
    return fold_items(f"{number} not tested: why", "".join(items))


def describe_mark(table: pd.DataFrame) -> str:
    """Return what the mark behind a verdict means, where a verdict has one."""
    if not (table["unpooled"] != table["verdict"]).any():
        return ""
    return (
        f"{MARK}: another verdict with the variance of the comparison's own seeds alone, none "
        "pooled (docs/claims.md)."
    )


def show_groups(P, table: pd.DataFrame) -> report.Html:
    """Return the verdicts of a report: counts, groups of each stance, and what is not tested.

    table: of verify.claims_table.
    """
    listed = {claim.id: claim for claim in claims.read_claims(P.report, P.mixtures)}
    by_starter = compare.measure_by_starter(P, table)
    tables = {
        "tested": verify.select_tested(table),
        "tuned": verify.select(table, "tuned"),
        "starter": verify.select(by_starter, comparison="starter"),
        "starter tuned": verify.select(by_starter, "tuned", "starter"),
        "control printed": verify.select(table, comparison="control"),
        "control tuned": verify.select(table, "tuned", "control"),
    }
    parts = []
    untested = []
    groups: dict[str, dict[str, list]] = {stance: {} for stance in STANCES}
    for row in verify.select(table).itertuples():
        if tables["tested"].loc[row.claim, "verdict"] == Verdict.NOT_TESTED:
            untested.append(row)
            continue
        heading = name_sides(P, listed[row.claim])
        groups[row.stance].setdefault(heading, []).append(row)
    tested = []
    for stance, of_stance in groups.items():
        if of_stance:
            parts.append(show_stance(P, STANCES[stance], of_stance, tables))
        for rows in of_stance.values():
            tested += rows
    of_claims = table[table["comparison"] == "claim"]  # in both arms, as they are shown
    legend = escape(f"{LEGEND} {describe_mark(of_claims)}".strip())
    counts = f"{verify.count_verdicts(table)} {verify.describe_changes(P.report)}".strip()
    text = (
        f"<p>{escape(counts)}</p>"
        f"<details><summary>How to read the verdicts</summary><p>{legend}</p></details>"
        f"{''.join(parts)}{show_remarks(tested)}{show_untested(untested)}"
    )
    # A hyphen before a digit is a minus.
    text = re.sub(r"(?<=[\s\[])-(?=\d)", "−", text)
    return report.Html(f'<div class="verdicts">{text}</div>')
