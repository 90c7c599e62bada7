"""The reports that are built: their files, their models, their plans and their parameters."""

import argparse
import importlib.util
from collections.abc import Callable, Iterable
from functools import cache
from types import ModuleType
from typing import Any

from qa_lib.data import selection
from qa_lib.settings import command_line, params
from qa_lib.settings.parameters import Study
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import code_hashes, runs

# What the file of a report has, and what its parameters have beside those of every study.
PARTS = ("TITLE", "MODELS", "NOTES", "COMPARISONS", "EXPERIMENTS", "Parameters", "plan")
FIELDS = ("experiments", "arms")


@cache
def find_report(slug: str) -> ModuleType:
    """Return the file of a report, which has the names that PARTS lists.

    Raises UserError where there is none, and where it lacks one of them.
    """
    params.check_report(slug)
    if importlib.util.find_spec(f"qa_lib.reports.{slug}") is None:
        raise UserError(
            f"qa_lib/reports/{slug}.py does not exist; docs/code.md says what a report is made of"
        )
    module = importlib.import_module(f"qa_lib.reports.{slug}")
    lacks = [name for name in PARTS if not hasattr(module, name)]
    lacks += [f"Parameters.{name}" for name in FIELDS if name not in module.Parameters.model_fields]
    if lacks:
        raise UserError(
            f"qa_lib/reports/{slug}.py lacks {', '.join(lacks)}; docs/code.md says what a report "
            "is made of"
        )
    return module


def plan(P: Study) -> list[Spec]:
    """Return the runs of a report at its parameters.

    Each knows the identity of its test sets, so that no record with scores on others serves.
    Raises UserError where there are none.
    """
    specs = find_report(P.report).plan(P)
    if not specs:
        raise UserError(
            f"experiments: {', '.join(P.experiments)} has no run at these parameters; name a "
            "further part, or give the values that it varies"
        )
    names = dict.fromkeys(name for spec in specs for name in spec.tests)
    known = selection.fingerprint_test_sets(names, P.source, P.data)
    planned = []
    for spec in specs:
        of_spec = {name: known[name] for name in spec.tests if name in known}
        planned.append(spec.model_copy(update={"test_fingerprints": of_spec}))
    return planned


# ---- models as readers see them ----


def find_model(report: str, variant: str) -> str:
    """Return the model behind a variant: v-db-full and v-db-curve are V-DB on other rows.

    Raises KeyError for a variant that the report's MODELS lacks.
    """
    models = find_report(report).MODELS
    name = variant
    while name not in models:
        name, dash, _ = name.rpartition("-")
        if not dash:
            raise KeyError(
                f"{variant} is no model of {report}: its MODELS need a name and a colour"
            )
    return name


def display_name(report: str, variant: str) -> str:
    """Return the name by which readers know the model of a variant."""
    return find_report(report).MODELS[find_model(report, variant)][0]


def display_names(report: str) -> list[str]:
    """Return the names of a report's models, in the order of every figure."""
    return [name for name, _ in find_report(report).MODELS.values()]


def colours(report: str) -> dict[str, str]:
    """Return display name → the one colour that a report's model has everywhere."""
    return dict(find_report(report).MODELS.values())


def name_mixture(ratio: float) -> str:
    """Return a mixture of two domains as pages and claims write it: 80:20."""
    return f"{round(100 * ratio, 3):g}:{round(100 - 100 * ratio, 3):g}"


# ---- parameters ----


def load_params(
    slug: str,
    profile: str | None = None,
    overrides: dict | None = None,
    size: str | None = None,
    given_in: str = "PARAMS (-p): ",
    data: str | None = None,
) -> Any:
    """Return the validated parameters of a report.

    params/<slug>.yaml holds the report's own settings, params/<profile>/<slug>.yaml what the
    profile changes; its mapping `small` holds what `size: small` changes on top.
    given_in: the place of `overrides`, for an error. One about profile, size or data needs no
    place, since it says DATA= or PROFILE= itself.
    """
    model = find_report(slug).Parameters
    profile = params.check_profile(profile or params.default_profile())
    overrides = overrides or {}
    values, places = {}, {}
    for folder in ("", profile):
        file = params.ROOT / "params" / folder / f"{slug}.yaml"
        shown = file.relative_to(params.ROOT)
        if folder and not file.exists():
            raise params.UserError(
                f"{shown} does not exist: this report has no such profile yet; name another PROFILE"
            )
        place = f"{shown}, line "
        of_file, lines = params.read_yaml(file)
        of_small = of_file.pop("small", None) or {}  # every line of it may be a comment
        if not isinstance(of_small, dict):
            raise params.UserError(
                f"{place}{lines['small']}: small holds no mapping; write its lines key: value, "
                "each with blanks in front"
            )
        values |= of_file
        places |= {key: f"{place}{lines[key]}: " for key in of_file}
        if (overrides.get("size") or size or values.get("size")) == "small":
            values |= of_small
            places |= dict.fromkeys(of_small, f"{place}{lines.get('small')}: ")
    arguments = {"profile": profile}
    if size:
        arguments["size"] = size
    if data:
        arguments["data"] = data
    places |= dict.fromkeys(arguments, "")
    places |= dict.fromkeys(overrides, given_in)
    return params.validate(model, values | arguments | overrides, places)


def load_from_names(slug: str, names: dict[str, Any], profile: str | None = None) -> Any:
    """Return parameters from a notebook's names, of which it may list a few.

    Every public scalar, or list of them, must be a parameter: Papermill only warns about one it
    does not know, this refuses it. Those that are not listed, or are None, have the value of the
    profile's files. A kernel that runs the library as it was before an edit is refused too; data
    are read again, since they may have changed in its life.
    profile: by default the notebook's own `profile`.
    """
    code_hashes.check_kernel()
    selection.forget_data()
    given = {name: value for name, value in read_names(slug, names).items() if value is not None}
    profile = profile or given.get("profile")
    return load_params(slug, profile, given, given_in="notebook parameter ")


def read_names(slug: str, names: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters among a notebook's names: public scalars, and lists of scalars.

    A dict, or an empty list, that is no parameter is a name of the notebook's own.
    """
    fields = find_report(slug).Parameters.model_fields
    given = {}
    for name, value in names.items():
        if name.startswith("_") or name == "In":
            continue
        may_be_own = isinstance(value, dict) or (isinstance(value, list) and not value)
        if params.is_plain(value) or (may_be_own and name in fields):
            given[name] = value
    return given


def load_from_args(args: argparse.Namespace, size: str | None = None) -> Any:
    """Return the parameters that a parsed command line asks for.

    size: used at profile real where the command line names none.
    """
    profile = args.profile or params.default_profile()
    given = command_line.read_overrides(args)
    asked = args.size
    if profile == "real":
        asked = asked or size
    data = None
    if args.data:
        data = str(command_line.find_data(args.data))
        given.pop("data", None)  # DATA= counts, whatever PARAMS says
    return load_params(args.report, profile, given, asked, data=data)


def possible_sizes(args: argparse.Namespace) -> list[str | None]:
    """Return the sizes that a command line may mean, the largest first."""
    return [args.size] if args.size else list_sizes(args.profile or params.default_profile())


def list_sizes(profile: str) -> list[str | None]:
    """Return the sizes that a profile has, the largest first; None where it has but one."""
    return ["full", "small"] if profile == "real" else [None]


def parameters_to_render(args: argparse.Namespace) -> Any:
    """Return the parameters of the page that a command line asks for.

    Without --size this is the largest size of which every run has a record.
    Raises UserError where runs are missing.
    """
    P = find_recorded(possible_sizes(args), lambda size: load_from_args(args, size))
    runs.require_records(plan(P))  # says what is missing
    return P


def find_recorded(sizes: Iterable[str | None], load: Callable[[str | None], Any]) -> Any:
    """Return the parameters of the first size of which every run has a record, else of the last.

    load: returns the parameters of a size.
    """
    for size in sizes:
        P = load(size)
        if all(runs.find_record(spec) for spec in plan(P)):
            break
    return P
