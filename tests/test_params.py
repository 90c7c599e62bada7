"""Parameters: strictness, places, and the identity of a run."""
import argparse

import pytest

from qa_lib import params, runs
from qa_lib.params import UserError
from qa_lib.settings import TAKEN_NAMES, Gate, Layer
from qa_lib.spec import Spec


@pytest.mark.parametrize("profile", ["quick", "real", "paper"])
def test_every_yaml_validates(profile):
    p = params.load("exbert", profile)
    assert p.profile == profile and p.report == "exbert"
    for source in ("embedded", "folder", "hub"):
        assert params.datasets(source)


@pytest.mark.parametrize("changes, words", [
    ({"learnig_rate": 1e-4}, ["learnig_rate", "did you mean learning_rate"]),
    ({"learning_rate": "1e-5"}, ["learning_rate", "'1e-5'", "text", "write 1.0e-05"]),
    ({"ratios": [1.2]}, ["ratios", "1.2", "between 0 and 1"]),
    ({"epochs": 0}, ["epochs", "greater than 0"]),
    ({"order": "random"}, ["order", "'random'", "sequential"]),
    ({"seeds": []}, ["seeds", "at least 1"]),
    ({"seeds": 5}, ["seeds: 5 is one value", "write seeds=[5]"]),
    ({"stride": 300}, ["stride: 300", "max_length 384"]),
    ({"blocks": 1.5}, ["blocks"]),
    ({"seeds": [0, 1, 0]}, ["seeds: 0 stands there twice"]),
    ({"seeds": [-1]}, ["seeds: -1", "greater than or equal to 0"]),
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
    ({"learning_rate": float("inf")}, ["learning_rate: inf", "finite"]),
    ({"profile": "real"}, ["profile: generated text", "make … PROFILE=real"]),
])
def test_a_wrong_parameter_is_one_sentence(changes, words):
    with pytest.raises(UserError) as e:
        params.load("exbert", "quick", changes)
    sentence = str(e.value)
    assert "\n" not in sentence and sentence.startswith("PARAMS (-p): ")
    assert all(w in sentence for w in words), sentence


@pytest.mark.parametrize("changes, words", [
    ({"domains": ["squad", "training"]}, "domains: 'training' cannot name a dataset"),
    ({"few_shot": ["metric"]}, "few_shot: 'metric' cannot name a dataset"),
    ({"pools": ["first"]}, "pools: 'first' cannot name a dataset"),
    ({"domains": ["squad", "cluster-1"]}, "domains: 'cluster-1' cannot name a dataset"),
    ({"domains": ["squad", "newsqa"], "pools": ["squad"]}, "pools: squad is among domains already"),
])
def test_a_dataset_of_a_taken_name_is_refused_wherever_one_is_named(changes, words):
    with pytest.raises(UserError, match=words) as e:
        params.load("moe", "real", changes)
    assert "\n" not in str(e.value)


def test_every_column_of_the_ledger_is_a_taken_name():
    """A table of rows by dataset has the datasets' names as columns beside these."""
    spec = Spec(report="exbert", variant="v-db", profile="real", size="full", seed=0,
                source="folder", domains=["a"], rows=[1], fingerprints=["x"], validation_rows=1,
                tests=["a"], encoder="minilm", weights="w", max_length=384, stride=128,
                batch_size=16, learning_rate=3e-5, epochs=1.0, warmup=0.1, weight_decay=0.01,
                clip=1.0, precision="fp32", threads=1, layer=Layer(), gate=Gate())
    machine = {"device": "CPU", "precision": "fp32"}
    columns = runs.labels(spec, {"run": spec.run, "environment": machine})
    assert len(columns) > 50 and set(columns) <= TAKEN_NAMES
    for source in ("embedded", "folder", "hub"):
        assert not set(params.datasets(source)) & TAKEN_NAMES


@pytest.mark.parametrize("text, words", [
    ("seeds=[0", "-p seeds=.0: not a value of YAML"), ("seeds=", "-p seeds=: write -p key=value"), ("1]", "a list without spaces")])
def test_a_parameter_that_cannot_be_read_is_one_sentence(text, words):
    with pytest.raises(UserError, match=words) as e:
        params.from_args(argparse.Namespace(report="exbert", profile="quick", size=None, data=None, p=[text]))
    assert "\n" not in str(e.value)


def test_a_wrong_value_in_yaml_names_file_and_line(tmp_path, monkeypatch):
    for file in ("params/exbert.yaml", "params/quick/exbert.yaml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text((params.ROOT / file).read_text())
    quick = tmp_path / "params/quick/exbert.yaml"
    lines = quick.read_text().splitlines()
    line = next(i for i, x in enumerate(lines, 1) if x.startswith("learning_rate"))
    lines[line - 1] = "learning_rate: 1e-5"
    quick.write_text("\n".join(lines))
    monkeypatch.setattr(params, "ROOT", tmp_path)
    with pytest.raises(UserError, match=rf"params/quick/exbert.yaml, line {line}: learning_rate: '1e-5' is read as text"):
        params.load("exbert", "quick")


def test_a_yaml_file_that_is_a_list_is_one_sentence(tmp_path):
    (tmp_path / "a.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="a.yaml holds no mapping; write a line key: value"):
        params.read_yaml(tmp_path / "a.yaml")


def test_an_argument_that_is_wrong_is_one_sentence():
    parser = params.command_line("What it does.")
    parser.add_argument("--workers", type=int)
    with pytest.raises(UserError, match="^argument --workers: invalid int value: 'two'; .* --help says what there is$"):
        parser.parse_args(["--workers", "two"])


def test_notebook_names_are_checked():
    names = {**params.load("exbert", "quick").model_dump(), "params": params, "_private": 1, "In": ["x = 1"],
             "P": params, "specs": [params], "exit": print}
    assert params.from_names("exbert", names) == params.load("exbert", "quick")
    with pytest.raises(UserError, match="notebook parameter learnig_rate is not a parameter; did you mean learning_rate"):
        params.from_names("exbert", names | {"learnig_rate": 1e-4})
    with pytest.raises(UserError, match="notebook parameter temperature is not a parameter; .*a name of your own begins with _"):
        params.from_names("exbert", names | {"temperature": 1e-4})


def test_the_hash_sees_what_changes_the_numbers_and_nothing_else(tiny):
    spec = runs.plan(tiny())[0]
    same = {"variant": "other", "tests": spec.tests[:1], "domains": ["a", "b"], "encoder": "elsewhere", "folder": "/x"}
    for key, value in same.items():
        assert spec.model_copy(update={key: value}).hash == spec.hash, key
    other = {"seed": 1, "learning_rate": 1e-5, "threads": 2, "precision": "bf16", "weights": "w", "rows": [1, 47],
             "fingerprints": ["x", "y"], "order": "sequential", "parents": [spec], "blocks": 2,
             "places": [1, 0]}
    hashes = {spec.model_copy(update={key: value}).hash for key, value in other.items()}
    assert len(hashes | {spec.hash}) == len(other) + 1


def test_golden_hash():
    """Changing a default, a field's name or the canonical form orphans every record: bump RECIPE instead, knowingly."""
    spec = Spec(report="exbert", variant="v-db", profile="real", size="full", seed=0, source="folder", domains=["a", "b"],
                       fingerprints=["f", "g"], rows=[3200, 800], validation_rows=500, tests=["a"], encoder="minilm",
                       weights="w", max_length=384, stride=128, batch_size=16, learning_rate=1e-4, epochs=2.0, warmup=0.0,
                       weight_decay=0.01, clip=1.0, precision="bf16", threads=2)
    assert spec.hash == "81d5e2be811bbca329145563e74d3e3a1389582fe8e78a79881c68978670d562"
    assert spec.on_gpu().hash != spec.hash
