"""Scores of answers where rows may have none: SQuAD 2.0's, and the threshold of "no answer".

A row is answered by none where its null margin is above a threshold (tasks/span.py). The scores are
those of the official script (Rajpurkar et al. 2018, evaluate-v2.0.py). It averages over all rows,
over the rows that have an answer (HasAns) and over those that have none (NoAns), and it names the
best score that any threshold reaches. That threshold is chosen on the test rows themselves, so the
best score is never a model's result.
"""

import numpy as np

from qa_lib.tasks import metrics


def choose_threshold(
    margins: np.ndarray, answered: np.ndarray, unanswered: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the threshold with the highest mean score, and the score of each row by it, (n,).

    Of thresholds with equal scores it is the lowest. It is a row's margin, the highest that is
    still answered, or lies 1 below all margins where no answer is best.
    margins: (n,); a row without a valid span has infinity; answered, unanswered: the score of each
    row with its best span and without an answer, (n,).
    """
    finite = np.unique(margins[np.isfinite(margins)])  # in rising order
    if not len(finite):
        return 0.0, unanswered
    below_all = finite[0] - 1
    thresholds = np.concatenate([[below_all], finite])
    # Rows up to a threshold are answered, so their gains are what it adds to no answer at all.
    order = np.argsort(margins, kind="stable")
    gains = (answered - unanswered)[order]
    gained = np.concatenate([[0.0], np.cumsum(gains)])  # by the number of rows that are answered
    counts = np.searchsorted(margins[order], thresholds, side="right")
    gained_by_threshold = gained[counts]
    best = float(thresholds[gained_by_threshold.argmax()])
    scores = np.where(margins <= best, answered, unanswered)
    return best, scores


def describe_scores(
    rows: list[dict],
    predictions: list[dict],
    values: dict[str, np.ndarray],
    both_ways: dict[str, tuple[np.ndarray, np.ndarray]],
    clusters: list[str] | None = None,
) -> dict[str, float]:
    """Return the scores of SQuAD 2.0 beside EM and F1, in percent.

    em_answerable, f1_answerable: over the rows that have an answer (HasAns);
    em_impossible, f1_impossible: over those that have none (NoAns);
    em_no_answer, f1_no_answer: of a model that answers no row;
    em_best, f1_best: the official best scores, whose thresholds em_best_threshold and
    f1_best_threshold are chosen on these rows;
    unanswered: percent of the answerable rows that are answered by none;
    null_threshold: the one that the predictions have.
    values: EM and F1 of each row; both_ways: the same with the best span of each row, and without
    an answer; clusters: as in span.score.
    """
    impossible = np.array([row["is_impossible"] for row in rows])
    margins = np.array([answer["null_margin"] for answer in predictions])
    none = np.array([100.0 * (answer["text"] == "") for answer in predictions])
    scores = average_part(none, ~impossible, "unanswered", clusters)
    for name, of_rows in values.items():
        answered, unanswered = both_ways[name]
        threshold, best = choose_threshold(margins, answered, unanswered)
        scores |= average_part(of_rows, ~impossible, f"{name}_answerable", clusters)
        scores |= average_part(of_rows, impossible, f"{name}_impossible", clusters)
        scores[f"{name}_no_answer"] = metrics.average_scores(unanswered, clusters)
        scores[f"{name}_best"] = metrics.average_scores(best, clusters)
        scores[f"{name}_best_threshold"] = threshold
    return {**scores, "null_threshold": predictions[0]["null_threshold"]}


def average_part(
    values: np.ndarray, part: np.ndarray, name: str, clusters: list[str] | None = None
) -> dict[str, float]:
    """Return the average of a part of the rows by its name; nothing where the part has no rows.

    values: of all rows, (n,); part: which rows count, (n,); clusters: as in span.score.
    """
    if not part.any():
        return {}
    of_part = None if clusters is None else list(np.array(clusters)[part])
    return {name: metrics.average_scores(values[part], of_part)}
