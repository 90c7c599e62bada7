r"""Gradients of a run's datasets, compared while it trains on them in turn.

$$\cos(a, b) = \frac{g_a^\top g_b}{\lVert g_a \rVert\,\lVert g_b \rVert}, \qquad
  \text{left} = \frac{\bigl\lVert \tfrac1n \sum_d g_d \bigr\rVert}
                     {\tfrac1n \sum_d \lVert g_d \rVert}$$

$g_d$: the gradient of dataset d's mean loss with respect to the encoder; n: the number of datasets.
Left is the share of the gradients' length that averaging leaves. It is 1 where they all point one
way, and about $1/\sqrt n$ where they are orthogonal and of one length.

The loss is the task's, without extra terms and without dropout, on 16 training windows of each
dataset that the seed draws once. Heads have no part in it. A measurement changes nothing in the
training: the weights, their gradients and the random numbers stay as they are.

Gradients are kept in fp16, each divided by its largest number, and of the word embeddings only the
rows of words in the windows, since all others are zero. Products are summed in fp64. Of MiniLM on
eight datasets this rounding changed no cosine by more than 0.00001.
"""

import random
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from qa_lib.models.shared_encoder import stack_texts
from qa_lib.settings.spec import Spec
from qa_lib.training import memory
from qa_lib.training.multitask import JoinedWindows

WINDOWS = 16  # of each dataset
ENTRY = "gradients"  # what a measurement is called in the Trainer's log


class GradientProbe(TrainerCallback):
    """Measures the gradients of a run's datasets at evenly spaced updates.

    The first measurement comes before training, the last one after it. Measurements stand in the
    Trainer's log, which goes with the checkpoints.
    """

    def __init__(self, spec: Spec, windows: JoinedWindows, collate: Callable):
        """windows, collate: the training examples of the run."""
        self.probes = spec.probes
        self.precision = spec.precision
        self.batches = draw_batches(spec, windows, collate)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Measure before the first update. A training that goes on from a checkpoint did so."""
        if state.global_step == 0:
            self.measure_where_due(state, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Measure after an update where it is due."""
        self.measure_where_due(state, model)

    def measure_where_due(self, state, model: nn.Module):
        """Add a measurement to the log where one is due at this step."""
        if state.global_step in space_steps(self.probes, state.max_steps):
            values = measure_gradients(model, self.batches, self.precision)
            state.log_history.append({"step": state.global_step, ENTRY: values})


def space_steps(probes: int, updates: int) -> list[int]:
    """Return the numbers of updates after which a training of so many updates is measured."""
    steps = np.linspace(0, updates, probes).round().astype(int)
    return sorted(set(steps.tolist()))


def read_gradients(log: list[dict]) -> list[dict]:
    """Return a row for each measurement in the Trainer's log: step, norms, cosines and left."""
    return [{"step": entry["step"], **entry[ENTRY]} for entry in log if ENTRY in entry]


def draw_batches(spec: Spec, windows: JoinedWindows, collate: Callable) -> dict[str, list[dict]]:
    """Return the windows of each dataset that are measured, in batches of the training's size."""
    size = spec.batch_size // spec.multitask.passes
    batches = {}
    for dataset, of_dataset in windows.windows.items():
        rng = random.Random(f"{spec.seed}/probes/{dataset}")
        indices = rng.sample(range(len(of_dataset)), min(WINDOWS, len(of_dataset)))
        chosen = [(dataset, of_dataset[i]) for i in indices]
        batches[dataset] = []
        for first in range(0, len(chosen), size):
            batches[dataset].append(collate(chosen[first : first + size]))
    return batches


# ---- a measurement ----


def measure_gradients(
    model: nn.Module, batches: dict[str, list[dict]], precision: str
) -> dict[str, dict[str, float] | float]:
    """Return norms, cosines and left of the gradients of each dataset's batches.

    precision: of the forward pass, as in training.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    norms = {}
    kept = []
    words = list_words(model.encoder, batches).to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for dataset, of_dataset in batches.items():
            gradient = compute_gradient(model, of_dataset, precision)
            norms[dataset] = nn.utils.get_total_norm(gradient).item()
            kept.append(shorten_gradient(model.encoder, gradient, words))
    model.train(was_training)
    values = compare_gradients(norms, multiply_gradients(kept))
    del kept
    memory.return_freed()
    return values


def compute_gradient(model: nn.Module, batches: list[dict], precision: str) -> list[Tensor]:
    """Return the gradient of the mean loss over the rows of batches, a tensor for each parameter.

    The parameters are the encoder's. One batch after the other keeps memory as in training.
    """
    parameters = list(model.encoder.parameters())
    device = parameters[0].device
    rows = sum(len(batch["input_ids"]) for batch in batches)
    gradient = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in batches:
        inputs = {}
        for name, value in batch.items():
            inputs[name] = value.to(device) if torch.is_tensor(value) else value
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**inputs).loss
        share = len(batch["input_ids"]) / rows
        of_batch = torch.autograd.grad(share * loss, parameters, materialize_grads=True)
        for total, part in zip(gradient, of_batch, strict=True):
            total += part
    return gradient


def list_words(encoder: nn.Module, batches: dict[str, list[dict]]) -> Tensor:
    """Return the ids of all tokens of batches, each once."""
    tokens = []
    for of_dataset in batches.values():
        for batch in of_dataset:
            texts = stack_texts(batch, encoder.config.pad_token_id)
            tokens.append(texts["input_ids"].flatten())
    return torch.cat(tokens).unique()


def shorten_gradient(encoder: nn.Module, gradient: list[Tensor], words: Tensor) -> list[Tensor]:
    """Return a gradient in fp16, divided by its largest number.

    Of the word embeddings it has only the rows of `words`.
    """
    largest = max(of_parameter.abs().max().item() for of_parameter in gradient)
    embeddings = encoder.get_input_embeddings().weight
    shortened = []
    for parameter, of_parameter in zip(encoder.parameters(), gradient, strict=True):
        if parameter is embeddings:
            of_parameter = of_parameter[words]
        shortened.append((of_parameter / (largest or 1.0)).half())
    return shortened


def multiply_gradients(gradients: list[list[Tensor]]) -> np.ndarray:
    """Return the products of all pairs of gradients, (n, n)."""
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for of_parameter in zip(*gradients, strict=True):
        rows = torch.stack(of_parameter).flatten(1).double()  # (n, numbers of the parameter)
        products += (rows @ rows.T).cpu()
    return products.numpy()


def compare_gradients(
    norms: dict[str, float], products: np.ndarray
) -> dict[str, dict[str, float] | float]:
    """Return norms, cosines by pair of datasets (`a/b`), and left.

    norms: by dataset; products: of all pairs of gradients, (n, n), each divided by any number. A
    gradient of zero has no direction, so the pairs with it have no cosine.
    """
    names = list(norms)
    lengths = np.sqrt(products.diagonal())
    lengths[lengths == 0] = 1.0
    matrix = products / np.outer(lengths, lengths)  # cosines, (n, n)
    cosines = {}
    for first, second in combinations(range(len(norms)), 2):
        a = names[first]
        b = names[second]
        if norms[a] > 0 and norms[b] > 0:
            cosines[f"{a}/{b}"] = float(matrix[first, second])
    of_datasets = np.array(list(norms.values()))  # (n,)
    left = 0.0
    if of_datasets.any():
        whole_products = matrix * np.outer(of_datasets, of_datasets)  # (n, n)
        # $\lVert \tfrac1n \sum_d g_d \rVert$
        of_mean = np.sqrt(whole_products.mean().clip(min=0))
        left = float(of_mean / of_datasets.mean())
    return {"norms": norms, "cosines": cosines, "left": left}
