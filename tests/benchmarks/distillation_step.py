"""Time of a training step with teachers, beside a plain step.

    python tests/benchmarks/distillation_step.py [threads] [blocks]

A step is all that a training does for a batch: reading its windows and the teachers' logits,
collating, the forward and the backward pass, clipping, and a fused AdamW. The model is a MiniLM
with a span head, in fp32. The batches have 16 windows of generated questions each, in the order of
the trainer's sampler, so that an epoch is made of such steps. It runs on the GPU where there is
one, else on CPU with 2 threads unless told. With 1 thread CPU time is counted, which other programs
do not change. blocks: how many of MiniLM's blocks the student has, 6 unless told.

plain:       no teachers.
1 teacher:   soft targets of one teacher, read from its memory-mapped logits
             (qa_lib/training/teachers.py).
3 teachers:  the same of three, weighted by who is right.

The teachers' logits are made before. How long that takes is printed and not counted, since it is
done once for all runs on these windows. The kinds take turns in one run, and ratios are medians
over the rounds.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from qa_lib.data import corpora, features
from qa_lib.data.batches import BucketSampler
from qa_lib.losses.distillation import DistillationLoss
from qa_lib.models import encoders
from qa_lib.models.shared_encoder import SharedEncoder, make_head
from qa_lib.settings.parameters import Distillation
from qa_lib.tasks import span
from qa_lib.training import build, evaluate, frozen, teachers, train

logging.set_verbosity_error()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THREADS = int(sys.argv[1]) if sys.argv[1:] else 2
BLOCKS = int(sys.argv[2]) if sys.argv[2:] else None
CLOCK = time.process_time if DEVICE == "cpu" and THREADS == 1 else time.monotonic
DATASET = "encyclopaedia"
ROWS = 128
BATCH = 16
ROUNDS = 7
STEPS = 3
# Kind of step → how many teachers it has.
KINDS = {"plain": 0, "1 teacher": 1, "3 teachers": 3}


def make_model(seed: int, blocks: int | None) -> SharedEncoder:
    """Return a model whose head the seed draws."""
    torch.manual_seed(seed)
    encoder, _ = encoders.load_encoder("minilm", blocks)
    head = make_head("span", encoder.config.hidden_size, 0.1)
    return SharedEncoder(encoder, {DATASET: head}).to(DEVICE)


def store_logits(number: int, windows, tokenizer) -> np.ndarray:
    """Return the logits of a teacher on windows, memory-mapped, after they are made and stored."""

    def write(target: Path):
        model = make_model(number, None)
        collate = model.collate(tokenizer, span, DATASET)
        file = target / teachers.OUTPUTS
        teachers.write_outputs(file, model, windows, collate, "fp32", span, "logits")

    return teachers.open_outputs(frozen.store_folder(f"teacher-{number}", write))


def read_clock() -> float:
    """Return the seconds of the clock, when all work that was asked for is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return CLOCK()


class Training:
    """A training with steps of one kind."""

    def __init__(self, name: str, windows, logits: list[np.ndarray], tokenizer):
        """logits: of all teachers, of which the first ones teach."""
        self.name = name
        self.model = make_model(0, BLOCKS).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.windows = windows
        self.collate = self.model.collate(tokenizer, span, DATASET)
        self.losses = []
        self.steps = 0
        number = KINDS[name]
        if number:
            borders = teachers.find_borders(windows)
            self.windows = teachers.TaughtWindows(windows, borders, True, logits[:number])
            self.collate = teachers.collate_taught(self.collate)
            options = Distillation(teachers="weighted" if number > 1 else "mean")
            self.losses = [DistillationLoss(options, self.model, 0, 1000)]

    def run(self, parts: list[list[int]]) -> float:
        """Train on batches of windows. Returns the seconds of a step."""
        began = read_clock()
        for part in parts:
            batch = self.collate(self.windows.__getitems__(part))
            for name, value in batch.items():
                if torch.is_tensor(value):
                    batch[name] = value.to(DEVICE)
            out = self.model(**batch)
            build.add_losses(self.losses, self.model, batch, out, out.loss, self.steps).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
        seconds = (read_clock() - began) / len(parts)
        for extra in self.losses:
            extra.read_log()
        return seconds


def measure(folder: Path):
    """Print how long steps take, with a folder for windows and logits."""
    evaluate.CACHE = folder
    tokenizer = encoders.load_encoder("minilm", 1)[1]
    rows = corpora.draw_questions(DATASET, ROWS)
    windows = features.load_windows(rows, tokenizer, 384, 128, folder)
    began = time.monotonic()
    logits = []
    for number in range(max(KINDS.values())):
        print(f"  asking teacher {number + 1} about {len(windows)} windows", flush=True)
        logits.append(store_logits(number, windows, tokenizer))
    seconds_to_store = time.monotonic() - began
    lengths = span.measure_windows(windows)
    order = list(BucketSampler(lengths, [DATASET] * len(windows), BATCH, "trainer", 0))
    parts = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    trainings = [Training(name, windows, logits, tokenizer) for name in KINDS]
    seconds = {name: [] for name in KINDS}
    for number in range(ROUNDS + 1):
        print(f"  round {number} of {ROUNDS}" if number else "  warming up", flush=True)
        chosen = [parts[(STEPS * number + k) % len(parts)] for k in range(STEPS)]
        for training in trainings:
            of_round = training.run(chosen)
            if number > 0:  # the first round warms up
                seconds[training.name].append(of_round)
    for name, of_kind in seconds.items():
        ratios = [a / b for a, b in zip(of_kind, seconds["plain"], strict=True)]
        print(
            f"{name}: step {1000 * statistics.median(of_kind):.0f} ms, "
            f"{statistics.median(ratios):.3f} of plain "
            f"(rounds from {min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )
    print(f"logits of {len(logits)} teachers made once in {seconds_to_store:.1f} s")


def main():
    torch.set_num_threads(THREADS)
    where = "GPU" if DEVICE == "cuda" else f"{train.processor_name()}, threads: {THREADS}"
    print(f"{where}, fp32", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))


if __name__ == "__main__":
    main()
