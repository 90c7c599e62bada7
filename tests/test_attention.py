"""Recomputed attention gives PyTorch's numbers to the last bit, and keeps less memory."""

import pytest
import torch
from torch import nn

from qa_lib.models import attention

B, H, T, D = 3, 2, 24, 8


def make_inputs(precision: torch.dtype) -> list[torch.Tensor]:
    """Return query, key and value that take gradients."""
    return [torch.randn(B, H, T, D).to(precision).requires_grad_() for _ in range(3)]


def make_mask(kind: str | None, precision: torch.dtype) -> torch.Tensor | None:
    """Return a mask of padding as booleans or as numbers, or none."""
    if kind is None:
        return None
    mask = torch.ones(B, 1, 1, T, dtype=torch.bool)
    mask[0, ..., 15:] = False
    mask = mask.expand(B, 1, T, T)
    if kind == "numbers":
        mask = torch.zeros(mask.shape, dtype=precision).masked_fill(~mask, float("-inf"))
    return mask


def attend_and_differentiate(
    function, inputs: list, mask, dropout: float, autocast: bool = False
) -> list[torch.Tensor]:
    """Return the output of an attention, three gradients, and the next random number."""
    torch.manual_seed(5)
    width = inputs[0].size(-1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, _ = function(
            nn.Module(), *inputs, mask, dropout=dropout, scaling=width**-0.5, is_causal=False
        )
    weights = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    gradients = torch.autograd.grad((output * weights).sum(), inputs)
    return [output, *gradients, torch.rand(3)]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("kind", [None, "booleans", "numbers"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [1, attention.PART])  # example by example, and all at once
def test_equals_pytorch_to_the_last_bit(part, precision, kind, dropout, monkeypatch):
    monkeypatch.setattr(attention, "PART", part)
    inputs = make_inputs(precision)
    mask = make_mask(kind, precision)
    ours = attend_and_differentiate(attention.attend, inputs, mask, dropout)
    theirs = attend_and_differentiate(attention.sdpa_attention_forward, inputs, mask, dropout)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_autocast_has_the_same_numbers():
    inputs = make_inputs(torch.float32)
    results = []
    for function in (attention.attend, attention.sdpa_attention_forward):
        results.append(attend_and_differentiate(function, inputs, None, 0.1, autocast=True))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_keeps_a_byte_of_each_weight():
    length = 128
    kept = {}
    for function in (attention.attend, attention.sdpa_attention_forward):
        sizes = []

        def note_size(tensor, sizes=sizes):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        inputs = [torch.randn(B, H, length, D).requires_grad_() for _ in range(3)]
        with torch.autograd.graph.saved_tensors_hooks(note_size, lambda tensor: tensor):
            attend_and_differentiate(function, inputs, None, 0.1)
        kept[function] = sum(sizes)
    weights = B * H * length**2
    assert kept[attention.sdpa_attention_forward] > 12 * weights
    assert kept[attention.attend] < 3 * weights  # queries, keys and values beside them


def test_trained_encoder_has_the_same_weights(encoder_with_dropout):
    trained = []
    for name in (attention.NAME, "sdpa"):
        encoder = encoder_with_dropout()
        encoder.set_attn_implementation(name)
        torch.manual_seed(0)
        ids = torch.randint(5, 40, (4, 16))
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
        for _ in range(3):
            encoder(input_ids=ids, attention_mask=mask).last_hidden_state.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append(torch.cat([p.detach().flatten() for p in encoder.parameters()]))
    # Some processors round a product of two examples otherwise than one of four. A wrong gradient
    # would move a weight by about 1e-2, the rate.
    torch.testing.assert_close(*trained, rtol=0, atol=1e-4)


@pytest.fixture
def encoder_with_dropout():
    """Return a function that makes the same small encoder each time."""
    from transformers import BertConfig, BertModel

    def make():
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            attn_implementation="sdpa",
        )
        return BertModel(config, add_pooling_layer=False).train()

    return make
