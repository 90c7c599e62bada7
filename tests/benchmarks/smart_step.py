"""Time of a training step with SMART, beside smart-pytorch's on the same plain step.

    python tests/benchmarks/smart_step.py [threads] [blocks]

A step is the forward and the backward pass, clipping, and a fused AdamW, of a MiniLM with a head
for five classes, in fp32. Its batch has 16 texts of at most 48 tokens. It runs on the GPU where
there is one, else on CPU with 2 threads unless told. With 1 thread CPU time is counted, which other
programs do not change. blocks: how many of MiniLM's blocks there are, 6 unless told.

plain:            no SMART.
peer:             smart-pytorch 0.0.4 with its loss for classes, whose clean pass is the training
                  pass.
ours, unit norm:  the same term, in the same passes.
ours, stopped:    both terms of the paper, the clean side a stopped target.
ours, whole:      both terms of the paper.

Each has the time of a step and its ratio to the plain step. Then come the passes alone, with the
averaging of the weights and without clipping and AdamW: their ratio, that of the forward passes
that they are worth (losses/smart.py counts them; a plain step is worth 3), and what the one is of
the other. The steps alternate in one run, and the ratios are medians over the rounds.
"""

import statistics
import sys
import time

import torch
from smart_pytorch import SMARTLoss, kl_loss, sym_kl_loss
from transformers.utils import logging

from qa_lib.losses.smart import SmartLoss, count_forward_equivalents
from qa_lib.models import encoders
from qa_lib.models.shared_encoder import SharedEncoder, make_head
from qa_lib.settings.parameters import Smart
from qa_lib.training import train

logging.set_verbosity_error()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THREADS = int(sys.argv[1]) if sys.argv[1:] else 2
BLOCKS = int(sys.argv[2]) if sys.argv[2:] else None
CLOCK = time.process_time if DEVICE == "cpu" and THREADS == 1 else time.monotonic
ROUNDS = 5
STEPS = 2
BATCH = 16
TOKENS = 48
PEER_WEIGHT = 0.02  # in smart-pytorch's example

OURS = {
    "ours, unit norm": Smart(
        variant="unit_norm", dropout="on", reduction="sum", adversarial=PEER_WEIGHT, bregman=0.0
    ),
    "ours, stopped": Smart(clean_side="stopped"),
    "ours, whole": Smart(),
}
# Those of the training pass, of the ascent and of the perturbed pass.
PEER_PASSES = 3 + 2 + 3


def make_model() -> SharedEncoder:
    """Return a model that is the same each time."""
    torch.manual_seed(0)
    encoder, _ = encoders.load_encoder("minilm", BLOCKS)
    head = make_head("classes", encoder.config.hidden_size, 0.1, classes=5)
    return SharedEncoder(encoder, {"sst": head}, pooling="mean").to(DEVICE).train()


def draw_batch() -> dict:
    """Return a batch of random tokens."""
    torch.manual_seed(0)
    lengths = torch.randint(8, TOKENS + 1, (BATCH, 1))
    mask = (torch.arange(TOKENS) < lengths).long()
    ids = torch.randint(1000, 20000, (BATCH, TOKENS)) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(BATCH) % 5}
    return {"dataset": "sst"} | {name: value.to(DEVICE) for name, value in batch.items()}


def read_clock() -> float:
    """Return the seconds of the clock, when all work that was asked for is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return CLOCK()


class Step:
    """A training step of one kind."""

    def __init__(self, name: str, batch: dict):
        self.name = name
        self.batch = batch
        self.model = make_model()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.terms = SmartLoss(OURS[name], self.model, 0, 1000) if name in OURS else None
        self.peer = SMARTLoss(self.run_embeddings, kl_loss, sym_kl_loss)
        self.steps = 0

    def run_embeddings(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the logits of the batch on other embeddings."""
        return self.model.forward_embeddings(embeddings, self.batch).raw

    def compute_loss(self) -> torch.Tensor:
        """Return the loss of the batch, with the term where there is one."""
        if self.name == "peer":
            embeddings = self.model.embed(self.batch)
            outputs = self.model.forward_embeddings(embeddings, self.batch)
            return outputs.loss + PEER_WEIGHT * self.peer(embeddings, outputs.raw)
        outputs = self.model(**self.batch)
        if self.terms is None:
            return outputs.loss
        return outputs.loss + self.terms.loss(self.model, self.batch, outputs, self.steps)

    def run(self) -> tuple[float, float]:
        """Train on the batch once. Returns the seconds of its passes, and of the whole step."""
        began = read_clock()
        self.compute_loss().backward()
        passed = read_clock()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        updated = read_clock()
        if self.terms is not None:
            self.terms.after_step(self.model)
        ended = read_clock()
        self.steps += 1
        return passed - began + ended - updated, ended - began

    def count_passes(self) -> int:
        """Count the forward passes that a step is worth."""
        if self.name == "peer":
            return PEER_PASSES
        return count_forward_equivalents(OURS[self.name]) if self.name in OURS else 3


def median_ratio(seconds: list[float], others: list[float]) -> float:
    """Return the median over the rounds of one time by another."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def main():
    torch.set_num_threads(THREADS)
    where = "GPU" if DEVICE == "cuda" else f"{train.processor_name()}, threads: {THREADS}"
    print(f"{where}, fp32", flush=True)
    batch = draw_batch()
    steps = [Step(name, batch) for name in ("plain", "peer", *OURS)]
    passes = {step.name: [] for step in steps}
    whole = {step.name: [] for step in steps}
    for number in range(ROUNDS + 1):
        print(f"  round {number} of {ROUNDS}" if number else "  warming up", flush=True)
        for step in steps:
            measured = [step.run() for _ in range(STEPS)]
            if number > 0:  # the first round warms up
                passes[step.name].append(statistics.mean(pair[0] for pair in measured))
                whole[step.name].append(statistics.mean(pair[1] for pair in measured))
    for step in steps:
        name = step.name
        ratio = median_ratio(passes[name], passes["plain"])
        counted = step.count_passes() / 3
        print(
            f"{name}: step {1000 * statistics.median(whole[name]):.0f} ms, "
            f"{median_ratio(whole[name], whole['plain']):.2f} of plain; "
            f"passes {ratio:.2f} of plain, counted {3 * counted:.0f}/3 = {counted:.2f}, "
            f"{ratio / counted:.2f} of the count",
            flush=True,
        )
    of_peer = median_ratio(whole["ours, unit norm"], whole["peer"])
    print(f"step of ours, unit norm, by that of the peer: {of_peer:.2f}")


if __name__ == "__main__":
    main()
