"""EM and F1 against torchmetrics and the official rules on 500 written cases; span decoding against a plain loop."""

import random
import re
import string
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from torchmetrics.text import SQuAD

from qa_lib.settings import parameters
from qa_lib.tasks import metrics, span
from qa_lib.tasks.span_score import SpanScore
from qa_lib.training import evaluate

WORDS = [
    "the",
    "a",
    "An",
    "THE",
    "Zürich",
    "naïve",
    "3,837",
    "U.S.",
    "mTOR",
    "co-op",
    "“quoted”",
    "don't",
    "re",
    "x",
    "β-cell",
    "1990s",
    "café",
    "thea",
    "an.",
    "(an)",
    "—",
    "!",
    "",
    "  ",
    "東京",
    "İstanbul",
    "ﬁre",
    "\u00a0",
    "rock'n'roll",
    "$5",
]


def cases(n: int = 500) -> list[tuple[str, list[str]]]:
    rng = random.Random(0)
    found = [
        ("", [""]),
        ("", ["x"]),
        ("the", ["a"]),
        ("The cat", ["cat"]),
        ("x", ["x"]),
        ("x.", ["X"]),
    ]
    while len(found) < n:
        golds = [
            " ".join(rng.choices(WORDS, k=rng.choice([1, 1, 2, 3, 5])))
            for _ in range(rng.choice([1, 1, 2, 3]))
        ]
        kind = rng.random()
        answer = (
            rng.choice(golds)
            if kind < 0.4
            else " ".join(rng.choices(WORDS, k=rng.choice([0, 1, 2, 4])))
        )
        found.append((answer.upper() if kind < 0.1 else answer, golds))
    return found


def official(answer: str, golds: list[str]) -> tuple[float, float]:
    """The rules of SQuAD v1.1, written once more from their description."""

    def words(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    def overlap(a, g):
        common = sum((Counter(a) & Counter(g)).values())
        if not common:
            return 0.0
        precision, recall = common / len(a), common / len(g)
        return 2 * precision * recall / (precision + recall)

    a = words(answer)
    return (
        max(100.0 * (" ".join(a) == " ".join(words(g))) for g in golds),
        max(
            100.0 * overlap(a, words(g)) if a and words(g) else 100.0 * (a == words(g))
            for g in golds
        ),
    )


def test_scores_equal_torchmetrics_and_the_official_rules():
    found = cases()
    scores = SpanScore(keep_in_memory=True).compute(
        predictions=[a for a, _ in found], references=[g for _, g in found]
    )
    for i, (answer, golds) in enumerate(found):
        em, f1 = official(answer, golds)
        assert scores["em_rows"][i] == em, (
            answer,
            golds,
        )
        assert scores["f1_rows"][i] == pytest.approx(f1), (
            answer,
            golds,
        )
    peer = SQuAD()
    for i, (answer, golds) in enumerate(found):
        one = peer(
            [{"prediction_text": answer, "id": str(i)}],
            [{"answers": {"text": golds, "answer_start": [0] * len(golds)}, "id": str(i)}],
        )
        assert float(one["exact_match"]) == scores["em_rows"][i], (answer, golds)
        if metrics.normalise(answer) and any(
            metrics.normalise(g) for g in golds
        ):  # torchmetrics: 0 for two empty texts
            assert float(one["f1"]) == pytest.approx(scores["f1_rows"][i], abs=1e-3), (
                answer,
                golds,
            )
    whole = peer.compute()
    assert float(whole["exact_match"]) == pytest.approx(scores["exact_match"], abs=1e-3)


@pytest.mark.parametrize("one_token", [True, False])
def test_best_spans_equal_a_plain_loop(one_token):
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 40, 57)).astype(np.float32) * 3
    context = rng.random((40, 57)) < 0.8
    context[0] = False
    context[1] = np.arange(57) == 9
    first, last, score = span.best_spans(start, end, context, one_token)
    for w in range(40):
        starts = sorted(np.flatnonzero(context[w]), key=lambda i: -start[w, i])[: span.N_BEST]
        ends = sorted(np.flatnonzero(context[w]), key=lambda i: -end[w, i])[: span.N_BEST]
        pairs = [
            (start[w, i] + end[w, j], i, j)
            for i in starts
            for j in ends
            if (j >= i if one_token else j > i) and j - i + 1 <= span.MAX_TOKENS
        ]
        if not pairs:
            assert score[w] == -np.inf
            continue
        best = max(pairs)
        assert (best[0], best[1], best[2]) == (pytest.approx(score[w]), first[w], last[w])


def windows_of(rows: list[int]) -> Dataset:
    """Windows "[CLS] ice snow" of the given rows."""
    return Dataset.from_dict({"row": rows, "offsets": [[0, 0, 0, 3, 4, 8]] * len(rows)})


def test_a_clustered_set_is_scored_by_means_of_means():
    """As BioASQ: a question's rows first, then the questions."""
    rows = [
        {
            "id": str(i),
            "question": q,
            "context": "ice snow",
            "is_impossible": False,
            "answers": {"text": ["ice"]},
        }
        for i, q in enumerate("aab")
    ]
    ends = [
        np.array(x, np.float32) for x in ([0, 2, 1], [0, 1, 2], [0, 2, 1])
    ]  # ice, ice snow, ice
    found = windows_of([0, 1, 2]), [np.array([0, 2, 1], np.float32)] * 3, ends, 0.0
    model, spec = SimpleNamespace(window_details=lambda *_: {}), SimpleNamespace(starter=True)
    for average, em, contains in (("clusters", 75.0, 25.0), ("rows", 200 / 3, 100 / 3)):
        d = parameters.Dataset(train=["x"], test=["y"], cluster="question", average=average)
        scores, frame = evaluate.evaluate_test_set(model, None, spec, d, rows, lambda *_: found)
        assert scores["em"] == pytest.approx(em) and scores["contains"] == pytest.approx(contains)
        assert scores["em_starter"] == 0.0
        assert scores["em_rows"] == pytest.approx(200 / 3)
        assert scores["clusters"] == 2
        assert frame["em"].tolist() == [100, 0, 100]


def test_no_answer_wins_where_every_window_says_so():
    """Of a question's windows the least score of [CLS] counts (SQuAD 2.0), the best span of any."""
    rows, windows = [{"context": "ice snow"}] * 2, windows_of([0, 0, 1, 1])
    start = [np.array(x, np.float32) for x in ([9, 1, 0], [0, 2, 0], [9, 1, 0], [8, 0, 2])]
    for null, said in ((True, ["ice", ""]), (False, ["ice", "snow"])):
        found = span.predict_answers(rows, windows, start, start, null_answers=null)
        assert [a["text"] for a in found] == said
    assert [a["window"] for a in found] == [1, 3]


def test_an_average_of_nothing_or_of_nan_is_refused():
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError):
            metrics.average_scores(np.array(values))


def test_average_within_clusters_first():
    assert metrics.average_scores(
        np.array([100.0, 0.0, 0.0, 100.0]), ["q", "q", "q", "r"]
    ) == pytest.approx((100 / 3 + 100) / 2)
