r"""Distillation: a run learns from its labels and from the outputs of trained models, its teachers.

Sources: Hinton et al. 2015, arXiv 1503.02531 (temperature); ROaD's report, Algorithm 2 (teachers
weighted by whether they are right); Clark et al. 2019, arXiv 1907.04829 (BAM's teacher annealing);
Jiao et al. 2020, arXiv 1909.10351 (hidden states).

$$\mathcal{L} = \alpha\,\mathcal{L}_\text{labels}
  + (1 - \alpha)\left(\mathcal{L}_\text{soft} + \mathcal{L}_\text{states}\right)$$

$$\mathcal{L}_\text{soft} = \mathrm{KL}(p \,\|\, q) = \sum_c p_c\,(\log p_c - \log q_c), \qquad
  p = \operatorname{softmax}(\bar z / T), \quad q = \operatorname{softmax}(v / T)$$

$\mathcal{L}_\text{labels}$: the task's own loss; v: the student's logits; $\bar z$: the weighted
mean of the teachers' logits; T: the temperature; p: the soft target. Where T² is asked for, it is a
factor of $\mathcal{L}_\text{soft}$, so that its gradient keeps its size at high temperatures.

A row has K choices: start and end of a span, or one class. A choice is among C tokens or classes.
M teachers, B batch, N tokens, L blocks, D width. `mask`: true at what may be chosen, so that it is
false at padding; it broadcasts to (B, K, C).
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_lib.losses.extra import LoggingLoss
from qa_lib.settings.parameters import Distillation
from qa_lib.settings.params import UserError

SMALLEST = 1e-30  # below any probability that matters, and with a logarithm

# ---- the weights of teachers: ROaD's Algorithm 2 ----


def judge_teachers(
    teachers: Tensor, gold: Tensor, mask: Tensor, correct: Literal["joint", "separate"]
) -> Tensor:
    """Return which teachers are right, (M, B, K), or (M, B, 1) where choices are judged jointly.

    A teacher is right where its highest logit is at the label. Jointly it has to be right in all
    choices of a row. teachers: logits, (M, B, K, C); gold: (B, K).
    """
    best = teachers.masked_fill(~mask, -torch.inf).argmax(-1)  # (M, B, K)
    right = best == gold
    return right.all(-1, keepdim=True) if correct == "joint" else right


def weigh_teachers(
    right: Tensor, wrong_weight: float, all_wrong: Literal["mean", "scaled"]
) -> Tensor:
    r"""Return the weights of the teachers, in the shape of `right`, (M, …).

    $$w_i = \begin{cases} W & \text{teacher } i \text{ is wrong} \\
      \dfrac{M - n_\text{wrong}\,W}{n_\text{right}} & \text{otherwise} \end{cases}$$

    They sum to M, so that the mean keeps the range of the logits. Where no teacher is right, the
    algorithm would divide by zero. Then all have weight 1, or with `scaled` all have weight W.
    wrong_weight: W.
    """
    number = len(right)
    n_right = right.sum(0)
    n_wrong = number - n_right
    # $(M - n_\text{wrong}\,W) / n_\text{right}$
    of_right = (number - n_wrong * wrong_weight) / n_right.clamp(min=1)
    weights = of_right.where(right, wrong_weight)
    if all_wrong == "mean":
        weights = weights.where(n_right > 0, 1.0)
    return weights


def shuffle_weights(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return the weights of each row given to its teachers at random. weights: (M, …).

    This is the control of weighting: the weights stay and say nothing about who is right.
    generator: on the CPU, so that draws are the same on every machine.
    """
    order = torch.rand(weights.shape, generator=generator).argsort(0)
    return weights.gather(0, order.to(weights.device))


def average_logits(teachers: Tensor, weights: Tensor) -> Tensor:
    r"""Return the weighted mean of the teachers' logits, (B, K, C).

    $$\bar z = \frac1M \sum_i w_i\, z_i$$

    teachers: z, (M, B, K, C); weights: w, (M, B, K), or (M, B, 1) for all choices of a row.
    """
    # $\frac1M \sum_i w_i\, z_i$
    return (weights.unsqueeze(-1) * teachers).mean(0)


# ---- soft targets: Hinton et al. 2015 ----


def soften(logits: Tensor, temperature: float, mask: Tensor) -> Tensor:
    r"""Return log-probabilities at a temperature, $\log \operatorname{softmax}(z / T)$, (…, K, C).

    Padding has no probability.
    """
    lowest = torch.finfo(logits.dtype).min
    return (logits / temperature).masked_fill(~mask, lowest).log_softmax(-1)


def soft_loss(target: Tensor, student: Tensor) -> Tensor:
    r"""Return $\mathrm{KL}(p \,\|\, q)$ of each row, the mean over its choices, (B,).

    target, student: log p and log q of `soften`, (B, K, C).
    """
    # $\sum_c p_c (\log p_c - \log q_c)$
    return F.kl_div(student, target, reduction="none", log_target=True).sum(-1).mean(-1)


def measure_entropy(target: Tensor) -> Tensor:
    r"""Return the entropy of each choice in nats, (B, K). target: log p, (B, K, C).

    $$H(p) = -\sum_c p_c \log p_c$$
    """
    return torch.special.entr(target.exp()).sum(-1)


# ---- hidden states ----


def states_loss(student: Tensor, teachers: Tensor, mask: Tensor) -> Tensor:
    r"""Return how far the student's hidden states are from the teachers', of each row, (B,).

    $$\mathcal{L}_\text{states} = \frac{1}{L\,N\,D} \sum_{l, n}
      \Bigl\| h_{l,n} - \frac1M \sum_i g_{i,l,n} \Bigr\|^2$$

    The sum is over tokens without padding, and N is their number. student: h, (B, L, N, D);
    teachers: g, (M, B, L, N, D); mask: (B, N), 0 at padding.
    """
    # $\frac1D \| h_{l,n} - \frac1M \sum_i g_{i,l,n} \|^2$
    squares = (student - teachers.mean(0)).square().mean(-1)  # (B, L, N)
    real = mask.unsqueeze(1).to(squares.dtype)  # (B, 1, N)
    return ((squares * real).sum(-1) / real.sum(-1)).mean(-1)


# ---- teacher annealing: Clark et al. 2019 ----


def anneal(step: int, updates: int) -> float:
    r"""Return λ, which rises linearly from 0 at the first update to 1 at the last.

    BAM's target is $\lambda\,y + (1 - \lambda)\,p$, with y the label. Its cross-entropy is

    $$\lambda\,\mathcal{L}_\text{labels}
      + (1 - \lambda)\left(\mathrm{KL}(p \,\|\, q) + H(p)\right)$$

    at T = 1, and H(p) has no gradient. So λ stands in the place of α, at every temperature.
    step: updates before this one; updates: all of the training.
    """
    return min(step / max(updates - 1, 1), 1.0)


# ---- label smoothing, a control that needs no teacher ----


def smooth_labels(gold: Tensor, smoothing: Tensor, mask: Tensor) -> Tensor:
    r"""Return smoothed labels, (B, K, C): $(1 - \epsilon)\,y + \epsilon / C$, 0 at padding.

    gold: (B, K); smoothing: ε, (B, K); mask: (B, K, C).
    """
    smoothing = smoothing.unsqueeze(-1)
    share = mask / mask.sum(-1, keepdim=True)  # 1 / C
    one_hot = F.one_hot(gold, mask.shape[-1])
    # $(1 - \epsilon)\,y + \epsilon / C$
    return (1 - smoothing) * one_hot + smoothing * share


def find_smoothing(entropy: Tensor, classes: Tensor) -> Tensor:
    r"""Return the label smoothing ε whose targets have the given entropies, by bisection.

    $$H(\epsilon) = -a \log a - (C - 1)\,b \log b, \qquad
      b = \frac{\epsilon}{C}, \quad a = 1 - (C - 1)\,b$$

    H rises from 0 at ε = 0 to log C at ε = 1. entropy: in nats; classes: C, in a shape that
    broadcasts to that of entropy.
    """
    classes = classes.double()
    low = torch.zeros_like(entropy, dtype=torch.float64)
    high = torch.ones_like(low)
    for _ in range(60):
        middle = (low + high) / 2
        other = middle / classes  # b
        of_others = (classes - 1) * torch.special.entr(other)
        is_below = torch.special.entr(1 - (classes - 1) * other) + of_others < entropy
        low = middle.where(is_below, low)
        high = high.where(is_below, middle)
    return ((low + high) / 2).to(entropy.dtype)


def match_entropy(target: Tensor, gold: Tensor, mask: Tensor) -> Tensor:
    """Return smoothed labels as log-probabilities, each of the entropy of a soft target, (B, K, C).

    They are as soft as the target, and say nothing of what the teachers rank high or low.
    target: log p of `soften`, (B, K, C); gold: (B, K); mask: (B, 1, C).
    """
    smoothing = find_smoothing(measure_entropy(target), mask.sum(-1))
    smoothed = smooth_labels(gold, smoothing, mask)
    lowest = torch.finfo(target.dtype).min
    return smoothed.clamp(min=SMALLEST).log().masked_fill(~mask, lowest)


# ---- as a part of a training ----


class Choices(NamedTuple):
    """The choices of a batch's rows, alike for spans and classes."""

    student: Tensor  # logits, (B, K, C)
    teachers: Tensor  # logits, (M, B, K, C)
    gold: Tensor  # (B, K)
    mask: Tensor  # (B, 1, C)


def read_choices(logits: Tensor, batch: dict) -> Choices:
    """Return the choices of a batch, in fp32.

    logits: of the student, of spans (B, 2, C) and of classes (B, C). The batch has the teachers' as
    `teachers`, with M in front.
    """
    logits = logits.float()
    teachers = batch["teachers"].float()
    if "start_positions" in batch:
        gold = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
        return Choices(logits, teachers, gold, batch["attention_mask"].bool().unsqueeze(1))
    mask = torch.ones_like(logits, dtype=torch.bool)
    gold = batch["labels"].unsqueeze(1)
    return Choices(logits.unsqueeze(1), teachers.unsqueeze(2), gold, mask.unsqueeze(1))


class DistillationLoss(LoggingLoss):
    r"""Distillation as an extra loss of a training.

    The trainer adds it to the task's loss, so it is what changes that loss into
    $\mathcal{L}$:

    $$(1 - \alpha)\left(\mathcal{L}_\text{soft} + \mathcal{L}_\text{states}
      - \mathcal{L}_\text{labels}\right)$$

    At α = 1 it is 0, and the run trains as without teachers. With annealing λ is in the place of α.
    With `targets: smoothed` p is the label, smoothed to the entropy of the soft target. With
    `targets: none` $\mathcal{L}_\text{soft}$ is logged and not learned.
    A batch has `teachers` (read_choices), and where hidden states are asked for `teacher_states`,
    (M, B, L, N, D). All is computed in fp32, without autocast. A model that is trained with it has:

    - `compared_outputs(output)`: the logits of an output;
    - `average(losses, dataset, trains)`: the loss of a batch from those of its rows;
    - `keeps_states`, and `states`: the hidden states of the last training pass where that is set.

    It logs, as means over the rows of each batch:

    - soft_loss and states_loss: $\mathcal{L}_\text{soft}$, $\mathcal{L}_\text{states}$;
    - soft_target_entropy: that of the soft targets, in nats;
    - teachers_disagree: the share of rows in which some teachers are right and others wrong;
    - largest_weight: the largest weight of a teacher.
    """

    scored = (
        "soft_loss",
        "soft_target_entropy",
        "teachers_disagree",
        "largest_weight",
        "states_loss",
    )

    def __init__(self, options: Distillation, model: nn.Module, seed: int, updates: int):
        """Set up the loss. updates: all updates of the training."""
        super().__init__()
        self.options = options
        self.seed = seed
        self.updates = updates
        model.keeps_states = options.hidden != "none"

    def loss(self, model: nn.Module, batch: dict, outputs, step: int) -> Tensor:
        """Return what changes the task's loss of a batch into that of distillation, a scalar.

        outputs: those of the training pass, with its loss; step: updates before this batch.
        """
        of_labels = anneal(step, self.updates) if self.options.annealing else self.options.hard
        with torch.autocast(outputs.loss.device.type, enabled=False):
            of_teachers = self.imitate(model, batch, outputs, step)
        if of_labels == 1:
            return outputs.loss.new_zeros(())
        # $(1 - \alpha)(\mathcal{L}_\text{soft} + \mathcal{L}_\text{states}
        # - \mathcal{L}_\text{labels})$
        return (1 - of_labels) * (of_teachers - outputs.loss)

    def imitate(self, model: nn.Module, batch: dict, outputs, step: int) -> Tensor:
        r"""Return $\mathcal{L}_\text{soft} + \mathcal{L}_\text{states}$ of a batch, a scalar."""
        options = self.options
        choices = read_choices(model.compared_outputs(outputs), batch)
        right = judge_teachers(choices.teachers, choices.gold, choices.mask, options.correct)
        weights = self.choose_weights(right, step)
        logits = average_logits(choices.teachers, weights)
        target = soften(logits, options.temperature, choices.mask)
        self.log(batch, "soft_target_entropy", measure_entropy(target))
        if options.targets == "smoothed":
            target = match_entropy(target, choices.gold, choices.mask)
        student = soften(choices.student, options.temperature, choices.mask)
        losses = soft_loss(target, student)
        if options.square:
            losses = options.temperature**2 * losses
        self.log(batch, "soft_loss", losses)
        disagree = right.any(0) & ~right.all(0)  # (B, K)
        self.log(batch, "teachers_disagree", disagree.any(-1).float())
        self.log(batch, "largest_weight", weights.amax((0, 2)))
        if options.targets == "none":
            losses = torch.zeros_like(losses)
        if options.hidden != "none":
            of_states = self.compare_states(model, batch)
            self.log(batch, "states_loss", of_states)
            losses = losses + of_states
        return model.average(losses, batch.get("dataset"), trains=True)

    def choose_weights(self, right: Tensor, step: int) -> Tensor:
        """Return the teachers' weights by the run's rule, in the shape of `right`, (M, …)."""
        options = self.options
        if options.teachers == "mean":
            return torch.ones_like(right, dtype=torch.float32)
        weights = weigh_teachers(right, options.wrong_weight, options.all_wrong)
        if options.teachers == "weighted":
            return weights
        # One number of the seed and the step: a run that goes on draws what it would have drawn.
        mixed = np.random.SeedSequence([self.seed, step]).generate_state(1)
        return shuffle_weights(weights, torch.Generator().manual_seed(int(mixed[0])))

    def compare_states(self, model: nn.Module, batch: dict) -> Tensor:
        r"""Return $\mathcal{L}_\text{states}$ of each row, (B,).

        Raises UserError where the student's states have another shape than the teachers'.
        """
        states = model.states[-1:] if self.options.hidden == "last" else model.states
        model.states = ()  # so that they take no memory when the step is done
        student = torch.stack(states, 1).float()  # (B, L, N, D)
        teachers = batch["teacher_states"].float()
        if teachers.shape[1:] != student.shape:
            raise UserError(
                f"hidden: the teachers have {teachers.shape[2]} blocks of width "
                f"{teachers.shape[4]}, and the student {student.shape[1]} of "
                f"{student.shape[3]}; take teachers of its size"
            )
        return states_loss(student, teachers, batch["attention_mask"])
