"""What all tests share. They run offline, each in a store of its own, with tiny parameters."""

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
    """Return the folder of an empty run store. The tests of a session share the feature cache."""
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
    """Score on 24 rows of each test set. The test sample is no part of a run's identity."""
    from qa_lib.data import selection

    load_whole = selection.load_test_sets

    def load_few(spec):
        return {name: (d, rows[:24]) for name, (d, rows) in load_whole(spec).items()}

    monkeypatch.setattr(selection, "load_test_sets", load_few)


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory) -> str:
    """Return the folder of an encoder of MiniLM's form and words, narrow and with random weights.

    For tests of what a study does around its models: with it the runs of a study take seconds.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    from qa_lib.models import encoders
    from qa_lib.settings import encoder_files

    config = AutoConfig.from_pretrained(encoder_files.find_folder("minilm"))
    config.update({"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4})
    folder = tmp_path_factory.mktemp("encoder") / "small"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    _, tokenizer = encoders.load_encoder("minilm", 1)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny(small_encoder):
    """Return a function that loads parameters of trainings that take seconds, with changes."""
    from qa_lib.reports import plans

    def load(**changes):
        values = TINY | {"encoder": small_encoder} | changes
        ratios = values["ratios"]
        same = {"side_seeds": values["seeds"], "centre": ratios[0], "control_ratios": ratios}
        return plans.load_params("exbert", "quick", same | values)

    return load


@pytest.fixture
def one_thread():
    """Compute with one thread, which is faster for models as small as those of tests."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
