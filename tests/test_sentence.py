"""Sentences with a class or a score: rows, splits, features, batches, predictions, scores."""

import gzip
import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset as Table
from scipy import stats
from sklearn import metrics as reference
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import BertConfig, BertModel

from qa_lib.data import corpora, features, hub_tables, selection, sentences, sources
from qa_lib.evidence import resample
from qa_lib.models import encoders
from qa_lib.models.shared_encoder import SharedEncoder, make_head
from qa_lib.settings import params
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError
from qa_lib.tasks import get_task, sentence, span
from qa_lib.training import evaluate, study

CLASSES = get_task("classes")
SCORES = get_task("score")
MOODS = ["bad", "plain", "good"]
REVIEWS = Dataset(train=["a.jsonl"], train_rows=4, task="classes", classes=MOODS, text="sentence")
PAIRS = Dataset(
    train=["a.jsonl"],
    train_rows=4,
    task="classes",
    classes=["different", "same"],
    text="sentence1",
    text_pair="sentence2",
)
SIMILAR = Dataset(
    train=["a.jsonl"], train_rows=4, task="score", range=[0, 5], text="one", text_pair="two"
)


def make_row(text: str, pair: str | None = None, label: float = 0, **fields) -> dict:
    """Return a row in the schema of sentences."""
    return {"id": text, "text": text, "text_pair": pair, "label": label, "domain": "own"} | fields


def write_lines(path, rows: list[dict]):
    """Write rows as JSON lines, compressed if the name ends in .gz."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def read(path, d: Dataset, bad_rows: str = "stop", counts: Counter | None = None) -> list[dict]:
    """Return the rows of a file of dataset "own"."""
    counts = Counter() if counts is None else counts
    return sources.read_sentences(path, d, "own", bad_rows, counts)


@pytest.fixture(scope="module")
def tokenizer():
    """Return the tokenizer of MiniLM."""
    return encoders.load_encoder("minilm", blocks=1)[1]


# ---- definitions ----


def test_a_definition_of_sentences_has_texts_as_units():
    assert REVIEWS.unit == REVIEWS.cluster == "text"
    assert Dataset(train_rows=1).task == "span"
    assert Dataset(train_rows=1).unit == "title"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"task": "classes"}, "task: classes needs the names of its classes; write"),
        ({"task": "classes", "classes": ["one"]}, "classes: .* has too few values; write at least"),
        ({"task": "classes", "classes": ["a", "a"]}, "classes: a name stands there twice"),
        (
            {"task": "classes", "classes": yaml.safe_load("[no, yes]")},
            r"classes: false is not read as text \(YAML reads no and off as false, yes and on as "
            r'true\); write the word in quotes, as "no" or "yes"$',
        ),
        (
            {"task": "score", "text_pair": "two"},
            "task: score needs the lowest and the highest score",
        ),
        ({"task": "score", "text_pair": "two", "range": [5, 0]}, "range: .* does not rise"),
        ({"task": "score", "text_pair": "two", "range": [0]}, "range: .* has too few values"),
        ({"task": "score", "range": [0, 5]}, "task: score is of two texts; write text_pair: and"),
        ({"task": "span", "classes": ["a", "b"]}, "classes: a dataset of the task span has none"),
        ({"text_pair": "two"}, "text_pair: a dataset of the task span has none"),
        ({"unit": "text"}, "unit: text is nothing that rows of the task span have"),
        (
            {"task": "classes", "classes": ["a", "b"], "unit": "title"},
            "unit: title is nothing that rows of the task classes have",
        ),
        (
            {"task": "score", "text_pair": "two", "range": [0, 5], "classes": ["a", "b"]},
            "classes: a dataset of the task score has none",
        ),
        (
            {"task": "classes", "classes": ["a", "b"], "range": [0, 5]},
            "range: a dataset of the task classes has none",
        ),
        ({"task": "words"}, "task: 'words' is not known; known: 'span', 'classes' or 'score'"),
    ],
)
def test_a_definition_that_is_not_whole_is_one_sentence(fields, words):
    where = dict.fromkeys(fields, "params/datasets.yaml, line 9: ")
    with pytest.raises(UserError, match=f"params/datasets.yaml, line 9: {words}") as error:
        params.validate(Dataset, {"train_rows": 1, **fields}, where)
    assert "\n" not in str(error.value)


# ---- rows ----


def test_all_formats_give_the_same_rows(tmp_path):
    rows = [
        {"id": "p0", "sentence1": 'Is "it", so?', "sentence2": "Is it?", "label": 1},
        {"id": "p1", "sentence1": "Why, then?", "sentence2": "a\u0308 “b”", "label": 0},
    ]
    write_lines(tmp_path / "a.jsonl", rows)
    write_lines(tmp_path / "a.jsonl.gz", rows)
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.csv.gz", index=False)
    lines = ["\t".join(frame.columns)]
    lines += ["\t".join(map(str, row.values())) for row in rows]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    expected = [
        {"id": "p0", "text": 'Is "it", so?', "text_pair": "Is it?", "label": 1, "domain": "own"},
        {"id": "p1", "text": "Why, then?", "text_pair": "a\u0308 “b”", "label": 0, "domain": "own"},
    ]
    for ending in ("jsonl", "jsonl.gz", "parquet", "csv", "csv.gz", "tsv"):
        assert read(tmp_path / f"a.{ending}", PAIRS) == expected, ending


@pytest.mark.parametrize(
    "label, number",
    [("bad", 0), ("good", 2), (0, 0), (2, 2), ("2", 2), (1.0, 1), (" plain ", 1)],
)
def test_a_label_is_a_class_by_name_or_number(label, number):
    assert sentence.read_class(label, MOODS) == number


@pytest.mark.parametrize(
    "label", [3, -1, "3", "Good", "", 1.5, True, None, [], math.nan, math.inf, "9" * 5000]
)
def test_a_label_outside_the_classes_is_none(label):
    assert sentence.read_class(label, MOODS) is None


def test_where_a_name_is_a_number_labels_are_names():
    stars = ["1", "2", "3"]
    read_stars = [sentence.read_class(label, stars) for label in (1, "3", 2.0, 0)]
    assert read_stars == [0, 2, 1, None]


@pytest.mark.parametrize("label", [-0.01, 5.01, "six", "", True, [], math.nan, math.inf, 10**400])
def test_a_label_outside_the_range_is_none(label):
    assert sentence.read_score(label, 0, 5) is None
    assert sentence.read_score("2.25", 0, 5) == 2.25
    assert sentence.read_score(5, 0, 5) == 5.0


@pytest.mark.parametrize(
    "d, changes, reason",
    [
        (REVIEWS, {"label": 3}, "field 'label' is 3, which is none of its 3 classes (bad, plain,"),
        (REVIEWS, {"label": "fair"}, "field 'label' is 'fair', which is none of its 3 classes"),
        (REVIEWS, {"label": None}, "field 'label' holds nothing"),
        (REVIEWS, {"sentence": " \u200b"}, "field 'sentence' holds no text"),
        (REVIEWS, {"sentence": 4}, "field 'sentence' holds no text"),
        (REVIEWS, {"sentence": "half \ud83d"}, "field 'sentence' holds what is no UTF-8 text at"),
        (PAIRS, {"sentence2": ""}, "field 'sentence2' holds no text, and a pair has two"),
        (PAIRS, {"sentence2": None}, "field 'sentence2' holds no text, and a pair has two"),
        (SIMILAR, {"label": 5.5}, "field 'label' is 5.5, which is no number from 0 to 5"),
        (SIMILAR, {"label": "high"}, "field 'label' is 'high', which is no number from 0 to 5"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path, d, changes, reason):
    row = {"id": "r", "label": 1, d.text: "A mill."}
    if d.text_pair:
        row[d.text_pair] = "The mill."
    write_lines(tmp_path / "a.jsonl", [row, row | changes, row])
    with pytest.raises(UserError) as error:
        read(tmp_path / "a.jsonl", d)
    message = str(error.value)
    assert f"a.jsonl, line 2: {reason}" in message
    assert message.endswith("or leave such rows out with bad_rows=skip in PARAMS")
    assert "\n" not in message
    for bad_rows in ("skip", "move"):
        counts = Counter()
        assert len(read(tmp_path / "a.jsonl", d, bad_rows, counts)) == 2
        assert counts == {"incomplete": 1}


def test_a_pair_without_its_second_field_is_named(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"id": "r", "sentence1": "A mill.", "label": 1}])
    words = "a.jsonl, line 1: no field 'sentence2', the second text of a pair, among id, sentence1"
    with pytest.raises(UserError, match=words):
        read(tmp_path / "a.jsonl", PAIRS)
    pd.DataFrame([{"sentence1": "A mill.", "label": 1}]).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame([{"sentence1": "A mill.", "label": 1}]).to_csv(tmp_path / "a.csv", index=False)
    for file in ("a.parquet", "a.csv"):
        words = f"{file} cannot be read .no column 'sentence2' among 'sentence1', 'label'; a row "
        with pytest.raises(UserError, match=words):
            read(tmp_path / file, PAIRS)


def test_a_bad_line_of_a_table_is_named(tmp_path):
    lines = ["label,sentence", "0,whole", "1,one,two", "", '1,"open" quote', "2,whole too"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    words = (
        "a.csv: 2 of 4 rows cannot be used .2 malformed.: line 3: it has 3 fields, and the first "
        "line names 2; a cell with a comma stands in double quotes; line 5: not CSV"
    )
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path / "a.csv", REVIEWS)
    assert "more" not in str(error.value)
    counts = Counter()
    rows = read(tmp_path / "a.csv", REVIEWS, "skip", counts)
    assert [row["text"] for row in rows] == ["whole", "whole too"]
    assert counts == {"malformed": 2}
    (tmp_path / "b.csv").write_bytes("label,sentence\n1,Où\n0,so\n".encode("latin-1"))
    with pytest.raises(UserError, match="b.csv, line 2: field 'sentence' holds what is no UTF-8"):
        read(tmp_path / "b.csv", REVIEWS)
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(UserError, match="c.csv cannot be read .no column 'sentence' among none"):
        read(tmp_path / "c.csv", REVIEWS)


def test_questions_are_not_divided_by_tabs_and_sentences_no_nested_json(tmp_path):
    (tmp_path / "a.json").write_text('{"data": []}')
    (tmp_path / "a.tsv").write_text("label\tsentence\n0\tso\n")
    with pytest.raises(UserError, match=r"a.json: its name has none of .* CSV .* or TSV"):
        read(tmp_path / "a.json", REVIEWS)
    with pytest.raises(UserError, match=r"a.tsv: its name has none of .* nested SQuAD JSON"):
        sources.read_rows(tmp_path / "a.tsv", "own", "stop", Counter())
    with pytest.raises(UserError, match="does not exist; DATA= names the folder"):
        read(tmp_path / "none.csv", REVIEWS)


def test_a_row_without_an_id_is_named_by_its_number(tmp_path):
    rows = [{"sentence": "one", "label": 0}, {"id": None, "sentence": "two", "label": 1}]
    write_lines(tmp_path / "a.jsonl", rows)
    assert [row["id"] for row in read(tmp_path / "a.jsonl", REVIEWS)] == ["own-1", "own-2"]


def test_rows_of_the_hub_are_checked_too(monkeypatch):
    table = [{"sentence": "fine", "label": 2}, {"sentence": "withheld", "label": -1}]
    monkeypatch.setattr(hub_tables, "load_table", lambda _: Table.from_list(table))
    counts = Counter()
    rows = sources.read_hub_sentences("a/b:part:train", REVIEWS, "own", "skip", counts)
    assert rows == [make_row("fine", label=2, id="train-0")]
    assert counts == {"incomplete": 1}
    words = "a/b:train, row 1: field 'label' is -1, which is none of its 3 classes"
    with pytest.raises(UserError, match=words):
        sources.read_hub_sentences("a/b:train", REVIEWS, "own", "stop", counts)
    unlabelled = REVIEWS.model_copy(update={"unlabelled": -1})
    counts = Counter()
    assert sources.read_hub_sentences("a/b:train", unlabelled, "own", "stop", counts) == rows
    assert counts == {"rows without a label": 1}


# ---- copies, units and splits ----


def test_a_copy_has_other_case_and_signs_and_its_pair_in_any_order():
    assert sentence.copy_key(make_row("A  Mill!")) == sentence.copy_key(make_row("a mill"))
    assert sentence.copy_key(make_row("a", "b")) == sentence.copy_key(make_row("B?", "A."))
    assert sentence.copy_key(make_row("a", "b")) != sentence.copy_key(make_row("a"))
    assert sentence.copy_key(make_row("?!")) != sentence.copy_key(make_row("..."))


def test_rows_that_texts_connect_are_one_unit():
    pairs = [("a", "b"), ("C", "d"), ("x", "y"), ("b.", "c"), ("y", "y"), ("z", "!")]
    units = sentence.connect_texts([make_row(*pair) for pair in pairs])
    assert units == ["a", "a", "x", "a", "x", "!"]
    assert sentence.connect_texts([make_row("b"), make_row("a"), make_row("B!")]) == ["b", "a", "b"]


def test_units_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 60, size=(40, 2))
    units = sentence.connect_texts([make_row(f"t{a:02}", f"t{b:02}") for a, b in pairs])
    group = list(range(60))  # text → the smallest text that is known to belong to it
    for _ in range(60):
        for a, b in pairs:
            group[a] = group[b] = min(group[a], group[b])
    assert units == [f"t{group[a]:02}" for a, _ in pairs]


@pytest.fixture
def own(monkeypatch, tmp_path):
    """Return a function that loads the splits of a folder dataset "own" of given files' rows."""

    def load(files: dict[str, list[dict]], **fields):
        for name, rows in files.items():
            write_lines(tmp_path / name, rows)
        d = Dataset(**fields)
        monkeypatch.setattr(params, "read_datasets", lambda *source: {"own": d})
        selection.load_splits.cache_clear()
        return selection.load_splits("own", "folder", str(tmp_path))

    yield load
    selection.load_splits.cache_clear()


def test_no_text_stands_on_two_sides_of_a_carved_split(own):
    rng = np.random.default_rng(1)
    rows = []
    for i in range(300):
        a, b = rng.integers(0, 500, size=2)
        rows.append({"id": f"p{i}", "text": f"q{a}", "text_pair": f"q{b}", "label": int(i % 2)})
    other = [{"id": "copy", "text": rows[0]["text_pair"], "text_pair": rows[0]["text"], "label": 0}]
    splits = own(
        {"one.jsonl": rows, "two.jsonl": other},
        train=["one.jsonl", "two.jsonl"],
        task="classes",
        classes=["no", "yes"],
        text_pair="text_pair",
        train_rows=150,
    )
    parts = (splits.train, splits.validation, splits.test)
    ids = [row["id"] for part in parts for row in part]
    assert len(ids) == len(set(ids))
    assert "copy" not in ids
    assert len(ids) + splits.counts["copies within the pool dropped"] == 301
    assert len(splits.train) >= 150
    texts = [{text for row in part for text in sentence.list_texts(row)} for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert splits.validation and splits.test
    assert splits.task == "classes"


def test_leaks_into_training_are_dropped_and_counted(own):
    """A copy of a test row does not train; nor does a row that shares a text with another set."""
    rows = [{"id": f"r{i}", "text": f"mill {i}", "label": i % 3} for i in range(30)]
    splits = own(
        {
            "train.jsonl": rows,
            "test.jsonl": [{"id": "t", "text": "MILL  7!", "label": 1}, rows[8]],
            "other.jsonl": [{"text": "Mill, 9", "label": 0}],
        },
        train=["train.jsonl"],
        test=["test.jsonl"],
        apart_from=["other.jsonl"],
        task="classes",
        classes=MOODS,
        validation_rows=10,
    )
    kept = {row["id"] for row in splits.train + splits.validation}
    assert {"r7", "r8"}.isdisjoint(kept)
    assert "r9" not in {row["id"] for row in splits.train}
    assert splits.counts["copies of held-out rows dropped"] == 2
    assert [row["id"] for row in splits.test] == ["t", "r8"]
    assert len(splits.validation) >= 8


def test_rows_are_left_out_by_a_field_that_the_schema_lacks(own):
    rows = [{"text": f"mill {i}", "label": 0, "genre": "ab"[i % 2]} for i in range(10)]
    splits = own(
        {"train.jsonl": rows, "test.jsonl": [{"text": "a barn", "label": 0}]},
        train=["train.jsonl"],
        test=["test.jsonl"],
        leave_out={"genre": "a"},
        task="classes",
        classes=MOODS,
    )
    assert [row["text"] for row in splits.train] == [f"mill {i}" for i in (1, 3, 5, 7, 9)]
    assert splits.counts["genre=a left out of training"] == 5


def test_rows_are_left_out_by_a_number_too(own):
    rows = [{"text": f"mill {i}", "label": i % 3, "year": 2020 + i % 2} for i in range(10)]
    for leave_out, left in (({"year": "2021"}, 5), ({"label": "1"}, 3)):
        splits = own(
            {"train.jsonl": rows, "test.jsonl": [{"text": "a barn", "label": 0}]},
            train=["train.jsonl"],
            test=["test.jsonl"],
            leave_out=leave_out,
            task="classes",
            classes=MOODS,
        )
        [(field, value)] = leave_out.items()
        assert splits.counts[f"{field}={value} left out of training"] == left
        assert len(splits.train) == len(rows) - left


# ---- what a study says of its datasets ----


def describe(monkeypatch, d: Dataset, rows: list[dict], counts: dict) -> str:
    """Return what a study says of a dataset with these training rows and counts."""
    splits = selection.Splits(rows, [], [], counts, d.task)
    monkeypatch.setattr(selection, "load_splits", lambda *_: splits)
    monkeypatch.setattr(params, "read_datasets", lambda *source: {"own": d})
    p = SimpleNamespace(source="folder", data="data", bad_rows="stop")
    return study.describe_rows(p, "own")


def test_a_study_says_how_many_rows_each_class_has(monkeypatch):
    d = Dataset(train=["a"], train_rows=3, task="classes", classes=MOODS)
    rows = [make_row("a mill", label=1), make_row("a barn", label=2), make_row("a hut", label=2)]
    counts = {"lang=de left out of training": 0, "copies of held-out rows dropped": 0}
    told = describe(monkeypatch, d, rows, counts)
    assert told == (
        "own: 3 training, 0 validation, 0 test rows; of the training rows "
        f"0 {MOODS[0]}, 1 {MOODS[1]}, 2 {MOODS[2]}; 0 lang=de left out of training"
    )


def test_a_study_says_where_all_scores_are_one(monkeypatch):
    d = Dataset(train=["a"], train_rows=3, task="score", range=[0, 5], text_pair="b")
    rows = [make_row("a mill", label=2.0), make_row("a barn", label=2.0)]
    assert "; all training rows have one score" in describe(monkeypatch, d, rows, {})
    rows = [make_row("a mill", label=2.0), make_row("a barn", label=3.0)]
    assert "one score" not in describe(monkeypatch, d, rows, {})


def test_a_mixture_of_two_tasks_knows_its_copies(monkeypatch):
    reviews = [make_row(f"mill {i}", label=i % 3) for i in range(9)]
    pairs = [make_row(f"a {i}", f"b {i}", label=i / 2) for i in range(9)]
    whole = {
        "reviews": selection.Splits(reviews, [], [make_row("Mill 4?")], Counter(), "classes"),
        "pairs": selection.Splits(pairs, [], [make_row("B 2", "A 2")], Counter(), "score"),
    }
    for splits in whole.values():
        splits.held_out = {selection.row_key(row, splits.task) for row in splits.test}
    spec = SimpleNamespace(
        domains=["reviews", "pairs"],
        rows=[8, 8],
        places=[],
        seed=0,
        validation_rows=0,
        tests=[],
        held_out=[],
        source="folder",
        folder="",
        bad_rows="stop",
        imbalance=None,
        multitask=None,
    )
    monkeypatch.setattr(selection, "load_splits", lambda name, *rest: whole[name])
    mixed, _, counts = selection.draw_mixture(spec)
    ids = {row["id"] for row in mixed}
    assert len(ids) == 16
    assert {"mill 4", "a 2"}.isdisjoint(ids)
    assert counts["copies of other sets' rows dropped"] == 2


# ---- the datasets of the study ----

GENERATED = ("sentiment", "paraphrase", "similarity", "nli")
REAL = ("sst", "cfimdb", "quora", "sts")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_sentences_are_split_by_their_texts(name):
    splits = selection.load_splits(name, "embedded")
    d = selection.find_dataset(name, "embedded")
    assert len(splits.train) >= d.train_rows
    assert len(splits.validation) >= 200
    assert len(splits.test) >= d.test_rows
    parts = (splits.train, splits.validation, splits.test)
    texts = [{text for row in part for text in sentence.list_texts(row)} for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    for part in parts:
        assert {row["domain"] for row in part} == {name}
        assert len({row["id"] for row in part}) == len(part)
        labels = {row["label"] for row in part}
        if d.task == "classes":
            assert labels == set(range(len(d.classes)))
        else:
            assert min(labels) < 0.5 < 4.5 < max(labels)


def overlap(row: dict) -> float:
    """Return the share of words that both texts of a pair have."""
    first, second = (set(text.split()) for text in (row["text"], row["text_pair"]))
    return len(first & second) / len(first | second)


def measure_shallow_accuracy(splits, describe) -> float:
    """Return the accuracy in percent of a linear model of what `describe` gives of rows."""
    train = splits.train[:2000]
    held_out = splits.test + splits.validation
    describe_train, describe_other = describe(train, held_out)
    model = LogisticRegression(max_iter=500)
    model.fit(describe_train, [row["label"] for row in train])
    return 100 * model.score(describe_other, [row["label"] for row in held_out])


def count_words(train: list[dict], other: list[dict]) -> tuple:
    """Return the counts of words in the rows of two lists."""
    counter = CountVectorizer()
    texts = [[f"{row['text']} {row['text_pair'] or ''}" for row in rows] for rows in (train, other)]
    return counter.fit_transform(texts[0]), counter.transform(texts[1])


def list_overlaps(train: list[dict], other: list[dict]) -> tuple:
    """Return the overlap of each pair in two lists of rows."""
    return [[overlap(row)] for row in train], [[overlap(row)] for row in other]


@pytest.mark.parametrize(
    "name, describe, low, high",
    [
        # words tell a mood, and not all of it; of a pair they tell nothing
        ("sentiment", count_words, 75, 90),
        ("paraphrase", count_words, 40, 60),
        ("nli", count_words, 25, 45),
        ("yesno", count_words, 40, 60),
        ("continuing", count_words, 40, 65),
        # pairs that share words are alike more often, and not always
        ("paraphrase", list_overlaps, 55, 75),
        ("nli", list_overlaps, 40, 65),
        ("yesno", list_overlaps, 45, 65),
        ("continuing", list_overlaps, 55, 85),
    ],
)
def test_generated_sentences_are_as_hard_as_stated(name, describe, low, high):
    splits = selection.load_splits(name, "embedded")
    assert low < measure_shallow_accuracy(splits, describe) < high


def test_generated_similarity_is_as_hard_as_stated():
    rows = selection.load_splits("similarity", "embedded").train
    r = stats.pearsonr([overlap(row) for row in rows], [row["label"] for row in rows]).statistic
    assert 0.55 < r < 0.8


def test_an_unknown_kind_of_sentences_is_the_users_mistake():
    with pytest.raises(
        UserError, match="'irony' is no kind of generated sentences; known: continuing, nli,"
    ):
        sentences.draw_rows("irony", 3)


@pytest.mark.parametrize("name", REAL)
def test_real_sentences_have_fingerprints_without_data(name):
    assert re.fullmatch("[0-9a-f]{64}", selection.fingerprint(name, "folder", None))
    assert "minilm" in selection.find_dataset(name, "folder").seen_by


def test_what_testing_alone_reads_is_no_part_of_a_fingerprint(monkeypatch):
    known = dict(params.read_datasets("folder"))
    before = selection.fingerprint("sts", "folder", None)
    changes = {"test_rows": 100, "seen_by": {}, "display_name": "another name"}
    known["sts"] = known["sts"].model_copy(update=changes)
    monkeypatch.setattr(params, "read_datasets", lambda *source: known)
    assert selection.fingerprint("sts", "folder", None) == before
    known["sts"] = known["sts"].model_copy(update={"range": [0.0, 4.0]})
    assert selection.fingerprint("sts", "folder", None) != before


# ---- features and batches ----


def test_texts_are_tokenised_each_by_itself(tokenizer):
    rows = [make_row("A mill.", "The old mill stands."), make_row("No mill", "None", 1)]
    columns = sentence.tokenise_rows(rows, tokenizer, 64, 16)
    for i, row in enumerate(rows):
        assert columns["input_ids"][i] == tokenizer(row["text"])["input_ids"]
        assert columns["pair_input_ids"][i] == tokenizer(row["text_pair"])["input_ids"]
        assert not columns["type_ids"][i].any()
        assert len(columns["pair_type_ids"][i]) == len(columns["pair_input_ids"][i])
    assert columns["row"] == [0, 1]
    assert columns["label"] == [0, 1]
    assert columns["truncated"] == [False, False]
    lengths = sentence.measure_windows(columns)
    assert lengths[0] == len(columns["input_ids"][0]) + len(columns["pair_input_ids"][0])
    singles = sentence.tokenise_rows([make_row("A mill.")], tokenizer, 64)
    assert set(singles) == {"input_ids", "type_ids", "row", "truncated", "label"}


def test_a_pair_may_be_one_sequence(tokenizer):
    row = make_row("A mill.", "The old mill stands.")
    columns = sentence.tokenise_rows([row], tokenizer, 64, joined=True)
    expected = tokenizer(row["text"], row["text_pair"])
    assert columns["input_ids"] == [expected["input_ids"]]
    assert columns["type_ids"][0].tolist() == expected["token_type_ids"]
    assert "pair_input_ids" not in columns


@pytest.mark.parametrize("joined", [False, True])
def test_a_text_that_is_cut_is_counted(tokenizer, joined):
    long = " ".join(["mill"] * 50)
    rows = [make_row("mill", long), make_row(long, "mill"), make_row("a mill", "the mill")]
    columns = sentence.tokenise_rows(rows, tokenizer, 32, joined=joined)
    assert columns["truncated"] == [True, True, False]
    for name in ("input_ids", "pair_input_ids"):
        for ids in columns.get(name, []):
            assert len(ids) <= 32
            assert ids[-1] == tokenizer.sep_token_id
    counts, remark = CLASSES.remark_on_windows(rows, columns)
    assert counts == {"texts cut at max_length": 2}
    assert remark.startswith("2 of 3 training rows have a text of more tokens than max_length")
    assert CLASSES.remark_on_windows(rows[2:], {"truncated": [False]})[1] == ""


def test_rows_with_and_without_a_pair_are_no_one_table(tokenizer):
    with pytest.raises(ValueError, match="with and without a second text"):
        sentence.tokenise_rows([make_row("a"), make_row("a", "b")], tokenizer, 32)


@pytest.mark.parametrize("task, kind", [(CLASSES, torch.int64), (SCORES, torch.float32)])
def test_a_batch_is_padded_to_multiples_of_8(tokenizer, tmp_path, task, kind):
    rows = [make_row("A mill.", " ".join(["old"] * 9), 1), make_row("No", "None at all", 3)]
    windows = features.load_windows(rows, tokenizer, 32, 8, tmp_path, task)
    assert features.load_windows(rows, tokenizer, 32, 8, tmp_path, task)[1] == windows[1]
    batch = task.make_collator(tokenizer, reads_types=True)([windows[0], windows[1]])
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert list(batch) == [*names, *(f"pair_{name}" for name in names), "labels"]
    assert batch["input_ids"].shape == (2, 8)
    assert batch["pair_input_ids"].shape == (2, 16)
    assert batch["labels"].tolist() == [1, 3]
    assert batch["labels"].dtype == kind
    for prefix in ("", "pair_"):
        for i, window in enumerate(windows):
            n = len(window[f"{prefix}input_ids"])
            assert batch[f"{prefix}input_ids"][i, :n].tolist() == window[f"{prefix}input_ids"]
            assert (batch[f"{prefix}input_ids"][i, n:] == tokenizer.pad_token_id).all()
            assert batch[f"{prefix}attention_mask"][i].sum() == n
    without = task.make_collator(tokenizer, reads_types=False)([windows[0]])
    assert not [name for name in without if name.endswith("token_type_ids")]


def test_features_are_made_anew_for_another_label(tokenizer):
    rows = [make_row("a mill", label=1)]
    key = features.cache_key(rows, tokenizer, 32, 8, CLASSES)
    assert features.cache_key([rows[0] | {"label": 2}], tokenizer, 32, 8, CLASSES) != key
    assert features.cache_key([rows[0] | {"domain": "b"}], tokenizer, 32, 8, CLASSES) == key


def test_features_that_are_cut_at_the_other_end_are_apart(tokenizer, monkeypatch):
    rows = [make_row("a mill")]
    key = features.cache_key(rows, tokenizer, 32, 8, CLASSES)
    monkeypatch.setattr(tokenizer, "truncation_side", "left")
    assert features.cache_key(rows, tokenizer, 32, 8, CLASSES) != key


def test_features_of_joined_pairs_are_apart_from_those_of_others(tokenizer):
    rows = [make_row("a mill", "a barn")]
    key = features.cache_key(rows, tokenizer, 32, 8, CLASSES)
    joined = get_task("classes", joined=True)
    assert features.cache_key(rows, tokenizer, 32, 8, joined) != key


# ---- predictions and scores ----


def draw_classes(rng, rows: int, classes: int) -> tuple[list[dict], np.ndarray]:
    """Return rows with classes, and logits (R, C) that tend to the right class."""
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    return [make_row(f"r{i}", label=int(y)) for i, y in enumerate(labels)], logits


def draw_scores(rng, rows: int, r: float = 0.8) -> tuple[list[dict], np.ndarray]:
    """Return rows with scores, and predictions (R,) that correlate with them."""
    y = rng.normal(size=rows)
    x = r * y + math.sqrt(1 - r**2) * rng.normal(size=rows)
    return [make_row(f"r{i}", "b", label=float(score)) for i, score in enumerate(y)], x


def in_windows(rng, rows: list[dict], values: np.ndarray) -> tuple[dict, dict]:
    """Return windows in another order than the rows, and the outputs of these windows."""
    order = rng.permutation(len(rows))
    windows = {"row": order.tolist(), "truncated": [False] * len(rows)}
    return windows, {"logits": list(values[order])}


@pytest.mark.parametrize("classes", [2, 5])
def test_classes_are_scored_as_by_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    rows, logits = draw_classes(rng, 400, classes)
    windows, outputs = in_windows(rng, rows, logits)
    probabilities = CLASSES.predict(rows, windows, outputs)
    assert np.allclose(probabilities, torch.tensor(logits).softmax(-1).numpy())
    values, averages = CLASSES.score(rows, probabilities)
    labels = [row["label"] for row in rows]
    predicted = logits.argmax(1)
    expected = 100 * reference.accuracy_score(labels, predicted)
    assert averages == {"accuracy": pytest.approx(expected)}
    assert set(values["accuracy"]) == {0.0, 100.0}
    assert values["accuracy"].mean() == pytest.approx(expected)
    further = CLASSES.describe_predictions(rows, windows, probabilities, values)
    each = reference.precision_recall_fscore_support(labels, predicted)
    for name, of_classes in zip(("precision", "recall", "f1"), each, strict=False):
        for k in range(classes):
            assert further[f"{name}_{k}"] == pytest.approx(100 * of_classes[k])
    assert further["truncated"] == 0


def test_one_logit_stands_for_two_classes():
    rng = np.random.default_rng(3)
    logit = rng.normal(size=50)
    rows = [make_row(f"r{i}", label=int(i % 2)) for i in range(50)]
    for values in (logit, logit[:, None]):
        windows, outputs = in_windows(rng, rows, values)
        probabilities = CLASSES.predict(rows, windows, outputs)
        assert np.allclose(probabilities[:, 1], torch.tensor(logit).sigmoid().numpy())
        assert np.allclose(probabilities.sum(1), 1)
    two = np.stack([np.zeros(50), logit], 1)
    assert np.allclose(sentence.class_probabilities(two), probabilities)


def test_a_class_that_is_never_predicted_or_never_there_scores_0():
    each = sentence.score_each_class(np.array([0, 0, 1]), np.array([0, 2, 2]), 4)
    assert each["precision"].tolist() == [100, 0, 0, 0]
    assert each["recall"].tolist() == [50, 0, 0, 0]
    assert each["n"].tolist() == [2, 1, 0, 0]
    assert each["f1"].tolist() == pytest.approx([200 / 3, 0, 0, 0])


def test_the_calibration_error_is_that_of_a_plain_loop():
    rng = np.random.default_rng(4)
    rows, logits = draw_classes(rng, 300, 3)
    labels = np.array([row["label"] for row in rows])
    p = sentence.class_probabilities(3 * logits)
    expected = 0.0
    for m in range(1, 16):
        inside = [i for i in range(300) if (m - 1) / 15 < p[i].max() <= m / 15]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([p[i].max() for i in inside])
            expected += len(inside) / 300 * abs(accuracy - confidence)
    assert sentence.calibration_error(p, labels) == pytest.approx(100 * expected)
    sure = np.eye(3)[labels]
    assert sentence.calibration_error(sure, labels) == 0
    assert sentence.calibration_error(sure, (labels + 1) % 3) == 100


@pytest.mark.parametrize("r", [0.95, 0.5, 0.0, -0.7])
def test_scores_are_correlated_as_by_scipy(r):
    rng = np.random.default_rng(5)
    rows, predictions = draw_scores(rng, 200, r)
    windows, outputs = in_windows(rng, rows, predictions.astype(np.float32))
    predicted = SCORES.predict(rows, windows, outputs)
    assert predicted == pytest.approx(predictions, abs=1e-6)
    values, averages = SCORES.score(rows, predicted)
    expected = 100 * stats.pearsonr(predicted, [row["label"] for row in rows]).statistic
    assert averages == {"pearson": pytest.approx(expected)}
    assert values["pearson"].mean() == pytest.approx(expected)
    assert SCORES.describe_predictions(rows, windows, predicted, values) == {"truncated": 0}


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.3e7])
def test_a_constant_prediction_has_no_correlation(constant):
    rows, _ = draw_scores(np.random.default_rng(6), 20)
    values, averages = SCORES.score(rows, np.full(20, constant))
    assert averages == {"pearson": 0.0}
    assert not values["pearson"].any()


def test_influence_is_the_derivative_of_r():
    """r of a sample in which a row weighs a little more, against the formula."""
    rng = np.random.default_rng(7)
    rows, x = draw_scores(rng, 40)
    y = np.array([row["label"] for row in rows])
    influence = sentence.correlation_influence(x, y)
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    step = 1e-6
    for i in range(40):
        weights = np.ones(40)
        weights[i] += step * 40
        weights /= weights.sum()
        covariance = np.cov(x, y, aweights=weights, ddof=0)
        r = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        assert (r - sentence.correlate(x, y)) / step == pytest.approx(influence[i], abs=1e-3)


def test_a_bootstrap_of_the_values_is_one_of_r():
    """The spread of r over other test rows, from what records hold, and from labels."""
    rng = np.random.default_rng(8)
    rows, x = draw_scores(rng, 500)
    y = np.array([row["label"] for row in rows])
    values, averages = SCORES.score(rows, x)
    examples = SCORES.tabulate(rows, x, values)
    examples = examples.assign(run="r", set="sts", cluster=examples["id"])
    ledger = pd.DataFrame(
        [{"run": "r", "set": "sts", "metric": "pearson", "value": averages["pearson"]}]
    )
    draws = resample.resample(ledger, examples)["r", "sts", "pearson"]
    exact = []
    for _ in range(1000):
        drawn = rng.integers(0, 500, 499)
        exact.append(100 * np.corrcoef(x[drawn], y[drawn])[0, 1])
    assert draws.mean() == pytest.approx(averages["pearson"], abs=0.2)
    assert draws.std() == pytest.approx(np.std(exact), rel=0.1)


def test_examples_hold_no_text_and_no_label():
    rows, logits = draw_classes(np.random.default_rng(9), 30, 2)
    probabilities = sentence.class_probabilities(logits)
    values, _ = CLASSES.score(rows, probabilities)
    examples = CLASSES.tabulate(rows, probabilities, values)
    assert list(examples) == ["id", "accuracy"]
    assert examples["accuracy"].dtype == np.float32
    rows, x = draw_scores(np.random.default_rng(9), 30)
    assert list(SCORES.tabulate(rows, x, SCORES.score(rows, x)[0])) == ["id", "pearson"]


@pytest.mark.parametrize("task", [CLASSES, SCORES])
def test_a_logit_that_is_no_number_is_an_error(task):
    windows = {"row": [0, 1]}
    with pytest.raises(ValueError, match="not a finite number"):
        task.predict([{}, {}], windows, {"logits": [np.array([1.0]), np.array([np.nan])]})


def test_averages_may_be_over_clusters():
    rows = [make_row(f"r{i}", label=0) for i in range(4)]
    probabilities = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    clusters = ["a", "a", "a", "b"]
    assert CLASSES.score(rows, probabilities)[1] == {"accuracy": 50.0}
    averages = CLASSES.score(rows, probabilities, clusters)[1]
    assert averages["accuracy"] == pytest.approx((200 / 3 + 0) / 2)


@pytest.mark.parametrize(
    "name, head", [("sentiment", "classes"), ("paraphrase", "pair"), ("similarity", "cosine")]
)
def test_the_outputs_of_a_model_become_scores(tokenizer, tmp_path, name, head):
    """From rows to scores, with a tiny encoder and one window at a time as the reference."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    d = selection.find_dataset(name, "embedded")
    task = get_task(d.task)
    low, high = d.range or (0, 1)
    made = make_head(head, 16, 0.0, len(d.classes or ()), low, high)
    model = SharedEncoder(BertModel(config, add_pooling_layer=False), {name: made}).eval()
    rows = selection.load_splits(name, "embedded").test[:20]
    windows = features.load_windows(rows, tokenizer, 64, 16, tmp_path, task)
    collate = model.collate(tokenizer, task, name)
    outputs, loss = evaluate.compute_outputs(model, windows, collate, "fp32", task)
    assert math.isfinite(loss)
    with torch.no_grad():
        alone = [model(**collate([window])).logits[0].numpy() for window in windows]
    assert np.allclose(np.stack(outputs["logits"]), np.stack(alone), atol=1e-5)
    predictions = task.predict(rows, windows, outputs)
    values, averages = task.score(rows, predictions)
    assert values[task.TRIAL_SCORE].mean() == pytest.approx(averages[task.TRIAL_SCORE])
    assert len(task.tabulate(rows, predictions, values)) == 20


# ---- what stays as it was ----

# Before there were other tasks than spans: fingerprints, digests of splits, digests of windows.
HELD = json.loads((Path(__file__).parent / "net" / "spans.json").read_text(encoding="utf-8"))
# Digests of the first 60 rows of each kind.
GOLDEN = {
    "continuing": "228312f9a6a2630b",
    "nli": "0059e064e7917262",
    "paraphrase": "4d8211f037eaaa3c",
    "similarity": "d99b240bc7e67a44",
    "sentiment": "2b7bc96943762f57",
    "yesno": "426b23ba762741a3",
}


def digest(value) -> str:
    """Return sixteen digits of the sha256 of a value's JSON."""
    text = json.dumps(value, sort_keys=True, default=lambda array: array.tolist())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("source", ["embedded", "folder"])
def test_spans_have_the_fingerprints_that_they_had(source):
    held = HELD["fingerprints"][source]
    assert {name: selection.fingerprint(name, source, None) for name in held} == held


@pytest.mark.parametrize("name", HELD["splits"])
def test_spans_have_the_splits_that_they_had(name):
    splits = selection.load_splits(name, "embedded")
    parts = [splits.train, splits.validation, splits.test, dict(splits.counts)]
    assert digest(parts) == HELD["splits"][name]


@pytest.mark.parametrize("name", HELD["windows"])
def test_spans_have_the_windows_that_they_had(tokenizer, name):
    rows = selection.load_splits(name, "embedded").test[:40]
    assert digest(span.tokenise_rows(rows, tokenizer, 96, 24)) == HELD["windows"][name]


@pytest.mark.parametrize("kind", sentences.KINDS_OF_ROWS)
def test_generated_sentences_are_frozen_under_their_version(kind):
    assert corpora.VERSION == "1"
    assert digest(sentences.draw_rows(kind, 60)) == GOLDEN[kind]
