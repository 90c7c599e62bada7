"""Own data: two domains of a user's, from the command line (make own), checked before anything is trained.

    python -m qa_lib own NAME TRAIN:TEST TRAIN:TEST [-p KEY=VALUE]     writes own/NAME.yaml beside the runs

The file defines two datasets, NAME-a and NAME-b unless the parameter `domains` names them, as params/datasets.yaml does those of
the study; `--profile own --data FILE` reads it. A file's content is its identity, not its place: moved data find their runs again.
"""

import os
import re
from collections import Counter
from pathlib import Path

import yaml

from qa_lib.data import selection
from qa_lib.reports import exbert
from qa_lib.settings import hub
from qa_lib.settings.params import UserError
from qa_lib.store import runs

NAME, LETTERS = (
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}"),
    "letters, digits, - and _, at most 40 of them",
)
FEWEST = 10  # training rows of a mixture below which nothing is proposed
USAGE = "make own NAME=mine DOMAIN_A=train.jsonl:test.jsonl DOMAIN_B=train.jsonl:test.jsonl"


def find_files(option: str, text: str) -> list[Path]:
    """The training and the test file that an option names. Raises UserError where it does not, or where one is missing."""
    parts = text.split(":")
    if len(parts) != 2 or not all(parts):
        raise UserError(
            f"{option}={text} does not name two files: write {option}=train.jsonl:test.jsonl, one colon between them"
        )
    found = [Path(os.path.expanduser(x)) for x in parts]
    if absent := [x for x in found if not x.is_file()]:
        raise UserError(
            f"{option}: {absent[0]} is {'a folder, not a file' if absent[0].exists() else 'not there'}; "
            f"write {option}=train.jsonl:test.jsonl, seen from {Path.cwd().name}/ or as whole paths"
        )
    return found


def write_definition(domains: dict[str, str], p: exbert.Parameters):
    """Write the definition of the two datasets.

    domains: option of the command line → its text. Raises UserError for a file that stands in two places: training rows would be
    test rows, or one domain both.
    """
    every = [(option, x) for option, text in domains.items() for x in find_files(option, text)]
    first: dict[str, tuple] = {}
    for (option, path), part in zip(every, ["training", "test"] * 2, strict=True):
        if (other := first.setdefault(hub.sha256(path.resolve()), (option, part))) != (
            option,
            part,
        ):
            raise UserError(
                f"{option}: {path} holds the same as the {other[1]} file of {other[0]}; training and test, and the "
                "two domains, need files of their own"
            )
    validation_rows = largest_share(p, p.validation_rows)
    paths = [str(x.resolve()) for _, x in every]
    # whole contexts go to validation: every row has one, not every row has a title
    found = {
        d: {
            "train": paths[2 * i : 2 * i + 1],
            "test": paths[2 * i + 1 : 2 * i + 2],
            "unit": "context",
            "validation_rows": validation_rows,
        }
        for i, d in enumerate(p.domains)
    }
    runs.write(Path(p.data), yaml.safe_dump(found, sort_keys=False))


def all_ratios(p: exbert.Parameters) -> set[float]:
    """Every mixture that a run may have."""
    return {*p.ratios, *p.control_ratios, p.centre}


def largest_share(p: exbert.Parameters, validation_rows: int) -> int:
    """Validation rows that a mixture takes of one domain at most."""
    return round(max(max(r, 1 - r) for r in all_ratios(p)) * validation_rows)


def needed_rows(p: exbert.Parameters, train_rows: int) -> list[int]:
    """Training rows that the mixtures take of each domain at most (exbert.plan)."""
    first = [round(train_rows * r) for r in all_ratios(p)]
    return [max(first), train_rows - min(first)]


def count_rows(parts: list[selection.Splits]) -> list[int]:
    """Training rows of each domain that no held-out row of either repeats."""
    held = {selection.row_key(r) for part in parts for r in part.test + part.validation}
    return [sum(selection.row_key(r) not in held for r in part.train) for part in parts]


def fitting_rows(p: exbert.Parameters, files: list[tuple]) -> tuple[int, int] | None:
    """The most train_rows, and validation_rows, that fit what the domains have; None where none do.

    files: of each domain what data.read_parts gives. Each candidate is split as a study would split
    it. train_rows is at most that of p, and validation takes a fifth of it at most.
    """
    validation_rows = max(p.validation_rows, 2)  # of one row a half may be none
    while validation_rows >= 2:
        parts = split_files(p, files, validation_rows)
        have = count_rows(parts)
        train_rows = min(p.train_rows, sum(have))
        while any(n > rows for n, rows in zip(needed_rows(p, train_rows), have, strict=True)):
            train_rows -= 1
        whole = all(part.validation and has_answers(part.train) for part in parts)
        if whole and train_rows >= max(FEWEST, 5 * validation_rows):
            return train_rows, validation_rows
        validation_rows = 3 * validation_rows // 4
    return None


def split_files(
    p: exbert.Parameters, files: list[tuple], validation_rows: int
) -> list[selection.Splits]:
    """Splits of the domains if the parameter validation_rows had this value."""
    parts = []
    for name, rows in zip(p.domains, files, strict=True):
        changed = {"validation_rows": largest_share(p, validation_rows)}
        d = selection.find_dataset(name, p.source, p.data).model_copy(update=changed)
        parts.append(selection.split_rows(d, *rows, Counter()))
    return parts


def has_answers(rows: list[dict]) -> bool:
    """Whether any of the rows has an answer."""
    return any(r["answers"]["text"] for r in rows)


def context_hint(rows: list[dict]) -> str:
    """Half a sentence where one context holds most of the training rows; else empty."""
    sizes = Counter(selection.normalise_text(r["context"]) for r in rows)
    most = max(sizes.values(), default=0)
    if 2 * most <= len(rows):
        return ""
    return (
        f"one context holds {most:,} of its {len(rows):,} training rows, and whole contexts go "
        "to validation"
    )


def refuse_shortage(p: exbert.Parameters, parts: list[selection.Splits]):
    """Raise UserError, with what helps, where a mixture needs more rows than a domain has."""
    have, need = count_rows(parts), needed_rows(p, p.train_rows)
    short = [i for i, rows in enumerate(have) if need[i] > rows]
    if not short:
        return
    files = [selection.read_parts(d, p.source, p.data, p.bad_rows, Counter()) for d in p.domains]
    fitting = fitting_rows(p, files)
    if fitting is None:  # the domain that has least left, whatever validation takes
        least = count_rows(split_files(p, files, 2))
        i = least.index(min(least))
        hint = context_hint(files[i][0])
        if hint:
            raise UserError(
                f"{p.domains[i]} cannot be split: {hint}, so that too few are left to "
                "train on; add rows of other contexts, or cut that context into "
                "several"
            )
        total = len(parts[i].train) + len(parts[i].validation)
        raise UserError(
            f"{p.domains[i]} has {total} training rows that no test row repeats: too "
            "few to train on; add rows"
        )
    i = short[0]
    held, hint = len(parts[i].validation), context_hint(files[i][0])
    why = f" ({hint})" if hint else ""
    raise UserError(
        f"{p.domains[i]} has {len(parts[i].train) + held} training rows; after {held} "
        f"for validation {have[i]} are left{why}, and the mixture needs {need[i]} of it"
        f': what fits is PARAMS="train_rows={fitting[0]} validation_rows={fitting[1]}"'
    )


def check_rows(p: exbert.Parameters):
    """Raises UserError where a mixture lacks rows, with what would fit them all, or where a test set lacks contexts.

    The trials use one mixture only: without this the others would be missed after hours.
    """
    parts = [selection.load_splits(d, p.source, p.data, p.bad_rows) for d in p.domains]
    for d, part in zip(p.domains, parts, strict=True):
        for kind, rows in {"train": part.train, "test": part.test}.items():
            if rows and not has_answers(rows):
                raise UserError(
                    f"no row of the {kind} file of {d} has an answer; a row without "
                    "one is a question its text leaves open: add rows with answers"
                )
        if len({r["id"] for r in part.test}) < len(part.test):
            raise UserError(
                f"rows of the test file of {d} share an id; give each an id of its own, or none of them any"
            )
        if len({selection.normalise_text(r["context"]) for r in part.test}) < 2:
            raise UserError(
                f"the test file of {d} has {len(part.test)} rows and not two different contexts: nothing would be "
                "known of others; test on rows of several contexts"
            )
    refuse_shortage(p, parts)  # last: what it proposes is then all that is amiss


def check_name(name: str):
    """Raise UserError for a name that own data cannot have."""
    if not NAME.fullmatch(name):
        raise UserError(f"NAME={name}: a name is {LETTERS}: {USAGE}")


def check_domains(p: exbert.Parameters):
    """Raise UserError for a domain's name that a path or a table could not hold."""
    for name in p.domains:
        if not NAME.fullmatch(name):
            raise UserError(f"PARAMS: domains: {name!r} is no name; a name is {LETTERS}")
