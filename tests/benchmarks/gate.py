"""A gate trained on its experts' stored outputs beside the same gate trained on live experts; bf16 on CPU.

    python tests/benchmarks/gate.py [threads]     2 unless told

One epoch over generated questions, batches of 16 in the order of the trainer's sampler, three MiniLM experts and the encoder that
the gate sees. stored: qa_lib/training/frozen.py, read from memory-mapped files (made before, not counted; printed beside). live: experts
and encoder run forward for every batch, without gradients. The two alternate; the ratio is the median over the rounds.
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
from qa_lib.training import evaluate, frozen

THREADS, ROUNDS = int(sys.argv[1]) if sys.argv[1:] else 2, 3


def main():
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    rows = [r for name in ("encyclopaedia", "news", "search") for r in corpora.qa(name, 64)]
    models = [heads.SpanModel(encoders.load_encoder("minilm")[0]).eval() for _ in range(3)]
    plain, tokenizer = (
        heads.SpanModel(encoders.load_encoder("minilm")[0]).eval(),
        encoders.load_encoder("minilm")[1],
    )
    with tempfile.TemporaryDirectory() as folder:
        evaluate.CACHE = Path(folder)
        windows = features.load_windows(rows, tokenizer, 384, 128, evaluate.CACHE)
        began = time.monotonic()
        said = [
            frozen.read_outputs(
                f"expert{k}", windows, tokenizer, partial(models.__getitem__, k), "bf16"
            )
            for k in range(3)
        ]
        x = frozen.read_outputs("plain", windows, tokenizer, lambda: plain, "bf16").mean
        made = time.monotonic() - began
        kept = gated_mixture.Frozen(
            windows,
            [o.start for o in said],
            [o.end for o in said],
            x,
            np.full((len(windows), 3), 1 / 3, np.float32),
        )
        order = list(
            BucketSampler(
                [len(i) for i in windows["input_ids"]], ["all"] * len(windows), 16, "trainer", 0
            )
        )
        parts = [order[i : i + 16] for i in range(0, len(order), 16)]

        def live(part: list[int]) -> dict:
            batch = models[0].collate(tokenizer)([windows[i] for i in part])
            labels = {k: batch[k] for k in ("start_positions", "end_positions")}
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                outs = [m(**batch) for m in models]
                seen = plain.states(**{k: v for k, v in batch.items() if k not in labels}).float()
            mask = batch["attention_mask"]
            return {
                "starts": torch.stack([o.start_logits for o in outs], 1).clone(),
                "attention_mask": mask,
                **labels,
                "ends": torch.stack([o.end_logits for o in outs], 1).clone(),
                "weights": torch.full((len(part), 3), 1 / 3),
                "x": ((seen * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)).clone(),
            }

        def epoch(batch_of) -> float:
            torch.manual_seed(0)
            mixture = gated_mixture.Mixture(
                gated_mixture.MLP(x.shape[1], 3, Gate()), "logits", None
            )
            optimizer = torch.optim.AdamW(mixture.parameters(), fused=True)
            began = time.monotonic()
            for part in parts:
                mixture(**batch_of(part)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            return time.monotonic() - began

        def stored(part: list[int]) -> dict:
            return gated_mixture.collate([kept[i] for i in part])

        found = [(epoch(stored), epoch(live)) for _ in range(ROUNDS + 1)][1:]  # the first warms up
    fast, slow = (statistics.median(c) for c in zip(*found, strict=True))
    print(
        f"{len(windows)} windows, {len(parts)} steps: stored {fast:.2f} s an epoch, live {slow:.2f} s, ratio "
        f"{statistics.median(b / a for a, b in found):.0f}; outputs made once in {made:.1f} s"
    )


if __name__ == "__main__":
    main()
