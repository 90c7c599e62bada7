r"""One encoder with several heads: the multitask model of Brink, Cooper and Hollister, and of ROaD.

$$\mathcal{L}_d = \frac{1}{n} \sum_{i=1}^{n} \ell_d\left(h_d(e(x_i)),\, y_i\right)$$

e: the shared encoder and its pooling; $h_d$, $\ell_d$: head and loss of dataset d
(models/heads.py). Datasets have heads of their own, or share one. A pair is one sequence, or two
texts that the same encoder reads, each by itself. A batch holds rows of one dataset.

B batch, T tokens, D width.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_lib.models import encoders, heads

PAIR = "pair_"  # prefix of what a batch holds of second texts
HeadName = Literal[
    "span",
    "joint_span",
    "classes",
    "pair",
    "cosine",
    "distribution",
    "relational_pair",
    "relational_score",
]


class HeadOutput(NamedTuple):
    """The output of a shared encoder on a batch."""

    loss: Tensor | None  # scalar; None without labels
    # Of classes (B, C); of a pair (B,), the logit of class 1; of a score (B,), the number itself.
    logits: Tensor
    raw: Tensor  # (B, …), what the head's loss and a divergence read


def make_head(
    name: HeadName,
    dim: int,
    dropout: float,
    classes: int = 2,
    low: float = 0.0,
    high: float = 1.0,
) -> nn.Module:
    """Return a new head. classes: how many there are; low, high: range of a score."""
    match name:
        case "span":
            return heads.SpanHead(dim, dropout)
        case "joint_span":
            return heads.JointSpanHead(dim, dropout)
        case "classes":
            return heads.ClassHead(dim, classes, dropout)
        case "pair":
            return heads.PairHead(dim, dropout)
        case "cosine":
            return heads.CosineHead(low, high)
        case "distribution":
            return heads.DistributionHead(dim, low, high, dropout=dropout)
        case "relational_pair":
            return heads.RelationalPairHead(dim, dropout)
        case "relational_score":
            return heads.RelationalScoreHead(dim, low, high, dropout)


class Pooler(nn.Module):
    r"""BERT's pooler: $\tanh(W h_\text{[CLS]} + b)$, drawn anew."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = heads.draw_linear(dim, dim)

    def forward(self, state: Tensor) -> Tensor:
        """Return the summary, (B, D). state: of [CLS], (B, D)."""
        return self.linear(state).tanh()


class SharedEncoder(heads.EncoderModel):
    """An encoder and a head for each dataset, or for several.

    head_of: dataset → the name of its head; by default a head has the name of its dataset.
    pooling: what a head reads of a text. "cls" is the last state of [CLS], "pooler" the same behind
    a dense layer with tanh (as in the report's code), "mean" the mean of all states but padding's.
    frozen: the encoder is not trained, its head and a pooler are.
    relational: whether the heads that read the rich relational layer share one, or each has its
    own (the control).
    divisors: dataset → what the sum of its rows' losses is divided by in training. A dataset
    without one has the mean over the rows in the batch. The report's code divides by a fixed batch
    size, though a batch may have fewer rows.
    """

    names_datasets = True  # a batch says which dataset its rows are of
    # Whether `states` holds the hidden states of all blocks, (N, T, D) each, of the last training
    # pass (losses/distillation.py).
    keeps_states = False
    states: tuple[Tensor, ...] = ()

    def __init__(
        self,
        encoder: nn.Module,
        heads_by_name: dict[str, nn.Module],
        pooling: Literal["cls", "pooler", "mean"] = "cls",
        frozen: bool = False,
        relational: Literal["shared", "own"] = "shared",
        divisors: dict[str, int] | None = None,
        dropout: float = 0.1,
        head_of: dict[str, str] | None = None,
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(not frozen)
        self.heads = nn.ModuleDict(heads_by_name)
        self.head_of = head_of or {}
        self.pooling = pooling
        self.divisors = divisors or {}
        dim = encoder.config.hidden_size
        self.pooler = Pooler(dim) if pooling == "pooler" else None
        self.relational = relational
        self.relations = nn.ModuleDict()
        for head_name, head in heads_by_name.items():
            name = self.name_relation(head_name)
            if reads_relation(head) and name not in self.relations:
                self.relations[name] = heads.RelationalLayer(dim, dropout)

    def name_relation(self, head_name: str) -> str:
        """Return the name of the relational layer that a head reads."""
        return head_name if self.relational == "own" else "shared"

    def name_head(self, dataset: str | None) -> str:
        """Return the name of the head of a batch's dataset. Without a name it is the only one.

        Raises ValueError where there are several, and where none is the dataset's.
        """
        if dataset is None and len(self.heads) == 1:
            return next(iter(self.heads))
        name = self.head_of.get(dataset, dataset)
        if name not in self.heads:
            raise ValueError(f"no head for dataset {dataset}; there are {', '.join(self.heads)}")
        return name

    def collate(self, tokenizer, task, dataset: str) -> Callable:
        """Return the function that makes a batch of a dataset's windows. task: that of its rows."""
        collate = super().collate(tokenizer, task, dataset)
        if not isinstance(self.heads[self.name_head(dataset)], heads.JointSpanHead):
            return collate
        return lambda windows: mark_candidates(collate(windows), windows)

    def forward(
        self, dataset: str | None = None, **batch
    ) -> HeadOutput | heads.SpanOutput | heads.JointOutput:
        """Return the output on a batch of one dataset, with labels also the loss.

        batch: input_ids, attention_mask and, where the encoder reads them, token_type_ids, (B, T)
        each; of second texts the same with the prefix `pair_`. Its labels are `labels`, (B,), and
        of spans `start_positions` and `end_positions`, (B,) each. What else it holds, as the
        outputs of teachers, is for the extra losses of a training and not read here.
        """
        return self.read_states(dataset, batch, self.encode(batch), self.training)

    def encode(self, batch: dict) -> Tensor:
        """Return the last hidden states of all texts of a batch, first texts before second ones."""
        texts = stack_texts(batch, self.encoder.config.pad_token_id)
        if not (self.keeps_states and self.training):
            return self.encoder(**texts).last_hidden_state
        output = self.encoder(**texts, output_hidden_states=True)
        self.states = output.hidden_states[1:]  # the first are the embeddings
        return output.last_hidden_state

    def read_states(
        self, dataset: str | None, batch: dict, states: Tensor, trains: bool
    ) -> HeadOutput | heads.SpanOutput | heads.JointOutput:
        """Return the output on a batch from the states of its texts, in the order of `encode`.

        trains: whether its loss is one of training.
        """
        name = self.name_head(dataset)
        head = self.heads[name]
        labels = read_labels(batch)
        mask = stack_texts(batch, self.encoder.config.pad_token_id)["attention_mask"]
        if isinstance(head, heads.SpanHead):
            raw = head(states, mask)  # (B, 2, T)
            loss = None
            if labels is not None:
                loss = self.average(head.losses(raw, labels), dataset, trains)
            return heads.SpanOutput(loss, *raw.unbind(1))
        if isinstance(head, heads.JointSpanHead):
            return head(states, batch.get("candidates", mask), labels)
        summaries = at_least_fp32(self.pool(states, mask))
        inputs = summaries.chunk(2) if has_pair(batch) else (summaries,)  # (B, D) each
        if reads_relation(head):
            inputs = (self.relations[self.name_relation(name)](*inputs),)
        raw = at_least_fp32(head(*inputs))
        loss = None
        if labels is not None:
            loss = self.average(head.losses(raw, labels), dataset, trains)
        return HeadOutput(loss, head.predict(raw), raw)

    def average(self, losses: Tensor, dataset: str | None, trains: bool) -> Tensor:
        """Return the loss of a batch, a scalar, from those of its rows, (B,).

        trains: whether it is a loss of training. One of an evaluation is a mean, since batches
        there have as many rows as fit. Modules cannot say it: a training computes losses without
        dropout too, for which they are as at evaluation (losses/smart.py).
        """
        if trains and dataset in self.divisors:
            return losses.sum() / self.divisors[dataset]
        return losses.mean()

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the summary of each text, (N, D). states: (N, T, D); mask: (N, T)."""
        if self.pooling == "mean":
            real = mask.unsqueeze(-1).to(states.dtype)  # (N, T, 1)
            return (states * real).sum(1) / real.sum(1)
        first = states[:, 0]
        return first if self.pooler is None else self.pooler(first)

    # ---- for losses that perturb embeddings (losses/smart.py) ----

    def embed(self, batch: dict) -> Tensor:
        """Return the output of the encoder's embeddings module, (B, T, D).

        The tokens of a pair's second text follow those of the first, so that an example is one row.
        """
        texts = stack_texts(batch, self.encoder.config.pad_token_id)
        embeddings = encoders.embed_tokens(
            self.encoder, texts["input_ids"], texts.get("token_type_ids")
        )
        return torch.cat(embeddings.chunk(2), 1) if has_pair(batch) else embeddings

    def token_mask(self, batch: dict) -> Tensor:
        """Return the mask of the embeddings, (B, T), 0 at padding."""
        mask = stack_texts(batch, self.encoder.config.pad_token_id)["attention_mask"]
        return torch.cat(mask.chunk(2), 1) if has_pair(batch) else mask

    def forward_embeddings(self, embeddings: Tensor, batch: dict) -> HeadOutput:
        """Return the output on a training batch whose embeddings are replaced.

        embeddings: as of `embed`.
        """
        if has_pair(batch):
            embeddings = torch.cat(embeddings.chunk(2, 1))
        with encoders.replace_embeddings(self.encoder, embeddings):
            states = self.encode(batch)
        return self.read_states(batch.get("dataset"), batch, states, trains=True)

    def compared_outputs(self, output: HeadOutput | heads.SpanOutput) -> Tensor:
        """Return what a divergence compares of an output, (B, …); of spans (B, 2, T)."""
        if isinstance(output, heads.SpanOutput):
            return torch.stack([output.start_logits, output.end_logits], 1)
        return output.raw

    def output_kind(self, batch: dict) -> str:
        """Return the kind of a batch's outputs, by which a divergence is chosen."""
        return self.heads[self.name_head(batch.get("dataset"))].kind


def at_least_fp32(x: Tensor) -> Tensor:
    """Return a tensor in fp32 where it was in bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def reads_relation(head: nn.Module) -> bool:
    """Return whether a head reads the rich relational layer."""
    return isinstance(head, heads.RelationalPairHead | heads.RelationalScoreHead)


def read_labels(batch: dict) -> Tensor | None:
    """Return the labels of a batch, (B,); of spans the gold tokens, (B, 2); None without labels."""
    if "start_positions" in batch:
        return torch.stack([batch["start_positions"], batch["end_positions"]], 1)
    return batch.get("labels")


def mark_candidates(batch: dict, windows: list[dict]) -> dict:
    """Return a batch of windows with `candidates`, (B, T): 1 where a span may begin or end.

    As in ELECTRA these are [CLS], the context, and the [SEP] behind it.
    """
    candidates = torch.zeros_like(batch["input_ids"])
    candidates[:, 0] = 1
    for row, window in zip(candidates, windows, strict=True):
        types = torch.as_tensor(window["type_ids"])
        row[: len(types)] |= types
    return {**batch, "candidates": candidates}


def has_pair(batch: dict) -> bool:
    """Return whether a batch holds second texts."""
    return f"{PAIR}input_ids" in batch


def stack_texts(batch: dict, pad: int) -> dict[str, Tensor]:
    """Return what the encoder reads of a batch, (B, T) each; of a pair (2·B, T).

    Second texts follow the first ones, and the shorter of the two is padded to the longer. pad: id
    of the padding token.
    """
    names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in batch]
    if not has_pair(batch):
        return {name: batch[name] for name in names}
    length = max(batch["input_ids"].shape[1], batch[f"{PAIR}input_ids"].shape[1])
    stacked = {}
    for name in names:
        value = pad if name == "input_ids" else 0
        texts = [batch[name], batch[f"{PAIR}{name}"]]
        padded = [F.pad(text, (0, length - text.shape[1]), value=value) for text in texts]
        stacked[name] = torch.cat(padded)
    return stacked
