"""What frozen models say of windows, computed once: logits and pooled states in half precision, memory-mapped.

A gate is trained on these instead of on live experts: the same numbers, without their forward passes.
"""
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock

from qa_lib import encoders, scoring


@dataclass(frozen=True)
class Outputs:
    """Of one model on W windows, N tokens in all; float16."""
    start: np.ndarray     # (N,), window after window
    end: np.ndarray       # (N,)
    mean: np.ndarray      # (W, D): mean of the last hidden states, question and context
    cls: np.ndarray       # (W, D): that of [CLS]


def outputs(key: str, windows: Dataset, tokenizer, make: Callable[[], encoders.SpanModel], precision: str) -> Outputs:
    """A model's outputs on windows (features.windows), read from the cache; `make` builds the model at first use.

    key: what the model's weights are, e.g. its run's hash.
    """
    at = scoring.CACHE / "frozen" / f"{key[:16]}-{precision}-{Path(windows.cache_files[0]['filename']).parent.name}"
    at.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{at}.lock"):              # another worker may want the same: it waits instead of computing it too
        if not at.exists():
            half = at.with_name(f"{at.name}.half")
            shutil.rmtree(half, ignore_errors=True)           # of a worker that was killed
            half.mkdir()
            for name, values in computed(make(), windows, tokenizer, precision).items():
                np.save(half / f"{name}.npy", values.astype(np.float16))
            half.rename(at)
    return Outputs(**{name: np.load(at / f"{name}.npy", mmap_mode="r") for name in Outputs.__annotations__})


def computed(model: encoders.SpanModel, windows: Dataset, tokenizer, precision: str) -> dict[str, np.ndarray]:
    """The same, computed now, in single precision."""
    start, end, mean, cls = ([None] * len(windows) for _ in range(4))
    hidden: list[torch.Tensor] = []
    hook = model.encoder.register_forward_hook(lambda module, args, out: hidden.append(out.last_hidden_state.float()))
    for part, lengths, batch, out in scoring.batches(model, windows, model.collate(tokenizer), precision):
        states, mask = hidden.pop(), batch["attention_mask"][:, :, None]
        pooled = ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()                    # (B, D)
        for row, (i, n) in enumerate(zip(part, lengths, strict=True)):
            start[i], end[i] = (x[row, :n].cpu().numpy() for x in (out.start_logits, out.end_logits))
            mean[i], cls[i] = pooled[row], states[row, 0].cpu().numpy()
    hook.remove()
    return {"start": np.concatenate(start), "end": np.concatenate(end), "mean": np.stack(mean), "cls": np.stack(cls)}
