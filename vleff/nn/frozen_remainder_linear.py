"""A linear layer of which only the elements of a mask are trained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from vleff.nn.masked_linear import dense_copy, weight_for


class FrozenRemainderLinear(nn.Module):
    """input @ weight.T + bias, where some elements of the weight are a 1-D parameter and the others are fixed.

    So an optimizer holds a state for these elements only. The product is dense: this saves memory in training,
    not time.

    Args:
        weight: [out_features, in_features], the fixed weight; the elements' values in it do not count.
        positions: int32 [elements], their places in the flattened weight.
        bias: whether there is a bias.
    """

    def __init__(self, weight: Tensor, positions: Tensor, bias: bool = True) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.values = Parameter(weight.flatten()[positions.long()])
        self.bias = Parameter(weight.new_empty(self.out_features)) if bias else None
        self.frozen: Tensor
        self.positions: Tensor
        self.register_buffer("frozen", weight.detach().clone())
        self.register_buffer("positions", positions)

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor) -> "FrozenRemainderLinear":
        """One with the weight and a copy of the bias of `linear`, trainable where `mask` is True.

        Args:
            mask: bool [out_features, in_features].

        Raises:
            TypeError, ValueError: `linear` or `mask` is something else.
        """
        weight = weight_for(linear, mask)
        positions = mask.flatten().nonzero()[:, 0].to(weight.device, torch.int32)
        layer = cls(weight, positions, linear.bias is not None)
        if layer.bias is not None:
            layer.bias.data.copy_(linear.bias)
        return layer.train(linear.training)

    @classmethod
    def from_parts(cls, linear: nn.Linear, parts: Mapping[str, Tensor]) -> "FrozenRemainderLinear":
        """One with the `state_dict` of another, `parts`.

        Raises:
            KeyError, RuntimeError: a part is missing, or they do not fit together.
        """
        layer = cls(parts["frozen"], parts["positions"], "bias" in parts)
        layer.load_state_dict(dict(parts))
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """An nn.Linear with copies of the parameters."""
        return dense_copy(self)

    @property
    def weight(self) -> Tensor:
        """The whole weight [out_features, in_features], made anew at every access; differentiable."""
        flat = self.frozen.flatten().index_copy(0, self.positions.long(), self.values)
        return flat.view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in_features] -> [..., out_features]"""
        return functional.linear(input, self.weight, self.bias)

    def explain(self) -> str:
        """Which kernel a forward runs, and why."""
        return f"dense, {self.values.numel() / self.frozen.numel():.1%} trained, because the remainder is frozen"

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"elements={self.values.numel()}"
        )
