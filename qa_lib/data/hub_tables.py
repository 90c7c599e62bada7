"""Tables of hub datasets at their pinned revisions, and their rows in one form.

A place is "repo:split" or "repo:part:split", as "nyu-mll/glue:qqp:train"; the split may be a slice,
as "train[:1000]". In "repo@branch:part:split" the part is a folder of that branch. The branch
refs/convert/parquet is the hub's own copy of a dataset in Parquet. It is read where the main branch
holds a loading script, since such scripts are not run.

A question comes in one of five forms, and leaves in SQuAD's (read_question, split_dialogue):

| form                                  | as in     | an answer counts              |
|---------------------------------------|-----------|-------------------------------|
| answers {text, answer_start}          | SQuAD     | at its offset                 |
| detected_answers {text, char_spans}   | MRQA 2019 | at its spans                  |
| answers [texts]                       | QA-ZRE    | wherever the context holds it |
| text "<answer> … <context> …"         | BioASQ    | wherever the context holds it |
| questions [texts]: a row is a dialogue | QuAC     | at its offset                 |

A question without answers has an empty list of them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from operator import eq
from typing import TYPE_CHECKING, NamedTuple

from qa_lib.settings import hub
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError
from qa_lib.tasks.characters import find_places, normalise_text
from qa_lib.tasks.sentence import name_fields

if TYPE_CHECKING:
    from datasets import Dataset as Table

PLACE = re.compile(r"(?P<repo>[^:]+)(:(?P<part>[^:\[]+))?:(?P<split>[^:\[]+(\[[^\]]*\])?)")
# Columns of questions. Others may be many times as large, and are not read.
QUESTION = (
    "id",
    "qid",
    "title",
    "context",
    "question",
    "answers",
    "is_impossible",
    "text",
    "detected_answers",
)
DIALOGUE = (
    "turn_ids",
    "wikipedia_page_title",
    "context",
    "questions",
    "answers",
    "yesnos",
    "followups",
)
# Files that are fetched of a dataset: its README, which names its parts, and its rows.
FILES = ["README.md", *(f"*.{format}" for format in ("parquet", "jsonl", "json", "csv", "tsv"))]
NO_ANSWER = "CANNOTANSWER"  # QuAC's answer to a question that has none; each context ends with it


class Place(NamedTuple):
    """Where the rows of a hub dataset lie."""

    repo: str  # behind @ the branch, where it is not the main one
    part: str | None
    split: str


def parse_place(source: str) -> Place:
    """Return the parts of a place. Raises UserError where it is none."""
    match = PLACE.fullmatch(source)
    if match is None:
        raise UserError(
            f"'{source}' is no place of a hub dataset; write repo:split or repo:part:split in "
            "params/datasets.yaml"
        )
    return Place(match["repo"], match["part"], match["split"])


def load_table(source: str) -> "Table":
    """Return the table of a place. Raises UserError where it cannot be had or read."""
    import datasets as hf_datasets  # heavy, and needed by profile paper alone

    place = parse_place(source)
    folder = hub.fetch_files(place.repo, "dataset", FILES)
    part = place.part
    if part and "@" in place.repo:  # a folder; else a part that the README names
        folder = folder / part
        part = None
    try:
        # From the folder of this revision: by its id, a dataset that is out of reach would be the
        # one of any revision that was read before.
        return hf_datasets.load_dataset(str(folder), part, split=place.split)
    except Exception as e:  # the library raises many kinds; the user needs one sentence
        reason = " ".join(str(e.__cause__ or e).split()).partition(". ")[0][:200]
        raise UserError(
            f"{source} cannot be read ({type(e).__name__}: {reason}); mend its place in "
            f"params/datasets.yaml, or, if a file there is broken, delete {folder} and fetch it "
            "anew with make data"
        ) from None


def iterate_table(source: str, d: Dataset, counts: Counter) -> Iterator[dict]:
    """Yield the rows of a place, questions in SQuAD's form and others as they are.

    d: the definition of the dataset. Rows that it does not ask for are left out. Counted are those
    of which the context holds no answer, and those without a label. Raises UserError where the
    table lacks a column, or has no row that is asked for.
    """
    table = load_table(source)
    columns = table.column_names
    is_dialogue = "questions" in columns
    needed = [*d.only, *d.placeholder.values()]
    if is_dialogue:
        needed += DIALOGUE
    elif d.task != "span":
        needed += name_fields(d)
    check_columns(source, columns, needed)
    wanted = {*needed, *d.leave_out, "id"}
    if d.task == "span":
        wanted.update(QUESTION)
    table = table.select_columns([name for name in columns if name in wanted])
    for field, value in d.only.items():
        table = select_value(source, table, field, value)
    split = parse_place(source).split.partition("[")[0]
    for number, row in enumerate(table):
        identity = row.get("id") or row.get("qid") or f"{split}-{number}"
        row = {**row, "id": identity}
        for turn in split_dialogue(row) if is_dialogue else [row]:
            if d.task == "span":
                question = read_question(turn, d.placeholder)
                if question is None:
                    counts["answer not in the context"] += 1
                else:
                    yield question
            elif d.unlabelled is not None and turn[d.label] == d.unlabelled:
                counts["rows without a label"] += 1
            else:
                yield turn


def check_columns(source: str, columns: list[str], needed: Iterable[str]):
    """Raise UserError where a table lacks a column."""
    for name in needed:
        if name not in columns:
            raise UserError(
                f"{source} has no column '{name}' among {', '.join(columns)}; name the columns it "
                "has in params/datasets.yaml"
            )


def select_value(source: str, table: "Table", field: str, value: str) -> "Table":
    """Return the rows in which a field has a value. Raises UserError where none has it."""
    selected = table.filter(partial(eq, value), input_columns=field)
    if not len(selected):
        known = ", ".join(sorted(map(str, table.unique(field)))[:12])
        raise UserError(
            f"{source} has no row whose '{field}' is {value}; name one of {known} in "
            "params/datasets.yaml"
        )
    return selected


def split_dialogue(dialogue: dict) -> Iterator[dict]:
    """Yield the questions of a dialogue as rows.

    A row has the classes `yesno` and `followup` too: the number of yes, no or neither, and that of
    a follow-up that should, should not or may come.
    """
    context = dialogue["context"].removesuffix(NO_ANSWER).rstrip()
    answers = turn_to_columns(dialogue["answers"], ("texts", "answer_starts"))
    for turn, question in enumerate(dialogue["questions"]):
        texts = []
        starts = []
        pairs = zip(answers["texts"][turn], answers["answer_starts"][turn], strict=True)
        for text, start in pairs:
            if text != NO_ANSWER:
                texts.append(text)
                starts.append(start)
        yield {
            "id": dialogue["turn_ids"][turn],
            "title": dialogue["wikipedia_page_title"],
            "context": context,
            "question": question,
            "answers": {"text": texts, "answer_start": starts},
            "yesno": dialogue["yesnos"][turn],
            "followup": dialogue["followups"][turn],
        }


def turn_to_columns(entries: dict | list[dict], names: Iterable[str]) -> dict[str, list]:
    """Return a list of entries as lists of their fields; versions of the hub's library write both.

    names: the fields.
    """
    if isinstance(entries, dict):
        return entries
    return {name: [entry[name] for entry in entries] for name in names}


def read_question(row: dict, placeholder: dict[str, str]) -> dict | None:
    """Return a question with its answers in SQuAD's form.

    placeholder: word of the question → the field whose text stands in its place. Returns None where
    the question has answers and its context holds none of them.
    """
    row = dict(row)
    for word, field in placeholder.items():
        row["question"] = row["question"].replace(word, row[field])
    if "text" in row:
        texts, row["context"] = parse_marked_text(row.pop("text"))
        row["answers"] = find_texts(row["context"], texts)
    elif "detected_answers" in row:
        detected = turn_to_columns(row.pop("detected_answers"), ("text", "char_spans"))
        texts = detected["text"]
        row["answers"] = read_spans(row.get("context") or "", detected)
    elif isinstance(row.get("answers"), list):
        texts = row["answers"]
        row["answers"] = find_texts(row.get("context") or "", texts)
    else:
        return row
    return None if texts and not row["answers"]["text"] else row


def parse_marked_text(text: str) -> tuple[list[str], str]:
    """Return the answers, one, and the context of a text "<answer> … <context> …"."""
    answer, _, context = text.removeprefix("<answer>").partition("<context>")
    return [answer.strip()], context.strip()


def find_texts(context: str, texts: list[str]) -> dict:
    """Return answers without offsets in SQuAD's form: at every place that holds them.

    The case of letters plays no part.
    """
    found = []
    starts = []
    for text in texts:
        for start, end in find_places(text, context, ignore_case=True):
            found.append(context[start:end])
            starts.append(start)
    return {"text": found, "answer_start": starts}


def read_spans(context: str, detected: dict) -> dict:
    """Return the answers of MRQA in SQuAD's form.

    detected: `text`, and `char_spans` with the first and the last character of each place that
    holds it. A span that holds other letters than its text is left out.
    """
    found = []
    starts = []
    for text, spans in zip(detected["text"], detected["char_spans"], strict=True):
        columns = turn_to_columns(spans, ("start", "end"))
        for start, last in zip(columns["start"], columns["end"], strict=True):
            held = context[start : last + 1]
            if normalise_text(held) == normalise_text(text):
                found.append(held)
                starts.append(start)
    return {"text": found, "answer_start": starts}
