"""ExBERT (Fan, Fan, Song; CS 7643): a span model with a sparse ST-MoE block (models/st_moe.py)."""

from torch import Tensor, nn

from qa_lib.models import encoders, heads
from qa_lib.models.st_moe import Expert, MoE, Routed
from qa_lib.settings.parameters import Layer


class Block(nn.Module):
    r"""The ST-MoE block: dropout, experts and a feed-forward layer, each with RMSNorm in front and a residual around it.

    $$u = \operatorname{drop}(x), \quad v = u + \mathrm{MoE}(\mathrm{RMSNorm}(u)), \quad
      y = \operatorname{drop}(v + \mathrm{FFN}(\mathrm{RMSNorm}(v)))$$

    In place of an encoder block's feed-forward layer it is the experts and the dropout alone: that block has norm and residual.
    dense: width of one dense layer in place of the experts, in multiples of an expert's (the controls).
    """

    def __init__(self, dim: int, p: Layer, dense: float | None = None):
        super().__init__()
        hidden = int(dim * 8 / 3 * p.width)

        def feed_forward(where: str) -> nn.Module | None:
            asked = p.place == "after" and p.feed_forward in (where, "both")
            return (
                nn.Sequential(nn.RMSNorm(dim, eps=1e-12), Expert(dim, int(dim * 8 / 3)))
                if asked
                else None
            )

        self.experts = (
            MoE(dim, hidden, p)
            if dense is None
            else Expert(dim, round(hidden * dense), p.expert_dropout)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-12) if p.norm and p.place == "after" else nn.Identity()
        self.before, self.after, self.residual = (
            feed_forward("before"),
            feed_forward("after"),
            p.place == "after",
        )
        self.drop_in, self.drop_out = (
            nn.Dropout(p.layer_dropout * (p.dropout_at in (where, "both")))
            for where in ("before", "after")
        )
        self.mask: Tensor | None = (
            None  # (B, T), which the model sets: encoder blocks pass no mask on
        )

    @property
    def sparse(self) -> bool:
        return isinstance(self.experts, MoE)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) → (B, T, D)."""
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
    r"""A span model with an ST-MoE block after its encoder, or in place of the last block's feed-forward layer.

    $$\mathcal{L} = \mathcal{L}_\text{span} + \beta\,\mathcal{L}_\text{balance} + \zeta\,\mathcal{L}_z$$

    The auxiliary losses are for training only. `tally`: picks of each expert since it was last set to 0, at evaluation.
    """

    def __init__(
        self, encoder: nn.Module, head_dropout: float, p: Layer, dense: float | None = None
    ):
        # first, so that a seed gives every model the same head
        super().__init__(encoder, head_dropout)
        self.p, self.tally, block = p, 0, Block(encoder.config.hidden_size, p, dense)
        if p.place == "after":
            self.block = block
        elif hasattr(last := encoders.blocks_of(encoder)[-1], "ffn"):  # DistilBERT
            last.ffn = block
        else:
            last.intermediate, last.output.dense = nn.Identity(), block

    @property
    def layer(self) -> Block:
        return next(m for m in self.modules() if isinstance(m, Block))

    @property
    def routed(self) -> Routed | None:
        """What the router did in the last forward pass; None where the layer is dense."""
        return self.layer.experts.routed if self.layer.sparse else None

    def active_parameters(self) -> int:
        """Parameters that a token meets: of the experts only top_n."""
        every, p = sum(x.numel() for x in self.parameters()), self.p
        experts = (
            sum(x.numel() for x in self.layer.experts.experts.parameters())
            if self.layer.sparse
            else 0
        )
        return every - experts * (p.experts - p.top_n) // p.experts

    def states(self, **inputs) -> Tensor:
        self.layer.mask = inputs["attention_mask"]
        hidden = super().states(**inputs)
        return self.block(hidden) if self.p.place == "after" else hidden

    def forward(self, start_positions=None, end_positions=None, **inputs) -> heads.SpanOutput:
        """As SpanModel; in training the loss has the auxiliary losses in it."""
        out = super().forward(start_positions, end_positions, **inputs)
        if (routed := self.routed) is None:
            return out
        if not self.training:
            self.tally = (
                self.tally + routed.expert.flatten().bincount(minlength=self.p.experts + 1)[:-1]
            )
        elif out.loss is not None:
            out = out._replace(
                loss=out.loss
                + self.p.balance * routed.balance_loss
                + self.p.router_z * routed.z_loss
            )
        return out


# ---- the runs of the report ----
