"""Exact match and F1 as a local `evaluate` module; the hub's needs the network."""

import datasets
import evaluate
import numpy as np

from qa_lib.tasks import metrics


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
        em = np.array([max(metrics.exact_match(p, g) for g in golds or [""]) for p, golds in pairs])
        overlap = np.array([max(metrics.f1(p, g) for g in golds or [""]) for p, golds in pairs])
        return {
            "exact_match": metrics.average_scores(em),
            "f1": metrics.average_scores(overlap),
            "em_rows": em,
            "f1_rows": overlap,
        }
