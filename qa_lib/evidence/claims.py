r"""What a report says (params/claims/<slug>.yaml), and the rules by which it counts as reproduced.

read_claims(slug)       the report's statements, each with the contrast of runs that tests it
control_claim(claim)    the same statement against the control that could refute it
interval, p_value       of a contrast, from (d, s², ν, v, n, K): qa_lib/evidence/stats.py estimates them from runs
rules, verdict          what they say of a claim
list_changes(slug)      what is not as they were frozen for the report
"""

from itertools import product
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from scipy.optimize import brentq
from scipy.stats import t

from qa_lib.settings import params
from qa_lib.settings.files import digest_text
from qa_lib.settings.params import ROOT, Strict, UserError

# level; seeds below which nothing is reproduced; seeds that nobody will run
ALPHA, ENOUGH, MOST = (
    0.05,
    3,
    1000,
)
SMALLER = "reproduced in direction, smaller"
# The number of the rules of judging: interval, bootstrap, pooling of variance, verdict. Raised when a planted ledger gets another
# interval or verdict (tests/test_stats.py); docs/claims.md says what each number changed.
RULES = 3


class Contrast(Strict):
    """Which cells of the ledger are compared.

    A column has one value, or a list: the mean over it, or one part of the claim for each of its values where `each`
    names the column (lists on both sides go in step). Sets are named by position: first, second (domain), validation.
    """

    ours: dict[str, Any]
    against: dict[str, Any] | None  # null: ours is a value, compared with `target`
    beyond: dict[Literal["ours", "against"], dict[str, Any]] | None = (
        None  # the difference in these cells is subtracted
    )
    both: dict[str, Any] = {}  # columns of both sides
    set: str | list[str] | None = None  # null: each side names its own
    metric: str | list[str]
    each: list[str] = []
    scale: Literal["difference", "relative"] = "difference"  # relative: percent of `against`
    direction: Literal["higher", "lower"] = "higher"  # where the claim puts ours
    target: float = 0.0

    @model_validator(mode="after")
    def _check_whole(self):
        if self.against is None and (self.scale == "relative" or self.beyond):
            raise ValueError("against: relative and beyond need another side")
        for side in self.sides():
            if "set" not in side or any(c not in side for c in self.each):
                raise ValueError("each: every side needs a set and the columns of each")
        if any(
            len({len(s[c]) for s in self.sides() if isinstance(s[c], list)}) != 1 for c in self.each
        ):
            raise ValueError("each: its columns need lists, of one length on all sides")
        return self

    def sides(self) -> list[dict]:
        """Columns of ours, against, and both again for `beyond`."""
        common = ({"set": self.set} if self.set else {}) | {"metric": self.metric} | self.both
        sides = [common | s for s in (self.ours, self.against) if s is not None]
        changed = self.beyond or {}
        return sides + [
            s | changed.get(k, {})
            for s, k in zip(sides, ("ours", "against"), strict=False)
            if self.beyond
        ]

    def parts(self) -> list[tuple[str, list[dict]]]:
        """(label, sides) of each part; one part, without a label, where `each` is empty."""
        sides, found = self.sides(), []
        lists = {c: next(s[c] for s in sides if isinstance(s[c], list)) for c in self.each}
        for index in product(*(range(len(x)) for x in lists.values())):
            at = dict(zip(lists, index, strict=True))
            found.append(
                (
                    ", ".join(f"{c} {lists[c][i]}" for c, i in at.items()),
                    [
                        {
                            k: v[at[k]] if k in at and isinstance(v, list) else v
                            for k, v in s.items()
                        }
                        for s in sides
                    ],
                )
            )
        return found


class Claim(Strict):
    """One statement of a report and how it is tested."""

    id: str
    where: str  # section, figure or table
    says: str  # in our words
    printed: float | list[float] | None  # a number, or [low, high]
    unit: str  # EM, percent relative, loss, epochs, tokens …
    kind: Literal["superiority", "magnitude", "equivalence"]
    # the effect that superiority is judged by; null: as printed, else 1 EM
    delta: float | None = Field(None, gt=0)
    margin: float = Field(2.0, gt=0)  # equivalence: how far apart still counts as equal
    contrast: Contrast | None  # null: no run could test it
    primary: bool = False
    profiles: list[Literal["real", "paper"]]
    untestable: dict[Literal["quick", "real", "paper"], str] = {}
    confound: str = ""
    control: str | None = None  # the variant that could refute it
    contradicts: list[str] = []  # claims of the same report that cannot hold beside it

    @model_validator(mode="after")
    def _check_whole(self):
        if missing := {"real", "paper"} - set(self.profiles) - set(self.untestable):
            raise ValueError(f"untestable: say why profile {min(missing)} cannot test it")
        if (self.contrast is None) != (not self.profiles):
            raise ValueError("contrast: it is null exactly where no profile can test the claim")
        if isinstance(self.printed, list) and len(self.printed) != 2:
            raise ValueError("printed: a number, or [low, high]")
        low, high = self.range
        if (self.kind == "magnitude" and self.printed is None) or not 0 <= low <= high:
            raise ValueError(
                "printed: a magnitude needs a number or [low, high], in the direction of the claim"
            )
        if self.kind == "superiority" and self.delta is None and self.unit != "EM":
            raise ValueError(
                f"delta: it is 1 EM unless stated, and this claim's unit is {self.unit}"
            )
        return self

    @property
    def range(self) -> tuple[float, float]:
        """The printed effect as (low, high)."""
        found = self.printed if isinstance(self.printed, list) else [self.printed or 0.0] * 2
        return found[0], found[-1]

    @property
    def effect(self) -> float:
        """What a test has to tell from nothing: Δ, the low end of a magnitude, the margin of an equivalence."""
        return self.margin if self.kind == "equivalence" else self.delta or self.range[0] or 1.0


def read_claims(slug: str, ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)) -> list[Claim]:
    """The claims of a report. Raises UserError with file, line and id for an entry that is wrong.

    ratios: those between 0 and 1 are what the word `mixtures` means in a list of ratios.
    """
    mixtures = [r for r in ratios if 0 < r < 1]

    def spell_mixtures(value):
        if isinstance(value, dict):
            return {k: spell_mixtures(v) for k, v in value.items()}
        if isinstance(value, list):
            return [x for v in value for x in (mixtures if v == "mixtures" else [v])]
        return value

    file = ROOT / "params" / "claims" / f"{slug}.yaml"
    values, lines = params.read_yaml(file)
    found = []
    for name, fields in values.items():
        place = f"params/claims/{slug}.yaml, line {lines[name]}: {name}: "
        if not isinstance(fields, dict):
            raise UserError(f"{place}an entry is a mapping of where, says, printed, …")
        given = {"id": name} | fields
        if isinstance(given.get("contrast"), dict):
            given["contrast"] = params.validate(
                Contrast,
                spell_mixtures(given["contrast"]),
                dict.fromkeys([*Contrast.model_fields, *given["contrast"]], f"{place}contrast: "),
            )
        found.append(
            params.validate(Claim, given, dict.fromkeys([*Claim.model_fields, *given], place))
        )
        if unknown := set(found[-1].contradicts) - set(values):
            raise UserError(f"{place}contradicts: {min(unknown)} is no claim of this file")
    if sum(c.primary for c in found) > 5:
        raise UserError(
            f"params/claims/{slug}.yaml: more than five claims are primary; choose five"
        )
    return found


def control_claim(claim: Claim) -> Claim:
    """Does the effect outlast its control? The claim's ours against the control, as superiority, never primary."""
    c = claim.contrast
    against = {**(c.ours if c.against is None else c.against), "variant": claim.control}
    contrast = c.model_copy(update={"against": against, "target": c.target if c.against else 0.0})
    contrast = contrast.model_copy(
        update={
            "each": [x for x in c.each if any(isinstance(s[x], list) for s in contrast.sides())]
        }
    )
    return claim.model_copy(
        update={
            "id": f"{claim.id}/{claim.control}",
            "kind": "superiority",
            "primary": False,
            "contrast": contrast,
            "delta": 1.0 if claim.kind == "equivalence" else claim.effect,
        }
    )


def list_changes(slug: str) -> list[str]:
    """Return what is not as it was when the report's claims were frozen; nothing where all is.

    params/claims/FROZEN has a line `# slug, slug, …` above what was frozen for these reports: files, each as
    "sha256  file", whose line ends do not count, and `rules N`, the number that RULES had.
    """
    file, found, ours = ROOT / "params" / "claims" / "FROZEN", [], False
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        if line.startswith("#"):
            ours = slug in line.lstrip("# ").split(", ")
            continue
        if not ours:
            continue
        frozen, name = line.split(maxsplit=1)
        if frozen == "rules":
            if int(name) != RULES:
                found.append(f"the rules of judging (then {name}, now {RULES}; docs/claims.md)")
            continue
        path = ROOT / name
        if not path.exists() or digest_text(path) != frozen:
            found.append(name)
    return found


# ---- interval, test, verdict ----


def interval(d, s2, nu, v, n, clusters, alpha: float = ALPHA) -> tuple[np.ndarray, np.ndarray]:
    r"""Ends of the 1 − α interval of a mean difference: $\bar d \pm \sqrt{t_\nu^2\,s^2/n + t_{K-1}^2\,v}$ (Banerjee 1960).

    d: $\bar d$ over n seeds. s2, nu: variance between seeds and its degrees of freedom. v: variance that other test questions,
    drawn as K clusters, would add for any n. Each variance has the quantile of its own degrees of freedom.
    """
    few, many = (t.isf(alpha / 2, x) for x in (nu, np.subtract(clusters, 1)))
    half = np.sqrt(few**2 * s2 / n + many**2 * v)
    return d - half, d + half


def p_value(claim: Claim, d, *rest) -> float:
    r"""p of no effect in the claim's direction: the largest α at which the interval leaves 0 out, and 1 in the other direction.

    For equivalence the α at which the 1 − 2α interval still lies in ±margin (Schuirmann 1987).
    """

    def two_sided(x: float) -> float:
        def end(log: float) -> float:
            return float(interval(x, *rest, np.exp(log))[0])

        return float(np.exp(brentq(end, -200, 0))) if end(-200) < 0 else 0.0

    if claim.kind == "equivalence":
        room = claim.margin - abs(d)
        return two_sided(room) / 2 if room >= 0 else 1 - two_sided(-room) / 2
    return two_sided(d) if d > 0 else 1.0


def rules(
    claim: Claim, d, *rest, factor: float = 1.0, parts: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(holds, fails) of one part. Neither: inconclusive; both: the direction is as printed, the size is not.

    factor: Holm's, by which p is raised. A claim of several parts holds if each does (no adjustment: Berger 1982), and fails
    if one does at ALPHA / parts.
    """
    least, most = interval(d, *rest, ALPHA / parts)
    if claim.kind == "equivalence":
        low, high = interval(d, *rest, 2 * ALPHA / factor)
        return (low >= -claim.margin) & (high <= claim.margin), (least > claim.margin) | (
            most < -claim.margin
        )
    holds = (np.asarray(d) > 0) & (interval(d, *rest, ALPHA / factor)[0] >= 0)
    if claim.kind == "superiority":
        return holds, most < claim.effect / 2
    (low, high), (a, b) = interval(d, *rest), claim.range
    return holds & (low >= a / 2) & (high <= 2 * b), (most < a) | (least > b)


def verdict(claim: Claim, estimates: list[tuple], factor: float = 1.0) -> str:
    """The verdict on a claim from (d, s², ν, v, n, K) of each of its parts.

    What limits an inconclusive one: seeds, with the smallest n that would decide it if d, s² and v stayed as they are; the
    test questions, where no n would.
    """
    words, needs = [], []
    for d, s2, nu, v, n, clusters in estimates:
        how = {"factor": factor, "parts": len(estimates)}
        holds, fails = rules(claim, d, s2, nu, v, n, clusters, **how) if nu else (False, False)
        if holds and n >= ENOUGH:
            words.append(
                SMALLER
                if fails and (claim.kind == "superiority" or d < claim.range[0])
                else "reproduced"
            )
        elif fails and not holds:
            words.append("not reproduced")
        else:
            words.append("inconclusive")
            more = np.append(np.arange(max(n, ENOUGH), MOST + 1), 10**9)
            decided = (
                np.any(rules(claim, d, s2, nu + more - n, v, more, clusters, **how), 0)
                if nu
                else more == ENOUGH
            )
            needs.append(more[decided.argmax()] if decided.any() else np.inf)
    if not needs or "not reproduced" in words:
        return next(w for w in ("not reproduced", SMALLER, "reproduced") if w in words)
    if (n := max(needs)) > MOST:
        return (
            "inconclusive: test questions (no n suffices)"
            if np.isinf(n)
            else f"inconclusive: seeds (needs n>{MOST})"
        )
    return f"inconclusive: seeds (needs n={n:.0f})"
