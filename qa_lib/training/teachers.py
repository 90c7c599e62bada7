r"""Soft targets: what a run's teachers say of its training windows, computed once.

A teacher (Spec.teachers) is run once, in evaluation mode, over exactly the windows that the run
trains on. Its logits are stored in half precision and read memory-mapped, so that a step with
teachers costs little more than a step without. They are stored under the teacher's hash and the
key of the windows: runs that train on the same windows share them.

No teacher is asked about a validation row or a test row, and none may have been trained on a text
of theirs (selection.check_teachers_rows).

Shapes: M teachers, W windows, N tokens of all windows, B batch, T tokens, C classes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from qa_lib.data import features, selection
from qa_lib.models import encoders
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec, canonical
from qa_lib.store import code_hashes
from qa_lib.tasks import span
from qa_lib.training import build, evaluate, frozen

LOGITS = "logits.npy"  # the file of a teacher's logits
LOWEST = torch.finfo(torch.float32).min


# ---- windows and batches with targets ----


@dataclass
class TaughtWindows:
    """The windows of a dataset with the teachers' logits on them, indexed like the windows."""

    windows: Dataset
    logits: list[np.ndarray]  # of each teacher; of spans (N, 2), window after window, else (W, C)
    borders: np.ndarray | None = None  # of spans: where each window's tokens begin, (W + 1,)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        """Return a window with the field `teachers`."""
        return {**self.windows[index], "teachers": self.read_logits(index)}

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Return several windows at once, as a data loader asks for them."""
        windows = self.windows.__getitems__(indices)
        taught = []
        for index, window in zip(indices, windows, strict=True):
            taught.append({**window, "teachers": self.read_logits(index)})
        return taught

    def read_logits(self, index: int) -> np.ndarray:
        """Return the teachers' logits on a window: of spans (M, 2, T), of classes (M, C)."""
        if self.borders is None:
            return np.stack([of_teacher[index] for of_teacher in self.logits])
        tokens = slice(self.borders[index], self.borders[index + 1])
        return np.stack([of_teacher[tokens].T for of_teacher in self.logits])


def collate_taught(collate: Callable) -> Callable:
    """Return a function that makes a batch of windows with targets.

    The batch is that of `collate`, and has `teachers` beside it, in single precision: of spans
    (M, B, 2, T), the lowest number at padding; of classes (M, B, C).
    """

    def collate_batch(windows: list[dict]) -> dict:
        batch = collate(windows)
        logits = [window["teachers"] for window in windows]
        if "start_positions" in batch:
            of_batch = pad_logits(logits, batch["input_ids"].shape[1])
        else:
            of_batch = np.stack(logits, axis=1).astype(np.float32)
        return {**batch, "teachers": torch.from_numpy(of_batch)}

    return collate_batch


def pad_logits(logits: list[np.ndarray], length: int) -> np.ndarray:
    """Return the span logits of several windows in one array, (M, B, 2, length).

    logits: of each window, (M, 2, T).
    """
    teachers = len(logits[0])
    padded = np.full((teachers, len(logits), 2, length), LOWEST, np.float32)
    for row, of_window in enumerate(logits):
        padded[:, row, :, : of_window.shape[2]] = of_window
    return padded


# ---- the store ----


def add_targets(
    spec: Spec,
    dataset: str,
    windows: Dataset,
    prepared: Dataset,
    tokenizer,
    progress: Callable[[str], None],
) -> TaughtWindows:
    """Return the training windows of a run's dataset with its teachers' logits.

    windows: features.load_windows; prepared: the same as the model reads them.
    """
    logits = []
    for teacher in spec.teachers:
        logits.append(read_logits(spec, teacher, dataset, windows, tokenizer, progress))
    borders = None
    if selection.find_task(spec, dataset) is span:
        borders = np.cumsum([0, *span.measure_windows(windows)])
    return TaughtWindows(prepared, logits, borders)


def read_logits(
    spec: Spec,
    teacher: Spec,
    dataset: str,
    windows: Dataset,
    tokenizer,
    progress: Callable[[str], None],
) -> np.ndarray:
    """Return a teacher's logits on the windows of a run's dataset, memory-mapped from the store.

    They are computed where they are not there yet, or are damaged.
    """
    task = selection.find_task(spec, dataset)
    asked_as = find_own_dataset(spec, teacher, dataset)

    def write_logits(target: Path):
        progress(f"{spec.run}  asking {teacher.run} about {dataset}")
        # Heads of test sets alone are not asked.
        model = build.load_trained_model(teacher.model_copy(update={"tests": []}))
        collate = model.collate(tokenizer, task, asked_as)
        logits = compute_logits(model, windows, collate, spec.precision, task)
        np.save(target / LOGITS, logits.astype(np.float16))

    name = name_outputs(teacher, asked_as, windows, spec.precision)
    folder = frozen.store_folder(name, write_logits)
    return np.asarray(np.load(folder / LOGITS, mmap_mode="r"))


def compute_logits(
    model: torch.nn.Module, windows: Dataset, collate: Callable, precision: str, task
) -> np.ndarray:
    """Return a model's logits on windows: of spans (N, 2), window after window, else (W, C)."""
    outputs, _ = evaluate.compute_outputs(model, windows, collate, precision, task)
    if task is span:
        ends = [np.concatenate(outputs[name]) for name in ("start", "end")]
        return np.stack(ends, axis=1)
    return np.stack(outputs["logits"])


def name_outputs(teacher: Spec, asked_as: str, windows: Dataset, precision: str) -> str:
    """Return the name of the folder with a teacher's logits on windows.

    It begins with the teacher's hash, as frozen.drop_outputs asks.
    """
    features_folder = Path(windows.cache_files[0]["filename"]).parent
    modules = {"training/teachers.py", *code_hashes.list_modules(teacher)}
    code = code_hashes.hash_together(modules)
    identity = canonical([features_folder.name, asked_as, precision, code])
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return f"{teacher.hash[:16]}-targets-{digest[:32]}"


# ---- what a teacher can be asked ----


def check_teachers(spec: Spec):
    """Raise UserError where a teacher cannot be asked about a run's training windows.

    So it is where it reads other words or shorter windows, where it has no head for a dataset, and
    where it was trained on texts that the run must not see.
    """
    for teacher in spec.teachers:
        if teacher.gate:
            raise UserError(
                f"{teacher.run} is a mixture of experts, and cannot teach {spec.run}; take models "
                "that were trained whole"
            )
        check_words(spec, teacher)
        for dataset in spec.domains:
            check_dataset(spec, teacher, dataset)
    selection.check_teachers_rows(spec)


def check_words(spec: Spec, teacher: Spec):
    """Raise UserError where a teacher has another tokenizer, or positions for fewer tokens."""
    _, tokenizer = encoders.read_encoder(spec.encoder)
    encoder, of_teacher = encoders.read_encoder(teacher.encoder)
    key = features.cache_key([], tokenizer, spec.max_length, spec.stride)
    if features.cache_key([], of_teacher, spec.max_length, spec.stride) != key:
        raise UserError(
            f"{teacher.run} cannot teach {spec.run}: its encoder {teacher.encoder} has another "
            f"tokenizer than {spec.encoder}; take teachers that read the same words"
        )
    longest = teacher.model_copy(update={"max_length": spec.max_length})
    build.check_length(longest, encoders.count_positions(encoder))


def check_dataset(spec: Spec, teacher: Spec, dataset: str):
    """Raise UserError where a teacher has no head for a dataset, or reads its rows otherwise."""
    asked_as = find_own_dataset(spec, teacher, dataset)
    d = selection.find_dataset(dataset, spec.source, spec.folder)
    if d.task == "span" and teacher.heads and teacher.heads.span == "joint":
        raise UserError(
            f"{teacher.run} cannot teach {spec.run}: the ends of its joint head depend on the "
            "start that is given; take teachers with span: independent"
        )
    task = selection.find_task(spec, dataset)
    if d.text_pair is not None and selection.find_task(teacher, asked_as) is not task:
        raise UserError(
            f"{teacher.run} cannot teach {spec.run}: one of them reads the two texts of "
            f"{dataset} apart and the other joined; write the same under pairs"
        )


def find_own_dataset(spec: Spec, teacher: Spec, dataset: str) -> str:
    """Return the dataset of a teacher whose head answers a run's dataset; often it is the same.

    Raises UserError where the teacher has no such head.
    """
    head = describe_head(teacher, dataset, spec)
    for own in teacher.domains:
        if describe_head(teacher, own, teacher) == head:
            return own
    raise UserError(
        f"{teacher.run} cannot teach {spec.run}: it has no head for {dataset}; take teachers that "
        f"were trained on {dataset}"
    )


def describe_head(teacher: Spec, dataset: str, spec: Spec) -> tuple:
    """Return what tells the head that a teacher has, or would have, for a dataset of a run."""
    d = selection.find_dataset(dataset, spec.source, spec.folder)
    name = build.name_head(teacher, dataset, d) if teacher.heads else ""
    return name, d.task, len(d.classes or [])
