"""The floor: what answers are worth that need no reading. A model that has learnt beats them.

    measure_floor(validation, training)    the best of three such answers, and its EM

The three are given to every question alike: that it has no answer, the most frequent answer of the
training rows, and the first words of the text.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from qa_lib.tasks import metrics


class Floor(NamedTuple):
    """The best of the answers that need no reading."""

    em: float  # on validation rows, in percent
    answer: str  # in words


def measure_floor(validation: list[dict], training: list[dict]) -> Floor:
    """Return the best of three answers that need no reading, scored on validation rows.

    training: the rows that a model learns from. They give the most frequent answer, and how many
    words an answer usually has.
    """
    golds = [row["answers"]["text"][0] for row in training if row["answers"]["text"]]
    frequent = ""
    length = 1
    if golds:
        frequent, _ = Counter(golds).most_common(1)[0]
        length = int(np.median([len(gold.split()) for gold in golds]))
    first_words = [" ".join(row["context"].split()[:length]) for row in validation]
    answers = {
        "that no question has an answer": [""] * len(validation),
        "the most frequent answer of the training rows": [frequent] * len(validation),
        "the first words of the text": first_words,
    }
    floors = [Floor(score_answers(texts, validation), name) for name, texts in answers.items()]
    return max(floors, key=lambda floor: floor.em)


def score_answers(texts: list[str], rows: list[dict]) -> float:
    """Return the EM of answers, one for each row."""
    scores = []
    for text, row in zip(texts, rows, strict=True):
        em, _ = metrics.score_answer(text, row["answers"]["text"])
        scores.append(em)
    return float(np.mean(scores))
