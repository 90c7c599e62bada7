"""The ST-MoE layer against st-moe-pytorch, a float64 loop and its own limits."""

import copy

import pytest
import torch
from st_moe_pytorch import MoE as Peer

from qa_lib.models import st_moe
from qa_lib.settings.parameters import Layer

B, T, D, E = 3, 37, 16, 4
REPORT = {
    "eval_routing": "random",
    "route_padding": True,
    "density": "kept",
}  # the report's variant


def layer(**changes) -> st_moe.MoE:
    torch.manual_seed(0)
    return st_moe.MoE(D, int(D * 8 / 3), Layer(**{"experts": E} | changes))


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))


def ones() -> torch.Tensor:
    return torch.ones(B, T, dtype=torch.long)


@pytest.mark.parametrize("top_n", [2, 3])
@pytest.mark.parametrize("train", [True, False])
def test_parity_with_st_moe_pytorch(top_n, train, monkeypatch):
    """The report's variant, weights copied, unpadded input, the same draws: outputs, losses and gradients agree."""
    torch.manual_seed(0)
    peer, ours = Peer(dim=D, num_experts=E, gating_top_n=top_n), layer(top_n=top_n, **REPORT)
    pairs = [(ours.router.weight, peer.gate.to_gates.weight)]
    for mine, theirs in zip(
        ours.experts, (expert.net for expert in peer.experts.experts), strict=True
    ):
        pairs += [
            (mine.w1.weight, theirs[0].weight),
            (mine.w1.bias, theirs[0].bias),
            (mine.scale, theirs[1].mult_bias),
            (mine.w2.weight, theirs[2].weight),
            (mine.w2.bias, theirs[2].bias),
        ]
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs)
    draws = torch.rand(top_n, B, T)
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: draws)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *a, **kw: self.copy_(draws))
    peer.train(train), ours.train(train)
    a, b = tokens().requires_grad_(), tokens().requires_grad_()
    theirs, mine = peer(a), ours(b, ones())
    torch.testing.assert_close(mine, theirs.outputs, atol=1e-5, rtol=1e-5)
    loss, peers = mine.square().sum(), theirs.outputs.square().sum()
    if train:
        routed = ours.routed
        torch.testing.assert_close(routed.balance_loss, theirs.balance_loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(routed.z_loss, theirs.router_z_loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            1e-2 * routed.balance_loss + 1e-3 * routed.z_loss, theirs.total_aux_loss
        )
        loss, peers = (
            loss + routed.balance_loss + routed.z_loss,
            peers + theirs.balance_loss + theirs.router_z_loss,
        )
    loss.backward(), peers.backward()
    torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def loop(moe: st_moe.MoE, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Evaluation routing by definition: token by token, pick by pick, in float64."""
    W, r, experts = (
        moe.router.weight.double(),
        moe.router.layer,
        copy.deepcopy(moe.experts).double(),
    )
    out = torch.zeros_like(x, dtype=torch.float64)
    for b in range(x.shape[0]):
        length = int(mask[b].sum())
        capacity = max(st_moe.MIN_CAPACITY, min(length, int(length * r.capacity_eval / r.experts)))
        p = (x[b].double() @ W.T).softmax(-1)
        taken = [0] * r.experts
        for n in range(r.top_n):
            for t in range(length):
                best = p[t].argsort(descending=True)[: r.top_n]
                e, g = int(best[n]), p[t, best[n]] / p[t, best].sum()
                if (n == 0 or g > r.threshold) and taken[e] < capacity:
                    taken[e] += 1
                    value, gate = (
                        experts[e].w1.weight @ x[b, t].double() + experts[e].w1.bias
                    ).chunk(2)
                    hidden = 0.5 * gate * (1 + torch.erf(gate / 2**0.5)) * value * experts[e].scale
                    out[b, t] += g * (experts[e].w2.weight @ hidden + experts[e].w2.bias)
    return out


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_equals_a_float64_loop(factor):
    moe, mask = layer(capacity_eval=factor).eval(), ones()
    mask[1, 20:], mask[2, 5:] = 0, 0
    found = moe(tokens(), mask)
    torch.testing.assert_close(found, loop(moe, tokens(), mask).float(), atol=1e-5, rtol=1e-5)
    assert (moe.routed.dropped > 0) == (factor < 1)


def test_padding_changes_no_output_and_no_loss():
    moe, x, mask = (
        layer(threshold=1e-6),
        tokens(),
        ones(),
    )  # so small a threshold that no draw decides
    mask[:, 30:] = 0
    for train in (True, False):
        moe.train(train)
        whole, losses = moe(x, mask), moe.routed[2:4]
        assert not whole[:, 30:].any()
        other = x.clone()
        other[:, 30:] = 100.0
        torch.testing.assert_close(moe(other, mask)[:, :30], whole[:, :30])
        torch.testing.assert_close(moe(x[:, :30], mask[:, :30]), whole[:, :30])
        torch.testing.assert_close(moe.routed[2:4], losses)
    moe = layer(threshold=1e-6, **REPORT)
    assert moe(x, mask)[:, 30:].any()  # the report's variant routes padding


def test_gradients_reach_the_router_and_every_expert():
    moe = layer()
    (moe(tokens(), ones()).square().sum() + moe.routed.balance_loss + moe.routed.z_loss).backward()
    assert moe.router.weight.grad.abs().sum(1).all()
    assert all(parameter.grad.any() for parameter in moe.experts.parameters())


def test_bf16_autocast_changes_only_the_rounding():
    """Same routing, an expert without tokens included; outputs and gradients within bf16 of fp32, gradients in fp32."""
    found, x, mask = [], tokens().abs(), ones()
    for autocast in (False, True):
        moe, given = (
            layer(threshold=1e9),
            x.clone().requires_grad_(),
        )  # no second pick: no draw decides
        with torch.no_grad():
            moe.router.weight[0] = -1.0  # x > 0: nobody wants expert 0
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = moe(given, mask)
        assert not moe.routed.load[0]
        out.square().sum().backward()
        found.append([out.detach(), given.grad, *(p.grad for p in moe.parameters())])
    for full, half in zip(*found, strict=True):
        assert half.dtype == torch.float32 and (half - full).norm() <= 0.02 * full.norm()


def test_one_expert_with_room_is_the_dense_layer():
    moe = layer(experts=1, top_n=1, capacity_train=1.0)
    torch.testing.assert_close(moe(tokens(), ones()), moe.experts[0](tokens()))
    torch.testing.assert_close(moe.routed.balance_loss, torch.tensor(1.0))


def test_a_full_expert_drops_the_later_tokens():
    """All tokens want expert 0 first: it takes the first C of each sequence, the rest have no first pick."""
    moe = layer(threshold=1e9, capacity_train=1.25)  # no second pick
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[0] = 1.0
    x = tokens().abs()
    out = moe(x, ones())
    capacity = int(T * 1.25 / E)
    assert out[:, :capacity].any(-1).all() and not out[:, capacity:].any()
    torch.testing.assert_close(moe.routed.dropped, torch.tensor(1 - capacity / T))
    torch.testing.assert_close(moe.routed.load, torch.tensor([1.0, 0, 0, 0]))
    p = (x @ moe.router.weight.T).softmax(-1)[..., 0].mean()
    for density, share in (
        ("wanted", 1.0),
        ("kept", capacity / T),
    ):  # E times share times mean p, of expert 0 alone
        moe.router.layer = moe.router.layer.model_copy(update={"density": density})
        moe(x, ones())
        torch.testing.assert_close(moe.routed.balance_loss, E * share * p)


def test_evaluation_is_deterministic_unless_the_report_s_routing_is_asked_for():
    for changes, same in (({}, True), ({"eval_routing": "random", "threshold": 0.9}, False)):
        moe = layer(**changes).eval()
        assert torch.equal(moe(tokens(), ones()), moe(tokens(), ones())) == same
    moe = layer()
    found = [torch.manual_seed(s) and moe(tokens(), ones()) for s in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
