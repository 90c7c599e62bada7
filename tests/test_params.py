"""Parameters: strictness, places, and the identity of a run."""
import argparse

import pytest

from qa_lib import params, runs
from qa_lib.params import UserError
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
    ({"seeds": [2**32]}, ["seeds: 4294967296", "less than 4294967296"]),
    ({"side_seeds": [5 * 10**9]}, ["side_seeds: 5000000000", "less than 4294967296"]),
    ({"dense_seeds": [5 * 10**9]}, ["dense_seeds: 5000000000", "less than 4294967296"]),
    ({"trial_epochs": []}, ["trial_epochs", "at least 1"]),
    ({"trial_rates": [0.0]}, ["trial_rates: 0.0", "greater than 0"]),
    ({"full_rows": [100]}, ["full_rows", "at least 2"]),
    ({"sweep_blocks": [0]}, ["sweep_blocks: 0", "greater than 0"]),
    ({"domains": ["news", "news"]}, ["domains: news stands there twice"]),
    ({"learning_rate": float("inf")}, ["learning_rate: inf", "finite"]),
    ({"profile": "real"}, ["profile: generated text", "make … PROFILE=real"]),
])
def test_a_wrong_parameter_is_one_sentence(changes, words):
    with pytest.raises(UserError) as e:
        params.load("exbert", "quick", changes)
    sentence = str(e.value)
    assert "\n" not in sentence and sentence.startswith("PARAMS (-p): ")
    assert all(w in sentence for w in words), sentence


@pytest.mark.parametrize("text, words", [
    ("seeds=[0", "-p seeds=.0: not a value of YAML"), ("seeds=", "-p seeds=: write -p key=value"), ("1]", "a list without spaces")])
def test_a_parameter_that_cannot_be_read_is_one_sentence(text, words):
    with pytest.raises(UserError, match=words) as e:
        params.from_args(argparse.Namespace(report="exbert", profile="quick", size=None, data=None, p=[text]))
    assert "\n" not in str(e.value)


ONE_TOO_FAR = {"batch_size": 10**12, "epochs": 1e300, "max_length": 10**9, "train_rows": 10**12, "threads": 10**6,
               "start_threads": 10**6, "clip": 1e300, "learning_rate": 1e300, "weight_decay": 1e300, "experts": 10**6,
               "width": 1e9, "capacity_eval": 1e300, "balance": 1e300, "sweep_rates": [1e300], "sweep_experts": [10**6],
               "blocks": 10**12, "sweep_blocks": [10**12], "sizes": [10**12], "trial_epochs": [1e300]}


@pytest.mark.parametrize("key", ONE_TOO_FAR)
def test_a_number_far_beyond_sense_is_refused_at_once(key):
    with pytest.raises(UserError, match=f"{key}: .*: input should be less than or equal to [15]"):
        params.load("exbert", "quick", {key: ONE_TOO_FAR[key]})


def test_too_small_an_expert_is_refused():
    with pytest.raises(UserError, match="width: 1e-09: input should be greater than or equal to 0.05"):
        params.load("exbert", "quick", {"width": 1e-9})


@pytest.mark.parametrize("changes, words", [
    ({"curve_seeds": [2**32]}, "curve_seeds: 4294967296: input should be less than"),
    ({"gate_layers": 10**6}, "gate_layers: 1000000: input should be less than"),
    ({"clusters": 10**9}, "clusters: 1000000000: input should be less than"),
    ({"longer": [10**12]}, "longer: 1000000000000: input should be less than"),
    ({"epochs": 1e-9}, "epochs: 1e-09 ends before the first of 2 looks an epoch; write at least 0.5, or looks=1"),
    ({"trial_epochs": [3.0, 0.1]}, "trial_epochs: 0.1 ends before the first of 2 looks")])
def test_bounds_of_the_other_report(changes, words):
    with pytest.raises(UserError, match=words):
        params.load("moe", "quick", changes)


@pytest.mark.parametrize("text, says", [
    ("nan", "nan is no finite number; write a number that is finite"),
    (".nan", "nan is no finite number"),
    ("inf", "inf is no finite number"),
    ("-inf", "-inf is no finite number"),
    ("-.inf", "-inf is no finite number"),
    ("1e400", "1e400 is no finite number"),
    ("1" + "0" * 400, "1000000000000.* is no finite number"),
    ("1e-4", "'1e-4' is read as text, not as a number; write 0.0001 .YAML wants a point"),
    ("1e-7", "'1e-7' is read as text, .*write 1.0e-07 .YAML wants"),
    ("1,5", "'1,5' has a comma; write a number, decimals behind a point and nothing between thousands"),
    ("1,000", "'1,000' has a comma"),
    ('"3"', "'3' is text, not a number; write 3.0, without quotes"),
    ("true", "true is no number; write a number"),
    ("no", "false is no number"),
    ("null", "there is no value; write a number"),
    ("abc", "'abc' is no number; write a number"),
    ("2022-01-01", ".*2022, 1, 1.* is no number"),
])
def test_what_is_no_number_is_told_as_it_is(text, says):
    for key, value in (("epochs", text), ("trial_rates", f"[{text}]")):
        if "," in text and value != text:
            value = f"['{text}']"        # else it would be two numbers
        with pytest.raises(UserError, match=f"^PARAMS .-p.: {key}: {says}") as e:
            given("exbert", f"{key}={value}")
        assert len(str(e.value)) < 160


@pytest.mark.parametrize("text, says", [
    ("nan", "nan is no finite number; write a whole number that is finite"),
    (".inf", "inf is no finite number"),
    ("1e3", "'1e3' is read as text, not as a number; write 1000 .YAML"),
    ('"3"', "'3' is text, not a number; write 3, without quotes"),
    ("2.0", "2.0 has a point and a whole number is wanted; write 2$"),
    ("1.5", "1.5 is not whole; write a whole number$"),
    ("true", "true is no number; write a whole number"),
    ("null", "there is no value; write a whole number"),
])
def test_what_is_no_whole_number_is_told_as_it_is(text, says):
    for key, value in (("batch_size", text), ("seeds", f"[{text}]")):
        with pytest.raises(UserError, match=f"^PARAMS .-p.: {key}: {says}"):
            given("exbert", f"{key}={value}")


def test_numbers_as_people_write_them():
    p = given("exbert", "epochs=1_0", "learning_rate=.001", "trial_rates=[1.0e-4,0.0002]")
    assert (p.epochs, p.learning_rate, p.trial_rates) == (10.0, 0.001, [1e-4, 2e-4])


@pytest.mark.parametrize("text, says", [
    ("seeds=null", "seeds has no value; write a list, seeds="),
    ("epochs=2022-13-45", "-p epochs=2022-13-45: not a value of YAML .month must be"),
    ("epochs=" + "9" * 5000, "-p epochs=9999.*: not a value of YAML .Exceeds the limit")])
def test_values_that_yaml_itself_stumbles_over(text, says):
    with pytest.raises(UserError, match=says) as e:
        given("exbert", text)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


def given(report: str, *texts: str):
    """Parameters of profile quick, changed by the texts of a command line."""
    return params.from_args(argparse.Namespace(report=report, profile="quick", size=None, data=None, p=list(texts)))


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
