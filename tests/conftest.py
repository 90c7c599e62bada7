"""Tests run in a store of their own, offline, on one thread; the small encoder below stands for any other."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest  # noqa: E402

TINY = {
    "train_rows": 48,
    "validation_rows": 8,
    "epochs": 1.0,
    "ratios": [0.5],
    "seeds": [0],
    "experiments": ["ratios"],
    "max_length": 128,
    "stride": 32,
    "blocks": 1,
    "batch_size": 8,
    "start": None,
    "precision": "fp32",
}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty run store; the feature cache is shared by the tests of a session."""
    from qa_lib.store import runs

    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(runs, "RECORDS", tmp_path / "records")
    monkeypatch.setenv("QA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("QA_RECORDS", str(tmp_path / "records"))
    runs.read_committed.cache_clear()
    runs._read_committed_examples.cache_clear()
    return tmp_path


@pytest.fixture(autouse=True)
def few_test_rows(monkeypatch):
    """Score on a few rows only (the test sample is no part of a run's identity)."""
    from qa_lib.data import selection

    whole = selection.load_test_sets
    monkeypatch.setattr(
        selection,
        "load_test_sets",
        lambda spec: {k: (d, rows[:24]) for k, (d, rows) in whole(spec).items()},
    )


@pytest.fixture
def tiny():
    """Parameters of a training that takes seconds; keyword arguments change them."""
    from qa_lib.reports import plans

    def load(**changes):
        p = TINY | changes
        same = {"side_seeds": p["seeds"], "centre": p["ratios"][0], "control_ratios": p["ratios"]}
        return plans.load_params("exbert", "quick", same | p)

    return load
