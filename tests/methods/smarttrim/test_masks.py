"""Straight-through masks and their key bias, against the formula in fp64."""

import pytest
import torch

from vleff.ops.token_gather_attention import token_gather_attention
from vleff.smarttrim.masks import key_bias, limited, straight_through, with_logistic_noise

LENGTHS = [5, 1, 9]


def weighted_attention(q, k, v, gates):
    """gate[j] exp(logits[i, j]) / sum over k of gate[k] exp(logits[i, k]), sample by sample."""
    outs, start = [], 0
    for length in LENGTHS:
        rows = slice(start, start + length)
        start += length
        logits = torch.einsum("ihd,jhd->hij", q[rows], k[rows]) * q.shape[-1] ** -0.5
        weights = gates[rows] * (logits - logits.amax(-1, keepdim=True).detach()).exp()
        outs.append(torch.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdim=True), v[rows]))
    return torch.cat(outs)


@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_gradients_of_hidden_keys_are_those_of_the_formula(spread):
    total = sum(LENGTHS)
    q, k, v, grad = (torch.randn(total, 3, 16, dtype=torch.float64) for _ in range(4))
    q = q * spread
    gates = (torch.rand(total) < 0.5).double()
    gates[[0, 5, 6]] = 1  # the first of each sample
    gates.requires_grad_()
    expected = weighted_attention(q, k, v, gates)
    (expected_grad,) = torch.autograd.grad(expected, gates, grad)
    ours = gates.detach().float().requires_grad_()
    offsets = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    out, _, _ = token_gather_attention(q.float(), k.float(), v.float(), offsets, offsets, 9, 9, key_bias=key_bias(ours))
    (actual_grad,) = torch.autograd.grad(out, ours, grad.float())
    torch.testing.assert_close(out.double(), expected.detach(), atol=2e-6, rtol=1e-5)
    scale = float(expected_grad.abs().max())
    torch.testing.assert_close(actual_grad.double(), expected_grad, atol=2e-5 * scale, rtol=1e-4)
    assert expected_grad[gates == 0].abs().max() > 1e-2 * scale


def test_hidden_keys_change_nothing():
    q, k, v = (torch.randn(5, 2, 16) * 4 for _ in range(3))
    gates = torch.tensor([1.0, 0, 1, 0, 1])
    kept = gates.bool()
    whole, short = (torch.tensor([0, length], dtype=torch.int32) for length in (5, 3))
    masked, _, _ = token_gather_attention(q, k, v, whole, whole, 5, 5, key_bias=key_bias(gates))
    gathered, _, _ = token_gather_attention(q, k[kept], v[kept], whole, short, 5, 3)
    torch.testing.assert_close(masked, gathered, atol=1e-6, rtol=1e-6)


def test_straight_through_is_hard_with_soft_gradients():
    logits = torch.tensor([-3.0, -0.1, 0.2, 50.0], requires_grad=True)
    hard = straight_through(logits > 0, logits)
    assert hard.tolist() == [0, 0, 1, 1]
    hard.sum().backward()
    soft = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, soft * (1 - soft))


def test_noise_keeps_with_the_probability_of_the_logit():
    logits = torch.linspace(-3, 3, 7)[:, None].expand(7, 20000)
    share = (with_logistic_noise(logits) > 0).double().mean(1)
    torch.testing.assert_close(share, logits[:, 0].double().sigmoid(), atol=0.02, rtol=0)


def test_a_dropped_key_above_all_others_does_not_drown_their_gradients():
    keys, values = torch.tensor([0.1, -0.2, 0.3, 30.0]), torch.tensor([0.5, -1.0, 2.0, 3.0])
    gates = torch.tensor([1.0, 1, 1, 0], requires_grad=True)
    grads = []
    for limit in (lambda gates: gates, limited):
        attention = (keys + key_bias(limit(gates))).softmax(0)
        grads += torch.autograd.grad((attention * values).sum(), gates)
    assert grads[0][3] > 1e10
    assert torch.equal(grads[1][:3], grads[0][:3]) and grads[1][3] == grads[1][:3].abs().max() > 0
    assert torch.equal(limited(gates), gates)
