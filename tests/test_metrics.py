"""EM and F1 against torchmetrics and the official rules; span decoding against a plain loop."""

import itertools
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


def join_words(rng: random.Random, counts: list[int]) -> str:
    """Return random words, as many as one of the counts says."""
    return " ".join(rng.choices(WORDS, k=rng.choice(counts)))


def draw_cases(n: int = 500) -> list[tuple[str, list[str]]]:
    """Return n answers with their gold answers. Four of ten answers are gold answers."""
    rng = random.Random(0)
    cases = [
        ("", [""]),
        ("", ["x"]),
        ("the", ["a"]),
        ("The cat", ["cat"]),
        ("x", ["x"]),
        ("x.", ["X"]),
    ]
    while len(cases) < n:
        golds = [join_words(rng, [1, 1, 2, 3, 5]) for _ in range(rng.choice([1, 1, 2, 3]))]
        kind = rng.random()
        answer = rng.choice(golds) if kind < 0.4 else join_words(rng, [0, 1, 2, 4])
        if kind < 0.1:
            answer = answer.upper()
        cases.append((answer, golds))
    return cases


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def score_words(answer: list[str], gold: list[str]) -> tuple[float, float]:
    """Return EM and F1 of an answer's words and a gold answer's, in percent."""
    em = 100.0 if answer == gold else 0.0
    if not answer or not gold:
        return em, em
    common = sum((Counter(answer) & Counter(gold)).values())
    if not common:
        return em, 0.0
    precision = common / len(answer)
    recall = common / len(gold)
    return em, 100.0 * (2 * precision * recall / (precision + recall))


def score_officially(answer: str, golds: list[str]) -> tuple[float, float]:
    """Return EM and F1 by the rules of SQuAD v1.1, written once more from their description."""
    scores = [score_words(split_words(answer), split_words(gold)) for gold in golds]
    return max(em for em, _ in scores), max(f1 for _, f1 in scores)


def test_scores_equal_torchmetrics_and_the_official_rules():
    cases = draw_cases()
    scores = SpanScore(keep_in_memory=True).compute(
        predictions=[answer for answer, _ in cases], references=[golds for _, golds in cases]
    )
    peer = SQuAD()
    for i, (answer, golds) in enumerate(cases):
        case = (answer, golds)
        em, f1 = score_officially(answer, golds)
        assert scores["em_rows"][i] == em, case
        assert scores["f1_rows"][i] == pytest.approx(f1), case
        one = peer(
            [{"prediction_text": answer, "id": str(i)}],
            [{"answers": {"text": golds, "answer_start": [0] * len(golds)}, "id": str(i)}],
        )
        assert float(one["exact_match"]) == scores["em_rows"][i], case
        # the F1 of torchmetrics is 0 for two empty texts
        if metrics.normalise(answer) and any(metrics.normalise(g) for g in golds):
            assert float(one["f1"]) == pytest.approx(scores["f1_rows"][i], abs=1e-3), case
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
        shortest = 1 if one_token else 2
        pairs = []
        for i, j in itertools.product(starts, ends):
            if shortest <= j - i + 1 <= span.MAX_TOKENS:
                pairs.append((start[w, i] + end[w, j], i, j))
        if not pairs:
            assert score[w] == -np.inf
            continue
        assert max(pairs) == (pytest.approx(score[w]), first[w], last[w])


def make_windows(rows: list[int]) -> Dataset:
    """Return a window "[CLS] ice snow" for each of some row numbers."""
    return Dataset.from_dict({"row": rows, "offsets": [[0, 0, 0, 3, 4, 8]] * len(rows)})


@pytest.mark.parametrize(
    "average, em, contains, starter",
    [("clusters", 75.0, 25.0, 50.0), ("rows", 200 / 3, 100 / 3, 100 / 3)],
)
def test_a_clustered_set_is_scored_by_means_of_means(average, em, contains, starter):
    """As in BioASQ, scores are averaged over a question's rows and then over the questions."""
    row = {"context": "ice snow", "is_impossible": False, "answers": {"text": ["ice"]}}
    rows = [row | {"id": str(i), "question": question} for i, question in enumerate("aab")]
    rows[2]["answers"] = {"text": ["ice snow"]}
    start = [np.array([0, 2, 1], np.float32)] * 3
    # the answers are "ice", "ice snow" and "ice snow"
    end = [np.array(x, np.float32) for x in ([0, 2, 1], [0, 1, 2], [0, 1, 2])]
    predicted = (make_windows([0, 1, 2]), {"start": start, "end": end}, 0.0)
    model = SimpleNamespace(window_details=lambda *_: {})
    spec = SimpleNamespace(starter=True, layer=None)
    dataset = parameters.Dataset(train=["x"], test=["y"], cluster="question", average=average)
    scores, examples = evaluate.evaluate_test_set(
        model, None, spec, "x", dataset, rows, lambda *_: predicted
    )
    assert scores["em"] == pytest.approx(em)
    assert scores["contains"] == pytest.approx(contains)
    assert scores["em_starter"] == pytest.approx(starter)
    assert scores["em_rows"] == pytest.approx(200 / 3)
    assert scores["clusters"] == 2
    assert examples["em"].tolist() == [100, 0, 100]


def test_what_a_model_says_of_a_window_stands_beside_the_answer_from_it():
    """Of two windows of a row the second has the better answer."""
    row = {"context": "ice snow", "is_impossible": False, "answers": {"text": ["ice"]}}
    rows = [row | {"id": str(i), "question": str(i)} for i in range(2)]
    logits = [np.array(x, np.float32) for x in ([0, 1, 0], [0, 9, 0])] * 2
    predicted = (make_windows([0, 0, 1, 1]), {"start": logits, "end": logits}, 0.0)
    model = SimpleNamespace(window_details=lambda *_: {"gate_1": np.arange(4.0)})
    spec = SimpleNamespace(starter=False, layer=None)
    dataset = parameters.Dataset(train=["x"], test=["y"], cluster="question")
    _, examples = evaluate.evaluate_test_set(
        model, None, spec, "x", dataset, rows, lambda *_: predicted
    )
    assert examples["gate_1"].tolist() == [1, 3]


@pytest.mark.parametrize("null_answers, texts", [(True, ["ice", ""]), (False, ["ice", "snow"])])
def test_no_answer_wins_where_every_window_says_so(null_answers, texts):
    """The lowest score of [CLS] in a question's windows counts (SQuAD 2.0), and the best span."""
    rows = [{"context": "ice snow"}] * 2
    windows = make_windows([0, 0, 1, 1])
    start = [np.array(x, np.float32) for x in ([9, 1, 0], [0, 2, 0], [9, 1, 0], [8, 0, 2])]
    answers = span.predict_answers(
        rows, windows, {"start": start, "end": start}, null_answers=null_answers
    )
    assert [a["text"] for a in answers] == texts
    if not null_answers:
        assert [a["window"] for a in answers] == [1, 3]


@pytest.mark.parametrize("order", [1, -1])
def test_an_answer_s_confidence_is_its_probability_in_its_window(order):
    rows = [{"context": "ice snow"}]
    windows = make_windows([0, 0])
    logits = [np.array(x, np.float32) for x in ([0.5, 2, 0], [3, 0, 1])][::order]
    best = np.exp(2) / np.exp([0.5, 2, 0]).sum()
    nothing = np.exp(0.5) / np.exp([0.5, 2, 0]).sum()
    for threshold, expected in ((0.0, best**2), (-9.0, nothing**2)):
        (answer,) = span.predict_answers(
            rows,
            windows,
            {"start": logits, "end": logits},
            null_answers=True,
            null_threshold=threshold,
        )
        assert (answer["text"] == "ice") == (threshold == 0)
        assert answer["confidence"] == pytest.approx(expected)


def test_a_joint_head_s_confidence_is_that_of_its_beam_and_its_classifier():
    rows = [{"context": "ice snow"}]
    beam = {"first": [1, 2], "last": [1, 2], "spans": np.log([0.7, 0.2]), "null": 0.4}
    outputs = {name: [np.array(values)] for name, values in beam.items()}
    for threshold, expected in ((1.0, 0.7), (0.0, 1 / (1 + np.exp(-0.4)))):
        (answer,) = span.predict_answers(
            rows, make_windows([0]), outputs, null_answers=True, null_threshold=threshold
        )
        assert answer["confidence"] == pytest.approx(expected)


def test_the_calibration_error_of_answers_is_a_plain_loop():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 200)
    right = rng.integers(0, 2, 200)
    expected = 0.0
    for m in range(1, 16):
        inside = ((m - 1) / 15 < confidence) & (confidence <= m / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    assert metrics.calibration_error(confidence, right) == pytest.approx(100 * expected)
    assert metrics.calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0
    # a bin has its upper end: these two are of one, in which one of two is right
    ends = metrics.calibration_error(np.array([0.75, 1.0]), np.array([1, 0]), bins=2)
    assert ends == pytest.approx(100 * (0.875 - 0.5))
    ends = metrics.calibration_error(np.array([0.25, 0.5]), np.array([1, 0]), bins=2)
    assert ends == pytest.approx(100 * (0.5 - 0.375))


def test_an_average_of_nothing_or_of_nan_is_refused():
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError):
            metrics.average_scores(np.array(values))


def test_scores_are_averaged_within_clusters_first():
    average = metrics.average_scores(np.array([100.0, 0.0, 0.0, 100.0]), ["q", "q", "q", "r"])
    assert average == pytest.approx((100 / 3 + 100) / 2)


@pytest.mark.parametrize("length, first", [(30, 1), (31, 2)])
def test_an_answer_has_30_tokens_at_most(length, first):
    """Of both kinds of heads. Where the best span is too long the next start makes it shorter."""
    start, end = np.zeros((2, 1, 40), np.float32)
    start[0, 1:3] = 9, 8
    end[0, length] = 9
    context = np.arange(40) > 0
    best = span.best_spans(start, end, context[None])
    assert (best[0][0], best[1][0]) == (first, length)
    beam = (np.array([1, 2]), np.array([length, length]), np.array([-1.0, -2.0]))
    assert span.best_beam_span(*beam, context)[:2] == (first, length)
