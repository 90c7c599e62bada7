"""What the real records say of each report, in prose: paragraphs with numbers from the ledger.

A paragraph comes with the condition on the records under which it is true; one that new records do not bear out leaves the page.
"""
import pandas as pd

from qa_lib import report, tables, verify


def prose(paragraphs: list[tuple[bool, str]]) -> report.Markdown:
    """The paragraphs whose condition holds, and how many were left out."""
    gone = sum(not holds for holds, _ in paragraphs)
    note = f"{gone} of {len(paragraphs)} paragraphs are left out: they were written of other records, which these do not bear out."
    return report.Markdown("\n\n".join([text for holds, text in paragraphs if holds] + [note] * (gone > 0)))


def spread(x: pd.Series) -> str:
    """Mean ± sd over seeds; no ± of one seed, – of none."""
    return f"{x.mean():.1f}" + f" ± {x.std():.1f}" * (len(x) > 1) if len(x) else "–"


def state(P, claims: pd.DataFrame) -> str:
    """How far the records reach: seeds, claims without a verdict."""
    return (f"{claims['verdict'].str.startswith('inconclusive').sum()} of {len(claims)} claims stay inconclusive, "
            f"{claims['verdict'].str.startswith(verify.UNTESTED).sum()} are not tested."
            + " One seed gives no interval: what stands here is observed, not decided." * (len(P.seeds) == 1))


def exbert(P, ledger: pd.DataFrame, trials: pd.DataFrame, claims: pd.DataFrame) -> report.Markdown:
    """ledger: of all runs with test scores; trials: the last epoch of each trial; claims: verify.table."""
    def em(model: str, on: str, arm: str = "printed") -> pd.Series:
        return tables.values(ledger, variant=model, set=on, arm=arm, ratio=P.centre, order="trainer")

    def both(model: str, arm: str = "printed") -> str:
        return " and ".join(spread(em(model, on, arm)) for on in P.domains)

    def apart(ours: str, theirs: str, arm: str = "printed") -> list[float]:
        return [em(ours, on, arm).mean() - em(theirs, on, arm).mean() for on in P.domains]

    def every(on: str, arm: str) -> list[float]:
        return [em(m, on, arm).mean() for m in ("v-db", "exbert-tuned", "plain-tuned")]

    def tried(model: str) -> pd.Series:
        at = (trials["learning_rate"] == P.tuned_rate) & (trials["epochs"] == P.tuned_epochs)
        return trials.loc[at & (trials["variant"] == f"{model}-trial"), "validation EM"]

    gains, judged = ("squad-plus-8", "bioasq-plus-13"), claims.set_index("claim")
    gained = [f"{verify.ours(claims, c)} EM more on {on} (printed: {judged['printed'][c]})"
              for c, on in zip(gains, P.domains, strict=True)]
    alike = max(map(abs, apart("exbert-tuned", "plain-tuned"))) < 1
    ahead = min(apart("v-db", "exbert-tuned", "tuned")) > 0
    rated = [em("v-db", on, "tuned").mean() - em("v-db", on).mean() for on in P.domains]
    return prose([
        (all(verify.says(claims, c, "not reproduced") and judged["low"][c] > 0 for c in gains),
         "**What reproduces.** With the report's own rates and epochs tuned ExBERT answers more questions than V-DB, on both "
         f"tests, but not by as much as is printed: {' and '.join(gained)}, with {P.centre:.0%} {P.domains[0]} in the mixture. In "
         "brackets are 95 % intervals over seeds and test questions: neither holds 0, neither holds the printed gain."),
        (alike and tried("v-db").mean() > tried("exbert-tuned").mean(),
         f"**Why it gains.** Not by its experts. Control (a), ExBERT's {P.tuned_blocks} blocks, rate and epochs without the "
         f"sparse layer, has an EM of {both('plain-tuned')} on {' and '.join(P.domains)}, ExBERT {both('exbert-tuned')}, V-DB "
         f"{both('v-db')}. What the two share and V-DB has not are fewer blocks and a learning rate "
         f"{P.tuned_rate / P.learning_rate:.0f} times as high. It is the rate: among the trials is V-DB at that rate and ExBERT's "
         f"epochs, with an EM of {spread(tried('v-db'))} on validation rows against ExBERT's {spread(tried('exbert-tuned'))}."),
        (ahead and all(min(every(on, "tuned")) > max(every(on, "printed")) for on in P.domains),
         "**The same trials for all.** When rate and epochs of each model are chosen by the same trials on validation rows, V-DB "
         f"has {both('v-db', 'tuned')}, ExBERT {both('exbert-tuned', 'tuned')} and control (a) {both('plain-tuned', 'tuned')}: "
         "better than anything at the report's rates, and V-DB is ahead. Seeds of one model differ so much at this size that its "
         f"lead is no verdict: in this arm the two gains are “{judged['tuned'][gains[0]]}” and “{judged['tuned'][gains[1]]}”."),
        (all(verify.says(claims, "longer-answers", "not reproduced", arm) for arm in ("verdict", "tuned")),
         "**Length of answers.** The report finds V-DB's answers longer than ExBERT's. Here they are shorter, with equal trials "
         f"too: by {verify.ours(claims, 'longer-answers')} tokens (negative: shorter)."),
        (True,
         f"**What these records cannot say.** They are of {P.train_rows:,} training examples a mixture, where the report has "
         f"4,000, and of MiniLM, which is smaller than DistilBERT and has met some of the data (section Data). {len(P.seeds)} "
         f"seeds stand at one mixture, {len(P.side_seeds)} at the others. {state(P, claims)}"),
        (alike and ahead and min(rated) > max(apart("exbert-tuned", "plain-tuned", "tuned")),
         "**To someone who wants to use the idea.** Tune the plain model's rate first: a handful of trials gained more here than "
         "any layer did. If you then add a sparse layer, keep control (a) beside it, or the experts get the credit for the rate. "
         "On two domains of your own, `make own` makes exactly this comparison.")])


def moe(P, scores: pd.DataFrame, claims: pd.DataFrame) -> report.Markdown:
    """scores: the ledger of the printed arm, training scores left out; claims: verify.table."""
    far, test, anew, printed = P.pools[0], P.pools[-1], f"reinit-{P.reinit_blocks}", claims.set_index("claim")["printed"]

    def em(model: str, on: str = far) -> float:
        return tables.values(scores, variant=model, set=on).mean()

    def say(model: str, *sets: str) -> str:
        return " and ".join(spread(tables.values(scores, variant=model, set=on)) for on in sets or [far])

    below = (("moe", "moe-dev"), (anew, "reinit-dev"), (f"moe-{anew}", "moe-reinit-dev"))
    own = [f"{d} {say('own-expert', d)} against {say('baseline', d)}" for d in P.domains]
    inside = [f"{say('moe', d)} on {d} (equal weights {say('uniform-weights', d)})" for d in P.domains]
    reload, weak = f"reload-{P.reinit_blocks}", em("oracle") < em("baseline")
    return prose([
        (all(em("baseline") - em(m) > float(printed[c]) for m, c in below),
         "**What reproduces.** The report finds that nothing it tried beats one model of all the data. So it is here, and by more "
         f"than is printed: on {far} the baseline has an EM of {say('baseline')}, the mixture {say('moe')}, "
         f"Reinit-{P.reinit_blocks} {say(anew)}, the mixture of re-initialised experts {say(f'moe-{anew}')} (printed, below the "
         f"baseline: {printed['moe-dev']}, {printed['reinit-dev']} and {printed['moe-reinit-dev']})."),
        (weak and all(em("own-expert", d) < em("baseline", d) for d in P.domains),
         "**Why the mixture loses.** Its experts are weak. Each sees a third of the rows, and answers even its own "
         "dataset worse than the baseline: " + ", ".join(own)
         + f". An oracle that takes of each question the best expert's answer has {say('oracle')} on {far}: no gate can give what "
         "the experts have not learnt."),
        (max(abs(em("moe", on) - em("uniform-weights", on)) for on in (far, test)) < 2,
         f"**Has the gate learnt anything?** Little that helps on new domains: {say('moe', far, test)} on {far} and {test}, where "
         f"equal weights give {say('uniform-weights', far, test)}, the one expert that is best on validation "
         f"{say('best-single', far, test)}, and one set of weights for each new dataset, fitted on its few examples, "
         f"{say('told-dataset', far, test)}. In its own domains the mixture has " + ", ".join(inside) + "."),
        (em(anew) < em(reload) < em("baseline"),
         f"**Starting blocks anew.** With {P.reinit_blocks} top blocks at random weights the model has {say(anew)}, with the "
         f"weights of lower blocks in their place {say(reload)}. What is lost is what the blocks had learnt before; so few rows "
         "and steps do not bring it back."),
        (True,
         f"**What these records cannot say.** They are of {P.train_rows:,} examples of each dataset (the report: 50,000, each or "
         f"together is not said), of MiniLM, and of the arm {' and '.join(P.arms)}. {state(P, claims)}"),
        (weak,
         "**To someone who wants to use the idea.** Before a gate is built, compute the oracle: it needs the experts' answers "
         "alone. Where it stays below one model of all the data, as here, no gate is worth training; give each expert more rows "
         "first, or leave the data together.")])
