"""Sentence tasks from the world of the embedded corpora (corpora.py): generated, no network needed.

* `nli`, `paraphrase`   pairs with a class: three and two, balanced
* `similarity`          pairs with a score from 0 to 5
* `sentiment`           review sentences in five classes

Rows are {id, sentence1, sentence2, label} or {id, sentence, label}; the first rows do not depend
on how many are asked for.
"""

import random

from qa_lib.data.corpora import MANY, VERSION, _entity, _expand, _load, _name, _sentence


def _pairs(task, rows, seed):
    """Per row: its number, rng, kind, three relations, two entities of the kind, an unlike one."""
    book, kinds = _load(), ("town", "scholar", "company", "candidate", "hero", "pupil", "friend")
    for n in range(rows):
        rng, world, used = random.Random(f"{VERSION}/{task}/{seed}/{n}"), [], set()
        kind, unlike = rng.sample(kinds, 2)
        relations = rng.sample(book["relations"][kind], 3)
        others = rng.sample(book["relations"][unlike], 1)
        for k, chosen in ((kind, relations), (kind, relations), (unlike, others)):
            name = _name(book["kinds"][k]["name"][0], rng.randrange(MANY))
            world.append(_entity(k, name, chosen, rng, used))
        yield n, rng, kind, relations, *world


def _row(task, seed, n, one, two, label):
    return {"id": f"{task}-{seed}-{n}", "sentence1": one, "sentence2": two, "label": label}


def nli(rows, seed=0):
    """Premise and hypothesis; label 0 entailment, 1 neutral, 2 contradiction."""
    style, out = _load()["registers"]["sentences"], []
    for n, rng, _, (a, b, c), one, two, _ in _pairs("nli", rows, seed):
        about = one if n % 3 < 2 else {**one, "facts": {a: two["facts"][a]}}
        out.append(
            _row(
                "nli",
                seed,
                n,
                _sentence(style, one, [a, b], rng),
                _sentence(style, about, [c if n % 3 == 1 else a], rng),
                n % 3,
            )
        )
    return out


def paraphrase(rows, seed=0):
    """Two questions; label 1 if they ask the same, 0 if another entity or another relation."""
    out = []
    for n, rng, kind, (a, b, _), one, two, _ in _pairs("paraphrase", rows, seed):
        spec, other = _load()["kinds"][kind], n % 2 == 0 and rng.random() < 0.5
        first, second = rng.sample(spec[a]["ask"], 2)
        second = second if n % 2 or other else rng.choice(spec[b]["ask"])
        out.append(
            _row(
                "paraphrase",
                seed,
                n,
                first.replace("{s}", one["name"]),
                second.replace("{s}", (two if other else one)["name"]),
                n % 2,
            )
        )
    return out


def similarity(rows, seed=0):
    """Two statements; label from 0 (nothing shared) to 5 (the same fact), one decimal."""
    style, out = _load()["registers"]["sentences"], []
    for n, rng, _, (a, b, c), one, two, unlike in _pairs("similarity", rows, seed):
        changed = {**one, "facts": {a: two["facts"][a]}}
        about, said = [
            (unlike, list(unlike["facts"])),
            (two, [b]),
            (two, [a]),
            (changed, [a]),
            (one, [a, c]),
            (one, [a]),
        ][n % 6]
        score = round(min(5.0, max(0.0, n % 6 + rng.uniform(-0.4, 0.4))), 1)
        out.append(
            _row(
                "similarity",
                seed,
                n,
                _sentence(style, one, [a], rng),
                _sentence(style, about, said, rng),
                score,
            )
        )
    return out


def sentiment(rows, seed=0):
    """A line of a review; label 0 very negative to 4 very positive, 2 mixed or plain."""
    out = []
    for n in range(rows):
        rng = random.Random(f"{VERSION}/sentiment/{seed}/{n}")
        text = _expand(rng.choice(_load()["reviews"][n % 5]), rng)
        out.append({"id": f"sentiment-{seed}-{n}", "sentence": text, "label": n % 5})
    return out
