r"""What a report says, and how each statement is tested: params/claims/<slug>.yaml.

    claims(slug)        the report's statements, each with the contrast of runs that tests it
    controlled(claim)   the same statement against the control that could refute it
    power(claim, …)     what the report's own seeds and test questions could have seen

qa_lib/stats.py tests them.
"""
from itertools import product
from typing import Any, Literal

from pydantic import Field, model_validator
from scipy.stats import norm

from qa_lib import params
from qa_lib.params import ROOT, Strict, UserError


class Contrast(Strict):
    """Which cells of the ledger are compared.

    A column has one value, or a list: the mean over it, or one part of the claim for each of its values where `each`
    names the column (lists on both sides go in step). Sets are named by position: first, second (domain), validation.
    """
    ours: dict[str, Any]
    against: dict[str, Any] | None        # null: ours is a value, compared with `target`
    beyond: dict[Literal["ours", "against"], dict[str, Any]] | None = None   # the difference in these cells is subtracted
    both: dict[str, Any] = {}             # columns of both sides
    set: str | list[str] | None = None    # null: each side names its own
    metric: str | list[str]
    each: list[str] = []
    scale: Literal["difference", "relative"] = "difference"   # relative: percent of `against`
    direction: Literal["higher", "lower"] = "higher"          # where the claim puts ours
    target: float = 0.0

    @model_validator(mode="after")
    def _whole(self):
        if self.against is None and (self.scale == "relative" or self.beyond):
            raise ValueError("against: relative and beyond need another side")
        for side in self.sides():
            if "set" not in side or any(c not in side for c in self.each):
                raise ValueError("each: every side needs a set and the columns of each")
        if any(len({len(s[c]) for s in self.sides() if isinstance(s[c], list)}) != 1 for c in self.each):
            raise ValueError("each: its columns need lists, of one length on all sides")
        return self

    def sides(self) -> list[dict]:
        """Columns of ours, against, and both again for `beyond`."""
        common = ({"set": self.set} if self.set else {}) | {"metric": self.metric} | self.both
        sides = [common | s for s in (self.ours, self.against) if s is not None]
        changed = self.beyond or {}
        return sides + [s | changed.get(k, {}) for s, k in zip(sides, ("ours", "against"), strict=False) if self.beyond]

    def parts(self) -> list[tuple[str, list[dict]]]:
        """(label, sides) of each part; one part, without a label, where `each` is empty."""
        sides, found = self.sides(), []
        lists = {c: next(s[c] for s in sides if isinstance(s[c], list)) for c in self.each}
        for index in product(*(range(len(x)) for x in lists.values())):
            at = dict(zip(lists, index, strict=True))
            found.append((", ".join(f"{c} {lists[c][i]}" for c, i in at.items()),
                          [{k: v[at[k]] if k in at and isinstance(v, list) else v for k, v in s.items()} for s in sides]))
        return found


class Claim(Strict):
    """One statement of a report and how it is tested."""
    id: str
    where: str                            # section, figure or table
    says: str                             # in our words
    printed: float | list[float] | None   # a number, or [low, high]
    unit: str                             # EM, percent relative, loss, epochs, tokens …
    kind: Literal["superiority", "magnitude", "equivalence"]
    delta: float | None = Field(None, gt=0)   # the effect that superiority is judged by; null: as printed, else 1 EM
    margin: float = Field(2.0, gt=0)      # equivalence: how far apart still counts as equal
    contrast: Contrast | None             # null: no run could test it
    primary: bool = False
    profiles: list[Literal["real", "paper"]]
    untestable: dict[Literal["quick", "real", "paper"], str] = {}
    confound: str = ""
    control: str | None = None            # the variant that could refute it
    contradicts: list[str] = []           # claims of the same report that cannot hold beside it

    @model_validator(mode="after")
    def _whole(self):
        if missing := {"real", "paper"} - set(self.profiles) - set(self.untestable):
            raise ValueError(f"untestable: say why profile {min(missing)} cannot test it")
        if (self.contrast is None) != (not self.profiles):
            raise ValueError("contrast: it is null exactly where no profile can test the claim")
        if isinstance(self.printed, list) and len(self.printed) != 2:
            raise ValueError("printed: a number, or [low, high]")
        low, high = self.range
        if (self.kind == "magnitude" and self.printed is None) or not 0 <= low <= high:
            raise ValueError("printed: a magnitude needs a number or [low, high], in the direction of the claim")
        if self.kind == "superiority" and self.delta is None and self.unit != "EM":
            raise ValueError(f"delta: it is 1 EM unless stated, and this claim's unit is {self.unit}")
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


def claims(slug: str) -> list[Claim]:
    """The claims of a report. Raises UserError with file, line and id for an entry that is wrong."""
    file = ROOT / "params" / "claims" / f"{slug}.yaml"
    values, lines = params.read_yaml(file)
    found = []
    for name, fields in values.items():
        place = f"params/claims/{slug}.yaml, line {lines[name]}: {name}: "
        if not isinstance(fields, dict):
            raise UserError(f"{place}an entry is a mapping of where, says, printed, …")
        given = {"id": name} | fields
        if isinstance(given.get("contrast"), dict):
            given["contrast"] = params.validate(Contrast, given["contrast"],
                                                dict.fromkeys([*Contrast.model_fields, *given["contrast"]], f"{place}contrast: "))
        found.append(params.validate(Claim, given, dict.fromkeys([*Claim.model_fields, *given], place)))
        if unknown := set(found[-1].contradicts) - set(values):
            raise UserError(f"{place}contradicts: {min(unknown)} is no claim of this file")
    if sum(c.primary for c in found) > 5:
        raise UserError(f"params/claims/{slug}.yaml: more than five claims are primary; choose five")
    return found


def controlled(claim: Claim) -> Claim:
    """Does the effect outlast its control? The claim's ours against the control, as superiority, never primary."""
    c = claim.contrast
    against = {**(c.ours if c.against is None else c.against), "variant": claim.control}
    contrast = c.model_copy(update={"against": against, "target": c.target if c.against else 0.0})
    return claim.model_copy(update={
        "id": f"{claim.id}/{claim.control}", "kind": "superiority", "primary": False, "contrast": contrast,
        "delta": 1.0 if claim.kind == "equivalence" else claim.effect})


def power(claim: Claim, questions: int, n: int = 1, level: float = 50.0, alike: float = 0.0, seed_sd: float = 0.0) -> dict:
    r"""What n seeds and a test set of so many independent questions could have seen of a printed effect in EM.

    $\text{s.e.}^2 = k\,q(1-q)(1-\rho)/Q + \sigma^2/n$, k sides with a share q of right answers on Q questions; seen with 80 %
    power at the two-sided 5 % level: $(z_{.975} + z_{.8})$ s.e.; equality within a margin: $(z_{.95} + z_{.9})$ s.e.

    level: EM about which the scores lie. alike: ρ, the correlation of the sides' right answers (0: the cautious end).
    seed_sd: σ of the difference between seeds, in EM (0: only questions count, so that less could be seen than is said).
    """
    c = claim.contrast
    if c is None or c.metric not in ("em", "f1"):
        return {"id": claim.id, "note": f"no rule for {c.metric}" if c else "nothing is compared"}
    k, q, effect = len(c.sides()), level / 100, claim.effect * (level / 100 if c.scale == "relative" else 1)
    se = 100 * (k * q * (1 - q) * (1 - (alike if k > 1 else 0)) / questions + (seed_sd / 100) ** 2 / n) ** 0.5
    sees = se * (norm.ppf(0.95) + norm.ppf(0.9) if claim.kind == "equivalence" else norm.ppf(0.975) + norm.ppf(0.8))
    note = (f"{'could' if sees <= effect else 'could not'} see {effect:.3g} EM with n = {n} and {questions:,} questions: "
            f"s.e. {se:.1f}, smallest {sees:.1f} (scores near {level:g} EM, correlation {alike:g}, "
            + (f"sd over seeds {seed_sd:g})" if seed_sd else "variation over seeds left out)"))
    return {"id": claim.id, "se": se, "sees": sees, "effect": effect, "could": sees <= effect, "note": note}
