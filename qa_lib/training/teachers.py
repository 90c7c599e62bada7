r"""Soft targets: what a run's teachers say of its training windows, computed once.

A teacher (Spec.teachers) is run once, in evaluation mode, over exactly the windows that the run
trains on, or over those of its own datasets (Distillation.by_dataset). Its logits, and its hidden
states where the run learns from them, are stored in half precision and read memory-mapped, so that
a step with teachers costs little more than a step without. They are stored under the teacher's hash
and the key of the windows: runs that train on the same windows share them.

No teacher is asked about a validation row or a test row, and none may have been trained on a text
of theirs (selection.check_teachers_rows).

Shapes: M teachers, W windows, N tokens of all windows, B batch, T tokens, C classes, L blocks whose
states are learned, D width.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from qa_lib.data import features, selection
from qa_lib.models import encoders
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec, canonical
from qa_lib.store import code_hashes
from qa_lib.tasks import have_same_answers, span
from qa_lib.training import build, evaluate, frozen

OUTPUTS = "outputs.npy"  # the file of what a teacher says
LOWEST = torch.finfo(torch.float32).min
# What a teacher is asked for: its logits, or the states of its last block or of all blocks.
Kind = Literal["logits", "last", "all"]


# ---- windows and batches with targets ----


@dataclass
class TaughtWindows:
    """The windows of a dataset with what the teachers say of them, indexed like the windows."""

    windows: Dataset
    borders: np.ndarray  # where each window's tokens begin, (W + 1,)
    has_spans: bool
    logits: list[np.ndarray]  # of each teacher; of spans (N, 2), window after window, else (W, C)
    states: list[np.ndarray] = field(default_factory=list)  # of each teacher, (N, L, D), or none

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        """Return a window with the fields of `read_targets`."""
        return self.windows[index] | self.read_targets(index)

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Return several windows at once, as a data loader asks for them."""
        taught = []
        for index, window in zip(indices, self.windows.__getitems__(indices), strict=True):
            taught.append(window | self.read_targets(index))
        return taught

    def read_targets(self, index: int) -> dict[str, np.ndarray]:
        """Return what the teachers say of a window, float16.

        teachers: logits, of spans (M, 2, T), of classes (M, C); teacher_states: (M, T, L, D), where
        there are some.
        """
        tokens = slice(self.borders[index], self.borders[index + 1])
        if self.has_spans:
            logits = [of_teacher[tokens].T for of_teacher in self.logits]
        else:
            logits = [of_teacher[index] for of_teacher in self.logits]
        targets = {"teachers": np.stack(logits)}
        if self.states:
            targets["teacher_states"] = np.stack([of_teacher[tokens] for of_teacher in self.states])
        return targets


def find_borders(windows: Dataset) -> np.ndarray:
    """Return where the tokens of each window begin among those of all, and their number, (W + 1,).

    They are those of the first text where a pair's texts are read apart.
    """
    return np.cumsum([0, *(len(ids) for ids in windows["input_ids"])])


def collate_taught(collate: Callable) -> Callable:
    """Return a function that makes a batch of windows with targets, in single precision.

    Beside what `collate` gives, the batch has `teachers`: of spans (M, B, 2, T), the lowest number
    at padding; of classes (M, B, C). Where there are states it has `teacher_states`,
    (M, B, L, T, D), 0 at padding.
    """

    def collate_batch(windows: list[dict]) -> dict:
        batch = collate(windows)
        logits = [window["teachers"] for window in windows]
        length = batch["input_ids"].shape[1]
        if "start_positions" in batch:
            batch["teachers"] = pad_logits(logits, length)
        else:
            batch["teachers"] = torch.from_numpy(np.stack(logits, axis=1)).float()
        if "teacher_states" in windows[0]:
            states = [window["teacher_states"] for window in windows]
            batch["teacher_states"] = pad_states(states, length)
        return batch

    return collate_batch


def pad_logits(logits: list[np.ndarray], length: int) -> Tensor:
    """Return the span logits of several windows in one tensor, (M, B, 2, length).

    logits: of each window, (M, 2, T).
    """
    teachers = len(logits[0])
    padded = np.full((teachers, len(logits), 2, length), LOWEST, np.float32)
    for row, of_window in enumerate(logits):
        padded[:, row, :, : of_window.shape[2]] = of_window
    return torch.from_numpy(padded)


def pad_states(states: list[np.ndarray], length: int) -> Tensor:
    """Return the states of several windows in one tensor, (M, B, L, length, D).

    states: of each window, (M, T, L, D).
    """
    teachers, _, blocks, dim = states[0].shape
    padded = np.zeros((teachers, len(states), blocks, length, dim), np.float32)
    for row, of_window in enumerate(states):
        padded[:, row, :, : of_window.shape[1]] = of_window.swapaxes(1, 2)
    return torch.from_numpy(padded)


# ---- the store ----


def add_targets(
    spec: Spec,
    dataset: str,
    windows: Dataset,
    prepared: Dataset,
    tokenizer,
    progress: Callable[[str], None],
) -> TaughtWindows:
    """Return the training windows of a run's dataset with what its teachers say of them.

    windows: features.load_windows; prepared: the same as the model reads them.
    """

    def read(kind: Kind) -> list[np.ndarray]:
        arrays = []
        for teacher in list_teachers(spec, dataset):
            arrays.append(read_outputs(spec, teacher, dataset, windows, tokenizer, kind, progress))
        return arrays

    hidden = spec.distillation.hidden
    return TaughtWindows(
        windows=prepared,
        borders=find_borders(windows),
        has_spans=selection.find_task(spec, dataset) is span,
        logits=read("logits"),
        states=[] if hidden == "none" else read(hidden),
    )


def read_outputs(
    spec: Spec,
    teacher: Spec,
    dataset: str,
    windows: Dataset,
    tokenizer,
    kind: Kind,
    progress: Callable[[str], None],
) -> np.ndarray:
    """Return what a teacher says of the windows of a run's dataset, memory-mapped from the store.

    It is computed where it is not there yet, or is damaged.
    """
    task = selection.find_task(spec, dataset)
    asked_as = find_own_dataset(spec, teacher, dataset)

    def write(target: Path):
        progress(f"{spec.run}  asking {teacher.run} about {dataset}")
        # Heads of test sets alone are not asked.
        model = build.load_trained_model(teacher.model_copy(update={"tests": []}))
        collate = model.collate(tokenizer, task, asked_as)
        write_outputs(target / OUTPUTS, model, windows, collate, spec.precision, task, kind)

    folder = frozen.store_folder(name_outputs(teacher, asked_as, windows, spec, kind), write)
    return open_outputs(folder)


def open_outputs(folder: Path) -> np.ndarray:
    """Return what is stored in a folder, memory-mapped."""
    # A plain array of the mapped memory is indexed faster than one of the class memmap.
    return np.asarray(np.load(folder / OUTPUTS, mmap_mode="r"))


def name_outputs(teacher: Spec, asked_as: str, windows: Dataset, spec: Spec, kind: Kind) -> str:
    """Return the name of the folder with what a teacher says of a run's windows.

    It begins with the teacher's hash, as frozen.drop_outputs asks.
    """
    features_folder = Path(windows.cache_files[0]["filename"]).parent
    modules = {"training/teachers.py", *code_hashes.list_modules(teacher)}
    code = code_hashes.hash_together(modules)
    identity = canonical([features_folder.name, asked_as, spec.precision, kind, code])
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return f"{teacher.hash[:16]}-targets-{digest[:32]}"


def write_outputs(
    file: Path,
    model: nn.Module,
    windows: Dataset,
    collate: Callable,
    precision: str,
    task,
    kind: Kind,
):
    """Write what a model says of windows into a file, in half precision."""
    if kind == "logits":
        logits = compute_logits(model, windows, collate, precision, task)
        np.save(file, logits.astype(np.float16))
        return
    borders = find_borders(windows)
    lengths = task.measure_windows(windows)
    stored = None
    with keep_states(model.encoder) as kept:
        for indices, *_ in evaluate.iterate_batches(model, windows, lengths, collate, precision):
            _, *states = kept.pop()  # the first are the embeddings
            chosen = torch.stack(states[-1:] if kind == "last" else states, 2)  # (B, T, L, D)
            values = chosen.half().cpu().numpy()
            if stored is None:
                shape = (int(borders[-1]), *values.shape[2:])
                stored = np.lib.format.open_memmap(file, "w+", np.float16, shape)
            for row, index in enumerate(indices):
                begin, end = borders[index : index + 2]
                stored[begin:end] = values[row, : end - begin]
    stored.flush()


def compute_logits(
    model: nn.Module, windows: Dataset, collate: Callable, precision: str, task
) -> np.ndarray:
    """Return a model's logits on windows: of spans (N, 2), window after window, else (W, C)."""
    outputs, _ = evaluate.compute_outputs(model, windows, collate, precision, task)
    if task is span:
        ends = [np.concatenate(outputs[name]) for name in ("start", "end")]
        return np.stack(ends, axis=1)
    return np.stack(outputs["logits"])


@contextmanager
def keep_states(encoder: nn.Module) -> Iterator[list]:
    """Keep the hidden states of an encoder's passes within a with block.

    Yields a list, to which each pass adds the states of embeddings and blocks, (B, T, D) each.
    """
    kept = []

    def ask(module, args, options):
        return args, options | {"output_hidden_states": True}

    def keep(module, args, output):
        kept.append(output.hidden_states)

    hooks = [
        encoder.register_forward_pre_hook(ask, with_kwargs=True),
        encoder.register_forward_hook(keep),
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


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
        check_states(spec, teacher)
    for dataset in spec.domains:
        for teacher in list_teachers(spec, dataset):
            check_dataset(spec, teacher, dataset)
    selection.check_teachers_rows(spec)


def list_teachers(spec: Spec, dataset: str) -> list[Spec]:
    """Return the teachers that a run asks about a dataset: all, or those that were trained on it.

    Raises UserError where each dataset has its own and this one has none.
    """
    if not spec.distillation.by_dataset:
        return spec.teachers
    own = [teacher for teacher in spec.teachers if dataset in teacher.domains]
    if not own:
        raise UserError(
            f"{spec.run}: no teacher was trained on {dataset}, and by_dataset asks no other; name "
            "one that was, or leave by_dataset out"
        )
    return own


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


def check_states(spec: Spec, teacher: Spec):
    """Raise UserError where a run learns hidden states that a teacher has in another shape."""
    hidden = spec.distillation.hidden
    if hidden == "none":
        return
    shapes = []
    for run in (spec, teacher):
        encoder, _ = encoders.read_encoder(run.encoder)
        blocks = run.blocks or encoder.config.num_hidden_layers
        shapes.append((blocks if hidden == "all" else 1, encoder.config.hidden_size))
    if shapes[0] != shapes[1]:
        raise UserError(
            f"hidden: {teacher.run} has blocks and width {shapes[1]}, and {spec.run} has "
            f"{shapes[0]}; take teachers of its size, or write hidden: none"
        )


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
    d = selection.find_dataset(dataset, spec.source, spec.folder)
    head = name_head(teacher, dataset, spec)
    for own in teacher.domains:
        of_own = selection.find_dataset(own, teacher.source, teacher.folder)
        if name_head(teacher, own, teacher) != head or of_own.task != d.task:
            continue
        if have_same_answers(of_own, d):
            return own
        raise UserError(
            f"{teacher.run} cannot teach {spec.run}: its head for {own} has other classes than "
            f"{dataset}, another order of them, or another range; write the same for both"
        )
    raise UserError(
        f"{teacher.run} cannot teach {spec.run}: it has no head for {dataset}; take teachers that "
        f"were trained on {dataset}"
    )


def name_head(teacher: Spec, dataset: str, spec: Spec) -> str:
    """Return the name of the head that a teacher has, or would have, for a dataset of a run.

    A model without heads by dataset has one, of no name.
    """
    if not teacher.heads:
        return ""
    d = selection.find_dataset(dataset, spec.source, spec.folder)
    return build.name_head(teacher, dataset, d)
