"""The sparse layer beside dense ones that do as many token–expert products, forward and backward, bf16 on CPU.

    python tests/benchmarks/stmoe_layer.py [threads]     2 unless told; with 1 it counts CPU time, free of other programs

sparse: stmoe.MoE; routes B·T tokens to at most 2 of 16 experts, K products in all.
dense:  one gated feed-forward layer, of one expert's size, applied to K rows: as many products with 1/16 of the parameters.
split:  the same 16 experts on K rows that are split evenly beforehand: as many products and parameters, nothing routed.

dense to split is what 16 weight matrices cost (cast to bf16, gradients cast back, products of K/16 rows); split to sparse is what
routing and dispatch cost. The three alternate in one run; the ratios are medians over the rounds. Gradients are dropped before
each step, as a trainer drops them.
"""

import statistics
import sys
import time

import torch

from qa_lib.models import st_moe
from qa_lib.settings.parameters import Layer
from qa_lib.training import train

D, E = 384, 16
THREADS = int(sys.argv[1]) if sys.argv[1:] else 2
CLOCK = time.process_time if THREADS == 1 else time.monotonic
SIZES = (
    (8, 150, 13, 8),
    (16, 176, 13, 4),
    (64, 176, 7, 1),
)  # sequences, tokens, rounds, steps a round


def seconds(module: torch.nn.Module, inputs: torch.Tensor, step, times: int) -> float:
    began = CLOCK()
    for _ in range(times):
        module.zero_grad()
        inputs.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            out = step(inputs)
        out.float().square().mean().backward()
    return (CLOCK() - began) / times


def main():
    torch.set_num_threads(THREADS)
    train.keep_freed_memory()
    for b, t, rounds, times in SIZES:
        torch.manual_seed(0)
        moe, dense = (
            st_moe.MoE(D, int(D * 8 / 3), Layer(experts=E)),
            st_moe.Expert(D, int(D * 8 / 3)),
        )
        x, mask = torch.randn(b, t, D, requires_grad=True), torch.ones(b, t)
        moe(x, mask)
        y = torch.randn(int((moe.routed.gate > 0).sum()), D, requires_grad=True)
        steps = (
            (moe, x, lambda x, m=moe, k=mask: m(x, k)),
            (dense, y, dense),
            (
                moe,
                y,
                lambda y, m=moe: torch.cat(
                    [f(v) for f, v in zip(m.experts, y.tensor_split(E), strict=True)]
                ),
            ),
        )
        found = [[seconds(*step, times) for step in steps] for _ in range(rounds + 1)][
            1:
        ]  # the first warms up
        sparse, flat, split = (1000 * statistics.median(c) for c in zip(*found, strict=True))
        print(
            f"{b}×{t} tokens, {len(y)} products: sparse {sparse:.0f} ms, dense {flat:.0f} ms, split {split:.0f} ms; "
            f"sparse/dense {statistics.median(s / d for s, d, _ in found):.2f}, "
            f"sparse/split {statistics.median(s / p for s, _, p in found):.2f}, "
            f"split/dense {statistics.median(p / d for _, d, p in found):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
