r"""ST-MoE (Zoph et al. 2022, arXiv 2202.08906): a router that sends each token to its best experts only, and the experts.

For token x, with router W (E, D):

$$p = \operatorname{softmax}(W x), \qquad g_e = p_e / \textstyle\sum_{\operatorname{top}_n} p, \qquad
  y = \sum_{e \in \operatorname{top}_n(p)} g_e\,\mathrm{FFN}_e(x)$$

B batch, T tokens, D width, E experts, N picks a token, C capacity: tokens of one sequence that an expert takes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_lib.settings.parameters import Layer

MIN_CAPACITY = 4  # st-moe-pytorch, after mesh-tensorflow


class Routed(NamedTuple):
    """What the router decided, and what it costs."""

    expert: Tensor  # (B, T, N) expert of each pick; E where the pick was not routed or did not fit
    gate: Tensor  # (B, T, N) weight of each pick, 0 where dropped
    balance_loss: Tensor  # scalar; 1 at uniform load
    z_loss: Tensor  # scalar
    load: Tensor  # (E,) share of the routed picks
    dropped: Tensor  # scalar, share of the wanted picks that found their expert full


class Router(nn.Module):
    r"""Top-n routing with a threshold for the further picks and a capacity for each expert.

    The second pick is taken with probability min(1, g_2 / threshold) in training; at evaluation where g_2 > threshold
    (`eval_routing: threshold`) or by the same draw (`random`, st-moe-pytorch's, so that its answers vary).
    An expert takes C = max(4, ⌊factor · tokens / E⌋) tokens of a sequence, first picks before second ones, in order.

    $$\mathcal{L}_\text{balance} = E \sum_e f_e P_e, \qquad
      \mathcal{L}_z = \operatorname{mean}\left[\left(\log \textstyle\sum_e e^{(Wx)_e}\right)^2\right]$$

    f_e share of first picks to expert e, P_e mean router probability (Eq. 4 of Fedus et al. 2021, arXiv 2101.03961); z-loss
    is Eq. 5 of Zoph et al. 2022. Padding is never routed and counts nowhere, unless `route_padding` (the report's variant).
    density: "wanted" counts f_e before capacity, as mesh-tensorflow does; "kept" after it, as st-moe-pytorch does.
    """

    def __init__(self, dim: int, layer: Layer):
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(
            nn.init.kaiming_uniform_(torch.empty(layer.experts, dim), a=5**0.5)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Routed:
        """x: (B, T, D); mask: (B, T), 1 for tokens, 0 for padding."""
        layer, mask = self.layer, torch.ones_like(mask) if self.layer.route_padding else mask
        real = mask.to(torch.float32).unsqueeze(-1)  # (B, T, 1)
        # a router in bf16 routes rounding errors
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())  # (B, T, E)
        p = logits.softmax(-1)
        gate, expert = p.topk(layer.top_n)  # (B, T, N)
        gate = gate / gate.sum(-1, keepdim=True).clamp(min=1e-9)
        if self.training or layer.eval_routing == "random":
            routed = (
                torch.rand(layer.top_n, *gate.shape[:2], device=x.device).permute(1, 2, 0)
                < gate / layer.threshold
            )
        else:
            routed = gate > layer.threshold
        routed = (routed | (torch.arange(layer.top_n, device=x.device) == 0)) & real.bool()
        factor = layer.capacity_train if self.training else layer.capacity_eval
        tokens = real.sum((1, 2))  # (B,)
        capacity = torch.minimum((tokens * factor / layer.experts).floor(), tokens).clamp(
            min=MIN_CAPACITY
        )
        picks = F.one_hot(expert, layer.experts) * routed.unsqueeze(-1)  # (B, T, N, E)
        kept, taken = [], torch.zeros_like(picks[:, :1, 0])  # (B, 1, E)
        for n in range(layer.top_n):
            place = (
                picks[:, :, n].cumsum(1) - picks[:, :, n] + taken
            )  # (B, T, E) tokens before this one
            fits = picks[:, :, n] * (place < capacity.view(-1, 1, 1))
            taken = taken + fits.sum(1, keepdim=True)
            kept.append(fits)
        kept = torch.stack(kept, 2)  # (B, T, N, E)
        fits = kept.sum(-1).bool()  # (B, T, N)
        first = (kept if layer.density == "kept" else picks)[:, :, 0].float()
        share, mean = ((v * real).sum(1) / real.sum(1) for v in (first, p))  # (B, E) each
        balance = layer.experts * (share * mean).sum(-1).mean()
        z = (logits.logsumexp(-1).square() * real.squeeze(-1)).sum() / real.sum()
        load = kept.sum((0, 1, 2)).float()
        return Routed(
            expert.masked_fill(~fits, layer.experts),
            gate * fits,
            balance,
            z,
            load / load.sum().clamp(min=1),
            1 - fits.sum() / routed.sum().clamp(min=1),
        )


class Expert(nn.Module):
    r"""A feed-forward layer with a gated activation: what each token is sent to, and alone the dense control.

    $$\mathrm{FFN}(x) = W_2\left(b \odot \operatorname{gelu}(W_1^g x) \odot W_1^v x\right)$$

    b: a learned multiplicative bias, 1 at the start. Weights and biases U(±out^-0.5), as st-moe-pytorch.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.ones(hidden))
        self.dropout = nn.Dropout(dropout)
        for linear in (self.w1, self.w2):
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -(linear.out_features**-0.5), linear.out_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, D) → (…, D)."""
        value, gate = self.w1(x).chunk(2, -1)  # (…, hidden) each
        # as the weights under autocast: times an fp32 scale the activations would go on in fp32
        return self.w2(self.dropout(F.gelu(gate) * value * self.scale.to(value.dtype)))


class MoE(nn.Module):
    """Sparse mixture of experts: route, compute what was routed, combine."""

    def __init__(self, dim: int, hidden: int, layer: Layer):
        super().__init__()
        self.router = Router(dim, layer)
        self.experts = nn.ModuleList(
            Expert(dim, hidden, layer.expert_dropout) for _ in range(layer.experts)
        )
        self.routed: Routed | None = None  # of the last forward pass

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, T, D), mask: (B, T) → (B, T, D), zero where no expert took the token."""
        self.routed = routed = self.router(x, mask)
        expert, gate = routed.expert.flatten(), routed.gate.flatten()  # (B·T·N,)
        counts = F.one_hot(expert, len(self.experts) + 1).sum(0).tolist()  # the dropped come last
        order = expert.argsort(stable=True)[: expert.numel() - counts.pop()]  # (K,)
        token = order // routed.expert.shape[-1]
        weight = gate[order].unsqueeze(-1)
        # cast once, not each of the N copies of a token
        autocast = torch.is_autocast_enabled(x.device.type)
        rows = x.reshape(-1, x.shape[-1]).to(
            torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        )
        # value 1, gradient of the gate: the router also learns through what an expert is given (st-moe-pytorch)
        # rows[token] goes back slowly
        given = rows.index_select(0, token) * (1 + weight - weight.detach()).to(rows.dtype)
        out = (
            torch.cat([f(part) for f, part in zip(self.experts, given.split(counts), strict=True)])
            * weight
        )
        return (
            torch.zeros_like(x, dtype=out.dtype)
            .reshape(-1, x.shape[-1])
            .index_add(0, token, out)
            .reshape(x.shape)
        )
