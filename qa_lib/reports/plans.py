"""The plan of a report: its list of runs, and which parameters a command line means."""

import argparse
import importlib

from qa_lib.settings import command_line, params
from qa_lib.settings.spec import Spec
from qa_lib.store import runs


def plan(p) -> list[Spec]:
    """The runs of a report at its parameters: `plan` closes each report's module."""
    return importlib.import_module(f"qa_lib.reports.{p.report}").plan(p)


def possible_sizes(args: argparse.Namespace) -> list[str | None]:
    """The sizes that a command line may mean, the largest first."""
    return (
        ["full", "small"]
        if not args.size and (args.profile or params.default_profile()) == "real"
        else [args.size]
    )


def parameters_to_render(args: argparse.Namespace):
    """Parameters of what a command line wants drawn: of the size it names, else of the largest whose runs all have
    records. Raises UserError where runs are missing."""
    for size in possible_sizes(args):
        p = command_line.load_from_args(args, size)
        if all(runs.find_record(s) for s in plan(p)):
            break
    runs.require_records(plan(p))  # says what is missing
    return p
