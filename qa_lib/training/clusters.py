"""Clusters of questions that are alike, so that each cluster gets an expert of its own.

The clusters are k-means over mean-pooled states of a frozen encoder.
"""

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq

from qa_lib.models import encoders
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec


def pool_states(name: str, questions: list[str], batch: int = 256) -> np.ndarray:
    """Mean last hidden states of questions in the pre-trained encoder `name`, (N, D).

    Each row is scaled to length 1. batch: questions encoded at once.
    """
    model, tokenizer = encoders.load_encoder(name)
    model.eval()
    max_length = min(64, encoders.count_positions(model))
    parts = []
    for start in range(0, len(questions), batch):
        inputs = tokenizer(
            questions[start : start + batch],
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state  # (B, T, D)
        mask = inputs["attention_mask"][:, :, None]  # (B, T, 1)
        mean = (hidden * mask).sum(1) / mask.sum(1)  # (B, D)
        parts.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(parts)


def select_cluster(
    spec: Spec, rows: list[dict], validation: list[dict]
) -> tuple[list[dict], list[dict]]:
    """Return the training and validation rows whose questions lie in the run's cluster.

    The centres are fitted to all training rows with the run's seed, so they are the same for the
    run of each cluster. Where no validation row lies in the cluster, all of them are returned.
    Raises UserError where the cluster has no training row.
    """
    cluster, clusters = spec.cluster
    states = pool_states(spec.encoder, [row["question"] for row in rows])
    rng = np.random.default_rng(spec.seed)
    centres, _ = kmeans2(states, clusters, iter=50, minit="++", rng=rng)
    own = rows_nearest_to(cluster, centres, rows, states)
    if not own:
        raise UserError(
            f"clusters: of {clusters} clusters of questions one is empty; "
            "lower clusters or raise train_rows"
        )
    if not validation:
        return own, []
    states = pool_states(spec.encoder, [row["question"] for row in validation])
    return own, rows_nearest_to(cluster, centres, validation, states) or validation


def rows_nearest_to(
    cluster: int, centres: np.ndarray, rows: list[dict], states: np.ndarray
) -> list[dict]:
    """Rows whose nearest centre is that of `cluster`; states: one a row, (N, D)."""
    nearest, _ = vq(states, centres)
    return [row for row, k in zip(rows, nearest, strict=True) if k == cluster]
