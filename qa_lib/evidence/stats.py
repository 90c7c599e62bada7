r"""Claims of a report, estimated from what the ledger holds, and judged.

judge_claims(claims, ledger, examples, …)    a row for each claim: difference, p, verdict, runs
collect_curve_rows(histories)                ledger rows of losses and of the best epoch

Seeds s = 1 … n are paired: $d_s$ is the contrast of the runs with seed s, in the direction that the
claim says. Two things make its mean uncertain, and both are in its interval: other seeds ($s^2/n$)
and other test questions ($v$).

Where the design has $t_\nu\sqrt{s^2/n + v}$ with $\nu = \sum_c (n_c - 1)$ and v the variance of the
seed mean, the interval counts shared runs once in ν, gives each variance its own quantile, and
takes for v what two seeds have in common. Simulated, with s² estimated, n of 3 and 5, pools of 1 to
12 contrasts on one baseline, exact match and normal scores: the design's 95 % interval holds the
truth in 93 % (pool of 12, seeds alone) to 100 % (questions alone); with Welch and Satterthwaite's
effective ν in its place in 92 to 96 %; this one in 94.8 to 97.7 % (tests/test_stats.py, -k coverage
-s).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats as distributions

from qa_lib.evidence.claims import Claim, Contrast, read_claims
from qa_lib.evidence.resample import PER_EXAMPLE, resample
from qa_lib.evidence.verdicts import ENOUGH, Estimate, Judgement, Verdict, interval, judge, p_value
from qa_lib.settings.params import UserError

QUICK = "generated text shows that the study works; no number of it is a result"
SIGNS = (1, -1, -1, 1)  # of the sides of a contrast: ours, against, and both of `beyond`


def collect_curve_rows(histories: pd.DataFrame) -> pd.DataFrame:
    """Return ledger rows (set `validation`) of training curves, from runs.collect_histories.

    The metrics are the lowest validation_loss and its best_epoch, validation_loss_<epoch>, and of
    the last epoch train_loss and loss_gap (validation less training). Raises UserError for a
    validation loss that is not a number.
    """
    no_labels = ["epoch", "step", "train_loss"]
    for column in histories:
        # what an evaluation measured
        if column.startswith(("validation_", "dev_", "train_")) and column != "validation_rows":
            no_labels.append(column)
    # A run may stand under several variants or arms.
    names = [column for column in ("run", "variant", "arm") if column in histories]
    rows = []
    for (name, *_), run in histories.groupby(names, sort=False):
        run = run.sort_values("epoch")
        if run["validation_loss"].isna().any():
            raise UserError(
                f"{name}: the validation loss of an epoch is not a number; train it again"
            )
        best = run.loc[run["validation_loss"].idxmin()]
        last = run.iloc[-1]
        values = {}
        for epoch, loss in zip(run["epoch"], run["validation_loss"], strict=True):
            values[f"validation_loss_{epoch:g}"] = loss
        values["validation_loss"] = best["validation_loss"]
        values["best_epoch"] = best["epoch"]
        values["train_loss"] = last["train_loss"]
        values["loss_gap"] = last["validation_loss"] - last["train_loss"]
        labels = last.drop(no_labels, errors="ignore").to_dict()
        labels |= {"set": "validation", "n": last.get("validation_rows", 0)}
        for metric, value in values.items():
            rows.append(labels | {"metric": metric, "value": float(value)})
    return pd.DataFrame(rows)


# ---- paired differences ----


@dataclass(frozen=True)
class Part:
    """One contrast of single cells or of means of cells."""

    label: str
    d: np.ndarray  # (n,), over the seeds that all its sides have
    dropped: tuple[int, ...]  # seeds that some side lacks, or has from another machine
    v: float  # variance over test questions, common to all seeds
    clusters: float  # K, of the smallest of its test sets
    rounding: float  # variance of the mean of d, for a metric without questions: it shrinks with n
    weights: pd.DataFrame  # (n, runs × sets), of each run on each test set in each d
    key: tuple  # parts with the same key share a variance


class Lacking(Exception):
    """A contrast cannot be estimated. Its arguments say why: cells without a run, or a sentence."""


def compute_contrast(contrast: Contrast, sides: list[np.ndarray]) -> np.ndarray:
    r"""Return the contrast of its sides, one array a side, in the claim's direction.

    $\pm(g(y_1, y_2) - g(y_3, y_4) - \text{target})$ with $g(a, b) = a - b$, or, relative,
    $g(a, b) = 100 (a/b - 1)$
    """

    def g(a, b=0.0):
        return 100 * (a / b - 1) if contrast.scale == "relative" else a - b

    sign = 1 if contrast.direction == "higher" else -1
    beyond = g(*sides[2:]) if len(sides) > 2 else 0
    return sign * (g(*sides[:2]) - beyond - contrast.target)


def spell_cells(side: dict) -> list[dict]:
    """Return the cells that a side is the mean of: its columns with one value each."""
    choices = [value if isinstance(value, list) else [value] for value in side.values()]
    return [dict(zip(side, values, strict=True)) for values in product(*choices)]


def find_cell(ledger: pd.DataFrame, want: dict) -> dict[int, tuple]:
    """Return seed → (run, set, metric) of a cell.

    Raises UserError where several runs of a seed fit.
    """
    fits = np.ones(len(ledger), bool)
    for column, value in want.items():
        known = ledger[column] if column in ledger else pd.Series(np.nan, ledger.index)
        if isinstance(value, float):
            numbers = pd.to_numeric(known, errors="coerce").to_numpy(float)
            fits &= np.isclose(numbers, value, rtol=1e-6, atol=0)
        elif value is None:
            fits &= known.isna().to_numpy(bool)
        else:
            fits &= (known == value).to_numpy(bool)
    seeds, names = ledger["seed"].to_numpy()[fits], ledger["run"].to_numpy()[fits]
    runs = dict.fromkeys(zip(seeds, names, strict=True))
    if len({seed for seed, _ in runs}) < len(runs):
        rows = ledger.loc[fits].drop_duplicates(["run", "seed"])
        differ = []
        for column in rows.columns.difference(["run", "seed", "value"], sort=False):
            if rows[column].astype(str).nunique() > 1:
                differ.append(column)
        labels = {name: value for name, value in want.items() if name not in ("set", "metric")}
        shown = ", ".join(f"{name} {value}" for name, value in labels.items())
        raise UserError(
            f"several runs of one seed fit {shown}: the contrast must say which "
            f"{' or '.join(differ) or 'run'}"
        )
    return {seed: (run, want["set"], want["metric"]) for seed, run in runs}


def select_rows(sides: list[dict], ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a ledger that may be in a cell of a contrast's sides.

    They have its variants and its metrics. The cells are searched in these few rows alone.
    """
    fits = np.ones(len(ledger), bool)
    for column in ("variant", "metric"):
        named = {value for side in sides for value in np.ravel(side[column])}
        fits &= ledger[column].isin(named).to_numpy()
    return ledger[fits]


def find_cells(sides: list[dict], ledger: pd.DataFrame) -> list[list[dict[int, tuple]]]:
    """Return, of each side, `find_cell` of each of its cells.

    Raises Lacking with the cells without a run, and where a side has no cell: a claim of all
    mixtures, in a study that mixes none.
    """
    cells, empty = [], []
    for side in sides:
        wanted = spell_cells(side)
        if not wanted:
            raise Lacking("the study has no mixture of both domains")
        found = [find_cell(ledger, want) for want in wanted]
        empty += [want for want, cell in zip(wanted, found, strict=True) if not cell]
        cells.append(found)
    if empty:
        raise Lacking(*empty)
    return cells


def describe_machine(device: str) -> str:
    """Return the kind of machine that a run's scores depend on: any CPU, or one type of GPU."""
    return "CPU" if device.startswith("CPU") else device


def find_seeds(cells: list[dict[int, tuple]], ledger: pd.DataFrame) -> list[int]:
    """Return the seeds that all cells have, each from one kind of machine and in one precision.

    Raises Lacking where there is none.
    """
    seeds = sorted(set.intersection(*map(set, cells)))
    if not seeds:
        raise Lacking("no seed that all its sides have")
    if "device" not in ledger:
        return seeds
    made = ledger["device"].map(describe_machine) + ledger.get("precision", "")
    made = dict(zip(ledger["run"], made, strict=True))
    alike = []
    for seed in seeds:
        if len({made[cell[seed][0]] for cell in cells}) == 1:
            alike.append(seed)
    if not alike:
        raise Lacking("its sides were trained on different devices, or in different precision")
    return alike


def weigh_runs(keys: list[list[list[tuple]]], seeds: list[int]) -> pd.DataFrame:
    """Return the weight of each run on each test set in each seed's difference, (n, runs × sets).

    keys: of each side, of each cell, of each seed (run, set, metric).
    """
    rows = []
    for sign, side in zip(SIGNS, keys, strict=False):
        for cell in side:
            for seed, (run, name, _) in zip(seeds, cell, strict=True):
                rows.append((seed, run, name, sign / len(side)))
    return pd.DataFrame(rows).pivot_table(
        index=0, columns=[1, 2], values=3, aggfunc="sum", fill_value=0.0
    )


def average_cells(
    side: list[list[tuple]], find: Callable[[tuple], float | np.ndarray]
) -> np.ndarray:
    """Return what `find` gives for each seed, as a mean over the cells of a side: (n, …).

    side: of each cell, of each seed (run, set, metric). find: returns the score, or the scores in
    all resamples, of such a key.
    """
    of_cells = []
    for cell in side:
        of_cells.append([find(key) for key in cell])
    return np.array(of_cells).mean(0)


def estimate_part(
    contrast: Contrast,
    label: str,
    sides: list[dict],
    ledger: pd.DataFrame,
    draws: dict[tuple, np.ndarray],
    clusters: dict[str, int],
) -> Part:
    r"""Return the paired differences of one part, and their variance over test questions.

    $v = \frac{1}{n(n-1)} \sum_{s \ne s'} \operatorname{cov}(d_s^*, d_{s'}^*)$ over the resamples:
    what seeds do not average out (Obuchowski and Rockette 1995; their seeds are readers). A seed's
    own noise over questions is in $s^2$ already.

    draws: of `resample`. clusters: set → number of clusters of questions.
    Raises Lacking where a side has no runs, or no seed can be compared.
    """
    ledger = select_rows(sides, ledger)
    cells = find_cells(sides, ledger)
    every = [cell for side in cells for cell in side]
    seeds = find_seeds(every, ledger)
    n = len(seeds)
    keys = []  # side → cell → seed → (run, set, metric)
    used = []  # side → its keys, each once
    for side in cells:
        keys_of_cells = [[cell[seed] for seed in seeds] for cell in side]
        keys.append(keys_of_cells)
        used.append(sorted(set().union(*keys_of_cells)))
    if len(used) > 1 and used[0] == used[1]:
        raise Lacking("its two sides are the same runs at these sizes")
    weights = weigh_runs(keys, seeds)
    of_these = ledger["run"].isin(weights.columns.get_level_values(0))
    scores = ledger.loc[of_these, ["run", "set", "metric", "value"]]
    value = {(run, name, metric): x for run, name, metric, x in scores.itertuples(index=False)}
    times = len(next(iter(draws.values()), [0, 0]))

    def redraw(key: tuple) -> np.ndarray:
        """Return the score in each resample, (B,); without questions it is always the same."""
        return draws.get(key, np.full(times, value[key]))

    recorded = [average_cells(side, value.get) for side in keys]  # side → (n,)
    drawn = [average_cells(side, redraw) for side in keys]  # side → (n, B)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = compute_contrast(contrast, recorded)  # (n,)
        redrawn = compute_contrast(contrast, drawn)  # (n, B)
    redrawn = redrawn[:, np.isfinite(redrawn).all(axis=0)]
    if not np.isfinite(d).all() or redrawn.shape[1] < times / 2:
        raise Lacking("it is a percentage of a score that is 0, or nearly so")
    cov = np.atleast_2d(np.cov(redrawn))  # (n, n)
    has_questions = any(key[2] in PER_EXAMPLE for side in used for key in side)
    # Of one seed v holds its own noise too.
    common = max((cov.sum() - cov.trace()) / (n * (n - 1)), 0.0) if n > 1 else cov.sum()
    kind = [contrast.scale]
    for side, keys_of_side in zip(cells, used, strict=True):
        kind.append((len(side), *sorted({key[1:] for key in keys_of_side})))
    sizes = [clusters[key[1]] for side in used for key in side if key[1] in clusters]
    return Part(
        label=label,
        d=d,
        dropped=tuple(sorted(set().union(*every) - set(seeds))),
        v=float(common * has_questions),
        clusters=min(sizes, default=np.inf),
        rounding=float(cov.mean() * (not has_questions)),
        weights=weights,
        key=tuple(kind),
    )


# ---- variance between seeds ----


def compare_variances(contrasts: list[Part]) -> float:
    """Return p of Levene's test that contrasts vary alike between seeds.

    It is 1 where too few contrasts have enough seeds.
    """
    tested = [part.d for part in contrasts if len(part.d) >= ENOUGH]
    if len(tested) < 2 or not any(np.ptp(d) > 0 for d in tested):
        return 1.0
    return float(distributions.levene(*tested, center="median").pvalue)


def pool_variance(pool: list[Part]) -> tuple[float, float]:
    r"""Return ($s^2$, ν) of contrasts c that share one variance between seeds.

    $s^2 = \sum_c \sum_s (d_{cs} - \bar d_c)^2 / \sum_c (n_c - 1)$, and, counting what contrasts
    share once (Satterthwaite 1946; Box 1954),
    $\nu = \operatorname{tr}(ZZ^\top)^2 / \operatorname{tr}(ZZ^\top ZZ^\top)$: rows of Z are the
    weights of all runs in each $d_{cs} - \bar d_c$. For contrasts without a common run that is
    $\sum_c (n_c - 1)$. Of one seed alone ν is 0 and $s^2$ not a number.
    """
    deviations = [part.weights - part.weights.mean() for part in pool]
    Z = pd.concat(deviations).fillna(0).to_numpy()  # (Σ n_c, runs)
    if not Z.any():
        return np.nan, 0.0
    nu = (Z**2).sum() ** 2 / ((Z @ Z.T) ** 2).sum()
    squares = sum(((part.d - part.d.mean()) ** 2).sum() for part in pool)
    s2 = squares / sum(len(part.d) - 1 for part in pool)
    return float(s2), float(nu)


def seed_variance(parts: list[Part]) -> dict[int, tuple[float, float, float]]:
    r"""Return id(part) → ($s^2$, ν, p of Levene's test), pooled over contrasts of the same kind.

    Contrasts of the same runs count once. Each has a variance of its own where Levene's test (from
    medians: Brown and Forsythe 1974; contrasts of at least three seeds) gives p < .01. Simulated:
    where one contrast of six varies 10 times as much as the others, it fires in 0 % (n = 3) and 52
    % (n = 5); the pooled interval of one that varies twice as much covers 78 %, three times 69 %.
    Over all contrasts of a pool it covers 93 % or more (log sd with an sd of up to 0.75).
    """
    kinds: dict[tuple, dict[tuple, list[Part]]] = {}  # kind → runs → the parts that compare them
    for part in parts:
        of_kind = kinds.setdefault(part.key, {})
        of_kind.setdefault(tuple(sorted(part.weights)), []).append(part)
    variances = {}
    for of_kind in kinds.values():
        contrasts = [same[0] for same in of_kind.values()]
        level = compare_variances(contrasts)
        for same in of_kind.values():
            s2, nu = pool_variance(same[:1] if level < 0.01 else contrasts)
            for part in same:
                variances[id(part)] = (s2, nu, level)
    return variances


# ---- claims, judged ----


@dataclass(frozen=True)
class Sample:
    """Runs and what other test questions would make of their scores."""

    ledger: pd.DataFrame
    draws: dict[tuple, np.ndarray]  # of resample
    clusters: dict[str, int]  # set → number of clusters of questions


@dataclass(frozen=True)
class PartEstimate:
    """A part of a claim with the variance between seeds that its interval uses."""

    part: Part
    s2: float
    nu: float
    levene: float

    def estimate(self) -> Estimate:
        """Return what the rules ask of the part."""
        n = len(self.part.d)
        s2 = self.s2 + n * self.part.rounding
        return Estimate(self.part.d.mean(), s2, self.nu, self.part.v, n, self.part.clusters)

    def estimate_unpooled(self) -> Estimate:
        """Return the same with the variance of the part's own seeds, none pooled."""
        pooled = self.estimate()
        if pooled.n == 1:
            return pooled._replace(nu=0)
        s2 = self.part.d.var(ddof=1) + pooled.n * self.part.rounding
        return pooled._replace(s2=s2, nu=pooled.n - 1)


def draw_sample(
    listed: list[Claim],
    ledger: pd.DataFrame,
    examples: pd.DataFrame,
    domains: list[str],
    arm: str | None,
    times: int = 1000,
    stand_ins: dict[str, str] | None = None,
) -> Sample:
    """Return the runs of an arm with their resampled scores.

    Test sets are called as the claims call them: first and second, or by the sets that they stand
    in for (Study.stand_ins). Raises UserError for a score that is not a number.
    """
    if arm and "arm" in ledger:
        ledger = ledger[ledger["arm"] == arm]
    places = name_places(listed, domains) | (stand_ins or {})
    # As objects all columns of text are one array, of which rows are selected hundreds of times.
    ledger = ledger.astype(dict.fromkeys(ledger.select_dtypes("string"), object))
    ledger = ledger.assign(set=rename_sets(ledger["set"], places))
    examples = examples.assign(set=rename_sets(examples["set"], places))
    finite = np.isfinite(ledger["value"].astype(float))
    if not finite.all():
        row = ledger[~finite].iloc[0]
        raise UserError(
            f"{row['run']}: {row['metric']} on {row['set']} is not a number; train it again"
        )
    clusters = examples.groupby("set")["cluster"].nunique().to_dict()
    return Sample(ledger, resample(ledger, examples, times), clusters)


def rename_sets(names: pd.Series, places: dict[str, str]) -> np.ndarray:
    """Return names of test sets as the claims call them. Of many rows each name is looked up once.

    places: name → how the claims call it, where that is another.
    """
    codes, known = pd.factorize(names)
    return np.array([places.get(name, name) for name in known], object)[codes]


def name_places(listed: list[Claim], domains: list[str]) -> dict[str, str]:
    """Return domain → first or second, where a claim's contrast calls its sets so."""
    named = set()
    for claim in listed:
        for side in claim.contrast.sides() if claim.contrast else []:
            named.update(np.ravel(side["set"]))
    if not named & {"first", "second"}:
        return {}
    return dict(zip(domains, ("first", "second"), strict=False))


def estimate_parts(claim: Claim, sample: Sample) -> tuple[list[Part], list]:
    """Return the parts of a claim that have runs, and what the others lack (`Lacking`)."""
    able = []
    lacks = []
    for label, sides in claim.contrast.parts() if claim.contrast else []:
        try:
            part = estimate_part(
                claim.contrast, label, sides, sample.ledger, sample.draws, sample.clusters
            )
            able.append(part)
        except Lacking as e:
            lacks += e.args
    return able, lacks


def estimate_claims(
    listed: list[Claim], sample: Sample, pool: list[Claim] | None = None
) -> dict[str, tuple[list[PartEstimate], list]]:
    """Return claim → (its parts, what it lacks where there are none: arguments of `Lacking`).

    A claim with a part that has no runs is not estimated. pool: claims with which each claim shares
    the variance between seeds, and with no other of `listed`. None: all claims share it with each
    other.
    """
    estimates = {claim.id: ([], ["there are no runs"]) for claim in listed}
    if sample.ledger.empty:
        return estimates
    parts = {}
    for claim in listed:
        able, lacks = estimate_parts(claim, sample)
        if lacks:
            estimates[claim.id] = ([], lacks)
        elif able:
            parts[claim.id] = able
    variances = {}
    if pool is None:
        variances = seed_variance([part for able in parts.values() for part in able])
    else:
        shared = []
        for claim in pool:
            able, lacks = estimate_parts(claim, sample)
            if not lacks:
                shared += able
        for able in parts.values():
            variances |= seed_variance(able + shared)
    for name, able in parts.items():
        estimates[name] = ([PartEstimate(part, *variances[id(part)]) for part in able], [])
    return estimates


def correct_by_holm(p_values: list[float]) -> np.ndarray:
    r"""Return the p-values of m claims as Holm (1979) raises them, in their order.

    The i-th smallest becomes $\max_{j \le i} (m - j + 1) \, p_{(j)}$, of which what exceeds 1
    stands for 1. The function of statsmodels gives the same and collects garbage first, which
    takes a second on a page.
    """
    order = np.argsort(p_values, kind="stable")
    left = np.arange(len(p_values), 0, -1)  # m − j + 1
    raised = np.empty(len(p_values))
    raised[order] = np.maximum.accumulate(left * np.take(p_values, order))
    return raised


def raise_p_values(rows: list[dict], column: str):
    """Add Holm's p to rows of primary claims, as <column>_holm, and by what it was raised.

    The factor is taken before p is cut at 1: with it a smaller p would be raised, too.
    """
    raised = correct_by_holm([row[column] for row in rows])
    for row, p in zip(rows, raised, strict=True):
        row[f"{column}_holm"] = min(p, 1.0)
        row[f"{column}_factor"] = p / row[column] if row[column] else 1.0


def describe_estimate(claim: Claim, parts: list[PartEstimate]) -> dict:
    """Return the columns of an estimated claim.

    Of several parts the one with the largest p is shown, and n is of that one.
    """
    estimates = [x.estimate() for x in parts]
    p_values = [p_value(claim, *e) if e.nu else 1.0 for e in estimates]
    unpooled = [x.estimate_unpooled() for x in parts]
    worst = min(range(len(parts)), key=lambda i: (-p_values[i], estimates[i].d))
    shown, of_shown = parts[worst], estimates[worst]
    low, high = interval(*of_shown) if of_shown.nu else (np.nan, np.nan)
    own_low, own_high = interval(*unpooled[worst]) if unpooled[worst].nu else (np.nan, np.nan)
    return {
        "part": shown.part.label,
        "parts": len(parts),
        "n": of_shown.n,
        "d": of_shown.d,
        "low": low,
        "high": high,
        "own_low": own_low,
        "own_high": own_high,
        "p": p_values[worst] if of_shown.nu else np.nan,
        "p_own": max(p_value(claim, *e) if e.nu else 1.0 for e in unpooled),
        "s2": of_shown.s2,
        "nu": of_shown.nu,
        "v": of_shown.v,
        "clusters": of_shown.clusters,
        "levene": shown.levene,
        "dropped": tuple(sorted({seed for x in parts for seed in x.part.dropped})),
        "run": tuple(sorted({run for x in parts for run, _ in x.part.weights})),
    }


def describe_judgement(judgement: Judgement, parts: list[PartEstimate]) -> dict:
    """Return the columns of a verdict; rule_… are of the part that fails."""
    columns = {"verdict": judgement.verdict, "reason": str(judgement.reason)}
    if judgement.verdict is Verdict.NOT_REPRODUCED:
        part = parts[judgement.part].part
        columns |= {
            "rule_part": part.label,
            "rule_d": part.d.mean(),
            "rule_low": judgement.low,
            "rule_high": judgement.high,
            "more": judgement.more,
        }
    return columns


def describe_lacks(lacks: list) -> dict:
    """Return the columns of a claim that is not tested, from arguments of `Lacking`."""
    sentences = dict.fromkeys(lack for lack in lacks if isinstance(lack, str))
    return {
        "verdict": Verdict.NOT_TESTED,
        "unpooled": Verdict.NOT_TESTED,
        "reason": "; ".join(sentences),
        "absent": tuple(lack for lack in lacks if not isinstance(lack, str)),
    }


COLUMNS = """
    id where says kind primary printed unit part parts n dropped d low high own_low own_high
    p p_holm s2 nu v clusters levene verdict reason absent
    rule_part rule_d rule_low rule_high more unpooled run
    """.split()


def judge_sample(
    listed: list[Claim], sample: Sample, profile: str, pool: list[Claim] | None = None
) -> pd.DataFrame:
    """Return one row a claim: what it says, n, d, low, high (95 %), p, p_holm, verdict, runs.

    own_low, own_high: the interval with the variance of these seeds alone, none pooled; of one seed
    there is none. p_holm is of primary claims. reason: of the verdict, in a sentence. absent: the
    cells without a run for which a claim is not tested, each as column → value. part: of several
    parts the one that is shown, with the largest p; n: its seeds. rule_part …: of a claim that is
    not reproduced the first part that fails, with the interval by which it does; more: how many
    other parts fail. unpooled: the verdict if each part had the variance of its own seeds, none
    pooled. pool: as in `estimate_claims`.
    """
    estimated = estimate_claims(listed, sample, pool)
    rows = []
    for claim in listed:
        parts, lacks = estimated[claim.id]
        if profile not in claim.profiles:
            lacks = [claim.untestable.get(profile, QUICK)]
        names = {"id", "where", "says", "kind", "primary", "printed", "unit"}
        row = claim.model_dump(include=names) | {"n": 0, "run": (), "absent": ()}
        if parts:
            row |= describe_estimate(claim, parts)
        if lacks:
            row |= describe_lacks(lacks)
        rows.append(row)
    primary = [r for r in rows if r["primary"] and "verdict" not in r and np.isfinite(r["p"])]
    if primary:
        raise_p_values(primary, "p")
        raise_p_values(primary, "p_own")
    for claim, row in zip(listed, rows, strict=True):
        if "verdict" in row:
            continue
        parts, _ = estimated[claim.id]
        judgement = judge(claim, [x.estimate() for x in parts], row.get("p_factor", 1.0))
        row |= describe_judgement(judgement, parts)
        unpooled = [x.estimate_unpooled() for x in parts]
        row["unpooled"] = judge(claim, unpooled, row.get("p_own_factor", 1.0)).verdict
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def judge_claims(
    report: str | list[Claim],
    ledger: pd.DataFrame,
    examples: pd.DataFrame,
    profile: str,
    domains: list[str],
    arm: str | None = "printed",
    times: int = 1000,
) -> pd.DataFrame:
    """Return `judge_sample` of a report's claims on the runs of a ledger.

    report: its slug, or claims. ledger: runs.collect_ledger, with `collect_curve_rows` below it.
    domains: the first and the second. arm: rows of another arm are left out. times: resamples.
    """
    listed = read_claims(report) if isinstance(report, str) else report
    sample = draw_sample(listed, ledger, examples, domains, arm, times)
    return judge_sample(listed, sample, profile)
