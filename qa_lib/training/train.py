"""Training of one run: build the model, train it, score it, write its record.

    python -m qa_lib train REPORT --run NAME …
        one run of the plan, by its name or the start of its name
    accelerate launch -m qa_lib train REPORT --run NAME …
        the same over several GPUs, into the same record

The Hugging Face Trainer does the loop. Overridden are `training_step`, `compute_loss`, `evaluate`,
`log`, the optimizer's groups, the order of examples and which evaluation is followed by a
checkpoint, nothing else. The run's extra losses (qa_lib/losses/extra.py) are added to the task's
own. A run that is killed at any moment goes on from its last complete checkpoint, and on CPU ends
with the same scores and history.
"""

import datetime
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import broadcast
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from qa_lib.data import augment, features, selection
from qa_lib.data.batches import BatchesByDataset, BucketSampler
from qa_lib.losses.extra import ExtraLoss
from qa_lib.models import heads
from qa_lib.settings import files
from qa_lib.settings.params import ROOT, UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import code_hashes, runs
from qa_lib.training import (
    build,
    clusters,
    evaluate,
    frozen,
    gradients,
    layer_rates,
    memory,
    multitask,
    teachers,
)

NO_EXAMPLES = pd.DataFrame({"set": [], "id": []})  # of a run without test sets
# What the Trainer itself logs at a step; all else comes from extra losses.
OWN_LOG = frozenset({"loss", "grad_norm", "learning_rate", "epoch", "step"})


class RunTrainer(Trainer):
    """The Trainer with our loss, our validation score and our order of examples."""

    def __init__(
        self,
        spec: Spec,
        rows: list[dict],
        tokenizer,
        sampler: BucketSampler | BatchesByDataset,
        losses: list[ExtraLoss],
        **kwargs,
    ):
        self.spec = spec
        self.tokenizer = tokenizer
        self.sampler = sampler
        self.losses = losses
        # What the extra losses without `in_train_loss` added at each step since the last log, so
        # that the training loss can be logged without it.
        self.added: list[torch.Tensor] = []
        self.pass_limit = multitask.limit_pass(spec)  # tokens
        self.share = 1.0  # of the batch's rows that are in the pass that is computed
        # Rows that are scored at each evaluation beside the validation rows, by the prefix that
        # their scores have in the history.
        self.further_rows: dict[str, list[dict]] = {}
        if spec.watched:
            self.further_rows["train"] = rows[:: math.ceil(len(rows) / spec.watched)]
        if spec.multitask and spec.multitask.judged_on == "dev":
            self.further_rows["dev"] = load_dev_rows(spec)
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)  # Keeper prints instead

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Compute the gradient of a batch, in as many passes as the run's limit of tokens asks for.

        Returns what the batch adds to the mean loss of its update, a scalar.
        """
        if self.pass_limit is None:
            return super().training_step(model, inputs, num_items_in_batch)
        losses = []
        added_before = len(self.added)
        for share, piece in multitask.split_batch(inputs, self.pass_limit):
            self.share = share
            losses.append(super().training_step(model, piece, num_items_in_batch))
        added = self.added[added_before:]
        if added:
            self.added[added_before:] = [torch.stack(added).sum()]
        return torch.stack(losses).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the model's own loss and that of the run's extra losses, in one sum.

        It is multiplied by the share of the batch's rows that the pass has.
        """
        out = model(**inputs)
        whole = self.accelerator.unwrap_model(model)
        step = self.state.global_step
        logged = [extra for extra in self.losses if extra.in_train_loss]
        left_out = [extra for extra in self.losses if not extra.in_train_loss]
        train_loss = build.add_losses(logged, whole, inputs, out, out.loss, step)
        loss = build.add_losses(left_out, whole, inputs, out, train_loss, step)
        if left_out:
            self.added.append(self.share * (loss - train_loss).detach())
        loss = self.share * loss
        return (loss, out) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Log beside the loss what the extra losses report."""
        if "loss" in logs:
            for extra in self.losses:
                logs |= extra.read_log()
            if self.added:
                logs["extra_loss"] = torch.stack(self.added).mean().item()
                self.added.clear()
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Log and return loss and scores on the validation rows, and scores on further rows."""
        if self.state.log_history:
            last = self.state.log_history[-1]
            if "eval_loss" in last and last["step"] == self.state.global_step:
                return last  # the Trainer asks twice at a step that ends an epoch
        scores = evaluate.score_run_rows(self.model, self.tokenizer, self.spec, self.eval_dataset)
        logs = {f"eval_{name}": value for name, value in scores.items()}
        for prefix, rows in self.further_rows.items():
            scores = evaluate.score_run_rows(self.model, self.tokenizer, self.spec, rows)
            for name, value in scores.items():
                if not name.startswith("loss"):
                    logs[f"eval_{prefix}_{name}"] = value
        self.log(logs)
        return logs

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """Return whether a checkpoint follows an evaluation.

        It does where the score is a new best, and where Keeper has asked for one, which the Trainer
        would forget.
        """
        is_asked = self.control.should_save
        is_new_best = super()._determine_best_metric(metrics, trial)
        return is_new_best or is_asked

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Return the optimizer, whose layers have rates of their own where the run says so."""
        if self.spec.layer_decay is None or self.optimizer is not None:
            return super().create_optimizer(model)
        groups = layer_rates.group_parameters(
            self.model,
            self.args.learning_rate,
            self.args.weight_decay,
            self.get_decay_parameter_names(self.model),
            self.spec.layer_decay,
        )
        make, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = make(groups, **options)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of the run's batches, in its order of examples."""
        if not self.spec.multitask:
            return super().get_train_dataloader()
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def _get_train_sampler(self, train_dataset=None) -> BucketSampler:
        """Return the sampler that gives the run's order of examples."""
        return self.sampler


def load_dev_rows(spec: Spec) -> list[dict]:
    """Return the test rows of a run's training datasets."""
    rows = []
    tested = spec.model_copy(update={"tests": spec.domains})
    for _, of_dataset in selection.load_test_sets(tested).values():
        rows += of_dataset
    return rows


class LossKeeper(TrainerCallback):
    """Tells extra losses of each optimizer step, and writes their state into checkpoints."""

    FILE = "losses.safetensors"

    def __init__(self, losses: list[ExtraLoss]):
        self.losses = losses

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Tell every extra loss that the model has new weights."""
        for extra in self.losses:
            extra.after_step(model)

    def on_save(self, args, state, control, **kwargs):
        """Write the state of all extra losses. It comes before the seal of Keeper.on_save."""
        if not state.is_world_process_zero:
            return
        tensors = {}
        for number, extra in enumerate(self.losses):
            for name, tensor in extra.state_dict().items():
                tensors[f"{number}.{name}"] = tensor.detach().clone().contiguous()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files.write(folder / self.FILE, save(tensors))

    def load(self, checkpoint: Path, device: str):
        """Take the states that a checkpoint has; one without extra losses has none."""
        if not (checkpoint / self.FILE).exists():
            return
        tensors = load_file(checkpoint / self.FILE, device=device)
        states: list[dict[str, torch.Tensor]] = [{} for _ in self.losses]
        for key, tensor in tensors.items():
            number, name = key.split(".", 1)
            states[int(number)][name] = tensor
        for extra, state in zip(self.losses, states, strict=True):
            extra.load_state_dict(state)


class Keeper(TrainerCallback):
    """Checkpoints by the clock, progress, and an end to a run whose loss is not finite.

    spent: seconds of training that led to the checkpoint from which the run goes on; code: what
    makes the run (runs.describe_code).
    """

    def __init__(
        self,
        spec: Spec,
        progress: Callable[[str], None],
        spent: float,
        code: dict | None = None,
    ):
        self.spec = spec
        self.progress = progress
        self.spent = spent
        self.code = code
        self.every = float(os.environ.get("QA_CHECKPOINT_SECONDS", 300))
        self.began = self.saved = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        """Name the best checkpoint by where it is now.

        A checkpoint names it by the path that it had, and where nothing is there the Trainer
        forgets it: it would end with the last weights.
        """
        if state.best_global_step:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best)

    def on_step_end(self, args, state, control, **kwargs):
        """Report the step, and ask for what is due after it: evaluation, log and checkpoint."""
        self.progress(f"{self.spec.run}  step {state.global_step}/{state.max_steps}")
        is_last = state.global_step >= state.max_steps
        ends_epoch = is_last or float(state.epoch).is_integer()
        # The Trainer evaluates an epoch after all that belongs to its last step. A run that was
        # killed between this step's checkpoint and the evaluation would go on in the next epoch.
        if ends_epoch and args.eval_strategy == "epoch":
            control.should_evaluate = True
        # The mean loss that an evaluation reports is over all steps up to it.
        if is_last or control.should_evaluate:
            control.should_log = True
        # A checkpoint is saved only where the mean loss is logged, so that no loss is forgotten.
        if control.should_log and not is_last:
            due = torch.tensor(int(time.monotonic() - self.saved >= self.every), device=args.device)
            if broadcast(due):  # the clock of the first process decides for all
                control.should_save = True

    def on_log(self, args, state, control, logs, **kwargs):
        """Raise UserError where the loss is not finite."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(
                f"{self.spec.run}: the loss is {logs['loss']} at step {state.global_step}; "
                "lower learning_rate"
            )

    def on_save(self, args, state, control, **kwargs):
        """Seal a checkpoint, with the seconds of training that led to it, and the code.

        The time to the next one begins anew, whoever asked for this one.
        """
        # The seal marks the checkpoint as whole; a kill while it is written leaves none.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes the state of its random numbers
        self.saved = time.monotonic()
        if state.is_world_process_zero:
            seconds = round(self.spent + self.saved - self.began, 1)
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files.seal(folder, seconds=seconds, code=self.code, asked=list_asked(self.spec))


def step_of(checkpoint: Path) -> int:
    """Return the training step at which a checkpoint was taken."""
    return int(checkpoint.name.split("-")[1])


def list_asked(spec: Spec) -> dict:
    """Return what a run's labels ask of its training, which its hash does not tell.

    They are rows to watch, gradients to compare, and heads for the test sets.
    """
    heads = sorted(spec.tests) if spec.heads else None
    return {"watched": spec.watched, "probes": spec.probes, "heads": heads}


def last_checkpoint(
    folder: Path, code: dict | None = None, asked: dict | None = None
) -> Path | None:
    """Return the newest usable checkpoint in a folder, or None.

    A checkpoint is usable where it is whole, and the best checkpoint that it names is whole too.
    code: the code that has to have made them; asked: of `list_asked`, what their run was asked;
    both by default any.
    """
    whole = {}
    for path in folder.glob("checkpoint-*"):
        notes = files.read_seal(path)
        if notes is None or code not in (None, notes.get("code")):
            continue
        # older checkpoints do not tell what was asked
        if asked is None or notes.get("asked", asked) == asked:
            whole[path.name] = path
    usable = []
    for path in whole.values():
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        best = state["best_model_checkpoint"]
        if best is None or Path(best).name in whole:
            usable.append(path)
    return max(usable, key=step_of, default=None)


def drop_other_checkpoints(folder: Path, resume: Path | None, progress: Callable[[str], None]):
    """Remove checkpoints from which the run cannot go on.

    The Trainer would count them among the two that it keeps. resume: the checkpoint from which the
    run goes on. Older whole ones stay, since one of them may be the best.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=step_of):
        # Without a seal the run was killed while the checkpoint was written.
        sealed = (path / files.SEAL).exists()
        older = resume is not None and step_of(path) <= step_of(resume)
        if older and files.read_seal(path) is not None:
            continue
        if sealed:
            run = folder.parent.name
            progress(
                f"{run}  {path.name}, or the best one before it, is damaged or of other code; "
                "dropped"
            )
        shutil.rmtree(path, ignore_errors=True)


def count_processes() -> int:
    """Return the number of processes that train the run together, which accelerate launch sets."""
    return int(os.environ.get("WORLD_SIZE", 1))


def training_arguments(spec: Spec, steps_per_epoch: int, resume: bool) -> TrainingArguments:
    """Return the Trainer's arguments for a run.

    resume: whether the run goes on from a checkpoint. Raises UserError where a batch does not
    divide among the processes of a distributed training.
    """
    steps = math.ceil(steps_per_epoch * spec.epochs)
    processes = count_processes()
    if spec.multitask and processes > 1:
        raise UserError(
            f"{spec.run} trains on several datasets in turn, which {processes} processes cannot "
            "share; train it in one process"
        )
    if spec.batch_size % processes:
        raise UserError(
            f"batch_size: {spec.batch_size} does not divide among {processes} processes; "
            "change one of them"
        )
    # A bf16 run keeps in fp32 what must not be rounded, so TF32 is for fp32 runs alone. It would
    # round away what SMART measures, and a router would route rounding errors. It is turned off
    # expressly, since a run before this one in the process may have turned it on. The Trainer
    # refuses it on GPUs before Ampere, which have none.
    tf32 = None
    if spec.threads == "cuda":
        may_round = spec.precision == "fp32" and spec.smart is None and spec.layer is None
        tf32 = may_round and torch.cuda.get_device_capability() >= (8, 0)
    arguments = TrainingArguments(
        output_dir=str(runs.run_folder(spec) / "checkpoints"),
        seed=spec.seed,
        data_seed=spec.seed,
        per_device_train_batch_size=spec.batch_size // processes,
        gradient_accumulation_steps=spec.multitask.passes if spec.multitask else 1,
        learning_rate=spec.learning_rate,
        num_train_epochs=spec.epochs,
        lr_scheduler_type=spec.schedule,
        warmup_steps=round(spec.warmup * steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.clip,
        optim="adamw_torch_fused",
        bf16=spec.precision == "bf16",
        tf32=tf32,
        use_cpu=spec.threads != "cuda",
        save_total_limit=2,
        **evaluation_arguments(spec, steps_per_epoch, resume),
        logging_strategy="steps",
        logging_steps=max(1, steps_per_epoch // 10),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=spec.threads == "cuda",
    )
    # The environment's ACCELERATE_MIXED_PRECISION must not decide.
    arguments.mixed_precision = "bf16" if spec.precision == "bf16" else "no"
    # With several visible GPUs, DataParallel would make a batch of several times batch_size.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def evaluation_arguments(spec: Spec, steps_per_epoch: int, resume: bool) -> dict:
    """Return the Trainer's arguments that say when to evaluate and which checkpoint to keep."""
    arguments = {"eval_strategy": "no", "save_strategy": "no"}
    if spec.validation_rows:
        arguments["eval_strategy"] = "epoch"
    if spec.looks > 1:
        arguments["eval_strategy"] = "steps"
        arguments["eval_steps"] = max(1, steps_per_epoch // spec.looks)
    if spec.checkpoint == "best":
        arguments["save_strategy"] = "best"
        arguments["load_best_model_at_end"] = True
        column = selection.checkpoint_column(spec)
        arguments["metric_for_best_model"] = column.removeprefix("validation_")
    # The curve of a watched run begins before its first step.
    arguments["eval_on_start"] = spec.watched > 0 and not resume
    return arguments


# ---- the Trainer's log ----


def read_history(log: list[dict]) -> list[dict]:
    """Return a row for each evaluation in the Trainer's log.

    train_loss is the mean over the steps since the evaluation before, or None where no loss was
    logged since then. It leaves out what an extra loss without `in_train_loss` has added. Scores
    have the prefix validation_, those of watched rows train_, and those of test rows by which a
    checkpoint is chosen dev_.
    """
    rows = []
    losses = []
    steps = []  # that each loss is a mean over
    last_step = 0
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"] - entry.get("extra_loss", 0.0))
            steps.append(entry["step"] - last_step)
            last_step = entry["step"]
        elif "eval_loss" in entry:
            row = {
                "epoch": round(entry["epoch"], 4),
                "step": entry["step"],
                "train_loss": float(np.average(losses, weights=steps)) if losses else None,
            }
            for key, value in entry.items():
                name = key.removeprefix("eval_")
                if name.startswith(("train_", "dev_")):
                    row[name] = value
                elif name != key:
                    row[f"validation_{name}"] = value
            rows.append(row)
            losses = []
            steps = []
    return rows


def describe_curve(history: list[dict], score: str) -> dict[str, float]:
    """Return scores on watched training rows that say how fast a training score rises.

    history: rows of `read_history`, the first of them before training; score: the name of the
    score, EM for spans. train_<score>_early is the score after a tenth of all steps. plateau is the
    share of steps, in percent, after which the score stays within 1 of its last value.
    """
    steps = [row["step"] for row in history]
    values = [row[f"train_{score}"] for row in history]
    moving = [s for s, value in zip(steps, values, strict=True) if abs(value - values[-1]) > 1]
    flat = next(step for step in steps if step > max(moving, default=-1))
    last = {}
    for name, value in history[-1].items():
        if name.startswith("train_") and name != "train_loss":
            last[name] = value
    return {
        f"train_{score}_early": float(np.interp(0.1 * steps[-1], steps, values)),
        "plateau": 100 * flat / steps[-1],
        **last,
        "n": len(history),
    }


def read_extra_losses(log: list[dict]) -> list[dict]:
    """Return a row for each logged step with what the extra losses reported: step and values.

    Of a router these are balance_loss, z_loss, dropped and load.
    """
    rows = []
    for entry in log:
        values = {name: value for name, value in entry.items() if name not in OWN_LOG}
        if "loss" in entry and values:
            rows.append({"step": entry["step"], **values})
    return rows


def average_scored(losses: list[ExtraLoss], rows: list[dict]) -> dict[str, float]:
    """Return the means over a training of those reported values that are scores of the run.

    rows: of `read_extra_losses`, each with means over the steps since the row before. The result
    has n, the number of rows, where it has a score.
    """
    averages = {}
    for extra in losses:
        for name in extra.scored:
            average = runs.average_logged(rows, name)
            if not math.isnan(average):
                averages[name] = average
    return averages | {"n": len(rows)} if averages else averages


# ---- what made a run ----


def ask_git(*words: str) -> str | None:
    """Ask git about the folder that holds qa_lib. Returns None without git, or where it refuses.

    GIT_DIR and the like, which a hook sets, are left out: they may name another repository.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, env=env)
    except OSError:  # a machine without git
        return None
    return os.fsdecode(done.stdout).rstrip("\n") if done.returncode == 0 else None


def read_commit() -> tuple[str, bool | None]:
    """Return (commit, dirty) of the checkout that holds qa_lib.

    Files without git of their own have the commit that QA_COMMIT says, or "unknown".
    dirty: whether code or parameters differ from the commit; None where that is not known.
    """
    told = os.environ.get("QA_COMMIT") or "unknown"
    top = ask_git("rev-parse", "--show-toplevel")
    if not top or os.path.realpath(top) != os.path.realpath(ROOT):
        return told, None  # no repository, or one around this folder
    if not ask_git("rev-parse", "--verify", "--quiet", "HEAD:qa_lib"):
        return told, None  # one without a commit, or without this code
    status = ("--no-optional-locks", "status", "--porcelain", "--untracked-files=all")
    changes = ask_git(*status, "--", "qa_lib", "params")
    dirty = None if changes is None else bool(changes)
    return ask_git("rev-parse", "HEAD"), dirty


def describe_environment(spec: Spec) -> dict:
    """Return what made a run: machine, versions, commit. Holds no host name and no path."""
    commit, dirty = read_commit()
    packages = ("torch", "transformers", "accelerate", "tokenizers", "numpy")
    return {
        "device": device_name(spec),
        "processor": processor_name(),
        "platform": platform.system(),
        "python": platform.python_version(),
        "precision": spec.precision,
        "commit": commit,
        "dirty": dirty,
        **{package: version(package) for package in packages},
    }


def device_name(spec: Spec) -> str:
    """Return the GPU's name, or the number of CPU threads."""
    if spec.threads == "cuda":
        return torch.cuda.get_device_name()
    if spec.threads == 1:
        return "CPU, 1 thread"
    return f"CPU, {spec.threads} threads"


def processor_name() -> str:
    """Return the processor's model, from /proc/cpuinfo where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


# ---- one run ----


def train(
    spec: Spec, progress: Callable[[str], None] = print, keep_weights: bool = False
) -> dict | None:
    """Train (or go on training) one run, score it on its test sets, and write its record.

    keep_weights: leave model.safetensors beside the record, for children. Returns the record; None
    on the processes of a distributed training that do not write. Raises UserError where the run's
    data are others than when it was planned, and where another process trains it.
    """
    began = time.monotonic()
    selection.check_unchanged(spec)
    tests = list_tests(spec)
    fingerprints = selection.fingerprint_test_sets(tests, spec.source, spec.folder)
    spec = spec.model_copy(update={"tests": tests, "test_fingerprints": fingerprints})
    environment = describe_environment(spec)  # the checkout may be another when the run ends
    with lock_run(spec):
        threads = torch.get_num_threads()
        prepare_device(spec)
        try:
            if spec.gate and spec.gate.rule != "learned":
                results, examples = score_fixed_mixture(spec, progress)
            else:
                results, examples = train_and_score(spec, progress, keep_weights)
        finally:
            torch.set_num_threads(threads)
        if results is None:
            return None
        results["seconds"] += time.monotonic() - began
        results |= {"environment": environment, "created": now()}
        runs.save(spec, results, examples)
        runs.discard(spec, "checkpoints")
    return runs.find_record(spec)


@contextmanager
def lock_run(spec: Spec):
    """Hold the folder of a run, so that no other process trains it at the same time.

    Two would delete each other's checkpoints, and one of them record other weights than it says. Of
    the processes of a distributed training the first one holds it. Raises UserError where another
    training has it.
    """
    folder = runs.run_folder(spec)
    folder.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process trains {spec.run} here; wait for its end, then run the same command "
            "again"
        ) from None
    try:
        yield
    finally:
        lock.release()


def list_tests(spec: Spec) -> list[str]:
    """Return the test sets of a run, and those that its earlier records have scores on.

    So a training that is repeated loses no score. A set whose rows cannot be read here is left out.
    """
    tests = list(spec.tests)
    for name in runs.list_recorded_tests(spec):
        try:
            selection.load_splits(name, spec.source, spec.folder, spec.bad_rows)
        except UserError:
            continue
        tests.append(name)
    return list(dict.fromkeys(tests))


def prepare_device(spec: Spec):
    """Set the threads of a run on CPU; forget the peak memory of the runs before it."""
    if spec.threads == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        torch.set_num_threads(spec.threads)
        memory.begin_anew()


def score_fixed_mixture(spec: Spec, progress: Callable[[str], None]) -> tuple[dict, pd.DataFrame]:
    """Return the results and examples of a run that mixes its experts by a rule.

    It has nothing to learn, so it reads no training window. A rule weighs what the experts say of a
    window, or combines the scores of their own answers.
    """
    results = {
        "history": [],
        "load": {},
        "data": {},
        "parameters": 0,
        "active_parameters": 0,
        "tokens": 0,
        "training_seconds": 0,
        "tokens_per_second": 0,
        "peak_memory_mb": 0,
        "seconds": 0.0,  # `train` adds its own
    }
    if evaluate.is_combined(spec):
        scores, examples = evaluate.combine_expert_scores(spec)
        return results | {"metrics": scores}, examples
    model, tokenizer = build.build_model(spec)
    _, validation, counts = draw_rows(spec)
    rules = evaluate.choose_rules(model, tokenizer, spec, validation) if spec.tests else {}
    scores, _, examples = score_test_sets(spec, model, tokenizer, progress, False, rules)
    results["parameters"], results["active_parameters"] = build.count_parameters(model, spec)
    results["data"] = dict(counts)
    results["peak_memory_mb"] = peak_memory(spec)
    return results | {"metrics": scores}, examples


def train_and_score(
    spec: Spec, progress: Callable[[str], None], keep_weights: bool
) -> tuple[dict | None, pd.DataFrame]:
    """Train a run's model and score it; return its results and its examples.

    The results are None on the processes of a distributed training that do not write.
    """
    model, tokenizer = build.build_model(spec)
    rows, validation, counts = draw_rows(spec)
    examples = load_training_examples(spec, model, tokenizer, rows, counts, progress)
    steps = math.ceil(examples.steps_per_epoch * spec.epochs)
    losses = build.make_losses(spec, model, steps)
    loss_keeper = LossKeeper(losses)
    resume, spent, code = find_resume(spec, runs.run_folder(spec) / "checkpoints")
    trainer = RunTrainer(
        spec,
        rows,
        tokenizer,
        examples.sampler,
        losses,
        model=model,
        train_dataset=examples.windows,
        eval_dataset=validation,
        args=training_arguments(spec, examples.steps_per_epoch, bool(resume)),
        data_collator=examples.collate,
        callbacks=[loss_keeper, Keeper(spec, progress, spent, code)],
    )
    if spec.threads != "cuda":
        trainer.add_callback(memory.FreedMemory())
    if spec.probes:
        trainer.add_callback(gradients.GradientProbe(spec, examples.windows, examples.collate))
    prepare_resume(trainer, loss_keeper, resume, progress)
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    tokens = examples.tokens_per_epoch * spec.epochs
    training_seconds = time.monotonic() - began + spent
    if not trainer.is_world_process_zero():
        return None, NO_EXAMPLES
    history = read_history(trainer.state.log_history)
    reported = read_extra_losses(trainer.state.log_history)
    rules = evaluate.choose_rules(model, tokenizer, spec, validation) if spec.tests else {}
    scores, test_load, table = score_test_sets(
        spec, model, tokenizer, progress, keep_weights, rules
    )
    if keep_weights:
        save_weights(spec, model)
    peak = peak_memory(spec)
    of_training = score_training(spec, losses, history, reported)
    if of_training:
        scores["training"] = of_training
    parameters, active = build.count_parameters(model, spec)
    results = {
        "metrics": scores,
        "history": history,
        "load": {"training": reported} | test_load,
        "data": dict(counts),
        "parameters": parameters,
        "active_parameters": active,
        "chosen_step": trainer.state.best_global_step,
        "tokens": tokens,
        "training_seconds": training_seconds,
        "tokens_per_second": tokens / training_seconds,
        "peak_memory_mb": peak,
        "seconds": spent,  # `train` adds its own
        "code": code,
    }
    if spec.probes:
        results["gradients"] = gradients.read_gradients(trainer.state.log_history)
    return results, table


def prepare_resume(
    trainer: RunTrainer,
    loss_keeper: LossKeeper,
    resume: Path | None,
    progress: Callable[[str], None],
):
    """Leave the checkpoints that a run can go on from, and restore the states of its extra losses.

    resume: the checkpoint that it goes on from; None where it begins anew.
    """
    spec = trainer.spec
    if trainer.is_world_process_zero():
        drop_other_checkpoints(runs.run_folder(spec) / "checkpoints", resume, progress)
    if resume:
        progress(f"{spec.run}  goes on from {resume.name}")
        loss_keeper.load(resume, build.device_of(spec))


def find_resume(spec: Spec, checkpoints: Path) -> tuple[Path | None, float, dict | None]:
    """Return (the checkpoint that a run goes on from, or None; seconds; code).

    seconds: of training that led to the checkpoint; code: what makes the run, the starts before
    this one included.
    """
    code = runs.describe_code(spec)
    of_code = code if spec.trains_stale else None
    resume = last_checkpoint(checkpoints, of_code, list_asked(spec))
    if resume is None:
        return None, 0.0, code
    notes = files.read_seal(resume)
    return resume, notes["seconds"], code_hashes.join_codes(code, notes.get("code"))


def score_training(
    spec: Spec, losses: list[ExtraLoss], history: list[dict], reported: list[dict]
) -> dict[str, float]:
    """Return the scores of the training itself: of extra losses, and of watched rows.

    history: of `read_history`; reported: of `read_extra_losses`.
    """
    scores = average_scored(losses, reported)
    if spec.watched and history:
        score = selection.trial_column(spec).removeprefix("validation_")
        scores |= describe_curve(history, score)
    return scores


def draw_rows(spec: Spec) -> tuple[list[dict], list[dict], Counter]:
    """Return a run's training rows, its validation rows, and counts of what was left out."""
    rows, validation, counts = selection.draw_mixture(spec)
    if spec.cluster:
        rows, validation = clusters.select_cluster(spec, rows, validation)
        counts["rows of the cluster"] = len(rows)
    if spec.augment:
        rows = rows + augment.make_copies(rows, spec.augment, spec.seed)
    return rows, validation, counts


@dataclass
class Examples:
    """The training examples of a run, and their order."""

    windows: Any  # as the model prepares them; of several datasets multitask.JoinedWindows
    collate: Callable
    sampler: BucketSampler | BatchesByDataset
    steps_per_epoch: int  # updates of the weights
    tokens_per_epoch: int


def load_training_examples(
    spec: Spec,
    model: torch.nn.Module,
    tokenizer,
    rows: list[dict],
    counts: Counter,
    progress: Callable[[str], None],
) -> Examples:
    """Return the training examples of a run; add counts of their windows to `counts`.

    Reports what windows cannot hold of the rows. With distillation the examples have the teachers'
    logits.
    """
    if spec.distillation:
        teachers.check_teachers(spec)
    prepared = {}
    collators = {}
    lengths = {}
    domains = []
    for dataset, of_dataset in multitask.group_rows(spec, rows).items():
        task = selection.find_task(spec, dataset)
        windows = features.load_windows(
            of_dataset, tokenizer, spec.max_length, spec.stride, evaluate.CACHE, task
        )
        of_windows, remark = task.remark_on_windows(of_dataset, windows)
        counts.update({"windows": len(windows), **of_windows})
        if remark:
            progress(f"{spec.run}  {remark}")
        prepared[dataset] = model.prepare(windows, of_dataset)
        collators[dataset] = model.collate(tokenizer, task, dataset)
        if spec.distillation:
            prepared[dataset] = teachers.add_targets(
                spec, dataset, windows, prepared[dataset], tokenizer, progress
            )
            collators[dataset] = teachers.collate_taught(collators[dataset])
        lengths[dataset] = task.measure_windows(windows)
        domains += [of_dataset[row]["domain"] for row in windows["row"]]
    if spec.multitask:
        sampler = multitask.make_schedule(spec, lengths)
        of_all = np.concatenate(list(lengths.values()))
        return Examples(
            multitask.JoinedWindows(prepared),
            multitask.collate_by_dataset(collators),
            sampler,
            len(sampler) // spec.multitask.passes,
            int(sum(of_all[batch].sum() for batch in sampler)),
        )
    (dataset,) = prepared
    return Examples(
        prepared[dataset],
        collators[dataset],
        BucketSampler(
            lengths[dataset],
            domains,
            spec.batch_size // count_processes(),
            spec.order,
            spec.seed,
        ),
        math.ceil(len(domains) / spec.batch_size),
        sum(lengths[dataset]),
    )


def score_test_sets(
    spec: Spec,
    model: torch.nn.Module,
    tokenizer,
    progress: Callable[[str], None],
    keep_weights: bool,
    rules: dict[str, dict[str, float]],
) -> tuple[dict[str, dict], dict[str, list], pd.DataFrame]:
    """Score a trained model; return its scores and its experts' load by test set, and its examples.

    rules: what was chosen on validation rows, by task (evaluate.choose_rules).
    The load holds only the test sets on which the model has counted tokens per expert.
    """
    predict = evaluate.predict_outputs
    if keep_weights and isinstance(model, heads.SpanModel):
        predict = frozen.predict_and_store  # a mixture may ask for the same outputs again
    frozen.drop_outputs(spec)
    scores = {}
    load = {}
    frames = []
    for name, (dataset, rows) in selection.load_test_sets(spec).items():
        progress(f"{spec.run}  scoring {name}")
        model.tally = 0
        scores[name], examples = evaluate.evaluate_test_set(
            model, tokenizer, spec, name, dataset, rows, predict, rules.get(dataset.task)
        )
        frames.append(examples.assign(set=name))
        if torch.is_tensor(model.tally):
            load[name] = model.tally.tolist()
    examples = pd.concat(frames, ignore_index=True) if frames else NO_EXAMPLES
    return scores, load, examples


def save_weights(spec: Spec, model: torch.nn.Module):
    """Write a model's weights beside the run's record."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    runs.write(runs.run_folder(spec) / "model.safetensors", save(weights))


def peak_memory(spec: Spec) -> float:
    """Peak memory of a run in MB: that of the GPU, or else that of the process."""
    if spec.threads == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return memory.read_peak()
