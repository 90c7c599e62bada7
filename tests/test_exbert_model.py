"""The ExBERT: its block against st-moe-pytorch's, every encoder, its losses and its record."""

import pandas as pd
import pytest
import torch
from st_moe_pytorch import MoE as PeerMoE
from st_moe_pytorch import SparseMoEBlock
from transformers import AutoModel, BertConfig, DistilBertConfig, ElectraConfig

from qa_lib.data import selection
from qa_lib.models import encoders, st_moe
from qa_lib.models.exbert import BalanceLoss, Block, ExBERT, ZLoss
from qa_lib.page import tables
from qa_lib.reports import plans
from qa_lib.settings.parameters import Layer
from qa_lib.settings.params import UserError
from qa_lib.training import build, evaluate, train

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


def make_model(kind: str = "bert", dense: float | None = None, **changes) -> ExBERT:
    """Return a small ExBERT whose weights are the same each time."""
    torch.manual_seed(0)
    encoder = AutoModel.from_config(ENCODERS[kind])
    return ExBERT(encoder, 0.1, Layer(**{"experts": 4} | changes), dense)


def draw_batch(length: int = 24) -> dict:
    """Return three random windows, two of which have padding."""
    ids = torch.randint(50, (3, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    mask[2, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask}


LABELS = {"start_positions": torch.tensor([3, 2, 1]), "end_positions": torch.tensor([4, 2, 5])}


def test_the_block_equals_st_moe_pytorch_s(monkeypatch):
    """With the same weights the outputs and the gradients agree.

    The block has norms, residuals, and a feed-forward layer before and after the experts.
    """
    ours = Block(16, REPORT)
    peer = SparseMoEBlock(PeerMoE(dim=16, num_experts=4), add_ff_before=True, add_ff_after=True)
    with torch.no_grad():
        for mine, theirs in ((ours.before, peer.ff_before), (ours.after, peer.ff_after)):
            copy_weights(mine[1], theirs.net[1:])
            theirs.net[0].gamma.copy_(mine[0].weight.uniform_(0.5, 1.5))
        peer.moe_prenorm.gamma.copy_(ours.norm.weight.uniform_(0.5, 1.5))
        peer.moe.gate.to_gates.weight.copy_(ours.experts.router.weight)
        for mine, theirs in zip(ours.experts.experts, peer.moe.experts.experts, strict=True):
            copy_weights(mine, theirs.net)
    draws = torch.rand(2, 3, 24)
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: draws)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *a, **kw: self.copy_(draws))
    states = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(2))
    a = states.clone().requires_grad_()
    b = states.clone().requires_grad_()
    ours.mask = torch.ones(3, 24)
    mine = ours(a)
    theirs = peer(b).outputs
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    mine.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def copy_weights(mine: st_moe.Expert, theirs) -> None:
    """Copy the weights of our expert to the same layers of st-moe-pytorch."""
    theirs[0].weight.copy_(mine.w1.weight)
    theirs[0].bias.copy_(mine.w1.bias)
    theirs[1].mult_bias.copy_(mine.scale)
    theirs[2].weight.copy_(mine.w2.weight)
    theirs[2].bias.copy_(mine.w2.bias)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("place", ["after", "feed_forward"])
def test_every_encoder_takes_the_experts_in_both_places(kind, place):
    m = make_model(kind, place=place, dropout_at="both")
    inputs = draw_batch()
    m(**LABELS, **inputs).loss.backward()
    assert m.layer.experts.router.weight.grad.any()
    assert encoders.blocks_of(m.encoder)[0].state_dict().keys()
    assert all(p.grad is not None and p.grad.any() for p in m.layer.experts.experts.parameters())
    m.eval()
    out = m(**inputs)
    # padding changes nothing
    cut = {k: v[1:2, :15] for k, v in inputs.items()}
    start = out.start_logits[1:2, :15]
    torch.testing.assert_close(m(**cut).start_logits, start, atol=1e-5, rtol=1e-4)
    # saved weights give the same logits
    other = make_model(kind, place=place, dropout_at="both")
    other.load_state_dict(m.state_dict())
    assert torch.equal(other.eval()(**inputs).end_logits, out.end_logits)


@pytest.mark.parametrize(
    "place, before, after",
    [
        ("none", False, False),
        ("before", True, False),
        ("after", False, True),
        ("both", True, True),
    ],
)
def test_dropout_stands_where_it_is_asked_for(place, before, after):
    """In front of all else in the block, and behind it."""
    block = Block(16, Layer(experts=4, dropout_at=place, layer_dropout=0.5))
    block.mask = torch.ones(3, 24)
    read = []
    block.norm.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    states = block(torch.ones(3, 24, 16))
    assert (read[0] == 0).any() == before
    assert (states == 0).any() == after


def test_a_dense_layer_has_the_dropout_of_the_experts():
    p = Layer(experts=4, expert_dropout=0.5)
    assert Block(16, p, dense=2.0).experts.dropout.p == 0.5


def test_auxiliary_losses_are_for_training_only():
    m = make_model(balance=0.5, router_z=0.25, dropout_at="none")
    plain = make_model(balance=0.0, router_z=0.0)
    for module in (*m.modules(), *plain.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(3)
    out = m(**LABELS, **draw_batch())
    losses = [BalanceLoss(0.5), ZLoss(0.25)]
    whole = build.add_losses(losses, m, {}, out, out.loss, step=0)
    # the sum of the report's formula, bit for bit
    assert whole == out.loss + 0.5 * m.routing.balance_loss + 0.25 * m.routing.z_loss
    torch.manual_seed(3)
    bare = plain(**LABELS, **draw_batch()).loss
    auxiliary = 0.5 * m.routing.balance_loss + 0.25 * m.routing.z_loss
    torch.testing.assert_close(whole - bare, auxiliary, atol=1e-5, rtol=1e-5)
    logged = losses[0].read_log()
    assert logged["balance_loss"] == m.routing.balance_loss.item()
    assert logged["z_loss"] == m.routing.z_loss.item()
    assert losses[0].read_log() == losses[1].read_log() == {}
    whole = m.eval()(**LABELS, **draw_batch()).loss
    bare = plain.eval()(**LABELS, **draw_batch()).loss
    torch.testing.assert_close(whole, bare)


def test_dense_controls_have_the_compute_and_the_weights_they_are_named_for():
    sparse = make_model()
    compute = make_model(dense=2.0)
    weights = make_model(dense=4.0)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    one = count(sparse.layer.experts.experts[0])
    assert count(compute.layer.experts) == pytest.approx(2 * one, rel=0.02)
    assert count(weights.layer.experts) == pytest.approx(4 * one, rel=0.02)
    assert compute.routing is None
    assert compute.active_parameters() == count(compute)
    assert sparse.active_parameters() == count(sparse) - 2 * one


def test_a_seed_gives_every_model_the_same_head(tiny):
    p = tiny(experiments=["headline", "dense"], tuned_blocks=1, tuned_epochs=1.0)
    heads = [build.build_model(s)[0].head.weight for s in plans.plan(p)]
    assert len(heads) == 5
    assert all(torch.equal(h, heads[0]) for h in heads)


def test_a_record_has_the_routing_of_training_and_of_each_test_set(tiny):
    p = tiny(experiments=["untuned"], train_rows=32)
    record = train.train(next(s for s in plans.plan(p) if s.layer), progress=lambda line: None)
    steps = record["load"]["training"]
    assert len(steps) >= 4
    assert set(steps[0]) == {"step", "balance_loss", "z_loss", "dropped", "load"}
    for step in steps:
        assert abs(sum(step["load"]) - 1) < 1e-5
        assert 0 <= step["dropped"] < 1
        assert step["balance_loss"] > 0.9
    for domain in p.domains:
        assert len(record["load"][domain]) == p.experts
        assert sum(record["load"][domain]) > 0
        assert 0 <= record["metrics"][domain]["contains"] <= 100
    assert record["active_parameters"] < record["parameters"]


def test_each_test_set_has_the_load_of_its_own_tokens(tiny, monkeypatch):
    def count_picks(model, *rest):
        model.tally = model.tally + torch.tensor([1, 2])
        return {}, pd.DataFrame({"id": ["a"]})

    monkeypatch.setattr(evaluate, "evaluate_test_set", count_picks)
    spec = plans.plan(tiny())[0]
    model = torch.nn.Linear(1, 1)
    _, load, _ = train.score_test_sets(spec, model, None, lambda line: None, False, {})
    assert load == dict.fromkeys(spec.tests, [1, 2])


def test_scores_of_a_router_that_draws_do_not_depend_on_what_was_scored_before(tiny):
    """Nor do the draws of a training on its evaluations."""
    params = tiny(experiments=["untuned"], eval_routing="random", threshold=1.0)
    spec = plans.plan(params)[-1]
    model, tokenizer = build.build_model(spec)
    rows = selection.draw_mixture(spec)[0][:8]
    before = torch.get_rng_state()
    first = evaluate.score_run_rows(model, tokenizer, spec, rows)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert evaluate.score_run_rows(model, tokenizer, spec, rows) == first
    # another run has other draws
    other = spec.model_copy(update={"seed": 1})
    assert evaluate.score_run_rows(model, tokenizer, other, rows) != first
    name, (dataset, tested) = next(iter(selection.load_test_sets(spec).items()))
    scores, _ = evaluate.evaluate_test_set(model, tokenizer, spec, name, dataset, tested)
    torch.rand(7)
    again, _ = evaluate.evaluate_test_set(model, tokenizer, spec, name, dataset, tested)
    assert again == scores


def test_going_on_from_fewer_blocks_is_refused(tiny):
    first = plans.plan(tiny())[0]
    child = first.model_copy(update={"start": first, "blocks": 2})
    train.train(first, progress=lambda line: None, keep_weights=True)
    with pytest.raises(UserError, match="cannot go on from v-db.*ask for no more blocks"):
        build.build_model(child)


@pytest.mark.parametrize(
    "first, second, bits",
    [
        ([0.5, 0.5, 0], [0.5, 0.5, 0], 0),
        ([1, 0], [0, 1], 1),
        ([0.75, 0.25], [0.25, 0.75], pytest.approx(1 - 0.811278, abs=1e-5)),
    ],
)
def test_experts_of_two_domains_have_their_mutual_information(first, second, bits):
    """first, second: the share of each domain's tokens that goes to each expert."""
    rows = []
    for name, shares in (("a", first), ("b", second)):
        rows += [{"set": name, "expert": e, "share": x} for e, x in enumerate(shares)]
    assert tables.mutual_information(pd.DataFrame(rows)) == bits


def test_the_log_has_the_means_over_the_steps_since_the_last_one():
    m = make_model()
    loss = BalanceLoss(0.5)
    steps = []
    for length in (24, 20):
        loss.loss(m, {}, m(**draw_batch(length)), 0)
        routing = m.routing
        steps.append(torch.stack([routing.balance_loss, routing.z_loss, routing.dropped]))
    logged = loss.read_log()
    expected = ((steps[0] + steps[1]) / 2).tolist()
    assert [logged[name] for name in ("balance_loss", "z_loss", "dropped")] == expected
    assert not torch.equal(*steps)
