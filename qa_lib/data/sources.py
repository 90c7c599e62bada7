"""Sources of rows: files in a folder, and hub datasets (hub_tables.py).

Rows of both have one schema, that of their dataset's task. Rows of the task span are {id, title,
context, question, answers {text[], answer_start[]}, is_impossible, domain}. Rows of the tasks
classes and score are {id, text, text_pair, label, domain}. This module knows formats; selection.py
decides what the rows are used for.
"""

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from qa_lib.data import hub_tables
from qa_lib.settings import hub
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import FOR_MISSING_FILE, ROOT, UserError, describe_folder
from qa_lib.tasks import get_task
from qa_lib.tasks.characters import find_places, is_visible, text_error
from qa_lib.tasks.sentence import is_absent, name_fields

csv.field_size_limit(2**31 - 1)  # of a cell; by default a text has at most 131,072 characters
COMMAS = (".csv", ".csv.gz")
TABS = (".tsv", ".tsv.gz")


class Formats(NamedTuple):
    """The formats of files that rows are read from."""

    endings: tuple[str, ...]
    described: str


SPAN_FORMATS = Formats(
    (".jsonl", ".jsonl.gz", ".json", ".parquet", *COMMAS),
    "JSON Lines (.jsonl, .jsonl.gz), Parquet (.parquet), nested SQuAD JSON (.json) or CSV (.csv, "
    ".csv.gz)",
)
SENTENCE_FORMATS = Formats(
    (".jsonl", ".jsonl.gz", ".parquet", *COMMAS, *TABS),
    "JSON Lines (.jsonl, .jsonl.gz), Parquet (.parquet), CSV (.csv, .csv.gz) or TSV (.tsv, "
    ".tsv.gz)",
)
FIELDS = ("id", "title", "context", "question", "answers", "is_impossible")
NEEDED = ("context", "question", "answers")
COLUMNS = ("context", "question", "answer", "answer_start")  # those that CSV of questions must have
BYTE_ORDER_MARK = "\ufeff"


class Entry(NamedTuple):
    """A row as its file has it, or the reason why it cannot be read."""

    number: int  # names a row that has no id
    place: str  # in the file, as a reader finds it: "line 3"
    row: Any
    malformed: str = ""  # the reason


NAMED = 5  # bad rows of a source that an error names; it counts the others
# What counts call a bad row, and how an error says how many rows of the kind there are.
KINDS = {
    "malformed": "malformed",
    "incomplete": "with a missing or wrong field",
    "misplaced answers": "with an answer that does not stand at its answer_start",
}


class BadRows:
    """The rows of one source that cannot be used: the first few, and how many of each kind."""

    def __init__(self, source: Path | str):
        self.source = source  # as an error names it
        self.named: list[tuple[str, str]] = []  # place and reason of the first NAMED
        self.kinds: Counter = Counter()  # of KINDS
        self.movable = 0  # rows whose answers bad_rows=move would mend

    def add(self, kind: str, place: str, reason: str):
        """Add a row. kind: of KINDS."""
        self.kinds[kind] += 1
        if len(self.named) < NAMED:
            self.named.append((place, make_printable(reason)))


# What the formats' libraries raise for a file that cannot be read.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RecursionError,
    zlib.error,
    pa.ArrowException,
    csv.Error,
)


def iterate_rows(
    path: Path,
    fields: Iterable[str] = FIELDS,
    needed: Iterable[str] = NEEDED,
    formats: Formats = SPAN_FORMATS,
) -> Iterator[Entry]:
    """Yield the rows of a file.

    fields: the columns that are read of a Parquet file; needed: those that a file with named
    columns must have. Raises UserError where the file does not exist or is of none of the formats,
    and where its rows cannot be reached.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist; {FOR_MISSING_FILE['folder']}; {describe_folder(path)}"
        )
    known = formats.described
    if not path.name.endswith(formats.endings):
        raise UserError(f"{path}: its name has none of the known endings; save it as {known}")
    try:
        if path.suffix == ".parquet":
            yield from iterate_parquet(path, fields, needed)
        elif path.suffix == ".json":
            with open_text(path) as file:
                yield from iterate_nested(json.load(file))
        elif path.name.endswith(COMMAS + TABS):
            with open_text(path, newline="") as lines:  # offsets count "\r\n" as two characters
                yield from iterate_table(lines, path.name.endswith(TABS), needed)
        else:
            with open_text(path) as lines:
                yield from iterate_lines(lines)
    except UNREADABLE as e:
        hint = "; one row a line is a .jsonl" if path.suffix == ".json" else ""
        reason = " ".join(str(e).split())
        raise UserError(
            f"{path} cannot be read ({reason}){hint}; mend it, or save it anew as {known}"
        ) from None


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a text file, compressed or not, without its byte-order mark.

    Bytes that are no UTF-8 become lone surrogates, so that `row_error` finds the row they stand in.
    newline: "" keeps the ends of lines as the file has them; by default all are a newline.
    Raises ValueError where the first bytes show another encoding.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        encoding = json.detect_encoding(file.read(4))
    if encoding not in ("utf-8", "utf-8-sig"):
        raise ValueError(f"it is {encoding} and not utf-8; save it anew as utf-8")
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def iterate_lines(lines: Iterable[str]) -> Iterator[Entry]:
    """Yield the rows of JSON Lines. Raises ValueError for a file that is one JSON array."""
    for number, line in enumerate(lines, 1):
        text = line.lstrip(BYTE_ORDER_MARK).strip()  # files put end to end have a mark within
        if not text:  # an editor's empty last line is no row
            continue
        if number == 1 and re.match(r"\[\s*(\{|$)", text):
            raise ValueError(
                "it is one JSON array and not one row a line; pandas writes these with "
                'to_json(file, orient="records", lines=True)'
            )
        try:
            entry = Entry(number, f"line {number}", json.loads(text))
        except json.JSONDecodeError as e:
            reason = f"not JSON ({e.msg} at column {e.colno})"
            entry = Entry(number, f"line {number}", None, reason)
        except (ValueError, RecursionError) as e:  # a number of 5,000 digits, 5,000 brackets
            reason = f"not JSON ({' '.join(str(e).split())})"
            entry = Entry(number, f"line {number}", None, reason)
        yield entry


def iterate_nested(content: Any) -> Iterator[Entry]:
    """Yield the questions of nested SQuAD JSON as rows.

    An article or a paragraph that cannot hold questions is one malformed row. Raises ValueError
    where the content has no list of articles.
    """
    if not isinstance(content, dict):
        raise ValueError('it is not an object {"data": [articles]}')
    if "data" not in content:
        raise ValueError("no field 'data'")
    if not isinstance(content["data"], list):
        raise ValueError("its field 'data' is not a list of articles")
    number = 0
    for a, article in enumerate(content["data"], 1):
        place = f"article {a}"
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            number += 1
            yield Entry(number, place, None, "not an object with a list 'paragraphs'")
            continue
        for p, paragraph in enumerate(paragraphs, 1):
            place = f"article {a}, paragraph {p}"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                number += 1
                yield Entry(number, place, None, "not an object with a list of questions, 'qas'")
                continue
            for q, question in enumerate(questions, 1):
                number += 1
                row = nest_row(article, paragraph, question)
                yield Entry(number, f"{place}, question {q}", row)


def nest_row(article: dict, paragraph: dict, question: Any) -> Any:
    """Return a question with its title and context.

    A question that is not an object stays as it is.
    """
    if not isinstance(question, dict):
        return question
    row = {"title": article.get("title"), **question}
    if "context" in paragraph:
        row.setdefault("context", paragraph["context"])
    return row


def check_columns(names: list[str], needed: Iterable[str]):
    """Raise ValueError where a column is missing, and where two have one name.

    names: the columns of a file. Several may have none.
    """
    for name, number in Counter(names).items():
        if name and number > 1:
            raise ValueError(f"{number} columns are called '{name}'; rename or remove them")
    for name in needed:
        if name not in names:
            known = ", ".join(f"'{known}'" for known in names) or "none"
            raise ValueError(
                f"no column '{name}' among {known}; a row has {', '.join(needed)}: rename the "
                "column, or add it"
            )


def iterate_table(lines: Iterable[str], tabs: bool, needed: Iterable[str]) -> Iterator[Entry]:
    """Yield the rows of CSV or TSV as mappings of texts. The first line names the columns.

    In CSV a text with a comma or a quote stands in double quotes. In TSV, which tabs divide, a
    quote is a character like others, as in the files of GLUE. Raises ValueError for a missing
    column, for columns of CSV that something else divides, and for a quote that is not closed,
    since it takes the rows behind it for its text.
    """
    if tabs:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    names = next(reader, [])
    if len(names) == 1 and not tabs:
        raise ValueError(f"no comma in its first line, {names[0][:60]}; commas divide the columns")
    check_columns(names, needed)
    number = 0
    while True:
        first_line = reader.line_num + 1
        place = f"line {first_line}"
        number += 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            if reader.line_num > first_line:
                raise ValueError(
                    f"a quote in the row that begins in line {first_line} is not closed, or is not "
                    f"written twice within its cell; the row is read up to line {reader.line_num}"
                ) from None
            yield Entry(number, place, None, f"not CSV ({e})")
            continue
        if not values:  # an empty line
            number -= 1
        elif len(values) != len(names):
            reason = f"it has {len(values)} fields, and the first line names {len(names)}"
            if not tabs:
                reason += "; a cell with a comma stands in double quotes"
            yield Entry(number, place, None, reason)
        else:
            yield Entry(number, place, dict(zip(names, values, strict=True)))


def gather_answers(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the entries of a CSV file of questions with their answers as other formats have them.

    A row has one answer, in the columns `answer` and `answer_start`, or none where both are empty.
    """
    for entry in entries:
        if entry.malformed:
            yield entry
            continue
        row = dict(entry.row)
        text = row.pop("answer")
        start = read_start(row.pop("answer_start"))
        row["answers"] = {"text": [text], "answer_start": [start]}
        if not text and start == "":
            row["answers"] = {"text": [], "answer_start": []}
        for name in ("id", "title", "is_impossible"):
            row[name] = row.get(name) or None  # an empty cell holds nothing
        yield entry._replace(row=row)


def read_start(cell: str) -> int | str:
    """Return the whole number in a cell; other text as it is.

    Tables with empty cells have 21.0 for 21.
    """
    try:
        number = float(cell)
    except ValueError:
        return cell
    return int(number) if number.is_integer() else cell


def iterate_parquet(path: Path, fields: Iterable[str], needed: Iterable[str]) -> Iterator[Entry]:
    """Yield the rows of a Parquet file.

    Only the columns in `fields` are read: others may hold anything. Whole numbers keep every digit.
    Raises ValueError for a missing column.
    """
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        check_columns(names, needed)
        columns = [name for name in dict.fromkeys(fields) if name in names]
        number = 0
        for batch in file.iter_batches(columns=columns):
            for at in range(batch.num_rows):
                number += 1
                try:
                    row = batch.slice(at, 1).to_pylist()[0]
                    entry = Entry(number, f"row {number}", row)
                except (ValueError, OverflowError) as e:  # bytes that are no text, the year -5000
                    entry = Entry(number, f"row {number}", None, f"cannot be read ({e})")
                yield entry


def split_listed_answers(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield entries whose answers may be a list of objects with these as two lists."""
    for entry in entries:
        if isinstance(entry.row, dict) and "answers" in entry.row:
            row = {**entry.row, "answers": split_answers(entry.row["answers"])}
            entry = entry._replace(row=row)
        yield entry


def split_answers(answers: Any) -> Any:
    """Return a list of answers [{text, answer_start}] as {text: [...], answer_start: [...]}.

    A field that an answer lacks is None there. Anything but a list of objects stays as it is.
    """
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        return answers
    return {
        "text": [answer.get("text") for answer in answers],
        "answer_start": [answer.get("answer_start") for answer in answers],
    }


def is_null(value: Any) -> bool:
    """Return whether a field holds nothing: null, or the NaN that tables have in its place."""
    return value is None or value != value  # NaN alone differs from itself


def lacks_answers(row: dict) -> bool:
    """Return whether a row has no field `answers`, or nulls there. Empty lists are not null."""
    answers = row.get("answers")
    if isinstance(answers, dict) and {"text", "answer_start"} <= set(answers):
        return is_null(answers["text"]) and is_null(answers["answer_start"])
    return is_null(answers)


def read_flag(value: Any) -> bool | None:
    """Return a value of `is_impossible` as a bool; None where it is neither true nor false."""
    if is_null(value):
        return False
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().casefold())
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return None


def make_printable(text: str) -> str:
    """Return a user's text as one line of a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def answers_error(answers: Any) -> str:
    """Return what is wrong with the form of a row's answers; empty where nothing is."""
    text = answers.get("text") if isinstance(answers, dict) else None
    start = answers.get("answer_start") if isinstance(answers, dict) else None
    if not isinstance(text, list) or not isinstance(start, list) or len(text) != len(start):
        return 'field \'answers\' is not {"text": [texts], "answer_start": [as many whole numbers]}'
    for number, (answer, at) in enumerate(zip(text, start, strict=True), 1):
        if not isinstance(answer, str):
            return f"field 'answers' is not whole: answer {number} has no 'text'"
        error = text_error("answers", answer)
        if error:
            return error
        if not is_visible(answer):
            return (
                f"field 'answers' is not whole: answer {number} is blank, and a question without "
                "an answer has none"
            )
        if not isinstance(at, int) or isinstance(at, bool) or at < 0:
            return (
                f"field 'answers' is not whole: answer {number} has no 'answer_start' that is "
                "a whole number, without quotes"
            )
    return ""


def row_error(row: Any) -> str:
    """Return what is wrong with the form of a row; empty where nothing is."""
    if not isinstance(row, dict):
        return "not an object {…}"
    impossible = read_flag(row.get("is_impossible"))
    if impossible is None:
        return "field 'is_impossible' is neither true nor false"
    for field in NEEDED:
        if field not in row and not (field == "answers" and impossible):
            return f"no field '{field}' among {', '.join(map(str, row)) or 'none'}"
    for field in ("id", "title", "context", "question"):
        error = text_error(field, str(row.get(field)))
        if error:
            return error
    for field in ("context", "question"):
        if not isinstance(row[field], str) or not is_visible(row[field]):
            return f"field '{field}' holds no text"
    if lacks_answers(row):
        return "" if impossible else "field 'answers' is null and is_impossible is not true"
    error = answers_error(row["answers"])
    if error:
        return error
    if impossible and row["answers"]["text"]:
        return "is_impossible, and yet it has answers"
    return ""


def complete_row(row: dict, name: str, number: int) -> dict:
    """Return a row in the schema. A row without an id is named by dataset and number."""
    answers = {"text": [], "answer_start": []}
    if not lacks_answers(row):
        answers = {field: row["answers"][field] for field in answers}  # without further fields
    identity = row.get("id")
    title = row.get("title")
    return {
        **row,
        "id": f"{name}-{number}" if is_absent(identity) else str(identity),
        "title": "" if is_absent(title) else str(title),
        "answers": answers,
        "domain": name,
        "is_impossible": bool(read_flag(row.get("is_impossible"))) or not answers["text"],
    }


def nearest_place(context: str, text: str, start: int) -> int | None:
    """Return the place of a text in a context that is nearest to `start`; None where it has none.

    Of two places at the same distance it is the one in front.
    """
    places = [place for place, _ in find_places(text, context)]
    return min(places, key=lambda place: abs(place - start), default=None)


def misplaced_answer(row: dict) -> str:
    """Return a phrase about the first answer that is not at its offset; empty where all are."""
    answers = row["answers"]
    context = row["context"]
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if not context.startswith(text, start):
            at = nearest_place(context, text, start)
            place = "is nowhere in the context" if at is None else f"stands at {at}, not at {start}"
            return f"the answer '{make_printable(text[:40])}' {place}"
    return ""


def move_answers(row: dict) -> dict | None:
    """Return a row whose answers stand each at the nearest place that holds its text.

    Returns None where the context lacks the text of an answer.
    """
    texts = row["answers"]["text"]
    starts = []
    for text, start in zip(texts, row["answers"]["answer_start"], strict=True):
        place = nearest_place(row["context"], text, start)
        if place is None:
            return None
        starts.append(place)
    return {**row, "answers": {"text": texts, "answer_start": starts}}


def select_whole(
    entries: Iterable[Entry], find_error: Callable[[Any], str | None], bad: BadRows
) -> Iterator[Entry]:
    """Yield the entries whose row has no error. The others are added to `bad`."""
    for entry in entries:
        reason = entry.malformed or find_error(entry.row)
        if reason:
            bad.add("malformed" if entry.malformed else "incomplete", entry.place, reason)
        else:
            yield entry


def refuse_bad_rows(bad: BadRows, used: int, bad_rows: str):
    """Raise UserError where bad rows of a source stop a study, and where it has no usable row.

    used: the rows of the source that can be used. bad_rows: as in `read_rows`.
    """
    if not bad.kinds and not used and isinstance(bad.source, Path):
        raise UserError(f"{bad.source} holds no rows; write one question or text a row")
    if bad.kinds and (bad_rows == "stop" or not used):
        raise UserError(f"{describe_bad_rows(bad, used)}; {propose_cure(bad, used)}")


def describe_bad_rows(bad: BadRows, used: int) -> str:
    """Return how many rows of a source are bad, and what is wrong with the first few.

    used: the rows of the source that can be used.
    """
    count = bad.kinds.total()
    places: dict[str, list[str]] = {}
    for place, reason in bad.named:
        places.setdefault(reason, []).append(place)
    named = "; ".join(f"{', '.join(same)}: {reason}" for reason, same in places.items())
    if count == 1:
        return f"{bad.source}, {named}"
    kinds = [f"{bad.kinds[kind]:,} {words}" for kind, words in KINDS.items() if bad.kinds[kind]]
    rest = count - len(bad.named)
    more = f"; and {rest:,} more" if rest else ""
    return (
        f"{bad.source}: {count:,} of {count + used:,} rows cannot be used ({', '.join(kinds)}): "
        f"{named}{more}"
    )


def propose_cure(bad: BadRows, used: int) -> str:
    """Return what a user can do about the bad rows of a source.

    used: the rows of the source that can be used. Without any, leaving the others out is no cure.
    """
    count = bad.kinds.total()
    cures = []
    if bad.movable:
        whose = "their answers" if bad.movable == count else f"the answers of {bad.movable} of them"
        cures.append(
            f"bad_rows=move in PARAMS moves {whose} to the nearest place that holds the text"
        )
    if not isinstance(bad.source, Path):
        cures.append("mend its dataset's definition in params/datasets.yaml")
    else:
        cures.append("mend the row" if count == 1 else "mend the rows")
    if used:
        cures.append("or leave such rows out with bad_rows=skip in PARAMS")
        return ", ".join(cures)
    return f"{', or '.join(cures)}; there are no other rows"


def read_rows(
    path: Path, name: str, bad_rows: str, counts: Counter, fields: Iterable[str] = ()
) -> list[dict]:
    """Return the rows of a file in the schema.

    name: the dataset's; fields: columns of Parquet that are read beside the schema's.
    bad_rows: what becomes of rows that cannot be used. "stop" raises UserError that names the first
    few by file, place and reason, and says how many there are. "skip" leaves them out and counts
    them. "move" moves an answer that does not stand at its offset to the nearest place that holds
    its text, and counts the row; it leaves out other bad rows as "skip" does.
    """
    if path.name.endswith(COMMAS):
        entries = gather_answers(iterate_rows(path, needed=COLUMNS))
    else:
        entries = split_listed_answers(iterate_rows(path, [*FIELDS, *fields]))
    return complete_questions(path, entries, name, bad_rows, counts)


def complete_questions(
    source: Path | str, entries: Iterable[Entry], name: str, bad_rows: str, counts: Counter
) -> list[dict]:
    """Return the question rows of entries in the schema, less the bad ones (read_rows)."""
    rows = []
    bad = BadRows(source)
    for entry in select_whole(entries, row_error, bad):
        row = complete_row(entry.row, name, entry.number)
        reason = misplaced_answer(row)
        if not reason:
            rows.append(row)
            continue
        moved = move_answers(row)
        if moved and bad_rows == "move":
            rows.append(moved)
            counts["rows with a moved answer"] += 1
        else:
            bad.add("misplaced answers", entry.place, reason)
            bad.movable += moved is not None
    refuse_bad_rows(bad, len(rows), bad_rows)
    counts.update(bad.kinds)
    return rows


def read_sentences(path: Path, d: Dataset, name: str, bad_rows: str, counts: Counter) -> list[dict]:
    """Return the rows of a file in the schema of sentences.

    d: the definition of the dataset, which names the fields; name: the dataset's name. bad_rows: as
    in `read_rows`; "move" leaves bad rows out as "skip" does.
    """
    needed = name_fields(d)
    entries = iterate_rows(path, ["id", *needed, *d.leave_out], needed, SENTENCE_FORMATS)
    return complete_sentences(path, entries, d, name, bad_rows, counts)


def complete_sentences(
    source: Path | str,
    entries: Iterable[Entry],
    d: Dataset,
    name: str,
    bad_rows: str,
    counts: Counter,
) -> list[dict]:
    """Return the rows of entries in the schema of sentences, less the bad ones (read_rows)."""
    task = get_task(d.task)

    def find_error(row: Any) -> str | None:
        return task.find_row_error(row, d)

    rows = []
    bad = BadRows(source)
    for entry in select_whole(entries, find_error, bad):
        rows.append(task.complete_row(entry.row, d, name, entry.number))
    refuse_bad_rows(bad, len(rows), bad_rows)
    counts.update(bad.kinds)
    return rows


def iterate_hub(source: str, d: Dataset, counts: Counter) -> Iterator[Entry]:
    """Yield the rows of a hub dataset's place (hub_tables)."""
    for number, row in enumerate(hub_tables.iterate_table(source, d, counts)):
        yield Entry(number, f"row {number}", row)


def read_hub_questions(
    source: str, d: Dataset, name: str, bad_rows: str, counts: Counter
) -> list[dict]:
    """Return the question rows of a hub dataset's place in the schema; as `read_rows`."""
    return complete_questions(source, iterate_hub(source, d, counts), name, bad_rows, counts)


def read_hub_sentences(
    source: str, d: Dataset, name: str, bad_rows: str, counts: Counter
) -> list[dict]:
    """Return the rows of a hub dataset's place in the schema of sentences; as `read_sentences`."""
    return complete_sentences(source, iterate_hub(source, d, counts), d, name, bad_rows, counts)


@cache
def known_files() -> dict[str, tuple[int, str]]:
    """Return the table of DATA.md: path below DATA → (number of rows, sha256)."""
    text = (ROOT / "DATA.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|", text, re.M)
    return {path: (int(rows.replace(",", "")), sha) for path, rows, sha in lines}


def check_files(folder: str) -> int:
    """Compare every file of a folder with DATA.md, and print how each compares.

    Returns the exit code: 1 where a file differs, else 0. An absent file does not count. Raises
    UserError where the folder holds none of the files.
    """
    if not any((Path(folder) / file).exists() for file in known_files()):
        raise UserError(
            f"{folder} holds none of the files that DATA.md lists; DATA= names the folder above "
            "qa/ and nlu/. Files of your own it does not know: the study that reads them checks "
            "them (docs/own-data.md)"
        )
    wrong = 0
    for file, (rows, sha) in known_files().items():
        path = Path(folder) / file
        if not path.exists():
            state = "absent"
        elif hub.digest_data_file(path) != sha:
            state = "DIFFERS from DATA.md"
            wrong += 1
        else:
            with gzip.open(path) as lines:
                count = sum(1 for _ in lines)
            state = "ok"
            if count != rows:
                state = f"{count} rows, DATA.md says {rows}"
                wrong += 1
        print(f"{file:45} {state}")
    return 1 if wrong else 0
