"""A study: what is missing → trained, in this process, in worker processes or on a Ray cluster; estimates and progress.

    python -m qa_lib study REPORT [--profile P] [--size S] [--data DIR] [--workers N] [--fresh] [--yes] [--dry-run] [--fetch]

Make decides what to render, the run store decides what to train: only runs without a complete record are trained.
Everything that can be refused is refused before the first training starts.
"""

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait

import pandas as pd
import psutil
import torch
from filelock import FileLock, Timeout

from qa_lib.data import selection
from qa_lib.models import encoders
from qa_lib.models.exbert import Block
from qa_lib.settings import encoder_files
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import pool

HOURS = 12  # above this a study stops unless told YES=1
CHARACTERS = 4.4  # of English text per word piece, for the estimate


class Progress:
    """One line for the run at hand, rewritten on a terminal, printed now and then in a notebook or a log."""

    def __init__(self, live: bool | None = None):
        self.live = sys.stdout.isatty() if live is None else live
        self.shown = 0.0

    def __call__(self, line: str):
        if time.monotonic() - self.shown >= (0.5 if self.live else 15) or "  step " not in line:
            print(
                f"\r\033[K  {line}" if self.live else f"  {line}",
                end="" if self.live else "\n",
                flush=True,
            )
            self.shown = time.monotonic()


def list_missing(specs: list[Spec], fresh: bool = False) -> list[Spec]:
    """The runs to train, as this machine trains them, parents before children: those without a complete record, and any parent
    whose weights a missing child needs and nobody kept.

    On a GPU trials are scored on the test sets at once: the best, trained again for its scores, would not be the same to the last
    digit there, and might no longer be the best.
    """
    order: dict[str, Spec] = {}
    every = max((s.tests for s in specs), key=len) if torch.cuda.is_available() and specs else []

    def visit(spec: Spec):
        for parent in spec.parents:
            if not runs.has_weights(parent):
                visit(parent)
        order.setdefault(spec.hash, spec)

    for spec in specs:
        if runs.find_record(spec, fresh) is None:
            visit(spec.for_this_machine().model_copy(update={"tests": spec.tests or every}))
    return list(order.values())


def list_parents(specs: list[Spec]) -> set[str]:
    return {p.hash for s in specs for p in s.parents}


def estimate_tokens(spec: Spec, known: dict[tuple, tuple]) -> float:
    """Tokens a run has to go through, a token that is only scored counting a third. Loads and so checks its data.

    known: what other runs on as many rows of the same sets were found to have; another seed draws others of like length.
    """

    def tokens(rows: list[dict]) -> float:
        return sum(len(r["context"]) + len(r["question"]) for r in rows) / CHARACTERS

    if (key := (*spec.domains, *spec.rows, spec.validation_rows, *spec.tests)) not in known:
        train, validation, _ = selection.draw_mixture(spec)
        known[key] = (
            tokens(train),
            tokens(validation),
            sum(tokens(rows) for _, rows in selection.load_test_sets(spec).values()),
        )
    train, validation, scored = known[key]
    # on what its experts and the plain encoder say, computed for the first gate that asks
    if spec.gate:
        first = (said := (*spec.rows, *(e.hash for e in spec.parents))) not in known
        known[said] = ()
        return train / 10 + first * (1 + len(spec.parents)) * (train + validation) / 3
    share = (1 + spec.augment) / (spec.cluster[1] if spec.cluster else 1)
    looked = spec.looks * (validation + train * spec.watched / sum(spec.rows))
    return spec.epochs * share * (train + looked / 3) + scored / 3


def batch_memory(spec: Spec) -> float:
    """GB that a run on CPU takes beside its weights: MiniLM took 5.2 at batch 8 and 7.4 at 16."""
    return 2.5 + 5 * spec.batch_size * spec.max_length / (16 * 384)


def check_memory(spec: Spec):
    """Raise UserError where a run on CPU needs more than twice the memory that the machine has.

    The system would end it without a word. Twice, since the need of a batch is a rough guess.
    """

    encoder, _ = encoders.load_encoder(spec.encoder, spec.blocks)
    weights = sum(p.numel() for p in encoder.parameters())
    if spec.layer:
        with torch.device("meta"):  # counted, not made
            block = Block(encoder.config.hidden_size, spec.layer, spec.dense)
        weights += sum(p.numel() for p in block.parameters())
    for_weights = 16 * weights / 2**30  # weight, gradient and two moments, four bytes each
    # build.build_model refuses more
    length = min(spec.max_length, encoders.count_positions(encoder))
    for_batch = batch_memory(spec.model_copy(update={"max_length": length}))
    total = psutil.virtual_memory().total / 2**30
    if for_weights + for_batch > 2 * total:
        if for_weights > for_batch:
            cause, cure = "its weights", "lower experts or width"
        else:
            cause, cure = f"a batch of {spec.batch_size} windows", "lower batch_size or max_length"
        raise UserError(
            f"{spec.run} needs about {for_weights + for_batch:.0f} GB of memory, most of "
            f"it for {cause}, and this machine has {total:.0f}; {cure}"
        )


def measure_speed(spec: Spec) -> float:
    """Tokens a second that this machine trains: three steps of the run's own encoder, batch and precision."""
    from qa_lib.training import build  # takes seconds, and only training needs it

    device = build.device_of(spec)
    before = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cuda" else spec.threads)
    model = build.build_model(spec.model_copy(update={"parents": []}))[0].to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    length = min(128, spec.max_length)
    pieces = model.encoder.get_input_embeddings().num_embeddings
    ids = torch.randint(pieces, (spec.batch_size, length), device=device)
    for step in range(3):
        if step == 1:  # the first warms up
            began = time.monotonic()
        with torch.autocast(device, torch.bfloat16, enabled=spec.precision == "bf16"):
            out = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                start_positions=ids[:, 0] % length,
                end_positions=ids[:, 1] % length,
            )
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        out.loss.item()
    torch.set_num_threads(before)
    return 2 * ids.numel() / (time.monotonic() - began)


def speed_class(spec: Spec) -> tuple:
    """Runs alike in this are alike in speed."""
    return (
        spec.weights,
        spec.blocks,
        spec.batch_size,
        bool(spec.layer),
        spec.dense,
        bool(spec.gate),
        spec.reinit,
    )


def estimate_cost(todo: list[Spec], workers: int) -> tuple[dict[str, float], float, float]:
    """(tokens of each run, hours in all, disk in GB). Raises UserError where the disk is too small."""
    known: dict[tuple, tuple] = {}
    tokens = {s.hash: estimate_tokens(s, known) for s in todo}
    kinds = {speed_class(s): s.parents[0] if s.gate else s for s in todo}
    if not torch.cuda.is_available():
        for spec in kinds.values():
            check_memory(spec)
    speed = {k: measure_speed(s) for k, s in kinds.items()}
    hours = sum(tokens[s.hash] / speed[speed_class(s)] for s in todo) / 3600
    size = 4 * max(
        sum(p.numel() for p in encoders.load_encoder(s.encoder)[0].parameters())
        for s in kinds.values()
    )
    disk = (
        2 * 3 * size * workers + size * len(list_parents(todo)) + 20 * sum(tokens.values())
    ) / 1e9  # checkpoints, weights, features
    free = shutil.disk_usage(runs.RUNS).free / 1e9
    if free < disk:
        raise UserError(
            f"the disk of {runs.RUNS} has {free:.1f} GB free and this study needs about {disk:.1f}; make room, or "
            "set QA_RUNS to a folder on a larger disk"
        )
    # 1.5: loading, padding, cores that share one memory
    return (
        tokens,
        1.5 * hours / min(workers, len(todo)),
        disk,
    )


def default_workers(specs: list[Spec]) -> int:
    """Runs to train at once where nobody said: as many as a cluster takes; on CPU as many as fill the cores and the memory, at
    most four."""
    if specs and (ray := pool.cluster()):
        return pool.size(ray, specs[0])
    if torch.cuda.is_available() or not specs:
        return 1
    need = max(batch_memory(s) for s in specs)
    memory = psutil.virtual_memory().available / 2**30 // need
    return int(max(1, min(os.cpu_count() // min(s.threads for s in specs), memory, 4, len(specs))))


def fetch_inputs(p):
    """Fetch and verify what a profile needs, so that it runs offline afterwards: rows, encoder, revisions."""
    names = [name for of_field in p.named_datasets().values() for name in of_field]
    for name in dict.fromkeys(names):
        part = selection.load_splits(name, p.source, p.data, p.bad_rows)
        print(
            f"{name}: {len(part.train)} training, {len(part.validation)} validation, {len(part.test)} test rows"
            + "".join(f"; {v} {k}" for k, v in part.counts.items() if v)
        )
    encoders.load_encoder(p.encoder)
    print(f"encoder {p.encoder}: {encoder_files.identify_weights(p.encoder)[:12]}")


def run(
    p,
    plan: Callable[..., list[Spec]],
    workers: int | None = None,
    fresh: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    live: bool | None = None,
) -> pd.DataFrame:
    """Train what a report's plan is missing; returns one row per run: run, seconds, trained (now or found).

    plan: gives the list of runs of parameters `p` (qa_lib.reports.plans.plan).

    Raises UserError before anything is trained for bad data, a missing encoder, too little disk, or too many hours.
    """
    specs = plan(p)
    todo = list_missing(specs, fresh)
    known = len({s.hash for s in specs})
    print(
        f"study {p.report}, profile {p.profile}, size {p.size}: {known} runs, {len(todo)} to train",
        flush=True,
    )
    if any(s.precision != p.precision for s in todo):
        print("no bf16 instructions here: what is trained is trained in fp32", flush=True)
    if todo:
        runs.check_store()
        if not dry_run:
            runs.check_page(p)  # which is drawn when all is trained
        runs.RUNS.mkdir(parents=True, exist_ok=True)
        lock = FileLock(runs.RUNS / f"{p.report}.lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            print(f"another study of {p.report} is training here; waiting for it", flush=True)
            held = lock.acquire()
        with held:
            if todo := list_missing(specs, fresh):  # what the other one left
                many = workers or default_workers(todo)
                tokens = _announce(todo, many, yes)
                if not dry_run:
                    _train(todo, tokens, many, list_parents(todo), live)
        specs = plan(p)
        if not dry_run and list_missing(specs, fresh):  # what trials have decided
            frame = run(p, plan, workers, fresh, yes, dry_run, live)
            return frame.assign(
                trained=frame["trained"].mask(frame["run"].isin([s.run for s in todo]), "now")
            )
    now = {s.hash for s in todo}
    return pd.DataFrame(
        [
            {
                "run": r["run"],
                "seconds": round(r["seconds"]),
                "trained": "now" if r["hash"] in now else "found",
            }
            for s in specs
            if (r := runs.find_record(s, fresh))
        ],
        columns=["run", "seconds", "trained"],
    )


def _announce(todo: list[Spec], workers: int, yes: bool) -> dict[str, float]:
    """Say what a study will cost, and stop one that costs too much; returns the tokens of each run."""
    tokens, hours, disk = estimate_cost(todo, workers)
    amount = f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} min"
    where = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    )
    print(
        f"about {amount} on this machine ({where}, {workers} at once), {disk:.1f} GB of disk",
        flush=True,
    )
    if hours > HOURS and not yes:
        raise UserError(
            f"that is more than {HOURS} hours; say YES=1 to start it, or choose a smaller SIZE or fewer seeds"
        )
    return tokens


def _train_one(spec: Spec, keep: bool, live: bool | None):
    """Train one run and end its progress line; the disk's end is the user's to mend."""
    from qa_lib.training import train  # likewise

    progress = Progress(live)
    try:
        record = train.train(spec, progress, keep_weights=keep)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of {runs.RUNS} is full; make room, the same command goes on from here"
            ) from None
        raise
    scores = ", ".join(
        f"{name} EM {m['em']:.1f}" for name in spec.tests for m in [record["metrics"][name]]
    )
    progress(f"{spec.run}  {record['seconds']:.0f} s  {scores}")
    if progress.live:
        print(flush=True)


def _train(
    todo: list[Spec], tokens: dict[str, float], workers: int, keep: set[str], live: bool | None
):
    """Train runs, parents before children, and drop a parent's weights when its last child is done."""
    began, done, waiting = time.monotonic(), [], list(todo)

    def finished(spec: Spec):
        done.append(spec)
        left = sum(tokens[s.hash] for s in todo if s not in done)
        seconds = (time.monotonic() - began) * left / sum(tokens[s.hash] for s in done)
        print(f"{len(done)}/{len(todo)} runs, about {seconds / 60:.0f} min left", flush=True)
        for p in spec.parents:
            if not any(p.hash in list_parents([s]) for s in todo if s not in done):
                runs.discard(p, "model.safetensors")

    ray = pool.cluster()
    if workers == 1 and not ray:
        for spec in todo:
            _train_one(spec, spec.hash in keep, live)
            finished(spec)
        return
    team, going = pool.Cluster(ray) if ray else pool.Processes(workers), {}
    try:
        while waiting or going:
            ids = {s.hash for s in todo if s not in done}
            for spec in [s for s in waiting if not ids & list_parents([s])][
                : 2 * workers - len(going)
            ]:
                waiting.remove(spec)
                going[team.submit(_train_one, spec, spec.hash in keep, False)] = spec
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                if error := future.result():
                    raise error
                finished(going.pop(future))
    except BrokenExecutor:
        raise UserError(
            f"the system ended a worker, most likely for want of memory; WORKERS={max(1, workers - 1)} trains fewer "
            "runs at once and goes on from here"
        ) from None
    finally:
        team.stop()


def print_comparison(p, plan: Callable[..., list[Spec]]):
    """Print ours against committed, per run and test set."""
    known = runs.read_committed(p.report)
    for spec in plan(p):
        ours, theirs = (
            runs.find_record(spec, fresh=True),
            next((known[s.hash] for s in spec.machine_variants() if s.hash in known), None),
        )
        for name in [x for x in spec.tests if ours and theirs and x in theirs["metrics"]]:
            on = (
                ""
                if ours["hash"] == theirs["hash"]
                else " ({device}, {precision})".format(**theirs["environment"])
            )
            print(
                f"{ours['run']}  {name}: EM {ours['metrics'][name]['em']:.2f}, committed {theirs['metrics'][name]['em']:.2f}{on}"
            )
