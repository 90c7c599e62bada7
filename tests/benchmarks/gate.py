"""Time of an epoch of a gate on its experts' stored outputs, beside that on live experts.

    python tests/benchmarks/gate.py [threads]

Training is on CPU, in bf16 where the processor has it, else in fp32, with 2 threads unless told. An
epoch goes over generated questions in batches of 16, in the order of the trainer's sampler. There
are three MiniLM experts and the encoder that the gate sees.

stored: outputs are read from memory-mapped files (qa_lib/training/frozen.py). They are made before;
        how long that takes is printed beside the epochs and not counted.
live:   experts and encoder run forward for every batch, without gradients.

The two alternate, and the ratio is the median over the rounds.
"""

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qa_lib.data import corpora, features
from qa_lib.data.batches import BucketSampler
from qa_lib.models import encoders, gated_mixture, heads
from qa_lib.settings.parameters import Gate
from qa_lib.settings.spec import has_bf16
from qa_lib.tasks import span
from qa_lib.training import evaluate, frozen

PRECISION = "bf16" if has_bf16() else "fp32"
THREADS = int(sys.argv[1]) if sys.argv[1:] else 2
ROUNDS = 3


def load_model() -> heads.SpanModel:
    """Return a span model on MiniLM, for evaluation."""
    return heads.SpanModel(encoders.load_encoder("minilm")[0]).eval()


def store_outputs(windows, models, plain, tokenizer) -> gated_mixture.Frozen:
    """Return windows with the outputs of experts and plain encoder, computed and stored."""
    outputs = []
    for k in range(len(models)):
        make = partial(models.__getitem__, k)
        outputs.append(frozen.read_outputs(f"expert{k}", windows, tokenizer, make, PRECISION))
    return gated_mixture.Frozen(
        windows,
        [o.start for o in outputs],
        [o.end for o in outputs],
        frozen.read_outputs("plain", windows, tokenizer, lambda: plain, PRECISION).mean,
        np.full((len(windows), 3), 1 / 3, np.float32),
    )


def run_models(batch: dict, models, plain) -> dict:
    """Return what a mixture is given of a batch, by running experts and plain encoder."""
    labels = {k: batch[k] for k in ("start_positions", "end_positions")}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16"):
        outs = [model(**batch) for model in models]
        seen = plain.states(**{k: v for k, v in batch.items() if k not in labels}).float()
    mask = batch["attention_mask"]
    return {
        "starts": torch.stack([o.start_logits for o in outs], 1).clone(),
        "attention_mask": mask,
        **labels,
        "ends": torch.stack([o.end_logits for o in outs], 1).clone(),
        "weights": torch.full((len(mask), 3), 1 / 3),
        "x": ((seen * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)).clone(),
    }


def measure_epoch(parts: list[list[int]], width: int, make_batch) -> float:
    """Return the seconds of an epoch of a gate whose input has a width.

    make_batch: a function from the numbers of windows to what a mixture is given.
    """
    torch.manual_seed(0)
    gate = gated_mixture.MLP(width, 3, Gate())
    mixture = gated_mixture.Mixture(gate, "logits", None)
    optimizer = torch.optim.AdamW(mixture.parameters(), fused=True)
    began = time.monotonic()
    for part in parts:
        mixture(**make_batch(part)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.monotonic() - began


def measure(folder: Path) -> None:
    """Print how long epochs take, with a folder for the stored outputs."""
    evaluate.CACHE = folder
    rows = []
    for name in ("encyclopaedia", "news", "search"):
        rows += corpora.draw_questions(name, 64)
    models = [load_model() for _ in range(3)]
    plain = load_model()
    tokenizer = encoders.load_encoder("minilm")[1]
    windows = features.load_windows(rows, tokenizer, 384, 128, folder)
    began = time.monotonic()
    stored = store_outputs(windows, models, plain, tokenizer)
    seconds_to_store = time.monotonic() - began
    lengths = [len(ids) for ids in windows["input_ids"]]
    order = list(BucketSampler(lengths, ["all"] * len(windows), 16, "trainer", 0))
    parts = [order[i : i + 16] for i in range(0, len(order), 16)]

    def read_stored(part: list[int]) -> dict:
        return gated_mixture.collate([stored[i] for i in part])

    def run_live(part: list[int]) -> dict:
        collate = span.make_collator(tokenizer, models[0].reads_types)
        batch = collate([windows[i] for i in part])
        return run_models(batch, models, plain)

    width = stored.x.shape[1]
    seconds = []
    for _ in range(ROUNDS + 1):
        fast = measure_epoch(parts, width, read_stored)
        slow = measure_epoch(parts, width, run_live)
        seconds.append((fast, slow))
    # the first round warms up
    seconds = seconds[1:]
    fast, slow = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(
        f"{len(windows)} windows, {len(parts)} steps: "
        f"stored {fast:.2f} s an epoch, live {slow:.2f} s, "
        f"ratio {statistics.median(b / a for a, b in seconds):.0f}; "
        f"outputs made once in {seconds_to_store:.1f} s"
    )


def main():
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))


if __name__ == "__main__":
    main()
