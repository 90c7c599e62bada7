"""What a report declares for its page: its central comparisons, and the steps to its model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """A comparison of two models that says what a report's idea is worth.

    claim: the claim, by its id, whose contrast is measured. It names test sets and metric.
    ours: the model of the idea, as a reader calls it. against: what it is compared with.
    on: what is scored, e.g. "STS, Pearson's r × 100". controls: more variants that could refute
    the claim, beside the one that the claim itself names. is_turned: the claim says how far
    `against` is above the idea, and is shown the other way round.
    """

    claim: str
    ours: str
    against: str
    on: str = ""
    controls: tuple[str, ...] = ()
    is_turned: bool = False


@dataclass(frozen=True)
class Step:
    """One change on the way from the baseline to the report's model.

    says: what is changed, e.g. "five times the rate". before, after: the variants without and with
    the change. Where a variant between two changes was never trained, its steps are not known one
    by one.
    """

    says: str
    before: str
    after: str


def check_chain(steps: tuple[Step, ...]):
    """Raise ValueError where a step does not begin with the variant that the last one ends with."""
    for earlier, later in zip(steps, steps[1:], strict=False):
        if later.before != earlier.after:
            raise ValueError(
                f"step “{later.says}” begins with {later.before}, but the step before it ends "
                f"with {earlier.after}"
            )
