"""The span head on an encoder: the plain span model."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from qa_lib.tasks import span


class SpanOutput(NamedTuple):
    """The output of a span model on a batch."""

    loss: Tensor | None  # scalar; None without labels
    start_logits: Tensor  # (B, T)
    end_logits: Tensor  # (B, T)


def span_loss(start: Tensor, end: Tensor, start_positions: Tensor, end_positions: Tensor) -> Tensor:
    r"""Mean cross-entropy of start and end, a scalar.

    $$\mathcal{L} = \tfrac12\left(-\log p_\text{start}(i^*) - \log p_\text{end}(j^*)\right)$$

    start, end: logits, (B, T). start_positions, end_positions: i* and j*, the gold start and end,
    (B,), 0 ([CLS]) where the window lacks the answer.
    """
    return (F.cross_entropy(start, start_positions) + F.cross_entropy(end, end_positions)) / 2


class EncoderModel(nn.Module):
    """A model with an encoder: how it is given windows of any task."""

    encoder: nn.Module
    names_datasets = False  # whether `forward` is told the dataset of a batch

    @property
    def reads_types(self) -> bool:
        """Whether the encoder reads token types."""
        return getattr(self.encoder.config, "type_vocab_size", 0) > 1

    def prepare(self, windows: Dataset, rows: list[dict]) -> Dataset:
        """Return the windows as the sampler and the collator read them."""
        return windows

    def collate(self, tokenizer, task, dataset: str) -> Callable:
        """Return the function that makes a batch of a dataset's windows. task: that of its rows."""
        collate = task.make_collator(tokenizer, self.reads_types)
        if not self.names_datasets:
            return collate
        return lambda windows: {**collate(windows), "dataset": dataset}

    def window_details(self, windows: Dataset, rows: list[dict]) -> dict[str, np.ndarray]:
        """Return what a model says of each window beside its outputs, (W,) each; here nothing."""
        return {}


class SpanModel(EncoderModel):
    r"""The plain span model ("V-DB" in the reports): an encoder, dropout, and one linear layer.

    $$p_\text{start}(i) = \operatorname{softmax}_i(w_s^\top h_i + b_s), \qquad
      p_\text{end}(j) = \operatorname{softmax}_j(w_e^\top h_j + b_e)$$

    h: last hidden states, (B, T, D). The linear layer gives two logits a token. Its weights start
    from N(0, 0.02), its bias from 0 (Devlin et al. 2019; transformers' …ForQuestionAnswering).
    """

    def __init__(self, encoder: nn.Module, head_dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(encoder.config.hidden_size, 2)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def prepare(self, windows: Dataset, rows: list[dict]) -> Dataset:
        """Return the columns of the windows that the sampler and the collator read."""
        return windows.select_columns(["input_ids", "type_ids", "row", *span.LABEL_COLUMNS])

    def states(self, **inputs) -> Tensor:
        """Return the states that the head reads, (B, T, D)."""
        return self.encoder(**inputs).last_hidden_state

    def forward(
        self, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **inputs
    ) -> SpanOutput:
        """Return the logits of a batch, and with labels the loss.

        start_positions, end_positions: (B,); inputs: what the encoder reads, (B, T) each.
        """
        hidden = self.states(**inputs)  # (B, T, D)
        # $w_s^\top h_i + b_s$ and $w_e^\top h_j + b_e$
        start, end = self.head(self.dropout(hidden)).float().unbind(-1)  # (B, T) each
        padding = inputs["attention_mask"] == 0  # (B, T)
        lowest = torch.finfo(start.dtype).min
        start = start.masked_fill(padding, lowest)
        end = end.masked_fill(padding, lowest)
        loss = None
        if start_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        return SpanOutput(loss, start, end)
