"""Exact match and F1 of an answer against the gold answers.

EM and F1 follow the official SQuAD v1.1 rules (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single
spaces, the best over the gold answers. Percent, 0 to 100.
"""

import re
import string
from collections import Counter, defaultdict

import numpy as np

from qa_lib.tasks.characters import trim_invisible


def normalise(text: str) -> str:
    """The official normalisation, of the text without what shows nothing at its ends: no token holds that, so no model can
    tell an answer with a zero-width blank behind it from one without."""
    text = trim_invisible(text)
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str) -> float:
    return 100.0 * (normalise(answer) == normalise(gold))


def contains(answer: str, golds: list[str]) -> bool:
    """Whether a gold answer stands, word for word, in a longer one."""
    words = f" {normalise(answer)} "
    return any(f" {g} " in words and f" {g} " != words for g in map(normalise, golds) if g)


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words both answers have."""
    a, g = normalise(answer).split(), normalise(gold).split()
    if not a or not g:
        return 100.0 * (a == g)
    common = sum((Counter(a) & Counter(g)).values())
    return 200.0 * common / (len(a) + len(g))


def average_scores(values: np.ndarray, clusters: list[str] | None = None) -> float:
    """Mean over rows, or over clusters of the mean within each."""
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"a score over {len(values)} rows, some of them not numbers, is no score")
    if clusters is None:
        return float(np.mean(values))
    groups = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    return float(np.mean([np.mean(g) for g in groups.values()]))
