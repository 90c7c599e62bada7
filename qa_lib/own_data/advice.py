"""The advice on own data: is ExBERT's block worth it? Its numbers and its rule.

    advise(low, high)      the advice, from the ends of the intervals
    has_learnt(P)          whether the models have learnt enough for an advice
    advice_table(P)        EM with and without the ST-MoE block and their difference, by domain
    describe_advice(P)     the advice in words; an open one with what would decide it

The difference is that of ExBERT and control (a), its encoder blocks without the ST-MoE block. Both
are trained on the centre mixture with equal tuning. The interval is that of the claims
(qa_lib/evidence/stats.py), over seeds and over test questions. Differences at the other mixtures
count in the variance between seeds.
"""

from itertools import chain

import numpy as np
import pandas as pd

from qa_lib.data import selection
from qa_lib.evidence import claims, stats, verdicts
from qa_lib.own_data.floor import Floor, measure_floor
from qa_lib.reports import plans
from qa_lib.reports.exbert import MODELS
from qa_lib.reports.trials import validation_score
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs

OURS = "exbert-tuned"
CONTROL = "plain-tuned"
PLAIN = "v-db"
ROOM = 1.0  # EM: a larger gain is worth the experts, a smaller loss is borne
ABOVE_FLOOR = 5.0  # EM that a model has more than answers without reading, once it has learnt
COMPARABLE = 10.0  # EM that the best model has at least where more seeds may decide
STEADY = 5.0  # EM: above this sd between seeds more seeds are no remedy
MOST = 100  # the most seeds that are proposed
WORTH = "worth it"
NOT = "not worth it"
OPEN = "needs more data or seeds"
REASONS = {
    WORTH: (
        "a gain above 1 EM is certain on one domain at least, and a loss above 1 EM is ruled out "
        "on both"
    ),
    NOT: "a gain above 1 EM is ruled out on both domains, or a loss above 1 EM is certain on one",
    OPEN: "that allows a gain above 1 EM and also none",
}
# Of an open advice where the gain on one domain is certain.
HALF_OPEN = (
    "a gain above 1 EM is certain on one domain, and a loss above 1 EM is not ruled out on the "
    "other"
)


# ---- the rule ----


def advise(low, high) -> str:
    """Return the advice for the 95 % intervals of the difference on D domains.

    Worth it: a gain above 1 EM on at least one domain (its lower end is above +1), and on none a
    loss above 1 EM (all lower ends are above −1).

    Not worth it: the contrary is shown. Either all gains are below 1 EM (all upper ends are below
    +1), or there is a loss above 1 EM on one domain (its upper end is below −1).

    Everything else needs more data or seeds. So does an end that is not a number.

    An end errs in 2.5 % of studies. With two domains at most 5 % of the studies in which the
    experts are not worth it say that they are.

    low, high: the ends of the intervals (D,), in EM.
    """
    low = np.asarray(low, float)
    high = np.asarray(high, float)
    if np.isnan([low, high]).any():
        return OPEN
    if (low > ROOM).any() and (low > -ROOM).all():
        return WORTH
    if (high < ROOM).all() or (high < -ROOM).any():
        return NOT
    return OPEN


# ---- the numbers ----


def scored_runs(P) -> list[Spec]:
    """Return the runs of the plan with equal tuning that have test sets."""
    return [spec for spec in plans.plan(P) if spec.arm == "tuned" and spec.tests]


def centre_runs(P) -> list[Spec]:
    """Return the runs of the three compared models at the centre, with equal tuning."""
    compared = (OURS, CONTROL, PLAIN)
    every = scored_runs(P)
    return [spec for spec in every if spec.variant in compared and spec.ratio == P.centre]


def list_contrasts(P, ratios: list[float]) -> list[claims.Claim]:
    """Return a claim for each mixture and domain: ExBERT scores more than control (a)."""
    listed = []
    for ratio in ratios:
        for domain in P.domains:
            contrast = claims.Contrast(
                ours={"variant": OURS},
                against={"variant": CONTROL},
                both={"ratio": ratio},
                set=domain,
                metric="em",
            )
            claim = claims.Claim(
                id=f"{domain} {ratio}",
                where="own data",
                says="the experts help",
                printed=None,
                unit="EM",
                kind="superiority",
                profiles=["real", "paper"],
                contrast=contrast,
            )
            listed.append(claim)
    return listed


def estimates(P) -> pd.DataFrame:
    """Estimate the difference between ExBERT and control (a) at the centre mixture.

    Returns a row for each domain, with the columns of stats.judge_claims: d, low, high, s2, nu, v,
    n, clusters and run. The frame is empty where one of the two has no run at the centre. Below
    three seeds low and high are NaN, since nothing is decided there.
    """
    compared = {OURS, CONTROL}
    specs = [spec for spec in scored_runs(P) if spec.variant in compared and spec.ratio is not None]
    if {spec.variant for spec in specs if spec.ratio == P.centre} != compared:
        return pd.DataFrame(columns=["domain", "d", "low", "high"])
    ratios = sorted({spec.ratio for spec in specs})
    judged = stats.judge_claims(
        list_contrasts(P, ratios),
        runs.collect_ledger(specs),
        runs.collect_examples(specs),
        "real",
        P.domains,
        "tuned",
    ).set_index("id")
    rows = judged.loc[[f"{domain} {P.centre}" for domain in P.domains]].assign(domain=P.domains)
    rows.loc[rows["n"] < verdicts.ENOUGH, ["low", "high"]] = np.nan
    return rows


def mean_scores(P) -> pd.DataFrame:
    """Return the mean EM over seeds at the centre mixture, with equal tuning.

    The index is (domain, variant). Columns: value, n (test rows) and run (all runs).
    """
    ledger = runs.collect_ledger(centre_runs(P))
    groups = ledger[ledger["metric"] == "em"].groupby(["set", "variant"])
    return groups.agg(
        value=("value", "mean"), n=("n", "first"), run=("run", lambda names: tuple(names.unique()))
    )


# ---- have the models learnt anything? ----


def validation_scores(P) -> dict[str, float]:
    """Return variant → its score on validation at the centre, the mean over seeds.

    The score is the one by which the runs' task chooses among trials.
    """
    scores: dict[str, list[float]] = {}
    for spec, record in runs.require_records(centre_runs(P)):
        score, _ = validation_score(spec, record)
        scores.setdefault(spec.variant, []).append(score)
    return {variant: float(np.mean(values)) for variant, values in scores.items()}


def find_floor(P) -> Floor:
    """Return what answers without reading are worth on the validation rows of the centre."""
    training, validation, _ = selection.draw_mixture(centre_runs(P)[0])
    return measure_floor(validation, training)


def has_learnt(P) -> bool:
    """Return whether the models have learnt enough for an advice.

    On validation rows the plain model, and the better of the two that are compared, have to be more
    than ABOVE_FLOOR above answers that need no reading.
    """
    scores = validation_scores(P)
    least = find_floor(P).em + ABOVE_FLOOR
    return scores[PLAIN] > least and max(scores[OURS], scores[CONTROL]) > least


def describe_learning(P) -> str:
    """Return what the models score on validation rows, beside answers that need no reading."""
    scores = validation_scores(P)
    floor = find_floor(P)
    parts = [f"{MODELS[model][0]} {scores[model]:.1f}" for model in (PLAIN, OURS, CONTROL)]
    return (
        f"EM on validation rows: {', '.join(parts)}. The best of three answers that need no "
        f"reading ({floor.answer}) has {floor.em:.1f}; a model that has learnt has more than "
        f"{floor.em + ABOVE_FLOOR:.1f}."
    )


# ---- what a reader sees ----


def format_signed(x: float) -> str:
    """Return a number with its sign and one decimal."""
    return f"{x:+.1f}".replace("-", "−")


def format_interval(row) -> str:
    """Return both ends of the interval in a row of `estimates`, or "" where it has none."""
    if np.isnan(row.low):
        return ""
    return f"{format_signed(row.low)} to {format_signed(row.high)}"


def advice_table(P) -> pd.DataFrame:
    """Return the numbers behind the advice, a row for each domain, as a page shows them.

    The test rows, the mean EM of ExBERT, of control (a) and of V-DB, what ExBERT has more than
    control (a), its interval, and the seeds. P: the parameters of an own study. Raises UserError
    where there is nothing to compare.
    """
    differences = estimates(P)
    if not len(differences):
        raise UserError(describe_advice(P))
    em = mean_scores(P)
    columns = {
        "tested on": differences["domain"],
        "test rows": [int(em["n"][domain, OURS]) for domain in P.domains],
    }
    for model in (OURS, CONTROL, PLAIN):
        columns[MODELS[model][0]] = [em["value"][domain, model] for domain in P.domains]
    columns["difference, (a)"] = [format_signed(d) for d in differences["d"]]
    columns["its 95 % interval"] = [format_interval(row) or "–" for row in differences.itertuples()]
    columns["seeds"] = differences["n"].astype(int)
    columns["run"] = [
        tuple(dict.fromkeys(chain.from_iterable(em["run"][domain]))) for domain in P.domains
    ]
    return pd.DataFrame(columns)


def explain_open_advice(differences: pd.DataFrame, best: float) -> str:
    """Return what an open advice needs.

    It may need more seeds to begin with, more training, steadier training, as many seeds as would
    decide it if d, s2 and v stayed as they are, or more test questions.

    differences: from `estimates`. best: the highest EM of any model.
    """
    if (differences["n"] < verdicts.ENOUGH).any() or not (differences["nu"] > 0).all():
        return (
            f"Nothing is decided below {verdicts.ENOUGH} seeds at the centre mixture: "
            'PARAMS="seeds=[0,1,2]".'
        )
    if best < COMPARABLE:
        return (
            f"No model answers more than {best:.1f} % of a test set, so little was learnt: first "
            "more training rows, or more epochs."
        )
    between_seeds = float(np.sqrt(differences["s2"].max()))
    between_questions = float(np.sqrt(differences["v"].max()))
    text = (
        f"The difference varies by {between_seeds:.1f} EM between seeds and by "
        f"{between_questions:.1f} with other test questions (sd). "
    )
    if between_seeds > STEADY:
        return (
            f"{text}Models that differ so much by seed alone are hardly trained: first more "
            "training rows, or more epochs."
        )
    seeds = count_deciding_seeds(differences)
    if seeds is None:
        return (
            f"{text}More seeds alone would hardly decide it: more test questions, from other "
            "contexts."
        )
    return (
        f'{text}About {seeds} seeds (PARAMS="seeds=[0,1,…]") would decide it if it stayed so; from '
        "so few that is a rough guess."
    )


def count_deciding_seeds(differences: pd.DataFrame) -> int | None:
    """Count the seeds that would give an advice if d, s2 and v stayed as they are.

    Returns None where MOST seeds would not.
    """
    for n in range(int(differences["n"].max()) + 1, MOST + 1):
        low, high = verdicts.interval(
            differences["d"],
            differences["s2"],
            differences["nu"] + n - differences["n"],
            differences["v"],
            n,
            differences["clusters"],
        )
        if advise(low, high) != OPEN:
            return n
    return None


def epochs_hint(P) -> str:
    """Return a sentence about longer trainings, where those chosen had the most epochs tried."""
    most = max(P.trial_epochs)
    if P.halving:
        longer = f'PARAMS="trial_epochs=[{most:g},{2 * most:g}]" trains twice as long'
        return f"{longer}, and SIZE=full is the thorough version. "
    for spec in centre_runs(P):
        if spec.epochs == most:
            return (
                "The best trials had the most epochs tried: "
                f'PARAMS="trial_epochs=[{most:g},{2 * most:g}]" tries more. '
            )
    return ""


def edge_hint(P) -> str:
    """Return a sentence where the best rate of a compared model is the lowest or highest tried.

    Only trials by halving end there: others go on beyond the edge.
    """
    if not P.halving:
        return ""
    lowest, highest = min(P.trial_rates), max(P.trial_rates)
    chosen = {spec.variant: spec.learning_rate for spec in centre_runs(P)}
    models = [model for model in (OURS, CONTROL) if chosen[model] in (lowest, highest)]
    if not models:
        return ""
    names = " and ".join(MODELS[model][0] for model in models)
    beyond = [float(f"{rate:.1e}") for rate in (lowest / 3, highest * 3)]
    listed = ",".join(format_rate(rate) for rate in sorted([*P.trial_rates, *beyond]))
    return (
        f"The best rate of {names} is at the edge of those tried: "
        f'PARAMS="trial_rates=[{listed}]" tries more. '
    )


def format_rate(rate: float) -> str:
    """Return a rate with all its digits, as YAML reads it as a number: 5.0e-05."""
    return np.format_float_scientific(rate, trim="0")


def describe_differences(differences: pd.DataFrame) -> str:
    """Return the difference on each domain, with its interval where there is one."""
    parts = []
    for row in differences.itertuples():
        part = f"{format_signed(row.d)} EM on {row.domain}"
        interval = format_interval(row)
        if interval:
            part += f" (95 % interval {interval})"
        parts.append(part)
    return " and ".join(parts)


def describe_head(P) -> str:
    """Return what stands at the head of a page: the advice, once all runs are recorded."""
    is_whole = all(runs.find_record(spec) for spec in plans.plan(P))
    return describe_advice(P) if is_whole else ""


def describe_advice(P) -> str:
    """Return the advice in words, with its reason and the models' scores."""
    differences = estimates(P)
    if not len(differences):
        return (
            "There is no advice: it takes experiment headline and arm tuned, "
            'PARAMS="experiments=[headline] arms=[tuned]".'
        )
    em = mean_scores(P)["value"]
    if not has_learnt(P):
        return (
            f"Advice: none yet, since the models have learnt too little. {describe_learning(P)} "
            f"First more training rows, or more epochs. {epochs_hint(P)}{edge_hint(P)}"
            f"{describe_scores(P, em)}"
        )
    advice = advise(differences["low"], differences["high"])
    reason = REASONS[advice]
    if advice == OPEN and (differences["low"] > ROOM).any():
        reason = HALF_OPEN
    n = int(differences["n"].min())
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    text = (
        f"Advice: {advice}. In a mixture with {P.centre:.0%} {P.domains[0]} the ST-MoE block "
        f"changes the score by {describe_differences(differences)} against the same encoder blocks "
        f"without it, both with equal tuning, over {seeds}: {reason}. "
    )
    if advice == OPEN:
        text += f"{explain_open_advice(differences, em.max())} {epochs_hint(P)}"
    text += edge_hint(P)
    if advice == WORTH and "dense" not in P.experiments:
        text += (
            "Before the experts get the credit, put a dense layer of the same cost beside them: "
            'PARAMS="experiments=[headline,dense]". '
        )
    return text + describe_scores(P, em)


def describe_scores(P, em: pd.Series) -> str:
    """Return the EM of the three models on both test sets.

    em: by (domain, variant), from `mean_scores`.
    """
    scores = {}
    for model in (OURS, CONTROL, PLAIN):
        scores[model] = " and ".join(f"{em[domain, model]:.1f}" for domain in P.domains)
    leads = []
    for domain in P.domains:
        lead = em[domain, PLAIN] - em[domain, OURS]
        if lead > 0:
            leads.append(f"{lead:.1f} on {domain}")
    ahead = ""
    if leads:
        ahead = f". V-DB, which has no experts, is ahead, by {' and '.join(leads)}"
    blocks = "all" if P.blocks is None else P.blocks
    return (
        f"EM on the two: with the ST-MoE block {scores[OURS]}, without {scores[CONTROL]} "
        f"(both of {P.tuned_blocks} encoder blocks), the plain span model of {blocks} blocks, "
        f"V-DB, {scores[PLAIN]}{ahead}."
    )
