"""Training on several datasets in turn: their windows in one list, and batches of one dataset.

RoundRobin and RandomDraws (data/batches.py) say which windows make a batch.
"""

from collections.abc import Callable, Sequence

from qa_lib.data.batches import BatchesByDataset, RandomDraws, RoundRobin
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec


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
