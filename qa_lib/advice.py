r"""Own data: are the experts worth it? What the page of `make own` advises, from which numbers and by which rule.

    rule(low, high)      the advice, from the ends of the intervals
    table(P)             a row a domain: EM with and without experts, their difference and its interval
    sentence(P)          the advice in words, with what would decide it where nothing does yet

The difference is ExBERT less the same model without experts (control a), at the centre mixture, in the arm in which both had the
same trials of rate and epochs. Its interval is that of the claims (qa_lib/stats.py): over seeds and over test questions;
differences at the other mixtures count in the variance between seeds.
"""
import numpy as np
import pandas as pd

from qa_lib import claims, runs, stats
from qa_lib.tables import MODELS

OURS, CONTROL, ROOM = "exbert-tuned", "plain-tuned", 1.0   # ROOM: EM, the gain that counts and the loss that is borne
WORTH, NOT, OPEN = "worth it", "not worth it", "needs more data"


def rule(low, high) -> str:
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


def estimates(P) -> pd.DataFrame:
    """stats.verdicts' row of each domain: d, low, high, s2, nu, v, n, clusters, run. Empty where a side has no run at the centre.

    Below three seeds the ends are not numbers, as nothing is decided there.
    """
    specs = [s for s in runs.plan(P) if s.arm == "tuned" and s.variant in (OURS, CONTROL) and s.ratio is not None and s.tests]
    at = sorted({s.ratio for s in specs})
    if {s.variant for s in specs if s.ratio == P.centre} != {OURS, CONTROL}:
        return pd.DataFrame()
    listed = [claims.Claim(id=f"{name} {r}", where="own data", says="the experts help", printed=None, unit="EM", kind="superiority",
                           profiles=["real", "paper"], contrast=claims.Contrast(
                               ours={"variant": OURS}, against={"variant": CONTROL}, both={"ratio": r}, set=name, metric="em"))
              for r in at for name in P.domains]
    found = stats.verdicts(listed, runs.ledger(specs), runs.examples(specs), "real", P.domains, "tuned").set_index("id")
    found = found.loc[[f"{name} {P.centre}" for name in P.domains]].assign(domain=P.domains)
    found.loc[found["n"] < claims.ENOUGH, ["low", "high"]] = np.nan
    return found


def table(P) -> pd.DataFrame:
    """A row a domain, as a page shows it."""
    found = estimates(P)
    ledger = runs.ledger([s for s in runs.plan(P) if s.arm == "tuned" and s.ratio == P.centre and s.tests])
    em = ledger[ledger["metric"] == "em"].groupby(["set", "variant"])[["value", "n"]].agg({"value": "mean", "n": "first"})
    ends = ["–" if np.isnan(x.low) else f"{signed(x.low)} to {signed(x.high)}" for x in found.itertuples()]
    return pd.DataFrame({"tested on": found["domain"], "test rows": [int(em["n"][d, OURS]) for d in P.domains],
                         **{MODELS[m][0]: [em["value"][d, m] for d in P.domains] for m in (OURS, CONTROL)},
                         "difference": found["d"], "95 % interval": ends, "seeds": found["n"].astype(int), "run": found["run"]})


def lacks(found: pd.DataFrame, most: int = 100) -> str:
    """What would decide an open advice: the smallest number of seeds, if d, s² and v stayed as they are, or test questions."""
    if (found["n"] < claims.ENOUGH).any() or not (found["nu"] > 0).all():
        return f'Nothing is decided below {claims.ENOUGH} seeds: PARAMS="seeds=[0,1,2]" (`seeds` are those of the centre mixture).'
    for n in [*range(int(found["n"].max()) + 1, most + 1), 10**9]:
        ends = claims.interval(found["d"], found["s2"], found["nu"] + n - found["n"], found["v"], n, found["clusters"])
        if rule(*ends) != OPEN:
            return f"About {n} seeds would decide it, if the differences stayed as they are." if n <= most else \
                f"More than {most} seeds would be needed: the difference is too near to {ROOM:g} EM for them."
    return "More seeds would not decide it: what is missing is test questions, from other contexts."


def signed(x: float) -> str:
    return f"{x:+.1f}".replace("-", "−")


def sentence(P) -> str:
    """The advice in words."""
    found = estimates(P)
    if not len(found):
        return ("There is no advice: it takes experiment headline and arm tuned, "
                'PARAMS="experiments=[headline] arms=[tuned]".')
    advice = rule(found["low"], found["high"])
    parts = [f"{signed(x.d)} EM on {x.domain}" + ("" if np.isnan(x.low) else f" (95 % interval {signed(x.low)} to {signed(x.high)})")
             for x in found.itertuples()]
    why = {WORTH: "a gain above 1 EM on one domain at least is certain, and so is that the other loses no more than 1 EM",
           NOT: "a gain above 1 EM is ruled out on both domains, or a loss above 1 EM is certain on one",
           OPEN: "the intervals leave both open, a gain above 1 EM and none"}[advice]
    text = (f"Advice: {advice}. At {P.centre:.0%} {P.domains[0]} the experts change the score by {' and '.join(parts)}, against the "
            f"same model without experts and with the same trials for both, over {int(found['n'].min())} seeds: {why}.")
    return f"{text} {lacks(found)}" if advice == OPEN else text
