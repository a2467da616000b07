"""What holds for every batch: independence of batch mates and threads, agreement with the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import (
    DTYPES,
    Inputs,
    assert_same_bits,
    error,
    exact,
    gradients,
    in_dtype,
    make_inputs,
    rounding,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vleff.ops import token_gather_attention, token_gather_attention_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
LENGTH = st.integers(0, 12) | st.integers(0, 70)
HEAD_DIM = st.sampled_from([1, 5, 16, 40, 64])


def results_and_gradients(inputs: Inputs) -> dict[str, Tensor]:
    """out, lse, importance and all gradients, for output gradients that are functions of the inputs' rows."""
    out, lse, importance = token_gather_attention(**inputs, importance=True)
    grad_out, grad_lse = inputs["q"].flip(-1), inputs["q"][..., 0].float()
    grads = gradients(token_gather_attention, inputs, grad_out, grad_lse)
    return {"out": out, "lse": lse, "importance": importance} | grads


def sample_alone(inputs: Inputs, sample: int) -> tuple[Inputs, slice, slice]:
    """The batch of this one sample, and where its queries and keys are in the whole batch."""
    queries = slice(*inputs["q_offsets"][sample : sample + 2].tolist())
    keys = slice(*inputs["k_offsets"][sample : sample + 2].tolist())
    rows = {"q": queries, "k": keys, "v": keys, "key_bias": keys, "head_mask": slice(sample, sample + 1)}
    alone = {name: inputs[name][where] for name, where in rows.items()}
    alone["max_q"], alone["max_k"] = len(alone["q"]), len(alone["k"])
    alone["q_offsets"], alone["k_offsets"] = (torch.tensor([0, alone[m]]).int() for m in ("max_q", "max_k"))
    return inputs | alone, queries, keys


@settings(max_examples=12)
@given(
    lengths=st.lists(st.tuples(LENGTH, LENGTH), min_size=2, max_size=33),
    head_dim=HEAD_DIM,
    dtype=st.sampled_from(DTYPES),
    causal=st.booleans(),
    self_attention=st.booleans(),
)
def test_a_sample_does_not_depend_on_its_batch_mates(
    cpu_isa: str,
    lengths: list[tuple[int, int]],
    head_dim: int,
    dtype: torch.dtype,
    causal: bool,
    self_attention: bool,
) -> None:
    q_lengths = [queries for queries, _ in lengths]
    k_lengths = q_lengths if self_attention else [keys for _, keys in lengths]
    inputs = make_inputs(q_lengths, k_lengths, 2, head_dim, dtype, causal=causal)
    inputs["key_bias"] = torch.randn(sum(k_lengths))
    inputs["head_mask"] = torch.rand(len(lengths), 2) < 0.8
    together = results_and_gradients(inputs)
    for sample in range(len(lengths)):
        alone, queries, keys = sample_alone(inputs, sample)
        for name, result in results_and_gradients(alone).items():
            rows = queries if name in ("out", "lse", "q") else keys
            assert_same_bits(result, together[name][rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"q_lengths": [300], "heads": 1},
        {"q_lengths": [0, 17, 140, 3], "k_lengths": [5, 90, 12, 0], "heads": 3, "causal": True},
        {"q_lengths": [5] * 20, "dropout_p": 0.3, "seed": torch.tensor([5])},
        {"q_lengths": [40, 30], "gathered": True},
    ],
    ids=["one head", "uneven", "dropout", "gathered with repeats"],
)
def test_threads_change_no_bit(
    cpu_isa: str, with_threads: Callable, options: dict[str, Any], dtype: torch.dtype
) -> None:
    options = dict(options)
    gathered = options.pop("gathered", False)
    inputs = make_inputs(**options, dtype=dtype)
    inputs["key_bias"] = torch.randn(len(inputs["k"]))
    if gathered:
        inputs |= {f"{side}_index": torch.randint(9, (len(inputs[side]),)) for side in "qk"}
    one = with_threads(1, results_and_gradients, inputs)
    for threads in (2, 3, 7):
        for name, result in with_threads(threads, results_and_gradients, inputs).items():
            assert_same_bits(result, one[name])
    for _ in range(3):  # which worker gets which task is not the same every time
        without = with_threads(2, lambda: token_gather_attention(**inputs))
        assert_same_bits(without[0], one["out"])
        assert_same_bits(without[1], one["lse"])


@given(
    lengths=st.lists(st.tuples(LENGTH, LENGTH), max_size=5),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 100),
    dtype=st.sampled_from(DTYPES),
    scale=st.none() | st.floats(-1, 1),
    causal=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.0, 0.2, 0.9]),
    seed=st.integers(-(2**63), 2**63 - 1),
    with_mask=st.booleans(),
    with_bias=st.booleans(),
    gathered=st.booleans(),
)
def test_any_batch_matches_the_reference(
    cpu_isa: str,
    lengths: list[tuple[int, int]],
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    scale: float | None,
    causal: bool,
    dropout_p: float,
    seed: int,
    with_mask: bool,
    with_bias: bool,
    gathered: bool,
) -> None:
    q_lengths, k_lengths = [queries for queries, _ in lengths], [keys for _, keys in lengths]
    inputs = make_inputs(q_lengths, k_lengths, heads, head_dim, dtype, scale=scale, causal=causal)
    inputs |= {"dropout_p": dropout_p, "seed": torch.tensor([seed])}
    for name in ("q", "k", "v"):  # without outliers: errors are measured against the largest number
        inputs[name] = torch.randn(inputs[name].shape).to(dtype)
    if with_mask:
        inputs["head_mask"] = torch.rand(len(lengths), heads) < 0.6
    if with_bias:
        bias = torch.randn(sum(k_lengths))
        inputs["key_bias"] = bias.masked_fill(torch.rand_like(bias) < 0.2, -torch.inf)
    if gathered:
        inputs |= {f"{side}_index": torch.randint(len(inputs[side]), (len(inputs[side]),)) for side in "qk"
                   if len(inputs[side])}  # fmt: skip
    actual = results_and_gradients(inputs)
    expected = dict(zip(("out", "lse", "importance"), exact(inputs | {"importance": True}), strict=True))
    expected |= gradients(
        token_gather_attention_reference,
        in_dtype(inputs, torch.float64),
        inputs["q"].flip(-1),
        inputs["q"][..., 0].float(),
    )
    for name, result in actual.items():
        # the terms of a sum may cancel, so that the largest number alone says too little
        precision = torch.float32 if name in ("lse", "importance") else dtype
        bound = 32 * max(rounding(expected[name], precision), torch.finfo(precision).eps)
        assert error(result, expected[name]) <= bound, name
