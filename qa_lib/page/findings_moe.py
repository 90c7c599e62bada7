"""What the real records say of Sesame Street Ensemble, in prose."""

from dataclasses import dataclass

import pandas as pd

from qa_lib.evidence import verify
from qa_lib.evidence.verdicts import Verdict
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

CENTRAL = (
    Central("mixture of experts", "one model (dev)", "moe-dev", is_behind=True),
    Central("mixture of experts", "one model (test)", "moe-test", is_behind=True),
    Central("four blocks started anew", "one model (dev)", "reinit-dev", is_behind=True),
)


def result(claims: pd.DataFrame) -> tuple[str, int]:
    """Return the central comparisons in words, and their seeds; empty where there are none."""
    mixture, _, anew = CENTRAL
    dev = select_central(mixture, claims, "printed")
    if dev is None:
        return "", 0
    tuned = select_central(mixture, claims, "tuned")
    reinit = select_central(anew, claims, "printed")
    seeds = dev["n"]
    scored = ", scored as in the report," if dev["comparison"] == "starter" else ""
    text = (
        f"At the report's settings{scored} the mixture of experts is {say_lead(dev)} one model of "
        f"all the data on new domains (printed: {dev['printed']} behind)"
    )
    if tuned is None:
        text += "; equal tuning has not been run."
    else:
        text = f"With equal tuning the mixture is {say_lead(tuned)} one model. {text}."
    if reinit is not None:
        seeds = min(seeds, reinit["n"])
        text += (
            f" That model with four blocks started anew is {say_lead(reinit)} itself untouched "
            f"(printed: {reinit['printed']} behind)."
        )
    return text, seeds


@dataclass(frozen=True)
class Numbers:
    """What the paragraphs are written of.

    scores: the ledger of the printed arm, training scores left out. claims: the printed arm of
    verify.claims_table, by claim. experts: the experts' runs.collect_histories.
    """

    P: object
    scores: pd.DataFrame
    claims: pd.DataFrame
    experts: pd.DataFrame

    @property
    def dev(self) -> str:
        return self.P.pools[0]

    @property
    def test(self) -> str:
        return self.P.pools[-1]

    @property
    def reinit(self) -> str:
        return f"reinit-{self.P.reinit_blocks}"

    def select(self, model: str, on: str, metric: str = "em") -> pd.Series:
        """Return a model's scores on a test set, one a seed."""
        return tables.select_values(self.scores, variant=model, set=on, metric=metric)

    def em(self, model: str, on: str | None = None) -> float:
        """Return a model's mean EM on a test set, by default the first pool."""
        return self.select(model, on or self.dev).mean()

    def say(self, model: str, *sets: str) -> str:
        """Return a model's EM over seeds on test sets, by default the first pool."""
        return " and ".join(spread(self.select(model, on)) for on in sets or [self.dev])

    def say_starter_gap(self, model: str) -> str:
        """Return how far below the baseline a model is by the starter code's rule."""
        baseline = self.select("baseline", self.dev, "em_starter")
        return spread(baseline - self.select(model, self.dev, "em_starter"))

    def have_verdict(self, names: list[str], verdict: Verdict) -> bool:
        return bool((self.claims.loc[names, "verdict"] == verdict).all())

    def oracle_ahead(self) -> pd.Series:
        """Return the oracle's EM less the baseline's, by set and seed."""
        gaps = [
            self.select("oracle", on) - self.select("baseline", on) for on in (self.dev, self.test)
        ]
        return pd.concat(gaps)

    def experts_still_learn(self) -> bool:
        """Is every expert best in its last epoch?"""
        best = self.experts.loc[self.experts.groupby("run")["validation_f1"].idxmax()]
        return bool((best["epoch"] > best["epochs"] - 1).all())


def what_reproduces(x: Numbers) -> Paragraph:
    every = [
        ("the mixture", "moe", "moe-dev"),
        (f"Reinit-{x.P.reinit_blocks}", x.reinit, "reinit-dev"),
        ("the mixture of re-initialised experts", f"moe-{x.reinit}", "moe-reinit-dev"),
    ]
    ran = set(x.scores["variant"])
    below = [(name, model, claim) for name, model, claim in every if model in ran]
    printed = x.claims["printed"]
    holds = all(
        x.em("baseline") - x.em(model) > 2 * float(printed[claim]) for _, model, claim in below
    )
    text = (
        "**What reproduces, and what does not.** Nothing that was tried beats one model of all the "
        "data; the report finds that too. But there the others come close, and here they are far "
        f"below: on {x.dev} the baseline has an EM of {x.say('baseline')}, "
        + ", ".join(f"{name} {x.say(model)}" for name, model, _ in below)
        + f" (printed, below the baseline: {', '.join(printed[claim] for *_, claim in below)}; by "
        "the starter code's rule, under which these were made, ours are "
        f"{', '.join(x.say_starter_gap(model) for _, model, _ in below)} below it)."
    )
    if x.have_verdict(["out-of-domain-harder", "pooling-generalises"], Verdict.REPRODUCED):
        inside = ", ".join(f"{x.say('baseline', domain)} on {domain}" for domain in x.P.domains)
        text += (
            " Reproduced is that this model is much worse on new domains than on its own, and "
            f"better there than any expert. (These are other questions, too: it has {inside}, "
            f"which it learnt, and {x.say('baseline', x.test)} on {x.test}.)"
        )
        if x.have_verdict(["both-hurt", "reinit-declines"], Verdict.REPRODUCED):
            text += (
                " So is, as a mere direction, that the mixture and blocks started anew lower the "
                "score."
            )
    return holds, text


def why_the_mixture_loses(x: Numbers) -> Paragraph:
    room = x.oracle_ahead()
    worse = [x.em("own-expert", domain) < x.em("baseline", domain) for domain in x.P.domains]
    holds = x.experts_still_learn() and room.max() < 2 and all(worse)
    own = [
        f"{domain} {x.say('own-expert', domain)} against {x.say('baseline', domain)}"
        for domain in x.P.domains
    ]
    text = (
        "**Why the mixture loses.** Each of its experts has a third of the baseline's rows at the "
        f"same number of epochs, and at the report's rate ({rate(x.P.learning_rate)}, for a larger "
        "encoder) each is best in its last epoch, still learning. Each answers even its own "
        f"dataset worse than the baseline: {', '.join(own)}. An oracle that chooses of each "
        f"question the best expert's answer has {x.say('oracle', x.dev, x.test)} on {x.dev} and "
        f"{x.test}, the baseline {x.say('baseline', x.dev, x.test)}, the mixture "
        f"{x.say('moe', x.dev, x.test)}: choosing perfectly among the experts' answers would close "
        f"most of the gap to one model, and lie {room.min():.1f} to {room.max():.1f} EM from it, "
        "by seed and set. Whether few rows and steps hold the experts back, or the single dataset, "
        "was not separated."
    )
    return holds, text


def has_the_gate_learnt(x: Numbers) -> Paragraph:
    gaps = [abs(x.em("moe", on) - x.em("uniform-weights", on)) for on in (x.dev, x.test)]
    holds = max(gaps) < 2 and x.have_verdict(
        ["gate-not-learned", "gate-below-told"], Verdict.UNDECIDED
    )
    told = x.select("told-dataset", x.test) - x.select("moe", x.test)
    inside = [
        f"{x.say('moe', domain)} on {domain} (equal weights {x.say('uniform-weights', domain)})"
        for domain in x.P.domains
    ]
    text = (
        "**Has the gate learnt anything?** Little that shows on new domains: "
        f"{x.say('moe', x.dev, x.test)} on {x.dev} and {x.test}, where equal weights give "
        f"{x.say('uniform-weights', x.dev, x.test)}, the one expert that is best on validation "
        f"{x.say('best-single', x.dev, x.test)}, and one set of weights for each new dataset, "
        f"fitted on its few examples, {x.say('told-dataset', x.dev, x.test)}. These seeds do not "
        "decide it: what the gate adds to equal weights is "
        f"{verify.format_effect(x.claims.loc['gate-not-learned'])} on {x.dev}, what such a set of "
        f"weights adds to the gate {verify.format_effect(x.claims.loc['gate-below-told'])} there "
        f"and, by seed, {spread(told)} on {x.test}. In its own domains the mixture has "
        f"{', '.join(inside)}."
    )
    return holds, text


def starting_blocks_anew(x: Numbers) -> Paragraph:
    reload = f"reload-{x.P.reinit_blocks}"
    text = (
        f"**Starting blocks anew.** With {x.P.reinit_blocks} top blocks at random weights the "
        f"model has {x.say(x.reinit)} on {x.dev}, with the weights of lower blocks in their place "
        f"{x.say(reload)}, untouched {x.say('baseline')}. What is lost is probably what the blocks "
        "had learnt before; so few rows and steps do not bring it back."
    )
    return x.em(x.reinit) < x.em(reload) < x.em("baseline"), text


def what_these_records_cannot_say(x: Numbers, claims: pd.DataFrame) -> Paragraph:
    P = x.P
    arms = (
        ""
        if "tuned" in P.arms
        else "They are at the rate and epochs of the report; equal tuning was not run. "
    )
    curves = f", of two training curves {len(P.seeds + P.curve_seeds)}" if P.curve_seeds else ""
    text = (
        f"**What these records cannot say.** They are of {P.train_rows:,} examples of each dataset "
        "(the report: 50,000, each or together is not said), and of MiniLM, which is smaller than "
        f"DistilBERT and has met two of the in-domain datasets (section Data). {arms}There are "
        f"{len(P.seeds)} seeds{curves}. {state(P, claims)}"
    )
    return P.encoder == "minilm", text


def advice_to_a_user(x: Numbers) -> Paragraph:
    text = (
        "**To someone who wants to use the idea.** Train the experts first, each until its "
        "validation score stops rising, at a rate chosen for it. Then, before building a gate, "
        "compute what the best choice among their answers would score: it takes the experts' "
        "answers and the gold ones. Where that is not clearly better than one model of all the "
        "data, as here, no gate that chooses among them will beat that model by more."
    )
    return x.experts_still_learn() and x.oracle_ahead().max() < 2, text


def write_findings(
    P, scores: pd.DataFrame, claims: pd.DataFrame, experts: pd.DataFrame
) -> report.Markdown:
    """Return the findings.

    scores: the ledger of the printed arm, training scores left out. claims: of verify.claims_table.
    experts: the experts' runs.collect_histories.
    """
    x = Numbers(P, scores, verify.select(claims), experts)
    return join_paragraphs(
        [
            what_reproduces(x),
            why_the_mixture_loses(x),
            has_the_gate_learnt(x),
            starting_blocks_anew(x),
            what_these_records_cannot_say(x, claims),
            advice_to_a_user(x),
        ]
    )
