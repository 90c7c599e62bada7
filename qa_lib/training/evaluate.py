"""A model's answers on rows, and what they are worth: logits of all windows → spans → EM, F1, one row per example."""

import hashlib
from collections import Counter

import numpy as np
import pandas as pd
import torch

from qa_lib.data import features, selection
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.tasks import metrics, span
from qa_lib.tasks.span_score import SpanScore

CACHE = runs.RUNS / "cache"  # features, computed once


def iterate_batches(model, windows, collate, precision: str):
    """(indices, lengths, batch, output) of a model in evaluation, over all windows: longest first, batches of like length."""
    device = next(model.parameters(), torch.empty(0)).device
    lengths = [len(ids) for ids in windows["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    budget, at = 65536 if device.type == "cuda" else 4096, 0  # tokens a batch
    model.eval()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        while at < len(order):
            part = order[at : at + max(1, budget // lengths[order[at]])]
            batch = {k: v.to(device) for k, v in collate([windows[i] for i in part]).items()}
            yield part, [lengths[i] for i in part], batch, model(**batch)
            at += len(part)


def compute_logits(
    model, windows, collate, precision: str
) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Start and end logits of each window, (T,) each, and the mean loss."""
    start, end, total = [None] * len(windows), [None] * len(windows), 0.0
    for part, lengths, _, out in iterate_batches(model, windows, collate, precision):
        total += out.loss.item() * len(part)
        s, e = out.start_logits.cpu().numpy(), out.end_logits.cpu().numpy()
        for row, (i, n) in enumerate(zip(part, lengths, strict=True)):
            start[i], end[i] = s[row, :n], e[row, :n]
    return start, end, total / max(1, len(windows))


def predict_spans(model, tokenizer, spec: Spec, rows: list[dict]) -> tuple:
    """(windows of the rows, start and end logits, mean loss) of a model."""
    windows = features.load_windows(rows, tokenizer, spec.max_length, spec.stride, CACHE)
    return windows, *compute_logits(
        model, model.prepare(windows, rows), model.collate(tokenizer), spec.precision
    )


def score_answers(
    rows: list[dict], windows, start: list[np.ndarray], end: list[np.ndarray], **rule
) -> tuple[list[dict], dict]:
    """Answers from logits, with their EM and F1 (metrics.SpanScore)."""
    answers = span.predict_answers(
        rows, windows, start, end, null_answers=any(r["is_impossible"] for r in rows), **rule
    )
    return answers, SpanScore(keep_in_memory=True).compute(
        predictions=[a["text"] for a in answers], references=[r["answers"]["text"] for r in rows]
    )


def score_rows(model, tokenizer, spec: Spec, rows: list[dict]) -> tuple[list[dict], dict, float]:
    """Answers, their EM and F1, and the mean loss of a model on rows."""
    *found, loss = predict_spans(model, tokenizer, spec, rows)
    return *score_answers(rows, *found), loss


def evaluate_test_set(
    model, tokenizer, spec: Spec, d: Dataset, rows: list[dict], said=predict_spans
) -> tuple[dict, pd.DataFrame]:
    """Scores of a test set and one row per example: ids, scores and character spans, never text."""
    windows, start, end, loss = said(model, tokenizer, spec, rows)
    answers, scored = score_answers(rows, windows, start, end)
    clusters = [
        hashlib.sha256(selection.normalise_text(r[d.cluster]).encode()).hexdigest()[:12]
        for r in rows
    ]
    by = clusters if d.average == "clusters" else None
    values = {"em": scored["em_rows"], "f1": scored["f1_rows"]}
    if spec.starter:
        _, other = score_answers(rows, windows, start, end, one_token=False)
        values |= {"em_starter": other["em_rows"], "f1_starter": other["f1_rows"]}
    values32 = {k: v.astype(np.float32) for k, v in values.items()}
    frame = pd.DataFrame(
        {
            "id": [r["id"] for r in rows],
            "cluster": clusters,
            **values32,
            "start": [a["start"] for a in answers],
            "end": [a["end"] for a in answers],
            "tokens": [a["tokens"] for a in answers],
        }
    )
    frame = frame.astype({"start": np.int32, "end": np.int32, "tokens": np.int16})
    for name, x in model.window_details(windows, rows).items():
        frame[name] = x[[a["window"] for a in answers]].astype(np.float32)
    if d.pool:
        frame["part"] = [r["domain"] for r in rows]
    within = [
        100.0 * metrics.contains(a["text"], r["answers"]["text"])
        for a, r in zip(answers, rows, strict=True)
    ]
    overflowed = sum(n > 1 for n in Counter(windows["row"]).values())
    return {
        **{k: metrics.average_scores(v, by) for k, v in values.items()},
        "em_rows": scored["exact_match"],
        "f1_rows": scored["f1"],
        "loss": loss,
        "tokens": float(frame["tokens"].mean()),
        "contains": metrics.average_scores(np.array(within), by),
        "overflowed": overflowed,
        "n": len(rows),
        "clusters": len(set(clusters)),
    }, frame


COMBINED = ("others", "oracle")  # rules that need no mixture: scores of the experts' own answers


def combine_expert_scores(spec: Spec) -> tuple[dict[str, dict], pd.DataFrame]:
    """Scores on each test set, and its examples. others: the mean of the experts of other datasets; oracle: of each question the
    best expert's, which no choice among their answers can pass (mixed scores can give an answer that none of them gave)."""
    every, frames, scores = runs.collect_expert_examples(spec), [], {}
    for name in spec.tests:
        rows = every[
            (every["set"] == name) & ((spec.gate.rule != "others") | (every["expert"] != name))
        ]
        values = rows.groupby(["set", "id", "cluster"], sort=False)[
            [c for c in rows if c.startswith(("em", "f1"))]
        ]
        frame = (values.mean() if spec.gate.rule == "others" else values.max()).reset_index()
        d = selection.find_dataset(name, spec.source)
        by = frame["cluster"].tolist() if d.average == "clusters" else None
        scores[name] = {
            c: metrics.average_scores(frame[c].to_numpy(), by)
            for c in frame
            if c.startswith(("em", "f1"))
        }
        scores[name] |= {"n": len(frame), "clusters": frame["cluster"].nunique(), "overflowed": 0}
        frames.append(frame)
    return scores, pd.concat(frames, ignore_index=True)


# ---- the runs of the report ----
