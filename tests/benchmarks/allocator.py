"""Training speed and memory with `train.keep_freed_memory` and without.

Each run is a process of its own, and the two kinds alternate. MiniLM is trained on one thread with
batches of 16 windows, whose lengths take turns. Printed are tokens a second, the most memory in
use, and the ratio of the speeds.
"""

import resource
import statistics
import subprocess
import sys
import time

import torch

from qa_lib.models import encoders, heads
from qa_lib.training import train

LENGTHS = (120, 384, 144, 200, 176, 136, 260, 160, 384, 128, 152, 320, 184, 168, 384, 112)
ROUNDS = 3


def train_in_this_process(keep: bool) -> None:
    """Train, and print tokens a second and the most memory in MB."""
    torch.set_num_threads(1)
    if keep:
        train.keep_freed_memory()
    model = heads.SpanModel(encoders.load_encoder("minilm")[0]).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    # the first of two passes warms up
    for _ in range(2):
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


def measure(kind: str) -> tuple[float, float]:
    """Return (tokens a second, MB of memory) of a process that trains."""
    command = [sys.executable, __file__, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    speed, memory = done.stdout.split()
    return float(speed), float(memory)


def main():
    kept = []
    given_back = []
    for _ in range(ROUNDS):
        kept.append(measure("keep"))
        given_back.append(measure("give back"))
    for name, rounds in (("kept", kept), ("given back", given_back)):
        speed = statistics.median(speed for speed, _ in rounds)
        memory = statistics.median(memory for _, memory in rounds)
        print(f"memory {name}: {speed:.0f} tokens/s, {memory:.0f} MB")
    ratios = [a / b for (a, _), (b, _) in zip(kept, given_back, strict=True)]
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_in_this_process(sys.argv[1] == "keep")
    else:
        main()
