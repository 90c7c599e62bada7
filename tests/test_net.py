"""Landed records keep their hashes, plans find them, and the results on the pages do not move.

tests/net/ holds the results of the pages at `real`: a digest for each run in results.csv, and the
numbers of each claim. A test that fails here says that a change has moved a result. If the change
was meant to, `python tests/test_net.py` writes the files anew, and LOG.md says what moved and why.
"""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from qa_lib.evidence import verify
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

ROOT = Path(__file__).parent.parent
NET = Path(__file__).parent / "net"
LANDED = {"exbert": 175, "moe": 66}


@pytest.fixture(autouse=True)
def committed_records(monkeypatch):
    """Let tests read the records and figures of the checkout."""
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    monkeypatch.setattr(runs, "FIGURES", ROOT / "figures")
    runs.read_committed.cache_clear()
    yield
    runs.read_committed.cache_clear()


def rebuild(record: dict, records: dict[str, dict]) -> Spec:
    """Return the run of a landed record, from its stored fields and those of its parents."""
    # `model` is a field that no longer exists
    fields = {name: value for name, value in record["spec"].items() if name != "model"}
    parents = [rebuild(records[parent], records) for parent in record["parents"]]
    return Spec(**fields, parents=parents)


@pytest.mark.parametrize("slug", LANDED)
def test_every_landed_record_has_the_hash_of_its_fields(slug):
    records = runs.read_committed(slug)
    assert len(records) == LANDED[slug]
    for expected, record in records.items():
        assert rebuild(record, records).hash == expected, record["run"]


@pytest.mark.parametrize("slug", LANDED)
def test_todays_plan_of_real_finds_every_record(slug):
    specs = plans.plan(params.load_params(slug, "real", size="small"))
    hashes = {runs.find_record(spec)["hash"] for spec in specs}
    assert hashes == set(runs.read_committed(slug))


@pytest.mark.parametrize("slug", LANDED)
def test_every_landed_record_has_todays_scoring(slug):
    for record in runs.read_committed(slug).values():
        assert record.get("scoring", 1) == runs.SCORING, record["run"]


# ---- what the pages hold ----


def digest_runs(slug: str) -> pd.DataFrame:
    """Return a row for each run in results.csv, with a digest of its scores.

    The digest stays the same if columns are renamed or reordered.
    """
    ledger = pd.read_csv(
        ROOT / "figures" / slug / "real" / "results.csv", dtype=str, keep_default_na=False
    )
    rows = []
    for (run, variant, arm), group in ledger.groupby(["run", "variant", "arm"]):
        scores = sorted(group[["set", "metric", "value", "n"]].itertuples(index=False, name=None))
        digest = hashlib.sha256(json.dumps(scores).encode()).hexdigest()[:16]
        rows.append(
            {"run": run, "variant": variant, "arm": arm, "scores": len(scores), "digest": digest}
        )
    return pd.DataFrame(rows).astype(str)


COMPARISONS = {"printed": "", "tuned": "tuned_", "control": "control_", "control, tuned": "fair_"}


def list_claims(slug: str) -> pd.DataFrame:
    """Return a row for each claim and comparison in claims.csv: ours, low, high and the verdict."""
    claims = pd.read_csv(
        ROOT / "figures" / slug / "real" / "claims.csv", dtype=str, keep_default_na=False
    )
    verdicts = {"printed": "verdict", "tuned": "tuned", "control": "control"}
    rows = []
    for comparison, prefix in COMPARISONS.items():
        for _, claim in claims.iterrows():
            numbers = {name: claim[prefix + name] for name in ("ours", "low", "high", "part")}
            verdict = claim[verdicts[comparison]] if comparison in verdicts else ""
            rows.append(
                {"claim": claim["claim"], "comparison": comparison, **numbers, "verdict": verdict}
            )
    return pd.DataFrame(rows)


NETS = {"results": digest_runs, "claims": list_claims}


@pytest.mark.parametrize("slug", LANDED)
@pytest.mark.parametrize("name", NETS)
def test_pages_hold_what_they_held(slug, name):
    held = pd.read_csv(NET / f"{name}-{slug}.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(NETS[name](slug), held)


@pytest.mark.parametrize("slug", LANDED)
def test_pages_hold_what_the_records_say(slug, tmp_path, monkeypatch):
    p = params.load_params(slug, "real", size="small")
    folder = ROOT / "figures" / slug / "real"
    assert runs.format_csv(runs.collect_ledger(plans.plan(p))) == (
        folder / "results.csv"
    ).read_text(encoding="utf-8")
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    verify.write_claims(p)
    drawn = (tmp_path / slug / "real" / "claims.csv").read_text(encoding="utf-8")
    assert drawn == (folder / "claims.csv").read_text(encoding="utf-8")


if __name__ == "__main__":
    NET.mkdir(exist_ok=True)
    for slug in LANDED:
        for name, read in NETS.items():
            read(slug).to_csv(NET / f"{name}-{slug}.csv", index=False, lineterminator="\n")
