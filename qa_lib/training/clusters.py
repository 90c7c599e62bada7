"""Questions that are alike: clusters of their pooled states in a frozen encoder (k-means), to give each its own expert."""

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq

from qa_lib.models import encoders
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec


def pool_states(name: str, questions: list[str], batch: int = 256) -> np.ndarray:
    """Mean last hidden state of each question in the pre-trained encoder `name`, scaled to length 1: (N, D)."""
    model, tokenizer = encoders.load_encoder(name)
    model.eval()
    most = min(64, encoders.count_positions(model))
    parts = []
    for at in range(0, len(questions), batch):
        inputs = tokenizer(
            questions[at : at + batch],
            truncation=True,
            max_length=most,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state  # (B, T, D)
        mask = inputs["attention_mask"][:, :, None]
        parts.append(
            torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
        )
    return np.concatenate(parts)


def select_cluster(
    spec: Spec, rows: list[dict], validation: list[dict]
) -> tuple[list[dict], list[dict]]:
    """Of training rows those whose questions lie in the run's cluster; of validation rows likewise, or all where none does.

    The centres are of all training rows and the same for each cluster's run: seeded by the run's seed. Raises UserError where
    a cluster has no row.
    """
    which, clusters = spec.cluster
    x = pool_states(spec.encoder, [r["question"] for r in rows])
    centres, _ = kmeans2(x, clusters, iter=50, minit="++", rng=np.random.default_rng(spec.seed))
    own = [r for r, k in zip(rows, vq(x, centres)[0], strict=True) if k == which]
    if not own:
        raise UserError(
            f"clusters: of {clusters} clusters of questions one is empty; lower clusters or raise train_rows"
        )
    if not validation:
        return own, []
    nearest, _ = vq(pool_states(spec.encoder, [r["question"] for r in validation]), centres)
    return own, [r for r, k in zip(validation, nearest, strict=True) if k == which] or validation
