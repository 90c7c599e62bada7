"""ExBERT whole: its block against st-moe-pytorch's, every kind of encoder, its losses, its record."""

import pytest
import torch
from st_moe_pytorch import MoE as PeerMoE
from st_moe_pytorch import SparseMoEBlock
from transformers import AutoModel, BertConfig, DistilBertConfig, ElectraConfig

from qa_lib.models import encoders, st_moe
from qa_lib.models.exbert import Block, ExBERT
from qa_lib.page import tables
from qa_lib.reports import plans
from qa_lib.settings.parameters import Layer
from qa_lib.settings.params import UserError
from qa_lib.training import build, train

REPORT = Layer(
    experts=4, eval_routing="random", route_padding=True, density="kept", feed_forward="both"
)
SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
ENCODERS = {
    "bert": BertConfig(**SMALL),
    "electra": ElectraConfig(**SMALL, embedding_size=16),
    "distilbert": DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
}


def model(kind: str = "bert", dense: float | None = None, **changes) -> ExBERT:
    torch.manual_seed(0)
    return ExBERT(
        AutoModel.from_config(ENCODERS[kind]), 0.1, Layer(**{"experts": 4} | changes), dense
    )


def batch(length: int = 24) -> dict:
    ids = torch.randint(50, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 15:], mask[2, 9:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


LABELS = {"start_positions": torch.tensor([3, 2, 1]), "end_positions": torch.tensor([4, 2, 5])}


def test_the_block_equals_st_moe_pytorch_s(monkeypatch):
    """Feed-forward before and after, norms and residuals: output and gradients, weights copied."""
    ours = Block(16, REPORT)
    peer = SparseMoEBlock(PeerMoE(dim=16, num_experts=4), add_ff_before=True, add_ff_after=True)
    with torch.no_grad():
        for (mine, a), (theirs, b) in (
            ((ours.before, 0), (peer.ff_before, 0)),
            ((ours.after, 0), (peer.ff_after, 0)),
        ):
            copy(mine[1], theirs.net[b + 1 :])
            theirs.net[b].gamma.copy_(mine[a].weight.uniform_(0.5, 1.5))
        peer.moe_prenorm.gamma.copy_(ours.norm.weight.uniform_(0.5, 1.5))
        peer.moe.gate.to_gates.weight.copy_(ours.experts.router.weight)
        for mine, theirs in zip(ours.experts.experts, peer.moe.experts.experts, strict=True):
            copy(mine, theirs.net)
    draws = torch.rand(2, 3, 24)
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: draws)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *a, **kw: self.copy_(draws))
    a, b = (
        torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
        for _ in range(2)
    )
    ours.mask = torch.ones(3, 24)
    mine, theirs = ours(a), peer(b).outputs
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    mine.square().sum().backward(), theirs.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def copy(mine: st_moe.Expert, theirs):
    (
        theirs[0].weight.copy_(mine.w1.weight),
        theirs[0].bias.copy_(mine.w1.bias),
        theirs[1].mult_bias.copy_(mine.scale),
    )
    theirs[2].weight.copy_(mine.w2.weight), theirs[2].bias.copy_(mine.w2.bias)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("place", ["after", "feed_forward"])
def test_every_encoder_in_both_places(kind, place):
    m, inputs = model(kind, place=place, dropout_at="both"), batch()
    out = m(**LABELS, **inputs)
    out.loss.backward()
    assert m.layer.experts.router.weight.grad.any()
    assert encoders.blocks_of(m.encoder)[0].state_dict().keys()
    assert all(p.grad is not None and p.grad.any() for p in m.layer.experts.experts.parameters())
    m.eval()
    cut = {k: v[1:2, :15] for k, v in inputs.items()}
    torch.testing.assert_close(
        m(**cut).start_logits, m(**inputs).start_logits[1:2, :15], atol=1e-5, rtol=1e-4
    )
    saved = m.state_dict()
    other = model(kind, place=place, dropout_at="both")
    other.load_state_dict(saved)
    assert torch.equal(other.eval()(**inputs).end_logits, m(**inputs).end_logits)


def test_auxiliary_losses_are_for_training_only():
    m, plain = (
        model(balance=0.5, router_z=0.25, dropout_at="none"),
        model(balance=0.0, router_z=0.0),
    )
    for dropout in (
        x for net in (m, plain) for x in net.modules() if isinstance(x, torch.nn.Dropout)
    ):
        dropout.p = 0.0
    torch.manual_seed(3)
    whole = m(**LABELS, **batch()).loss
    torch.manual_seed(3)
    bare = plain(**LABELS, **batch()).loss
    torch.testing.assert_close(
        whole - bare, 0.5 * m.routed.balance_loss + 0.25 * m.routed.z_loss, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        m.eval()(**LABELS, **batch()).loss, plain.eval()(**LABELS, **batch()).loss
    )


def test_dense_controls_have_the_compute_and_the_weights_they_are_named_for():
    sparse, compute, weights = model(), model(dense=2.0), model(dense=4.0)

    def size(m):
        return sum(p.numel() for p in m.layer.experts.parameters())

    one = sum(p.numel() for p in sparse.layer.experts.experts[0].parameters())
    assert size(compute) == pytest.approx(2 * one, rel=0.02)
    assert size(weights) == pytest.approx(4 * one, rel=0.02)
    assert compute.routed is None
    assert compute.active_parameters() == sum(p.numel() for p in compute.parameters())
    assert sparse.active_parameters() == sum(p.numel() for p in sparse.parameters()) - 2 * one


def test_a_seed_gives_every_model_the_same_head(tiny):
    p = tiny(experiments=["headline", "dense"], tuned_blocks=1, tuned_epochs=1.0)
    heads = [build.build_model(s)[0].head.weight for s in plans.plan(p)]
    assert len(heads) == 5 and all(torch.equal(h, heads[0]) for h in heads)


def test_a_record_says_who_routed_where(tiny):
    p = tiny(experiments=["untuned"], train_rows=32)
    record = train.train(next(s for s in plans.plan(p) if s.layer), progress=lambda line: None)
    steps = record["load"]["training"]
    assert len(steps) >= 4
    assert set(steps[0]) == {
        "step",
        "balance_loss",
        "z_loss",
        "dropped",
        "load",
    }
    assert all(
        abs(sum(s["load"]) - 1) < 1e-5 and 0 <= s["dropped"] < 1 and s["balance_loss"] > 0.9
        for s in steps
    )
    assert all(
        len(record["load"][d]) == p.experts and sum(record["load"][d]) > 0 for d in p.domains
    )
    assert record["active_parameters"] < record["parameters"]
    assert all(0 <= record["metrics"][d]["contains"] <= 100 for d in p.domains)


def test_going_on_from_fewer_blocks_is_refused(tiny):
    first = plans.plan(tiny())[0]
    child = first.model_copy(update={"parents": [first], "blocks": 2})
    train.train(first, progress=lambda line: None, keep_weights=True)
    with pytest.raises(UserError, match="cannot go on from v-db.*ask for no more blocks"):
        build.build_model(child)


def test_mutual_information():
    import pandas as pd

    def share(rows):
        return pd.DataFrame(
            [
                {"set": s, "expert": e, "share": x}
                for s, xs in zip("ab", rows, strict=True)
                for e, x in enumerate(xs)
            ]
        )

    assert tables.mutual_information(share([[0.5, 0.5, 0], [0.5, 0.5, 0]])) == 0
    assert tables.mutual_information(share([[1, 0], [0, 1]])) == 1
    assert tables.mutual_information(share([[0.75, 0.25], [0.25, 0.75]])) == pytest.approx(
        1 - 0.811278, abs=1e-5
    )
