"""Question answering data: splits, mixtures, disjointness (rows come from corpora.py or sources.py).

Validation is carved from training by whole units; test sets are fixed. No training row shares its normalised
(question, context) with a held-out one: such copies are dropped and counted, and where a run is tested on further sets, refused.
"""

import hashlib
import random
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from qa_lib.data import corpora
from qa_lib.data.sources import known_files, read_hub, read_rows
from qa_lib.settings import params
from qa_lib.settings.hub import resolve_revision, sha256
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec, canonical


@dataclass
class Splits:
    """The rows of one dataset, and what was left out on the way."""

    train: list[dict]
    validation: list[dict]
    test: list[dict]
    counts: Counter = field(default_factory=Counter)


@cache
def normalise_text(text: str) -> str:
    """Case-folded letters and digits only: what two copies of a text have in common."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def row_key(row: dict) -> tuple[str, str]:
    return normalise_text(row["question"]), normalise_text(row["context"])


def fingerprint(name: str, source: str, folder: str | None) -> str:
    """Identity of a dataset: its definition (less what testing alone reads) and its content. A file listed in
    DATA.md is known by the sha256 there, so that a machine without the data can look its records up."""
    d = find_dataset(name, source, folder)
    if d.pool:
        content = [fingerprint(n, source, folder) for n in d.pool]
    elif source == "embedded":
        content = [corpora.VERSION]
    elif source == "hub":
        content = [resolve_revision(s.split(":")[0]) for s in d.train + d.test]
    else:
        content = []
        for file in d.train + d.test + d.apart_from:
            path = Path(folder or "") / file
            if file in known_files():
                content.append(known_files()[file][1])
            elif path.exists():
                content.append(sha256(path.resolve()))
            else:
                raise UserError(
                    f"{path} does not exist; DATA= names the folder that holds it, DATA.md where to get it"
                )
    # of files anywhere: their content is their identity
    names = {"train", "test"} if source == "own" else set()
    kept = d.model_dump(
        exclude={"test_rows", "cluster", "average", "seen_by"} | names, exclude_defaults=True
    )
    return hashlib.sha256(canonical([kept, content]).encode()).hexdigest()


def find_dataset(name: str, source: str, folder: str | None = None) -> Dataset:
    known = params.read_datasets(source, folder if source == "own" else None)
    if name not in known:
        raise UserError(
            f"'{name}' is no {source} dataset; params/datasets.yaml has {', '.join(known)}"
            + "; name its repository there, or use PROFILE=real DATA=folder" * (source == "hub")
        )
    return known[name]


@cache
def load_splits(
    name: str, source: str, folder: str | None = None, bad_rows: str = "stop"
) -> Splits:
    """Train, validation and test rows of a dataset; validation and a carved test hold whole units."""
    d, counts = find_dataset(name, source, folder), Counter()
    if d.pool:
        return Splits(
            [],
            [],
            [r for n in d.pool for r in load_splits(n, source, folder, bad_rows).test],
            counts,
        )
    if source == "folder" and not folder:
        raise UserError(
            "profile real reads real datasets from a folder; name it with DATA=path/to/data (see DATA.md)"
        )
    return split_rows(d, *read_parts(name, source, folder, bad_rows, counts), counts)


def read_parts(
    name: str, source: str, folder: str | None, bad_rows: str, counts: Counter
) -> tuple[list[dict], list[dict], list[dict]]:
    """The rows of a dataset's training sources, its test sources, and those it stays apart from."""
    d = find_dataset(name, source, folder)
    label = d.part_of or name

    def rows(sources: list[str]) -> list[dict]:
        if source == "embedded":
            return [{**r, "domain": label} for s in sources for r in corpora.qa(s, d.rows)]
        if source == "hub":
            return [r for s in sources for r in read_hub(s, label, counts)]
        for s in sources:
            path = Path(folder) / s
            if (
                path.exists()
                and s in known_files()
                and sha256(path.resolve()) != known_files()[s][1]
            ):
                raise UserError(
                    f"{path} is not the file DATA.md lists (its sha256 differs); fetch that file, or give "
                    "your own data another name"
                )
        found = []
        for s in sources:
            found += read_rows(Path(folder) / s, label, bad_rows, counts, d.leave_out)
        return found

    return rows(d.train), rows(d.test), rows(d.apart_from)


def split_rows(
    d: Dataset, pool: list[dict], test: list[dict], apart: list[dict], counts: Counter
) -> Splits:
    """Splits of the rows that `read_parts` gives, and in `counts` what was left out."""
    units = sorted({normalise_text(r[d.unit]) for r in pool})
    random.Random(d.split_seed).shuffle(units)
    if d.test:
        held = set(_until(units, pool, d.unit, d.validation_rows or 0))
        validation = [r for r in pool if normalise_text(r[d.unit]) in held]
        train = [r for r in pool if normalise_text(r[d.unit]) not in held]
    else:
        kept = set(_until(units, pool, d.unit, d.train_rows))
        others = units[len(kept) :]
        cut = round(len(others) * d.validation_share)
        held, rest = set(others[:cut]), set(others[cut:])
        train = [r for r in pool if normalise_text(r[d.unit]) in kept]
        validation = [r for r in pool if normalise_text(r[d.unit]) in held]
        test = [r for r in pool if normalise_text(r[d.unit]) in rest]
    for key, value in d.leave_out.items():
        counts[f"{key}={value} left out of training"] = sum(r.get(key) == value for r in train)
        train, validation = (
            [r for r in part if r.get(key) != value] for part in (train, validation)
        )
    if d.scored == "validation":
        validation, test = [], validation
    if d.apart_from:
        others = {normalise_text(r["context"]) for r in apart}
        clean = [r for r in train if normalise_text(r["context"]) not in others]
        counts["contexts of other test sets dropped"], train = len(train) - len(clean), clean
    taken = {row_key(r) for r in test}
    clean = [r for r in validation if row_key(r) not in taken]
    taken |= {row_key(r) for r in clean}
    kept_train = [r for r in train if row_key(r) not in taken]
    counts["copies of held-out rows dropped"] = (
        len(train) - len(kept_train) + len(validation) - len(clean)
    )
    if d.test_rows:
        contexts = sorted({normalise_text(r["context"]) for r in test})
        random.Random(d.split_seed).shuffle(contexts)
        chosen = set(_until(contexts, test, "context", d.test_rows))
        test = [r for r in test if normalise_text(r["context"]) in chosen]
    return Splits(kept_train, clean, test, counts)


def _until(units: list[str], rows: list[dict], unit: str, n: int) -> list[str]:
    """The first units that together hold at least n rows."""
    sizes, taken, total = Counter(normalise_text(r[unit]) for r in rows), [], 0
    for u in units:
        if total >= n:
            break
        taken.append(u)
        total += sizes[u]
    return taken


def draw_mixture(spec: Spec) -> tuple[list[dict], list[dict], Counter]:
    """Training rows of a run, domain after domain, its validation rows in the same proportions, and counts.

    The sample is the start of one permutation per (seed, place of the domain): mixtures of one seed share what they can.
    Raises UserError where a set has fewer rows than the mixture needs, or a copy of a row of another test set of the run.
    """
    parts = [load_splits(n, spec.source, spec.folder, spec.bad_rows) for n in spec.domains]
    held = {row_key(r) for p in parts for r in p.test + p.validation}
    tested = {row_key(r): name for name, (_, rows) in load_test_sets(spec).items() for r in rows}
    train, validation, counts = [], [], Counter()
    places = spec.places or range(len(parts))
    for i, name, part, need in zip(places, spec.domains, parts, spec.rows, strict=True):
        rows = [r for r in part.train if row_key(r) not in held]
        counts += part.counts + Counter(
            {"copies of other sets' rows dropped": len(part.train) - len(rows)}
        )
        if copies := [tested[row_key(r)] for r in rows if row_key(r) in tested]:
            raise UserError(
                f"{len(copies)} training rows of {name} are test rows of {copies[0]}; name that set's file in "
                f"apart_from of {name} in params/datasets.yaml"
            )
        if len(rows) < need:
            raise UserError(
                f"the mixture needs {need} training rows of {name}, which has {len(rows)}: {need - len(rows)} "
                "short; lower train_rows or change ratios"
            )
        train += random.Random(f"{spec.seed}/{i}").sample(rows, len(rows))[:need]
        share = round(spec.validation_rows * need / sum(spec.rows))
        validation += random.Random(f"validation/{i}").sample(
            part.validation, len(part.validation)
        )[:share]
    if spec.validation_rows and not validation:
        raise UserError(
            f"none of the {spec.validation_rows} validation rows falls to {', '.join(spec.domains)}; raise "
            "validation_rows"
        )
    return train, validation, counts


def load_test_sets(spec: Spec) -> dict[str, tuple[Dataset, list[dict]]]:
    """The fixed test sets of a run: name → (definition, rows)."""
    return {
        n: (
            find_dataset(n, spec.source, spec.folder),
            load_splits(n, spec.source, spec.folder, spec.bad_rows).test,
        )
        for n in spec.tests
    }
