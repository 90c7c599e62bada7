"""Reading of rows, splits, mixtures, and their disjointness."""

import datetime
import gzip
import itertools
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qa_lib.data import hub_tables, selection, sources
from qa_lib.data.selection import load_test_sets as load_whole_test_sets
from qa_lib.reports import plans
from qa_lib.settings import params
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import ROOT, UserError
from qa_lib.settings.spec import digest_file


def make_row(i: int, **changes) -> dict:
    """Return a row on the i-th mill, with changed fields."""
    context = f"The mill at Brun{i} was built in {1800 + i} by Osk{i}."
    return {
        "id": f"r{i}",
        "title": f"t{i // 3}",
        "context": context,
        "question": f"Who built the mill at Brun{i}?",
        "answers": {"text": [f"Osk{i}"], "answer_start": [context.index(f"Osk{i}")]},
    } | changes


def make_run(monkeypatch, splits: dict, held_out: list[str], **changes) -> SimpleNamespace:
    """Return a run on datasets of given splits: all but those that it holds out train."""
    domains = [name for name in splits if name not in held_out]
    monkeypatch.setattr(selection, "load_splits", lambda name, *rest: splits[name])
    fields = {
        "domains": domains,
        "rows": [8] * len(domains),
        "places": [],
        "seed": 0,
        "validation_rows": 0,
        "tests": [],
        "held_out": held_out,
        "source": "folder",
        "folder": "",
        "bad_rows": "stop",
        "imbalance": None,
        "multitask": None,
    }
    return SimpleNamespace(**fields | changes)


def make_pair(text: str, second: str) -> dict:
    return {"id": text, "text": text, "text_pair": second, "label": 0, "domain": "pairs"}


def write_rows(path, rows) -> None:
    """Write rows as JSON lines, compressed if the name ends in .gz. Text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "wt") as f:
        for r in rows:
            f.write(json.dumps(r) + "\n" if isinstance(r, dict) else r)


def read_rows(path, bad_rows="stop", counts=None, **how) -> list[dict]:
    """Return the rows that a file of dataset "own" has. `counts` takes what is skipped."""
    counts = selection.Counter() if counts is None else counts
    return sources.read_rows(path, "own", bad_rows, counts, **how)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """Return a function that makes a folder dataset "own" of given rows and returns its folder.

    Further arguments are fields of the dataset's definition.
    """

    def make(train, test, **fields):
        write_rows(tmp_path / "train.jsonl", train)
        write_rows(tmp_path / "test.jsonl", test)
        own = Dataset(train=["train.jsonl"], test=["test.jsonl"], unit="title", **fields)
        monkeypatch.setattr(params, "read_datasets", lambda *source: {"own": own})
        selection.load_splits.cache_clear()
        return str(tmp_path)

    yield make
    selection.load_splits.cache_clear()


NOTHING = {"text": [], "answer_start": []}


def make_article(r: dict, question: dict) -> dict:
    """Return an article of nested SQuAD JSON: the title and context of a row, and a question."""
    return {"title": r["title"], "paragraphs": [{"context": r["context"], "qas": [question]}]}


def assert_disjoint(sets: list[set]) -> None:
    """Assert that no two of some sets share an element."""
    for a, b in itertools.combinations(sets, 2):
        assert not a & b


def test_four_formats_give_the_same_rows(tmp_path):
    rows = [make_row(i) for i in range(4)]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "a.jsonl.gz", rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    articles = []
    for r in rows:
        answer = {
            "text": r["answers"]["text"][0],
            "answer_start": r["answers"]["answer_start"][0],
        }
        question = {"id": r["id"], "question": r["question"], "answers": [answer]}
        articles.append(make_article(r, question))
    (tmp_path / "a.json").write_text(json.dumps({"data": articles}))
    expected = read_rows(tmp_path / "a.jsonl")
    assert len(expected) == 4
    assert expected[0]["domain"] == "own"
    for file in ("a.jsonl.gz", "a.parquet", "a.json"):
        assert read_rows(tmp_path / file) == expected, file


def test_questions_are_read_from_csv_by_their_columns(tmp_path):
    """As pandas writes them. An empty cell makes its column's numbers 21.0 for 21."""
    rows = [make_row(i) for i in range(4)]
    cells = []
    for row in rows:
        row["context"] = f'He said, "so",\r\n{row["context"]}'
        text = row["answers"]["text"][0]
        row["answers"]["answer_start"] = [row["context"].index(text)]
        answer = {"answer": text, "answer_start": row["answers"]["answer_start"][0]}
        cells.append({field: row[field] for field in ("title", "context", "question")} | answer)
    cells[3] |= {"answer": None, "answer_start": None}
    pd.DataFrame(cells).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(cells).to_csv(tmp_path / "a.csv.gz", index=False)
    for file in ("a.csv", "a.csv.gz"):
        read = read_rows(tmp_path / file)
        assert [row["answers"] for row in read] == [row["answers"] for row in rows[:3]] + [NOTHING]
        for field in ("title", "context", "question"):
            assert [row[field] for row in read] == [row[field] for row in rows]
        assert [row["id"] for row in read] == ["own-1", "own-2", "own-3", "own-4"]
        assert [row["is_impossible"] for row in read] == [False, False, False, True]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"answer_start": "3,5"}, "answer 1 has no 'answer_start' that is a whole number"),
        ({"answer_start": ""}, "answer 1 has no 'answer_start' that is a whole number"),
        ({"answer_start": "inf"}, "answer 1 has no 'answer_start' that is a whole number"),
        ({"answer": "", "answer_start": "4"}, "answer 1 is blank"),
        ({"context": ""}, "field 'context' holds no text"),
        ({"is_impossible": "perhaps"}, "field 'is_impossible' is neither true nor false"),
        ({"answer_start": "0"}, "the answer 'mill' stands at 4, not at 0"),
    ],
)
def test_a_bad_row_of_csv_is_named(tmp_path, change, reason):
    whole = {"context": "The mill.", "question": "What?", "answer": "mill", "answer_start": "4"}
    whole["is_impossible"] = ""
    pd.DataFrame([whole, whole | change]).to_csv(tmp_path / "a.csv", index=False)
    message, rows, _ = read_both(tmp_path / "a.csv")
    assert "a.csv, line 3: " in message
    assert reason in message
    assert len(rows) == 1
    pd.DataFrame([whole]).drop(columns="answer_start").to_csv(tmp_path / "b.csv", index=False)
    words = (
        "b.csv cannot be read .no column 'answer_start' among 'context', .*; a row has context, "
        "question, answer, answer_start: rename the column, or add it.; mend it, or save it anew"
    )
    with pytest.raises(UserError, match=words):
        read_rows(tmp_path / "b.csv")


def test_csv_divided_by_semicolons_is_one_sentence(tmp_path):
    """As spreadsheets write it where a comma is the decimal sign."""
    (tmp_path / "a.csv").write_text(
        "context;question;answer;answer_start\nThe mill.;What?;mill;4\n"
    )
    words = "no comma in its first line, context;question;answer;answer_start; commas divide the"
    with pytest.raises(UserError, match=words):
        read_rows(tmp_path / "a.csv")


HEADER = "context,question,answer,answer_start\n"
LINE = "The mill.,What?,mill,4\n"


@pytest.mark.parametrize("bad_rows", ["stop", "skip", "move"])
@pytest.mark.parametrize(
    "behind", [3 * LINE, f'{LINE}"The" mill.,What?,mill,4\n{LINE}'], ids=["open", "closed later"]
)
def test_a_quote_that_swallows_rows_is_refused(tmp_path, bad_rows, behind):
    """It is one bad row to the reader, and so many rows would be gone that nobody counted."""
    file = tmp_path / "a.csv"
    file.write_text(f'{HEADER}"The mill.,What?,mill,4\n{behind}', encoding="utf-8")
    words = r"a quote in the row that begins in line 2 is not closed, .* is read up to line [45]\)"
    with pytest.raises(UserError, match=words):
        read_rows(file, bad_rows)
    # a cell of several lines is none, nor is a quote that spoils its own line alone
    file.write_text(f'{HEADER}"The\nmill.",What?,mill,4\n"The" mill.,a\n{LINE}', encoding="utf-8")
    assert len(read_rows(file, "skip")) == 2


def test_a_cell_of_csv_may_be_long(tmp_path):
    context = f"{'The mill. ' * 30_000}It stands."
    (tmp_path / "a.csv").write_text(f"{HEADER}{context},What?,mill,4\n", encoding="utf-8")
    assert [row["context"] for row in read_rows(tmp_path / "a.csv")] == [context]


def test_two_columns_of_one_name_are_refused(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("context,question,answer,answer_start,answer\n", encoding="utf-8")
    with pytest.raises(UserError, match="2 columns are called 'answer'; rename or remove them"):
        read_rows(file)
    # a spreadsheet leaves columns without a name
    file.write_text(f"context,question,answer,answer_start,,\n{LINE.strip()},,\n", encoding="utf-8")
    assert len(read_rows(file)) == 1


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("bad_rows", ["stop", "skip"])
def test_a_json_array_is_no_json_lines(tmp_path, indent, bad_rows):
    """As pandas writes rows unless it is told otherwise."""
    rows = [make_row(i) for i in range(3)]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    words = r"it is one JSON array and not one row a line; .* lines=True\)"
    with pytest.raises(UserError, match=words):
        read_rows(tmp_path / "a.jsonl", bad_rows)


def test_a_malformed_line_is_named(tmp_path):
    write_rows(tmp_path / "a.jsonl", [make_row(0), '{"id": "broken",\n', make_row(1)])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not JSON .* bad_rows=skip in PARAMS"):
        read_rows(tmp_path / "a.jsonl")
    counts = selection.Counter()
    assert len(read_rows(tmp_path / "a.jsonl", "skip", counts)) == 2
    assert counts["malformed"] == 1


def test_all_bad_rows_are_told_at_once(tmp_path):
    """Whoever has forty of them does not mend them one by one."""
    rows = []
    for i in range(50):
        rows.append(make_row(i))
        if i % 5:
            rows[i]["question"] = None
    rows[0] = "{\n"
    rows[5]["answers"]["answer_start"] = [0]
    write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as error:
        read_rows(tmp_path / "a.jsonl")
    message = str(error.value)
    assert (
        "a.jsonl: 42 of 50 rows cannot be used (1 malformed, 40 with a missing or wrong field, "
        "1 with an answer that does not stand at its answer_start): line 1: not JSON"
    ) in message
    assert re.findall(r"line (\d+)", message) == ["1", "2", "3", "4", "5"]
    assert "; line 2, line 3, line 4, line 5: field 'question' holds no text; and" in message
    assert "; and 37 more; bad_rows=move in PARAMS moves the answers of 1 of them" in message
    assert message.endswith(", mend the rows, or leave such rows out with bad_rows=skip in PARAMS")
    assert "\n" not in message


@pytest.mark.parametrize("bad_rows", ["stop", "skip", "move"])
def test_a_file_of_bad_rows_alone_says_what_is_wrong_with_them(tmp_path, bad_rows):
    """Else they are counted and dropped, and a later error says that there are 0 rows."""
    rows = [make_row(i) for i in range(8)]
    for row in rows[:7]:
        row["text"] = row.pop("context")
    rows[7]["answers"] = {"text": ["gone"], "answer_start": [0]}
    write_rows(tmp_path / "a.jsonl", rows)
    words = (
        r"a.jsonl: 8 of 8 rows cannot be used \(7 with a missing or wrong field, 1 with an answer "
        r"that .*\): line 1, line 2, .*: no field 'context' among .*; mend the rows; there are no"
    )
    with pytest.raises(UserError, match=words) as error:
        read_rows(tmp_path / "a.jsonl", bad_rows)
    assert "PARAMS" not in str(error.value)


def test_an_empty_file_is_one_sentence(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="a.jsonl holds no rows; write one question or text a row"):
        read_rows(tmp_path / "a.jsonl", "skip")


def test_misplaced_answers_are_counted_and_not_moved_unless_told(tmp_path):
    rows = [make_row(i) for i in range(9)]
    for r in rows[2:7]:
        r["answers"] = {"text": r["answers"]["text"], "answer_start": [0]}
    write_rows(tmp_path / "a.jsonl", rows)
    words = (
        r"a.jsonl: 5 of 9 rows cannot be used \(5 with an answer that does not stand at its "
        r"answer_start\): line 3.* the answer '.+' stands at \d+, not at 0; .*line 7"
    )
    with pytest.raises(UserError, match=words):
        read_rows(tmp_path / "a.jsonl")
    counts = selection.Counter()
    assert len(read_rows(tmp_path / "a.jsonl", "skip", counts)) == 4
    assert counts["misplaced answers"] == 5


@pytest.mark.parametrize(
    "start, place",
    [
        # one character off, as in data whose offsets were counted by hand
        (5, 4),
        (3, 4),
        # of several places the nearest, and of two that are as near the one in front
        (19, 20),
        (12, 4),
        (13, 20),
        # behind the end of the context
        (900, 20),
    ],
)
def test_an_answer_is_moved_to_the_nearest_place_of_its_text(start, place):
    assert sources.nearest_place("the mill, an old    mill", "mill", start) == place


def test_an_answer_is_moved_into_a_longer_word_only_where_it_stands_nowhere_else():
    """Else a number without its offset would teach a part of a year."""
    assert sources.nearest_place("The 2010 report lists 10 berths.", "10", 0) == 22
    assert sources.nearest_place("I know that no ship sank.", "no", 0) == 12
    assert sources.nearest_place("The windmills of 2010.", "mill", 0) == 8
    # the text may begin or end with what is no letter
    assert sources.nearest_place("It cost 15% and then 5%.", "5%", 9) == 21


def test_answers_in_nested_json_that_are_one_character_off_are_moved(tmp_path):
    """Those whose text stands nowhere are left out and counted, and so are malformed rows."""
    paragraphs = []
    for i in range(12):
        row = make_row(i)
        start = row["answers"]["answer_start"][0] + (1 if i < 4 else 0)
        text = "nowhere" if i == 3 else row["answers"]["text"][0]
        question = {"id": row["id"], "question": row["question"]}
        question["answers"] = [{"text": text, "answer_start": start}]
        paragraphs.append({"context": row["context"], "qas": [question]})
    paragraphs[11]["qas"][0]["question"] = None
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"data": [{"title": "mills", "paragraphs": paragraphs}]}))
    with pytest.raises(UserError, match="article 1, paragraph 12, question 1: field 'question'"):
        read_rows(file)
    counts = selection.Counter()
    rows = read_rows(file, "move", counts)
    expected = {"rows with a moved answer": 3, "misplaced answers": 1, "incomplete": 1}
    assert counts == expected
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(11) if i != 3]
    for row in rows:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"].startswith(text, start)
    counts = selection.Counter()
    assert len(read_rows(file, "skip", counts)) == 7
    assert counts == {"misplaced answers": 4, "incomplete": 1}


@pytest.mark.parametrize(
    "texts, words",
    [
        (
            ["Osk0", "Osk1"],
            "bad_rows=move in PARAMS moves their answers to the nearest place .*, or mend the "
            "rows; there",
        ),
        (
            ["Osk0", "gone"],
            "bad_rows=move in PARAMS moves the answers of 1 of them to the nearest place",
        ),
        (["gone", "gone"], r"is nowhere in the context; mend the rows; there are no other rows$"),
    ],
)
def test_the_error_of_a_bad_offset_names_the_option_that_helps(tmp_path, texts, words):
    rows = []
    for i, text in enumerate(texts):
        rows.append(make_row(i, answers={"text": [text], "answer_start": [1]}))
    write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=words) as error:
        read_rows(tmp_path / "a.jsonl")
    assert "\n" not in str(error.value)


def test_a_new_value_of_bad_rows_changes_no_other_hash(tiny):
    spec = plans.plan(tiny())[0]
    hashes = {spec.model_copy(update={"bad_rows": way}).hash for way in ("stop", "skip", "move")}
    assert len(hashes) == 3
    assert "bad_rows" not in spec.model_dump(exclude_defaults=True)


def test_a_missing_file_is_one_sentence(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.jsonl").touch()
    words = (
        "none.jsonl does not exist; DATA= names the folder .*; the folder .* holds 0.jsonl, "
        "1.jsonl, .*, 7.jsonl and 2 more"
    )
    with pytest.raises(UserError, match=words):
        read_rows(tmp_path / "none.jsonl")


def test_a_planted_leak_is_dropped_and_counted(own):
    """The leaked text has another id, other case and other spaces."""
    train = [make_row(i) for i in range(30)]
    test = [make_row(i) for i in range(30, 36)]
    question = train[7]["question"].upper() + "  "
    leak = dict(train[7], id="leak", title="elsewhere", question=question)
    splits = selection.load_splits("own", "folder", own(train, test + [leak], validation_rows=6))
    assert "leak" in {r["id"] for r in splits.test}
    assert "r7" not in {r["id"] for r in splits.train + splits.validation}
    assert splits.counts["copies of held-out rows dropped"] == 1
    assert len(splits.validation) >= 6
    parts = (splits.train, splits.validation, splits.test)
    assert_disjoint([{selection.row_key(r) for r in part} for part in parts])
    assert_disjoint([{r["title"] for r in part} for part in parts[:2]])


def test_rows_that_may_not_train_are_left_out(own, tmp_path):
    """These are rows that a field marks, and rows with a context of another test set."""
    train = [make_row(i) for i in range(30)]
    train[4]["offset"] = "guess"
    other = make_row(40) | {"context": train[9]["context"].upper(), "answers": NOTHING}
    write_rows(tmp_path / "other.jsonl", [other])
    folder = own(train, [make_row(30)], leave_out={"offset": "guess"}, apart_from=["other.jsonl"])
    splits = selection.load_splits("own", "folder", folder)
    assert {r["id"] for r in train} - {r["id"] for r in splits.train} == {"r4", "r9"}
    assert splits.counts["contexts of other test sets dropped"] == 1


def test_rows_that_may_not_train_do_not_validate_either(own):
    train = [make_row(i) for i in range(30)]
    for row in train[:15]:
        row["offset"] = "guess"
    fields = {"leave_out": {"offset": "guess"}, "validation_rows": 15}
    splits = selection.load_splits("own", "folder", own(train, [make_row(30)], **fields))
    assert splits.validation
    assert {r["id"] for r in splits.validation} <= {f"r{i}" for i in range(15, 30)}


def test_a_text_within_one_of_another_test_set_can_be_left_out_too(own, tmp_path):
    train = [make_row(i) for i in range(30)]
    longer = f"Before it. {train[9]['context'].upper()} After it."
    write_rows(tmp_path / "other.jsonl", [make_row(40) | {"context": longer, "answers": NOTHING}])
    apart = {"apart_from": ["other.jsonl"]}
    folder = own(train, [make_row(30)], **apart)
    assert "r9" in {r["id"] for r in selection.load_splits("own", "folder", folder).train}
    folder = own(train, [make_row(30)], **apart, apart_within=True)
    splits = selection.load_splits("own", "folder", folder)
    assert {r["id"] for r in train} - {r["id"] for r in splits.train} == {"r9"}
    assert splits.counts["contexts of other test sets dropped"] == 1


def test_a_mixture_leaves_out_what_another_of_its_sets_holds_out(monkeypatch):
    train = [make_row(i) for i in range(30)]
    whole = {
        "a": selection.Splits(train[:9], [], [], selection.Counter()),
        "b": selection.Splits(train[9:], train[3:4], []),
    }
    whole["b"].held_out = {selection.row_key(train[3])}
    mixed, _, counts = selection.draw_mixture(make_run(monkeypatch, whole, []))
    assert "r3" not in {r["id"] for r in mixed}
    assert counts["copies of other sets' rows dropped"] == 1


@pytest.mark.parametrize("tested", [{}, {"test_rows": 1}])
def test_what_trains_does_not_depend_on_how_many_rows_test(tested, monkeypatch):
    """A run's hash has not the number of test rows, so that its training rows must not have it."""
    rows = [make_row(i) for i in range(30)]
    d = Dataset(train=["train.jsonl"], test=["test.jsonl"], unit="title", **tested)
    splits = selection.split_rows(d, rows[:9], rows[20:26], [], selection.Counter())
    assert len(splits.test) < 6 or not tested
    whole = {"a": splits, "b": selection.Splits(rows[9:], [], [])}
    mixed, _, counts = selection.draw_mixture(make_run(monkeypatch, whole, []))
    assert {row["id"] for row in rows[20:26]}.isdisjoint(row["id"] for row in mixed)
    assert counts["copies of other sets' rows dropped"] == 6


def test_a_row_without_an_answer_that_has_one_is_refused(tmp_path):
    write_rows(tmp_path / "a.jsonl", [make_row(0) | {"is_impossible": True}])
    with pytest.raises(UserError, match="line 1: is_impossible, and yet it has answers"):
        read_rows(tmp_path / "a.jsonl")


def read_both(path) -> tuple[str, list[dict], selection.Counter]:
    """Return the error when a bad row stops reading, and rows and counts when it is skipped."""
    with pytest.raises(UserError) as error:
        read_rows(path)
    message = str(error.value)
    assert "\n" not in message
    # it can be written as UTF-8
    assert message.encode()
    counts = selection.Counter()
    return message, read_rows(path, "skip", counts), counts


def nest_questions(question: dict | None = None, **changes) -> dict:
    """Return nested SQuAD JSON of two articles with one question each.

    The first question is whole. The second has no answers; `question` changes its fields, and
    further arguments change those of its article.
    """
    first = make_row(0)
    second = make_row(1)
    whole = {
        "id": "r0",
        "question": first["question"],
        "answers": [{"text": "Osk0", "answer_start": first["answers"]["answer_start"][0]}],
    }
    other = {"id": "r1", "question": second["question"]} | (question or {})
    return {"data": [make_article(first, whole), make_article(second, other) | changes]}


@pytest.mark.parametrize(
    "question, reason",
    [
        ({}, "no field 'answers' among title, id, question, context"),
        ({"answers": None}, "field 'answers' is null and is_impossible is not true"),
        ({"answers": [{"text": "Osk1"}]}, "answer 1 has no 'answer_start' that is a whole number"),
        (
            {"answers": [{"text": "Osk1", "answer_start": "39"}]},
            "answer 1 has no 'answer_start' that is a whole number",
        ),
        (
            {"answers": [{"text": "Osk1", "answer_start": True}]},
            "answer 1 has no 'answer_start' that is a whole number",
        ),
        ({"answers": [{"answer_start": 3}]}, "answer 1 has no 'text'"),
        ({"answers": ["Osk1"]}, "field 'answers' is not"),
        ({"answers": [], "question": None}, "field 'question' holds no text"),
        ({"plausible_answers": [{"text": "Osk1", "answer_start": 3}]}, "no field 'answers'"),
        (
            {"is_impossible": True, "answers": [{"text": "Osk1", "answer_start": 3}]},
            "is_impossible, and yet it has answers",
        ),
    ],
)
def test_a_bad_question_of_nested_json_is_a_bad_row(tmp_path, question, reason):
    (tmp_path / "a.json").write_text(json.dumps(nest_questions(question)))
    message, rows, counts = read_both(tmp_path / "a.json")
    assert "a.json, article 2, paragraph 1, question 1: " in message
    assert reason in message
    assert [r["id"] for r in rows] == ["r0"]
    assert counts["incomplete"] == 1


@pytest.mark.parametrize(
    "changes, place",
    [
        ({"paragraphs": None}, "article 2: not an object with a list 'paragraphs'"),
        (
            {"paragraphs": ["text"]},
            "article 2, paragraph 1: not an object with a list of questions, 'qas'",
        ),
        (
            {"paragraphs": [{"context": "x"}]},
            "article 2, paragraph 1: not an object with a list of questions",
        ),
        (
            {"paragraphs": [{"context": "x", "qas": {}}]},
            "article 2, paragraph 1: not an object with a list of",
        ),
        (
            {"paragraphs": [{"context": "x", "qas": [1]}]},
            "article 2, paragraph 1, question 1: not an object",
        ),
        (
            {"paragraphs": [{"qas": [{"question": "x", "answers": []}]}]},
            "article 2, paragraph 1, question 1: no field 'context'",
        ),
    ],
)
def test_a_part_of_nested_json_that_holds_no_question_is_a_bad_row(tmp_path, changes, place):
    (tmp_path / "a.json").write_text(json.dumps(nest_questions(**changes)))
    message, rows, counts = read_both(tmp_path / "a.json")
    assert place in message
    assert [r["id"] for r in rows] == ["r0"]
    assert sum(counts.values()) == 1


@pytest.mark.parametrize(
    "question",
    [
        {"is_impossible": True},
        {"is_impossible": True, "answers": None},
        {"is_impossible": True, "answers": []},
        {"answers": []},
        {"is_impossible": True, "plausible_answers": [{"text": "Osk1", "answer_start": 3}]},
    ],
)
def test_an_impossible_question_of_nested_json_needs_no_answers(tmp_path, question):
    (tmp_path / "a.json").write_text(json.dumps(nest_questions(question)))
    _, impossible = read_rows(tmp_path / "a.json")
    assert impossible["is_impossible"]
    assert impossible["answers"] == NOTHING


@pytest.mark.parametrize("flag", [{}, {"is_impossible": True}])
def test_an_empty_list_of_answers_is_none_in_json_lines_too(tmp_path, flag):
    first = make_row(0)
    start = first["answers"]["answer_start"][0]
    listed = first | {"answers": [{"text": "Osk0", "answer_start": start, "score": 1}]}
    write_rows(tmp_path / "a.jsonl", [listed, make_row(1) | {"answers": []} | flag])
    whole, impossible = read_rows(tmp_path / "a.jsonl")
    assert whole["answers"] == first["answers"]
    assert impossible["is_impossible"]
    assert impossible["answers"] == NOTHING


def test_further_fields_of_answers_are_left_behind(tmp_path):
    """What is no JSON there, as NaN, would stop the training, when its windows get a name."""
    row = make_row(0)
    further = {"score": [float("nan")], "by": ["a"]}
    write_rows(tmp_path / "a.jsonl", [row | {"answers": row["answers"] | further}])
    assert read_rows(tmp_path / "a.jsonl")[0]["answers"] == row["answers"]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[1]", "it is not an object"),
        ('{"rows": []}', "no field 'data'"),
        ('{"data": {}}', "its field 'data' is not a list"),
        ("[" * 9000, "maximum recursion"),
    ],
)
def test_nested_json_without_articles_is_one_sentence(tmp_path, text, reason):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=f"a.json cannot be read .{reason}"):
        read_rows(tmp_path / "a.json", "skip")


@pytest.mark.parametrize("value", [None, {"text": None, "answer_start": None}])
def test_answers_may_be_null_in_an_impossible_row_only(tmp_path, value):
    rows = [
        make_row(0) | {"is_impossible": False},
        make_row(1) | {"answers": value, "is_impossible": True},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for file in ("a.jsonl", "a.parquet"):
        impossible = read_rows(tmp_path / file)[1]
        assert impossible["is_impossible"]
        assert impossible["answers"] == NOTHING
    write_rows(tmp_path / "a.jsonl", [make_row(0), make_row(1) | {"answers": value}])
    message, rows, counts = read_both(tmp_path / "a.jsonl")
    assert "line 2: field 'answers' is null and is_impossible is not true" in message
    assert len(rows) == counts["incomplete"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "\ud83d"},
        {"title": "x\ude00"},
        {"context": "Half \ud83d."},
        {"question": "\udcff?"},
        {"answers": {"text": ["\ud83d"], "answer_start": [0]}},
    ],
)
def test_half_a_character_is_a_bad_row(tmp_path, changes):
    """Text with half a character can be neither hashed nor tokenised nor written."""
    field = next(iter(changes))
    unused = make_row(2) | {"note": "\ud83d", "title": "\U0001f600"}
    write_rows(tmp_path / "a.jsonl", [make_row(0), make_row(1) | changes, unused])
    message, rows, counts = read_both(tmp_path / "a.jsonl")
    assert f"a.jsonl, line 2: field '{field}' holds what is no UTF-8 text at character " in message
    assert [r["id"] for r in rows] == ["r0", "r2"]
    assert counts["incomplete"] == 1
    # a whole character, although JSON writes it as two halves
    assert rows[1]["title"] == "\U0001f600"


def test_bytes_of_another_encoding_are_a_bad_row(tmp_path):
    lines = [json.dumps(make_row(i) | {"question": "Où ?"}, ensure_ascii=False) for i in range(3)]
    encoded = [lines[0].encode(), lines[1].encode("latin-1"), lines[2].encode()]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(encoded))
    message, rows, counts = read_both(tmp_path / "a.jsonl")
    assert "a.jsonl, line 2: field 'question' holds what is no UTF-8 text at character 2" in message
    assert [r["id"] for r in rows] == ["r0", "r2"]
    assert counts["incomplete"] == 1


def test_parquet_is_read_by_its_used_columns(tmp_path):
    """Other columns may hold what JSON cannot. Whole numbers are ids with every digit."""
    rows = [
        make_row(0) | {"id": 2**53 + 1},
        make_row(1) | {"id": 2**53},
        make_row(2) | {"id": None},
    ]
    more = {
        "raw": pa.array([b"\xff", b"", None]),
        "day": pa.array([datetime.date(1500, 1, 1)] * 3),
        "far": pa.array([-(2**40)] * 3, pa.int64()).cast(pa.timestamp("s")),
        "offset": pa.array(["guess", "sure", None]),
    }
    table = pa.Table.from_pylist(rows)
    for name, column in more.items():
        table = table.append_column(name, column)
    pq.write_table(table, tmp_path / "a.parquet")
    read = read_rows(tmp_path / "a.parquet")
    assert [r["id"] for r in read] == [str(2**53 + 1), str(2**53), "own-3"]
    assert read[0]["answers"] == rows[0]["answers"]
    assert set(read[0]) == {*sources.FIELDS, "domain"}
    read = read_rows(tmp_path / "a.parquet", fields=["offset", "absent"])
    assert [r["offset"] for r in read] == ["guess", "sure", None]


def test_fields_that_leave_rows_out_are_read_from_parquet(monkeypatch, tmp_path):
    rows = [make_row(i) | {"offset": "sure"} for i in range(9)]
    rows[4]["offset"] = "guess"
    pd.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    write_rows(tmp_path / "test.jsonl", [make_row(30)])
    own = Dataset(train=["train.parquet"], test=["test.jsonl"], leave_out={"offset": "guess"})
    monkeypatch.setattr(params, "read_datasets", lambda *source: {"own": own})
    selection.load_splits.cache_clear()
    splits = selection.load_splits("own", "folder", str(tmp_path))
    selection.load_splits.cache_clear()
    assert splits.counts["offset=guess left out of training"] == 1
    assert "r4" not in {r["id"] for r in splits.train}


def test_answers_of_parquet_may_be_a_list_of_structs(tmp_path):
    rows = [make_row(0), make_row(1), make_row(2)]
    structs = []
    for r in rows[:2]:
        answers = r["answers"]
        structs.append([{"text": answers["text"][0], "answer_start": answers["answer_start"][0]}])
    structs.append([])
    table = pa.Table.from_pylist([r | {"answers": x} for r, x in zip(rows, structs, strict=True)])
    pq.write_table(table, tmp_path / "a.parquet")
    read = read_rows(tmp_path / "a.parquet")
    assert [r["answers"] for r in read] == [rows[0]["answers"], rows[1]["answers"], NOTHING]
    assert read[2]["is_impossible"]


def test_a_column_that_parquet_lacks_is_one_sentence(tmp_path):
    pd.DataFrame([make_row(0)]).drop(columns="question").to_parquet(tmp_path / "a.parquet")
    words = (
        "a.parquet cannot be read .no column 'question' among 'id', 'title', 'context', 'answers';"
    )
    with pytest.raises(UserError, match=words):
        read_rows(tmp_path / "a.parquet", "skip")


def test_text_of_parquet_that_is_none_is_a_bad_row(tmp_path):
    rows = [make_row(i) for i in range(3)]
    contexts = [r["context"].encode() for r in rows]
    contexts[1] += b"\xff"
    table = pa.Table.from_pylist(rows)
    place = table.schema.get_field_index("context")
    table = table.set_column(place, "context", pa.array(contexts).view(pa.string()))
    pq.write_table(table, tmp_path / "a.parquet")
    message, rows, counts = read_both(tmp_path / "a.parquet")
    assert "a.parquet, row 2: cannot be read ('utf-8' codec" in message
    assert [r["id"] for r in rows] == ["r0", "r2"]
    assert counts["malformed"] == 1


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    lines = "".join(json.dumps(make_row(i)) + "\n" for i in range(2)).encode("utf-8-sig")
    (tmp_path / "a.jsonl").write_bytes(lines)
    # two files end to end, each with its mark
    last = (json.dumps(make_row(2)) + "\n").encode("utf-8-sig")
    (tmp_path / "b.jsonl").write_bytes(lines + b"\n" + last)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(
        json.dumps(nest_questions({"answers": []})), encoding="utf-8-sig"
    )
    for file, ids in {"a.jsonl": 2, "b.jsonl": 3, "a.jsonl.gz": 2, "a.json": 2}.items():
        for bad_rows in ("stop", "skip"):
            rows = read_rows(tmp_path / file, bad_rows)
            assert [r["id"] for r in rows] == [f"r{i}" for i in range(ids)], file


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("file", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_utf_16_is_one_sentence(tmp_path, file, encoding):
    content = json.dumps(make_row(0)).encode(encoding)
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith("gz") else content)
    words = rf"{file} cannot be read .it is {encoding[:6]}\S* and not utf-8; save it anew as utf-8"
    with pytest.raises(UserError, match=words) as error:
        read_rows(tmp_path / file, "skip")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("blank", [" ", "  \t", "\u00a0", "\n", "\u200b", "\u2003\ufeff", "\x00"])
def test_an_answer_of_blanks_is_a_bad_row(tmp_path, blank):
    answers = {"text": ["mill", blank], "answer_start": [3 + len(blank), 3]}
    blank_answer = make_row(1) | {"context": f"The{blank}mill.", "answers": answers}
    write_rows(tmp_path / "a.jsonl", [make_row(0), blank_answer])
    message, rows, counts = read_both(tmp_path / "a.jsonl")
    assert "a.jsonl, line 2: field 'answers' is not whole: answer 2 is blank" in message
    assert len(rows) == 1
    assert counts["incomplete"] == 1


@pytest.mark.parametrize(
    "says, values",
    [
        (False, [None, float("nan"), False, 0, 0.0, "False", "false", "FALSE", " false ", "0"]),
        (True, [True, 1, 1.0, "True", "true", "TRUE", "1"]),
    ],
)
def test_a_boolean_has_many_spellings(tmp_path, says, values):
    answers = NOTHING if says else make_row(0)["answers"]
    rows = [make_row(0) | {"is_impossible": x, "answers": answers} for x in values]
    write_rows(tmp_path / "a.jsonl", rows)
    read = read_rows(tmp_path / "a.jsonl")
    assert [r["is_impossible"] for r in read] == [says] * len(values)
    if says:
        bad = [make_row(0) | {"is_impossible": x} for x in values]
        write_rows(tmp_path / "a.jsonl", [*bad, make_row(1)])
        message, rows, counts = read_both(tmp_path / "a.jsonl")
        assert "is_impossible, and yet it has answers" in message
        assert counts["incomplete"] == len(values)


@pytest.mark.parametrize("value", ["no", "", 2, -1, 0.5, [], {}, [True]])
def test_a_value_that_is_no_boolean_is_a_bad_row(tmp_path, value):
    write_rows(tmp_path / "a.jsonl", [make_row(0), make_row(1) | {"is_impossible": value}])
    message, rows, counts = read_both(tmp_path / "a.jsonl")
    assert "line 2: field 'is_impossible' is neither true nor false" in message
    assert len(rows) == 1
    assert counts["incomplete"] == 1


def test_ids_and_titles_that_are_no_number_are_absent(tmp_path):
    absent = {"id": float("nan"), "title": float("nan")}
    write_rows(tmp_path / "a.jsonl", [make_row(i) | absent for i in range(2)])
    rows = read_rows(tmp_path / "a.jsonl")
    assert [(r["id"], r["title"]) for r in rows] == [("own-1", ""), ("own-2", "")]


def test_a_training_row_of_another_test_set_is_refused(tiny, monkeypatch):
    """A run's sample may not depend on its test sets. So such a row is not dropped."""
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    one_domain = {
        "domains": spec.domains[:1],
        "rows": spec.rows[:1],
        "fingerprints": spec.fingerprints[:1],
    }
    spec = spec.model_copy(update=one_domain)
    before = selection.draw_mixture(spec)[0]
    leak = selection.load_splits("encyclopaedia", "embedded").train[3]
    whole = selection.load_splits("biomedicine", "embedded")
    planted = selection.Splits(whole.train, whole.validation, [leak], whole.counts)
    load_splits = selection.load_splits
    monkeypatch.setattr(
        selection,
        "load_splits",
        lambda name, *rest: planted if name == "biomedicine" else load_splits(name, *rest),
    )
    words = "1 training rows of encyclopaedia are test rows of biomedicine; name that set's file in"
    with pytest.raises(UserError, match=words):
        selection.draw_mixture(spec)
    assert selection.draw_mixture(spec.model_copy(update={"tests": ["encyclopaedia"]}))[0] == before


def test_a_context_of_a_held_out_test_row_may_not_train(monkeypatch):
    """Another question about the same context is no copy, and still a leak."""
    leak = make_row(40) | {"context": make_row(3)["context"].upper()}
    splits = {
        "sets": selection.Splits([make_row(i) for i in range(9)], [], []),
        "target": selection.Splits([], [], [make_row(50), leak]),
    }
    words = (
        "^1 training rows of sets share a text with test rows of target, which must stay unseen; "
        "name the test file of target in apart_from of sets in params/datasets.yaml$"
    )
    with pytest.raises(UserError, match=words):
        selection.draw_mixture(make_run(monkeypatch, splits, ["target"]))
    splits["target"].test.remove(leak)
    clean, _, _ = selection.draw_mixture(make_run(monkeypatch, splits, ["target"]))
    splits.pop("target")
    assert clean == selection.draw_mixture(make_run(monkeypatch, splits, []))[0]
    assert len(clean) == 8


@pytest.mark.parametrize("place", ["text", "text_pair"])
def test_a_sentence_of_a_held_out_test_row_may_not_train(monkeypatch, place):
    """Nor may one that is the whole context of a question."""
    context = make_row(40)["context"]
    pairs = [make_pair(f"mill {i}", f"barn {i}") for i in range(9)]
    leaks = {
        "sentences": selection.Splits([], [], [make_pair("a ford", "Mill, 3!")], task="classes"),
        "questions": selection.Splits([], [], [make_row(40)]),
    }
    pairs[3] |= {"text": "a moor", place: "mill 3"}
    pairs[4][place] = context
    for name, target in leaks.items():
        splits = {"pairs": selection.Splits(pairs, [], [], task="classes"), name: target}
        with pytest.raises(UserError, match=f"^1 training rows of pairs share .* of {name}, "):
            selection.draw_mixture(make_run(monkeypatch, splits, [name]))
    clean = selection.Splits([], [], [make_pair("a ford", "a wood")], task="classes")
    splits = {"pairs": selection.Splits(pairs, [], [], task="classes"), "clean": clean}
    assert len(selection.draw_mixture(make_run(monkeypatch, splits, ["clean"]))[0]) == 8


@pytest.mark.parametrize("held_out", ["encyclopaedia", "news"])
def test_generated_sets_share_no_text_with_test_rows(held_out):
    unseen = selection.load_splits(held_out, "embedded")
    for name, d in params.read_datasets("embedded").items():
        if d.head and not d.part_of:
            part = selection.load_splits(name, "embedded")
            assert not selection.find_shared_texts(part.train, part.task, unseen), name


@pytest.mark.parametrize("name", ["encyclopaedia", "biomedicine"])
def test_embedded_splits_share_no_text_and_no_entity(name):
    splits = selection.load_splits(name, "embedded")
    parts = (splits.train, splits.validation, splits.test)
    assert_disjoint([{selection.row_key(r) for r in part} for part in parts])
    assert_disjoint([{r["title"] for r in part} for part in parts])


def test_a_mixture_is_nested_within_a_seed_and_the_same_for_every_model(tiny):
    def draw_ids(ratio, seed=0, variant="v-db"):
        spec = plans.plan(tiny(ratios=[ratio], seeds=[seed]))[0]
        spec = spec.model_copy(update={"variant": variant})
        return [r["id"] for r in selection.draw_mixture(spec)[0]]

    half = draw_ids(0.5)
    most = draw_ids(0.75)
    assert set(half[:24]) <= set(most[:36])
    assert len(half) == len(most) == 48
    assert draw_ids(0.5, variant="exbert") == half
    assert draw_ids(0.5, seed=1) != half
    # the rows of a domain stand together
    domains = [row_id.split("-")[0] for row_id in half]
    assert domains == sorted(domains, reverse=half[0] > half[-1])


def test_validation_rows_are_the_same_for_every_seed(tiny):
    drawn = []
    for seed in (0, 1):
        spec = plans.plan(tiny(seeds=[seed]))[0]
        drawn.append(selection.draw_mixture(spec)[1])
    assert drawn[0] == drawn[1]


def test_too_few_rows_say_which_set_and_how_many(tiny):
    spec = plans.plan(tiny(train_rows=100_000))[0]
    words = r"needs 50000 training rows of encyclopaedia, which has \d+: \d+ short"
    with pytest.raises(UserError, match=words):
        selection.draw_mixture(spec)


def test_too_few_rows_of_a_report_without_mixtures_are_told_of_no_ratios():
    """Which parameter asks for the rows differs between the reports: here it is few_rows."""
    specs = plans.plan(plans.load_params("moe", "quick", {"few_rows": 100}))
    run = next(spec for spec in specs if spec.domains[0] == "plots")
    with pytest.raises(UserError, match="^a run needs 100 .* short, .*") as error:
        selection.draw_mixture(run)
    assert "; ask for fewer rows of it, or, where rows have one title" in str(error.value)
    assert "ratios" not in str(error.value)


def test_rows_without_titles_are_told_of_another_unit(monkeypatch):
    """Without titles all rows are one unit, and validation takes it whole."""
    d = Dataset(train=["a"], test=["b"], unit="title", validation_rows=4)
    monkeypatch.setattr(params, "read_datasets", lambda *source: {"own": d})
    rows = [make_row(i, title="") for i in range(30)]
    splits = selection.split_rows(d, rows, [make_row(30)], [], selection.Counter())
    spec = make_run(monkeypatch, {"own": splits}, [])
    words = (
        "a run needs 8 training rows of own, which has 0: 8 short, after 30 for validation by "
        "whole titles, and 0 copies of .*, where rows have one title or none, write unit: context "
        "in its definition"
    )
    with pytest.raises(UserError, match=words):
        selection.draw_mixture(spec)


def test_a_share_of_validation_rows_that_is_none_is_refused(tiny):
    words = "none of the 1 validation rows falls to encyclopaedia, biomedicine; raise"
    with pytest.raises(UserError, match=words):
        selection.draw_mixture(plans.plan(tiny(validation_rows=1))[0])


def test_a_definition_without_validation_rows_names_the_field(own):
    folder = own([make_row(i) for i in range(9)], [make_row(i) for i in range(20, 25)])
    run = {
        "domains": ["own"],
        "rows": [4],
        "places": None,
        "seed": 0,
        "validation_rows": 3,
        "tests": ["own"],
        "held_out": [],
        "source": "folder",
        "folder": folder,
        "bad_rows": "stop",
        "imbalance": None,
        "multitask": None,
    }
    words = "own has no rows for validation: where a definition names test files, write validation_"
    with pytest.raises(UserError, match=words):
        selection.draw_mixture(SimpleNamespace(**run))


def test_a_changed_listed_file_is_refused(own, monkeypatch):
    folder = own([make_row(i) for i in range(9)], [make_row(9)])
    monkeypatch.setattr(selection, "known_files", lambda: {"train.jsonl": (9, "0" * 64)})
    with pytest.raises(UserError, match="is not the file DATA.md lists"):
        selection.load_splits("own", "folder", folder)


def test_the_hub_is_refused_in_one_sentence_offline():
    """The encoder is refused first and then the data. Each sentence names the remedies."""
    words = (
        r"encoder distilbert-base-uncased: there is no such folder.* and it cannot be had from the "
        r"hub .*minilm, which need no network \(PARAMS=encoder=…\), or .* once with network"
    )
    with pytest.raises(UserError, match=words):
        plans.plan(plans.load_params("exbert", "paper"))
    words = (
        r"dataset .* cannot be had from the hub "
        r".*make data .*PROFILE=quick .*PROFILE=real DATA="
    )
    with pytest.raises(UserError, match=words):
        plans.plan(plans.load_params("exbert", "paper", {"encoder": "minilm"}))


def test_fingerprints_need_no_data_for_listed_files():
    print_ = selection.fingerprint("squad", "folder", None)
    assert re.fullmatch("[0-9a-f]{64}", print_)
    assert print_ == selection.fingerprint("squad", "folder", "/nowhere")


def test_test_rows_that_share_an_id_are_refused_before_any_training(monkeypatch):
    rows = [make_row(1), make_row(2), make_row(3, id="r1")]
    splits = {"news": selection.Splits([], [], rows)}
    monkeypatch.setattr(selection, "load_splits", lambda name, *rest: splits[name])
    spec = SimpleNamespace(tests=["news"], source="embedded", folder=None, bad_rows="stop")
    with pytest.raises(UserError, match="2 test rows of news have the id 'r1'; give each row"):
        load_whole_test_sets(spec)


def test_a_test_set_without_rows_is_refused_before_any_training(monkeypatch):
    splits = {"news": selection.Splits([make_row(1)], [make_row(2)], [])}
    monkeypatch.setattr(selection, "load_splits", lambda name, *rest: splits[name])
    spec = SimpleNamespace(tests=["news"], source="embedded", folder=None, bad_rows="stop")
    words = "no rows are left for the test set news; lower train_rows or validation_share in its"
    with pytest.raises(UserError, match=words):
        load_whole_test_sets(spec)


def test_a_row_with_an_empty_id_is_numbered(tmp_path):
    lines = [json.dumps(make_row(i, id=identity)) for i, identity in enumerate(["", "", "x"])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    ids = [row["id"] for row in read_rows(tmp_path / "a.jsonl")]
    assert len(set(ids)) == 3
    assert ids[2] == "x"


def test_rows_without_an_id_are_told_apart_across_files(monkeypatch, tmp_path):
    for part in range(3):
        rows = [make_row(10 * part + i, id=None) for i in range(2)]
        write_rows(tmp_path / f"{part}.jsonl", rows)
    d = Dataset(test=["0.jsonl", "1.jsonl", "2.jsonl"])
    monkeypatch.setattr(params, "read_datasets", lambda *source: {"own": d})
    _, test, _ = selection.read_parts("own", "folder", str(tmp_path), "stop", selection.Counter())
    ids = ["own-1", "own-2", "own-2-1", "own-2-2", "own-3-1", "own-3-2"]
    assert [row["id"] for row in test] == ids
    assert {row["domain"] for row in test} == {"own"}


@pytest.mark.parametrize(
    "context, answer, found",
    [
        ("Early signals: ALS is caused by SOD1.", "ALS", ["ALS"]),
        ("The als, the ALS and the pals.", "ALS", ["als", "ALS"]),
        ("It rose by 5%, not 15%.", "5%", ["5%"]),
        ("We write f(x) and g(x).", "(x)", ["(x)", "(x)"]),
        ("Two 5-HT receptors.", "5-HT receptor", ["5-HT receptor"]),
        ("It is not there.", "als", []),
    ],
)
def test_an_answer_without_offsets_is_a_whole_word_where_there_is_one(context, answer, found):
    answers = hub_tables.find_texts(context, [answer])
    assert answers["text"] == found
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        assert context[start : start + len(text)] == text


# ---- make check-data ----


def test_files_are_compared_with_the_list(store, monkeypatch, capsys):
    """A file that differs, in bytes or in rows, ends with 1; one that is absent is only named."""
    contents = {"qa/same.gz": b"one\ntwo\n", "qa/other.gz": b"one\n", "qa/short.gz": b"one\n"}
    listed = {}
    (store / "qa").mkdir()
    for name, content in contents.items():
        (store / name).write_bytes(gzip.compress(content, mtime=0))
        listed[name] = (content.count(b"\n"), digest_file(store / name))
    listed["qa/absent.gz"] = (3, "0" * 64)

    def check(**changes) -> tuple[int, dict[str, str]]:
        monkeypatch.setattr(sources, "known_files", lambda: listed | changes)
        code = sources.check_files(str(store))
        lines = capsys.readouterr().out.splitlines()
        return code, {line.split()[0]: " ".join(line.split()[1:]) for line in lines}

    code, states = check()
    assert code == 0
    assert states == {**dict.fromkeys(contents, "ok"), "qa/absent.gz": "absent"}
    code, states = check(**{"qa/other.gz": (1, "1" * 64)})
    assert code == 1
    assert states["qa/other.gz"] == "DIFFERS from DATA.md"
    code, states = check(**{"qa/short.gz": (2, listed["qa/short.gz"][1])})
    assert code == 1
    assert states["qa/short.gz"] == "1 rows, DATA.md says 2"
    with pytest.raises(UserError, match="holds none of the files that DATA.md lists"):
        sources.check_files(str(store / "qa"))


# ---- real data, where it is at hand ----


def read_split_tables() -> dict[str, tuple[int, ...]]:
    """Return dataset → its rows of training, validation and test, as DATA.md lists them."""
    listed = {}
    is_table = False
    for line in (ROOT / "DATA.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            is_table = False
        elif cells[-3:] == ["training", "validation", "test"]:
            is_table = True
        elif is_table and not cells[-1].startswith("-"):
            listed[cells[0]] = tuple(int(cell.replace(",", "")) for cell in cells[-3:])
    return listed


def test_the_tables_of_splits_are_found():
    assert {"sst", "quora", "sts", "qamr", "mnli", "snli"} <= set(read_split_tables())


@pytest.mark.slow
@pytest.mark.skipif("DATA" not in os.environ, reason="needs real data: make test-slow DATA=folder")
@pytest.mark.parametrize("name", read_split_tables())
def test_real_splits_are_as_listed_and_share_no_row(name):
    splits = selection.load_splits(name, "folder", str(Path(os.environ["DATA"]).resolve()))
    sizes = (len(splits.train), len(splits.validation), len(splits.test))
    assert sizes == read_split_tables()[name]
    held_out = selection.held_out_keys([splits])
    assert not held_out & {selection.row_key(row, splits.task) for row in splits.train}
