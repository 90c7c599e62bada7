"""Equal tuning: the same trials of rate and epochs for every model, judged on validation.

choose_by_trials(…)     every rate with every number of epochs, and rates beyond the edge
choose_by_halving(…)    every rate with few epochs, then the better half of them with more
choose_from_settings(…) a list of settings for each model, and none beyond
"""

from collections.abc import Callable
from itertools import product

from qa_lib.data import selection
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

WIDER = 3  # times the rates are extended: a model that is best at ever lower rates learns nothing

# (score, −loss) of a trial on validation; None where it is not trained yet.
Score = tuple[float, float] | None


def selected_evaluation(spec: Spec, record: dict) -> dict:
    """Return the row of a record's history that its weights are of."""
    # An evaluation before training selects nothing.
    rows = [row for row in record["history"] if row["step"]]
    if spec.checkpoint == "best":
        column = selection.checkpoint_column(spec)
        return max(rows, key=lambda row: row[column])
    return rows[-1]


def validation_score(spec: Spec, record: dict) -> tuple[float, float]:
    """Return (score, −loss) on validation: the highest score wins, of equals the lowest loss.

    The score is that of the run's task, or the mean over its datasets.
    """
    row = selected_evaluation(spec, record)
    return row[selection.trial_column(spec)], -row["validation_loss"]


def find_score(spec: Spec) -> Score:
    """Return the score of a trial from its record."""
    record = runs.find_record(spec)
    return None if record is None else validation_score(spec, record)


def assume_best(rates: list[float]) -> Callable[[Spec], Score]:
    """Return a stand-in for `find_score` that lists a plan before anything is trained.

    It takes the rate in the middle for the best, so that no rate is added where there are three or
    more. What a run costs does not depend on its rate.
    """
    middle = sorted(rates)[len(rates) // 2]
    return lambda spec: (-abs(spec.learning_rate - middle), 0.0)


def choose_by_trials(
    models: list[str],
    trial: Callable[[str, float, float], Spec],
    rates: list[float],
    epochs: list[float],
    score: Callable[[Spec], Score] = find_score,
    times: int = WIDER,
) -> tuple[list[Spec], dict[str, tuple[float, float]]]:
    """Return all trials, and model → (rate, epochs) of its best trial by `score`.

    While a model's best rate lies at the edge of those tried, all models get the next rate too
    (half, or twice), so many times at most. Epochs are not extended: they are the budget, the same
    for all, and those that the reports' own models have. Nothing is chosen until every trial is
    recorded, nor where their scores are of two versions.

    trial: gives the run of a model at a rate and epochs.
    """
    rates = sorted(rates)
    for wider in range(times + 1):
        trials = {}  # model → (rate, epochs) → its trial
        every = []
        for model in models:
            trials[model] = {at: trial(model, *at) for at in product(rates, epochs)}
            every += trials[model].values()
        scores = score_trials(every, score)
        if scores is None:
            return every, {}
        best = {}
        for model, of_model in trials.items():
            score_at = {at: scores[spec.hash] for at, spec in of_model.items()}
            best[model] = max(score_at, key=score_at.get)
        best_rates = {rate for rate, _ in best.values()}
        lowest, highest = rates[0], rates[-1]
        if wider == times or not {lowest, highest} & best_rates:
            break
        if lowest in best_rates:
            rates = [lowest / 2, *rates]
        if highest in best_rates:
            rates = [*rates, highest * 2]
    return every, best


def choose_by_halving(
    models: list[str],
    trial: Callable[[str, float, float], Spec],
    rates: list[float],
    epochs: list[float],
    score: Callable[[Spec], Score] = find_score,
) -> tuple[list[Spec], dict[str, tuple[float, float]]]:
    """Return all trials, and model → (rate, epochs) of its best trial in the last round.

    Successive halving (Jamieson and Talwalkar 2016): the first round tries every rate with the
    first number of epochs, and the better half of a round goes on to the next, with the next number
    of epochs. Every model has the same rates to begin with, the same number of trials in every
    round, and the same epochs. No rates are added, so that the cost is known beforehand. Nothing is
    chosen until every trial of a round is recorded.

    trial: gives the run of a model at a rate and epochs; epochs: of each round.
    """
    left = {model: sorted(rates) for model in models}
    every = []
    for number in epochs:
        of_round = {}  # model → rate → its trial
        for model in models:
            of_round[model] = {rate: trial(model, rate, number) for rate in left[model]}
            every += of_round[model].values()
        scores = score_trials(every, score)
        if scores is None:
            return every, {}
        for model, of_model in of_round.items():
            score_at = {rate: scores[spec.hash] for rate, spec in of_model.items()}
            ranked = sorted(score_at, key=score_at.get)
            half = (len(ranked) + 1) // 2
            left[model] = ranked[::-1][:half]
    return every, {model: (ranked[0], epochs[-1]) for model, ranked in left.items()}


def choose_from_settings(
    settings: dict[str, list[dict]],
    trial: Callable[[str, dict], Spec],
    score: Callable[[Spec], Score] = find_score,
) -> tuple[list[Spec], dict[str, dict]]:
    """Return all trials, and model → the setting of its best trial by `score`.

    settings: of each model, as fields of a run; as many for every model. trial: gives the run of a
    model at one of them. The settings are not extended where the best lies at an edge. Nothing is
    chosen until every trial is recorded.
    """
    tried = {}
    every = []
    for model, of_model in settings.items():
        tried[model] = [trial(model, setting) for setting in of_model]
        every += tried[model]
    scores = score_trials(every, score)
    if scores is None:
        return every, {}
    best = {}
    for model, of_model in settings.items():
        of_trials = [scores[spec.hash] for spec in tried[model]]
        best[model] = of_model[of_trials.index(max(of_trials))]
    return every, best


def score_trials(specs: list[Spec], score: Callable[[Spec], Score]) -> dict[str, Score] | None:
    """Return the score of each trial by its hash.

    None where one is not trained yet, and where records have scores of two versions, which do not
    compare.
    """
    scores = {}
    versions = set()
    for spec in specs:
        scores[spec.hash] = score(spec)
        if scores[spec.hash] is None:
            return None
        record = runs.find_record(spec)
        if record is not None:
            versions.add(runs.scoring_version(record))
    return scores if len(versions) <= 1 else None
