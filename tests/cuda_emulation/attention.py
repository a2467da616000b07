"""token_gather_attention on the emulated device."""

from collections.abc import Mapping

import torch
from attention_cases import Inputs
from cuda_kernels import MOST_SHARED_BYTES
from torch import Tensor

from .building import EmulatedLibrary
from .launching import Field, boolean, data_type, float32, head_rows, int64, launch, pointer, struct

Result = tuple[Tensor, Tensor, Tensor]
_TENSORS = ("q", "k", "v", "q_offsets", "k_offsets", "q_index", "k_index", "head_mask", "key_bias", "seed")


def tensors_of(inputs: Inputs) -> dict[str, Tensor]:
    """What an AttentionProblem of these inputs points to, by name."""
    return {name: inputs[name] for name in _TENSORS if inputs.get(name) is not None}


def totals(inputs: Inputs) -> tuple[int, int]:
    """Rows of the batch: queries and keys."""
    indices = inputs.get("q_index"), inputs.get("k_index")
    q, k = (len(inputs[side] if index is None else index) for side, index in zip("qk", indices, strict=True))
    return q, k


def attention_problem(inputs: Inputs, results: Mapping[str, str]) -> Field:
    """vleff::cuda::AttentionProblem

    Args:
        inputs: the arguments of `vleff.ops.token_gather_attention`.
        results: what "out", "lse" and "importance" are called in the call; those that are not there are null.
    """
    tensors, (heads, head_dim) = tensors_of(inputs), inputs["q"].shape[1:]

    def address(name: str) -> Field:
        return pointer(name if name in tensors else None)

    def side(name: str, total: int) -> Field:
        index = tensors.get(f"{name}_index")
        row_index = struct(address(f"{name}_index"), boolean(index is not None and index.dtype == torch.int64))
        sizes = map(int64, (len(inputs[name]), total, inputs[f"max_{name}"]))
        return struct(address(f"{name}_offsets"), row_index, *sizes)

    scale = inputs.get("scale")
    return struct(
        data_type(inputs["q"].dtype),
        *map(int64, (len(inputs["q_offsets"]) - 1, heads, head_dim)),
        *(head_rows(name, tensors[name]) for name in "qkv"),
        *map(side, "qk", totals(inputs)),
        *(address("head_mask"), address("key_bias")),
        float32(head_dim**-0.5 if scale is None else scale),
        *(boolean(inputs.get("causal", False)), float32(inputs.get("dropout_p", 0)), address("seed")),
        *(pointer(results.get(name)) for name in ("out", "lse", "importance")),
    )


def emulated_attention(
    build: EmulatedLibrary, shared_limit: int = MOST_SHARED_BYTES, **inputs: object
) -> tuple[list[Result], list[dict[str, int]]]:
    """Results and statistics of each schedule; arguments as of `vleff.ops.token_gather_attention`.

    Raises:
        EmulationError: with what the emulator reports.
    """
    given: Inputs = inputs
    queries, keys = totals(given)
    heads, head_dim = given["q"].shape[1:]
    results = {
        "out": ((queries, heads, head_dim), given["q"].dtype),
        "lse": ((queries, heads), torch.float32),
        "importance": ((keys, heads), torch.float32),
    }
    _, problem = attention_problem(given, {name: name for name in results})
    found, statistics = launch(
        build, "vleff_token_gather_attention_cuda", problem, tensors_of(given), results, shared_limit=shared_limit
    )
    return [(one["out"], one["lse"], one["importance"]) for one in found], statistics
