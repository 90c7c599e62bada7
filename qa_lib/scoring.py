"""A model's answers on rows, and what they are worth: logits of all windows → spans → EM, F1, one row per example."""
import hashlib
from collections import Counter

import numpy as np
import pandas as pd
import torch

from qa_lib import data, features, metrics, params, runs
from qa_lib.spec import Spec

CACHE = runs.RUNS / "cache"     # features, computed once


def logits(model, windows, collate, precision: str) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Start and end logits of each window, (T,) each, and the mean loss. Longest first, in batches of like length."""
    device = next(model.parameters()).device
    lengths = [len(ids) for ids in windows["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    budget = 65536 if device.type == "cuda" else 4096                        # tokens a batch
    start, end, total, at = [None] * len(order), [None] * len(order), 0.0, 0
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        while at < len(order):
            part = order[at:at + max(1, budget // lengths[order[at]])]
            batch = {k: v.to(device) for k, v in collate([windows[i] for i in part]).items()}
            out = model(**batch)
            total += out.loss.item() * len(part)
            s, e = out.start_logits.cpu().numpy(), out.end_logits.cpu().numpy()
            for row, i in enumerate(part):
                start[i], end[i] = s[row, :lengths[i]], e[row, :lengths[i]]
            at += len(part)
    return start, end, total / max(1, len(order))


def score(model, tokenizer, spec: Spec, rows: list[dict]) -> tuple[list[dict], dict, float]:
    """Answers, their EM and F1 (metrics.SpanScore), and the mean loss of a model on rows."""
    windows = features.windows(rows, tokenizer, spec.max_length, spec.stride, CACHE)
    start, end, loss = logits(model, windows, collate(model, tokenizer), spec.precision)
    answers = metrics.predict(rows, windows, start, end, null_answers=any(r["is_impossible"] for r in rows))
    scores = metrics.SpanScore(keep_in_memory=True).compute(
        predictions=[a["text"] for a in answers], references=[r["answers"]["text"] for r in rows])
    return answers, scores, loss


def collate(model, tokenizer) -> features.Collate:
    return features.Collate(tokenizer.pad_token_id, model.encoder.config.model_type != "distilbert")


def examine(model, tokenizer, spec: Spec, d: params.Dataset, rows: list[dict]) -> tuple[dict, pd.DataFrame]:
    """Scores of a test set and one row per example: ids, scores and character spans, never text."""
    answers, scored, loss = score(model, tokenizer, spec, rows)
    clusters = [hashlib.sha256(data.normalised(r[d.cluster]).encode()).hexdigest()[:12] for r in rows]
    by = clusters if d.average == "clusters" else None
    frame = pd.DataFrame({"id": [r["id"] for r in rows], "cluster": clusters, "em": scored["em_rows"].astype(np.float32),
                          "f1": scored["f1_rows"].astype(np.float32), "start": [a["start"] for a in answers],
                          "end": [a["end"] for a in answers], "tokens": [a["tokens"] for a in answers]})
    frame = frame.astype({"start": np.int32, "end": np.int32, "tokens": np.int16})
    within = [100.0 * metrics.contains(a["text"], r["answers"]["text"]) for a, r in zip(answers, rows, strict=True)]
    overflowed = sum(n > 1 for n in Counter(features.windows(rows, tokenizer, spec.max_length, spec.stride, CACHE)["row"]).values())
    return {"em": metrics.average(scored["em_rows"], by), "f1": metrics.average(scored["f1_rows"], by),
            "em_rows": scored["exact_match"], "f1_rows": scored["f1"], "loss": loss, "tokens": float(frame["tokens"].mean()),
            "contains": metrics.average(np.array(within), by), "overflowed": overflowed,
            "n": len(rows), "clusters": len(set(clusters))}, frame
