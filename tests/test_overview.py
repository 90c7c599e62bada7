"""The page about all reports."""

import argparse
import math
import re
import shutil

import bs4
import nbformat
import pandas as pd
import pytest
from test_house import make

from qa_lib.__main__ import run_verb
from qa_lib.evidence import claims, verify
from qa_lib.page import overview, readme, render, report, written
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs


@pytest.mark.parametrize("report", sorted(f.parent.name for f in runs.RECORDS.glob("*/runs.jsonl")))
def test_the_committed_ledger_is_what_the_records_say(report, monkeypatch):
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    p = plans.parameters_to_render(
        argparse.Namespace(report=report, profile="real", size=None, data=None, p=[])
    )
    assert (runs.page_folder(p) / "results.csv").exists(), (
        f"make train-{report} PROFILE=real writes it"
    )
    assert verify.find_disagreement(p) == "", f"make train-{report} PROFILE=real writes it"


def test_every_claim_of_every_report_is_on_the_board(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    frame = overview.collect_verdicts("real")
    assert list(zip(frame["report"], frame["claim"], strict=True)) == [
        (s, c.id) for s in params.list_claimed_reports() for c in claims.read_claims(s)
    ]
    assert set(frame["verdict"]) == {"not tested"}
    assert not frame["run"].map(len).any()


def test_what_a_report_found_stands_on_the_board(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    listed = claims.read_claims("moe")
    folder = tmp_path / "moe" / "real"
    folder.mkdir(parents=True)
    table = overview.list_untested("moe").drop(columns="rows")
    table = table.assign(control="", unpooled=table["verdict"])
    first = {"ours": 2.0, "low": 1.0, "high": 3.0, "n": 3, "run": "a b"}
    first |= {"verdict": "reproduced", "unpooled": "reproduced", "reason": ""}
    table["run"] = ""
    for column, value in first.items():
        table.loc[0, column] = value
    both = pd.concat([table, table.assign(arm="tuned", verdict="not tested", run="")])
    both.to_csv(folder / "claims.csv", index=False)
    trained = pd.DataFrame({"run": ["a", "a", "b"], "rows": [3000, 3000, 1000]})
    trained.to_csv(folder / "results.csv", index=False)
    frame = overview.select_claims(overview.collect_verdicts("real"))
    frame = frame[frame["report"] == "moe"]
    count = overview.count_by_stance(frame).groupby("report").sum().loc["moe"]
    results = [claim for claim in listed if claim.stance == "result"]
    assert count[["reproduced", "not tested", "claims"]].tolist() == [
        1,
        len(listed) - 1,
        len(listed),
    ]
    text = readme.describe_verdicts()
    assert "Profile real, [page](../figures/moe/real/report.html). The variance" in text
    number = len(results)
    assert f"| moe | results | {number} | 1 | 0 | 0 | 0 | {number - 1} |" in text
    assert "| moe | hopes | " in text
    assert text.count("Not yet run on real data.") == 3
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    every = [claim.says for s in params.list_claimed_reports() for claim in claims.read_claims(s)]
    assert [says for says in every if not any(f"| {says} |" in row for row in rows)] == []
    first = next(row for row in rows if f"| {listed[0].says} |" in row)
    assert "| 2.0 [1.0, 3.0] EM | 2.0 [1.0, 3.0] EM, not tested | – | reproduced |" in first
    assert first.endswith("| 1,000 to 3,000 | 3 |")


def test_what_could_decide_a_claim_is_seeds_questions_or_neither():
    row = pd.Series({"seeds, the report's questions": 4.0, "seeds, endless questions": 3.0})
    assert readme.describe_decision(row) == "4 seeds, the report's questions"
    row["seeds, the report's questions"] = math.nan
    assert readme.describe_decision(row) == "3 seeds, many more questions"
    row["seeds, endless questions"] = math.inf
    assert readme.describe_decision(row) == "no number of seeds"


def test_claims_of_other_runs_than_the_results_are_refused(tmp_path, monkeypatch):
    """As a start with other parameters that was not drawn to its end leaves them."""
    (folder := tmp_path / "exbert" / "real").mkdir(parents=True)
    pages = runs.FIGURES / "exbert" / "real"
    (folder / "claims.csv").write_bytes((pages / "claims.csv").read_bytes())
    pd.read_csv(pages / "results.csv").iloc[:9].to_csv(folder / "results.csv", index=False)
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    with pytest.raises(
        UserError,
        match="of exbert are of different runs; make report-exbert PROFILE=real draws both",
    ):
        overview.collect_verdicts("real")


def test_rows_without_a_result_need_no_run_and_others_do():
    frame = pd.DataFrame({"ours": ["–", "1.0"], "run": [(), ("a",)]})
    assert report.require_runs("t", frame) == ["a"]
    with pytest.raises(UserError, match="names no run"):
        report.require_runs("t", frame.assign(ours="1.0"))


def test_a_profile_without_any_report_says_so(store, monkeypatch):
    """The whole notebook, where nothing was run."""
    monkeypatch.setenv("QA_FIGURES", str(store / "figures"))
    nb = nbformat.read(ROOT / "notebooks" / "00_overview.ipynb", nbformat.NO_CONVERT)
    text = render.export_page(
        render.execute(nb, "00_overview", {"profile": "paper"}), overview.Page("paper")
    )
    assert "make reproduce-moe PROFILE=paper" in text
    assert "make reproduce-road PROFILE=paper" in text
    assert "No run so far" in text
    assert "Not run here: “what was learnt" in text
    for profile in ("papper", "own"):
        words = f"profile: '{profile}' has no page of all reports; known: quick, real, paper$"
        with pytest.raises(UserError, match=words):
            overview.choose_page({"profile": profile})
    assert params.list_reports()


# ---- the README's profile ----


def list_landed_reports() -> list[str]:
    """Return the reports that have a committed page of real data."""
    every = params.list_claimed_reports()
    return [slug for slug in every if (ROOT / "figures" / slug / "real" / "claims.csv").exists()]


@pytest.fixture
def page_at_paper(tmp_path, monkeypatch) -> str:
    """Put a page of moe at paper beside the committed ones, and return the name of its run."""
    figures = tmp_path / "figures"
    for slug in list_landed_reports():
        (figures / slug / "real").mkdir(parents=True)
        for name in ("claims.csv", "results.csv"):
            shutil.copy(runs.FIGURES / slug / "real" / name, figures / slug / "real")
    monkeypatch.setattr(runs, "FIGURES", figures)
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    runs.read_committed.cache_clear()
    table = overview.list_untested("moe").drop(columns="rows")
    table = table.assign(control="", unpooled=table["verdict"], run="")
    first = {"ours": -9.0, "low": -9.5, "high": -8.5, "n": 3, "run": "moe-large-s0-12345678"}
    for column, value in (first | {"verdict": "reproduced", "unpooled": "reproduced"}).items():
        table.loc[0, column] = value
    (figures / "moe" / "paper").mkdir()
    table.to_csv(figures / "moe" / "paper" / "claims.csv", index=False)
    trained = pd.DataFrame({"run": [first["run"]], "rows": [75000]})
    trained.to_csv(figures / "moe" / "paper" / "results.csv", index=False)
    return first["run"]


def test_a_page_at_paper_does_not_take_the_readme_s_place(page_at_paper):
    """The README is of profile real and says so; docs/claims.md has both, each by its name."""
    assert ("moe", "paper") in readme.collect_boards()
    boards = readme.readme_boards()
    of_readme = {slug: profile for slug, (profile, _) in boards.items()}
    assert of_readme == dict.fromkeys(list_landed_reports(), "real")
    assert {"exbert", "moe", "road", "smart"} <= set(of_readme)
    _, table, _ = readme.split_part(readme.README.read_text(encoding="utf-8"), "reports")
    assert readme.describe_reports() == table
    _, findings, _ = readme.split_part(readme.README.read_text(encoding="utf-8"), "findings")
    assert "\nResults reproduced" in findings
    assert "/paper/" not in table + findings
    assert "Profile paper, [page](../figures/moe/paper/report.html)" in readme.describe_verdicts()


def test_the_readme_tells_of_landed_runs_alone(page_at_paper, monkeypatch):
    """It is refused before anything is written."""
    monkeypatch.setattr(runs, "write", None)
    words = f"^{page_at_paper}, of the page of moe at profile paper, is not in records/moe, .*"
    with pytest.raises(UserError, match=words + "make land-moe PROFILE=paper, or remove figures"):
        readme.write_readme()
    shutil.rmtree(runs.FIGURES / "moe" / "paper")
    readme.check_landed()


# ---- the committed page ----

LOCAL = re.compile(r"^(?!#|https?:)")  # the address of a file beside the page


def test_the_readme_is_of_no_profile_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(readme, "write_readme", lambda: None)
    with pytest.raises(UserError, match="^--profile paper does not go with --readme, which writes"):
        run_verb(["overview", "--readme", "--profile", "paper"])
    assert run_verb(["overview", "--readme", "--profile", "real"]) == 0


def load_committed(monkeypatch) -> dict[str, tuple[str, pd.DataFrame]]:
    """Read the records of the repository, and return the long table of each report."""
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    runs.read_committed.cache_clear()
    return overview.select_boards(overview.collect_verdicts("real"), "real")


def test_what_was_learnt_stands_on_the_committed_records(monkeypatch):
    pages = overview.load_pages(load_committed(monkeypatch))
    found = written.read_findings("overview")
    assert found.runs == overview.hash_pages(pages), "the runs of params/findings/overview.md"
    names = overview.collect_lesson_names(pages)
    assert written.list_untrue_paragraphs(found, names) == []
    assert all(paragraph.condition for paragraph in found.sections[overview.LESSONS])


def test_the_committed_overview_is_current(monkeypatch):
    """Its answers, its table and what was learnt are those of the committed records."""
    boards = load_committed(monkeypatch)
    html = (runs.FIGURES / "index.html").read_text(encoding="utf-8")
    page = bs4.BeautifulSoup(html, "html.parser")

    def read_words(html) -> str:
        return " ".join(bs4.BeautifulSoup(html, "html.parser").get_text(" ").split())

    text = read_words(html)
    P = overview.choose_page({"profile": "real"})
    assert read_words(overview.show_answers(P)) in text, "make overview PROFILE=real draws it"
    assert read_words(overview.show_lessons(P, boards)) in text, "make overview PROFILE=real"
    table = page.find(id="table_answers").table
    shown = [[cell.get_text(" ") for cell in row.find_all("td")] for row in table.tbody("tr")]
    for row, cells in zip(overview.list_answers(boards).itertuples(), shown, strict=True):
        assert row.question in " ".join(cells)
        assert row.trained in cells
    for link in page.find_all("a", href=LOCAL):
        assert (runs.FIGURES / link["href"]).exists(), link["href"]


@pytest.mark.slow
def test_the_site_is_the_pages_and_their_overview(tmp_path):
    """Drawn in a folder of its own, so that nothing is written beside the code."""
    for name in ("Makefile", "qa_lib"):
        (tmp_path / name).symlink_to(ROOT / name)
    figures = tmp_path / "figures"
    for page in runs.FIGURES.glob("*/real"):
        shutil.copytree(page, figures / page.relative_to(runs.FIGURES))
    records = {"QA_FIGURES": str(figures), "QA_RECORDS": str(ROOT / "records")}
    done = make("site", "VENV=", folder=tmp_path, **records)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    page = bs4.BeautifulSoup((site / "index.html").read_text(encoding="utf-8"), "html.parser")
    links = [link["href"] for link in page.find_all("a", href=LOCAL)]
    assert "exbert/real/report.html" in links
    assert [link for link in links if not (site / link).exists()] == []
