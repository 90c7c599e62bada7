"""The verdicts of a report, from its records: as a long table, as claims.csv, as printed lines.

    python -m qa_lib verify REPORT [--profile P] [--size S] [--data DIR]

Nothing is trained. Any verdict exits 0; 1 means that results.csv on disk is not what the records
say.
"""

import numpy as np
import pandas as pd

from qa_lib.evidence import claims, stats, verdicts
from qa_lib.evidence.verdicts import Verdict
from qa_lib.reports import plans
from qa_lib.settings.params import name_dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

ARMS = ("printed", "tuned")  # the report's settings, and equal tuning
# Columns of claims.csv that hold numbers.
NUMBERS = "ours low high own_low own_high seed_part rule_ours rule_low rule_high".split()
# Columns of a comparison: ours and its 95 % interval, and the part of the claim that they are of;
# the same of the part that fails, by the rule's own interval.
EFFECT = ["ours", "low", "high", "part"]
RULE_EFFECT = ["rule_ours", "rule_low", "rule_high", "rule_part"]


# ---- the long table ----


def format_claimed_value(claim: claims.Claim) -> str:
    """Return the printed value, or its range, as text."""
    if claim.printed is None:
        return "–"
    return " to ".join(f"{x:g}" for x in dict.fromkeys(claim.range))


def printed_unit(claim: claims.Claim) -> str:
    """The unit of what is printed: of a claim about EM and F1 the range holds both gaps."""
    has_both = claim.contrast and {"em", "f1"} <= set(np.ravel(claim.contrast.metric))
    return "EM or F1" if has_both and claim.unit == "EM" else claim.unit


def describe_claim(claim: claims.Claim) -> dict:
    """Return the columns that all rows of a claim share."""
    return {
        "claim": claim.id,
        "where": claim.where,
        "says": claim.says,
        "stance": claim.stance,
        "kind": claim.kind,
        "primary": claim.primary,
        "printed": format_claimed_value(claim),
        "printed_unit": printed_unit(claim),
        "unit": claim.unit,
        "confound": claim.confound,
    }


def name_part(P, label: str) -> str:
    """Return a part's label as a reader says it.

    "set first, metric em" is "SQuAD, EM" and "variant reinit-2" is "Reinit 2". A set is called by
    the dataset that stands in for it (Study.stand_ins).
    """
    words = []
    for pair in label.split(", "):
        column, _, value = pair.partition(" ")
        if column == "metric":
            words.append(name_metric(value))
        elif column == "set":
            words.append(name_set(P, value))
        elif column == "variant":
            words.append(describe_variant(P, value))
        elif column == "ratio":
            words.append(plans.name_mixture(float(value)))
        else:
            words.append(pair)
    return ", ".join(words)


def name_metric(metric: str) -> str:
    """Return a metric as a reader says it: "EM" by either rule of scoring, "loss gap"."""
    names = {"em": "EM", "f1": "F1", "em_starter": "EM", "f1_starter": "F1"}
    return names.get(metric, metric.replace("_", " "))


def name_set(P, test_set: str) -> str:
    """Return the name of the dataset behind a claim's test set."""
    sets = dict(zip(("first", "second"), P.domains, strict=False))
    sets |= {of_claims: dataset for dataset, of_claims in P.stand_ins.items()}
    return name_dataset(P, sets.get(test_set, test_set))


def describe_variant(P, variant: str) -> str:
    """Return a variant in words: "reinit-2" is "Reinit 2", "expert-squad" "Expert of SQuAD"."""
    model = plans.find_model(P.report, variant)
    name = plans.display_name(P.report, variant)
    rest = variant.removeprefix(model).removeprefix("-")
    endings = {"full": "all rows", "curve": "for curves", "last": "last epoch"}
    if not rest:
        return name
    if rest.isdigit():
        return f"{name} {rest}"
    if rest in P.domains:
        return f"{name} of {name_dataset(P, rest)}"
    return f"{name} ({endings.get(rest, name_dataset(P, rest))})"


def describe_absent(P, absent: tuple[dict, ...]) -> str:
    """Return the cells without a run in words: "no run of V-DB at 60:40, 100:0 (EM on SQuAD)".

    absent: of stats.judge_sample. Cells of one variant and order of rows are told together, and so
    are those that lack the same.
    """
    cells: dict[tuple, dict[str, dict]] = {}  # (variant, order) → column → its values, in order
    for want in absent:
        columns = cells.setdefault((want["variant"], want.get("order")), {})
        for column, value in want.items():
            columns.setdefault(column, {})[value] = True
    without: dict[str, list[str]] = {}  # what is lacking → the variants that lack it
    for (variant, order), columns in cells.items():
        name = describe_variant(P, variant)
        if order not in (None, P.order):
            name += f" ({order})"
        without.setdefault(describe_columns(P, columns), []).append(name)
    sentences = []
    for lacking, names in without.items():
        sentences.append(f"no run of {' or '.join(names)}{lacking}")
    return "; ".join(sentences)


def describe_columns(P, columns: dict[str, dict]) -> str:
    """Return mixtures, settings, metrics and sets in words: " at 60:40, blocks 4 (EM on SQuAD)".

    columns: column → its values, as keys.
    """
    where = ""
    mixtures = [plans.name_mixture(x) for x in columns.get("ratio", {}) if x is not None]
    if mixtures:
        where = f" at {', '.join(mixtures)}"
    for column, values in columns.items():
        if column not in ("variant", "order", "ratio", "metric", "set"):
            where += f", {column.replace('_', ' ')} {' or '.join(map(str, values))}"
    metrics = ", ".join(map(name_metric, columns["metric"]))
    sets = ", ".join(name_set(P, test_set) for test_set in columns["set"])
    return f"{where} ({metrics} on {sets})"


def measure_effect(claim: claims.Claim, d: float, low: float, high: float) -> list[float]:
    """Return (ours, low, high) of a difference, in the unit of what is printed.

    Where the claim names a score, ours is a score.
    """
    if claim.contrast is None:
        return [d, low, high]
    sign = 1 if claim.contrast.direction == "higher" else -1
    ours, *ends = (x + sign * claim.contrast.target for x in (d, low, high))
    if claim.contrast.against is None:
        ours, *ends = (sign * x for x in (ours, *ends))
    return [ours, min(ends), max(ends)]


def turn_ends(row: pd.Series | dict, sign: int) -> dict[str, float]:
    """Return low, high, own_low and own_high of a row; sign −1 turns the effect around."""
    low, high = sorted([sign * row["low"], sign * row["high"]])
    own_low, own_high = sorted([sign * row["own_low"], sign * row["own_high"]])
    return {"low": low, "high": high, "own_low": own_low, "own_high": own_high}


def describe_comparison(P, claim: claims.Claim, judged: pd.Series) -> dict:
    """Return the columns of one row of stats.judge_sample: effect, seeds, runs."""
    effect = measure_effect(claim, judged["d"], judged["low"], judged["high"])
    _, *own = measure_effect(claim, judged["d"], judged["own_low"], judged["own_high"])
    part = name_part(P, judged["part"]) if judged["run"] else ""
    return {
        **dict(zip(EFFECT, [*effect, part], strict=True)),
        **dict(zip(["own_low", "own_high"], own, strict=True)),
        "parts": judged["parts"] if judged["run"] else 0,
        "n": judged["n"],
        "seed_part": np.sqrt(judged["s2"] / judged["n"]) if judged["n"] else np.nan,
        "run": judged["run"],
    }


def describe_reason(P, judged: pd.Series) -> str:
    """Return the reason of the verdict in one row of stats.judge_sample, and the absent runs."""
    reasons = [judged["reason"], describe_absent(P, judged["absent"])]
    return "; ".join(filter(None, reasons))


def describe_verdict(P, claim: claims.Claim, judged: pd.Series) -> dict:
    """Return the columns of the verdict in one row of stats.judge_sample."""
    columns = {
        "verdict": str(judged["verdict"]),
        "reason": describe_reason(P, judged),
        "unpooled": str(judged["unpooled"]),
        **dict(zip(RULE_EFFECT, [np.nan, np.nan, np.nan, ""], strict=True)),
        "more": 0,
    }
    if judged["verdict"] == Verdict.NOT_REPRODUCED:
        ends = (judged["rule_d"], judged["rule_low"], judged["rule_high"])
        part = name_part(P, judged["rule_part"])
        effect = [*measure_effect(claim, *ends), part]
        columns |= dict(zip(RULE_EFFECT, effect, strict=True))
        columns["more"] = int(judged["more"])
    return columns


def list_starter_claims(listed: list[claims.Claim]) -> list[claims.Claim]:
    """Return the claims about exact match alone, each by the starter code's rule of scoring.

    Those about F1 have no row in the long table (compare.measure_by_starter).
    """
    of_em = [c for c in listed if c.contrast is not None and c.contrast.metric == "em"]
    return [claims.starter_claim(claim) for claim in of_em]


_tables: dict[tuple[str, ...], pd.DataFrame] = {}  # parameters, claims, records → their table


def claims_table(P) -> pd.DataFrame:
    r"""Return the long table: a row for each claim, arm and comparison.

    comparison: `claim`; `control`: the claim's ours against the model that could refute it; or
    `starter`: a printed claim about exact match by the starter code's rule of scoring, where the
    runs were scored by it too.
    ours, low, high: the effect and its 95 % interval, in the unit of `printed`: a difference in the
    claim's direction, or a score where the claim names one. own_low, own_high: the interval with
    the variance of these seeds alone, none pooled with other comparisons. part: of a claim about
    several sets or metrics the one that ours is of, that with the largest p; parts: how many there
    are. n: the seeds of ours. seed_part: $\sqrt{s^2/n}$, what other seeds add to the standard error
    of ours.
    verdict and reason: of a claim alone; the other comparisons have none. rule_…: of a claim that
    is not reproduced the first part that fails, with the interval by which it does; more: how many
    other parts fail. unpooled: the verdict if each comparison had the variance of its own seeds,
    none pooled.
    A page asks several times; the records are judged once.
    """
    specs = plans.plan(P)
    listed = claims.read_claims(P.report, P.mixtures)
    key = (P.model_dump_json(), repr(listed), *runs.list_checksums(specs))
    if key not in _tables:
        _tables[key] = judge_records(P, specs, listed)
    return _tables[key].copy()


_scores: dict[tuple[str, ...], tuple[pd.DataFrame, pd.DataFrame]] = {}  # records → their scores


def collect_scores(specs: list[Spec]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ledger of a plan with its training curves, and its examples.

    A page asks several times. The scores of the last plan are kept.
    """
    key = tuple(f"{spec.variant} {spec.arm} {spec.hash}" for spec in specs)
    key += tuple(runs.list_checksums(specs))
    if key not in _scores:
        curves = stats.collect_curve_rows(runs.collect_histories(specs))
        ledger = pd.concat([runs.collect_ledger(specs), curves], ignore_index=True)
        _scores.clear()
        _scores[key] = (ledger, runs.collect_examples(specs))
    return _scores[key]


_samples: dict[tuple[str, ...], stats.Sample] = {}  # arm, parameters, claims, records → scores


def draw_sample(P, specs: list[Spec], listed: list[claims.Claim], arm: str) -> stats.Sample:
    """Return the runs of an arm of a plan with their resampled scores.

    A page asks several times. The samples of the last plan are kept.
    """
    key = (arm, P.model_dump_json(), repr(listed), *runs.list_checksums(specs))
    if key not in _samples:
        ledger, examples = collect_scores(specs)
        if len(_samples) == len(ARMS):  # they are of another plan
            _samples.clear()
        _samples[key] = stats.draw_sample(
            listed, ledger, examples, P.domains, arm, stand_ins=P.stand_ins
        )
    return _samples[key]


def judge_controls(
    controls: list[claims.Claim],
    sample: stats.Sample,
    listed: list[claims.Claim],
    of_claims: pd.DataFrame,
    profile: str,
) -> pd.DataFrame:
    """Return `judge_sample` of controls, by id.

    Where a claim compares the same two models, its numbers are taken, so that one comparison has
    one interval. of_claims: `judge_sample` of the claims, by id.
    """
    judged = stats.judge_sample(controls, sample, profile).set_index("id")
    for control in controls:
        for claim in listed:
            sign = claims.match_claims(control, claim)
            same = of_claims.loc[claim.id]
            if not sign or not same["n"]:
                continue
            numbers = {"d": sign * same["d"]} | turn_ends(same, sign)
            for name in ("s2", "n", "part"):
                numbers[name] = same[name]
            for name, value in numbers.items():
                judged.loc[control.id, name] = value
            break
    return judged


def judge_records(P, specs: list[Spec], listed: list[claims.Claim]) -> pd.DataFrame:
    """Return the table of `claims_table` of these claims, from the records of a plan."""
    controls = {c.id: claims.control_claim(c) for c in listed if c.control and c.contrast}
    starters = list_starter_claims(listed)
    ledger, _ = collect_scores(specs)
    judged = {}
    for arm in ARMS:
        sample = draw_sample(P, specs, listed, arm)
        of_claims = stats.judge_sample(listed, sample, P.profile).set_index("id")
        judged[arm, "claim"] = tell_not_measured(of_claims, listed, P)
        judged[arm, "control"] = judge_controls(
            list(controls.values()), sample, listed, of_claims, P.profile
        )
        if "em_starter" in set(ledger["metric"]):
            of_starters = stats.judge_sample(starters, sample, P.profile)
            judged[arm, "starter"] = of_starters[of_starters["n"] > 0].set_index("id")
    rows = []
    for claim in listed:
        for arm in ARMS:
            at = judged[arm, "claim"].loc[claim.id]
            rows.append(
                describe_claim(claim)
                | {"arm": arm, "comparison": "claim", "control": ""}
                | describe_comparison(P, claim, at)
                | describe_verdict(P, claim, at)
            )
        for arm in ARMS if claim.id in controls else ():
            beside = controls[claim.id]
            at = judged[arm, "control"].loc[beside.id]
            rows.append(
                describe_claim(claim)
                | {"arm": arm, "comparison": "control", "control": claim.control}
                | describe_comparison(P, beside, at)
            )
        for arm in ARMS:
            table = judged.get((arm, "starter"))
            if claim.printed is None or table is None or claim.id not in table.index:
                continue
            rows.append(
                describe_claim(claim)
                | {"arm": arm, "comparison": "starter", "control": ""}
                | describe_comparison(P, claim, table.loc[claim.id])
            )
    frame = pd.DataFrame(rows)
    texts = ["verdict", "reason", "unpooled", "rule_part"]
    frame[texts] = frame[texts].fillna("")
    return frame.assign(more=frame["more"].fillna(0).astype(int))


def tell_not_measured(judged: pd.DataFrame, listed: list[claims.Claim], P) -> pd.DataFrame:
    """Return `judged` with the reason why a metric is in no record, where a claim is about it."""
    judged = judged.copy()
    for claim in listed:
        for metric, why in P.not_measured.items():
            is_about = claim.contrast and metric in np.ravel(claim.contrast.metric)
            if is_about and P.profile in claim.profiles and judged.loc[claim.id, "n"] == 0:
                judged.loc[claim.id, "reason"] = why
                judged.at[claim.id, "absent"] = ()
    return judged


def write_claims(P) -> pd.DataFrame:
    """Return the long table, written to claims.csv beside the page."""
    frame = claims_table(P)
    file = runs.page_folder(P) / "claims.csv"
    runs.write(file, runs.format_csv(frame.assign(run=frame["run"].str.join(" "))))
    return frame


def select(frame: pd.DataFrame, arm: str = "printed", comparison: str = "claim") -> pd.DataFrame:
    """Return the rows of one arm and comparison of a report's long table, by claim."""
    rows = frame[(frame["arm"] == arm) & (frame["comparison"] == comparison)]
    return rows.set_index("claim", drop=False)


def select_tested(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each claim: at the report's settings, or with equal tuning if tested there.

    The latter where no run at the report's settings tests it, as in a study of arms=[tuned].
    """
    printed, tuned = select(frame), select(frame, "tuned")
    not_tested = printed.index[printed["verdict"] == Verdict.NOT_TESTED]
    tested = tuned.index[tuned["verdict"] != Verdict.NOT_TESTED]
    alone = not_tested.intersection(tested)
    return pd.concat([printed.drop(alone), tuned.loc[alone]]).loc[printed.index]


# ---- rows in words ----


def format_printed(row) -> str:
    """Return the printed value with its unit, and whether its direction is all that is judged."""
    if row.printed == "–":
        return "–"
    direction = " (direction)" if row.kind == "superiority" else ""
    return f"{row.printed} {row.printed_unit}{direction}"


def format_number(x: float, digits: int) -> str:
    """Return a number with so many decimals, and without a sign where it is 0."""
    return f"{round(x, digits) + 0.0:.{digits}f}"


def format_interval(low: float, high: float, digits: int) -> str:
    """Return an interval behind a blank: " [2.0, 4.4]"; nothing where one seed gives none."""
    if np.isnan(low):
        return ""
    return f" [{format_number(low, digits)}, {format_number(high, digits)}]"


def count_decimals(row, digits: int = 1) -> int:
    """Return how many decimals an effect has. Losses differ by hundredths, and have two more."""
    return digits + 2 if row.unit == "loss" else digits


def format_effect(row, digits: int = 1) -> str:
    """Return ours with its interval and unit, and of a claim with several parts the one shown."""
    digits = count_decimals(row, digits)
    if np.isnan(row.ours):
        return "–"
    *where, last = row.part.split(", ") if row.part else [row.unit]
    if last in ("EM", "F1", row.unit):
        unit = last
    else:
        unit, where = row.unit, [*where, last]
    ours = format_number(row.ours, digits) + format_interval(row.low, row.high, digits)
    shown = f"{ours} {unit}"
    return f"{shown} ({', '.join(where)})" if where else shown


def format_verdict(row, with_reason: bool = False) -> str:
    """Return the verdict and its reason.

    Of several parts the first that fails is shown, by the rule's own interval, which is wider where
    it is adjusted for their number. Why a claim is not tested may be long and stands there only
    with_reason.
    """
    if not row.reason or (row.verdict == Verdict.NOT_TESTED and not with_reason):
        return row.verdict
    text = f"{row.verdict}: {row.reason}"
    if row.verdict != Verdict.NOT_REPRODUCED or not row.rule_part:
        return text
    digits = count_decimals(row)
    ours = format_number(row.rule_ours, digits)
    ours += format_interval(row.rule_low, row.rule_high, digits)
    adjusted = ", adjusted" if row.parts > 1 else ""
    more = f", and {row.more} more" if row.more else ""
    return f"{text} ({row.rule_part}{adjusted}: {ours}{more})"


def format_arm(row) -> str:
    """Return what an arm says: the effect and the verdict."""
    effect = format_effect(row)
    return format_verdict(row) if effect == "–" else f"{effect}, {format_verdict(row)}"


def format_control(report: str, row, of_claim) -> str:
    """Return how much of a claim's effect its control leaves: "(a) …: 0.4 of the 3.2 EM [0, 1]".

    row, of_claim: the rows of the control and of the claim itself, of one arm. Where these are of
    different parts or of other seeds, where the claim is an equality, where both are percentages of
    a score, each of another one, and where the control leaves less than nothing or more than all,
    the difference to the control stands alone.
    """
    name = plans.display_name(report, row.control)
    if np.isnan(row.ours):
        return f"{name}: not tested"
    digits = count_decimals(row)
    is_share = 0 <= row.ours <= of_claim.ours and round(of_claim.ours, digits) > 0
    are_alike = row.part == of_claim.part and row.n == of_claim.n
    is_relative = row.unit == "percent relative"
    if not are_alike or row.kind == "equivalence" or is_relative or not is_share:
        return f"{name}: {format_effect(row)}"
    left = format_number(row.ours, digits)
    whole = format_number(of_claim.ours, digits)
    return f"{name}: {left} of the {whole} {row.unit}{format_interval(row.low, row.high, digits)}"


def count_verdicts(frame: pd.DataFrame) -> str:
    """Return one sentence a stance: how many results, hopes and explanations got which verdict.

    A claim counts as in `select_tested`.
    """
    rows = select_tested(frame)
    sentences = [f"{len(rows)} claims."]
    if by_tuning := (rows["arm"] == "tuned").sum():
        sentences.append(f"{by_tuning} of them are tested with equal tuning alone.")
    for stance in claims.STANCES:
        of_stance = rows[rows["stance"] == stance]
        counts = of_stance["verdict"].value_counts()
        told = "; ".join(f"{counts[x]} {x}" for x in Verdict if x in counts)
        if told:
            plural = "" if len(of_stance) == 1 else "s"
            sentences.append(f"{len(of_stance)} {stance}{plural}: {told}.")
    return " ".join(sentences)


def describe_pooling(frame: pd.DataFrame) -> str:
    """Return one sentence: which verdicts hang on the pooling of variance."""
    told = []
    for row in frame[frame["unpooled"] != frame["verdict"]].itertuples():
        arm = "equal tuning: " if row.arm == "tuned" else ""
        told.append(f"{row.claim} ({arm}{row.unpooled} instead of {row.verdict})")
    outcome = "every verdict would be the same."
    if told:
        outcome = f"these would be judged otherwise: {'; '.join(told)}."
    return (
        "The variance between seeds is pooled over comparisons of one kind, but where Levene's "
        "test finds them unlike, which with three seeds it hardly can. With the variance of each "
        f"comparison's own seeds {outcome}"
    )


def describe_changes(report: str) -> str:
    """Return one sentence where claims, arms or rules are not as they were frozen; else nothing."""
    if not verdicts.is_frozen(report):
        return f"Nothing of this report is frozen: params/claims/FROZEN has no line # {report}."
    changed = verdicts.list_changes(report)
    return f"Changed since they were frozen: {', '.join(changed)}." if changed else ""


def describe_nothing(report: str, profile: str) -> str:
    """Return one sentence about a profile at which a report has no record."""
    known = ""
    if profile != "real" and runs.read_committed(report):
        known = "; PROFILE=real has committed records"
    return (
        f"{report}: no run of profile {profile} has been recorded, so none of its "
        f"{len(claims.read_claims(report))} claims is tested{known}"
    )


def print_verdicts(P):
    """Print a line for each claim, their counts, and what they hang on; write claims.csv."""
    frame = write_claims(P)
    tuned, beside = select(frame, "tuned"), select(frame, comparison="control")
    for row in select(frame).itertuples():
        seeds = f"n={row.n}"
        if row.seed_part >= 0:
            seeds += f", seed part {row.seed_part:.2f}"
        control = ""
        if row.claim in beside.index:
            control = f" | against {format_control(P.report, beside.loc[row.claim], row)}"
        print(
            f"{P.report}  {row.claim}  printed {row.printed} {row.unit}, "
            f"ours {format_effect(row, 2)}, {seeds}: {format_verdict(row, with_reason=True)} "
            f"| equal tuning: {format_verdict(tuned.loc[row.claim])}{control}"
        )
    print(count_verdicts(frame))
    print(describe_pooling(frame))
    print(runs.page_folder(P) / "claims.csv")
    print(describe_changes(P.report) or "claims, arms and rules are as they were frozen")


# ---- the ledger ----


def find_disagreement(P) -> str:
    """Return the first run about which results.csv on disk and the records differ.

    Where the columns have other names it is they. Lines are compared in any order, and blank ones
    left out. Empty where all are alike, or where there is no file.
    """
    file = runs.page_folder(P) / "results.csv"
    if not file.exists():
        return ""
    on_disk = file.read_text(encoding="utf-8", errors="replace").splitlines()
    of_records = runs.format_csv(runs.collect_results(plans.plan(P))).splitlines()
    header = of_records[0]
    if header not in on_disk:
        return "its columns"
    on_disk = [line for line in on_disk if line.strip()]
    differ = set(on_disk) ^ set(of_records)
    for line in on_disk + of_records:
        if line in differ:
            return line.split(",")[0]  # its first column
    return ""
