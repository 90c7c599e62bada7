"""Accuracy and Pearson's r as local modules of `evaluate`; those on the hub need the network."""

import datasets
import evaluate
import numpy as np

from qa_lib.tasks import metrics, sentence
from qa_lib.tasks.local_metric import LocalMetric


class Accuracy(LocalMetric):
    """Accuracy of each example, 100 or 0, and on average, in percent.

    predictions, references: numbers of classes.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=Accuracy.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict:
        accuracy_rows = 100.0 * (np.array(predictions) == np.array(references))
        return {
            "accuracy": metrics.average_scores(accuracy_rows),
            "accuracy_rows": accuracy_rows,
        }


class Correlation(LocalMetric):
    """100 times Pearson's r, and of each example 100 (r + I), with the example's influence I on r.

    predictions, references: real numbers. The mean over examples is 100 r.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Devlin, Gnanadesikan and Kettenring 1975 (influence)",
            inputs_description=Correlation.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict:
        predicted = np.array(predictions)
        labels = np.array(references)
        r = sentence.correlate(predicted, labels)
        influence = sentence.correlation_influence(predicted, labels)
        pearson_rows = 100.0 * (r + influence)
        return {"pearson": metrics.average_scores(pearson_rows), "pearson_rows": pearson_rows}
