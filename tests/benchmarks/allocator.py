"""Training speed and memory with `train.keep_freed_memory` and without.

Each run is a process of its own, and the two kinds alternate. MiniLM is trained on one thread, in
the precision that the processor has instructions for, on batches of two shapes: 8 windows of 40 to
104 tokens, as in profile quick, and 16 of 112 to 384, as in profile real. Printed are tokens a
second, the most memory in use, and the ratio of the speeds.
"""

import resource
import statistics
import subprocess
import sys
import time

import torch

from qa_lib.models import encoders, heads
from qa_lib.settings.spec import has_bf16
from qa_lib.training import train

# Shape: windows of a batch, and their lengths, which take turns.
SHAPES = {
    "short": (8, (64, 104, 40, 72, 56, 96, 48, 80)),
    "long": (16, (120, 384, 144, 200, 176, 260, 160, 384)),
}
ROUNDS = 3


def train_in_this_process(shape: str, keep: bool) -> None:
    """Train, and print tokens a second and the most memory in MB."""
    batch, lengths = SHAPES[shape]
    torch.set_num_threads(1)
    if keep:
        train.keep_freed_memory()
    model = heads.SpanModel(encoders.load_encoder("minilm")[0]).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    # the first of two passes warms up
    for _ in range(2):
        began = time.monotonic()
        for length in lengths:
            ids = torch.randint(1000, 2000, (batch, length))
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
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
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(batch * sum(lengths) / seconds, memory)


def measure(shape: str, kind: str) -> tuple[float, float]:
    """Return (tokens a second, MB of memory) of a process that trains."""
    command = [sys.executable, __file__, shape, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    speed, memory = done.stdout.split()
    return float(speed), float(memory)


def main():
    precision = "bf16" if has_bf16() else "fp32"
    print(f"{train.processor_name()}, {precision}, one thread", flush=True)
    for shape in SHAPES:
        rounds = {"kept": [], "given back": []}
        for number in range(ROUNDS):
            for kind, measured in rounds.items():
                print(f"  {shape}, round {number + 1} of {ROUNDS}, memory {kind}", flush=True)
                measured.append(measure(shape, kind))
        for kind, measured in rounds.items():
            speed = statistics.median(speed for speed, _ in measured)
            memory = statistics.median(memory for _, memory in measured)
            print(f"{shape}: memory {kind}: {speed:.0f} tokens/s, {memory:.0f} MB", flush=True)
        ratios = [a / b for (a, _), (b, _) in zip(*rounds.values(), strict=True)]
        print(f"{shape}: kept is {statistics.median(ratios):.2f} times as fast", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_in_this_process(sys.argv[1], sys.argv[2] == "kept")
    else:
        main()
