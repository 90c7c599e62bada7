"""What the real records say of each report, in prose: paragraphs with numbers from the ledger.

A paragraph comes with the condition on the records under which it is true; one that new records do not bear out leaves the page.
"""

from math import inf

import pandas as pd
from scipy.stats import ttest_1samp

from qa_lib.evidence import verify
from qa_lib.own_data import advice
from qa_lib.page import report, tables
from qa_lib.reports import plans
from qa_lib.store import runs


def head(P) -> str:
    """For a page's head, where all runs are there: on own data the advice; on real data the result; how the claims fare."""
    if not all(runs.find_record(s) for s in plans.plan(P)):
        return ""
    if P.profile == "own":
        return advice.describe_advice(P)
    claims = verify.claims_table(P)
    said = result(P.report, claims) if P.profile in ("real", "paper") else ""
    return f"{said} {verify.count_verdicts(claims)}".strip()


def result(slug: str, claims: pd.DataFrame) -> str:
    """The report's central comparison in two sentences, from rows of verify.claims_table; empty where no run has made it."""
    row = {r.claim: r for r in claims.itertuples()}

    def apart(claim: str, which: str = "") -> str:
        """ "2.0 [1.0, 3.0] EM ahead of", or behind."""
        r = row[claim]
        sign = 1 if (ours := getattr(r, f"{which}ours")) >= 0 else -1
        low, high = sorted(sign * getattr(r, which + k) for k in ("low", "high"))
        turned = r._replace(
            **{f"{which}ours": sign * ours, f"{which}low": low, f"{which}high": high}
        )
        return f"{verify.format_effect(turned, which=which)} {'ahead of' if sign > 0 else 'behind'}"

    if slug == "exbert" and row["headline"].n:
        made, share = row["headline"], row["headline-relative"]
        n = made.n
        text = (
            f"over the mixtures that were run tuned ExBERT is {apart('headline')} V-DB at the report's own rates (printed: "
            f"{made.printed} %; whether points of EM or a share of V-DB's is not said; as such a share ours is "
            f"{verify.format_effect(share)})"
            + f" and {apart('headline', 'control_')} its encoder blocks alone, without the ST-MoE block"
            * (made.control_ours < inf)
            + f". Where all had the same trials of rate and epochs it is {apart('headline', 'tuned_')} V-DB"
            * (made.tuned_ours < inf)
            + f", {apart('headline', 'fair_')} these blocks" * (made.fair_ours < inf)
            + "."
        )
    elif slug == "moe" and row["moe-dev"].n:
        dev, test, anew = (row[c] for c in ("moe-dev", "moe-test", "reinit-dev"))
        n = min(dev.n, test.n, anew.n or dev.n)
        text = (
            f"the mixture of experts is {verify.format_effect(dev)} below one model of all the data on out-of-domain dev (printed: "
            f"{dev.printed}) and {verify.format_effect(test)} below it on test (printed: {test.printed})"
            + f"; that model with four blocks started anew is {verify.format_effect(anew)} below on dev (printed: {anew.printed})"
            * (anew.n > 0)
            + ". Printed scores are by the starter code's rule, which knows no answer of one token."
        )
    else:
        return ""
    few = {1: " One seed: seen, not decided.", 2: " Two seeds can refute a claim, not confirm one."}
    return f"Result: {text}{few.get(n, '')}"


def prose(paragraphs: list[tuple[bool, str]]) -> report.Markdown:
    """The paragraphs whose condition holds, and how many were left out."""
    gone = sum(not holds for holds, _ in paragraphs)
    note = f"{gone} of {len(paragraphs)} paragraphs are left out: they were written of other records, which these do not bear out."
    return report.Markdown(
        "\n\n".join([text for holds, text in paragraphs if holds] + [note] * (gone > 0))
    )


def spread(x: pd.Series) -> str:
    """Mean ± sd over seeds; no ± of one seed, – of none."""
    x = x.dropna()
    return f"{x.mean():.1f}" + f" ± {x.std():.1f}" * (len(x) > 1) if len(x) else "–"


def rate(x: float) -> str:
    """3e-5, not 3e-05."""
    return f"{x:g}".replace("e-0", "e-")


def state(P, claims: pd.DataFrame) -> str:
    """How far the records reach: seeds, claims without a verdict."""
    kind = claims["verdict"].str.split(":").str[0]
    judged = claims[~kind.isin(["inconclusive", verify.UNTESTED])]
    return (
        f"{(kind == 'inconclusive').sum()} of {len(claims)} claims stay inconclusive, {(kind == verify.UNTESTED).sum()} are "
        f"not tested; the {len(judged)} others rest on {judged['run'].nunique()} different sets of runs."
        + " Below three seeds a claim can be refuted, never confirmed."
        * (len(getattr(P, "side_seeds", P.seeds)) == 2)
        + " One seed gives no interval: what stands here is observed, not decided."
        * (len(P.seeds) == 1)
    )


def exbert(
    P, ledger: pd.DataFrame, trials: pd.DataFrame, claims: pd.DataFrame, routed: pd.DataFrame
) -> report.Markdown:
    """ledger: of all runs with test scores; trials: tables.trials_table; claims: verify.claims_table; routed: tables.collect_router_steps of tuned ExBERT."""
    both, judged = " and ".join(P.domains), claims.set_index("claim")

    def em(model: str, on: str, arm: str = "printed", **other) -> pd.Series:
        which = {
            "variant": model,
            "set": on,
            "arm": arm,
            "ratio": P.centre,
            "order": "trainer",
        } | other
        return tables.select_values(ledger, **which)

    def say(model: str, arm: str = "printed") -> str:
        return " and ".join(spread(em(model, on, arm)) for on in P.domains)

    def apart(ours: str, theirs: str, arm: str = "printed", **other) -> list[pd.Series]:
        """Paired by seed, on each domain."""
        return [em(ours, on, arm, **other) - em(theirs, on, arm, **other) for on in P.domains]

    def tried(model: str) -> pd.Series:
        at = (trials["learning_rate"] == P.tuned_rate) & (trials["epochs"] == P.tuned_epochs)
        return trials.loc[at & (trials["variant"] == f"{model}-trial"), "validation_em"]

    gains = dict(zip(("squad-plus-8", "bioasq-plus-13"), P.domains, strict=True))
    gained = [
        f"{verify.format_claim(claims, c)} more on {on} (printed: {judged['printed'][c]})"
        for c, on in gains.items()
    ]
    shares = ("headline-relative", "mixed-gain-relative")
    first, shorter = P.domains[0], claims[claims["claim"] == "longer-answers"].iloc[0]
    fates = [f"“{judged['verdict'][c]}” of {judged['printed'][c]}" for c in shares]
    equal = " and ".join(f"“{judged['tuned'][c]}”" for c in shares)
    # fair: with equal trials
    layer, fair = (
        apart("exbert-tuned", "plain-tuned"),
        advice.estimates(P),
    )
    dense = {
        (m, arm): advice.estimates(P, m, arm)
        for m in ("dense-compute", "dense-parameters")
        for arm in ("tuned", "printed")
    }
    added, beside = apart("exbert-tuned", "plain-tuned", "tuned"), pd.concat(dense.values())
    # of these seeds, no variance pooled
    alone = [ttest_1samp(x, 0).confidence_interval() for x in added]
    certain = [
        d
        for d, low, x in zip(fair["domain"], fair["low"], alone, strict=True)
        if min(low, x.low) > 0
    ]
    aside = [
        x.mean()
        for r in P.ratios
        if r != P.centre
        for x in apart("exbert-tuned", "plain-tuned", "tuned", ratio=r)
    ]
    filled = apart("dense-compute", "plain-tuned", "tuned")
    full = routed.groupby("run")["dropped"].mean()
    cut = {
        arm: apart("plain-tuned", "exbert-tuned", arm, metric="tokens")
        for arm in ("printed", "tuned")
    }

    def left(found: pd.DataFrame) -> str:
        return " and ".join(
            f"{x.d:.1f} [{x.low:.1f}, {x.high:.1f}] EM on {x.domain}" for x in found.itertuples()
        )

    ahead = apart("v-db", "exbert-tuned", "tuned")
    alike, leads = max(abs(x.mean()) for x in layer) < 1, min(x.mean() for x in ahead) > 0
    rated = [em("v-db", on, "tuned").mean() - em("v-db", on).mean() for on in P.domains]
    return prose(
        [
            (
                all(
                    verify.has_verdict(claims, c, "not reproduced")
                    and 0 < judged["low"][c]
                    and judged["high"][c] < float(judged["printed"][c].split()[0])
                    for c in (*gains, "headline")
                ),
                "**What reproduces, and what does not.** With the report's own rates and epochs tuned ExBERT answers more questions than "
                f"V-DB on both tests, but by less than is printed: {' and '.join(gained)} with {P.centre:.0%} {first} in the mixture, "
                f"{verify.format_claim(claims, 'headline')} over the mixtures and both tests (printed: {judged['printed']['headline']}). In "
                "brackets are 95 % intervals over seeds and test questions; none contains 0 and none contains what is printed. The "
                "direction is the report's, the size is not, and the verdict is “not reproduced”.",
            ),
            (
                all(judged["low"][c] > 0 for c in shares) and em("v-db", first).mean() < 10,
                f"**Points or percent.** The report writes “%”. Read as a share of V-DB's own score the gain over the mixtures is "
                f"{verify.format_claim(claims, shares[0])}: {' and '.join(fates)} percent. The rule asks whether the whole interval lies between "
                "half and twice of what is printed. The gain is large because V-DB's own score is small. With equal trials: "
                f"{equal}.",
            ),
            (
                P.encoder == "minilm" and em("v-db", first).mean() < 10,
                f"**On what floor this stands.** At {rate(P.learning_rate)}, DistilBERT's rate, MiniLM hardly learns from "
                f"{P.train_rows:,} examples: V-DB has an EM of {say('v-db')} on {both}. Where all models score so low, differences in "
                "points are small. These verdicts are about the report's settings with another encoder; at the "
                "report's own they are still to be tested.",
            ),
            (
                alike and tried("v-db").mean() > tried("exbert-tuned").mean(),
                f"**Why it gains.** Hardly by its experts. Control (a), ExBERT's {P.tuned_blocks} encoder blocks, rate and epochs without "
                f"the ST-MoE block, has {say('plain-tuned')} on {both}, ExBERT {say('exbert-tuned')}, V-DB {say('v-db')}; paired by seed "
                f"ExBERT has {' and '.join(map(spread, layer))} more than (a). What these two share and V-DB has not are fewer blocks, "
                f"fewer epochs, and a rate {P.tuned_rate / P.learning_rate:.0f} times as high. The trials (one seed, validation rows) "
                f"tell them apart: V-DB with all its blocks, at that rate and those epochs, has an EM of {spread(tried('v-db'))}, ExBERT "
                f"{spread(tried('exbert-tuned'))}. So most of the gain is the rate's.",
            ),
            (
                leads
                and all(
                    em(m, on, "tuned").mean() > em(m, on).mean()
                    for m in ("v-db", "exbert-tuned", "plain-tuned")
                    for on in P.domains
                ),
                "**The same trials for all.** When the rate and the epochs of each model are chosen by the same trials (one seed, "
                f"validation rows, at most {max(P.trial_epochs):g} epochs), V-DB has {say('v-db', 'tuned')} on {both}, ExBERT "
                f"{say('exbert-tuned', 'tuned')} and control (a) {say('plain-tuned', 'tuned')}: each better at this mixture than "
                f"at the report's rates. Paired by seed V-DB is {' and '.join(map(spread, ahead))} ahead of ExBERT: in this arm the two "
                f"gains are “{'” and “'.join(judged['tuned'][c] for c in gains)}”.",
            ),
            (
                len(certain) == 1
                and leads
                and (fair["d"] > 0).all()
                and 0 < min(aside)
                and max(aside) < max(fair["d"]),
                f"**What the block adds.** With equal trials ExBERT is {left(fair)} ahead of control (a) at this mixture "
                "(95 % intervals, the variance between seeds pooled over the mixtures; the report makes no such claim, so none was "
                f"frozen). Of this mixture's seeds alone the intervals are {' and '.join(f'[{x.low:.1f}, {x.high:.1f}]' for x in alone)}: "
                f"only on {' and '.join(certain)} do both say that the difference is no accident. At the other mixtures its mean is "
                f"{min(aside):.1f} to {max(aside):.1f} EM. What (a) lacks is the whole block: experts, router, dropout and the dense "
                "feed-forward layer that the package puts behind the experts. No run has that layer alone. V-DB's "
                f"{P.blocks} encoder blocks without any of it score highest of the three in the mean.",
            ),
            (
                len(beside) > 0
                and (beside["low"] <= 0).all()
                and (beside["d"] < 1).all()
                and min(x.mean() for x in filled) > 0
                and full.between(0.35, 0.65).all(),
                "**Whether it takes experts.** Nothing here says so. Controls (b) have one dense layer in the experts' place, and the "
                "rest of the block. At this mixture ExBERT less the layer that costs a token as much is (minus: ExBERT is behind) "
                f"{left(dense['dense-compute', 'tuned'])} with equal trials, and {left(dense['dense-compute', 'printed'])} at the "
                "report's rates; less the layer with as many weights, which costs more, it is "
                f"{left(dense['dense-parameters', 'tuned'])} with equal trials, and {left(dense['dense-parameters', 'printed'])} at the "
                "report's rates. In the mean a dense layer adds to (a) as much as the experts do, without a router: with equal trials the "
                f"one of equal cost {' and '.join(map(spread, filled))} on {both} ({len(filled[0].dropna())} seeds). That cost is the one "
                f"on paper: in training {full.min():.0%} to {full.max():.0%} of a run's picks found their expert full (capacity "
                f"{P.capacity_train:g}, {P.top_n} picks a token), so that a token met about one expert, the dense layer does the work of "
                f"{P.top_n}.",
            ),
            (
                verify.has_verdict(claims, "longer-answers", "not reproduced")
                and shorter["high"] < 0
                and shorter["tuned_ours"] < 0
                and min(x.mean() for xs in cut.values() for x in xs) > -0.1,
                "**Length of answers.** The report finds V-DB's answers generally longer than ExBERT's on both tests, and shows eight. "
                f"Over all answers they are shorter: by {-shorter['ours']:.1f} tokens (95 % interval "
                f"{-shorter['high']:.1f} to {-shorter['low']:.1f}) on {shorter['part']} at the report's rates, "
                f"{-shorter['tuned_ours']:.1f} on {shorter['tuned_part']} with equal trials. That ExBERT's are longer is not its block's "
                f"doing: control (a)'s are as long or longer, by {' and '.join(map(spread, cut['printed']))} on {both} at the report's "
                f"rates, {' and '.join(map(spread, cut['tuned']))} with equal trials.",
            ),
            (
                P.encoder == "minilm",
                f"**What these records cannot say.** They are of {P.train_rows:,} training examples a mixture, where the report has "
                "4,000, and of MiniLM, which is smaller than DistilBERT and has met SQuAD's questions with their paragraphs (section "
                f"Data). There are {len(P.seeds)} seeds at {P.centre:.0%} {first}, {len(P.side_seeds)} at the other mixtures"
                f"{f', of controls (b) {len(P.dense_seeds)} at each' if P.dense_seeds else ''}. "
                f"{state(P, claims)}",
            ),
            (
                alike and leads and min(rated) > fair["d"].max(),
                "**To someone who wants to use the idea.** Tune the plain model's rate first: here a handful of trials gained more than "
                "this block did in any comparison. If you then add a sparse layer, keep control (a) beside it, or the experts get the "
                "credit for the rate, and a dense layer of the same cost, or they get the credit for any layer's. `make own` makes the "
                "first comparison on two domains of your own, and the second with `experiments=[headline,dense]`.",
            ),
        ]
    )


def moe(P, scores: pd.DataFrame, claims: pd.DataFrame, experts: pd.DataFrame) -> report.Markdown:
    """scores: the ledger of the printed arm, training scores left out; claims: verify.claims_table; experts: their runs.collect_histories."""
    far, test, anew, by = (
        P.pools[0],
        P.pools[-1],
        f"reinit-{P.reinit_blocks}",
        claims.set_index("claim"),
    )
    printed, same = (
        by["printed"],
        {*by.loc[["out-of-domain-harder", "pooling-generalises"], "verdict"]} == {"reproduced"},
    )

    def em(model: str, on: str = far) -> float:
        return tables.select_values(scores, variant=model, set=on).mean()

    def starter(model: str) -> str:
        """How far below the baseline, by the rule under which the report's scores were made."""
        one, other = (
            tables.select_values(scores, metric="em_starter", variant=m, set=far)
            for m in ("baseline", model)
        )
        return spread(one - other)

    def say(model: str, *sets: str) -> str:
        return " and ".join(
            spread(tables.select_values(scores, variant=model, set=on)) for on in sets or [far]
        )

    below = [
        (name, m, c)
        for name, m, c in (
            ("the mixture", "moe", "moe-dev"),
            (f"Reinit-{P.reinit_blocks}", anew, "reinit-dev"),
            ("the mixture of re-initialised experts", f"moe-{anew}", "moe-reinit-dev"),
        )
        if m in set(scores["variant"])
    ]
    lower = {*by.loc[["both-hurt", "reinit-declines"], "verdict"]} == {"reproduced"}
    own = [f"{d} {say('own-expert', d)} against {say('baseline', d)}" for d in P.domains]
    inside = [
        f"{say('moe', d)} on {d} (equal weights {say('uniform-weights', d)})" for d in P.domains
    ]
    best = experts.loc[experts.groupby("run")["validation_f1"].idxmax()]
    rising = (best["epoch"] > best["epochs"] - 1).all()
    reload = f"reload-{P.reinit_blocks}"
    told = tables.select_values(scores, variant="told-dataset", set=test) - tables.select_values(
        scores, variant="moe", set=test
    )
    room = pd.concat(
        [
            tables.select_values(scores, variant="oracle", set=on)
            - tables.select_values(scores, variant="baseline", set=on)
            for on in (far, test)
        ]
    )
    return prose(
        [
            (
                all(em("baseline") - em(m) > 2 * float(printed[c]) for _, m, c in below),
                "**What reproduces, and what does not.** Nothing that was tried beats one model of all the data; the report finds that "
                f"too. But there the others come close, and here they are far below: on {far} the baseline has an EM of "
                f"{say('baseline')}, "
                + ", ".join(f"{name} {say(m)}" for name, m, _ in below)
                + " (printed, below the baseline: "
                f"{', '.join(printed[c] for *_, c in below)}; by the starter code's rule, under which these were made, ours are "
                f"{', '.join(starter(m) for _, m, _ in below)} below it)."
                + (
                    " Reproduced is that this model is much worse on new domains than on its own, and better there than any expert. (These "
                    "are other questions, too: it has "
                    + ", ".join(f"{say('baseline', d)} on {d}" for d in P.domains)
                    + f", which it learnt, and {say('baseline', test)} on {test}.)"
                )
                * same
                + " So is, as a mere direction, that the mixture and blocks started anew lower the score."
                * (same and lower),
            ),
            (
                rising
                and room.max() < 2
                and all(em("own-expert", d) < em("baseline", d) for d in P.domains),
                "**Why the mixture loses.** Each of its experts has a third of the baseline's rows at the same number of "
                f"epochs, and at the report's rate ({rate(P.learning_rate)}, for a larger encoder) each is best in its last epoch, still "
                "learning. Each answers even its own dataset worse than the baseline: "
                + ", ".join(own)
                + ". An oracle that "
                f"chooses of each question the best expert's answer has {say('oracle', far, test)} on {far} and {test}, the baseline "
                f"{say('baseline', far, test)}, the mixture {say('moe', far, test)}: choosing perfectly among the experts' answers would "
                f"close most of the gap to one model, and lie {room.min():.1f} to {room.max():.1f} EM from it, by seed and set. Whether "
                "few rows and steps hold the experts back, or the single dataset, was not separated.",
            ),
            (
                max(abs(em("moe", on) - em("uniform-weights", on)) for on in (far, test)) < 2
                and all(
                    verify.has_verdict(claims, c, "inconclusive")
                    for c in ("gate-not-learned", "gate-below-told")
                ),
                f"**Has the gate learnt anything?** Little that shows on new domains: {say('moe', far, test)} on {far} and {test}, where "
                f"equal weights give {say('uniform-weights', far, test)}, the one expert that is best on validation "
                f"{say('best-single', far, test)}, and one set of weights for each new dataset, fitted on its few examples, "
                f"{say('told-dataset', far, test)}. These seeds do not decide it: what the gate adds to equal weights is "
                f"{verify.format_claim(claims, 'gate-not-learned')} on {far}, what such a set of weights adds to the gate "
                f"{verify.format_claim(claims, 'gate-below-told')} there and, by seed, {spread(told)} on {test}. In its own domains the mixture "
                "has " + ", ".join(inside) + ".",
            ),
            (
                em(anew) < em(reload) < em("baseline"),
                f"**Starting blocks anew.** With {P.reinit_blocks} top blocks at random weights the model has {say(anew)} on {far}, with "
                f"the weights of lower blocks in their place {say(reload)}, untouched {say('baseline')}. What is lost is probably what "
                "the blocks had learnt before; so few rows and steps do not bring it back.",
            ),
            (
                P.encoder == "minilm",
                f"**What these records cannot say.** They are of {P.train_rows:,} examples of each dataset (the report: 50,000, each or "
                "together is not said), and of MiniLM, which is smaller than DistilBERT and has met two of the in-domain datasets "
                "(section Data). "
                f"{'' if 'tuned' in P.arms else 'They are at the rate and epochs of the report; equal trials were not run. '}"
                f"There are {len(P.seeds)} seeds{f', of two training curves {len(P.seeds + P.curve_seeds)}' if P.curve_seeds else ''}. "
                f"{state(P, claims)}",
            ),
            (
                rising and room.max() < 2,
                "**To someone who wants to use the idea.** Train the experts first, each until its validation score stops rising, at a "
                "rate chosen for it. Then, before building a gate, compute what the best choice among their answers would score: it takes "
                "the experts' answers and the gold ones. Where that is not clearly better than one model of all the data, as here, no "
                "gate that chooses among them will beat that model by more.",
            ),
        ]
    )
