"""Splits of datasets, training mixtures, and their disjointness.

The rows come from sources.py or corpora.py. Validation is carved from training by whole units; test
sets are fixed. No training row shares its normalised (question, context) with a held-out row of its
mixture. Such copies are dropped and counted. A training row that is a copy of a row of a further
test set of the run is refused.
"""

import hashlib
import random
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from qa_lib.data import corpora
from qa_lib.data.sources import known_files, read_hub, read_rows
from qa_lib.settings import params
from qa_lib.settings.hub import resolve_revision, sha256
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec, canonical
from qa_lib.tasks import get_task


@dataclass
class Splits:
    """The rows of one dataset, and counts of the rows that were left out."""

    train: list[dict]
    validation: list[dict]
    test: list[dict]
    counts: Counter = field(default_factory=Counter)


@cache
def normalise_text(text: str) -> str:
    """Return the case-folded letters and digits of a text, the same for all copies of it."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def row_key(row: dict) -> tuple[str, str]:
    """Return the normalised (question, context) of a row, the same for all copies of it."""
    return normalise_text(row["question"]), normalise_text(row["context"])


def held_out_keys(parts: list[Splits]) -> set[tuple[str, str]]:
    """Return the keys of all test and validation rows of several datasets."""
    keys = set()
    for part in parts:
        keys |= {row_key(row) for row in part.test + part.validation}
    return keys


def fingerprint(name: str, source: str, folder: str | None) -> str:
    """Return the identity of a dataset: the sha256 of its definition and its content.

    The definition is taken without the fields that testing alone reads.
    """
    d = find_dataset(name, source, folder)
    without = {"test_rows", "cluster", "average", "seen_by"}
    if source == "own":  # files anywhere: their content is their identity
        without |= {"train", "test"}
    definition = d.model_dump(exclude=without, exclude_defaults=True)
    content = identify_content(d, source, folder)
    return hashlib.sha256(canonical([definition, content]).encode()).hexdigest()


def identify_content(d: Dataset, source: str, folder: str | None) -> list[str]:
    """Return what identifies the content of a dataset, a text for each part of it.

    A file that DATA.md lists is known by the sha256 there, so that a machine without the data can
    look its records up. Raises UserError where another file is missing.
    """
    if d.pool:
        return [fingerprint(name, source, folder) for name in d.pool]
    if source == "embedded":
        return [corpora.VERSION]
    if source == "hub":
        return [resolve_revision(place.split(":")[0]) for place in d.train + d.test]
    content = []
    for file in d.train + d.test + d.apart_from:
        path = Path(folder or "") / file
        if file in known_files():
            _, listed_sha = known_files()[file]
            content.append(listed_sha)
        elif path.exists():
            content.append(sha256(path.resolve()))
        else:
            raise UserError(
                f"{path} does not exist; DATA= names the folder that holds it, "
                "DATA.md where to get it"
            )
    return content


def find_dataset(name: str, source: str, folder: str | None = None) -> Dataset:
    """Return the definition of a dataset. Raises UserError where there is none of that name."""
    known = params.read_datasets(source, folder if source == "own" else None)
    if name not in known:
        cure = ""
        if source == "hub":
            cure = "; name its repository there, or use PROFILE=real DATA=folder"
        raise UserError(
            f"'{name}' is no {source} dataset; params/datasets.yaml has {', '.join(known)}{cure}"
        )
    return known[name]


@cache
def load_splits(
    name: str, source: str, folder: str | None = None, bad_rows: str = "stop"
) -> Splits:
    """Return train, validation and test rows of a dataset.

    Validation and a carved test set hold whole units. bad_rows: what becomes of a row that cannot
    be used, as in sources.read_rows.
    """
    d = find_dataset(name, source, folder)
    counts = Counter()
    if d.pool:
        test = []
        for member in d.pool:
            test += load_splits(member, source, folder, bad_rows).test
        return Splits([], [], test, counts)
    if source == "folder" and not folder:
        raise UserError(
            "profile real reads real datasets from a folder; name it with DATA=path/to/data "
            "(see DATA.md)"
        )
    return split_rows(d, *read_parts(name, source, folder, bad_rows, counts), counts)


def read_parts(
    name: str, source: str, folder: str | None, bad_rows: str, counts: Counter
) -> tuple[list[dict], list[dict], list[dict]]:
    """Return the rows of a dataset's training sources, of its test sources, and of `apart_from`.

    Rows that cannot be used are counted in `counts`.
    """
    d = find_dataset(name, source, folder)
    label = d.part_of or name

    def read(places: list[str]) -> list[dict]:
        rows = []
        if source == "embedded":
            for register in places:
                rows += [{**row, "domain": label} for row in corpora.qa(register, d.rows)]
        elif source == "hub":
            for place in places:
                rows += read_hub(place, label, counts)
        else:
            for file in places:
                check_listed_file(folder, file)
            for file in places:
                rows += read_rows(Path(folder) / file, label, bad_rows, counts, d.leave_out)
        return rows

    return read(d.train), read(d.test), read(d.apart_from)


def check_listed_file(folder: str, file: str):
    """Raise UserError for a file that has a name listed in DATA.md, and other content."""
    path = Path(folder) / file
    if not path.exists() or file not in known_files():
        return
    _, listed_sha = known_files()[file]
    if sha256(path.resolve()) != listed_sha:
        raise UserError(
            f"{path} is not the file DATA.md lists (its sha256 differs); fetch that file, or give "
            "your own data another name"
        )


def split_rows(
    d: Dataset, pool: list[dict], test: list[dict], apart: list[dict], counts: Counter
) -> Splits:
    """Split the rows of a dataset, and count in `counts` those that are left out.

    pool: rows of the training sources; test: of the test sources; apart: rows whose contexts may
    not train (read_parts).
    """
    train, validation, test = carve_units(d, pool, test)
    for key, value in d.leave_out.items():
        counts[f"{key}={value} left out of training"] = sum(r.get(key) == value for r in train)
        train = [row for row in train if row.get(key) != value]
        validation = [row for row in validation if row.get(key) != value]
    if d.scored == "validation":
        test = validation
        validation = []
    if d.apart_from:
        apart_contexts = {normalise_text(row["context"]) for row in apart}
        clean = [row for row in train if normalise_text(row["context"]) not in apart_contexts]
        counts["contexts of other test sets dropped"] = len(train) - len(clean)
        train = clean
    held = {row_key(row) for row in test}
    clean_validation = [row for row in validation if row_key(row) not in held]
    held |= {row_key(row) for row in clean_validation}
    clean_train = [row for row in train if row_key(row) not in held]
    dropped = len(train) - len(clean_train) + len(validation) - len(clean_validation)
    counts["copies of held-out rows dropped"] = dropped
    if d.test_rows:
        contexts = shuffle_units(test, "context", d.split_seed)
        n = count_units(contexts, test, "context", d.test_rows)
        test = select_units(test, "context", contexts[:n])
    return Splits(clean_train, clean_validation, test, counts)


def carve_units(
    d: Dataset, pool: list[dict], test: list[dict]
) -> tuple[list[dict], list[dict], list[dict]]:
    """Return train, validation and test rows; what is carved from the pool holds whole units.

    Without a test source the test rows are carved from the pool too.
    """
    units = shuffle_units(pool, d.unit, d.split_seed)
    if d.test:
        n = count_units(units, pool, d.unit, d.validation_rows or 0)
        train = select_units(pool, d.unit, units[n:])
        validation = select_units(pool, d.unit, units[:n])
        return train, validation, test
    n = count_units(units, pool, d.unit, d.train_rows)
    others = units[n:]
    cut = round(len(others) * d.validation_share)
    train = select_units(pool, d.unit, units[:n])
    validation = select_units(pool, d.unit, others[:cut])
    test = select_units(pool, d.unit, others[cut:])
    return train, validation, test


def shuffle_units(rows: list[dict], unit: str, seed: int) -> list[str]:
    """Return the units of rows (normalised titles, questions or contexts) in the seed's order."""
    units = sorted({normalise_text(row[unit]) for row in rows})
    random.Random(seed).shuffle(units)
    return units


def count_units(units: list[str], rows: list[dict], unit: str, n: int) -> int:
    """Return how many units it takes, from the first on, to hold at least n rows."""
    sizes = Counter(normalise_text(row[unit]) for row in rows)
    total = 0
    for count, name in enumerate(units):
        if total >= n:
            return count
        total += sizes[name]
    return len(units)


def select_units(rows: list[dict], unit: str, units: list[str]) -> list[dict]:
    """Return the rows of some units."""
    chosen = set(units)
    return [row for row in rows if normalise_text(row[unit]) in chosen]


def draw_mixture(spec: Spec) -> tuple[list[dict], list[dict], Counter]:
    """Draw the training rows of a run, domain after domain, and its validation rows.

    Validation has the proportions of training. The third result counts the rows left out.
    The rows of a domain are the start of one permutation for each seed and place of the domain, so
    that mixtures of one seed share as many rows as they can.
    Raises UserError where a domain has fewer rows than the mixture needs, and where a row is a copy
    of a row of another test set of the run.
    """
    parts = [load_splits(name, spec.source, spec.folder, spec.bad_rows) for name in spec.domains]
    held = held_out_keys(parts)
    tested = {}  # key of a test row → name of its set
    for name, (_, rows) in load_test_sets(spec).items():
        tested |= {row_key(row): name for row in rows}
    train = []
    validation = []
    counts = Counter()
    places = spec.places or range(len(parts))
    for place, name, part, need in zip(places, spec.domains, parts, spec.rows, strict=True):
        rows = [row for row in part.train if row_key(row) not in held]
        counts += part.counts
        counts += Counter({"copies of other sets' rows dropped": len(part.train) - len(rows)})
        copies = [tested[key] for key in map(row_key, rows) if key in tested]
        if copies:
            raise UserError(
                f"{len(copies)} training rows of {name} are test rows of {copies[0]}; name that "
                f"set's file in apart_from of {name} in params/datasets.yaml"
            )
        if len(rows) < need:
            raise UserError(
                f"the mixture needs {need} training rows of {name}, which has {len(rows)}: "
                f"{need - len(rows)} short; lower train_rows or change ratios"
            )
        train += permute_rows(rows, f"{spec.seed}/{place}")[:need]
        share = round(spec.validation_rows * need / sum(spec.rows))
        validation += permute_rows(part.validation, f"validation/{place}")[:share]
    if spec.validation_rows and not validation:
        raise UserError(
            f"none of the {spec.validation_rows} validation rows falls to "
            f"{', '.join(spec.domains)}; raise validation_rows"
        )
    return train, validation, counts


def permute_rows(rows: list[dict], seed: str) -> list[dict]:
    """Return rows in the order that a seed gives."""
    return random.Random(seed).sample(rows, len(rows))


def find_task(spec: Spec, dataset: str | None = None) -> Any:
    """Return the task of a run's dataset (qa_lib/tasks); by default that of all it trains on."""
    return get_task(find_dataset(dataset or spec.domains[0], spec.source, spec.folder).task)


def checkpoint_column(spec: Spec) -> str:
    """Return the column of a run's history by which its best checkpoint is chosen."""
    if spec.multitask:
        return f"{spec.multitask.judged_on}_mean"
    return f"validation_{find_task(spec).CHECKPOINT_SCORE}"


def trial_column(spec: Spec) -> str:
    """Return the column of a run's history by which it is chosen among trials."""
    if spec.multitask:
        return "validation_mean"
    return f"validation_{find_task(spec).TRIAL_SCORE}"


def load_test_sets(spec: Spec) -> dict[str, tuple[Dataset, list[dict]]]:
    """Return the fixed test sets of a run: name → (definition, rows)."""
    test_sets = {}
    for name in spec.tests:
        d = find_dataset(name, spec.source, spec.folder)
        rows = load_splits(name, spec.source, spec.folder, spec.bad_rows).test
        test_sets[name] = (d, rows)
    return test_sets
