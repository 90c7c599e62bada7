r"""Frozen experts mixed by a gate (Sesame Street Ensemble; Consigny, CS224N).

The experts are plain span models (models/heads.py), trained one by one and frozen; a mixture weighs what they say of a window.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_lib.models.heads import SpanOutput
from qa_lib.settings.parameters import Gate

LOWEST = torch.finfo(torch.float32).min


class MLP(nn.Sequential):
    r"""The gate: g(x) = softmax(W_L relu(… relu(W_1 x))), (B, D) → (B, E); `layers` linear layers of width `hidden`."""

    def __init__(self, dim: int, experts: int, p: Gate):
        widths = [dim, *[p.hidden] * (p.layers - 1), experts]
        parts = [
            m
            for a, b in zip(widths, widths[1:], strict=False)
            for m in (nn.Linear(a, b), nn.ReLU())
        ]
        super().__init__(*parts[:-1], nn.Softmax(dim=-1))


class Mixture(nn.Module):
    r"""Frozen experts' logits, weighed by a gate or by given weights.

    $$s(x) = \sum_k g_k(x)\, s_k(x), \qquad \sum_k g_k(x) = 1$$

    and the same for the ends: a product of experts, as the report does it. `mixed: probabilities` is its equation, a mixture:
    $p(i \mid x) = \sum_k g_k(x)\, p_k(i \mid x)$. Only the gate has parameters.
    """

    def __init__(self, gate: MLP | None, mixed: str, prepare: Callable):
        super().__init__()
        self.gate, self.mixed, self.prepare = gate, mixed, prepare

    def window_details(self, windows, rows: list[dict]) -> dict[str, np.ndarray]:
        """The weight of each expert on each window, (W,)."""
        frozen = self.prepare(windows, rows)
        with torch.inference_mode():
            x = torch.as_tensor(
                np.asarray(frozen.x, np.float32),
                device=next(self.parameters(), torch.empty(0)).device,
            )
            g = self.gate(x).cpu().numpy() if self.gate else frozen.weights
        return {f"gate_{k + 1}": g[:, k] for k in range(g.shape[1])}

    def collate(self, tokenizer) -> Callable:
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
        """starts, ends: (B, E, T); x: (B, D), what the gate sees; weights: (B, E), used where there is no gate."""
        loss = None
        # half precision would round the logits
        with torch.autocast(starts.device.type, enabled=False):
            g = self.gate(x) if self.gate else weights  # (B, E)
            start, end = (
                self.mix(g, logits, attention_mask) for logits in (starts, ends)
            )  # (B, T)
        if start_positions is not None:
            loss = (
                F.cross_entropy(start, start_positions) + F.cross_entropy(end, end_positions)
            ) / 2
        return SpanOutput(loss, start, end)

    def mix(self, g: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """g: (B, E), logits: (B, E, T), mask: (B, T) → logits (B, T)."""
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
        self.at = np.cumsum([0, *(len(ids) for ids in self.windows["input_ids"])])
        self.positions = {k: list(self.windows[k]) for k in ("start_positions", "end_positions")}

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
            **{k: v[key] for k, v in self.positions.items()},
        }


def collate(windows: list[dict]) -> dict[str, Tensor]:
    """Windows of a Frozen → one batch, padded to the longest."""
    lengths = [w["starts"].shape[1] for w in windows]
    starts, ends = (
        torch.zeros(len(windows), len(windows[0]["starts"]), max(lengths)) for _ in range(2)
    )  # (B, E, T)
    mask = torch.zeros(len(windows), max(lengths), dtype=torch.long)
    for i, (w, n) in enumerate(zip(windows, lengths, strict=True)):
        starts[i, :, :n], ends[i, :, :n], mask[i, :n] = (
            torch.from_numpy(w["starts"]),
            torch.from_numpy(w["ends"]),
            1,
        )
    batch = {"starts": starts, "ends": ends, "attention_mask": mask}
    batch |= {
        k: torch.from_numpy(np.stack([w[k] for w in windows])).float() for k in ("x", "weights")
    }
    return batch | {
        k: torch.tensor([w[k] for w in windows]) for k in ("start_positions", "end_positions")
    }


# ---- the runs of the report ----
