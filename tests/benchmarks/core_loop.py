"""Training speed of our loop beside the padded fp32 recipe that people use, alternated in one run.

Both train the same MiniLM span model on windows of the same lengths, batch 16, two threads. The recipe (the Hugging Face
question answering notebook): every window padded to 384, fp32. Ours: the library's sampler, batches, precision
and optimizer. Lengths follow SQuAD v1.1 (deciles of its training windows under this tokenizer); DATA=folder takes the real ones.

    make bench            prints examples/s, tokens/s, the ratio (median of five) and the share of the matmul rate
"""

import os
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from qa_lib.data import features, selection
from qa_lib.data.batches import BucketSampler
from qa_lib.models import encoders, heads
from qa_lib.tasks import span
from qa_lib.training import train

DECILES = [61, 107, 122, 134, 146, 158, 172, 188, 209, 246, 384]
ROUNDS, BATCH = 5, 16


def lengths(n: int) -> list[int]:
    if "DATA" in os.environ:
        from pathlib import Path

        rows = random.Random(0).sample(
            selection.load_splits("squad", "folder", os.environ["DATA"]).train, n
        )
        found = features.load_windows(
            rows, encoders.load_encoder("minilm")[1], 384, 128, Path("runs/cache")
        )
        return [len(ids) for ids in found["input_ids"]][:n]
    rng = random.Random(0)
    return [rng.randint(DECILES[k], DECILES[k + 1]) for k in (rng.randrange(10) for _ in range(n))]


def windows(sizes: list[int]) -> list[dict]:
    rng = random.Random(1)
    return [
        {
            "input_ids": [101, *(rng.randrange(1000, 20000) for _ in range(n - 2)), 102],
            "type_ids": [0] * 12 + [1] * (n - 12),
            "start_positions": rng.randrange(12, n),
            "end_positions": n - 1,
        }
        for n in sizes
    ]


class Loop:
    """One training loop: the recipe's or ours."""

    def __init__(self, ours: bool, found: list[dict]):
        self.ours, self.found, self.collate = ours, found, span.Collate(0, True)
        self.model = heads.SpanModel(encoders.load_encoder("minilm")[0]).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=ours)
        order = BucketSampler(
            [len(w["input_ids"]) for w in found], ["d"] * len(found), BATCH, "trainer", 0
        )
        self.order = list(order) if ours else list(range(len(found)))
        self.at = 0

    def step(self) -> tuple[int, int]:
        part = [self.found[i] for i in self.order[self.at : self.at + BATCH]]
        self.at = (self.at + BATCH) % (len(self.order) - BATCH)
        batch = self.collate(part)
        if not self.ours:
            width = 384 - batch["input_ids"].shape[1]
            batch = {
                k: torch.nn.functional.pad(v, (0, width)) if v.dim() == 2 else v
                for k, v in batch.items()
            }
        with torch.autocast("cpu", torch.bfloat16, enabled=self.ours):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(part), sum(len(w["input_ids"]) for w in part)

    def rate(self, steps: int) -> tuple[float, float]:
        """(examples, real tokens) a second over some steps."""
        began, examples, tokens = time.monotonic(), 0, 0
        for _ in range(steps):
            e, t = self.step()
            examples, tokens = examples + e, tokens + t
        seconds = time.monotonic() - began
        return examples / seconds, tokens / seconds


def matmul_rate() -> float:
    """bf16 GFLOP/s of a product of the encoder's own shape."""
    a, b = (
        torch.randn(2816, 384, dtype=torch.bfloat16),
        torch.randn(384, 1536, dtype=torch.bfloat16),
    )
    for _ in range(5):
        a @ b
    began = time.monotonic()
    for _ in range(40):
        a @ b
    return 40 * 2 * 2816 * 384 * 1536 / (time.monotonic() - began) / 1e9


LOOP = None


def start(ours: bool, threads: int, sizes: list[int]):
    """Make this process the home of one loop, so that neither changes the other's allocator."""
    global LOOP
    torch.set_num_threads(threads)
    if ours:
        train.keep_freed_memory()
    LOOP = Loop(ours, windows(sizes))
    LOOP.rate(2)


def rate(steps: int) -> tuple[float, float]:
    return LOOP.rate(steps)


def process(*arguments) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=start, initargs=arguments
    )
    pool.submit(rate, 1).result()
    return pool


def main():
    torch.set_num_threads(2)
    sizes, rows = lengths(640), []
    with process(False, 2, sizes) as recipe, process(True, 2, sizes) as own:
        for _ in range(ROUNDS):
            rows.append((recipe.submit(rate, 2).result(), own.submit(rate, 12).result()))
            theirs, ours = rows[-1]
            print(
                f"recipe {theirs[0]:.2f} examples/s, ours {ours[0]:.2f}, ratio {ours[0] / theirs[0]:.2f}",
                flush=True,
            )
    ratio = statistics.median(o[0] / r[0] for r, o in rows)
    tokens = statistics.median(o[1] for _, o in rows)
    gflops = (
        6
        * sum(
            p.numel() for p in encoders.blocks_of(encoders.load_encoder("minilm")[0]).parameters()
        )
        * tokens
        / 1e9
    )
    peak = matmul_rate()
    print(
        f"median ratio {ratio:.2f}; ours {tokens:.0f} tokens/s, {gflops:.0f} of {peak:.0f} GFLOP/s "
        f"({100 * gflops / peak:.0f} % of the measured bf16 matmul rate)"
    )
    rows = []
    with (
        process(True, 2, [64] * 256) as one,
        process(True, 1, [64] * 256) as left,
        process(True, 1, [64] * 256) as right,
    ):
        for _ in range(ROUNDS):
            alone = one.submit(rate, 12).result()[0]
            pair = [p.submit(rate, 12) for p in (left, right)]
            rows.append((alone, sum(f.result()[0] for f in pair)))
    alone, both, ratio = (
        statistics.median(x) for x in (*zip(*rows, strict=True), [b / a for a, b in rows])
    )
    print(
        f"many small runs at 64 tokens: one run with two threads {alone:.1f} examples/s, two runs with one thread each "
        f"{both:.1f} together; median ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
