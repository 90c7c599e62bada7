"""Altered test rows: typing mistakes in sentences, words swapped, questions reworded.

The rules are our own. What a text says stays readable, so its label stays too. A rule of sentences
hits each word with the same probability, and at least one word of a text that has one it can hit.
Generated questions are reworded (corpora.reword_question): answer, context and offsets stay. The
same row always gets the same alterations.
"""

import random
from collections.abc import Callable

from qa_lib.data import corpora

SHARE = 0.2  # probability that a word is hit
SHORTEST = 4  # characters of a word that typing mistakes are made in


def alter_rows(rows: list[dict], rule: str) -> list[dict]:
    """Return rows altered by a rule.

    typos, swaps: of rows of sentences, {id, text, text_pair, label, domain}
    reworded:     of rows of generated questions, {id, question, …}
    """
    if rule == "reworded":
        return [{**row, "question": corpora.reword_question(row["id"])} for row in rows]
    alter = {"typos": mistype_words, "swaps": swap_words}[rule]
    altered = []
    for row in rows:
        texts = {}
        for field in ("text", "text_pair"):
            if row[field] is not None:
                rng = random.Random(f"{rule}/{field}/{row['id']}")
                texts[field] = alter(row[field], rng)
        altered.append({**row, **texts})
    return altered


def mistype_words(text: str, rng: random.Random) -> str:
    """Return a text with one typing mistake in each word that is hit."""
    words = text.split(" ")
    long_enough = [i for i, word in enumerate(words) if len(word) >= SHORTEST]
    for i in draw_places(long_enough, rng):
        words[i] = mistype_word(words[i], rng)
    return " ".join(words)


def mistype_word(word: str, rng: random.Random) -> str:
    """Return a word in which a character is left out, doubled, or swapped with the next one.

    The first and the last character stay. word: at least SHORTEST characters.
    """
    mistakes: list[Callable[[int], str]] = [
        lambda i: word[:i] + word[i + 1 :],
        lambda i: word[:i] + word[i] + word[i:],
        lambda i: word[:i] + word[i + 1] + word[i] + word[i + 2 :],
    ]
    mistake = rng.choice(mistakes)
    return mistake(rng.randrange(1, len(word) - 2))


def swap_words(text: str, rng: random.Random) -> str:
    """Return a text in which each word that is hit has changed places with the next one."""
    words = text.split(" ")
    for i in draw_places(list(range(len(words) - 1)), rng):
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def draw_places(places: list[int], rng: random.Random) -> list[int]:
    """Return the places that are hit: each with probability SHARE, and at least one."""
    hit = [place for place in places if rng.random() < SHARE]
    if not hit and places:
        hit = [rng.choice(places)]
    return hit
