"""Training on several datasets in turn: their windows in one list, and batches of one dataset.

RoundRobin and RandomDraws (data/batches.py) say which windows make a batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from qa_lib.data.batches import BatchesByDataset, RandomDraws, RoundRobin
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec

# A forward pass of random draws on a GPU has at most as many tokens as so many windows of full
# length: those of the batch with which ROaD is fine-tuned. MT-DNN draws 512 windows at once.
WINDOWS_PER_PASS = 32


class JoinedWindows:
    """The windows of several datasets, one dataset after the other."""

    def __init__(self, windows: dict[str, Sequence]):
        """windows: of each dataset, as its model prepares them."""
        self.windows = windows

    def __len__(self) -> int:
        return sum(len(of_dataset) for of_dataset in self.windows.values())

    def __getitem__(self, index: int) -> tuple[str, dict]:
        """Return the dataset of a window, and the window."""
        for dataset, of_dataset in self.windows.items():
            if index < len(of_dataset):
                return dataset, of_dataset[index]
            index -= len(of_dataset)
        raise IndexError(index)


def collate_by_dataset(collators: dict[str, Callable]) -> Callable:
    """Return a function that makes a batch of JoinedWindows' items, all of one dataset."""

    def collate(items: list[tuple[str, dict]]) -> dict:
        dataset, _ = items[0]
        return collators[dataset]([window for _, window in items])

    return collate


def group_rows(spec: Spec, rows: list[dict]) -> dict[str, list[dict]]:
    """Return the rows of each dataset of a run.

    Where all datasets are one, all rows stand under the first.
    """
    if not spec.multitask:
        return {spec.domains[0]: rows}
    groups = {
        dataset: [row for row in rows if row["domain"] == dataset] for dataset in spec.domains
    }
    for dataset, group in groups.items():
        if rows and not group:
            raise UserError(
                f"{spec.run}: no row falls to {dataset}; raise train_rows or validation_rows"
            )
    return groups


def make_schedule(spec: Spec, lengths: dict[str, list[int]]) -> BatchesByDataset:
    """Return the order of a run's batches. lengths: tokens of each window, by dataset.

    Raises UserError where a batch does not divide among the passes of an update.
    """
    passes = spec.multitask.passes
    if spec.batch_size % passes:
        raise UserError(
            f"batch_size: {spec.batch_size} does not divide among {passes} passes; change one of "
            "them"
        )
    order = RandomDraws if spec.multitask.schedule == "draws" else RoundRobin
    return order(lengths, spec.batch_size, spec.multitask, spec.seed)


def limit_pass(spec: Spec) -> int | None:
    """Return how many tokens a forward pass of a run may have, padding included; None: any number.

    Draws on a GPU have a limit, since their batches can be larger than its memory. Other schedules
    have none: with a fixed divisor, which is theirs alone, a loss is no mean over rows. Nor have
    runs on a CPU, so that their numbers stay what they are.
    """
    if spec.threads != "cuda" or spec.multitask is None or spec.multitask.schedule != "draws":
        return None
    return WINDOWS_PER_PASS * spec.max_length


def split_batch(batch: dict, limit: int) -> Iterator[tuple[float, dict]]:
    """Yield (share of the batch's rows, piece) of the pieces of a batch, with their rows in order.

    A piece has at most `limit` tokens, padding included and second texts not, or is a single row. A
    mean over the rows of the batch is the sum of the pieces' means, each times its share.
    batch: of one dataset, rows first, but for what teachers say, which has M in front.
    """
    rows, length = batch["input_ids"].shape
    pieces = math.ceil(rows / max(1, limit // length))
    for number in range(pieces):
        first = rows * number // pieces
        size = rows * (number + 1) // pieces - first
        piece = {}
        for name, value in batch.items():
            row_axis = 1 if name.startswith("teacher") else 0
            is_tensor = torch.is_tensor(value)  # the dataset's name is none
            piece[name] = value.narrow(row_axis, first, size) if is_tensor else value
        yield size / rows, piece


def count_passes(spec: Spec) -> dict[str, float]:
    """Return how often an epoch visits a training row of each dataset, on average."""
    if not spec.multitask:
        return dict.fromkeys(spec.domains, 1.0)
    lengths = {dataset: [1] * rows for dataset, rows in zip(spec.domains, spec.rows, strict=True)}
    schedule = make_schedule(spec, lengths)
    visits = dict.fromkeys(spec.domains, 0)
    for dataset, batch in schedule.iterate_batches():
        visits[dataset] += len(batch)
    return {dataset: visits[dataset] / len(lengths[dataset]) for dataset in spec.domains}
