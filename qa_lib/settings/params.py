"""Values of parameters: read from YAML files, validated, and what is wrong with them in one sentence."""

import datetime
import difflib
import math
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qa_lib.settings.parameters import Dataset, Strict

ROOT = Path(__file__).resolve().parent.parent.parent
PROFILES = ("quick", "real", "paper", "own")
SIZES = ("small", "full")


class UserError(Exception):
    """A user's mistake, told in one sentence; command lines exit 2 with it, notebooks show it alone."""

    def _render_traceback_(self):  # IPython's hook: no traceback for a mistake in a parameter
        return [f"UserError: {self}"]


def read_yaml(path: Path) -> tuple[dict, dict[str, int]]:
    """A YAML mapping and the line of each of its top-level keys."""
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text) or {}
    except FileNotFoundError:
        raise UserError(f"{shown} does not exist: this report has no such profile yet") from None
    except OSError as e:
        raise UserError(f"{shown} cannot be read ({e.strerror}); name a YAML file") from None
    except (
        yaml.YAMLError,
        ValueError,
    ) as e:  # of bytes that are no text, and of a date that is none
        raise UserError(f"{shown} is not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{shown} holds no mapping; write a line key: value for each key")
    for key in value:
        if not isinstance(key, str):
            raise UserError(
                f"{shown}: the key {show_value(key)} is not text; write it in quotes, or leave it out"
            )
    return value, {k.value: k.start_mark.line + 1 for k, _ in (node.value if node else [])}


# What is asked for where pydantic refuses a value, by the kind of its error.
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
    """`model(**values)`, or a UserError that names the first wrong value and where it was written."""
    try:
        return model(**values)
    except ValidationError as e:
        error = e.errors()[0]
    key = str(error["loc"][0]) if error["loc"] else ""
    place = where.get(key, "")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, 1)
        hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(model.model_fields)
        hint += "; a name of your own begins with _" * ("notebook" in place)
        raise UserError(f"{place}{key} is not a parameter; {hint}")
    if error["type"] == "missing":
        raise UserError(f"{place}{key} is missing; give it a value")
    value = error["input"]
    if error["type"] in ("float_type", "finite_number"):
        raise UserError(f"{place}{key}: {describe_number(value, whole=False)}")
    if error["type"] in ("int_type", "int_from_float"):
        raise UserError(f"{place}{key}: {describe_number(value, whole=True)}")
    if error["type"] == "list_type" and value is None:
        raise UserError(f"{place}{key} has no value; write a list, {key}=[…]")
    if error["type"] == "list_type":
        raise UserError(
            f"{place}{key}: {ask_for_list(model, values, key, ': ' if '.yaml' in place else '=')}"
        )
    if error["type"] in ASKED:
        raise UserError(f"{place}{key}: {ask_for_value(error)}")
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # a rule over several fields: its sentence begins with the one to change
        raise UserError(f"{where.get(message.split(':')[0], '')}{message}")
    raise UserError(f"{place}{key}: {repr(value)[:60]}: {message[0].lower() + message[1:]}")


def describe_number(value: Any, whole: bool) -> str:
    """What is wrong with a value that stands where a number must, and what to write instead."""
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
    """What to write where one value stands and a list is wanted: the value in brackets, if that would be taken."""
    value = values[key]
    try:
        listed = yaml.safe_load(f"[{value}]") if isinstance(value, str) else [value]
    except yaml.YAMLError:
        listed = [value]
    try:
        model(**values | {key: listed})
        others = []
    except ValidationError as e:
        others = [error for error in e.errors() if error["loc"][:1] == (key,)]
    if others and others[0]["type"] in ASKED:
        return f"a list is wanted, as {key}{sign}[…], and {ask_for_value(others[0])}"
    return f"{show_value(value)} is one value and a list is wanted; write {key}{sign}[{value}]"


def ask_for_value(error: dict) -> str:
    """What is wrong with a value and what would be taken, from an error of pydantic's of a kind in ASKED."""
    limits = {}
    for name, limit in error.get("ctx", {}).items():
        whole = isinstance(limit, float) and limit.is_integer() and abs(limit) < 1e15
        limits[name] = int(limit) if whole else limit
    value = error["input"]
    if error["type"] == "string_type" and isinstance(value, (int, float, datetime.date)):
        return f'{show_value(value)} is not read as text; write "{show_value(value)}", its quotes included'
    return f"{show_value(value)} {ASKED[error['type']].format(**limits)}"


def show_value(value) -> str:
    """A value as it is written in YAML, a text in quotes."""
    written = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return written[value]
    if isinstance(value, datetime.date):
        return value.isoformat()
    return repr(value)


def is_plain(value: Any) -> bool:
    """Is that a scalar, or a list of some, as a parameter is?"""
    plain = (str, int, float, type(None))
    if isinstance(value, list):
        return bool(value) and all(isinstance(element, plain) for element in value)
    return isinstance(value, plain)


def default_profile() -> str:
    import torch  # only where nothing was said does the choice look at the machine

    return "paper" if torch.cuda.is_available() else "quick"


@cache
def read_datasets(source: str, file: str | None = None) -> dict[str, Dataset]:
    """The datasets of a source, from params/datasets.yaml; of source own, from the file that `make own` wrote."""
    if source == "own":
        if not Path(file).exists():
            raise UserError(
                f"{file} does not exist; make own NAME={Path(file).stem} DOMAIN_A=… DOMAIN_B=… writes it"
            )
        known = {}
        for name, fields in read_yaml(Path(file))[0].items():
            if not isinstance(fields, dict):
                raise UserError(
                    f"{file}: {name} holds no mapping; make own NAME={Path(file).stem} DOMAIN_A=… DOMAIN_B=… writes "
                    "the file"
                )
            known[name] = validate(Dataset, fields, {k: f"{file}: {name}: " for k in fields})
        return known
    values, lines = read_yaml(ROOT / "params" / "datasets.yaml")
    place = f"params/datasets.yaml, line {lines[source]}: {source}: "
    return {
        name: validate(Dataset, fields, {k: f"{place}{name}: " for k in fields})
        for name, fields in values[source].items()
    }


def list_claimed_reports() -> list[str]:
    """Return the reports of the study, built or not: those whose claims are written down."""
    files = sorted((ROOT / "params" / "claims").glob("*.yaml"))
    return [file.stem for file in files if file.stem != "stances"]


def list_reports() -> list[str]:
    """Return the reports that are built: those that have parameters."""
    return [slug for slug in list_claimed_reports() if (ROOT / "params" / f"{slug}.yaml").exists()]


def check_report(slug: str) -> str:
    known = list_reports()
    if slug not in known:
        raise UserError(f"'{slug}' is not a report of this study; known: {', '.join(known)}")
    return slug


def check_profile(profile: str) -> str:
    if profile not in PROFILES:
        raise UserError(f"PROFILE={profile} is not a profile; known: {', '.join(PROFILES)}")
    return profile


def check_size(size: str) -> str:
    if size not in SIZES:
        raise UserError(f"SIZE={size} is not a size; known: {', '.join(SIZES)}")
    return size
