"""The page about all reports, and the README's verdicts."""

import argparse

import nbformat
import pandas as pd
import pytest

from qa_lib.evidence import claims, verify
from qa_lib.page import overview, render, report
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs


def test_the_readme_has_the_verdicts_of_the_committed_pages():
    begin, end = overview.MARKS
    block = (ROOT / "README.md").read_text().split(begin)[1].split(end)[0]
    assert block == overview.readme_verdicts(), "make readme writes it"


@pytest.mark.parametrize("report", sorted(f.parent.name for f in runs.RECORDS.glob("*/runs.jsonl")))
def test_the_committed_ledger_is_what_the_records_say(report, monkeypatch):
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    args = argparse.Namespace(report=report, profile="real", size=None, data=None, p=[])
    p = plans.parameters_to_render(args)
    remedy = f"make train-{report} PROFILE=real writes it"
    assert (runs.page_folder(p) / "results.csv").exists(), remedy
    assert verify.find_disagreement(p) == "", remedy


def test_every_claim_of_every_report_is_on_the_board(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    frame = overview.collect_verdicts("real")
    expected = []
    for report_name in overview.TITLES:
        expected += [(report_name, c.id) for c in claims.read_claims(report_name)]
    assert list(zip(frame["report"], frame["claim"], strict=True)) == expected
    assert set(frame["kind"]) == {"not tested"}
    assert set(overview.verdicts_for_page(frame)["ours"]) == {"–"}
    assert not frame["run"].map(len).any()


def write_page(folder, ids: list[str]) -> None:
    """Write claims.csv and results.csv of a report of which only the first claim is tested."""
    folder.mkdir(parents=True)
    shared = {
        "where": "1",
        "says": "x",
        "printed": "1",
        "printed_unit": "EM",
        "unit": "EM",
        "part": "",
        "n": 3,
        "primary": False,
    }
    empty = ("tuned", "control", "tuned_part", "control_part", "confound", "unpooled", "judged")
    shared |= dict.fromkeys(empty, "")
    tested = {"ours": 2.0, "low": 1.0, "high": 3.0, "verdict": "reproduced", "run": "a b"}
    untested = {"verdict": "not tested at this profile: why", "run": ""}
    rows = [{"claim": ids[0], **shared, **tested}]
    rows += [{"claim": i, **shared, **untested} for i in ids[1:]]
    pd.DataFrame(rows).to_csv(folder / "claims.csv", index=False)
    results = pd.DataFrame({"run": ["a", "a", "b"], "rows": [3000, 3000, 1000]})
    results.to_csv(folder / "results.csv", index=False)


def test_the_results_of_a_report_stand_on_the_board(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    ids = [c.id for c in claims.read_claims("moe")]
    write_page(tmp_path / "moe" / "real", ids)
    frame = overview.collect_verdicts("real")
    first = overview.verdicts_for_page(frame).iloc[0]
    cells = first[["ours", "n seeds", "training rows", "verdict"]].tolist()
    assert cells == ["2.0 [1.0, 3.0] EM", "3", "1,000 to 3,000", "reproduced"]
    second = overview.verdicts_for_page(frame, whole=True).iloc[1]
    assert second["verdict"] == "not tested at this profile: why"
    assert second["to bear in mind"] == claims.read_claims("moe")[1].confound
    counts = overview.count_by_report(frame).set_index("report").loc["moe"]
    assert counts["reproduced"] == 1
    assert counts["not tested"] == len(ids) - 1
    assert counts["claims"] == len(ids)
    text = overview.readme_verdicts()
    assert "- **moe**, profile real, [page](figures/moe/real/report.html)" in text
    assert "| moe |" in text
    assert "`exbert`, `road`, `smart`" in text


def test_claims_of_other_runs_than_the_results_are_refused(tmp_path, monkeypatch):
    """A start with other parameters leaves them so, if its page is not drawn to the end."""
    folder = tmp_path / "exbert" / "real"
    folder.mkdir(parents=True)
    pages = runs.FIGURES / "exbert" / "real"
    (folder / "claims.csv").write_bytes((pages / "claims.csv").read_bytes())
    pd.read_csv(pages / "results.csv").iloc[:9].to_csv(folder / "results.csv", index=False)
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    words = "of exbert are of different runs; make report-exbert PROFILE=real draws both"
    with pytest.raises(UserError, match=words):
        overview.collect_verdicts("real")


def test_rows_without_a_result_need_no_run_and_others_do():
    frame = pd.DataFrame({"ours": ["–", "1.0"], "run": [(), ("a",)]})
    assert report.require_runs("t", frame) == ["a"]
    with pytest.raises(UserError, match="names no run"):
        report.require_runs("t", frame.assign(ours="1.0"))


def test_a_profile_without_any_report_says_so(store, monkeypatch):
    """The whole notebook is executed where nothing was run."""
    monkeypatch.setenv("QA_FIGURES", str(store / "figures"))
    nb = nbformat.read(ROOT / "notebooks" / "00_overview.ipynb", nbformat.NO_CONVERT)
    executed = render.execute(nb, "00_overview", {"profile": "paper"})
    text = render.page(executed, overview.Page("paper"))
    assert "make reproduce-moe PROFILE=paper" in text
    assert "not built yet" in text
    assert "No run so far" in text
    assert text.count("<tr>") > sum(len(claims.read_claims(s)) for s in overview.TITLES)
    with pytest.raises(UserError, match="profile: 'papper' is not one; known: quick, real, paper"):
        overview.choose_page({"profile": "papper"})
    assert list(params.REPORTS)
