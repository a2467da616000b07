"""A linear layer with fused bias, activation and residual, in place of nn.Linear."""

from typing import Any

import torch
from torch import Tensor, nn

from vleff.nn.modes import has_tangents, is_autocast, is_transformed
from vleff.nn.packable_parameters import PackableParameters
from vleff.ops.fused_linear import ACTIVATIONS, activate, fused_linear


class FusedLinear(nn.Linear):
    """activation(input @ weight.T + bias) + residual, with the interface and the parameters of nn.Linear.

    Inference (no input or parameter requires a gradient, or gradients are disabled; no autocast) runs
    `vleff.ops.fused_linear`, and so does training in float32, forward and backward; everything else plain
    torch. An inference forward packs the weight for the
    kernel where that is faster, in place of the plain one, so that memory does not grow. Whatever reaches
    for the parameters (`weight`, `state_dict`, `parameters`, `load_state_dict`, `.to`, copying, pickling,
    ...) finds them plain, bit for bit; the next inference forward packs again. A weight stays plain while
    anything outside the module refers to it: an optimizer, a variable, a tied layer, a view such as
    `weight.data` or a NumPy array.

    So every change of the weight is seen, in place or through `.data`. Under torch.compile nothing is packed;
    a weight that an earlier forward packed is used as it is.

    Args:
        in_features, out_features, bias, device, dtype: as of nn.Linear.
        activation: "none", "gelu" (by the error function), "gelu_tanh", "relu", "silu" or "quick_gelu".

    Raises:
        ValueError: `activation` is something else.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        activation: str = "none",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"argument 'activation': expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation
        self._share(self)

    @classmethod
    def from_linear(cls, linear: nn.Linear, activation: str = "none") -> "FusedLinear":
        """A FusedLinear with the Parameter objects of `linear`, which shares them from now on.

        Both modules stay usable; what happens to one's parameters happens to the other's. Hooks stay behind.

        Raises:
            TypeError: `linear` is no nn.Linear with a weight of its own, or computes something else.
            ValueError: `activation` is unknown.
        """
        if (
            not isinstance(linear, nn.Linear)
            or type(linear).forward is not nn.Linear.forward
            or "weight" not in linear._parameters
        ):
            raise TypeError(
                "argument 'linear': expected an nn.Linear with the forward and a weight of nn.Linear, "
                f"got {type(linear).__name__}"
            )
        fused = cls(linear.in_features, linear.out_features, device="meta", activation=activation)
        fused._share(linear)
        return fused.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """An nn.Linear with the same Parameter objects. The activation is not part of it."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        self.move_parameters_to(linear)
        return linear.train(self.training)

    def move_parameters_to(self, linear: nn.Linear) -> None:
        """Gives `linear` the Parameter objects, plain; nothing packs them while both modules live."""
        linear._parameters = self._parameters.plain()

    def _share(self, linear: nn.Linear) -> None:
        if not isinstance(linear._parameters, PackableParameters):
            linear._parameters = PackableParameters(linear._parameters)
        self._parameters: PackableParameters = linear._parameters
        self._packed = self._parameters.packed

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """input [..., in_features], residual [..., out_features] or None -> [..., out_features]

        Raises:
            RuntimeError: an argument has a wrong shape, dtype or device.
        """
        if self._differentiates(input, residual):
            return self._forward_for_gradients(input, residual)
        packed = self._packed.tensor
        if packed is None and not torch.compiler.is_compiling():
            packed = self._parameters.pack()
        return fused_linear(input, self.weight if packed is None else packed, self.bias, residual, self.activation)

    def _forward_for_gradients(self, input: Tensor, residual: Tensor | None) -> Tensor:
        if self._takes_plain_torch(input):
            out = nn.functional.linear(input, self.weight, self.bias)
        elif self.activation == "none":
            return fused_linear(input, self.weight, self.bias, residual)
        else:  # autograd keeps what the activation was given
            out = fused_linear(input, self.weight, self.bias)
        out = activate(out, self.activation)
        return out if residual is None else out + residual

    def _takes_plain_torch(self, input: Tensor) -> bool:
        """Whether the product is torch's: for its casts, its transforms, and dtypes in which it is as fast."""
        return input.dtype != torch.float32 or input.device.type != "cpu" or is_autocast(input) or is_transformed()

    def _differentiates(self, input: Tensor, residual: Tensor | None) -> bool:
        """Whether plain torch has to run: for gradients or tangents, or for the casts of autocast."""
        if is_autocast(input) or has_tangents():
            return True
        if not torch.is_grad_enabled():
            return False
        return (
            input.requires_grad or (residual is not None and residual.requires_grad) or self._parameters.requires_grad()
        )

    def train(self, mode: bool = True) -> "FusedLinear":
        """As of nn.Module. Training finds the weight plain, also where torch.compile could not make it so."""
        if mode:
            self.unpack_()
        return super().train(mode)

    @property
    def is_packed(self) -> bool:
        """Whether the weight is packed now."""
        return self._packed.tensor is not None

    def pack_(self) -> "FusedLinear":
        """Packs the weight now, not at the next inference forward; it stays plain where it has to."""
        self._parameters.pack()
        return self

    def unpack_(self) -> "FusedLinear":
        """Makes the weight plain, until the next inference forward."""
        self._parameters.unpack()
        return self

    def refresh(self) -> "FusedLinear":
        """Makes the weight plain, until the next inference forward.

        Also takes up packing where it was given up because the weight was read after every forward.
        """
        self._parameters.unpack()
        self._parameters.packings = 0
        return self

    def explain(self) -> str:
        """Which kernel an inference forward runs, and why."""
        if self._packed.tensor is not None:
            return "fused_linear, weight packed"
        reason = self._parameters.why_plain()
        if reason is None:
            return "fused_linear, weight to be packed at the next inference forward"
        return f"fused_linear, weight plain, because {reason}"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"
