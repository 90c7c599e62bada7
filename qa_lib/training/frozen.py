"""What frozen models say of windows, computed once: logits and pooled states in half precision, memory-mapped.

A gate is trained on these instead of on live experts: the same numbers, rounded to half precision, without their forward passes.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock

from qa_lib.data import features
from qa_lib.models import heads
from qa_lib.settings.files import read_seal, write_folder
from qa_lib.settings.spec import Spec
from qa_lib.training import evaluate


@dataclass(frozen=True)
class Outputs:
    """Of one model on W windows, N tokens in all; float16."""

    start: np.ndarray  # (N,), window after window
    end: np.ndarray  # (N,)
    mean: np.ndarray  # (W, D): mean of the last hidden states, question and context
    cls: np.ndarray  # (W, D): that of [CLS]


def read_outputs(
    key: str, windows: Dataset, tokenizer, make: Callable[[], heads.SpanModel], precision: str
) -> Outputs:
    """A model's outputs on windows (features.load_windows), read from the cache; `make` builds the model at first use.

    key: what the model's weights are, e.g. its run's hash.
    """
    at = _store_once(
        key, windows, precision, lambda: compute_outputs(make(), windows, tokenizer, precision)[0]
    )
    return Outputs(
        **{name: np.load(at / f"{name}.npy", mmap_mode="r") for name in Outputs.__annotations__}
    )


def predict_and_store(model: heads.SpanModel, tokenizer, spec: Spec, rows: list[dict]) -> tuple:
    """scoring.said of a run that others may mix: the same numbers, and they are stored on the way."""
    windows = features.load_windows(rows, tokenizer, spec.max_length, spec.stride, evaluate.CACHE)
    values, loss = compute_outputs(model, windows, tokenizer, spec.precision)
    _store_once(spec.hash, windows, spec.precision, lambda: values)
    cuts = np.cumsum([len(ids) for ids in windows["input_ids"]])[:-1]
    return windows, np.split(values["start"], cuts), np.split(values["end"], cuts), loss


def drop_outputs(spec: Spec):
    """Drop what weights said that an earlier training of the run left: on a GPU a second one is not the same to the last digit."""
    for old in (evaluate.CACHE / "frozen").glob(f"{spec.hash[:16]}-*"):
        shutil.rmtree(old, ignore_errors=True)


def _store_once(
    key: str, windows: Dataset, precision: str, make: Callable[[], dict[str, np.ndarray]]
) -> Path:
    """The folder of what `make` returns, rounded to half precision; made where it is not there."""
    at = (
        evaluate.CACHE
        / "frozen"
        / f"{key[:16]}-{precision}-{Path(windows.cache_files[0]['filename']).parent.name}"
    )
    at.parent.mkdir(parents=True, exist_ok=True)

    def write_outputs(folder: Path):
        for name, values in make().items():
            np.save(folder / f"{name}.npy", values.astype(np.float16))

    # another worker may want the same: it waits instead of computing it too
    with FileLock(f"{at}.lock"):
        if read_seal(at) is None:
            if at.exists():
                print(f"stored outputs {at.name} are damaged; made anew", flush=True)
            write_folder(at, write_outputs)
    return at


def compute_outputs(
    model: heads.SpanModel, windows: Dataset, tokenizer, precision: str
) -> tuple[dict[str, np.ndarray], float]:
    """The same in single precision, computed now, and the mean loss."""
    (start, end, mean, cls), total = ([None] * len(windows) for _ in range(4)), 0.0
    hidden: list[torch.Tensor] = []
    hook = model.encoder.register_forward_hook(
        lambda module, args, out: hidden.append(out.last_hidden_state.float())
    )
    for part, lengths, batch, out in evaluate.iterate_batches(
        model, windows, model.collate(tokenizer), precision
    ):
        states, mask = hidden.pop(), batch["attention_mask"][:, :, None]
        pooled = (states * mask).sum(1) / mask.sum(1)  # (B, D)
        s, e, m, c = (
            x.cpu().numpy() for x in (out.start_logits, out.end_logits, pooled, states[:, 0])
        )
        total += out.loss.item() * len(part)
        for row, (i, n) in enumerate(zip(part, lengths, strict=True)):
            start[i], end[i], mean[i], cls[i] = s[row, :n], e[row, :n], m[row], c[row]
    hook.remove()
    return {
        "start": np.concatenate(start),
        "end": np.concatenate(end),
        "mean": np.stack(mean),
        "cls": np.stack(cls),
    }, total / len(windows)
