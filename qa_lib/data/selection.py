"""Splits of datasets, training mixtures, and their disjointness.

The rows come from sources.py, corpora.py or sentences.py. Validation is carved from training by
whole units; test sets are fixed. No training row is a copy of a held-out row of its mixture; what
makes two rows copies of each other, the task says. Such copies are dropped and counted. A training
row that is a copy of a row of a further test set of the run is refused. So is one that shares a
text with a test row of a dataset that the run holds out.
"""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from qa_lib.data import alter, corpora, sentences
from qa_lib.data.hub_tables import parse_place
from qa_lib.data.sources import (
    Entry,
    complete_sentences,
    known_files,
    read_hub_questions,
    read_hub_sentences,
    read_rows,
    read_sentences,
)
from qa_lib.settings import params
from qa_lib.settings.hub import digest_data_file, resolve_revision
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec, canonical
from qa_lib.tasks import get_task
from qa_lib.tasks.characters import normalise_text
from qa_lib.tasks.sentence import connect_texts


@dataclass
class Splits:
    """The rows of one dataset, counts of the rows that were left out, and what the rows are."""

    train: list[dict]
    validation: list[dict]
    test: list[dict]
    counts: Counter = field(default_factory=Counter)
    task: str = "span"
    # Keys of all validation rows, and of all test rows before they are sampled and altered: what no
    # run trains on may not depend on what testing alone reads.
    held_out: set[tuple[str, ...]] = field(default_factory=set)


def row_key(row: dict, task: str = "span") -> tuple[str, ...]:
    """Return the same key for all copies of a row. task: what the row is."""
    return get_task(task).copy_key(row)


def held_out_keys(parts: list[Splits]) -> set[tuple[str, ...]]:
    """Return the keys of all test and validation rows of several datasets."""
    keys = set()
    for part in parts:
        keys |= part.held_out
    return keys


# Fields of a dataset that a page alone reads, and the name of its head, which is the model's.
NOT_READ = {"display_name", "seen_by", "instead_of", "head"}
# Those that testing alone reads.
READ_IN_TESTS = {"test_rows", "cluster", "average", "altered"}


def fingerprint(name: str, source: str, folder: str | None, tested: bool = False) -> str:
    """Return the identity of a dataset: the sha256 of its definition and its content.

    The definition is taken without the fields that do not matter to what the dataset is used for.
    tested: it is that of a test set; else of what trains.
    """
    d = find_dataset(name, source, folder)
    without = NOT_READ if tested else NOT_READ | READ_IN_TESTS
    if source == "own":  # files anywhere: their content is their identity
        without = without | {"train", "test"}
    definition = d.model_dump(exclude=without, exclude_defaults=True)
    content = identify_content(d, source, folder, tested)
    return hashlib.sha256(canonical([definition, content]).encode()).hexdigest()


def fingerprint_test_sets(names: Iterable[str], source: str, folder: str | None) -> dict[str, str]:
    """Return test set → its identity. A set that cannot be read here is left out."""
    found = {}
    for name in names:
        try:
            found[name] = fingerprint(name, source, folder, True)
        except UserError:
            continue
    return found


def forget_data():
    """Forget what this process knows of datasets, so that their files are read again.

    A notebook's kernel may be older than an edit of its data.
    """
    for known in (
        params.read_datasets,
        digest_data_file,
        load_splits,
        list_part_texts,
        list_training_texts,
    ):
        known.cache_clear()


def check_unchanged(spec: Spec):
    """Raise UserError where a dataset of a run differs from what it was when the run was planned.

    A worker reads the files anew, and would train or score other rows than those of the run's hash.
    Files whose identity this process knows are not read again.
    """
    changed = []
    for name, then in zip(spec.domains, spec.fingerprints, strict=True):
        if fingerprint(name, spec.source, spec.folder) != then:
            changed.append(name)
    tested = fingerprint_test_sets(spec.test_fingerprints, spec.source, spec.folder)
    for name, today in tested.items():
        if today != spec.test_fingerprints[name]:
            changed.append(name)
    if changed:
        raise UserError(
            f"{spec.run}: {', '.join(dict.fromkeys(changed))} differs here from what the study "
            "planned (its files, its definition, or the pinned commit); start it again with the "
            "same on every machine"
        )


def identify_content(d: Dataset, source: str, folder: str | None, tested: bool) -> list[str]:
    """Return what identifies the content of a dataset, a text for each part of it.

    A file that DATA.md lists is known by the sha256 there, so that a machine without the data can
    look its records up. Raises UserError where another file is missing.
    """
    if d.pool:
        return [fingerprint(name, source, folder, tested) for name in d.pool]
    if source == "embedded":
        return [corpora.VERSION]  # of generated questions and sentences alike
    if source == "hub":
        return [resolve_revision(parse_place(place).repo) for place in d.list_sources()]
    content = []
    for file in d.list_sources():
        path = Path(folder or "") / file
        if file in known_files():
            _, listed_sha = known_files()[file]
            content.append(listed_sha)
        elif os.path.isfile(path):
            content.append(digest_data_file(path.resolve()))
        elif os.path.isdir(path):
            raise UserError(
                f"{path} is a folder, and a file is read; name a file in it, or make one of them"
            )
        else:
            raise UserError(
                f"{path} does not exist; {params.FOR_MISSING_FILE[source]}; "
                f"{params.describe_folder(path)}"
            )
    return content


def find_dataset(name: str, source: str, folder: str | None = None) -> Dataset:
    """Return the definition of a dataset. Raises UserError where there is none of that name."""
    known = params.read_datasets(source, folder if source == "own" else None)
    if name not in known:
        cure = ""
        if source == "hub":
            cure = "; name its repository there, or use PROFILE=real DATA=folder"
        if source == "embedded":
            cure = "; profile quick has generated text alone, real data is PROFILE=real or paper"
        raise UserError(
            f"'{name}' is no {source} dataset; "
            f"{folder if source == 'own' else 'params/datasets.yaml'} has {', '.join(known)}"
            f"{cure}{params.suggest(name, known)}"
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
        return Splits([], [], test, counts, d.task)
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
        if source in ("folder", "own"):
            for file in places:
                check_listed_file(folder, file)
        read_place = read_questions if d.task == "span" else read_labelled
        rows = []
        for number, place in enumerate(places, 1):
            # Rows without an id are named by the dataset and their number in a place. So the rows
            # of a further place have its number in front.
            name_of_rows = label if number == 1 else f"{label}-{number}"
            for row in read_place(place, d, name_of_rows, source, folder, bad_rows, counts):
                rows.append({**row, "domain": label})
        return rows

    return read(d.train), read(d.test), read(d.apart_from)


def read_questions(
    place: str,
    d: Dataset,
    label: str,
    source: str,
    folder: str | None,
    bad_rows: str,
    counts: Counter,
) -> list[dict]:
    """Return the rows of one place of a dataset of the task span. label: their domain."""
    if source == "embedded":
        return [{**row, "domain": label} for row in corpora.draw_questions(place, d.rows)]
    if source == "hub":
        return read_hub_questions(place, d, label, bad_rows, counts)
    return read_rows(Path(folder) / place, label, bad_rows, counts, d.leave_out)


def read_labelled(
    place: str,
    d: Dataset,
    label: str,
    source: str,
    folder: str | None,
    bad_rows: str,
    counts: Counter,
) -> list[dict]:
    """Return the rows of one place of a dataset of sentences. label: their domain."""
    if source == "embedded":
        drawn = sentences.draw_rows(place, d.rows)
        entries = [Entry(i, f"row {i}", row) for i, row in enumerate(drawn, 1)]
        return complete_sentences(place, entries, d, label, bad_rows, counts)
    if source == "hub":
        return read_hub_sentences(place, d, label, bad_rows, counts)
    return read_sentences(Path(folder) / place, d, label, bad_rows, counts)


def check_listed_file(folder: str, file: str):
    """Raise UserError for a file that has a name listed in DATA.md, and other content."""
    path = Path(folder) / file
    if not path.exists() or file not in known_files():
        return
    _, listed_sha = known_files()[file]
    if digest_data_file(path.resolve()) != listed_sha:
        raise UserError(
            f"{path} is not the file DATA.md lists (its sha256 differs); fetch that file, or give "
            "your own data another name"
        )


def split_rows(
    d: Dataset, pool: list[dict], test: list[dict], apart: list[dict], counts: Counter
) -> Splits:
    """Split the rows of a dataset, and count in `counts` those that are left out.

    pool: rows of the training sources; test: of the test sources; apart: rows whose contexts, or
    texts, may not train (read_parts).
    """
    task = get_task(d.task)
    if d.unit == "text" and not d.test:
        unique = drop_copies(pool, d.task)  # else a row of the test set could count twice
        counts["copies within the pool dropped"] = len(pool) - len(unique)
        pool = unique
    train, validation, test = carve_units(d, pool, test)
    for key, value in d.leave_out.items():
        # A definition writes numbers as text, too.
        kept = [row for row in train if str(row.get(key)) != value]
        counts[f"{key}={value} left out of training"] = len(train) - len(kept)
        train = kept
        validation = [row for row in validation if str(row.get(key)) != value]
    if d.scored == "validation":
        test = validation
        validation = []
    if d.apart_from:
        clean = keep_apart(train, apart, d)
        counts["contexts of other test sets dropped"] = len(train) - len(clean)
        train = clean
    held = {task.copy_key(row) for row in test}
    clean_validation = [row for row in validation if task.copy_key(row) not in held]
    held |= {task.copy_key(row) for row in clean_validation}
    clean_train = [row for row in train if task.copy_key(row) not in held]
    dropped = len(train) - len(clean_train) + len(validation) - len(clean_validation)
    counts["copies of held-out rows dropped"] = dropped
    if d.test_rows:
        names = name_units(test, task.SAMPLED_BY)
        units = shuffle_units(names, d.split_seed)
        n = count_units(units, names, d.test_rows)
        test = select_units(test, names, units[:n])
    if d.altered:
        test = alter.alter_rows(test, d.altered)
    return Splits(clean_train, clean_validation, test, counts, d.task, held)


def keep_apart(rows: list[dict], apart: list[dict], d: Dataset) -> list[dict]:
    """Return the rows that share no text with rows of other test sets, which are in `apart`.

    Where the definition says so, a row whose text is a part of one of theirs is left out, too.
    """
    task = get_task(d.task)
    others = set()
    for row in apart:
        others.update(task.list_texts(row))
    clean = [row for row in rows if others.isdisjoint(task.list_texts(row))]
    if not d.apart_within:
        return clean
    # One text a line, so that none runs over into the next.
    every = "\n".join(sorted(others))
    known = {}
    for row in clean:
        for text in task.list_texts(row):
            if text not in known:
                known[text] = text in every
    return [row for row in clean if not any(known[text] for text in task.list_texts(row))]


def drop_copies(rows: list[dict], task: str) -> list[dict]:
    """Return rows without those that are copies of an earlier row. task: what the rows are."""
    first = {}
    for row in rows:
        first.setdefault(row_key(row, task), row)
    return list(first.values())


def carve_units(
    d: Dataset, pool: list[dict], test: list[dict]
) -> tuple[list[dict], list[dict], list[dict]]:
    """Return train, validation and test rows; what is carved from the pool holds whole units.

    Without a test source the test rows are carved from the pool too.
    """
    names = name_units(pool, d.unit)
    units = shuffle_units(names, d.split_seed)
    if d.test:
        n = count_units(units, names, d.validation_rows or 0)
        train = select_units(pool, names, units[n:])
        validation = select_units(pool, names, units[:n])
        return train, validation, test
    n = count_units(units, names, d.train_rows)
    others = units[n:]
    cut = round(len(others) * d.validation_share)
    train = select_units(pool, names, units[:n])
    validation = select_units(pool, names, others[:cut])
    test = select_units(pool, names, others[cut:])
    return train, validation, test


def name_units(rows: list[dict], unit: str) -> list[str]:
    """Return the unit of each row: its normalised title, question or context.

    Of the unit text it is the group of all rows that texts connect (sentence.connect_texts).
    """
    if unit == "text":
        return connect_texts(rows)
    return [normalise_text(row[unit]) for row in rows]


def shuffle_units(names: list[str], seed: int) -> list[str]:
    """Return the units that rows have in the seed's order. names: the unit of each row."""
    units = sorted(set(names))
    random.Random(seed).shuffle(units)
    return units


def count_units(units: list[str], names: list[str], n: int) -> int:
    """Return how many units it takes, from the first on, to hold at least n rows.

    names: the unit of each row.
    """
    sizes = Counter(names)
    total = 0
    for count, unit in enumerate(units):
        if total >= n:
            return count
        total += sizes[unit]
    return len(units)


def select_units(rows: list[dict], names: list[str], units: list[str]) -> list[dict]:
    """Return the rows of some units. names: the unit of each row."""
    chosen = set(units)
    return [row for row, name in zip(rows, names, strict=True) if name in chosen]


def draw_mixture(spec: Spec) -> tuple[list[dict], list[dict], Counter]:
    """Draw the training rows of a run, domain after domain, and its validation rows.

    Validation has the proportions of training; of datasets in turn it has as many rows of each. The
    third result counts the rows left out.
    The rows of a domain are the start of one permutation for each seed and place of the domain, so
    that mixtures of one seed share as many rows as they can.
    Raises UserError where a domain has fewer rows than the mixture needs, where a row is a copy of
    a row of another test set of the run, and where it shares a text with a test row of `held_out`.
    """
    parts = [load_splits(name, spec.source, spec.folder, spec.bad_rows) for name in spec.domains]
    held = held_out_keys(parts)
    tested = {}  # key of a test row → name of its set
    for name, (d, rows) in load_test_sets(spec).items():
        tested |= {row_key(row, d.task): name for row in rows}
    train = []
    validation = []
    counts = Counter()
    places = spec.places or range(len(parts))
    for place, name, part, need in zip(places, spec.domains, parts, spec.rows, strict=True):
        rows = [row for row in part.train if row_key(row, part.task) not in held]
        counts += part.counts
        counts += Counter({"copies of other sets' rows dropped": len(part.train) - len(rows)})
        keys = [row_key(row, part.task) for row in rows]
        copies = [tested[key] for key in keys if key in tested]
        if copies:
            raise UserError(
                f"{len(copies)} training rows of {name} are test rows of {copies[0]}; name that "
                f"set's file in apart_from of {name} in params/datasets.yaml"
            )
        check_held_out(spec, name, part.task, rows)
        if len(rows) < need:
            raise UserError(
                f"a run needs {need} training rows of {name}, which has {len(rows)}: "
                f"{need - len(rows)} short, after {len(part.validation)} for validation by whole "
                f"{find_dataset(name, spec.source, spec.folder).unit}s, and "
                f"{part.counts.get('copies of held-out rows dropped', 0)} copies of held-out rows "
                "that are left out; ask for fewer rows of it"
                f"{params.advise_unit(part.task)}"
            )
        permuted = permute_rows(rows, f"{spec.seed}/{place}")
        if spec.imbalance:
            permuted = skew_classes(permuted, need, spec.imbalance.ratio, name)
        train += permuted[:need]
        part_of_rows = 1 / len(parts) if spec.multitask else need / sum(spec.rows)
        share = round(spec.validation_rows * part_of_rows)
        validation += permute_rows(part.validation, f"validation/{place}")[:share]
    if spec.validation_rows and not validation:
        for name in spec.domains:
            d = find_dataset(name, spec.source, spec.folder)
            if d.test and not d.validation_rows:
                raise UserError(
                    f"{name} has no rows for validation: where a definition names test files, "
                    "write validation_rows there too, how many training rows validate"
                )
        raise UserError(
            f"none of the {spec.validation_rows} validation rows falls to "
            f"{', '.join(spec.domains)}; raise validation_rows"
            f"{params.advise_unit(find_dataset(spec.domains[0], spec.source, spec.folder).task)}"
        )
    return train, validation, counts


def check_held_out(spec: Spec, name: str, task: str, rows: list[dict]):
    """Raise UserError where rows share a text with test rows of a dataset that a run holds out.

    name, task: of the dataset that the rows are of.
    """
    for held_out in spec.held_out:
        shared = find_shared_texts(
            rows, task, load_splits(held_out, spec.source, spec.folder, spec.bad_rows)
        )
        if shared:
            raise UserError(
                f"{len(shared)} training rows of {name} share a text with test rows of {held_out}, "
                f"which must stay unseen; name the test file of {held_out} in apart_from of {name} "
                "in params/datasets.yaml"
            )


def find_shared_texts(rows: list[dict], task: str, held_out: Splits) -> list[dict]:
    """Return the rows that share a text with a test row of a dataset. task: of the rows.

    A text is a context, or one of the two texts of a pair; the tasks may differ.
    """
    unseen = collect_texts(held_out.test, held_out.task)
    return [row for row in rows if not unseen.isdisjoint(get_task(task).list_texts(row))]


def check_teachers_rows(spec: Spec):
    """Raise UserError where a teacher was trained on a text that a run must not see.

    These are the texts of the run's validation rows, of its test rows, and of the test rows that it
    holds out. A teacher was trained on its own datasets and on those of all runs behind it.
    """
    place = (spec.source, spec.folder, spec.bad_rows)
    unseen = {}
    for name in [*spec.tests, *spec.held_out]:
        unseen[f"test rows of {name}"] = list_part_texts(name, "test", *place)
    if spec.validation_rows:
        for name in spec.domains:
            unseen[f"validation rows of {name}"] = list_part_texts(name, "validation", *place)
    for teacher in spec.teachers:
        for run in list_lineage(teacher):
            place = (run.source, run.folder, run.bad_rows)
            trained = list_training_texts(tuple(run.domains), *place)
            for rows, texts in unseen.items():
                if texts & trained:
                    raise UserError(
                        f"{teacher.run} cannot teach {spec.run}: {len(texts & trained)} texts that "
                        f"{run.run} was trained on are texts of {rows}, which must stay unseen; "
                        f"take other teachers, or keep the datasets of {run.run} apart from these "
                        "rows (apart_from in params/datasets.yaml)"
                    )


def list_lineage(spec: Spec) -> list[Spec]:
    """Return a run and all runs behind it: its parents, their parents, and so on."""
    lineage = [spec]
    for parent in spec.parents:
        lineage += list_lineage(parent)
    return lineage


@cache
def list_part_texts(
    name: str, part: str, source: str, folder: str | None, bad_rows: str
) -> frozenset[str]:
    """Return the texts of a dataset's validation or test rows. part: "validation" or "test"."""
    splits = load_splits(name, source, folder, bad_rows)
    return collect_texts(getattr(splits, part), splits.task)


@cache
def list_training_texts(
    domains: tuple[str, ...], source: str, folder: str | None, bad_rows: str
) -> frozenset[str]:
    """Return the texts of all rows that a run on these datasets may draw (draw_mixture)."""
    parts = [load_splits(name, source, folder, bad_rows) for name in domains]
    held = held_out_keys(parts)
    texts = frozenset()
    for part in parts:
        rows = [row for row in part.train if row_key(row, part.task) not in held]
        texts |= collect_texts(rows, part.task)
    return texts


def collect_texts(rows: list[dict], task: str) -> frozenset[str]:
    """Return the normalised texts of rows: contexts, or texts and second texts."""
    texts = set()
    for row in rows:
        texts.update(get_task(task).list_texts(row))
    return frozenset(texts)


def skew_classes(rows: list[dict], need: int, ratio: float, name: str) -> list[dict]:
    r"""Return `need` rows whose classes have unequal numbers, in the order of `rows`.

    Class k of C has a share proportional to $\rho^{-k/(C-1)}$: of the first class there are ρ rows
    for one of the last (Cui et al. 2019, arXiv 1901.05555). name: of the dataset. Raises UserError
    where a class has too few rows.
    """
    labels = sorted({row["label"] for row in rows})
    shares = [ratio ** (-k / max(1, len(labels) - 1)) for k in range(len(labels))]
    borders = [round(need * sum(shares[:k]) / sum(shares)) for k in range(len(labels) + 1)]
    left = {label: borders[k + 1] - borders[k] for k, label in enumerate(labels)}
    skewed = []
    for row in rows:
        if left[row["label"]]:
            left[row["label"]] -= 1
            skewed.append(row)
    for label, number in left.items():
        if number:
            raise UserError(
                f"{need} training rows of {name} at an imbalance of {ratio:g} need {number} more "
                f"of class {label} than it has; ask for fewer rows or a smaller imbalance"
            )
    return skewed


def permute_rows(rows: list[dict], seed: str) -> list[dict]:
    """Return rows in the order that a seed gives."""
    return random.Random(seed).sample(rows, len(rows))


def find_task(spec: Spec, dataset: str | None = None) -> Any:
    """Return the task of a run's dataset (qa_lib/tasks); by default that of all it trains on."""
    d = find_dataset(dataset or spec.domains[0], spec.source, spec.folder)
    return get_task(d.task, joined=spec.heads is not None and spec.heads.pairs == "joined")


def checkpoint_column(spec: Spec) -> str:
    """Return the column of a run's history by which its best checkpoint is chosen."""
    if spec.multitask:
        return f"{spec.multitask.judged_on}_mean"
    return f"validation_{find_task(spec).CHECKPOINT_SCORE}"


def trial_column(spec: Spec) -> str:
    """Return the column of a run's history by which it is chosen among trials."""
    if spec.multitask:
        return "validation_mean"
    return f"validation_{spec.trial_score or find_task(spec).TRIAL_SCORE}"


def load_test_sets(spec: Spec) -> dict[str, tuple[Dataset, list[dict]]]:
    """Return the fixed test sets of a run: name → (definition, rows).

    Raises UserError where a set has no rows, and where rows of it share an id, by which their
    answers are told apart.
    """
    test_sets = {}
    for name in spec.tests:
        d = find_dataset(name, spec.source, spec.folder)
        rows = load_splits(name, spec.source, spec.folder, spec.bad_rows).test
        if not rows:
            raise UserError(
                f"no rows are left for the test set {name}; lower train_rows or validation_share "
                f"in its definition, name its test files there in test{params.advise_unit(d.task)}"
            )
        ids = Counter(row["id"] for row in rows)
        shared = [id_ for id_, number in ids.items() if number > 1]
        if shared:
            raise UserError(
                f"{ids[shared[0]]:,} test rows of {name} have the id '{shared[0]}'; give each row "
                "an id of its own, or leave the field id out of all rows"
            )
        test_sets[name] = (d, rows)
    return test_sets
