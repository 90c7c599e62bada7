"""Time of the sparse layer beside dense ones that do as many token–expert products.

    python tests/benchmarks/stmoe_layer.py [threads]

Forward and backward pass on CPU, in bf16 where the processor has it, else in fp32, with 2 threads
unless told. With 1 thread CPU time is counted, which other programs do not change.

sparse: st_moe.MoE routes B·T tokens to at most 2 of 16 experts, which makes K products.
dense:  one gated feed-forward layer of one expert's size is applied to K rows. These are as many
        products with 1/16 of the parameters.
split:  the same 16 experts are applied to K rows that are split evenly beforehand. These are as
        many products and parameters, and nothing is routed.

The step from dense to split is the cost of 16 weight matrices: they are cast to bf16, their
gradients are cast back, and a product has K/16 rows. The step from split to sparse is the cost of
routing and dispatch. The three alternate in one run, and the ratios are medians over the rounds.
Gradients are dropped before each step, as a trainer drops them.
"""

import statistics
import sys
import time

import torch

from qa_lib.models import st_moe
from qa_lib.settings.parameters import Layer
from qa_lib.settings.spec import has_bf16

D, E = 384, 16
THREADS = int(sys.argv[1]) if sys.argv[1:] else 2
CLOCK = time.process_time if THREADS == 1 else time.monotonic
# Sequences, tokens of each, rounds, steps a round.
SIZES = ((8, 150, 13, 8), (16, 176, 13, 4), (64, 176, 7, 1))


def measure_step(module: torch.nn.Module, inputs: torch.Tensor, step, times: int) -> float:
    """Return the seconds of one forward and backward pass, averaged over some."""
    began = CLOCK()
    for _ in range(times):
        module.zero_grad()
        inputs.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
            out = step(inputs)
        out.float().square().mean().backward()
    return (CLOCK() - began) / times


def measure_size(b: int, t: int, rounds: int, times: int) -> None:
    """Print how long the three take on b sequences of t tokens."""
    torch.manual_seed(0)
    moe = st_moe.MoE(D, int(D * 8 / 3), Layer(experts=E))
    dense = st_moe.Expert(D, int(D * 8 / 3))
    x = torch.randn(b, t, D, requires_grad=True)
    mask = torch.ones(b, t)
    moe(x, mask)
    products = int((moe.routing.gate > 0).sum())
    y = torch.randn(products, D, requires_grad=True)

    def apply_sparse(x):
        return moe(x, mask)

    def apply_split(y):
        parts = zip(moe.experts, y.tensor_split(E), strict=True)
        return torch.cat([expert(part) for expert, part in parts])

    seconds = []
    for _ in range(rounds + 1):
        sparse = measure_step(moe, x, apply_sparse, times)
        flat = measure_step(dense, y, dense, times)
        split = measure_step(moe, y, apply_split, times)
        seconds.append((sparse, flat, split))
    # the first round warms up
    seconds = seconds[1:]
    sparse, flat, split = (
        1000 * statistics.median(column) for column in zip(*seconds, strict=True)
    )
    print(
        f"{b}×{t} tokens, {products} products: "
        f"sparse {sparse:.0f} ms, dense {flat:.0f} ms, split {split:.0f} ms; "
        f"sparse/dense {statistics.median(s / d for s, d, _ in seconds):.2f}, "
        f"sparse/split {statistics.median(s / p for s, _, p in seconds):.2f}, "
        f"split/dense {statistics.median(p / d for _, d, p in seconds):.2f}",
        flush=True,
    )


def main():
    torch.set_num_threads(THREADS)
    for size in SIZES:
        measure_size(*size)


if __name__ == "__main__":
    main()
