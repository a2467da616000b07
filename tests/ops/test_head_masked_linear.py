"""head_masked_linear against its reference in float64, its gradients, and what its bits depend on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from head_masked_cases import (
    DIFFERENTIABLE,
    DIRECTIONS,
    DTYPES,
    NOTHING,
    SHAPES,
    Inputs,
    assert_within_twice_plain,
    gradients,
    in_dtype,
    kept_tokens,
    make_inputs,
    make_mask,
    offsets_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vleff.ops import pack_head_masked_weight

pytestmark = pytest.mark.usefixtures("poisoned_memory")
both_directions = pytest.mark.parametrize("direction", DIRECTIONS)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.mark.parametrize("name", SHAPES)
@all_dtypes
@both_directions
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, direction: str, dtype: torch.dtype, name: str) -> None:
    function, reference = DIRECTIONS[direction]
    inputs = make_inputs(direction, **SHAPES[name], dtype=dtype)
    for mask in (inputs["head_mask"], torch.ones_like(inputs["head_mask"]), None):
        masked = inputs | {"head_mask": mask}
        out = function(**masked)
        assert out.is_contiguous()
        assert_within_twice_plain(out, reference(**masked), reference(**in_dtype(masked, torch.float64)))


@pytest.mark.parametrize("name", SHAPES)
@all_dtypes
@both_directions
def test_gradients(cpu_isa: str, direction: str, dtype: torch.dtype, name: str) -> None:
    function, reference = DIRECTIONS[direction]
    inputs = make_inputs(direction, **SHAPES[name], dtype=dtype)
    if direction == "project":
        inputs["index"] = torch.randint(len(inputs["input"]), (len(inputs["input"]),))
    for mask in (inputs["head_mask"], None):
        masked = inputs | {"head_mask": mask}
        grad = torch.randn_like(function(**masked))
        actual = gradients(function, masked, grad)
        plain = gradients(reference, masked, grad)
        exact = gradients(reference, in_dtype(masked, torch.float64), grad)
        for leaf, gradient in actual.items():
            assert_within_twice_plain(gradient, plain[leaf], exact[leaf], leaf)


def test_gradients_over_many_tokens(cpu_isa: str) -> None:
    """Sums over thousands of tokens are made of shorter ones, as in plain torch."""
    for direction, (function, reference) in DIRECTIONS.items():
        inputs = make_inputs(direction, [3000, 1, 2001], heads=2, head_dim=16, width=24)
        inputs["head_mask"] = torch.tensor([[True, True], [True, False], [True, False]])
        grad = torch.randn_like(function(**inputs))
        exact = gradients(reference, in_dtype(inputs, torch.float64), grad)
        plain = gradients(reference, inputs, grad)
        for leaf, gradient in gradients(function, inputs, grad).items():
            assert_within_twice_plain(gradient, plain[leaf], exact[leaf], leaf)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_are_those_of_the_formula(direction: str) -> None:
    """gradcheck of the reference by finite differences; the tests above hold the kernels to the reference."""
    inputs = in_dtype(make_inputs(direction, [3, 0, 2, 2], heads=2, head_dim=3, width=4), torch.float64)
    if direction == "project":
        inputs["index"] = torch.tensor([0, 1, 1, 4, 0, 3, 6])
    names = [name for name in DIFFERENTIABLE if name in inputs]
    leaves = [inputs[name].requires_grad_() for name in names]
    reference = DIRECTIONS[direction][1]
    assert torch.autograd.gradcheck(lambda *x: reference(**inputs | dict(zip(names, x, strict=True))), leaves)


@all_dtypes
def test_dropped_blocks_are_zero_and_never_read(cpu_isa: str, dtype: torch.dtype) -> None:
    project, reduce = (DIRECTIONS[direction][0] for direction in DIRECTIONS)
    shape: dict[str, Any] = {"lengths": [40, 9, 60, 25], "heads": 3, "head_dim": 40, "dtype": dtype}
    inputs = make_inputs("project", **shape)
    dropped = ~kept_tokens(inputs)
    out = project(**inputs).view(-1, 3, 3, 40)
    assert (out.transpose(1, 2)[dropped] == 0).all() and (out.transpose(1, 2)[~dropped] != 0).any()

    grad = torch.randn_like(out)
    clean = gradients(project, inputs, grad.transpose(1, 2).masked_fill(dropped[..., None, None], 0).transpose(1, 2)
                      .reshape(-1, 360))  # fmt: skip
    poisoned = grad.transpose(1, 2).masked_fill(dropped[..., None, None], torch.nan).transpose(1, 2).reshape(-1, 360)
    assert_same(gradients(project, inputs, poisoned), clean)

    inputs = make_inputs("reduce", **shape)
    blocks = inputs["input"].unflatten(-1, (3, 40))
    poison = inputs | {"input": blocks.masked_fill(dropped[..., None], torch.nan).flatten(1)}
    assert torch.equal(reduce(**poison), reduce(**inputs))
    none_kept = slice(49, 109)  # the third sample
    expected = (inputs["bias"].float() + inputs["residual"][none_kept].float()).to(dtype)
    assert torch.equal(reduce(**poison)[none_kept], expected)
    grad = torch.randn_like(inputs["residual"])
    found = gradients(reduce, poison, grad)
    assert_same(found, gradients(reduce, inputs, grad))
    assert (found["input"].unflatten(-1, (3, 40))[dropped] == 0).all()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 12) | st.integers(0, 150), min_size=2, max_size=33),
    head_dim=st.sampled_from([1, 16, 33, 64]),
    width=st.sampled_from([5, 64, 200]),
    dtype=st.sampled_from(DTYPES),
    direction=st.sampled_from(list(DIRECTIONS)),
)
def test_a_sample_does_not_depend_on_its_batch_mates(
    cpu_isa: str, lengths: list[int], head_dim: int, width: int, dtype: torch.dtype, direction: str
) -> None:
    function = DIRECTIONS[direction][0]
    inputs = make_inputs(direction, lengths, 3, head_dim, width, dtype)
    grad = torch.randn_like(function(**inputs))

    def results(inputs: Inputs, grad: Tensor) -> tuple[Tensor, Tensor]:
        return function(**inputs), gradients(function, inputs, grad)["input"]

    together = results(inputs, grad)
    for sample, length in enumerate(lengths):
        rows = slice(*inputs["offsets"][sample : sample + 2].tolist())
        alone = {name: inputs[name][rows] for name in ("input", "residual") if name in inputs}
        alone |= {"offsets": offsets_of([length]), "head_mask": inputs["head_mask"][sample : sample + 1]}
        for result, whole in zip(results(inputs | alone, grad[rows]), together, strict=True):
            assert torch.equal(result, whole[rows])


@all_dtypes
@both_directions
def test_threads_change_no_bit(cpu_isa: str, with_threads: Callable, direction: str, dtype: torch.dtype) -> None:
    function = DIRECTIONS[direction][0]
    for lengths in ([700, 3, 20, 41], [5] * 40, [1]):
        inputs = make_inputs(direction, lengths, heads=4, head_dim=40, width=300, dtype=dtype)
        grad = torch.randn_like(function(**inputs))
        expected = with_threads(1, gradients, function, inputs, grad)
        out = with_threads(1, lambda inputs=inputs: function(**inputs))
        for threads in (2, 3, 7):
            assert torch.equal(with_threads(threads, lambda inputs=inputs: function(**inputs)), out)
            assert_same(with_threads(threads, gradients, function, inputs, grad), expected)


@all_dtypes
@both_directions
def test_packed_weights_and_views_have_the_same_bits(cpu_isa: str, direction: str, dtype: torch.dtype) -> None:
    function = DIRECTIONS[direction][0]
    inputs = make_inputs(direction, [20, 3, 9, 11], heads=3, head_dim=33, width=90, dtype=dtype)
    weight = inputs["weight"]
    for mask in (inputs["head_mask"], None):
        masked = inputs | {"head_mask": mask}
        expected = function(**masked)
        packed = pack_head_masked_weight(weight, direction, 3, inputs.get("parts", 1))
        of_packed = function(**masked | {"weight": packed})
        if mask is None and direction == "reduce":  # how many heads are summed was not known, and 33 are odd
            torch.testing.assert_close(of_packed, expected)
        else:
            assert torch.equal(of_packed, expected)
        transposed = masked | {"weight": weight.T.contiguous().T, "input": inputs["input"].T.contiguous().T}
        assert torch.equal(function(**transposed), expected)
        wide = torch.cat([weight, weight], 1)[:, : weight.shape[1]]
        assert torch.equal(function(**masked | {"weight": wide}), expected)


@both_directions
def test_a_packed_weight_has_gradients_but_of_input(direction: str) -> None:
    function = DIRECTIONS[direction][0]
    inputs = make_inputs(direction, [20, 3])
    packed = inputs | {"weight": pack_head_masked_weight(inputs["weight"], direction, 3, inputs.get("parts", 1))}
    grad = torch.randn_like(function(**inputs))
    expected = gradients(function, inputs, grad)
    bias = inputs["bias"].clone().requires_grad_()
    function(**packed | {"bias": bias}).backward(grad)
    assert torch.equal(bias.grad, expected["bias"])
    with pytest.raises(RuntimeError, match="argument 'weight': expected a plain one"):
        function(**packed | {"input": inputs["input"].clone().requires_grad_()}).backward(grad)


def test_gathered_rows(cpu_isa: str) -> None:
    project = DIRECTIONS["project"][0]
    inputs = make_inputs("project", [20, 3, 9, 11], heads=3, head_dim=40)
    for index in (torch.randint(43, (60,)), torch.randperm(43, dtype=torch.int32)[:19], torch.empty(0).long()):
        lengths = [len(index) - len(index) // 2, 0, len(index) // 2, 0]
        gathered = inputs | {"offsets": offsets_of(lengths)}
        expected = project(**gathered | {"input": inputs["input"][index]})
        assert torch.equal(project(**gathered, index=index), expected)


@pytest.mark.parametrize("name", NOTHING)
@both_directions
def test_no_tokens(cpu_isa: str, direction: str, name: str) -> None:
    function = DIRECTIONS[direction][0]
    inputs = make_inputs(direction, NOTHING[name])
    out = function(**inputs)
    assert out.shape[0] == 0
    found = gradients(function, inputs, out)
    assert all((gradient == 0).all() for gradient in found.values())
    assert found["weight"].shape == inputs["weight"].shape


@both_directions
def test_only_what_needs_a_gradient_gets_one(direction: str) -> None:
    function = DIRECTIONS[direction][0]
    inputs = make_inputs(direction, [7, 4, 5, 6])
    grad = torch.randn_like(function(**inputs))
    for name, expected in gradients(function, inputs, grad).items():
        leaf = inputs[name].clone().requires_grad_()
        function(**inputs | {name: leaf}).backward(grad)
        assert torch.equal(leaf.grad, expected), name


def test_heads_change_no_bit_without_a_mask() -> None:
    project = DIRECTIONS["project"][0]
    inputs = make_inputs("project", [7, 4], heads=2, head_dim=64) | {"head_mask": None}
    expected = project(**inputs)
    for heads in (1, 2, 4, 8, 128):
        assert torch.equal(project(**inputs, heads=heads), expected)
    all_kept = inputs | {"head_mask": make_mask(2, 2).fill_(True)}
    assert torch.equal(project(**all_kept), expected)
