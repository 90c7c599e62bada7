r"""Frozen experts mixed by a gate (Sesame Street Ensemble; Consigny, CS224N).

The experts are plain span models (models/heads.py), which are trained one by one and then frozen. A
mixture weighs their logits on a window. It reads them from a store and does not run the experts.

Shapes: W windows, N tokens of all windows, B batch, T tokens, E experts, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qa_lib.models.heads import SpanOutput, span_loss
from qa_lib.settings.parameters import Gate

LOWEST = torch.finfo(torch.float32).min


class MLP(nn.Sequential):
    r"""The gate: `layers` linear layers of width `hidden`, (B, D) → (B, E).

    $$g(x) = \operatorname{softmax}(W_L \operatorname{relu}(\dots (W_1 x + b_1)) + b_L)$$
    """

    def __init__(self, dim: int, experts: int, p: Gate):
        parts = []
        width = dim
        for _ in range(p.layers - 1):
            parts += [nn.Linear(width, p.hidden), nn.ReLU()]
            width = p.hidden
        super().__init__(*parts, nn.Linear(width, experts), nn.Softmax(dim=-1))


class Mixture(nn.Module):
    r"""Frozen experts' logits, weighed by a gate or by given weights. Only the gate has parameters.

    $$s(x) = \sum_k g_k(x)\, s_k(x), \qquad \sum_k g_k(x) = 1$$

    s are the logits of starts, and likewise those of ends. This is a product of experts, as the
    report carries it out. `mixed: probabilities` is the report's equation, a mixture of experts:

    $$p(i \mid x) = \sum_k g_k(x)\, p_k(i \mid x)$$

    prepare: makes the Frozen that a list of windows and their rows stand for.
    """

    def __init__(self, gate: MLP | None, mixed: str, prepare: Callable):
        super().__init__()
        self.gate = gate
        self.mixed = mixed
        self.prepare = prepare

    def window_details(self, windows, rows: list[dict]) -> dict[str, np.ndarray]:
        """Return the weight of each expert on each window: gate_1, gate_2, …, (W,) each."""
        frozen = self.prepare(windows, rows)
        if self.gate is None:
            g = frozen.weights  # (W, E)
        else:
            device = next(self.parameters()).device
            with torch.inference_mode():
                x = torch.as_tensor(np.asarray(frozen.x, np.float32), device=device)  # (W, D)
                g = self.gate(x).cpu().numpy()  # (W, E)
        return {f"gate_{k + 1}": g[:, k] for k in range(g.shape[1])}

    def collate(self, tokenizer, task, dataset: str) -> Callable:
        """Return the collator of a Frozen's windows."""
        return collate

    def forward(
        self,
        starts: Tensor,
        ends: Tensor,
        attention_mask: Tensor,
        x: Tensor,
        weights: Tensor,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> SpanOutput:
        """Return the mixed logits of a batch, and with labels the loss.

        starts, ends: the experts' logits, (B, E, T); x: what the gate sees, (B, D); weights: of the
        experts where there is no gate, (B, E).
        """
        # Half precision would round the logits.
        with torch.autocast(starts.device.type, enabled=False):
            g = weights if self.gate is None else self.gate(x)  # (B, E)
            start = self.mix(g, starts, attention_mask)  # (B, T)
            end = self.mix(g, ends, attention_mask)  # (B, T)
        loss = None
        if start_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        return SpanOutput(loss, start, end)

    def mix(self, g: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Mix the experts' logits. g: (B, E), logits: (B, E, T), mask: (B, T) → (B, T)."""
        if self.mixed == "probabilities":
            # $\log p(i \mid x) = \log \sum_k \exp(\log p_k(i \mid x) + \log g_k(x))$
            log_p = logits.masked_fill(mask[:, None] == 0, LOWEST).log_softmax(-1)  # (B, E, T)
            log_g = g.clamp_min(1e-30).log()  # (B, E)
            mixed = torch.logsumexp(log_p + log_g[:, :, None], dim=1)  # (B, T)
        else:
            # $s(x) = \sum_k g_k(x)\, s_k(x)$
            mixed = torch.einsum("be,bet->bt", g, logits)  # (B, T)
        return mixed.masked_fill(mask == 0, LOWEST)


@dataclass
class Frozen:
    """Windows with the frozen experts' logits on them, indexed like the windows."""

    windows: object  # features.load_windows
    starts: list[np.ndarray]  # of each expert, (N,), window after window
    ends: list[np.ndarray]
    x: np.ndarray  # (W, D), what the gate sees
    weights: np.ndarray  # (W, E), used where there is no gate

    def __post_init__(self):
        lengths = [len(ids) for ids in self.windows["input_ids"]]
        self.borders = np.cumsum([0, *lengths])  # (W + 1,), where each window's tokens begin
        self.start_positions = list(self.windows["start_positions"])
        self.end_positions = list(self.windows["end_positions"])

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: int | str):
        """Return a window, or a column of all windows."""
        if isinstance(key, str):
            return self.windows[key]
        tokens = slice(self.borders[key], self.borders[key + 1])
        return {
            "starts": np.stack([start[tokens] for start in self.starts]),  # (E, T)
            "ends": np.stack([end[tokens] for end in self.ends]),  # (E, T)
            "x": self.x[key],
            "weights": self.weights[key],
            "start_positions": self.start_positions[key],
            "end_positions": self.end_positions[key],
        }


def collate(windows: list[dict]) -> dict[str, Tensor]:
    """Collate windows of a Frozen into one batch, padded to the longest."""
    experts = len(windows[0]["starts"])
    longest = max(window["starts"].shape[1] for window in windows)
    starts = torch.zeros(len(windows), experts, longest)  # (B, E, T)
    ends = torch.zeros(len(windows), experts, longest)  # (B, E, T)
    mask = torch.zeros(len(windows), longest, dtype=torch.long)  # (B, T)
    for i, window in enumerate(windows):
        n = window["starts"].shape[1]
        starts[i, :, :n] = torch.from_numpy(window["starts"])
        ends[i, :, :n] = torch.from_numpy(window["ends"])
        mask[i, :n] = 1
    batch = {"starts": starts, "ends": ends, "attention_mask": mask}
    for key in ("x", "weights"):
        batch[key] = torch.from_numpy(np.stack([window[key] for window in windows])).float()
    for key in ("start_positions", "end_positions"):
        batch[key] = torch.tensor([window[key] for window in windows])
    return batch
