"""The projections of an attention block, for the heads that each sample keeps only."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vleff.nn.fused_linear import FusedLinear
from vleff.nn.head_masked_linear import HeadMaskedLinear, project_heads
from vleff.ops.fused_linear import fused_linear


class StackedProjection(NamedTuple):
    """Query, key and value projections whose weights stand in one Parameter of a module that is no linear layer.

    Attributes:
        owner: the module.
        weight, bias: names there; [3 * heads * head_dim, d] and [3 * heads * head_dim].
    """

    owner: nn.Module
    weight: str
    bias: str

    def __call__(self, values: Tensor) -> Tensor:
        """[tokens, d] -> [tokens, 3 * heads * head_dim]"""
        return fused_linear(values, *self.parameters().values())

    def parameters(self) -> dict[str, Any]:
        """By the names of a linear layer."""
        return {"weight": getattr(self.owner, self.weight), "bias": getattr(self.owner, self.bias)}


class _Entry(NamedTuple):
    layer: HeadMaskedLinear
    weight: Tensor  # held here, so that the linear layer, whose weight it is, leaves it plain


# A linear layer of a trimmed model stays as it is; this one, which shares its parameters, takes calls with a mask.
_layers: WeakKeyDictionary[nn.Module, _Entry] = WeakKeyDictionary()


def head_masked(linear: Any, heads: int, direction: str, stacked: int = 1) -> HeadMaskedLinear | None:
    """The layer that computes kept heads with the parameters of a projection, None if there can be none.

    Args:
        linear: a FusedLinear or nn.Linear without activation, or a StackedProjection.
        direction: "project" or "reduce".
        stacked: projections in its weight.
    """
    if torch.compiler.is_compiling():
        return None
    is_stacked = isinstance(linear, StackedProjection)
    weight = getattr(linear.owner, linear.weight) if is_stacked else linear.weight
    if weight.device.type != "cpu":  # there a library's dense product is faster, even where few heads are kept
        return None
    is_plain = type(linear) in (FusedLinear, nn.Linear) and getattr(linear, "activation", "none") == "none"
    if not (is_stacked or is_plain):
        return None
    owner = linear.owner if is_stacked else linear
    entry = _layers.get(owner)
    if entry is None or entry.weight is not weight:
        if is_stacked:
            layer = HeadMaskedLinear(weight.shape[1], weight.shape[0], heads, direction, stacked, device="meta")
            layer._parameters = linear.parameters()
        else:
            layer = HeadMaskedLinear.from_linear(linear, heads, direction, stacked)
        entry = _layers[owner] = _Entry(layer, weight)
    return entry.layer


def forget_head_masked(model: nn.Module) -> None:
    """Lets the linear layers in `model` have their weights to themselves again."""
    for module in model.modules():
        _layers.pop(module, None)


def project_kept_heads(
    parts: Any,
    values: Tensor,
    offsets: Tensor,
    memory_values: Tensor,
    memory_offsets: Tensor,
    head_mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Query, key and value, [tokens, heads, head_dim], zeros in dropped heads; None if they have to be made densely.

    Args:
        parts: the AttentionParts.
        values, offsets: of the tokens that ask.
        memory_values, memory_offsets: of those that are asked, the same for self attention.
        head_mask: bool [batch, heads].
    """
    heads, by_head = head_mask.shape[1], (-1, parts.head_dim)
    if parts.qkv is not None:
        stacked = head_masked(parts.qkv, heads, "project", 3)
        if stacked is None:
            return None
        return stacked(values, offsets, head_mask).unflatten(-1, (3, *by_head)).unbind(1)
    layers = [head_masked(linear, heads, "project") for linear in (parts.query, parts.key, parts.value)]
    kept = [layer for layer in layers if layer is not None]
    if len(kept) < 3:
        return None
    if memory_values is values:
        return project_heads(kept, values, offsets, head_mask).unflatten(-1, (3, *by_head)).unbind(1)
    query = kept[0](values, offsets, head_mask).unflatten(-1, by_head)
    key, value = (
        project_heads(kept[1:], memory_values, memory_offsets, head_mask).unflatten(-1, (2, *by_head)).unbind(1)
    )
    return query, key, value
