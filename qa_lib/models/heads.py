r"""Heads on an encoder: the plain span model, and heads for classes, pairs and scores.

The heads for classes, pairs and scores are those of Brink, Cooper and Hollister (CS224N), whose
models have one for each dataset (models/shared_encoder.py). u, v: the encoder's summary of a text
and of its second text, (B, D) each. B batch, T tokens, D width, C classes, K bins.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from qa_lib.models import encoders
from qa_lib.tasks import span


class SpanOutput(NamedTuple):
    """The output of a span model on a batch."""

    loss: Tensor | None  # scalar; None without labels
    start_logits: Tensor  # (B, T)
    end_logits: Tensor  # (B, T)


class Beam(NamedTuple):
    """The spans of each window that a joint head thinks best: K starts, and K ends of each."""

    first: Tensor  # (B, K), tokens
    last: Tensor  # (B, K, K), tokens, those of a start in a row
    scores: Tensor  # (B, K, K), log-probabilities of the spans


class JointOutput(NamedTuple):
    """The output of a joint span head on a batch."""

    loss: Tensor | None  # scalar; None without labels
    start_logits: Tensor  # (B, T)
    end_logits: Tensor  # (B, T), for the gold start; without labels for the best one
    null_logits: Tensor  # (B,), of "no answer in this window"
    beam: Beam | None  # None in training


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

    # ---- for losses that perturb embeddings (losses/smart.py) ----

    def embed(self, batch: dict) -> Tensor:
        """Return the output of the encoder's embeddings module, (B, T, D)."""
        return encoders.embed_tokens(self.encoder, batch["input_ids"], batch.get("token_type_ids"))

    def token_mask(self, batch: dict) -> Tensor:
        """Return the mask of the embeddings, (B, T), 0 at padding."""
        return batch["attention_mask"]

    def forward_embeddings(self, embeddings: Tensor, batch: dict) -> SpanOutput:
        """Return the output on a batch whose embeddings are replaced. embeddings: (B, T, D)."""
        with encoders.replace_embeddings(self.encoder, embeddings):
            # The class's own forward pass, since a trainer may wrap the model's in autocast.
            return type(self).forward(self, **batch)

    def compared_outputs(self, output: SpanOutput) -> Tensor:
        """Return what a divergence compares of an output, (B, 2, T)."""
        return torch.stack([output.start_logits, output.end_logits], 1)

    def output_kind(self, batch: dict) -> str:
        """Return the kind of the outputs, by which a divergence is chosen."""
        return "span"


class SpanHead(nn.Module):
    r"""Spans of a text: independent start and end, and position 0 ([CLS]) for "no answer".

    The head of SpanModel, for an encoder with several heads. ROaD has it in place of ELECTRA's
    (JointSpanHead).
    """

    kind = "span"

    def __init__(self, dim: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = draw_linear(dim, 2)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of start and end, (B, 2, T), the lowest number at padding.

        states: (B, T, D); mask: (B, T), 0 at padding.
        """
        logits = self.linear(self.dropout(states)).float().transpose(1, 2)  # (B, 2, T)
        return logits.masked_fill(mask.unsqueeze(1) == 0, torch.finfo(logits.dtype).min)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of start and end of each row, (B,). labels: gold tokens, (B, 2)."""
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


class JointSpanHead(nn.Module):
    r"""ELECTRA's spans: an end is chosen for a start, and a classifier says "no answer".

    $$p(i) = \operatorname{softmax}_i(w_s^\top h_i + b_s), \qquad
      p(j \mid i) = \operatorname{softmax}_j\left(
      w_e^\top \operatorname{GELU}(W_e [h_i; h_j] + c_e) + b_e\right)$$

    $$a = w_a^\top \operatorname{GELU}\left(
      W_a \left[h_\text{[CLS]};\, \textstyle\sum_i p(i)\, h_i\right] + c_a\right) + b_a$$

    h: states behind dropout, (B, T, D); a: logit of "no answer", (B,). The loss of a row with the
    gold span (i*, j*), which is (0, 0) where the window lacks the answer, is

    $$\ell = \tfrac12\left(-\log p(i^*) - \log p(j^* \mid i^*)\right)
      + \lambda \operatorname{BCE}(a, [i^* = 0]), \qquad \lambda = \tfrac12$$

    In training the end is scored for the gold start. Beside the logits an evaluation gives the
    `beam` best starts, and the `beam` best ends of each. Source: google-research/electra,
    finetune/qa/qa_tasks.py; there the target of BCE is the question's, here it is the window's.
    """

    kind = "span"
    null_weight = 0.5  # λ

    def __init__(self, dim: int, dropout: float = 0.1, hidden: int = 512, beam: int = span.N_BEST):
        super().__init__()
        self.beam = beam
        self.dropout = nn.Dropout(dropout)
        self.start = draw_linear(dim, 1)
        self.end = nn.Sequential(draw_linear(2 * dim, hidden), nn.GELU(), draw_linear(hidden, 1))
        self.null = nn.Sequential(draw_linear(2 * dim, hidden), nn.GELU(), draw_linear(hidden, 1))

    def forward(
        self, states: Tensor, candidates: Tensor, labels: Tensor | None = None
    ) -> JointOutput:
        """Return the logits of a batch, with labels also the loss, and in evaluation the beam.

        states: (B, T, D); candidates: (B, T), 0 at tokens that are neither start nor end, as
        padding; labels: gold tokens, (B, 2).
        """
        states = self.dropout(states)
        # $w_s^\top h_i + b_s$
        start = mask_logits(self.start(states).squeeze(-1), candidates)  # (B, T)
        of_ends = self.project_ends(states)
        given = start.argmax(1) if labels is None else labels[:, 0]  # (B,)
        end = mask_logits(self.score_ends(of_ends, select_states(states, given)), candidates)
        null = self.score_null(states, start)
        loss = None if labels is None else self.losses(start, end, null, labels).mean()
        beam = None if self.training else self.search(states, of_ends, start, candidates)
        return JointOutput(loss, start, end, null, beam)

    def project_ends(self, states: Tensor) -> Tensor:
        r"""Return the part of $W_e [h_i; h_j] + c_e$ that is the same for all starts, (B, T, H)."""
        _, of_end = self.end[0].weight.chunk(2, dim=1)  # (H, D)
        return F.linear(states, of_end, self.end[0].bias)

    def score_ends(self, of_ends: Tensor, start_state: Tensor) -> Tensor:
        """Return the logits of all ends for a start, (B, T).

        of_ends: of `project_ends`; start_state: the state of the start, (B, D).
        """
        of_start, _ = self.end[0].weight.chunk(2, dim=1)  # (H, D)
        # $w_e^\top \operatorname{GELU}(W_e [h_i; h_j] + c_e) + b_e$
        hidden = of_ends + F.linear(start_state, of_start).unsqueeze(1)  # (B, T, H)
        return self.end[2](self.end[1](hidden)).squeeze(-1)

    def score_null(self, states: Tensor, start: Tensor) -> Tensor:
        """Return the logit a of "no answer", (B,). start: logits of the start, (B, T)."""
        # $\sum_i p(i)\, h_i$
        expected = torch.einsum("bt,btd->bd", start.softmax(1).to(states.dtype), states)
        null = self.null(torch.cat([states[:, 0], expected], -1)).squeeze(-1)
        return null.to(start.dtype)

    def losses(self, start: Tensor, end: Tensor, null: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row, (B,). start, end: (B, T); null: (B,); labels: (B, 2)."""
        of_start = F.cross_entropy(start, labels[:, 0], reduction="none")
        of_end = F.cross_entropy(end, labels[:, 1], reduction="none")
        lacks_answer = (labels[:, 0] == 0).to(null.dtype)
        of_null = F.binary_cross_entropy_with_logits(null, lacks_answer, reduction="none")
        # $\tfrac12(-\log p(i^*) - \log p(j^* \mid i^*)) + \lambda \operatorname{BCE}$
        return (of_start + of_end) / 2 + self.null_weight * of_null

    def search(self, states: Tensor, of_ends: Tensor, start: Tensor, candidates: Tensor) -> Beam:
        r"""Return the best starts of each window, and the best ends of each start.

        The score of a span is $\log p(i) + \log p(j \mid i)$.
        """
        width = min(self.beam, start.shape[1])
        start_scores, first = start.log_softmax(1).topk(width, dim=1)  # (B, K)
        last = []
        scores = []
        for place in range(width):
            end = self.score_ends(of_ends, select_states(states, first[:, place]))
            end_scores, ends = mask_logits(end, candidates).log_softmax(1).topk(width, dim=1)
            last.append(ends)
            scores.append(start_scores[:, place].unsqueeze(1) + end_scores)
        return Beam(first, torch.stack(last, 1), torch.stack(scores, 1))


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Return logits in fp32 at least, the lowest number where the mask is 0. Both: (B, T)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min)


def select_states(states: Tensor, tokens: Tensor) -> Tensor:
    """Return the state of one token of each row, (B, D). states: (B, T, D); tokens: (B,)."""
    return states[torch.arange(len(states), device=states.device), tokens]


# ---- heads for classes, pairs and scores ----


class ClassHead(nn.Module):
    r"""Classes of one text, as the report has them for sentiment.

    $$z = W \operatorname{drop}(\operatorname{LeakyReLU}(u)) + b$$
    """

    kind = "classes"

    def __init__(self, dim: int, classes: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = draw_linear(dim, classes)

    def forward(self, u: Tensor) -> Tensor:
        """Return the logits z, (B, C). u: (B, D)."""
        return self.linear(self.dropout(F.leaky_relu(u)))

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each row, (B,). labels: numbers of classes, (B,)."""
        return F.cross_entropy(logits, labels, reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return the logits, (B, C)."""
        return logits


class BinaryHead(nn.Module):
    """What heads with one logit share: whether a pair of texts is of class 1."""

    kind = "binary"

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy of each row, (B,). labels: 0 or 1, (B,)."""
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return the logits of class 1, (B,)."""
        return logits


class PairHead(BinaryHead):
    r"""Two classes of a pair, as the report has them for paraphrases.

    $$z = w^\top \operatorname{drop}([u; v; |u - v|]) + b$$
    """

    def __init__(self, dim: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = draw_linear(3 * dim, 1)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the logit z of class 1, (B,). u, v: (B, D)."""
        return self.linear(self.dropout(join_pair(u, v))).squeeze(-1)


class ScoreHead(nn.Module):
    r"""What heads share whose prediction is a number between `low` and `high`.

    The head gives a number s on a scale on which low is 0 and high is 1. Its loss is the squared
    error on that scale, and its prediction is $\text{low} + (\text{high} - \text{low})\,s$.
    """

    kind = "score"

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low = low
        self.high = high

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Squared error of each row, (B,). scores: s; labels: between low and high, (B,) each."""
        return (scores - self.to_unit(labels).to(scores.dtype)).square()

    def predict(self, scores: Tensor) -> Tensor:
        """Return the predicted numbers, (B,)."""
        return self.low + (self.high - self.low) * scores

    def to_unit(self, labels: Tensor) -> Tensor:
        """Return labels on the scale on which low is 0 and high is 1."""
        return (labels - self.low) / (self.high - self.low)


class CosineHead(ScoreHead):
    r"""Similarity as a cosine, as the report has it; it has no parameters.

    $$s = \frac{u^\top v}{\|u\| \|v\|}$$
    """

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Return s, (B,). u, v: (B, D)."""
        return F.cosine_similarity(u, v)


class DistributionHead(ScoreHead):
    r"""A distribution over scores, whose mean is the prediction: the report's future work.

    $$p = \operatorname{softmax}(W \operatorname{drop}([u; v; |u - v|]) + b), \qquad
      s = \sum_k p_k\, c_k, \quad c_k = \tfrac{k}{K - 1}, \; k = 0 \dots K - 1$$

    The target gives a label's two neighbouring bins the weights whose mean is the label; the loss
    is cross-entropy.
    """

    kind = "classes"

    def __init__(self, dim: int, low: float, high: float, bins: int = 11, dropout: float = 0.1):
        super().__init__(low, high)
        self.bins = bins
        self.dropout = nn.Dropout(dropout)
        self.linear = draw_linear(3 * dim, bins)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the logits of the bins, (B, K). u, v: (B, D)."""
        return self.linear(self.dropout(join_pair(u, v)))

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each row, (B,). labels: between low and high, (B,)."""
        place = self.to_unit(labels).to(logits.dtype) * (self.bins - 1)  # (B,), in bins
        bins = torch.arange(self.bins, device=logits.device)
        target = (1 - (place.unsqueeze(-1) - bins).abs()).clamp(min=0)  # (B, K)
        return F.cross_entropy(logits, target, reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return the means of the distributions, (B,)."""
        centres = torch.linspace(0, 1, self.bins, dtype=logits.dtype, device=logits.device)
        # $\sum_k p_k\, c_k$
        return super().predict(logits.softmax(-1) @ centres)


# ---- the rich relational layer ----


class RelationalLayer(nn.Module):
    r"""The report's rich relational layer, which paraphrases and similarity can share.

    $$r = W \operatorname{drop}\left(\left[u;\; v;\; |u - v|;\;
      \frac{u \odot v}{\|u\| \|v\| + 10^{-8}}\right]\right) + b$$
    """

    def __init__(self, dim: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = draw_linear(4 * dim, dim)

    def relate(self, u: Tensor, v: Tensor) -> Tensor:
        """Return what the linear layer reads of a pair, (B, 4·D). u, v: (B, D)."""
        lengths = u.norm(dim=-1, keepdim=True) * v.norm(dim=-1, keepdim=True)  # (B, 1)
        return torch.cat([join_pair(u, v), u * v / (lengths + 1e-8)], -1)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Return r, (B, D). u, v: (B, D)."""
        return self.linear(self.dropout(self.relate(u, v)))


class RelationalPairHead(BinaryHead):
    r"""Two classes of a pair behind the relational layer.

    $$z = w^\top \operatorname{drop}(\operatorname{LeakyReLU}(r)) + b$$
    """

    def __init__(self, dim: int, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = draw_linear(dim, 1)

    def forward(self, r: Tensor) -> Tensor:
        """Return the logit z of class 1, (B,). r: (B, D)."""
        return self.linear(self.dropout(F.leaky_relu(r))).squeeze(-1)


class RelationalScoreHead(ScoreHead):
    r"""A score behind the relational layer.

    $$s = \sigma(w^\top \operatorname{drop}(\operatorname{LeakyReLU}(r)) + b)$$
    """

    def __init__(self, dim: int, low: float, high: float, dropout: float = 0.1):
        super().__init__(low, high)
        self.dropout = nn.Dropout(dropout)
        self.linear = draw_linear(dim, 1)

    def forward(self, r: Tensor) -> Tensor:
        """Return s, (B,). r: (B, D)."""
        return self.linear(self.dropout(F.leaky_relu(r))).squeeze(-1).sigmoid()


def join_pair(u: Tensor, v: Tensor) -> Tensor:
    """Return [u; v; |u − v|], (B, 3·D). u, v: (B, D)."""
    return torch.cat([u, v, (u - v).abs()], -1)


def draw_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer with weights from N(0, 0.02) and biases of 0."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
