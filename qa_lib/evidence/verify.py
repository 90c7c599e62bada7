"""The verdicts of a report, from its records: as a frame, as claims.csv, as printed lines.

    python -m qa_lib verify REPORT [--profile P] [--size S] [--data DIR]

Nothing is trained. Any verdict exits 0; 1 means that results.csv on disk is not what the records say.
"""

import re

import numpy as np
import pandas as pd

from qa_lib.evidence import claims, stats
from qa_lib.evidence import power as decidable
from qa_lib.reports import catalogue, plans
from qa_lib.settings import params
from qa_lib.store import runs

UNTESTED, ALONE = "not tested at this profile", "inconclusive: seeds (one gives no interval)"


def mixtures(P) -> tuple[float, ...]:
    """The ratios that claims over mixtures mean; none where a report mixes nothing."""
    return tuple(getattr(P, "ratios", ()))


def format_claimed_value(claim: claims.Claim) -> str:
    """The printed value, or its range, as text."""
    return (
        "–" if claim.printed is None else " to ".join(f"{x:g}" for x in dict.fromkeys(claim.range))
    )


def format_printed(row) -> str:
    """The printed value of a row of `table`, with its unit, and whether its direction is all that is judged."""
    return (
        "–"
        if row.printed == "–"
        else f"{row.printed} {row.printed_unit}" + " (direction)" * (row.judged == "superiority")
    )


def printed_unit(claim: claims.Claim) -> str:
    """The unit of what is printed: of a claim about EM and F1 the range holds both gaps."""
    both = claim.contrast and {"em", "f1"} <= set(np.ravel(claim.contrast.metric))
    return "EM or F1" if both and claim.unit == "EM" else claim.unit


def format_effect(row, digits: int = 1, which: str = "") -> str:
    """Ours of a row of `table`, with its interval and unit, and of a claim with several parts the one that is shown.

    which: "tuned_" or "control_", for the effect in that arm or beside the control.
    """
    ours, low, high, part = (getattr(row, which + k) for k in ("ours", "low", "high", "part"))
    if np.isnan(ours):
        return "–"
    *where, last = [row.unit] if not part else part.split(", ")
    unit, where = (last, where) if last in ("EM", "F1", row.unit) else (row.unit, [*where, last])
    # + 0.0: no -0.0
    ours, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in (ours, low, high))
    return f"{ours}{f' [{low}, {high}]' * (low != 'nan')} {unit}" + f" ({', '.join(where)})" * bool(
        where
    )


def part(label: str, domains: list[str]) -> str:
    """A part's label as a reader says it: "set first, metric em" is "squad, EM"."""
    words = {"em": "EM", "f1": "F1"} | dict(zip(("first", "second"), domains, strict=False))
    return re.sub(
        r"\w+",
        lambda word: words.get(word[0], word[0]),
        re.sub(r"\b(set|metric|variant) ", "", label),
    )


def effect(claim: claims.Claim, row: pd.Series, domains: list[str]) -> dict:
    """ours, low, high and part from a row of stats.judge_claims: a difference in the claim's direction, or a score."""
    sign = 1 if claim.contrast and claim.contrast.direction == "higher" else -1
    ours = [
        x + sign * (claim.contrast.target if claim.contrast else 0)
        for x in (row["d"], row["low"], row["high"])
    ]
    if claim.contrast and claim.contrast.against is None:
        ours = [sign * x for x in ours]
    return {
        "ours": ours[0],
        "low": min(ours[1:]),
        "high": max(ours[1:]),
        "part": part(row["part"], domains) if row["run"] else "",
    }


def claims_table(P) -> pd.DataFrame:
    r"""A row a claim: claim, where, says, printed, printed_unit, unit, ours, low, high (95 %), part, n, seed_part, verdict,
    tuned, control, primary, judged (the claim's kind), confound, run.

    ours is in the unit of `printed`: a difference in the claim's direction, or a score where the claim names one. part: of a
    claim about several sets or metrics the one that ours is of, that with the largest p. seed_part: $\sqrt{s^2/n}$, what other
    seeds add to the standard error of ours, in the claim's unit. tuned: the verdict in the arm in which every model had the same
    trials; control: on the effect that the claim's control leaves; their ours, low, high and part stand in tuned_ours,
    control_ours …; fair_ours …: beside the control, in the arm with the same trials. unpooled: which of the three verdicts would be
    others if each comparison had the variance of its own seeds, none pooled.
    """
    specs, listed = plans.plan(P), claims.read_claims(P.report, mixtures(P))
    ledger = pd.concat(
        [runs.collect_ledger(specs), stats.curves(runs.collect_histories(specs))], ignore_index=True
    )
    examples = runs.collect_examples(specs)

    def judge(which: list[claims.Claim], arm: str) -> pd.DataFrame:
        frame = stats.judge_claims(which, ledger, examples, P.profile, P.domains, arm).set_index(
            "id"
        )
        alone = frame["verdict"].astype(str).str.startswith("inconclusive") & ~(frame["nu"] > 0)
        return frame.assign(verdict=frame["verdict"].mask(alone, ALONE))

    plain, tuned = judge(listed, "printed"), judge(listed, "tuned")
    controlled = {c.id: claims.control_claim(c) for c in listed if c.control and c.contrast}
    control, fair = (judge(list(controlled.values()), arm) for arm in ("printed", "tuned"))
    rows = []
    for c in listed:
        row = {
            "claim": c.id,
            "where": c.where,
            "says": c.says,
            "printed": format_claimed_value(c),
            "printed_unit": printed_unit(c),
            "unit": c.unit,
            **effect(c, plain.loc[c.id], P.domains),
            "n": plain["n"][c.id],
            "seed_part": np.sqrt(plain["s2"][c.id] / plain["n"][c.id]),
            "verdict": plain["verdict"][c.id],
            "tuned": tuned["verdict"][c.id],
            "control": "",
            "primary": c.primary,
            "judged": c.kind,
            "confound": c.confound,
            "run": plain["run"][c.id],
        }
        row |= {
            f"{which}_{k}": "" if k == "part" else np.nan
            for which in ("control", "fair")
            for k in ("ours", "low", "high", "part")
        }
        judgements = {"": plain.loc[c.id], "equal trials: ": tuned.loc[c.id]}
        row |= {f"tuned_{k}": v for k, v in effect(c, tuned.loc[c.id], P.domains).items()}
        if c.id in controlled:
            beside = controlled[c.id]
            row |= {
                "control": f"{catalogue.MODELS[catalogue.model_of(c.control)][0]}: {control['verdict'][beside.id]}"
            }
            row |= {
                f"{which}_{k}": v
                for which, frame in (("control", control), ("fair", fair))
                for k, v in effect(beside, frame.loc[beside.id], P.domains).items()
            }
            judgements["beside the control: "] = control.loc[beside.id]
        kinds = {
            where: [r[k].split(":")[0] for k in ("unpooled", "verdict")]
            for where, r in judgements.items()
        }
        row["unpooled"] = "; ".join(
            where + " instead of ".join(two) for where, two in kinds.items() if two[0] != two[1]
        )
        rows.append(row)
    return pd.DataFrame(rows)


def write_claims(P) -> pd.DataFrame:
    """The table, written to claims.csv beside the page."""
    frame = claims_table(P)
    runs.write(
        runs.page_folder(P) / "claims.csv",
        runs.format_csv(frame.assign(run=frame["run"].str.join(" "))),
    )
    return frame


def claims_for_page(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` for which there are runs, as a page shows them; what is not tested here says so without its reason."""
    rows = frame[frame["run"].map(len) > 0]

    def describe_verdicts(which: str) -> list[str]:
        words = rows[which].str.replace(f"{UNTESTED}.*", "not tested", regex=True)
        return [
            word
            if format_effect(r, which=f"{which}_") == "–"
            else f"{format_effect(r, which=f'{which}_')}, {word}"
            for word, r in zip(words, rows.itertuples(), strict=True)
        ]

    primary = rows["primary"].map({True: "; primary", False: ""})
    aside = (" To bear in mind: " + rows["confound"]).where(rows["confound"] != "", "")
    return pd.DataFrame(
        {
            "the report says": rows["says"] + " (" + rows["where"] + primary + ")" + aside,
            "printed": [format_printed(r) for r in rows.itertuples()],
            "ours": [format_effect(r) for r in rows.itertuples()],
            "verdict": rows["verdict"].str.replace(f"{UNTESTED}.*", "not tested", regex=True),
            "equal trials": describe_verdicts("tuned"),
            "control": describe_verdicts("control"),
            "seeds": rows["n"],
            "run": rows["run"],
        }
    )


def has_verdict(frame: pd.DataFrame, claim: str, verdict: str) -> bool:
    """Is that the verdict on a claim, by its id?"""
    return frame.set_index("claim")["verdict"][claim].split(":")[0] == verdict


def format_claim(frame: pd.DataFrame, claim: str) -> str:
    """`found` of a claim, by its id."""
    return format_effect(frame.set_index("claim").loc[claim])


def count_verdicts(frame: pd.DataFrame) -> str:
    """One sentence: how many claims got which verdict."""
    found = frame["verdict"].str.split(":").str[0].value_counts()
    words = ["reproduced", claims.SMALLER, "not reproduced", "inconclusive", UNTESTED]
    return (
        f"{len(frame)} claims: " + "; ".join(f"{found[w]} {w}" for w in words if w in found) + "."
    )


def describe_pooling(frame: pd.DataFrame) -> str:
    """One sentence: which verdicts hang on the pooling of variance."""
    rows = frame[frame["unpooled"] != ""]
    which = "; ".join(f"{r.claim} ({r.unpooled})" for r in rows.itertuples())
    return (
        "The variance between seeds is pooled over comparisons of one kind, but where Levene's test finds them unlike, which "
        "with three seeds it hardly can. With the variance of each comparison's own seeds "
        + (
            f"these would be judged otherwise: {which}."
            if len(rows)
            else "every verdict would be the same."
        )
    )


def describe_changes(report: str) -> str:
    """One sentence where claims, arms or rules are not as they were frozen; empty where they are."""
    changed = claims.list_changes(report)
    return f"Changed since they were frozen: {', '.join(changed)}." if changed else ""


def describe_nothing(report: str, profile: str) -> str:
    """One sentence about a profile at which a report has no record."""
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
    for row in frame.itertuples():
        seeds = f"n={row.n}"
        if row.seed_part >= 0:
            seeds += f", seed part {row.seed_part:.2f}"
        control = f" | against {row.control}" if row.control else ""
        print(
            f"{P.report}  {row.claim}  printed {row.printed} {row.unit}, ours {format_effect(row, 2)}, "
            f"{seeds}: {row.verdict} | tuned: {row.tuned}{control}"
        )
    print(count_verdicts(frame))
    print(describe_pooling(frame))
    print(runs.page_folder(P) / "claims.csv")
    print(describe_changes(P.report) or "claims, arms and rules are as they were frozen")


def power_for_page(P) -> pd.DataFrame:
    """The table of qa_lib/evidence/power.py with our own test sets, as a page shows it: rows, or clusters where those are averaged."""
    spec, record = next(
        (s, r) for s, r in runs.require_records(plans.plan(P)) if set(P.domains) <= set(s.tests)
    )
    known, scores = params.read_datasets(P.source), record["metrics"]
    sizes = {
        d: scores[d]["clusters" if known[d].average == "clusters" else "n"] for d in spec.tests
    }
    ours = sizes | dict(zip(("first", "second"), (sizes[d] for d in P.domains), strict=False))
    frame = decidable.power_table(P.report, ours, mixtures(P))
    return decidable.format_table(frame).assign(run=[(record["run"],)] * len(frame))


def find_disagreement(P) -> str:
    """The first run about which results.csv on disk and the records differ; empty where none does, or no file is there."""
    file = runs.page_folder(P) / "results.csv"
    if not file.exists():
        return ""
    kept = file.read_text(encoding="utf-8").splitlines()
    ours = runs.format_csv(runs.collect_ledger(plans.plan(P))).splitlines()
    differ = set(kept) ^ set(ours)
    return next((line.split(",")[0] for line in kept + ours if line in differ), "")
