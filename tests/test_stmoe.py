"""The ST-MoE layer against st-moe-pytorch, against a float64 loop, and at its limits."""

import copy

import pytest
import torch
from st_moe_pytorch import MoE as Peer

from qa_lib.models import st_moe
from qa_lib.settings.parameters import Layer

# Sequences, tokens of each, width, experts.
B, T, D, E = 3, 37, 16, 4
# The report's variant of the layer.
REPORT = {"eval_routing": "random", "route_padding": True, "density": "kept"}


def make_layer(**changes) -> st_moe.MoE:
    """Return a layer whose weights are the same each time."""
    torch.manual_seed(0)
    return st_moe.MoE(D, int(D * 8 / 3), Layer(**{"experts": E} | changes))


def draw_tokens(seed: int = 1) -> torch.Tensor:
    """Return random states of tokens, (B, T, D)."""
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))


def full_mask() -> torch.Tensor:
    """Return an attention mask without padding, (B, T)."""
    return torch.ones(B, T, dtype=torch.long)


def pair_weights(ours: st_moe.MoE, peer: Peer) -> list[tuple]:
    """Return the weights of our layer, each with the same weight of st-moe-pytorch's."""
    pairs = [(ours.router.weight, peer.gate.to_gates.weight)]
    for mine, expert in zip(ours.experts, peer.experts.experts, strict=True):
        theirs = expert.net
        pairs += [
            (mine.w1.weight, theirs[0].weight),
            (mine.w1.bias, theirs[0].bias),
            (mine.scale, theirs[1].mult_bias),
            (mine.w2.weight, theirs[2].weight),
            (mine.w2.bias, theirs[2].bias),
        ]
    return pairs


@pytest.mark.parametrize("top_n", [2, 3])
@pytest.mark.parametrize("train", [True, False])
def test_parity_with_st_moe_pytorch(top_n, train, monkeypatch):
    """Outputs, losses and gradients of the report's variant agree.

    Weights and random draws are the same, and there is no padding.
    """
    torch.manual_seed(0)
    peer = Peer(dim=D, num_experts=E, gating_top_n=top_n)
    ours = make_layer(top_n=top_n, **REPORT)
    pairs = pair_weights(ours, peer)
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs)
    draws = torch.rand(top_n, B, T)
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: draws)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *a, **kw: self.copy_(draws))
    peer.train(train)
    ours.train(train)
    peer_input = draw_tokens().requires_grad_()
    our_input = draw_tokens().requires_grad_()
    theirs = peer(peer_input)
    mine = ours(our_input, full_mask())
    torch.testing.assert_close(mine, theirs.outputs, atol=1e-5, rtol=1e-5)
    our_loss = mine.square().sum()
    peer_loss = theirs.outputs.square().sum()
    if train:
        routed = ours.routing
        torch.testing.assert_close(routed.balance_loss, theirs.balance_loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(routed.z_loss, theirs.router_z_loss, atol=1e-5, rtol=1e-5)
        auxiliary = 1e-2 * routed.balance_loss + 1e-3 * routed.z_loss
        torch.testing.assert_close(auxiliary, theirs.total_aux_loss)
        our_loss = our_loss + routed.balance_loss + routed.z_loss
        peer_loss = peer_loss + theirs.balance_loss + theirs.router_z_loss
    our_loss.backward()
    peer_loss.backward()
    torch.testing.assert_close(our_input.grad, peer_input.grad, atol=1e-5, rtol=1e-4)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def apply_expert(expert: st_moe.Expert, x: torch.Tensor) -> torch.Tensor:
    """Return what an expert makes of one token: W2 (scale * GELU(gate) * value) + b2."""
    value, gate = (expert.w1.weight @ x + expert.w1.bias).chunk(2)
    hidden = 0.5 * gate * (1 + torch.erf(gate / 2**0.5)) * value * expert.scale
    return expert.w2.weight @ hidden + expert.w2.bias


def activate_plainly(both: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return gelu(gate) * value * scale, as PyTorch differentiates it."""
    value, gate = both.chunk(2, -1)
    return torch.nn.functional.gelu(gate) * value * scale


def activate_and_differentiate(activate, both, scale, weights) -> list[torch.Tensor]:
    """Return an activation of a copy of `both`, and its gradients by `both` and by scale."""
    both = both.clone().requires_grad_()
    scale = scale.clone().requires_grad_()
    output = activate(both * 1, scale)
    gradients = torch.autograd.grad((output * weights).sum(), [both, scale])
    return [output.detach(), *gradients]


@pytest.mark.parametrize("part", [48, 100, 2**23])
@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 17, 32), (40, 32), (0, 32)])
def test_the_gated_activation_is_pytorch_s_to_the_last_bit(shape, precision, part, monkeypatch):
    monkeypatch.setattr(st_moe.GatedActivation, "PART", part)
    torch.manual_seed(3)
    both = torch.randn(*shape).to(precision)
    scale = torch.randn(16).to(precision)
    weights = torch.randn(*shape[:-1], 16).to(precision)
    expected = activate_and_differentiate(activate_plainly, both, scale, weights)
    ours = activate_and_differentiate(st_moe.GatedActivation.apply, both, scale, weights)
    for theirs, mine in zip(expected, ours, strict=True):
        assert torch.equal(mine, theirs)


def test_an_expert_keeps_its_inputs_and_its_activation_alone():
    """Of each hidden unit three numbers, where PyTorch's own functions keep five."""
    expert = st_moe.Expert(8, 64)
    x = torch.randn(32, 8, requires_grad=True)
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        expert(x)
    of_tokens = [size for size in kept.values() if size >= 32 * 64]
    assert sum(of_tokens) == 3 * 32 * 64


@torch.no_grad()
def route_by_loop(moe: st_moe.MoE, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the layer's output in evaluation, token by token and pick by pick, in float64."""
    W = moe.router.weight.double()
    r = moe.router.layer
    experts = copy.deepcopy(moe.experts).double()
    out = torch.zeros_like(x, dtype=torch.float64)
    for b in range(x.shape[0]):
        length = int(mask[b].sum())
        capacity = max(st_moe.MIN_CAPACITY, min(length, int(length * r.capacity_eval / r.experts)))
        p = (x[b].double() @ W.T).softmax(-1)
        taken = [0] * r.experts
        for n in range(r.top_n):
            for t in range(length):
                best = p[t].argsort(descending=True)[: r.top_n]
                e = int(best[n])
                g = p[t, best[n]] / p[t, best].sum()
                if (n == 0 or g > r.threshold) and taken[e] < capacity:
                    taken[e] += 1
                    out[b, t] += g * apply_expert(experts[e], x[b, t].double())
    return out


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_the_output_equals_that_of_a_float64_loop(factor):
    moe = make_layer(capacity_eval=factor).eval()
    mask = full_mask()
    mask[1, 20:] = 0
    mask[2, 5:] = 0
    expected = route_by_loop(moe, draw_tokens(), mask).float()
    torch.testing.assert_close(moe(draw_tokens(), mask), expected, atol=1e-5, rtol=1e-5)
    assert (moe.routing.dropped > 0) == (factor < 1)


def test_padding_changes_no_output_and_no_loss():
    # with so low a threshold no random draw decides
    moe = make_layer(threshold=1e-6)
    x = draw_tokens()
    mask = full_mask()
    mask[:, 30:] = 0
    for train in (True, False):
        moe.train(train)
        whole = moe(x, mask)
        losses = moe.routing[2:4]
        assert not whole[:, 30:].any()
        other = x.clone()
        other[:, 30:] = 100.0
        torch.testing.assert_close(moe(other, mask)[:, :30], whole[:, :30])
        torch.testing.assert_close(moe(x[:, :30], mask[:, :30]), whole[:, :30])
        torch.testing.assert_close(moe.routing[2:4], losses)
    # the report's variant routes padding
    assert make_layer(threshold=1e-6, **REPORT)(x, mask)[:, 30:].any()


def test_gradients_reach_the_router_and_every_expert():
    moe = make_layer()
    loss = (
        moe(draw_tokens(), full_mask()).square().sum()
        + moe.routing.balance_loss
        + moe.routing.z_loss
    )
    loss.backward()
    assert moe.router.weight.grad.abs().sum(1).all()
    assert all(parameter.grad.any() for parameter in moe.experts.parameters())


def test_bf16_autocast_changes_only_the_rounding():
    """Outputs and gradients are as near to those in fp32 as bf16 is. The gradients are fp32.

    The routing is the same, and one expert has no tokens.
    """
    results = []
    for autocast in (False, True):
        # without a second pick no random draw decides
        moe = make_layer(threshold=1e9)
        # all states are positive, so no token wants expert 0
        x = draw_tokens().abs().requires_grad_()
        with torch.no_grad():
            moe.router.weight[0] = -1.0
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = moe(x, full_mask())
        assert not moe.routing.load[0]
        out.square().sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in moe.parameters())])
    for full, half in zip(*results, strict=True):
        assert half.dtype == torch.float32
        assert (half - full).norm() <= 0.02 * full.norm()


def test_one_expert_with_room_is_the_dense_layer():
    moe = make_layer(experts=1, top_n=1, capacity_train=1.0)
    torch.testing.assert_close(moe(draw_tokens(), full_mask()), moe.experts[0](draw_tokens()))
    torch.testing.assert_close(moe.routing.balance_loss, torch.tensor(1.0))


def test_a_full_expert_drops_the_later_tokens():
    """All tokens want expert 0. It takes the first C of each sequence, and the rest have none."""
    # there is no second pick
    moe = make_layer(threshold=1e9, capacity_train=1.25)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0] = 1.0
    x = draw_tokens().abs()
    out = moe(x, full_mask())
    capacity = int(T * 1.25 / E)
    assert out[:, :capacity].any(-1).all()
    assert not out[:, capacity:].any()
    torch.testing.assert_close(moe.routing.dropped, torch.tensor(1 - capacity / T))
    torch.testing.assert_close(moe.routing.load, torch.tensor([1.0, 0, 0, 0]))
    # the balance loss is E times share times mean probability, of expert 0 alone
    p = (x @ moe.router.weight.T).softmax(-1)[..., 0].mean()
    for density, share in (("wanted", 1.0), ("kept", capacity / T)):
        moe.router.layer = moe.router.layer.model_copy(update={"density": density})
        moe(x, full_mask())
        torch.testing.assert_close(moe.routing.balance_loss, E * share * p)


def test_the_load_counts_the_picks_that_found_room_alone():
    """Of each sequence 30 tokens want expert 0, which takes fewer, and the others expert 1."""
    moe = make_layer(threshold=1e9, capacity_train=1.25)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0] = 1.0
        moe.router.weight[1] = -1.0
    x = draw_tokens().abs()
    x[:, 30:] *= -1
    moe(x, full_mask())
    kept = torch.tensor([int(T * 1.25 / E), T - 30, 0, 0])
    torch.testing.assert_close(moe.routing.load, kept / kept.sum())


def test_an_expert_has_dropout_in_training_alone():
    expert = make_layer(expert_dropout=0.5).experts[0]
    x = draw_tokens()
    assert not torch.equal(expert(x), expert(x))
    expert.eval()
    assert torch.equal(expert(x), expert(x))


def test_evaluation_is_deterministic_unless_the_report_s_routing_is_asked_for():
    ours = make_layer().eval()
    assert torch.equal(ours(draw_tokens(), full_mask()), ours(draw_tokens(), full_mask()))
    report = make_layer(eval_routing="random", threshold=0.9).eval()
    assert not torch.equal(report(draw_tokens(), full_mask()), report(draw_tokens(), full_mask()))


def test_training_depends_on_the_seed_alone():
    moe = make_layer()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(moe(draw_tokens(), full_mask()))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_an_expert_takes_four_tokens_however_short_a_sequence():
    """All six tokens want expert 0, whose even share would be one. There is no second pick."""
    moe = make_layer(threshold=1e9, capacity_train=1.25)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0] = 1.0
    out = moe(draw_tokens().abs()[:, :6], full_mask()[:, :6])
    assert out[:, :4].any(-1).all()
    assert not out[:, 4:].any()
