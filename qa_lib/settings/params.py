"""Values of parameters: read from YAML, validated, and explained in one sentence if wrong."""

import copy
import datetime
import difflib
import math
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qa_lib.settings.parameters import Dataset, Strict

ROOT = Path(__file__).resolve().parent.parent.parent
# Fields of a dataset's definition that one source has alone.
OF_SOURCE = {"rows": "embedded", "only": "hub", "placeholder": "hub", "unlabelled": "hub"}
# Fields of a definition that say which rows of a dataset are its test rows.
SPLIT = ("train", "test", "train_rows", "validation_share", "validation_rows", "split_seed", "unit")
PROFILES = ("quick", "real", "paper", "own")
SIZES = ("small", "full")
STALE = ("train", "keep")
LISTED = 8  # files of a folder that an error names
# What to do about a data file that is missing, by the source of its dataset.
FOR_MISSING_FILE = {
    "folder": "DATA= names the folder that holds it, DATA.md where to get it",
    "own": "make own NAME=… DOMAIN_A=… DOMAIN_B=… takes it from where it is now",
}
SCALAR = (str, int, float, type(None))


class UserError(Exception):
    """A user's mistake, told in one sentence.

    Command lines exit with 2 and this sentence, and notebooks show it alone.
    """

    def _render_traceback_(self):
        """Return what IPython shows instead of a traceback."""
        return [f"UserError: {self}"]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return half a sentence with the known name that is meant perhaps; "" where none is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def describe_folder(path: Path) -> str:
    """Return what there is where a file is missing, and which name is meant perhaps.

    path: of the missing file. Where its folder is missing too, it is the nearest one there is.
    """
    missing = path.absolute()
    while not os.path.isdir(missing.parent):  # unlike Path.is_dir, of a name that is too long too
        missing = missing.parent
    folder = missing.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as e:
        return f"the folder {folder} cannot be read ({e.strerror})"
    if not names:
        return f"the folder {folder} is empty"
    hint = suggest(missing.name, names)
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return f"the folder {folder} holds {', '.join(names[:LISTED])}{more}{hint}"


def shorten_path(path: Path) -> Path:
    """Return a path as messages show it: from the repository's root, where it is inside."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def read_yaml(path: Path) -> tuple[dict, dict[str, int]]:
    """Return a YAML mapping, and the lines of its keys as `parse_yaml` has them.

    Raises UserError where the file cannot be read or holds no mapping with keys of text.
    """
    shown = shorten_path(path)
    try:
        text = path.read_text(encoding="utf-8")
        value, lines = parse_yaml(text)
    except FileNotFoundError:
        raise UserError(
            f"{shown} does not exist, and the study needs it; git restore {shown} brings it back"
        ) from None
    except OSError as e:
        raise UserError(f"{shown} cannot be read ({e.strerror}); name a YAML file") from None
    # ValueError: bytes that are no text, no such date; AttributeError: a !!timestamp that is none
    except (yaml.YAMLError, ValueError, AttributeError) as e:
        raise UserError(
            f"{shown} is not valid YAML: {' '.join(str(e).split())}; mend it there"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{shown} holds no mapping; write a line key: value for each key")
    for key in value:
        if not isinstance(key, str):
            raise UserError(
                f"{shown}: the key {show_value(key)} is not text; write it in quotes, "
                "or leave it out"
            )
    return copy.deepcopy(value), lines


@cache
def parse_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """Return what a YAML text holds, and the line of each of its keys on two levels.

    A key of the second level stands behind the one above it: "folder: squad".

    Cached, since a page asks for the same claims dozens of times. Raises YAMLError where it is no
    YAML, and ValueError for a date that does not exist and for a key that a mapping has twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        refuse_repeated_keys(node)
        value = loader.construct_document(node) if node else {}
    finally:
        loader.dispose()
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    lines = {}
    for key, below in entries:
        lines[key.value] = key.start_mark.line + 1
        for inner, _ in below.value if isinstance(below, yaml.MappingNode) else []:
            lines[f"{key.value}: {inner.value}"] = inner.start_mark.line + 1
    return value or {}, lines


def refuse_repeated_keys(root: yaml.Node | None):
    """Raise ValueError where a mapping of a YAML text has a key twice: the last would count alone.

    root: the whole text, before mappings are merged into others (<<), as several may be.
    """
    nodes = [root]
    visited = set()  # an alias is the node that it names, which may hold the alias
    while nodes:
        node = nodes.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        if not isinstance(node, yaml.MappingNode):
            continue
        lines = {}
        for key, value in node.value:
            nodes.append(value)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            name = (key.tag, str(key.value))
            if name in lines:
                first = lines[name]
                where = f"line {line}" if line == first else f"lines {first} and {line}"
                raise ValueError(
                    f"the key {key.value} stands twice, in {where}, and one alone would count"
                )
            lines[name] = line


# What to write instead of a value that pydantic refuses, by the type of its error.
ASKED = {
    "greater_than": "is too small; write a number greater than {gt}",
    "greater_than_equal": "is too small; write a number greater than or equal to {ge}",
    "less_than": "is too large; write a number less than {lt}",
    "less_than_equal": "is too large; write a number less than or equal to {le}",
    "finite_number": "is not a finite number; write one",
    "int_type": "is not a whole number; write one",
    "int_from_float": "is not a whole number; write one",
    "float_type": "is not a number; write one",
    "bool_type": "is neither true nor false; write one of them",
    "string_type": "is not a text; write one",
    "dict_type": "is no mapping; write {{name: value}}",
    "literal_error": "is not known; known: {expected}",
    "too_short": "has too few values; write at least {min_length}",
    "too_long": "has too many values; write at most {max_length}",
}


def validate(model: type[Strict], values: dict, where: dict[str, str]) -> Any:
    """Return `model(**values)`.

    where: the place in which each value was written, e.g. "params/moe.yaml, line 3: ".
    Raises UserError that names the first wrong value and its place.
    """
    try:
        return model(**values)
    except ValidationError as e:
        error = e.errors()[0]
    if not error["loc"]:
        # This is a rule over several fields: its sentence begins with the field to change.
        message = error["msg"].removeprefix("Value error, ")
        raise UserError(f"{where.get(message.split(':')[0], '')}{message}")
    place = where.get(str(error["loc"][0]), "")
    raise UserError(place + explain_error(error, model, values, place))


def explain_error(error: dict, model: type[Strict], values: dict, place: str) -> str:
    """Return a sentence about an error of pydantic's: its parameter, what is wrong, what to write.

    error: of one parameter of `model(**values)`; place: where its value was written.
    """
    key = str(error["loc"][0])
    kind = error["type"]
    value = error["input"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, 1)
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(model.model_fields)
        if "notebook" in place:
            hint += "; a name of your own begins with _"
        return f"{key} is not a parameter; {hint}"
    if kind == "missing":
        return f"{key} is missing; give it a value"
    if kind in ("float_type", "finite_number"):
        return f"{key}: {describe_number(value, whole=False)}"
    if kind in ("int_type", "int_from_float"):
        return f"{key}: {describe_number(value, whole=True)}"
    if kind == "list_type" and len(error["loc"]) > 1:
        inner = error["loc"][-1]
        shown = "…" if value is None else value
        return f"{key}: {inner} has {show_value(value)}; write a list, {{{inner}: [{shown}]}}"
    if kind == "list_type" and value is None:
        return f"{key} has no value; write a list, {key}=[…]"
    if kind == "list_type":
        sign = ": " if ".yaml" in place else "="
        return f"{key}: {ask_for_list(model, values, key, sign)}"
    if kind in ASKED:
        return f"{key}: {ask_for_value(error)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {repr(value)[:60]}: {message[0].lower() + message[1:]}"


def describe_number(value: Any, whole: bool) -> str:
    """Return what is wrong with a value in place of a number, and what to write instead.

    whole: whether a whole number is wanted.
    """
    wanted = "a whole number" if whole else "a number"
    if value is None:
        return f"there is no value; write {wanted}"
    if isinstance(value, bool):
        return f"{str(value).lower()} is no number; write {wanted}"
    if isinstance(value, str) and "," in value:
        decimals = "" if whole else ", decimals behind a point"
        return f"'{value}' has a comma; write {wanted}{decimals} and nothing between thousands"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"{repr(value)[:60]} is no number; write {wanted}"
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        return f"{str(value)[:60]} is no finite number; write {wanted} that is finite"
    if whole and not number.is_integer():
        return f"{value} is not whole; write {wanted}"
    point = str(int(number)) if whole else repr(number)
    if "." not in point and not whole:
        point = point.replace("e", ".0e")
    if not isinstance(value, str):
        return f"{value} has a point and a whole number is wanted; write {point}"
    if isinstance(yaml.safe_load(value), str):
        return f"'{value}' is read as text, not as a number; write {point} (YAML wants a point)"
    return f"'{value}' is text, not a number; write {point}, without quotes"


def ask_for_list(model: type[Strict], values: dict, key: str, sign: str) -> str:
    """Return what to write where one value stands and a list is wanted.

    This is the value in brackets, unless the model would refuse that too. sign: what stands between
    a key and its value, ": " in YAML and "=" on a command line.
    """
    value = values[key]
    try:
        listed = yaml.safe_load(f"[{value}]") if isinstance(value, str) else [value]
    except yaml.YAMLError:
        listed = [value]
    errors = []
    try:
        model(**values | {key: listed})
    except ValidationError as e:
        errors = [error for error in e.errors() if error["loc"][:1] == (key,)]
    if errors and errors[0]["type"] in ASKED:
        return f"a list is wanted, as {key}{sign}[…], and {ask_for_value(errors[0])}"
    return f"{show_value(value)} is one value and a list is wanted; write {key}{sign}[{value}]"


def ask_for_value(error: dict) -> str:
    """Return what is wrong with a value and what to write instead.

    error: of pydantic's, of a type in ASKED.
    """
    limits = {}
    for name, limit in error.get("ctx", {}).items():
        whole = isinstance(limit, float) and limit.is_integer() and abs(limit) < 1e15
        limits[name] = int(limit) if whole else limit
    value = error["input"]
    shown = show_value(value)
    if error["type"] == "string_type" and isinstance(value, bool):
        return (
            f"{shown} is not read as text (YAML reads no and off as false, yes and on as true); "
            'write the word in quotes, as "no" or "yes"'
        )
    if error["type"] == "string_type" and isinstance(value, (int, float, datetime.date)):
        return f'{shown} is not read as text; write "{shown}", its quotes included'
    return f"{shown} {ASKED[error['type']].format(**limits)}"


def show_value(value) -> str:
    """Return a value as it is written in YAML, with text in quotes."""
    written = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return written[value]
    if isinstance(value, datetime.date):
        return value.isoformat()
    return repr(value)


def is_plain(value: Any) -> bool:
    """Return whether a value is a scalar or a list of scalars, as values of parameters are."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(element, SCALAR) for element in value)
    return isinstance(value, SCALAR)


def default_profile() -> str:
    """Return "paper" on a machine with a GPU, else "quick"."""
    import torch  # it loads slowly, and a named profile needs no look at the machine

    return "paper" if torch.cuda.is_available() else "quick"


@cache
def read_datasets(source: str, file: str | None = None) -> dict[str, Dataset]:
    """Return the datasets of a source by name.

    They stand in params/datasets.yaml; of source own, in `file`, which `make own` has written.
    """
    if source == "own":
        return read_own_datasets(file)
    values, lines = read_yaml(ROOT / "params" / "datasets.yaml")
    if source not in values:
        raise UserError(f"params/datasets.yaml has no line {source}: of the datasets; add it")
    cure = "write the fields of each dataset below its name, or leave it out"
    definitions = values[source]
    if not isinstance(definitions, dict):
        raise UserError(
            f"params/datasets.yaml, line {lines[source]}: {source}: there is no mapping of "
            f"datasets; {cure}"
        )
    places = {}
    for name in definitions:
        line = lines.get(f"{source}: {name}", lines[source])
        places[name] = f"params/datasets.yaml, line {line}: {source}: "
    datasets = _validate_datasets(definitions, places, cure)
    for name, d in datasets.items():
        for field, its_source in OF_SOURCE.items():
            if source != its_source and field in d.model_fields_set:
                raise UserError(
                    f"{places[name]}{name}: {field}: {its_source} datasets alone have it; leave it "
                    "out"
                )
        if source == "embedded" and d.rows is None and not d.pool:
            raise UserError(f"{places[name]}{name} has no rows; write there how many are generated")
    return datasets


def name_dataset(study, dataset: str) -> str:
    """Return a dataset's name as its authors write it, or its id where its definition has none.

    study: the parameters, whose source defines the dataset.
    """
    known = read_datasets(study.source, study.data if study.source == "own" else None)
    if dataset not in known:
        return dataset
    return known[dataset].display_name or dataset


def read_own_datasets(file: str) -> dict[str, Dataset]:
    """Return the datasets that a user's file defines. Raises UserError where it is not whole."""
    path = Path(file)
    command = f"make own NAME={path.stem} DOMAIN_A=… DOMAIN_B=…"
    if not os.path.exists(path):
        raise UserError(f"{file} does not exist; {command} writes it; {describe_folder(path)}")
    values, _ = read_yaml(path)
    places = dict.fromkeys(values, f"{file}: ")
    return _validate_datasets(values, places, f"{command} writes the file anew")


def _validate_datasets(definitions: dict, places: dict, cure: str) -> dict[str, Dataset]:
    """Return datasets by name from a mapping of YAML.

    places: name → its place, and cure, as an error says them.
    """
    datasets = {}
    for name, fields in definitions.items():
        place = places[name]
        if not isinstance(name, str):
            raise UserError(f"{place}the name {show_value(name)} is not text; write it in quotes")
        if not isinstance(fields, dict):
            raise UserError(f"{place}{name} holds no mapping; {cure}")
        for field in fields:
            if not isinstance(field, str):
                raise UserError(
                    f"{place}{name}: the field {show_value(field)} is not text; leave it out"
                )
        # An error may begin with a field that the definition lacks.
        where = dict.fromkeys([*Dataset.model_fields, *fields], f"{place}{name}: ")
        datasets[name] = validate(Dataset, fields, where)
    for name, dataset in datasets.items():
        place = places[name]
        if dataset.altered and dataset.part_of in datasets:
            check_same_split(name, dataset, datasets[dataset.part_of], place)
        for member in dataset.pool:
            if member in datasets and datasets[member].pool:
                raise UserError(
                    f"{place}{name}: pool: {member} has a pool itself; name the datasets in it"
                )
            if member in datasets and datasets[member].task != dataset.task:
                raise UserError(
                    f"{place}{name}: pool: {member} is of the task {datasets[member].task}, and "
                    f"{name} of {dataset.task}; a pool is of one task"
                )
    return datasets


def check_same_split(name: str, altered: Dataset, original: Dataset, place: str):
    """Raise UserError where an altered dataset has other test rows than the one it alters.

    They could be training rows of that one, and no text would tell, since theirs are altered.
    place: of an error, as it says it.
    """
    for field in SPLIT:
        if getattr(altered, field) != getattr(original, field):
            raise UserError(
                f"{place}{name}: {field}: it is not that of {altered.part_of}, whose test rows are "
                f"altered; write here what {altered.part_of} has there"
            )


def advise_unit(task: str) -> str:
    """Return what else helps where a dataset of a task has too few rows of a part, for an error.

    Questions are split by titles, and rows without one are one unit together.
    """
    if task != "span":
        return ""
    return ", or, where rows have one title or none, write unit: context in its definition"


def list_claimed_reports() -> list[str]:
    """Return the reports of the study, built or not: those whose claims are written down."""
    files = sorted((ROOT / "params" / "claims").glob("*.yaml"))
    return [file.stem for file in files if file.stem != "stances"]


def list_reports() -> list[str]:
    """Return the reports that are built: those that have parameters."""
    return [slug for slug in list_claimed_reports() if (ROOT / "params" / f"{slug}.yaml").exists()]


def check_report(slug: str) -> str:
    """Return the name of a report. Raises UserError where there is no such report."""
    known = list_reports()
    if slug not in known:
        raise UserError(f"'{slug}' is not a report of this study; known: {', '.join(known)}")
    return slug


def check_profile(profile: str) -> str:
    """Return a profile. Raises UserError where there is no such profile."""
    if profile not in PROFILES:
        raise UserError(f"PROFILE={profile} is not a profile; known: {', '.join(PROFILES)}")
    return profile


def check_size(size: str) -> str:
    """Return a size. Raises UserError where there is no such size."""
    if size not in SIZES:
        raise UserError(f"SIZE={size} is not a size; known: {', '.join(SIZES)}")
    return size


def check_stale(choice: str) -> str:
    """Return what to do with records that other code made. Raises UserError for another word."""
    if choice not in STALE:
        raise UserError(f"STALE={choice} is not known; known: {', '.join(STALE)}")
    return choice
