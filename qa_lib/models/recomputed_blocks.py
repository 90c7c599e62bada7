r"""Blocks of an encoder that are computed again in the backward pass, in training on a CPU.

A block keeps its activations for the backward pass, and a large batch keeps gigabytes. Gradient
checkpointing (Chen et al. 2016, arXiv 1604.06174) keeps a block's input alone. Here as few blocks
are recomputed as a batch asks for. Outputs and gradients stay the same to the last bit, dropout
included (tests/test_recomputed_blocks.py).

For a token a block keeps, in single precision,

$$4\,(10 D + 2 F) + H T \quad\text{bytes}$$

D: width of the block; F: width of its feed-forward layer; H: attention heads; T: tokens of the
window. The last term says which weights of attention were dropped (models/attention.py).
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

KEPT = 3 * 2**28  # bytes of activations that the blocks of an encoder may keep in one pass


def bound_activations(encoder: nn.Module):
    """Let an encoder keep at most KEPT bytes in a training pass, as far as recomputing helps.

    An architecture whose blocks transformers cannot recompute, as ALBERT's, keeps all.
    """
    for block in list_blocks(encoder):
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    encoder.register_forward_pre_hook(choose_blocks, with_kwargs=True)


def list_blocks(encoder: nn.Module) -> list[nn.Module]:
    """Return the blocks of an encoder that transformers can recompute, the first one first."""
    return [part for part in encoder.modules() if isinstance(part, GradientCheckpointingLayer)]


def choose_blocks(encoder: nn.Module, args: tuple, inputs: dict):
    """Choose the blocks that are recomputed, before a pass of an encoder.

    The first blocks are recomputed. The backward pass reaches them last, when the others have freed
    their activations. inputs: of the pass; `input_ids` (B, T), or `inputs_embeds` (B, T, D).
    """
    ids = inputs.get("input_ids")
    texts, length = (inputs["inputs_embeds"] if ids is None else ids).shape[:2]
    blocks = list_blocks(encoder)
    recomputed = count_recomputed(encoder.config, len(blocks), texts, length)
    for number, block in enumerate(blocks):
        block.gradient_checkpointing = number < recomputed


def count_recomputed(config, blocks: int, texts: int, length: int) -> int:
    """Return how many blocks are recomputed, so that what is kept fits into KEPT bytes.

    config: the encoder's; blocks: how many it has; texts, length: of a pass, in texts and in tokens
    of a text, padding included.
    """
    width = config.hidden_size
    floats = 10 * width + 2 * getattr(config, "intermediate_size", 4 * width)
    tokens = texts * length
    by_block = tokens * (4 * floats + config.num_attention_heads * length)
    by_input = tokens * 4 * width
    for recomputed in range(blocks):
        if (blocks - recomputed) * by_block + recomputed * by_input <= KEPT:
            return recomputed
    return blocks
