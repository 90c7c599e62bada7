"""Answers where rows may have none: the scores of SQuAD 2.0, its best threshold, the chosen one.

The cases are worked by hand from the official script, evaluate-v2.0.py.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from qa_lib.settings import parameters
from qa_lib.tasks import no_answer, sentence, span
from qa_lib.training import evaluate

# question → gold answers, text of the best span, null margin
CASES = {
    "right": (["ice"], "ice", -3.0),
    "half right": (["ice snow"], "ice", -2.0),
    "impossible, low": ([], "snow", -1.0),
    "right, unsure": (["snow"], "snow", 1.0),
    "impossible, high": ([], "ice", 2.0),
    "wrong": (["rain"], "ice", 4.0),
}
# EM and F1 of each row, with its best span: 100 0 0 100 0 0 and 100 66.7 0 100 0 0; without an
# answer 0 0 100 0 100 0.
HALF = 200 / 3


def make_rows() -> list[dict]:
    """Return the rows of the cases, in their order."""
    rows = []
    for number, (golds, _, _) in enumerate(CASES.values()):
        rows.append(
            {
                "id": str(number),
                "question": "?",
                "context": "ice snow",
                "is_impossible": not golds,
                "answers": {"text": golds},
            }
        )
    return rows


def make_windows() -> Dataset:
    """Return a window "[CLS] ice snow" for each case."""
    offsets = [[0, 0, 0, 3, 4, 8]] * len(CASES)
    return Dataset.from_dict({"row": list(range(len(CASES))), "offsets": offsets})


def make_outputs(heads: str) -> dict[str, list[np.ndarray]]:
    """Return what a model with one of the two heads says of the cases."""
    tokens = [1 if best == "ice" else 2 for _, best, _ in CASES.values()]
    margins = [margin for _, _, margin in CASES.values()]
    if heads == "joint":
        return {
            "first": [np.array([token, 0, 7]) for token in tokens],
            "last": [np.array([token, 0, 7]) for token in tokens],
            "spans": [np.array([-3.0, -1.0, -1.0], np.float32)] * len(tokens),
            "null": [np.float32(margin) for margin in margins],
        }
    start = []
    end = []
    for token, margin in zip(tokens, margins, strict=True):
        logits = np.full(3, -9.0, np.float32)
        logits[token] = 2.0
        start.append(logits)
        end.append(logits.copy())
        start[-1][0] = 0.0
        end[-1][0] = 4.0 + margin
    return {"start": start, "end": end}


@pytest.fixture(params=["independent", "joint"])
def outputs(request) -> dict[str, list[np.ndarray]]:
    """Return the outputs of either head, which lead to the same answers."""
    return make_outputs(request.param)


def score_cases(outputs, **options) -> dict[str, float]:
    """Return all scores of the cases."""
    rows = make_rows()
    rule = options.pop("rule", None)
    dataset = parameters.Dataset(train=["x"], test=["y"], **options)
    scores, _ = evaluate.evaluate_test_set(
        SimpleNamespace(window_details=lambda *_: {}),
        None,
        SimpleNamespace(starter=False, layer=None),
        "x",
        dataset,
        rows,
        lambda *_: (make_windows(), outputs, 0.0),
        rule,
    )
    return scores


def test_the_scores_are_those_of_the_official_rules(outputs):
    """At the threshold 0 the last three rows have no answer."""
    scores = score_cases(outputs)
    assert scores["em"] == pytest.approx(200 / 6)
    assert scores["f1"] == pytest.approx((200 + HALF) / 6)
    assert scores["em_answerable"] == pytest.approx(100 / 4)  # HasAns_exact
    assert scores["f1_answerable"] == pytest.approx((100 + HALF) / 4)  # HasAns_f1
    assert scores["em_impossible"] == scores["f1_impossible"] == pytest.approx(100 / 2)  # NoAns
    assert scores["em_no_answer"] == scores["f1_no_answer"] == pytest.approx(200 / 6)
    assert scores["unanswered"] == pytest.approx(200 / 4)
    assert scores["null_threshold"] == 0.0


def test_the_best_threshold_is_the_official_one(outputs):
    """The official script counts: none 200, then +100, +0 (F1 +66.7), −100, +100, −100, +0."""
    scores = score_cases(outputs)
    assert scores["em_best"] == pytest.approx(300 / 6)
    assert scores["em_best_threshold"] == pytest.approx(-3)
    assert scores["f1_best"] == pytest.approx((300 + HALF) / 6)
    assert scores["f1_best_threshold"] == pytest.approx(-2)


def test_the_threshold_of_validation_rows_decides_on_test_rows(outputs):
    rows = make_rows()
    rule = span.choose_rule(rows, lambda: span.predict(rows, make_windows(), outputs))
    assert rule == {"null_threshold": pytest.approx(-2)}
    scores = score_cases(outputs, rule=rule)
    assert scores["f1"] == pytest.approx(scores["f1_best"])
    assert scores["null_threshold"] == rule["null_threshold"]
    assert score_cases(outputs, rule={"null_threshold": 9.0})["unanswered"] == 0.0


def test_rows_of_a_dataset_without_impossible_ones_have_no_part_in_the_choice(outputs):
    rows = make_rows()
    predictions = span.predict(rows, make_windows(), outputs)
    certain = [row | {"is_impossible": False} for row in rows]
    answered = span.predict(certain, make_windows(), outputs)
    rule = span.choose_rule(certain + rows, lambda: answered + predictions)
    assert rule == span.choose_rule(rows, lambda: predictions)


def test_averages_over_clusters_are_taken_in_each_part(outputs):
    scores = score_cases(outputs, cluster="question", average="clusters")
    assert scores["f1_answerable"] == pytest.approx((100 + HALF) / 4)
    assert scores["f1_best"] == pytest.approx((300 + HALF) / 6)


def test_no_answer_and_the_best_threshold_are_averaged_over_clusters():
    """Of three rows two are of one question. No answer at all is right for the third."""
    rows = [{"is_impossible": False}, {"is_impossible": False}, {"is_impossible": True}]
    predictions = [{"null_margin": -1.0, "text": "mill", "null_threshold": 0.0}] * 3
    answered, unanswered = np.array([100.0, 0.0, 0.0]), np.array([0.0, 0.0, 100.0])
    arguments = (rows, predictions, {"em": answered}, {"em": (answered, unanswered)})
    for clusters, mean in ((["a", "a", "b"], 50.0), (None, 100 / 3)):
        scores = no_answer.describe_scores(*arguments, clusters)
        assert scores["em_no_answer"] == scores["em_best"] == pytest.approx(mean)


def test_without_impossible_rows_nothing_is_chosen_and_nothing_is_added(outputs):
    rows = [row | {"is_impossible": False} for row in make_rows()]
    assert span.choose_rule(rows, lambda: pytest.fail("predicted")) == {}
    assert sentence.CLASSES.choose_rule(rows, lambda: pytest.fail("predicted")) == {}
    predictions = span.predict(rows, make_windows(), outputs, null_threshold=-9.0)
    assert [answer["text"] for answer in predictions] == [best for _, best, _ in CASES.values()]
    answered = {"text", "start", "end", "tokens", "score", "window", "confidence"}
    assert set(predictions[0]) == answered
    values, _ = span.score(rows, predictions)
    described = span.describe_predictions(rows, make_windows(), predictions, values)
    assert set(described) == {"em_rows", "f1_rows", "tokens", "contains", "ece", "overflowed"}
    assert "null_margin" not in span.tabulate(rows, predictions, values)


def test_a_row_has_its_margin_and_no_text(outputs):
    rows = make_rows()
    predictions = span.predict(rows, make_windows(), outputs)
    values, _ = span.score(rows, predictions)
    examples = span.tabulate(rows, predictions, values)
    assert examples["null_margin"].tolist() == [margin for _, _, margin in CASES.values()]
    assert set(examples) == {"id", "em", "f1", "start", "end", "tokens", "null_margin"}


def test_the_scores_are_names_that_no_dataset_takes(outputs):
    assert set(score_cases(outputs)) <= parameters.TAKEN_NAMES
    assert "null_margin" in parameters.TAKEN_NAMES


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_the_best_of_all(seed):
    """Margins with ties and without a span, against every threshold there could be."""
    rng = np.random.default_rng(seed)
    margins = rng.integers(-3, 4, size=12).astype(float)
    margins[rng.random(12) < 0.2] = np.inf
    answered = rng.choice([0.0, 50.0, 100.0], size=12)
    unanswered = rng.choice([0.0, 100.0], size=12)
    answered[np.isinf(margins)] = unanswered[np.isinf(margins)]  # no span to answer with
    threshold, values = no_answer.choose_threshold(margins, answered, unanswered)
    means = {}
    for tried in np.arange(-4.5, 4.5, 0.25):
        means[tried] = np.where(margins <= tried, answered, unanswered).mean()
    assert values.mean() == pytest.approx(max(means.values()))
    assert np.array_equal(values, np.where(margins <= threshold, answered, unanswered))
    lower = [mean for tried, mean in means.items() if tried < threshold]
    assert not lower or max(lower) < values.mean() or threshold < margins.min()


def test_where_no_row_has_a_span_the_threshold_is_0():
    threshold, values = no_answer.choose_threshold(np.full(2, np.inf), np.zeros(2), np.ones(2))
    assert threshold == 0.0
    assert values.tolist() == [1, 1]
