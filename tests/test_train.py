"""One run end to end, killed and resumed, its record, its parents; the model against transformers' own."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import TINY
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import BertForQuestionAnswering, RobertaConfig, RobertaModel

from qa_lib.__main__ import run_verb
from qa_lib.data import features, selection
from qa_lib.models import encoders, heads
from qa_lib.page import report
from qa_lib.reports import plans
from qa_lib.settings import command_line, encoder_files, files
from qa_lib.settings.parameters import Layer
from qa_lib.settings.params import ROOT, UserError
from qa_lib.store import runs
from qa_lib.training import build, evaluate, study, train


def scores(record: dict) -> dict:
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
    ours, theirs = (
        model(input_ids=ids, attention_mask=mask, **labels),
        peer(input_ids=ids, attention_mask=mask, **labels),
    )
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.start_logits, theirs.start_logits)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = heads.SpanModel(encoders.load_encoder("minilm", 2)[0]).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(input_ids=ids, attention_mask=mask).end_logits, ours.end_logits)
    wide = (
        torch.nn.functional.pad(ids, (0, 8)),
        torch.nn.functional.pad(mask, (0, 8)),
    )  # padding changes nothing
    padded = model(input_ids=wide[0], attention_mask=wide[1])
    torch.testing.assert_close(padded.start_logits[:, :40], ours.start_logits, atol=1e-5, rtol=1e-5)
    assert (padded.start_logits[:, 40:] < -1e30).all()


def test_a_run_is_recorded_found_and_portable(tiny, store, capsys):
    p = tiny()
    first = study.run(p, plans.plan, live=False)
    assert list(first.trained) == ["now"]
    spec = plans.plan(p)[0]
    record = runs.find_record(spec)
    assert record["metrics"]["encyclopaedia"]["n"] == 24 and record["environment"]["commit"]
    assert [h["epoch"] for h in record["history"]] == [1.0] and record["history"][0][
        "train_loss"
    ] > 0
    assert (
        not (runs.run_folder(spec) / "checkpoints").exists()
        and not (runs.run_folder(spec) / "model.safetensors").exists()
    )
    text = (runs.run_folder(spec) / "metrics.json").read_text() + pd.read_parquet(
        runs.run_folder(spec) / "examples.parquet"
    ).to_csv()
    assert not any(
        r["question"] in text for r in selection.load_splits("encyclopaedia", "embedded").test
    )
    assert list(study.run(p, plans.plan, live=False).trained) == ["found"]
    # landed and read from there alone
    ledger, examples = runs.collect_ledger([spec]), runs.collect_examples([spec])
    runs.write(
        store / "records" / "exbert" / "examples-002.parquet", runs.format_parquet(examples[:3])
    )  # a landing that was killed
    assert runs.land("exbert", [spec]) == 1 and runs.land("exbert", [spec]) == 0
    assert sorted(f.stem for f in (store / "records" / "exbert").glob("*.parquet")) == [
        "examples-002",
        "examples-003",
    ]
    (store / "runs").rename(store / "gone")
    assert runs.collect_ledger([spec]).equals(ledger)
    assert runs.collect_examples([spec])[examples.columns].equals(examples)
    assert list(study.run(p, plans.plan, live=False).trained) == ["found"]
    assert runs.find_record(spec, fresh=True) is None and study.list_missing(
        [spec], fresh=True
    ) == [spec]
    # a committed file that is damaged or gone is one sentence
    for damage, words in (
        (
            lambda f: f.write_bytes(f.read_bytes()[:-9]),
            "parquet cannot be read .*restore the file from git",
        ),
        (Path.unlink, f"the examples of {spec.run} are in no examples-"),
    ):
        runs._read_committed_examples.cache_clear()
        for file in (store / "records" / "exbert").glob("examples-*"):
            damage(file)
        with pytest.raises(UserError, match=words):
            runs.collect_examples([spec])
    for line in (b"123", b'{"hash": "\xff"}', b"{"):
        (store / "records" / "exbert" / "runs.jsonl").write_bytes(line)
        runs.read_committed.cache_clear()
        with pytest.raises(UserError, match="runs.jsonl, line 1: damaged record"):
            runs.find_record(spec)


def test_runs_of_either_size_are_landed_where_none_is_named(monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "land", lambda report, specs: seen.append({s.size for s in specs}))
    for more in ([], ["--size", "small"]):
        monkeypatch.setattr("sys.argv", ["land", "moe", "--profile", "real", *more])
        assert run_verb(sys.argv) == 0
    assert seen == [{"full", "small"}, {"small"}]


def test_same_seed_same_numbers_and_a_damaged_record_is_retrained(tiny, capsys):
    spec = plans.plan(tiny())[0]
    first = train.train(spec, progress=lambda line: None)
    path = runs.run_folder(spec) / "metrics.json"
    path.write_text(path.read_text().replace('"em":', '"em":1', 1))
    assert runs.find_record(spec) is None and "damaged" in capsys.readouterr().out
    path.write_text("{")
    assert study.list_missing([spec]) == [spec]
    np.ones(2**27)  # 1 GB, before the run and none of its own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    again = train.train(spec, progress=lambda line: None)
    assert scores(again) == scores(first)
    assert again["peak_memory_mb"] < peak - 500 or not os.access("/proc/self/clear_refs", os.W_OK)


def test_a_machine_without_git_says_what_it_was_told(tiny, monkeypatch):
    def absent(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.delenv("QA_COMMIT", raising=False)
    monkeypatch.setattr(train.subprocess, "run", absent)
    spec = plans.plan(tiny())[0]
    made = train.describe_environment(spec)
    assert (made["commit"], made["dirty"]) == ("unknown", None)
    monkeypatch.setenv("QA_COMMIT", "0123abc")
    made = train.describe_environment(spec)
    assert (made["commit"], made["dirty"]) == ("0123abc", None)


def run_git(folder: Path, *words: str) -> str:
    """Run git in a folder, without the settings and the repository of whoever runs the tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    command += ["-c", "protocol.file.allow=always", *words]
    return subprocess.run(
        command, env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Make a folder with code and parameters that read_commit takes for its own checkout."""
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
    inside = checkout(other / "inside", committed=False)  # unpacked within another repository
    assert train.read_commit() == ("unknown", None)
    run_git(other, "add", "inside")
    run_git(other, "commit", "-qm", "vendored")  # and even committed there
    assert train.read_commit() == ("unknown", None)
    monkeypatch.setenv("QA_COMMIT", "0123abc")
    assert train.read_commit() == ("0123abc", None)

    run_git(inside, "init", "-q")  # a repository without a commit
    assert train.read_commit() == ("0123abc", None)
    monkeypatch.delenv("QA_COMMIT")
    assert train.read_commit() == ("unknown", None)

    own = checkout(tmp_path / "own", committed=True)
    commit = run_git(own, "rev-parse", "HEAD")
    monkeypatch.setenv("QA_COMMIT", "0123abc")  # left over from another machine
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert theirs != commit and train.read_commit() == (commit, False)


@pytest.mark.parametrize(
    "file", ["qa_lib/a.py", "params/a.yaml", "qa_lib/new.py", "params/b/new.yaml"]
)
def test_what_differs_from_the_commit_is_dirty(checkout, tmp_path, file):
    """Also a file that git does not know yet, and where the user's settings hide those."""
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
    """As with the folder of another owner (safe.directory)."""
    own = checkout(tmp_path / "own", committed=True)
    (own / ".git" / "HEAD").write_text("no reference", encoding="utf-8")
    assert train.read_commit() == ("unknown", None)


def test_a_page_does_not_call_unknown_code_clean():
    told = {"commit": "0123456789abcdef", "dirty": None}
    assert (
        report._describe_commit(told)
        == "commit 0123456789ab, as the machine was told, with or without changes"
    )
    assert report._describe_commit(told | {"dirty": False}) == "commit 0123456789ab"
    assert "not exactly that code" in report._describe_commit(told | {"dirty": True})
    for dirty in (None, False):
        assert "is not known" in report._describe_commit({"commit": "unknown", "dirty": dirty})


def test_trials_on_a_gpu_are_scored_at_once(tiny, monkeypatch):
    p = tiny(arms=["tuned"], experiments=["headline"])
    trials = plans.plan(p)
    assert (
        trials
        and not any(s.tests for s in trials if s.arm == "tuned")
        and study.list_missing(trials) == trials
    )
    machine(monkeypatch, cuda=True)
    todo = study.list_missing(plans.plan(tiny(arms=["tuned", "printed"])))
    assert len(todo) > len(trials) and all(
        s.tests == p.domains and s.threads == "cuda" for s in todo
    )


def machine(monkeypatch, cuda: bool, bf16: bool = True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16, raising=False)


def planted(spec, examples=None):
    scores = {name: {"em": 50.0, "n": 1, "clusters": 1} for name in spec.tests}
    made = {
        "device": "GPU" if spec.threads == "cuda" else "CPU, 1 thread",
        "precision": spec.precision,
    }
    runs.save(
        spec,
        {"metrics": scores, "history": [], "environment": made, "seconds": 1.0},
        pd.DataFrame({"id": ["a"]}) if examples is None else examples,
    )


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
    """Of one kind of machine they are found on another, where nothing is trained again."""
    p = tiny(precision="bf16", ratios=[1.0])
    machine(monkeypatch, *trained)
    (spec,) = study.list_missing(plans.plan(p))
    planted(spec)
    machine(monkeypatch, *drawn)
    assert study.list_missing(plans.plan(p)) == [] and list(
        study.run(p, plans.plan, live=False)["run"]
    ) == [spec.run]
    assert set(runs.collect_ledger(plans.plan(p))["precision"]) == {
        "bf16" if trained[1] else "fp32"
    }


def test_without_bf16_instructions_training_is_in_fp32(tiny, monkeypatch, store, capsys):
    p = tiny(precision="bf16", ratios=[1.0])
    machine(monkeypatch, False)
    (spec,) = study.list_missing(plans.plan(p))
    planted(spec)
    assert runs.land("exbert", plans.plan(p)) == 1
    machine(monkeypatch, False, bf16=False)
    assert list(study.run(p, plans.plan, fresh=True, live=False)["trained"]) == [
        "found"
    ]  # that of the store
    (store / "runs").rename(store / "gone")
    assert list(study.run(p, plans.plan, fresh=True, live=False)["trained"]) == ["now"]
    assert runs.land("exbert", plans.plan(p)) == 0  # its committed record is of another machine
    study.print_comparison(p, plans.plan)
    said = capsys.readouterr().out
    assert "no bf16 instructions here: what is trained is trained in fp32\n" in said
    assert re.search(
        rf"v-db-100-0-s0-(?!{spec.hash[:8]}).*: EM [0-9.]+, committed 50.00 \(CPU, 1 thread, bf16\)\n",
        said,
    )


def test_a_landing_of_several_files_keeps_every_example(tiny, monkeypatch, store):
    specs = plans.plan(tiny(ratios=[0.0, 0.5, 1.0]))[:3]
    for i, spec in enumerate(specs):
        planted(
            spec,
            pd.DataFrame(
                {
                    "set": spec.tests[0],
                    "id": [f"{i}-{k}" for k in range(9)],
                    "cluster": "a",
                    "em": 50.0,
                }
            ),
        )
    monkeypatch.setattr(runs, "LIMIT", 1)
    assert (
        runs.land("exbert", specs) == 3
        and len(list((store / "records" / "exbert").glob("examples-*.parquet"))) == 3
    )
    (store / "runs").rename(store / "gone")
    assert runs.collect_examples(specs)["id"].tolist() == [
        f"{i}-{k}" for i in range(3) for k in range(9)
    ]


def test_a_look_s_training_loss_is_the_mean_over_its_steps():
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
    train.train(spec.model_copy(update={"tests": ["biomedicine"]}), progress=lambda line: None)
    assert (
        runs.find_record(spec.model_copy(update={"tests": ["biomedicine"]}))
        and runs.find_record(spec) is None
    )
    assert study.list_missing([spec]) == [spec]


def test_nan_is_no_score(tiny):
    spec = plans.plan(tiny())[0]
    with pytest.raises(ValueError, match="em on x is nan"):
        runs.save(spec, {"metrics": {"x": {"em": float("nan")}}}, pd.DataFrame())
    with pytest.raises(UserError, match="the loss is .* at step"):
        train.train(
            spec.model_copy(update={"learning_rate": 1e30, "clip": 1e30}),
            progress=lambda line: None,
        )
    with pytest.raises(UserError, match="1 of 1 runs have no record"):
        runs.collect_ledger([spec, spec.model_copy(update={"variant": "its other name"})])


def test_a_copied_encoder_is_the_same_run_and_its_path_stays_at_home(tiny, store):
    spec = plans.plan(tiny())[0]
    (store / "copy").symlink_to(encoder_files.find_folder("minilm"))
    copied = plans.plan(tiny(encoder=str(store / "copy")))[0]
    assert copied.hash == spec.hash
    scored = {name: {"em": 1.0, "n": 1} for name in spec.tests}
    runs.save(
        copied,
        {"metrics": scored, "environment": {"device": "CPU", "precision": "bf16"}},
        pd.DataFrame({"id": ["a"]}),
    )
    assert runs.find_record(spec)["spec"]["encoder"] == "copy" and set(
        runs.collect_ledger([copied])["encoder"]
    ) == {"copy"}
    assert str(store) not in (runs.run_folder(spec) / "metrics.json").read_text()


CHILD = """
import json, sys
from qa_lib.data import selection
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.training import train
whole = selection.load_test_sets
selection.load_test_sets = lambda spec: {k: (d, rows[:24]) for k, (d, rows) in whole(spec).items()}
p = params.load_params("exbert", "quick", json.loads(sys.argv[1]))
train.train(plans.plan(p)[-1], progress=lambda line: print(line, flush=True))
"""


def test_kill_9_in_mid_training_changes_nothing(tiny, store, monkeypatch):
    """ExBERT killed behind a checkpoint inside the second epoch, started again: the numbers of an undisturbed run."""
    p = tiny(epochs=2.0, experiments=["untuned"])
    spec = plans.plan(p)[-1]
    assert spec.layer
    undisturbed = train.train(spec, progress=lambda line: None)
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
    assert resume and int(resume.name.split("-")[1]) >= 7
    broken = resume.with_name("checkpoint-1000")  # a half-written one is not taken
    broken.mkdir()
    lines = []
    again = train.train(spec, progress=lines.append)
    assert f"goes on from {resume.name}" in lines[0]
    assert scores(again) == scores(undisturbed)
    for ours, theirs in zip(again["history"], undisturbed["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert again["load"] == undisturbed["load"]  # routing too: the router draws in training


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
    """Train the plan's last run with a checkpoint at each logged step; returns its checkpoints."""
    env = os.environ | {"QA_CHECKPOINT_SECONDS": "0", "PYTHONPATH": str(ROOT)}
    changes = json.dumps(p.model_dump(exclude={"report", "profile"}))
    done = subprocess.run(
        [sys.executable, "-c", KILLED + CHILD, changes, str(step)], env=env, stdout=subprocess.PIPE
    )
    assert done.returncode == 9
    return runs.run_folder(plans.plan(p)[-1]) / "checkpoints"


def test_a_run_goes_on_from_its_last_whole_checkpoint(tiny, store):
    """Whatever file of the newest checkpoint a power cut has truncated; the scores stay the same."""
    p = tiny(epochs=2.0)
    spec = plans.plan(p)[-1]
    undisturbed = train.train(spec, progress=lambda line: None)
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
    assert wanted <= set(names) and train.last_checkpoint(checkpoints) == newest
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
    assert lines[0] == f"{spec.run}  {newest.name}, or the best one before it, is damaged; dropped"
    assert f"goes on from {older.name}" in lines[1]
    assert scores(again) == scores(undisturbed)


def test_without_a_whole_checkpoint_a_run_starts_anew(tiny, store):
    p = tiny(epochs=2.0)
    spec = plans.plan(p)[-1]
    for checkpoint in kill_at_step(p, 9).iterdir():
        (checkpoint / "trainer_state.json").write_text("", encoding="utf-8")
    lines = []
    train.train(spec, progress=lines.append)
    assert ["is damaged" in line for line in lines[:3]] == [True, True, False]
    assert not [line for line in lines if "goes on from" in line] and runs.find_record(spec)


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
    keeper = train.Keeper(None, None, spent=10.0)  # of a start before this one
    for step, seconds in ((1, 15.0), (2, 18.0)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        keeper.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
        assert files.read_seal(tmp_path / f"checkpoint-{step}")["seconds"] == seconds


def test_a_child_whose_parents_weights_are_gone_retrains_the_parent(tiny):
    parent = plans.plan(tiny(ratios=[1.0]))[0]
    child = plans.plan(tiny(ratios=[0.0]))[0].model_copy(
        update={"parents": [parent], "variant": "child"}
    )
    assert study.list_missing([parent, child]) == [parent, child]
    train.train(parent, progress=lambda line: None, keep_weights=True)
    assert study.list_missing([parent, child]) == [child]  # the record and the weights are there
    weights = load_file(runs.run_folder(parent) / "model.safetensors")
    model, _ = build.build_model(child)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    file = runs.run_folder(parent) / "model.safetensors"
    content = file.read_bytes()
    for spoilt in (content[:-1], b""):  # as a power cut leaves them
        file.write_bytes(spoilt)
        assert study.list_missing([parent, child]) == [parent, child] and not file.exists()
    file.write_bytes(content)
    inside = child.model_copy(update={"layer": Layer(place="feed_forward", experts=4)})
    assert build.build_model(inside)[0].layer.sparse  # new experts inside an encoder that goes on
    runs.discard(parent, "model.safetensors")
    with pytest.raises(
        UserError,
        match=f"the weights of {parent.run}, .* were not kept; train it first: --run {parent.run}",
    ):
        build.build_model(child)
    assert study.list_missing([parent, child]) == [
        parent,
        child,
    ]  # complete as a record, missing for a child
    tokens = {s.hash: 1.0 for s in (parent, child)}
    study._train([parent, child], tokens, 1, study.list_parents([child]), False)
    assert runs.find_record(child) and not (runs.run_folder(parent) / "model.safetensors").exists()
    train.train(
        parent.model_copy(update={"tests": []}), progress=lambda line: None, keep_weights=True
    )  # as a child holds it
    assert runs.find_record(parent) and set(parent.tests) <= set(
        runs.find_record(parent)["metrics"]
    )  # loses no score


def test_what_an_encoder_cannot_take_is_refused_before_any_training(tiny, tmp_path):
    """More tokens than it has positions; blocks that start anew in a run that comes late. And it is given what it knows only."""
    with pytest.raises(
        UserError,
        match="max_length: the encoder reads 512 tokens, and windows of 513 are asked for",
    ):
        study.run(tiny(max_length=513), plans.plan, live=False)
    specs = plans.plan(tiny())
    with pytest.raises(UserError, match="reinit: 1 of 1 blocks would leave nothing"):
        study.estimate_cost([*specs, specs[0].model_copy(update={"reinit": 1})], 1)
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
    assert (
        encoders.count_positions(roberta) == 65
        and encoders.count_positions(encoders.load_encoder("minilm")[0]) == 512
    )
    rows, (_, tokenizer) = selection.draw_mixture(specs[0])[0][:2], encoders.load_encoder("minilm")
    windows = features.load_windows(rows, tokenizer, 64, 16, tmp_path)
    model = heads.SpanModel(roberta)
    batch = model.collate(tokenizer)([dict(w) for w in model.prepare(windows, rows)])
    assert torch.isfinite(model(**batch).loss) and "token_type_ids" not in batch
    assert "token_type_ids" in heads.SpanModel(encoders.load_encoder("minilm", 1)[0]).collate(
        tokenizer
    )([dict(windows[0])])


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"batch_size": 10_000},
            "GB of memory, most of it for a batch of 10000 windows, and .*; lower batch_size or max_length",
        ),
        (
            {"experts": 1000, "width": 100.0},
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


def test_the_largest_seed_trains(tiny):
    p = tiny(seeds=[2**32 - 1])
    assert train.train(plans.plan(p)[0], progress=lambda line: None)["metrics"]


def test_a_worker_that_the_system_ends_is_one_sentence(tiny, monkeypatch):
    specs = plans.plan(tiny(seeds=[0, 1]))
    monkeypatch.setattr(
        study.pool.Processes, "submit", lambda self, f, spec, *rest: self.pool.submit(os._exit, 9)
    )
    with pytest.raises(
        UserError, match="the system ended a worker, most likely for want of memory; WORKERS=1"
    ):
        study._train(specs, {s.hash: 1.0 for s in specs}, 2, set(), False)


def test_two_workers_give_the_same_numbers_as_one(tiny, store):
    p = tiny(experiments=["untuned"], train_rows=16)
    table = study.run(p, plans.plan, workers=2, live=False)
    assert list(table.trained) == ["now", "now"]
    spec = plans.plan(p)[-1]
    record = runs.find_record(spec)
    (store / "runs").rename(store / "apart")
    alone = train.train(spec, progress=lambda line: None)
    assert (
        alone["history"] == record["history"]
        and alone["load"]["training"] == record["load"]["training"]
    )


def test_two_studies_at_once_wait_for_each_other(tiny, capsys):
    p, held = tiny(train_rows=16), threading.Event()
    runs.RUNS.mkdir(parents=True)

    def other():
        with FileLock(runs.RUNS / "exbert.lock"):
            held.set()
            train.train(plans.plan(p)[0], progress=lambda line: None)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    study.run(p, plans.plan, live=False)
    thread.join()
    shown = capsys.readouterr().out
    assert "another study of exbert is training here; waiting" in shown and "step 1/" not in shown


def test_a_later_round_takes_as_many_workers_as_it_has_use_for(tiny, monkeypatch):
    """One trial is left, then what it decided: two runs; all three were trained now."""
    three = plans.plan(tiny(seeds=[0, 1, 2]))
    rounds, seen = iter([three[:1]] * 2 + [three[1:]] * 3 + [[]]), []
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
    assert list(study.run(tiny(seeds=[0, 1, 2]), plans.plan)["trained"]) == [
        "now"
    ] * 3 and seen == [1, 2]


def test_a_study_stops_before_training_when_it_is_too_long_or_the_disk_too_small(tiny, monkeypatch):
    monkeypatch.setattr(study, "HOURS", 0)
    with pytest.raises(UserError, match="more than 0 hours; say YES=1"):
        study.run(tiny(), plans.plan, live=False)
    monkeypatch.setattr(study, "HOURS", 12)
    monkeypatch.setattr(study.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1e6}))
    with pytest.raises(UserError, match="GB free and this study needs about"):
        study.run(tiny(), plans.plan, live=False)
    assert not list(runs.RUNS.glob("exbert/*/metrics.json"))


@pytest.mark.parametrize("name, variable", [("RUNS", "QA_RUNS"), ("FIGURES", "QA_FIGURES")])
def test_a_study_stops_before_training_where_it_cannot_write(
    tiny, store, monkeypatch, name, variable
):
    monkeypatch.setattr(study, "_train", lambda *args: pytest.fail("it trains"))
    (store / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(runs, name, store / "file" / "folder")
    with pytest.raises(
        UserError, match=f"cannot be written .Not a directory: .*{variable} to a folder that can"
    ) as e:
        study.run(tiny(), plans.plan, live=False)
    assert "\n" not in str(e.value)


def test_a_full_disk_is_found_before_training(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    files.check_writable(tmp_path / "a" / "b", "QA_RUNS")
    assert not list(tmp_path.iterdir())  # it leaves nothing behind
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(
        UserError,
        match="a/b cannot be written .No space left on device: .*; mend that, or set QA_RUNS",
    ):
        files.check_writable(tmp_path / "a" / "b", "QA_RUNS")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "x.csv"),
        OSError(28, "No space left", "x.csv"),
        OSError(30, "Read-only file system", "x.csv"),
    ],
)
def test_what_cannot_be_written_later_is_one_sentence_too(capsys, error):
    def run():
        raise error

    with pytest.raises(SystemExit) as stop:
        command_line.run_and_exit(run)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: x.csv: ") and said.count("\n") == 1


def test_training_needs_no_home_and_no_locale(store):
    """HOME is a file, the locale knows ASCII alone; figures/ in the checkout stays as it is."""
    (store / "home").write_text("", encoding="utf-8")
    small = [
        x
        for k, v in (
            TINY | {"side_seeds": [0], "centre": 0.5, "control_ratios": [0.5], "train_rows": 16}
        ).items()
        for x in ("-p", f"{k}={json.dumps(v)}")
    ]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "XDG_", "HF_", "LANG"))}
    homes = dict.fromkeys(
        ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"), str(store / "home")
    )
    env |= homes | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "HF_HUB_OFFLINE": "1",
        "QA_FIGURES": str(store / "figures"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "qa_lib",
            "study",
            "exbert",
            "--profile",
            "quick",
            "--workers",
            "1",
            *small,
        ],
        capture_output=True,
        text=True,
        cwd=store,
        env=env,
    )
    assert done.returncode == 0 and "1/1 runs" in done.stdout, done.stderr
    assert sorted(f.name for f in store.iterdir()) == ["figures", "home", "runs"]
    told = subprocess.run([sys.executable, "-m", "qa_lib", "--help"], capture_output=True, env=env)
    assert told.returncode == 0 and rb"VERB \u2026" in told.stdout


def test_the_precision_is_the_run_s_own(tiny, monkeypatch):
    """Not that of another run in this process, and not that of whoever starts it."""
    spec = plans.plan(tiny())[0]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train.training_arguments(spec, 10, False).mixed_precision == "no"
    bf16 = spec.model_copy(update={"precision": "bf16"})
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert train.training_arguments(bf16, 10, False).mixed_precision == "bf16"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["exbert", "-p", "learnig_rate=1"], "did you mean learning_rate"),
        (["exbert", "-p", "learning_rate=1e-5"], "is read as text"),
        (["exbert", "--profile", "real"], "DATA=path/to/data"),
        (["exbert", "--profile", "real", "--data", "nowhere"], "does not exist"),
        (["exbert", "--profile", "paper"], "cannot be had from the hub"),
        (["exbert", "-p", "blocks=9"], "encoder minilm has 6"),
        (["bert"], "is not a report of this study"),
    ],
)
def test_the_command_line_ends_with_one_sentence_and_code_2(arguments, words, store):
    profile = [] if "--profile" in arguments else ["--profile", "quick"]
    done = subprocess.run(
        [sys.executable, "-m", "qa_lib", "study", *arguments, *profile],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_no_workers_are_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["study", "exbert", "--profile", "quick", "--workers", "0"])
    with pytest.raises(UserError, match="WORKERS=0: at least one run"):
        run_verb(sys.argv)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_a_stopped_study_leaves_no_worker_and_ctrl_c_says_how_to_go_on(store, stop):
    few = ["--profile", "quick", "-p", "experiments=[ratios]", "-p", "start=null", "--workers", "2"]
    child = subprocess.Popen(
        [sys.executable, "-m", "qa_lib", "study", "exbert", *few],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # ignored in a background job
    for line in child.stdout:
        if " step " in line:
            break
    workers = psutil.Process(child.pid).children()
    child.send_signal(stop)
    gone, alive = psutil.wait_procs(workers, timeout=60)
    _, errors = child.communicate(timeout=60)
    assert gone and not alive
    if stop is signal.SIGINT:
        assert (
            child.returncode == 130
            and "the same command goes on from here" in errors
            and "Traceback" not in errors
        )


def test_logits_do_not_depend_on_the_batch(tiny):
    spec = plans.plan(tiny(precision="fp32"))[0]
    model, tokenizer = build.build_model(spec)
    rows = selection.load_splits("encyclopaedia", "embedded").test[:12]
    from qa_lib.data import features

    windows = features.load_windows(rows, tokenizer, 128, 32, evaluate.CACHE)
    start, _, _ = evaluate.compute_logits(model, windows, model.collate(tokenizer), "fp32")
    for i in (0, 5):
        alone, _, _ = evaluate.compute_logits(
            model, windows.select([i]), model.collate(tokenizer), "fp32"
        )
        np.testing.assert_allclose(alone[0], start[i], atol=1e-4)
