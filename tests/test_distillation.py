"""Distillation: Algorithm 2's cases, its limits, a plain loop, and as a part of a training."""

import itertools
import math

import pytest
import torch
from test_multitask import make_spec as make_run
from test_smart import B, D, T, draw_text, list_weights, make_encoder, same
from torch.nn import functional as F

from qa_lib.losses import distillation
from qa_lib.losses.distillation import DistillationLoss
from qa_lib.models import heads
from qa_lib.models.shared_encoder import HeadOutput, SharedEncoder, make_head
from qa_lib.settings.parameters import Distillation, Heads, Multitask
from qa_lib.settings.params import UserError, validate
from qa_lib.store import code_hashes, runs
from qa_lib.training import build, evaluate, train

M, C = 3, 5
DATASETS = ["spans", "classes"]
KINDS = ["mean", "weighted", "shuffled"]
LOWEST = torch.finfo(torch.float32).min
# Tokens of each row; what follows is padding.
LENGTHS = [T, 9, 5]


pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(dropout: float = 0.1) -> SharedEncoder:
    """Return a shared encoder with a head for spans and one for classes, in training mode."""
    encoder = make_encoder(dropout, scale=1.0)
    torch.manual_seed(1)
    by_dataset = {
        "spans": make_head("span", D, dropout),
        "classes": make_head("classes", D, dropout, classes=C),
    }
    return SharedEncoder(encoder, by_dataset, dropout=dropout).train()


def draw_logits(dataset: str, seed: int, dtype=torch.float32) -> torch.Tensor:
    """Return the logits of M teachers for a batch of a dataset, the lowest number at padding."""
    generator = torch.Generator().manual_seed(seed)
    if dataset == "classes":
        return 3 * torch.randn(M, B, C, generator=generator, dtype=dtype)
    logits = 3 * torch.randn(M, B, 2, T, generator=generator, dtype=dtype)
    for row, length in enumerate(LENGTHS):
        logits[:, row, :, length:] = torch.finfo(dtype).min
    return logits


def draw_batch(dataset: str, seed: int = 1) -> dict:
    """Return a batch with teachers. In row 0 none is right, in row 1 one is, in row 2 all are.

    In row 0 of spans one teacher is right in the start alone.
    """
    batch = draw_text(seed) | {"dataset": dataset}
    teachers = draw_logits(dataset, seed)
    if dataset == "classes":
        gold = teachers[0].argmax(-1)
        teachers[:, 0, gold[0]] -= 20
        teachers[1:, 1, gold[1]] -= 20
        teachers[:, 2, gold[2]] += 20
        return batch | {"labels": gold, "teachers": teachers}
    gold = teachers[0].argmax(-1)  # (B, 2)
    teachers[1:, 0, 0, gold[0, 0]] -= 20
    teachers[:, 0, 1, gold[0, 1]] -= 20
    for choice in range(2):
        teachers[1:, 1, choice, gold[1, choice]] -= 20
        teachers[:, 2, choice, gold[2, choice]] += 20
    labels = {"start_positions": gold[:, 0], "end_positions": gold[:, 1]}
    return batch | labels | {"teachers": teachers}


def make_output(dataset: str, logits: torch.Tensor, batch: dict):
    """Return the output of a model whose logits are these, with the task's loss."""
    if dataset == "classes":
        return HeadOutput(F.cross_entropy(logits, batch["labels"]), logits, logits)
    gold = (batch["start_positions"], batch["end_positions"])
    loss = heads.span_loss(logits[:, 0], logits[:, 1], *gold)
    return heads.SpanOutput(loss, *logits.unbind(1))


def make_loss(model=None, seed: int = 0, updates: int = 10, **options) -> DistillationLoss:
    """Return a run's distillation."""
    return DistillationLoss(Distillation(**options), model or make_model(), seed, updates)


def find_total(dataset: str, logits, batch: dict, step: int = 0, seed: int = 0, **options):
    """Return the whole loss of a batch, the task's loss included."""
    model = make_model()
    outputs = make_output(dataset, logits, batch)
    loss = make_loss(model, seed, **options)
    return build.add_losses([loss], model, batch, outputs, outputs.loss, step)


# ---- the weights of teachers ----


@pytest.mark.parametrize(
    "wrong, expected",
    [
        (0, [1.0, 1.0, 1.0]),
        (1, [0.75, 1.125, 1.125]),
        (2, [0.75, 0.75, 1.5]),
    ],
)
def test_the_weights_are_the_report_s(wrong, expected):
    """Its cases of three teachers at W = 0.75."""
    right = torch.tensor([teacher >= wrong for teacher in range(3)]).reshape(3, 1, 1)
    weights = distillation.weigh_teachers(right, 0.75, "mean")
    assert weights.flatten().tolist() == expected


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("wrong_weight", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("all_wrong", ["mean", "scaled"])
def test_weights_sum_to_the_number_of_teachers_unless_all_are_wrong(
    number, wrong_weight, all_wrong
):
    cases = torch.tensor(list(itertools.product([False, True], repeat=number))).T  # (M, 2^M)
    weights = distillation.weigh_teachers(cases, wrong_weight, all_wrong)
    some_right = cases.any(0)
    assert some_right.sum() == 2**number - 1
    sums = weights.sum(0)[some_right]
    torch.testing.assert_close(sums, torch.full_like(sums, number))
    of_wrong = weights[~cases & some_right]
    torch.testing.assert_close(of_wrong, torch.full_like(of_wrong, wrong_weight))


def test_where_all_are_wrong_there_are_two_rules():
    right = torch.zeros(3, 2, 1, dtype=torch.bool)
    assert (distillation.weigh_teachers(right, 0.75, "mean") == 1).all()
    assert (distillation.weigh_teachers(right, 0.75, "scaled") == 0.75).all()


def test_start_and_end_are_judged_together_or_each_by_itself():
    batch = draw_batch("spans")
    gold = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
    mask = batch["attention_mask"].bool().unsqueeze(1)
    joint = distillation.judge_teachers(batch["teachers"], gold, mask, "joint")
    apart = distillation.judge_teachers(batch["teachers"], gold, mask, "separate")
    assert joint.squeeze(-1).T.tolist() == [[False] * 3, [True, False, False], [True] * 3]
    assert apart.shape == (M, B, 2)
    assert apart[:, 0].tolist() == [[True, False], [False, False], [False, False]]
    assert torch.equal(apart.all(-1), joint.squeeze(-1))
    weights = distillation.weigh_teachers(apart, 0.75, "mean")
    assert weights[:, 0, 0].tolist() == [1.5, 0.75, 0.75]
    assert weights[:, 0, 1].tolist() == [1.0, 1.0, 1.0]


def test_a_teacher_is_not_judged_by_what_it_says_of_padding():
    batch = draw_batch("spans")
    gold = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
    mask = batch["attention_mask"].bool().unsqueeze(1)
    right = distillation.judge_teachers(batch["teachers"], gold, mask, "separate")
    teachers = batch["teachers"].masked_fill(~mask, 100.0)
    assert torch.equal(distillation.judge_teachers(teachers, gold, mask, "separate"), right)


def draw_right(seed: int = 0, rows: int = 200) -> torch.Tensor:
    """Return teachers who are right or wrong at random, (M, rows, 2)."""
    return torch.rand(M, rows, 2, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_shuffled_weights_are_the_same_weights():
    """Of every row, so that each row of weights still sums to M."""
    right = draw_right()
    weights = distillation.weigh_teachers(right, 0.75, "mean")
    shuffled = make_loss(teachers="shuffled", correct="separate").choose_weights(right, 7)
    assert torch.equal(shuffled.sort(0).values, weights.sort(0).values)
    mixed = right.any(0) & ~right.all(0)
    moved = (shuffled != weights).any(0)
    assert not moved[~mixed].any()
    # each teacher gets the weight of the one that is alone in a third of the cases
    assert moved[mixed].float().mean() == pytest.approx(2 / 3, abs=0.1)


def test_shuffled_weights_follow_from_seed_and_step():
    right = draw_right()

    def draw(seed: int, step: int) -> list:
        loss = make_loss(seed=seed, teachers="shuffled")
        return loss.choose_weights(right, step).tolist()

    assert draw(0, 1) == draw(0, 1)
    assert draw(0, 1) != draw(0, 2)
    assert draw(0, 1) != draw(1, 1)


@pytest.mark.parametrize("kind", ["weighted", "shuffled"])
def test_weights_follow_the_options_of_the_run(kind):
    right = torch.tensor([[True, False], [False, False], [False, False]]).unsqueeze(-1)
    loss = make_loss(teachers=kind, wrong_weight=0.5, all_wrong="scaled")
    weights = loss.choose_weights(right, 0).squeeze(-1)
    assert sorted(weights[:, 0].tolist()) == [0.5, 0.5, 2.0]
    assert weights[:, 1].tolist() == [0.5, 0.5, 0.5]


def test_shuffling_draws_nothing_from_the_generator_of_dropout():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    make_loss(torch.nn.Module(), teachers="shuffled").choose_weights(draw_right(), 0)
    assert torch.equal(torch.get_rng_state(), state)


# ---- soft targets ----


def soften(logits, temperature: float = 1.0, mask=None):
    """Return log-probabilities where nothing is padding, unless a mask says so."""
    mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    return distillation.soften(logits, temperature, mask)


def test_a_teacher_that_is_the_student_gives_no_gradient():
    for dataset in DATASETS:
        batch = draw_batch(dataset)
        logits = batch["teachers"][0].clone().requires_grad_()
        batch["teachers"] = batch["teachers"][:1].repeat_interleave(M, 0)
        for kind in KINDS:
            total = find_total(dataset, logits, batch, hard=0.0, teachers=kind)
            (gradient,) = torch.autograd.grad(total, logits)
            assert total.abs() < 1e-6
            assert gradient.abs().max() < 1e-7
        other = draw_logits(dataset, 9).mean(0).requires_grad_()
        (gradient,) = torch.autograd.grad(find_total(dataset, other, batch, hard=0.0), other)
        assert gradient.abs().max() > 1e-3


def test_at_temperature_1_it_is_the_plain_divergence():
    teacher, student = (draw_logits("classes", seed)[0].unsqueeze(1) for seed in (1, 2))
    classes = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(classes(logits=teacher), classes(logits=student))
    values = distillation.soft_loss(soften(teacher), soften(student))
    torch.testing.assert_close(values, expected.squeeze(1))
    entropy = distillation.measure_entropy(soften(teacher))
    torch.testing.assert_close(entropy, classes(logits=teacher).entropy())


def test_at_high_temperatures_it_is_the_squared_difference_of_centred_logits():
    r"""Hinton et al. 2015, section 2.1, with T²: $\frac1{2C} \sum_c (\tilde v_c - \tilde z_c)^2$.

    Its gradient by the student's logits is $\frac1C (\tilde v_c - \tilde z_c)$.
    """
    draws = [draw_logits("classes", seed, torch.float64)[0].unsqueeze(1) for seed in (1, 2)]
    teacher, student = draws
    student.requires_grad_()
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (teacher, student)]
    difference = (centred[1] - centred[0]).detach()
    limit = difference.square().mean(-1).squeeze(1) / 2
    errors = []
    for temperature in (1e2, 1e3, 1e4):
        losses = temperature**2 * distillation.soft_loss(
            soften(teacher, temperature), soften(student, temperature)
        )
        (gradient,) = torch.autograd.grad(losses.sum(), student)
        errors.append((losses - limit).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    torch.testing.assert_close(losses, limit, rtol=1e-3, atol=0)
    torch.testing.assert_close(gradient, difference / C, rtol=0, atol=1e-3)


def test_t_squared_is_a_factor_of_the_soft_loss_alone():
    for dataset in DATASETS:
        batch = draw_batch(dataset)
        logits = draw_logits(dataset, 5).mean(0)
        task = make_output(dataset, logits, batch).loss
        plain = find_total(dataset, logits, batch, hard=0.3, temperature=5.0) - 0.3 * task
        squared = find_total(dataset, logits, batch, hard=0.3, temperature=5.0, square=True)
        torch.testing.assert_close(squared - 0.3 * task, 25 * plain, rtol=1e-4, atol=0)


def test_padding_has_no_part_in_a_soft_target():
    """More of it changes nothing, whatever the teachers say of it."""
    batch = draw_batch("spans")
    logits = draw_logits("spans", 5)[0]
    for said in (LOWEST, -torch.inf, 50.0, 0.0):
        wide = {**batch, "attention_mask": F.pad(batch["attention_mask"], (0, 8))}
        wide["teachers"] = F.pad(batch["teachers"], (0, 8), value=said)
        wide["teachers"] = wide["teachers"].masked_fill(
            wide["attention_mask"].unsqueeze(1) == 0, said
        )
        padded = F.pad(logits, (0, 8), value=LOWEST).requires_grad_()
        for kind in KINDS:
            expected = find_total("spans", logits, batch, hard=0.0, teachers=kind)
            total = find_total("spans", padded, wide, hard=0.0, teachers=kind)
            assert total.isfinite()
            torch.testing.assert_close(total, expected)
            (gradient,) = torch.autograd.grad(total, padded)
            at_padding = wide["attention_mask"].unsqueeze(1).expand_as(gradient) == 0
            assert (gradient[at_padding] == 0).all()
            assert (gradient[~at_padding] != 0).all()


def test_the_entropy_of_a_soft_target_knows_no_padding():
    batch = draw_batch("spans")
    mask = batch["attention_mask"].bool().unsqueeze(1)
    target = soften(batch["teachers"].mean(0), 1e6, mask)
    entropy = distillation.measure_entropy(target)
    expected = torch.tensor(LENGTHS, dtype=torch.float32).log().unsqueeze(1).expand(B, 2)
    torch.testing.assert_close(entropy, expected)


def test_spans_and_classes_are_alike():
    """Start and end that have the logits of classes have their loss."""
    of_classes = draw_batch("classes")
    logits = draw_logits("classes", 5)[0]
    of_spans = {
        "dataset": "spans",
        "attention_mask": torch.ones(B, C, dtype=torch.long),
        "start_positions": of_classes["labels"],
        "end_positions": of_classes["labels"],
        "teachers": of_classes["teachers"].unsqueeze(2).expand(-1, -1, 2, -1),
    }
    doubled = logits.unsqueeze(1).expand(-1, 2, -1)
    for kind in ("mean", "weighted"):
        for correct in ("joint", "separate"):
            options = {"teachers": kind, "correct": correct, "hard": 0.3}
            torch.testing.assert_close(
                find_total("spans", doubled, of_spans, **options),
                find_total("classes", logits, of_classes, **options),
            )
    joint = find_total("spans", doubled, of_spans, teachers="shuffled")
    alone = find_total("classes", logits, of_classes, teachers="shuffled")
    torch.testing.assert_close(joint, alone)


# ---- against a plain loop ----


def soften_plainly(logits: list[float], temperature: float) -> list[float]:
    """Return the probabilities of one choice."""
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def weigh_plainly(right: list[bool], wrong_weight: float) -> list[float]:
    """Return the weights of Algorithm 2; equal ones where all teachers are wrong."""
    if not any(right):
        return [1.0] * len(right)
    wrong = right.count(False)
    of_right = (len(right) - wrong * wrong_weight) / right.count(True)
    return [of_right if is_right else wrong_weight for is_right in right]


def total_plainly(student, teachers, gold, lengths, options: Distillation) -> float:
    """Return the loss of a batch in float64, from lists: a loop over rows, choices and teachers."""
    total = 0.0
    for row, length in enumerate(lengths):
        choices = range(len(gold[row]))
        right = []  # of each teacher, in each choice
        for teacher in teachers:
            judged = []
            for choice in choices:
                values = teacher[row][choice][:length]
                judged.append(values.index(max(values)) == gold[row][choice])
            right.append([all(judged)] * len(judged) if options.correct == "joint" else judged)
        of_row = 0.0
        for choice in choices:
            weights = weigh_plainly([judged[choice] for judged in right], options.wrong_weight)
            mean = []
            for place in range(length):
                parts = [
                    w * teacher[row][choice][place]
                    for w, teacher in zip(weights, teachers, strict=True)
                ]
                mean.append(sum(parts) / len(teachers))
            p = soften_plainly(mean, options.temperature)
            q = soften_plainly(student[row][choice][:length], options.temperature)
            divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            hard = -math.log(soften_plainly(student[row][choice][:length], 1)[gold[row][choice]])
            of_choice = options.hard * hard + (1 - options.hard) * divergence
            of_row += of_choice / len(choices)
        total += of_row / len(lengths)
    return total


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("correct", ["joint", "separate"])
@pytest.mark.parametrize("seed", [1, 2])
def test_weighted_distillation_is_a_plain_loop(dataset, correct, seed):
    batch = draw_batch(dataset, seed)
    logits = draw_logits(dataset, seed + 50)[0]
    options = {"teachers": "weighted", "correct": correct, "hard": 0.3, "temperature": 2.0}
    total = find_total(dataset, logits, batch, **options)
    teachers = batch["teachers"].double()
    if dataset == "classes":
        lists = [logits.double().unsqueeze(1), teachers.unsqueeze(2), batch["labels"].unsqueeze(1)]
        lengths = [C] * B
    else:
        gold = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
        lists = [logits.double(), teachers, gold]
        lengths = LENGTHS
    lists = [values.tolist() for values in lists]
    expected = total_plainly(*lists, lengths, Distillation(**options))
    assert total.item() == pytest.approx(expected, rel=1e-5)
    if dataset == "spans":
        other = {"joint": "separate", "separate": "joint"}[correct]
        changed = find_total(dataset, logits, batch, **options | {"correct": other})
        assert abs(changed.item() - expected) > 1e-3


def test_weighting_changes_only_rows_in_which_teachers_disagree():
    batch = draw_batch("classes")
    logits = draw_logits("classes", 5)[0]
    for row, changes in enumerate([False, True, False]):
        one = {name: value[row : row + 1] for name, value in batch.items() if name != "dataset"}
        one |= {"dataset": "classes", "teachers": batch["teachers"][:, row : row + 1]}
        totals = {}
        for kind in ("mean", "weighted"):
            totals[kind] = find_total("classes", logits[row : row + 1], one, teachers=kind)
        assert (totals["mean"] != totals["weighted"]).item() == changes


def test_all_is_in_fp32():
    """Where autocast is on, and where teachers are stored in half precision."""
    for dataset in DATASETS:
        batch = draw_batch(dataset)
        batch["teachers"] = batch["teachers"].half()
        logits = draw_logits(dataset, 5)[0]
        stored = batch | {"teachers": batch["teachers"].float()}
        expected = find_total(dataset, logits, stored, teachers="weighted")
        with torch.autocast("cpu", torch.bfloat16):
            total = find_total(dataset, logits, batch, teachers="weighted")
        assert total.dtype == torch.float32
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
        choices = distillation.read_choices(logits.bfloat16(), batch)
        assert choices.student.dtype == choices.teachers.dtype == torch.float32


def test_no_product_of_the_loss_is_under_autocast(monkeypatch):
    seen = []
    average = distillation.average_logits

    def note(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return average(*args)

    monkeypatch.setattr(distillation, "average_logits", note)
    batch = draw_batch("classes")
    with torch.autocast("cpu", torch.bfloat16):
        find_total("classes", draw_logits("classes", 5)[0], batch)
    assert seen == [False]


# ---- the labels' part, and annealing ----


def train_steps(model, loss: DistillationLoss | None, steps: range) -> list[float]:
    """Train a model on batches of both datasets in turn; return the losses.

    The dropout of each step is the same each time.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values = []
    for step in steps:
        torch.manual_seed(step)
        batch = draw_batch(DATASETS[step % 2], step)
        outputs = model(**batch)
        total = build.add_losses([loss] if loss else [], model, batch, outputs, outputs.loss, step)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(total.item())
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_at_alpha_1_it_is_training_without_teachers(kind):
    """Bit for bit."""
    plain = make_model()
    taught = make_model()
    loss = make_loss(taught, hard=1.0, teachers=kind, hidden="none")
    assert train_steps(plain, None, range(6)) == train_steps(taught, loss, range(6))
    assert same(plain, taught)
    batch = draw_batch("spans")
    added = loss.loss(taught, batch, taught(**batch), 0)
    assert added == 0
    assert not added.requires_grad  # so that it costs no backward pass
    half = make_model()
    train_steps(half, make_loss(half, hard=0.5, teachers=kind), range(6))
    assert not same(plain, half)


def test_at_alpha_0_labels_have_no_part():
    batch = draw_batch("classes")
    logits = draw_logits("classes", 5)[0].requires_grad_()
    other = {**batch, "labels": (batch["labels"] + 1) % C}
    gradients = []
    for labels in (batch, other):
        total = find_total("classes", logits, labels, hard=0.0)
        gradients.append(torch.autograd.grad(total, logits)[0])
    torch.testing.assert_close(*gradients)


def test_annealing_goes_from_the_teachers_to_the_labels():
    for dataset in DATASETS:
        batch = draw_batch(dataset)
        logits = draw_logits(dataset, 5)[0]
        task = make_output(dataset, logits, batch).loss
        first = find_total(dataset, logits, batch, 0, annealing=True)
        assert first == find_total(dataset, logits, batch, hard=0.0)
        last = find_total(dataset, logits, batch, 9, annealing=True)
        assert last == task
        third = find_total(dataset, logits, batch, 3, annealing=True)
        torch.testing.assert_close(third, (first * 2 + task) / 3)
    shares = [distillation.anneal(step, 10) for step in range(10)]
    assert shares == pytest.approx([step / 9 for step in range(10)])
    assert distillation.anneal(0, 1) == 0


def test_annealing_has_bam_s_target():
    r"""The gradient is that of the cross-entropy with $\lambda\,y + (1 - \lambda)\,p$ at T = 1."""
    batch = draw_batch("classes")
    logits = draw_logits("classes", 5)[0].requires_grad_()
    total = find_total("classes", logits, batch, 3, annealing=True, temperature=1.0)
    p = batch["teachers"].mean(0).softmax(-1)
    target = F.one_hot(batch["labels"], C) / 3 + p * 2 / 3
    expected = F.cross_entropy(logits, target)
    (ours,) = torch.autograd.grad(total, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)
    entropy = torch.distributions.Categorical(p).entropy().mean()
    torch.testing.assert_close(total, expected - entropy * 2 / 3)


def test_a_dataset_with_a_fixed_divisor_has_it_in_both_parts():
    model = make_model()
    model.divisors = {"classes": 12}
    batch = draw_batch("classes")
    logits = draw_logits("classes", 5)[0]
    outputs = make_output("classes", logits, batch)
    outputs = outputs._replace(loss=outputs.loss * B / 12)
    total = build.add_losses([make_loss(model)], model, batch, outputs, outputs.loss, 0)
    torch.testing.assert_close(total, find_total("classes", logits, batch) * B / 12)


# ---- hidden states ----


def test_the_loss_of_states_is_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(B, 2, T, D, generator=generator)
    teachers = torch.randn(M, B, 2, T, D, generator=generator)
    mask = draw_text(1)["attention_mask"]
    losses = distillation.states_loss(student, teachers, mask)
    for row, length in enumerate(LENGTHS):
        mean = teachers[:, row, :, :length].double().mean(0)
        expected = (student[row, :, :length].double() - mean).square().mean()
        assert losses[row].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("hidden", ["last", "all"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_hidden_states_are_learned_where_they_are_asked_for(hidden, dataset):
    model = make_model(dropout=0.0)
    batch = draw_batch(dataset)
    blocks = 1 if hidden == "last" else 2
    with torch.no_grad():
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states = model.encoder(**text, output_hidden_states=True).hidden_states
    own = torch.stack(states[-blocks:], 1)  # (B, L, N, D)
    loss = make_loss(model, hidden=hidden, hard=0.0)
    without = make_loss(make_model(), hard=0.0)
    for shift in (0.0, 0.5):
        batch["teacher_states"] = (own + shift).expand(M, *own.shape)
        outputs = model(**batch)
        assert len(model.states) == 2
        total = loss.loss(model, batch, outputs, 0)
        assert model.states == ()
        plain = without.loss(model, batch, outputs, 0)
        assert (total - plain).item() == pytest.approx(shift**2, abs=1e-5)
        assert loss.read_log()["states_loss"] == pytest.approx(shift**2, abs=1e-5)
    total.backward()
    assert model.encoder.encoder.layer[0].output.dense.weight.grad.abs().max() > 0


def test_hidden_states_can_be_learned_alone():
    model = make_model(dropout=0.0)
    batch = draw_batch("spans")
    batch["teacher_states"] = torch.zeros(M, B, 1, T, D)
    loss = make_loss(model, hidden="last", targets="none", hard=0.0)
    outputs = model(**batch)
    total = loss.loss(model, batch, outputs, 0) + outputs.loss
    logged = loss.read_log()
    assert total.item() == pytest.approx(logged["states_loss"], rel=1e-5)
    assert logged["soft_loss"] > 0
    other = batch | {"teachers": batch["teachers"].roll(1, -1)}
    outputs = model(**other)
    torch.testing.assert_close(loss.loss(model, other, outputs, 0) + outputs.loss, total)


def test_states_are_kept_in_training_alone_and_only_if_asked_for():
    batch = draw_batch("classes")
    model = make_model()
    model(**batch)
    assert model.states == ()
    make_loss(model, hidden="all")
    model.eval()(**batch)
    assert model.states == ()
    model.train()(**batch)
    assert len(model.states) == 2
    make_loss(model, hidden="none")
    assert not model.keeps_states


def test_states_of_another_size_are_one_sentence():
    model = make_model()
    loss = make_loss(model, hidden="all")
    batch = draw_batch("classes") | {"teacher_states": torch.zeros(M, B, 6, T, 48)}
    with pytest.raises(
        UserError, match="^hidden: .* 6 blocks of width 48, and the student 2 of 32; "
    ):
        loss.loss(model, batch, model(**batch), 0)


# ---- the log ----


def test_the_log_says_whether_teachers_could_matter():
    model = make_model()
    loss = make_loss(model, teachers="weighted", temperature=1.0, hard=0.0)
    batch = draw_batch("spans")
    outputs = make_output("spans", draw_logits("spans", 5)[0], batch)
    total = loss.loss(model, batch, outputs, 0) + outputs.loss
    log = loss.read_log()
    names = {"soft_loss", "soft_target_entropy", "teachers_disagree", "largest_weight"}
    assert set(log) == names | {f"{name}_spans" for name in names}
    assert names < set(loss.scored)
    assert log["soft_loss"] == pytest.approx(total.item(), rel=1e-5)
    assert log["teachers_disagree"] == pytest.approx(1 / 3)
    assert log["largest_weight"] == pytest.approx((1 + 1.5 + 1) / 3)
    assert 0 < log["soft_target_entropy"] < math.log(T)
    assert loss.read_log() == {}
    apart = make_loss(model, teachers="weighted", correct="separate")
    apart.loss(model, batch, outputs, 0)
    log = apart.read_log()
    assert log["teachers_disagree"] == pytest.approx(2 / 3)
    assert log["largest_weight"] == pytest.approx((1.5 + 1.5 + 1) / 3)
    plain = make_loss(model)
    plain.loss(model, batch, outputs, 0)
    log = plain.read_log()
    assert log["largest_weight"] == 1
    assert log["teachers_disagree"] == pytest.approx(1 / 3)


def test_what_is_not_logged_yet_goes_with_a_checkpoint():
    model = make_model()

    def imitate(loss: DistillationLoss, steps: range):
        for step in steps:
            dataset = DATASETS[step % 2]
            batch = draw_batch(dataset, step)
            outputs = make_output(dataset, draw_logits(dataset, 50 + step)[0], batch)
            loss.loss(model, batch, outputs, step)

    whole = make_loss(model, teachers="shuffled")
    imitate(whole, range(5))
    first = make_loss(model, teachers="shuffled")
    imitate(first, range(3))
    second = make_loss(model, teachers="shuffled")
    second.load_state_dict(first.state_dict())
    imitate(second, range(3, 5))
    assert second.read_log() == whole.read_log()


# ---- label smoothing of equal entropy ----


def test_label_smoothing_can_have_the_entropy_of_soft_targets():
    batch = draw_batch("spans")
    mask = batch["attention_mask"].bool().unsqueeze(1)
    gold = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
    entropy = distillation.measure_entropy(soften(batch["teachers"].mean(0), 4.0, mask))
    smoothing = distillation.find_smoothing(entropy, mask.sum(-1))
    assert smoothing.shape == (B, 2)
    assert ((smoothing > 0) & (smoothing < 1)).all()
    labels = distillation.smooth_labels(gold, smoothing, mask.expand(-1, 2, -1))
    torch.testing.assert_close(labels.sum(-1), torch.ones(B, 2))
    assert (labels.masked_select(~mask) == 0).all()
    assert torch.equal(labels.argmax(-1), gold)
    torch.testing.assert_close(torch.special.entr(labels).sum(-1), entropy)


@pytest.mark.parametrize("dataset", DATASETS)
def test_smoothed_labels_are_learned_as_a_plain_loop_has_them(dataset):
    batch = draw_batch(dataset)
    logits = draw_logits(dataset, 50)[0]
    options = {"temperature": 2.0, "hard": 0.0, "targets": "smoothed"}
    total = find_total(dataset, logits, batch, **options)
    choices = distillation.read_choices(logits, batch)
    expected = []
    for row in range(B):
        length = C if dataset == "classes" else LENGTHS[row]
        for choice in range(choices.student.shape[1]):
            mean = choices.teachers[:, row, choice, :length].double().mean(0)
            entropy = torch.special.entr((mean / 2).softmax(0)).sum()
            smoothing = distillation.find_smoothing(entropy, torch.tensor(length))
            label = torch.full((length,), float(smoothing) / length, dtype=torch.float64)
            label[choices.gold[row, choice]] += 1 - smoothing
            student = choices.student[row, choice, :length].double() / 2
            expected.append(float((label * (label.log() - student.log_softmax(0))).sum()))
    assert total.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_smoothed_labels_know_nothing_of_the_teachers_ranking():
    batch = draw_batch("classes")
    logits = draw_logits("classes", 50)[0]
    rolled = batch | {"teachers": batch["teachers"].roll(1, -1)}
    smoothed = {"targets": "smoothed", "hard": 0.0}
    total = find_total("classes", logits, batch, **smoothed)
    torch.testing.assert_close(find_total("classes", logits, rolled, **smoothed), total)
    ranked = find_total("classes", logits, batch, hard=0.0)
    assert (find_total("classes", logits, rolled, hard=0.0) - ranked).abs() > 1e-3


def test_smoothing_reaches_from_labels_to_equal_shares():
    classes = torch.tensor([2, 3, 100])
    none = distillation.find_smoothing(torch.zeros(3), classes)
    torch.testing.assert_close(none, torch.zeros(3))
    # to 6 digits, since H is flat there
    all_alike = distillation.find_smoothing(classes.double().log(), classes)
    torch.testing.assert_close(all_alike, torch.ones(3).double(), rtol=0, atol=1e-6)


# ---- what is refused ----


@pytest.mark.parametrize(
    "values, says",
    [
        ({"temperature": 0.0}, "temperature: 0.0 is too small"),
        ({"temperature": 2000.0}, "temperature: 2000.0 is too large"),
        ({"hard": 1.5}, "hard: 1.5 is too large; write a number less than or equal to 1"),
        ({"hard": -0.5}, "hard: -0.5 is too small"),
        ({"wrong_weight": 1.25}, "wrong_weight: 1.25 is too large"),
        ({"wrong_weight": -0.25}, "wrong_weight: -0.25 is too small"),
        ({"teachers": "best"}, "teachers: 'best' is not known; known: 'mean', 'weighted'"),
        ({"alpha": 0.5}, "alpha is not a parameter; known: temperature"),
        ({"targets": "none"}, "targets: without soft targets and without hidden states there is"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(values, says):
    with pytest.raises(UserError) as error:
        validate(Distillation, values, {})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_defaults_are_part_of_a_hash():
    assert Distillation().model_dump() == {
        "temperature": 4.0,
        "hard": 0.5,
        "square": False,
        "teachers": "mean",
        "wrong_weight": 0.75,
        "correct": "joint",
        "all_wrong": "mean",
        "annealing": False,
        "hidden": "none",
        "targets": "teachers",
        "by_dataset": False,
    }


SHARED = Heads(pairs="joined")


def make_taught(encoder: str, **changes):
    """Return a run on spans and on classes with a teacher, of the same but for distillation."""
    fields = {
        "domains": ["search", "nli"],
        "tests": ["nli"],
        "heads": SHARED,
        "multitask": Multitask(rounds=4),
        "epochs": 1.0,
        "max_length": 160,
        "stride": 32,
        "checkpoint": "last",
        "distillation": Distillation(),
    }
    options = fields | changes
    without = {name: value for name, value in options.items() if name != "distillation"}
    options.setdefault("teachers", [make_run(encoder, **without | {"seed": 100})])
    return make_run(encoder, **options)


def test_a_run_without_teachers_is_refused(small_encoder):
    with pytest.raises(ValueError, match="distillation: the run has no teachers to learn from;"):
        make_taught(small_encoder, teachers=[])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": Heads(pairs="joined", span="joint")}, "span: the ends of a joint head depend"),
        (
            {"domains": ["similarity", "sentiment"], "heads": Heads()},
            "similarity is a dataset of scores, and soft",
        ),
        (
            {"heads": None, "multitask": None, "domains": ["search"], "tests": ["search"]},
            "distillation: soft targets are for a model with heads by dataset",
        ),
        ({"domains": ["paraphrase"], "heads": Heads()}, "pairs: paraphrase has one logit"),
    ],
)
def test_outputs_without_soft_targets_are_one_sentence(small_encoder, changes, words):
    spec = make_taught(small_encoder, **changes)
    with pytest.raises(UserError, match=words) as error:
        build.build_model(spec)
    assert "\n" not in str(error.value)


def test_a_joint_head_that_the_run_does_not_train_is_no_hindrance(small_encoder):
    joint = Heads(pairs="joined", span="joint")
    spec = make_taught(small_encoder, domains=["nli"], heads=joint)
    build.build_model(spec)


# ---- whole runs ----


def test_a_run_has_its_seed_and_its_updates(small_encoder):
    spec = make_taught(small_encoder, seed=5, distillation=Distillation(annealing=True))
    (loss,) = build.make_losses(spec, make_model(), 40)
    assert (loss.options, loss.seed, loss.updates) == (spec.distillation, 5, 40)


def show_nothing(line: str) -> None:
    """Take a line of a training's progress and show nothing."""


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Make the cache of teachers' outputs that of this test."""
    monkeypatch.setattr(evaluate, "CACHE", tmp_path / "cache")


def train_teachers(spec):
    """Train the teachers of a run, and keep their weights."""
    for teacher in spec.teachers:
        train.train(teacher, progress=show_nothing, keep_weights=True)


def test_a_run_learns_from_teachers_and_its_ledger_says_how(small_encoder, own_cache):
    spec = make_taught(small_encoder, distillation=Distillation(teachers="weighted"))
    train_teachers(spec)
    assert "losses/distillation.py" in code_hashes.list_modules(spec)
    record = train.train(spec, progress=show_nothing)
    training = record["metrics"]["training"]
    assert training["soft_loss"] > 0
    assert 0 <= training["teachers_disagree"] <= 1
    assert training["largest_weight"] >= 1
    reported = record["load"]["training"]
    assert any("soft_loss_nli" in row for row in reported)
    assert any("soft_loss_search" in row for row in reported)
    ledger = runs.collect_ledger([spec])
    assert set(ledger["distillation_teachers"]) == {"weighted"}
    assert set(ledger["distillation_wrong_weight"]) == {0.75}
    assert "soft_loss" in set(ledger["metric"])


def test_a_whole_run_at_alpha_1_is_that_without_teachers(small_encoder, own_cache):
    taught = make_taught(small_encoder, distillation=Distillation(hard=1.0))
    train_teachers(taught)
    plain = taught.model_copy(update={"distillation": None, "teachers": []})
    assert taught.hash != plain.hash
    weights = []
    for spec in (taught, plain):
        train.train(spec, progress=show_nothing, keep_weights=True)
        weights.append(list_weights(build.load_trained_model(spec)))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
