r"""ST-MoE (Zoph et al. 2022, arXiv 2202.08906): a router that sends a token to its best experts.

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


class Routing(NamedTuple):
    """What the router decided, and what it costs."""

    expert: Tensor  # (B, T, N) expert of each pick; E where the pick was not routed or did not fit
    gate: Tensor  # (B, T, N) weight of each pick, 0 where dropped
    balance_loss: Tensor  # scalar; 1 at uniform load
    z_loss: Tensor  # scalar
    load: Tensor  # (E,) share of the routed picks
    dropped: Tensor  # scalar, share of the wanted picks that found their expert full


class Router(nn.Module):
    r"""Top-n routing with a threshold for the further picks and a capacity for each expert.

    In training the second pick is taken with probability min(1, g_2 / threshold). At evaluation it is
    taken where g_2 > threshold (`eval_routing: threshold`), or by the same draw (`random`,
    st-moe-pytorch's, so that its answers vary). An expert takes C = max(4, ⌊factor · tokens / E⌋) tokens
    of a sequence, first picks before second ones, in order.

    $$\mathcal{L}_\text{balance} = E \sum_e f_e P_e, \qquad
      \mathcal{L}_z = \operatorname{mean}\left[\left(\log \textstyle\sum_e e^{(Wx)_e}\right)^2\right]$$

    f_e is the share of first picks that go to expert e, P_e its mean router probability (Eq. 4 of Fedus
    et al. 2021, arXiv 2101.03961); the z-loss is Eq. 5 of Zoph et al. 2022. Padding is never routed and
    counts nowhere, unless `route_padding` (the report's variant). `density: wanted` counts f_e before
    capacity, as mesh-tensorflow does; `kept` after it, as st-moe-pytorch does.
    """

    def __init__(self, dim: int, layer: Layer):
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(
            nn.init.kaiming_uniform_(torch.empty(layer.experts, dim), a=5**0.5)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Routing:
        """Return the experts of each token.

        x: (B, T, D). mask: (B, T), 1 for tokens, 0 for padding.
        """
        layer = self.layer
        if layer.route_padding:
            mask = torch.ones_like(mask)
        real = mask.to(torch.float32).unsqueeze(-1)  # (B, T, 1)
        # A router in bf16 routes rounding errors.
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())  # (B, T, E)
        p = logits.softmax(-1)
        gate, expert = p.topk(layer.top_n)  # (B, T, N)
        gate = gate / gate.sum(-1, keepdim=True).clamp(min=1e-9)
        wanted = self.choose_picks(gate) & real.bool()  # (B, T, N)
        picks = F.one_hot(expert, layer.experts) * wanted.unsqueeze(-1)  # (B, T, N, E)
        kept = self.keep_capacity(picks, tokens=real.sum((1, 2)))  # (B, T, N, E)
        fits = kept.sum(-1).bool()  # (B, T, N)
        first = (kept if layer.density == "kept" else picks)[:, :, 0].float()
        share = (first * real).sum(1) / real.sum(1)  # f, (B, E)
        mean = (p * real).sum(1) / real.sum(1)  # P, (B, E)
        load = kept.sum((0, 1, 2)).float()
        return Routing(
            expert=expert.masked_fill(~fits, layer.experts),
            gate=gate * fits,
            balance_loss=layer.experts * (share * mean).sum(-1).mean(),
            z_loss=(logits.logsumexp(-1).square() * real.squeeze(-1)).sum() / real.sum(),
            load=load / load.sum().clamp(min=1),
            dropped=1 - fits.sum() / wanted.sum().clamp(min=1),
        )

    def choose_picks(self, gate: Tensor) -> Tensor:
        """Return which picks are taken, (B, T, N), of their weights (B, T, N): the first one always."""
        layer = self.layer
        if self.training or layer.eval_routing == "random":
            draw = torch.rand(layer.top_n, *gate.shape[:2], device=gate.device).permute(1, 2, 0)
            chosen = draw < gate / layer.threshold
        else:
            chosen = gate > layer.threshold
        return chosen | (torch.arange(layer.top_n, device=gate.device) == 0)

    def keep_capacity(self, picks: Tensor, tokens: Tensor) -> Tensor:
        """Return the picks that their experts have room for, (B, T, N, E).

        picks: (B, T, N, E), 1 where a token wants an expert. tokens: (B,), of each sequence.
        """
        layer = self.layer
        factor = layer.capacity_train if self.training else layer.capacity_eval
        capacity = torch.minimum((tokens * factor / layer.experts).floor(), tokens)
        capacity = capacity.clamp(min=MIN_CAPACITY)  # C, (B,)
        kept = []
        taken = torch.zeros_like(picks[:, :1, 0])  # (B, 1, E)
        for n in range(layer.top_n):
            wanted = picks[:, :, n]  # (B, T, E)
            before = wanted.cumsum(1) - wanted + taken  # tokens that the expert has before this one
            fits = wanted * (before < capacity.view(-1, 1, 1))
            taken = taken + fits.sum(1, keepdim=True)
            kept.append(fits)
        return torch.stack(kept, 2)


class Expert(nn.Module):
    r"""A feed-forward layer with a gated activation: what each token is sent to, and alone the dense control.

    $$\mathrm{FFN}(x) = W_2\left(b \odot \operatorname{gelu}(W_1^g x) \odot W_1^v x\right)$$

    b: a learned multiplicative bias, 1 at the start. Weights and biases U(±out^-0.5), as st-moe-pytorch.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.w1 = nn.Linear(dim, 2 * hidden)
        self.w2 = nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.ones(hidden))
        self.dropout = nn.Dropout(dropout)
        for linear in (self.w1, self.w2):
            bound = linear.out_features**-0.5
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (…, D), of x (…, D)."""
        value, gate = self.w1(x).chunk(2, -1)  # (…, hidden) each
        # In the weights' type under autocast: an fp32 scale would make the activations fp32.
        scale = self.scale.to(value.dtype)
        return self.w2(self.dropout(F.gelu(gate) * value * scale))


class MoE(nn.Module):
    """Sparse mixture of experts: route each token, compute its experts, combine what they say."""

    def __init__(self, dim: int, hidden: int, layer: Layer):
        super().__init__()
        self.router = Router(dim, layer)
        self.experts = nn.ModuleList(
            Expert(dim, hidden, layer.expert_dropout) for _ in range(layer.experts)
        )
        self.routing: Routing | None = None  # of the last forward pass

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the weighted sum of the experts' outputs, (B, T, D); zero where none took the token.

        x: (B, T, D). mask: (B, T), 1 for tokens, 0 for padding.
        """
        routing = self.router(x, mask)
        self.routing = routing
        expert = routing.expert.flatten()  # (B·T·N,)
        counts = F.one_hot(expert, len(self.experts) + 1).sum(0).tolist()
        lost = counts.pop()  # picks without an expert; they come last in the order
        order = expert.argsort(stable=True)[: expert.numel() - lost]  # K picks, expert by expert
        token = order // routing.expert.shape[-1]  # (K,)
        weight = routing.gate.flatten()[order].unsqueeze(-1)  # (K, 1)
        # The tokens are cast once, not each of their N copies.
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        tokens = x.reshape(-1, x.shape[-1]).to(dtype)  # (B·T, D)
        # A factor of value 1 with the gradient of the gate: the router also learns through what an expert
        # is given (st-moe-pytorch).
        straight = (1 + weight - weight.detach()).to(dtype)
        # index_select, since the backward pass of tokens[token] is slow.
        given = tokens.index_select(0, token) * straight  # (K, D)
        parts = zip(self.experts, given.split(counts), strict=True)
        out = torch.cat([ffn(part) for ffn, part in parts]) * weight  # (K, D)
        y = torch.zeros_like(x, dtype=out.dtype).reshape(-1, x.shape[-1])  # (B·T, D)
        return y.index_add(0, token, out).reshape(x.shape)
