"""Hard masks with gradients."""

from typing import Any

import torch
from torch import Tensor

# A dropped key gets this weight, not 0: its attention vanishes, even where its logit is the largest by far, while the
# gradient of that weight, a difference of attentions divided by the weight, does not.
_LEAST = 1e-20


def straight_through(hard: Tensor, logits: Tensor) -> Tensor:
    """The bools `hard` as numbers, with the gradients of sigmoid(logits) (Bengio et al. 2013)."""
    soft = logits.sigmoid()
    return hard.to(soft.dtype) + (soft - soft.detach())


def with_logistic_noise(logits: Tensor) -> Tensor:
    """Logits whose signs are Bernoulli samples of their sigmoid (Maddison et al. 2017, "binary Concrete")."""
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return logits + uniform.log() - (-uniform).log1p()


class _KeyBias(torch.autograd.Function):
    """log(max(gate, least)), with the gradient 1 / max(gate, least) on both sides of the maximum."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor) -> Tensor:
        weights = gates.float().clamp(min=_LEAST)
        ctx.save_for_backward(weights)
        ctx.dtype = gates.dtype
        return weights.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return (grads[0] / weights).to(ctx.dtype)


def key_bias(gates: Tensor) -> Tensor:
    """What added to the logits of keys weighs them by their gates in the softmax.

        attention[i, j] = gate[j] exp(logits[i, j]) / sum over k of gate[k] exp(logits[i, k])

    The gradient of a gate of 0 is that of this formula: what attending to the key would change.

    Args:
        gates: [total], at least 0.

    Returns:
        float32 [total].
    """
    return _KeyBias.apply(gates)


class _Limited(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor) -> Tensor:
        ctx.save_for_backward(gates)
        return gates.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gates,) = ctx.saved_tensors
        if not gates.numel():
            return grads[0]
        dropped = gates == 0
        limit = grads[0].masked_fill(dropped, 0).abs().amax()
        return torch.where(dropped, grads[0].clamp(-limit, limit), grads[0])


def limited(gates: Tensor) -> Tensor:
    """The same gates; the gradient of one of 0 is cut off where it is larger than that of all others (reconstruction).

    That of `key_bias` grows with the exponential of how far a dropped key's logit is above those of the kept ones: a
    million times and more in models with sharp attention, which would leave nothing of all other gradients once they
    are clipped.
    """
    return _Limited.apply(gates)
