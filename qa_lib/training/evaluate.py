"""Evaluation of a model on rows: logits of all windows, answer spans, EM and F1."""

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

CACHE = runs.RUNS / "cache"  # features and frozen outputs, computed once
# Rules of a mixture that need no model: they combine the scores of the experts' own answers.
COMBINED = ("others", "oracle")


def iterate_batches(model, windows, collate, precision: str):
    """Yield (indices, lengths, batch, output) of a model in evaluation mode over all windows.

    The longest windows come first, so that the windows of a batch have like lengths.
    indices: of the batch's windows; lengths: tokens of each.
    """
    device = next(model.parameters(), torch.empty(0)).device
    lengths = [len(ids) for ids in windows["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    tokens_per_batch = 65536 if device.type == "cuda" else 4096
    start = 0
    model.eval()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        while start < len(order):
            longest = lengths[order[start]]
            indices = order[start : start + max(1, tokens_per_batch // longest)]
            batch = collate([windows[i] for i in indices])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            yield indices, [lengths[i] for i in indices], batch, model(**batch)
            start += len(indices)


def compute_logits(
    model, windows, collate, precision: str
) -> tuple[list[np.ndarray], list[np.ndarray], float]:
    """Return the start and end logits of each window, (T,) each, and the mean loss."""
    start = [None] * len(windows)
    end = [None] * len(windows)
    total = 0.0
    for indices, lengths, _, output in iterate_batches(model, windows, collate, precision):
        total += output.loss.item() * len(indices)
        start_logits = output.start_logits.cpu().numpy()
        end_logits = output.end_logits.cpu().numpy()
        for row, (i, length) in enumerate(zip(indices, lengths, strict=True)):
            start[i] = start_logits[row, :length]
            end[i] = end_logits[row, :length]
    return start, end, total / max(1, len(windows))


def predict_spans(model, tokenizer, spec: Spec, rows: list[dict]) -> tuple:
    """Return (windows of the rows, start logits, end logits, mean loss) of a model."""
    windows = features.load_windows(rows, tokenizer, spec.max_length, spec.stride, CACHE)
    prepared = model.prepare(windows, rows)
    return windows, *compute_logits(model, prepared, model.collate(tokenizer), spec.precision)


def score_answers(
    rows: list[dict], windows, start: list[np.ndarray], end: list[np.ndarray], **rule
) -> tuple[list[dict], dict]:
    """Return the answers that logits give, and their scores (span_score.SpanScore).

    start, end: logits of each window; rule: options of span.predict_answers.
    """
    null_answers = any(row["is_impossible"] for row in rows)
    answers = span.predict_answers(rows, windows, start, end, null_answers=null_answers, **rule)
    scores = SpanScore(keep_in_memory=True).compute(
        predictions=[answer["text"] for answer in answers],
        references=[row["answers"]["text"] for row in rows],
    )
    return answers, scores


def score_rows(model, tokenizer, spec: Spec, rows: list[dict]) -> tuple[list[dict], dict, float]:
    """Return a model's answers on rows, their scores, and the mean loss."""
    windows, start, end, loss = predict_spans(model, tokenizer, spec, rows)
    return *score_answers(rows, windows, start, end), loss


def evaluate_test_set(
    model, tokenizer, spec: Spec, d: Dataset, rows: list[dict], predict=predict_spans
) -> tuple[dict, pd.DataFrame]:
    """Return the scores of a test set, and its examples.

    d: the test set's definition; predict: `predict_spans`, or a function that returns the same.
    The examples are one row each: ids, scores and character spans, never text.
    """
    windows, start, end, loss = predict(model, tokenizer, spec, rows)
    answers, scores = score_answers(rows, windows, start, end)
    values = {"em": scores["em_rows"], "f1": scores["f1_rows"]}
    if spec.starter:
        _, other = score_answers(rows, windows, start, end, one_token=False)
        values |= {"em_starter": other["em_rows"], "f1_starter": other["f1_rows"]}
    clusters = [hash_text(row[d.cluster]) for row in rows]
    examples = tabulate_examples(rows, clusters, values, answers)
    for name, detail in model.window_details(windows, rows).items():
        examples[name] = detail[[answer["window"] for answer in answers]].astype(np.float32)
    if d.pool:
        examples["part"] = [row["domain"] for row in rows]
    averaged_over = clusters if d.average == "clusters" else None
    within = [
        100.0 * metrics.contains(answer["text"], row["answers"]["text"])
        for answer, row in zip(answers, rows, strict=True)
    ]
    windows_of_row = Counter(windows["row"])
    return {
        **{name: metrics.average_scores(v, averaged_over) for name, v in values.items()},
        "em_rows": scores["exact_match"],
        "f1_rows": scores["f1"],
        "loss": loss,
        "tokens": float(examples["tokens"].mean()),
        "contains": metrics.average_scores(np.array(within), averaged_over),
        "overflowed": sum(n > 1 for n in windows_of_row.values()),
        "n": len(rows),
        "clusters": len(set(clusters)),
    }, examples


def hash_text(text: str) -> str:
    """Return twelve digits of the sha256 of a normalised text."""
    return hashlib.sha256(selection.normalise_text(text).encode()).hexdigest()[:12]


def tabulate_examples(
    rows: list[dict], clusters: list[str], values: dict[str, np.ndarray], answers: list[dict]
) -> pd.DataFrame:
    """Return a row for each example: id, cluster, scores, character span and length in tokens."""
    examples = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "cluster": clusters,
            **{name: v.astype(np.float32) for name, v in values.items()},
            "start": [answer["start"] for answer in answers],
            "end": [answer["end"] for answer in answers],
            "tokens": [answer["tokens"] for answer in answers],
        }
    )
    return examples.astype({"start": np.int32, "end": np.int32, "tokens": np.int16})


def is_combined(spec: Spec) -> bool:
    """Return whether a run's scores are combined from those of its experts."""
    return spec.gate is not None and spec.gate.rule in COMBINED


def combine_expert_scores(spec: Spec) -> tuple[dict[str, dict], pd.DataFrame]:
    """Return the scores of a combination of experts on each test set, and its examples.

    Rule `others` takes the mean over the experts of other datasets. Rule `oracle` takes the best
    expert of each question: an upper bound for any choice among their answers, but not for mixed
    logits, which can give an answer that no expert gave.
    """
    every = runs.collect_expert_examples(spec)
    score_columns = [name for name in every if name.startswith(("em", "f1"))]
    frames = []
    scores = {}
    for name in spec.tests:
        rows = every[every["set"] == name]
        if spec.gate.rule == "others":
            rows = rows[rows["expert"] != name]
        values = rows.groupby(["set", "id", "cluster"], sort=False)[score_columns]
        frame = values.mean() if spec.gate.rule == "others" else values.max()
        frame = frame.reset_index()
        dataset = selection.find_dataset(name, spec.source)
        clusters = frame["cluster"].tolist() if dataset.average == "clusters" else None
        scores[name] = {
            column: metrics.average_scores(frame[column].to_numpy(), clusters)
            for column in score_columns
        }
        scores[name] |= {"n": len(frame), "clusters": frame["cluster"].nunique(), "overflowed": 0}
        frames.append(frame)
    return scores, pd.concat(frames, ignore_index=True)
