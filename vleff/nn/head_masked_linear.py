"""Linear layers that compute only the attention heads that each sample keeps, in place of nn.Linear."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vleff._library import DEVICES
from vleff.nn.fused_linear import FusedLinear
from vleff.nn.modes import is_autocast, is_called_plainly, is_transformed, version_of
from vleff.ops.head_masked_linear import (
    head_masked_project,
    head_masked_project_reference,
    head_masked_reduce,
    head_masked_reduce_reference,
    pack_head_masked_weight,
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _PackedCopy:
    """The packed copy of one or several weights: never saved, copied or pickled."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None
        self.version: Any = None  # of the weights that it was made from

    def __reduce__(self) -> tuple[Any, ...]:
        return _PackedCopy, ()


class HeadMaskedLinear(nn.Linear):
    """A projection to attention heads, or from them, with the parameters of nn.Linear.

    It computes `vleff.ops.head_masked_project` (direction "project": query, key and value) or
    `vleff.ops.head_masked_reduce` (direction "reduce": output projection): nothing is spent on a (sample, head) that
    a head mask drops. `project_heads` runs several layers that share input and head mask as one.

    Inference (no input or parameter requires a gradient, or gradients are disabled) reads a packed copy of the
    weight, made when it is first needed, as large as the weight. A change of the weight in place is noticed; after
    one through `.data`, call `refresh()`. On a GPU, under torch.compile and torch.distributed no copy is made or used.
    Everything but float32, bfloat16 and float16 on the CPU or, if vleff was built with CUDA, a GPU, autocast and
    forward-mode differentiation run plain torch, which computes all heads. The function stays the same.

    Args:
        in_features, out_features, bias, device, dtype: as of nn.Linear. To project, out_features is
            parts * heads * head_dim; to reduce, in_features is heads * head_dim.
        heads: number of heads.
        direction: "project" or "reduce".
        parts: projections that are stacked in the weight and share the head mask; 1 to reduce.

    Raises:
        ValueError: the features do not divide by the heads, or `direction` or `parts` is something else.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        heads: int,
        direction: str = "project",
        parts: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if direction not in ("project", "reduce"):
            raise ValueError(f"argument 'direction': expected project or reduce, got {direction!r}")
        if parts < 1 or (direction == "reduce" and parts != 1):
            raise ValueError(f"argument 'parts': expected at least 1, and 1 to reduce, got {parts}")
        features = out_features if direction == "project" else in_features
        if heads < 1 or features < 1 or features % (parts * heads):
            raise ValueError(f"argument 'heads': expected a number that divides {features} / {parts}, got {heads}")
        super().__init__(in_features, out_features, bias, device, dtype)
        self.heads, self.direction, self.parts = heads, direction, parts
        self._packed, self._packed_together = _PackedCopy(), _PackedCopy()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, heads: int, direction: str = "project", parts: int = 1
    ) -> "HeadMaskedLinear":
        """A HeadMaskedLinear with the Parameter objects of `linear`, which shares them from now on.

        Both modules stay usable; what happens to one's parameters happens to the other's. Hooks stay behind. Of a
        FusedLinear the weight becomes plain; calling both in turns packs and unpacks it every time.

        Raises:
            TypeError: `linear` is no nn.Linear or FusedLinear with a weight of its own, or computes something else.
            ValueError: `heads`, `direction` or `parts` does not fit.
        """
        forward = getattr(type(linear), "forward", None)
        is_plain = forward is nn.Linear.forward or (forward is FusedLinear.forward and linear.activation == "none")
        if not isinstance(linear, nn.Linear) or not is_plain or "weight" not in linear._parameters:
            raise TypeError(
                "argument 'linear': expected an nn.Linear, or a FusedLinear without activation, with a weight of its "
                f"own, got {type(linear).__name__}"
            )
        masked = cls(linear.in_features, linear.out_features, heads, direction, parts, device="meta")
        masked._parameters = linear._parameters
        return masked.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """An nn.Linear with the same Parameter objects."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear._parameters = dict(self._parameters.items())
        return linear.train(self.training)

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        head_mask: Tensor | None = None,
        *,
        index: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Computes the heads that each sample keeps; without `offsets` all, for an input of any shape as nn.Linear.

        Args:
            input: [tokens, in_features]; with `index` [rows, in_features]; without `offsets` [..., in_features].
            offsets: int32 [batch + 1], where each sample's tokens begin.
            head_mask: bool [batch, heads], False where a head is dropped; None keeps all.
            index: int32 or int64 [tokens], which rows of `input` the tokens are; to project only.
            residual: as the result, added; to reduce only.

        Returns:
            [tokens, out_features], without `offsets` [..., out_features]; to project, zeros in dropped heads.

        Raises:
            RuntimeError: an argument has a wrong shape, dtype, device or value.
            TypeError: an argument was given that the direction does not take, or not without `offsets`.
        """
        unwanted = {"residual": residual} if self.direction == "project" else {"index": index}
        if offsets is None:
            unwanted |= {"head_mask": head_mask, "index": index}
        for name, value in unwanted.items():
            if value is not None:
                given = "without offsets" if offsets is None else f"as the direction is {self.direction}"
                raise TypeError(f"argument '{name}': expected None, {given}, got a tensor")
        if offsets is None:
            rows = input.reshape(-1, input.shape[-1])
            added = None if residual is None else residual.reshape(-1, residual.shape[-1])
            one_sample = torch.arange(2, dtype=torch.int32, device=input.device) * rows.shape[0]
            return self(rows, one_sample, residual=added).view(*input.shape[:-1], self.out_features)
        if self.direction == "project":
            return project_heads([self], input, offsets, head_mask, index)
        weight: Tensor = self.weight
        if _takes_plain_torch(input, weight):
            return head_masked_reduce_reference(input, weight, offsets, head_mask, self.bias, residual)
        if not _differentiates(input, residual, weight, self.bias):
            weight = _packed_or_plain(self._packed, [self])
        return head_masked_reduce(input, weight, offsets, head_mask, self.bias, residual)

    def refresh(self) -> "HeadMaskedLinear":
        """Drops what was made from the weight; needed after it was changed through `.data`."""
        self._packed, self._packed_together = _PackedCopy(), _PackedCopy()
        return self

    def explain(self) -> str:
        """Which kernel an inference forward runs, and why."""
        weight = self.weight
        if weight.device.type not in DEVICES or weight.dtype not in _DTYPES:
            return f"plain torch, because the kernel takes no {weight.dtype} on {weight.device}".replace("torch.", "")
        return f"head_masked_{self.direction}, {self.heads} heads"

    def extra_repr(self) -> str:
        parts = f", parts={self.parts}" if self.parts > 1 else ""
        return f"{super().extra_repr()}, heads={self.heads}, direction={self.direction}{parts}"


def project_heads(
    layers: Sequence[HeadMaskedLinear],
    input: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """torch.cat([layer(input, offsets, head_mask, index=index) for layer in layers], 1), bit for bit, as one product.

    The input is read once for query, key and value. Layers with hooks, or with a forward of their own, are called.

    Args:
        layers: at least one, which project the same width to as many heads of the same size.
        input, offsets, head_mask, index: as of HeadMaskedLinear.

    Returns:
        [tokens, features of all layers]

    Raises:
        ValueError: the layers do not fit together.
        RuntimeError: as of HeadMaskedLinear.
    """
    first = layers[0]
    for layer in layers:
        fits = layer.direction == "project" and layer.in_features == first.in_features and layer.heads == first.heads
        if not fits or layer.out_features * first.parts != first.out_features * layer.parts:
            raise ValueError(f"argument 'layers': expected layers that project alike, got {first} and {layer}")
    if len(layers) > 1 and not all(is_called_plainly(layer, HeadMaskedLinear) for layer in layers):
        return torch.cat([layer(input, offsets, head_mask, index=index) for layer in layers], 1)
    parts = sum(layer.parts for layer in layers)
    biases = [layer.bias for layer in layers]
    bias: Tensor | None = biases[0]
    if len(layers) > 1 and any(b is not None for b in biases):
        pieces = zip(biases, layers, strict=True)
        bias = torch.cat([layer.weight.new_zeros(layer.out_features) if b is None else b for b, layer in pieces])
    weight: Tensor
    if _takes_plain_torch(input, first.weight):
        weight = _stacked(layers)
        return head_masked_project_reference(input, weight, offsets, head_mask, bias, index, parts, first.heads)
    if _differentiates(input, bias, *(layer.weight for layer in layers)):
        weight = _stacked(layers)
    else:
        weight = _packed_or_plain(first._packed if len(layers) == 1 else first._packed_together, layers)
    return head_masked_project(input, weight, offsets, head_mask, bias, index, parts, first.heads)


def _stacked(layers: Sequence[HeadMaskedLinear]) -> Tensor:
    return layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])


def _packed_or_plain(copy: _PackedCopy, layers: Sequence[HeadMaskedLinear]) -> Tensor:
    """The weights in one: packed, where changes of them are noticed, otherwise plain."""
    if torch.compiler.is_compiling() or layers[0].weight.device.type != "cpu":
        return _stacked(layers)
    versions = [version_of(layer.weight) for layer in layers]
    if None in versions:
        return _stacked(layers)
    version = (*versions, torch.ops.vleff.cpu_isa())
    if copy.tensor is None or copy.version != version:
        with torch.inference_mode(False), torch.no_grad():
            parts = sum(layer.parts for layer in layers)
            copy.tensor = pack_head_masked_weight(_stacked(layers), layers[0].direction, layers[0].heads, parts)
        copy.version = version
    return copy.tensor


def _takes_plain_torch(input: Tensor, weight: Tensor) -> bool:
    return input.device.type not in DEVICES or weight.dtype not in _DTYPES or is_autocast(input) or is_transformed()


def _differentiates(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
