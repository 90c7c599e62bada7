r"""The rules by which a claim of a report counts as reproduced.

interval, p_value    of a comparison that was estimated from runs
apply_rule           whether an estimate bears a claim out, and whether it speaks against it
judge                the verdict on a claim, with its reason

The rules have a number, `RULES`; docs/claims.md says what each number changed.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t

from qa_lib.evidence.claims import Claim
from qa_lib.settings.files import digest_text
from qa_lib.settings.params import ROOT

ALPHA = 0.05  # level of every interval
ENOUGH = 3  # seeds below which nothing is reproduced
MOST = 1000  # seeds that nobody will run
# Raised when a planted ledger gets another interval or verdict (tests/test_stats.py).
RULES = 5


class Verdict(StrEnum):
    """What the runs say about a claim."""

    REPRODUCED = "reproduced"
    SMALLER = "reproduced, smaller"  # in direction; the size is below what is printed
    NOT_REPRODUCED = "not reproduced"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"


class Meaning(StrEnum):
    """What "not reproduced" means: where the rule's interval lies."""

    LESS_THAN_HALF = "less than half"
    BELOW = "in the direction, below what is printed"
    OPEN = "below what is printed, direction open"
    OPPOSITE = "opposite"
    LARGER = "larger"
    # It is below half of the least effect, and nothing is printed with which to compare it.
    TOO_SMALL = "too small to count"
    DIFFERENT = "different"  # of an equality


class Estimate(NamedTuple):
    """One comparison of a claim, or one part of it, in the claim's direction and unit."""

    d: float  # mean difference over seeds
    s2: float  # variance between seeds
    nu: float  # degrees of freedom of s2; 0 where one seed gives none
    v: float  # variance that other test questions would add, for any number of seeds
    n: int  # seeds
    clusters: float  # of test questions


@dataclass(frozen=True)
class Judgement:
    """A verdict on a claim and its reason.

    Of several parts of a claim that is not reproduced, `part` is the position of the first that
    fails, `more` is how many others fail, and `low` and `high` are the ends of the rule's interval.
    """

    verdict: Verdict
    reason: str = ""
    part: int = 0
    more: int = 0
    low: float = np.nan
    high: float = np.nan


def interval(d, s2, nu, v, n, clusters, alpha: float = ALPHA) -> tuple[np.ndarray, np.ndarray]:
    r"""Return both ends of the 1 − α interval of a mean difference (Banerjee 1960).

    $\bar d \pm \sqrt{t_\nu^2\,s^2/n + t_{K-1}^2\,v}$

    The arguments are those of `Estimate`, numbers or arrays: $\bar d$ over n seeds, $s^2$ with ν
    degrees of freedom, v, and K clusters. Each variance has the quantile of its own degrees of
    freedom.
    """
    t_seeds = t.isf(alpha / 2, nu)
    t_questions = t.isf(alpha / 2, np.subtract(clusters, 1))
    half = np.sqrt(t_seeds**2 * s2 / n + t_questions**2 * v)
    return d - half, d + half


def p_value(claim: Claim, d, *rest) -> float:
    r"""Return p of no effect in the claim's direction.

    It is the smallest α at which the interval leaves 0 out, and 1 where d lies in the other
    direction. For an equivalence it is the α at which the 1 − 2α interval still lies in ±margin
    (Schuirmann 1987).
    """

    def two_sided(difference: float) -> float:
        def lower_end(log_alpha: float) -> float:
            return float(interval(difference, *rest, np.exp(log_alpha))[0])

        if lower_end(-200) >= 0:
            return 0.0
        return float(np.exp(brentq(lower_end, -200, 0)))

    if claim.kind == "equivalence":
        room = claim.margin - abs(d)
        return two_sided(room) / 2 if room >= 0 else 1 - two_sided(-room) / 2
    return two_sided(d) if d > 0 else 1.0


def apply_rule(
    claim: Claim, d, *rest, factor: float = 1.0, parts: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return (holds, fails) of one part of a claim; numbers or arrays.

    Neither means undecided. Both mean that the direction is as printed and the size is not.

    factor: Holm's, by which p is raised. A claim of several parts holds if each part does, without
    adjustment (Berger 1982), and fails if one of them does at ALPHA / parts.
    """
    least, most = interval(d, *rest, ALPHA / parts)
    if claim.kind == "equivalence":
        low, high = interval(d, *rest, 2 * ALPHA / factor)
        holds = (low >= -claim.margin) & (high <= claim.margin)
        return holds, (least > claim.margin) | (most < -claim.margin)
    holds = (np.asarray(d) > 0) & (interval(d, *rest, ALPHA / factor)[0] >= 0)
    if claim.kind == "superiority":
        return holds, most < claim.effect / 2
    low, high = interval(d, *rest)
    smallest, largest = claim.range
    holds = holds & (low >= smallest / 2) & (high <= 2 * largest)
    return holds, (most < smallest) | (least > largest)


def judge_part(claim: Claim, estimate: Estimate, factor: float, parts: int) -> Verdict:
    """Return the verdict on one part of a claim."""
    if not estimate.nu:
        return Verdict.UNDECIDED
    holds, fails = apply_rule(claim, *estimate, factor=factor, parts=parts)
    if holds and estimate.n >= ENOUGH:
        is_smaller = claim.kind == "superiority" or estimate.d < claim.range[0]
        return Verdict.SMALLER if fails and is_smaller else Verdict.REPRODUCED
    if fails and not holds:
        return Verdict.NOT_REPRODUCED
    return Verdict.UNDECIDED


def explain_failure(claim: Claim, low: float, high: float) -> Meaning:
    """Return what "not reproduced" means, from the interval by which the rule fails."""
    if claim.kind == "equivalence":
        return Meaning.DIFFERENT
    if low > claim.range[1] and claim.kind == "magnitude":
        return Meaning.LARGER
    if high < 0:
        return Meaning.OPPOSITE
    is_of_target = claim.kind == "superiority" and claim.contrast.target != 0
    if claim.printed is None or is_of_target:  # d is counted from the target, not from 0
        return Meaning.TOO_SMALL
    if low <= 0:
        return Meaning.OPEN
    return Meaning.LESS_THAN_HALF if high < claim.effect / 2 else Meaning.BELOW


def count_seeds_needed(claim: Claim, undecided: list[Estimate], factor: float, parts: int) -> float:
    """Return the fewest seeds that would decide a claim if d, s² and v stayed; inf: none.

    It is decided where one of its undecided parts fails, and where all of them hold.
    """
    numbers = np.append(np.arange(ENOUGH, MOST + 1), 10**9)
    all_hold, one_fails = True, False
    for d, s2, nu, v, n, clusters in undecided:
        seeds = np.maximum(numbers, n)
        rest = (s2, nu + seeds - n, v, seeds, clusters)
        holds, fails = apply_rule(claim, d, *rest, factor=factor, parts=parts)
        all_hold = all_hold & holds
        one_fails = one_fails | (fails & ~holds)
    decided = all_hold | one_fails
    if not decided.any():
        return np.inf
    return float(max(numbers[decided.argmax()], *(estimate.n for estimate in undecided)))


def explain_doubt(claim: Claim, undecided: list[Estimate], factor: float, parts: int) -> str:
    """Return what keeps a claim undecided: seeds, or test questions where no seeds suffice.

    With one seed v holds that seed's own noise, which more seeds would average out, so that it
    cannot say that none suffice.
    """
    if not all(estimate.nu for estimate in undecided):
        return "seeds (one gives no interval)"
    needed = count_seeds_needed(claim, undecided, factor, parts)
    if np.isinf(needed) and any(estimate.n == 1 for estimate in undecided):
        return "seeds (one does not tell how many)"
    if np.isinf(needed):
        return "test questions (no n suffices)"
    if needed > MOST:
        return f"seeds (needs n>{MOST})"
    return f"seeds (needs n={needed:.0f})"


def judge(claim: Claim, estimates: list[Estimate], factor: float = 1.0) -> Judgement:
    """Return the verdict on a claim from the estimates of its parts."""
    parts = len(estimates)
    verdicts = [judge_part(claim, estimate, factor, parts) for estimate in estimates]
    if Verdict.NOT_REPRODUCED in verdicts:
        first = verdicts.index(Verdict.NOT_REPRODUCED)
        low, high = (float(end) for end in interval(*estimates[first], ALPHA / parts))
        reason = explain_failure(claim, low, high)
        more = verdicts.count(Verdict.NOT_REPRODUCED) - 1
        return Judgement(Verdict.NOT_REPRODUCED, reason, first, more, low, high)
    undecided = []
    for estimate, verdict in zip(estimates, verdicts, strict=True):
        if verdict is Verdict.UNDECIDED:
            undecided.append(estimate)
    if undecided:
        return Judgement(Verdict.UNDECIDED, explain_doubt(claim, undecided, factor, parts))
    return Judgement(Verdict.SMALLER if Verdict.SMALLER in verdicts else Verdict.REPRODUCED)


# ---- what was frozen ----


def is_frozen(slug: str) -> bool:
    """Return whether params/claims/FROZEN tells what was frozen for a report."""
    file = ROOT / "params" / "claims" / "FROZEN"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    named = [line.lstrip("# ").split(", ") for line in text.splitlines() if line.startswith("#")]
    return any(slug in slugs for slugs in named)


def list_changes(slug: str) -> list[str]:
    """Return what is not as it was when the report's claims were frozen; nothing where all is.

    Nothing too where none of it is frozen (`is_frozen`).

    params/claims/FROZEN has a line `# slug, slug, …` above what was frozen for these reports:
    files, each as "sha256  file", whose line ends do not count, and `rules N`, the number that
    RULES had. What stands below `# mended …` is of no report: what the files were mended to.
    """
    file = ROOT / "params" / "claims" / "FROZEN"
    if not file.exists():
        return []
    changes = []
    is_ours = False
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            is_ours = slug in line.lstrip("# ").split(", ")
            continue
        if not is_ours:
            continue
        frozen, name = line.split(maxsplit=1)
        if frozen == "rules":
            if int(name) != RULES:
                changes.append(
                    f"the rules of judging (version {name} then, {RULES} now: docs/claims.md)"
                )
            continue
        path = ROOT / name
        if not path.exists() or digest_text(path) != frozen:
            changes.append(name)
    return changes
