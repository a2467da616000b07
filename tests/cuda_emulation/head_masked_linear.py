"""head_masked_linear on the emulated device: the arguments of its ops, and the gradients that these make up."""

from typing import Any

import torch
from torch import Tensor

from .building import EmulatedLibrary
from .launching import Field, Results, boolean, data_type, int32, int64, launch_alike, pointer, struct

DIRECTIONS = ("project", "reduce")  # in the order of vleff::HeadMaskedDirection


def first_of(name: str, tensor: Tensor | None) -> Field:
    return pointer(None) if tensor is None else pointer(name, tensor.storage_offset() * tensor.itemsize)


def head_features(features: int, parts: int, head_mask: Tensor | None, width: int) -> Field:
    heads = 1 if head_mask is None else head_mask.shape[1]
    return struct(*map(int64, (parts, heads, features // (parts * heads), width)))


def mask_of(offsets: Tensor, head_mask: Tensor | None) -> Field:
    heads = 1 if head_mask is None else head_mask.shape[1]
    kept = first_of("head_mask", head_mask)
    return struct(int64(offsets.numel() - 1), int64(heads), first_of("offsets", offsets), kept)


def row_index(index: Tensor | None) -> Field:
    return struct(first_of("index", index), boolean(index is not None and index.dtype == torch.int64))


def emulated_product(
    build: EmulatedLibrary,
    direction: str,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    index: Tensor | None = None,
    parts: int = 1,
    **options: Any,
) -> Tensor:
    """`vleff.ops.head_masked_project` or `head_masked_reduce`; the same bits in every schedule.

    Raises:
        EmulationError: with what the emulator reports.
    """
    project = direction == "project"
    made, given = weight.shape
    tokens = len(input if index is None else index)
    problem = [
        int32(DIRECTIONS.index(direction)),
        data_type(input.dtype),
        head_features(made if project else given, parts, head_mask, given if project else made),
        int64(tokens),
        mask_of(offsets, head_mask),
        struct(first_of("weight", weight), *map(int64, weight.stride() if project else weight.stride()[::-1])),
        first_of("input", input),
        row_index(index),
        int64(len(input)),
        first_of("bias", bias),
        first_of("residual", residual),
        pointer("out"),
    ]
    tensors = {"input": input, "weight": weight, "offsets": offsets, "head_mask": head_mask, "bias": bias}
    tensors |= {"residual": residual, "index": index}
    given_tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    results = {"out": ((tokens, made), input.dtype)}
    return launch_alike(build, "vleff_head_masked_linear_cuda", problem, given_tensors, results, **options)["out"]


def emulated_grad_weight(
    build: EmulatedLibrary,
    of_features: Tensor,
    of_width: Tensor,
    offsets: Tensor,
    head_mask: Tensor | None,
    index: Tensor | None = None,
    parts: int = 1,
) -> tuple[Tensor, Tensor]:
    """torch.ops.vleff.head_masked_grad_weight with the bias's gradient"""
    (tokens, features), (stored, width) = of_features.shape, of_width.shape
    problem = [
        data_type(of_features.dtype),
        head_features(features, parts, head_mask, width),
        int64(tokens),
        mask_of(offsets, head_mask),
        first_of("of_features", of_features),
        first_of("of_width", of_width),
        row_index(index),
        int64(stored),
        pointer("grad_weight"),
        pointer("grad_bias"),
    ]
    tensors = {"of_features": of_features, "of_width": of_width, "offsets": offsets, "head_mask": head_mask}
    tensors |= {"index": index}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    dtype = of_features.dtype
    results = {"grad_weight": ((features, width), dtype), "grad_bias": ((features,), dtype)}
    found: Results = launch_alike(build, "vleff_head_masked_grad_weight_cuda", problem, given, results)
    return found["grad_weight"], found["grad_bias"]


def emulated_gradients(build: EmulatedLibrary, direction: str, inputs: dict[str, Any], grad: Tensor) -> Results:
    """Gradients as vleff.ops.head_masked_linear puts them together from the ops; of `input` before it is scattered."""
    offsets, mask, index, parts = (inputs.get(name) for name in ("offsets", "head_mask", "index", "parts"))
    turned = inputs["weight"].T
    if direction == "project":
        of_parts = None if mask is None else mask.repeat(1, parts)
        grad_input = emulated_product(build, "reduce", grad, turned, offsets, of_parts)
        grad_weight, grad_bias = emulated_grad_weight(build, grad, inputs["input"], offsets, mask, index, parts)
        return {"input": grad_input, "weight": grad_weight, "bias": grad_bias}
    grad_weight, _ = emulated_grad_weight(build, inputs["input"], grad, offsets, mask)
    grad_input = emulated_product(build, "project", grad, turned, offsets, mask)
    return {"input": grad_input, "weight": grad_weight.T}
