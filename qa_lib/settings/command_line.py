"""Command lines: their parsers, their parameters, and their errors in one sentence.

* `run_and_exit`     runs a command and exits with its code
* `add_arguments`    adds what every command about a report takes
* `read_overrides`   returns the parameters that a parsed command line gives with -p
"""

import argparse
import errno
import io
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from qa_lib.settings import params
from qa_lib.settings.params import UserError

# Parameters that would label a run as what it is not → what to give instead.
NOT_GIVEN = {
    "report": "a report is named by the command, as in make train-moe",
    "profile": "a profile is named by PROFILE=, or --profile, and has parameters of its own",
    "source": "where data come from follows from the profile: PROFILE=, or --profile",
}
# Errors for want of permission or of room.
NOT_WRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
)


class OutputError(Exception):
    """Standard output cannot be written, since its reader is gone or its disk is full."""


class Output(io.FileIO):
    """Standard output whose failures differ from those of other files."""

    def write(self, data) -> int:
        """Write bytes. Raises OutputError where that fails."""
        try:
            return super().write(data)
        except OSError as e:
            raise OutputError(e.errno, e.strerror) from None


def print_in_any_locale():
    """Let stdout and stderr print letters that the locale lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def watch_output():
    """Turn failures of standard output into OutputError from here on.

    A stream in the place of standard output, as tests have one, is left alone.
    """
    if sys.stdout is None or sys.stdout is not sys.__stdout__:
        return
    sys.stdout.flush()
    raw = Output(sys.stdout.fileno(), "w", closefd=False)
    unbuffered = sys.stdout.write_through  # python -u
    sys.stdout = io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=sys.stdout.encoding,
        errors=sys.stdout.errors,
        line_buffering=sys.stdout.line_buffering,
        write_through=unbuffered,
    )


def run_and_exit(run):
    """Exit with the code that `run()` returns.

    A user's mistake exits with 2 and one sentence, Ctrl-C with 130. Where nobody reads the output
    any more (`| head`) the exit is silent and has code 141, like that of a program that SIGPIPE
    ends.
    """
    print_in_any_locale()
    watch_output()
    try:
        code = run_or_explain(run)
        if sys.stdout:
            sys.stdout.flush()
    except OutputError as e:
        number, reason = e.args
        code = 141
        if number != errno.EPIPE:
            print(
                f"error: standard output cannot be written ({reason}); "
                "send it to a place that takes it",
                file=sys.stderr,
            )
            code = 2
        # Python would try to write the rest of the buffer once more while it exits, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run_or_explain(run) -> int | str | None:
    """Return the exit code of `run()`. Prints one sentence about a user's mistake."""
    try:
        check_surroundings()
        return run()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        if e.errno not in NOT_WRITABLE:
            raise
        print(
            f"error: {e.filename or 'a file'}: {e.strerror}; make room or set its permissions, "
            "or name another folder with QA_RUNS, QA_FIGURES or TMPDIR; the same command goes on "
            "from here",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; nothing finished is lost, the same command goes on from here",
            file=sys.stderr,
            flush=True,
        )
        os._exit(130)  # an orderly exit would wait for workers that are ending
    except SystemExit as e:  # from --help, or from a notebook that failed
        return e.code


def check_surroundings():
    """Raise UserError where standard output is closed, or the current folder is gone."""
    if sys.stdout is None:
        raise UserError(
            "standard output is closed, so nothing could be told; "
            "send it to a file, or to /dev/null"
        )
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError(
            "the folder in which this was started does not exist any more; cd to one that does"
        ) from None


class CommandLine(argparse.ArgumentParser):
    """A parser that reports a mistake in one sentence, without the usage.

    An option is written in full: a misspelt one is not taken for the one that it begins.
    """

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str):
        """Raise UserError about a mistake."""
        raise UserError(f"{message}; {self.prog} --help says what there is")


def add_arguments(parser: argparse.ArgumentParser):
    """Add the arguments of a command line about one report."""
    parser.add_argument("report", type=params.check_report, help=", ".join(params.list_reports()))
    add_profile(parser)
    parser.add_argument(
        "--size", type=params.check_size, help="small | full; of the profiles real and own alone"
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="of profile real, the folder that holds qa/ and nlu/; of profile own, the file that "
        "defines its two domains",
    )
    add_parameters(parser)
    parser.add_argument(
        "--stale",
        dest="p",
        action="append",
        type=lambda choice: f"stale={params.check_stale(choice)}",
        metavar="train|keep",
        help="after an edit of the code: train again the runs whose records it made before, or "
        "keep these; by default quick trains and the other profiles keep",
    )


def add_profile(parser: argparse.ArgumentParser):
    """Add --profile."""
    parser.add_argument(
        "--profile",
        type=params.check_profile,
        help=f"{' | '.join(params.PROFILES)}; by default paper with a CUDA GPU, else quick",
    )


def add_parameters(parser: argparse.ArgumentParser):
    """Add -p, which gives one parameter, and --params, which gives several in one text.

    Make passes PARAMS as --params.
    """
    parser.add_argument(
        "-p",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one parameter in place of its value in params/: seeds=[0,1]; may be given again",
    )
    parser.add_argument(
        "--params",
        dest="p",
        action="extend",
        type=split_parameters,
        metavar="'KEY=VALUE …'",
        help="several parameters; one that holds a blank stands in quotes: "
        "'\"encoder=my folder\" epochs=2'",
    )


def split_parameters(text: str) -> list[str]:
    """Return the items of PARAMS.

    Quotes around an item keep its blanks. Quotes within an item are part of it.
    """
    try:
        items = shlex.split(text, posix=False)
    except ValueError:
        raise UserError(
            f"PARAMS: a quote in {text} is not closed; write PARAMS='\"key=a b\" other=1', "
            "and around an item that begins with ' the quotes \""
        ) from None
    return [item[1:-1] if item[0] in "'\"" else item for item in items]


def find_data(text: str) -> Path:
    """Return the path that DATA= or --data names.

    Links in it stay, since own data are called by the name of their file. The path need not exist:
    readers of data check that. Raises UserError for a path that cannot be looked up.
    """
    path = Path(os.path.expanduser(text)).absolute()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as e:
        raise UserError(
            f"DATA={text} cannot be looked up ({e.strerror}); name a folder that can be read"
        ) from None
    return path


def count_workers(text: str) -> int:
    """Return the number that WORKERS= or --workers gives."""
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"WORKERS={text}: at least one run is trained at once; write a whole number of 1 or "
            "more, or leave it away for as many as the cores take"
        )
    return int(text)


def read_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters that a parsed command line gives with -p.

    Raises UserError for an item that is not key=value, and for one of NOT_GIVEN.
    """
    bad = [item for item in args.p if not all(item.partition("="))]
    if bad:
        raise UserError(
            f"-p {bad[0]}: write -p key=value, in PARAMS key=value, a list without spaces: "
            "key=[1,2]; what has to hold a blank stands in quotes: PARAMS='\"key=a b\"'"
        )
    overrides = {}
    try:
        for item in args.p:
            key, _, text = item.partition("=")
            if key in NOT_GIVEN:
                raise UserError(f"PARAMS (-p): {key} cannot be changed there; {NOT_GIVEN[key]}")
            params.refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
            overrides[key] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, AttributeError) as e:  # the last: of a !!timestamp
        raise UserError(
            f"-p {' '.join(args.p)[:200]}: not a value of YAML ({' '.join(str(e).split())})"
        ) from None
    return overrides
