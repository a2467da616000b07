"""masked_linear and masked_feed_forward."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from vleff.ops import (
    MaskedStructure,
    masked_feed_forward,
    masked_feed_forward_reference,
    masked_linear,
    masked_linear_reference,
    pack_masked_weight,
)
from vleff.ops.fused_linear import ACTIVATIONS
from vleff.self_test.case import Case, Draw

TOKENS, COLUMNS, ROWS = 70, 150, 90


def cases() -> Iterator[Case]:
    """Dense and thin structures, which have blocks of their own sizes; every activation; few tokens."""
    draw = Draw(3)
    for density in (0.3, 0.1):
        arguments = _linear(draw, TOKENS, density)
        yield Case("masked_linear", f"density {density}", masked_linear, _linear_reference, arguments)
    for activation in ACTIVATIONS:
        arguments = _without_gradients(_linear(draw, TOKENS, 0.3))
        call, reference = (partial(f, activation=activation) for f in (masked_linear, _linear_reference))
        yield Case("masked_linear", f"activation {activation}", call, reference, arguments)
    few = _without_gradients(_linear(draw, 2, 0.3))
    yield Case("masked_linear", "2 tokens", masked_linear, _linear_reference, few)
    # the copy by steps is made and read on the CPU alone
    yield Case("masked_feed_forward", "2 tokens by steps", _by_steps, _linear_reference, few)
    yield Case("masked_feed_forward", "gelu", masked_feed_forward, masked_feed_forward_reference, _feed_forward(draw))


def _linear(draw: Draw, tokens: int, density: float) -> dict[str, Any]:
    structure = MaskedStructure.from_mask(draw.chances(density, ROWS, COLUMNS))
    return {
        "input": draw.leaf(tokens, COLUMNS),
        "values": draw.leaf(structure.elements),
        "structure": structure,
        "bias": draw.leaf(ROWS),
        "residual": draw.leaf(tokens, ROWS),
        "transposed": structure.transposed(),
    }


def _without_gradients(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: x.detach() if isinstance(x, Tensor) else x for name, x in arguments.items()}


def _linear_reference(transposed: Any, **arguments: Any) -> Tensor:
    return masked_linear_reference(**arguments)


def _by_steps(values: Tensor, structure: MaskedStructure, **arguments: Any) -> Tensor:
    return masked_linear(values=values, structure=structure, steps=pack_masked_weight(values, structure), **arguments)


def _feed_forward(draw: Draw) -> dict[str, Any]:
    first = MaskedStructure.from_mask(draw.chances(0.3, ROWS, COLUMNS))
    second = MaskedStructure.from_mask(draw.chances(0.3, COLUMNS, ROWS))
    return {
        "input": draw.constant(TOKENS, COLUMNS),
        "first": (draw.constant(first.elements, scale=0.2), first),
        "second": (draw.constant(second.elements, scale=0.2), second),
        "first_bias": draw.constant(ROWS),
        "second_bias": draw.constant(COLUMNS),
        "residual": draw.constant(TOKENS, COLUMNS),
        "activation": "gelu",
    }
