"""Own data: two domains of a user's, from the command line (make own), checked before anything is trained.

    python -m qa_lib.own NAME TRAIN:TEST TRAIN:TEST [-p KEY=VALUE]     writes own/NAME.yaml beside the runs

The file defines two datasets, NAME-a and NAME-b unless the parameter `domains` names them, as params/datasets.yaml does those of
the study; `--profile own --data FILE` reads it. A file's content is its identity, not its place: moved data find their runs again.
"""
import os
import re
from pathlib import Path

import yaml

from qa_lib import data, encoders, exbert, params, runs, sources, study
from qa_lib.params import UserError
from qa_lib.settings import Exbert

NAME, LETTERS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}"), "letters, digits, - and _, at most 40 of them"
USAGE = "make own NAME=mine DOMAIN_A=train.jsonl:test.jsonl DOMAIN_B=train.jsonl:test.jsonl"


def files(option: str, text: str) -> list[Path]:
    """The training and the test file that an option names. Raises UserError where it does not, or where one is missing."""
    parts = text.split(":")
    if len(parts) != 2 or not all(parts):
        raise UserError(f"{option}={text} does not name two files: write {option}=train.jsonl:test.jsonl, one colon between them")
    found = [Path(os.path.expanduser(x)) for x in parts]
    if absent := [x for x in found if not x.is_file()]:
        raise UserError(f"{option}: {absent[0]} is {'a folder, not a file' if absent[0].exists() else 'not there'}; "
                        f"write {option}=train.jsonl:test.jsonl, seen from {Path.cwd().name}/ or as whole paths")
    return found


def define(domains: dict[str, str], p: Exbert):
    """Write the definition of the two datasets.

    domains: option of the command line → its text. Raises UserError for a file that stands in two places: training rows would be
    test rows, or one domain both.
    """
    every = [(option, x) for option, text in domains.items() for x in files(option, text)]
    first: dict[str, tuple] = {}
    for (option, path), part in zip(every, ["training", "test"] * 2, strict=True):
        if (other := first.setdefault(sources.sha256(path.resolve()), (option, part))) != (option, part):
            raise UserError(f"{option}: {path} holds the same as the {other[1]} file of {other[0]}; training and test, and the "
                            "two domains, need files of their own")
    share = max(max(r, 1 - r) for r in ratios(p))
    paths = [str(x.resolve()) for _, x in every]
    # whole contexts go to validation: every row has one, not every row has a title
    found = {d: {"train": paths[2 * i:2 * i + 1], "test": paths[2 * i + 1:2 * i + 2], "unit": "context",
                 "validation_rows": round(share * p.validation_rows)} for i, d in enumerate(p.domains)}
    runs.write(Path(p.data), yaml.safe_dump(found, sort_keys=False))


def ratios(p: Exbert) -> set[float]:
    """Every mixture that a run may have."""
    return {*p.ratios, *p.control_ratios, p.centre}


def check(p: Exbert):
    """Raises UserError where a mixture lacks rows, with what would fit them all, or where a test set lacks contexts.

    The trials use one mixture only: without this the others would be missed after hours.
    """
    parts = [data.splits(d, p.source, p.data, p.bad_rows) for d in p.domains]
    held = {data.pair(r) for part in parts for r in part.test + part.validation}
    have = [sum(data.pair(r) not in held for r in part.train) for part in parts]
    shares = [max(ratios(p)), 1 - min(ratios(p))]
    for d, part, rows, share in zip(p.domains, parts, have, shares, strict=True):
        if (need := round(share * p.train_rows)) > rows:
            # a fifth on top for validation, and some for contexts that stay whole
            most = min(int((n + len(x.validation)) / s / 1.3) for n, x, s in zip(have, parts, shares, strict=True) if s)
            most = min(most, p.train_rows)
            fits = f'lower both numbers, PARAMS="train_rows={most} validation_rows={most // 5}"'
            raise UserError(f"{d} has {len(part.train) + len(part.validation)} training rows; after {len(part.validation)} for "
                            f"validation {rows} are left, and the mixture needs {need} of it: "
                            f"{fits if most >= 10 else 'too few to train on; add rows'}")
        if bare := [kind for kind in ("train", "test") if not any(r["answers"]["text"] for r in getattr(part, kind))]:
            raise UserError(f"no row of the {bare[0]} file of {d} has an answer; a row without one is a question its text leaves "
                            "open: add rows with answers")
        if len({r["id"] for r in part.test}) < len(part.test):
            raise UserError(f"rows of the test file of {d} share an id; give each an id of its own, or none of them any")
        if len({data.normalised(r["context"]) for r in part.test}) < 2:
            raise UserError(f"the test file of {d} has {len(part.test)} rows and not two different contexts: nothing would be "
                            "known of others; test on a few hundred rows")


def main() -> int:
    parser = params.command_line(__doc__)
    parser.add_argument("name")
    parser.add_argument("domains", nargs=2, metavar="TRAIN:TEST")
    parser.add_argument("-p", action="append", default=[], metavar="KEY=VALUE", help="one parameter")
    args = parser.parse_args()
    if not NAME.fullmatch(args.name):
        raise UserError(f"NAME={args.name}: a name is {LETTERS}: {USAGE}")
    args.report, args.profile, args.size = "exbert", "own", None
    args.data = str(runs.RUNS / "own" / f"{args.name}.yaml")
    args.p.insert(0, f"domains=[{args.name}-a, {args.name}-b]")
    p = params.from_args(args)
    if bad := [d for d in p.domains if not NAME.fullmatch(d)]:
        raise UserError(f"PARAMS: domains: {bad[0]!r} is no name; a name is {LETTERS}")
    encoders.load(p.encoder)    # first: reading the data may take long
    dense = len(exbert.DENSE) * ("dense" in p.experiments)
    first = (len(exbert.HEADLINE) + dense) * len(p.trial_rates) * len(p.trial_epochs)
    define(dict(zip(("DOMAIN_A", "DOMAIN_B"), args.domains, strict=True)), p)
    parts = [x for x in p.experiments if x in ("headline", "dense")]                # of which the arm `tuned` consists
    then = len(exbert.plan(p.model_copy(update={"arms": ["printed"], "experiments": parts})))
    print(f"profile own: {args.name}; {first} trials, more where the best rate is the lowest or the highest tried; then about "
          f"{then} runs with the rates and epochs they chose; each round says how long it takes", flush=True)
    check(p)
    study.fetch(p)
    return 0


if __name__ == "__main__":
    params.main(main)
