"""Parameters: YAML files, command lines, notebooks, and what is wrong with them (the parameters themselves: settings.py).

* `load`, `from_names`, `from_args`   a report's validated parameters
* `UserError`   one sentence for a user's mistake: what is wrong, where, what to do
"""
import argparse
import difflib
import math
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qa_lib.settings import REPORTS, Dataset, Strict

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("quick", "real", "paper", "own")


class UserError(Exception):
    """A user's mistake, told in one sentence; command lines exit 2 with it, notebooks show it alone."""

    def _render_traceback_(self):  # IPython's hook: no traceback for a mistake in a parameter
        return [f"UserError: {self}"]


def main(run):
    """Exit with a command line's `run()`: one sentence and 2 on a user's mistake, 130 on Ctrl-C."""
    try:
        sys.exit(run())
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; nothing finished is lost, the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(130)  # an orderly exit would wait for workers that are being ended


def read_yaml(path: Path) -> tuple[dict, dict[str, int]]:
    """A YAML mapping and the line of each of its top-level keys."""
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text) or {}
    except FileNotFoundError:
        raise UserError(f"{shown} does not exist: this report has no such profile yet") from None
    except (yaml.YAMLError, ValueError) as e:   # a ValueError of a date or number that is none
        raise UserError(f"{shown} is not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{shown} holds no mapping; write a line key: value for each key")
    return value, {k.value: k.start_mark.line + 1 for k, _ in (node.value if node else [])}


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
        raise UserError(f"{place}{key}: {value!r} is one value and a list is wanted; "
                        f"write {key}=[{value}]")
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
    except OverflowError:       # a whole number of hundreds of digits
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


def load(slug: str, profile: str | None = None, overrides: dict | None = None, size: str | None = None) -> Any:
    """The validated parameters of a report.

    params/<slug>.yaml holds the report's own settings (profile paper), params/<profile>/<slug>.yaml what the
    profile changes; its mapping `small` holds what `size: small` changes on top.
    """
    if slug not in REPORTS:
        raise UserError(f"'{slug}' is not a report of this study; known: {', '.join(REPORTS)}")
    profile = profile or default_profile()
    if profile not in PROFILES:
        raise UserError(f"PROFILE={profile} is not a profile; known: {', '.join(PROFILES)}")
    values, places, folders = {}, {}, [""] if profile == "paper" else ["", profile]
    for file in [ROOT / "params" / folder / f"{slug}.yaml" for folder in folders]:
        new, lines = read_yaml(file)
        small = new.pop("small", {})
        wanted = (overrides or {}).get("size") or size or new.get("size") or values.get("size")
        for layer in [new, small if wanted == "small" else {}]:
            values |= layer
            line = lines.get("small") if layer is small else None
            places |= {k: f"{file.relative_to(ROOT)}, line {line or lines[k]}: " for k in layer}
    given = {"profile": profile} | ({"size": size} if size else {}) | (overrides or {})
    return validate(REPORTS[slug], values | given, places | dict.fromkeys(given, "PARAMS (-p): "))


def from_names(slug: str, names: dict[str, Any]) -> Any:
    """Parameters from a notebook's names: every public scalar, or list of them, must be a parameter.

    Papermill only warns about a parameter it does not know; this refuses it.
    """
    plain = (str, int, float, type(None))
    model = REPORTS[slug]
    given = {k: v for k, v in names.items() if not k.startswith("_") and k != "In" and (isinstance(v, plain) or isinstance(v, list)
             and (v or k in model.model_fields) and all(isinstance(x, plain) for x in v))}
    return validate(model, given, {k: "notebook parameter " for k in given})


def default_profile() -> str:
    import torch  # only where nothing was said does the choice look at the machine
    return "paper" if torch.cuda.is_available() else "quick"


@cache
def datasets(source: str, file: str | None = None) -> dict[str, Dataset]:
    """The datasets of a source, from params/datasets.yaml; of source own, from the file that `make own` wrote."""
    if source == "own":
        if not Path(file).exists():
            raise UserError(f"{file} does not exist; make own NAME={Path(file).stem} DOMAIN_A=… DOMAIN_B=… writes it")
        return {name: validate(Dataset, fields, {k: f"{file}: {name}: " for k in fields})
                for name, fields in read_yaml(Path(file))[0].items()}
    values, lines = read_yaml(ROOT / "params" / "datasets.yaml")
    place = f"params/datasets.yaml, line {lines[source]}: {source}: "
    return {name: validate(Dataset, fields, {k: f"{place}{name}: " for k in fields})
            for name, fields in values[source].items()}


class CommandLine(argparse.ArgumentParser):
    def error(self, message: str):      # in one sentence, without the usage
        raise UserError(f"{message}; {self.prog} --help says what there is")


def command_line(doc: str) -> CommandLine:
    """A parser whose help is the module's docstring."""
    return CommandLine(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_arguments(parser: argparse.ArgumentParser):
    """The choices that a command line about one report takes."""
    parser.add_argument("report", help=", ".join(REPORTS))
    parser.add_argument("--profile", help="quick | real | paper | own")
    parser.add_argument("--size", help="small | full (profile real)")
    parser.add_argument("--data", help="folder of real datasets; of profile own, the file that defines them")
    parser.add_argument("-p", action="append", default=[], metavar="KEY=VALUE", help="one parameter")


def from_args(args: argparse.Namespace, size: str | None = None) -> Any:
    """The parameters that a parsed command line asks for; `size` is used where it names none."""
    if bad := [item for item in args.p if not item.partition("=")[2]]:
        raise UserError(f"-p {bad[0]}: write -p key=value, in PARAMS key=value, a list without spaces: key=[1,2]")
    try:
        given = {key: yaml.safe_load(text) for key, _, text in (item.partition("=") for item in args.p)}
    except (yaml.YAMLError, ValueError) as e:
        raise UserError(f"-p {' '.join(args.p)[:200]}: not a value of YAML ({' '.join(str(e).split())})") from None
    if args.data:
        given["data"] = str(Path(args.data).resolve())
    real = (profile := args.profile or default_profile()) == "real"
    return load(args.report, profile, given, (args.size or size) if real else None)
