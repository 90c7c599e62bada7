"""Comparisons of two models that no claim makes, by the contrast and the interval of a claim.

measure_pairs(P, pairs)                a claim's contrast with other models in its places
measure_by_starter(P, table)           printed claims by the starter code's rule of scoring
collect_comparisons(P, comparisons)    rows of the forest figure
collect_steps(P, claim, steps)         rows of the step chart

A value is how far `ours` is above `against`, in the unit of the claim. It has no verdict, since
nothing was frozen about it. Its 95 % interval is that of the verdicts (verdicts.interval); variance
between seeds is pooled with that of the report's controls, whatever else is asked for. A pair that
the claims table has already is taken from there. So a page gives one interval for one comparison.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from qa_lib.evidence import claims, stats, verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.reports import plans
from qa_lib.reports.comparisons import Comparison, Step, check_chain
from qa_lib.settings.params import UserError
from qa_lib.store import runs

NUMBERS = ["value", "low", "high", "own_low", "own_high"]
# Arm → how a setting is called in the rows of a figure.
SETTINGS = {"tuned": "equal", "printed": "report"}


class Pair(NamedTuple):
    """Two variants, in the places of those that a claim compares."""

    claim: str
    ours: str
    against: str
    by_starter: bool = False  # scored by the starter code's rule
    metric: str = ""  # of a claim about several the one that is compared

    @property
    def id(self) -> str:
        """The name of the comparison among claims."""
        rule = "/starter" if self.by_starter else ""
        return f"{self.claim}/{self.ours}/{self.against}{rule}/{self.metric}"


def find_claim(P, name: str) -> claims.Claim:
    """Return a claim of a report by its id.

    Raises UserError for one that does not exist, or that has no contrast.
    """
    listed = {claim.id: claim for claim in claims.read_claims(P.report, P.mixtures)}
    if name not in listed:
        raise UserError(f"there is no claim {name} in params/claims/{P.report}.yaml")
    if listed[name].contrast is None:
        raise UserError(f"params/claims/{P.report}.yaml: {name} has no contrast to be measured")
    return listed[name]


def find_sign(claim: claims.Claim) -> int:
    """Return 1 where the claim puts its `ours` higher, −1 where it puts it lower."""
    return 1 if claim.contrast.direction == "higher" else -1


def compare_models(claim: claims.Claim, pair: Pair) -> claims.Claim:
    """Return a claim that asks how far one variant is above another, by a claim's contrast."""
    contrast = claim.contrast
    other_side = contrast.ours if contrast.against is None else contrast.against
    contrast = contrast.model_copy(
        update={
            "ours": contrast.ours | {"variant": pair.ours},
            "against": other_side | {"variant": pair.against},
            "beyond": None,
            "direction": "higher",
            "target": 0.0,
        }
    )
    if pair.metric:
        contrast = contrast.model_copy(update={"metric": pair.metric})
    each = []
    for column in contrast.each:
        if any(isinstance(side[column], list) for side in contrast.sides()):
            each.append(column)
    contrast = contrast.model_copy(update={"each": each})
    compared = claim.model_copy(
        update={
            "id": pair.id,
            "kind": "superiority",
            "primary": False,
            "contrast": contrast,
            "delta": claim.effect,
        }
    )
    return claims.starter_claim(compared) if pair.by_starter else compared


_pairs: dict[tuple, pd.DataFrame] = {}  # parameters, pairs, records → their table


def measure_pairs(P, pairs: list[Pair], arms: tuple[str, ...] = verify.ARMS) -> pd.DataFrame:
    """Return a row for each pair and arm: value, low, high (95 %), part, n, run.

    value: ours less against. own_low, own_high: the interval with the variance of these seeds
    alone. Where a pair has no runs in an arm, n is 0 and the numbers are not a number. A page asks
    several times; the records are resampled once.
    """
    if not pairs:
        columns = [*Pair._fields, "arm", "unit", *NUMBERS, "part", "n", "run"]
        return pd.DataFrame(columns=columns)
    specs = plans.plan(P)
    key = (P.model_dump_json(), tuple(pairs), arms, *runs.list_checksums(specs))
    if key not in _pairs:
        _pairs[key] = resample_pairs(P, specs, pairs, arms)
    return _pairs[key].copy()


def resample_pairs(P, specs: list, pairs: list[Pair], arms: tuple[str, ...]) -> pd.DataFrame:
    """Return the table of `measure_pairs`, from the records of a plan."""
    listed = claims.read_claims(P.report, P.mixtures)
    asked = [compare_models(find_claim(P, pair.claim), pair) for pair in pairs]
    controls = []
    for claim in listed:
        if claim.control and claim.contrast:
            control = claims.control_claim(claim)
            controls.append(control)
            by_starter = claims.starter_claim(control)
            if by_starter:
                controls.append(by_starter)
    table = verify.claims_table(P)
    rows = []
    for arm in arms:
        known = [
            find_in_table(table, listed, find_claim(P, pair.claim), pair, arm) for pair in pairs
        ]
        judged = pd.DataFrame()
        if any(found is None for found in known):
            sample = verify.draw_sample(P, specs, listed, arm)
            judged = stats.judge_sample(asked, sample, P.profile, controls).set_index("id")
        for pair, claim, found in zip(pairs, asked, known, strict=True):
            row = pair._asdict() | {"arm": arm, "unit": claim.unit}
            if found is not None:
                rows.append(row | found)
                continue
            at = judged.loc[pair.id]
            row |= {"value": at["d"]} | {name: at[name] for name in NUMBERS[1:]}
            row["part"] = ""
            if at["run"]:
                row["part"] = verify.name_part(P, at["part"])
            rows.append(row | {"n": at["n"], "run": at["run"]})
    return pd.DataFrame(rows)


def find_in_table(
    table: pd.DataFrame, listed: list[claims.Claim], claim: claims.Claim, pair: Pair, arm: str
) -> dict | None:
    """Return what the claims table has of a pair's comparison; None where it has none.

    It may be a row of another claim, or of another claim's control, that compares the same two
    models on the same sets. listed: the claims of the report.
    """
    for name, comparison, sign in find_same(listed, claim, pair):
        rows = select_row(table, name, comparison, arm)
        if not rows.empty:
            return read_value(rows, sign) | {"part": rows["part"].iloc[0]}
    return None


def find_same(
    listed: list[claims.Claim], claim: claims.Claim, pair: Pair
) -> list[tuple[str, str, int]]:
    """Return the rows of the claims table that compare the two models of a pair in its way.

    Each is a claim's id and its comparison (`claim`, `control` or `starter`). Beside it stands 1
    where its value is how far `ours` of the pair is above `against`, and −1 where it is how far it
    is below. The control of the pair's own claim comes first, and controls of other claims last.
    """
    asked = compare_models(claim, pair._replace(by_starter=False))
    if pair.by_starter:
        rows = [(other, "starter") for other in [claim, *listed]]
    else:
        of_claims = [(other, "claim") for other in [claim, *listed]]
        of_controls = [(other, "control") for other in listed]
        rows = [(claim, "control"), *of_claims, *of_controls]
    same = []
    for other, comparison in rows:
        if other.contrast is None or (comparison == "control" and not other.control):
            continue
        compared = claims.control_claim(other) if comparison == "control" else other
        sign = claims.match_claims(asked, compared)
        if sign:
            same.append((other.id, comparison, sign))
    return same


def is_by_starter(table: pd.DataFrame, claim: str) -> bool:
    """Return whether a claim's runs were scored by the starter code's rule too.

    What is printed then came about by that rule, and is compared with scores by it.
    """
    rows = table[(table["claim"] == claim) & (table["comparison"] == "starter")]
    return bool((rows["n"] > 0).any())


def measure_by_starter(P, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the claims table by the starter code's rule, of every printed gap.

    The table has those about EM alone. A row about F1, or about both, is measured here, by the
    contrast of its two models; about both it is of the metric that the table shows. Where nothing
    was scored by this rule there are no rows.

    table: of verify.claims_table.
    """
    known = table[table["comparison"] == "starter"]
    if not (known["n"] > 0).any():
        return known
    pairs = []
    for claim in claims.read_claims(P.report, P.mixtures):
        if claim.printed is None or claim.id in set(known["claim"]):
            continue
        contrast = claim.contrast
        if claims.starter_claim(claim) is None or contrast.against is None or contrast.beyond:
            continue
        sides = [contrast.ours.get("variant"), contrast.against.get("variant")]
        if not all(isinstance(side, str) for side in sides):
            continue
        for metric in np.ravel(contrast.metric):
            pairs.append(Pair(claim.id, *sides, by_starter=True, metric=str(metric)))
    rows = [known]
    measured = measure_pairs(P, pairs)
    for row in measured[measured["n"] > 0].to_dict("records"):
        of_claim = table[(table["claim"] == row["claim"]) & (table["arm"] == row["arm"])]
        of_claim = of_claim[of_claim["comparison"] == "claim"]
        shown = of_claim["part"].iloc[0]
        if shown and shown != verify.name_part(P, f"metric {row['metric']}"):
            continue
        sign = find_sign(find_claim(P, row["claim"]))
        effect = {"ours": sign * row["value"]} | verify.turn_ends(row, sign)
        labels = dict.fromkeys(["verdict", "reason", "unpooled", "rule_part"], "")
        labels |= dict.fromkeys(["seed_part", "rule_ours", "rule_low", "rule_high"], np.nan)
        labels |= {"comparison": "starter", "more": 0}
        effect |= {"n": row["n"], "run": row["run"]}
        rows.append(pd.DataFrame([of_claim.iloc[0].to_dict() | labels | effect]))
    return pd.concat(rows, ignore_index=True)


# ---- central comparisons ----


def count_examples(P, asked: Iterable[str]) -> list[int]:
    """Return the sizes of the test sets of some claims, each number once, the smallest first."""
    listed = claims.read_claims(P.report, P.mixtures)
    _, examples = verify.collect_scores(plans.plan(P))
    places = stats.name_places(listed, P.domains) | P.stand_ins
    examples = examples.assign(set=stats.rename_sets(examples["set"], places))
    named = set()
    for claim in asked:
        for side in find_claim(P, claim).contrast.sides():
            named.update(np.ravel(side["set"]))
    of_claims = examples[examples["set"].isin(named)]
    return sorted(set(of_claims.groupby("set")["id"].nunique()))


def collect_comparisons(P, comparisons: tuple[Comparison, ...]) -> pd.DataFrame:
    """Return the rows of the forest figure, in their order.

    Columns: comparison (its position), claim, ours, against, on, unit, setting (`printed`, `equal`
    or `report`), variant (that of the idea, or the control's), control (the control that `ours` is
    compared with; empty where it is compared with `against`), value, low, high, own_low, own_high
    (as in verify.claims_table), n, run, by_starter, part, untested. An arm that was not run has a
    row with n = 0. Where the report was scored by the starter code's rule, so are the rows of its
    comparison, and by_starter is true. part: of a claim about several models or sets the one that
    its row is of, else empty. untested: why its row is no test of the claim, else empty.
    """
    table = verify.claims_table(P)
    asked = [(compared, find_claim(P, compared.claim)) for compared in comparisons]
    pairs = []
    for compared, claim in asked:
        by_starter = is_by_starter(table, claim.id)
        own = (claim.control,) if claim.control else ()
        for control in dict.fromkeys(own + compared.controls):
            pairs.append(Pair(claim.id, name_variant(claim, compared), control, by_starter))
    measured = measure_pairs(P, pairs)
    rows = []
    for position, (compared, claim) in enumerate(asked):
        labels = {
            "comparison": position,
            "claim": claim.id,
            "ours": compared.ours,
            "against": compared.against,
            "on": compared.on,
            "unit": claim.unit,
            "variant": name_variant(claim, compared),
            "by_starter": is_by_starter(table, claim.id),
            "part": "",
            "untested": "",
        }
        for row in list_values(claim, compared, table, measured):
            rows.append(labels | row)
    return pd.DataFrame(rows)


def name_variant(claim: claims.Claim, compared: Comparison) -> str:
    """Return the variant of the idea that a claim is about; of several the first."""
    side = claim.contrast.against if compared.is_turned else claim.contrast.ours
    return str(np.ravel(side["variant"])[0])


def select_row(table: pd.DataFrame, claim: str, comparison: str, arm: str) -> pd.DataFrame:
    """Return the row of a claim in the claims table, or no row where no run has made it."""
    at = (table["claim"] == claim) & (table["comparison"] == comparison) & (table["arm"] == arm)
    return table[at & (table["n"] > 0)]


def list_values(
    claim: claims.Claim, compared: Comparison, table: pd.DataFrame, measured: pd.DataFrame
) -> list[dict]:
    """Return the values of one central comparison: printed, ours in both arms, and its controls."""
    sign = -find_sign(claim) if compared.is_turned else find_sign(claim)
    rows = []
    if claim.printed is not None:
        low, high = sorted(sign * end for end in claim.range)
        printed = {"setting": "printed", "control": "", "value": (low + high) / 2}
        run = table.loc[table["claim"] == claim.id, "run"].iloc[0]
        rows.append(printed | {"low": low, "high": high, "n": 0, "run": run})
    for arm, setting in SETTINGS.items():
        whole = select_row(table, claim.id, "starter", arm)
        if whole.empty:
            whole = select_row(table, claim.id, "claim", arm)
        of_claim = read_value(whole, sign) | describe_test(whole)
        rows.append({"setting": setting, "control": ""} | of_claim)
        beside = measured[(measured["claim"] == claim.id) & (measured["arm"] == arm)]
        for row in beside[beside["n"] > 0].to_dict("records"):
            left = {name: row[name] for name in [*NUMBERS, "n", "run"]}
            rows.append({"setting": setting, "control": row["against"]} | left)
    return rows


def read_value(rows: pd.DataFrame, sign: int) -> dict:
    """Return value, intervals, n and run of a row of the claims table; n = 0 where there is none.

    sign: of `find_sign`, since the table has its effects in the claim's direction.
    """
    if rows.empty:
        return dict.fromkeys(NUMBERS, np.nan) | {"n": 0, "run": ()}
    row = rows.iloc[0]
    numbers = {"value": sign * row["ours"]} | verify.turn_ends(row, sign)
    return numbers | {"n": row["n"], "run": row["run"]}


def describe_test(rows: pd.DataFrame) -> dict:
    """Return of which part a row of the claims table is, and why it is no test of its claim."""
    if rows.empty:
        return {}
    row = rows.iloc[0]
    part = row["part"] if row["parts"] > 1 else ""
    untested = row["reason"] if row["verdict"] == Verdict.NOT_TESTED else ""
    return {"part": part, "untested": untested}


# ---- from the baseline to the report's model ----


def collect_steps(P, claim: str, steps: tuple[Step, ...], arm: str) -> pd.DataFrame:
    """Return a row for each step, and a last one for all steps together.

    Columns: says, before, after, start, value, low, high (95 %), known (whether both its variants
    were trained), n, run, by_starter. start: where the step begins, as the sum of those before it.
    Steps between which a variant was not trained share one value: what they give together. Where
    the claim's runs were scored by the starter code's rule, so are the steps.
    """
    check_chain(steps)
    by_starter = is_by_starter(verify.claims_table(P), claim)
    nodes = [steps[0].before, *(step.after for step in steps)]
    pairs = []
    for first in range(len(nodes)):
        for last in range(first + 1, len(nodes)):
            pairs.append(Pair(claim, nodes[last], nodes[first], by_starter))
    measured = measure_pairs(P, pairs, (arm,)).set_index(["ours", "against"])
    rows = []
    start = 0.0
    first = 0
    while first < len(steps):
        last = find_next_known(nodes, first, measured)
        row = measured.loc[(nodes[last], nodes[first])]
        for step in steps[first:last]:
            labels = {"says": step.says, "before": step.before, "after": step.after}
            rows.append(labels | describe_step(row, start, is_known=last == first + 1))
        start += row["value"]
        first = last
    whole = measured.loc[(nodes[-1], nodes[0])]
    labels = {"says": "all steps together", "before": nodes[0], "after": nodes[-1]}
    rows.append(labels | describe_step(whole, 0.0, is_known=True))
    return pd.DataFrame(rows).assign(by_starter=by_starter)


def find_next_known(nodes: list[str], first: int, measured: pd.DataFrame) -> int:
    """Return the position of the next variant that has runs to compare; the last one else."""
    for last in range(first + 1, len(nodes)):
        if measured.loc[(nodes[last], nodes[first]), "n"]:
            return last
    return len(nodes) - 1


def describe_step(row: pd.Series, start: float, is_known: bool) -> dict:
    """Return the numbers of a step from its row of `measure_pairs`."""
    numbers = {name: row[name] for name in [*NUMBERS, "n", "run"]}
    return {"start": start, "known": bool(is_known and row["n"])} | numbers
