"""A linear layer with a sparse weight, in place of nn.Linear."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from vleff.choices import densest_sparse
from vleff.nn.modes import is_autocast, is_transformed, version_of
from vleff.ops.fused_linear import ACTIVATIONS, activate, fused_linear, pack_linear_weight, packs_linear_weight
from vleff.ops.masked_linear import MOST_FEW_TOKENS, Steps, Transposed, masked_linear, pack_masked_weight
from vleff.ops.masked_structure import MaskedStructure

_STRUCTURE = ("starts", "order", "block_columns", "sizes")


class _Prepared:
    """What is made from the weight when it is first needed: never saved, copied or pickled."""

    def __init__(self) -> None:
        self.structure: MaskedStructure | None = None
        self.transposed: Transposed | None = None
        self.steps: Steps | None = None
        self.dense: Tensor | None = None
        self.version: Any = None  # of the values from which `steps` and `dense` were made

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Prepared, ()


def weight_for(linear: nn.Linear, mask: Tensor) -> Tensor:
    """The weight of a linear layer, detached, after a check that it is one and that a mask fits it.

    Raises:
        TypeError, ValueError: `linear` is no nn.Linear, or `mask` not bool [out_features, in_features].
    """
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"argument 'linear': expected an nn.Linear, got {type(linear).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"argument 'mask': expected torch.bool, got {mask.dtype}")
    if mask.shape != linear.weight.shape:
        raise ValueError(f"argument 'mask': expected bool {list(linear.weight.shape)}, got {list(mask.shape)}")
    return linear.weight.detach()


def dense_copy(layer: Any) -> nn.Linear:
    """An nn.Linear with copies of a layer's `weight` and `bias`."""
    weight = layer.weight.detach()
    linear = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None, weight.device, weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if layer.bias is not None:
            linear.bias.copy_(layer.bias)
    return linear.train(layer.training)


class MaskedLinear(nn.Module):
    """activation(input @ weight.T + bias) + residual for a sparse weight, with the interface of nn.Linear.

    The weight's elements are a 1-D parameter, `values`; nothing else of the weight exists. So an optimizer
    holds a state for the elements only, and no step, decay or momentum brings another one to life. Where the
    elements stand is fixed and saved with them (buffers `starts`, `order`, `block_columns` and `sizes`).

    Weights with so few zeros that a dense product is faster (`vleff tune` measures from which share on) are
    multiplied dense. So is everything but float32, bfloat16 and float16 on the CPU, and forward-mode
    differentiation. The function stays the same.

    Inference of 1 or 2 tokens reads a copy of the values, made when it is first needed. A change in place is
    noticed; after one through `.data`, call `refresh()`. Under torch.compile no copy is made, and one made
    before is not used; under torch.distributed neither.

    Args:
        structure: where the elements stand, on the CPU.
        bias: whether there is a bias.
        device, dtype: of the parameters, which are not initialized.
        activation: "none", "gelu" (by the error function), "gelu_tanh", "relu", "silu" or "quick_gelu".

    Raises:
        ValueError: `activation` is something else.
    """

    starts: Tensor
    order: Tensor
    block_columns: Tensor
    sizes: Tensor

    def __init__(
        self,
        structure: MaskedStructure,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        activation: str = "none",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"argument 'activation': expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        super().__init__()
        self.in_features, self.out_features = structure.columns, structure.rows
        self.activation = activation
        self._densest = densest_sparse()
        self.values = Parameter(torch.empty(structure.elements, device=device, dtype=dtype))
        self.bias: Parameter | None
        self.register_parameter(
            "bias", Parameter(torch.empty(structure.rows, device=device, dtype=dtype)) if bias else None
        )
        self._set_structure(structure, device)

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor) -> "MaskedLinear":
        """A MaskedLinear with the weight's values where `mask` is True and a copy of the bias.

        Args:
            linear: an nn.Linear, which stays as it is.
            mask: bool [out_features, in_features].

        Raises:
            TypeError, ValueError: `linear` or `mask` is something else.
        """
        weight = weight_for(linear, mask)
        structure = MaskedStructure.from_mask(mask.cpu())
        activation = getattr(linear, "activation", "none")
        masked = cls(structure, linear.bias is not None, weight.device, weight.dtype, activation)
        with torch.no_grad():
            masked.values.copy_(masked.structure.gather(weight))
            if masked.bias is not None and linear.bias is not None:
                masked.bias.copy_(linear.bias)
        for parameter in masked.parameters():
            parameter.requires_grad_(linear.weight.requires_grad)
        return masked.train(linear.training)

    @classmethod
    def from_parts(cls, linear: nn.Linear, parts: Mapping[str, Tensor]) -> "MaskedLinear":
        """A MaskedLinear of the size of `linear` with the `state_dict` of another, `parts`.

        Raises:
            KeyError, RuntimeError, ValueError: a part is missing, or they do not fit together.
        """
        row_chunk, column_block = parts["sizes"].tolist()
        places = parts["starts"], parts["order"], parts["block_columns"]
        structure = MaskedStructure(linear.out_features, linear.in_features, row_chunk, column_block, *places)
        masked = cls(structure, "bias" in parts, dtype=parts["values"].dtype)
        masked.load_state_dict(dict(parts))
        return masked.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """An nn.Linear with copies of the parameters, zero where there is no element. The activation stays behind."""
        return dense_copy(self).requires_grad_(self.values.requires_grad)

    def with_activation(self, activation: str) -> "MaskedLinear":
        """A MaskedLinear that shares the parameters and buffers, whatever happens to them, with another activation.

        Raises:
            ValueError: `activation` is unknown.
        """
        twin = MaskedLinear(self.structure, False, "meta", activation=activation)
        twin._parameters, twin._buffers, twin._prepared = self._parameters, self._buffers, self._prepared
        return twin.train(self.training)

    @property
    def structure(self) -> MaskedStructure:
        """Where the elements stand."""
        if torch.compiler.is_compiling():  # which has to see the buffers
            return self._make_structure()
        if self._prepared.structure is None:
            self._prepared.structure = self._make_structure()
        return self._prepared.structure

    @property
    def weight(self) -> Tensor:
        """The dense weight [out_features, in_features], made anew at every access; differentiable."""
        return self.structure.scatter(self.values)

    @property
    def density(self) -> float:
        """The share of elements in the weight."""
        return self.values.numel() / (self.in_features * self.out_features)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """input [..., in_features], residual [..., out_features] or None -> [..., out_features]

        Raises:
            RuntimeError: an argument has a wrong shape, dtype or device.
        """
        values: Tensor = self.values
        bias: Tensor | None = self.bias
        if is_autocast(input):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, values = input.to(dtype), values.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if self._why_dense(input.device.type, values.dtype) is not None or is_transformed():
            return self._forward_dense(input, values, bias, residual)
        if not self._differentiates(input, residual):
            is_few = not torch.compiler.is_compiling() and input.numel() <= MOST_FEW_TOKENS * self.in_features
            steps = self._steps() if is_few and values is self.values else None
            return masked_linear(input, values, self.structure, bias, residual, self.activation, steps=steps)
        transposed = self._transposed() if input.requires_grad and torch.is_grad_enabled() else None
        out = activate(
            masked_linear(input, values, self.structure, bias, transposed=transposed),
            self.activation,  # autograd keeps what the activation was given
        )
        return out if residual is None else out + residual

    def _forward_dense(self, input: Tensor, values: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if self._differentiates(input, residual) or is_transformed():
            out = activate(functional.linear(input, self.structure.scatter(values), bias), self.activation)
            return out if residual is None else out + residual
        dense = self._dense() if values is self.values and not torch.compiler.is_compiling() else None
        weight = self.structure.scatter(values) if dense is None else dense
        return fused_linear(input, weight, bias, residual, self.activation)

    def runs_kernel(self, *tensors: Tensor | None) -> bool:
        """Whether a forward with these tensors is the kernel's alone: no gradients, casts or dense product."""
        values = self.values
        return (
            not self._differentiates(*tensors)
            and not is_autocast(values)
            and self._why_dense(values.device.type, values.dtype) is None
            and not is_transformed()
        )

    def _differentiates(self, *tensors: Tensor | None) -> bool:
        all_tensors = (*tensors, self.values, self.bias)
        return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in all_tensors)

    def _why_dense(self, device: str, dtype: torch.dtype) -> str | None:
        """Why the product is dense; None if it is sparse."""
        if device != "cpu" or dtype not in self._densest:
            return f"the kernel takes no {dtype} on {device}".replace("torch.", "")
        if self.density > self._densest[dtype]:
            return "a dense product is faster below the measured share of zeros"
        return None

    def _current(self) -> _Prepared | None:
        """What was made from the values as they are now; None where changes of them could not be noticed."""
        version, prepared = version_of(self.values), self._prepared
        if version is None:
            return None
        if prepared.version != version:
            prepared.steps = prepared.dense = None
            prepared.version = version
        return prepared

    def _steps(self) -> Steps | None:
        current = self._current()
        if current is not None and current.steps is None:
            current.steps = pack_masked_weight(self.values, self.structure)
        return None if current is None else current.steps

    def _dense(self) -> Tensor | None:
        current = self._current()
        if current is not None and current.dense is None:
            with torch.no_grad():
                packs = self.values.device.type == "cpu" and packs_linear_weight(self.values.dtype)
                current.dense = pack_linear_weight(self.weight) if packs else self.weight
        return None if current is None else current.dense

    def _transposed(self) -> Transposed:
        if self._prepared.transposed is None:
            self._prepared.transposed = self.structure.transposed()
        return self._prepared.transposed

    def _make_structure(self) -> MaskedStructure:
        if not torch.compiler.is_compiling() and self.sizes.device.type == "cpu":  # a twin may have loaded others
            self._row_chunk, self._column_block = self.sizes.tolist()
        places = self.starts, self.order, self.block_columns
        return MaskedStructure(self.out_features, self.in_features, self._row_chunk, self._column_block, *places)

    def _set_structure(self, structure: MaskedStructure, device: Any = None) -> None:
        self._row_chunk, self._column_block = structure.row_chunk, structure.column_block
        sizes = torch.tensor([structure.row_chunk, structure.column_block], dtype=torch.int32)
        tensors = (structure.starts, structure.order, structure.block_columns, sizes)
        for name, tensor in zip(_STRUCTURE, tensors, strict=True):
            self.register_buffer(name, tensor if device is None else tensor.to(device))
        self._prepared = _Prepared()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """As of nn.Module; the places of the elements are checked."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.sizes.device.type != "meta":
            self._row_chunk, self._column_block = self.sizes.tolist()
            self._prepared.clear()
            self.structure.check()

    def _apply(self, *args: Any, **kwargs: Any) -> "MaskedLinear":
        transposed, device = self._prepared.transposed, self.starts.device
        self._prepared.clear()
        super()._apply(*args, **kwargs)
        if self.starts.device == device:
            self._prepared.transposed = transposed
        return self

    def train(self, mode: bool = True) -> "MaskedLinear":
        """As of nn.Module. Training finds all that gradients need, also where torch.compile could not make it."""
        if mode and self.values.requires_grad and self._why_dense(self.starts.device.type, self.values.dtype) is None:
            self._transposed()
        return super().train(mode)

    def refresh(self) -> "MaskedLinear":
        """Drops what was made from the values; needed after they were changed through `.data`."""
        self._prepared.clear()
        return self

    def explain(self) -> str:
        """Which kernel a forward runs, and why."""
        zeros = f"{1 - self.density:.1%} zeros"
        reason = self._why_dense(self.values.device.type, self.values.dtype)
        return f"masked_linear, {zeros}" if reason is None else f"dense, {zeros}, because {reason}"

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"elements={self.values.numel()} ({self.density:.1%}), activation={self.activation}"
        )
