"""Training with `train.keep_freed_memory` beside training without, each in processes of its own, alternated.

MiniLM, batch 16, windows of 112 to 384 tokens in turn, one thread. Tokens a second, the most memory, and the ratio.
"""

import resource
import statistics
import subprocess
import sys
import time

import torch

from qa_lib.models import encoders, heads
from qa_lib.training import train

LENGTHS, ROUNDS = (
    (120, 384, 144, 200, 176, 136, 260, 160, 384, 128, 152, 320, 184, 168, 384, 112),
    3,
)


def child(keep: bool):
    torch.set_num_threads(1)
    if keep:
        train.keep_freed_memory()
    model = heads.SpanModel(encoders.load_encoder("minilm")[0]).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):  # the first warms up
        began = time.monotonic()
        for length in LENGTHS:
            ids = torch.randint(1000, 2000, (16, length))
            with torch.autocast("cpu", torch.bfloat16):
                out = model(
                    start_positions=ids[:, 0] % length,
                    end_positions=ids[:, 1] % length,
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                )
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.monotonic() - began
    print(16 * sum(LENGTHS) / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    def run(keep: str) -> list[float]:
        return [
            float(x)
            for x in subprocess.run(
                [sys.executable, __file__, keep], capture_output=True, text=True, check=True
            ).stdout.split()
        ]

    found = [(run("keep"), run("give back")) for _ in range(ROUNDS)]
    for name, column in zip(("kept", "given back"), zip(*found, strict=True), strict=True):
        speed, memory = (statistics.median(x) for x in zip(*column, strict=True))
        print(f"memory {name}: {speed:.0f} tokens/s, {memory:.0f} MB")
    print(f"median ratio {statistics.median(a[0] / b[0] for a, b in found):.2f}")


if __name__ == "__main__":
    child(sys.argv[1] == "keep") if len(sys.argv) > 1 else main()
