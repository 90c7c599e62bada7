"""What README.md and docs/claims.md say of the records on real data.

    python -m qa_lib overview --readme

The README tells of profile real alone. Its figure, findings and table are made from the records, as
on the reports' pages. The verdicts of docs/claims.md are from the claims.csv of each page, of
profile real and of profile paper apart. All runs are landed ones, in records/; a page of others is
refused. All but the figure are written between markers.
"""

import math
from functools import partial
from itertools import chain

import pandas as pd

from qa_lib.evidence import power, verify
from qa_lib.evidence.verdicts import Meaning, Verdict
from qa_lib.page import charts, looks, overview, report
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs

README = ROOT / "README.md"
CLAIMS = ROOT / "docs" / "claims.md"
FIGURE = ROOT / "docs" / "findings.svg"
PROFILE = "real"  # the README's; a page at paper, of one report or of some, does not replace it


def collect_boards() -> dict[tuple[str, str], pd.DataFrame]:
    """Return (report, profile) → the long table, of each report that was run on real data."""
    boards = {}
    for profile in overview.REAL:
        board = overview.select_run_reports(overview.collect_verdicts(profile))
        for slug, table in board.groupby("report"):
            boards[slug, profile] = table
    return boards


def readme_boards() -> dict[str, tuple[str, pd.DataFrame]]:
    """Return report → (profile, long table), of each report that the README tells of."""
    boards = {}
    for (slug, profile), table in collect_boards().items():
        if profile == PROFILE:
            boards[slug] = (profile, table)
    return boards


# ---- the figure ----


def measure_answers() -> pd.DataFrame:
    """Return what answers the question of each report, as overview.measure_answer does."""
    parts = [
        overview.measure_answer(slug, profile) for slug, (profile, _) in readme_boards().items()
    ]
    return pd.concat(parts, ignore_index=True)


def draw_figure() -> bytes:
    """Return the README's figure as SVG. The same numbers give the same bytes."""
    rows = measure_answers()
    report.require_runs("findings", rows[rows["n"] > 0])
    with looks.drawn(partial(charts.draw_reports, rows), looks.WIDE, "") as fig:
        return looks.format_svg(fig)


# ---- findings and table ----


def describe_findings() -> str:
    """Return what was found as Markdown: of each report that was run the answer of its page.

    The last line counts the verdicts on each report's results, its claims but for hopes and
    explanations, and effects larger than printed.
    """
    lines, verdicts, larger = [], {}, []
    for slug, (profile, table) in readme_boards().items():
        title = plans.find_report(slug).TITLE
        page = f"figures/{slug}/{profile}/report.html"
        lines.append(f"- **[{title}]({page})**: {overview.describe_answer(slug, profile)}\n")
        judged = verify.select(table)
        judged = judged[judged["stance"] == "result"]
        verdicts[slug] = judged["verdict"]
        number = (judged["reason"] == Meaning.LARGER).sum()
        if number:
            larger.append(f"{number} (`{slug}`)")
    seen = set().union(*verdicts.values())
    words = [word for word in Verdict if word in seen]
    counts = []
    for slug, of_report in verdicts.items():
        numbers = [f"{(of_report == word).sum()}" for word in words]
        counts.append(f"{'/'.join(numbers)} (`{slug}`)")
    more = f" Not reproduced, as larger than printed: {', '.join(larger)}." if larger else ""
    return "".join([*lines, f"\nResults {'/'.join(words)}: {', '.join(counts)}.{more}\n"])


def describe_reports() -> str:
    """Return the table of the study's reports as Markdown: question, answer, seeds and rows."""
    columns = ("report", "question", "answer", "seeds × training rows", "page")
    lines = [f"| {' | '.join(columns)} |\n", f"|{'---|' * len(columns)}\n"]
    for row in overview.list_answers(readme_boards()).itertuples():
        page = "–"
        if row.run:
            page = f"[{row.report}](figures/{row.report}/{row.profile}/report.html)"
        title = f"[{row.title}]({row.url})" if row.url else row.title
        lines.append(
            f"| {title}, {row.authors} | {row.question} | {row.answer} | {row.trained} | {page} |\n"
        )
    return "".join(lines)


# ---- verdicts ----

COLUMNS = (
    "where",
    "stance",
    "says",
    "printed",
    "ours",
    "equal tuning",
    "control",
    "verdict",
    "could decide it",
    "training rows",
    "seeds",
)


def describe_decision(row: pd.Series) -> str:
    """Return what could ever decide a claim, from its row of the power table."""
    for name, questions in (
        ("seeds, the report's questions", "the report's questions"),
        ("seeds, endless questions", "many more questions"),
    ):
        if row[name] < math.inf:
            return f"{row[name]:.0f} seeds, {questions}"
    return "no number of seeds"


def list_verdicts(slug: str, table: pd.DataFrame) -> list[str]:
    """Return a Markdown row for each claim of a report, in the report's order."""
    tuned = verify.select(table, "tuned")
    beside = verify.select(table, comparison="control")
    decisions = power.power_table(slug).set_index("claim").apply(describe_decision, axis=1)
    lines = []
    for row in verify.select(table).itertuples():
        control = "–"
        if row.claim in beside.index:
            control = verify.format_control(slug, beside.loc[row.claim], row)
        equal = "–"
        if row.claim in tuned.index:
            equal = verify.format_arm(tuned.loc[row.claim])
        cells = (
            f"{row.where}; primary" if row.primary else row.where,
            row.stance,
            row.says,
            verify.format_printed(row),
            verify.format_effect(row),
            equal,
            control,
            verify.format_verdict(row, with_reason=True),
            decisions.get(row.claim, "–"),
            row.rows or "–",
            f"{row.n or '–'}",
        )
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |\n")
    return lines


def describe_verdicts() -> str:
    """Return the verdicts on real data as Markdown: counts, and every claim of every report."""
    boards = collect_boards()
    counts, parts = [], []
    for slug in params.list_claimed_reports():
        tables = {profile: table for (of, profile), table in boards.items() if of == slug}
        if not tables:
            tables[""] = overview.list_untested(slug).assign(report=slug)
        for profile, table in tables.items():
            for row in overview.count_by_stance(overview.select_claims(table)).to_dict("records"):
                numbers = [f"{row[verdict]}" for verdict in Verdict]
                cells = [slug, f"{row['stance']}s", f"{row['claims']}", *numbers]
                counts.append(f"| {' | '.join(cells)} |\n")
            told = "Not yet run on real data."
            if profile:
                page = f"../figures/{slug}/{profile}/report.html"
                told = f"Profile {profile}, [page]({page}). {verify.describe_pooling(table)}"
            parts.append(f"\n### {plans.find_report(slug).TITLE} (`{slug}`)\n\n{told}\n\n")
            parts.append(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n")
            parts += list_verdicts(slug, table)
    return (
        f"| report | stance | claims | {' | '.join(Verdict)} |\n|{'---|' * (len(Verdict) + 3)}\n"
        + "".join(counts)
        + "\nPositive is as the claim says, so a claim of a loss has a positive number. MoE's "
        "scores are by SQuAD's scoring here; its page and the README's figure also have the "
        "report's. "
        "In brackets stands the 95 % interval, which one seed gives only where other comparisons "
        "of its kind have more, and of several "
        "sets or metrics the one with the largest p. Behind “not reproduced” stands what it means. "
        "Control: what is left of the effect, at the report's settings, beside the model that "
        "could refute the claim. What could decide a claim is computed before any run, from the "
        "printed effect and the usual spread of seeds and questions, for one part of it and "
        "without Holm's method (`make power`); – is a claim that is not about scores. What to bear "
        "in mind with each claim stands on its page.\n" + "".join(parts)
    )


# ---- files ----

# File → the name of each part between markers, and what writes it.
PARTS = {
    README: {"findings": describe_findings, "reports": describe_reports},
    CLAIMS: {"verdicts": describe_verdicts},
}


def split_part(text: str, name: str) -> tuple[str, str, str]:
    """Return a text before a part's markers, between them, and behind them."""
    before, rest = text.split(f"<!-- {name} -->\n")
    inside, after = rest.split(f"<!-- /{name} -->\n")
    return before, inside, after


def check_landed():
    """Raise UserError where a page, or what answers a report's question, is of a run not landed."""
    for (slug, profile), table in collect_boards().items():
        named = list(table["run"])
        if profile == PROFILE:
            named += list(overview.measure_answer(slug, profile)["run"])
        landed = {record["run"] for record in runs.read_committed(slug).values()}
        for run in chain.from_iterable(named):
            if run not in landed:
                raise UserError(
                    f"{run}, of the page of {slug} at profile {profile}, is not in records/{slug}, "
                    "and README.md and docs/ tell of landed runs alone; land it with make "
                    f"land-{slug} PROFILE={profile}, or remove figures/{slug}/{profile} or the run"
                )


def write_readme():
    """Write the figure, and each part of README.md and docs/claims.md between its markers.

    Raises UserError where a run that they would tell of is not landed.
    """
    check_landed()
    runs.write(FIGURE, draw_figure())
    for file, parts in PARTS.items():
        text = file.read_text(encoding="utf-8")
        for name, describe in parts.items():
            before, _, after = split_part(text, name)
            text = f"{before}<!-- {name} -->\n{describe()}<!-- /{name} -->\n{after}"
        runs.write(file, text)
