"""ExBERT (Fan, Fan, Song; CS 7643): a span model with a sparse ST-MoE block (models/st_moe.py)."""

from torch import Tensor, nn

from qa_lib.models import encoders, heads
from qa_lib.models.st_moe import Expert, MoE, Routing
from qa_lib.settings.parameters import Layer


class Block(nn.Module):
    r"""The ST-MoE block: dropout, experts and a feed-forward layer.

    The experts and the feed-forward layer have RMSNorm in front and a residual around them.

    $$u = \operatorname{drop}(x), \quad v = u + \mathrm{MoE}(\mathrm{RMSNorm}(u)), \quad
      y = \operatorname{drop}(v + \mathrm{FFN}(\mathrm{RMSNorm}(v)))$$

    In place of an encoder block's feed-forward layer it is the experts and the dropout alone, since
    that block has a norm and a residual of its own.

    dim: width of the encoder, D. dense: width of one dense layer in place of the experts, in
    multiples of an expert's width (the controls); None: the experts.
    """

    def __init__(self, dim: int, p: Layer, dense: float | None = None):
        super().__init__()
        hidden = int(dim * 8 / 3 * p.width)

        def feed_forward(where: str) -> nn.Module | None:
            if p.place != "after" or p.feed_forward not in (where, "both"):
                return None
            return nn.Sequential(nn.RMSNorm(dim, eps=1e-12), Expert(dim, int(dim * 8 / 3)))

        def dropout(where: str) -> nn.Dropout:
            return nn.Dropout(p.layer_dropout if p.dropout_at in (where, "both") else 0.0)

        if dense is None:
            self.experts = MoE(dim, hidden, p)
        else:
            self.experts = Expert(dim, round(hidden * dense), p.expert_dropout)
        self.norm = nn.RMSNorm(dim, eps=1e-12) if p.norm and p.place == "after" else nn.Identity()
        self.before = feed_forward("before")
        self.after = feed_forward("after")
        self.residual = p.place == "after"
        self.drop_in = dropout("before")
        self.drop_out = dropout("after")
        # (B, T), set by the model: the encoder's blocks pass no mask on.
        self.mask: Tensor | None = None

    @property
    def sparse(self) -> bool:
        """Whether the block has experts, not one dense layer."""
        return isinstance(self.experts, MoE)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, T, D), of x (B, T, D)."""
        x = self.drop_in(x)
        if self.before is not None:
            x = x + self.before(x)
        y = self.norm(x)
        y = self.experts(y, self.mask) if self.sparse else self.experts(y)
        y = x + y if self.residual else y
        if self.after is not None:
            y = y + self.after(y)
        return self.drop_out(y)


class ExBERT(heads.SpanModel):
    r"""A span model with an ST-MoE block.

    The block stands after the encoder, or in place of its last block's feed-forward layer.

    $$\mathcal{L} = \mathcal{L}_\text{span} + \beta\,\mathcal{L}_\text{balance} + \zeta\,\mathcal{L}_z$$

    The two auxiliary losses of the router are for training only. `tally` counts, at evaluation, the
    picks of each expert, (E,), since it was last set to 0.
    """

    def __init__(
        self, encoder: nn.Module, head_dropout: float, p: Layer, dense: float | None = None
    ):
        # The head comes first, so that a seed gives every model the same one.
        super().__init__(encoder, head_dropout)
        self.p = p
        self.tally = 0
        block = Block(encoder.config.hidden_size, p, dense)
        if p.place == "after":
            self.block = block
            return
        last = encoders.blocks_of(encoder)[-1]
        if hasattr(last, "ffn"):  # DistilBERT
            last.ffn = block
        else:
            last.intermediate = nn.Identity()
            last.output.dense = block

    @property
    def layer(self) -> Block:
        """The ST-MoE block, wherever it stands."""
        return next(module for module in self.modules() if isinstance(module, Block))

    @property
    def routing(self) -> Routing | None:
        """What the router decided in the last forward pass; None where the layer is dense."""
        return self.layer.experts.routing if self.layer.sparse else None

    def active_parameters(self) -> int:
        """Count the parameters that a token meets: of the experts only top_n."""
        every = sum(parameter.numel() for parameter in self.parameters())
        if not self.layer.sparse:
            return every
        p = self.p
        experts = sum(parameter.numel() for parameter in self.layer.experts.experts.parameters())
        return every - experts * (p.experts - p.top_n) // p.experts

    def states(self, **inputs) -> Tensor:
        """Return what the head reads, (B, T, D): after the block."""
        self.layer.mask = inputs["attention_mask"]
        hidden = super().states(**inputs)
        return self.block(hidden) if self.p.place == "after" else hidden

    def forward(self, start_positions=None, end_positions=None, **inputs) -> heads.SpanOutput:
        """Return the output of SpanModel; in training its loss has the auxiliary losses in it."""
        out = super().forward(start_positions, end_positions, **inputs)
        routing = self.routing
        if routing is None:
            return out
        if not self.training:
            picks = routing.expert.flatten().bincount(minlength=self.p.experts + 1)
            self.tally = self.tally + picks[:-1]  # the last are not routed, or did not fit
            return out
        if out.loss is None:
            return out
        balance = self.p.balance * routing.balance_loss
        z = self.p.router_z * routing.z_loss
        return out._replace(loss=out.loss + balance + z)
