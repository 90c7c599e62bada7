"""Gradients of a run's datasets, compared while it trains."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_multitask import SENTENCES, compare_records, make_spec, show_nothing, train_twice

from qa_lib.settings.parameters import Heads, LayerDecay, Multitask
from qa_lib.store import runs
from qa_lib.training import build, gradients, train

DRAWS = Multitask(schedule="draws", rounds=12, passes=2)


def make_probed(encoder: str, probes: int, **changes):
    """Return a run on three datasets of sentences whose gradients are compared."""
    fields = {"multitask": DRAWS, "checkpoint": "last", "probes": probes}
    return make_spec(encoder, **fields | changes)


# ---- what is measured ----


def take_gradient(model, batches: list[dict]) -> torch.Tensor:
    """Return the gradient of the mean loss of batches as one vector in fp64, by `backward`."""
    model.eval()
    model.zero_grad()
    rows = sum(len(batch["labels"]) for batch in batches)
    for batch in batches:
        (model(**batch).loss * len(batch["labels"]) / rows).backward()
    of_encoder = []
    for parameter in model.encoder.parameters():
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        of_encoder.append(gradient.flatten().double())
    return torch.cat(of_encoder)


def test_the_first_measurement_is_of_the_whole_gradients_before_training(small_encoder):
    """Against gradients of all the encoder's parameters that are not rounded to fp16."""
    spec = make_probed(small_encoder, 1)
    record = train.train(spec, progress=show_nothing)
    (measured,) = record["gradients"]
    assert measured["step"] == 0
    model, tokenizer = build.build_model(spec)
    rows, _, counts = train.draw_rows(spec)
    examples = train.load_training_examples(spec, model, tokenizer, rows, counts, print)
    batches = gradients.draw_batches(spec, examples.windows, examples.collate)
    assert list(batches) == SENTENCES
    expected = {}
    for dataset, of_dataset in batches.items():
        assert [len(batch["labels"]) for batch in of_dataset] == [4, 4, 4, 4]
        assert {batch["dataset"] for batch in of_dataset} == {dataset}
        expected[dataset] = take_gradient(model, of_dataset)
    norms = {dataset: gradient.norm().item() for dataset, gradient in expected.items()}
    assert measured["norms"] == pytest.approx(norms, rel=1e-4)
    cosines = {}
    for a, b in (SENTENCES[:2], SENTENCES[::2], SENTENCES[1:]):
        cosines[f"{a}/{b}"] = (expected[a] @ expected[b]).item() / (norms[a] * norms[b])
    assert measured["cosines"] == pytest.approx(cosines, abs=5e-5)
    assert max(abs(cosine) for cosine in cosines.values()) > 0.05
    mean = torch.stack(list(expected.values())).mean(0).norm().item()
    assert measured["left"] == pytest.approx(mean / np.mean(list(norms.values())), rel=1e-4)


def test_the_loss_of_batches_is_the_mean_over_their_rows(small_encoder):
    """Whatever the batches: five rows at once, or four and one."""
    spec = make_probed(small_encoder, 1)
    model, tokenizer = build.build_model(spec)
    rows, _, counts = train.draw_rows(spec)
    examples = train.load_training_examples(spec, model, tokenizer, rows, counts, print)
    windows = [("sentiment", examples.windows.windows["sentiment"][i]) for i in range(5)]
    model.eval()
    at_once = gradients.compute_gradient(model, [examples.collate(windows)], "fp32")
    parts = [examples.collate(windows[:4]), examples.collate(windows[4:])]
    in_parts = gradients.compute_gradient(model, parts, "fp32")
    for ours, theirs in zip(in_parts, at_once, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "vectors, cosines, left",
    [
        ([[3, 0], [0, 4]], {"a/b": 0.0}, 2.5 / 3.5),
        ([[3, 0], [6, 0]], {"a/b": 1.0}, 1.0),
        ([[3, 0], [-3, 0]], {"a/b": -1.0}, 0.0),
        ([[1, 0], [0, 1], [-1, 1]], {"a/b": 0.0, "a/c": -(0.5**0.5), "b/c": 0.5**0.5}, None),
        ([[3, 0], [0, 0]], {}, 1.0),
        ([[0, 0], [0, 0]], {}, 0.0),
        ([[3, 4]], {}, 1.0),
    ],
)
def test_cosines_and_what_averaging_leaves_by_hand(vectors, cosines, left):
    norms = {name: math.hypot(*vector) for name, vector in zip("abc", vectors, strict=False)}
    # each divided by a number of its own
    matrix = np.array(vectors) / np.array([[2.0], [3.0], [4.0]])[: len(vectors)]
    values = gradients.compare_gradients(norms, matrix @ matrix.T)
    assert values["norms"] == norms
    assert values["cosines"] == pytest.approx(cosines)
    if left is None:  # the mean is (0, 2/3)
        left = (2 / 3) / ((2 + 2**0.5) / 3)
    assert values["left"] == pytest.approx(left)


@pytest.mark.parametrize(
    "probes, updates, steps",
    [
        (1, 600, [0]),
        (2, 600, [0, 600]),
        (5, 600, [0, 150, 300, 450, 600]),
        (4, 10, [0, 3, 7, 10]),
        (9, 2, [0, 1, 2]),
    ],
)
def test_measurements_are_evenly_spaced(probes, updates, steps):
    assert gradients.space_steps(probes, updates) == steps


def test_the_windows_follow_from_the_seed(small_encoder):
    batches = {}
    for seed in (0, 0, 1):
        spec = make_probed(small_encoder, 1, seed=seed)
        model, tokenizer = build.build_model(spec)
        rows, _, counts = train.draw_rows(make_probed(small_encoder, 1))
        examples = train.load_training_examples(spec, model, tokenizer, rows, counts, print)
        drawn = gradients.draw_batches(spec, examples.windows, examples.collate)
        ids = drawn["sentiment"][0]["input_ids"].tolist()
        assert batches.setdefault(seed, ids) == ids
    assert batches[0] != batches[1]


# ---- what is not changed ----


def test_a_measurement_changes_no_number_of_the_training(small_encoder, store):
    """With dropout, whose draws a measurement must not move, and with layer-wise rates."""
    options = {"layer_decay": LayerDecay(), "checkpoint": "best"}
    plain = make_probed(small_encoder, 0, **options)
    expected = train.train(plain, progress=show_nothing, keep_weights=True)
    assert "gradients" not in expected
    weights = load_file(runs.run_folder(plain) / "model.safetensors")
    (store / "runs" / "smart").rename(store / "plain")
    probed = make_probed(small_encoder, 5, **options)
    assert probed.hash == plain.hash
    record = train.train(probed, progress=show_nothing, keep_weights=True)
    compare_records(record, expected)
    for name, tensor in load_file(runs.run_folder(probed) / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    assert [row["step"] for row in record["gradients"]] == [0, 6, 12, 18, 24]
    lefts = [row["left"] for row in record["gradients"]]
    assert len(set(lefts)) == 5


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_left_as_it_was(small_encoder, mode):
    spec = make_probed(small_encoder, 1)
    model, tokenizer = build.build_model(spec)
    rows, _, counts = train.draw_rows(spec)
    examples = train.load_training_examples(spec, model, tokenizer, rows, counts, print)
    batches = gradients.draw_batches(spec, examples.windows, examples.collate)
    model.train(mode)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = torch.random.get_rng_state()
    first = gradients.measure_gradients(model, batches, "fp32")
    assert gradients.measure_gradients(model, batches, "fp32") == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {module.training for module in model.modules()} == {mode}
    assert all(parameter.grad.eq(1).all() for parameter in model.parameters())


@pytest.mark.slow
def test_a_measured_run_is_killed_and_ends_with_the_same_measurements(
    small_encoder, store, monkeypatch
):
    """It goes on from a checkpoint in an epoch's middle, at a step that is measured."""
    spec = make_probed(small_encoder, 5)
    undisturbed, again = train_twice(spec, 19, store, monkeypatch)
    compare_records(again, undisturbed)
    assert [row["step"] for row in again["gradients"]] == [0, 6, 12, 18, 24]
    assert again["gradients"] == undisturbed["gradients"]


# ---- what is refused ----


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"multitask": None}, "probes: .* there is no multitask; leave probes out"),
        ({"heads": Heads(frozen=True)}, "probes: a frozen encoder has no gradients to compare"),
        ({"probes": -1}, "probes"),
    ],
)
def test_what_cannot_be_measured_is_refused(small_encoder, changes, words):
    with pytest.raises(ValueError, match=words):
        make_probed(small_encoder, **{"probes": 3} | changes)
