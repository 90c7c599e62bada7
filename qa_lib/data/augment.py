"""Altered copies of few training examples.

A copy's question has some words dropped and two neighbours swapped. The sentences of its context
that hold no answer stand in another order. Answers move with their text, and their offsets with
them.
"""

import random
import re
from bisect import bisect_right

SENTENCE = re.compile(r"(?<=[.!?])\s+")
DROP = 0.1  # share of a question's words that are dropped, at least one


def make_copies(rows: list[dict], n: int, seed: int) -> list[dict]:
    """Return n altered copies of each row. The same seed gives the same copies."""
    copies = []
    for row in rows:
        for k in range(n):
            rng = random.Random(f"{seed}/{row['id']}/{k}")
            question = reword_question(row["question"], rng)
            copy = {**row, "id": f"{row['id']}-{k + 1}", "question": question}
            copies.append(shuffle_sentences(copy, rng))
    return copies


def reword_question(question: str, rng: random.Random) -> str:
    """Return a question with some words dropped and two neighbouring words swapped.

    The first word stays first, because it says what is asked.
    """
    first, *words = question.split()
    for _ in range(max(1, round(DROP * len(words)))):
        if len(words) > 2:
            words.pop(rng.randrange(len(words)))
    if len(words) > 1:
        i = rng.randrange(len(words) - 1)
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join([first, *words])


def shuffle_sentences(row: dict, rng: random.Random) -> dict:
    """Return a row whose sentences without an answer have changed places among each other.

    The text between sentences stays where it is.
    """
    text = row["context"]
    answers = row["answers"]
    gaps = list(SENTENCE.finditer(text))
    begins = [0, *(gap.end() for gap in gaps)]  # of the sentences
    ends = [*(gap.start() for gap in gaps), len(text)]  # of the sentences, without the gap behind
    limits = [*begins[1:], len(text)]  # likewise, with the gap
    free = []  # sentences that hold no part of an answer
    for i, (begin, limit) in enumerate(zip(begins, limits, strict=True)):
        if not holds_answer(answers, begin, limit):
            free.append(i)
    order = list(range(len(begins)))  # which sentence stands in each place
    for place, i in zip(free, rng.sample(free, len(free)), strict=True):
        order[place] = i
    moved = ""
    new_begins = {}
    for place, i in enumerate(order):
        new_begins[i] = len(moved)
        moved += text[begins[i] : ends[i]] + text[ends[place] : limits[place]]
    starts = []
    for start in answers["answer_start"]:
        i = bisect_right(begins, start) - 1  # the sentence that the answer starts in
        starts.append(new_begins[i] + start - begins[i])
    return {**row, "context": moved, "answers": {**answers, "answer_start": starts}}


def holds_answer(answers: dict, begin: int, end: int) -> bool:
    """Return whether the characters from begin to end hold a part of any answer."""
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if start < end and start + len(text) > begin:
            return True
    return False
