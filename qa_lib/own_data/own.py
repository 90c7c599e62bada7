"""Own data: a user's two domains, from the command line (make own), checked before any training.

    python -m qa_lib own NAME TRAIN:TEST TRAIN:TEST [-p KEY=VALUE]     writes own/NAME.yaml
                                                                       beside the runs

The file defines two datasets in the form of params/datasets.yaml. They are called NAME-a and NAME-b
unless the parameter `domains` gives them other names. `--profile own --data FILE` reads the file.
Data are identified by their content and not by their place: moved data find their runs again.
"""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from qa_lib.data import selection, sources
from qa_lib.evidence.verdicts import ENOUGH
from qa_lib.reports import exbert, trials
from qa_lib.settings import hub
from qa_lib.settings.params import UserError, describe_folder, read_own_datasets
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.tasks import span

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,41}")  # a NAME with -a or -b behind it
LETTERS = "letters, digits, - and _"  # of both, in an error
FEWEST = 10  # training rows of a mixture below which nothing is proposed
COPIES = "copies of the other domain's held-out rows dropped"
HOURS = 2  # a small study that takes longer is told what would take less
USAGE = "make own NAME=mine DOMAIN_A=train.jsonl:test.jsonl DOMAIN_B=train.jsonl:test.jsonl"


# ---- the command line ----


def check_name(name: str):
    """Raise UserError for a name that own data cannot have."""
    if not NAME.fullmatch(name):
        raise UserError(f"NAME={name}: a name is {LETTERS}, at most 40 of them: {USAGE}")


def check_domains(p: exbert.Parameters):
    """Raise UserError for a domain's name that a path or a table could not hold."""
    for name in p.domains:
        if not DOMAIN.fullmatch(name):
            raise UserError(
                f"PARAMS: domains: {name!r} is no name; write domains=[harbour,clinic], a name is "
                f"{LETTERS}, at most 42 of them"
            )


def check_parts(p: exbert.Parameters):
    """Raise UserError for parts of a study that give no advice."""
    if "headline" not in p.experiments or "tuned" not in p.arms:
        raise UserError(
            "PARAMS: the advice compares the models of experiment headline with equal tuning; "
            'keep them: PARAMS="experiments=[headline] arms=[tuned]", or leave both away'
        )


def check_validation_rows(p: exbert.Parameters):
    """Raise UserError where a mixture would have no validation row of one of its domains."""
    fewest = fewest_validation_rows(p)
    if p.validation_rows < fewest:
        raise UserError(
            f"PARAMS: validation_rows={p.validation_rows} leaves a mixture without a validation "
            f"row of each domain; write validation_rows={fewest} or more"
        )


def find_files(option: str, text: str) -> list[Path]:
    """Return the training file and the test file that an option of the command line names.

    Raises UserError where it does not name two files, or where one of them is missing.
    """
    parts = text.split(":")
    if len(parts) != 2 or not all(parts):
        raise UserError(
            f"{option}={text} does not name two files: write {option}=train.jsonl:test.jsonl, one "
            "colon between them"
        )
    paths = [Path(os.path.expanduser(part)) for part in parts]
    for path in paths:
        if os.path.isdir(path):  # unlike Path.is_dir, of a name that is too long too
            files = describe_folder(path / "train.jsonl")
            raise UserError(
                f"{option}: {path} is a folder, not a file; write {option}=train.jsonl:test.jsonl "
                f"with the paths of two files; {files}"
            )
        if not os.path.isfile(path):
            raise UserError(
                f"{option}: {path} is not there; write {option}=train.jsonl:test.jsonl, seen from "
                f"{Path.cwd()} or as whole paths; {describe_folder(path)}"
            )
    return paths


def refuse_repeated_files(files: dict[str, list[Path]]):
    """Raise UserError for a file that is given twice.

    Training rows would be test rows, or both domains would be the same.

    files: for each option of the command line its training file and its test file.
    """
    seen = {}
    for option, paths in files.items():
        for part, path in zip(("training", "test"), paths, strict=True):
            sha = hub.digest_data_file(path.resolve())
            if sha in seen:
                other_option, other_part = seen[sha]
                raise UserError(
                    f"{option}: {path} holds the same as the {other_part} file of {other_option}; "
                    f"name another {part} file there, since a row that trains cannot test and a "
                    "mixture is of two domains"
                )
            seen[sha] = option, part


def define_domains(domains: dict[str, str], p: exbert.Parameters) -> str:
    """Return the definition of the two datasets, as YAML.

    Raises UserError for a file that cannot serve. domains: for each option of the command line its
    text.
    """
    files = {option: find_files(option, text) for option, text in domains.items()}
    refuse_repeated_files(files)
    definitions = {}
    for name, (train, test) in zip(p.domains, files.values(), strict=True):
        definitions[name] = {
            # A link stays: in the hub's cache the file behind it has no ending.
            "train": [str(train.absolute())],
            "test": [str(test.absolute())],
            # validation takes whole contexts: every row has a context, not every row has a title
            "unit": "context",
            "validation_rows": largest_share(p, p.validation_rows),
        }
    return yaml.safe_dump(definitions, sort_keys=False)


def write_definition(definition: str, p: exbert.Parameters):
    """Write a definition to the file that the parameters name.

    Raises UserError where the file holds another one while a study trains, whose workers may read
    it.
    """
    file = Path(p.data)
    if not file.is_file() or file.read_bytes() == definition.encode():
        runs.write(file, definition)
        return
    try:
        with FileLock(runs.RUNS / f"{p.report}.lock", timeout=0):
            runs.write(file, definition)
    except Timeout:
        raise UserError(
            f"{file} defines other domains or other splits of them, and a study of {p.report} is "
            "training here; wait for its end, or give another NAME"
        ) from None


def refuse_other_names(definition: str, p: exbert.Parameters):
    """Raise UserError where a study of the same files has scores under other names of its domains.

    They would be trained again for scores under the new names, in the place of the old ones.
    """
    file = Path(p.data)
    if not file.is_file():
        return
    try:
        then = read_own_datasets(p.data)
    except UserError:  # the file is damaged, and is written anew
        return
    now = yaml.safe_load(definition)
    files_then = sorted((d.train, d.test) for d in then.values())
    files_now = sorted((d["train"], d["test"]) for d in now.values())
    if set(then) == set(now) or files_then != files_now:
        return
    if any(set(then) & set(record["metrics"]) for record in runs.read_all(p.report)):
        raise UserError(
            f"PARAMS: domains: the study of these files calls them {' and '.join(then)}; add "
            f"domains=[{','.join(then)}] to go on with it, or delete {file} to train all of it "
            "again under other names"
        )


# ---- what is run, and how long it takes ----


def foresee_plan(p: exbert.Parameters) -> list[Spec]:
    """Return every run of a study of own data, with stand-ins for the rates that trials choose."""
    return exbert.plan(p, trials.assume_best(p.trial_rates))


def describe_plan(p: exbert.Parameters) -> str:
    """Return what is run, before anything is: the trials, and the runs of what they choose."""
    runs_of_plan = foresee_plan(p)
    tried = {spec.hash for spec in runs_of_plan if spec.variant.endswith("-trial")}
    then = {spec.hash for spec in runs_of_plan if not spec.variant.endswith("-trial")}
    if p.halving:
        then -= tried  # the best trial of a model is the first of its runs
        rates = "1 rate" if len(p.trial_rates) == 1 else f"{len(p.trial_rates)} rates"
        epochs = name_epochs(p, " and then ")
        goes_on = ", the better half goes on" if len(p.trial_epochs) > 1 else ""
        return (
            f"{len(tried)} trials by successive halving ({rates} for every model, "
            f"{epochs}{goes_on}); then {len(then)} runs with the rates they chose; SIZE=full is "
            "the thorough version"
        )
    return (
        f"{len(tried)} trials, more where the best rate is the lowest or the highest tried; then "
        f"about {len(then)} runs with the rates and epochs they chose"
    )


def describe_contexts(p: exbert.Parameters) -> str:
    """Return what the splits and the intervals take together, and how many of it there are."""
    parts = []
    for name in p.domains:
        splits = selection.load_splits(name, p.source, p.data, p.bad_rows)
        kinds = {"training": splits.train, "validation": splits.validation, "test": splits.test}
        counts = []
        for kind, rows in kinds.items():
            counts.append(f"{len(set(selection.name_units(rows, 'context'))):,} {kind}")
        parts.append(f"{name} has {', '.join(counts)}")
    return (
        "validation and intervals take the questions of one context together, and titles play no "
        f"part; contexts: {'; '.join(parts)}"
    )


def remark_on_rows(p: exbert.Parameters, tokenizer) -> list[str]:
    """Return a sentence about each kind of row that makes the scores say less than they seem to."""
    remarks = []
    for name in p.domains:
        splits = selection.load_splits(name, p.source, p.data, p.bad_rows)
        trained = set(selection.name_units(splits.train, "context"))
        tested = set(selection.name_units(splits.test, "context"))
        if both := len(trained & tested):
            remarks.append(
                f"{name}: {both:,} of {len(tested):,} contexts of the test also train, so that "
                "scores are of texts that the models know; docs/own-data.md parts a file by context"
            )
        if repeated := count_repeated_questions(splits.test):
            remarks.append(
                f"{name}: {repeated:,} test rows ask another test row's question of its context "
                "with other answers, and each is scored by its own alone; a question with several "
                "answers is one row of JSON"
            )
        rows = [*splits.train, *splits.validation, *splits.test]
        beyond = span.count_beyond_reach(rows, tokenizer)
        if beyond["answers"]:
            remarks.append(
                f"{name}: {beyond['answers']:,} of {len(rows):,} rows have no answer of at most "
                f"{span.MAX_TOKENS} tokens, the longest that a model gives; mark a shorter part of "
                "the text"
            )
        if beyond["questions"]:
            remarks.append(
                f"{name}: {beyond['questions']:,} of {len(rows):,} questions have more than "
                f"{span.MAX_QUESTION} tokens and are read without their end"
            )
    return remarks


def count_repeated_questions(rows: list[dict]) -> int:
    """Count the rows whose question and context another row has with other answers."""
    answers = defaultdict(set)
    for row in rows:
        answers[selection.row_key(row)].add(tuple(sorted(row["answers"]["text"])))
    return sum(len(answers[selection.row_key(row)]) > 1 for row in rows)


def name_epochs(p: exbert.Parameters, between: str) -> str:
    """Return the epochs of the rounds of halving in words. between: what stands between rounds."""
    if p.trial_epochs == [1]:
        return "1 epoch"
    numbers = between.join(f"{number:g}" for number in p.trial_epochs)
    return f"{numbers} epochs"


def describe_trials(p: exbert.Parameters) -> str:
    """Return how the trials choose, as a page says it."""
    if not p.halving:
        return "A best rate at the edge widens the rates for all; the epochs are the budget."
    text = (
        "Successive halving, alike for all models: every rate is tried with "
        f"{name_epochs(p, ', then ')}"
    )
    if len(p.trial_epochs) > 1:
        text += ", and only the better half of a model's rates goes on to the next round"
    return (
        f"{text}. The best of the last round is kept. SIZE=full is the thorough version: it trains "
        "every rate to the end, adds rates beyond the edge, and compares the models on three "
        "mixtures."
    )


def describe_marks(p: exbert.Parameters) -> str:
    """Return what the marks in the figure of scores mean."""
    if len(p.ratios) > 1:
        return "Bars: sd over seeds; points stand side by side to be seen."
    return "A dot is a seed, a line the mean."


def describe_counts(p: exbert.Parameters) -> str:
    """Return which rows of the two domains were left out or mended, and how many."""
    splits = [selection.load_splits(name, p.source, p.data, p.bad_rows) for name in p.domains]
    parts = []
    for name, part, available in zip(p.domains, splits, count_rows(splits), strict=True):
        counts = {**part.counts, COPIES: len(part.train) - available}
        parts += [f"{name}: {count:,} {what}" for what, count in counts.items() if count]
    return f"Rows left out or mended: {'; '.join(parts) or 'none'}."


def describe_cost(p: exbert.Parameters, hours: float, has_begun: bool) -> str:
    """Return how long all rounds of a study take together, or what is left of them.

    A small study of more than HOURS, as one of long texts is, is told how many rows would take that
    long, unless it has begun: other rows would train all of it anew. One of few seeds is told that
    it will decide nothing.
    """
    needed = f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} min"
    what = "what is left takes" if has_begun else "all rounds together take"
    text = f"{what} about {needed} on this machine"
    if len(p.seeds) < ENOUGH:
        text += f"; with fewer than {ENOUGH} seeds it decides nothing"
    if has_begun or p.size == "full" or hours <= HOURS:
        return text
    fewer = max(FEWEST, int(p.train_rows * HOURS / hours) // 10 * 10)
    return (
        f'{text}; PARAMS="train_rows={fewer}" takes about {HOURS}, and tells less: it trains on '
        f"{fewer} rows instead of {p.train_rows}"
    )


# ---- how many rows there are, and how many are needed ----


def all_ratios(p: exbert.Parameters) -> set[float]:
    """Return the share of the first domain in every mixture that a run may have."""
    return {*p.ratios, *p.control_ratios, p.centre}


def largest_share(p: exbert.Parameters, validation_rows: int) -> int:
    """Return the most validation rows that any mixture takes of one domain."""
    share = max(max(ratio, 1 - ratio) for ratio in all_ratios(p))
    return round(share * validation_rows)


def fewest_validation_rows(p: exbert.Parameters) -> int:
    """Return the fewest validation rows of which every mixture has one of each of its domains."""
    ratios = all_ratios(p)
    shares = ratios | {1 - ratio for ratio in ratios}
    smallest = min(shares - {0})
    return int(0.5 / smallest) + 1  # half a row is rounded to none


def needed_rows(p: exbert.Parameters, train_rows: int) -> list[int]:
    """Return the most training rows that any mixture takes of each domain (exbert.plan)."""
    first = [round(train_rows * ratio) for ratio in all_ratios(p)]
    return [max(first), train_rows - min(first)]


def count_rows(parts: list[selection.Splits]) -> list[int]:
    """Count the training rows of each domain that no held-out row of either domain repeats."""
    held_out = set()
    for part in parts:
        held_out.update(selection.row_key(row) for row in part.test + part.validation)
    counts = []
    for part in parts:
        counts.append(sum(selection.row_key(row) not in held_out for row in part.train))
    return counts


def split_files(
    p: exbert.Parameters, files: list[tuple], validation_rows: int
) -> list[selection.Splits]:
    """Return the splits of the domains for another value of the parameter validation_rows.

    files: for each domain what selection.read_parts returns.
    """
    changed = {"validation_rows": largest_share(p, validation_rows)}
    parts = []
    for name, rows in zip(p.domains, files, strict=True):
        dataset = selection.find_dataset(name, p.source, p.data).model_copy(update=changed)
        parts.append(selection.split_rows(dataset, *rows, Counter()))
    return parts


def fitting_rows(p: exbert.Parameters, files: list[tuple]) -> tuple[int, int] | None:
    """Return values of train_rows and validation_rows that the domains have enough rows for.

    train_rows is at most that of p, and validation_rows at most a fifth of train_rows. Each
    candidate is split as a study would split it. Returns None where no values fit.

    files: for each domain what selection.read_parts returns.
    """
    validation_rows = p.validation_rows
    fewest = fewest_validation_rows(p)
    while validation_rows >= fewest:
        parts = split_files(p, files, validation_rows)
        available = count_rows(parts)
        train_rows = min(p.train_rows, sum(available))
        while lacks_rows(needed_rows(p, train_rows), available):
            train_rows -= 1
        usable = all(part.validation and has_answers(part.train) for part in parts)
        if usable and train_rows >= max(FEWEST, 5 * validation_rows):
            return train_rows, validation_rows
        validation_rows = 3 * validation_rows // 4
    return None


def lacks_rows(needed: list[int], available: list[int]) -> bool:
    """Return whether a domain has fewer rows than are needed of it."""
    return any(n > rows for n, rows in zip(needed, available, strict=True))


def has_answers(rows: list[dict]) -> bool:
    """Return whether any of the rows has an answer."""
    return any(row["answers"]["text"] for row in rows)


# ---- what is wrong with the rows ----


def check_rows(p: exbert.Parameters):
    """Raise UserError where a mixture lacks rows, or where a test set cannot serve.

    The trials use one mixture only, so that a lack in another would show after hours. The error
    proposes values that fit every mixture.
    """
    parts = [selection.load_splits(name, p.source, p.data, p.bad_rows) for name in p.domains]
    for name, part in zip(p.domains, parts, strict=True):
        check_answers(name, "train", part.train)
        check_answers(name, "test", part.test)
        check_test_rows(name, part.test)
    refuse_shortage(p, parts)  # last, so that nothing else is amiss when it proposes values


def check_answers(name: str, kind: str, rows: list[dict]):
    """Raise UserError where no row of a domain's train or test file has an answer."""
    if rows and not has_answers(rows):
        raise UserError(
            f"no row of the {kind} file of {name} has an answer; a row without one is a question "
            "its text leaves open: add rows with answers"
        )


def check_test_rows(name: str, rows: list[dict]):
    """Raise UserError for test rows of a domain that share an id, or have one context in all."""
    ids = Counter(row["id"] for row in rows)
    shared = [identity for identity, count in ids.items() if count > 1]
    if shared:
        raise UserError(
            f"rows of the test file of {name} share an id: {ids[shared[0]]:,} have "
            f"'{sources.make_printable(shared[0])}', the first of {len(shared):,} such ids; give "
            "each row an id of its own, or leave the field id out of all rows; a question with "
            "several answers is one row of JSON"
        )
    if len({selection.normalise_text(row["context"]) for row in rows}) < 2:
        raise UserError(
            f"all rows of the test file of {name} ({len(rows)}) have one context, so that a score "
            "would say nothing of other texts; add test rows of other contexts"
        )


def refuse_shortage(p: exbert.Parameters, parts: list[selection.Splits]):
    """Raise UserError where a mixture needs more rows than a domain has.

    The error proposes values of the parameters that fit. Where none do, it says which rows to add.
    """
    available = count_rows(parts)
    needed = needed_rows(p, p.train_rows)
    if not lacks_rows(needed, available):
        return
    files = []
    for name in p.domains:
        files.append(selection.read_parts(name, p.source, p.data, p.bad_rows, Counter()))
    fitting = fitting_rows(p, files)
    if fitting is None:
        raise UserError(explain_unusable_domain(p, files, parts))
    train_rows, validation_rows = fitting
    i = next(i for i, rows in enumerate(available) if needed[i] > rows)
    held_out = len(parts[i].validation)
    copies = len(parts[i].train) - available[i]
    told = f"{copies:,} {COPIES}" if copies else ""
    reasons = [context_hint(files[i][0]), describe_left_out(parts[i]), told]
    why = "; ".join(reason for reason in reasons if reason)
    why = f" ({why})" if why else ""
    raise UserError(
        f"{p.domains[i]} has {len(parts[i].train) + held_out} training rows; after {held_out} for "
        f"validation {available[i]} are left{why}, and the mixture needs {needed[i]} of it; add "
        f"rows, or take what fits, in PARAMS: "
        f"train_rows={train_rows} validation_rows={validation_rows}"
    )


def explain_unusable_domain(
    p: exbert.Parameters, files: list[tuple], parts: list[selection.Splits]
) -> str:
    """Return a sentence about the domain that has too few rows for any values of the parameters.

    It is the domain with the fewest training rows when validation takes as few as it can.
    """
    counts = count_rows(split_files(p, files, fewest_validation_rows(p)))
    i = counts.index(min(counts))
    hint = context_hint(files[i][0])
    if hint:
        return (
            f"{p.domains[i]} cannot be split: {hint}, so that too few are left to train on; add "
            "rows of other contexts, or cut that context into several"
        )
    total = len(parts[i].train) + len(parts[i].validation)
    needed = needed_rows(p, p.train_rows)[i] + largest_share(p, p.validation_rows)
    left_out = describe_left_out(parts[i])
    why = f" ({left_out})" if left_out else ""
    return (
        f"{p.domains[i]} has {total} training rows that no test row repeats{why}: too few to train "
        f"on; add rows, {needed:,} are needed in all with train_rows={p.train_rows} and "
        f"validation_rows={p.validation_rows}"
    )


def describe_left_out(part: selection.Splits) -> str:
    """Return half a sentence about the rows of a domain that the study leaves out, else ""."""
    counts = Counter(part.counts)
    del counts["rows with a moved answer"]
    left_out = []
    for what, count in counts.items():
        if count:
            left_out.append(f"{count:,} {what.removesuffix(' dropped')}")
    if not left_out:
        return ""
    text = f"left out of its files: {', '.join(left_out)}"
    if any(counts[kind] for kind in sources.KINDS):
        text += "; bad_rows=stop in PARAMS says what is wrong with the bad ones"
    return text


def context_hint(rows: list[dict]) -> str:
    """Return half a sentence where one context has most of the training rows, else ""."""
    sizes = Counter(selection.normalise_text(row["context"]) for row in rows)
    most = max(sizes.values(), default=0)
    if 2 * most <= len(rows):
        return ""
    return (
        f"one context holds {most:,} of its {len(rows):,} training rows, and whole contexts go "
        "to validation"
    )
