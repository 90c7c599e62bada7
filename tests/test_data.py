"""Reading, splits, mixtures, disjointness."""

import datetime
import gzip
import json
import re
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qa_lib.data import selection, sources
from qa_lib.reports import plans
from qa_lib.settings import hub, params
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError


def row(i: int, **changes) -> dict:
    context = f"The mill at Brun{i} was built in {1800 + i} by Osk{i}."
    return {
        "id": f"r{i}",
        "title": f"t{i // 3}",
        "context": context,
        "question": f"Who built the mill at Brun{i}?",
        "answers": {"text": [f"Osk{i}"], "answer_start": [context.index(f"Osk{i}")]},
    } | changes


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as f:
        f.writelines(json.dumps(r) + "\n" if isinstance(r, dict) else r for r in rows)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder dataset "own" of the given rows, and how to split it."""

    def make(train, test, **fields):
        write(tmp_path / "train.jsonl", train)
        write(tmp_path / "test.jsonl", test)
        found = {"own": Dataset(train=["train.jsonl"], test=["test.jsonl"], unit="title", **fields)}
        monkeypatch.setattr(params, "read_datasets", lambda *source: found)
        selection.load_splits.cache_clear()
        return str(tmp_path)

    yield make
    selection.load_splits.cache_clear()


def test_four_formats_give_the_same_rows(tmp_path):
    rows = [row(i) for i in range(4)]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "a.jsonl.gz", rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    nested = {
        "data": [
            {
                "title": r["title"],
                "paragraphs": [
                    {
                        "context": r["context"],
                        "qas": [
                            {
                                "id": r["id"],
                                "question": r["question"],
                                "answers": [
                                    {
                                        "text": r["answers"]["text"][0],
                                        "answer_start": r["answers"]["answer_start"][0],
                                    }
                                ],
                            }
                        ],
                    }
                ],
            }
            for r in rows
        ]
    }
    (tmp_path / "a.json").write_text(json.dumps(nested))
    found = [
        sources.read_rows(tmp_path / f, "own", "stop", selection.Counter())
        for f in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.json")
    ]
    assert all(f == found[0] for f in found)
    assert len(found[0]) == 4
    assert found[0][0]["domain"] == "own"


def test_a_malformed_line_is_named(tmp_path):
    write(tmp_path / "a.jsonl", [row(0), '{"id": "broken",\n', row(1)])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not JSON .* PARAMS=bad_rows=skip"):
        sources.read_rows(tmp_path / "a.jsonl", "own", "stop", selection.Counter())
    counts = selection.Counter()
    assert len(sources.read_rows(tmp_path / "a.jsonl", "own", "skip", counts)) == 2
    assert counts["malformed"] == 1


def test_misplaced_answers_are_counted_never_moved(tmp_path):
    rows = [row(i) for i in range(9)]
    for r in rows[2:7]:
        r["answers"] = {"text": r["answers"]["text"], "answer_start": [0]}
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        UserError,
        match=r"5 rows have an answer that does not stand at its answer_start, first r2, r3, r4 "
        r"\(of the first, '.+' stands at \d+, not at 0\);",
    ):
        sources.read_rows(tmp_path / "a.jsonl", "own", "stop", selection.Counter())
    counts = selection.Counter()
    assert len(sources.read_rows(tmp_path / "a.jsonl", "own", "skip", counts)) == 4
    assert counts["misplaced answers"] == 5


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist; DATA= names the folder"):
        sources.read_rows(tmp_path / "none.jsonl", "own", "stop", selection.Counter())


def test_a_planted_leak_is_dropped_and_counted(own):
    """The same text under another id, other case and other spaces, in training and in test."""
    train, test = [row(i) for i in range(30)], [row(i) for i in range(30, 36)]
    leak = dict(
        train[7], id="leak", title="elsewhere", question=train[7]["question"].upper() + "  "
    )
    found = selection.load_splits("own", "folder", own(train, test + [leak], validation_rows=6))
    ids = [{r["id"] for r in part} for part in (found.train, found.validation, found.test)]
    assert "leak" in ids[2] and "r7" not in ids[0] | ids[1]
    assert found.counts["copies of held-out rows dropped"] == 1
    pairs = [
        {selection.row_key(r) for r in part} for part in (found.train, found.validation, found.test)
    ]
    assert not pairs[0] & pairs[1]
    assert not pairs[0] & pairs[2]
    assert not pairs[1] & pairs[2]
    titles = [{r["title"] for r in part} for part in (found.train, found.validation)]
    assert not titles[0] & titles[1] and len(found.validation) >= 6


def test_what_may_not_train_is_left_out(own, monkeypatch, tmp_path):
    """Rows marked so, rows with a text of another set's test, and in a mixture what another of its sets holds out."""
    train = [row(i) for i in range(30)]
    train[4]["offset"] = "guess"
    other = row(40) | {
        "context": train[9]["context"].upper(),
        "answers": {"text": [], "answer_start": []},
    }
    write(tmp_path / "other.jsonl", [other])
    folder = own(train, [row(30)], leave_out={"offset": "guess"}, apart_from=["other.jsonl"])
    found = selection.load_splits("own", "folder", folder)
    assert {r["id"] for r in train} - {r["id"] for r in found.train} == {"r4", "r9"}
    assert found.counts["contexts of other test sets dropped"] == 1
    whole = {
        "a": selection.Splits(train[:9], [], [], selection.Counter()),
        "b": selection.Splits(train[9:], train[3:4], [], selection.Counter()),
    }
    spec = SimpleNamespace(
        domains=["a", "b"],
        rows=[8, 8],
        places=[],
        seed=0,
        validation_rows=0,
        tests=[],
        source="folder",
        folder=folder,
        bad_rows="stop",
    )
    with monkeypatch.context() as patch:
        patch.setattr(selection, "load_splits", lambda name, *rest: whole[name])
        mixed, _, counts = selection.draw_mixture(spec)
    assert "r3" not in {r["id"] for r in mixed}
    assert counts["copies of other sets' rows dropped"] == 1


def test_a_row_without_an_answer_that_has_one_is_refused(tmp_path):
    write(tmp_path / "a.jsonl", [row(0) | {"is_impossible": True}])
    with pytest.raises(UserError, match="line 1: is_impossible, and yet it has answers"):
        sources.read_rows(tmp_path / "a.jsonl", "own", "stop", selection.Counter())


NOTHING = {"text": [], "answer_start": []}


def read_both(path, **how) -> tuple[str, list[dict], selection.Counter]:
    """What reading says where a bad row stops it, and the rows and counts where it is skipped."""
    with pytest.raises(UserError) as e:
        sources.read_rows(path, "own", "stop", selection.Counter(), **how)
    assert "\n" not in str(e.value) and str(e.value).encode()
    counts = selection.Counter()
    return str(e.value), sources.read_rows(path, "own", "skip", counts, **how), counts


def nested(question: dict | None = None, **changes) -> dict:
    """Nested SQuAD JSON of one whole question, and in a second article of one that is told."""

    def article(r: dict, question: dict) -> dict:
        return {"title": r["title"], "paragraphs": [{"context": r["context"], "qas": [question]}]}

    first, second = row(0), row(1)
    whole = {
        "id": "r0",
        "question": first["question"],
        "answers": [{"text": "Osk0", "answer_start": first["answers"]["answer_start"][0]}],
    }
    asked = {"id": "r1", "question": second["question"]} | (question or {})
    return {"data": [article(first, whole), article(second, asked) | changes]}


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
    (tmp_path / "a.json").write_text(json.dumps(nested(question)))
    told, rows, counts = read_both(tmp_path / "a.json")
    assert "a.json, article 2, paragraph 1, question 1: " in told and reason in told
    assert [r["id"] for r in rows] == ["r0"] and counts["incomplete"] == 1


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
    (tmp_path / "a.json").write_text(json.dumps(nested(**changes)))
    told, rows, counts = read_both(tmp_path / "a.json")
    assert place in told
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
    (tmp_path / "a.json").write_text(json.dumps(nested(question)))
    _, found = sources.read_rows(tmp_path / "a.json", "own", "stop", selection.Counter())
    assert found["is_impossible"] and found["answers"] == NOTHING


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
        sources.read_rows(tmp_path / "a.json", "own", "skip", selection.Counter())


@pytest.mark.parametrize("value", [None, {"text": None, "answer_start": None}])
def test_null_answers_of_an_impossible_row(tmp_path, value):
    rows = [row(0) | {"is_impossible": False}, row(1) | {"answers": value, "is_impossible": True}]
    write(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for file in ("a.jsonl", "a.parquet"):
        found = sources.read_rows(tmp_path / file, "own", "stop", selection.Counter())[1]
        assert found["is_impossible"] and found["answers"] == NOTHING
    write(tmp_path / "a.jsonl", [row(0), row(1) | {"answers": value}])
    told, rows, counts = read_both(tmp_path / "a.jsonl")
    assert "line 2: field 'answers' is null and is_impossible is not true" in told
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
    """Nothing can hash, tokenise or write it."""
    field = next(iter(changes))
    write(
        tmp_path / "a.jsonl",
        [row(0), row(1) | changes, row(2) | {"note": "\ud83d", "title": "\U0001f600"}],
    )
    told, rows, counts = read_both(tmp_path / "a.jsonl")
    assert f"a.jsonl, line 2: field '{field}' holds what is no UTF-8 text at character " in told
    assert [r["id"] for r in rows] == ["r0", "r2"] and counts["incomplete"] == 1
    assert rows[1]["title"] == "\U0001f600"  # whole, though JSON writes it as two halves


def test_bytes_of_another_encoding_are_a_bad_row(tmp_path):
    lines = [json.dumps(row(i) | {"question": "Où ?"}, ensure_ascii=False) for i in range(3)]
    (tmp_path / "a.jsonl").write_bytes(
        lines[0].encode() + b"\n" + lines[1].encode("latin-1") + b"\n" + lines[2].encode()
    )
    told, rows, counts = read_both(tmp_path / "a.jsonl")
    assert "a.jsonl, line 2: field 'question' holds what is no UTF-8 text at character 2" in told
    assert [r["id"] for r in rows] == ["r0", "r2"] and counts["incomplete"] == 1


def test_parquet_is_read_by_its_used_columns(tmp_path):
    """Beside them may stand what no row of JSON holds; whole numbers are ids with every digit."""
    rows = [row(0) | {"id": 2**53 + 1}, row(1) | {"id": 2**53}, row(2) | {"id": None}]
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
    found = sources.read_rows(tmp_path / "a.parquet", "own", "stop", selection.Counter())
    assert [r["id"] for r in found] == [str(2**53 + 1), str(2**53), "own-3"]
    assert found[0]["answers"] == rows[0]["answers"]
    assert set(found[0]) == {
        *sources.FIELDS,
        "domain",
    }
    found = sources.read_rows(
        tmp_path / "a.parquet", "own", "stop", selection.Counter(), fields=["offset", "absent"]
    )
    assert [r["offset"] for r in found] == ["guess", "sure", None]


def test_fields_that_leave_rows_out_are_read_from_parquet(monkeypatch, tmp_path):
    pd.DataFrame([row(i) | {"offset": "guess" if i == 4 else "sure"} for i in range(9)]).to_parquet(
        tmp_path / "train.parquet"
    )
    write(tmp_path / "test.jsonl", [row(30)])
    known = {
        "own": Dataset(train=["train.parquet"], test=["test.jsonl"], leave_out={"offset": "guess"})
    }
    monkeypatch.setattr(params, "read_datasets", lambda *source: known)
    selection.load_splits.cache_clear()
    found = selection.load_splits("own", "folder", str(tmp_path))
    selection.load_splits.cache_clear()
    assert found.counts["offset=guess left out of training"] == 1
    assert "r4" not in {r["id"] for r in found.train}


def test_answers_of_parquet_may_be_a_list_of_structs(tmp_path):
    rows = [row(0), row(1), row(2)]
    lists = [
        [{"text": t, "answer_start": s} for t, s in zip(*r["answers"].values(), strict=True)]
        for r in rows[:2]
    ] + [[]]
    pq.write_table(
        pa.Table.from_pylist([r | {"answers": x} for r, x in zip(rows, lists, strict=True)]),
        tmp_path / "a.parquet",
    )
    found = sources.read_rows(tmp_path / "a.parquet", "own", "stop", selection.Counter())
    assert [r["answers"] for r in found] == [
        rows[0]["answers"],
        rows[1]["answers"],
        NOTHING,
    ]
    assert found[2]["is_impossible"]


def test_a_column_that_parquet_lacks_is_one_sentence(tmp_path):
    pd.DataFrame([row(0)]).drop(columns="question").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        UserError,
        match="a.parquet cannot be read .no column 'question' among id, title, context, answers;",
    ):
        sources.read_rows(tmp_path / "a.parquet", "own", "skip", selection.Counter())


def test_text_of_parquet_that_is_none_is_a_bad_row(tmp_path):
    context = pa.array([row(i)["context"].encode() + b"\xff" * (i == 1) for i in range(3)]).view(
        pa.string()
    )
    table = pa.Table.from_pylist([row(i) for i in range(3)])
    pq.write_table(
        table.set_column(table.schema.get_field_index("context"), "context", context),
        tmp_path / "a.parquet",
    )
    told, rows, counts = read_both(tmp_path / "a.parquet")
    assert "a.parquet, row 2: cannot be read ('utf-8' codec" in told
    assert [r["id"] for r in rows] == ["r0", "r2"] and counts["malformed"] == 1


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    lines = "".join(json.dumps(row(i)) + "\n" for i in range(2)).encode("utf-8-sig")
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl").write_bytes(
        lines + b"\n" + "".join(json.dumps(row(2)) + "\n").encode("utf-8-sig")
    )  # end to end
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(json.dumps(nested({"answers": []})), encoding="utf-8-sig")
    for file, ids in {"a.jsonl": 2, "b.jsonl": 3, "a.jsonl.gz": 2, "a.json": 2}.items():
        for bad_rows in ("stop", "skip"):
            found = sources.read_rows(tmp_path / file, "own", bad_rows, selection.Counter())
            assert [r["id"] for r in found] == [f"r{i}" for i in range(ids)], file


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("file", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_utf_16_is_one_sentence(tmp_path, file, encoding):
    content = json.dumps(row(0)).encode(encoding)
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith("gz") else content)
    told = rf"{file} cannot be read .it is {encoding[:6]}\S* and not utf-8; save it anew as utf-8"
    with pytest.raises(UserError, match=told) as e:
        sources.read_rows(tmp_path / file, "own", "skip", selection.Counter())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("blank", [" ", "  \t", "\u00a0", "\n", "\u200b", "\u2003\ufeff", "\x00"])
def test_an_answer_of_blanks_is_a_bad_row(tmp_path, blank):
    spaced = row(1) | {"context": f"The{blank}mill."}
    write(
        tmp_path / "a.jsonl",
        [
            row(0),
            spaced | {"answers": {"text": ["mill", blank], "answer_start": [3 + len(blank), 3]}},
        ],
    )
    told, rows, counts = read_both(tmp_path / "a.jsonl")
    assert "a.jsonl, line 2: field 'answers' is not whole: answer 2 is blank" in told
    assert len(rows) == 1 and counts["incomplete"] == 1


@pytest.mark.parametrize(
    "says, values",
    [
        (False, [None, float("nan"), False, 0, 0.0, "False", "false", "FALSE", " false ", "0"]),
        (True, [True, 1, 1.0, "True", "true", "TRUE", "1"]),
    ],
)
def test_what_says_whether_a_row_is_impossible(tmp_path, says, values):
    given = row(0)["answers"]
    write(
        tmp_path / "a.jsonl",
        [row(0) | {"is_impossible": x, "answers": NOTHING if says else given} for x in values],
    )
    found = sources.read_rows(tmp_path / "a.jsonl", "own", "stop", selection.Counter())
    assert [r["is_impossible"] for r in found] == [says] * len(values)
    if says:
        write(tmp_path / "a.jsonl", [row(0) | {"is_impossible": x} for x in values])
        told, rows, counts = read_both(tmp_path / "a.jsonl")
        assert "is_impossible, and yet it has answers" in told
        assert counts["incomplete"] == len(values)


@pytest.mark.parametrize("value", ["no", "", 2, -1, 0.5, [], {}, [True]])
def test_what_says_neither_is_a_bad_row(tmp_path, value):
    write(tmp_path / "a.jsonl", [row(0), row(1) | {"is_impossible": value}])
    told, rows, counts = read_both(tmp_path / "a.jsonl")
    assert "line 2: field 'is_impossible' is neither true nor false" in told
    assert len(rows) == 1 and counts["incomplete"] == 1


def test_ids_and_titles_that_are_no_number_are_absent(tmp_path):
    write(
        tmp_path / "a.jsonl",
        [row(i) | {"id": float("nan"), "title": float("nan")} for i in range(2)],
    )
    found = sources.read_rows(tmp_path / "a.jsonl", "own", "stop", selection.Counter())
    assert [(r["id"], r["title"]) for r in found] == [("own-1", ""), ("own-2", "")]


def test_a_training_row_of_another_test_set_is_refused(tiny, monkeypatch):
    """A run may be tested on sets that it does not train on: its sample must not hang on which, so none is dropped."""
    spec = plans.plan(tiny(ratios=[1.0]))[0]
    spec = spec.model_copy(
        update={
            "domains": spec.domains[:1],
            "rows": spec.rows[:1],
            "fingerprints": spec.fingerprints[:1],
        }
    )
    whole, leak = (
        selection.load_splits("biomedicine", "embedded"),
        selection.load_splits("encyclopaedia", "embedded").train[3],
    )
    planted = selection.Splits(whole.train, whole.validation, [leak], whole.counts)
    before, splits = selection.draw_mixture(spec)[0], selection.load_splits
    monkeypatch.setattr(
        selection,
        "load_splits",
        lambda name, *rest: planted if name == "biomedicine" else splits(name, *rest),
    )
    with pytest.raises(
        UserError,
        match="1 training rows of encyclopaedia are test rows of biomedicine; name that set's file in",
    ):
        selection.draw_mixture(spec)
    assert selection.draw_mixture(spec.model_copy(update={"tests": ["encyclopaedia"]}))[0] == before


@pytest.mark.parametrize("name", ["encyclopaedia", "biomedicine"])
def test_embedded_splits_share_no_text_and_no_entity(name):
    found = selection.load_splits(name, "embedded")
    parts = (found.train, found.validation, found.test)
    for part in ("pair", "title"):
        sets = [
            {selection.row_key(r) if part == "pair" else r["title"] for r in rows} for rows in parts
        ]
        assert not sets[0] & sets[1], part
        assert not sets[0] & sets[2], part
        assert not sets[1] & sets[2], part


def test_a_mixture_is_nested_within_a_seed_and_the_same_for_every_model(tiny):
    def chosen(ratio, seed=0, variant="v-db"):
        spec = plans.plan(tiny(ratios=[ratio], seeds=[seed]))[0].model_copy(
            update={"variant": variant}
        )
        return [r["id"] for r in selection.draw_mixture(spec)[0]]

    half, most = chosen(0.5), chosen(0.75)
    assert set(half[:24]) <= set(most[:36]) and len(half) == len(most) == 48
    assert chosen(0.5, variant="exbert") == half and chosen(0.5, seed=1) != half
    assert [r.split("-")[0] for r in half] == sorted(
        (r.split("-")[0] for r in half), reverse=half[0] > half[-1]
    )


def test_too_few_rows_say_which_set_and_how_many(tiny):
    spec = plans.plan(tiny(train_rows=100_000))[0]
    with pytest.raises(
        UserError, match=r"needs 50000 training rows of encyclopaedia, which has \d+: \d+ short"
    ):
        selection.draw_mixture(spec)


def test_a_share_of_validation_rows_that_is_none_is_refused(tiny):
    with pytest.raises(
        UserError, match="none of the 1 validation rows falls to encyclopaedia, biomedicine; raise"
    ):
        selection.draw_mixture(plans.plan(tiny(validation_rows=1))[0])


def test_a_changed_listed_file_is_refused(own, monkeypatch):
    folder = own([row(i) for i in range(9)], [row(9)])
    monkeypatch.setattr(selection, "known_files", lambda: {"train.jsonl": (9, "0" * 64)})
    with pytest.raises(UserError, match="is not the file DATA.md lists"):
        selection.load_splits("own", "folder", folder)


def test_the_hub_is_refused_in_one_sentence_offline():
    """First the encoder, then the data: each with the cures that apply to it."""
    with pytest.raises(
        UserError,
        match=r"encoder distilbert-base-uncased: there is no such folder.* and it cannot be had from the "
        r"hub .*minilm, which need no network \(PARAMS=encoder=…\), or .* once with network",
    ):
        plans.plan(plans.load_params("exbert", "paper"))
    with pytest.raises(
        UserError,
        match=r"dataset .* cannot be had from the hub .*make data .*PROFILE=quick .*PROFILE=real DATA=",
    ):
        plans.plan(plans.load_params("exbert", "paper", {"encoder": "minilm"}))


def test_rows_of_the_hub_come_in_two_forms(monkeypatch):
    squad = {
        "question": "When?",
        "context": "In March.",
        "answers": {"text": ["March"], "answer_start": [3]},
    }
    table = [
        squad,
        {"question": "What?", "text": "<answer> ice <context> Ice, and more ice."},
        {"question": "What?", "text": "<answer> snow <context> Ice."},
        {"question": "What?", "text": "<answer> no context"},
    ]
    monkeypatch.setattr(hub, "resolve_revision", lambda repo: "0" * 40)
    monkeypatch.setattr(
        "datasets.load_dataset", lambda repo, split, revision: [dict(r) for r in table]
    )
    counts = selection.Counter()
    first, second = sources.read_hub("a/b:train", "own", counts)
    assert first["answers"] == squad["answers"] and counts["answer not in the context"] == 2
    assert second["answers"] == {"text": ["Ice", "ice"], "answer_start": [0, 14]}
    assert second["id"] == "train-1"


def test_fingerprints_need_no_data_for_listed_files():
    print_ = selection.fingerprint("squad", "folder", None)
    assert re.fullmatch("[0-9a-f]{64}", print_)
    assert print_ == selection.fingerprint("squad", "folder", "/nowhere")
