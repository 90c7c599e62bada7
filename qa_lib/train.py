"""One run: build → Trainer → score → record.

    python -m qa_lib.train REPORT --run NAME …          one run of the plan, by its name or the start of it
    accelerate launch -m qa_lib.train REPORT --run NAME …    the same over several GPUs, into the same record

The Hugging Face Trainer does the loop; overridden are `compute_loss`, `evaluate` and the sampler, nothing else.
A run killed at any moment goes on from its last complete checkpoint and ends with the same numbers on CPU.
"""
import argparse
import ctypes
import datetime
import hashlib
import math
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from qa_lib import data, encoders, features, metrics, params, runs
from qa_lib.params import ROOT, Spec, UserError

CACHE = runs.RUNS / "cache"


def keep_freed_memory():
    """glibc gives large blocks back at once and faults them in again at the next step; tell it to keep them.

    mallopt(M_MMAP_THRESHOLD, 32 MB), mallopt(M_TRIM_THRESHOLD, 2 GB); elsewhere than on Linux nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)
        libc.mallopt(-1, 2**31 - 1)


def build(spec: Spec):
    """(model, tokenizer) of a run before training: encoder, head by the run's seed, a parent's weights if it has one."""
    set_seed(spec.seed)
    encoder, tokenizer = encoders.load(spec.encoder, spec.blocks)
    model = encoders.SpanModel(encoder, spec.head_dropout)
    for parent in spec.parents:  # fine-tuning goes on from the parent's weights
        model.load_state_dict(load_file(runs.folder(parent) / "model.safetensors"))
    return model, tokenizer


def logits(model, windows, collate, precision: str) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Start and end logits of each window, (T,) each, and the mean loss. Longest first, in batches of like length."""
    device = next(model.parameters()).device
    lengths = [len(ids) for ids in windows["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    budget = 65536 if device.type == "cuda" else 4096                        # tokens a batch
    start, end, total, at = [None] * len(order), [None] * len(order), 0.0, 0
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        while at < len(order):
            part = order[at:at + max(1, budget // lengths[order[at]])]
            batch = {k: v.to(device) for k, v in collate([windows[i] for i in part]).items()}
            out = model(**batch)
            total += out.loss.item() * len(part)
            s, e = out.start_logits.cpu().numpy(), out.end_logits.cpu().numpy()
            for row, i in enumerate(part):
                start[i], end[i] = s[row, :lengths[i]], e[row, :lengths[i]]
            at += len(part)
    return start, end, total / max(1, len(order))


def score(model, tokenizer, spec: Spec, rows: list[dict]) -> tuple[list[dict], dict, float]:
    """Answers, their EM and F1 (metrics.SpanScore), and the mean loss of a model on rows."""
    windows = features.windows(rows, tokenizer, spec.max_length, spec.stride, CACHE)
    start, end, loss = logits(model, windows, collate(model, tokenizer), spec.precision)
    answers = metrics.predict(rows, windows, start, end, null_answers=any(r["is_impossible"] for r in rows))
    scores = metrics.SpanScore(keep_in_memory=True).compute(
        predictions=[a["text"] for a in answers], references=[r["answers"]["text"] for r in rows])
    return answers, scores, loss


def collate(model, tokenizer) -> features.Collate:
    return features.Collate(tokenizer.pad_token_id, model.encoder.config.model_type != "distilbert")


class SpanTrainer(Trainer):
    """The Trainer with our loss, our validation score and our order of examples."""

    def __init__(self, spec: Spec, rows: list[dict], tokenizer, **kwargs):
        self.spec, self.tokenizer = spec, tokenizer
        self.domains = [r["domain"] for r in rows]
        super().__init__(**kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs)
        return (out.loss, out) if return_outputs else out.loss

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        _, scores, loss = score(self.model, self.tokenizer, self.spec, self.eval_dataset)
        found = {"eval_loss": loss, "eval_em": scores["exact_match"], "eval_f1": scores["f1"]}
        self.log(found)
        return found

    def _get_train_sampler(self, train_dataset=None):
        windows = self.train_dataset
        return features.BucketSampler([len(ids) for ids in windows["input_ids"]], [self.domains[r] for r in windows["row"]],
                                      self.args.train_batch_size, self.spec.order, self.spec.seed)


class Keeper(TrainerCallback):
    """Checkpoints by the clock, progress, and an end to a run whose loss is no number."""

    def __init__(self, spec: Spec, progress: Callable[[str], None]):
        self.spec, self.progress = spec, progress
        self.every = float(os.environ.get("QA_CHECKPOINT_SECONDS", 300))
        self.began = self.saved = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.progress(f"{self.spec.run}  step {state.global_step}/{state.max_steps}")
        # only where the mean loss is logged: what a checkpoint holds is then all there is to know
        if control.should_log and time.monotonic() - self.saved >= self.every and state.global_step < state.max_steps:
            control.should_save, self.saved = True, time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise UserError(f"{self.spec.run}: the loss is {logs['loss']} at step {state.global_step}; lower learning_rate")

    def on_save(self, args, state, control, **kwargs):
        # the mark that this checkpoint is whole: a kill while it was written leaves none
        seconds = time.monotonic() - self.began + earlier(Path(args.output_dir), state.global_step)
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete").write_text(f"{seconds:.1f}")


def last_checkpoint(folder: Path) -> Path | None:
    whole = [p.parent for p in folder.glob("checkpoint-*/complete")]
    return max(whole, key=lambda p: int(p.name.split("-")[1]), default=None)


def earlier(folder: Path, before: int | None = None) -> float:
    """Seconds of training that earlier starts of this run put into its last checkpoint."""
    marks = [p for p in folder.glob("checkpoint-*/complete") if before is None or int(p.parent.name.split("-")[1]) < before]
    return float(max(marks, key=lambda p: int(p.parent.name.split("-")[1])).read_text()) if marks else 0.0


def arguments(spec: Spec, steps_per_epoch: int) -> TrainingArguments:
    total, processes = math.ceil(steps_per_epoch * spec.epochs), int(os.environ.get("WORLD_SIZE", 1))  # accelerate launch
    if spec.batch_size % processes:
        raise UserError(f"batch_size: {spec.batch_size} does not divide among {processes} processes; change one of them")
    return TrainingArguments(
        output_dir=str(runs.folder(spec) / "checkpoints"), seed=spec.seed, data_seed=spec.seed,
        per_device_train_batch_size=spec.batch_size // processes, learning_rate=spec.learning_rate, num_train_epochs=spec.epochs,
        lr_scheduler_type="linear", warmup_steps=round(spec.warmup * total), weight_decay=spec.weight_decay,
        max_grad_norm=spec.clip, optim="adamw_torch_fused", bf16=spec.precision == "bf16", tf32=spec.threads == "cuda" or None,
        use_cpu=spec.threads != "cuda", eval_strategy="epoch", save_strategy="no", save_total_limit=2,
        logging_strategy="steps", logging_steps=max(1, steps_per_epoch // 10), logging_nan_inf_filter=False,
        report_to="none", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=spec.threads == "cuda")


def history(log: list[dict]) -> list[dict]:
    """One row per epoch from the Trainer's log: mean training loss of the epoch, validation loss, EM and F1."""
    rows, losses, steps, at = [], [], [], 0
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"])
            steps.append(entry["step"] - at)
            at = entry["step"]
        elif "eval_loss" in entry:
            rows.append({"epoch": round(entry["epoch"], 4), "step": entry["step"],
                         "train_loss": float(np.average(losses, weights=steps)) if losses else None,
                         "validation_loss": entry["eval_loss"], "validation_em": entry["eval_em"],
                         "validation_f1": entry["eval_f1"]})
            losses, steps = [], []
    return rows


def environment(spec: Spec) -> dict:
    """What made a run: the machine, the versions, the commit. No host name, no path."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain", "--", "qa_lib", "params"], capture_output=True, text=True).stdout
    cuda = spec.threads == "cuda"
    model = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")] \
        if Path("/proc/cpuinfo").exists() else []
    return {"device": torch.cuda.get_device_name() if cuda else f"CPU, {spec.threads} thread" + "s" * (spec.threads > 1),
            "processor": (model or [platform.processor() or platform.machine()])[0], "platform": platform.system(),
            "python": platform.python_version(), "precision": spec.precision, "commit": commit or "unknown",
            "dirty": bool(dirty), **{p: version(p) for p in ("torch", "transformers", "accelerate", "tokenizers", "numpy")}}


def train(spec: Spec, progress: Callable[[str], None] = print, keep_weights: bool = False) -> dict | None:
    """Train (or go on training) one run, score it on its test sets, and write its record.

    keep_weights: leave model.safetensors beside the record, for children. Returns the record; None on the
    processes of a distributed training that do not write.
    """
    began, at = time.monotonic(), runs.folder(spec)
    at.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    if spec.threads != "cuda":
        torch.set_num_threads(spec.threads)
        keep_freed_memory()
    try:
        model, tokenizer = build(spec)
        rows, validation, counts = data.mixture(spec)
        windows = features.windows(rows, tokenizer, spec.max_length, spec.stride, CACHE)
        counts["windows"], counts["further windows"] = len(windows), len(windows) - len(rows)
        resume = last_checkpoint(at / "checkpoints")
        spent = earlier(at / "checkpoints")
        trainer = SpanTrainer(spec, rows, tokenizer, model=model, train_dataset=windows, eval_dataset=validation,
                              args=arguments(spec, math.ceil(len(windows) / spec.batch_size)),
                              data_collator=collate(model, tokenizer), callbacks=[Keeper(spec, progress)])
        trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(PrinterCallback)  # its lines; ours come through Keeper
        if resume:
            progress(f"{spec.run}  goes on from {resume.name}")
        fit = time.monotonic()
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        fit = time.monotonic() - fit + spent
        if not trainer.is_world_process_zero():
            return None
        scores, frames = {}, []
        for name, (d, test) in data.tests(spec).items():
            progress(f"{spec.run}  scoring {name}")
            scores[name], frame = examine(model, tokenizer, spec, d, test)
            frames.append(frame.assign(set=name))
        if keep_weights:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, at / "model.safetensors")
        tokens = sum(len(ids) for ids in windows["input_ids"]) * spec.epochs
        peak = torch.cuda.max_memory_allocated() / 2**20 if spec.threads == "cuda" else \
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        runs.save(spec, {"metrics": scores, "history": history(trainer.state.log_history), "load": {}, "data": dict(counts),
                         "environment": environment(spec), "parameters": sum(p.numel() for p in model.parameters()),
                         "tokens": tokens, "training_seconds": fit, "seconds": time.monotonic() - began + spent,
                         "tokens_per_second": tokens / fit, "peak_memory_mb": peak,
                         "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")},
                  pd.concat(frames, ignore_index=True))
        runs.discard(spec, "checkpoints")
        return runs.find(spec)
    finally:
        torch.set_num_threads(before)


def examine(model, tokenizer, spec: Spec, d: params.Dataset, rows: list[dict]) -> tuple[dict, pd.DataFrame]:
    """Scores of a test set and one row per example: ids, scores and character spans, never text."""
    answers, scored, loss = score(model, tokenizer, spec, rows)
    clusters = [hashlib.sha256(data.normalised(r[d.cluster]).encode()).hexdigest()[:12] for r in rows]
    by = clusters if d.average == "clusters" else None
    frame = pd.DataFrame({"id": [r["id"] for r in rows], "cluster": clusters, "em": scored["em_rows"].astype(np.float32),
                          "f1": scored["f1_rows"].astype(np.float32), "start": [a["start"] for a in answers],
                          "end": [a["end"] for a in answers], "tokens": [a["tokens"] for a in answers]})
    frame = frame.astype({"start": np.int32, "end": np.int32, "tokens": np.int16})
    return {"em": metrics.average(scored["em_rows"], by), "f1": metrics.average(scored["f1_rows"], by),
            "em_rows": scored["exact_match"], "f1_rows": scored["f1"], "loss": loss, "tokens": float(frame["tokens"].mean()),
            "n": len(rows), "clusters": len(set(clusters))}, frame


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    params.add_arguments(parser)
    parser.add_argument("--run", required=True, help="name of a run in the plan, or its start")
    args = parser.parse_args()
    specs = [s.on_gpu() if torch.cuda.is_available() else s for s in runs.plan(params.from_args(args))]
    chosen = [s for s in specs if s.run.startswith(args.run)]
    if len(chosen) != 1:
        raise UserError(f"--run {args.run} fits {len(chosen)} runs of the plan: {', '.join(s.run for s in (chosen or specs)[:6])}")
    record = train(chosen[0], keep_weights=True)
    if record:
        print(" ".join(f"{name}: EM {m['em']:.1f} F1 {m['f1']:.1f}" for name, m in record["metrics"].items()))
    return 0


if __name__ == "__main__":
    params.main(main)
