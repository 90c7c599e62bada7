"""The run store: look up, write, verify, collect. One folder a run, one JSON record as its mark of completion.

    runs/<report>/<run>/metrics.json        the record, written last; `checksum` covers it, `files` the files beside it
                        examples.parquet    per example: set, id, cluster (hashed), em, f1, start, end, tokens; never text
                        model.safetensors   only while a child may need it
                        checkpoints/        only while the run is going on
    records/<report>/runs.jsonl, examples-*.parquet     the same, committed

Lookup is by hash (spec.Spec.hash); the variant is a label that the plan gives. Records are portable: copied to
another machine they give every table, figure and page without a GPU and without data.
"""

import hashlib
import json
import math
import os
import shutil
from functools import cache
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError, safe_open

from qa_lib.settings.files import check_writable, write
from qa_lib.settings.params import ROOT, UserError
from qa_lib.settings.spec import Spec, canonical, digest_file


def find_place(variable: str, name: str) -> Path:
    """The folder that a variable of the environment names; of the checkout where it is unset or empty."""
    given = os.environ.get(variable)
    return Path(os.path.expanduser(given)) if given else ROOT / name


RUNS = find_place("QA_RUNS", "runs")
RECORDS = find_place("QA_RECORDS", "records")
FIGURES = find_place("QA_FIGURES", "figures")
LIMIT = 4 * 1024 * 1024  # bytes a committed file may have
# The version of scoring (metrics.py, scoring.py): raised when the same answers would get other scores; records hold theirs.
# 2: an answer keeps the accent of its last letter, and what shows nothing at an answer's ends is no part of it.
SCORING = 2


def run_folder(spec: Spec) -> Path:
    """The run's folder: the one that carries its hash, whatever variant named it first."""
    found = sorted((RUNS / spec.report).glob(f"*-{spec.hash[:8]}"))
    return found[0] if found else RUNS / spec.report / spec.run


def readable_name(path: str) -> str:
    """A file's name as text, also of a locale that reads letters beyond ASCII as single bytes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def encoder_display_name(encoder: str) -> str:
    """An encoder's name in records and on pages: of a folder its own name, since its path is the machine's."""
    name = Path(encoder).name if encoder.startswith((".", "/", "~")) else encoder
    return readable_name(name)


def page_folder(P) -> Path:
    """The folder of a page and all on it: figures/<report>/<profile>, of own data figures/<report>/own-<name>."""
    return FIGURES / P.report / (f"own-{Path(P.data).stem}" if P.profile == "own" else P.profile)


def checksum(record: dict) -> str:
    return hashlib.sha256(
        canonical({k: v for k, v in record.items() if k != "checksum"}).encode()
    ).hexdigest()


def check_store():
    """Raises UserError where no run can be written."""
    check_writable(RUNS, "QA_RUNS")


def check_page(P):
    """Raises UserError where a page, or results.csv beside it, cannot be written."""
    check_writable(page_folder(P), "QA_FIGURES")


def format_csv(frame: pd.DataFrame) -> str:
    """A frame as a .csv file: the same numbers give the same bytes."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def format_parquet(frame: pd.DataFrame) -> bytes:
    """A frame as a .parquet file."""
    return frame.to_parquet(None, compression="zstd", index=False)


def save(spec: Spec, record: dict, examples: pd.DataFrame):
    """Write a run's record; metrics.json comes last and marks completion.

    Raises ValueError for a number that is none: NaN is an error, never a score.
    """
    for name, scores in record["metrics"].items():
        if bad := [k for k, v in scores.items() if not math.isfinite(v)]:
            raise ValueError(f"{spec.run}: {bad[0]} on {name} is {scores[bad[0]]}")
    at = run_folder(spec)
    at.mkdir(parents=True, exist_ok=True)
    write(at / "examples.parquet", format_parquet(examples))
    record = {
        "run": spec.run,
        "hash": spec.hash,
        "report": spec.report,
        "variant": spec.variant,
        "seed": spec.seed,
        "spec": spec.model_dump(exclude={"parents", "folder"})
        | {"encoder": encoder_display_name(spec.encoder)},
        "parents": [p.hash for p in spec.parents],
        "scoring": SCORING,
        **record,
        "files": {"examples.parquet": digest_file(at / "examples.parquet")},
    }
    record["checksum"] = checksum(record)
    write(at / "metrics.json", canonical(record))


def _read(at: Path) -> dict | None:
    """The record in a run's folder, verified; None where there is none or it is damaged."""
    if not (at / "metrics.json").exists():
        return None
    try:
        record = json.loads((at / "metrics.json").read_text(encoding="utf-8"))
        if record["checksum"] != checksum(record) or any(
            digest_file(at / f) != sha for f, sha in record["files"].items()
        ):
            raise ValueError("its checksum does not fit")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as e:
        print(f"the record {at.name} is damaged ({e}) and does not count", flush=True)
        return None
    return {**record, "folder": at}


@cache
def read_committed(report: str) -> dict[str, dict]:
    """Committed records by hash. Raises UserError for a damaged line."""
    file = RECORDS / report / "runs.jsonl"
    found = {}
    for n, line in enumerate(file.read_bytes().splitlines() if file.exists() else [], 1):
        try:
            record = json.loads(line)
            if record["checksum"] != checksum(record):
                raise ValueError("its checksum does not fit")
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(
                f"{file}, line {n}: damaged record ({e}); restore the file from git"
            ) from None
        found[record["hash"]] = {**record, "folder": None}
    return found


def read_all(report: str) -> list[dict]:
    """Every complete record of a report, committed or in the store."""
    found = dict(read_committed(report))
    for at in sorted((RUNS / report).glob("*/metrics.json")):
        if record := _read(at.parent):
            found.setdefault(record["hash"], record)
    return list(found.values())


def find_record(spec: Spec, fresh: bool = False) -> dict | None:
    """The complete record of a training, or None.

    A record from another kind of machine (a GPU, one without bf16) serves too. Complete: it holds every test set the plan
    asks for. fresh: committed records do not count.
    """
    for s in spec.machine_variants():
        for record in (
            _read(run_folder(s)),
            None if fresh else read_committed(s.report).get(s.hash),
        ):
            if record and set(spec.tests) <= set(record["metrics"]):
                return record
    return None


def command_for(x) -> str:
    """What makes the runs of a page's parameters, or a run."""
    return "make own NAME=…" if x.profile == "own" else f"make train-{x.report} PROFILE={x.profile}"


def require_records(specs: list[Spec]) -> list[tuple[Spec, dict]]:
    """Each training with its record. Raises UserError where one is missing: no number without evidence."""
    found = [(s, find_record(s)) for s in specs]
    if missing := {s.hash: s.run for s, r in found if r is None}:
        more = f" SIZE={specs[0].size} DATA=folder" * (specs[0].profile == "real")
        raise UserError(
            f"{len(missing)} of {len({s.hash for s in specs})} runs have no record, first "
            f"{next(iter(missing.values()))}; {command_for(specs[0])}{more} makes them"
        )
    for _, record in found:  # scores of two versions are never pooled
        if (version := scoring_version(record)) != SCORING:
            raise UserError(
                f"{record['run']} has scores of version {version} and this code scores by version {SCORING}; python -m "
                f"qa_lib rescore {record['report']} with the profile and data of the run scores its answers again"
            )
    return found


def scoring_version(record: dict) -> int:
    """Return the version of scoring that a record's scores are of; the first records do not say theirs."""
    return record.get("scoring", 1)


def label_columns(spec: Spec, record: dict) -> dict:
    """The columns that every frame begins with: what was trained, under the plan's labels."""
    apart = {
        "parents",
        "folder",
        "fingerprints",
        "places",
        "tests",
        "weights",
        "layer",
        "gate",
        "recipe",
    }
    fields = {k: v for k, v in spec.model_dump(exclude=apart).items() if not isinstance(v, list)}
    layer = spec.layer.model_dump() if spec.layer and spec.dense is None else {}
    gate = spec.gate.model_dump() if spec.gate else {}
    return {
        "run": record["run"],
        **fields,
        **layer,
        **gate,
        "rows": sum(spec.rows),
        "encoder": encoder_display_name(spec.encoder),
        "device": record["environment"]["device"],
        "precision": record["environment"]["precision"],
    }


def collect_ledger(specs: list[Spec]) -> pd.DataFrame:
    """One row per run × test set × metric: the labels, set, metric, value (percent), n (rows scored)."""
    return pd.DataFrame(
        [
            {
                **label_columns(s, r),
                "set": name,
                "metric": metric,
                "value": value,
                "n": int(scores["n"]),
            }
            for s, r in require_records(specs)
            for name in [*s.tests, *{"training"} & set(r["metrics"])]
            for scores in [r["metrics"][name]]
            for metric, value in scores.items()
            if metric not in ("n", "clusters", "overflowed")
        ]
    )


def collect_histories(specs: list[Spec]) -> pd.DataFrame:
    """One row per run × look: the labels, epoch, train_loss (mean since the look before; of a last look a few steps after another
    nothing was logged, and it has that one's), validation_loss, validation_em …"""
    frame = pd.DataFrame(
        [{**label_columns(s, r), **row} for s, r in require_records(specs) for row in r["history"]]
    )
    if len(frame):
        frame["train_loss"] = (
            frame.astype({"train_loss": float})
            .groupby(["run", "variant", "arm"])["train_loss"]
            .ffill()
        )
    return frame


def collect_examples(specs: list[Spec]) -> pd.DataFrame:
    """One row per run × test example: run, variant, seed, ratio, set, id, cluster, em, f1, start, end, tokens."""
    frames = []
    for spec, record in require_records([s for s in specs if s.tests]):  # a trial has none
        frame = read_examples(record)
        frame = frame[frame["set"].isin(spec.tests)]
        frames.append(
            frame.assign(run=record["run"], variant=spec.variant, seed=spec.seed, ratio=spec.ratio)
        )
    return pd.concat(frames, ignore_index=True)


def read_examples(record: dict) -> pd.DataFrame:
    """Return the examples of a record, from the store or from the committed ones. Raises UserError where they are gone."""
    if record["folder"]:
        return pd.read_parquet(record["folder"] / examples_file(record))
    report, run = record["report"], record["run"]
    if any(
        set(scores) >= {"em"} for scores in record["metrics"].values()
    ) and run not in _read_committed_examples(report):
        raise UserError(
            f"{RECORDS / report}: the examples of {run} are in no examples-*.parquet; restore them from git"
        )
    return _read_committed_examples(report).get(run, pd.DataFrame({"set": [], "id": []}))


def examples_file(record: dict) -> str:
    """Return the name of the file beside a record that holds its examples; rescored ones have a name of their own."""
    return next(name for name in record["files"] if name.startswith("examples"))


def collect_expert_examples(mixture: Spec) -> pd.DataFrame:
    """The examples of a mixture's experts on its own test sets; `expert`: the dataset that each learnt."""
    learners = [e.model_copy(update={"tests": mixture.tests}) for e in mixture.parents]
    learnt, rows = (
        {find_record(e)["run"]: e.domains[0] for e in learners},
        collect_examples(learners),
    )
    return rows.assign(expert=rows["run"].map(learnt))


@cache
def _read_committed_examples(report: str) -> dict[str, pd.DataFrame]:
    """Run → its committed examples; of a landing that was cut short and made again the later ones."""
    parts = []
    for file in sorted((RECORDS / report).glob("examples-*.parquet")):
        try:
            parts.append(pd.read_parquet(file))
        except (OSError, ValueError) as e:
            raise UserError(
                f"{file} cannot be read ({' '.join(str(e).split())[:80]}); restore the file from git"
            ) from None
    return (
        dict(
            iter(pd.concat(parts).drop_duplicates(["run", "set", "id"], keep="last").groupby("run"))
        )
        if parts
        else {}
    )


def write_ledger(p, specs: list[Spec]) -> Path:
    """results.csv of a profile, touched only if its content changed (make renders what is newer)."""
    file, text = page_folder(p) / "results.csv", format_csv(collect_ledger(specs))
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write(file, text)
    return file


def land(report: str, specs: list[Spec]) -> int:
    """Append completed runs to the committed records; returns how many were new.

    A run that a committed record of any machine serves (one trained again, FRESH=1) stays out: two would be one result twice.
    """
    known, new = read_committed(report), {}
    for same in (s.machine_variants() for s in specs):
        found = next(filter(None, map(_read, map(run_folder, same))), None)
        # a trial, scored on validation alone, may be trained again as a run that is scored on the test sets too
        if found and not any(
            set(found["metrics"]) <= set(known[s.hash]["metrics"]) for s in same if s.hash in known
        ):
            new[found["hash"]] = found
    for record in new.values():
        if scoring_version(record) != SCORING:
            raise UserError(
                f"{record['run']} has scores of version {scoring_version(record)}, and version {SCORING} is landed; "
                f"python -m qa_lib rescore {report} with the profile and data of the run scores its answers again"
            )
    if new:
        commit(report, new, {h: read_examples(r) for h, r in new.items()})
    return len(new)


def commit(report: str, new: dict[str, dict], examples: dict[str, pd.DataFrame]):
    """Write records, by hash, among the committed ones, and examples of theirs into further files.

    An earlier record of the same hash is replaced, and of examples of a run the later ones count.
    """
    target, known = RECORDS / report, read_committed(report)
    target.mkdir(parents=True, exist_ok=True)
    read = [frame.assign(run=new[h]["run"]) for h, frame in examples.items()]
    frames = [f for f in read if len(f)]  # a trial has no examples, and its empty columns no types
    part = 1 + max(
        (int(f.stem.split("-")[1]) for f in target.glob("examples-*.parquet")), default=-1
    )
    while frames:  # files of at most LIMIT bytes, a whole number of runs in each
        for size in range(len(frames), 0, -1):
            content = format_parquet(pd.concat(frames[:size]))
            if len(content) <= LIMIT:
                break
        write(target / f"examples-{part:03d}.parquet", content)
        frames, part = frames[size:], part + 1
    records = [{k: v for k, v in r.items() if k != "folder"} for r in (known | new).values()]
    records.sort(key=lambda r: r["run"])
    write(target / "runs.jsonl", "".join(canonical(r) + "\n" for r in records))
    read_committed.cache_clear()
    _read_committed_examples.cache_clear()


def replace(report: str, changed: dict[str, tuple[dict, pd.DataFrame, int]]):
    """Write rescored records in the place they were read from, the store or the committed ones.

    changed: hash → (record, its examples, how many of them differ); examples that do not differ are not written again.
    """
    landed, landed_examples = {}, {}
    for h, (record, frame, moved) in changed.items():
        at = record["folder"]
        record = {k: v for k, v in record.items() if k not in ("folder", "checksum")}
        old = examples_file(record)
        if at and moved:  # under another name: until the record names it, the old pair is whole
            name = f"examples-scoring-{SCORING}.parquet"
            write(at / name, format_parquet(frame))
            record["files"] = {name: digest_file(at / name)}
        record["checksum"] = checksum(record)
        if at:
            write(at / "metrics.json", canonical(record))
            if old not in record["files"]:
                (at / old).unlink()
            continue
        landed[h] = record
        if moved:
            landed_examples[h] = frame
    if landed:
        commit(report, landed, landed_examples)


def has_weights(spec: Spec) -> bool:
    """Are a run's weights there, and whole? Those that a power cut has truncated are removed."""
    file = run_folder(spec) / "model.safetensors"
    if not file.exists():
        return False
    try:
        with safe_open(file, framework="numpy"):  # compares the file's size with its header
            return True
    except SafetensorError:
        print(f"the weights of {spec.run} are damaged and do not count", flush=True)
        file.unlink(missing_ok=True)
        return False


def discard(spec: Spec, what: str):
    """Remove a run's checkpoints or weights."""
    path = run_folder(spec) / what
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
