"""What README.md and docs/claims.md say of the records on real data.

    python -m qa_lib overview --readme

The figure, the findings and the table of the README are made from the committed records, as on the
reports' pages; the verdicts of docs/claims.md are from the claims.csv of each page. All but the
figure are written between markers.
"""

from functools import partial

import pandas as pd

from qa_lib.evidence import verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.page import charts, looks, overview, report
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import ROOT
from qa_lib.store import runs

README = ROOT / "README.md"
CLAIMS = ROOT / "docs" / "claims.md"
FIGURE = ROOT / "docs" / "findings.svg"


def collect_boards() -> dict[tuple[str, str], pd.DataFrame]:
    """Return (report, profile) → the long table, of each report that was run on real data."""
    boards = {}
    for profile in overview.REAL:
        board = overview.select_run_reports(overview.collect_verdicts(profile))
        for slug, table in board.groupby("report"):
            boards[slug, profile] = table
    return boards


def latest_boards() -> dict[str, tuple[str, pd.DataFrame]]:
    """Return report → (profile, long table), of each report the profile nearest to its own."""
    return {slug: (profile, table) for (slug, profile), table in collect_boards().items()}


# ---- the figure ----


def measure_answers() -> pd.DataFrame:
    """Return what answers the question of each report, as overview.measure_answer does."""
    parts = [
        overview.measure_answer(slug, profile) for slug, (profile, _) in latest_boards().items()
    ]
    return pd.concat(parts, ignore_index=True)


def draw_figure() -> bytes:
    """Return the README's figure as SVG. The same numbers give the same bytes."""
    rows = measure_answers()
    report.require_runs("findings", rows[rows["n"] > 0])
    return looks.render_drawing(partial(charts.draw_reports, rows), looks.WIDE, "", "svg")


# ---- findings and table ----


def describe_findings() -> str:
    """Return what was found as Markdown: of each report that was run the answer of its page."""
    lines = []
    for slug, (profile, _) in latest_boards().items():
        title = plans.find_report(slug).TITLE
        page = f"figures/{slug}/{profile}/report.html"
        lines.append(f"- **[{title}]({page})**: {overview.describe_answer(slug, profile)}\n")
    return "".join(lines)


def describe_reports() -> str:
    """Return the table of the study's reports as Markdown: question, answer, seeds and rows."""
    lines = ["| report | question | answer | seeds × rows | page |\n", "|---|---|---|---|---|\n"]
    for row in overview.list_answers(latest_boards()).itertuples():
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
    "report",
    "says",
    "printed",
    "ours",
    "verdict",
    "equal tuning",
    "control",
    "training rows",
    "seeds",
)


def list_verdicts(slug: str, profile: str, table: pd.DataFrame) -> list[tuple[bool, str]]:
    """Return (is tested, Markdown row) of each tested or primary claim of a report."""
    tuned = verify.select(table, "tuned")
    beside = verify.select(table, comparison="control")
    lines = []
    for row in verify.select(table).itertuples():
        is_tested = row.verdict != Verdict.NOT_TESTED
        if not (row.primary or is_tested):
            continue
        control = "–"
        if row.claim in beside.index:
            control = verify.format_control(slug, beside.loc[row.claim], row)
        cells = (
            f"`{slug}` {profile}",
            row.says,
            verify.format_printed(row),
            verify.format_effect(row),
            verify.format_verdict(row),
            verify.format_arm(tuned.loc[row.claim]),
            control,
            row.rows or "–",
            f"{row.n or '–'}",
        )
        lines.append((is_tested, f"| {' | '.join(cells)} |\n"))
    return lines


def describe_verdicts() -> str:
    """Return the verdicts on real data as Markdown.

    Of each report that was run which verdicts hang on pooling, then counts, and the tested and the
    primary claims.
    """
    pooling, counts, lines = [], [], []
    done = set()
    for (slug, profile), table in collect_boards().items():
        done.add(slug)
        page = f"../figures/{slug}/{profile}/report.html"
        pooling.append(
            f"- **{slug}**, profile {profile}, [page]({page}): {verify.describe_pooling(table)}\n"
        )
        lines += list_verdicts(slug, profile, table)
        number = overview.count_by_report(overview.select_claims(table)).iloc[0]
        cells = [slug, f"{number['claims']}", *(f"{number[verdict]}" for verdict in Verdict)]
        counts.append(f"| {' | '.join(cells)} |\n")
    lines.sort(key=lambda line: not line[0])  # tested ones first, else in the reports' order
    rest = [f"`{slug}`" for slug in params.list_claimed_reports() if slug not in done]
    return (
        "".join(pooling)
        + f"\n| report | claims | {' | '.join(Verdict)} |\n|{'---|' * (len(Verdict) + 2)}\n"
        + "".join(counts)
        + "\nClaims that were tested, and the primary ones. In brackets the 95 % interval, which "
        "one seed does not give, and of several sets or metrics the one with the largest p. Behind "
        "“not reproduced” stands what it means. Control: what is left of the effect, at the "
        "report's settings, beside the model that could refute the claim. What to bear in mind "
        f"with each stands on its page.\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
        + "".join(line for _, line in lines)
        + (f"\nNot yet run on real data: {', '.join(rest)}.\n" if rest else "\n")
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


def write_readme():
    """Write the figure, and each part of README.md and docs/claims.md between its markers."""
    runs.write(FIGURE, draw_figure())
    for file, parts in PARTS.items():
        text = file.read_text(encoding="utf-8")
        for name, describe in parts.items():
            before, _, after = split_part(text, name)
            text = f"{before}<!-- {name} -->\n{describe()}<!-- /{name} -->\n{after}"
        runs.write(file, text)
