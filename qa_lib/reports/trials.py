"""Equal tuning: the same trials of rate and epochs for every model, judged on validation."""

from collections.abc import Callable
from itertools import product

from qa_lib.settings.spec import Spec
from qa_lib.store import runs

WIDER = 3  # times the rates are extended: a model that is best at ever lower rates learns nothing


def selected_evaluation(spec: Spec, record: dict) -> dict:
    """Return the row of a record's history that its weights are of."""
    # An evaluation before training selects nothing.
    rows = [row for row in record["history"] if row["step"]]
    if spec.checkpoint == "best":
        return max(rows, key=lambda row: row["validation_f1"])
    return rows[-1]


def validation_score(spec: Spec, record: dict) -> tuple[float, float]:
    """Return (EM, −loss) on validation: the highest EM wins, of equals the lowest loss."""
    row = selected_evaluation(spec, record)
    return row["validation_em"], -row["validation_loss"]


def choose_by_trials(
    models: list[str],
    trial: Callable[[str, float, float], Spec],
    rates: list[float],
    epochs: list[float],
) -> tuple[list[Spec], dict[str, tuple[float, float]]]:
    """Return all trials, and model → (rate, epochs) of its best trial by `validation_score`.

    While a model's best rate lies at the edge of those tried, all models get the next rate too
    (half, or twice), WIDER times at most. Epochs are not extended: they are the budget, the same
    for all, and those that the reports' own models have. Nothing is chosen until every trial is
    recorded, nor where their scores are of two versions.

    trial: gives the run of a model at a rate and epochs.
    """
    rates = sorted(rates)
    for wider in range(WIDER + 1):
        trials = {
            model: {setting: trial(model, *setting) for setting in product(rates, epochs)}
            for model in models
        }
        every = [spec for of_model in trials.values() for spec in of_model.values()]
        scores = {}
        versions = set()
        for spec in every:
            record = runs.find_record(spec)
            if record is None:
                return every, {}
            versions.add(runs.scoring_version(record))
            scores[spec.hash] = validation_score(spec, record)
        if len(versions) > 1:  # scores of two versions do not compare
            return every, {}
        best = {}
        for model, of_model in trials.items():
            best[model] = max(of_model, key=lambda at, tried=of_model: scores[tried[at].hash])
        best_rates = {rate for rate, _ in best.values()}
        lowest, highest = rates[0], rates[-1]
        if wider == WIDER or not {lowest, highest} & best_rates:
            break
        if lowest in best_rates:
            rates = [lowest / 2, *rates]
        if highest in best_rates:
            rates = [*rates, highest * 2]
    return every, best
