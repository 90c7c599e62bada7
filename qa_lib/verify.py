"""The verdicts of a report, from its records: as a frame, as claims.csv, as printed lines.

    python -m qa_lib.verify REPORT [--profile P] [--size S] [--data DIR]

Nothing is trained. Any verdict exits 0; 1 means that results.csv on disk is not what the records say.
"""
import argparse
import re

import numpy as np
import pandas as pd

from qa_lib import advice, claims, params, runs, stats
from qa_lib import power as decidable

UNTESTED, ALONE = "not tested at this profile", "inconclusive: seeds (one gives no interval)"


def mixtures(P) -> tuple[float, ...]:
    """The ratios that claims over mixtures mean; none where a report mixes nothing."""
    return tuple(getattr(P, "ratios", ()))


def stated(claim: claims.Claim) -> str:
    """The printed value, or its range, as text."""
    return "–" if claim.printed is None else " to ".join(f"{x:g}" for x in dict.fromkeys(claim.range))


def printed(row) -> str:
    """The printed value of a row of `table`, with its unit."""
    return "–" if row.printed == "–" else f"{row.printed} {row.unit}"


def found(row, digits: int = 1) -> str:
    """Ours of a row of `table`, with its interval, and of a claim with several parts the one that is shown."""
    ours, low, high = (f"{x:.{digits}f}" for x in (row.ours, row.low, row.high))
    interval = f" [{low}, {high}]" * bool(np.isfinite(row.low))
    return "–" if np.isnan(row.ours) else ours + interval + f" ({row.part})" * bool(row.part)


def part(label: str, domains: list[str]) -> str:
    """A part's label as a reader says it: "set first, metric em" is "squad, EM"."""
    words = {"em": "EM", "f1": "F1"} | dict(zip(("first", "second"), domains, strict=False))
    return re.sub(r"\w+", lambda word: words.get(word[0], word[0]), re.sub(r"\b(set|metric|variant) ", "", label))


def table(P) -> pd.DataFrame:
    """A row a claim: claim, where, says, printed, unit, ours, low, high (95 %), part, n, verdict, tuned, control, primary, run.

    ours is in the unit of `printed`: a difference in the claim's direction, or a score where the claim names one. part: of a
    claim about several sets or metrics the one that ours is of, that with the largest p. tuned: the verdict in the arm in which
    every model had the same trials; control: on the effect that the claim's control leaves.
    """
    specs, listed = runs.plan(P), claims.claims(P.report, mixtures(P))
    ledger = pd.concat([runs.ledger(specs), stats.curves(runs.histories(specs))], ignore_index=True)
    examples = runs.examples(specs)

    def judged(which: list[claims.Claim], arm: str) -> pd.DataFrame:
        frame = stats.verdicts(which, ledger, examples, P.profile, P.domains, arm).set_index("id")
        alone = frame["verdict"].astype(str).str.startswith("inconclusive") & ~(frame["nu"] > 0)
        return frame.assign(verdict=frame["verdict"].mask(alone, ALONE))

    plain, tuned = judged(listed, "printed"), judged(listed, "tuned")
    controlled = {c.id: claims.controlled(c) for c in listed if c.control and c.contrast}
    control, rows = judged(list(controlled.values()), "printed"), []
    for c in listed:
        row = plain.loc[c.id]
        sign = 1 if c.contrast and c.contrast.direction == "higher" else -1
        ours = [x + sign * (c.contrast.target if c.contrast else 0) for x in (row["d"], row["low"], row["high"])]
        if c.contrast and c.contrast.against is None:
            ours = [sign * x for x in ours]
        rows.append({"claim": c.id, "where": c.where, "says": c.says, "unit": c.unit, "ours": ours[0],
                     "printed": stated(c), "low": min(ours[1:]), "high": max(ours[1:]), "n": row["n"],
                     "part": part(row["part"], P.domains) if row["run"] else "", "verdict": row["verdict"],
                     "tuned": tuned["verdict"][c.id], "primary": c.primary, "run": row["run"],
                     "control": f"{c.control}: {control['verdict'][controlled[c.id].id]}" if c.id in controlled else ""})
    return pd.DataFrame(rows)[["claim", "where", "says", "printed", "unit", "ours", "low", "high", "part", "n", "verdict",
                               "tuned", "control", "primary", "run"]]


def saved(P) -> pd.DataFrame:
    """The table, written to claims.csv beside the page."""
    frame, file = table(P), runs.page(P) / "claims.csv"
    text = frame.assign(run=frame["run"].str.join(" ")).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    runs.write(file, text)
    return frame


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` for which there are runs, as a page shows them; what is not tested here says so without its reason."""
    rows = frame[frame["run"].map(len) > 0]

    def short(column: str) -> pd.Series:
        return rows[column].str.replace(f"{UNTESTED}.*", "not tested", regex=True)

    primary = rows["primary"].map({True: "; primary", False: ""})
    return pd.DataFrame({"the report says": rows["says"] + " (" + rows["where"] + primary + ")",
                         "printed": [printed(r) for r in rows.itertuples()],
                         "ours": [found(r) for r in rows.itertuples()], "seeds": rows["n"],
                         "verdict": short("verdict"), "equal trials": short("tuned"), "control": short("control"),
                         "run": rows["run"]})


def says(frame: pd.DataFrame, claim: str, verdict: str, column: str = "verdict") -> bool:
    """Is that the verdict of a row of `table`, or in its column tuned or control?"""
    return bool(re.search(rf"(^|: ){verdict}(:|$)", frame.set_index("claim")[column][claim]))


def ours(frame: pd.DataFrame, claim: str) -> str:
    """`found` of a claim by its id."""
    return found(next(frame[frame["claim"] == claim].itertuples()))


def counts(frame: pd.DataFrame) -> str:
    """One sentence: how many claims got which verdict."""
    found = frame["verdict"].str.split(":").str[0].value_counts()
    words = ["reproduced", claims.SMALLER, "not reproduced", "inconclusive", UNTESTED]
    return f"{len(frame)} claims: " + "; ".join(f"{found[w]} {w}" for w in words if w in found) + "."


def summary(P) -> str:
    """For a page's head: how many claims got which verdict, what changed since the freeze; empty while runs are missing.
    On own data no claim is judged: what the comparison advises."""
    if not all(runs.find(s) for s in runs.plan(P)):
        return ""
    if P.profile == "own":
        return advice.sentence(P)
    return f"{counts(table(P))} {notice(P.report)}".strip()


def notice(report: str) -> str:
    """One sentence where claims, arms or rules are not as they were frozen; empty where they are."""
    changed = claims.changed(report)
    return f"Changed since they were frozen: {', '.join(changed)} (LOG.md says what)." if changed else ""


def power(P) -> pd.DataFrame:
    """The table of qa_lib/power.py with our own test sets, as a page shows it: rows, or clusters where those are averaged."""
    spec, record = next((s, r) for s, r in runs.records(runs.plan(P)) if set(P.domains) <= set(s.tests))
    known, scores = params.datasets(P.source), record["metrics"]
    sizes = {d: scores[d]["clusters" if known[d].average == "clusters" else "n"] for d in spec.tests}
    ours = sizes | dict(zip(("first", "second"), (sizes[d] for d in P.domains), strict=False))
    frame = decidable.table(P.report, ours, mixtures(P))
    return decidable.shown(frame).assign(run=[(record["run"],)] * len(frame))


def disagreement(P) -> str:
    """The first run about which results.csv on disk and the records differ; empty where none does, or no file is there."""
    file = runs.page(P) / "results.csv"
    if not file.exists():
        return ""
    kept = file.read_text().splitlines()
    ours = runs.ledger(runs.plan(P)).to_csv(index=False, float_format="%.6g", lineterminator="\n").splitlines()
    differ = set(kept) ^ set(ours)
    return next((line.split(",")[0] for line in kept + ours if line in differ), "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    params.add_arguments(parser)
    args = parser.parse_args()
    profile = args.profile or params.default_profile()
    if not any(r["spec"]["profile"] == profile for r in runs.stored(args.report)):
        print(f"{args.report}: no run of profile {profile} has been recorded, so none of its "
              f"{len(claims.claims(args.report))} claims is tested")
        return 0
    P = runs.settle(args)
    frame = saved(P) if P.profile != "own" else pd.DataFrame()   # on own data no claim is judged
    for row in frame.itertuples():
        print(f"{P.report}  {row.claim}  printed {row.printed} {row.unit}, ours {found(row, 2)}, n={row.n}: {row.verdict}"
              f" | tuned: {row.tuned}" + f" | against {row.control}" * bool(row.control))
    if P.profile == "own":
        print(summary(P))
    else:
        print(counts(frame))
        print(runs.page(P) / "claims.csv")
        print(notice(P.report) or "claims, arms and rules are as they were frozen")
    if run := disagreement(P):
        print(f"results.csv and the records disagree, first about {run}; make train-{P.report} writes it from the records")
        return 1
    return 0


if __name__ == "__main__":
    params.main(main)
