"""A run from end to end: trained, killed and resumed, its record and its parents.

The span model is compared with that of transformers.
"""

import errno
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import TINY
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BertForQuestionAnswering, RobertaConfig, RobertaModel

from qa_lib.__main__ import run_verb
from qa_lib.data import features, selection
from qa_lib.models import encoders, heads, recomputed_blocks
from qa_lib.page import report
from qa_lib.reports import plans
from qa_lib.settings import command_line, encoder_files, files, params
from qa_lib.settings.parameters import Dataset, Heads, Layer, Smart
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs
from qa_lib.tasks import span
from qa_lib.training import build, evaluate, study, train


def show_nothing(line: str) -> None:
    """Take a line of a training's progress and show nothing."""


def read_scores(record: dict) -> dict:
    """Return EM, F1 and loss of each test set in a record."""
    return {name: (m["em"], m["f1"], m["loss"]) for name, m in record["metrics"].items()}


def test_span_model_equals_transformers_and_survives_saving(tmp_path):
    encoder, _ = encoders.load_encoder("minilm", 2)
    model = heads.SpanModel(encoder, head_dropout=0.0).eval()
    peer = BertForQuestionAnswering(encoder.config).eval()
    peer.bert.load_state_dict(encoder.state_dict())
    peer.qa_outputs.load_state_dict(model.head.state_dict())
    ids = torch.randint(1000, 2000, (3, 40))
    mask = torch.ones_like(ids)
    labels = {"start_positions": torch.tensor([3, 0, 9]), "end_positions": torch.tensor([4, 0, 12])}
    ours = model(input_ids=ids, attention_mask=mask, **labels)
    theirs = peer(input_ids=ids, attention_mask=mask, **labels)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.start_logits, theirs.start_logits)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = heads.SpanModel(encoders.load_encoder("minilm", 2)[0]).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(input_ids=ids, attention_mask=mask).end_logits, ours.end_logits)
    # padding changes nothing
    pad = torch.nn.functional.pad
    padded = model(input_ids=pad(ids, (0, 8)), attention_mask=pad(mask, (0, 8)))
    torch.testing.assert_close(padded.start_logits[:, :40], ours.start_logits, atol=1e-5, rtol=1e-5)
    assert (padded.start_logits[:, 40:] < -1e30).all()


def test_a_run_is_recorded_and_not_trained_again(tiny):
    p = tiny()
    first = study.run(p, plans.plan, live=False)
    assert list(first.trained) == ["now"]
    spec = plans.plan(p)[0]
    record = runs.find_record(spec)
    assert record["metrics"]["encyclopaedia"]["n"] == 24
    assert record["environment"]["commit"]
    assert [h["epoch"] for h in record["history"]] == [1.0]
    assert record["history"][0]["train_loss"] > 0
    assert not (runs.run_folder(spec) / "checkpoints").exists()
    assert not (runs.run_folder(spec) / "model.safetensors").exists()
    assert list(study.run(p, plans.plan, live=False).trained) == ["found"]
    # neither the record nor the examples hold a question
    text = (runs.run_folder(spec) / "metrics.json").read_text()
    text += pd.read_parquet(runs.run_folder(spec) / "examples.parquet").to_csv()
    for row in selection.load_splits("encyclopaedia", "embedded").test:
        assert row["question"] not in text


def test_a_landed_record_is_read_without_the_run(tiny, store):
    p = tiny()
    study.run(p, plans.plan, live=False)
    spec = plans.plan(p)[0]
    records = store / "records" / "exbert"
    ledger = runs.collect_ledger([spec])
    examples = runs.collect_examples([spec])
    # a file that a killed landing has left behind
    runs.write(records / "examples-002.parquet", runs.format_parquet(examples[:3]))
    assert runs.land("exbert", [spec]) == 1
    assert runs.land("exbert", [spec]) == 0
    assert [file.stem for file in records.glob("*.parquet")] == ["examples-003"]
    (store / "runs").rename(store / "gone")
    assert runs.collect_ledger([spec]).equals(ledger)
    assert runs.collect_examples([spec])[examples.columns].equals(examples)
    assert list(study.run(p, plans.plan, live=False).trained) == ["found"]
    assert runs.find_record(spec, fresh=True) is None
    assert study.list_missing([spec], fresh=True) == [spec]
    # a committed file that is damaged or gone is one sentence
    runs._read_committed_examples.cache_clear()
    for file in records.glob("examples-*"):
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="parquet cannot be read .*restore the file from git"):
        runs.collect_examples([spec])
    runs._read_committed_examples.cache_clear()
    for file in records.glob("examples-*"):
        file.unlink()
    with pytest.raises(UserError, match=f"the examples of {spec.run} are in no examples-"):
        runs.collect_examples([spec])
    for line in (b"123", b'{"hash": "\xff"}', b"{"):
        (records / "runs.jsonl").write_bytes(line)
        runs.read_committed.cache_clear()
        with pytest.raises(UserError, match="runs.jsonl, line 1: damaged record"):
            runs.find_record(spec)


def test_land_names_the_folder_that_it_writes_to(store, monkeypatch, capsys):
    monkeypatch.setattr(plans, "load_from_args", lambda args, size: SimpleNamespace(profile="real"))
    monkeypatch.setattr(plans, "plan", lambda p: [])
    run_verb(["land", "exbert", "--profile", "real", "--data", "data"])
    assert capsys.readouterr().out.endswith(f"new records in {store / 'records' / 'exbert'}\n")
    monkeypatch.setattr(runs, "RECORDS", ROOT / "records")
    monkeypatch.setattr(runs, "land", lambda report, specs: 3)
    run_verb(["land", "exbert", "--profile", "real", "--data", "data"])
    assert capsys.readouterr().out.endswith("3 new records in records/exbert\n")


def test_runs_of_either_size_are_landed_where_none_is_named(monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "land", lambda report, specs: seen.append({s.size for s in specs}))
    for more in ([], ["--size", "small"]):
        monkeypatch.setattr("sys.argv", ["land", "moe", "--profile", "real", *more])
        assert run_verb(sys.argv) == 0
    assert seen == [{"full", "small"}, {"small"}]


def test_same_seed_same_numbers_and_a_damaged_record_is_retrained(tiny, capsys):
    spec = plans.plan(tiny())[0]
    first = train.train(spec, progress=show_nothing)
    path = runs.run_folder(spec) / "metrics.json"
    path.write_text(path.read_text().replace('"em":', '"em":1', 1))
    assert runs.find_record(spec) is None
    assert "damaged" in capsys.readouterr().out
    path.write_text("{")
    assert study.list_missing([spec]) == [spec]
    # the peak memory of a run leaves out the 1 GB that the process used before it
    np.ones(2**27)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    again = train.train(spec, progress=show_nothing)
    assert read_scores(again) == read_scores(first)
    assert again["peak_memory_mb"] < peak - 500 or not os.access("/proc/self/clear_refs", os.W_OK)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_peak_of_a_worker_is_not_that_of_its_parent():
    """A process begins with its parent's peak by getrusage."""
    code = "from qa_lib.training import memory; print(memory.read_peak())"
    ours = np.ones(2**27)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert float(done.stdout) < ours.nbytes / 2**20


def test_a_machine_without_git_says_what_it_was_told(tiny, monkeypatch):
    def absent(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.delenv("QA_COMMIT", raising=False)
    monkeypatch.setattr(train.subprocess, "run", absent)
    spec = plans.plan(tiny())[0]
    environment = train.describe_environment(spec)
    assert (environment["commit"], environment["dirty"]) == ("unknown", None)
    monkeypatch.setenv("QA_COMMIT", "0123abc")
    environment = train.describe_environment(spec)
    assert (environment["commit"], environment["dirty"]) == ("0123abc", None)


def run_git(folder: Path, *words: str) -> str:
    """Run git in a folder, without the settings and the repository of whoever runs the tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    command += ["-c", "protocol.file.allow=always", *words]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a function that makes a folder which read_commit takes for its own checkout.

    The folder has code and parameters, committed or not.
    """
    monkeypatch.delenv("QA_COMMIT", raising=False)

    def make(folder: Path, committed: bool) -> Path:
        for name in ("qa_lib/a.py", "params/a.yaml"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x", encoding="utf-8")
        if committed:
            run_git(folder, "init", "-q")
            run_git(folder, "add", ".")
            run_git(folder, "commit", "-qm", folder.name)
        monkeypatch.setattr(train, "ROOT", folder)
        return folder

    return make


def test_a_commit_is_that_of_the_checkout_that_holds_the_code(checkout, tmp_path, monkeypatch):
    other = checkout(tmp_path / "other", committed=True)
    theirs = run_git(other, "rev-parse", "HEAD")
    # unpacked within another repository
    inside = checkout(other / "inside", committed=False)
    assert train.read_commit() == ("unknown", None)
    # and even committed there
    run_git(other, "add", "inside")
    run_git(other, "commit", "-qm", "vendored")
    assert train.read_commit() == ("unknown", None)
    monkeypatch.setenv("QA_COMMIT", "0123abc")
    assert train.read_commit() == ("0123abc", None)

    # a repository without a commit
    run_git(inside, "init", "-q")
    assert train.read_commit() == ("0123abc", None)
    monkeypatch.delenv("QA_COMMIT")
    assert train.read_commit() == ("unknown", None)

    own = checkout(tmp_path / "own", committed=True)
    commit = run_git(own, "rev-parse", "HEAD")
    # settings that are left over from another machine or repository
    monkeypatch.setenv("QA_COMMIT", "0123abc")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert theirs != commit
    assert train.read_commit() == (commit, False)


@pytest.mark.parametrize(
    "file", ["qa_lib/a.py", "params/a.yaml", "qa_lib/new.py", "params/b/new.yaml"]
)
def test_what_differs_from_the_commit_is_dirty(checkout, tmp_path, file):
    """So is a file that git does not know yet, even if the user's settings hide such files."""
    own = checkout(tmp_path / "own", committed=True)
    run_git(own, "config", "status.showUntrackedFiles", "no")
    (own / "notes.txt").write_text("neither code nor parameters", encoding="utf-8")
    assert train.read_commit()[1] is False
    (own / file).parent.mkdir(exist_ok=True)
    (own / file).write_text("other", encoding="utf-8")
    assert train.read_commit()[1] is True


def test_worktrees_and_submodules_have_commits_of_their_own(checkout, tmp_path, monkeypatch):
    own = checkout(tmp_path / "own", committed=True)
    commit = run_git(own, "rev-parse", "HEAD")
    run_git(own, "worktree", "add", "-q", str(tmp_path / "tree"))
    monkeypatch.setattr(train, "ROOT", tmp_path / "tree")
    assert train.read_commit() == (commit, False)
    around = checkout(tmp_path / "around", committed=True)
    run_git(around, "submodule", "--quiet", "add", str(own), "part")
    run_git(around, "commit", "-qm", "part")
    monkeypatch.setattr(train, "ROOT", around / "part")
    assert train.read_commit() == (commit, False)


def test_where_git_refuses_the_commit_is_unknown(checkout, tmp_path, monkeypatch):
    """Git also refuses a folder of another owner (safe.directory)."""
    own = checkout(tmp_path / "own", committed=True)
    (own / ".git" / "HEAD").write_text("no reference", encoding="utf-8")
    assert train.read_commit() == ("unknown", None)


def test_a_page_does_not_call_unknown_code_clean():
    told = {"commit": "0123456789abcdef", "dirty": None}
    as_told = "commit 0123456789ab, as the machine was told, with or without changes"
    assert report._describe_commit(told) == as_told
    assert report._describe_commit(told | {"dirty": False}) == "commit 0123456789ab"
    assert "not exactly that code" in report._describe_commit(told | {"dirty": True})
    for dirty in (None, False):
        assert "is not known" in report._describe_commit({"commit": "unknown", "dirty": dirty})


def test_trials_on_a_gpu_are_scored_at_once(tiny, monkeypatch):
    p = tiny(arms=["tuned"], experiments=["headline"])
    trials = plans.plan(p)
    assert trials
    assert not any(s.tests for s in trials if s.arm == "tuned")
    assert study.list_missing(trials) == trials
    pretend_machine(monkeypatch, cuda=True)
    todo = study.list_missing(plans.plan(tiny(arms=["tuned", "printed"], experiments=["headline"])))
    assert len(todo) > len(trials)
    assert all(s.tests == p.domains and s.threads == "cuda" for s in todo)


def pretend_machine(monkeypatch, cuda: bool, bf16: bool = True):
    """Let torch say that there is a GPU or none, and bf16 instructions or none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16, raising=False)


def save_record(spec, examples=None, seconds=1.0):
    """Save a record of a run, with scores of 50 EM and these examples or a single one."""
    if examples is None:
        examples = pd.DataFrame({"id": ["a"]})
    scores = {name: {"em": 50.0, "n": 1, "clusters": 1} for name in spec.tests}
    device = "GPU" if spec.threads == "cuda" else "CPU, 1 thread"
    environment = {"device": device, "precision": spec.precision}
    record = {"metrics": scores, "history": [], "environment": environment}
    runs.save(spec, record | {"seconds": seconds}, examples)


@pytest.mark.parametrize(
    ("trained", "drawn"),
    [
        ((False, True), (True, True)),
        ((False, False), (False, True)),
        ((False, True), (False, False)),
        ((False, False), (True, False)),
    ],
)
def test_records_serve_every_machine(tiny, monkeypatch, trained, drawn):
    """A record of one kind of machine is used on another, which trains nothing again."""
    p = tiny(precision="bf16", ratios=[1.0])
    pretend_machine(monkeypatch, *trained)
    (spec,) = study.list_missing(plans.plan(p))
    save_record(spec)
    pretend_machine(monkeypatch, *drawn)
    assert study.list_missing(plans.plan(p)) == []
    assert list(study.run(p, plans.plan, live=False)["run"]) == [spec.run]
    precision = "bf16" if trained[1] else "fp32"
    assert set(runs.collect_ledger(plans.plan(p))["precision"]) == {precision}


def test_without_bf16_instructions_training_is_in_fp32(tiny, monkeypatch, store, capsys):
    p = tiny(precision="bf16", ratios=[1.0])
    pretend_machine(monkeypatch, False)
    (spec,) = study.list_missing(plans.plan(p))
    save_record(spec)
    assert runs.land("exbert", plans.plan(p)) == 1
    pretend_machine(monkeypatch, False, bf16=False)
    # the record of the store serves
    assert list(study.run(p, plans.plan, fresh=True, live=False)["trained"]) == ["found"]
    (store / "runs").rename(store / "gone")
    assert list(study.run(p, plans.plan, fresh=True, live=False)["trained"]) == ["now"]
    # the committed record is of another machine and stays
    assert runs.land("exbert", plans.plan(p)) == 0
    study.print_comparison(p, plans.plan)
    output = capsys.readouterr().out
    assert "no bf16 instructions here: what is trained is trained in fp32\n" in output
    other_run = rf"v-db-100-0-s0-(?!{spec.hash[:8]})"
    committed = r"EM [0-9.]+, committed 50.00 \(CPU, 1 thread, bf16\)\n"
    assert re.search(f"{other_run}.*: {committed}", output)


@pytest.fixture
def three_records(tiny):
    """Three trainings with a record each, and the ids of all their examples."""
    specs = plans.plan(tiny(ratios=[0.0, 0.5, 1.0]))[:3]
    ids = []
    for i, spec in enumerate(specs):
        of_run = [f"{i}-{k}" for k in range(9)]
        examples = {"set": spec.tests[0], "id": of_run, "cluster": "a", "em": 50.0}
        save_record(spec, pd.DataFrame(examples))
        ids += of_run
    return specs, ids


def test_a_landing_of_several_files_keeps_every_example(three_records, monkeypatch, store):
    specs, ids = three_records
    monkeypatch.setattr(runs, "LIMIT", 1)
    assert runs.land("exbert", specs) == 3
    assert len(runs.list_example_files(store / "records" / "exbert")) == 3
    (store / "runs").rename(store / "gone")
    assert runs.collect_examples(specs)["id"].tolist() == ids


def test_a_landing_packs_the_last_file_again(three_records, monkeypatch, store):
    specs, ids = three_records
    folder = store / "records" / "exbert"
    assert runs.land("exbert", specs[:1]) == 1
    (first_file,) = runs.list_example_files(folder)
    content = first_file.read_bytes()
    assert runs.land("exbert", specs[1:]) == 2
    (second_file,) = runs.list_example_files(folder)
    assert second_file.name == "examples-001.parquet"
    (store / "runs").rename(store / "gone")
    assert runs.collect_examples(specs)["id"].tolist() == ids
    # a landing that was cut short before it removed the last file
    first_file.write_bytes(content)
    runs._read_committed_examples.cache_clear()
    assert runs.collect_examples(specs)["id"].tolist() == ids
    # A damaged last file loses nothing: nothing is written.
    second_file.write_bytes(second_file.read_bytes()[:-9])
    frame = pd.DataFrame({"set": ["a"], "id": ["1"], "run": "another"})
    with pytest.raises(UserError, match="examples-001.parquet cannot be read"):
        runs.write_committed_examples(folder, [frame])
    assert runs.list_example_files(folder) == [first_file, second_file]


@pytest.mark.parametrize("limit", [runs.LIMIT, 1], ids=["one file", "a file for each run"])
def test_a_replaced_record_keeps_no_example_of_the_one_before(tiny, monkeypatch, store, limit):
    """The set has other rows since. A file that a killed landing left holds the old ones too."""
    monkeypatch.setattr(runs, "LIMIT", limit)
    folder = store / "records" / "exbert"
    first, other = plans.plan(tiny(ratios=[0.5, 1.0]))[:2]
    then = first.model_copy(update={"test_fingerprints": {first.tests[0]: "then"}})
    today = first.model_copy(update={"test_fingerprints": {first.tests[0]: "today"}})
    columns = {"set": first.tests[0], "cluster": "a", "em": 50.0}
    save_record(then, pd.DataFrame({"id": list("abcd"), **columns}))
    save_record(other, pd.DataFrame({"id": list("abcd"), **columns}))
    assert runs.land("exbert", [then, other]) == 2
    save_record(today, pd.DataFrame({"id": list("cx"), **columns}))
    left_behind = {file: file.read_bytes() for file in runs.list_example_files(folder)}
    assert runs.land("exbert", [today]) == 1
    (store / "runs").rename(store / "gone")
    assert runs.collect_examples([today])["id"].tolist() == list("cx")
    assert runs.collect_examples([other])["id"].tolist() == list("abcd")
    for file, content in left_behind.items():
        file.write_bytes(content)
    runs._read_committed_examples.cache_clear()
    assert runs.collect_examples([today])["id"].tolist() == list("cx")


def test_an_evaluation_s_training_loss_is_the_mean_over_its_steps():
    log = [
        {"loss": 4.0, "step": 10},
        {"loss": 2.0, "step": 20},
        {"loss": 1.0, "step": 25},
        {"eval_loss": 3.0, "eval_em": 1.0, "eval_f1": 2.0, "epoch": 1.0, "step": 25},
    ]
    assert train.read_history(log)[0]["train_loss"] == (40 + 20 + 5) / 25


def test_several_gpus_do_not_multiply_the_batch(tiny, monkeypatch):
    class Two(train.TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 2

    monkeypatch.setattr(train, "TrainingArguments", Two)
    spec = plans.plan(tiny())[0]
    assert train.training_arguments(spec, 10, False).train_batch_size == spec.batch_size


def test_a_record_without_a_test_set_is_incomplete(tiny):
    spec = plans.plan(tiny())[0]
    train.train(spec.model_copy(update={"tests": ["biomedicine"]}), progress=show_nothing)
    assert runs.find_record(spec.model_copy(update={"tests": ["biomedicine"]}))
    assert runs.find_record(spec) is None
    assert study.list_missing([spec]) == [spec]


def test_scores_on_other_test_rows_do_not_serve(tiny, monkeypatch):
    """A hash says what trains; what is tested stands beside it, and the first records lack it."""
    p = tiny(ratios=[1.0])
    spec = plans.plan(p)[0]
    assert set(spec.test_fingerprints) == set(spec.tests)
    save_record(spec)
    assert runs.find_record(spec)
    known = dict(params.read_datasets("embedded", None))
    known["biomedicine"] = known["biomedicine"].model_copy(update={"test_rows": 7})
    monkeypatch.setattr(params, "read_datasets", lambda *_: known)
    changed = plans.plan(p)[0]
    assert changed.hash == spec.hash
    assert runs.find_record(changed) is None
    assert runs.find_record(changed.model_copy(update={"tests": ["encyclopaedia"]}))
    save_record(spec.model_copy(update={"test_fingerprints": {}}))  # as the first records are
    assert runs.find_record(changed)


def test_a_test_set_is_known_by_its_files(store, monkeypatch):
    known = {"manuals": Dataset(train=["a.jsonl"], test=["b.jsonl"])}
    known["both"] = Dataset(pool=["manuals", "gone"])
    known["gone"] = Dataset(test=["c.jsonl"])
    monkeypatch.setattr(params, "read_datasets", lambda *_: known)
    (store / "a.jsonl").write_text("one\n")
    (store / "b.jsonl").write_text("two\n")
    first = selection.fingerprint_test_sets(known, "folder", str(store))
    assert list(first) == ["manuals"]
    (store / "b.jsonl").write_text("three\n")
    selection.digest_data_file.cache_clear()  # a process reads a file once
    second = selection.fingerprint_test_sets(known, "folder", str(store))
    assert second["manuals"] != first["manuals"]


@pytest.mark.parametrize("file", ["train.jsonl", "test.jsonl"])
def test_data_that_change_while_a_study_runs_are_not_trained_on(tiny, store, monkeypatch, file):
    """A worker reads files anew. It would train other rows under the hash of the old ones."""
    spec = plans.plan(tiny())[0]
    known = {"mills": Dataset(train=["train.jsonl"], test=["test.jsonl"])}
    monkeypatch.setattr(params, "read_datasets", lambda *_: known)
    for name in ("train.jsonl", "test.jsonl"):
        (store / name).write_text(f"rows of {name}\n", encoding="utf-8")
    place = {"domains": ["mills"], "tests": ["mills"], "source": "folder", "folder": str(store)}
    planned = {
        "fingerprints": [selection.fingerprint("mills", "folder", str(store))],
        "test_fingerprints": selection.fingerprint_test_sets(["mills"], "folder", str(store)),
    }
    spec = spec.model_copy(update=place | planned)
    (store / file).write_text("other rows\n", encoding="utf-8")
    selection.digest_data_file.cache_clear()  # as in another process
    words = f"{spec.run}: mills differs here from what the study planned .its files, its definition"
    with pytest.raises(UserError, match=words):
        train.train(spec, progress=show_nothing)
    assert not runs.run_folder(spec).exists()


def test_a_training_that_is_repeated_loses_no_score(tiny):
    spec = plans.plan(tiny())[0]
    on_each = [spec.model_copy(update={"tests": [name]}) for name in spec.tests]
    assert len(on_each) > 1
    for one in on_each:
        train.train(one, progress=show_nothing)
    assert all(runs.find_record(one) for one in on_each)
    assert runs.find_record(spec)


def test_landing_loses_no_score(tiny):
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    first = spec.model_copy(update={"tests": ["encyclopaedia", "news"]})
    save_record(first)
    assert runs.land("exbert", [first]) == 1
    other = spec.model_copy(update={"tests": ["encyclopaedia", "biomedicine"]})
    save_record(other)
    with pytest.raises(UserError, match="is landed with scores on news, which this record lacks"):
        runs.land("exbert", [other])
    # trained again it is scored on what either record has
    assert set(train.list_tests(other)) == {"encyclopaedia", "news", "biomedicine"}
    both = spec.model_copy(update={"tests": ["encyclopaedia", "news", "biomedicine"]})
    save_record(both)
    assert runs.land("exbert", [both]) == 1
    runs.discard(spec, "metrics.json")
    assert runs.find_record(first)
    assert runs.find_record(other)


def test_a_landed_trial_that_was_scored_later_is_landed_again(tiny):
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    trial = spec.model_copy(update={"tests": []})
    save_record(trial)
    assert runs.land("exbert", [trial]) == 1
    save_record(spec)
    assert runs.land("exbert", [trial]) == 1
    assert runs.land("exbert", [trial]) == 0


def test_a_record_that_serves_no_more_is_not_landed(tiny):
    """It would take the place of the committed one, and the run would still have no record."""
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    first = spec.model_copy(update={"tests": ["news"], "test_fingerprints": {"news": "a"}})
    save_record(first)
    assert runs.land("exbert", [first]) == 1
    today = first.model_copy(update={"test_fingerprints": {"news": "b"}})
    assert runs.find_record(today) is None
    assert runs.land("exbert", [today]) == 0


def test_a_record_that_stands_for_the_committed_one_is_told(tiny, store):
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    save_record(spec)
    assert runs.describe_replacing([spec]) == ""
    assert runs.land("exbert", [spec]) == 1
    assert runs.describe_replacing([spec]) == ""
    save_record(spec, seconds=9.0)
    told = runs.describe_replacing([spec])
    assert told.startswith(f"{store / 'runs'} has 1 of the committed records made again, which")
    assert spec.run in told
    (store / "runs").rename(store / "gone")
    assert runs.describe_replacing([spec]) == ""


def test_examples_of_experts_are_of_the_mixture_s_test_rows(tiny):
    expert = plans.plan(tiny(ratios=[1.0]))[0]
    rows_then = {"tests": ["news"], "test_fingerprints": {"news": "then"}}
    examples = pd.DataFrame({"set": ["news"], "id": ["a"]})
    save_record(expert.model_copy(update=rows_then), examples)
    mixture = expert.model_copy(update=rows_then | {"experts": [expert]})
    answers = runs.collect_expert_examples(mixture)
    assert answers[["id", "expert"]].values.tolist() == [["a", expert.domains[0]]]
    other_rows = mixture.model_copy(update={"test_fingerprints": {"news": "today"}})
    with pytest.raises(UserError, match="no record"):
        runs.collect_expert_examples(other_rows)


def test_examples_are_of_the_test_sets_that_are_asked_for(tiny):
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    examples = pd.DataFrame({"set": ["encyclopaedia", "news"], "id": ["a", "b"]})
    save_record(spec.model_copy(update={"tests": ["encyclopaedia", "news"]}), examples)
    asked = spec.model_copy(update={"tests": ["news"]})
    assert runs.collect_examples([asked])["set"].tolist() == ["news"]


@pytest.mark.parametrize("again", [{"test_fingerprints": {"news": "b"}}, {"starter": True}])
def test_a_record_that_serves_replaces_the_landed_one_that_does_not(tiny, again):
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    before = {"tests": ["news"], "test_fingerprints": {"news": "a"}}
    first = spec.model_copy(update=before)
    save_record(first)
    assert runs.land("exbert", [first]) == 1
    second = first.model_copy(update=again)
    assert runs.find_record(second) is None
    save_record(second)
    assert runs.land("exbert", [second]) == 1
    assert runs.land("exbert", [second]) == 0
    shutil.rmtree(runs.run_folder(second))
    assert runs.find_record(second)


def test_a_file_is_written_whole_or_not_at_all(store, monkeypatch):
    file = store / "a.json"
    files.write(file, "first")

    def fill_disk(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        files.write(file, "second")
    assert file.read_text() == "first"
    assert [path.name for path in store.iterdir()] == ["a.json"]


def test_a_run_is_trained_by_one_process_at_a_time(tiny, store, monkeypatch):
    """Two would delete each other's checkpoints, and one record other weights than it says."""
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    folder = runs.run_folder(spec)
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        with pytest.raises(UserError, match=f"^another process trains {spec.run} here; wait"):
            train.train(spec)
        monkeypatch.setenv("RANK", "1")  # the first process of its training holds the lock
        with train.lock_run(spec):
            pass
    assert runs.find_record(spec) is None
    monkeypatch.delenv("RANK")
    with train.lock_run(spec):
        pass


@pytest.mark.parametrize(
    ("error", "free", "is_full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 10**9, True),
        (OSError(errno.EACCES, "Permission denied"), 0, False),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 10**9, True),
        (SafetensorError("header too large"), 0, False),
        (RuntimeError("unexpected pos 23552 vs 23444"), 1000, True),
        (RuntimeError("unexpected pos 23552 vs 23444"), 10**9, False),
    ],
)
def test_a_full_disk_is_told_whatever_wrote(tiny, store, monkeypatch, error, free, is_full):
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    monkeypatch.setattr(study.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    raised = pytest.raises(UserError, match="^the disk of .* is full; make room, the same command")
    with raised if is_full else pytest.raises(type(error)):
        with study.tell_what_is_full(spec):
            raise error


def test_each_kind_of_machine_is_looked_for_once(tiny):
    spec = plans.plan(tiny(precision="bf16", ratios=[1.0]))[0]
    assert len(spec.machine_variants()) == 4
    assert len(spec.in_fp32().machine_variants()) == 2
    assert len(spec.on_gpu().in_fp32().machine_variants()) == 1
    # the run itself is in fp32, and its teacher is not
    taught = spec.in_fp32().model_copy(update={"teachers": [spec]})
    assert [variant.teachers[0].precision for variant in taught.machine_variants()] == [
        *["bf16"] * 2,
        *["fp32"] * 2,
    ]


def test_a_record_is_known_by_its_whole_hash(tiny):
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    other = spec.model_copy(update={"seed": 5})
    save_record(spec)
    folder = runs.run_folder(spec)
    folder.rename(folder.with_name(other.run))
    assert runs.read_stored(runs.run_folder(other))["hash"] == spec.hash
    assert runs.find_record(other) is None
    assert runs.list_recorded_tests(other) == []
    assert runs.land("exbert", [other]) == 0


@pytest.mark.parametrize("name", ["._{run}", "backup-{run}"])
def test_a_run_has_the_folder_of_its_name(tiny, name):
    """Others beside it have the same ending: what a Mac leaves, and a copy."""
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    save_record(spec)
    folder = runs.run_folder(spec)
    other = folder.with_name(name.format(run=spec.run))
    if name.startswith("."):
        other.write_bytes(b"of a Mac")
    else:
        shutil.copytree(folder, other)
    assert runs.run_folder(spec) == folder
    assert runs.find_record(spec)
    # without it a folder with the hash serves, and a file does not
    folder.rename(folder.with_name(f"renamed-s0-{spec.hash[:8]}"))
    assert runs.find_record(spec)


def test_a_record_that_is_a_folder_is_damaged(tiny, capsys):
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    file = runs.run_folder(spec) / "metrics.json"
    file.mkdir(parents=True)
    assert runs.find_record(spec) is None
    assert f"the record {spec.run} is damaged" in capsys.readouterr().out
    save_record(spec)
    assert runs.find_record(spec)


@pytest.mark.parametrize("measured", [{"watched": 300}, {"starter": True}])
def test_a_record_has_what_its_run_was_asked_to_measure(tiny, measured):
    without = plans.plan(tiny(ratios=[1.0]))[0]
    having = without.model_copy(update=measured)
    assert having.hash == without.hash
    save_record(without)
    assert runs.find_record(having) is None
    save_record(having)
    assert runs.find_record(having)
    assert runs.find_record(without)
    if "watched" in measured:
        more = having.model_copy(update={"watched": 301})
        assert runs.find_record(more) is None


def test_nan_is_no_score(tiny):
    spec = plans.plan(tiny())[0]
    with pytest.raises(ValueError, match="em on x is nan"):
        runs.save(spec, {"metrics": {"x": {"em": float("nan")}}}, pd.DataFrame())
    diverges = spec.model_copy(update={"learning_rate": 1e30, "clip": 1e30})
    with pytest.raises(UserError, match="the loss is .* at step"):
        train.train(diverges, progress=show_nothing)
    with pytest.raises(UserError, match="1 of 1 runs have no record"):
        runs.collect_ledger([spec, spec.model_copy(update={"variant": "its other name"})])


def test_a_copied_encoder_is_the_same_run_and_its_path_stays_at_home(tiny, store):
    spec = plans.plan(tiny(encoder="minilm"))[0]
    (store / "copy").symlink_to(encoder_files.find_folder("minilm"))
    copied = plans.plan(tiny(encoder=str(store / "copy")))[0]
    assert copied.hash == spec.hash
    save_record(copied)
    assert runs.find_record(spec)["spec"]["encoder"] == "copy"
    assert set(runs.collect_ledger([copied])["encoder"]) == {"copy"}
    assert str(store) not in (runs.run_folder(spec) / "metrics.json").read_text()


@pytest.mark.slow
def test_kernels_are_limited_before_anything_is_computed():
    """In a study's own process too, which measures its speed first; a user's number stays."""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    code = f"import os; import qa_lib.training.study; print(os.environ['{name}'])"
    for given, expected in (({}, "256"), ({name: "9"}, "9")):
        env = {k: v for k, v in os.environ.items() if not k.startswith("ONEDNN")}
        env |= {"PYTHONPATH": str(ROOT), **given}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == expected


CHILD = """
import json, sys
from qa_lib.data import selection
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.training import train
whole = selection.load_test_sets
selection.load_test_sets = lambda spec: {k: (d, rows[:24]) for k, (d, rows) in whole(spec).items()}
p = plans.load_params("exbert", "quick", json.loads(sys.argv[1]))
train.train(plans.plan(p)[-1], progress=lambda line: print(line, flush=True))
"""


def test_kill_9_in_mid_training_changes_nothing(tiny, store, monkeypatch):
    """An ExBERT is killed in its second epoch and started again. Its numbers stay the same."""
    p = tiny(epochs=2.0, experiments=["untuned"])
    spec = plans.plan(p)[-1]
    assert spec.layer
    undisturbed = train.train(spec, progress=show_nothing)
    (store / "runs").rename(store / "undisturbed")
    env = os.environ | {"QA_CHECKPOINT_SECONDS": "0", "PYTHONPATH": str(ROOT)}
    changes = json.dumps(p.model_dump(exclude={"report", "profile"}))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, changes], env=env, stdout=subprocess.PIPE, text=True
    )
    for line in child.stdout:
        if "step 9/" in line:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert runs.find_record(spec) is None
    resume = train.last_checkpoint(runs.run_folder(spec) / "checkpoints")
    assert resume
    assert int(resume.name.split("-")[1]) >= 7
    # a checkpoint that is half written is not taken
    resume.with_name("checkpoint-1000").mkdir()
    lines = []
    again = train.train(spec, progress=lines.append)
    assert f"goes on from {resume.name}" in lines[0]
    assert read_scores(again) == read_scores(undisturbed)
    for ours, theirs in zip(again["history"], undisturbed["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    # so does the routing, for which the router draws numbers in training
    assert again["load"] == undisturbed["load"]


KILLED = """
import os, sys
from qa_lib.training import train
real = train.Keeper.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == int(sys.argv[2]):
        os._exit(9)
    real(self, args, state, control, **kwargs)
train.Keeper.on_step_end = on_step_end
"""


def kill_at_step(p, step: int) -> Path:
    """Train the plan's last run until it is killed at a step. Returns the folder of checkpoints.

    There is a checkpoint at each logged step.
    """
    env = os.environ | {"QA_CHECKPOINT_SECONDS": "0", "PYTHONPATH": str(ROOT)}
    changes = json.dumps(p.model_dump(exclude={"report", "profile"}))
    done = subprocess.run(
        [sys.executable, "-c", KILLED + CHILD, changes, str(step)], env=env, stdout=subprocess.PIPE
    )
    assert done.returncode == 9
    return runs.run_folder(plans.plan(p)[-1]) / "checkpoints"


def test_a_run_goes_on_from_its_last_whole_checkpoint(tiny, store):
    """A power cut may have truncated any file of the newest. The scores stay the same."""
    p = tiny(epochs=2.0)
    spec = plans.plan(p)[-1]
    undisturbed = train.train(spec, progress=show_nothing)
    (store / "runs").rename(store / "undisturbed")
    checkpoints = kill_at_step(p, 9)
    older, newest = sorted(checkpoints.iterdir(), key=train.step_of)
    names = sorted(f.name for f in newest.iterdir())
    wanted = {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "trainer_state.json",
        "rng_state.pth",
        files.SEAL,
    }
    assert wanted <= set(names)
    assert train.last_checkpoint(checkpoints) == newest
    for name in names:
        content = (newest / name).read_bytes()
        for spoilt in (content[:-1], b"", b"\0" * len(content)):
            (newest / name).write_bytes(spoilt)
            assert train.last_checkpoint(checkpoints) == older, name
        (newest / name).unlink()
        assert train.last_checkpoint(checkpoints) == older, name
        (newest / name).write_bytes(content)
    (newest / "optimizer.pt").write_bytes(b"")
    lines = []
    again = train.train(spec, progress=lines.append)
    dropped = "or the best one before it, is damaged or of other code; dropped"
    assert lines[0] == f"{spec.run}  {newest.name}, {dropped}"
    assert f"goes on from {older.name}" in lines[1]
    assert read_scores(again) == read_scores(undisturbed)


@pytest.mark.slow
def test_without_a_whole_checkpoint_a_run_starts_anew(tiny, store):
    p = tiny(epochs=2.0)
    spec = plans.plan(p)[-1]
    for checkpoint in kill_at_step(p, 9).iterdir():
        (checkpoint / "trainer_state.json").write_text("", encoding="utf-8")
    lines = []
    train.train(spec, progress=lines.append)
    assert ["is damaged" in line for line in lines[:3]] == [True, True, False]
    assert not [line for line in lines if "goes on from" in line]
    assert runs.find_record(spec)


def test_a_checkpoint_whose_best_one_is_damaged_does_not_serve(tmp_path):
    for step, best in ((2, 2), (4, 4), (6, 4)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = json.dumps({"best_model_checkpoint": f"elsewhere/checkpoint-{best}"})
        (folder / "trainer_state.json").write_text(state, encoding="utf-8")
        files.seal(folder, seconds=1.0)
    assert train.last_checkpoint(tmp_path).name == "checkpoint-6"
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{", encoding="utf-8")
    resume = train.last_checkpoint(tmp_path)
    assert resume.name == "checkpoint-2"
    train.drop_other_checkpoints(tmp_path, resume, lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_second_of_training_counts_once_however_many_checkpoints(tmp_path, monkeypatch):
    clock = iter([100.0, 105.0, 108.0])  # the start, then two checkpoints
    monkeypatch.setattr(train.time, "monotonic", lambda: next(clock))
    spec = plans.plan(plans.load_params("moe", "quick"))[0]
    keeper = train.Keeper(spec, None, spent=10.0)  # of a start before this one
    for step, seconds in ((1, 15.0), (2, 18.0)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        keeper.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
        assert files.read_seal(tmp_path / f"checkpoint-{step}")["seconds"] == seconds


def test_a_run_that_goes_on_has_the_seconds_before_it(tiny, tmp_path):
    spec = plans.plan(tiny())[0]
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
    files.seal(checkpoint, seconds=90.0, code=runs.describe_code(spec))
    resume, seconds, _ = train.find_resume(spec, tmp_path)
    assert resume == checkpoint
    assert seconds == 90.0


def test_a_run_that_is_asked_for_more_begins_anew(tiny, tmp_path):
    """A curve of watched rows would lack its begin; a head for another test set its state."""
    spec = plans.plan(tiny())[0]
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
    watching = spec.model_copy(update={"watched": 60})
    code = runs.describe_code(spec)
    files.seal(checkpoint, seconds=90.0, code=code, asked=train.list_asked(watching))
    assert spec.hash == watching.hash
    assert train.find_resume(watching, tmp_path)[0] == checkpoint
    assert train.find_resume(spec, tmp_path)[0] is None
    # other test sets matter where each has a head
    tested = [watching.model_copy(update={"tests": tests}) for tests in (["a"], ["a", "b"])]
    assert train.find_resume(tested[0], tmp_path)[0] == checkpoint
    with_heads = [spec.model_copy(update={"heads": Heads()}) for spec in tested]
    assert train.list_asked(with_heads[0]) != train.list_asked(with_heads[1])


def plan_child(tiny):
    """Return two runs, of which the second starts from the weights of the first."""
    parent = plans.plan(tiny(ratios=[1.0]))[0]
    other = plans.plan(tiny(ratios=[0.0]))[0]
    return parent, other.model_copy(update={"start": parent, "variant": "child"})


def test_a_child_starts_from_the_whole_weights_of_its_parent(tiny):
    parent, child = plan_child(tiny)
    assert study.list_missing([parent, child]) == [parent, child]
    train.train(parent, progress=show_nothing, keep_weights=True)
    # the record and the weights are there
    assert study.list_missing([parent, child]) == [child]
    weights = load_file(runs.run_folder(parent) / "model.safetensors")
    model, _ = build.build_model(child)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    file = runs.run_folder(parent) / "model.safetensors"
    content = file.read_bytes()
    # a power cut leaves such files
    for spoilt in (content[:-1], b""):
        file.write_bytes(spoilt)
        assert study.list_missing([parent, child]) == [parent, child]
        assert not file.exists()
    file.write_bytes(content)
    # new experts inside the encoder of a parent
    inside = child.model_copy(update={"layer": Layer(place="feed_forward", experts=4)})
    assert build.build_model(inside)[0].layer.sparse


def test_a_parent_without_weights_is_trained_again_for_its_child(tiny):
    parent, child = plan_child(tiny)
    train.train(parent, progress=show_nothing, keep_weights=True)
    runs.discard(parent, "model.safetensors")
    words = f"the weights of {parent.run}, .* were not kept; train it first: --run {parent.run}"
    with pytest.raises(UserError, match=words):
        build.build_model(child)
    # the parent's record is complete, but the child needs the weights
    assert study.list_missing([parent, child]) == [parent, child]
    tokens = {s.hash: 1.0 for s in (parent, child)}
    study._train([parent, child], tokens, 1, study.list_parents([child]), False)
    assert runs.find_record(child)
    assert not (runs.run_folder(parent) / "model.safetensors").exists()
    # a child holds its parent without test sets; the record loses no score
    untested = parent.model_copy(update={"tests": []})
    train.train(untested, progress=show_nothing, keep_weights=True)
    assert runs.find_record(parent)
    assert set(parent.tests) <= set(runs.find_record(parent)["metrics"])


@pytest.mark.parametrize("name", ["nope", "moe-", "expert-"])
def test_a_name_that_fits_no_run_or_several_is_told_how_many_there_are(name):
    names = [spec.run for spec in plans.plan(plans.load_params("moe", "quick"))]
    fitting = [run for run in names if run.startswith(name)]
    with pytest.raises(UserError) as error:
        run_verb(["train", "moe", "--profile", "quick", "--run", name])
    says, _, listed = str(error.value).partition(", or a beginning of it that no other run has: ")
    runs_told = f"{len(fitting)} of the {len(names)} runs of the plan"
    assert says == f"--run {name} fits {runs_told}; write a name"
    shown, _, more = listed.partition(" and ")
    left_out = len(fitting or names) - len(shown.split(", "))
    assert more == (f"{left_out} more" if left_out else "")


@pytest.mark.parametrize("name", ["v-db-", "v-db-trial-"])
def test_a_trial_that_is_a_run_of_the_comparison_too_is_scored_under_either_name(
    monkeypatch, tiny, tmp_path, name
):
    """The study scores it; without test sets its record would not serve the comparison."""
    trial = plans.plan(tiny(ratios=[1.0]))[0].model_copy(update={"variant": "v-db-trial"})
    tests = trial.tests
    run = trial.model_copy(update={"variant": "v-db"})
    trial = trial.model_copy(update={"tests": []})
    assert (trial.hash, len(tests)) == (run.hash, 2)
    trained = []
    sizes = []

    def remember(spec, keep_weights):
        trained.append(spec)

    monkeypatch.setattr(train, "train", remember)
    for specs in ([trial, run], [run, trial]):

        def plan(P, specs=specs):
            sizes.append(P.size)
            return specs

        monkeypatch.setattr(plans, "plan", plan)
        whole = {"v-db-": run.run, "v-db-trial-": trial.run}[name]
        real = ["--profile", "real", "--data", str(tmp_path)]
        run_verb(["train", "exbert", *real, "--run", whole[:-3]])
    # the size that a study has on this machine
    assert set(sizes) == {"full" if torch.cuda.is_available() else "small"}
    assert [spec.tests for spec in trained] == [tests, tests]


def test_what_an_encoder_cannot_take_is_refused_before_any_training(tiny):
    """Windows may be too long and blocks too few, also in the last run of a list."""
    words = "max_length: the encoder reads 512 tokens, and windows of 513 are asked for"
    with pytest.raises(UserError, match=words):
        study.run(tiny(max_length=513), plans.plan, live=False)
    specs = plans.plan(tiny())
    words = "^a run is to re-initialise 1 blocks of an encoder of 1, .* sweep_reinit, which"
    with pytest.raises(UserError, match=words):
        study.estimate_cost([*specs, specs[0].model_copy(update={"reinit": 1})], 1)


def test_an_encoder_is_given_only_what_it_knows(tiny, tmp_path):
    """RoBERTa has no token types and keeps a position for padding."""
    small = {
        "vocab_size": 30522,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    roberta = RobertaModel(
        RobertaConfig(**small, max_position_embeddings=66, type_vocab_size=1, pad_token_id=0)
    )
    assert encoders.count_positions(roberta) == 65
    assert encoders.count_positions(encoders.load_encoder("minilm")[0]) == 512
    rows = selection.draw_mixture(plans.plan(tiny())[0])[0][:2]
    minilm, tokenizer = encoders.load_encoder("minilm", 1)
    windows = features.load_windows(rows, tokenizer, 64, 16, tmp_path)
    model = heads.SpanModel(roberta)
    collate = model.collate(tokenizer, span, "encyclopaedia")
    batch = collate([dict(w) for w in model.prepare(windows, rows)])
    assert torch.isfinite(model(**batch).loss)
    assert "token_type_ids" not in batch
    collate = heads.SpanModel(minilm).collate(tokenizer, span, "encyclopaedia")
    assert "token_type_ids" in collate([dict(windows[0])])


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"batch_size": 10_000, "max_length": 512, "encoder": "minilm"},
            "GB of memory, most of it for a batch of 10000 windows, and .*; "
            "lower batch_size or max_length",
        ),
        (
            {"experts": 1000, "width": 100.0, "encoder": "minilm"},
            "GB of memory, most of it for its weights, and .*; lower experts or width",
        ),
    ],
)
def test_what_no_memory_can_hold_is_refused_before_any_training(tiny, changes, words):
    spec = plans.plan(tiny(experiments=["untuned"], **changes))[-1]
    with pytest.raises(UserError, match=words):
        study.check_memory(spec)
    for spec in plans.plan(tiny(experiments=["untuned"])):
        study.check_memory(spec)


def test_the_cure_for_large_weights_names_what_the_run_has(tiny, monkeypatch):
    spec = plans.plan(tiny(encoder="minilm"))[0]
    assert spec.layer is None
    machine = SimpleNamespace(total=2**26)
    monkeypatch.setattr(study.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(study, "batch_memory", lambda spec: 0.0)
    with pytest.raises(UserError, match="most of it for its weights, and .*; name a smaller enc"):
        study.check_memory(spec)


def test_memory_of_a_batch_counts_blocks_and_the_layers_width(tiny, monkeypatch):
    run = plans.plan(tiny(encoder="minilm"))[0]
    assert run.layer is None
    plain = run.model_copy(update={"batch_size": 16, "max_length": 384, "blocks": 6})
    by_block = 16 * 384 * (4 * (10 * 384 + 2 * 1536) + 12 * 384) / 2**30
    assert study.batch_memory(plain) == pytest.approx(1.2 + 6 * by_block)
    # whole datasets are larger
    cut = plain.model_copy(update={"source": "folder", "blocks": 2})
    assert study.batch_memory(cut) == pytest.approx(1.9 + 2 * by_block)
    # with heads by dataset blocks are recomputed
    monkeypatch.setattr(study, "longest_row", lambda spec: 384)
    headed = plain.model_copy(update={"heads": Heads()})
    assert study.batch_memory(headed) == pytest.approx(
        1.2 + recomputed_blocks.KEPT / 2**30 + by_block
    )
    few = headed.model_copy(update={"batch_size": 1})
    assert study.batch_memory(few) == pytest.approx(1.2 + 6 * by_block / 16)
    # two of 16 experts of 1024 units, and the feed-forward layer behind them
    sparse = plain.model_copy(update={"layer": Layer(top_n=2, experts=16, width=1.0)})
    assert study.count_hidden_units(sparse) == 3 * 1024
    dense = sparse.model_copy(update={"dense": 16.0})
    assert study.count_hidden_units(dense) == 17 * 1024
    added = study.batch_memory(dense) - study.batch_memory(plain)
    assert added == pytest.approx(12 * 16 * 384 * 17 * 1024 / 2**30)


def test_the_largest_seed_trains(tiny):
    p = tiny(seeds=[2**32 - 1])
    assert train.train(plans.plan(p)[0], progress=show_nothing)["metrics"]


def test_a_worker_that_the_system_ends_is_one_sentence(tiny, monkeypatch):
    specs = plans.plan(tiny(seeds=[0, 1]))
    monkeypatch.setattr(
        study.pool.Processes, "submit", lambda self, f, spec, *rest: self.pool.submit(os._exit, 9)
    )
    words = "the system ended a worker, most likely for want of memory; WORKERS=1"
    with pytest.raises(UserError, match=words):
        study._train(specs, {s.hash: 1.0 for s in specs}, 2, set(), False)


@pytest.mark.slow
def test_two_workers_give_the_same_numbers_as_one(tiny, store):
    p = tiny(experiments=["untuned"], train_rows=16)
    table = study.run(p, plans.plan, workers=2, live=False)
    assert list(table.trained) == ["now", "now"]
    spec = plans.plan(p)[-1]
    record = runs.find_record(spec)
    (store / "runs").rename(store / "apart")
    alone = train.train(spec, progress=show_nothing)
    assert alone["history"] == record["history"]
    assert alone["load"]["training"] == record["load"]["training"]


def test_two_studies_at_once_wait_for_each_other(tiny, capsys):
    p = tiny(train_rows=16)
    held = threading.Event()
    runs.RUNS.mkdir(parents=True)

    def train_elsewhere():
        with FileLock(runs.RUNS / "exbert.lock"):
            held.set()
            train.train(plans.plan(p)[0], progress=show_nothing)

    thread = threading.Thread(target=train_elsewhere)
    thread.start()
    held.wait()
    study.run(p, plans.plan, live=False)
    thread.join()
    output = capsys.readouterr().out
    assert "another study of exbert is training here; waiting" in output
    assert "step 1/" not in output


def test_a_dry_run_waits_for_no_other_study(tiny, capsys, monkeypatch):
    """It trains nothing, so another study may hold the lock."""

    def wait_for_ever(report):
        raise AssertionError("a dry run asked for the lock")

    monkeypatch.setattr(study, "_lock_report", wait_for_ever)
    table = study.run(tiny(train_rows=16), plans.plan, dry_run=True)
    assert table.empty
    assert "GB of disk" in capsys.readouterr().out
    assert not list(runs.RUNS.rglob("metrics.json"))


def test_a_later_round_takes_as_many_workers_as_it_has_use_for(tiny, monkeypatch):
    """One trial is left, then the two runs that it decides. All three are trained now."""
    three = plans.plan(tiny(seeds=[0, 1, 2]))
    rounds = iter([three[:1]] * 2 + [three[1:]] * 3 + [[]])
    seen = []
    monkeypatch.setattr(study, "list_missing", lambda specs, fresh: next(rounds))
    monkeypatch.setattr(study, "default_workers", len)
    monkeypatch.setattr(study, "_announce_cost", lambda todo, workers, yes: {})
    monkeypatch.setattr(
        study, "_train", lambda todo, tokens, workers, keep, live: seen.append(workers)
    )
    monkeypatch.setattr(
        runs,
        "find_record",
        lambda spec, fresh: {"run": spec.run, "hash": spec.hash, "seconds": 1.0},
    )
    assert list(study.run(tiny(seeds=[0, 1, 2]), plans.plan)["trained"]) == ["now"] * 3
    assert seen == [1, 2]


def test_a_study_stops_before_training_when_it_is_too_long_or_the_disk_too_small(tiny, monkeypatch):
    monkeypatch.setattr(study, "HOURS", 0)
    with pytest.raises(UserError, match="more than 0 hours; say YES=1"):
        study.run(tiny(), plans.plan, live=False)
    monkeypatch.setattr(study, "HOURS", 12)
    monkeypatch.setattr(study.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1e6}))
    with pytest.raises(UserError, match="GB free and this study needs about"):
        study.run(tiny(), plans.plan, live=False)
    assert not list(runs.RUNS.glob("exbert/*/metrics.json"))


def test_a_checkpoint_is_as_large_as_what_it_holds(tiny):
    """Weights and two moments of all blocks, the sparse one too; the heads are hardly anything."""
    plain = plans.plan(tiny())[0]
    sparse = plain.model_copy(update={"layer": Layer()})
    for spec in (plain, sparse):
        model, _ = build.build_model(spec)
        held = 12 * sum(p.numel() for p in model.parameters())
        assert 0.98 * held < study.count_checkpoint_bytes(spec) <= held
    averaged = plain.model_copy(update={"smart": Smart(bregman=1.0)})
    alone = plain.model_copy(update={"smart": Smart(bregman=0.0)})
    of_plain = study.count_checkpoint_bytes(plain)
    assert study.count_checkpoint_bytes(sparse) > of_plain
    assert study.count_checkpoint_bytes(alone) == of_plain
    assert study.count_checkpoint_bytes(averaged) == of_plain / 3 * 4


@pytest.mark.parametrize("folder", ["file/folder", "x" * 300])
def test_a_single_run_stops_before_training_where_it_cannot_write(store, monkeypatch, folder):
    monkeypatch.setattr(train, "train", lambda *args, **options: pytest.fail("it trains"))
    (store / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(runs, "RUNS", store / folder)
    words = "cannot be written .(Not a directory|File name too long): .*QA_RUNS to a folder that"
    with pytest.raises(UserError, match=words) as error:
        run_verb(["train", "exbert", "--profile", "quick", "--run", "start"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, variable", [("RUNS", "QA_RUNS"), ("FIGURES", "QA_FIGURES")])
def test_a_study_stops_before_training_where_it_cannot_write(
    tiny, store, monkeypatch, name, variable
):
    monkeypatch.setattr(study, "_train", lambda *args: pytest.fail("it trains"))
    (store / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(runs, name, store / "file" / "folder")
    words = f"cannot be written .Not a directory: .*{variable} to a folder that can"
    with pytest.raises(UserError, match=words) as error:
        study.run(tiny(), plans.plan, live=False)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_found_before_training(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    files.check_writable(tmp_path / "a" / "b", "QA_RUNS")
    # the check leaves nothing behind
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(files.os, "fsync", full)
    words = "a/b cannot be written .No space left on device: .*; mend that, or set QA_RUNS"
    with pytest.raises(UserError, match=words):
        files.check_writable(tmp_path / "a" / "b", "QA_RUNS")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "x.csv"),
        OSError(28, "No space left", "x.csv"),
        OSError(30, "Read-only file system", "x.csv"),
        OSError(36, "File name too long", "x.csv"),
    ],
)
def test_what_cannot_be_written_later_is_one_sentence_too(capsys, error):
    def run():
        raise error

    with pytest.raises(SystemExit) as stop:
        command_line.run_and_exit(run)
    output = capsys.readouterr().err
    assert stop.value.code == 2
    assert output.startswith("error: x.csv: ")
    assert output.count("\n") == 1


@pytest.mark.slow
def test_training_needs_no_home_and_no_locale(store):
    """HOME is a file, and the locale is ASCII. The figures/ of the checkout stay as they are."""
    (store / "home").write_text("", encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "XDG_", "HF_", "LANG"))}
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        env[name] = str(store / "home")
    env |= {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "HF_HUB_OFFLINE": "1",
        "QA_FIGURES": str(store / "figures"),
        "PYTHONPATH": str(ROOT),
    }
    qa_lib = [sys.executable, "-m", "qa_lib"]
    command = [*qa_lib, "study", "exbert", "--profile", "quick", "--workers", "1"]
    smaller = {"side_seeds": [0], "centre": 0.5, "control_ratios": [0.5], "train_rows": 16}
    for name, value in (TINY | smaller).items():
        command += ["-p", f"{name}={json.dumps(value)}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=store, env=env)
    assert done.returncode == 0, done.stderr
    assert "1/1 runs" in done.stdout, done.stderr
    assert sorted(f.name for f in store.iterdir()) == ["figures", "home", "runs"]
    usage = subprocess.run([*qa_lib, "study", "--help"], capture_output=True, env=env)
    assert usage.returncode == 0
    assert rb"KEY=VALUE \u2026" in usage.stdout


def test_the_precision_is_the_run_s_own(tiny, monkeypatch):
    """It depends neither on another run in this process nor on the environment."""
    spec = plans.plan(tiny())[0]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train.training_arguments(spec, 10, False).mixed_precision == "no"
    bf16 = spec.model_copy(update={"precision": "bf16"})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert train.training_arguments(bf16, 10, False).mixed_precision == "bf16"


def test_the_command_line_ends_with_one_sentence_and_code_2():
    command = [sys.executable, "-m", "qa_lib", "study", "exbert", "--profile", "quick"]
    done = subprocess.run(
        [*command, "-p", "learnig_rate=1"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2, done.stderr
    assert "did you mean learning_rate" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["exbert", "-p", "learning_rate=1e-5"], "is read as text"),
        (["exbert", "--profile", "real"], "DATA=path/to/data"),
        (["exbert", "--profile", "real", "--data", "nowhere"], "does not exist"),
        (["exbert", "--profile", "paper"], "cannot be had from the hub"),
        (["exbert", "-p", "blocks=9"], "encoder minilm, which has 6"),
        (["bert"], "is not a report of this study"),
    ],
)
def test_a_mistake_is_said_before_any_training(arguments, words, store):
    if "--profile" not in arguments:
        arguments = [*arguments, "--profile", "quick"]
    with pytest.raises(UserError, match=words):
        run_verb(["study", *arguments])


def test_no_workers_are_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["study", "exbert", "--profile", "quick", "--workers", "0"])
    with pytest.raises(UserError, match="WORKERS=0: at least one run"):
        run_verb(sys.argv)


def start_study(**options) -> subprocess.Popen:
    """Start a study with two workers that answers Ctrl-C, which a background job ignores."""
    few = ["--profile", "quick", "-p", "experiments=[ratios]", "-p", "start=null", "--workers", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "qa_lib", "study", "exbert", *few],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.mark.parametrize(
    "stop",
    [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
    ids=lambda stop: stop.name,
)
def test_a_stopped_study_leaves_no_worker_and_ctrl_c_says_how_to_go_on(store, stop):
    child = start_study()
    for line in child.stdout:
        if " step " in line:
            break
    workers = psutil.Process(child.pid).children()
    child.send_signal(stop)
    gone, alive = psutil.wait_procs(workers, timeout=60)
    _, errors = child.communicate(timeout=60)
    assert gone
    assert not alive
    if stop is signal.SIGINT:
        assert child.returncode == 130
        assert "the same command goes on from here" in errors
        assert "Traceback" not in errors


def test_ctrl_c_while_workers_start_is_one_sentence(store):
    """A terminal sends it to all processes; a worker that still imports would print a traceback."""
    child = start_study(start_new_session=True)  # a group of its own, as in a terminal
    started = []
    while not started and child.poll() is None:
        time.sleep(0.02)
        begun = psutil.Process(child.pid).children()
        started = [process for process in begun if "spawn_main" in " ".join(process.cmdline())]
    time.sleep(0.3)  # Python is up, and imports
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors == "stopped; nothing finished is lost, the same command goes on from here\n"
    assert not psutil.wait_procs(started, timeout=60)[1]


def test_logits_do_not_depend_on_the_batch(tiny):
    spec = plans.plan(tiny(precision="fp32"))[0]
    model, tokenizer = build.build_model(spec)
    rows = selection.load_splits("encyclopaedia", "embedded").test[:6]
    windows = features.load_windows(rows, tokenizer, 128, 32, evaluate.CACHE)
    collate = model.collate(tokenizer, span, "encyclopaedia")
    outputs, loss = evaluate.compute_outputs(model, windows, collate, "fp32", span)
    losses = []
    for i in range(len(windows)):
        window = windows.select([i])
        alone, of_window = evaluate.compute_outputs(model, window, collate, "fp32", span)
        np.testing.assert_allclose(alone["start"][0], outputs["start"][i], atol=1e-4)
        losses.append(of_window)
    # nor does the mean loss
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_a_logged_value_counts_by_its_steps():
    rows = [{"step": 10, "x": 4.0}, {"step": 11, "x": 1.0}, {"step": 20}, {"step": 25, "x": 2.0}]
    assert runs.average_logged(rows, "x") == (10 * 4 + 1 * 1 + 5 * 2) / 16
    assert math.isnan(runs.average_logged(rows, "y"))


def test_a_record_has_the_seconds_of_all_its_starts(tiny, monkeypatch):
    spec = plans.plan(tiny())[0]
    of_before = (None, 900.0, runs.describe_code(spec))
    monkeypatch.setattr(train, "find_resume", lambda *_: of_before)
    record = train.train(spec, progress=show_nothing)
    assert 900 < record["training_seconds"] < record["seconds"] < 1000


def test_a_pool_is_known_by_what_tests_on_its_members(monkeypatch):
    known = {"manuals": Dataset(train=["a"], test=["b"], rows=9), "both": Dataset(pool=["manuals"])}
    monkeypatch.setattr(params, "read_datasets", lambda *_: known)
    first = selection.fingerprint_test_sets(known, "embedded", None)
    known["manuals"] = known["manuals"].model_copy(update={"test_rows": 5})
    second = selection.fingerprint_test_sets(known, "embedded", None)
    assert second["both"] != first["both"]
