"""Blocks that are computed again give the same numbers to the last bit, and keep less memory."""

import copy

import pytest
import torch
from transformers import AutoModel, BertConfig, DistilBertConfig

from qa_lib.models import attention, recomputed_blocks

TEXTS, LENGTH = 4, 24
WIDTH, INNER, HEADS = 32, 96, 4
# Bytes that a block keeps for a batch, by the docstring's formula, and those of its input alone.
BY_BLOCK = TEXTS * LENGTH * (4 * (10 * WIDTH + 2 * INNER) + HEADS * LENGTH)
BY_INPUT = TEXTS * LENGTH * 4 * WIDTH
CONFIGS = {
    "bert": BertConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
    ),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=WIDTH, hidden_dim=INNER, n_layers=3, n_heads=HEADS
    ),
}


@pytest.fixture(params=list(CONFIGS))
def encoder(request) -> torch.nn.Module:
    """Return an encoder of three blocks, with dropout, in training."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[request.param])
    return AutoModel.from_config(config, attn_implementation=attention.NAME).train()


def make_inputs(encoder, by_embeddings: bool) -> dict[str, torch.Tensor]:
    """Return a batch with padding, as words or as the embeddings of words."""
    ids = torch.arange(TEXTS * LENGTH).view(TEXTS, LENGTH) % 45 + 5
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    if by_embeddings:
        words = encoder.get_input_embeddings()(ids)
        return {"inputs_embeds": words, "attention_mask": mask}
    return {"input_ids": ids, "attention_mask": mask}


def differentiate(encoder, by_embeddings: bool = False) -> list[torch.Tensor]:
    """Return the states of an encoder, the gradients of its weights, and the next random number."""
    torch.manual_seed(1)
    states = encoder(**make_inputs(encoder, by_embeddings)).last_hidden_state
    weights = torch.linspace(-1, 1, states.numel()).view_as(states)
    encoder.zero_grad()
    (states * weights).sum().backward()
    gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
    return [states.detach(), *gradients, torch.rand(3)]


def measure_kept(encoder) -> int:
    """Return how many bytes an encoder keeps for the backward pass, beside its weights."""
    sizes = {}

    def note_size(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note_size, lambda tensor: tensor):
        states = encoder(**make_inputs(encoder, False)).last_hidden_state
    for weight in encoder.parameters():
        sizes.pop(weight.untyped_storage().data_ptr(), None)
    assert states.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("by_embeddings", [False, True])
def test_numbers_are_the_same_to_the_last_bit(encoder, by_embeddings, monkeypatch):
    expected = differentiate(encoder, by_embeddings)
    recomputed_blocks.bound_activations(encoder)
    blocks = recomputed_blocks.list_blocks(encoder)
    for count in range(len(blocks) + 1):
        monkeypatch.setattr(recomputed_blocks, "count_recomputed", lambda *_, n=count: n)
        found = differentiate(encoder, by_embeddings)
        assert [block.gradient_checkpointing for block in blocks].count(True) == count
        assert all(block.gradient_checkpointing for block in blocks[:count])
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


def test_a_recomputed_block_keeps_what_is_counted(encoder, monkeypatch):
    recomputed_blocks.bound_activations(encoder)
    kept = []
    for count in (0, 1, 3):
        monkeypatch.setattr(recomputed_blocks, "count_recomputed", lambda *_, n=count: n)
        kept.append(measure_kept(encoder))
    assert kept[0] - kept[1] == pytest.approx(BY_BLOCK - BY_INPUT, rel=0.08)
    assert kept[0] - kept[2] == pytest.approx(3 * (BY_BLOCK - BY_INPUT), rel=0.08)


def test_as_few_blocks_are_recomputed_as_a_batch_asks_for(monkeypatch):
    config = CONFIGS["bert"]
    for recomputed in range(3):
        limit = (3 - recomputed) * BY_BLOCK + recomputed * BY_INPUT
        monkeypatch.setattr(recomputed_blocks, "KEPT", limit)
        assert recomputed_blocks.count_recomputed(config, 3, TEXTS, LENGTH) == recomputed
        monkeypatch.setattr(recomputed_blocks, "KEPT", limit - 1)
        assert recomputed_blocks.count_recomputed(config, 3, TEXTS, LENGTH) == recomputed + 1


def test_minilm_recomputes_large_batches_alone():
    minilm = BertConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    counted = {}
    for texts, length in ((8, 64), (64, 64), (32, 256), (448, 80)):
        counted[texts, length] = recomputed_blocks.count_recomputed(minilm, 6, texts, length)
    assert counted == {(8, 64): 0, (64, 64): 0, (32, 256): 3, (448, 80): 6}


def test_a_copy_of_an_encoder_chooses_for_its_own_blocks(encoder, monkeypatch):
    recomputed_blocks.bound_activations(encoder)
    other = copy.deepcopy(encoder)
    monkeypatch.setattr(recomputed_blocks, "count_recomputed", lambda *_: 2)
    expected = differentiate(encoder)
    monkeypatch.setattr(recomputed_blocks, "count_recomputed", lambda *_: 1)
    for a, b in zip(differentiate(other), expected, strict=True):
        assert torch.equal(a, b)
    chosen = [block.gradient_checkpointing for block in recomputed_blocks.list_blocks(encoder)]
    assert chosen == [True, True, False]
