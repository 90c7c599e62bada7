"""Training speed of our loop beside the usual recipe, which pads every window and trains in fp32.

    make bench

Both train the same MiniLM span model on windows of the same lengths, in batches of 16 on two
threads. The recipe is that of the Hugging Face question answering notebook: every window is padded
to 384 tokens, in fp32. Ours has the library's sampler, batches and optimizer, in bf16 where the
processor has it. Lengths follow the deciles of SQuAD v1.1's training windows; DATA=folder takes the
real windows.

The two alternate in one run. Printed are examples and tokens a second, the median ratio of five
rounds, and our share of the rate of a matrix product.
"""

import os
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from qa_lib.data import features, selection
from qa_lib.data.batches import BucketSampler
from qa_lib.models import encoders, heads
from qa_lib.settings.spec import has_bf16
from qa_lib.tasks import span

DECILES = [61, 107, 122, 134, 146, 158, 172, 188, 209, 246, 384]
ROUNDS = 5
BATCH = 16


def draw_lengths(n: int) -> list[int]:
    """Return the lengths of n windows, drawn from SQuAD's training rows or from its deciles."""
    rng = random.Random(0)
    if "DATA" in os.environ:
        splits = selection.load_splits("squad", "folder", os.environ["DATA"])
        rows = rng.sample(splits.train, n)
        tokenizer = encoders.load_encoder("minilm")[1]
        windows = features.load_windows(rows, tokenizer, 384, 128, Path("runs/cache"))
        return [len(ids) for ids in windows["input_ids"]][:n]
    lengths = []
    for _ in range(n):
        k = rng.randrange(10)
        lengths.append(rng.randint(DECILES[k], DECILES[k + 1]))
    return lengths


def draw_windows(lengths: list[int]) -> list[dict]:
    """Return windows of random tokens. The question and its marks take 12 of them."""
    rng = random.Random(1)
    windows = []
    for n in lengths:
        window = {
            "input_ids": [101, *(rng.randrange(1000, 20000) for _ in range(n - 2)), 102],
            "type_ids": [0] * 12 + [1] * (n - 12),
            "start_positions": rng.randrange(12, n),
            "end_positions": n - 1,
        }
        windows.append(window)
    return windows


def pad_windows(batch: dict) -> dict:
    """Return a batch whose windows are padded to 384 tokens."""
    width = 384 - batch["input_ids"].shape[1]
    padded = {}
    for name, values in batch.items():
        # labels have one number a window
        is_sequence = values.dim() == 2
        padded[name] = torch.nn.functional.pad(values, (0, width)) if is_sequence else values
    return padded


class Loop:
    """One training loop: the recipe's or ours."""

    def __init__(self, ours: bool, windows: list[dict]):
        self.ours = ours
        self.windows = windows
        self.collate = span.Collate(0, True)
        self.model = heads.SpanModel(encoders.load_encoder("minilm")[0]).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=ours)
        self.order = list(range(len(windows)))
        if ours:
            lengths = [len(w["input_ids"]) for w in windows]
            self.order = list(BucketSampler(lengths, ["d"] * len(windows), BATCH, "trainer", 0))
        self.at = 0

    def step(self) -> tuple[int, int]:
        """Train on the next batch. Returns its examples and its tokens without padding."""
        part = [self.windows[i] for i in self.order[self.at : self.at + BATCH]]
        self.at = (self.at + BATCH) % (len(self.order) - BATCH)
        batch = self.collate(part)
        if not self.ours:
            batch = pad_windows(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.ours and has_bf16()):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(part), sum(len(w["input_ids"]) for w in part)

    def measure_rate(self, steps: int) -> tuple[float, float]:
        """Return (examples, tokens without padding) a second over some steps."""
        began = time.monotonic()
        examples = 0
        tokens = 0
        for _ in range(steps):
            more_examples, more_tokens = self.step()
            examples += more_examples
            tokens += more_tokens
        seconds = time.monotonic() - began
        return examples / seconds, tokens / seconds


def matmul_rate() -> float:
    """Rate in GFLOP/s of a matrix product that is shaped as the encoder's are.

    In bf16 where the processor has it, else in fp32.
    """
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    a = torch.randn(2816, 384, dtype=dtype)
    b = torch.randn(384, 1536, dtype=dtype)
    for _ in range(5):
        a @ b
    began = time.monotonic()
    for _ in range(40):
        a @ b
    return 40 * 2 * 2816 * 384 * 1536 / (time.monotonic() - began) / 1e9


# The loop of a process that start_process has started.
LOOP = None


def start_loop(ours: bool, threads: int, lengths: list[int]) -> None:
    """Make a loop in this process alone, so that no loop changes another's memory."""
    global LOOP
    torch.set_num_threads(threads)
    LOOP = Loop(ours, draw_windows(lengths))
    LOOP.measure_rate(2)


def measure_rate(steps: int) -> tuple[float, float]:
    """Return (examples, tokens without padding) a second of this process's loop."""
    return LOOP.measure_rate(steps)


def start_process(*arguments) -> ProcessPoolExecutor:
    """Return a process with a loop of its own; the arguments are those of start_loop."""
    pool = ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=start_loop, initargs=arguments
    )
    pool.submit(measure_rate, 1).result()
    return pool


def compare_with_recipe() -> None:
    """Print the rates of the recipe and of ours, and our share of a matrix product's rate."""
    lengths = draw_lengths(640)
    ratios = []
    token_rates = []
    with start_process(False, 2, lengths) as recipe, start_process(True, 2, lengths) as own:
        for _ in range(ROUNDS):
            theirs, _ = recipe.submit(measure_rate, 2).result()
            ours, tokens = own.submit(measure_rate, 12).result()
            ratios.append(ours / theirs)
            token_rates.append(tokens)
            print(
                f"recipe {theirs:.2f} examples/s, ours {ours:.2f}, ratio {ratios[-1]:.2f}",
                flush=True,
            )
    tokens = statistics.median(token_rates)
    blocks = encoders.blocks_of(encoders.load_encoder("minilm")[0])
    gflops = 6 * sum(p.numel() for p in blocks.parameters()) * tokens / 1e9
    peak = matmul_rate()
    print(
        f"median ratio {statistics.median(ratios):.2f}; ours {tokens:.0f} tokens/s, "
        f"{gflops:.0f} of {peak:.0f} GFLOP/s "
        f"({100 * gflops / peak:.0f} % of the measured matmul rate)"
    )


def compare_threads() -> None:
    """Print the rates of one run with two threads and of two runs with one thread each."""
    lengths = [64] * 256
    alone = []
    together = []
    with (
        start_process(True, 2, lengths) as one,
        start_process(True, 1, lengths) as left,
        start_process(True, 1, lengths) as right,
    ):
        for _ in range(ROUNDS):
            alone.append(one.submit(measure_rate, 12).result()[0])
            pair = [p.submit(measure_rate, 12) for p in (left, right)]
            together.append(sum(f.result()[0] for f in pair))
    ratios = [b / a for a, b in zip(alone, together, strict=True)]
    print(
        "many small runs at 64 tokens: "
        f"one run with two threads {statistics.median(alone):.1f} examples/s, "
        f"two runs with one thread each {statistics.median(together):.1f} together; "
        f"median ratio {statistics.median(ratios):.2f}"
    )


def main():
    torch.set_num_threads(2)
    compare_with_recipe()
    compare_threads()


if __name__ == "__main__":
    main()
