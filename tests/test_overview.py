"""The page about all reports."""

import argparse

import nbformat
import pandas as pd
import pytest

from qa_lib.evidence import claims, verify
from qa_lib.page import overview, readme, render, report
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
    assert set(overview.verdicts_for_page(frame)["ours"]) == {"–"}
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
    shown = overview.verdicts_for_page(frame).iloc[0]
    columns = ["ours", "n seeds", "training rows", "verdict"]
    assert shown[columns].tolist() == ["2.0 [1.0, 3.0] EM", "3", "1,000 to 3,000", "reproduced"]
    second = overview.verdicts_for_page(frame, whole=True).iloc[1]
    assert second["verdict"] == "not tested: not run at this profile"
    assert second["to bear in mind"] == listed[1].confound
    count = overview.count_by_report(frame).iloc[0]
    assert count[["reproduced", "not tested", "claims"]].tolist() == [
        1,
        len(listed) - 1,
        len(listed),
    ]
    text = readme.describe_verdicts()
    assert "- **moe**, profile real, [page](../figures/moe/real/report.html): The variance" in text
    assert "| moe | 41 | 1 | 0 | 0 | 0 | 40 |" in text
    assert "Not yet run on real data: `exbert`, `road`, `smart`." in text


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
    text = render.page(
        render.execute(nb, "00_overview", {"profile": "paper"}), overview.Page("paper")
    )
    assert "make reproduce-moe PROFILE=paper" in text
    assert "make reproduce-road PROFILE=paper" in text
    assert "No run so far" in text
    assert text.count("<tr>") > sum(
        len(claims.read_claims(s)) for s in params.list_claimed_reports()
    )
    with pytest.raises(UserError, match="profile: 'papper' is not one; known: quick, real, paper"):
        overview.choose_page({"profile": "papper"})
    assert params.list_reports()
