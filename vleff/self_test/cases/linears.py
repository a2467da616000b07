"""Dense products: fused_linear, residual_layer_norm, head-masked products, ragged_lstm."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from vleff.ops import (
    fused_linear,
    fused_linear_reference,
    head_masked_project,
    head_masked_project_reference,
    head_masked_reduce,
    head_masked_reduce_reference,
    pack_head_masked_weight,
    pack_linear_weight,
    packs_linear_weight,
    ragged_lstm,
    ragged_lstm_reference,
    residual_layer_norm,
    residual_layer_norm_reference,
)
from vleff.ops.fused_linear import ACTIVATIONS
from vleff.self_test.case import Case, Draw, offsets_of

ROWS, WIDTH, FEATURES = 35, 70, 90
LENGTHS = (5, 0, 70, 3)
HEADS, HEAD_DIM, PARTS = 4, 20, 3


def cases() -> Iterator[Case]:
    """Every activation, both directions of head-masked products, plain and packed weights."""
    draw = Draw(2)
    fused: dict[str, Any] = {
        "input": draw.leaf(ROWS, WIDTH),
        "weight": draw.leaf(FEATURES, WIDTH, scale=0.2),
        "bias": draw.leaf(FEATURES),
        "residual": draw.leaf(ROWS, FEATURES),
    }
    for activation in ACTIVATIONS:
        call, reference = (partial(f, activation=activation) for f in (fused_linear, fused_linear_reference))
        yield Case("fused_linear", activation, call, reference, fused)
    constant = fused | {"weight": fused["weight"].detach()}
    yield Case("pack_linear_weight", "packed weight", _packed_fused_linear, fused_linear_reference, constant)

    for name, residual in (("with residual", draw.leaf(ROWS, WIDTH)), ("without residual", None)):
        norm = {
            "input": draw.leaf(ROWS, WIDTH),
            "residual": residual,
            "weight": draw.leaf(WIDTH),
            "bias": draw.leaf(WIDTH),
            "eps": 1e-5,
            "return_sum": residual is not None,
        }
        yield Case("residual_layer_norm", name, residual_layer_norm, residual_layer_norm_reference, norm)

    yield from _head_masked(draw)
    for directions in (1, 2):
        yield _lstm(draw, directions)


def _packed_fused_linear(input: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """With a packed weight where this processor packs the dtype."""
    packed = pack_linear_weight(weight) if packs_linear_weight(weight.dtype) else weight
    return fused_linear(input, packed, bias, residual)


def _head_masked(draw: Draw) -> Iterator[Case]:
    tokens, features = sum(LENGTHS), HEADS * HEAD_DIM
    masked = {"offsets": offsets_of(LENGTHS), "head_mask": draw.chances(0.6, len(LENGTHS), HEADS)}
    project: dict[str, Any] = {
        "input": draw.leaf(tokens, WIDTH),
        "weight": draw.leaf(PARTS * features, WIDTH),
        "bias": draw.leaf(PARTS * features),
        "parts": PARTS,
        **masked,
    }
    reduce: dict[str, Any] = {
        "input": draw.leaf(tokens, features),
        "weight": draw.leaf(WIDTH, features),
        "bias": draw.leaf(WIDTH),
        "residual": draw.leaf(tokens, WIDTH),
        **masked,
    }
    gathered = {"input": draw.leaf(tokens + 9, WIDTH), "index": draw.integers(tokens + 9, tokens)}
    every_head = {"head_mask": None}
    packed = {"weight": project["weight"].detach(), "input": project["input"].detach()}
    for name, change in (("dropped heads", {}), ("gathered rows", gathered), ("all heads", every_head)):
        arguments = project | change
        yield Case("head_masked_project", name, head_masked_project, head_masked_project_reference, arguments)
    for name, change in (("dropped heads", {}), ("all heads", every_head)):
        yield Case("head_masked_reduce", name, head_masked_reduce, head_masked_reduce_reference, reduce | change)
    yield Case("pack_head_masked_weight", "project", _packed_project, head_masked_project_reference, project | packed)
    constant = {name: reduce[name].detach() for name in ("weight", "input")}
    yield Case("pack_head_masked_weight", "reduce", _packed_reduce, head_masked_reduce_reference, reduce | constant)


def _packed_project(weight: Tensor, **arguments: Any) -> Tensor:
    packed = pack_head_masked_weight(weight, "project", HEADS, PARTS)
    return head_masked_project(weight=packed, **arguments)


def _packed_reduce(weight: Tensor, **arguments: Any) -> Tensor:
    return head_masked_reduce(weight=pack_head_masked_weight(weight, "reduce", HEADS), **arguments)


def _lstm(draw: Draw, directions: int) -> Case:
    width, lengths = 21, (5, 0, 9, 3)
    arguments = {
        "gates": draw.leaf(sum(lengths), directions * 4 * width),
        "weight": draw.leaf(directions, 4 * width, width, scale=width**-0.5),
        "offsets": offsets_of(lengths),
        "max_length": max(lengths),
        "initial_hidden": draw.leaf(len(lengths), directions * width),
        "initial_cell": draw.constant(len(lengths), directions * width).float().requires_grad_(),
    }
    return Case("ragged_lstm", f"{directions} directions", ragged_lstm, _lstm_reference, arguments)


def _lstm_reference(**arguments: Any) -> tuple[Tensor, Tensor]:
    """Without gradients through the cells, which the op has not."""
    hidden, cell = ragged_lstm_reference(**arguments)
    return hidden, cell.detach()
