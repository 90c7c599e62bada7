"""Parameters: strictness, places, and the identity of a run."""

import argparse
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from qa_lib.__main__ import make_parser, run_verb
from qa_lib.data.hub_tables import parse_place
from qa_lib.reports import exbert, plans
from qa_lib.settings import command_line, hub, params
from qa_lib.settings.parameters import (
    TAKEN_NAMES,
    TAKEN_PATTERN,
    Distillation,
    Gate,
    Heads,
    Imbalance,
    Layer,
    Multitask,
    Smart,
    cannot_name_part,
)
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs


def make_spec(**changes) -> Spec:
    """Return a run of which only the required fields are set, and those that the caller changes."""
    fields = {
        "report": "exbert",
        "variant": "v-db",
        "profile": "real",
        "size": "full",
        "seed": 0,
        "source": "folder",
        "domains": ["a"],
        "rows": [1],
        "fingerprints": ["x"],
        "validation_rows": 1,
        "tests": ["a"],
        "encoder": "minilm",
        "weights": "w",
        "max_length": 384,
        "stride": 128,
        "batch_size": 16,
        "learning_rate": 3e-5,
        "epochs": 1.0,
        "warmup": 0.1,
        "weight_decay": 0.01,
        "clip": 1.0,
        "precision": "fp32",
        "threads": 1,
    }
    return Spec(**fields | changes)


def load_from_texts(report: str, *texts: str):
    """Return parameters of profile quick, changed by the -p texts of a command line."""
    args = argparse.Namespace(report=report, profile="quick", size=None, data=None, p=list(texts))
    return plans.load_from_args(args)


@pytest.mark.parametrize("profile", ["quick", "real", "paper"])
def test_every_yaml_validates(profile):
    p = plans.load_params("exbert", profile)
    assert p.profile == profile
    assert p.report == "exbert"
    for source in ("embedded", "folder", "hub"):
        assert params.read_datasets(source)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learnig_rate": 1e-4}, ["learnig_rate", "did you mean learning_rate"]),
        ({"learning_rate": "1e-5"}, ["learning_rate", "'1e-5'", "text", "write 1.0e-05"]),
        ({"ratios": [1.2]}, ["ratios", "1.2", "between 0 and 1"]),
        ({"epochs": 0}, ["epochs", "greater than 0"]),
        ({"order": "random"}, ["order", "'random'", "sequential"]),
        ({"seeds": []}, ["seeds", "at least 1"]),
        ({"seeds": 5}, ["seeds: 5 is one value", "write seeds=[5]"]),
        ({"seeds": "1,2"}, ["seeds: '1,2' is one value", "write seeds=[1,2]"]),
        (
            {"seeds": "abc"},
            ["seeds: a list is wanted, as seeds=[…], and 'abc' is not a whole number"],
        ),
        ({"seeds": None}, ["seeds has no value", "seeds=[…]"]),
        (
            {"full_rows": 5},
            [
                "full_rows: a list is wanted, as full_rows=[…], and [5] has too few values; "
                "write at least 2"
            ],
        ),
        (
            {"domains": ["a", "b", "c"]},
            ["domains: ['a', 'b', 'c'] has too many values; write at most 2"],
        ),
        ({"domains": [1, 2]}, ['domains: 1 is not read as text; write "1", its quotes included']),
        ({"encoder": None}, ["encoder: null is not a text; write one"]),
        ({"size": "huge"}, ["size: 'huge' is not known; known: 'small' or 'full'"]),
        ({"warmup": 1}, ["warmup: 1 is too large; write a number less than 1"]),
        ({"centre": 2}, ["centre: 2 is too large; write a number less than or equal to 1"]),
        ({"route_padding": "yes"}, ["route_padding: 'yes' is neither true nor false"]),
        ({"epochs": [1]}, ["epochs: [1] is no number; write a number"]),
        ({"stride": 300}, ["stride: 300", "max_length 256"]),
        ({"blocks": 1.5}, ["blocks"]),
        ({"seeds": [0, 1, 0]}, ["seeds: 0 stands there twice"]),
        ({"seeds": [-1]}, ["seeds: -1", "greater than or equal to 0"]),
        ({"seeds": [2**32]}, ["seeds: 4294967296", "a number less than 4294967296"]),
        ({"side_seeds": [5 * 10**9]}, ["side_seeds: 5000000000", "a number less than 4294967296"]),
        (
            {"dense_seeds": [5 * 10**9]},
            ["dense_seeds: 5000000000", "a number less than 4294967296"],
        ),
        ({"trial_epochs": []}, ["trial_epochs", "at least 1"]),
        ({"trial_rates": [0.0]}, ["trial_rates: 0.0", "greater than 0"]),
        ({"full_rows": [100]}, ["full_rows", "at least 2"]),
        ({"sweep_blocks": [0]}, ["sweep_blocks: 0", "greater than 0"]),
        ({"domains": ["news", "news"]}, ["domains: news stands there twice"]),
        ({"domains": ["training", "news"]}, ["domains: 'training' cannot name a dataset"]),
        ({"domains": ["news", "validation"]}, ["domains: 'validation' cannot name a dataset"]),
        ({"domains": ["second", "first"]}, ["domains: 'second' cannot name a dataset"]),
        ({"domains": ["news", "seed"]}, ["domains: 'seed' cannot name a dataset"]),
        ({"domains": ["news", "harbour_sd"]}, ["domains: 'harbour_sd' cannot name a dataset"]),
        ({"start": "training"}, ["start: 'training' cannot name a dataset"]),
        ({"domains": ["news", "v1.0"]}, ["domains: 'v1.0' cannot name a dataset", "without dots"]),
        ({"learning_rate": float("inf")}, ["learning_rate: inf", "finite"]),
        ({"profile": "real"}, ["profile: generated text", "make … PROFILE=real"]),
    ],
)
def test_a_wrong_parameter_is_one_sentence(changes, words):
    with pytest.raises(UserError) as error:
        plans.load_params("exbert", "quick", changes)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.startswith("PARAMS (-p): ")
    assert all(w in sentence for w in words), sentence


def test_shorter_windows_alone_are_told_of_the_stride():
    with pytest.raises(UserError, match="stride: 64 must be below half of .* 96; write stride too"):
        plans.load_params("exbert", "quick", {"max_length": 96})


def test_no_dataset_has_a_name_that_a_container_of_heads_refuses():
    for name in ("tickets", "a/b", "a-b", *dir(torch.nn.ModuleDict())):
        try:
            torch.nn.ModuleDict({name: torch.nn.Identity()})
            is_refused = False
        except KeyError:
            is_refused = True
        assert is_refused <= cannot_name_part(name), name
    assert not cannot_name_part("a/b")
    assert cannot_name_part("t.1")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"domains": ["squad", "training"]}, "domains: 'training' cannot name a dataset"),
        ({"few_shot": ["metric"]}, "few_shot: 'metric' cannot name a dataset"),
        ({"pools": ["first"]}, "pools: 'first' cannot name a dataset"),
        ({"domains": ["squad", "cluster-1"]}, "domains: 'cluster-1' cannot name a dataset"),
        (
            {"domains": ["squad", "newsqa"], "pools": ["squad"]},
            "pools: squad is among domains already",
        ),
        (
            {"domains": ["squad", "newsqa"], "few_shot": ["newsqa"]},
            "few_shot: newsqa is among domains already",
        ),
    ],
)
def test_a_dataset_of_a_taken_name_is_refused_wherever_one_is_named(changes, words):
    with pytest.raises(UserError, match=words) as error:
        plans.load_params("moe", "real", changes)
    assert "\n" not in str(error.value)


def test_every_column_of_the_ledger_is_a_taken_name():
    """A table of rows by dataset has the datasets' names as columns beside these."""
    spec = make_spec(layer=Layer(), gate=Gate())
    machine = {"device": "CPU", "precision": "fp32"}
    columns = runs.label_columns(spec, {"run": spec.run, "environment": machine})
    assert len(columns) > 50
    assert set(columns) <= TAKEN_NAMES
    options = {"heads": Heads(), "smart": Smart(), "multitask": Multitask()}
    options |= {"distillation": Distillation(), "teachers": [spec]}
    of_sentences = make_spec(**options, imbalance=Imbalance())
    columns = runs.label_columns(of_sentences, {"run": spec.run, "environment": machine})
    assert {"heads_pooling", "smart_radius", "multitask_schedule"} <= set(columns)
    assert {"distillation_hidden", "distillation_teachers"} <= set(columns)
    for name in set(columns) - TAKEN_NAMES:
        assert TAKEN_PATTERN.fullmatch(name), name
    for source in ("embedded", "folder", "hub"):
        assert not set(params.read_datasets(source)) & TAKEN_NAMES


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"dense": 2.0},
            "dense: it is the width .* there is no layer; name a layer, or leave dense",
        ),
        ({"layer": Layer(), "heads": Heads()}, "layer: it stands in a model of one span head, and"),
        ({"layer": Layer(), "smart": Smart()}, "layer: SMART takes gradients .* twice, and the"),
        (
            {"multitask": Multitask(schedule="draws", rounds=1), "smart": Smart()},
            "smart: with the schedule draws .* the same noise for each; write schedule: rrobin",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make_spec(**changes)


@pytest.mark.parametrize(
    "text, words",
    [
        ("seeds=[0", "-p seeds=.0: not a value of YAML"),
        ("seeds=", "-p seeds=: write -p key=value"),
        ("1]", "a list without spaces"),
        ("=[0]", "-p =.0.: write -p key=value"),
        ("start=2026-13-45", "-p start=2026-13-45: not a value of YAML"),
    ],
)
def test_a_parameter_that_cannot_be_read_is_one_sentence(text, words):
    with pytest.raises(UserError, match=words) as error:
        load_from_texts("exbert", text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, items",
    [
        ("", []),
        ("  ", []),
        ("epochs=1 seeds=[0,1]", ["epochs=1", "seeds=[0,1]"]),
        ('"encoder=/my models/x" epochs=2', ["encoder=/my models/x", "epochs=2"]),
        ("'encoder=/my models/x'\tepochs=2", ["encoder=/my models/x", "epochs=2"]),
        ('"seeds=[0, 1]"', ["seeds=[0, 1]"]),
        ("encoder=/o'brien/$x\\y#z*é", ["encoder=/o'brien/$x\\y#z*é"]),
        ('"encoder=/o\'brien and co"', ["encoder=/o'brien and co"]),
        ('domains=["2023","2024"]', ['domains=["2023","2024"]']),
    ],
)
def test_a_text_of_parameters_is_split_at_blanks(text, items):
    parser = command_line.CommandLine()
    command_line.add_parameters(parser)
    args = parser.parse_args(["-p", "first=1", f"--params={text}", "-p", "last=2"])
    assert args.p == ["first=1", *items, "last=2"]


@pytest.mark.parametrize("item", ["profile=paper", "source=hub", "report=moe"])
def test_what_labels_a_run_is_no_parameter_of_a_command(item):
    given = ["study", "exbert", "--profile", "real", "--params", item]
    name = item.split("=")[0]
    with pytest.raises(UserError, match=rf"^PARAMS .-p.: {name} cannot be changed there; [^\n]*$"):
        plans.load_from_args(make_parser().parse_args(given))


def test_a_key_given_twice_in_a_parameter_is_refused():
    """As in a file: the last alone would count."""
    given = ["study", "road", "-p", "pretraining={nli: 40, yesno: 40, nli: 5}"]
    with pytest.raises(UserError, match="^-p pretraining=.*the key nli stands twice"):
        plans.load_from_args(make_parser().parse_args(given))


def test_a_quote_that_is_not_closed_is_one_sentence():
    words = (
        """^PARAMS: a quote in "encoder=/my x is not closed; write PARAMS='"key=a b" other=1',"""
    )
    with pytest.raises(UserError, match=words):
        command_line.split_parameters('"encoder=/my x')


@pytest.mark.parametrize(
    "args, says",
    [
        (["moe", "--size", "huge"], "^SIZE=huge is not a size; known: small, full$"),
        (["moe", "--profile", "quik"], "^PROFILE=quik is not a profile; known: quick"),
        (["mo"], "^'mo' is not a report of this study; known: exbert, moe, road, smart$"),
    ],
)
def test_a_choice_that_is_not_known_is_refused_by_its_name(args, says):
    parser = command_line.CommandLine()
    command_line.add_arguments(parser)
    with pytest.raises(UserError, match=says):
        parser.parse_args(args)


@pytest.mark.parametrize("report", params.list_reports())
@pytest.mark.parametrize(
    "profile, only, other", [("quick", "small", "full"), ("paper", "full", "small")]
)
def test_a_profile_of_one_size_refuses_the_other(report, profile, only, other):
    """By SIZE=, which the command line hands on, by PARAMS, and in a notebook."""
    words = f"size: profile {profile} has one size, {only}, not {other}; leave SIZE= away, or say"

    def parse(*more: str) -> argparse.Namespace:
        parser = command_line.CommandLine()
        command_line.add_arguments(parser)
        return parser.parse_args([report, "--profile", profile, *more])

    with pytest.raises(UserError, match=f"^{words}"):
        plans.load_from_args(parse("--size", other))
    with pytest.raises(UserError, match=rf"^PARAMS \(-p\): {words}"):
        plans.load_from_args(parse("-p", f"size={other}"))
    with pytest.raises(UserError, match=f"^notebook parameter {words}"):
        plans.load_from_names(report, {"profile": profile, "size": other})
    assert plans.load_from_args(parse("--size", only)).size == only
    assert plans.load_from_args(parse(), size=other).size == only


def test_a_list_in_yaml_is_asked_for_as_yaml_has_it():
    places = {"seeds": "params/exbert.yaml, line 3: "}
    values = plans.load_params("exbert", "quick").model_dump() | {"seeds": 5}
    with pytest.raises(UserError, match=r"exbert.yaml, line 3: seeds: .* write seeds: \[5\]$"):
        params.validate(exbert.Parameters, values, places)


@pytest.mark.parametrize("given", [["--params", "data=~/mine"], ["--data", "~/mine"]])
def test_a_home_is_found_wherever_data_are_named(given, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = make_parser().parse_args(["study", "exbert", "--profile", "real", *given])
    assert plans.load_from_args(args).data == "/home/me/mine"
    names = {"profile": "real", "data": "~/mine"}
    assert plans.load_from_names("exbert", names).data == "/home/me/mine"


def test_data_and_profile_are_not_said_to_stand_in_params():
    given = ["study", "exbert", "--profile", "quick", "--data", "."]
    with pytest.raises(UserError, match="^data: profile quick has generated text and reads no"):
        plans.load_from_args(make_parser().parse_args(given))
    given = ["study", "exbert", "--profile", "own"]
    with pytest.raises(UserError, match="^profile: own goes with source own and the file that"):
        plans.load_from_args(make_parser().parse_args(given))
    # DATA= counts where PARAMS names data too
    given = ["study", "exbert", "--profile", "real", "--data", "/here", "-p", "data=/there"]
    assert plans.load_from_args(make_parser().parse_args(given)).data == "/here"


def test_data_keep_their_links_and_a_home_is_found(tmp_path, monkeypatch):
    (tmp_path / "there.yaml").touch()
    (tmp_path / "mine.yaml").symlink_to("there.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command_line.find_data("~/mine.yaml") == tmp_path / "mine.yaml"
    monkeypatch.chdir(tmp_path)
    assert command_line.find_data("mine.yaml") == tmp_path / "mine.yaml"
    assert command_line.find_data("./mine.yaml") == tmp_path / "mine.yaml"
    assert command_line.find_data("nowhere/at all") == tmp_path / "nowhere" / "at all"
    for name in ("x" * 300, "loop"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        words = f"^DATA={name} cannot be looked up .*; name a folder that can be read$"
        with pytest.raises(UserError, match=words):
            command_line.find_data(name)


# ---- what a command line writes to ----


PROGRAM = """
from qa_lib.settings import command_line, hub, params
def run():
    {code}
command_line.run_and_exit(run)
"""


def run_code(code: str, shell: str, switch="", **how) -> subprocess.CompletedProcess:
    """Run code as a command of qa_lib; a piece of shell takes its output.

    switch: one of the Python interpreter. The exit status is that of the command.
    """
    program = PROGRAM.format(code=code)
    command = f'"{sys.executable}" {switch} -c "$PROGRAM" {shell}; exit "${{PIPESTATUS[0]}}"'
    env = os.environ | {"PROGRAM": program, "PYTHONPATH": str(params.ROOT)}
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, **how)


@pytest.mark.parametrize("switch", ["", "-u"])
@pytest.mark.parametrize(
    "code",
    [
        "[print('x' * 50000) for _ in range(20)]",
        "import time; print('x', flush=True); time.sleep(1); print('y')",
        "import time; print('x', flush=True); time.sleep(1); print('y', flush=True)",
    ],
)
def test_a_reader_that_leaves_ends_a_command_without_a_word(code, switch):
    done = run_code(code, "| head -c 1", switch=switch)
    assert (done.returncode, done.stderr) == (141, "")
    code = "import time; time.sleep(1); command_line.CommandLine().parse_args(['--help'])"
    done = run_code(code, "| true", switch=switch)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "code", ["print('x')", "print('x', flush=True)", "print('x' * 50000)", "print('x'); return 1"]
)
def test_a_full_disk_behind_the_output_is_one_sentence(code):
    done = run_code(code, ">/dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "error: standard output cannot be written (No space left on device); "
        "send it to a place that takes it\n"
    )


def test_an_output_that_is_closed_is_one_sentence():
    done = run_code("print('x')", ">&-")
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output is closed, ")
    assert len(done.stderr.splitlines()) == 1
    assert run_code("return 0", "2>&-").returncode == 0


def test_the_failure_of_another_file_is_not_that_of_the_output():
    done = run_code("print('x'); open('/dev/full', 'w').write('x' * 50000)", "")
    assert "No space left" in done.stderr
    assert "standard output" not in done.stderr
    done = run_code("raise params.UserError('seeds: say how many')", "| true")
    assert (done.returncode, done.stderr) == (2, "error: seeds: say how many\n")


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    done = run_code("print('x')", "", cwd=tmp_path, preexec_fn=tmp_path.rmdir)
    assert done.returncode == 2
    # the shell complains before it
    last = done.stderr.splitlines()[-1]
    assert last == (
        "error: the folder in which this was started does not exist any more; cd to one that does"
    )


ONE_TOO_FAR = {
    "batch_size": 10**12,
    "epochs": 1e300,
    "max_length": 10**9,
    "train_rows": 10**12,
    "threads": 10**6,
    "start_threads": 10**6,
    "clip": 1e300,
    "learning_rate": 1e300,
    "weight_decay": 1e300,
    "experts": 10**6,
    "width": 1e9,
    "capacity_eval": 1e300,
    "balance": 1e300,
    "sweep_rates": [1e300],
    "sweep_experts": [10**6],
    "blocks": 10**12,
    "sweep_blocks": [10**12],
    "sizes": [10**12],
    "trial_epochs": [1e300],
}


@pytest.mark.parametrize("key", ONE_TOO_FAR)
def test_a_number_far_beyond_sense_is_refused_at_once(key):
    words = f"{key}: .* is too large; write a number less than or equal to [15]"
    with pytest.raises(UserError, match=words):
        plans.load_params("exbert", "quick", {key: ONE_TOO_FAR[key]})


def test_too_small_an_expert_is_refused():
    words = "width: 1e-09 is too small; write a number greater than or equal to 0.05"
    with pytest.raises(UserError, match=words):
        plans.load_params("exbert", "quick", {"width": 1e-9})


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"curve_seeds": [2**32]},
            "curve_seeds: 4294967296 is too large; write a number less than",
        ),
        ({"gate_layers": 10**6}, "gate_layers: 1000000 is too large; write a number less than"),
        ({"clusters": 10**9}, "clusters: 1000000000 is too large; write a number less than"),
        ({"longer": [10**12]}, "longer: 1000000000000 is too large; write a number less than"),
        (
            {"epochs": 1e-9, "looks": 2},
            "epochs: 1e-09 ends before the first of 2 looks an epoch; "
            "write at least 0.5, or looks=1",
        ),
        (
            {"trial_epochs": [3.0, 0.1], "looks": 2},
            "trial_epochs: 0.1 ends before the first of 2 looks",
        ),
    ],
)
def test_a_number_out_of_bounds_is_refused_in_the_other_report_too(changes, words):
    with pytest.raises(UserError, match=words):
        plans.load_params("moe", "quick", changes)


@pytest.mark.parametrize(
    "slug, changes",
    [("road", {"schedule": "constant"}), ("moe", {"warmup": 0.1}), ("smart", {"warmup": 0.1})],
)
def test_a_constant_rate_has_no_warm_up(slug, changes):
    """transformers leaves the warm-up of a constant rate out without a word."""
    says = "warmup: 0.1 goes with schedule: linear, .* write warmup: 0 with schedule: constant"
    with pytest.raises(UserError, match=says):
        plans.load_params(slug, "quick", changes)
    plans.load_params(slug, "quick", {"schedule": "constant", "warmup": 0.0})


@pytest.mark.parametrize(
    "text, says",
    [
        ("nan", "nan is no finite number; write a number that is finite"),
        (".nan", "nan is no finite number"),
        ("inf", "inf is no finite number"),
        ("-inf", "-inf is no finite number"),
        ("-.inf", "-inf is no finite number"),
        ("1e400", "1e400 is no finite number"),
        ("1" + "0" * 400, "1000000000000.* is no finite number"),
        ("1e-4", "'1e-4' is read as text, not as a number; write 0.0001 .YAML wants a point"),
        ("1e-7", "'1e-7' is read as text, .*write 1.0e-07 .YAML wants"),
        (
            "1,5",
            "'1,5' has a comma; "
            "write a number, decimals behind a point and nothing between thousands",
        ),
        ("1,000", "'1,000' has a comma"),
        ('"3"', "'3' is text, not a number; write 3.0, without quotes"),
        ("true", "true is no number; write a number"),
        ("no", "false is no number"),
        ("null", "there is no value; write a number"),
        ("abc", "'abc' is no number; write a number"),
        ("2022-01-01", ".*2022, 1, 1.* is no number"),
    ],
)
def test_a_value_that_is_no_number_is_told_as_it_is(text, says):
    for key, value in (("epochs", text), ("trial_rates", f"[{text}]")):
        # without quotes a list would hold two numbers
        if "," in text and value != text:
            value = f"['{text}']"
        with pytest.raises(UserError, match=f"^PARAMS .-p.: {key}: {says}") as error:
            load_from_texts("exbert", f"{key}={value}")
        assert len(str(error.value)) < 160


@pytest.mark.parametrize(
    "text, says",
    [
        ("nan", "nan is no finite number; write a whole number that is finite"),
        (".inf", "inf is no finite number"),
        ("1e3", "'1e3' is read as text, not as a number; write 1000 .YAML"),
        ('"3"', "'3' is text, not a number; write 3, without quotes"),
        ("2.0", "2.0 has a point and a whole number is wanted; write 2$"),
        ("1.5", "1.5 is not whole; write a whole number$"),
        ("true", "true is no number; write a whole number"),
        ("null", "there is no value; write a whole number"),
    ],
)
def test_a_value_that_is_no_whole_number_is_told_as_it_is(text, says):
    for key, value in (("batch_size", text), ("seeds", f"[{text}]")):
        with pytest.raises(UserError, match=f"^PARAMS .-p.: {key}: {says}"):
            load_from_texts("exbert", f"{key}={value}")


def test_numbers_are_read_as_people_write_them():
    p = load_from_texts("exbert", "epochs=1_0", "learning_rate=.001", "trial_rates=[1.0e-4,0.0002]")
    assert (p.epochs, p.learning_rate, p.trial_rates) == (10.0, 0.001, [1e-4, 2e-4])


@pytest.mark.parametrize(
    "text, says",
    [
        ("seeds=null", "seeds has no value; write a list, seeds="),
        ("epochs=2022-13-45", "-p epochs=2022-13-45: not a value of YAML .month must be"),
        ("epochs=" + "9" * 5000, "-p epochs=9999.*: not a value of YAML .Exceeds the limit"),
    ],
)
def test_a_value_that_yaml_itself_stumbles_over_is_one_sentence(text, says):
    with pytest.raises(UserError, match=says) as error:
        load_from_texts("exbert", text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_wrong_value_in_yaml_names_file_and_line(tmp_path, monkeypatch):
    for file in ("params/exbert.yaml", "params/quick/exbert.yaml", "params/claims/exbert.yaml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((params.ROOT / file).read_text())
    quick = tmp_path / "params/quick/exbert.yaml"
    lines = quick.read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.startswith("learning_rate"))
    lines[number - 1] = "learning_rate: 1e-5"
    quick.write_text("\n".join(lines))
    monkeypatch.setattr(params, "ROOT", tmp_path)
    words = rf"params/quick/exbert.yaml, line {number}: learning_rate: '1e-5' is read as text"
    with pytest.raises(UserError, match=words):
        plans.load_params("exbert", "quick")


def test_a_file_that_is_gone_is_no_missing_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(params, "ROOT", tmp_path)
    words = "params/datasets.yaml does not exist, and .*; git restore params/datasets.yaml brings"
    with pytest.raises(UserError, match=words):
        params.read_yaml(tmp_path / "params" / "datasets.yaml")


def test_a_profile_that_a_report_lacks_is_one_sentence():
    """Each of the profile's files is there or not; own data are for one report alone."""
    words = "^params/own/moe.yaml does not exist: this report has no such profile yet; name another"
    with pytest.raises(UserError, match=words):
        plans.load_params("moe", "own")


def test_a_yaml_file_that_is_a_list_is_one_sentence(tmp_path):
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="a.yaml holds no mapping; write a line key: value"):
        params.read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "content, says",
    [
        (b"\xff", "own.yaml is not valid YAML: 'utf-8' codec"),
        (b"a: {train: 2026-13-45}", "own.yaml is not valid YAML: month must be in 1..12"),
        (b"1: {}", "own.yaml: the key 1 is not text"),
        (b"a: 1", "own.yaml: a holds no mapping; make own NAME=own"),
        (b"a: {1: x}", "own.yaml: a: the field 1 is not text; leave it out"),
        (
            b"a: {}\n\nb: {}\na: {}",
            "the key a stands twice, in lines 1 and 4, and one alone would count; mend it",
        ),
        (b"a: {x: 1, y: [{z: 1,\n z: 2}]}", "the key z stands twice, in lines 1 and 2"),
        (b"a: {x: 1, x: 2}", "the key x stands twice, in line 1, and one alone would count"),
        (b"a: &a {x: *a}", "own.yaml: a: x is not a parameter"),
        (b"a: {pool: [a]}", "own.yaml: a: pool: a has a pool itself; name the datasets in it"),
        (b"a: {pool: [b]}\nb: {pool: [a]}", "own.yaml: a: pool: b has a pool itself"),
        (
            b"a: {pool: [b]}\nb: {task: classes, classes: [x, y], test: [z]}",
            "own.yaml: a: pool: b is of the task classes, and a of span; a pool is of one task",
        ),
        (b"a: {train: !!timestamp x}", "own.yaml is not valid YAML"),
        (None, "own.yaml cannot be read .Is a directory.; name a YAML file"),
    ],
)
def test_a_definition_of_own_data_that_cannot_be_read_is_one_sentence(tmp_path, content, says):
    file = tmp_path / "own.yaml"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        params.read_datasets("own", str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("folder:\n  tickets:\n", "line 2: folder: tickets holds no mapping; write the fields"),
        ("folder:\n  tickets: [a]\n", "line 2: folder: tickets holds no mapping"),
        ("folder:\n  7: {}\n", "line 2: folder: the name 7 is not text; write it in quotes"),
        (
            "hub: {}\nfolder: {tickets: {train: [a.jsonl]}}\n",
            "^params/datasets.yaml, line 2: folder: tickets: train_rows: a dataset without a test "
            "source needs them; write how many rows train, or name its test files in test$",
        ),
        ("hub: {}\nfolder:\n", "line 2: folder: there is no mapping of datasets"),
        ("hub: {}\n", "params/datasets.yaml has no line folder: of the datasets; add it"),
        (
            "embedded: {news: {train: [news], train_rows: 9}}\nfolder: {}\n",
            "line 1: embedded: news has no rows; write there how many are generated",
        ),
        (
            "folder: {a: {test: [x], only: {lang: en}}}\n",
            "line 1: folder: a: only: hub datasets alone have it; leave it out",
        ),
        (
            "folder: {a: {test: [x], rows: 9}}\n",
            "line 1: folder: a: rows: embedded datasets alone have it; leave it out",
        ),
        (
            "folder: {a: {test: [x], head: v1.0}}\n",
            "a: head: 'v1.0' cannot name a head, since a model cannot have a part of that name; "
            "give it another one, without dots$",
        ),
        (
            "folder:\n  a: &a {train: [x], train_rows: 9, task: classes, classes: [n, y]}\n"
            "  a-typos: {<<: *a, train_rows: 8, part_of: a, altered: typos}\n",
            "line 3: folder: a-typos: train_rows: it is not that of a, whose test rows are "
            "altered; write here what a has there$",
        ),
        (
            "folder: {a: {test: [x], train_rows: 9}}\n",
            "a: train_rows: a dataset with test sources has none; leave it out, and write "
            "validation_rows for its validation rows$",
        ),
        (
            "folder: {a: {train: [x], train_rows: 9, validation_rows: 9}}\n",
            "a: validation_rows: a dataset without test sources has none; leave it out, and write "
            "validation_share for its validation rows$",
        ),
        (
            "folder: {a: {}}\nhub: {}\nfolder: {b: {}}\n",
            "the key folder stands twice, in lines 1 and 3",
        ),
    ],
)
def test_datasets_that_are_not_whole_are_one_sentence(tmp_path, monkeypatch, text, says):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "datasets.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(params, "ROOT", tmp_path)
    with pytest.raises(UserError, match=says) as error:
        params.read_datasets.__wrapped__("folder")
        params.read_datasets.__wrapped__("embedded")
    assert "\n" not in str(error.value)


def test_a_small_size_may_be_a_comment_and_nothing_else(tmp_path, monkeypatch):
    shutil.copytree(params.ROOT / "params", tmp_path / "params")
    file = tmp_path / "params" / "real" / "exbert.yaml"
    content = file.read_text(encoding="utf-8").split("\nsmall:")[0]
    monkeypatch.setattr(params, "ROOT", tmp_path)
    full = plans.load_params("exbert", "real", size="full")
    file.write_text(f"{content}\nsmall:\n  # epochs: 1\n", encoding="utf-8")
    small = plans.load_params("exbert", "real", size="small")
    assert small.model_copy(update={"size": "full"}) == full
    file.write_text(f"{content}\nsmall: [1]\n", encoding="utf-8")
    with pytest.raises(UserError, match="line [0-9]+: small holds no mapping; write its lines"):
        plans.load_params("exbert", "real", size="small")


def test_revisions_that_git_could_not_merge_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "PINS", tmp_path / "pins.yaml")
    conflict = "<<<<<<< HEAD\nsome/data: a\n=======\nsome/data: b\n>>>>>>> other\n"
    (tmp_path / "pins.yaml").write_text(conflict, encoding="utf-8")
    with pytest.raises(UserError, match="pins.yaml is not valid YAML: .*; mend it there") as error:
        hub.resolve_revision("some/data")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pin", ["", "123", "[x]"])
def test_a_pin_that_is_no_commit_is_one_sentence(tmp_path, monkeypatch, pin):
    monkeypatch.setattr(hub, "PINS", tmp_path / "pins.yaml")
    (tmp_path / "pins.yaml").write_text(f"some/data: {pin}\n", encoding="utf-8")
    with pytest.raises(UserError, match="^params/pins.yaml has no commit for some/data; remove"):
        hub.resolve_revision("some/data")


@pytest.mark.parametrize("option", ["--profil=quick", "--dry", "--param=epochs=1"])
def test_a_misspelt_option_is_not_taken_for_the_one_that_it_begins(option):
    with pytest.raises(UserError, match=f"^unrecognized arguments: {option}; .* --help says what"):
        make_parser().parse_args(["study", "exbert", option])


def test_pin_without_network_proposes_nothing_that_it_lacks(tmp_path, monkeypatch):
    """It has no --fetch, and no profile."""
    monkeypatch.setattr(hub, "PINS", tmp_path / "pins.yaml")
    words = r"^dataset \S+ cannot be had from the hub \(\w+\); give the same command with network$"
    with pytest.raises(UserError, match=words):
        run_verb(["pin"])
    pins = {}
    for dataset in params.read_datasets("hub").values():
        for place in dataset.list_sources():
            pins[parse_place(place).repo] = "0" * 40
    (tmp_path / "pins.yaml").write_text(yaml.safe_dump(pins))
    words = r"^model \S+ cannot be had from the hub \(\w+\); give the same command with network$"
    with pytest.raises(UserError, match=words):
        run_verb(["pin"])


@pytest.mark.parametrize(
    "field, says",
    [
        ("validation_share: 40", "validation_share: 40 is too large; write a number less than 1"),
        ("validation_share: -0.1", "validation_share: -0.1 is too small"),
        ("train_rows: -5", "train_rows: -5 is too small; write a number greater than 0"),
        ("test_rows: -5", "test_rows: -5 is too small"),
        ("validation_rows: -5", "validation_rows: -5 is too small"),
        ("rows: 0", "rows: 0 is too small"),
    ],
)
def test_a_dataset_of_no_rows_is_refused(tmp_path, field, says):
    file = tmp_path / "own.yaml"
    file.write_text(f"mills: {{train: [a.jsonl], test: [b.jsonl], {field}}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"own.yaml: mills: {says}"):
        params.read_datasets("own", str(file))


def test_an_argument_that_is_wrong_is_one_sentence():
    parser = command_line.CommandLine()
    parser.add_argument("--workers", type=int)
    words = "^argument --workers: invalid int value: 'two'; .* --help says what there is$"
    with pytest.raises(UserError, match=words):
        parser.parse_args(["--workers", "two"])


def test_notebook_names_are_checked():
    names = {
        **plans.load_params("exbert", "quick").model_dump(),
        "params": params,
        "_private": 1,
        "In": ["x = 1"],
        "P": params,
        "specs": [params],
        "exit": print,
    }
    assert plans.load_from_names("exbert", names) == plans.load_params("exbert", "quick")
    # names of a notebook's own that are no parameters, and do not compare with a list
    own = {"ledger": pd.DataFrame({"a": [1, 2]}), "parts": [], "shapes": np.arange(3)}
    assert plans.load_from_names("exbert", names | own) == plans.load_params("exbert", "quick")
    words = "notebook parameter learnig_rate is not a parameter; did you mean learning_rate"
    with pytest.raises(UserError, match=words):
        plans.load_from_names("exbert", names | {"learnig_rate": 1e-4})
    words = "notebook parameter temperature is not a parameter; .*a name of your own begins with _"
    with pytest.raises(UserError, match=words):
        plans.load_from_names("exbert", names | {"temperature": 1e-4})


def test_the_hash_sees_what_changes_the_numbers_and_nothing_else(tiny):
    spec = plans.plan(tiny())[0]
    without_effect = {
        "variant": "other",
        "tests": spec.tests[:1],
        "domains": ["a", "b"],
        "encoder": "elsewhere",
        "folder": "/x",
        "held_out": ["c"],
    }
    for key, value in without_effect.items():
        assert spec.model_copy(update={key: value}).hash == spec.hash, key
    with_effect = {
        "seed": 1,
        "learning_rate": 1e-5,
        "threads": 2,
        "precision": "bf16",
        "weights": "w",
        "rows": [1, 47],
        "fingerprints": ["x", "y"],
        "order": "sequential",
        "start": spec,
        "teachers": [spec],
        "blocks": 2,
        "places": [1, 0],
    }
    hashes = {spec.model_copy(update={key: value}).hash for key, value in with_effect.items()}
    assert len(hashes | {spec.hash}) == len(with_effect) + 1


def test_the_hash_of_a_given_run_never_changes():
    """Another default, field name or canonical form would orphan every record.

    If a training changes, raise the plan's recipe instead, knowingly.
    """
    spec = make_spec(
        domains=["a", "b"],
        fingerprints=["f", "g"],
        rows=[3200, 800],
        validation_rows=500,
        learning_rate=1e-4,
        epochs=2.0,
        warmup=0.0,
        precision="bf16",
        threads=2,
    )
    assert spec.hash == "81d5e2be811bbca329145563e74d3e3a1389582fe8e78a79881c68978670d562"
    assert spec.on_gpu().hash != spec.hash


def test_what_is_read_of_a_file_belongs_to_who_reads_it(tmp_path):
    """A file is parsed once; what one reader changes, the next does not see."""
    file = tmp_path / "a.yaml"
    file.write_text("one: [1]\n", encoding="utf-8")
    values, _ = params.read_yaml(file)
    values["one"].append(2)
    assert params.read_yaml(file) == ({"one": [1]}, {"one": 1})
    file.write_text("two: 2\none: [3]\n", encoding="utf-8")
    assert params.read_yaml(file) == ({"two": 2, "one": [3]}, {"two": 1, "one": 2})
