"""The hub path with the real clients, against a stand-in on loopback (tests/hub_standin.py)."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hub_standin
import pytest
from datasets import Dataset as Table
from datasets import Features, Value
from huggingface_hub import constants

from qa_lib.data import downloads, hub_tables, sources
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import ROOT, UserError
from qa_lib.training import study

QUESTIONS = Dataset(train=["some/data:train"], test=["some/data:test"])
# Run in a process of its own, since the clients read the hub's address when they are imported. It
# reads steps from its standard input, and writes what each gave as JSON.
CLIENT = """
import contextlib, io, json, sys, time
from collections import Counter
from pathlib import Path
from qa_lib.__main__ import run_verb
from qa_lib.data import selection, sources
from qa_lib.models import encoders
from qa_lib.settings import encoder_files, hub, params
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError

folder = Path(sys.argv[1])
hub.PINS = folder / "pins.yaml"
time.sleep = lambda seconds: None  # between the tries of the clients

def read(name):
    train, test, apart = selection.read_parts(name, "hub", None, "stop", Counter())
    return [len(train), len(test), train[:3], test[:1]]

def read_place(place, **fields):
    d = Dataset(train=[place], train_rows=1, **fields)
    counts = Counter()
    if d.task == "span":
        rows = sources.read_hub_questions(place, d, "x", "stop", counts)
    else:
        rows = sources.read_hub_sentences(place, d, "x", "stop", counts)
    return [len(rows), rows[:1]]

def encode(name):
    encoder, tokenizer = encoders.load_encoder(name)
    batch = tokenizer("The mill", "of the river", return_tensors="pt")
    states = encoder(**batch).last_hidden_state
    return [encoder_files.identify_weights(name), list(states.shape)]

def shrink(rows, *names):
    known = params.read_datasets("hub", None)
    for name in names:
        known[name] = known[name].model_copy(update={"train_rows": rows})

def verb(*words):
    return run_verb(list(words))

answers = {}
for name, function, args, kwargs in json.load(sys.stdin):
    output = io.StringIO()
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(output):
            answer = {"value": globals()[function](*args, **kwargs)}
    except UserError as error:
        answer = {"error": str(error)}
    answers[name] = answer | {"output": output.getvalue(), "seconds": time.monotonic() - began}
Path(folder, "answers.json").write_text(json.dumps(answers))
"""


def ask(folder: Path, url: str, steps: list, **environment: str) -> dict[str, dict]:
    """Return what a client's steps gave, by their names. folder: its home, kept between calls."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "QA_RUNS": str(folder / "runs"),
        "QA_RECORDS": str(folder / "records"),
        "QA_FIGURES": str(folder / "figures"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(folder)],
        input=json.dumps(steps),
        env=env | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Return a hub that has everything the study names, in small."""
    hub = hub_standin.Hub()
    hub_standin.fill_hub(hub, 60, 40, tmp_path_factory.mktemp("model"))
    yield hub
    hub.stop()


NAMES = [name for name, d in params.read_datasets("hub").items() if not d.pool]
OLD = "some/moved"
BROKEN = {
    "revision": ("read_place", ["some/lost:train"], {}),
    "repository": ("read_place", ["some/absent:train"], {}),
    "cut": ("read_place", ["some/cut:train"], {}),
    "garbage": ("read_place", ["some/garbage:train"], {}),
    "silent": ("read_place", ["some/silent:train"], {}),
    "silent, pinned": ("read_place", ["some/mute:train"], {}),
    "script": ("read_place", ["allenai/quac:train"], {}),
    "split": ("read_place", ["rajpurkar/squad:tain"], {}),
    "part": ("read_place", ["nyu-mll/glue:qpq:train"], {"task": "classes", "classes": ["a", "b"]}),
    "field": (
        "read_place",
        ["nyu-mll/glue:qqp:train"],
        {"task": "classes", "classes": ["a", "b"], "text": "question"},
    ),
    "no answers": ("read_place", ["some/questions:train"], {}),
    "label": ("read_place", ["SetFit/sst5:train"], {"task": "classes", "classes": ["a", "b"]}),
    "subset": ("read_place", ["mrqa-workshop/mrqa:train"], {"only": {"subset": "NewsQa"}}),
    "encoder, revision": ("encode", ["some/lost-model"], {}),
    "encoder, branch": ("encode", ["google/electra-large-discriminator"], {}),
    "encoder, cut": ("encode", ["some/cut-model"], {}),
    "encoder, silent": ("encode", ["some/silent-model"], {}),
}


@pytest.fixture(scope="module")
def answers(stand_in, tmp_path_factory):
    """Return what a client got from the stand-in: every dataset, every encoder, every fault."""
    folder = tmp_path_factory.mktemp("client")
    one = Features({"id": Value("string"), "context": Value("string"), "question": Value("string")})
    rows = [{"id": "a", "context": "The mill.", "question": "Which?"}]
    questions = hub_standin.write_parquet(rows, one)
    squad = hub_standin.make_repo(
        {"default": {"train": hub_standin.make_questions(0, 9)}}, {"default": hub_standin.SQUAD}
    )
    newer = hub_standin.make_repo(
        {"default": {"train": hub_standin.make_questions(50, 20)}}, {"default": hub_standin.SQUAD}
    )
    old = stand_in.add("dataset", OLD, squad)
    stand_in.add("dataset", OLD, newer)
    for name in ("lost", "cut", "silent", "mute"):
        stand_in.add("dataset", f"some/{name}", squad)
        stand_in.add("model", f"some/{name}-model", hub_standin.make_model("bert", 1, folder))
    stand_in.add("dataset", "some/garbage", {"train.parquet": b"PAR1 and no more"})
    stand_in.add("dataset", "some/questions", {"train.parquet": questions})
    plain = stand_in.repos["model", "google/electra-large-discriminator"]
    without = {"pytorch_model.bin": b"x", "config.json": b"{}", "tokenizer.json": b"{}"}
    assert len(plain) == 1
    stand_in.add("model", "google/electra-large-discriminator", without)
    stand_in.cut = {
        "some/cut/default/train-00000-of-00001.parquet",
        "some/cut-model/model.safetensors",
    }
    stand_in.silent = {"some/silent", "some/mute", "some/silent-model"}
    lines = [f"some/lost: '{'0' * 40}'", f"some/lost-model: '{'0' * 40}'"]
    lines += [f"some/mute: '{'1' * 40}'", f"{OLD}: '{old}'"]
    (folder / "pins.yaml").write_text("\n".join(lines) + "\n")
    steps = [["old", "read_place", [f"{OLD}:train"], {}]]
    steps += [[name, "read", [name], {}] for name in NAMES]
    steps += [[name, "encode", [name], {}] for name in list_encoders()]
    steps += [[name, *step] for name, step in BROKEN.items()]
    found = ask(folder, stand_in.url, steps)
    found["folder"] = folder
    return found


def list_encoders() -> list[str]:
    """Return the encoders of the stand-in, as parameters name them."""
    names = []
    for repo, branch in hub_standin.ENCODERS:
        names.append(repo if branch == "main" else f"{repo}@{branch}")
    return names


# ---- what is read ----


def test_every_dataset_of_a_report_has_a_definition():
    known = params.read_datasets("hub")
    for slug in params.list_reports():
        p = plans.load_params(slug, "paper")
        for field, names in p.named_datasets().items():
            for name in names:
                assert name in known, f"{slug}: {field}: {name}"


def load_whole(slug: str):
    """Return the parameters of a report at profile paper, with all parts that it has itself."""
    whole, _ = params.read_yaml(ROOT / "params" / f"{slug}.yaml")
    return plans.load_params(slug, "paper", {"experiments": whole["experiments"]})


def test_the_stand_in_has_every_encoder_that_a_report_names():
    named = set()
    for slug in params.list_reports():
        named |= set(load_whole(slug).named_encoders())
    assert named == set(list_encoders())
    assert "google/electra-base-discriminator" in named


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_is_read_in_the_schema_of_its_id(name, answers):
    answer = answers[name]
    assert "error" not in answer, answer
    train, test, first, held_out = answer["value"]
    d = params.read_datasets("hub")[name]
    assert train >= 39
    assert bool(test) == bool(d.test)
    for row in first + held_out:
        assert row["domain"] == (d.part_of or name)
        if d.task == "span":
            assert not sources.row_error(row)
            assert not sources.misplaced_answer(row)
            assert "XXX" not in row["question"]
            assert "CANNOT" not in row["context"]
        else:
            assert row["text_pair"] is None or d.text_pair
            assert row["label"] in range(len(d.classes)) if d.classes else row["label"] <= 5


def test_questions_without_an_answer_stay(answers):
    for name in ("squad2", "qa-zre", "quac"):
        rows = answers[name]["value"][2]
        assert {row["is_impossible"] for row in rows} == {True, False}, name


def test_rows_without_a_label_are_left_out(answers):
    assert answers["snli"]["value"][0] == 59
    assert answers["mnli"]["value"][0] == 60


@pytest.mark.parametrize("name", list_encoders())
def test_every_encoder_is_read_in_the_form_of_its_id(name, answers):
    identity, shape = answers[name]["value"]
    assert re.fullmatch("[0-9a-f]{40}", identity)
    assert shape[0] == 1 and shape[2] == 16


def test_a_pinned_revision_is_honoured(answers):
    assert answers["old"]["value"][0] == 9
    pins = (answers["folder"] / "pins.yaml").read_text()
    for name in NAMES[:3]:
        repo = params.read_datasets("hub")[name].train[0].split(":")[0]
        assert re.search(rf"^{re.escape(repo)}: '?[0-9a-f]{{40}}'?$", pins, re.M)
    assert "allenai/quac@refs/convert/parquet: " in pins


def test_no_script_and_no_pickle_is_fetched(answers, stand_in):
    assert not [path for path in stand_in.asked if path.endswith((".py", ".bin"))]


def test_what_was_fetched_is_read_without_network(answers, stand_in):
    """Of two revisions that were read, the pinned one is read again."""
    folder = answers["folder"]
    before = len(stand_in.asked)
    steps = [["old", "read_place", [f"{OLD}:train"], {}], ["quac", "read", ["quac"], {}]]
    steps.append(["model", "encode", ["albert-large-v2"], {}])
    again = ask(folder, stand_in.url, steps, HF_HUB_OFFLINE="1")
    assert {name: answer.get("error") for name, answer in again.items()} == dict.fromkeys(again)
    assert again["old"]["value"] == answers["old"]["value"]
    assert again["quac"]["value"] == answers["quac"]["value"]
    assert again["model"]["value"] == answers["albert-large-v2"]["value"]
    assert len(stand_in.asked) == before


# ---- what is refused ----


@pytest.mark.parametrize(
    "name, words",
    [
        ("revision", "dataset some/lost: .* no longer the revision that params/pins.yaml names"),
        ("repository", "dataset some/absent .*no public repository of that name.*; mend its name"),
        ("cut", "dataset some/cut: a file came from the hub cut short; give the same command"),
        ("garbage", "some/garbage:train cannot be read .*; mend its place .* delete .* fetch it"),
        ("silent", r"dataset some/silent cannot be had from the hub \(\w*Timeout\w*\).*make data"),
        ("silent, pinned", "dataset some/mute cannot be had from the hub .*make data"),
        ("script", "allenai/quac:train cannot be read .*; mend its place"),
        ("split", "rajpurkar/squad:tain cannot be read .*tain.*; mend its place"),
        ("part", "nyu-mll/glue:qpq:train cannot be read .*qpq.*; mend its place"),
        ("field", "nyu-mll/glue:qqp:train has no column 'question' among question1, question2"),
        ("no answers", "some/questions:train, row 0: no field 'answers' among .* definition in"),
        ("label", "SetFit/sst5:train: 36 of .* row 2, .*: field 'label' is 2, .* none of its 2"),
        ("subset", "mrqa.*:train has no row whose 'subset' is NewsQa; name one of HotpotQA, .*New"),
        (
            "encoder, revision",
            "model some/lost-model: .* no longer the revision that params/",
        ),
        (
            "encoder, branch",
            "electra-large-discriminator has no model.safetensors .* id@branch",
        ),
        ("encoder, cut", "model some/cut-model: a file came from the hub cut short"),
        ("encoder, silent", r"encoder some/silent-model.* cannot be had from the hub \(\w*Timeout"),
    ],
)
def test_a_fault_of_the_hub_is_one_sentence(name, words, answers):
    sentence = answers[name]["error"]
    assert re.search(words, sentence), sentence
    assert "\n" not in sentence
    assert len(sentence) < 700
    assert answers[name]["seconds"] < 60


@pytest.mark.parametrize(
    "place, parts",
    [
        ("a/b:train", ("a/b", None, "train")),
        ("a/b:part:train", ("a/b", "part", "train")),
        ("a/b:train[:9]", ("a/b", None, "train[:9]")),
        ("a/b:part:train[5:9]", ("a/b", "part", "train[5:9]")),
        ("a/b@refs/convert/parquet:part:train", ("a/b@refs/convert/parquet", "part", "train")),
    ],
)
def test_a_place_has_three_parts(place, parts):
    assert hub_tables.parse_place(place) == parts


@pytest.mark.parametrize("place", ["a/b", "a/b:", "a/b:c:d:e", ":train"])
def test_no_place_is_refused(place):
    with pytest.raises(UserError, match="is no place of a hub dataset; write repo:split"):
        hub_tables.parse_place(place)


# ---- forms of questions ----


def read(rows: list[dict], monkeypatch, bad_rows: str = "stop", **fields) -> tuple[list, Counter]:
    """Return the rows that a table gives, and what was counted."""
    monkeypatch.setattr(hub_tables, "load_table", lambda source: Table.from_list(rows))
    counts = Counter()
    d = QUESTIONS.model_copy(update=fields)
    return sources.read_hub_questions("some/data:train", d, "own", bad_rows, counts), counts


def test_a_text_counts_wherever_the_context_holds_it(monkeypatch):
    table = [
        {"question": "What?", "text": "<answer> ice <context> Ice, and more ice."},
        {"question": "What?", "text": "<answer> snow <context> Ice."},
        {"question": "What?", "text": "<answer> no context"},
    ]
    (row,), counts = read(table, monkeypatch)
    assert counts["answer not in the context"] == 2
    assert row["answers"] == {"text": ["Ice", "ice"], "answer_start": [0, 14]}
    assert row["id"] == "train-0"
    table = [{"question": "Who is XXX?", "subject": "Ann", "context": "Ann.", "answers": ["ann"]}]
    (row,), _ = read(table, monkeypatch, placeholder={"XXX": "subject"})
    assert row["question"] == "Who is Ann?"
    assert row["answers"] == {"text": ["Ann"], "answer_start": [0]}


def test_a_span_of_other_letters_is_left_out(monkeypatch):
    spans = [{"start": [3, 0], "end": [7, 1]}, {"start": [0], "end": [4]}]
    detected = {"text": ["march", "April"], "char_spans": spans}
    table = [
        {"qid": "q", "context": "In March.", "question": "When?", "detected_answers": detected}
    ]
    (row,), _ = read(table, monkeypatch)
    assert row["answers"] == {"text": ["March"], "answer_start": [3]}
    assert row["id"] == "q"


def test_a_dialogue_is_a_row_for_each_question(monkeypatch):
    """Its answers come as a list of turns, or as lists of their fields."""
    turns = [{"texts": ["March"], "answer_starts": [3]}, {"texts": ["CANNOTANSWER"]}]
    turns[1]["answer_starts"] = [10]
    dialogue = {
        "turn_ids": ["a", "b"],
        "wikipedia_page_title": "Ice",
        "context": "In March. CANNOTANSWER",
        "questions": ["When?", "Why?"],
        "yesnos": [2, 0],
        "followups": [0, 1],
    }
    columns = {name: [turn[name] for turn in turns] for name in turns[0]}
    for answers in (turns, columns):
        rows, _ = read([dialogue | {"answers": answers}], monkeypatch)
        assert [row["id"] for row in rows] == ["a", "b"]
        assert [row["is_impossible"] for row in rows] == [False, True]
        assert {row["context"] for row in rows} == {"In March."}


def test_an_answer_beside_its_place_is_moved_or_refused(monkeypatch):
    table = [
        {
            "id": "a",
            "context": "In March.",
            "question": "When?",
            "answers": {"text": ["March"], "answer_start": [2]},
        }
    ]
    (row,), counts = read(table, monkeypatch, "move")
    assert row["answers"]["answer_start"] == [3]
    assert counts["rows with a moved answer"] == 1
    with pytest.raises(
        UserError, match="some/data:train, row 0: the answer 'March' stands at 3, not at 2"
    ):
        read(table, monkeypatch)


# ---- what is still to be fetched ----


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """Return the folder of a hub cache that does not exist yet."""
    folder = tmp_path / "home" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def test_every_repository_has_a_size_or_is_said_to_have_none():
    sizes = params.read_yaml(ROOT / "params" / "datasets.yaml")[0]["downloads"]
    for slug in params.list_reports():
        assert set(downloads.list_repositories(load_whole(slug))) <= set(sizes), slug
    assert {name for name, size in sizes.items() if size is None} == {
        "allenai/quac@refs/convert/parquet"
    }


def test_a_study_says_what_it_has_still_to_fetch(empty_cache, capsys):
    exbert = plans.load_params("exbert", "paper")
    downloads.announce_downloads(exbert)
    said = capsys.readouterr().out
    assert said == f"first fetches about 0.4 GB from the hub into {empty_cache}\n"
    road = plans.load_params("road", "paper")
    downloads.announce_downloads(road)
    words = r"about 11\.8 GB .*; not counted, since their size is not known: allenai/quac@refs"
    assert re.search(words, capsys.readouterr().out)
    # what is there is not fetched again
    for name in ("datasets--rajpurkar--squad", "datasets--kroshan--BioASQ"):
        (empty_cache / name / "snapshots").mkdir(parents=True)
    downloads.announce_downloads(exbert)
    assert "about 0.3 GB" in capsys.readouterr().out
    # but for what was left half fetched
    broken_off = empty_cache / "datasets--rajpurkar--squad" / "blobs" / "a1.b2.incomplete"
    broken_off.parent.mkdir()
    broken_off.touch()
    downloads.announce_downloads(exbert)
    assert "about 0.4 GB" in capsys.readouterr().out
    broken_off.unlink()
    (empty_cache / "models--distilbert-base-uncased" / "snapshots").mkdir(parents=True)
    downloads.announce_downloads(exbert)
    assert capsys.readouterr().out == ""


def test_a_study_without_the_hub_fetches_nothing(empty_cache, capsys):
    for slug in params.list_reports():
        for profile in ("quick", "real"):
            downloads.announce_downloads(plans.load_params(slug, profile))
    assert capsys.readouterr().out == ""


def test_a_disk_too_small_for_what_is_fetched_is_refused(empty_cache, monkeypatch):
    """Before anything is fetched, by a study as by `make data`."""

    class Disk:
        free = 2e9

    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: Disk)
    P = plans.load_params("moe", "paper")
    with pytest.raises(
        UserError, match="has 2.0 GB free and what is .* takes about 6.7; make room"
    ):
        study.fetch_inputs(P)
    assert not empty_cache.exists()


def test_a_dataset_that_is_not_known_is_one_sentence(empty_cache):
    P = plans.load_params("exbert", "paper", {"domains": ["squat", "bioasq"]})
    with pytest.raises(UserError, match="^'squat' is no hub dataset; params/datasets.yaml has"):
        downloads.announce_downloads(P)


# ---- the four reports at profile paper ----


# What the plans of the reports are shortened by: fewer rows, not fewer runs.
FEW_ROWS = {
    "exbert": {"train_rows": 200, "full_rows": [400, 200], "sizes": [100, 400]},
    "moe": {"train_rows": 400, "few_rows": 100},
    "road": {"train_rows": 800, "steps": 20},
    "smart": {"train_rows": 400, "pair_rows": 400, "full_rows": 800, "review_rows": 300},
}


def estimate_every_report(folder: Path) -> dict[str, dict]:
    """Return what `study --dry-run` says of each report at profile paper, by a larger stand-in."""
    hub = hub_standin.Hub()
    hub_standin.fill_hub(hub, 2400, 1100, folder)
    steps = [["shrink", "shrink", [1500, "bioasq", "quora", "sts"], {}]]
    for slug, few in FEW_ROWS.items():
        pretraining = getattr(plans.load_params(slug, "paper"), "pretraining", {})
        if pretraining:
            few = few | {"pretraining": dict.fromkeys(pretraining, 100)}
        words = ["study", slug, "--profile", "paper", "--dry-run", "-p", "validation_rows=60"]
        for name, value in few.items():
            words += ["-p", f"{name}={json.dumps(value)}"]
        steps.append([slug, "verb", words, {}])
    try:
        return ask(folder, hub.url, steps, HF_HUB_DOWNLOAD_TIMEOUT="20")
    finally:
        hub.stop()


@pytest.mark.slow
def test_a_dry_run_says_runs_hours_and_disk(tmp_path):
    answers = estimate_every_report(tmp_path)
    for slug in params.list_reports():
        assert "error" not in answers[slug], answers[slug]
        output = answers[slug]["output"]
        counts = re.search(rf"study {slug}, profile paper, size full: (\d+) runs, (\d+) to", output)
        assert int(counts[1]) == int(counts[2]) > 0
        assert re.search(r"about .* (min|hours) on this machine .*GB of disk", output)
    fetched = [slug for slug in FEW_ROWS if "first fetches about" in answers[slug]["output"]]
    assert fetched == list(FEW_ROWS)
