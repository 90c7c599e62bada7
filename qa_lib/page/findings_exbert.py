"""What the real records say of Bring in the ExBERT, in prose."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from scipy.stats import ttest_1samp

from qa_lib.evidence import verify
from qa_lib.evidence.verdicts import Verdict
from qa_lib.own_data import advice
from qa_lib.page import report, tables
from qa_lib.page.findings import (
    Central,
    Paragraph,
    join_paragraphs,
    rate,
    say_lead,
    select_central,
    spread,
    state,
)

RELATIVE = ("headline-relative", "mixed-gain-relative")  # claims about a share of V-DB's score

CENTRAL = (
    Central("ExBERT (final)", "V-DB, the plain model", "headline"),
    Central("ExBERT (final)", "its own blocks alone", "headline", "control"),
)


def result(claims: pd.DataFrame) -> tuple[str, int]:
    """Return the central comparisons in words, and their seeds; empty where there are none."""
    whole, layer = CENTRAL
    settings = select_central(whole, claims, "printed")
    if settings is None:
        return "", 0
    sentences = []
    subject, plain_model = "ExBERT (final)", "V-DB, the plain span model"
    own_blocks = "its own encoder blocks without the expert layer"
    for arm, start in (("tuned", "With equal tuning"), ("printed", "At the report's settings")):
        lead = select_central(whole, claims, arm)
        if lead is None:
            continue
        sentence = f"{start} {subject} is {say_lead(lead)} {plain_model}"
        subject, plain_model = "it", "V-DB"  # as the next sentence calls them
        if arm == "printed":
            sentence += f" (printed: {lead['printed']} %)"
        lead = select_central(layer, claims, arm)
        if lead is not None:
            sentence += f", and {say_lead(lead)} {own_blocks}"
            own_blocks = "these blocks"
        sentences.append(f"{sentence}.")
    return " ".join(sentences), settings["n"]


@dataclass(frozen=True)
class Numbers:
    """What the paragraphs are written of.

    ledger: of all runs with test scores. trials: tables.trials_table. table: verify.claims_table.
    routing: tables.collect_router_steps of ExBERT (final).
    """

    P: object
    ledger: pd.DataFrame
    trials: pd.DataFrame
    table: pd.DataFrame
    routing: pd.DataFrame

    @cached_property
    def printed_claims(self) -> pd.DataFrame:
        """The claims at the report's settings."""
        return verify.select(self.table)

    @cached_property
    def tuned_claims(self) -> pd.DataFrame:
        """The claims with equal tuning."""
        return verify.select(self.table, "tuned")

    @cached_property
    def block(self) -> pd.DataFrame:
        """ExBERT less control (a), with equal tuning, by domain."""
        return advice.estimates(self.P)

    @cached_property
    def dense(self) -> dict[tuple[str, str], pd.DataFrame]:
        """(control (b), arm) → ExBERT less that control, by domain."""
        estimates = {}
        for model in ("dense-compute", "dense-parameters"):
            for arm in ("tuned", "printed"):
                estimates[model, arm] = advice.estimates(self.P, model, arm)
        return estimates

    @property
    def both(self) -> str:
        return " and ".join(self.P.domains)

    @property
    def gains(self) -> dict[str, str]:
        """Claim about the gain on one domain → that domain."""
        return dict(zip(("squad-plus-8", "bioasq-plus-13"), self.P.domains, strict=True))

    def select(self, model: str, on: str, arm: str = "printed", **other) -> pd.Series:
        """Return a model's EM at the centre mixture, or as `other` says, one value a seed."""
        which = {"ratio": self.P.centre, "order": "trainer"} | other
        return tables.select_values(self.ledger, variant=model, set=on, arm=arm, **which)

    def say(self, model: str, arm: str = "printed") -> str:
        """Return a model's EM over seeds on each domain."""
        return " and ".join(spread(self.select(model, on, arm)) for on in self.P.domains)

    def differences(self, ours: str, theirs: str, arm: str = "printed", **other) -> list[pd.Series]:
        """Return one model less another on each domain, paired by seed."""
        return [
            self.select(ours, on, arm, **other) - self.select(theirs, on, arm, **other)
            for on in self.P.domains
        ]

    def validation_em(self, model: str) -> pd.Series:
        """Return the validation EM of a model's trial at ExBERT's rate and epochs."""
        is_rate = self.trials["learning_rate"] == self.P.tuned_rate
        is_epochs = self.trials["epochs"] == self.P.tuned_epochs
        is_model = self.trials["variant"] == f"{model}-trial"
        return self.trials.loc[is_rate & is_epochs & is_model, "validation_em"]

    def floor_is_low(self) -> bool:
        """Does V-DB hardly answer the first domain at the report's rate?"""
        return self.select("v-db", self.P.domains[0]).mean() < 10

    def is_close_to_control(self) -> bool:
        """Is ExBERT within 1 EM of control (a) on each domain, at the report's settings?"""
        gaps = self.differences("exbert-tuned", "plain-tuned")
        return max(abs(gap.mean()) for gap in gaps) < 1

    def lead_of_plain_model(self) -> list[pd.Series]:
        """Return V-DB less ExBERT on each domain, with equal tuning."""
        return self.differences("v-db", "exbert-tuned", "tuned")

    def plain_model_leads(self) -> bool:
        return min(lead.mean() for lead in self.lead_of_plain_model()) > 0


def say_left(estimates: pd.DataFrame) -> str:
    """Return differences with their intervals, by domain."""
    return " and ".join(
        f"{row.d:.1f} [{row.low:.1f}, {row.high:.1f}] EM on {row.domain}"
        for row in estimates.itertuples()
    )


def say_differences(differences: list[pd.Series]) -> str:
    return " and ".join(spread(difference) for difference in differences)


def what_reproduces(x: Numbers) -> Paragraph:
    printed = x.printed_claims["printed"]
    holds = True
    for claim in (*x.gains, "headline"):
        row = x.printed_claims.loc[claim]
        below = row.high < float(row.printed.split()[0])
        holds = holds and row.verdict == Verdict.NOT_REPRODUCED and 0 < row.low and below
    gained = [
        f"{verify.format_claim(x.table, claim)} more on {on} (printed: {printed[claim]})"
        for claim, on in x.gains.items()
    ]
    text = (
        "**What reproduces, and what does not.** With the report's own rates and epochs ExBERT "
        "(final) answers more questions than V-DB on both tests, but by less than is printed: "
        f"{' and '.join(gained)} with {x.P.centre:.0%} {x.P.domains[0]} in the mixture, "
        f"{verify.format_claim(x.table, 'headline')} over the mixtures and both tests (printed: "
        f"{printed['headline']}). In brackets are 95 % intervals over seeds and test questions; "
        "none contains 0 and none contains what is printed. The direction is the report's, the "
        "size is not, and the verdict is “not reproduced”."
    )
    return holds, text


def points_or_percent(x: Numbers) -> Paragraph:
    printed = x.printed_claims["printed"]
    fates = [f"“{x.printed_claims['verdict'][claim]}” of {printed[claim]}" for claim in RELATIVE]
    equal = [f"“{x.tuned_claims['verdict'][claim]}”" for claim in RELATIVE]
    holds = all(x.printed_claims["low"][claim] > 0 for claim in RELATIVE) and x.floor_is_low()
    text = (
        "**Points or percent.** The report writes “%”. Read as a share of V-DB's own score the "
        f"gain over the mixtures is {verify.format_claim(x.table, RELATIVE[0])}: "
        f"{' and '.join(fates)} percent. The rule asks whether the whole interval lies between "
        "half and twice of what is printed. The gain is large because V-DB's own score is small. "
        f"With equal tuning: {' and '.join(equal)}."
    )
    return holds, text


def on_what_floor(x: Numbers) -> Paragraph:
    text = (
        f"**On what floor this stands.** At {rate(x.P.learning_rate)}, DistilBERT's rate, MiniLM "
        f"hardly learns from {x.P.train_rows:,} examples: V-DB has an EM of {x.say('v-db')} on "
        f"{x.both}. Where all models score so low, differences in points are small. These verdicts "
        "are about the report's settings with another encoder; at the report's own they are still "
        "to be tested."
    )
    return x.P.encoder == "minilm" and x.floor_is_low(), text


def why_it_gains(x: Numbers) -> Paragraph:
    plain, exbert = x.validation_em("v-db"), x.validation_em("exbert-tuned")
    layer = x.differences("exbert-tuned", "plain-tuned")
    text = (
        f"**Why it gains.** Hardly by its experts. Control (a), ExBERT's {x.P.tuned_blocks} "
        f"encoder blocks, rate and epochs without the ST-MoE block, has {x.say('plain-tuned')} on "
        f"{x.both}, ExBERT {x.say('exbert-tuned')}, V-DB {x.say('v-db')}; paired by seed ExBERT "
        f"has {say_differences(layer)} more than (a). What these two share and V-DB has not are "
        f"fewer blocks, fewer epochs, and a rate {x.P.tuned_rate / x.P.learning_rate:.0f} times as "
        "high. The trials (one seed, validation rows) tell them apart: V-DB with all its blocks, "
        f"at that rate and those epochs, has an EM of {spread(plain)}, ExBERT {spread(exbert)}. So "
        "most of the gain is the rate's."
    )
    return x.is_close_to_control() and plain.mean() > exbert.mean(), text


def equal_tuning(x: Numbers) -> Paragraph:
    holds = x.plain_model_leads()
    for model in ("v-db", "exbert-tuned", "plain-tuned"):
        for on in x.P.domains:
            better = x.select(model, on, "tuned").mean() > x.select(model, on).mean()
            holds = holds and better
    gains = "” and “".join(x.tuned_claims["verdict"][claim] for claim in x.gains)
    text = (
        "**Equal tuning.** When the rate and the epochs of each model are chosen by the same "
        f"trials (one seed, validation rows, at most {max(x.P.trial_epochs):g} epochs), V-DB has "
        f"{x.say('v-db', 'tuned')} on {x.both}, ExBERT {x.say('exbert-tuned', 'tuned')} and "
        f"control (a) {x.say('plain-tuned', 'tuned')}: each better at this mixture than at the "
        f"report's rates. Paired by seed V-DB is {say_differences(x.lead_of_plain_model())} ahead "
        f"of ExBERT: in this arm the two gains are “{gains}”."
    )
    return holds, text


def what_the_block_adds(x: Numbers) -> Paragraph:
    added = x.differences("exbert-tuned", "plain-tuned", "tuned")
    # Of these seeds, no variance pooled.
    alone = [ttest_1samp(gain, 0).confidence_interval() for gain in added]
    certain = []
    for row, ends in zip(x.block.itertuples(), alone, strict=True):
        if min(row.low, ends.low) > 0:
            certain.append(row.domain)
    aside = []
    for ratio in x.P.ratios:
        if ratio == x.P.centre:
            continue
        gains = x.differences("exbert-tuned", "plain-tuned", "tuned", ratio=ratio)
        aside += [gain.mean() for gain in gains]
    is_positive = (x.block["d"] > 0).all() and min(aside) > 0
    is_largest_here = max(aside) < max(x.block["d"])
    holds = len(certain) == 1 and x.plain_model_leads() and is_positive and is_largest_here
    intervals = " and ".join(f"[{ends.low:.1f}, {ends.high:.1f}]" for ends in alone)
    text = (
        f"**What the block adds.** With equal tuning ExBERT is {say_left(x.block)} ahead of "
        "control (a) at this mixture (95 % intervals, the variance between seeds pooled over the "
        "mixtures; the report makes no such claim, so none was frozen). Of this mixture's seeds "
        f"alone the intervals are {intervals}: only on {' and '.join(certain)} do both say that "
        f"the difference is no accident. At the other mixtures its mean is {min(aside):.1f} to "
        f"{max(aside):.1f} EM. What (a) lacks is the whole block: experts, router, dropout and the "
        "dense feed-forward layer that the package puts behind the experts. No run has that layer "
        f"alone. V-DB's {x.P.blocks} encoder blocks without any of it score highest of the three "
        "in the mean."
    )
    return holds, text


def whether_it_takes_experts(x: Numbers) -> Paragraph:
    every = pd.concat(x.dense.values())
    filled = x.differences("dense-compute", "plain-tuned", "tuned")
    full = x.routing.groupby("run")["dropped"].mean()
    is_open = len(every) > 0 and (every["low"] <= 0).all() and (every["d"] < 1).all()
    dense_gains = min(gain.mean() for gain in filled) > 0
    compute, parameters = "dense-compute", "dense-parameters"
    text = (
        "**Whether it takes experts.** Nothing here says so. Controls (b) have one dense layer in "
        "the experts' place, and the rest of the block. At this mixture ExBERT less the layer that "
        f"costs a token as much is (minus: ExBERT is behind) {say_left(x.dense[compute, 'tuned'])} "
        f"with equal tuning, and {say_left(x.dense[compute, 'printed'])} at the report's rates; "
        "less the layer with as many weights, which costs more, it is "
        f"{say_left(x.dense[parameters, 'tuned'])} with equal tuning, and "
        f"{say_left(x.dense[parameters, 'printed'])} at the report's rates. In the mean a dense "
        "layer adds to (a) as much as the experts do, without a router: with equal tuning the one "
        f"of equal cost {say_differences(filled)} on {x.both} ({len(filled[0].dropna())} seeds). "
        f"That cost is the one on paper: in training {full.min():.0%} to {full.max():.0%} of a "
        f"run's picks found their expert full (capacity {x.P.capacity_train:g}, {x.P.top_n} picks "
        "a token), so that a token met about one expert, the dense layer does the work of "
        f"{x.P.top_n}."
    )
    return bool(is_open and dense_gains and full.between(0.35, 0.65).all()), text


def length_of_answers(x: Numbers) -> Paragraph:
    shorter, tuned = x.printed_claims.loc["longer-answers"], x.tuned_claims.loc["longer-answers"]
    cut = {}
    for arm in ("printed", "tuned"):
        cut[arm] = x.differences("plain-tuned", "exbert-tuned", arm, metric="tokens")
    least = min(gap.mean() for gaps in cut.values() for gap in gaps)
    is_refuted = shorter.verdict == Verdict.NOT_REPRODUCED and shorter.high < 0
    text = (
        "**Length of answers.** The report finds V-DB's answers generally longer than ExBERT's on "
        f"both tests, and shows eight. Over all answers they are shorter: by {-shorter.ours:.1f} "
        f"tokens (95 % interval {-shorter.high:.1f} to {-shorter.low:.1f}) on {shorter.part} at "
        f"the report's rates, {-tuned.ours:.1f} on {tuned.part} with equal tuning. That ExBERT's "
        "are longer is not its block's doing: control (a)'s are as long or longer, by "
        f"{say_differences(cut['printed'])} on {x.both} at the report's rates, "
        f"{say_differences(cut['tuned'])} with equal tuning."
    )
    return is_refuted and tuned.ours < 0 and least > -0.1, text


def what_these_records_cannot_say(x: Numbers) -> Paragraph:
    P = x.P
    dense = f", of controls (b) {len(P.dense_seeds)} at each" if P.dense_seeds else ""
    text = (
        f"**What these records cannot say.** They are of {P.train_rows:,} training examples a "
        "mixture, where the report has 4,000, and of MiniLM, which is smaller than DistilBERT and "
        f"has met SQuAD's questions with their paragraphs (section Data). There are {len(P.seeds)} "
        f"seeds at {P.centre:.0%} {P.domains[0]}, {len(P.side_seeds)} at the other "
        f"mixtures{dense}. {state(P, x.table)}"
    )
    return P.encoder == "minilm", text


def advice_to_a_user(x: Numbers) -> Paragraph:
    gained = [
        x.select("v-db", on, "tuned").mean() - x.select("v-db", on).mean() for on in x.P.domains
    ]
    is_largest = min(gained) > x.block["d"].max()
    text = (
        "**To someone who wants to use the idea.** Tune the plain model's rate first: here a "
        "handful of trials gained more than this block did in any comparison. If you then add a "
        "sparse layer, keep control (a) beside it, or the experts get the credit for the rate, and "
        "a dense layer of the same cost, or they get the credit for any layer's. `make own` makes "
        "the first comparison on two domains of your own, and the second with "
        "`experiments=[headline,dense]`."
    )
    return x.is_close_to_control() and x.plain_model_leads() and is_largest, text


def write_findings(
    P, ledger: pd.DataFrame, trials: pd.DataFrame, claims: pd.DataFrame, routing: pd.DataFrame
) -> report.Markdown:
    """Return the findings.

    ledger: of all runs with test scores. trials: tables.trials_table. claims: verify.claims_table.
    routing: tables.collect_router_steps of ExBERT (final).
    """
    x = Numbers(P, ledger, trials, claims, routing)
    return join_paragraphs(
        [
            what_reproduces(x),
            points_or_percent(x),
            on_what_floor(x),
            why_it_gains(x),
            equal_tuning(x),
            what_the_block_adds(x),
            whether_it_takes_experts(x),
            length_of_answers(x),
            what_these_records_cannot_say(x),
            advice_to_a_user(x),
        ]
    )
