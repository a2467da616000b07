"""Inputs of token_gather_attention and yardsticks for its results, shared by its tests."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vleff.ops import token_gather_attention_reference

Inputs = dict[str, Any]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DIFFERENTIABLE = ("q", "k", "v", "key_bias")

# Names and arguments of `make_inputs`: one token, 17 tokens, head sizes on and off the vector widths, cross
# attention, empty samples on either side, no samples at all.
SHAPES: dict[str, dict[str, Any]] = {
    "one token": {"q_lengths": [1], "head_dim": 64},
    "head size 1": {"q_lengths": [3, 9], "head_dim": 1},
    "17 tokens, head size 40": {"q_lengths": [17, 5], "heads": 3, "head_dim": 40},
    "head size 64": {"q_lengths": [33, 70], "head_dim": 64},
    "head size 80": {"q_lengths": [16, 31], "head_dim": 80},
    "head size 128": {"q_lengths": [40], "head_dim": 128},
    "head size 256": {"q_lengths": [19, 2], "heads": 1, "head_dim": 256},
    "cross": {"q_lengths": [5, 40, 1], "k_lengths": [67, 3, 18], "head_dim": 24},
    "empty samples": {"q_lengths": [0, 3, 4, 0], "k_lengths": [2, 0, 6, 0], "head_dim": 16},
    "long": {"q_lengths": [300], "k_lengths": [261], "heads": 1, "head_dim": 32},
}
NOTHING: dict[str, dict[str, Any]] = {
    "no samples": {"q_lengths": []},
    "only empty samples": {"q_lengths": [0, 0]},
    "no queries": {"q_lengths": [0, 0], "k_lengths": [3, 4]},
    "no keys": {"q_lengths": [3, 4], "k_lengths": [0, 0]},
}
# Options of the op by what they exercise, for 4 samples with 2 heads and these lengths of queries and keys.
FEATURE_LENGTHS = [17, 1, 0, 32], [23, 7, 5, 31]
FEATURES: dict[str, Callable[[], dict]] = {
    "nothing special": dict,
    "scale": lambda: {"scale": -0.7},
    "scale 0": lambda: {"scale": 0.0},
    "causal": lambda: {"causal": True},
    "head mask": lambda: {"head_mask": torch.tensor([[True, False], [False, False], [True, True], [False, True]])},
    "key bias": lambda: {"key_bias": torch.randn(66)},
    "hidden keys": lambda: {"key_bias": torch.where(torch.rand(66) < 0.4, -torch.inf, torch.randn(66))},
    "a sample without visible keys": lambda: {"key_bias": torch.zeros(66).index_fill(0, torch.arange(30), -torch.inf)},
    "dropout": lambda: {"dropout_p": 0.3, "seed": torch.tensor([-(2**62) - 12345])},
    "gathered queries": lambda: {"q_index": torch.randint(50, (50,))},
    "gathered keys": lambda: {"k_index": torch.randint(66, (66,), dtype=torch.int32)},
    "everything": lambda: {
        "scale": 0.3,
        "causal": True,
        "head_mask": torch.rand(4, 2) < 0.7,
        "key_bias": torch.where(torch.rand(66) < 0.2, -torch.inf, torch.randn(66)),
        "dropout_p": 0.5,
        "seed": torch.tensor([7]),
        "q_index": torch.randint(50, (50,), dtype=torch.int32),
        "k_index": torch.randint(66, (66,)),
    },
}


def offsets_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def make_inputs(
    q_lengths: Sequence[int],
    k_lengths: Sequence[int] | None = None,
    heads: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Inputs:
    """Random rows with outliers: some columns of q and others of k are 20 times as large, some values 50 times."""
    k_lengths = q_lengths if k_lengths is None else k_lengths
    q = torch.randn(sum(q_lengths), heads, head_dim)
    k = torch.randn(sum(k_lengths), heads, head_dim)
    v = torch.randn(sum(k_lengths), heads, head_dim)
    q[..., 12::13] *= 20
    k[..., 15::16] *= 20
    v[::11] *= 50
    return {
        "q": q.to(dtype),
        "k": k.to(dtype),
        "v": v.to(dtype),
        "q_offsets": offsets_of(q_lengths),
        "k_offsets": offsets_of(k_lengths),
        "max_q": max(q_lengths, default=0),
        "max_k": max(k_lengths, default=0),
        **options,
    }


def in_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same numbers in another dtype."""
    return inputs | {name: inputs[name].to(dtype) for name in DIFFERENTIABLE if inputs.get(name) is not None}


def exact(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The reference's results in float64."""
    return token_gather_attention_reference(**in_dtype(inputs, torch.float64))


def sdpa(**inputs: Any) -> Tensor:
    """scaled_dot_product_attention of each sample, in the inputs' dtype. Every query must see a key."""
    outs = [inputs["q"][:0]]
    for sample in range(len(inputs["q_offsets"]) - 1):
        queries = slice(*inputs["q_offsets"][sample : sample + 2].tolist())
        keys = slice(*inputs["k_offsets"][sample : sample + 2].tolist())
        q, k, v = (
            inputs[name][rows].transpose(0, 1)[None] for name, rows in (("q", queries), ("k", keys), ("v", keys))
        )
        bias = inputs.get("key_bias")
        bias = None if bias is None else bias[keys].to(q.dtype).expand(1, 1, q.shape[2], -1)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=inputs.get("scale"))
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def gradients(
    function: Callable[..., Any], inputs: Inputs, grad_out: Tensor, grad_lse: Tensor | None = None
) -> dict[str, Tensor]:
    """Gradients of <out, grad_out> + <lse, grad_lse> in q, k, v and, if there, key_bias.

    lse is -inf where a query sees no key; such rows are left out.
    """
    leaves = {name: inputs[name].detach().requires_grad_() for name in DIFFERENTIABLE if inputs.get(name) is not None}
    result = function(**inputs | leaves)
    out, lse = (result, None) if isinstance(result, Tensor) else result[:2]
    loss = (out * grad_out.to(out.dtype)).sum()
    if grad_lse is not None and lse is not None:
        loss = loss + (lse.masked_fill(lse == -torch.inf, 0) * grad_lse.to(lse.dtype)).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True), strict=True))


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinities must agree and NaN is an infinite error."""
    actual, expected = actual.double(), expected.double()
    if actual.shape != expected.shape or not torch.equal(actual.isinf(), expected.isinf()):
        return torch.inf
    difference = (actual - expected)[~expected.isinf()].abs()
    return difference.nan_to_num(nan=torch.inf).max().item() if difference.numel() else 0.0


def rounding(expected: Tensor, dtype: torch.dtype) -> float:
    """The rounding error of the largest number, which no result of this dtype can be held below."""
    finite = expected[~expected.isinf()].abs()
    return torch.finfo(dtype).eps * (finite.max().item() if finite.numel() else 0.0)


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, roundings: float = 16) -> None:
    """Agreement within some rounding errors of the largest number."""
    bound = roundings * rounding(expected, dtype)
    assert error(actual, expected) <= bound, f"error {error(actual, expected):.3g}, bound {bound:.3g}"


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(actual, expected), f"differ by up to {error(actual, expected):.3g}"


def assert_within_twice_plain(
    actual: list[Tensor], expected: list[Tensor], *plain_results: list[Tensor], dtype: torch.dtype
) -> None:
    """FlashAttention's rule over several draws: at most twice the error of plain torch, the worst if many."""
    largest = max(rounding(e, dtype) for e in expected)
    ours = max(map(error, actual, expected))
    theirs = max(max(map(error, results, expected)) for results in plain_results)
    assert ours <= 2 * theirs + largest, f"error {ours:.3g}, plain torch {theirs:.3g}, rounding {largest:.3g}"
