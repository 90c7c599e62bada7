"""A study: the missing runs of a report's plan, estimated and trained.

    python -m qa_lib study REPORT [--profile P] [--size S] [--data DIR] [--workers N]
                                  [--fresh] [--stale train|keep] [--yes] [--dry-run] [--fetch]

Runs are trained in this process, in worker processes or on a Ray cluster. Make decides what to
render and the run store decides what to train: only runs without a complete record are trained.
Everything that can be refused is refused before the first training starts.
"""

import errno
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from typing import NamedTuple

import pandas as pd
import psutil
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from qa_lib.data import downloads, selection, sources
from qa_lib.losses.smart import count_forward_equivalents
from qa_lib.models import encoders, recomputed_blocks
from qa_lib.models.exbert import Block
from qa_lib.models.st_moe import Expert
from qa_lib.settings import encoder_files
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.tasks import get_task, span
from qa_lib.training import evaluate, multitask, pool

HOURS = 12  # a longer study stops unless it is told YES=1
NO_ROOM = 16 * 2**20  # bytes; where less is left, a checkpoint that fails to be written lacks room
CHARACTERS = 4.4  # characters of English text per word piece, for the estimate
SAMPLE_LENGTH = 96  # tokens of a window, at most, on which speed is measured


class Progress:
    """Progress of the current run, in one line.

    On a terminal the line is rewritten. In a notebook or a log it is printed now and then.
    live: whether the output is a terminal; asked of stdout where it is None.
    """

    def __init__(self, live: bool | None = None):
        self.live = sys.stdout.isatty() if live is None else live
        self.shown = 0.0

    def __call__(self, line: str):
        interval = 0.5 if self.live else 15  # seconds between two steps that are shown
        if "  step " in line and time.monotonic() - self.shown < interval:
            return
        if self.live:
            print(f"\r\033[K  {line}", end="", flush=True)
        else:
            print(f"  {line}", flush=True)
        self.shown = time.monotonic()


def list_missing(specs: list[Spec], fresh: bool = False) -> list[Spec]:
    """Return the runs to train, as this machine trains them, parents before children.

    These are the runs without a complete record, and the parents whose weights a missing child
    needs and nobody kept. A combination of experts needs no weights but the experts' records.
    fresh: committed records do not count.
    On a GPU trials are scored on the test sets at once: there the best trial, trained again for
    its scores, would not be the same to the last digit, and might no longer be the best.
    """
    missing: dict[str, Spec] = {}
    tests_of_trials: list[str] = []
    if specs and torch.cuda.is_available():
        tests_of_trials = max((spec.tests for spec in specs), key=len)

    def visit(spec: Spec):
        """Add a run, and before it the parents without what it needs of them."""
        if evaluate.is_combined(spec):
            scored = runs.list_scored_experts(spec)
            is_there = [runs.find_record(expert, fresh) is not None for expert in scored]
        else:
            is_there = [runs.has_weights(parent) for parent in spec.parents]
        for parent, serves in zip(spec.parents, is_there, strict=True):
            if not serves:
                visit(parent)
        missing.setdefault(spec.hash, spec)

    for spec in specs:
        if runs.find_record(spec, fresh) is None:
            run = spec.for_this_machine()
            if spec.variant.endswith("-trial") and torch.cuda.is_available():
                # with equal tuning alone, a plan has trials and nothing else at first
                run = run.model_copy(update={"tests": tests_of_trials or spec.domains})
            visit(run)
    return list(missing.values())


def list_parents(specs: list[Spec]) -> set[str]:
    """Return the hashes of the parents of runs."""
    hashes = set()
    for spec in specs:
        hashes.update(parent.hash for parent in spec.parents)
    return hashes


def estimate_tokens(spec: Spec, known: dict[tuple, tuple]) -> float:
    """Estimate the tokens that a run has to process, each counted by what it costs.

    1 is a token in a plain training step. A token that is only scored counts a third. A combination
    of experts, which averages their scores, counts nothing. Loads the run's data, and so checks
    them, and its heads and teachers too.
    known: counts of other runs on as many rows of the same sets, extended here. Another seed draws
    other rows, of like length.
    """
    if spec.heads:
        from qa_lib.training import build  # its import takes seconds, as in measure_speed

        build.check_tasks(spec)
    if spec.distillation:
        from qa_lib.training import teachers  # as above

        teachers.check_teachers(spec)
    tokens = count_run_tokens(spec, known)
    if evaluate.is_combined(spec):
        return 0.0
    train, validation = tokens.epoch, tokens.validation
    if spec.gate and spec.gate.rule != "learned":
        return len(spec.experts) * (validation + tokens.scored) / 3
    if spec.gate:
        gate_training = train / 10
        # The outputs of its experts and of the plain encoder are computed for the first gate.
        outputs = (*spec.rows, *(expert.hash for expert in spec.experts))
        if outputs in known:
            return gate_training
        known[outputs] = ()
        return gate_training + (1 + len(spec.experts)) * (train + validation) / 3
    share = (1 + spec.augment) / (spec.cluster[1] if spec.cluster else 1)
    evaluated = spec.looks * (validation + train * spec.watched / sum(spec.rows))
    trained = train * count_plain_steps(spec)
    training = spec.epochs * share * (trained + evaluated / 3)
    asked = share * tokens.rows * count_questionings(spec, known)
    return training + spec.probes * tokens.probed + (asked + tokens.scored) / 3


class RunTokens(NamedTuple):
    """The tokens of a run's rows."""

    epoch: float  # of training rows, each as often as an epoch visits it
    rows: float  # of training rows, each once
    validation: float
    probed: float  # whose gradients a measurement reads
    scored: float  # of all test sets


def count_run_tokens(spec: Spec, known: dict[tuple, tuple]) -> RunTokens:
    """Estimate the tokens of a run's rows. known: as of estimate_tokens."""
    batches = (str(spec.multitask), spec.batch_size) if spec.multitask else ()
    key = (*spec.domains, *spec.rows, spec.validation_rows, *spec.tests, *batches)
    if key not in known:
        train_rows, validation_rows, _ = selection.draw_mixture(spec)
        test_sets = selection.load_test_sets(spec).values()
        once = dict.fromkeys(spec.domains, 1.0)
        probed = share_probed(spec) if spec.multitask else dict.fromkeys(spec.domains, 0.0)
        known[key] = RunTokens(
            epoch=count_row_tokens(spec, train_rows, multitask.count_passes(spec)),
            rows=count_row_tokens(spec, train_rows, once),
            validation=count_row_tokens(spec, validation_rows, once),
            probed=count_row_tokens(spec, train_rows, probed),
            scored=sum(count_tokens(rows, get_task(d.task)) for d, rows in test_sets),
        )
    return known[key]


def count_stored_bytes(spec: Spec, known: dict[tuple, tuple]) -> float:
    """Count the bytes of the teachers' hidden states that are stored for a run.

    Of each token there are the states of all blocks or of the last, in half precision. Logits are
    few beside a run's windows. known: as of estimate_tokens; what is stored is noted there.
    """
    if spec.distillation is None or spec.distillation.hidden == "none":
        return 0.0
    tokens = count_run_tokens(spec, known).rows
    encoder, _ = encoders.load_encoder(spec.encoder, spec.blocks)
    hidden = spec.distillation.hidden
    blocks = encoder.config.num_hidden_layers if hidden == "all" else 1
    stored = 0
    for teacher in spec.teachers:  # students of one teacher share its states of the same rows
        key = ("stored", hidden, teacher.hash, spec.seed, *spec.domains, *spec.rows)
        if key not in known:
            known[key] = ()
            stored += 1
    if spec.distillation.by_dataset:
        stored /= len(spec.teachers)
    return 2 * tokens * stored * blocks * encoder.config.hidden_size


def count_questionings(spec: Spec, known: dict[tuple, tuple]) -> float:
    """Count how often a run's training rows are read by teachers that were not asked yet.

    That is once for each teacher that no other run has asked about the same rows. Where each
    dataset has its own, the rows of a dataset are read by one of them.
    known: as of estimate_tokens; what is asked is noted there.
    """
    asked = 0
    if spec.distillation is None:
        return asked
    for teacher in spec.teachers:
        key = ("asked", teacher.hash, spec.seed, *spec.domains, *spec.rows)
        if key not in known:
            known[key] = ()
            asked += 1
    return asked / len(spec.teachers) if spec.distillation.by_dataset else asked


def share_probed(spec: Spec) -> dict[str, float]:
    """Return the share of each dataset's rows whose gradients a measurement reads."""
    from qa_lib.training import gradients  # its import takes seconds, as in measure_speed

    sizes = zip(spec.domains, spec.rows, strict=True)
    return {dataset: min(gradients.WINDOWS, rows) / rows for dataset, rows in sizes}


def count_plain_steps(spec: Spec) -> float:
    """Count what a training step costs in plain steps, each of three forward passes."""
    if spec.smart:
        smart = spec.smart
        if spec.precision != "fp32":  # the clean pass is then a pass of its own, whatever dropout
            smart = smart.model_copy(update={"dropout": "off"})
        return count_forward_equivalents(smart) / 3
    if spec.heads and spec.heads.frozen:
        return 1 / 3
    return 1.0


def count_row_tokens(spec: Spec, rows: list[dict], passes: dict[str, float]) -> float:
    """Estimate the tokens of rows of a run's datasets. passes: over the rows of each."""
    tokens = 0.0
    for dataset, of_dataset in multitask.group_rows(spec, rows).items():
        task = selection.find_task(spec, dataset)
        tokens += passes[dataset] * count_tokens(of_dataset, task)
    return tokens


def count_tokens(rows: list[dict], task) -> float:
    """Estimate the tokens of a task's rows from their characters."""
    return sum(task.count_characters(row) for row in rows) / CHARACTERS


def batch_memory(spec: Spec) -> float:
    """Estimate the memory in GB that a run on CPU takes beside its weights.

    The blocks of an encoder keep what models/recomputed_blocks.py counts. With heads by dataset
    they keep at most KEPT, and the block that is recomputed. SMART recomputes none and keeps the
    states of three passes. A gated layer of the ST-MoE block keeps three products of its width.

    Libraries and embedded data take 1.2 GB, and 1.9 with whole datasets. With MiniLM and a batch of
    16 windows of 384 tokens this and the weights make 3.4 GB. Span models that were trained since
    attention is recomputed took 2.6 to 3.8 (peak_memory_mb of their records). A dense layer as wide
    as 16 experts adds 1.2 (tests/benchmarks/batch_memory.py measures steps).
    """
    process = 1.2 if spec.source == "embedded" else 1.9
    encoder, _ = encoders.read_encoder(spec.encoder)
    config = encoder.config
    width = config.hidden_size
    floats = 10 * width + 2 * getattr(config, "intermediate_size", 4 * width)
    tokens = spec.batch_size * spec.max_length
    if spec.heads:
        rows = spec.batch_size // (spec.multitask.passes if spec.multitask else 1)
        tokens = rows * longest_row(spec)
    of_block = tokens * (4 * floats + config.num_attention_heads * spec.max_length)
    states = (spec.blocks or config.num_hidden_layers) * of_block
    if spec.smart:
        states *= 3
    elif spec.heads and recomputed_blocks.list_blocks(encoder):
        states = min(states, recomputed_blocks.KEPT + of_block)
    if spec.layer:
        states += 3 * 4 * tokens * count_hidden_units(spec)
    return process + states / 2**30


def count_hidden_units(spec: Spec) -> int:
    """Return how many hidden units of its ST-MoE block's gated layers a token passes at most."""
    block = make_empty_block(spec)
    units = sum(part.scale.numel() for part in block.modules() if isinstance(part, Expert))
    if block.sparse:  # a token is sent to top_n of the experts
        of_expert = block.experts.experts[0].scale.numel()
        units -= (spec.layer.experts - spec.layer.top_n) * of_expert
    return units


def longest_row(spec: Spec) -> float:
    """Estimate the most tokens that a training row of a run with heads has in a pass.

    A pair that is read apart is two sequences. All else is one, of at most max_length tokens.
    """
    longest = 0.0
    for dataset in spec.domains:
        task = selection.find_task(spec, dataset)
        rows = selection.load_splits(dataset, spec.source, spec.folder, spec.bad_rows).train
        characters = max(map(task.count_characters, rows), default=0)  # no row: refused later
        tokens = characters / CHARACTERS
        sequences = 2 if spec.heads.pairs == "apart" and task.NAME != span.NAME else 1
        longest = max(longest, min(sequences * spec.max_length, tokens))
    return longest


def check_memory(spec: Spec):
    """Raise UserError where a run on CPU needs more than twice the memory that the machine has.

    The system would end such a run without a word. The factor of two allows for the estimate of a
    batch, which is rough.
    """
    # Weight, gradient and two moments, four bytes each.
    for_weights = 16 * count_weights(spec) / 2**30
    # build.build_model refuses longer windows.
    encoder, _ = encoders.load_encoder(spec.encoder, spec.blocks)
    length = min(spec.max_length, encoders.count_positions(encoder))
    for_batch = batch_memory(spec.model_copy(update={"max_length": length}))
    total = psutil.virtual_memory().total / 2**30
    if for_weights + for_batch > 2 * total:
        if for_weights > for_batch:
            cause = "its weights"
            cure = "lower experts or width" if spec.layer else "name a smaller encoder"
        else:
            cause = f"a batch of {spec.batch_size} windows"
            cure = "lower batch_size or max_length"
        raise UserError(
            f"{spec.run} needs about {for_weights + for_batch:.0f} GB of memory, most of "
            f"it for {cause}, and this machine has {total:.0f}; {cure}"
        )


def count_weights(spec: Spec) -> int:
    """Return how many weights the encoder of a run and its ST-MoE block have."""
    encoder, _ = encoders.load_encoder(spec.encoder, spec.blocks)
    weights = sum(p.numel() for p in encoder.parameters())
    if spec.layer:
        weights += sum(p.numel() for p in make_empty_block(spec).parameters())
    return weights


def make_empty_block(spec: Spec) -> Block:
    """Return a run's ST-MoE block without its weights, which takes no memory."""
    encoder, _ = encoders.read_encoder(spec.encoder)
    with torch.device("meta"):
        return Block(encoder.config.hidden_size, spec.layer, spec.dense)


def count_checkpoint_bytes(spec: Spec) -> int:
    """Return the size of a run's checkpoint in single precision.

    It holds the weights and two moments, and with the Bregman term of SMART their average.
    """
    copies = 4 if spec.smart and spec.smart.bregman > 0 else 3
    return 4 * copies * count_weights(spec)


def measure_speed(spec: Spec) -> float:
    """Measure the tokens a second that this machine trains.

    Trains plain steps with the run's own encoder, batch size, precision and layers, on rows of its
    first dataset: one to warm up, then at most five or for two seconds, of which the fastest
    counts. `count_plain_steps` has what SMART and frozen encoders cost beside them. Stored
    outputs of teachers cost next to nothing.
    """
    from qa_lib.training import build  # its import takes seconds, and only training needs it

    device = build.device_of(spec)
    before = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cuda" else spec.threads)
    plain = {"smart": None, "distillation": None}
    limit = multitask.limit_pass(spec)
    if limit:  # as many windows as a pass of the run takes
        plain["batch_size"] = min(spec.batch_size, max(1, limit // SAMPLE_LENGTH))
    if spec.heads:
        plain["heads"] = spec.heads.model_copy(update={"frozen": False})
    spec = spec.model_copy(update=plain)
    model, tokenizer = build.build_model(spec.without_parents())
    model.to(device)
    losses = build.make_losses(spec, model, steps=6)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch, tokens = make_sample_batch(spec, model, tokenizer, device)
    seconds: list[float] = []
    for step in range(6):
        began = time.monotonic()
        with torch.autocast(device, torch.bfloat16, enabled=spec.precision == "bf16"):
            out = model(**batch)
        loss = build.add_losses(losses, model, batch, out, out.loss, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        for extra in losses:
            extra.after_step(model)
        if step:
            seconds.append(time.monotonic() - began)
        if sum(seconds) > 2:
            break
    torch.set_num_threads(before)
    return tokens / min(seconds)


def make_sample_batch(spec: Spec, model, tokenizer, device: str) -> tuple[dict, int]:
    """Return a batch of a run's first dataset, in windows of SAMPLE_LENGTH, and its tokens."""
    dataset = spec.domains[0]
    task = selection.find_task(spec, dataset)
    rows = selection.load_splits(dataset, spec.source, spec.folder, spec.bad_rows).train
    rows = rows[: spec.batch_size]
    length = min(SAMPLE_LENGTH, spec.max_length)
    columns = task.tokenise_rows(rows, tokenizer, length, min(24, spec.stride))
    windows = []
    for i in range(spec.batch_size):
        number = i % len(columns["row"])
        windows.append({name: values[number] for name, values in columns.items()})
    batch = model.collate(tokenizer, task, dataset)(windows)
    for name, value in batch.items():
        if torch.is_tensor(value):
            batch[name] = value.to(device)
    lengths = task.measure_windows(columns)
    return batch, sum(lengths[i % len(lengths)] for i in range(spec.batch_size))


def speed_class(spec: Spec) -> tuple:
    """Return a key that is equal for runs whose plain steps have like speed."""
    return (
        spec.weights,
        spec.blocks,
        spec.batch_size,
        bool(spec.layer),
        spec.dense,
        bool(spec.gate),
        selection.find_task(spec).NAME,
        spec.reinit,
    )


def estimate_cost(todo: list[Spec], workers: int) -> tuple[dict[str, float], float, float]:
    """Return (tokens of each run by its hash, hours in all, disk in GB).

    Raises UserError where the machine's memory or disk is too small.
    """
    known: dict[tuple, tuple] = {}
    tokens = {spec.hash: estimate_tokens(spec, known) for spec in todo}
    # One run of each speed class stands for the others; for a mixture, one of its experts.
    samples = {speed_class(spec): spec.experts[0] if spec.gate else spec for spec in todo}
    if not torch.cuda.is_available():
        largest: dict[tuple, Spec] = {}
        for spec in sorted(todo, key=batch_memory):
            largest[speed_class(spec)] = spec.experts[0] if spec.gate else spec
        for spec in largest.values():
            check_memory(spec)
    speed = {kind: measure_speed(spec) for kind, spec in samples.items()}
    torch.cuda.empty_cache()  # of what was measured; workers may need the room on the GPU
    hours = sum(tokens[spec.hash] / speed[speed_class(spec)] for spec in todo) / 3600
    checkpoints = 2 * workers * max(count_checkpoint_bytes(spec) for spec in samples.values())
    parents = 4 * max(count_weights(spec) for spec in samples.values()) * len(list_parents(todo))
    features = 20 * sum(tokens.values())
    states = sum(count_stored_bytes(spec, known) for spec in todo)
    disk = (checkpoints + parents + features + states) / 1e9
    free = shutil.disk_usage(runs.RUNS).free / 1e9
    if free < disk:
        raise UserError(
            f"the disk of {runs.RUNS} has {free:.1f} GB free and this study needs about "
            f"{disk:.1f}; make room, or set QA_RUNS to a folder on a larger disk"
        )
    overhead = 1.5  # loading, padding, cores that share one memory
    return tokens, overhead * hours / min(workers, len(todo)), disk


def default_workers(specs: list[Spec]) -> int:
    """Return how many runs to train at once where the user does not say.

    On a cluster it is as many as the cluster takes, and with GPUs one on each. On CPU it is as many
    as fill the cores and the memory, at most four.
    """
    if not specs:
        return 1
    ray = pool.connect_to_cluster()
    if ray:
        return pool.count_runs_at_once(ray, specs[0])
    if torch.cuda.is_available():
        return min(torch.cuda.device_count(), len(specs))
    cores = os.cpu_count() // min(spec.threads for spec in specs)
    need = max(batch_memory(spec) for spec in specs)
    memory = psutil.virtual_memory().available / 2**30 // need
    return int(max(1, min(cores, memory, 4, len(specs))))


def fetch_inputs(p):
    """Fetch and verify what a profile needs, so that it runs offline afterwards.

    That is the rows of its datasets, its encoders and the revisions of hub repositories.
    """
    downloads.announce_downloads(p)
    names = [name for of_field in p.named_datasets().values() for name in of_field]
    for name in dict.fromkeys(names):
        print(describe_rows(p, name))
    for encoder in p.named_encoders():
        encoders.load_encoder(encoder)
        print(f"encoder {encoder}: {encoder_files.identify_weights(encoder)[:12]}")


def describe_rows(p, name: str) -> str:
    """Return how many rows a dataset has, of which classes, and what was left out of it.

    p: the parameters of the study that reads it.
    """
    d = selection.find_dataset(name, p.source, p.data)
    part = selection.load_splits(name, p.source, p.data, p.bad_rows)
    rows = [*part.train, *part.validation, *part.test]
    remarks = []
    unanswered = sum(row.get("is_impossible", False) for row in rows)
    if unanswered:
        remarks.append(f"{unanswered} of all rows without an answer")
    if part.train and d.task == "classes":  # numbers from 1 would be read as other classes
        numbers = Counter(row["label"] for row in part.train)
        of_classes = [f"{numbers[label]} {word}" for label, word in enumerate(d.classes)]
        remarks.append(f"of the training rows {', '.join(of_classes)}")
    if part.train and d.task == "score" and len({row["label"] for row in part.train}) == 1:
        remarks.append("all training rows have one score, and nothing can be learnt of them")
    for what, count in part.counts.items():
        left_out = " left out" if what in sources.KINDS else ""
        # a definition that asks to leave out rows and names a wrong field leaves out none
        if count or what.endswith("left out of training"):
            remarks.append(f"{count} {what}{left_out}")
    counts = (
        f"{len(part.train)} training, {len(part.validation)} validation, {len(part.test)} test rows"
    )
    return "; ".join([f"{name}: {counts}", *remarks])


def _announce_rows(p, todo: list[Spec]):
    """Print what the datasets of runs hold.

    Generated text needs no check, and `make own` has said it of its files.
    """
    if p.source not in ("folder", "hub"):
        return
    names = [name for spec in todo for name in (*spec.domains, *spec.tests)]
    for name in dict.fromkeys(names):
        print(describe_rows(p, name), flush=True)


def run(
    p,
    plan: Callable[..., list[Spec]],
    workers: int | None = None,
    fresh: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    live: bool | None = None,
) -> pd.DataFrame:
    """Train the missing runs of a report's plan.

    plan: gives the list of runs of the parameters `p` (qa_lib.reports.plans.plan); workers: runs
    trained at once; fresh: committed records do not count; yes: start even a study of more than
    HOURS; dry_run: estimate only; live: as in Progress.

    Returns one row per run: run, seconds, trained ("now", or "found" where it had a record).
    Raises UserError before anything is trained for bad data, a missing encoder, too little disk, or
    too many hours.
    """
    specs = plan(p)
    todo = list_missing(specs, fresh)
    remark = runs.describe_stale(specs, fresh)
    if remark:
        print(remark, flush=True)
    planned = len({spec.hash for spec in specs})
    print(
        f"study {p.report}, profile {p.profile}, size {p.size}: {planned} runs, "
        f"{len(todo)} to train",
        flush=True,
    )
    if any(spec.precision != p.precision for spec in todo):
        print("no bf16 instructions here: what is trained is trained in fp32", flush=True)
    if not todo:
        return _tabulate_runs(specs, todo, fresh)
    runs.check_store()
    if not dry_run:
        runs.check_page(p)  # the page is drawn when all runs are trained
    downloads.announce_downloads(p)  # the estimate reads all data
    runs.RUNS.mkdir(parents=True, exist_ok=True)
    _announce_rows(p, todo)
    if dry_run:  # it trains nothing, so it need not wait for a study that does
        _announce_cost(todo, workers or default_workers(todo), yes=True)
        return _tabulate_runs(specs, [], fresh)
    with _lock_report(p.report):
        todo = list_missing(specs, fresh)  # another study may have trained some
        if todo:
            at_once = workers or default_workers(todo)
            tokens = _announce_cost(todo, at_once, yes)
            _train(todo, tokens, at_once, list_parents(todo), live)
            _check_code(todo)
    specs = plan(p)
    if list_missing(specs, fresh):  # runs that follow from the trials
        later = run(p, plan, workers, fresh, yes, live=live)
        trained_now = later["run"].isin([spec.run for spec in todo])
        return later.assign(trained=later["trained"].mask(trained_now, "now"))
    return _tabulate_runs(specs, todo, fresh)


def _check_code(trained: list[Spec]):
    """Raise UserError where code was edited while runs were trained.

    Worker processes load the code as it is when they start. Their runs would be trained again and
    again, for this process asks for runs of its own code.
    """
    if any(spec.trains_stale and runs.is_stored_stale(spec) for spec in trained):
        raise UserError(
            "the code was edited while the study ran, and its runs are of both versions; the same "
            "command trains again what the code makes now"
        )


def _lock_report(report: str):
    """Return the lock that one study of a report holds at a time, acquired."""
    lock = FileLock(runs.RUNS / f"{report}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"another study of {report} is training here; waiting for it", flush=True)
        return lock.acquire()


def _tabulate_runs(specs: list[Spec], newly_trained: list[Spec], fresh: bool) -> pd.DataFrame:
    """Return a row for each run that has a record: run, seconds, trained ("now" or "found")."""
    new = {spec.hash for spec in newly_trained}
    rows = []
    for spec in specs:
        record = runs.find_record(spec, fresh)
        if record is None:
            continue
        trained = "now" if record["hash"] in new else "found"
        seconds = round(record["seconds"])
        rows.append({"run": record["run"], "seconds": seconds, "trained": trained})
    return pd.DataFrame(rows, columns=["run", "seconds", "trained"])


def _announce_cost(todo: list[Spec], workers: int, yes: bool) -> dict[str, float]:
    """Print the estimated cost of a study; return the tokens of each run.

    Raises UserError for a study of more than HOURS, unless `yes`.
    """
    tokens, hours, disk = estimate_cost(todo, workers)
    time_needed = f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} min"
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{os.cpu_count()} CPU cores"
    print(
        f"about {time_needed} on this machine ({machine}, {workers} at once), "
        f"{disk:.1f} GB of disk",
        flush=True,
    )
    if hours > HOURS and not yes:
        raise UserError(
            f"that is more than {HOURS} hours; say YES=1 to start it, or choose fewer experiments "
            "or seeds, or at PROFILE=real a smaller SIZE"
        )
    return tokens


@contextmanager
def tell_what_is_full(spec: Spec):
    """Raise UserError where a training ends since the disk is full, or the memory of the GPU."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"{spec.run} takes more memory than the GPU has left; lower batch_size or max_length, "
            "or end what else runs there; the same command goes on from here, a changed value "
            "trains the runs that it changes anew"
        ) from None
    except (OSError, RuntimeError, SafetensorError) as e:
        if not is_disk_full(e):
            raise
        raise UserError(
            f"the disk of {runs.RUNS} is full; make room, the same command goes on from here"
        ) from None


def is_disk_full(error: Exception) -> bool:
    """Return whether a file could not be written for want of room.

    safetensors and torch, which write checkpoints, raise no OSError. safetensors tells the number
    of the system's error; torch tells nothing, so where it fails the room that is left decides.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, SafetensorError):
        return any(f"os error {n}" in str(error) for n in (errno.ENOSPC, errno.EDQUOT))
    return shutil.disk_usage(runs.RUNS).free < NO_ROOM


def _train_one(spec: Spec, keep: bool, live: bool | None):
    """Train one run, show its progress and its scores.

    keep: keep the weights, for children. Raises UserError where the disk is full, or the memory of
    the GPU.
    """
    from transformers.utils.import_utils import enable_tf32

    from qa_lib.training import train  # its import takes seconds, and only training needs it

    progress = Progress(live)
    # The Trainer turns TF32 on or off by this function, whose answers are cached: it would not turn
    # it off a second time, for a run with SMART after one with it and one without.
    enable_tf32.cache_clear()
    with tell_what_is_full(spec):
        record = train.train(spec, progress, keep_weights=keep)
    scores = []
    for name in spec.tests:
        task = selection.find_task(spec, name)
        value = record["metrics"][name][task.TRIAL_SCORE]
        scores.append(f"{name} {task.SCORE_NAME} {value:.1f}")
    progress(f"{spec.run}  {record['seconds']:.0f} s  {', '.join(scores)}")
    if progress.live:
        print(flush=True)


def _train(
    todo: list[Spec], tokens: dict[str, float], workers: int, keep: set[str], live: bool | None
):
    """Train runs, parents before children, in this process or in a pool.

    tokens: estimate for each run, by its hash; keep: hashes of the runs whose weights are kept for
    their children.
    """
    began = time.monotonic()
    done: list[Spec] = []

    def finish(spec: Spec):
        """Print the time left, and drop the weights of parents that no run left needs.

        Those of the run that all others go on from stay where an edit of the code trains runs
        again: this run is the longest, and most edits do not change it.
        """
        done.append(spec)
        left = [other for other in todo if other not in done]
        tokens_left = sum(tokens[other.hash] for other in left)
        tokens_done = sum(tokens[other.hash] for other in done)
        time_left = ""
        if tokens_done:  # combinations of experts have none
            seconds = (time.monotonic() - began) * tokens_left / tokens_done
            time_left = f", about {seconds / 60:.0f} min left"
        print(f"{len(done)}/{len(todo)} runs{time_left}", flush=True)
        needed = list_parents(left)
        for parent in spec.parents:
            stays = parent.variant == "start" and parent.trains_stale
            if parent.hash not in needed and not stays:
                runs.discard(parent, "model.safetensors")

    ray = pool.connect_to_cluster()
    if workers == 1 and not ray:
        for spec in todo:
            _train_one(spec, spec.hash in keep, live)
            finish(spec)
        return
    team = pool.Cluster(ray) if ray else pool.Processes(workers)
    try:
        _train_in_pool(team, todo, workers, keep, finish)
    except BrokenExecutor:
        raise UserError(
            "the system ended a worker, most likely for want of memory; "
            f"WORKERS={max(1, workers - 1)} trains fewer runs at once and goes on from here"
        ) from None
    finally:
        team.stop()


def _train_in_pool(
    team: pool.Processes | pool.Cluster,
    todo: list[Spec],
    workers: int,
    keep: set[str],
    finish: Callable[[Spec], None],
):
    """Train runs in a pool of workers, and call `finish` for each that is done.

    A run is submitted once its parents are done. Twice as many runs as workers are submitted at a
    time, so that no worker waits.
    """
    waiting = list(todo)
    unfinished = {spec.hash for spec in todo}
    training: dict[Future, Spec] = {}
    while waiting or training:
        ready = [spec for spec in waiting if not unfinished & list_parents([spec])]
        for spec in ready[: 2 * workers - len(training)]:
            waiting.remove(spec)
            future = team.submit(_train_one, spec, spec.hash in keep, False)
            training[future] = spec
        for future in wait(training, return_when=FIRST_COMPLETED).done:
            error = future.result()  # a UserError on a cluster, else None
            if error:
                raise error
            spec = training.pop(future)
            unfinished.discard(spec.hash)
            finish(spec)


def print_comparison(p, plan: Callable[..., list[Spec]]):
    """Print the score of each new run beside that of its committed record, for each test set."""
    committed = runs.read_committed(p.report)
    for spec in plan(p):
        ours = runs.find_record(spec, fresh=True)
        hashes = [variant.hash for variant in spec.machine_variants()]
        theirs = next((committed[h] for h in hashes if h in committed), None)
        if ours is None or theirs is None or not runs.holds_all(theirs, spec):
            continue
        if runs.scoring_version(ours) != runs.scoring_version(theirs):
            continue
        machine = ""
        if ours["hash"] != theirs["hash"]:
            machine = " ({device}, {precision})".format(**theirs["environment"])
        for name in spec.tests:
            if name not in theirs["metrics"]:
                continue
            task = selection.find_task(spec, name)
            value = ours["metrics"][name][task.TRIAL_SCORE]
            known = theirs["metrics"][name][task.TRIAL_SCORE]
            print(
                f"{ours['run']}  {name}: {task.SCORE_NAME} {value:.2f}, "
                f"committed {known:.2f}{machine}"
            )
