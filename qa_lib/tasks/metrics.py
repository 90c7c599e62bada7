"""Exact match (EM) and F1 of an answer against a gold answer, in percent, 0 to 100.

Both follow the official rules of SQuAD v1.1 (Rajpurkar et al. 2016). Texts are compared in lower
case, without punctuation and articles, and with single spaces. Of several gold answers the one with
the best score counts: `score_answer` takes it.
"""

import re
import string
from collections import Counter, defaultdict

import numpy as np

from qa_lib.tasks.characters import trim_invisible

BINS = 15  # of the calibration error, as in Guo et al. 2017


def normalise(text: str) -> str:
    """Return a text in the official normal form, without invisible characters at its ends.

    No token holds those characters. A model therefore cannot tell an answer that is followed by a
    zero-width blank from one that is not.
    """
    text = trim_invisible(text)
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str) -> float:
    """Return 100 where two answers have the same normal form, else 0."""
    return 100.0 * (normalise(answer) == normalise(gold))


def contains(answer: str, golds: list[str]) -> bool:
    """Return whether an answer contains a gold answer, word for word, and further words."""
    words = f" {normalise(answer)} "
    for gold in golds:
        gold_words = f" {normalise(gold)} "
        if gold_words.strip() and gold_words in words and gold_words != words:
            return True
    return False


def f1(answer: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall over the words that both answers have."""
    words = normalise(answer).split()
    gold_words = normalise(gold).split()
    if not words or not gold_words:
        return 100.0 * (words == gold_words)
    common = sum((Counter(words) & Counter(gold_words)).values())
    return 200.0 * common / (len(words) + len(gold_words))


def score_answer(answer: str, golds: list[str]) -> tuple[float, float]:
    """Return EM and F1 of an answer, each against the gold answer that gives the most.

    golds: empty where the question has no answer, which the empty answer hits.
    """
    golds = golds or [""]
    best_em = max(exact_match(answer, gold) for gold in golds)
    best_f1 = max(f1(answer, gold) for gold in golds)
    return best_em, best_f1


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    r"""Return the expected calibration error (ECE), in percent.

    Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3:

    $\mathrm{ECE} = \sum_m \frac{|B_m|}{R} \, |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|$

    B_m holds the rows whose confidence, the probability of what is predicted, lies in
    ((m−1)/M, m/M]; acc is the share of right predictions there, conf the mean confidence.
    confidence: 0 to 1, (R,); right: 1 where the prediction is right, else 0, (R,).
    """
    number = np.maximum(np.ceil(confidence * bins).astype(int) - 1, 0)  # of each row's bin
    gaps = np.bincount(number, right - confidence, minlength=bins)  # |B_m| (acc − conf)
    return float(100 * np.abs(gaps).sum() / len(confidence))


def average_scores(values: np.ndarray, clusters: list[str] | None = None) -> float:
    """Return the mean over rows; with clusters, the mean over clusters of the mean within each.

    values: the rows' scores, (n,); clusters: the cluster of each row. Raises ValueError for no rows
    and for scores that are not finite.
    """
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"a score over {len(values)} rows, some of them not numbers, is no score")
    if clusters is None:
        return float(np.mean(values))
    groups = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    return float(np.mean([np.mean(group) for group in groups.values()]))
