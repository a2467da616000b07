"""Bad arguments of token_gather_attention: each gets an exception that names it, what was expected, what came."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from attention_cases import Inputs, make_inputs, offsets_of
from hypothesis import given
from hypothesis import strategies as st

from vleff.ops import token_gather_attention, token_gather_attention_reference

ints = torch.tensor

# argument -> changes of good inputs: 6 queries (4 and 2), 9 keys (5 and 4), 2 heads of 16
BAD: dict[str, list[Callable[[Inputs], dict]]] = {
    "q": [
        lambda i: {"q": i["q"].double()},
        lambda i: {"q": i["q"].int()},
        lambda i: {"q": i["q"][0]},
        lambda i: {"q": torch.tensor(1.0)},
        lambda i: {"q": i["q"][None]},
        lambda i: {"q": i["q"][:, :0], "k": i["k"][:, :0], "v": i["v"][:, :0]},
        lambda i: {"q": i["q"][..., :0], "k": i["k"][..., :0], "v": i["v"][..., :0]},
        lambda i: {name: torch.zeros(len(i[name]), 2, 257) for name in "qkv"},
        lambda i: {"q": i["q"].transpose(1, 2).contiguous().transpose(1, 2)},
        lambda i: {"q": torch.zeros(6, 2, 32)[..., ::2]},
    ],
    "k": [
        lambda i: {"k": i["k"].bfloat16()},
        lambda i: {"k": i["k"][:, :1]},
        lambda i: {"k": i["k"][..., :8]},
        lambda i: {"k": i["k"].flatten(1)},
        lambda i: {"k": i["k"].transpose(1, 2).contiguous().transpose(1, 2)},
    ],
    "v": [
        lambda i: {"v": i["v"].half()},
        lambda i: {"v": i["v"][:8]},
        lambda i: {"v": i["v"][..., :8]},
        lambda i: {"v": i["v"].transpose(1, 2).contiguous().transpose(1, 2)},
    ],
    "q_offsets": [
        lambda i: {"q_offsets": i["q_offsets"].long()},
        lambda i: {"q_offsets": i["q_offsets"].float()},
        lambda i: {"q_offsets": i["q_offsets"][None]},
        lambda i: {"q_offsets": i["q_offsets"][:0]},
        lambda i: {"q_offsets": ints([1, 4, 6]).int()},
        lambda i: {"q_offsets": ints([-1, 4, 6]).int()},
        lambda i: {"q_offsets": ints([0, 7, 6]).int()},
        lambda i: {"q_offsets": ints([0, -1, 6]).int()},
        lambda i: {"q_offsets": ints([0, 4, 5]).int()},
        lambda i: {"q_offsets": ints([0, 4, 7]).int()},
        lambda i: {"q_offsets": ints([0, 2**31 - 1, 6]).int()},
        lambda i: {"q_index": torch.arange(5)},
    ],
    "k_offsets": [
        lambda i: {"k_offsets": i["k_offsets"].long()},
        lambda i: {"k_offsets": offsets_of([5, 2, 2])},
        lambda i: {"k_offsets": offsets_of([9])},
        lambda i: {"k_offsets": ints([0, 10, 9]).int()},
        lambda i: {"k_offsets": ints([0, 5, 8]).int()},
        lambda i: {"k_offsets": ints([2, 5, 9]).int()},
        lambda i: {"k_index": torch.arange(8)},
    ],
    "max_q": [lambda i: {"max_q": 3}, lambda i: {"max_q": -1}],
    "max_k": [lambda i: {"max_k": 4}, lambda i: {"max_k": -(2**40)}],
    "q_index": [
        lambda i: {"q_index": torch.arange(6) - 1},
        lambda i: {"q_index": torch.arange(6).int() + 1},
        lambda i: {"q_index": torch.full((6,), 2**40)},
        lambda i: {"q_index": torch.arange(6.0)},
        lambda i: {"q_index": torch.arange(6)[None]},
        lambda i: {"q_index": torch.ones(6, dtype=torch.bool)},
    ],
    "k_index": [
        lambda i: {"k_index": torch.full((9,), -(2**62))},
        lambda i: {"k_index": torch.arange(9).int() * 2},
        lambda i: {"k_index": torch.arange(9).short()},
    ],
    "head_mask": [
        lambda i: {"head_mask": torch.ones(2, 2)},
        lambda i: {"head_mask": torch.ones(2, 2, dtype=torch.int32)},
        lambda i: {"head_mask": torch.ones(2, dtype=torch.bool)},
        lambda i: {"head_mask": torch.ones(1, 2, dtype=torch.bool)},
        lambda i: {"head_mask": torch.ones(2, 3, dtype=torch.bool)},
    ],
    "key_bias": [
        lambda i: {"key_bias": torch.zeros(9).double()},
        lambda i: {"key_bias": torch.zeros(6)},
        lambda i: {"key_bias": torch.zeros(9, 2)},
        lambda i: {"key_bias": torch.full((9,), torch.nan)},
        lambda i: {"key_bias": torch.full((9,), torch.inf)},
        lambda i: {"key_bias": torch.zeros(9), "k_index": torch.zeros(12).int(), "k_offsets": offsets_of([5, 7]),
                   "max_k": 7},
    ],
    "scale": [lambda i: {"scale": torch.nan}, lambda i: {"scale": torch.inf}, lambda i: {"scale": 1e39}],
    "dropout_p": [
        lambda i: {"dropout_p": -0.1, "seed": ints([1])},
        lambda i: {"dropout_p": 1.0, "seed": ints([1])},
        lambda i: {"dropout_p": 1 - 1e-12, "seed": ints([1])},
        lambda i: {"dropout_p": torch.nan},
    ],
    "seed": [
        lambda i: {"dropout_p": 0.1, "seed": ints([1]).int()},
        lambda i: {"dropout_p": 0.1, "seed": ints([1, 2])},
        lambda i: {"dropout_p": 0.1, "seed": ints([])},
        lambda i: {"dropout_p": 0.1, "seed": torch.tensor([0.5])},
    ],
}  # fmt: skip
TABLE = [
    pytest.param(argument, change, id=f"{argument}-{number}")
    for argument, changes in BAD.items()
    for number, change in enumerate(changes)
]


def good_inputs() -> Inputs:
    return make_inputs([4, 2], [5, 4])


def message(op: str, argument: str) -> str:
    return rf"{op}: argument '{argument}': expected .+, got .+"


@pytest.mark.parametrize("argument, change", TABLE)
def test_bad_argument(argument: str, change: Callable[[Inputs], dict]) -> None:
    inputs = good_inputs()
    with pytest.raises(RuntimeError, match=message("token_gather_attention", argument)):
        token_gather_attention(**inputs | change(inputs))


@pytest.mark.parametrize("argument, change", TABLE)
def test_bad_argument_of_the_compiled_op(argument: str, change: Callable[[Inputs], dict]) -> None:
    inputs = good_inputs()
    with pytest.raises(RuntimeError, match=message("token_gather_attention", argument)):
        torch.ops.vleff.token_gather_attention(**{"scale": 1.0} | inputs | change(inputs))


def backward_inputs() -> Inputs:
    inputs = good_inputs() | {"scale": 0.25}
    out, lse, _ = torch.ops.vleff.token_gather_attention(**inputs)
    return inputs | {"grad_out": torch.ones_like(out), "grad_lse": None, "out": out, "lse": lse}


@pytest.mark.parametrize("argument, change", TABLE)
def test_bad_argument_of_the_compiled_backward(argument: str, change: Callable[[Inputs], dict]) -> None:
    inputs = backward_inputs()
    with pytest.raises(RuntimeError, match=message("token_gather_attention_backward", argument)):
        torch.ops.vleff.token_gather_attention_backward(**inputs | change(inputs))


@pytest.mark.parametrize(
    "argument, wrong",
    [
        ("grad_out", torch.zeros(6, 2, 15)),
        ("grad_out", torch.zeros(5, 2, 16)),
        ("grad_out", torch.zeros(6, 32)),
        ("grad_out", torch.zeros(6, 2, 16).double()),
        ("out", torch.zeros(6, 2, 16).bfloat16()),
        ("out", torch.zeros(9, 2, 16)),
        ("lse", torch.zeros(6, 2).double()),
        ("lse", torch.zeros(2, 6)),
        ("grad_lse", torch.zeros(6, 2).half()),
        ("grad_lse", torch.zeros(6)),
    ],
)
def test_bad_gradient(argument: str, wrong: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match=message("token_gather_attention_backward", argument)):
        torch.ops.vleff.token_gather_attention_backward(**backward_inputs() | {argument: wrong})


def test_dropout_without_seed_is_refused_where_none_is_drawn() -> None:
    inputs = good_inputs() | {"dropout_p": 0.1}
    with pytest.raises(RuntimeError, match=message("token_gather_attention", "seed")):
        torch.ops.vleff.token_gather_attention(**inputs, scale=1.0)
    with pytest.raises(ValueError, match="seed: expected an int64 tensor with one element"):
        token_gather_attention_reference(**inputs)


def test_message_says_what_came() -> None:
    inputs = good_inputs()
    expected = (
        "token_gather_attention: argument 'v': expected float32 [rows_k, heads, head_dim] = [9, 2, 16] on the CPU, "
        "got float32 [8, 2, 16]"
    )
    with pytest.raises(RuntimeError) as caught:
        token_gather_attention(**inputs | {"v": inputs["v"][:8]})
    assert str(caught.value).startswith(expected)


@given(offsets=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), max_q=st.integers(-(2**63), 2**63 - 1))
def test_any_offsets_are_used_or_refused(offsets: list[int], max_q: int) -> None:
    inputs = make_inputs([6]) | {"q_offsets": torch.tensor(offsets, dtype=torch.int32), "max_q": max_q}
    inputs["k_offsets"] = torch.tensor([0] * (len(offsets) - 1) + [6], dtype=torch.int32)
    good = offsets[:1] == [0] and offsets == sorted(offsets) and offsets[-1] == 6
    good = good and max(b - a for a, b in pairwise(offsets)) <= max_q
    if good:
        assert token_gather_attention(**inputs)[0].isfinite().all()
    else:
        with pytest.raises(RuntimeError, match=r"argument '(q_offsets|k_offsets|max_q)': expected .+, got .+"):
            token_gather_attention(**inputs)


@given(rows=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 10), max_size=8))
def test_any_row_numbers_are_used_or_refused(rows: list[int]) -> None:
    inputs = make_inputs([6]) | {"k_index": torch.tensor(rows, dtype=torch.int64), "max_k": len(rows)}
    inputs["k_offsets"] = torch.tensor([0, len(rows)], dtype=torch.int32)
    if all(0 <= row < 6 for row in rows):
        assert token_gather_attention(**inputs)[0].isfinite().all()
    else:
        with pytest.raises(RuntimeError, match=message("token_gather_attention", "k_index")):
            token_gather_attention(**inputs)
