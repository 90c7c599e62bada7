"""The order of training examples, in batches of like length.

BucketSampler    examples of all datasets together
RoundRobin       batches of one dataset each, the datasets in turn
RandomDraws      batches of one dataset each, the datasets drawn at random
"""

import random
from collections.abc import Iterator

from qa_lib.settings.parameters import Multitask


class BucketSampler:
    """Sampler of indices whose neighbours have like lengths, so that batches hold little padding.

    order  trainer     everything is shuffled anew each epoch, as by the Trainer's own sampler
           sequential  domain after domain, as concatenated; shuffled once within each domain
           shuffled    shuffled once; every epoch has the same order

    Buckets of 32 × `batch_size` neighbours are sorted by length and cut into batches. The batches
    are then shuffled. With the order sequential no bucket crosses the border of two domains.
    """

    def __init__(
        self, lengths: list[int], domains: list[str], batch_size: int, order: str, seed: int
    ):
        self.lengths = lengths
        self.domains = domains
        self.batch_size = batch_size
        self.order = order
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int):
        """Set the epoch. The Trainer's data loader calls this as an epoch starts or resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch if self.order == "trainer" else 0
        rng = random.Random(f"{self.seed}/{epoch}")
        done = 0
        for group in self.group_indices():
            rng.shuffle(group)
            fill = -done % self.batch_size  # completes the batch that the last group left short
            done += len(group)
            yield from group[:fill]
            for batch in cut_batches(group[fill:], self.lengths, self.batch_size, rng):
                yield from batch

    def group_indices(self) -> list[list[int]]:
        """Return the indices of each domain; those of all domains together unless sequential."""
        if self.order != "sequential":
            return [list(range(len(self)))]
        groups: dict[str, list[int]] = {}
        for i, domain in enumerate(self.domains):
            groups.setdefault(domain, []).append(i)
        return list(groups.values())


def cut_batches(
    group: list[int], lengths: list[int], batch_size: int, rng: random.Random
) -> list[list[int]]:
    """Cut shuffled indices into batches of like length, and shuffle the batches.

    A batch that is not full stays last. lengths: of every index.
    """
    size = 32 * batch_size
    batches = []
    for begin in range(0, len(group), size):
        bucket = sorted(group[begin : begin + size], key=lambda i: -lengths[i])
        for at in range(0, len(bucket), batch_size):
            batches.append(bucket[at : at + batch_size])
    short = []
    if batches and len(batches[-1]) < batch_size:
        short = [batches.pop()]
    rng.shuffle(batches)
    return batches + short


def spread_batches(
    group: list[int], lengths: list[int], batches: int, rng: random.Random
) -> list[list[int]]:
    """Spread shuffled indices over a number of batches, and shuffle the batches.

    Every index is in one batch, and the sizes differ by one at most. Indices of like length stand
    together, within 32 batches.
    """
    borders = [len(group) * k // batches for k in range(batches + 1)]
    spread = []
    for first in range(0, batches, 32):
        last = min(first + 32, batches)
        bucket = sorted(group[borders[first] : borders[last]], key=lambda i: -lengths[i])
        for k in range(first, last):
            spread.append(bucket[borders[k] - borders[first] : borders[k + 1] - borders[first]])
    rng.shuffle(spread)
    return spread


class BatchesByDataset:
    """What orders of batches of one dataset each share.

    Indices count the rows (or windows) of all datasets, one dataset after the other. The batches of
    an epoch follow from seed and epoch alone, so that a training can go on in the middle of one.
    """

    def __init__(self, lengths: dict[str, list[int]], seed: int):
        """lengths: tokens of each row, by dataset."""
        self.lengths = lengths
        self.seed = seed
        self.epoch = 0
        self.first = {}  # index of each dataset's first row
        total = 0
        for dataset, of_dataset in lengths.items():
            self.first[dataset] = total
            total += len(of_dataset)

    def set_epoch(self, epoch: int):
        """Set the epoch. The Trainer's data loader calls this as an epoch starts or resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for _, batch in self.iterate_batches():
            yield batch

    def iterate_batches(self) -> Iterator[tuple[str, list[int]]]:
        """Yield (dataset, indices) of each batch of the epoch."""
        raise NotImplementedError


class RoundRobin(BatchesByDataset):
    """Batches of one dataset each: a round has one of each dataset, in their order.

    schedule  rrobin       every batch has `batch_size` rows. An epoch has as many rounds as the
                           smallest dataset fills. A larger dataset gives the same rows in every
                           epoch, which the seed draws once; one with less than a batch to spare
                           gives all its rows in turn.
              rrobin-full  every dataset gives all its rows, spread evenly over the rounds, in
                           batches of at most `batch_size` rows. An epoch has as many rounds as use
                           up the largest dataset in full batches, and at most as many as the
                           smallest has rows. A dataset with more rows than its batches hold gives
                           others of them in another epoch.

    With `rounds` an epoch has that many, and a dataset that is used up begins anew.
    """

    def __init__(
        self, lengths: dict[str, list[int]], batch_size: int, multitask: Multitask, seed: int
    ):
        """lengths: tokens of each row, by dataset."""
        super().__init__(lengths, seed)
        self.batch_size = batch_size
        self.is_full = multitask.schedule == "rrobin-full"
        self.natural_rounds = self.count_rounds()
        self.rounds = multitask.rounds or self.natural_rounds

    def count_rounds(self) -> int:
        """Count the rounds of an epoch where no number is given."""
        sizes = [len(of_dataset) for of_dataset in self.lengths.values()]
        if self.is_full:
            return max(1, min(max(sizes) // self.batch_size, min(sizes)))
        return max(1, min(sizes) // self.batch_size)

    def __len__(self) -> int:
        return self.rounds * len(self.lengths)

    def iterate_batches(self) -> Iterator[tuple[str, list[int]]]:
        """Yield (dataset, indices) of each batch of the epoch."""
        batches = {dataset: self.draw_batches(dataset) for dataset in self.lengths}
        for k in range(self.rounds):
            for dataset, first in self.first.items():
                yield dataset, [first + i for i in batches[dataset][k]]

    def draw_batches(self, dataset: str) -> list[list[int]]:
        """Return a dataset's batches of the epoch, one a round; indices within the dataset."""
        batches: list[list[int]] = []
        while len(batches) < self.rounds:
            rng = random.Random(f"{self.seed}/{self.epoch}/{dataset}/{len(batches)}")
            left = self.rounds - len(batches)
            if self.is_full:
                of_pass = self.pass_over_all(dataset, left, rng)
            else:
                of_pass = self.pass_over_subset(dataset, rng)
            batches += of_pass[:left]
        return batches

    def pass_over_subset(self, dataset: str, rng: random.Random) -> list[list[int]]:
        """Return full batches of the dataset's rows of every epoch.

        A dataset with less than a batch to spare gives all its rows in turn.
        """
        lengths = self.lengths[dataset]
        size = min(self.batch_size, len(lengths))
        rows = self.natural_rounds * size
        group = list(range(len(lengths)))
        if len(group) - rows >= size:
            random.Random(f"{self.seed}/{dataset}").shuffle(group)
            group = group[:rows]
        rng.shuffle(group)
        return cut_batches(group[:rows], lengths, size, rng)

    def pass_over_all(self, dataset: str, left: int, rng: random.Random) -> list[list[int]]:
        """Return all rows of a dataset spread over `left` batches, or as many as fill them."""
        lengths = self.lengths[dataset]
        group = rng.sample(range(len(lengths)), len(lengths))
        if len(group) < left * self.batch_size:
            return spread_batches(group, lengths, min(left, len(group)), rng)
        return cut_batches(group[: left * self.batch_size], lengths, self.batch_size, rng)


class RandomDraws(BatchesByDataset):
    r"""Batches of one dataset each, drawn at random with replacement (ROaD, Algorithm 1).

    An update of the weights has `passes` batches, whose gradients are averaged. Each has
    `batch_size` / `passes` rows of a dataset that is drawn anew, so that an update may have several
    batches of one dataset. Dataset d with $N_d$ rows is drawn with probability

    $p_d \propto N_d^\alpha$

    uniform       α = 0
    proportional  α = 1
    annealed      α falls from 1 at the first update of an epoch to 0.2 at its last (Stickland and
                  Murray 2019, who let it fall from epoch to epoch)

    The report says "random" and no more. A dataset gives its rows in an order that is drawn anew
    each time they are used up; those that do not fill a batch are then left out. Batches hold rows
    of like length.
    """

    def __init__(
        self, lengths: dict[str, list[int]], batch_size: int, multitask: Multitask, seed: int
    ):
        """lengths: tokens of each row, by dataset."""
        super().__init__(lengths, seed)
        self.passes = multitask.passes
        self.size = batch_size // multitask.passes
        self.sampling = multitask.sampling
        self.updates = multitask.rounds

    def __len__(self) -> int:
        return self.updates * self.passes

    def iterate_batches(self) -> Iterator[tuple[str, list[int]]]:
        """Yield (dataset, indices) of each batch of the epoch."""
        rng = random.Random(f"{self.seed}/{self.epoch}/draws")
        streams = {dataset: self.iterate_rows(dataset) for dataset in self.lengths}
        names = list(self.lengths)
        for update in range(self.updates):
            weights = self.weigh_datasets(update)
            for dataset in rng.choices(names, weights, k=self.passes):
                yield dataset, [self.first[dataset] + i for i in next(streams[dataset])]

    def weigh_datasets(self, update: int) -> list[float]:
        r"""Return $N_d^\alpha$ of each dataset at an update of the epoch, counted from 0."""
        done = update / max(1, self.updates - 1)
        alpha = {"uniform": 0.0, "proportional": 1.0, "annealed": 1 - 0.8 * done}[self.sampling]
        return [len(lengths) ** alpha for lengths in self.lengths.values()]

    def iterate_rows(self, dataset: str) -> Iterator[list[int]]:
        """Yield a dataset's batches without end; indices within the dataset."""
        lengths = self.lengths[dataset]
        size = min(self.size, len(lengths))
        turn = 0
        while True:
            rng = random.Random(f"{self.seed}/{self.epoch}/{dataset}/{turn}")
            group = rng.sample(range(len(lengths)), len(lengths) // size * size)
            yield from cut_batches(group, lengths, size, rng)
            turn += 1
