"""The run store: a folder for each run, with a JSON record that marks the run as complete.

    runs/<report>/<run>/metrics.json        the record, written last
                        examples.parquet    a row for each example that was scored; never its text
                        model.safetensors   only while another run may need the weights
                        checkpoints/        only while the run is going on
    records/<report>/runs.jsonl, examples-*.parquet     the same, committed to git

In a record, `checksum` covers the record and `files` holds the sha256 of the files beside it. The
columns of examples are set, id and cluster (hashed); of spans em, f1, start, end and tokens, and
em_starter and f1_starter by the starter code's rule; of sentences accuracy or pearson; of pools
part; of mixtures gate_1, gate_2 and so on. `code` says which code made the run (code_hashes.py). A
record in runs/ that other code made is stale; a committed one never is, since its commit
stands in it.

A record is looked up by hash (spec.Spec.hash); the variant is a label that the plan gives. Records
are portable: copied to another machine they give every table, figure and page, without a GPU and
without data.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from qa_lib.settings.files import check_writable, write
from qa_lib.settings.params import ROOT, UserError
from qa_lib.settings.spec import Spec, canonical, digest_file
from qa_lib.store import code_hashes


def find_place(variable: str, name: str) -> Path:
    """Return the folder that an environment variable names.

    Where the variable is unset or empty, this is the folder `name` of the checkout.
    """
    given = os.environ.get(variable)
    if given:
        return Path(os.path.expanduser(given))
    return ROOT / name


RUNS = find_place("QA_RUNS", "runs")
RECORDS = find_place("QA_RECORDS", "records")
FIGURES = find_place("QA_FIGURES", "figures")
LIMIT = 4 * 1024 * 1024  # bytes that a committed file may have
# The version of scoring (tasks/metrics.py, training/evaluate.py). It is raised when the same
# answers would get other scores, and each record holds the version that it was scored by.
# 2: an answer keeps the accent of its last letter, and loses invisible characters at its ends.
SCORING = 2
# Nested options of a run, whose columns have the option's name in front.
PREFIXED = ("heads", "smart", "multitask", "imbalance", "layer_decay", "distillation")
OWN_SCORES = ("accuracy", "pearson")  # of sets of sentences; a set has one of them
COUNTS = ("n", "clusters", "overflowed")  # stand among a test set's metrics and are no scores


# ---- places and names ----


def run_folder(spec: Spec) -> Path:
    """Return the folder that a run has, or will have.

    Where no folder has the run's name, one with its hash serves, whatever variant is in its name.
    """
    of_report = RUNS / spec.report
    folder = of_report / spec.run
    if folder.is_dir() or not of_report.is_dir():
        return folder
    ending = f"-{spec.hash[:8]}"
    names = [name for name in os.listdir(of_report) if name.endswith(ending)]
    for name in sorted(names):
        # some systems leave files whose names begin with a point beside those of others
        if not name.startswith(".") and (of_report / name).is_dir():
            return of_report / name
    return folder


def page_folder(P) -> Path:
    """Return the folder of a page, its tables and its figures.

    It is figures/<report>/<profile>, or figures/<report>/own-<name> for own data.
    """
    name = f"own-{Path(P.data).stem}" if P.profile == "own" else P.profile
    return FIGURES / P.report / name


def readable_name(path: str) -> str:
    """Return a file name as text, with a mark for bytes that the locale could not decode."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def encoder_display_name(encoder: str) -> str:
    """Return an encoder's name for records and pages.

    A folder is named without its path, which differs between machines, and a hub id without the
    branch that has its weights.
    """
    is_folder = encoder.startswith((".", "/", "~"))
    return readable_name(Path(encoder).name if is_folder else encoder.partition("@")[0])


def command_for(settings) -> str:
    """Return the command that makes the missing runs of a page's parameters, or of a Spec."""
    if settings.profile == "own":
        return "make own NAME=…"
    return f"make train-{settings.report} PROFILE={settings.profile}"


def check_store():
    """Raise UserError where no run can be written."""
    check_writable(RUNS, "QA_RUNS")


def check_page(P):
    """Raise UserError where a page, or results.csv beside it, cannot be written."""
    check_writable(page_folder(P), "QA_FIGURES")


# ---- write a run ----


def format_csv(frame: pd.DataFrame) -> str:
    """Return a frame as a .csv file. The same numbers give the same bytes."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def format_parquet(frame: pd.DataFrame, **options) -> bytes:
    """Return a frame as a .parquet file. options: of pyarrow.parquet.write_table."""
    return frame.to_parquet(None, compression="zstd", index=False, **options)


def pack_parquet(frame: pd.DataFrame) -> bytes:
    """Return the examples of several runs as a .parquet file of half the size.

    Runs repeat each other's ids. In one page and without a dictionary the compressor sees that.
    """
    one_page = {"data_page_size": 2**30, "max_rows_per_page": len(frame) + 1}
    return format_parquet(frame, compression_level=19, use_dictionary=False, **one_page)


def checksum(record: dict) -> str:
    """Return the sha256 of a record without its field `checksum`."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def save(spec: Spec, record: dict, examples: pd.DataFrame):
    """Write a run's record and its examples.

    metrics.json is written last, since it marks the run as complete. Raises ValueError for a score
    that is not finite.
    """
    for test_set, scores in record["metrics"].items():
        for metric, value in scores.items():
            if not math.isfinite(value):
                raise ValueError(f"{spec.run}: {metric} on {test_set} is {value}")
    folder = run_folder(spec)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "examples.parquet", format_parquet(examples))
    settings = spec.model_dump(exclude={*Spec.ROLES, "folder", "stale"})
    settings["encoder"] = encoder_display_name(spec.encoder)
    record = {
        "run": spec.run,
        "hash": spec.hash,
        "report": spec.report,
        "variant": spec.variant,
        "seed": spec.seed,
        "spec": settings,
        **spec.parent_hashes,
        "scoring": SCORING,
        "code": describe_code(spec),
        **record,
        "files": {"examples.parquet": digest_file(folder / "examples.parquet")},
    }
    record["checksum"] = checksum(record)
    if (folder / "metrics.json").is_dir():
        discard(spec, "metrics.json")
    write(folder / "metrics.json", canonical(record))


def describe_code(spec: Spec) -> dict | None:
    """Return the code by which a run is trained here, together with that of its parents' records.

    The result is None where a parent's record does not tell its code.
    """
    code = code_hashes.describe_code(spec)
    for parent in spec.parents:
        record = find_in_store(parent)
        if record:
            code = code_hashes.join_codes(code, record.get("code"))
    return code


def has_weights(spec: Spec) -> bool:
    """Return whether a run's weights are there, whole, and of use to a child.

    Truncated weights are removed. Those that other code made are of no use where stale runs are
    trained again.
    """
    file = run_folder(spec) / "model.safetensors"
    if not file.exists() or (spec.trains_stale and is_stored_stale(spec)):
        return False
    try:
        with safe_open(file, framework="numpy"):  # compares the file's size with its header
            return True
    except SafetensorError:
        print(f"the weights of {spec.run} are damaged and do not count", flush=True)
        file.unlink(missing_ok=True)
        return False


def discard(spec: Spec, what: str):
    """Remove a run's checkpoints or weights. what: the name of the folder or file."""
    path = run_folder(spec) / what
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- look up records ----


def check_checksum(record: dict):
    """Raise ValueError where a record does not fit its checksum."""
    if record["checksum"] != checksum(record):
        raise ValueError("its checksum does not fit")


def read_stored(folder: Path) -> dict | None:
    """Return the record in a run's folder, or None where there is none or it is damaged.

    The record gets a field `folder`.
    """
    file = folder / "metrics.json"
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        check_checksum(record)
        for name, sha in record["files"].items():
            if digest_file(folder / name) != sha:
                raise ValueError("its checksum does not fit")
    except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError) as e:
        print(f"the record {folder.name} is damaged ({e}) and does not count", flush=True)
        return None
    return {**record, "folder": folder}


def find_in_store(spec: Spec) -> dict | None:
    """Return the record in a run's own folder, or None where there is none of this training.

    A folder has the first eight digits of a hash in its name, and so may be that of another run.
    """
    record = read_stored(run_folder(spec))
    if record and record["hash"] == spec.hash:
        return record
    return None


@cache
def read_committed(report: str) -> dict[str, dict]:
    """Return the committed records of a report by hash.

    Raises UserError for a damaged line, and where a run stands in two.
    """
    file = RECORDS / report / "runs.jsonl"
    if not file.exists():
        return {}
    records = {}
    for n, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
            check_checksum(record)
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(
                f"{file}, line {n}: damaged record ({e}); restore the file from git"
            ) from None
        if record["hash"] in records:
            raise UserError(
                f"{file}, line {n}: {record['run']} has an earlier line; restore the file from git"
            )
        records[record["hash"]] = {**record, "folder": None}
    return records


def read_all(report: str) -> list[dict]:
    """Return every complete record of a report, from the committed ones and from the store."""
    records = dict(read_committed(report))
    for file in sorted((RUNS / report).glob("*/metrics.json")):
        record = read_stored(file.parent)
        if record:
            records.setdefault(record["hash"], record)
    return list(records.values())


def find_record(spec: Spec, fresh: bool = False) -> dict | None:
    """Return the record of a training, or None where there is none with every test set of `spec`.

    A record from another kind of machine serves too: one with a GPU, or one without bf16. A stale
    record serves where there is no other, unless stale runs are trained again.
    fresh: leave out the committed records.
    """
    record, stale_record = look_up(spec, fresh)
    if record is None and not spec.trains_stale:
        return stale_record
    return record


def describe_replacing(specs: list[Spec]) -> str:
    """Return one sentence where records in the store stand for committed ones; else "".

    They are of the same trainings, made again, and have other numbers.
    """
    replacing = set()
    for spec in specs:
        record = find_record(spec)
        known = record and read_committed(spec.report).get(record["hash"])
        if known and known["checksum"] != record["checksum"]:
            replacing.add(record["run"])
    if not replacing:
        return ""
    return (
        f"{RUNS} has {len(replacing)} of the committed records made again, which are used in "
        f"their place (the first: {min(replacing)}); QA_RUNS=folder leaves them out"
    )


def list_checksums(specs: list[Spec]) -> list[str]:
    """Return the checksum of each record of a plan. They tell whether a record has changed."""
    records = [find_record(spec) for spec in specs]
    return [record["checksum"] for record in records if record]


def look_up(spec: Spec, fresh: bool = False) -> tuple[dict | None, dict | None]:
    """Return the record of a training, and the stale record that could stand in its place.

    Each has every test set of `spec`, or is None. The second is looked for where the first is None.
    """
    stale_record = None
    for candidate in spec.machine_variants():
        records = [find_in_store(candidate)]
        if not fresh:
            records.append(read_committed(candidate.report).get(candidate.hash))
        for record in records:
            if not record or not holds_all(record, spec):
                continue
            if not is_stale(candidate, record):
                return record, None
            stale_record = stale_record or record
    return None, stale_record


def holds_all(record: dict, spec: Spec) -> bool:
    """Return whether the record of a run's training has all that the run asks for.

    It asks for scores on its test sets, as they are defined today, and for what its labels say that
    the training measures. A record may have scores on more sets, or measurements that nobody asks
    for. The first records do not tell of their test sets.
    """
    if not set(spec.tests) <= set(record["metrics"]):
        return False
    recorded = record["spec"]
    for name in spec.tests:
        then = recorded.get("test_fingerprints", {}).get(name)
        today = spec.test_fingerprints.get(name)
        if then and today and then != today:
            return False
    if spec.starter and not recorded.get("starter", False):
        return False
    for measured in ("watched", "probes"):
        asked = getattr(spec, measured)
        if asked and recorded.get(measured, 0) != asked:
            return False
    return True


def list_recorded_tests(spec: Spec) -> list[str]:
    """Return every test set on which a record of this training has scores, stored or committed."""
    tests = []
    for candidate in spec.machine_variants():
        committed = read_committed(candidate.report).get(candidate.hash)
        for record in (find_in_store(candidate), committed):
            if record:
                tests += record["spec"]["tests"]
    return list(dict.fromkeys(tests))


def is_stale(spec: Spec, record: dict) -> bool:
    """Return whether other code made a run's record than this process runs, or may have."""
    if record["folder"] is None:  # a committed one
        return False
    return code_hashes.list_differences(spec, record.get("code")) != []


def is_stored_stale(spec: Spec) -> bool:
    """Return whether the record in a run's own folder is stale."""
    record = find_in_store(spec)
    return record is not None and is_stale(spec, record)


def list_stale(specs: list[Spec], fresh: bool = False) -> dict[str, list[str] | None]:
    """Return the runs of which there is a stale record alone: hash → the modules that differ.

    It is None where the code of a record and today's cannot be compared.
    """
    stale = {}
    for spec in specs:
        _, record = look_up(spec, fresh)
        if record:
            stale[spec.hash] = code_hashes.list_differences(spec, record.get("code"))
    return stale


def describe_stale(specs: list[Spec], fresh: bool = False) -> str:
    """Return one line about the stale records of a plan: how many, and which files differ.

    It is empty where there are none.
    """
    stale = list_stale(specs, fresh)
    if not stale:
        return ""
    modules = set()
    for differing in stale.values():
        modules.update(differing or ())
    reasons = []
    if modules:
        names = ", ".join(f"qa_lib/{name}" for name in sorted(modules))
        reasons.append(f"{names} {'differs' if len(modules) == 1 else 'differ'}")
    unknown = list(stale.values()).count(None)
    if unknown:
        reasons.append(f"the code of {unknown} is not known, or of another version of Python")
    if specs[0].trains_stale:
        choice = "they are trained again, STALE=keep keeps the records"
    else:
        choice = "the records are kept, STALE=train trains these runs again"
    planned = len({spec.hash for spec in specs})
    return (
        f"other code made the records of {len(stale)} of {planned} runs "
        f"({'; '.join(reasons)}): {choice}"
    )


def require_records(specs: list[Spec]) -> list[tuple[Spec, dict]]:
    """Return each training with its record, so that no number is without evidence.

    Raises UserError where a record is missing or has scores of another version.
    """
    records = [(spec, find_record(spec)) for spec in specs]
    missing = {spec.hash: spec.run for spec, record in records if record is None}
    if missing:
        hashes = {spec.hash for spec in specs}
        command = command_for(specs[0])
        if specs[0].profile == "real":
            command += f" SIZE={specs[0].size} DATA=folder, with the same PARAMS,"
        message = (
            f"{len(missing)} of {len(hashes)} runs have no record, first "
            f"{next(iter(missing.values()))}; {command} makes them"
        )
        remark = describe_stale(specs)
        raise UserError(f"{message}; {remark}" if remark else message)
    for _, record in records:
        version = scoring_version(record)
        if version != SCORING:  # scores of two versions are never pooled
            raise UserError(
                f"{record['run']} has scores of version {version} and this code scores by version "
                f"{SCORING}; python -m qa_lib rescore {record['report']} with the profile and data "
                "of the run scores its answers again"
            )
    return records


def scoring_version(record: dict) -> int:
    """Return the version of scoring of a record. The first records lack the field."""
    return record.get("scoring", 1)


# ---- collect records into frames ----


def label_columns(spec: Spec, record: dict) -> dict:
    """Return the columns that every frame begins with.

    They say what was trained, under the plan's labels.
    """
    not_shown = {
        *Spec.ROLES,
        "folder",
        "fingerprints",
        "places",
        "tests",
        "test_fingerprints",
        "weights",
        "layer",
        "gate",
        *PREFIXED,
        "recipe",
        "stale",
        "trial_score",
        "probes",
    }
    settings = spec.model_dump(exclude=not_shown)
    columns = {"run": record["run"]}
    columns |= {name: value for name, value in settings.items() if not isinstance(value, list)}
    if spec.layer and spec.dense is None:
        columns |= spec.layer.model_dump()
    if spec.gate:
        columns |= spec.gate.model_dump()
    for part in PREFIXED:
        options = getattr(spec, part)
        if options is None:
            continue
        for name, value in options.model_dump().items():
            if not isinstance(value, list):
                columns[f"{part}_{name}"] = value
    columns["rows"] = sum(spec.rows)
    columns["encoder"] = encoder_display_name(spec.encoder)
    columns["device"] = record["environment"]["device"]
    columns["precision"] = record["environment"]["precision"]
    return columns


def collect_ledger(specs: list[Spec]) -> pd.DataFrame:
    """Return a row for each run, test set and metric.

    Columns: the labels, set, metric, value (scores in percent), and n, the rows that were scored.
    The set "training" holds what was measured while a run trained. The metric `score` of a set of
    sentences is its own of accuracy and pearson, so that sets of both can be put together.
    """
    rows = []
    for labels, test_set, n, scores in _list_scores(specs):
        for metric, value in scores.items():
            rows.append({**labels, "set": test_set, "metric": metric, "value": value, "n": n})
    return pd.DataFrame(rows)


def collect_results(specs: list[Spec]) -> pd.DataFrame:
    """Return a row for each run and test set: the labels, set, n, and a column for each metric.

    It says what collect_ledger says in a sixth of the bytes.
    """
    rows = []
    columns = {}  # their names alone, each once
    metrics = {}
    for labels, test_set, n, scores in _list_scores(specs):
        columns |= labels
        metrics |= scores
        rows.append({**labels, "set": test_set, "n": n, **scores})
    return pd.DataFrame(rows, columns=[*columns, "set", "n", *metrics])


def _list_scores(specs: list[Spec]) -> Iterator[tuple[dict, str, int, dict]]:
    """Give the labels, the set, the rows that were scored, and the scores of each run and set."""
    for spec, record in require_records(specs):
        labels = label_columns(spec, record)
        metrics = record["metrics"]
        test_sets = list(spec.tests)
        if "training" in metrics:
            test_sets.append("training")
        for test_set in test_sets:
            scores = {
                metric: value for metric, value in metrics[test_set].items() if metric not in COUNTS
            }
            for own in OWN_SCORES:
                if own in scores:
                    scores["score"] = scores[own]
            yield labels, test_set, int(metrics[test_set]["n"]), scores


def collect_histories(specs: list[Spec]) -> pd.DataFrame:
    """Return a row for each run and evaluation during training.

    Columns: the labels, epoch, train_loss, validation_loss, and validation_<score> for the scores
    of the run's task: validation_em and validation_f1 of spans. A run on several datasets has
    validation_mean, and validation_<score>_<dataset> of each. train_loss is the mean since the
    evaluation before. Where the last evaluation comes so soon that no loss was logged, it takes
    that of the evaluation before.
    """
    rows = []
    for spec, record in require_records(specs):
        labels = label_columns(spec, record)
        rows.extend({**labels, **evaluation} for evaluation in record["history"])
    frame = pd.DataFrame(rows)
    if len(frame):
        by_run = frame.astype({"train_loss": float}).groupby(["run", "variant", "arm"])
        frame["train_loss"] = by_run["train_loss"].ffill()
    return frame


def collect_examples(specs: list[Spec]) -> pd.DataFrame:
    """Return a row for each run and test example.

    Columns: those of the stored examples, and run, variant, seed, ratio.
    """
    scored = [spec for spec in specs if spec.tests]  # a trial has no test sets
    frames = []
    for spec, record in require_records(scored):
        frame = read_examples(record)
        frame = frame[frame["set"].isin(spec.tests)]
        frames.append(
            frame.assign(run=record["run"], variant=spec.variant, seed=spec.seed, ratio=spec.ratio)
        )
    return pd.concat(frames, ignore_index=True)


def list_scored_experts(mixture: Spec) -> list[Spec]:
    """Return a mixture's experts, each with the mixture's own test sets."""
    tested = {"tests": mixture.tests, "test_fingerprints": mixture.test_fingerprints}
    return [expert.model_copy(update=tested) for expert in mixture.experts]


def collect_expert_examples(mixture: Spec) -> pd.DataFrame:
    """Return the examples of a mixture's experts on the mixture's own test sets.

    The column `expert` names the dataset that each expert was trained on.
    """
    experts = list_scored_experts(mixture)
    examples = collect_examples(experts)  # says which expert has no record
    datasets = {find_record(expert)["run"]: expert.domains[0] for expert in experts}
    return examples.assign(expert=examples["run"].map(datasets))


def average_logged(rows: list[dict], name: str) -> float:
    """Return the mean over a training of a value that was logged as means over several steps.

    rows: of a record's load, each with its step; a row is a mean over the steps since the row
    before. Those without the value are left out. Not a number where no row has it.
    """
    values = []
    weights = []
    last_step = 0
    for row in rows:
        if name in row:
            values.append(row[name])
            weights.append(row["step"] - last_step)
        last_step = row["step"]
    return float(np.average(values, weights=weights)) if values else math.nan


def examples_file(record: dict) -> str:
    """Return the name of the file with a record's examples. Rescored examples have another name."""
    return next(name for name in record["files"] if name.startswith("examples"))


def read_examples(record: dict) -> pd.DataFrame:
    """Return the examples of a record, from the store or from the committed ones.

    Raises UserError where they are gone.
    """
    if record["folder"]:
        return pd.read_parquet(record["folder"] / examples_file(record))
    run = record["run"]
    committed = _read_committed_examples(record["report"])
    if run in committed:
        return committed[run]
    if set(record["metrics"]) - {"training"}:
        raise UserError(
            f"{RECORDS / record['report']}: the examples of {run} are in no examples-*.parquet; "
            "restore them from git"
        )
    return pd.DataFrame({"set": [], "id": []})  # of a trial, which has none


@cache
def _read_committed_examples(report: str) -> dict[str, pd.DataFrame]:
    """Return the committed examples of each run.

    The examples of a run are written whole into one file. Where a landing has replaced them, or was
    cut short and repeated, earlier files may hold the run too; the last one counts.
    """
    examples = {}
    for file in list_example_files(RECORDS / report):
        examples |= dict(iter(read_example_file(file).groupby("run")))
    return examples


def write_ledger(p, specs: list[Spec]) -> Path:
    """Write results.csv of a profile and return its path.

    A file that would not change is left alone, since make renders a page when its file is newer.
    """
    file = page_folder(p) / "results.csv"
    text = format_csv(collect_results(specs))
    if not file.exists() or file.read_bytes() != text.encode():
        write(file, text)
    return file


# ---- commit records ----


def land(report: str, specs: list[Spec]) -> int:
    """Append complete runs to the committed records. Returns how many were new.

    A run stays out where a committed record of any kind of machine serves (it was trained again
    with FRESH=1): with two records one result would count twice. Where none serves, a record
    replaces the committed one of its hash. Raises UserError where a score would be lost so.
    """
    committed = read_committed(report)
    new = {}
    for spec in specs:
        candidates = spec.machine_variants()
        record = find_stored(candidates)
        if record and not is_committed(record, candidates, committed):
            new[record["hash"]] = record
    for record in new.values():
        lost = set(committed.get(record["hash"], record)["metrics"]) - set(record["metrics"])
        if lost:
            raise UserError(
                f"{record['run']} is landed with scores on {', '.join(sorted(lost))}, which this "
                f"record lacks; delete {record['folder']} and train it again: it is then scored on "
                "all of them"
            )
        version = scoring_version(record)
        if version != SCORING:
            raise UserError(
                f"{record['run']} has scores of version {version}, and version {SCORING} is "
                f"landed; python -m qa_lib rescore {report} with the profile and data of the run "
                "scores its answers again"
            )
    if new:
        examples = {hash_: read_examples(record) for hash_, record in new.items()}
        write_committed(report, new, examples)
    return len(new)


def find_stored(candidates: list[Spec]) -> dict | None:
    """Return the first record in the store of one training on different kinds of machine.

    One that lacks what the run asks for is left out, as scores on a test set of today; and a stale
    one where stale runs are trained again.
    """
    for candidate in candidates:
        record = find_in_store(candidate)
        if record is None or not holds_all(record, candidate):
            continue
        if not (candidate.trains_stale and is_stale(candidate, record)):
            return record
    return None


def is_committed(record: dict, candidates: list[Spec], committed: dict[str, dict]) -> bool:
    """Return whether the committed record of a candidate has all that this record has.

    It may have fewer test sets: a trial, which is scored on validation rows alone, may be trained
    again as a run that is scored on test sets too. And it may serve no more, since test rows have
    changed.
    """
    test_sets = set(record["metrics"])
    for candidate in candidates:
        known = committed.get(candidate.hash)
        if known and test_sets <= set(known["metrics"]) and holds_all(known, candidate):
            return True
    return False


def write_committed(report: str, new: dict[str, dict], examples: dict[str, pd.DataFrame]):
    """Write records among the committed ones, and their examples.

    new, examples: by hash. A record replaces an earlier one of the same hash, and its examples
    replace those of that record.
    """
    folder = RECORDS / report
    records = list((read_committed(report) | new).values())
    folder.mkdir(parents=True, exist_ok=True)
    frames = [frame.assign(run=new[hash_]["run"]) for hash_, frame in examples.items()]
    # a trial has no examples, and its empty columns have no types
    write_committed_examples(folder, [frame for frame in frames if len(frame)])
    lines = []
    for record in sorted(records, key=lambda record: record["run"]):
        content = {name: value for name, value in record.items() if name != "folder"}
        lines.append(canonical(content) + "\n")
    write(folder / "runs.jsonl", "".join(lines))
    read_committed.cache_clear()
    _read_committed_examples.cache_clear()


def write_committed_examples(folder: Path, frames: list[pd.DataFrame]):
    """Write a frame for each run into files of at most LIMIT bytes.

    The other runs of the last file are packed again together with the new ones, since runs repeat
    each other's ids. A run is never cut in two, so a larger one has a larger file.
    """
    if not frames:
        return
    files = list_example_files(folder)
    last_file = files[-1] if files else None
    number = 0
    if last_file:
        number = int(last_file.stem.split("-")[1]) + 1
        packed = read_example_file(last_file)
        new_runs = [frame["run"].iloc[0] for frame in frames]
        others = packed[~packed["run"].isin(new_runs)]
        frames = [frame for _, frame in others.groupby("run", sort=False)] + frames
    while frames:
        for size in range(len(frames), 0, -1):
            content = pack_parquet(pd.concat(frames[:size]))
            if len(content) <= LIMIT:
                break
        write(folder / f"examples-{number:03d}.parquet", content)
        frames = frames[size:]
        number += 1
    # A landing that is cut short before this line leaves examples twice, and loses none.
    if last_file:
        last_file.unlink()


def list_example_files(folder: Path) -> list[Path]:
    """Return the files of committed examples in a report's folder, oldest first."""
    return sorted(folder.glob("examples-*.parquet"))


def read_example_file(file: Path) -> pd.DataFrame:
    """Return the examples of a committed file. Raises UserError for a damaged one."""
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as e:
        reason = " ".join(str(e).split())[:80]
        raise UserError(f"{file} cannot be read ({reason}); restore the file from git") from None


def replace_rescored(report: str, changed: dict[str, tuple[dict, pd.DataFrame, int]]):
    """Write rescored records where they were read from, the store or the committed ones.

    changed: for each hash the record, its examples, and how many examples differ. Examples that do
    not differ are not written again.
    """
    committed = {}
    committed_examples = {}
    for hash_, (record, examples, differing) in changed.items():
        folder = record["folder"]
        record = {k: v for k, v in record.items() if k not in ("folder", "checksum")}
        if folder:
            replace_stored(folder, record, examples if differing else None)
            continue
        record["checksum"] = checksum(record)
        committed[hash_] = record
        if differing:
            committed_examples[hash_] = examples
    if committed:
        write_committed(report, committed, committed_examples)


def replace_stored(folder: Path, record: dict, examples: pd.DataFrame | None):
    """Write a rescored record into its run's folder, with its examples unless they are None.

    The examples get another name, so that the old record and its examples stay whole until the new
    record is written.
    """
    old = examples_file(record)
    if examples is not None:
        name = f"examples-scoring-{SCORING}.parquet"
        write(folder / name, format_parquet(examples))
        record["files"] = {name: digest_file(folder / name)}
    record["checksum"] = checksum(record)
    write(folder / "metrics.json", canonical(record))
    if old not in record["files"]:
        (folder / old).unlink()
