"""Training speed and memory, by how attention is computed and where freed memory goes.

Attention: PyTorch's, which keeps its weights for the backward pass, and ours, which computes them
again (qa_lib/models/attention.py). Freed memory: glibc gives large blocks back to the system at
once, or is told to keep them.

Each measurement is a process of its own, and the four kinds alternate. MiniLM is trained on one
thread, in the precision that the processor has instructions for, on batches of two shapes: 8
windows of 40 to 104 tokens, as in profile quick, and 16 of 120 to 384, as in profile real. Printed
are tokens a second of processor time, the most memory in use, and ratios to the first kind.
"""

import ctypes
import itertools
import resource
import statistics
import subprocess
import sys
import time

import torch

from qa_lib.models import attention, encoders, heads
from qa_lib.settings.spec import has_bf16
from qa_lib.training import train

# Shape: windows of a batch, and their lengths, which take turns.
SHAPES = {
    "short": (8, (64, 104, 40, 72, 56, 96, 48, 80)),
    "long": (16, (120, 384, 144, 200, 176, 260, 160, 384)),
}
ATTENTION = {"PyTorch's attention": "sdpa", "recomputed": attention.NAME}
FREED = ("given back", "kept")
ROUNDS = 3


def keep_freed_memory():
    """Let glibc keep large blocks of freed memory."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def train_in_this_process(shape: str, kind_of_attention: str, freed: str) -> None:
    """Train, and print tokens a second and the most memory in MB."""
    batch, lengths = SHAPES[shape]
    torch.set_num_threads(1)
    if freed == "kept":
        keep_freed_memory()
    model = heads.SpanModel(encoders.load_encoder("minilm")[0]).train()
    model.encoder.set_attn_implementation(ATTENTION[kind_of_attention])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    # the first of two passes warms up
    for _ in range(2):
        began = time.process_time()
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
        seconds = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(batch * sum(lengths) / seconds, memory)


def measure(shape: str, kind: tuple[str, str]) -> tuple[float, float]:
    """Return (tokens a second, MB of memory) of a process that trains."""
    command = [sys.executable, __file__, shape, *kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    speed, memory = done.stdout.split()
    return float(speed), float(memory)


def main():
    precision = "bf16" if has_bf16() else "fp32"
    print(f"{train.processor_name()}, {precision}, one thread", flush=True)
    kinds = list(itertools.product(ATTENTION, FREED))
    for shape in SHAPES:
        measured = {kind: [] for kind in kinds}
        for number in range(ROUNDS):
            for kind in kinds:
                print(f"  {shape}, round {number + 1} of {ROUNDS}, {', '.join(kind)}", flush=True)
                measured[kind].append(measure(shape, kind))
        for kind in kinds:
            pairs = zip(measured[kind], measured[kinds[0]], strict=True)
            ratio = statistics.median(ours / first for (ours, _), (first, _) in pairs)
            speed = statistics.median(speed for speed, _ in measured[kind])
            memory = statistics.median(memory for _, memory in measured[kind])
            print(
                f"{shape}: {', '.join(kind)}: {speed:.0f} tokens/s, {ratio:.2f} times the first, "
                f"{memory:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_in_this_process(*sys.argv[1:])
    else:
        main()
