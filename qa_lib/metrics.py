"""Spans and scores: from start and end logits to answers, from answers to exact match and F1.

An answer is the best span over all windows of its question: of the 20 best starts and 20 best ends of each window, the
pair with the largest sum of logits, at most 30 tokens long. `one_token=False` is the starter code's variant, which
cannot answer with a single token (its condition was end <= start).

EM and F1 follow the official SQuAD v1.1 rules (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single
spaces, the best over the gold answers. Percent, 0 to 100.
"""

import re
import string
from collections import Counter, defaultdict

import datasets
import evaluate
import numpy as np

from qa_lib.characters import trim_invisible, widen_to_characters

N_BEST, MAX_TOKENS = 20, 30


def best_spans(
    start: np.ndarray, end: np.ndarray, context: np.ndarray, one_token: bool = True
) -> tuple[np.ndarray, ...]:
    """Best span of each window: (first token, last token, score), each (W,); score −inf where there is no valid span.

    start, end: logits (W, T); context: (W, T), true for context tokens.
    """
    k = min(N_BEST, start.shape[1])
    s = np.where(context, start.astype(np.float32), -np.inf)  # (W, T)
    e = np.where(context, end.astype(np.float32), -np.inf)
    tops = np.argpartition(-s, k - 1, axis=1)[:, :k]  # (W, k)
    tope = np.argpartition(-e, k - 1, axis=1)[:, :k]
    score = (
        np.take_along_axis(s, tops, 1)[:, :, None] + np.take_along_axis(e, tope, 1)[:, None, :]
    )  # (W, k, k)
    length = tope[:, None, :] - tops[:, :, None] + 1
    valid = (length >= (1 if one_token else 2)) & (length <= MAX_TOKENS)
    score = np.where(valid, score, -np.inf).reshape(len(s), -1)
    best = score.argmax(1)
    rows = np.arange(len(s))
    return tops[rows, best // k], tope[rows, best % k], score[rows, best]


def predict(
    rows: list[dict],
    windows,
    start: list[np.ndarray],
    end: list[np.ndarray],
    one_token: bool = True,
    null_answers: bool = False,
) -> list[dict]:
    """One answer a row: {text, start, end (characters), tokens, score, window}; text "" where no span is valid.

    start, end: logits of each window, (T,) each, in the order of `windows` (features.windows).
    null_answers: answer "" where the [CLS] pair beats the best span in every window (SQuAD 2.0).
    """
    row_of = list(windows["row"])
    first_of = {row: i for i, row in reversed(list(enumerate(row_of)))}
    answers = [
        {"text": "", "start": 0, "end": 0, "tokens": 0, "score": -np.inf, "window": first_of[i]}
        for i in range(len(rows))
    ]
    null = np.full(len(rows), np.inf)
    for at in range(0, len(start), 512):  # windows of like place, padded to the chunk's longest
        part, offsets = range(at, min(at + 512, len(start))), windows["offsets"][at : at + 512]
        width = max(len(start[i]) for i in part)
        s, e = (np.full((len(part), width), -np.inf, np.float32) for _ in range(2))
        context = np.zeros((len(part), width), bool)
        for j, i in enumerate(part):
            n = len(start[i])
            s[j, :n], e[j, :n] = start[i], end[i]
            context[j, :n] = np.asarray(offsets[j])[1::2] > 0
        for j, (first, last, score) in enumerate(
            zip(*best_spans(s, e, context, one_token), strict=True)
        ):
            i, row = part[j], row_of[part[j]]
            null[row] = min(null[row], s[j, 0] + e[j, 0])
            if score > answers[row]["score"]:
                text = rows[row]["context"]
                begin, stop = int(offsets[j][2 * first]), int(offsets[j][2 * last + 1])
                begin, stop = widen_to_characters(
                    text, begin, stop
                )  # a token may end before its letter's accent
                answers[row] = {
                    "text": text[begin:stop],
                    "start": begin,
                    "end": stop,
                    "tokens": int(last - first + 1),
                    "score": float(score),
                    "window": i,
                }
    if null_answers:
        for i, answer in enumerate(answers):
            if null[i] > answer["score"]:
                answers[i] |= {
                    "text": "",
                    "start": 0,
                    "end": 0,
                    "tokens": 0,
                    "score": float(null[i]),
                }
    return answers


def normalise(text: str) -> str:
    """The official normalisation, of the text without what shows nothing at its ends: no token holds that, so no model can
    tell an answer with a zero-width blank behind it from one without."""
    text = trim_invisible(text)
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(answer: str, gold: str) -> float:
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


def average(values: np.ndarray, clusters: list[str] | None = None) -> float:
    """Mean over rows, or over clusters of the mean within each."""
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"a score over {len(values)} rows, some of them not numbers, is no score")
    if clusters is None:
        return float(np.mean(values))
    groups = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    return float(np.mean([np.mean(g) for g in groups.values()]))


class SpanScore(evaluate.Metric):
    """EM and F1 per example and on average, as a local `evaluate` module (the hub's needs the network).

    predictions: texts; references: lists of gold texts, [""] where the question has no answer.
    """

    def _build_data_dir(self) -> str:
        """No folder is made: everything is kept in memory, and the home folder may be read-only."""
        return self._data_dir_root

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Rajpurkar et al. 2016, SQuAD",
            inputs_description=SpanScore.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict:
        pairs = list(zip(predictions, references, strict=True))
        em = np.array([max(exact(p, g) for g in golds or [""]) for p, golds in pairs])
        overlap = np.array([max(f1(p, g) for g in golds or [""]) for p, golds in pairs])
        return {
            "exact_match": average(em),
            "f1": average(overlap),
            "em_rows": em,
            "f1_rows": overlap,
        }
