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


def span_loss(start: Tensor, end: Tensor, start_at: Tensor, end_at: Tensor) -> Tensor:
    """Return the mean cross-entropy of start and end; logits (B, T), positions (B,)."""
    return (F.cross_entropy(start, start_at) + F.cross_entropy(end, end_at)) / 2


class SpanModel(nn.Module):
    r"""The plain span model: an encoder, dropout, and one linear layer to two logits a token.

    $$p_\text{start}(i) = \operatorname{softmax}_i(w_s^\top h_i + b_s), \qquad
      p_\text{end}(j) = \operatorname{softmax}_j(w_e^\top h_j + b_e)$$
    $$\mathcal{L} = \tfrac12\left(-\log p_\text{start}(i^*) - \log p_\text{end}(j^*)\right)$$

    h (B, T, D) are the last hidden states; i* and j* the gold start and end, 0 ([CLS]) where the window
    lacks the answer. The head begins with weights N(0, 0.02) and bias 0 (Devlin et al. 2019;
    transformers' …ForQuestionAnswering).
    """

    def __init__(self, encoder: nn.Module, head_dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(encoder.config.hidden_size, 2)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def prepare(self, windows: Dataset, rows: list[dict]) -> Dataset:
        """Return the columns of the windows that sampler and collator read."""
        return windows.select_columns(
            ["input_ids", "type_ids", "row", "start_positions", "end_positions"]
        )

    def window_details(self, windows: Dataset, rows: list[dict]) -> dict[str, np.ndarray]:
        """Return what the model says of each window beside logits, (W,) each: here nothing."""
        return {}

    def collate(self, tokenizer) -> span.Collate:
        """Return what makes a batch of windows."""
        has_types = getattr(self.encoder.config, "type_vocab_size", 0) > 1
        return span.Collate(tokenizer.pad_token_id, has_types)

    def states(self, **inputs) -> Tensor:
        """Return what the head reads, (B, T, D)."""
        return self.encoder(**inputs).last_hidden_state

    def forward(
        self, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **inputs
    ) -> SpanOutput:
        """Return logits and, of given positions (B,) each, the loss.

        inputs: what the encoder reads, with attention_mask (B, T).
        """
        hidden = self.states(**inputs)  # (B, T, D)
        logits = self.head(self.dropout(hidden)).float()  # (B, T, 2)
        padding = (inputs["attention_mask"] == 0).unsqueeze(-1)
        logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        start, end = logits.unbind(-1)  # (B, T) each
        if start_positions is None:
            return SpanOutput(None, start, end)
        return SpanOutput(span_loss(start, end, start_positions, end_positions), start, end)
