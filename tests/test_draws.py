"""Averaged gradients of datasets drawn at random (ROaD, Algorithm 1), and layer-wise rates."""

from collections import Counter

import pytest
import torch
from test_multitask import (
    SENTENCES,
    Killed,
    compare_records,
    list_epoch,
    make_spec,
    rows_of,
    show_nothing,
    train_twice,
)
from transformers import AlbertConfig, AlbertModel

from qa_lib.data import batches
from qa_lib.models import encoders, heads
from qa_lib.settings.parameters import LayerDecay, Multitask
from qa_lib.settings.params import UserError
from qa_lib.training import build, layer_rates, multitask, train

SIZES = {"nli": 300, "yesno": 60, "sentiment": 30}


def make_draws(sizes: dict[str, int], batch_size: int, seed: int = 0, **options):
    """Return the batches of datasets of these sizes, whose rows are of many lengths."""
    lengths = {name: [5 + 7 * i % 40 for i in range(size)] for name, size in sizes.items()}
    of_draws = Multitask(schedule="draws", **options)
    return batches.RandomDraws(lengths, batch_size, of_draws, seed)


def count_datasets(epoch: list[tuple[str, list[int]]]) -> dict[str, float]:
    """Return the share of an epoch's batches that each dataset has."""
    counts = Counter(name for name, _ in epoch)
    return {name: counts[name] / len(epoch) for name in SIZES}


# ---- draws ----


@pytest.mark.parametrize("passes", [1, 2, 4, 8])
def test_an_update_has_as_many_batches_as_passes_and_the_same_rows(passes):
    draws = make_draws(SIZES, 16, rounds=50, passes=passes)
    epoch = list_epoch(draws, 0)
    assert len(draws) == len(epoch) == 50 * passes
    assert {len(batch) for _, batch in epoch} == {16 // passes}


@pytest.mark.parametrize(
    "sampling, expected",
    [
        ("uniform", {"nli": 1 / 3, "yesno": 1 / 3, "sentiment": 1 / 3}),
        ("proportional", {"nli": 300 / 390, "yesno": 60 / 390, "sentiment": 30 / 390}),
    ],
)
def test_datasets_are_drawn_in_the_stated_proportions(sampling, expected):
    epoch = list_epoch(make_draws(SIZES, 8, rounds=2000, passes=4, sampling=sampling), 0)
    assert count_datasets(epoch) == pytest.approx(expected, abs=0.02)


def test_annealed_sampling_begins_proportional_and_ends_nearly_uniform():
    draws = make_draws(SIZES, 8, rounds=1000, passes=4, sampling="annealed")
    assert draws.weigh_datasets(0) == [300, 60, 30]
    assert draws.weigh_datasets(999) == pytest.approx([n**0.2 for n in SIZES.values()])
    middle = draws.weigh_datasets(500)
    assert middle == pytest.approx([n**0.6 for n in SIZES.values()], rel=0.01)
    epoch = list_epoch(draws, 0)
    late = count_datasets(epoch[-800:])["nli"]
    assert late < count_datasets(epoch[:800])["nli"] - 0.15
    alone = make_draws(SIZES, 8, rounds=1, sampling="annealed")
    assert alone.weigh_datasets(0) == [300, 60, 30]


def test_the_draws_of_an_update_are_independent():
    """Two passes fall on one dataset as often as chance has it, a third of the time."""
    epoch = list_epoch(make_draws(SIZES, 8, rounds=3000, passes=2), 0)
    names = [name for name, _ in epoch]
    same = [a == b for a, b in zip(names[::2], names[1::2], strict=True)]
    assert sum(same) / len(same) == pytest.approx(1 / 3, abs=0.03)


def test_a_dataset_gives_all_its_rows_before_one_comes_again():
    epoch = list_epoch(make_draws(SIZES, 8, rounds=400, passes=2), 0)
    counts = rows_of(epoch, "yesno")
    assert set(counts) == set(range(60))
    assert max(counts.values()) - min(counts.values()) <= 1
    few = list_epoch(make_draws({"sentiment": 3}, 8, rounds=5), 0)
    assert [sorted(batch) for _, batch in few] == [[0, 1, 2]] * 5


def test_draws_follow_from_seed_and_epoch():
    draws = make_draws(SIZES, 8, rounds=20, passes=2)
    third = list_epoch(draws, 3)
    assert list_epoch(make_draws(SIZES, 8, rounds=20, passes=2), 3) == third
    assert list_epoch(draws, 2) != third
    assert list_epoch(make_draws(SIZES, 8, seed=1, rounds=20, passes=2), 3) != third
    # the order of rows within a dataset does, too
    alone = make_draws({"nli": 300}, 8, rounds=20)
    assert list_epoch(alone, 2) != list_epoch(alone, 3)
    assert list_epoch(make_draws({"nli": 300}, 8, seed=1, rounds=20), 3) != list_epoch(alone, 3)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"schedule": "draws"}, "rounds: the schedule draws needs the updates of an epoch"),
        ({"passes": 2}, "passes: several batches an update"),
        ({"schedule": "rrobin-full", "sampling": "annealed"}, "a law of sampling"),
        (
            {"schedule": "draws", "rounds": 2, "fixed_divisor": ["sentiment"]},
            "fixed_divisor: with the schedule draws a batch has no batch_size rows",
        ),
    ],
)
def test_what_a_schedule_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Multitask(**options)


def test_a_batch_that_does_not_divide_among_passes_is_one_sentence(small_encoder):
    of_draws = Multitask(schedule="draws", rounds=2, passes=3)
    words = "^batch_size: 8 does not divide among 3 passes; change one of them$"
    with pytest.raises(UserError, match=words):
        train.train(make_spec(small_encoder, multitask=of_draws), progress=lambda line: None)


@pytest.mark.slow
def test_a_run_of_draws_is_killed_and_ends_with_the_same_numbers(small_encoder, store, monkeypatch):
    of_draws = Multitask(schedule="draws", rounds=12, passes=2, sampling="annealed")
    spec = make_spec(small_encoder, multitask=of_draws, layer_decay=LayerDecay())
    undisturbed, again = train_twice(spec, 15, store, monkeypatch)
    compare_records(again, undisturbed)
    assert [row["step"] for row in again["history"]] == [12, 24]


@pytest.mark.slow
def test_a_run_is_killed_between_two_batches_of_an_update(small_encoder, store, monkeypatch):
    """It goes on from a checkpoint at an earlier update's end, and ends with the same numbers."""
    of_draws = Multitask(schedule="draws", rounds=20, passes=4, sampling="proportional")
    spec = make_spec(small_encoder, multitask=of_draws, checkpoint="last", epochs=1.0)
    expected = train.train(spec, progress=show_nothing, keep_weights=True)
    weights = build.load_weights(spec)
    (store / "runs" / "smart").rename(store / "undisturbed")
    batches_done = []

    def end_in_update(self, args, state, control, **kwargs):
        batches_done.append(state.global_step)
        if batches_done.count(13) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setenv("QA_CHECKPOINT_SECONDS", "0")
        patch.setattr(train.Keeper, "on_substep_end", end_in_update, raising=False)
        with pytest.raises(Killed):
            train.train(spec, progress=show_nothing)
    assert batches_done[-3:] == [12, 13, 13]
    lines = []
    again = train.train(spec, progress=lines.append, keep_weights=True)
    assert f"{spec.run}  goes on from checkpoint-12" in lines
    compare_records(again, expected)
    for name, tensor in build.load_weights(spec).items():
        assert torch.equal(tensor, weights[name]), name


# ---- the length of a training ----


def test_rounds_are_the_updates_and_rates_follow_them(small_encoder, monkeypatch):
    """Warm-up and decay count updates, whatever the batches of an update."""
    rates = []
    make = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return make(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    of_draws = Multitask(schedule="draws", rounds=20, passes=4)
    spec = make_spec(small_encoder, multitask=of_draws, epochs=1.0, warmup=0.2, checkpoint="last")
    record = train.train(spec, progress=show_nothing)
    assert [row["step"] for row in record["history"]] == [20]
    rising = [1e-3 * update / 4 for update in range(4)]
    falling = [1e-3 * (20 - update) / 16 for update in range(4, 20)]
    assert rates == pytest.approx(rising + falling)


def test_the_averaged_gradient_is_clipped_once(small_encoder, monkeypatch):
    lengths = []

    def measure(self, args, state, control, model=None, **kwargs):
        squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
        lengths.append(torch.stack(squares).sum().sqrt().item())

    monkeypatch.setattr(train.Keeper, "on_pre_optimizer_step", measure, raising=False)
    of_draws = Multitask(schedule="draws", rounds=3, passes=4)
    options = {"multitask": of_draws, "epochs": 1.0, "checkpoint": "last", "head_dropout": 0.0}
    train.train(make_spec(small_encoder, clip=1e-2, **options), progress=show_nothing)
    assert lengths == pytest.approx([1e-2] * 3, rel=1e-3)


def test_the_passes_over_a_row_are_counted(small_encoder):
    of_draws = Multitask(schedule="draws", rounds=30, passes=2)
    passes = multitask.count_passes(make_spec(small_encoder, multitask=of_draws))
    assert sum(24 * of_dataset for of_dataset in passes.values()) == 30 * 8
    assert set(passes) == set(SENTENCES)


# ---- layer-wise rates ----


@pytest.mark.parametrize("top", [1, 2])
def test_every_parameter_has_the_rate_of_its_layer(small_encoder, top):
    spec = make_spec(small_encoder)
    model, _ = build.build_model(spec)
    layers = LayerDecay(rate=0.5, top=top)
    decayed = [name for name, _ in model.named_parameters() if name.endswith("dense.weight")]
    groups = layer_rates.group_parameters(model, 1.0, 0.01, decayed, layers)
    rate_of = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in rate_of
            rate_of[id(parameter)] = (group["lr"], group["weight_decay"])
    assert len(rate_of) == len(list(model.parameters()))
    blocks = len(encoders.blocks_of(model.encoder))
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.embeddings."):
            power = blocks + top
        elif name.startswith("encoder.encoder.layer."):
            power = blocks + top - 1 - int(name.split(".")[3])
        else:
            power = 0  # a head
        expected = (0.5**power, 0.01 if name in decayed else 0.0)
        assert rate_of[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize("top", [1, 2])
def test_albert_s_one_block_has_the_rate_of_the_top_one(top):
    config = AlbertConfig(
        vocab_size=30,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=24,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = heads.SpanModel(AlbertModel(config, add_pooling_layer=False), 0.1)
    powers = layer_rates.find_powers(model, top)
    for name, parameter in model.named_parameters():
        if "albert_layers" in name:
            expected = top
        elif name.startswith("encoder."):  # the embeddings and their projection
            expected = top + 1
        else:
            expected = 0
        assert powers[id(parameter)] == expected, name


def test_the_optimizer_has_these_rates_and_the_schedule_scales_them(small_encoder, monkeypatch):
    seen = []
    go_on = train.Keeper.on_step_end

    def look(self, args, state, control, optimizer=None, **kwargs):
        seen.append(sorted({group["lr"] for group in optimizer.param_groups}))
        go_on(self, args, state, control, **kwargs)

    monkeypatch.setattr(train.Keeper, "on_step_end", look)
    options = {"epochs": 1.0, "schedule": "constant", "warmup": 0.0}
    spec = make_spec(small_encoder, layer_decay=LayerDecay(rate=0.5), **options)
    train.train(spec, progress=lambda line: None)
    blocks = 6
    expected = sorted(1e-3 * 0.5**power for power in [0, *range(2, blocks + 3)])
    assert seen[0] == pytest.approx(expected)


def test_a_rate_of_one_is_the_plain_optimizer(small_encoder):
    plain = train.train(make_spec(small_encoder, epochs=1.0), progress=lambda line: None)
    same = make_spec(small_encoder, epochs=1.0, layer_decay=LayerDecay(rate=1.0))
    again = train.train(same, progress=lambda line: None)
    assert plain["metrics"] == again["metrics"]


@pytest.mark.parametrize("layers", [None, LayerDecay(rate=0.5)])
def test_the_optimizer_has_the_weight_decay_of_the_run(small_encoder, monkeypatch, layers):
    """Biases and norms have none."""
    seen = []
    go_on = train.Keeper.on_step_end

    def look(self, args, state, control, model=None, optimizer=None, **kwargs):
        name_of = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                seen.append((name_of[id(parameter)], group["weight_decay"]))
        go_on(self, args, state, control, **kwargs)

    monkeypatch.setattr(train.Keeper, "on_step_end", look)
    spec = make_spec(small_encoder, layer_decay=layers, weight_decay=0.07, epochs=1.0)
    train.train(spec, progress=show_nothing)
    for name, weight_decay in seen:
        assert weight_decay == (0.0 if "LayerNorm" in name or "bias" in name else 0.07), name
    assert {weight_decay for _, weight_decay in seen} == {0.0, 0.07}
