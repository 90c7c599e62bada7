"""One run: build → Trainer → score → record.

    python -m qa_lib train REPORT --run NAME …          one run of the plan, by its name or the start of it
    accelerate launch -m qa_lib train REPORT --run NAME …    the same over several GPUs, into the same record

The Hugging Face Trainer does the loop; overridden are `compute_loss`, `evaluate`, `log` and the sampler, nothing else.
A run killed at any moment goes on from its last complete checkpoint and ends with the same scores on CPU. (Where the checkpoint was
taken between two logged steps, the mean training loss of the look that follows is over fewer steps.)
"""

import contextlib
import ctypes
import datetime
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import broadcast
from safetensors.torch import save
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from qa_lib.data import augment, features, selection
from qa_lib.data.batches import BucketSampler
from qa_lib.settings import files
from qa_lib.settings.params import ROOT, UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.tasks import span
from qa_lib.training import build, clusters, evaluate, frozen

EXAMPLES = pd.DataFrame({"set": [], "id": []})  # of a run without test sets


def keep_freed_memory():
    """glibc gives large blocks back at once and faults them in again at the next step; tell it to keep them.

    mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2 GB); elsewhere than on Linux nothing happens. (A higher M_MMAP_THRESHOLD
    alone is not enough: it is at most 32 MB, and attention of long windows asks for more.) What earlier runs of this process kept
    goes back first, and their peak is forgotten, so that peak memory is the run's own.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        libc.mallopt(-4, 0)
        libc.mallopt(-1, 2**31 - 1)


class SpanTrainer(Trainer):
    """The Trainer with our loss, our validation score and our order of examples."""

    def __init__(self, spec: Spec, rows: list[dict], tokenizer, **kwargs):
        self.spec, self.tokenizer = spec, tokenizer
        self.domains, self.routed = [r["domain"] for r in rows], []
        self.watched = rows[:: math.ceil(len(rows) / spec.watched)] if spec.watched else []
        super().__init__(**kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs)
        if routed := getattr(self.accelerator.unwrap_model(model), "routed", None):
            losses = torch.stack([routed.balance_loss, routed.z_loss, routed.dropped])
            self.routed.append(torch.cat([losses, routed.load]).detach())
        return (out.loss, out) if return_outputs else out.loss

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Beside the loss: both auxiliary losses, the share of dropped picks and each expert's load, means since the last."""
        if "loss" in logs and self.routed:
            logs["balance_loss"], logs["z_loss"], logs["dropped"], *logs["load"] = (
                torch.stack(self.routed).mean(0).tolist()
            )
            self.routed.clear()
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        if (
            (past := self.state.log_history[-1:])
            and "eval_loss" in past[0]
            and past[0]["step"] == self.state.global_step
        ):
            return past[0]  # the Trainer asks twice at the last step
        _, scores, loss = evaluate.score_rows(
            self.model, self.tokenizer, self.spec, self.eval_dataset
        )
        found = {"eval_loss": loss, "eval_em": scores["exact_match"], "eval_f1": scores["f1"]}
        if self.watched:
            _, scores, _ = evaluate.score_rows(self.model, self.tokenizer, self.spec, self.watched)
            found |= {"eval_train_em": scores["exact_match"], "eval_train_f1": scores["f1"]}
        self.log(found)
        return found

    def _get_train_sampler(self, train_dataset=None):
        windows = self.train_dataset
        return BucketSampler(
            [len(ids) for ids in windows["input_ids"]],
            [self.domains[r] for r in windows["row"]],
            self.args.train_batch_size,
            self.spec.order,
            self.spec.seed,
        )


class Keeper(TrainerCallback):
    """Checkpoints by the clock, progress, and an end to a run whose loss is no number."""

    def __init__(self, spec: Spec, progress: Callable[[str], None], spent: float):
        self.spec, self.progress, self.spent = spec, progress, spent
        self.every = float(os.environ.get("QA_CHECKPOINT_SECONDS", 300))
        self.began = self.saved = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.progress(f"{self.spec.run}  step {state.global_step}/{state.max_steps}")
        # only where the mean loss is logged, so that none is lost
        if control.should_log and state.global_step < state.max_steps:
            due = torch.tensor(int(time.monotonic() - self.saved >= self.every), device=args.device)
            if broadcast(due):  # of several processes the first one's clock decides for all
                control.should_save, self.saved = True, time.monotonic()

    def on_log(self, args, state, control, logs, **kwargs):
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(
                f"{self.spec.run}: the loss is {logs['loss']} at step {state.global_step}; lower learning_rate"
            )

    def on_save(self, args, state, control, **kwargs):
        # the mark that this checkpoint is whole, with the seconds that led to it: a kill while it was written leaves none
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # each writes the state of its random numbers
        if state.is_world_process_zero:  # which writes the mark
            seconds = self.spent + time.monotonic() - self.began
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files.seal(folder, seconds=round(seconds, 1))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, as is the best one that it names; else None."""
    whole = {p.name: p for p in folder.glob("checkpoint-*") if files.read_seal(p) is not None}
    usable = []
    for path in whole.values():
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        best = state["best_model_checkpoint"]
        if best is None or Path(best).name in whole:
            usable.append(path)
    return max(usable, key=step_of, default=None)


def drop_other_checkpoints(folder: Path, resume: Path | None, progress: Callable[[str], None]):
    """Remove checkpoints from which the run cannot go on: the Trainer keeps two, whole or not.

    resume: the one that the run goes on from. Older whole ones stay: one of them may be the best.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=step_of):
        sealed = (path / files.SEAL).exists()  # else the run was killed while it was written
        older = resume is not None and step_of(path) <= step_of(resume)
        if older and files.read_seal(path) is not None:
            continue
        if sealed:
            progress(
                f"{folder.parent.name}  {path.name}, or the best one before it, is damaged; dropped"
            )
        shutil.rmtree(path, ignore_errors=True)


def training_arguments(spec: Spec, steps_per_epoch: int, resume: bool) -> TrainingArguments:
    # accelerate launch
    total, processes = (
        math.ceil(steps_per_epoch * spec.epochs),
        int(os.environ.get("WORLD_SIZE", 1)),
    )
    if spec.batch_size % processes:
        raise UserError(
            f"batch_size: {spec.batch_size} does not divide among {processes} processes; change one of them"
        )
    looks = {"eval_strategy": "epoch" if spec.validation_rows else "no", "save_strategy": "no"}
    if spec.looks > 1:
        looks |= {"eval_strategy": "steps", "eval_steps": max(1, steps_per_epoch // spec.looks)}
    if spec.checkpoint == "best":
        looks |= {
            "save_strategy": "best",
            "load_best_model_at_end": True,
            "metric_for_best_model": "f1",
        }
    # a curve begins where training does: a mixture's not at 0
    looks |= {"eval_on_start": spec.watched > 0 and not resume}
    found = TrainingArguments(
        output_dir=str(runs.run_folder(spec) / "checkpoints"),
        seed=spec.seed,
        data_seed=spec.seed,
        per_device_train_batch_size=spec.batch_size // processes,
        learning_rate=spec.learning_rate,
        num_train_epochs=spec.epochs,
        lr_scheduler_type=spec.schedule,
        warmup_steps=round(spec.warmup * total),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.clip,
        optim="adamw_torch_fused",
        bf16=spec.precision == "bf16",
        tf32=(spec.threads == "cuda" and spec.precision == "fp32")
        or None,  # a bf16 run keeps in fp32 what must not be rounded
        use_cpu=spec.threads != "cuda",
        save_total_limit=2,
        **looks,
        logging_strategy="steps",
        logging_steps=max(1, steps_per_epoch // 10),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=spec.threads == "cuda",
    )
    # whatever ACCELERATE_MIXED_PRECISION says
    found.mixed_precision = "bf16" if spec.precision == "bf16" else "no"
    # or several visible GPUs make a batch of several times batch_size (DataParallel)
    found._n_gpu = min(found.n_gpu, 1)
    return found


def read_history(log: list[dict]) -> list[dict]:
    """One row per look from the Trainer's log: mean training loss since the look before, validation loss, EM and F1."""
    rows, losses, steps, at = [], [], [], 0
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"])
            steps.append(entry["step"] - at)
            at = entry["step"]
        elif "eval_loss" in entry:
            rows.append(
                {
                    "epoch": round(entry["epoch"], 4),
                    "step": entry["step"],
                    "train_loss": float(np.average(losses, weights=steps)) if losses else None,
                    "validation_loss": entry["eval_loss"],
                    "validation_em": entry["eval_em"],
                    "validation_f1": entry["eval_f1"],
                    **{
                        k.removeprefix("eval_"): entry[k]
                        for k in ("eval_train_em", "eval_train_f1")
                        if k in entry
                    },
                }
            )
            losses, steps = [], []
    return rows


def describe_curve(past: list[dict]) -> dict[str, float]:
    """How fast training EM rises, from looks of which the first is before training: after a tenth of all steps, and the share of
    steps (percent) after which it stays within 1 EM of its end."""
    steps, em = ([row[k] for row in past] for k in ("step", "train_em"))
    moving = [step for step, x in zip(steps, em, strict=True) if abs(x - em[-1]) > 1]
    flat = next(step for step in steps if step > max(moving, default=-1))
    return {
        "train_em_early": float(np.interp(0.1 * steps[-1], steps, em)),
        "plateau": 100 * flat / steps[-1],
        "train_em": em[-1],
        "train_f1": past[-1]["train_f1"],
        "n": len(past),
    }


def read_routing(log: list[dict]) -> list[dict]:
    """What the router did, one row per logging step; none where the model has no router."""
    return [
        {k: entry[k] for k in ("step", "balance_loss", "z_loss", "dropped", "load")}
        for entry in log
        if "load" in entry
    ]


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
    """(commit, dirty) of the checkout that holds qa_lib.

    Files without git of their own have the commit that QA_COMMIT says, or "unknown".
    dirty: whether code or parameters differ from the commit; None where nobody knows.
    """
    told = os.environ.get("QA_COMMIT") or "unknown"
    top = ask_git("rev-parse", "--show-toplevel")
    if not top or os.path.realpath(top) != os.path.realpath(ROOT):
        return told, None  # no repository, or one around this folder
    if not ask_git("rev-parse", "--verify", "--quiet", "HEAD:qa_lib"):
        return told, None  # one without a commit, or without this code
    changes = ask_git(
        "--no-optional-locks",
        "status",
        "--porcelain",
        "--untracked-files=all",
        "--",
        "qa_lib",
        "params",
    )
    dirty = None if changes is None else bool(changes)
    return ask_git("rev-parse", "HEAD"), dirty


def describe_environment(spec: Spec) -> dict:
    """What made a run: the machine, the versions, the commit. No host name or path."""
    commit, dirty = read_commit()
    cuda = spec.threads == "cuda"
    model = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"CPU, {spec.threads} thread" + "s" * (spec.threads > 1),
        "processor": (model or [platform.processor() or platform.machine()])[0],
        "platform": platform.system(),
        "python": platform.python_version(),
        "precision": spec.precision,
        "commit": commit,
        "dirty": dirty,
        **{p: version(p) for p in ("torch", "transformers", "accelerate", "tokenizers", "numpy")},
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def train(
    spec: Spec, progress: Callable[[str], None] = print, keep_weights: bool = False
) -> dict | None:
    """Train (or go on training) one run, score it on its test sets, and write its record.

    keep_weights: leave model.safetensors beside the record, for children. Returns the record; None on the
    processes of a distributed training that do not write.
    """
    began, at = time.monotonic(), runs.run_folder(spec)
    # trained again for its weights: its record keeps the scores it has
    if old := runs.find_record(spec):
        spec = spec.model_copy(update={"tests": old["spec"]["tests"]})
    at.mkdir(parents=True, exist_ok=True)
    made = describe_environment(spec)  # the checkout may be another when the run ends
    before = torch.get_num_threads()
    if spec.threads == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of the runs before this one
    else:
        torch.set_num_threads(spec.threads)
        keep_freed_memory()
    try:
        if spec.gate and spec.gate.rule in evaluate.COMBINED:
            scores, frame = evaluate.combine_expert_scores(spec)
            nothing = dict.fromkeys(
                (
                    "parameters",
                    "active_parameters",
                    "tokens",
                    "training_seconds",
                    "tokens_per_second",
                    "peak_memory_mb",
                ),
                0,
            )
            runs.save(
                spec,
                {
                    "metrics": scores,
                    "history": [],
                    "load": {},
                    "data": {},
                    "environment": made,
                    **nothing,
                    "seconds": time.monotonic() - began,
                    "created": now(),
                },
                frame,
            )
            return runs.find_record(spec)
        model, tokenizer = build.build_model(spec)
        rows, validation, counts = selection.draw_mixture(spec)
        if spec.cluster:
            rows, validation = clusters.select_cluster(spec, rows, validation)
            counts["rows of the cluster"] = len(rows)
        if spec.augment:
            rows = rows + augment.make_copies(rows, spec.augment, spec.seed)
        windows = features.load_windows(
            rows, tokenizer, spec.max_length, spec.stride, evaluate.CACHE
        )
        counts["windows"], counts["further windows"] = len(windows), len(windows) - len(rows)
        unlabelled = span.count_unlabelled(rows, windows)
        counts["answers whole in no window"] = unlabelled
        if unlabelled:
            progress(
                f"{spec.run}  {unlabelled} of {len(rows)} training rows have an answer that no window holds whole: they teach "
                "“no answer”; a larger max_length or stride would keep them"
            )
        resume = last_checkpoint(at / "checkpoints")
        spent = files.read_seal(resume)["seconds"] if resume else 0.0  # by the starts before
        trainer = SpanTrainer(
            spec,
            rows,
            tokenizer,
            model=model,
            train_dataset=model.prepare(windows, rows),
            eval_dataset=validation,
            args=training_arguments(spec, math.ceil(len(windows) / spec.batch_size), bool(resume)),
            data_collator=model.collate(tokenizer),
            callbacks=[Keeper(spec, progress, spent)],
        )
        trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(PrinterCallback)  # its lines; ours come through Keeper
        if trainer.is_world_process_zero():
            drop_other_checkpoints(at / "checkpoints", resume, progress)
        if resume:
            progress(f"{spec.run}  goes on from {resume.name}")
        fit = time.monotonic()
        # a mixture with given weights has nothing to learn
        if learns := any(p.requires_grad for p in model.parameters()):
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        fit = time.monotonic() - fit + spent
        if not trainer.is_world_process_zero():
            return None
        past = read_history(trainer.state.log_history)
        scores, load, frames = {}, {"training": read_routing(trainer.state.log_history)}, []
        # a mixture may ask for the same again
        said = evaluate.predict_spans if not keep_weights or spec.gate else frozen.predict_and_store
        frozen.drop_outputs(spec)
        for name, (d, test) in selection.load_test_sets(spec).items():
            progress(f"{spec.run}  scoring {name}")
            model.tally = 0
            scores[name], frame = evaluate.evaluate_test_set(model, tokenizer, spec, d, test, said)
            frames.append(frame.assign(set=name))
            load |= {name: model.tally.tolist()} if torch.is_tensor(model.tally) else {}
        if keep_weights:
            runs.write(
                at / "model.safetensors",
                save({k: v.contiguous() for k, v in model.state_dict().items()}),
            )
        tokens = learns * sum(len(ids) for ids in windows["input_ids"]) * spec.epochs
        peak = (
            torch.cuda.max_memory_allocated() / 2**20
            if spec.threads == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        )
        if spec.watched and past:
            scores["training"] = describe_curve(past)
        every, active = build.count_parameters(model, spec)
        runs.save(
            spec,
            {
                "metrics": scores,
                "history": past,
                "load": load,
                "data": dict(counts),
                "environment": made,
                "parameters": every,
                "active_parameters": active,
                "chosen_step": trainer.state.best_global_step,
                "tokens": tokens,
                "training_seconds": fit,
                "seconds": time.monotonic() - began + spent,
                "tokens_per_second": tokens / fit,
                "peak_memory_mb": peak,
                "created": now(),
            },
            pd.concat(frames, ignore_index=True) if frames else EXAMPLES,
        )
        runs.discard(spec, "checkpoints")
        return runs.find_record(spec)
    finally:
        torch.set_num_threads(before)
