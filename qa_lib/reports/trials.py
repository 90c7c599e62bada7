"""The same trials for every model: learning rates × epochs, judged on validation rows."""

from collections.abc import Callable
from itertools import product

from qa_lib.settings.spec import Spec
from qa_lib.store import runs

WIDER = 3  # a model that is best at ever lower rates learns nothing


def selected_evaluation(spec: Spec, record: dict) -> dict:
    """The row of a record's history that its weights are of."""
    rows = [row for row in record["history"] if row["step"]]  # a look before training keeps nothing
    return (
        max(rows, key=lambda row: row["validation_f1"]) if spec.checkpoint == "best" else rows[-1]
    )


def choose_by_trials(
    models: list[str],
    trial: Callable[[str, float, float], Spec],
    rates: list[float],
    epochs: list[float],
) -> tuple[list[Spec], dict[str, tuple[float, float]]]:
    """All trials, and of each model the (rate, epochs) with the highest validation EM, of equals the lowest loss.

    trial: the run of a model at a rate and epochs. While a model's best rate lies on the grid's edge, all models get the next
    rate too (half, or twice), WIDER times at most. Epochs are not extended: they are the budget, the same for all, and those
    that the reports' own models have. Nothing is chosen until every trial is recorded.
    """
    rates = sorted(rates)
    for wider in range(WIDER + 1):
        tried = {m: {at: trial(m, *at) for at in product(rates, epochs)} for m in models}
        every = [s for specs in tried.values() for s in specs.values()]
        rows = {
            s.hash: selected_evaluation(s, record) for s in every if (record := runs.find_record(s))
        }
        if len(rows) < len({s.hash for s in every}):
            return every, {}
        best = {
            m: max(
                specs,
                key=lambda at: [
                    (row["validation_em"], -row["validation_loss"])
                    for row in [rows[specs[at].hash]]
                ],
            )
            for m, specs in tried.items()
        }
        edge = {rate for rate, _ in best.values()}
        if wider == WIDER or not {rates[0], rates[-1]} & edge:
            break
        rates = [rates[0] / 2] * (rates[0] in edge) + rates + [rates[-1] * 2] * (rates[-1] in edge)
    return every, best
