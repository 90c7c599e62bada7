"""ExBERT (Fan, Fan, Song; CS 7643): a span model with a sparse ST-MoE block (models/st_moe.py)."""

import torch
from torch import Tensor, nn

from qa_lib.losses.extra import ExtraLoss
from qa_lib.models import encoders, heads
from qa_lib.models.st_moe import Expert, MoE, Routing
from qa_lib.settings.parameters import Layer
from qa_lib.settings.params import UserError


class Block(nn.Module):
    r"""The ST-MoE block: dropout, experts and feed-forward layers, with norms and residuals.

    $$t = \operatorname{drop}(x), \quad u = t + \mathrm{FFN}_1(\mathrm{RMSNorm}(t)), \quad
      v = u + \mathrm{MoE}(\mathrm{RMSNorm}(u)), \quad
      y = \operatorname{drop}(v + \mathrm{FFN}_2(\mathrm{RMSNorm}(v)))$$

    Layer.feed_forward says which of the two feed-forward layers there are. Without the first u is
    t, and without the second y is drop(v).
    In place of an encoder block's feed-forward layer it is the experts and the dropout alone: the
    encoder block has a norm and a residual already.
    dense: width of one dense layer in place of the experts, in multiples of an expert's width (the
    controls).
    """

    def __init__(self, dim: int, p: Layer, dense: float | None = None):
        super().__init__()
        hidden = int(dim * 8 / 3 * p.width)
        after_encoder = p.place == "after"
        if dense is None:
            self.experts = MoE(dim, hidden, p)
        else:
            self.experts = Expert(dim, round(hidden * dense), p.expert_dropout)
        self.norm = nn.RMSNorm(dim, eps=1e-12) if p.norm and after_encoder else nn.Identity()
        self.before: nn.Module | None = None
        self.after: nn.Module | None = None
        if after_encoder and p.feed_forward in ("before", "both"):
            self.before = feed_forward(dim)
        if after_encoder and p.feed_forward in ("after", "both"):
            self.after = feed_forward(dim)
        self.residual = after_encoder
        self.drop_in = nn.Dropout(p.layer_dropout if p.dropout_at in ("before", "both") else 0.0)
        self.drop_out = nn.Dropout(p.layer_dropout if p.dropout_at in ("after", "both") else 0.0)
        # (B, T). The model sets it before each pass, since encoder blocks hand no mask on.
        self.mask: Tensor | None = None

    @property
    def sparse(self) -> bool:
        """Whether the block has experts, and not one dense layer in their place."""
        return isinstance(self.experts, MoE)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block. x: (B, T, D) → (B, T, D)."""
        x = self.drop_in(x)
        if self.before is not None:
            x = x + self.before(x)
        y = self.norm(x)
        y = self.experts(y, self.mask) if self.sparse else self.experts(y)
        if self.residual:
            y = x + y
        if self.after is not None:
            y = y + self.after(y)
        return self.drop_out(y)


def feed_forward(dim: int) -> nn.Sequential:
    """Return a dense feed-forward layer with RMSNorm in front."""
    return nn.Sequential(nn.RMSNorm(dim, eps=1e-12), Expert(dim, int(dim * 8 / 3)))


class ExBERT(heads.SpanModel):
    r"""A span model with an ST-MoE block.

    The block stands after the encoder, or in place of the last block's feed-forward layer.

    $$\mathcal{L} = \mathcal{L}_\text{span} + \beta\,\mathcal{L}_\text{balance}
      + \zeta\,\mathcal{L}_z$$

    The auxiliary losses are for training only: BalanceLoss and ZLoss add them there.
    """

    def __init__(
        self, encoder: nn.Module, head_dropout: float, p: Layer, dense: float | None = None
    ):
        # The head is drawn first, so that a seed gives every model the same head.
        super().__init__(encoder, head_dropout)
        self.p = p
        self.tally = 0  # picks of each expert at evaluation, (E,), since it was last set to 0
        block = Block(encoder.config.hidden_size, p, dense)
        if p.place == "after":
            self.block = block
            return
        if encoder.config.model_type == "albert":
            raise UserError(
                "place: ALBERT has one block for all depths, so that its last one has no "
                "feed-forward layer of its own; write place=after"
            )
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
        """The router's decisions in the last forward pass; None where the layer is dense."""
        layer = self.layer
        return layer.experts.routing if layer.sparse else None

    def active_parameters(self) -> int:
        """Count the parameters, of the experts those of top_n alone: a token is sent to no more."""
        total = sum(parameter.numel() for parameter in self.parameters())
        layer = self.layer
        if not layer.sparse:
            return total
        in_experts = sum(parameter.numel() for parameter in layer.experts.experts.parameters())
        return total - in_experts * (self.p.experts - self.p.top_n) // self.p.experts

    def states(self, **inputs) -> Tensor:
        """Return the states that the head reads, (B, T, D)."""
        self.layer.mask = inputs["attention_mask"]
        hidden = super().states(**inputs)
        return self.block(hidden) if self.p.place == "after" else hidden

    def forward(
        self, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **inputs
    ) -> heads.SpanOutput:
        """Return what SpanModel returns; at evaluation count the picks of each expert."""
        out = super().forward(start_positions, end_positions, **inputs)
        routing = self.routing
        if routing is not None and not self.training:
            picks = routing.expert.flatten().bincount(minlength=self.p.experts + 1)  # (E + 1,)
            self.tally = self.tally + picks[:-1]  # the last counts picks that were not routed
        return out


class BalanceLoss(ExtraLoss):
    r"""The balance loss of an ExBERT's router, as a term of the loss in training.

    $$\beta\,\mathcal{L}_\text{balance}$$

    It also logs what the router did: both losses, the share of dropped picks and each expert's
    load, as means over the steps since the last log.
    """

    in_train_loss = True

    def __init__(self, coefficient: float):
        self.coefficient = coefficient
        self.routing: list[Tensor] = []  # of each step since the last log, (3 + E,) each

    def loss(self, model: ExBERT, batch: dict, outputs: heads.SpanOutput, step: int) -> Tensor:
        """Return the term for the batch that the model has just read, a scalar."""
        routing = model.routing
        losses = torch.stack([routing.balance_loss, routing.z_loss, routing.dropped])
        self.routing.append(torch.cat([losses, routing.load]).detach())
        # $\beta\,\mathcal{L}_\text{balance}$
        return self.coefficient * routing.balance_loss

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is not logged yet."""
        return {"routing": torch.stack(self.routing)} if self.routing else {}

    def load_state_dict(self, state: dict[str, Tensor]):
        """Take what was not logged yet when a checkpoint was written."""
        self.routing = list(state["routing"]) if state else []

    def read_log(self) -> dict[str, float | list[float]]:
        """Return means over the steps since this was last called."""
        if not self.routing:
            return {}
        balance_loss, z_loss, dropped, *load = torch.stack(self.routing).mean(0).tolist()
        self.routing.clear()
        return {"balance_loss": balance_loss, "z_loss": z_loss, "dropped": dropped, "load": load}


class ZLoss(ExtraLoss):
    r"""The z-loss of an ExBERT's router, as a term of the loss in training.

    $$\zeta\,\mathcal{L}_z$$

    BalanceLoss logs its value.
    """

    in_train_loss = True

    def __init__(self, coefficient: float):
        self.coefficient = coefficient

    def loss(self, model: ExBERT, batch: dict, outputs: heads.SpanOutput, step: int) -> Tensor:
        """Return the term for the batch that the model has just read, a scalar."""
        # $\zeta\,\mathcal{L}_z$
        return self.coefficient * model.routing.z_loss
