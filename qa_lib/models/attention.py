"""Attention of an encoder in training on a CPU: PyTorch's numbers in a fraction of the memory.

With dropout, PyTorch keeps several arrays of (B, H, T, T) floats of each block for the backward
pass. These are most of a run's memory on long windows. Here each block keeps one such array of
booleans, which weights were dropped, and the backward pass computes the rest again, for a few
examples at a time. Outputs, gradients and random numbers are those of PyTorch, on most
processors to the last bit (tests/test_attention.py).

Shapes: B batch, H heads, T tokens, D width of a head.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "recomputed"  # what an encoder's attn_implementation says
PART = 8 * 2**20  # bytes of fp32 weights that are computed at once, of whole examples


class RecomputedAttention(torch.autograd.Function):
    r"""Attention with dropout, whose weights are computed again in the backward pass.

    $$O = \left(\tfrac{Z}{1-p} \odot A\right) V, \qquad
      A = \operatorname{softmax}(s\,Q K^\top + M)$$

    Z: 1 where a weight is kept, drawn with probability 1 − p; M: 0, or −∞ at padding.
    """

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, scale: float
    ) -> Tensor:
        """Return O, (B, H, T, D).

        query, key, value: Q, K and V, (B, H, T, D); mask: M, as the weights or broadcast to them;
        scale: s. No row may be masked wholly.
        """
        kept = torch.empty(*query.shape[:-1], key.size(-2), dtype=torch.bool).bernoulli_(1 - p)
        ctx.save_for_backward(query, key, value, mask, kept)
        ctx.p = p
        ctx.scale = scale
        output = torch.empty_like(value)
        for part in split_batch(kept):
            weights = compute_weights(query[part], key[part], mask_part(mask, part), scale)
            # $(\tfrac{Z}{1-p} \odot A) V$
            weights *= scale_kept(kept[part], p)
            output[part] = weights @ value[part].float()
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        """Return the gradients with respect to Q, K and V. gradient: that of O."""
        query, key, value, mask, kept = ctx.saved_tensors
        root = math.sqrt(ctx.scale)
        of_query = torch.empty_like(query)
        of_key = torch.empty_like(key)
        of_value = torch.empty_like(value)
        for part in split_batch(kept):
            q = query[part].float() * root
            k = key[part].float() * root
            of_output = gradient[part].float()
            noise = scale_kept(kept[part], ctx.p)
            weights = compute_weights(query[part], key[part], mask_part(mask, part), ctx.scale)
            of_value[part] = (weights * noise).transpose(-2, -1) @ of_output
            of_weights = of_output @ value[part].float().transpose(-2, -1)
            of_weights *= noise
            of_scores = torch.ops.aten._softmax_backward_data(
                of_weights, weights, -1, weights.dtype
            )
            of_query[part] = (of_scores @ k) * root
            of_key[part] = (q.transpose(-2, -1) @ of_scores).transpose(-2, -1) * root
        return of_query, of_key, of_value, None, None, None


def split_batch(kept: Tensor) -> list[slice]:
    """Return the parts of a batch whose weights are computed at once. kept: (B, H, T, T)."""
    examples = max(1, PART // (4 * kept[0].numel()))
    return [slice(begin, begin + examples) for begin in range(0, len(kept), examples)]


def mask_part(mask: Tensor | None, part: slice) -> Tensor | None:
    """Return the mask of a part of the batch. A mask for all examples alike has one row."""
    if mask is None or len(mask) == 1:
        return mask
    return mask[part]


def compute_weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return the attention weights A in fp32, (B, H, T, T)."""
    root = math.sqrt(scale)  # on both sides, as PyTorch has it
    scores = (query.float() * root) @ (key.float() * root).transpose(-2, -1)
    if mask is not None:
        scores += mask
    return torch.softmax(scores, -1)


def scale_kept(kept: Tensor, p: float) -> Tensor:
    """Return what dropout multiplies weights by: 1 / (1 − p) where they are kept, else 0."""
    return kept.float().div_(1 - p)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options,
) -> tuple[Tensor, None]:
    """Return the attention of a block, (B, T, H, D), in the form that transformers asks for.

    Without dropout, without gradients and on a GPU it is PyTorch's own.
    """
    if not dropout or query.is_cuda or not (torch.is_grad_enabled() and query.requires_grad):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
    if torch.is_autocast_enabled("cpu"):
        precision = torch.get_autocast_dtype("cpu")
        query = query.to(precision)
        key = key.to(precision)
        value = value.to(precision)
    mask = attention_mask
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -math.inf)
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        output = RecomputedAttention.apply(query, key, value, mask, dropout, scale)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
