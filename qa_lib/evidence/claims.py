"""What a report says (params/claims/<slug>.yaml), and the contrast that tests it.

read_claims(slug)       the report's statements
control_claim(claim)    the same statement against the control that could refute it
starter_claim(claim)    the same statement by the starter code's rule of scoring
"""

from itertools import product
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from qa_lib.settings import params
from qa_lib.settings.params import ROOT, Strict, UserError

STANCES = ("result", "hope", "explanation")
# Metric → the same by the starter code's rule of scoring.
BY_STARTER = {"em": "em_starter", "f1": "f1_starter"}


class Contrast(Strict):
    """Which cells of the ledger are compared.

    A column has one value or a list. A list means the mean over its values, or, where `each` names
    the column, one part of the claim for each of them; lists on several sides go in step.
    Sets are named by position: first and second (domain), and validation; or, throughout a file,
    by dataset. `training` has what is measured while a run trains. results.csv beside a page has a
    line for each set and a column for each metric.
    """

    ours: dict[str, Any]
    against: dict[str, Any] | None  # null: ours is a value, compared with `target`
    # The difference in these cells is subtracted.
    beyond: dict[Literal["ours", "against"], dict[str, Any]] | None = None
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
        sides = self.sides()
        for side in sides:
            if "set" not in side or any(column not in side for column in self.each):
                raise ValueError("each: every side needs a set and the columns of each")
        for column in self.each:
            lengths = {len(side[column]) for side in sides if isinstance(side[column], list)}
            if len(lengths) != 1:
                raise ValueError("each: its columns need lists, of one length on all sides")
        return self

    def sides(self) -> list[dict]:
        """Return the columns of ours and against, and with `beyond` of both again."""
        common = {"metric": self.metric} | self.both
        if self.set:
            common = {"set": self.set} | common
        sides = [common | self.ours]
        if self.against is not None:
            sides.append(common | self.against)
        if not self.beyond:
            return sides
        again = []
        for side, name in zip(sides, ("ours", "against"), strict=True):
            again.append(side | self.beyond.get(name, {}))
        return sides + again

    def parts(self) -> list[tuple[str, list[dict]]]:
        """Return (label, sides) of each part; where `each` is empty one part, without a label."""
        sides = self.sides()
        lists = {}
        for column in self.each:
            lists[column] = next(side[column] for side in sides if isinstance(side[column], list))
        parts = []
        for positions in product(*(range(len(values)) for values in lists.values())):
            at = dict(zip(lists, positions, strict=True))
            label = ", ".join(f"{column} {lists[column][i]}" for column, i in at.items())
            parts.append((label, [pick_values(side, at) for side in sides]))
        return parts


def pick_values(side: dict, at: dict[str, int]) -> dict:
    """Return the columns of a side with one value of each list: the one at its position in `at`."""
    picked = dict(side)
    for column, position in at.items():
        if isinstance(side[column], list):
            picked[column] = side[column][position]
    return picked


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
    stance: Literal["result", "hope", "explanation"] = "result"  # params/claims/stances.yaml

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
        if isinstance(self.printed, list):
            return self.printed[0], self.printed[-1]
        return self.printed or 0.0, self.printed or 0.0

    @property
    def effect(self) -> float:
        """What a test has to tell from nothing.

        Δ of a superiority, the low end of a magnitude, the margin of an equivalence.
        """
        if self.kind == "equivalence":
            return self.margin
        return self.delta or self.range[0] or 1.0

    @property
    def foreseen(self) -> float:
        """The effect for which seeds are counted before there are runs.

        Of a gain that lies below a threshold, its `target`, it is all of that: no gain at all.
        """
        contrast = self.contrast
        if self.kind == "superiority" and contrast and contrast.against and contrast.target:
            return abs(contrast.target)
        return self.effect


def spell_mixtures(value: Any, mixtures: list[float]) -> Any:
    """Return a part of a contrast with the word `mixtures` in its lists replaced by the ratios."""
    if isinstance(value, dict):
        return {name: spell_mixtures(inner, mixtures) for name, inner in value.items()}
    if not isinstance(value, list):
        return value
    spelt = []
    for element in value:
        spelt += mixtures if element == "mixtures" else [element]
    return spelt


def read_stances(slug: str) -> dict[str, str]:
    """Return claim → result, hope or explanation, by the report's own word."""
    return params.read_yaml(ROOT / "params" / "claims" / "stances.yaml")[0].get(slug, {})


def read_claims(slug: str, ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)) -> list[Claim]:
    """Return the claims of a report.

    ratios: those between 0 and 1 are what the word `mixtures` means in a list of ratios.
    Raises UserError with file, line and id for an entry that is wrong.
    """
    mixtures = [ratio for ratio in ratios if 0 < ratio < 1]
    values, lines = params.read_yaml(ROOT / "params" / "claims" / f"{slug}.yaml")
    stances = read_stances(slug)
    claims = []
    for name, fields in values.items():
        place = f"params/claims/{slug}.yaml, line {lines[name]}: {name}: "
        if not isinstance(fields, dict):
            raise UserError(f"{place}an entry is a mapping of where, says, printed, …")
        given = {"id": name} | fields
        if name in stances:
            given["stance"] = stances[name]
        if isinstance(given.get("contrast"), dict):
            contrast = spell_mixtures(given["contrast"], mixtures)
            names = [*Contrast.model_fields, *contrast]
            given["contrast"] = params.validate(
                Contrast, contrast, dict.fromkeys(names, f"{place}contrast: ")
            )
        claim = params.validate(Claim, given, dict.fromkeys([*Claim.model_fields, *given], place))
        if unknown := set(claim.contradicts) - set(values):
            raise UserError(f"{place}contradicts: {min(unknown)} is no claim of this file")
        claims.append(claim)
    if sum(claim.primary for claim in claims) > 5:
        raise UserError(
            f"params/claims/{slug}.yaml: more than five claims are primary; choose five"
        )
    return claims


def control_claim(claim: Claim) -> Claim:
    """Return the claim against its control, as a superiority that is never primary."""
    contrast = claim.contrast
    if contrast.against is None:
        other_side = contrast.ours
        target = 0.0
    else:
        other_side = contrast.against
        target = contrast.target
    against = {**other_side, "variant": claim.control}
    contrast = contrast.model_copy(update={"against": against, "target": target})
    each = []
    for column in contrast.each:
        if any(isinstance(side[column], list) for side in contrast.sides()):
            each.append(column)
    return claim.model_copy(
        update={
            "id": f"{claim.id}/{claim.control}",
            "kind": "superiority",
            "primary": False,
            "contrast": contrast.model_copy(update={"each": each}),
            "delta": 1.0 if claim.kind == "equivalence" else claim.effect,
        }
    )


def match_claims(one: Claim, other: Claim) -> int:
    """Return the sign by which the values of two claims agree: 1, −1, or 0 where none does.

    It is 1 where they compare the same two sides by the same scores, so that their values are the
    same; −1 where the one has the other's value with its sign turned; and 0 where they compare
    something else.
    """
    for claim in (one, other):
        contrast = claim.contrast
        if contrast is None or contrast.against is None or contrast.beyond or contrast.target:
            return 0
    first = one.contrast
    second = other.contrast
    if one.unit != other.unit or first.each != second.each or first.scale != second.scale:
        return 0
    direction = 1 if first.direction == second.direction else -1
    if first.sides() == second.sides():
        return direction
    if first.scale == "difference" and first.sides() == second.sides()[::-1]:
        return -direction
    return 0


def starter_claim(claim: Claim) -> Claim | None:
    """Return a claim about EM or F1 by the starter code's rule; None for any other claim.

    A report whose scores the starter code made is compared like with like by this one.
    """
    if claim.contrast is None or not set(np.ravel(claim.contrast.metric)) <= set(BY_STARTER):
        return None
    metric = claim.contrast.metric
    if isinstance(metric, list):
        metric = [BY_STARTER[name] for name in metric]
    else:
        metric = BY_STARTER[metric]
    contrast = claim.contrast.model_copy(update={"metric": metric})
    return claim.model_copy(update={"primary": False, "contrast": contrast})
