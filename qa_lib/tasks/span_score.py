"""Exact match and F1 as a local module of `evaluate`; the module on the hub needs the network."""

import datasets
import evaluate
import numpy as np

from qa_lib.tasks import metrics
from qa_lib.tasks.local_metric import LocalMetric


class SpanScore(LocalMetric):
    """EM and F1 of each example and on average, in percent.

    predictions: texts; references: lists of gold texts, [""] where the question has no answer.
    """

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
        em_rows = []
        f1_rows = []
        for answer, golds in zip(predictions, references, strict=True):
            em, f1 = metrics.score_answer(answer, golds)
            em_rows.append(em)
            f1_rows.append(f1)
        em_rows = np.array(em_rows)
        f1_rows = np.array(f1_rows)
        return {
            "exact_match": metrics.average_scores(em_rows),
            "f1": metrics.average_scores(f1_rows),
            "em_rows": em_rows,
            "f1_rows": f1_rows,
        }
