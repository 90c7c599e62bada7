r"""Frozen experts mixed by a gate (Sesame Street Ensemble; Consigny, CS224N).

The experts are plain span models (models/heads.py), trained one by one and frozen. A mixture weighs
what they say of a window. B batch, E experts, T tokens, D width, W windows, N tokens of all windows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from qa_lib.models.heads import SpanOutput, span_loss
from qa_lib.settings.parameters import Gate

POSITIONS = ("start_positions", "end_positions")  # of the answer in a window
LOWEST = torch.finfo(torch.float32).min


class MLP(nn.Sequential):
    r"""The gate: `layers` linear layers of width `hidden`, (B, D) → (B, E).

    $$g(x) = \operatorname{softmax}(W_L \operatorname{relu}(\dots \operatorname{relu}(W_1 x)))$$
    """

    def __init__(self, dim: int, experts: int, p: Gate):
        widths = [dim, *[p.hidden] * (p.layers - 1), experts]
        parts: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            parts += [nn.Linear(width, next_width), nn.ReLU()]
        super().__init__(*parts[:-1], nn.Softmax(dim=-1))


class Mixture(nn.Module):
    r"""Frozen experts' logits, weighed by a gate or by given weights.

    $$s(x) = \sum_k g_k(x)\, s_k(x), \qquad \sum_k g_k(x) = 1$$

    and the same for the ends: a product of experts, as the report does it. `mixed: probabilities` is the
    report's equation, a mixture: $p(i \mid x) = \sum_k g_k(x)\, p_k(i \mid x)$. Only the gate has
    parameters.

    gate: None where the weights are given. prepare: gives the Frozen of windows and their rows.
    """

    def __init__(self, gate: MLP | None, mixed: str, prepare: Callable):
        super().__init__()
        self.gate = gate
        self.mixed = mixed
        self.prepare = prepare

    def window_details(self, windows, rows: list[dict]) -> dict[str, np.ndarray]:
        """Return the weight of each expert on each window, (W,) each."""
        frozen = self.prepare(windows, rows)
        weights = frozen.weights  # (W, E)
        if self.gate:
            device = next(self.parameters(), torch.empty(0)).device
            with torch.inference_mode():
                x = torch.as_tensor(np.asarray(frozen.x, np.float32), device=device)
                weights = self.gate(x).cpu().numpy()
        return {f"gate_{k + 1}": weights[:, k] for k in range(weights.shape[1])}

    def collate(self, tokenizer) -> Callable:
        """Return what makes a batch of windows."""
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
        """Return the mixed logits and, of given positions (B,) each, the loss.

        starts, ends: the experts' logits, (B, E, T). x: (B, D), what the gate sees. weights: (B, E),
        used where there is no gate.
        """
        # Half precision would round the logits.
        with torch.autocast(starts.device.type, enabled=False):
            g = self.gate(x) if self.gate else weights  # (B, E)
            start = self.mix(g, starts, attention_mask)  # (B, T)
            end = self.mix(g, ends, attention_mask)  # (B, T)
        if start_positions is None:
            return SpanOutput(None, start, end)
        return SpanOutput(span_loss(start, end, start_positions, end_positions), start, end)

    def mix(self, g: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the mixed logits, (B, T), of g (B, E), logits (B, E, T) and mask (B, T)."""
        if self.mixed == "probabilities":
            logits = logits.masked_fill(mask[:, None] == 0, LOWEST).log_softmax(-1)
            mixed = torch.logsumexp(logits + g.clamp_min(1e-30).log()[:, :, None], dim=1)
        else:
            mixed = torch.einsum("be,bet->bt", g, logits)
        return mixed.masked_fill(mask == 0, LOWEST)


@dataclass
class Frozen:
    """Windows with what the experts say of them; indexed like the windows."""

    windows: object  # features.load_windows
    starts: list[np.ndarray]  # of each expert, (N,)
    ends: list[np.ndarray]
    x: np.ndarray  # (W, D), what the gate sees
    weights: np.ndarray  # (W, E)

    def __post_init__(self):
        lengths = [len(ids) for ids in self.windows["input_ids"]]
        self.at = np.cumsum([0, *lengths])  # where a window's tokens begin in starts and ends
        self.positions = {name: list(self.windows[name]) for name in POSITIONS}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: int | str):
        if isinstance(key, str):
            return self.windows[key]
        cut = slice(self.at[key], self.at[key + 1])
        return {
            "starts": np.stack([s[cut] for s in self.starts]),
            "ends": np.stack([e[cut] for e in self.ends]),  # (E, T)
            "x": self.x[key],
            "weights": self.weights[key],
            **{name: values[key] for name, values in self.positions.items()},
        }


def collate(windows: list[dict]) -> dict[str, Tensor]:
    """Return one batch of windows of a Frozen, padded to the longest."""
    lengths = [window["starts"].shape[1] for window in windows]
    experts = len(windows[0]["starts"])
    starts = torch.zeros(len(windows), experts, max(lengths))  # (B, E, T)
    ends = torch.zeros_like(starts)
    mask = torch.zeros(len(windows), max(lengths), dtype=torch.long)  # (B, T)
    for i, (window, length) in enumerate(zip(windows, lengths, strict=True)):
        starts[i, :, :length] = torch.from_numpy(window["starts"])
        ends[i, :, :length] = torch.from_numpy(window["ends"])
        mask[i, :length] = 1
    batch = {"starts": starts, "ends": ends, "attention_mask": mask}
    for name in ("x", "weights"):
        batch[name] = torch.from_numpy(np.stack([window[name] for window in windows])).float()
    for name in POSITIONS:
        batch[name] = torch.tensor([window[name] for window in windows])
    return batch
