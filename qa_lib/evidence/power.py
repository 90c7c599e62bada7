r"""Statistical power: which claims of a report could be decided, and with how many seeds.

    python -m qa_lib power [REPORT …]     print a table for each report; needs no runs

A claim compares k sides on one test set. Let q be their share of right answers, ρ the correlation
between two models' right answers, and ρ' that between two seeds of one model. One question then
contributes the variance $k\,q(1-q)(1-\rho)$. With n paired seeds on Q independent questions, the
variances that `stats.estimate_part` estimates are

$$v = k\,q(1-q)\,\frac{\rho' - \rho}{Q}$$

$$\frac{s^2}{n} = \frac{1}{n} \left( k\,q(1-q)\,\frac{1-\rho'}{Q} + \sigma^2 \right)$$

where σ is the standard deviation between seeds with endless questions. A Pearson correlation r has
$(1-r^2)^2$ in place of $q(1-q)$. A single score has ρ = 0. Sides on different test sets share no
question. q and Q come from params/questions.yaml; ρ, ρ' and σ are assumed.

An effect can be seen if 80 % of repetitions would show it at the two-sided 5 % level. An
equivalence can be seen if 80 % of repetitions would show it within its margin. A magnitude is
decided if an effect measured at the middle of the printed range would lie above half of the
range's low end. Of a claim of several parts that is one of them, the least certain: that all hold
is less likely. What Holm's method asks of primary claims is left out.
"""

from math import inf

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from qa_lib.evidence import stats
from qa_lib.evidence.claims import Claim, read_claims
from qa_lib.evidence.verdicts import ENOUGH, MOST
from qa_lib.settings import params
from qa_lib.settings.params import ROOT, UserError

ALIKE = 0.5  # ρ
ALIKE_SEEDS = 0.75  # ρ'
SEED_SD = 1.0  # σ, in points
CORRELATED = ("sts",)  # test sets whose score is Pearson's r
SCORES = ("em", "f1", "em_starter", "f1_starter", "accuracy", "pearson", "score")
ENDLESS = 10**9  # test questions

# By test set: the number of its questions, or None where it is unknown, and the score in percent
# about which the report's models lie.
Questions = dict[str, tuple[int | None, float]]


def read_questions(report: str) -> Questions:
    """Return the test sets of a report from params/questions.yaml.

    Raises UserError where they do not stand there.
    """
    known, _ = params.read_yaml(ROOT / "params" / "questions.yaml")
    if report not in known:
        raise UserError(
            f"params/questions.yaml has no entry {report}; write there the test sets of its claims"
        )
    return known[report]


def score_variance(test_set: str, n: int, level: float) -> float:
    """Variance of a score near `level` percent on n test questions, in points²."""
    q = level / 100
    one_question = (1 - q * q) ** 2 if test_set in CORRELATED else q * (1 - q)
    return 1e4 * one_question / n


def part_variance(sides: list[dict], questions: Questions) -> tuple[float, float] | None:
    """Variances of the effect of a claim's part over test questions, as in `effect_variance`.

    sides: as of `Contrast.sides`. None: the size of a test set is unknown.
    """
    weights = {}  # by test set: the weight of each side's score in the effect
    for sign, side in zip(stats.SIGNS, sides, strict=False):
        test_sets = np.ravel(side["set"])
        for test_set in test_sets:  # a side's score is the mean over its test sets
            weights.setdefault(test_set, []).append(sign / len(test_sets))
    own = 0.0
    common = 0.0
    for test_set, w in weights.items():
        n, level = questions.get(test_set, (None, 0))
        if n is None:
            return None
        variance = score_variance(test_set, n, level)
        squares = np.square(w).sum()
        own += variance * squares * (1 - ALIKE_SEEDS)
        common += variance * (squares * ALIKE_SEEDS + (sum(w) ** 2 - squares) * ALIKE)
    return own, common


def effect_variance(claim: Claim, questions: Questions) -> tuple[float, float] | None:
    """Variance of a claim's effect over test questions, in points².

    Returns (own, common): more seeds average out `own`, and leave `common` as it is. Of several
    parts the one with the largest variance counts. None: the claim's metric is no score of
    questions, or the size of a test set is unknown.
    """
    if claim.contrast is None:
        return None
    if not set(np.ravel(claim.contrast.metric)) <= set(SCORES):
        return None
    variances = []
    for _, sides in claim.contrast.parts():
        variance = part_variance(sides, questions)
        if variance is None:
            return None
        variances.append(variance)
    return max(variances)


def smallest_visible_effect(claim: Claim, own: float, common: float, n):
    """Smallest effect that n seeds can see, or smallest margin of an equivalence, in points.

    own, common: from `effect_variance`. n: a number, or an array of numbers.

    As in `verdicts.interval`, each variance has the quantile of its own degrees of freedom. A
    single seed shows nothing of σ, so that σ counts from two seeds on.
    """
    # the quantiles of the test's level and of the power
    levels = (0.95, 0.9) if claim.kind == "equivalence" else (0.975, 0.8)
    normal = sum(norm.ppf(levels)) ** 2
    student = sum(t.ppf(level, np.subtract(n, 1)) for level in levels) ** 2
    of_seeds = np.where(np.equal(n, 1), normal * own, student * (own + SEED_SD**2) / n)
    return np.sqrt(of_seeds + normal * common)


def count_needed_seeds(claim: Claim, own: float, common: float, points: float = 1.0) -> float:
    """Fewest seeds, at least three, that decide a claim; inf where no number of seeds does.

    own, common: from `effect_variance`. points: how many points one unit of the claim is.
    """
    # the middle of the range, less half of its low end, is half of its high end
    effect = claim.range[1] / 2 if claim.kind == "magnitude" else claim.foreseen
    numbers = np.arange(ENOUGH, MOST + 1)
    decided = smallest_visible_effect(claim, own, common, numbers) <= points * effect
    if not decided.any():
        return inf
    return float(numbers[decided.argmax()])


def power_table(report: str, ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)) -> pd.DataFrame:
    """Return a row for each claim about scores.

    A row says which effect one run a side, as in the report, sees on the report's test questions,
    and how many seeds would decide the claim on these, and on endless questions. NaN is unknown;
    inf is no number of seeds.

    ratios: of the mixtures that claims name.
    """
    theirs = read_questions(report)
    endless = {name: (ENDLESS, level) for name, (_, level) in theirs.items()}
    tests = {"the report's questions": theirs, "endless questions": endless}
    rows = []
    for claim in read_claims(report, ratios):
        if effect_variance(claim, endless) is None:
            continue
        levels = [theirs[name][1] for name in np.ravel(claim.contrast.sides()[0]["set"])]
        points = np.mean(levels) / 100 if claim.contrast.scale == "relative" else 1.0
        row = {
            "claim": claim.id,
            "kind": f"{claim.kind}, primary" if claim.primary else claim.kind,
            "effect": points * claim.foreseen,
            "one run sees": np.nan,
            "could see it": "–",
        }
        variances = effect_variance(claim, theirs)
        if variances is not None:
            row["one run sees"] = float(smallest_visible_effect(claim, *variances, 1))
            row["could see it"] = "yes" if row["one run sees"] <= row["effect"] else "no"
        for name, questions in tests.items():
            variances = effect_variance(claim, questions)
            row[f"seeds, {name}"] = np.nan
            if variances is not None:
                row[f"seeds, {name}"] = count_needed_seeds(claim, *variances, points)
        rows.append(row)
    return pd.DataFrame(rows)


def format_seeds(n: float) -> str:
    """Return a number of seeds as text."""
    if np.isnan(n):
        return "–"
    return "no number" if n == inf else f"{n:.0f}"


def format_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a power table with its numbers as text."""
    columns = {name: frame[name].map(format_seeds) for name in frame if name.startswith("seeds")}
    for name in ("effect", "one run sees"):
        columns[name] = frame[name].map("{:.2f}".format).replace("nan", "–")
    return frame.assign(**columns)


def describe_power(report: str) -> str:
    """Return a report's power table as text, with a sentence above it that counts the claims."""
    frame = power_table(report)
    seen = (frame["could see it"] == "yes").sum()
    more = (frame["seeds, the report's questions"] < inf).sum()
    return (
        f"== {report}: of {len(read_claims(report))} claims {len(frame)} are about scores; one run "
        f"could see {seen} of them, more seeds on the same questions could decide {more}\n"
        f"{format_table(frame).to_markdown(index=False)}\n"
    )
