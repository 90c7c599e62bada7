r"""ST-MoE: a router that sends each token to its best experts only, and the experts.

Source: Zoph et al. 2022, arXiv 2202.08906. For token x, with router W (E, D):

$$p = \operatorname{softmax}(W x), \qquad
  g_e = p_e / \textstyle\sum_{\operatorname{top}_n} p, \qquad
  y = \sum_{e \in \operatorname{top}_n(p)} g_e\,\mathrm{FFN}_e(x)$$

B batch, T tokens, D width, E experts, N picks: the experts that a token asks for, best first.
C capacity: the tokens of one sequence that an expert takes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from qa_lib.settings.parameters import Layer

MIN_CAPACITY = 4  # st-moe-pytorch, after mesh-tensorflow


class Routing(NamedTuple):
    """The decisions of a router on a batch, and their auxiliary losses."""

    expert: Tensor  # (B, T, N), expert of each pick; E where the pick was not wanted or did not fit
    gate: Tensor  # (B, T, N), weight of each pick; 0 where it was not wanted or did not fit
    balance_loss: Tensor  # scalar; 1 at uniform load
    z_loss: Tensor  # scalar
    load: Tensor  # (E,), share of the routed picks
    dropped: Tensor  # scalar, share of the wanted picks that found their expert full


class Router(nn.Module):
    r"""Top-n routing with a threshold for all picks but the first, and a capacity for each expert.

    In training the second pick is taken with probability min(1, g_2 / threshold). At evaluation it
    is taken where g_2 > threshold (`eval_routing: threshold`), or by the same draw (`random`, as in
    st-moe-pytorch). A run and a dataset have the same draws each time (training/evaluate.py).

    $$C = \max(4, \min(\text{tokens},
      \lfloor \text{factor} \cdot \text{tokens} / E \rfloor))$$

    An expert takes first picks before second ones, and tokens in their order. Padding is never
    routed and counts nowhere, unless `route_padding` is set (as in st-moe-pytorch).
    """

    def __init__(self, dim: int, layer: Layer):
        super().__init__()
        self.layer = layer
        weight = torch.empty(layer.experts, dim)  # (E, D)
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(weight, a=5**0.5))

    def forward(self, x: Tensor, mask: Tensor) -> Routing:
        """Route a batch. x: (B, T, D); mask: (B, T), 1 for tokens, 0 for padding."""
        layer = self.layer
        if layer.route_padding:
            mask = torch.ones_like(mask)
        real = mask.to(torch.float32).unsqueeze(-1)  # (B, T, 1)
        # In bf16 the router would route rounding errors.
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())  # (B, T, E)
        # $p = \operatorname{softmax}(W x)$
        p = logits.softmax(-1)  # (B, T, E)
        # $g_e = p_e / \sum_{\operatorname{top}_n} p$
        gate, expert = p.topk(layer.top_n)  # (B, T, N) each
        gate = gate / gate.sum(-1, keepdim=True).clamp(min=1e-9)
        # The picks that are wanted, and those of them that find room with their expert.
        wanted = self.choose_picks(gate) & real.bool()  # (B, T, N)
        picks = F.one_hot(expert, layer.experts) * wanted.unsqueeze(-1)  # (B, T, N, E)
        tokens = real.sum((1, 2))  # (B,)
        kept = self.fill_experts(picks, tokens)  # (B, T, N, E)
        fits = kept.sum(-1).bool()  # (B, T, N)
        # What a training logs and adds to its loss.
        counted = kept if layer.density == "kept" else picks
        first = counted[:, :, 0].float()  # (B, T, E)
        load = kept.sum((0, 1, 2)).float()  # (E,)
        share_kept = fits.sum() / wanted.sum().clamp(min=1)
        return Routing(
            expert=expert.masked_fill(~fits, layer.experts),
            gate=gate * fits,
            balance_loss=balance_loss(first, p, real),
            z_loss=z_loss(logits, real),
            load=load / load.sum().clamp(min=1),
            dropped=1 - share_kept,
        )

    def choose_picks(self, gate: Tensor) -> Tensor:
        """Return which picks are wanted: the first, and further ones by the threshold.

        gate: (B, T, N) → (B, T, N).
        """
        layer = self.layer
        if self.training or layer.eval_routing == "random":
            draws = torch.rand(layer.top_n, *gate.shape[:2], device=gate.device)  # (N, B, T)
            wanted = draws.permute(1, 2, 0) < gate / layer.threshold
        else:
            wanted = gate > layer.threshold
        is_first = torch.arange(layer.top_n, device=gate.device) == 0  # (N,)
        return wanted | is_first

    def fill_experts(self, picks: Tensor, tokens: Tensor) -> Tensor:
        """Return the picks that find room with their expert.

        picks: (B, T, N, E), 1 where a pick wants an expert; tokens: (B,), tokens of each sequence.
        """
        layer = self.layer
        factor = layer.capacity_train if self.training else layer.capacity_eval
        # $C = \max(4, \min(\text{tokens}, \lfloor \text{factor} \cdot \text{tokens} / E \rfloor))$
        capacity = torch.minimum((tokens * factor / layer.experts).floor(), tokens)  # (B,)
        capacity = capacity.clamp(min=MIN_CAPACITY).view(-1, 1, 1)  # (B, 1, 1)
        taken = torch.zeros_like(picks[:, :1, 0])  # (B, 1, E), places taken by earlier picks
        kept = []
        for n in range(layer.top_n):
            pick = picks[:, :, n]  # (B, T, E)
            before = pick.cumsum(1) - pick + taken  # (B, T, E), places taken before this token
            fits = pick * (before < capacity)
            taken = taken + fits.sum(1, keepdim=True)
            kept.append(fits)
        return torch.stack(kept, 2)  # (B, T, N, E)


def balance_loss(first: Tensor, p: Tensor, real: Tensor) -> Tensor:
    r"""Balance loss (Eq. 4 of Fedus et al. 2021, arXiv 2101.03961), the mean over sequences.

    $$\mathcal{L}_\text{balance} = E \sum_e f_e P_e$$

    f_e: share of the tokens whose first pick is expert e; P_e: mean router probability of e.
    `density` says which first picks count: "wanted" those before capacity, as in mesh-tensorflow;
    "kept" those after it, as in st-moe-pytorch.
    first: (B, T, E), 1 at a token's first pick; p: (B, T, E); real: (B, T, 1).
    """
    f_e = (first * real).sum(1) / real.sum(1)  # (B, E)
    p_e = (p * real).sum(1) / real.sum(1)  # (B, E)
    experts = p.shape[-1]
    return experts * (f_e * p_e).sum(-1).mean()


def z_loss(logits: Tensor, real: Tensor) -> Tensor:
    r"""Router z-loss (Eq. 5 of Zoph et al. 2022), the mean over tokens.

    $$\mathcal{L}_z = \operatorname{mean}\left[
      \left(\log \textstyle\sum_e e^{(Wx)_e}\right)^2\right]$$

    logits: (B, T, E); real: (B, T, 1).
    """
    return (logits.logsumexp(-1).square() * real.squeeze(-1)).sum() / real.sum()


class GatedActivation(torch.autograd.Function):
    r"""The gated activation of an expert, in a fraction of PyTorch's memory.

    $$y = b \odot \operatorname{gelu}(g) \odot v$$

    PyTorch keeps every factor and product for the backward pass. Here v and g are kept, the rest is
    computed again for a few tokens at a time, and the gradient takes the place of v and g. Numbers
    are those of PyTorch to the last bit (tests/test_stmoe.py). N tokens, H hidden units.
    """

    PART = 2**23  # elements of v that are computed at once

    @staticmethod
    def forward(ctx, both: Tensor, scale: Tensor) -> Tensor:
        """Return y, (…, H).

        both: v and g side by side, (…, 2·H); the backward pass overwrites it, so nothing else may
        need it. scale: b, (H,).
        """
        ctx.save_for_backward(both, scale)
        value, gate = both.chunk(2, -1)
        return F.gelu(gate).mul_(value).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients with respect to `both` and `scale`. gradient: that of y."""
        both, scale = ctx.saved_tensors
        value, gate = both.flatten(0, -2).chunk(2, -1)  # (N, H) each, views of `both`
        of_output = gradient.flatten(0, -2)  # (N, H)
        of_scale = torch.empty_like(of_output)  # of each token
        # Parts of nearly one size: a part of a single token would be rounded otherwise.
        parts = max(1, value.numel() // GatedActivation.PART)
        pieces = zip(
            value.tensor_split(parts),
            gate.tensor_split(parts),
            of_output.tensor_split(parts),
            of_scale.tensor_split(parts),
            strict=True,
        )
        for v, g, of_y, of_b in pieces:
            activated = F.gelu(g)
            torch.mul(of_y, activated * v, out=of_b)
            # $\partial y / \partial (\operatorname{gelu}(g) \odot v) = b$
            of_product = of_y * scale
            of_gate = torch.ops.aten.gelu_backward(of_product * v, g)
            v.copy_(of_product.mul_(activated))
            g.copy_(of_gate)
        return both, of_scale.view_as(gradient).sum_to_size(scale.shape)


class Expert(nn.Module):
    r"""A feed-forward layer with a gated activation: an expert, and alone the dense control.

    $$\mathrm{FFN}(x) = W_2\left(b \odot \operatorname{gelu}(W_1^g x) \odot W_1^v x\right)$$

    b: a learned multiplicative bias, 1 at the start. Weights and biases start from U(±out^-0.5), as
    in st-moe-pytorch.
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
        """Apply the layer. x: (…, D) → (…, D)."""
        both = self.w1(x)  # (…, 2·hidden)
        # An fp32 scale would turn the bf16 activations of autocast into fp32.
        scale = self.scale.to(both.dtype)
        return self.w2(self.dropout(GatedActivation.apply(both, scale)))


class MoE(nn.Module):
    """Sparse mixture of experts: route, compute only what was routed, combine."""

    def __init__(self, dim: int, hidden: int, layer: Layer):
        super().__init__()
        self.router = Router(dim, layer)
        self.experts = nn.ModuleList(
            Expert(dim, hidden, layer.expert_dropout) for _ in range(layer.experts)
        )
        self.routing: Routing | None = None  # of the last forward pass

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Apply the experts. x: (B, T, D), mask: (B, T) → (B, T, D).

        The result is zero where no expert took the token. K: picks that were routed.
        """
        self.routing = self.router(x, mask)
        expert = self.routing.expert.flatten()  # (B·T·N,)
        gate = self.routing.gate.flatten()  # (B·T·N,)
        n = self.routing.expert.shape[-1]
        # Sort the picks by expert. Those that were not routed come last and are cut off.
        counts = F.one_hot(expert, len(self.experts) + 1).sum(0).tolist()  # (E + 1,)
        unrouted = counts.pop()
        order = expert.argsort(stable=True)[: expert.numel() - unrouted]  # (K,)
        token = order // n  # (K,)
        weight = gate[order].unsqueeze(-1)  # (K, 1)
        tokens = x.reshape(-1, x.shape[-1])  # (B·T, D)
        # Cast each token once, not its N copies.
        if torch.is_autocast_enabled(x.device.type):
            tokens = tokens.to(torch.get_autocast_dtype(x.device.type))
        # The factor is 1 and has the gate's gradient: the router learns also through an expert's
        # input (st-moe-pytorch). The backward pass of tokens[token] would be slow.
        factor = (1 + weight - weight.detach()).to(tokens.dtype)
        parts = (tokens.index_select(0, token) * factor).split(counts)  # (K_e, D) each
        out = torch.cat([f(part) for f, part in zip(self.experts, parts, strict=True)])  # (K, D)
        # $y = \sum_{e \in \operatorname{top}_n(p)} g_e\,\mathrm{FFN}_e(x)$
        out = out * weight
        y = torch.zeros_like(x, dtype=out.dtype).reshape(-1, x.shape[-1])  # (B·T, D)
        return y.index_add(0, token, out).reshape(x.shape)
