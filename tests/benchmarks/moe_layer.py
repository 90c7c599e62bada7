"""The sparse layer beside a dense one that does as many token–expert products, alternated in one run.

Both apply the same gated feed-forward layer to the same number of token vectors, forward and backward, bf16 on CPU: the sparse
one routes N tokens to 2 of 16 experts, the dense one takes as many rows as were routed. Median of the ratios.
"""
import statistics
import time

import torch

from qa_lib import exbert, train

B, T, D, E, ROUNDS = 16, 176, 384, 16, 9


def seconds(step, times: int = 4) -> float:
    began = time.monotonic()
    for _ in range(times):
        with torch.autocast("cpu", torch.bfloat16):
            out = step()
        out.float().square().mean().backward()
    return (time.monotonic() - began) / times


def main():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    train.keep_freed_memory()
    moe, dense = exbert.MoE(D, E), exbert.Expert(D, int(D * 8 / 3))
    x, mask = torch.randn(B, T, D), torch.ones(B, T)
    moe(x, mask)
    rows = int((moe.routed.gate > 0).sum())
    y = torch.randn(rows, D, requires_grad=True)
    x.requires_grad_()
    seconds(lambda: moe(x, mask)), seconds(lambda: dense(y))
    found = [(seconds(lambda: moe(x, mask)), seconds(lambda: dense(y))) for _ in range(ROUNDS)]
    sparse, flat = (1000 * statistics.median(c) for c in zip(*found, strict=True))
    print(f"{rows} token–expert products: sparse {sparse:.0f} ms, dense {flat:.0f} ms, "
          f"median ratio {statistics.median(s / d for s, d in found):.2f}")


if __name__ == "__main__":
    main()
