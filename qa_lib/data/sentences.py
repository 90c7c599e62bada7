"""Sentence tasks from the world of the embedded corpora (corpora.py); no network is needed.

* `nli`, `paraphrase`   pairs with a class: three and two classes, balanced
* `yesno`               a text and a question whose answer is no or yes
* `continuing`          an answered question, and a next one that goes on about the same or does not
* `similarity`          pairs with a score from 0 to 5
* `sentiment`           review sentences in five classes

Rows are {id, sentence1, sentence2, label} or {id, sentence, label}. Row n is the same however many
rows are asked for.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from qa_lib.data.corpora import (
    MANY,
    VERSION,
    capitalise,
    fill_template,
    load_words,
    make_entity,
    make_name,
    state_fact,
    write_sentence,
)
from qa_lib.settings.params import UserError

KINDS = ("town", "scholar", "company", "candidate", "hero", "pupil", "friend")


class Draw(NamedTuple):
    """What a row's pair of sentences is written from."""

    number: int  # of the row
    rng: random.Random
    kind: str
    relations: list[str]  # three relations of the kind
    one: dict  # an entity of the kind
    two: dict  # another
    unlike: dict  # an entity of another kind


def _draw_pairs(task: str, rows: int, seed: int) -> Iterator[Draw]:
    """Draw what the sentences of each row are written from."""
    book = load_words()
    for n in range(rows):
        rng = random.Random(f"{VERSION}/{task}/{seed}/{n}")
        kind, other_kind = rng.sample(KINDS, 2)
        relations = rng.sample(book["relations"][kind], 3)
        other_relations = rng.sample(book["relations"][other_kind], 1)
        used: set[str] = set()
        entities = []
        for k, chosen in (
            (kind, relations),
            (kind, relations),
            (other_kind, other_relations),
        ):
            name = make_name(book["kinds"][k]["name"][0], rng.randrange(MANY))
            entities.append(make_entity(k, name, chosen, rng, used))
        yield Draw(n, rng, kind, relations, *entities)


def _row(task: str, seed: int, n: int, one: str, two: str, label: float) -> dict:
    return {"id": f"{task}-{seed}-{n}", "sentence1": one, "sentence2": two, "label": label}


def nli(rows: int, seed: int = 0) -> list[dict]:
    """Return pairs of premise and hypothesis; label 0 entailment, 1 neutral, 2 contradiction."""
    style = load_words()["registers"]["sentences"]
    made = []
    for n, rng, _, (a, b, c), one, two, _ in _draw_pairs("nli", rows, seed):
        label = n % 3
        premise = write_sentence(style, one, [a, b], rng)
        # A contradiction gives the premise's entity a fact of another entity.
        about = {**one, "facts": {a: two["facts"][a]}} if label == 2 else one
        hypothesis = write_sentence(style, about, [c if label == 1 else a], rng)
        made.append(_row("nli", seed, n, premise, hypothesis, label))
    return made


def paraphrase(rows: int, seed: int = 0) -> list[dict]:
    """Return pairs of questions; label 1 where they ask the same, else 0.

    Questions that differ ask about another entity or about another relation.
    """
    made = []
    for n, rng, kind, (a, b, _), one, two, _ in _draw_pairs("paraphrase", rows, seed):
        spec = load_words()["kinds"][kind]
        label = n % 2
        other_entity = label == 0 and rng.random() < 0.5
        first, second = rng.sample(spec[a]["ask"], 2)
        if label == 0 and not other_entity:
            second = rng.choice(spec[b]["ask"])
        first = first.replace("{s}", one["name"])
        second = second.replace("{s}", two["name"] if other_entity else one["name"])
        made.append(_row("paraphrase", seed, n, first, second, label))
    return made


def similarity(rows: int, seed: int = 0) -> list[dict]:
    """Return pairs of statements; label from 0 (nothing shared) to 5 (the same fact), one decimal.

    The second statement is one of six, from the least like the first to the most like it.
    """
    style = load_words()["registers"]["sentences"]
    made = []
    for n, rng, _, (a, b, c), one, two, unlike in _draw_pairs("similarity", rows, seed):
        changed = {**one, "facts": {a: two["facts"][a]}}
        level = n % 6
        about, relations = [
            (unlike, list(unlike["facts"])),
            (two, [b]),
            (two, [a]),
            (changed, [a]),
            (one, [a, c]),
            (one, [a]),
        ][level]
        score = round(min(5.0, max(0.0, level + rng.uniform(-0.4, 0.4))), 1)
        first = write_sentence(style, one, [a], rng)
        second = write_sentence(style, about, relations, rng)
        made.append(_row("similarity", seed, n, first, second, score))
    return made


def sentiment(rows: int, seed: int = 0) -> list[dict]:
    """Return lines of reviews; label 0 very negative to 4 very positive, 2 mixed or plain."""
    made = []
    for n in range(rows):
        label = n % 5
        rng = random.Random(f"{VERSION}/sentiment/{seed}/{n}")
        text = fill_template(rng.choice(load_words()["reviews"][label]), rng)
        made.append({"id": f"sentiment-{seed}-{n}", "sentence": text, "label": label})
    return made


def yesno(rows: int, seed: int = 0) -> list[dict]:
    """Return texts, each with a question; label 1 where the answer is yes, 0 where it is no.

    The text says of two entities how it is. A question with the answer no gives one of them what is
    said of the other, so that text and question share as many words as with the answer yes.
    """
    style = load_words()["registers"]["sentences"]
    made = []
    for n, rng, kind, (a, b, _), one, two, _ in _draw_pairs("yesno", rows, seed):
        label = n % 2
        said = [write_sentence(style, one, [a, b], rng), write_sentence(style, two, [a], rng)]
        rng.shuffle(said)
        value = (one if label else two)["facts"][a]
        claim = state_fact(load_words()["kinds"][kind], a, value, rng)
        question = f"Is it so that {one['name']} {claim}?"
        made.append(_row("yesno", seed, n, " ".join(said), question, label))
    return made


def continuing(rows: int, seed: int = 0) -> list[dict]:
    """Return answered questions, each with a next one; label 1 where that goes on about the same.

    It goes on by the entity's name or by what it is ("the town"). Else it is about another entity
    of the kind, by name, or about something of another kind.
    """
    made = []
    for n, rng, kind, (a, b, _), one, two, unlike in _draw_pairs("continuing", rows, seed):
        label = n % 2
        kinds = load_words()["kinds"]
        first = rng.choice(kinds[kind][a]["ask"]).replace("{s}", one["name"])
        by_name = rng.random() < 0.5
        spec = kinds[kind]
        relation = b
        about = one["name"] if label else two["name"]
        if not by_name:
            if not label:
                spec = kinds[unlike["kind"]]
                (relation,) = unlike["facts"]
            about = "the " + spec["noun"][0]
        following = rng.choice(spec[relation]["ask"]).replace("{s}", about)
        answered = f"{first} {capitalise(one['facts'][a])}."
        made.append(_row("continuing", seed, n, answered, following, label))
    return made


KINDS_OF_ROWS = {
    "continuing": continuing,
    "nli": nli,
    "paraphrase": paraphrase,
    "similarity": similarity,
    "sentiment": sentiment,
    "yesno": yesno,
}


def draw_rows(kind: str, rows: int) -> list[dict]:
    """Return rows of a kind. Raises UserError where there is no such kind."""
    if kind not in KINDS_OF_ROWS:
        raise UserError(
            f"'{kind}' is no kind of generated sentences; known: {', '.join(KINDS_OF_ROWS)}"
        )
    return KINDS_OF_ROWS[kind](rows)
