r"""Which claims could ever be decided: by a report's own run and test questions, by more seeds, by more questions.

    python -m qa_lib power [REPORT …]     a table for each report; needs no runs

Of k sides with a share q of right answers on one test set, of which two models have the correlation ρ and two seeds of one model
ρ', one question has the variance $k\,q(1-q)(1-\rho)$. On Q independent questions n paired seeds leave of it (`stats.estimate_part`)

$$v = k\,q(1-q)\,\frac{\rho' - \rho}{Q}, \qquad \frac{s^2}{n} = \frac{1}{n} \left( k\,q(1-q)\,\frac{1-\rho'}{Q} + \sigma^2 \right)$$

with σ for what seeds differ by on endless questions. For a Pearson correlation r, $(1-r^2)^2$ stands for $q(1-q)$. A single score
has ρ = 0; sides on different sets share no question. q and Q are in params/questions.yaml. An effect is seen if 80 % of
repetitions would show it at the two-sided 5 % level, equality if 80 % would show it within the margin. A magnitude is decided if,
measured at the middle of what is printed, it would also lie above half of it.
"""

from math import inf

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from qa_lib.evidence.claims import Claim, read_claims
from qa_lib.evidence.verdicts import ENOUGH, MOST
from qa_lib.settings import params
from qa_lib.settings.params import ROOT

ALIKE, ALIKE_SEEDS, SEED_SD = 0.5, 0.75, 1.0  # ρ, ρ', and σ in points: assumed
CORRELATED = ("sts",)  # sets that are scored by r
SCORES = ("em", "f1", "em_starter", "f1_starter", "accuracy", "pearson", "score")


def sets(report: str) -> dict[str, tuple[int | None, float]]:
    """Set → (test questions of the report, score about which its models lie), from params/questions.yaml."""
    return params.read_yaml(ROOT / "params" / "questions.yaml")[0][report]


def spread(
    claim: Claim, questions: dict[str, tuple[int | None, float]]
) -> tuple[float, float] | None:
    """(what more seeds average out, what they do not) of the claim's variance over test questions, in points²; None where its
    metric is no score of questions, or a set's number is unknown. Of several parts the widest counts. questions: as of `sets`."""
    if claim.contrast is None or not set(np.ravel(claim.contrast.metric)) <= set(SCORES):
        return None
    found = []
    for _, sides in claim.contrast.parts():
        shares, own, common = {}, 0.0, 0.0
        for sign, side in zip((1, -1, -1, 1), sides, strict=False):
            # a side's score is the mean over its sets
            for name in (names := np.ravel(side["set"])):
                shares.setdefault(name, []).append(sign / len(names))
        for name, share in shares.items():
            n, level = questions.get(name, (None, 0))
            if n is None:
                return None
            q, each = level / 100, np.square(share).sum()
            one = 1e4 * ((1 - q * q) ** 2 if name in CORRELATED else q * (1 - q)) / n
            own += one * each * (1 - ALIKE_SEEDS)
            common += one * (each * ALIKE_SEEDS + (sum(share) ** 2 - each) * ALIKE)
        found.append((own, common))
    return max(found)


def smallest(claim: Claim, own: float, common: float, n):
    """The smallest effect (of an equivalence: margin) that n seeds can see, in points, from `spread`; n: a number, or several.

    Each variance has its own quantile, as in `verdicts.interval`. σ counts from two seeds on: one cannot know of another.
    """
    levels = (0.95, 0.9) if claim.kind == "equivalence" else (0.975, 0.8)
    z = sum(norm.ppf(levels)) ** 2
    few = np.where(
        np.equal(n, 1),
        z * own,
        sum(t.ppf(x, np.subtract(n, 1)) for x in levels) ** 2 * (own + SEED_SD**2) / n,
    )
    return np.sqrt(few + z * common)


def seeds(claim: Claim, own: float, common: float, points: float = 1.0) -> float:
    """Fewest seeds, at least three, that decide the claim; inf where no number does. points: in a unit of the claim."""
    enough = points * (claim.range[1] / 2 if claim.kind == "magnitude" else claim.effect)
    more = np.arange(ENOUGH, MOST + 1)
    decided = smallest(claim, own, common, more) <= enough
    return float(more[decided.argmax()]) if decided.any() else inf


def power_table(
    report: str,
    ours: dict[str, int] | None = None,
    ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8),
) -> pd.DataFrame:
    """One row for each claim about scores: what one run a side, as in the report, sees on the report's test questions, and how
    many seeds would decide the claim there, on `ours` (set → questions), and on endless ones. NaN: unknown; inf: none."""
    theirs, rows = sets(report), []
    mine = {
        name: (ours[name], level) for name, (_, level) in theirs.items() if name in (ours or {})
    }
    endless = {name: (10**9, level) for name, (_, level) in theirs.items()}
    for c in read_claims(report, ratios):
        if not spread(c, endless):
            continue
        level = np.mean([theirs[x][1] for x in np.ravel(c.contrast.sides()[0]["set"])])
        points = level / 100 if c.contrast.scale == "relative" else 1.0
        row, v = (
            {"claim": c.id, "kind": c.kind + ", primary" * c.primary, "effect": points * c.effect},
            spread(c, theirs),
        )
        row["one run sees"] = float(smallest(c, *v, 1)) if v else np.nan
        row["could see it"] = (
            ("yes" if row["one run sees"] <= row["effect"] else "no") if v else "–"
        )
        asked = (
            {"the report's questions": theirs}
            | ({"ours": mine} if ours else {})
            | {"endless questions": endless}
        )
        for name, of in asked.items():
            row[f"seeds, {name}"] = seeds(c, *v, points) if (v := spread(c, of)) else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def format_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its numbers as text."""

    def text(n: float) -> str:
        return "–" if np.isnan(n) else "no number" if n == inf else f"{n:.0f}"

    return frame.assign(
        **{c: frame[c].map(text) for c in frame if c.startswith("seeds")},
        **{
            c: frame[c].map("{:.2f}".format).replace("nan", "–") for c in ("effect", "one run sees")
        },
    )


def describe(report: str) -> str:
    """The table of a report as text, with a sentence above it that counts."""
    frame = power_table(report)
    seen = (frame["could see it"] == "yes").sum()
    more = (frame["seeds, the report's questions"] < inf).sum()
    return (
        f"== {report}: of {len(read_claims(report))} claims {len(frame)} are about scores; one run could "
        f"see {seen} of them, more seeds on the same questions could decide {more}\n"
        f"{format_table(frame).to_markdown(index=False)}\n"
    )
