r"""Own data: are the experts worth it? What the page of `make own` advises, from which numbers and by which rule.

    advise(low, high)      the advice, from the ends of the intervals
    advice_table(P)        a row a domain: EM with and without the ST-MoE block, their difference and its interval
    describe_advice(P)     the advice in words, with what would decide it where nothing does yet

The difference is ExBERT less its encoder blocks alone, without the ST-MoE block (control a), at the centre mixture, in the arm in
which both had the same trials of rate and epochs. Its interval is that of the claims (qa_lib/evidence/stats.py): over seeds and over test
questions; differences at the other mixtures count in the variance between seeds.
"""

import numpy as np
import pandas as pd

from qa_lib.evidence import claims, stats, verdicts
from qa_lib.reports import plans
from qa_lib.reports.exbert import MODELS
from qa_lib.settings.params import UserError
from qa_lib.store import runs

OURS, CONTROL, PLAIN = "exbert-tuned", "plain-tuned", "v-db"
ROOM = 1.0  # EM, the gain that counts and the loss that is borne
LEARNT = 10.0  # EM below which nothing is compared but beginners
STEADY = 5.0  # EM, sd of the difference between seeds above which more seeds are no cure
MOST = 100  # seeds beyond which nobody goes
WORTH, NOT, OPEN = "worth it", "not worth it", "needs more data or seeds"


def advise(low, high) -> str:
    """The advice, from the ends (D,) of the 95 % intervals of the difference on D domains, in EM.

    Worth it: a gain above 1 EM on one domain at least (lower end above +1), and no loss above 1 EM on any (all lower ends above
    −1). Not worth it: that is refuted, by gains below 1 EM on all domains (all upper ends below +1) or by a loss above 1 EM on
    one (an upper end below −1). Anything else needs more data or seeds, and so does an end that is not a number.
    Each end errs in 2.5 % of studies, so that with two domains at most 5 % are told "worth it" where it is not.
    """
    low, high = np.asarray(low, float), np.asarray(high, float)
    if np.isnan([low, high]).any():
        return OPEN
    if (low > ROOM).any() and (low > -ROOM).all():
        return WORTH
    return NOT if (high < ROOM).all() or (high < -ROOM).any() else OPEN


def estimates(P, control: str = CONTROL, arm: str = "tuned") -> pd.DataFrame:
    """ExBERT less a control: stats.judge_claims' row of each domain: d, low, high, s2, nu, v, n, clusters, run. Empty where a side has
    no run at the centre.

    Below three seeds the ends are not numbers, as nothing is decided there.
    """
    specs = [
        s
        for s in plans.plan(P)
        if s.arm == arm and s.variant in (OURS, control) and s.ratio is not None and s.tests
    ]
    at = sorted({s.ratio for s in specs})
    if {s.variant for s in specs if s.ratio == P.centre} != {OURS, control}:
        return pd.DataFrame(columns=["domain", "d", "low", "high"])
    listed = [
        claims.Claim(
            id=f"{name} {r}",
            where="own data",
            says="the experts help",
            printed=None,
            unit="EM",
            kind="superiority",
            profiles=["real", "paper"],
            contrast=claims.Contrast(
                ours={"variant": OURS},
                against={"variant": control},
                both={"ratio": r},
                set=name,
                metric="em",
            ),
        )
        for r in at
        for name in P.domains
    ]
    found = stats.judge_claims(
        listed, runs.collect_ledger(specs), runs.collect_examples(specs), "real", P.domains, arm
    ).set_index("id")
    found = found.loc[[f"{name} {P.centre}" for name in P.domains]].assign(domain=P.domains)
    found.loc[found["n"] < verdicts.ENOUGH, ["low", "high"]] = np.nan
    return found


def scores(P) -> pd.DataFrame:
    """(domain, variant) → mean EM over seeds, test rows n, runs: at the centre mixture, in the arm with equal trials."""
    ledger = runs.collect_ledger(
        [s for s in plans.plan(P) if s.arm == "tuned" and s.ratio == P.centre and s.tests]
    )
    return (
        ledger[ledger["metric"] == "em"]
        .groupby(["set", "variant"])
        .agg(value=("value", "mean"), n=("n", "first"), run=("run", lambda r: tuple(r.unique())))
    )


def advice_table(P) -> pd.DataFrame:
    """A row a domain, as a page shows it. Raises UserError where there is nothing to compare."""
    if not len(found := estimates(P)):
        raise UserError(describe_advice(P))
    em = scores(P)
    ends = [
        "–" if np.isnan(x.low) else f"{format_signed(x.low)} to {format_signed(x.high)}"
        for x in found.itertuples()
    ]
    return pd.DataFrame(
        {
            "tested on": found["domain"],
            "test rows": [int(em["n"][d, OURS]) for d in P.domains],
            **{
                MODELS[m][0]: [em["value"][d, m] for d in P.domains] for m in (OURS, CONTROL, PLAIN)
            },
            "difference, (a)": [format_signed(x) for x in found["d"]],
            "its 95 % interval": ends,
            "seeds": found["n"].astype(int),
            "run": [tuple(dict.fromkeys(sum(em["run"][d], ()))) for d in P.domains],
        }
    )


def lacks(found: pd.DataFrame, best: float) -> str:
    """What an open advice wants for: seeds to begin with, scores at all (best: the highest), steadier training, the seeds that
    would decide it if d, s² and v stayed as they are, or test questions."""
    if (found["n"] < verdicts.ENOUGH).any() or not (found["nu"] > 0).all():
        return f'Nothing is decided below {verdicts.ENOUGH} seeds at the centre mixture: PARAMS="seeds=[0,1,2]".'
    if best < LEARNT:
        return (
            f"No model answers more than {best:.1f} % of a test set, so little was learnt: first more training rows, or more "
            "epochs."
        )
    seeds, questions = (float(np.sqrt(found[x].max())) for x in ("s2", "v"))
    text = f"The difference varies by {seeds:.1f} EM between seeds and by {questions:.1f} with other test questions (sd). "
    if seeds > STEADY:
        return (
            text
            + "Models that differ so much by seed alone are hardly trained: first more training rows, or more epochs."
        )
    for n in range(int(found["n"].max()) + 1, MOST + 1):
        ends = verdicts.interval(
            found["d"], found["s2"], found["nu"] + n - found["n"], found["v"], n, found["clusters"]
        )
        if advise(*ends) != OPEN:
            return (
                f'{text}About {n} seeds (PARAMS="seeds=[0,1,…]") would decide it if it stayed so; from so few that is a rough '
                "guess."
            )
    return (
        text + "More seeds alone would hardly decide it: more test questions, from other contexts."
    )


def edge(P) -> str:
    """A sentence where the best trials have the most epochs that were tried; empty where none has."""
    kept = [
        s.epochs
        for s in plans.plan(P)
        if s.arm == "tuned" and s.tests and s.variant in (OURS, CONTROL, PLAIN)
    ]
    most = max(P.trial_epochs)
    return (
        f'The best trials had the most epochs tried: PARAMS="trial_epochs=[{most:g},{2 * most:g}]" tries more. '
        if most in kept
        else ""
    )


def format_signed(x: float) -> str:
    return f"{x:+.1f}".replace("-", "−")


def describe_advice(P) -> str:
    """The advice in words."""
    found = estimates(P)
    if not len(found):
        return (
            "There is no advice: it takes experiment headline and arm tuned, "
            'PARAMS="experiments=[headline] arms=[tuned]".'
        )
    advice = advise(found["low"], found["high"])
    ends = [
        ""
        if np.isnan(x.low)
        else f" (95 % interval {format_signed(x.low)} to {format_signed(x.high)})"
        for x in found.itertuples()
    ]
    parts = [
        f"{format_signed(x.d)} EM on {x.domain}{end}"
        for x, end in zip(found.itertuples(), ends, strict=True)
    ]
    why = {
        WORTH: "a gain above 1 EM is certain on one domain at least, and a loss above 1 EM is ruled out on both",
        NOT: "a gain above 1 EM is ruled out on both domains, or a loss above 1 EM is certain on one",
        OPEN: "that allows a gain above 1 EM and also none",
    }[advice]
    seeds, em = int(found["n"].min()), scores(P)["value"]
    text = (
        f"Advice: {advice}. In a mixture with {P.centre:.0%} {P.domains[0]} the ST-MoE block changes the score by "
        f"{' and '.join(parts)} against the same encoder blocks without it, both with the same trials, over "
        f"{seeds} seed{'s' * (seeds > 1)}: {why}. "
        + f"{lacks(found, em.max())} {edge(P)}"
        * (advice == OPEN)
    )
    if advice == WORTH and "dense" not in P.experiments:
        text += (
            "Before the experts get the credit, put a dense layer of the same cost beside them: "
            'PARAMS="experiments=[headline,dense]". '
        )
    each = [" and ".join(f"{em[d, m]:.1f}" for d in P.domains) for m in (OURS, CONTROL, PLAIN)]
    return (
        f"{text}EM on the two: with the ST-MoE block {each[0]}, without {each[1]} (both of {P.tuned_blocks} encoder "
        f"blocks), the plain span model of {P.blocks} blocks, V-DB, {each[2]}."
    )
