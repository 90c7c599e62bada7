"""All reports on one page.

    python -m qa_lib overview --profile real     figures/index.html, from each report's page
    python -m qa_lib overview --profile quick    figures/index-quick.html

A report that has not been run at the profile is listed as such.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from qa_lib.evidence import claims, compare, verify
from qa_lib.evidence.verdicts import ENOUGH, Verdict
from qa_lib.page import charts, looks, markup, pieces, render, report, written
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs

REAL = ("real", "paper")  # the profiles with real data
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Page:
    """What report.py asks of a page's parameters."""

    profile: str
    report: str = "overview"
    size: str = ""

    @property
    def beside(self) -> str:
        """Where its tables lie, from figures/."""
        return f"overview/{self.profile}/"


def choose_page(names: dict) -> Page:
    """Return the page of a notebook's names.

    Raises UserError for a profile that does not exist, or that has no claims.
    """
    known = [profile for profile in params.PROFILES if profile != "own"]
    if names["profile"] not in known:
        raise UserError(
            f"profile: '{names['profile']}' has no page of all reports; known: {', '.join(known)}"
        )
    return Page(names["profile"])


def read_claims_table(slug: str, profile: str) -> pd.DataFrame | None:
    """Return a report's claims.csv at a profile, with training rows; None without one.

    Raises UserError where claims.csv and results.csv are of different runs.
    """
    file = runs.FIGURES / slug / profile / "claims.csv"
    if not file.exists():
        return None
    table = pd.read_csv(
        file,
        keep_default_na=False,
        na_values=dict.fromkeys(verify.NUMBERS, ""),
        dtype=dict.fromkeys(("where", "printed", "part", "rule_part", "run"), str),
    )
    table["run"] = [tuple(names.split()) for names in table["run"]]
    results = pd.read_csv(file.with_name("results.csv"), usecols=["run", "rows"])
    trained = results.drop_duplicates().set_index("run")["rows"]
    if not {run for names in table["run"] for run in names} <= set(trained.index):
        raise UserError(
            f"claims.csv and results.csv of {slug} are of different runs; make report-{slug} "
            f"PROFILE={profile} draws both from the records"
        )
    rows = []
    for names in table["run"]:
        numbers = sorted({trained[run].min() for run in names})
        rows.append(" to ".join(f"{number:,}" for number in numbers))
    return table.assign(rows=rows)


def list_untested(slug: str) -> pd.DataFrame:
    """Return the claims of a report that was not run, in the form of claims.csv."""
    rows = []
    for claim in claims.read_claims(slug):
        row = verify.describe_claim(claim) | {"arm": "printed", "comparison": "claim", "run": ()}
        row |= dict.fromkeys(verify.NUMBERS, math.nan)
        row |= {"part": "", "rule_part": "", "n": 0, "more": 0, "rows": ""}
        rows.append(row | {"verdict": str(Verdict.NOT_TESTED), "reason": "not run at this profile"})
    return pd.DataFrame(rows)


def collect_verdicts(profile: str) -> pd.DataFrame:
    """Return the long table (verify.claims_table) of every report, with its slug and training rows.

    A report that was not run at the profile has its claims at the report's settings, not tested.
    """
    parts = []
    for slug in params.list_claimed_reports():
        table = read_claims_table(slug, profile)
        if table is None:
            table = list_untested(slug)
        parts.append(table.assign(report=slug))
    return pd.concat(parts, ignore_index=True)


def select_claims(board: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the claims themselves at the report's settings."""
    return board[(board["arm"] == "printed") & (board["comparison"] == "claim")]


def select_run_reports(board: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the reports that were run."""
    ran = board["report"][board["run"].map(len) > 0]
    return board[board["report"].isin(ran)]


def page_links(profile: str) -> dict[str, str]:
    """Return report → the address of its page, where it has one, as index.html names it."""
    links = {}
    for slug in params.list_claimed_reports():
        if (runs.FIGURES / slug / profile / "report.html").exists():
            links[slug] = f"{slug}/{profile}/report.html"
    return links


# ---- the answers ----


def load_page(slug: str, profile: str) -> Any:
    """Return the parameters of a report's page: of the largest size that is recorded whole.

    Where none is, they are those of the smallest.
    """
    sizes = plans.list_sizes(profile)
    return plans.find_recorded(sizes, lambda size: plans.load_params(slug, profile, size=size))


def measure_answer(slug: str, profile: str) -> pd.DataFrame:
    """Return the rows of compare.collect_comparisons for what answers a report's question.

    That is the first comparison that the report declares, with the control that its claim names.
    The column `report` has the report's slug, and has_control says whether the claim names one.
    """
    first = replace(plans.find_report(slug).COMPARISONS[0], controls=())
    P = load_page(slug, profile)
    has_control = compare.find_claim(P, first.claim).control is not None
    rows = compare.collect_comparisons(P, (first,))
    return rows.assign(report=slug, has_control=has_control)


def describe_answer(slug: str, profile: str) -> str:
    """Return the finding of a report's page, in one line."""
    P = load_page(slug, profile)
    if not all(runs.find_record(spec) for spec in plans.plan(P)):
        return "the page is of other parameters than params/ has; the numbers stand there."
    found = written.read_findings(slug)
    if not written.is_written_of(P, found):
        return "the findings of these runs are not written yet; the page has the numbers."
    answer = written.fill_answer(P, found)
    if answer is None:
        return "the findings do not hold any more for these records; the page has the numbers."
    return " ".join(answer.finding.split())


def answer_question(rows: pd.DataFrame) -> tuple[str, pd.Series | None]:
    """Return the answer to a report's question, and the row that it is of, where one was run.

    It is that of the first comparison, with equal tuning where that was run. Beside a gain stands
    whether the claim's control gains more, or may gain as much, or was not run. rows: those of the
    report in `measure_answer`.
    """
    measured = rows[rows["n"] > 0]
    ours = measured[measured["control"] == ""].set_index("setting")
    for setting, name in (("equal", "equal tuning"), ("report", "report's settings")):
        if setting not in ours.index:
            continue
        row = ours.loc[setting]
        if row["low"] > 0 and row["n"] >= ENOUGH:
            of_controls = measured[(measured["control"] != "") & (measured["setting"] == setting)]
            if row["has_control"] and of_controls.empty:
                return f"yes, but its control was not run ({name})", row
            if (of_controls["high"] < 0).any():
                return f"yes, but a control gains more ({name})", row
            if not (of_controls["low"] > 0).all():
                return f"yes, but a control may gain as much ({name})", row
            return f"yes ({name})", row
        if row["high"] < 0:
            return f"no ({name})", row
        few = {1: "one seed", 2: "two seeds"}
        return f"undecided ({few.get(row['n'], name)})", row
    return NOT_RUN, None


def list_answers(boards: dict[str, tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Return a row for each report of the study: what it asks, and what the runs answer.

    Columns: report, title, url (empty where it has none), authors, question, answer, trained (seeds
    × training rows), profile, run. boards: report → its profile and long table, where it was run.
    """
    citation, _ = params.read_yaml(ROOT / "CITATION.cff")
    references = {reference["abbreviation"]: reference for reference in citation["references"]}
    rows = []
    for slug in params.list_claimed_reports():
        if slug not in references:
            raise UserError(
                f"CITATION.cff has no reference with abbreviation: {slug}; add it, with the "
                "report's question as notes"
            )
        reference = references[slug]
        answer, row, profile, trained = NOT_RUN, None, "", "–"
        if slug in boards:
            profile, table = boards[slug]
            answer, row = answer_question(measure_answer(slug, profile))
        if row is not None:
            is_row = [names == row["run"] for names in table["run"]]
            if not any(is_row):
                raise UserError(
                    f"the page of {slug} is of other parameters than params/ has; make "
                    f"report-{slug} PROFILE={profile} draws it by these"
                )
            trained = f"{row['n']} × {table.loc[is_row, 'rows'].iloc[0]}"
        rows.append(
            {
                "report": slug,
                "title": reference["title"].split(":")[0],
                "url": reference.get("url", ""),
                "authors": ", ".join(author["family-names"] for author in reference["authors"]),
                "question": reference["notes"],
                "answer": answer,
                "trained": trained,
                "profile": profile,
                "run": () if row is None else row["run"],
            }
        )
    return pd.DataFrame(rows)


def show_answers(P: Page) -> report.Html:
    """Return what was found: of each report a sentence or two, or what makes its page."""
    links = page_links(P.profile)
    items = []
    for slug in params.list_claimed_reports():
        title = plans.find_report(slug).TITLE
        if slug in links:
            text = pieces.show_inline(describe_answer(slug, P.profile))
            items.append(f'<li><a href="{links[slug]}">{title}</a>: {text}</li>')
        else:
            make = f"make reproduce-{slug} PROFILE={P.profile}"
            items.append(f"<li>{title}: no page at this profile yet; {make} makes it.</li>")
    return report.Html(f"<ul>{''.join(items)}</ul>")


def figure_answers(P: Page, boards: dict[str, tuple[str, pd.DataFrame]]) -> report.Html:
    """Return the figure of what answers each report's question, with 95 % intervals."""
    if not boards:
        return report.note_absent("any report")
    rows = pd.concat([measure_answer(slug, P.profile) for slug in boards], ignore_index=True)
    made = rows[rows["n"] > 0]
    caption = (
        "The comparison that answers each report's question, in points of EM; SMART's in points of "
        "accuracy. MoE is scored as in its report. Hollow: printed. Squares: against a control, a "
        "simpler model that could do as well. Bars: 95 % intervals."
    )
    alt = charts.describe_values(made, has_unit=False)
    draw = partial(charts.draw_reports, rows)
    return looks.save_drawing(P, "fig_answers", draw, caption, alt, made)


def table_answers(P: Page, boards: dict[str, tuple[str, pd.DataFrame]]) -> report.Html:
    """Return the table of the study's reports: question, answer, seeds and rows, and the page."""
    frame = list_answers(boards)
    shown = pd.DataFrame(
        {
            "report": frame["report"],
            "title and authors": frame["title"] + ", " + frame["authors"],
            "question": frame["question"],
            "ours": frame["answer"].where(frame["run"].map(len) > 0, "–"),
            "seeds × rows": frame["trained"],
            "run": frame["run"],
        }
    )
    caption = "The reports. ours: the answer, by the comparison of the figure."
    return report.save_table(P, "table_answers", shown, caption, links=page_links(P.profile))


# ---- what was learnt ----

LESSONS = "lessons"  # the section of params/findings/overview.md


def load_pages(boards: dict[str, tuple[str, pd.DataFrame]]) -> dict[str, Any]:
    """Return report → the parameters of its page."""
    return {slug: load_page(slug, profile) for slug, (profile, _) in boards.items()}


def hash_pages(pages: dict[str, Any]) -> str:
    """Return a hash over the runs of all pages, in 16 hexadecimal digits."""
    return written.join_hashes([written.hash_runs(P) for P in pages.values()])


def collect_lesson_names(pages: dict[str, Any]) -> dict[str, SimpleNamespace]:
    """Return report → the names of its findings, so that a lesson may say `moe.mean(…)`."""
    return {slug: SimpleNamespace(**written.collect_names(P)) for slug, P in pages.items()}


def show_lessons(P: Page, boards: dict[str, tuple[str, pd.DataFrame]]) -> report.Html:
    """Return what was learnt across the reports, with its numbers.

    Where it was written of other runs than those of the pages, a note stands in its place.
    """
    pages = load_pages(boards)
    found = written.read_findings(P.report)
    if not pages or found is None or found.runs != hash_pages(pages):
        return report.note_absent("what was learnt across the reports")
    names = collect_lesson_names(pages)
    texts = written.fill_paragraphs(found, LESSONS, names)
    return report.Html(markup.markdown("\n\n".join(texts)))


# ---- claims and costs ----


def select_boards(board: pd.DataFrame, profile: str) -> dict[str, tuple[str, pd.DataFrame]]:
    """Return report → profile and long table, of the reports that were run on real data."""
    if profile not in REAL:
        return {}
    by_report = select_run_reports(board).groupby("report")
    return {slug: (profile, table) for slug, table in by_report}


def count_by_stance(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how many claims got which verdict, a row for each report and stance that it has."""
    counts = []
    for slug, of_report in rows.groupby("report"):
        behind = dict.fromkeys(run for names in of_report["run"] for run in names)
        for stance in claims.STANCES:
            of_stance = of_report[of_report["stance"] == stance]
            if of_stance.empty:
                continue
            number = of_stance["verdict"].value_counts()
            counts.append(
                {"report": slug, "stance": stance}
                | {str(verdict): int(number.get(verdict, 0)) for verdict in Verdict}
                | {"claims": len(of_stance), "run": tuple(behind)}
            )
    return pd.DataFrame(counts)


def collect_costs(profile: str) -> pd.DataFrame:
    """Return runs, hours of work and devices of the reports that were run at the profile."""
    rows = []
    for slug in params.list_reports():
        own = [record for record in runs.read_all(slug) if record["spec"]["profile"] == profile]
        if not own:
            continue
        devices = sorted({record["environment"]["device"] for record in own})
        rows.append(
            {
                "report": slug,
                "runs recorded": len(own),
                "hours of work": sum(record["seconds"] for record in own) / 3600,
                "devices": ", ".join(devices),
                "run": tuple(record["run"] for record in own),
            }
        )
    return pd.DataFrame(rows)


def name_page(profile: str) -> str:
    """Return the name of a profile's page: that of the results on real data is index.html."""
    return "index.html" if profile == "real" else f"index-{profile}.html"


def write_page(profile: str) -> Path:
    """Draw the page of a profile, from each report's page and claims.csv at that profile."""
    runs.check_writable(runs.FIGURES, "QA_FIGURES")
    p = choose_page({"profile": profile})
    name = "00_overview.ipynb"
    nb = render.load_notebook_node(str(ROOT / "notebooks" / name))
    nb = render.execute(nb, name, {"profile": p.profile})
    page = runs.FIGURES / name_page(p.profile)
    runs.write(page, render.export_page(nb, p))
    return page
