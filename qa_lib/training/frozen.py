"""Outputs of frozen models on windows, computed once: logits and pooled states.

A gate is trained on these stored outputs instead of on live experts. That saves the experts'
forward passes; the numbers differ by rounding alone. They are stored in half precision and read
memory-mapped. What teachers say is stored in the same way (training/teachers.py).
"""

import shutil
from collections.abc import Callable, Iterable
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
from qa_lib.store import code_hashes
from qa_lib.tasks import span
from qa_lib.training import evaluate


@dataclass(frozen=True)
class Outputs:
    """Outputs of one model on W windows that have N tokens in all; float16."""

    start: np.ndarray  # (N,), window after window
    end: np.ndarray  # (N,)
    mean: np.ndarray  # (W, D): mean of the last hidden states, question and context
    cls: np.ndarray  # (W, D): last hidden state of [CLS]


def read_outputs(
    key: str,
    windows: Dataset,
    tokenizer,
    make: Callable[[], heads.EncoderModel],
    precision: str,
    modules: Iterable[str] = code_hashes.EVERY_RUN,
) -> Outputs:
    """Return a model's outputs on windows (features.load_windows), from the cache.

    key: identity of the model's weights, e.g. its run's hash; make: builds the model where its
    outputs are not stored yet; modules: those of the code that makes them
    (code_hashes.list_modules of a run).
    """

    def compute() -> dict[str, np.ndarray]:
        values, _ = compute_outputs(make(), windows, tokenizer, precision)
        return values

    folder = _store_once(key, windows, precision, modules, compute)
    values = {}
    for name in Outputs.__annotations__:
        values[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    return Outputs(**values)


def predict_and_store(
    model: heads.EncoderModel, tokenizer, spec: Spec, dataset: str, rows: list[dict]
) -> tuple:
    """Return the same as evaluate.predict_outputs, and store the outputs for mixtures of the run.

    The rows are those of a task of spans, as all that is mixed.
    """
    windows = features.load_windows(rows, tokenizer, spec.max_length, spec.stride, evaluate.CACHE)
    values, loss = compute_outputs(model, windows, tokenizer, spec.precision)
    modules = code_hashes.list_modules(spec)
    _store_once(spec.hash, windows, spec.precision, modules, lambda: values)
    cuts = np.cumsum([len(ids) for ids in windows["input_ids"]])[:-1]
    logits = {name: np.split(values[name], cuts) for name in ("start", "end")}
    return windows, logits, loss


def drop_outputs(spec: Spec):
    """Remove the outputs that an earlier training of the run stored.

    On a GPU a second training does not give the same weights to the last digit.
    """
    for old in (evaluate.CACHE / "frozen").glob(f"{spec.hash[:16]}-*"):
        shutil.rmtree(old, ignore_errors=True)


def _store_once(
    key: str,
    windows: Dataset,
    precision: str,
    modules: Iterable[str],
    compute: Callable[[], dict[str, np.ndarray]],
) -> Path:
    """Return the folder with the values that `compute` gives, rounded to half precision.

    Other code of the modules has other folders.
    """
    features_folder = Path(windows.cache_files[0]["filename"]).parent
    code = code_hashes.hash_together(modules)[:8]

    def write_outputs(target: Path):
        for name, values in compute().items():
            np.save(target / f"{name}.npy", values.astype(np.float16))

    return store_folder(f"{key[:16]}-{precision}-{features_folder.name}-{code}", write_outputs)


def store_folder(name: str, write: Callable[[Path], None]) -> Path:
    """Return the folder of stored outputs that has this name.

    It is written where it is not there yet, or is damaged. The name begins with sixteen digits of
    the run's hash (drop_outputs). write: writes its files into a folder.
    """
    folder = evaluate.CACHE / "frozen" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Another worker that wants the same outputs waits instead of computing them too.
    with FileLock(f"{folder}.lock"):
        if read_seal(folder) is None:
            if folder.exists():
                print(f"stored outputs {folder.name} are damaged; made anew", flush=True)
            write_folder(folder, write)
    return folder


def compute_outputs(
    model: heads.EncoderModel, windows: Dataset, tokenizer, precision: str
) -> tuple[dict[str, np.ndarray], float]:
    """Return a model's outputs on windows in single precision, by name, and the mean loss.

    The names and shapes are those of Outputs.
    """
    outputs = {name: [None] * len(windows) for name in ("start", "end", "mean", "cls")}
    total = 0.0
    hidden: list[torch.Tensor] = []
    hook = model.encoder.register_forward_hook(
        lambda module, args, out: hidden.append(out.last_hidden_state.float())
    )
    collate = span.make_collator(tokenizer, model.reads_types)
    batches = evaluate.iterate_batches(
        model, windows, span.measure_windows(windows), collate, precision
    )
    for indices, lengths, batch, out in batches:
        total += out.loss.item() * len(indices)
        states = hidden.pop()  # (B, T, D)
        mask = batch["attention_mask"][:, :, None]
        mean = ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()  # (B, D)
        cls = states[:, 0].cpu().numpy()
        start = out.start_logits.cpu().numpy()  # (B, T)
        end = out.end_logits.cpu().numpy()
        for row, (i, length) in enumerate(zip(indices, lengths, strict=True)):
            outputs["start"][i] = start[row, :length]
            outputs["end"][i] = end[row, :length]
            outputs["mean"][i] = mean[row]
            outputs["cls"][i] = cls[row]
    hook.remove()
    values = {
        "start": np.concatenate(outputs["start"]),
        "end": np.concatenate(outputs["end"]),
        "mean": np.stack(outputs["mean"]),
        "cls": np.stack(outputs["cls"]),
    }
    return values, total / len(windows)
