"""The order of training examples, in batches of like length."""

import random
from collections.abc import Iterator


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
            for batch in self.shuffle_batches(group[fill:], rng):
                yield from batch

    def group_indices(self) -> list[list[int]]:
        """Return the indices of each domain; those of all domains together unless sequential."""
        if self.order != "sequential":
            return [list(range(len(self)))]
        groups: dict[str, list[int]] = {}
        for i, domain in enumerate(self.domains):
            groups.setdefault(domain, []).append(i)
        return list(groups.values())

    def shuffle_batches(self, group: list[int], rng: random.Random) -> list[list[int]]:
        """Cut a group into batches of like length and shuffle them.

        A batch that is not full stays last.
        """
        size = 32 * self.batch_size
        batches = []
        for begin in range(0, len(group), size):
            bucket = sorted(group[begin : begin + size], key=lambda i: -self.lengths[i])
            for at in range(0, len(bucket), self.batch_size):
                batches.append(bucket[at : at + self.batch_size])
        short = []
        if batches and len(batches[-1]) < self.batch_size:
            short = [batches.pop()]
        rng.shuffle(batches)
        return batches + short
