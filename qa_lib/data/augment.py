"""Altered copies of few examples: words of the question dropped and swapped, sentences without an answer in another order.

Answers stay where their text is: offsets are carried along.
"""

import random
import re

SENTENCE = re.compile(r"(?<=[.!?])\s+")
DROP = 0.1  # share of a question's words, at least one


def make_copies(rows: list[dict], n: int, seed: int) -> list[dict]:
    """n altered copies of each row; the same for the same seed."""
    found = []
    for row in rows:
        for k in range(n):
            rng = random.Random(f"{seed}/{row['id']}/{k}")
            found.append(
                shuffle_sentences(
                    {
                        **row,
                        "id": f"{row['id']}-{k + 1}",
                        "question": reword_question(row["question"], rng),
                    },
                    rng,
                )
            )
    return found


def reword_question(question: str, rng: random.Random) -> str:
    """A question with some words dropped and two neighbours swapped; its first word, which asks, stays first."""
    first, *words = question.split()
    for _ in range(max(1, round(DROP * len(words)))):
        if len(words) > 2:
            words.pop(rng.randrange(len(words)))
    if len(words) > 1:
        i = rng.randrange(len(words) - 1)
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join([first, *words])


def shuffle_sentences(row: dict, rng: random.Random) -> dict:
    """A row whose sentences without an answer have changed places among each other; what separates sentences stays."""
    text, answers = row["context"], row["answers"]
    cuts = [0, *(m.end() for m in SENTENCE.finditer(text)), len(text)]
    gaps = [m.group() for m in SENTENCE.finditer(text)] + [""]
    sentences = [
        text[a:b].removesuffix(gap) for a, b, gap in zip(cuts, cuts[1:], gaps, strict=False)
    ]
    spans = [(s, s + len(t)) for t, s in zip(answers["text"], answers["answer_start"], strict=True)]
    free = [
        i
        for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False))
        if not any(s < b and e > a for s, e in spans)
    ]
    places = list(range(len(sentences)))
    for place, i in zip(free, rng.sample(free, len(free)), strict=True):
        places[place] = i
    moved, begins = "", {}
    for i, gap in zip(places, gaps, strict=True):
        begins[i] = len(moved)
        moved += sentences[i] + gap
    starts = [
        begins[i] + s - cuts[i]
        for s in answers["answer_start"]
        for i in [max(i for i in range(len(sentences)) if cuts[i] <= s)]
    ]
    return {**row, "context": moved, "answers": {**answers, "answer_start": starts}}
