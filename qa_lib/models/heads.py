"""The span head on an encoder: the plain span model."""

from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from qa_lib.tasks import span


class SpanOutput(NamedTuple):
    loss: Tensor | None  # scalar; None without labels
    start_logits: Tensor  # (B, T)
    end_logits: Tensor  # (B, T)


class SpanModel(nn.Module):
    r"""The plain span model ("V-DB" in the reports): an encoder, dropout, one linear layer to two logits a token.

    $$p_\text{start}(i) = \operatorname{softmax}_i(w_s^\top h_i + b_s), \qquad
      p_\text{end}(j) = \operatorname{softmax}_j(w_e^\top h_j + b_e)$$
    $$\mathcal{L} = \tfrac12\left(-\log p_\text{start}(i^*) - \log p_\text{end}(j^*)\right)$$

    h (B, T, D) last hidden states; i*, j* gold start and end, 0 ([CLS]) where the window lacks the answer.
    Head: weights N(0, 0.02), bias 0 (Devlin et al. 2019; transformers' …ForQuestionAnswering).
    """

    def __init__(self, encoder: nn.Module, head_dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(encoder.config.hidden_size, 2)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def prepare(self, windows: Dataset, rows: list[dict]) -> Dataset:
        """What sampler and collator read of the windows."""
        return windows.select_columns(
            ["input_ids", "type_ids", "row", "start_positions", "end_positions"]
        )

    def window_details(self, windows: Dataset, rows: list[dict]) -> dict[str, np.ndarray]:
        """What a model can say of each window beside logits, (W,) each."""
        return {}

    def collate(self, tokenizer) -> span.Collate:
        return span.Collate(
            tokenizer.pad_token_id, getattr(self.encoder.config, "type_vocab_size", 0) > 1
        )

    def states(self, **inputs) -> Tensor:
        """What the head reads, (B, T, D)."""
        return self.encoder(**inputs).last_hidden_state

    def forward(
        self, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **inputs
    ) -> SpanOutput:
        hidden = self.states(**inputs)  # (B, T, D)
        start, end = self.head(self.dropout(hidden)).float().unbind(-1)  # (B, T) each
        padding = inputs["attention_mask"] == 0
        start, end = (x.masked_fill(padding, torch.finfo(x.dtype).min) for x in (start, end))
        loss = None
        if start_positions is not None:
            loss = (
                F.cross_entropy(start, start_positions) + F.cross_entropy(end, end_positions)
            ) / 2
        return SpanOutput(loss, start, end)
