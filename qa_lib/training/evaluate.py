"""Evaluation of a model on rows: its outputs on all windows, its predictions, and their scores.

The task of the rows (qa_lib/tasks) says what a prediction is and what it is worth.
"""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import pandas as pd
import torch

from qa_lib.data import features, selection
from qa_lib.settings.parameters import Dataset
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.tasks import get_task, metrics
from qa_lib.training import memory, multitask

CACHE = runs.RUNS / "cache"  # features and frozen outputs, computed once
# Rules of a mixture that need no model: they combine the scores of the experts' own answers.
COMBINED = ("others", "oracle")


@contextmanager
def seed_draws(text: str, devices: tuple[torch.device, ...] = ()) -> Iterator[None]:
    """Draw PyTorch's random numbers from a seed of their own within a with block.

    text: what the seed is a digest of; devices: GPUs that go on afterwards as if nothing had been
    drawn, as the CPU does.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(digest[:8], 16))
        yield


def seed_routing(model, spec: Spec, name: str) -> AbstractContextManager:
    """Return a with block in which a router that draws at evaluation has draws of their own.

    They follow from the run and the dataset, so that scores do not depend on what was scored
    before, nor a training on its evaluations. Other models draw nothing there.
    """
    if spec.layer is None or spec.layer.eval_routing != "random":
        return nullcontext()
    device = next(model.parameters()).device
    devices = (device,) if device.type == "cuda" else ()
    return seed_draws(f"{spec.hash}/{name}", devices)


def iterate_batches(model, windows, lengths: list[int], collate, precision: str):
    """Yield (indices, lengths, batch, output) of a model in evaluation mode over all windows.

    The longest windows come first, so that the windows of a batch have like lengths.
    indices: of the batch's windows; lengths: tokens of each.
    """
    device = next(model.parameters(), torch.empty(0)).device
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
            for name, value in batch.items():
                if torch.is_tensor(value):  # the dataset's name is none
                    batch[name] = value.to(device)
            yield indices, [lengths[i] for i in indices], batch, model(**batch)
            start += len(indices)
            memory.return_freed()


def compute_outputs(
    model, windows, collate, precision: str, task
) -> tuple[dict[str, list[np.ndarray]], float]:
    """Return a model's outputs on each window, by name, and the mean loss.

    The names are those of the task's read_outputs: start and end for spans.
    """
    outputs: dict[str, list] = {}
    total = 0.0
    lengths = task.measure_windows(windows)
    batches = iterate_batches(model, windows, lengths, collate, precision)
    for indices, of_batch, _, output in batches:
        total += output.loss.item() * len(indices)
        for name, values in task.read_outputs(output, of_batch).items():
            of_all = outputs.setdefault(name, [None] * len(windows))
            for i, value in zip(indices, values, strict=True):
                of_all[i] = value
    return outputs, total / max(1, len(windows))


def predict_outputs(model, tokenizer, spec: Spec, dataset: str, rows: list[dict]) -> tuple:
    """Return (windows of a dataset's rows, a model's outputs on each by name, mean loss)."""
    task = selection.find_task(spec, dataset)
    windows = features.load_windows(rows, tokenizer, spec.max_length, spec.stride, CACHE, task)
    prepared = model.prepare(windows, rows)
    collate = model.collate(tokenizer, task, dataset)
    return windows, *compute_outputs(model, prepared, collate, spec.precision, task)


def score_rows(
    model, tokenizer, spec: Spec, dataset: str, rows: list[dict]
) -> tuple[list, dict[str, float], float]:
    """Return a model's predictions on a dataset's rows, their average scores, and the mean loss."""
    task = selection.find_task(spec, dataset)
    with seed_routing(model, spec, dataset):
        windows, outputs, loss = predict_outputs(model, tokenizer, spec, dataset, rows)
    predictions = task.predict(rows, windows, outputs)
    _, averages = task.score(rows, predictions)
    return predictions, averages, loss


def score_run_rows(model, tokenizer, spec: Spec, rows: list[dict]) -> dict[str, float]:
    """Return a model's loss and scores on rows of a run's datasets, as its history names them.

    A run of one kind of rows has `loss` and the task's scores. A run on several datasets in turn
    has `mean`, the mean over the datasets of the score that chooses checkpoints, `loss`, the mean
    of their losses, and `<score>_<dataset>` and `loss_<dataset>` of each.
    """
    losses = []
    chosen_by = []
    of_datasets: dict[str, float] = {}
    for dataset, own_rows in multitask.group_rows(spec, rows).items():
        _, averages, loss = score_rows(model, tokenizer, spec, dataset, own_rows)
        if not spec.multitask:
            return {"loss": loss, **averages}
        losses.append(loss)
        chosen_by.append(averages[selection.find_task(spec, dataset).CHECKPOINT_SCORE])
        of_datasets[f"loss_{dataset}"] = loss
        of_datasets |= {f"{name}_{dataset}": value for name, value in averages.items()}
    return {"loss": float(np.mean(losses)), "mean": float(np.mean(chosen_by)), **of_datasets}


def choose_rules(model, tokenizer, spec: Spec, rows: list[dict]) -> dict[str, dict[str, float]]:
    """Return by task the options of its `predict` that are chosen on a run's validation rows.

    Of spans it is the threshold of "no answer", one for all datasets of the run. Checkpoints and
    histories are judged without it.
    """
    rows_of: dict[str, dict[str, list[dict]]] = {}  # task → dataset → rows
    for dataset, own_rows in multitask.group_rows(spec, rows).items():
        task = selection.find_task(spec, dataset)
        rows_of.setdefault(task.NAME, {})[dataset] = own_rows

    def predict_rows(of_task: dict[str, list[dict]]) -> list:
        predictions = []
        for dataset, own_rows in of_task.items():
            predictions += score_rows(model, tokenizer, spec, dataset, own_rows)[0]
        return predictions

    rules = {}
    for name, of_task in rows_of.items():
        together = [row for own_rows in of_task.values() for row in own_rows]
        rules[name] = get_task(name).choose_rule(together, partial(predict_rows, of_task))
    return rules


def evaluate_test_set(
    model,
    tokenizer,
    spec: Spec,
    name: str,
    d: Dataset,
    rows: list[dict],
    predict=predict_outputs,
    rule: dict[str, float] | None = None,
) -> tuple[dict, pd.DataFrame]:
    """Return the scores of a test set, and its examples.

    name, d: the test set's name and definition; predict: `predict_outputs`, or a function that
    returns the same; rule: what was chosen on validation rows (choose_rules). The examples are one
    row each: ids, scores and what the task adds, never text.
    """
    task = get_task(d.task)
    rule = rule or {}
    with seed_routing(model, spec, name):
        windows, outputs, loss = predict(model, tokenizer, spec, d.part_of or name, rows)
    predictions = task.predict(rows, windows, outputs, **rule)
    clusters = [hash_text(unit) for unit in selection.name_units(rows, d.cluster)]
    averaged_over = clusters if d.average == "clusters" else None
    values, averages = task.score(rows, predictions, averaged_over)
    further = task.describe_predictions(rows, windows, predictions, values, averaged_over)
    if spec.starter:
        by_starter = task.score_as_starter(rows, windows, outputs, **rule)
        values |= by_starter
        for column, of_rows in by_starter.items():
            averages[column] = metrics.average_scores(of_rows, averaged_over)
    examples = task.tabulate(rows, predictions, values)
    examples.insert(1, "cluster", clusters)
    for column, detail in model.window_details(windows, rows).items():
        of_window = [prediction["window"] for prediction in predictions]
        examples[column] = detail[of_window].astype(np.float32)
    if d.pool:
        examples["part"] = [row["domain"] for row in rows]
    scores = {**averages, **further, "loss": loss}
    return scores | {"n": len(rows), "clusters": len(set(clusters))}, examples


def hash_text(text: str) -> str:
    """Return twelve digits of the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_combined(spec: Spec) -> bool:
    """Return whether a run's scores are combined from those of its experts."""
    return spec.gate is not None and spec.gate.rule in COMBINED


def combine_expert_scores(spec: Spec) -> tuple[dict[str, dict], pd.DataFrame]:
    """Return the scores of a combination of experts on each test set, and its examples.

    Rule `others` takes the mean over the experts of other datasets. Rule `oracle` takes the best
    expert of each question: an upper bound for any choice among their answers, but not for mixed
    logits, which can give an answer that no expert gave. Windows are not counted here.
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
        dataset = selection.find_dataset(name, spec.source, spec.folder)
        clusters = frame["cluster"].tolist() if dataset.average == "clusters" else None
        scores[name] = {
            column: metrics.average_scores(frame[column].to_numpy(), clusters)
            for column in score_columns
        }
        scores[name] |= {"n": len(frame), "clusters": frame["cluster"].nunique()}
        frames.append(frame)
    return scores, pd.concat(frames, ignore_index=True)
