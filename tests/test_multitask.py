"""Training on several datasets in turn, extra losses with a state, and the roles of parents."""

import itertools
import math
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from qa_lib.data import batches, features, selection
from qa_lib.losses.extra import ExtraLoss
from qa_lib.losses.smart import SmartLoss
from qa_lib.models import encoders, recomputed_blocks
from qa_lib.reports import trials
from qa_lib.settings import encoder_files
from qa_lib.settings.parameters import Gate, Heads, Multitask, Smart
from qa_lib.settings.params import UserError
from qa_lib.settings.spec import Spec
from qa_lib.store import runs
from qa_lib.training import build, evaluate, multitask, study, train

SENTENCES = ["sentiment", "paraphrase", "similarity"]


def show_nothing(line: str) -> None:
    """Take a line of a training's progress and show nothing."""


# ---- schedules ----


def make_schedule(sizes: dict[str, int], batch_size: int, seed: int = 0, **options):
    """Return the batches of datasets of these sizes, whose rows are of many lengths."""
    lengths = {name: [5 + 7 * i % 40 for i in range(size)] for name, size in sizes.items()}
    return batches.RoundRobin(lengths, batch_size, Multitask(**options), seed)


def list_epoch(schedule: batches.RoundRobin, epoch: int) -> list[tuple[str, list[int]]]:
    """Return (dataset, rows of the dataset) of each batch of an epoch."""
    schedule.set_epoch(epoch)
    firsts = {}
    total = 0
    for name, of_dataset in schedule.lengths.items():
        firsts[name] = total
        total += len(of_dataset)
    listed = []
    for name, indices in schedule.iterate_batches():
        listed.append((name, [i - firsts[name] for i in indices]))
    return listed


def rows_of(epoch: list[tuple[str, list[int]]], name: str) -> Counter:
    """Return how often an epoch visits each row of a dataset."""
    return Counter(row for dataset, batch in epoch if dataset == name for row in batch)


SIZES = {"sst": 85, "quora": 1410, "sts": 60}


def test_rrobin_has_equal_batches_and_the_same_rows_of_the_larger_datasets():
    schedule = make_schedule(SIZES, 8)
    first = list_epoch(schedule, 0)
    # 60 // 8 rounds of three batches
    assert [name for name, _ in first] == ["sst", "quora", "sts"] * 7
    assert len(schedule) == 21
    assert {len(batch) for _, batch in first} == {8}
    second = list_epoch(schedule, 1)
    assert first != second
    for name in ("sst", "quora"):
        assert rows_of(first, name) == rows_of(second, name)
        assert len(rows_of(first, name)) == 56
    # the smallest has less than a batch to spare, which another epoch visits
    assert len(rows_of(first, "sts")) == 56
    assert rows_of(first, "sts") != rows_of(second, "sts")
    other_seed = make_schedule(SIZES, 8, seed=1)
    assert rows_of(list_epoch(other_seed, 0), "quora") != rows_of(first, "quora")


@pytest.mark.parametrize("size, has_same_rows", [(64, True), (63, False)])
def test_with_a_batch_to_spare_an_epoch_has_the_same_rows(size, has_same_rows):
    schedule = make_schedule({"small": 56, "large": size}, 8)
    first, second = (rows_of(list_epoch(schedule, epoch), "large") for epoch in (0, 1))
    assert len(first) == len(second) == 56
    assert (first == second) == has_same_rows


def test_rrobin_full_visits_all_rows_in_batches_by_size():
    schedule = make_schedule(SIZES, 64, schedule="rrobin-full")
    epoch = list_epoch(schedule, 0)
    rounds = 1410 // 64
    assert [name for name, _ in epoch] == ["sst", "quora", "sts"] * rounds
    for name, size in (("sst", 85), ("sts", 60)):
        visits = rows_of(epoch, name)
        assert len(visits) == size
        assert set(visits.values()) == {1}
        sizes = {len(batch) for dataset, batch in epoch if dataset == name}
        assert sizes == {size // rounds, size // rounds + 1}
    assert {len(batch) for dataset, batch in epoch if dataset == "quora"} == {64}
    assert len(rows_of(epoch, "quora")) == 64 * rounds
    # what an epoch of the largest leaves out, another one visits
    both = rows_of(epoch, "quora") + rows_of(list_epoch(schedule, 1), "quora")
    assert len(both) > 64 * rounds


def test_at_a_small_batch_every_round_still_has_a_row_of_each():
    """As at the report's batch of 16, where its batches of SST and STS are of one row."""
    epoch = list_epoch(make_schedule(SIZES, 16, schedule="rrobin-full"), 0)
    assert len(epoch) == 3 * 60
    assert {len(batch) for name, batch in epoch if name == "sts"} == {1}
    assert {len(batch) for name, batch in epoch if name == "sst"} == {1, 2}
    assert {len(batch) for name, batch in epoch if name == "quora"} == {16}


def test_a_number_of_rounds_begins_datasets_anew():
    """Rrobin for as many steps as rrobin-full; and without Quora for as many as with it."""
    long = list_epoch(make_schedule(SIZES, 8, rounds=20), 0)
    assert [name for name, _ in long] == ["sst", "quora", "sts"] * 20
    assert {len(batch) for _, batch in long} == {8}
    for name in SIZES:
        # 20 batches of the rows of 7
        assert set(rows_of(long, name).values()) <= {2, 3}
    assert len(rows_of(long, "quora")) == 56
    with_quora = list_epoch(make_schedule(SIZES, 64, schedule="rrobin-full"), 0)
    few = {"sst": 85, "sts": 60}
    without = list_epoch(make_schedule(few, 64, schedule="rrobin-full", rounds=22), 0)
    for name in few:
        sizes = [len(batch) for dataset, batch in without if dataset == name]
        assert sorted(sizes) == sorted(len(b) for dataset, b in with_quora if dataset == name)
    many = list_epoch(make_schedule({"sst": 10}, 4, schedule="rrobin-full", rounds=25), 0)
    assert set(rows_of(many, "sst").values()) <= {2, 3, 4}


@pytest.mark.parametrize("name", ["rrobin", "rrobin-full"])
def test_a_schedule_follows_from_seed_and_epoch_and_its_batches_have_like_lengths(name):
    schedule = make_schedule(SIZES, 8, schedule=name)
    third = list_epoch(schedule, 3)
    again = make_schedule(SIZES, 8, schedule=name)
    assert list_epoch(again, 3) == third
    assert list(again) == list(schedule)
    lengths = schedule.lengths["quora"]
    spreads = []
    for dataset, batch in third:
        if dataset == "quora":
            of_batch = [lengths[row] for row in batch]
            spreads.append(max(of_batch) - min(of_batch))
    assert sum(spreads) / len(spreads) < 15  # of 40


# ---- runs ----


def make_spec(encoder: str, **changes) -> Spec:
    """Return a run on generated sentences that takes seconds."""
    domains = changes.get("domains", SENTENCES)
    fields = {
        "report": "smart",
        "variant": "rrobin",
        "profile": "quick",
        "size": "full",
        "seed": 0,
        "source": "embedded",
        "domains": domains,
        "fingerprints": [selection.fingerprint(name, "embedded", None) for name in domains],
        "rows": [24] * len(domains),
        "validation_rows": 10 * len(domains),
        "tests": domains,
        "encoder": encoder,
        "weights": encoder_files.identify_weights(encoder),
        "heads": Heads(pooling="mean"),
        "multitask": Multitask(),
        "max_length": 48,
        "stride": 8,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "epochs": 2.0,
        "checkpoint": "best",
        "warmup": 0.1,
        "weight_decay": 0.01,
        "clip": 1.0,
        "precision": "fp32",
        "threads": 1,
    }
    return Spec(**fields | changes)


class Killed(Exception):
    """The end of a training at a step of a test's choice."""


def kill_at_step(spec: Spec, step: int, monkeypatch):
    """Train a run until it ends at a step; there is a checkpoint at each logged step."""
    with monkeypatch.context() as patch:
        patch.setenv("QA_CHECKPOINT_SECONDS", "0")
        go_on = train.Keeper.on_step_end

        def end_at_step(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Killed
            go_on(self, args, state, control, **kwargs)

        patch.setattr(train.Keeper, "on_step_end", end_at_step)
        with pytest.raises(Killed):
            train.train(spec, progress=show_nothing)


def train_twice(spec: Spec, step: int, store, monkeypatch) -> tuple[dict, dict]:
    """Return the records of a run that nothing disturbed, and of one that a step ended."""
    undisturbed = train.train(spec, progress=show_nothing, keep_weights=True)
    (store / "runs" / "smart").rename(store / "undisturbed")
    kill_at_step(spec, step, monkeypatch)
    lines = []
    again = train.train(spec, progress=lines.append, keep_weights=True)
    assert any("goes on from checkpoint-" in line for line in lines)
    weights = load_file(next((store / "undisturbed").glob("*/model.safetensors")))
    for name, tensor in load_file(runs.run_folder(spec) / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    return undisturbed, again


def compare_records(ours: dict, theirs: dict):
    """Assert that two records of one run have the same numbers."""
    assert ours["metrics"] == theirs["metrics"]
    assert ours["load"] == theirs["load"]
    for row, other in zip(ours["history"], theirs["history"], strict=True):
        assert row == pytest.approx(other, rel=1e-6)


def kill_in_evaluation(spec: Spec, monkeypatch):
    """Train a run until its first evaluation; there is a checkpoint at each logged step."""

    def end_here(self, *args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setenv("QA_CHECKPOINT_SECONDS", "0")
        patch.setattr(train.RunTrainer, "evaluate", end_here)
        with pytest.raises(Killed):
            train.train(spec, progress=show_nothing)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
@pytest.mark.parametrize("looks", [1, 2])
def test_a_kill_in_an_evaluation_loses_no_evaluation(
    checkpoint, looks, small_encoder, store, monkeypatch
):
    """The last step of an epoch is a logged one, so that a checkpoint is due there too."""
    options = {"rows": [16, 16, 16], "checkpoint": checkpoint, "looks": looks}
    spec = make_spec(small_encoder, **options)
    undisturbed = train.train(spec, progress=show_nothing)
    (store / "runs" / "smart").rename(store / "undisturbed")
    kill_in_evaluation(spec, monkeypatch)
    lines = []
    again = train.train(spec, progress=lines.append)
    assert any("goes on from checkpoint-" in line for line in lines)
    steps = [6, 12] if looks == 1 else [3, 6, 9, 12]
    assert [row["step"] for row in again["history"]] == steps
    assert again["chosen_step"] == undisturbed["chosen_step"]
    compare_records(again, undisturbed)


def score_ever_less(monkeypatch):
    """Let each evaluation have a lower score than the one before."""
    scored = evaluate.score_run_rows
    falling = itertools.count(100, -1)

    def score_less(model, tokenizer, spec, rows):
        return scored(model, tokenizer, spec, rows) | {"mean": float(next(falling))}

    monkeypatch.setattr(evaluate, "score_run_rows", score_less)


def test_a_run_whose_folder_has_moved_keeps_its_best_checkpoint(small_encoder, store, monkeypatch):
    """All evaluations but the first are worse, so that no later checkpoint names the best anew."""
    score_ever_less(monkeypatch)
    spec = make_spec(small_encoder, rows=[16, 16, 16])
    undisturbed = train.train(spec, progress=show_nothing)
    assert undisturbed["chosen_step"] == 6
    shutil.rmtree(store / "runs" / "smart")
    with monkeypatch.context() as patch:
        patch.setenv("QA_CHECKPOINT_SECONDS", "3600")
        patch.setattr(train.Keeper, "on_epoch_begin", end_in_second_epoch, raising=False)
        with pytest.raises(Killed):
            train.train(spec, progress=show_nothing)
    (store / "runs").rename(store / "moved")
    monkeypatch.setattr(runs, "RUNS", store / "moved")
    again = train.train(spec, progress=show_nothing)
    assert again["chosen_step"] == 6
    assert again["metrics"] == undisturbed["metrics"]


def end_in_second_epoch(self, args, state, control, **kwargs):
    """End a training where its second epoch begins."""
    if state.epoch:
        raise Killed


def test_a_checkpoint_is_due_at_evaluations_too(small_encoder, monkeypatch):
    """Every step is evaluated, and only the first has the best score."""
    score_ever_less(monkeypatch)
    spec = make_spec(small_encoder, rows=[16, 16, 16], epochs=1.0, looks=6)
    kill_at_step(spec, 4, monkeypatch)
    checkpoints = (runs.run_folder(spec) / "checkpoints").iterdir()
    assert sorted(path.name for path in checkpoints) == ["checkpoint-1", "checkpoint-3"]


def test_the_time_to_a_checkpoint_is_that_since_the_last_one(tmp_path, monkeypatch):
    """One that is asked for and not written is still due; a best one counts."""
    monkeypatch.setenv("QA_CHECKPOINT_SECONDS", "300")
    now = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    spec = SimpleNamespace(run="x", watched=0, probes=0, heads=None)
    keeper = train.Keeper(spec, show_nothing, spent=0.0)
    args = SimpleNamespace(eval_strategy="no", device="cpu", output_dir=str(tmp_path))
    state = SimpleNamespace(global_step=5, epoch=0.5, max_steps=10, is_world_process_zero=True)

    def is_asked() -> bool:
        control = SimpleNamespace(should_log=True, should_evaluate=False, should_save=False)
        keeper.on_step_end(args, state, control)
        return control.should_save

    assert not is_asked()
    now[0] = 301.0
    assert is_asked()
    assert is_asked()
    (tmp_path / "checkpoint-5").mkdir()
    keeper.on_save(args, state, None)
    assert not is_asked()


def test_the_trainer_has_the_seed_and_the_warmup_of_the_run(small_encoder):
    """Its seed decides on dropout. The warmup is a share of the steps of all epochs."""
    spec = make_spec(small_encoder, seed=3, epochs=2.0, warmup=0.1)
    arguments = train.training_arguments(spec, steps_per_epoch=10, resume=False)
    assert arguments.seed == 3
    assert arguments.warmup_steps == 2


def test_watched_rows_are_spread_over_all_rows(small_encoder):
    """They are at most as many as asked for, and of every dataset that the run trains on."""
    spec = make_spec(small_encoder, watched=4)
    trainer = train.RunTrainer(
        spec,
        list(range(22)),
        None,
        None,
        [],
        model=torch.nn.Linear(1, 1),
        args=train.training_arguments(spec, steps_per_epoch=4, resume=False),
        train_dataset=[0],
        eval_dataset=[0],
    )
    assert trainer.further_rows["train"] == [0, 6, 12, 18]


def test_watched_rows_without_validation_rows_are_refused(small_encoder):
    """Their curve would have no point behind the first, whose step is 0."""
    with pytest.raises(ValueError, match="watched: training rows are scored where validation row"):
        make_spec(small_encoder, watched=4, validation_rows=0, checkpoint="last")


def test_what_is_logged_covers_every_step_of_a_training(small_encoder):
    """Of 21 steps every second is logged; an evaluation is after 10 of them, and after the rest."""
    spec = make_spec(small_encoder, rows=[56, 56, 56], epochs=1.0, looks=2, smart=Smart())
    record = train.train(spec, progress=show_nothing)
    logged = [row["step"] for row in record["load"]["training"]]
    assert logged == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21]
    assert [row["step"] for row in record["history"]] == [10, 20, 21]
    assert record["history"][-1]["train_loss"] is not None
    odd = make_spec(small_encoder, rows=[56, 56, 56], epochs=1.0, looks=3)
    record = train.train(odd, progress=show_nothing)
    assert [row["step"] for row in record["history"]] == [7, 14, 21]


def test_a_score_of_the_training_is_the_mean_over_its_steps():
    rows = [{"step": 10, "toy": 4.0}, {"step": 20, "toy": 2.0}, {"step": 25, "toy": 1.0}]
    averages = train.average_scored([Toy()], rows)
    assert averages == {"toy": (40 + 20 + 5) / 25, "n": 3}


@pytest.mark.slow
def test_a_run_on_three_datasets_is_killed_and_ends_with_the_same_numbers(
    small_encoder, store, monkeypatch
):
    """It has SMART with its averaged weights, and goes on in the middle of its second epoch."""
    spec = make_spec(
        small_encoder, smart=Smart(radius=1e-2, start_sd=1e-3, step_size=1e-2, beta=0.5)
    )
    undisturbed, again = train_twice(spec, 15, store, monkeypatch)
    compare_records(again, undisturbed)
    # three rounds of three batches in an epoch
    assert [row["step"] for row in again["history"]] == [9, 18]
    row = again["history"][-1]
    scores = {
        "sentiment": row["validation_accuracy_sentiment"],
        "paraphrase": row["validation_accuracy_paraphrase"],
        "similarity": row["validation_pearson_similarity"],
    }
    assert row["validation_mean"] == pytest.approx(sum(scores.values()) / 3)
    losses = [row[f"validation_loss_{name}"] for name in SENTENCES]
    assert row["validation_loss"] == pytest.approx(sum(losses) / 3)
    best = max(again["history"], key=lambda row: (row["validation_mean"], -row["step"]))
    assert again["chosen_step"] == best["step"]
    assert trials.selected_evaluation(spec, again) == best
    assert trials.validation_score(spec, again) == (
        best["validation_mean"],
        -best["validation_loss"],
    )
    for name, score in (("sentiment", "accuracy"), ("similarity", "pearson")):
        assert math.isfinite(again["metrics"][name][score])
    # SMART's report of every logged step, and its mean among the run's scores
    assert {"step", "adversarial_loss", "perturbation"} <= set(again["load"]["training"][0])
    assert again["metrics"]["training"]["adversarial_loss"] > 0
    # what a record and the ledger say
    ledger = runs.collect_ledger([spec])
    assert set(ledger["set"]) == {*SENTENCES, "training"}
    assert set(ledger["multitask_schedule"]) == {"rrobin"}
    text = (runs.run_folder(spec) / "metrics.json").read_text(encoding="utf-8")
    examples = runs.collect_examples([spec])
    text += examples.to_csv()
    assert list(examples.columns[:2]) == ["id", "cluster"]
    for row in selection.load_splits("sentiment", "embedded").test:
        assert row["text"] not in text


class Toy(ExtraLoss):
    """A term whose weight halves at every second step, and which depends on all steps before."""

    scored = ("toy",)

    def __init__(self):
        self.steps = torch.zeros(())
        self.sum = torch.zeros(())
        self.values: list[float] = []

    def loss(self, model, batch, outputs, step):
        assert step == self.steps
        value = (1 + self.sum) * sum(p.square().mean() for p in model.parameters())
        self.values.append(value.item())
        return 0.1 * value

    def after_step(self, model):
        self.steps = self.steps + 1
        self.sum = 0.5 * self.sum + self.values[-1]

    def state_dict(self):
        values = torch.tensor(self.values, dtype=torch.float64)
        return {"steps": self.steps, "sum": self.sum, "values": values}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        self.sum = state["sum"]
        self.values = state["values"].tolist()

    def read_log(self):
        mean = sum(self.values) / len(self.values)
        self.values.clear()
        return {"toy": mean}


def test_the_state_of_an_extra_loss_goes_with_the_checkpoints(small_encoder, store, monkeypatch):
    monkeypatch.setattr(
        build, "make_losses", lambda spec, model, steps: [ExtraLossOfNothing(), Toy()]
    )
    spec = make_spec(small_encoder, checkpoint="last")
    undisturbed, again = train_twice(spec, 13, store, monkeypatch)
    compare_records(again, undisturbed)
    logged = [row["toy"] for row in again["load"]["training"]]
    assert len(set(logged)) == len(logged) == 18
    assert again["metrics"]["training"] == {"toy": pytest.approx(sum(logged) / 18), "n": 18}


class ExtraLossOfNothing(ExtraLoss):
    """A term of 0 without a state."""

    def loss(self, model, batch, outputs, step):
        return 0.0


class Constant(ExtraLoss):
    """A term that no weight changes."""

    def loss(self, model, batch, outputs, step):
        return torch.tensor(64.0)


@pytest.mark.parametrize("limit", [None, 60])
def test_the_training_loss_is_the_task_s_without_extra_terms(limit, small_encoder, monkeypatch):
    """Where a batch takes several passes, too."""
    monkeypatch.setattr(multitask, "limit_pass", lambda spec: limit)
    spec = make_spec(small_encoder, epochs=1.0)
    plain = train.train(spec, progress=show_nothing)
    monkeypatch.setattr(build, "make_losses", lambda spec, model, steps: [Constant()])
    with_term = train.train(spec, progress=show_nothing)
    assert with_term["metrics"] == plain["metrics"]
    assert with_term["history"][0] == pytest.approx(plain["history"][0], abs=1e-4)
    for row in with_term["load"]["training"]:
        assert row["extra_loss"] == pytest.approx(64.0, abs=1e-4)


class Logged(Constant):
    """A constant term that the training loss has too, as a router's."""

    in_train_loss = True


def test_the_training_loss_leaves_out_those_terms_alone_that_say_so(small_encoder, monkeypatch):
    spec = make_spec(small_encoder, epochs=1.0)
    first = []
    for losses in ([Logged()], [Logged(), Constant()]):
        monkeypatch.setattr(build, "make_losses", lambda spec, model, steps, made=losses: made)
        first.append(train.train(spec, progress=show_nothing))
    alone, both = first
    assert both["history"][0] == pytest.approx(alone["history"][0], abs=1e-4)
    assert all("extra_loss" not in row for row in alone["load"]["training"])
    for row in both["load"]["training"]:
        assert row["extra_loss"] == pytest.approx(64.0, abs=1e-4)


FROZEN = Heads(frozen=True, pooling="mean", score="distribution")


@pytest.mark.parametrize(
    "how",
    [{}, {"probes": 2}, {"precision": "bf16"}, {"heads": FROZEN}, {"smart": Smart()}],
    ids=str,
)
def test_a_run_whose_blocks_are_recomputed_has_the_same_scores(how, small_encoder, monkeypatch):
    """SMART's blocks are not: it switches dropout off between a pass and its gradients."""
    spec = make_spec(small_encoder, **({"epochs": 1.0} | how))
    kept = train.train(spec, progress=show_nothing)
    calls = []

    def count(function, *args, **options):
        calls.append(function)
        return checkpoint(function, *args, **options)

    monkeypatch.setattr(recomputed_blocks, "checkpoint", count)
    monkeypatch.setattr(recomputed_blocks, "KEPT", 0)
    recomputed = train.train(spec, progress=show_nothing)
    assert bool(calls) == ("smart" not in how)
    for part in ("metrics", "history", "gradients"):
        assert recomputed.get(part) == kept.get(part)


def test_all_datasets_are_trained_in_turn_an_optimizer_step_each(small_encoder, monkeypatch):
    seen = []

    class Seen(ExtraLossOfNothing):
        def loss(self, model, batch, outputs, step):
            seen.append((batch["dataset"], len(batch["labels"])))
            return 0.0

    monkeypatch.setattr(build, "make_losses", lambda spec, model, steps: [Seen()])
    train.train(make_spec(small_encoder, epochs=1.0), progress=show_nothing)
    assert seen == [(name, 8) for name in SENTENCES] * 3
    seen.clear()
    full = make_spec(
        small_encoder,
        epochs=1.0,
        rows=[12, 40, 12],
        multitask=Multitask(schedule="rrobin-full", fixed_divisor=["sentiment"]),
    )
    train.train(full, progress=show_nothing)
    assert [name for name, _ in seen] == SENTENCES * 5
    visits = Counter()
    for name, rows in seen:
        visits[name] += rows
    assert visits == {"sentiment": 12, "paraphrase": 40, "similarity": 12}


def test_draws_on_a_gpu_take_passes_of_a_fine_tuning_s_size(small_encoder):
    """MT-DNN's 512 windows of 512 tokens would take more memory than any GPU has."""
    draws = Multitask(schedule="draws", rounds=1, sampling="proportional")
    fields = {"multitask": draws, "batch_size": 512, "max_length": 512}
    mt_dnn = make_spec(small_encoder, **fields)
    assert multitask.limit_pass(mt_dnn) is None
    assert multitask.limit_pass(make_spec(small_encoder).on_gpu()) is None
    limit = multitask.limit_pass(mt_dnn.on_gpu())
    assert limit == 32 * 512
    rows = torch.arange(500).unsqueeze(1).expand(500, 384)
    batch = {"dataset": "qqp", "input_ids": rows, "labels": rows[:, 0], "teachers": rows.T}
    pieces = list(multitask.split_batch(batch, limit))
    assert len(pieces) == 12
    assert sum(share for share, _ in pieces) == pytest.approx(1)
    seen = []
    for share, piece in pieces:
        assert piece["dataset"] == "qqp"
        assert piece["input_ids"].numel() <= limit
        assert len(piece["labels"]) == pytest.approx(500 * share)
        assert torch.equal(piece["teachers"][0], piece["labels"])
        seen += piece["labels"].tolist()
    assert seen == list(range(500))
    # a row that is longer than the limit is a pass of its own
    assert len(list(multitask.split_batch(batch, 100))) == 500


def test_a_fixed_divisor_divides_the_sum_over_rows_by_the_batch_size(small_encoder):
    """In training alone: the loss of an evaluation is a mean, whatever its batches are."""
    options = {"rows": [12, 40, 12], "batch_size": 8, "head_dropout": 0.0}
    plain = make_spec(small_encoder, multitask=Multitask(schedule="rrobin-full"), **options)
    fixed = Multitask(schedule="rrobin-full", fixed_divisor=["sentiment"])
    trained = {}
    evaluated = {}
    for spec in (plain, make_spec(small_encoder, multitask=fixed, **options)):
        model, tokenizer = build.build_model(spec)
        rows = selection.draw_mixture(spec)[0]
        of_rows = [row for row in rows if row["domain"] == "sentiment"][:3]
        losses = torch.tensor([1.0, 2.0, 6.0])
        trained[spec.hash] = float(model.average(losses, "sentiment", trains=True))
        _, _, evaluated[spec.hash] = evaluate.predict_outputs(
            model, tokenizer, spec, "sentiment", of_rows
        )
    assert list(trained.values()) == [9 / 3, 9 / 8]
    whole, divided = evaluated.values()
    assert divided == whole > 0


@pytest.mark.parametrize("dropout", ["on", "off"])
def test_a_fixed_divisor_is_that_of_noisy_losses_too(dropout, small_encoder):
    """Without noise and without dropout they are the clean loss."""
    options = {"rows": [12, 40, 12], "head_dropout": 0.0}
    fixed = Multitask(schedule="rrobin-full", fixed_divisor=["sentiment"])
    spec = make_spec(small_encoder, multitask=fixed, **options)
    model, tokenizer = build.build_model(spec)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = [row for row in selection.draw_mixture(spec)[0] if row["domain"] == "sentiment"][:3]
    task = selection.find_task(spec, "sentiment")
    windows = features.load_windows(rows, tokenizer, 48, 8, evaluate.CACHE, task)
    prepared = model.prepare(windows, rows)
    batch = model.collate(tokenizer, task, "sentiment")([prepared[i] for i in range(3)])
    outputs = model.train()(**batch)
    noise = {"variant": "gaussian", "start_sd": 0.0, "bregman": 0.0, "adversarial": 1.0}
    terms = SmartLoss(Smart(dropout=dropout, **noise), model, 0, 1)
    torch.testing.assert_close(terms.loss(model, batch, outputs, 0), outputs.loss)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "fixed_divisor: nli is no dataset that the run trains on; name some of sentiment"),
        (
            {"domains": ["nli"], "heads": Heads(span="joint")},
            "fixed_divisor: it divides the losses of a batch's rows, which plain heads alone have",
        ),
        ({"domains": ["nli"], "heads": None}, "fixed_divisor: .* which plain heads alone have"),
    ],
)
def test_what_a_fixed_divisor_cannot_divide_is_refused(changes, words, small_encoder):
    fixed = Multitask(fixed_divisor=["nli"])
    with pytest.raises(ValueError, match=words):
        make_spec(small_encoder, multitask=fixed, **changes)


def test_checkpoints_can_be_judged_on_test_rows_as_in_the_report(small_encoder):
    spec = make_spec(small_encoder, multitask=Multitask(judged_on="dev"))
    record = train.train(spec, progress=show_nothing)
    best = max(record["history"], key=lambda row: (row["dev_mean"], -row["step"]))
    assert record["chosen_step"] == best["step"]
    assert trials.selected_evaluation(spec, record) == best
    of_tests = []
    for name, score in zip(SENTENCES, ("accuracy", "accuracy", "pearson"), strict=True):
        assert record["metrics"][name][score] == pytest.approx(best[f"dev_{score}_{name}"])
        of_tests.append(record["metrics"][name][score])
    assert best["dev_mean"] == pytest.approx(sum(of_tests) / 3)


def test_a_single_dataset_of_sentences_trains_and_is_scored_on_all(small_encoder):
    """Heads that no batch trains are those of the seed, whatever else the run is scored on."""
    one = make_spec(small_encoder, domains=["sentiment"], multitask=None, variant="finetune")
    alone = train.train(one, progress=show_nothing, keep_weights=True)
    assert [set(row) for row in alone["history"]] == [
        {"epoch", "step", "train_loss", "validation_loss", "validation_accuracy"}
    ] * 2
    # of two epochs
    rows = selection.draw_mixture(one)[0]
    _, tokenizer = encoders.load_encoder(small_encoder)
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=48)["input_ids"]
    assert alone["tokens"] == 2 * sum(len(of_row) for of_row in ids)
    on_all = one.model_copy(update={"tests": SENTENCES})
    assert on_all.hash == one.hash
    of_all = train.train(on_all, progress=show_nothing, keep_weights=True)
    assert of_all["metrics"]["sentiment"] == alone["metrics"]["sentiment"]
    assert math.isfinite(of_all["metrics"]["similarity"]["pearson"])
    weights = load_file(runs.run_folder(one) / "model.safetensors")
    model, _ = build.build_model(make_spec(small_encoder, start=on_all))
    for name, tensor in model.state_dict().items():
        if name.startswith(("encoder.", "heads.sentiment.")):
            assert torch.equal(tensor, weights[name])
    # frozen: the encoder stays as its file has it
    frozen = one.model_copy(update={"heads": Heads(frozen=True), "learning_rate": 1e-2})
    train.train(frozen, progress=show_nothing, keep_weights=True)
    weights = load_file(runs.run_folder(frozen) / "model.safetensors")
    plain, _ = encoders.load_encoder(small_encoder)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(weights[f"encoder.{name}"], tensor)


def test_a_study_estimates_and_trains_sentences(small_encoder, capsys):
    spec = make_spec(small_encoder, smart=Smart(), epochs=1.0)
    runs.RUNS.mkdir()
    tokens, hours, _ = study.estimate_cost([spec], 1)
    assert tokens[spec.hash] > 0
    assert hours > 0
    study._train([spec], tokens, 1, set(), False)
    output = capsys.readouterr().out
    assert "sentiment accuracy " in output
    assert " EM " not in output


# ---- roles of parents ----


def test_the_head_that_a_start_lacks_is_the_seed_s(small_encoder):
    quora = make_spec(small_encoder, domains=["paraphrase"], multitask=None, seed=3)
    train.train(quora, progress=show_nothing, keep_weights=True)
    weights = load_file(runs.run_folder(quora) / "model.safetensors")
    child = make_spec(small_encoder, start=quora, seed=1)
    model, _ = build.build_model(child)
    fresh, _ = build.build_model(child.without_parents())
    drawn = fresh.state_dict()
    for name, tensor in model.state_dict().items():
        is_of_start = name.startswith(("encoder.", "heads.paraphrase."))
        expected = weights[name] if is_of_start else drawn[name]
        assert torch.equal(tensor, expected), name
    # of other classes is another head
    other = child.model_copy(update={"start": quora.model_copy(update={"heads": Heads()})})
    assert other.hash != child.hash


def test_heads_and_pooler_follow_from_the_seed(small_encoder):
    drawn = []
    for seed in (0, 0, 1):
        spec = make_spec(small_encoder, seed=seed, heads=Heads(pooling="pooler"))
        drawn.append(build.build_model(spec)[0].state_dict())
    for name in ("heads.sentiment.linear.weight", "pooler.linear.weight"):
        assert torch.equal(drawn[0][name], drawn[1][name])
        assert not torch.equal(drawn[0][name], drawn[2][name])


def test_only_the_start_is_loaded_into_the_model(small_encoder):
    """A teacher counts as a parent that has to be trained, and its weights stay its own."""
    teacher = make_spec(small_encoder, domains=["sentiment"], multitask=None, seed=3, epochs=1.0)
    taught = make_spec(small_encoder, teachers=[teacher])
    assert study.list_missing([taught]) == [
        teacher.for_this_machine(),
        taught.for_this_machine(),
    ]
    train.train(teacher, progress=show_nothing, keep_weights=True)
    model, _ = build.build_model(taught)
    plain, _ = build.build_model(taught.without_parents())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    record = train.train(taught, progress=show_nothing)
    assert record["parents"] == []
    assert record["teachers"] == [teacher.hash]


def test_roles_have_the_hash_of_the_list_they_were(small_encoder):
    plain = make_spec(small_encoder)
    fields = plain.model_dump(exclude=set(Spec.ROLES))
    start = make_spec(small_encoder, seed=1)
    assert Spec(**fields, parents=[start]) == plain.model_copy(update={"start": start})
    assert Spec(**fields, parents=[]) == plain
    gate = {"gate": Gate()}
    experts = [start, make_spec(small_encoder, seed=2)]
    mixed = Spec(**fields | gate, parents=experts)
    assert mixed == plain.model_copy(update=gate | {"experts": experts})
    assert mixed.parent_hashes == {"parents": [run.hash for run in experts]}
    hashes = {
        plain.model_copy(update={role: [start] if role != "start" else start}).hash
        for role in ("start", "teachers")
    }
    assert len({plain.hash, *hashes}) == 3
    assert mixed.on_gpu().experts[0].threads == "cuda"
    for wrong, words in (
        ({"parents": experts}, "goes on from one run"),
        ({"experts": experts}, "there is no gate"),
        (gate | {"start": start, "experts": experts}, "goes on from no run"),
    ):
        with pytest.raises(ValueError, match=words):
            Spec(**fields | wrong)


# ---- what is refused ----


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"heads": None, "multitask": None, "domains": ["sentiment"]},
            "sentiment is a dataset of the task classes, and smart answers questions by spans",
        ),
        ({"multitask": None}, "are of several tasks, which need batches of one dataset"),
        ({"domains": ["nli"], "multitask": None}, "nli: smart has no head for its rows"),
    ],
)
def test_a_dataset_whose_task_the_run_cannot_use_is_one_sentence(small_encoder, changes, words):
    with pytest.raises(UserError, match=words) as error:
        build.build_model(make_spec(small_encoder, **changes))
    assert "\n" not in str(error.value)


def test_several_processes_cannot_share_datasets_in_turn(small_encoder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several datasets in turn, which 2 processes cannot"):
        train.training_arguments(make_spec(small_encoder), 10, False)


def test_a_dataset_without_a_row_of_its_own_is_refused(small_encoder):
    spec = make_spec(small_encoder, rows=[24, 0, 24], validation_rows=6)
    with pytest.raises(UserError, match="no row falls to .*; raise train_rows or validation_rows"):
        train.train(spec, progress=show_nothing)


def test_datasets_in_turn_have_as_many_validation_rows_of_each(small_encoder):
    """Whatever their training rows; rows together have the proportions of training."""
    spec = make_spec(small_encoder, rows=[8, 24, 16], validation_rows=24)
    _, validation, _ = selection.draw_mixture(spec)
    assert Counter(row["domain"] for row in validation) == dict.fromkeys(SENTENCES, 8)
    together = spec.model_copy(update={"multitask": None})
    _, validation, _ = selection.draw_mixture(together)
    numbers = dict(zip(SENTENCES, [4, 12, 8], strict=True))
    assert Counter(row["domain"] for row in validation) == numbers


def test_dev_rows_are_the_test_rows_of_what_trains(small_encoder):
    spec = make_spec(small_encoder, domains=["paraphrase", "similarity"])
    spec = spec.model_copy(update={"tests": ["sentiment", "paraphrase", "similarity"]})
    assert {row["domain"] for row in train.load_dev_rows(spec)} == {"paraphrase", "similarity"}
