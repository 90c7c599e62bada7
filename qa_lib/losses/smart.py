r"""SMART: what its adversarial and its Bregman term add to a task's loss.

Source: Jiang et al. 2020, arXiv 1911.03437, Eq. 1 to 4 and Algorithm 1.

$$\mathcal{F}(\theta) = \mathcal{L}(\theta) + \lambda\,\mathcal{R}_s(\theta)
  + \mu\,\mathcal{D}_\text{Breg}(\theta, \tilde\theta)$$

$$\mathcal{R}_s(\theta) = \frac1n \sum_i \max_{\|\delta_i\| \le \epsilon}
  \ell_s\left(f(x_i + \delta_i; \theta),\, f(x_i; \theta)\right), \qquad
  \mathcal{D}_\text{Breg}(\theta, \tilde\theta) = \frac1n \sum_i
  \ell_s\left(f(x_i; \theta),\, f(x_i; \tilde\theta)\right)$$

x: output of the encoder's embeddings module; f: what follows it, up to the logits or the score;
$\ell_s$: a divergence of two outputs; $\tilde\theta$: averaged weights of earlier steps.

At the paper's ε of 1e-5 a true $\mathcal{R}_s$ is about 3e-10 at first, and some 3e-8 after long
training. bf16 would show 2e-6 of rounding in its place. So all passes that the terms add are in
fp32, without autocast. With dropout on the training pass stands for the clean one, in fp32 runs
alone. Where the clean side is a stopped target the Bregman term reads the training pass, in bf16
too. On a GPU TF32 has to be off, in the backward pass as well: the gradients of the clean and of
the perturbed side nearly cancel.

B batch, T tokens, D width, C classes.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qa_lib.losses.extra import LoggingLoss
from qa_lib.settings.parameters import Smart

# ---- divergences: two outputs (B, …) → (B,), 0 where they are equal ----


def symmetric_kl(logits: Tensor, other: Tensor, crossed: bool = False) -> Tensor:
    r"""Symmetrised KL divergence of two distributions over classes. logits, other: (B, …, C).

    $$\mathrm{KL}(p \| q) + \mathrm{KL}(q \| p) = \sum_c (p_c - q_c)(\log p_c - \log q_c)$$

    In this form the two parts cannot cancel, so that it is never negative. A class that both
    distributions exclude adds 0.
    crossed: each part has its first distribution as a target without gradient, as in public codes.
    The value stays, and the gradient by the logits of p is that of KL(q ‖ p): p − q.
    """
    log_p = logits.log_softmax(-1)
    log_q = other.log_softmax(-1)
    p = log_p.exp()
    q = log_q.exp()
    excluded = (p == 0) & (q == 0)
    weight = p - q
    if crossed:
        weight = weight.detach()
    # $\sum_c (p_c - q_c)(\log p_c - \log q_c)$
    return (weight * (log_p - log_q).masked_fill(excluded, 0)).sum(-1)


def span_kl(logits: Tensor, other: Tensor, crossed: bool = False) -> Tensor:
    """Mean of the symmetrised KL divergences of start and end. logits, other: (B, 2, T).

    Padding, whose logits are the lowest number, has no probability and adds nothing.
    """
    return symmetric_kl(logits, other, crossed).mean(1)


def bernoulli_kl(logits: Tensor, other: Tensor, crossed: bool = False) -> Tensor:
    r"""Symmetrised KL divergence of two Bernoulli distributions, from one logit each, (B,).

    $$\mathrm{KL}(p \| q) + \mathrm{KL}(q \| p) = (\sigma(a) - \sigma(b))(a - b)$$

    a: `logits`; b: `other`.
    """
    weight = logits.sigmoid() - other.sigmoid()
    if crossed:
        weight = weight.detach()
    # $(\sigma(a) - \sigma(b))(a - b)$
    return weight * (logits - other)


def squared_error(scores: Tensor, other: Tensor, crossed: bool = False) -> Tensor:
    """Squared difference of two scores, (B,). It has no parts, so `crossed` changes nothing."""
    return (scores - other).square()


def softmax_of_one_logit(logits: Tensor, other: Tensor, crossed: bool = False) -> Tensor:
    """What the report's code takes for one logit: a softmax over one class, which is always 1.

    The divergence is 0, so that SMART does nothing.
    """
    return symmetric_kl(logits.unsqueeze(-1), other.unsqueeze(-1), crossed)


def softmax_across_batch(scores: Tensor, other: Tensor, crossed: bool = False) -> Tensor:
    """What the report's code takes for scores: a softmax over the examples of a batch.

    It is one divergence, (1,), which is 0 for a batch of one.
    """
    return symmetric_kl(scores.unsqueeze(0), other.unsqueeze(0), crossed)


Divergence = Callable[[Tensor, Tensor, bool], Tensor]
# By the kind of output.
DIVERGENCES = {
    "classes": symmetric_kl,
    "span": span_kl,
    "binary": bernoulli_kl,
    "score": squared_error,
}
REPORT_DIVERGENCES = DIVERGENCES | {
    "binary": softmax_of_one_logit,
    "score": softmax_across_batch,
}


# ---- the perturbation ----


def draw_noise(x: Tensor, mask: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Draw Gaussian noise for embeddings x (B, T, D); 0 at padding. mask: (B, T)."""
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return sd * noise * mask.unsqueeze(-1)


def measure_norm(x: Tensor, smart: Smart) -> Tensor:
    """Norm of each token, (B, T, 1), or of each example, (B, 1, 1). x: (B, T, D)."""
    order = torch.inf if smart.norm == "inf" else 2
    dims = -1 if smart.unit == "token" else (1, 2)
    return torch.linalg.vector_norm(x, order, dims, keepdim=True)


def divide_safely(x: Tensor, norm: Tensor) -> Tensor:
    """Divide by norms; what has norm 0 stays 0."""
    return x / norm.clamp(min=torch.finfo(x.dtype).tiny)


def project(delta: Tensor, smart: Smart) -> Tensor:
    r"""Project a perturbation to the ball $\|\delta\| \le \epsilon$."""
    if smart.norm == "inf":
        return delta.clamp(-smart.radius, smart.radius)
    norm = measure_norm(delta, smart)
    return torch.where(norm > smart.radius, smart.radius * divide_safely(delta, norm), delta)


def ascend(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    clean: Tensor,
    delta: Tensor,
    mask: Tensor,
    smart: Smart,
    divergence: Divergence,
) -> Tensor:
    r"""Take one step of the ascent, and return the perturbation that it leads to.

    $$g = \nabla_\delta \frac1n \sum_i \ell_s(f(x_i + \delta_i), f(x_i))$$

    `paper` (Algorithm 1) and `unit_norm` (namisan/mt-dnn, archinetai/smart-pytorch):

    $$\delta \leftarrow \Pi_{\|\delta\| \le \epsilon}
        \left(\delta + \eta\, \frac{g}{\|g\|}\right), \qquad
      \delta \leftarrow \frac{\delta + \eta\, g}{\|\delta + \eta\, g\| + \epsilon}$$

    In the second ε is no radius: while it is small the result has a norm near 1.
    x, delta: (B, T, D); clean: f(x); neither x nor clean needs a gradient.
    """
    crossed = smart.variant == "unit_norm"
    delta = delta.detach().requires_grad_()
    value = divergence(f(x + delta), clean, crossed).mean()
    # Only δ is asked for, so no gradient of a parameter is computed.
    (gradient,) = torch.autograd.grad(value, delta)
    gradient = gradient * mask.unsqueeze(-1)
    delta = delta.detach()
    if smart.variant == "unit_norm":
        # $\delta + \eta\, g$
        step = delta + smart.step_size * gradient
        return divide_safely(step, measure_norm(step, smart) + smart.radius)
    # $\Pi(\delta + \eta\, g / \|g\|)$
    direction = divide_safely(gradient, measure_norm(gradient, smart))
    return project(delta + smart.step_size * direction, smart)


def find_perturbation(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    clean: Tensor,
    mask: Tensor,
    smart: Smart,
    divergence: Divergence,
    generator: torch.Generator,
) -> Tensor:
    """Return the perturbation of embeddings at which f is to be compared with f(x), (B, T, D).

    It starts from Gaussian noise. `paper` and `unit_norm` ascend from there. `r3f` is the
    noise (Aghajanyan et al. 2020, arXiv 2008.03156), here projected to the ball.
    """
    x = x.detach()
    delta = draw_noise(x, mask, smart.start_sd, generator)
    if not smart.has_ascent:
        return project(delta, smart)
    for _ in range(smart.steps):
        delta = ascend(f, x, clean.detach(), delta, mask, smart, divergence)
    return delta


class Term(NamedTuple):
    """A term of the loss and the perturbation behind it."""

    value: Tensor  # scalar
    perturbation: Tensor  # (B, T, D), the last one that was drawn


def adversarial_term(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    clean: Tensor,
    mask: Tensor,
    smart: Smart,
    divergence: Divergence,
    generator: torch.Generator,
) -> Term:
    r"""The adversarial term $\mathcal{R}_s$, before its weight.

    f: embeddings (B, T, D) → outputs, as the divergence takes them; x: the embeddings; clean: f(x),
    without gradient where it is a stopped target; mask: (B, T), 0 at padding, which is never
    perturbed. Neither knows a task or a model.
    """
    crossed = smart.variant == "unit_norm"
    values = []
    for _ in range(1 if smart.has_ascent else smart.draws):
        delta = find_perturbation(f, x, clean, mask, smart, divergence, generator)
        # $\ell_s(f(x_i + \delta_i), f(x_i))$
        values.append(divergence(f(x + delta), clean, crossed))
    values = torch.stack(values).mean(0)  # (B,)
    return Term(values.sum() if smart.reduction == "sum" else values.mean(), delta)


def noisy_loss(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    mask: Tensor,
    smart: Smart,
    generator: torch.Generator,
) -> Term:
    r"""The task's loss on embeddings with Gaussian noise: augmentation, the plainest control.

    $$\mathcal{R} = \mathcal{L}(x + \sigma z), \qquad z \sim \mathcal{N}(0, I)$$

    loss: embeddings (B, T, D) → the task's loss, a scalar.
    """
    values = []
    for _ in range(smart.draws):
        noise = draw_noise(x.detach(), mask, smart.start_sd, generator)
        values.append(loss(x + noise))
    return Term(torch.stack(values).mean(), noise)


# ---- how a model is run for the terms ----


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Run a model as at evaluation within a with block; after it each module is as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def count_forward_equivalents(smart: Smart) -> int:
    """Count what a training step with SMART costs, in forward passes of the model.

    A backward pass costs two: the gradients of the activations and those of the parameters. The
    ascent has the first alone. So a plain step costs 3, and the whole definition 12:

    training pass 3, clean pass without dropout 3, ascent 2, perturbed pass 3, averaged model 1.

    Where the clean side is a stopped target it is 10. With dropout on, in fp32, the training pass
    is the clean pass, and it is 9. The controls cost as much at bregman: 0, R3F with two draws and
    Gaussian noise with three.
    """
    shared = smart.dropout == "on"
    stopped = smart.clean_side == "stopped"
    compared = smart.adversarial > 0 and smart.variant != "gaussian"
    passes = 3
    if not shared and (compared or (smart.bregman > 0 and not stopped)):
        passes += 1 if stopped else 3
    if smart.adversarial > 0:
        passes += 2 * smart.steps + 3 if smart.has_ascent else 3 * smart.draws
    if smart.bregman > 0:
        passes += 1
    return passes


def gradient_norm(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Norm of the gradient of a loss by all parameters together, a scalar."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.nn.utils.get_total_norm([g for g in gradients if g is not None])


# Steps from one measurement of the gradients' norms to the next. It needs 6 forward-equivalents, so
# that it adds 1 % to the cost of the whole definition.
GRADIENTS_EVERY = 50


class SmartLoss(LoggingLoss):
    r"""SMART as an extra loss of a training.

    $$\lambda\,\mathcal{R}_s(\theta) + \mu\,\mathcal{D}_\text{Breg}(\theta, \tilde\theta)$$

    A model that is trained with it has, beside its forward pass:

    - `embed(batch)`: embeddings, (B, T, D), and `token_mask(batch)`: (B, T), 0 at padding;
    - `forward_embeddings(embeddings, batch)`: its output on these embeddings;
    - `compared_outputs(output)`: the tensor of an output that the divergence takes;
    - `output_kind(batch)`: "classes", "span", "binary" or "score", a name in DIVERGENCES.

    The averaged model is a copy, and always without dropout:

    $$\tilde\theta_t = (1 - \beta)\,\theta_t + \beta\,\tilde\theta_{t-1}, \qquad
      \tilde\theta_0 = \theta_0$$

    With μ = 0 there is none. Noise has a generator of its own, seeded for each step, so that the
    training pass has the same dropout as without SMART. With `dropout: on` it has another, since
    the passes of the adversarial term draw theirs in between.
    """

    scored = ("adversarial_loss",)  # its mean over the training is one of the run's scores

    def __init__(
        self, smart: Smart, model: nn.Module, seed: int, updates: int, precision: str = "fp32"
    ):
        """Set up the terms.

        model: at its start; updates: all updates of the training; precision: of its passes.
        """
        super().__init__()
        self.smart = smart
        # Whether the training pass is the clean pass. Autocast cannot be asked for its precision:
        # the trainer has it around the model's forward pass alone.
        self.shares = smart.dropout == "on" and precision == "fp32"
        self.seed = seed
        self.updates = updates
        self.done = 0  # updates so far
        self.averaged: nn.Module | None = None
        if smart.bregman > 0:
            self.averaged = copy.deepcopy(model).eval().requires_grad_(False)

    def loss(self, model: nn.Module, batch: dict, outputs, step: int) -> Tensor:
        r"""Return $\lambda\,\mathcal{R}_s + \mu\,\mathcal{D}_\text{Breg}$ of a batch, a scalar.

        outputs: those of the training pass, with its loss; step: updates before this batch.
        """
        smart = self.smart
        total = outputs.loss.new_zeros(())
        if smart.adversarial == 0 and smart.bregman == 0:
            return total
        device = outputs.loss.device
        trained = model.compared_outputs(outputs)
        dropout = nullcontext() if smart.dropout == "on" else without_dropout(model)
        with torch.autocast(device.type, enabled=False), dropout:
            x = model.embed(batch)
            clean = trained if self.shares else self.run_clean(model, x, batch)
            if smart.adversarial > 0:
                term = self.perturb(model, x, clean, batch, step)
                self.log_term(model, batch, outputs, term, step)
                total = total + smart.adversarial * term.value
        if smart.bregman > 0:
            student = trained if smart.clean_side == "stopped" else clean
            distance = self.measure_distance(student, batch)
            self.log(batch, "bregman_loss", distance)
            total = total + smart.bregman * distance
        return total

    def divergence(self, model: nn.Module, batch: dict) -> Divergence:
        """Return the divergence of a batch's outputs."""
        known = DIVERGENCES if self.smart.divergence == "task" else REPORT_DIVERGENCES
        return known[model.output_kind(batch)]

    def run_clean(self, model: nn.Module, x: Tensor, batch: dict) -> Tensor | None:
        """Return the outputs on unperturbed embeddings; None where no term reads them."""
        smart = self.smart
        stopped = smart.clean_side == "stopped"
        compared = smart.adversarial > 0 and smart.variant != "gaussian"
        if not compared and (stopped or smart.bregman == 0):
            return None
        with torch.no_grad() if stopped else nullcontext():
            return model.compared_outputs(model.forward_embeddings(x, batch))

    def perturb(self, model: nn.Module, x: Tensor, clean: Tensor, batch: dict, step: int) -> Term:
        """Return the adversarial term of a batch, or its noise control."""
        smart = self.smart
        mask = model.token_mask(batch)
        # One number of the seed and the step: a run that goes on draws what it would have drawn.
        mixed = np.random.SeedSequence([self.seed, step]).generate_state(1)
        generator = torch.Generator(x.device).manual_seed(int(mixed[0]))

        def run(embeddings: Tensor):
            return model.forward_embeddings(embeddings, batch)

        if smart.variant == "gaussian":
            return noisy_loss(lambda e: run(e).loss, x, mask, smart, generator)
        if smart.clean_side == "stopped":
            clean = clean.detach()
        return adversarial_term(
            lambda e: model.compared_outputs(run(e)),
            x,
            clean,
            mask,
            smart,
            self.divergence(model, batch),
            generator,
        )

    def measure_distance(self, student: Tensor, batch: dict) -> Tensor:
        r"""The Bregman term $\mathcal{D}_\text{Breg}(\theta, \tilde\theta)$, before its weight.

        student: outputs of the trained model.
        """
        self.move_averaged(student.device)
        with torch.autocast(student.device.type, enabled=False):
            with torch.no_grad():
                x = self.averaged.embed(batch)
                averaged = self.averaged.forward_embeddings(x, batch)
            values = self.divergence(self.averaged, batch)(
                student, self.averaged.compared_outputs(averaged), False
            )
        return values.sum() if self.smart.reduction == "sum" else values.mean()

    # ---- the averaged weights ----

    def move_averaged(self, device: torch.device):
        """Move the averaged model to the device of the trained one."""
        if next(self.averaged.parameters()).device != device:
            self.averaged.to(device)

    def beta(self) -> float:
        """Return β of the next update. `paper`: 0.99 in the first tenth of them, then 0.999."""
        if self.smart.beta_schedule == "constant":
            return self.smart.beta
        return 0.99 if self.done < 0.1 * self.updates else 0.999

    @torch.no_grad()
    def after_step(self, model: nn.Module):
        """Average the weights after an update of the model."""
        if self.averaged is not None:
            trained = [p for p in model.parameters() if p.requires_grad]
            pairs = zip(model.parameters(), self.averaged.parameters(), strict=True)
            averaged = [mean for p, mean in pairs if p.requires_grad]
            self.move_averaged(trained[0].device)
            # $\tilde\theta_t = (1 - \beta)\,\theta_t + \beta\,\tilde\theta_{t-1}$
            torch._foreach_lerp_(averaged, trained, 1 - self.beta())
        self.done += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a run needs to go on: updates so far, averaged weights, unread log."""
        state = super().state_dict() | {"done": torch.tensor(self.done)}
        if self.averaged is not None:
            for name, value in self.averaged.state_dict().items():
                state[f"averaged.{name}"] = value
        return state

    def load_state_dict(self, state: dict[str, Tensor]):
        """Go on from a state. Raises RuntimeError where it is that of another model."""
        super().load_state_dict(state)
        self.done = int(state["done"])
        weights = {}
        for key, value in state.items():
            part, _, name = key.partition(".")
            if part == "averaged":
                weights[name] = value
        if self.averaged is not None:
            self.averaged.load_state_dict(weights)

    # ---- the log ----

    def log_term(self, model: nn.Module, batch: dict, outputs, term: Term, step: int):
        r"""Log the adversarial term of a batch, and whether it could matter.

        adversarial_loss: $\mathcal{R}_s$; adversarial_weighted: $\lambda\,\mathcal{R}_s$;
        perturbation: mean norm of δ over tokens or examples, without padding; gradient_ratio:
        $\|\nabla_\theta \lambda \mathcal{R}_s\| / \|\nabla_\theta \mathcal{L}\|$ over all trained
        parameters, at every fiftieth step.
        """
        smart = self.smart
        self.log(batch, "adversarial_loss", term.value)
        self.log(batch, "adversarial_weighted", smart.adversarial * term.value)
        norm = measure_norm(term.perturbation, smart)
        mask = model.token_mask(batch).unsqueeze(-1)  # (B, T, 1)
        mean = (norm * mask).sum() / mask.sum() if smart.unit == "token" else norm.mean()
        self.log(batch, "perturbation", mean)
        if step % GRADIENTS_EVERY == 0:
            parameters = [p for p in model.parameters() if p.requires_grad]
            of_term = gradient_norm(smart.adversarial * term.value, parameters)
            of_loss = gradient_norm(outputs.loss, parameters)
            self.log(batch, "gradient_ratio", divide_safely(of_term, of_loss))
