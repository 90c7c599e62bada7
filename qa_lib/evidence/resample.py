"""Scores of runs on other test questions: the bootstrap over clusters of questions."""

import numpy as np
import pandas as pd

from qa_lib.settings.params import UserError

# what test rows decide
PER_EXAMPLE = (
    "em",
    "f1",
    "tokens",
    "em_starter",
    "f1_starter",
    "accuracy",
    "score",
    "pearson",
)


def mean(moments: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""Return scores (B, R) of R runs when whole clusters are drawn again.

    Davison and Hinkley 1997, 3.8:

    $y_{br} = \sum_k w_{bk} S_{kr} / \sum_k w_{bk} m_{kr}$

    moments (2, K, R): of each cluster its rows m and the sum of their scores S.
    weights (B, K): how often a cluster is drawn.
    """
    m, S = weights @ moments  # (2, B, R)
    return S / m


def count_rows(name: str, rows: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each cluster (index) that each run (columns) was tested on.

    Raises UserError where a run with a score has no examples, where two runs were tested on other
    rows, and where all rows are of one cluster.
    """
    count = rows.groupby(["cluster", "run"], observed=True).size().unstack(fill_value=0)
    if lacks := sorted(set(recorded["run"]) - set(count)):
        raise UserError(f"{lacks[0]} has a score on {name} but no examples of it; train it again")
    # Shares, since a run that the plan lists under two labels is here twice.
    share = count / count.sum()
    odd = (share.sub(share.iloc[:, 0], axis=0).abs() > 1e-9).any()
    if odd.any():
        raise UserError(
            f"{odd.idxmax()} was tested on other rows of {name} than {share.columns[0]}; "
            "test both on one set"
        )
    if len(count) < 2:
        raise UserError(
            f"all examples of {name} are of one cluster, so that nothing is known of others; "
            "test on more"
        )
    return count


def choose_column(metric: str, rows: pd.DataFrame) -> str:
    """Return the column of examples whose mean a metric is.

    That of a correlation has the influence of each example on it (tasks/sentence.py).
    """
    if metric != "score":
        return metric
    is_scored = "pearson" in rows and rows["pearson"].notna().all()
    return "pearson" if is_scored else "accuracy"


def redraw_metric(
    name: str,
    metric: str,
    recorded: pd.DataFrame,
    rows: pd.DataFrame,
    count: pd.DataFrame,
    weights: np.ndarray,
) -> dict[tuple, np.ndarray]:
    """Return (run, set, metric) → the score of each run with the metric in each resample, (B,).

    recorded: the ledger's rows of the set and metric. rows: examples of the set. count: of
    `count_rows`. Raises UserError for a score of an example that is not a number, and where neither
    the mean over rows nor the mean over clusters is what the ledger has.
    """
    scored = rows[rows["run"].isin(recorded["run"])]  # not every run has every metric
    x = scored[choose_column(metric, rows)].astype(float)
    bad = x.isna()
    if bad.any():
        raise UserError(
            f"{scored['run'][bad].iloc[0]}: {metric} of an example of {name} is not a number; "
            "train it again"
        )
    sums = x.groupby([scored["cluster"], scored["run"]], observed=True).sum().unstack()
    names = list(sums)
    over_rows = np.stack([count[names], sums]).astype(float)  # (2, K, R)
    of_clusters = np.stack([np.ones_like(over_rows[0]), over_rows[1] / over_rows[0]])
    ways = [over_rows, of_clusters]  # the mean over rows, and the mean of cluster means
    value = recorded.drop_duplicates("run").set_index("run")["value"][names].to_numpy()
    once = np.ones((1, len(count)))
    off = [np.abs(mean(moments, once)[0] - value) for moments in ways]  # (R,) each
    best = min(range(len(ways)), key=lambda i: off[i].max())
    if not off[best].max() < 0.01:
        raise UserError(
            f"{names[off[best].argmax()]}: ledger and examples disagree about {metric} on {name}"
        )
    drawn = mean(ways[best], weights).T  # (R, B)
    return {(run, name, metric): scores for run, scores in zip(names, drawn, strict=True)}


def resample(
    ledger: pd.DataFrame, examples: pd.DataFrame, times: int = 1000, seed: int = 0
) -> dict[tuple, np.ndarray]:
    """Return (run, set, metric) → its score in each resample, (B,).

    A set's resamples are the same for all runs, so that pairs stay pairs. K − 1 of K clusters are
    drawn, so that the variance of a mean is not too small by 1/K (Rao and Wu 1988).

    examples: run, set, cluster, and of each row its score in a column of the metric's name.
    `score` is a set's own metric: a correlation, else accuracy. Raises UserError where ledger and
    examples do not fit.
    """
    rng = np.random.default_rng(seed)
    draws = {}
    for name, recorded in ledger[ledger["metric"].isin(PER_EXAMPLE)].groupby("set"):
        rows = examples[(examples["set"] == name) & examples["run"].isin(recorded["run"])]
        count = count_rows(name, rows, recorded)
        K = len(count)
        weights = rng.multinomial(K - 1, np.full(K, 1 / K), size=times).astype(float)  # (B, K)
        for metric, of_metric in recorded.groupby("metric"):
            draws |= redraw_metric(name, metric, of_metric, rows, count, weights)
    of_curves = ledger[ledger["metric"].isin(["best_epoch", "plateau"])]
    for row in of_curves.drop_duplicates(["run", "metric"]).itertuples():
        # The lowest loss, or the end of the rise, lies within that epoch, or that evaluation.
        step = 1 if row.metric == "best_epoch" else 100 / (row.looks * row.epochs)
        draws[row.run, row.set, row.metric] = row.value + rng.uniform(-step / 2, step / 2, times)
    return draws
