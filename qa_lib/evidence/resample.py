r"""Other test questions: scores of runs when clusters of questions are drawn again.

resample(ledger, examples)     (run, set, metric) → its score in each resample
"""

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
    r"""Scores (B, R) of R runs when whole clusters are drawn again: $y_{br} = \sum_k w_{bk} S_{kr} / \sum_k w_{bk} m_{kr}$.

    moments (2, K, R): of each cluster its rows m and the sum of their scores S. weights (B, K): how often a cluster is drawn.
    Davison and Hinkley 1997, 3.8.
    """
    m, S = weights @ moments  # (2, B, R)
    return S / m


def correlation(moments: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""100 times Pearson's r, (B, R), likewise: $r = (\overline{xy} - \bar x \bar y) / (s_x s_y)$.

    moments (6, K, R): of each cluster its rows and the sums of x, y, x², y² and xy.
    """
    n, *sums = weights @ moments  # (6, B, R)
    x, y, xx, yy, xy = (s / n for s in sums)
    with np.errstate(invalid="ignore"):  # one cluster drawn each time
        return 100 * (xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))


def resample(
    ledger: pd.DataFrame, examples: pd.DataFrame, times: int = 1000, seed: int = 0
) -> dict[tuple, np.ndarray]:
    """(run, set, metric) → its score in each resample, (B,). A set's resamples are the same for all runs: pairs stay pairs.

    examples: run, set, cluster, and of each row its score in a column of the metric's name; of a set that is scored by a
    correlation `predicted` and `gold`. `score` is a set's own metric: that correlation, else accuracy.
    K − 1 of K clusters are drawn, so that the variance of a mean is not too small by 1/K (Rao and Wu 1988). Whether rows or
    clusters are averaged is what gives the recorded score; UserError where neither does.
    """
    rng, found = np.random.default_rng(seed), {}
    for name, recorded in ledger[ledger["metric"].isin(PER_EXAMPLE)].groupby("set"):
        rows = examples[(examples["set"] == name) & examples["run"].isin(recorded["run"])]
        count = rows.groupby(["cluster", "run"], observed=True).size().unstack(fill_value=0)
        if lacks := sorted(set(recorded["run"]) - set(count)):
            raise UserError(
                f"{lacks[0]} has a score on {name} but no examples of it; train it again"
            )
        share = count / count.sum()  # a run that the plan lists under two labels is here twice
        if (odd := (share.sub(share.iloc[:, 0], axis=0).abs() > 1e-9).any()).any():
            raise UserError(
                f"{odd.idxmax()} was tested on other rows of {name} than {share.columns[0]}; test both on one set"
            )
        if (K := len(share)) < 2:
            raise UserError(
                f"all examples of {name} are of one cluster, so that nothing is known of others; test on more"
            )
        weights = rng.multinomial(K - 1, np.full(K, 1 / K), size=times).astype(float)  # (B, K)
        paired = "gold" in rows and rows["gold"].notna().all()
        for metric, values in recorded.groupby("metric"):
            pair = paired and metric in ("pearson", "score")
            scored = rows[rows["run"].isin(values["run"])]  # not every run has every metric
            x = scored[
                ["predicted", "gold"] if pair else ["accuracy" if metric == "score" else metric]
            ].astype(float)
            if (bad := x.isna().any(axis=1)).any():
                raise UserError(
                    f"{scored['run'][bad].iloc[0]}: {metric} of an example of {name} is not a number; train it again"
                )
            if pair:
                x = pd.concat([x, x**2, x.prod(axis=1)], axis=1)
            by = [scored["cluster"], scored["run"]]
            sums = [column.groupby(by, observed=True).sum().unstack() for _, column in x.items()]
            names = list(sums[0])
            S = np.stack([count[names], *sums]).astype(float)  # (2 or 6, K, R)
            value = values.drop_duplicates("run").set_index("run")["value"][names].to_numpy()
            ways = (
                [(correlation, S)]
                if pair
                else [(mean, S), (mean, np.stack([np.ones_like(S[0]), S[1] / S[0]]))]
            )
            off = [
                np.abs(way(moments, np.ones((1, K)))[0] - value) for way, moments in ways
            ]  # (R,) each
            best = min(range(len(ways)), key=lambda i: off[i].max())
            if not off[best].max() < 0.01:
                raise UserError(
                    f"{names[off[best].argmax()]}: ledger and examples disagree about {metric} on {name}"
                )
            way, moments = ways[best]
            found |= zip(
                [(run, name, metric) for run in names], way(moments, weights).T, strict=True
            )
    for x in (
        ledger[ledger["metric"].isin(["best_epoch", "plateau"])]
        .drop_duplicates(["run", "metric"])
        .itertuples()
    ):
        # the lowest loss, or the end of the rise, lies within that epoch, or that look
        step = 1 if x.metric == "best_epoch" else 100 / (x.looks * x.epochs)
        found[x.run, x.set, x.metric] = x.value + rng.uniform(-step / 2, step / 2, times)
    return found
