"""The order of training examples, in batches of like length."""

import random


class BucketSampler:
    """Indices in an order in which neighbours have like lengths, so that batches hold little padding.

    order  trainer     everything shuffled anew each epoch, as the Trainer's own sampler does
           sequential  domain after domain, as concatenated; shuffled once within each domain
           shuffled    shuffled once, the same order in every epoch
    Buckets of `batch_size` × 32 neighbours are sorted by length, cut into batches, and the batches shuffled;
    no bucket crosses a domain boundary when the order is sequential.
    """

    def __init__(
        self, lengths: list[int], domains: list[str], batch_size: int, order: str, seed: int
    ):
        self.lengths, self.domains, self.batch_size, self.order, self.seed = (
            lengths,
            domains,
            batch_size,
            order,
            seed,
        )
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int):
        """Called by the Trainer's data loader at the start of each epoch, and when it resumes."""
        self.epoch = epoch

    def __iter__(self):
        rng = random.Random(f"{self.seed}/{self.epoch if self.order == 'trainer' else 0}")
        groups = [list(range(len(self)))]
        if self.order == "sequential":
            groups = [
                [i for i, d in enumerate(self.domains) if d == name]
                for name in dict.fromkeys(self.domains)
            ]
        given, size = 0, 32 * self.batch_size
        for group in groups:
            rng.shuffle(group)
            fill = -given % self.batch_size  # completes the batch the last domain left short
            yield from group[:fill]
            given, group = given + len(group), group[fill:]
            batches = []
            for bucket in (group[i : i + size] for i in range(0, len(group), size)):
                bucket.sort(key=lambda i: -self.lengths[i])
                batches += [
                    bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)
                ]
            # stays last
            short = [batches.pop()] if batches and len(batches[-1]) < self.batch_size else []
            rng.shuffle(batches)
            for batch in batches + short:
                yield from batch
