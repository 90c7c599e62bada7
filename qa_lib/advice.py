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
from qa_lib.params import UserError
from qa_lib.tables import MODELS

OURS, CONTROL, PLAIN = "exbert-tuned", "plain-tuned", "v-db"
ROOM = 1.0   # ROOM: EM, the gain that counts and the loss that is borne
WORTH, NOT, OPEN = "worth it", "not worth it", "needs more data or seeds"


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


def scores(P) -> pd.DataFrame:
    """(domain, variant) → mean EM over seeds, test rows n, runs: at the centre mixture, in the arm with equal trials."""
    ledger = runs.ledger([s for s in runs.plan(P) if s.arm == "tuned" and s.ratio == P.centre and s.tests])
    return ledger[ledger["metric"] == "em"].groupby(["set", "variant"]).agg(value=("value", "mean"), n=("n", "first"),
                                                                       run=("run", lambda r: tuple(r.unique())))


def table(P) -> pd.DataFrame:
    """A row a domain, as a page shows it. Raises UserError where there is nothing to compare."""
    if not len(found := estimates(P)):
        raise UserError(sentence(P))
    em = scores(P)
    ends = ["–" if np.isnan(x.low) else f"{signed(x.low)} to {signed(x.high)}" for x in found.itertuples()]
    return pd.DataFrame({"tested on": found["domain"], "test rows": [int(em["n"][d, OURS]) for d in P.domains],
                         **{MODELS[m][0]: [em["value"][d, m] for d in P.domains] for m in (OURS, CONTROL, PLAIN)},
                         "difference, (a)": [signed(x) for x in found["d"]], "its 95 % interval": ends,
                         "seeds": found["n"].astype(int), "run": [tuple(dict.fromkeys(sum(em["run"][d], ()))) for d in P.domains]})


def lacks(found: pd.DataFrame, most: int = 100) -> str:
    """What would decide an open advice: the smallest number of seeds, if d, s² and v stayed as they are, or test questions."""
    if (found["n"] < claims.ENOUGH).any() or not (found["nu"] > 0).all():
        return f'Nothing is decided below {claims.ENOUGH} seeds at the centre mixture: PARAMS="seeds=[0,1,2]".'
    for n in [*range(int(found["n"].max()) + 1, most + 1), 10**9]:
        ends = claims.interval(found["d"], found["s2"], found["nu"] + n - found["n"], found["v"], n, found["clusters"])
        if rule(*ends) != OPEN:
            return (f"About {n} seeds at the centre mixture (parameter seeds) would decide it, if the differences stayed."
                    if n <= most else f"More than {most} seeds would be needed: the difference is too near to {ROOM:g} EM.")
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
    ends = ["" if np.isnan(x.low) else f" (95 % interval {signed(x.low)} to {signed(x.high)})" for x in found.itertuples()]
    parts = [f"{signed(x.d)} EM on {x.domain}{end}" for x, end in zip(found.itertuples(), ends, strict=True)]
    why = {WORTH: "a gain above 1 EM is certain on one domain at least, and a loss above 1 EM is ruled out on both",
           NOT: "a gain above 1 EM is ruled out on both domains, or a loss above 1 EM is certain on one",
           OPEN: "that allows a gain above 1 EM and also none"}[advice]
    seeds, em = int(found["n"].min()), scores(P)["value"]
    text = (f"Advice: {advice}. In a mixture with {P.centre:.0%} {P.domains[0]} the experts change the score by "
            f"{' and '.join(parts)} against the same model without experts, both with the same trials, over "
            f"{seeds} seed{'s' * (seeds > 1)}: {why}. " + f"{lacks(found)} " * (advice == OPEN))
    both = [" and ".join(f"{em[d, m]:.1f}" for d in P.domains) for m in (OURS, PLAIN)]
    return f"{text}With its experts and {P.tuned_blocks} blocks the model has {both[0]} EM, V-DB with {P.blocks} blocks {both[1]}."
