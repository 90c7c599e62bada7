"""The command line of the study: python -m qa_lib VERB …, for make and for people.

A verb imports what it needs when it runs, so that --help answers at once. Each verb has a function
`run_<verb>`, which returns the exit code, and may have a function `add_<verb>` for its arguments.
Where the list of verbs cannot say enough, that function sets a longer description too.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from qa_lib.settings import command_line, params
from qa_lib.settings.params import UserError


def print_remarks(specs: list):
    """Print a line where records of a plan are stale, and where they stand for committed ones.

    A record is stale where other code made it (store/runs.py).
    """
    from qa_lib.store import runs

    for remark in (runs.describe_stale(specs), runs.describe_replacing(specs)):
        if remark:
            print(remark, flush=True)


# ---- training ----


def add_study(parser: argparse.ArgumentParser):
    """Add the arguments of `study`."""
    parser.description = (
        "Train the runs of a report's plan that have no record yet. At profile real a report that "
        "has committed records has nothing to train, and nothing to estimate, unless --size or "
        "--fresh is given."
    )
    command_line.add_arguments(parser)
    parser.add_argument(
        "--workers",
        metavar="N",
        type=command_line.count_workers,
        help="runs trained at once; by default one on each GPU, without a GPU as many as cores and "
        "memory take (at most 4), and on a Ray cluster as many as it takes",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="pass over committed records, train again, and print both scores of each run",
    )
    parser.add_argument(
        "--yes", action="store_true", help="start even a study of more than 12 estimated hours"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="fetch data and encoders, print how many runs there are to train, hours and disk, and "
        "train nothing",
    )
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="fetch and verify data and encoders for later use without a network, train nothing",
    )


def run_study(args: argparse.Namespace) -> int:
    """Train the missing runs of a report's plan, and write its ledger."""
    from qa_lib.reports import plans
    from qa_lib.store import runs

    is_real = (args.profile or params.default_profile()) == "real"
    asks_to_train = args.size or args.fresh or args.fetch
    if is_real and not asks_to_train and runs.read_committed(args.report):
        p = plans.parameters_to_render(args)
        if not args.dry_run:
            runs.check_page(p)
        print("committed records exist: nothing is trained (SIZE= or FRESH=1 trains)")
        print_remarks(plans.plan(p))
    else:
        import torch  # here, because importing it is slow and only training needs it

        from qa_lib.training import study

        p = plans.load_from_args(args, size="full" if torch.cuda.is_available() else "small")
        if args.fetch:
            study.fetch_inputs(p)
            return 0
        if not args.dry_run:
            runs.check_page(p)
        study.run(p, plans.plan, args.workers, args.fresh, args.yes, args.dry_run)
        if args.fresh:
            study.print_comparison(p, plans.plan)
    if not args.dry_run:
        print(runs.write_ledger(p, plans.plan(p)))
    return 0


def add_train(parser: argparse.ArgumentParser):
    """Add the arguments of `train`."""
    parser.description = (
        "Train one run of a report's plan and keep its weights. Runs that it goes on from or "
        "learns from have to be trained before. `accelerate launch -m qa_lib train …` shares the "
        "run between several GPUs, but for one on several datasets in turn, which takes one."
    )
    command_line.add_arguments(parser)
    parser.add_argument(
        "--run",
        required=True,
        metavar="NAME",
        help="the run's name, or a beginning of it that no other run has",
    )


def run_train(args: argparse.Namespace) -> int:
    """Train one run of the plan, and print its scores."""
    import torch

    from qa_lib.data import selection
    from qa_lib.reports import plans
    from qa_lib.store import runs
    from qa_lib.training import study, train

    p = plans.load_from_args(args, size="full" if torch.cuda.is_available() else "small")
    named = {}  # a run may have several names: of a trial, and of the model that chose it
    for spec in plans.plan(p):
        on_machine = spec.for_this_machine()
        named[on_machine.run] = on_machine
    fitting = [name for name in named if name.startswith(args.run)]
    chosen = {named[name].hash for name in fitting}
    if len(chosen) != 1:
        names = fitting or list(named)
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        planned = {spec.hash for spec in named.values()}
        raise UserError(
            f"--run {args.run} fits {len(chosen)} of the {len(planned)} runs of the plan; write a "
            f"name, or a beginning of it that no other run has: {', '.join(names[:6])}{more}"
        )
    same = [spec for spec in named.values() if spec.hash in chosen]
    spec = max(same, key=lambda spec: len(spec.tests))  # a trial has no test sets
    runs.check_store()
    with study.tell_what_is_full(spec):
        record = train.train(spec, keep_weights=True)
    if record:  # of the processes of a distributed training, one writes the record
        scores = []
        for name in spec.tests:
            task = selection.find_task(spec, name)
            value = record["metrics"][name][task.TRIAL_SCORE]
            scores.append(f"{name}: {task.SCORE_NAME} {value:.1f}")
        print(" ".join(scores))
    return 0


# ---- pages and verdicts, from records ----


def add_render(parser: argparse.ArgumentParser):
    """Add the arguments of `render`."""
    command_line.add_arguments(parser)
    parser.add_argument(
        "--only", metavar="NAME", help="one table or figure, by the name of its file (table1, …)"
    )


def run_render(args: argparse.Namespace) -> int:
    """Draw a report's page from records. Nothing is trained."""
    from qa_lib.page import render
    from qa_lib.reports import plans
    from qa_lib.store import runs

    if args.only is not None:  # checked first, since looking up the runs takes long
        render.check_drawn(render.read_notebook(args.report, args.profile), args.only)
    p = plans.parameters_to_render(args)
    runs.check_page(p)
    # The ledger changes where the page was last drawn from other runs, and make sees that.
    runs.write_ledger(p, plans.plan(p))
    render.render(p, args.only)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Print the verdicts of a report; return 1 where its ledger disagrees with the records."""
    from qa_lib.evidence import verify
    from qa_lib.own_data import advice
    from qa_lib.reports import plans
    from qa_lib.store import runs

    profile = args.profile or params.default_profile()
    if not any(record["spec"]["profile"] == profile for record in runs.read_all(args.report)):
        print(verify.describe_nothing(args.report, profile))
        return 0
    p = plans.parameters_to_render(args)
    runs.check_page(p)
    print_remarks(plans.plan(p))
    if p.profile == "own":  # no claim is judged on own data
        print(advice.describe_advice(p))
    else:
        verify.print_verdicts(p)
    run = verify.find_disagreement(p)
    if run:
        print(
            f"results.csv and the records disagree, first about {run}; "
            f"{runs.command_for(p)} writes it from the records"
        )
        return 1
    return 0


def run_findings(args: argparse.Namespace) -> int:
    """Print the hash of a report's runs, and what its findings say that they do not bear out."""
    from qa_lib.page import written
    from qa_lib.reports import plans

    for line in written.describe_state(plans.parameters_to_render(args)):
        print(line)
    return 0


def add_power(parser: argparse.ArgumentParser):
    """Add the arguments of `power`."""
    parser.add_argument(
        "reports",
        nargs="*",
        metavar="REPORT",
        help=f"{', '.join(params.list_reports())}; by default all of them",
    )


def run_power(args: argparse.Namespace) -> int:
    """Print which claims of reports could ever be decided."""
    from qa_lib.evidence import power

    for report in args.reports or params.list_reports():
        params.check_report(report)
        print(power.describe_power(report))
    return 0


def add_overview(parser: argparse.ArgumentParser):
    """Add the arguments of `overview`."""
    command_line.add_profile(parser)
    parser.add_argument(
        "--readme",
        action="store_true",
        help="draw no page; write what was found at profile real into README.md and docs/",
    )


def run_overview(args: argparse.Namespace) -> int:
    """Draw the page about all reports, or write the README's parts."""
    from qa_lib.page import overview, readme

    if args.readme and args.profile not in (None, readme.PROFILE):
        raise UserError(
            f"--profile {args.profile} does not go with --readme, which writes what was found at "
            f"profile {readme.PROFILE}; leave one of them out"
        )
    if args.readme:
        readme.write_readme()
    else:
        print(overview.write_page(args.profile or params.default_profile()))
    return 0


# ---- data and records ----


def add_land(parser: argparse.ArgumentParser):
    """Add the arguments of `land`."""
    parser.description = (
        "Copy the completed runs of a report's plan into records/, which is committed. Only runs "
        "of the profiles real and paper are."
    )
    command_line.add_arguments(parser)


def run_land(args: argparse.Namespace) -> int:
    """Copy completed runs on real data into records/."""
    from qa_lib.reports import plans
    from qa_lib.store import runs

    choices = [plans.load_from_args(args, size) for size in plans.possible_sizes(args)]
    if choices[0].profile in ("quick", "own"):
        raise UserError(
            "only runs on the study's real data are landed; say --profile real or paper"
        )
    runs.check_writable(runs.RECORDS, "QA_RECORDS")
    specs = []
    for p in choices:
        specs += plans.plan(p)
    print_remarks(specs)
    # QA_RECORDS may name another place than records/
    folder = params.shorten_path(runs.RECORDS / args.report)
    print(f"{runs.land(args.report, specs)} new records in {folder}")
    return 0


def run_rescore(args: argparse.Namespace) -> int:
    """Score the stored answers of a report's runs again."""
    from qa_lib.reports import plans
    from qa_lib.training import rescore

    specs = {}
    for size in plans.possible_sizes(args):
        for spec in plans.plan(plans.load_from_args(args, size)):
            specs.setdefault(spec.hash, spec)
    rescore.rescore(args.report, list(specs.values()))
    return 0


def add_own(parser: argparse.ArgumentParser):
    """Add the arguments of `own`."""
    parser.description = (
        "Define two domains of your own, check their files, and print what their study costs. "
        "`make own NAME=… DOMAIN_A=TRAIN:TEST DOMAIN_B=TRAIN:TEST` does this, trains, and draws "
        "the page."
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="letters, digits, - and _; the page stands in figures/exbert/own-NAME",
    )
    parser.add_argument(
        "domains",
        nargs=2,
        metavar="TRAIN:TEST",
        help="the two files of a domain, train.jsonl:test.jsonl; docs/own-data.md has their fields",
    )
    parser.add_argument(
        "--size",
        type=params.check_size,
        help="small, the default, within two hours on two cores | full, the thorough version",
    )
    command_line.add_parameters(parser)


def run_own(args: argparse.Namespace) -> int:
    """Define two domains of a user's, check them, and say what their study costs."""
    from qa_lib.models import encoders
    from qa_lib.own_data import own
    from qa_lib.reports import plans
    from qa_lib.store import runs
    from qa_lib.training import study

    own.check_name(args.name)
    args.report, args.profile = "exbert", "own"
    args.data = str(runs.RUNS / "own" / f"{args.name}.yaml")
    args.p.insert(0, f"domains=[{args.name}-a, {args.name}-b]")
    p = plans.load_from_args(args)
    runs.check_store()
    runs.check_page(p)
    own.check_domains(p)
    own.check_parts(p)
    own.check_validation_rows(p)
    _, tokenizer = encoders.load_encoder(p.encoder)  # first: reading the data may take long
    texts = dict(zip(("DOMAIN_A", "DOMAIN_B"), args.domains, strict=True))
    definition = own.define_domains(texts, p)
    own.refuse_other_names(definition, p)
    # A draft is checked first, so that a mistake replaces no definition of an earlier study. All
    # that follows uses the draft too, by whose name the rows are kept in memory.
    with tempfile.TemporaryDirectory() as folder:
        draft = p.model_copy(update={"data": str(Path(folder) / f"{args.name}.yaml")})
        own.write_definition(definition, draft)
        print(f"profile own: {args.name}; {own.describe_plan(draft)}", flush=True)
        own.check_rows(draft)
        study.fetch_inputs(draft)
        print(own.describe_contexts(draft), *own.remark_on_rows(draft, tokenizer), sep="\n")
        foreseen = own.foresee_plan(draft)
        runs.RUNS.mkdir(parents=True, exist_ok=True)  # whose disk is looked at
        missing = study.list_missing(foreseen)
        if missing and study.list_missing(plans.plan(draft)):
            _, hours, _ = study.estimate_cost(missing, study.default_workers(missing))
            has_begun = len(missing) < len({spec.hash for spec in foreseen})
            print(own.describe_cost(draft, hours, has_begun), flush=True)
        own.write_definition(definition, p)
    return 0


def add_check_data(parser: argparse.ArgumentParser):
    """Add the arguments of `check-data`."""
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", help="the folder that holds qa/ and nlu/"
    )


def run_check_data(args: argparse.Namespace) -> int:
    """Compare the files of a folder with DATA.md."""
    from qa_lib.data import sources

    return sources.check_files(str(command_line.find_data(args.data)))


def run_pin(args: argparse.Namespace) -> int:
    """Resolve the hub revisions of datasets and encoders into params/pins.yaml."""
    from qa_lib.data.hub_tables import parse_place
    from qa_lib.reports import plans
    from qa_lib.settings import hub

    repos = set()
    for dataset in params.read_datasets("hub").values():
        for place in dataset.list_sources():
            repos.add(parse_place(place).repo)
    cure = "give the same command with network"
    for repo in sorted(repos):
        hub.resolve_revision(repo, cure=cure)
    for slug in params.list_reports():
        for encoder in plans.load_params(slug, "paper").named_encoders():
            hub.resolve_revision(encoder, "model", cure)
    return 0


def add_nothing(parser: argparse.ArgumentParser):
    """Add no arguments."""


# Each verb: what it does, the function that adds its arguments, the function that runs it.
VERBS = {
    "study": ("train the runs of a report's plan that have no record yet", add_study, run_study),
    "train": ("train one run of the plan", add_train, run_train),
    "render": ("draw a report's page from records", add_render, run_render),
    "verify": (
        "print the verdict on every claim of a report",
        command_line.add_arguments,
        run_verify,
    ),
    "findings": (
        "print the hash of a report's runs, and which of its findings they do not bear out",
        command_line.add_arguments,
        run_findings,
    ),
    "power": (
        "print what a report's own runs could see, and which claims more seeds could decide",
        add_power,
        run_power,
    ),
    "overview": (
        "draw the page about all reports, or write the README's parts",
        add_overview,
        run_overview,
    ),
    "land": ("copy completed runs of profile real or paper into records/", add_land, run_land),
    "rescore": (
        "score stored answers again, after the rules of scoring have changed",
        command_line.add_arguments,
        run_rescore,
    ),
    "own": ("define and check two domains of your own, for `make own`", add_own, run_own),
    "check-data": ("compare the files of a folder with DATA.md", add_check_data, run_check_data),
    "pin": (
        "write the revisions of hub datasets and encoders that params/pins.yaml lacks",
        add_nothing,
        run_pin,
    ),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = command_line.CommandLine(
        prog="python -m qa_lib",
        description="Train the runs of the reports, and draw their pages from records.",
        epilog="`python -m qa_lib VERB --help` explains a verb. docs/commands.md is about make.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (does, add_arguments, _) in VERBS.items():
        description = f"{does[0].upper()}{does[1:]}."
        add_arguments(verbs.add_parser(name, help=does, description=description))
    return parser


def run_verb(words: list[str] | None = None) -> int:
    """Run a command line and return its exit code.

    words: its arguments; by default those that this process was started with.
    """
    args = make_parser().parse_args(words)
    _, _, run = VERBS[args.verb]
    return run(args)


if __name__ == "__main__":
    command_line.run_and_exit(lambda: run_verb(sys.argv[1:]))
