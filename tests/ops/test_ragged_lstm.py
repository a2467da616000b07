"""ragged_lstm and its gradients against the reference in float64, at every instruction-set level."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from attention_cases import DTYPES, assert_same_bits, error, offsets_of
from fake_cuda import fake_cuda
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import ragged_lstm, ragged_lstm_reference
from vleff.ops.ragged_lstm import _hidden_before
from vleff.ops.ragged_lstm_steps import ragged_lstm_backward_by_steps, ragged_lstm_by_steps

pytestmark = pytest.mark.usefixtures("poisoned_memory")
LEAVES = ("gates", "weight", "initial_hidden", "initial_cell")

# lengths, width, directions: one row, off and on the vector widths, empty samples, more samples than a tile has rows
SHAPES: dict[str, tuple[list[int], int, int]] = {
    "one row": ([1], 1, 1),
    "17 rows": ([17], 17, 2),
    "empty samples": ([0, 3, 0, 5, 1, 0], 40, 2),
    "many samples": ([4, 9, 1, 2, 9, 3, 5, 7, 6, 8, 1, 4, 2, 3], 33, 1),
    "width 150": ([30, 12, 21], 150, 2),
    "width 300": ([6, 11], 300, 1),
}
NOTHING = {"no samples": ([], 8, 2), "only empty samples": ([0, 0], 8, 1)}


def make_inputs(
    lengths: Sequence[int], width: int, directions: int, dtype: torch.dtype = torch.float32, initial: bool = True
) -> dict[str, Any]:
    """Random gates, some of them large."""
    gates = torch.randn(sum(lengths), directions * 4 * width)
    gates[..., 12::13] *= 10
    states = len(lengths), directions * width
    return {
        "gates": gates.to(dtype),
        "weight": (torch.randn(directions, 4 * width, width) * width**-0.5).to(dtype),
        "offsets": offsets_of(lengths),
        "max_length": max(lengths, default=0),
        "initial_hidden": torch.randn(states).to(dtype) if initial else None,
        "initial_cell": torch.randn(states) if initial else None,
    }


def leaves_of(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in LEAVES if inputs[name] is not None}


def in_double(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {name: leaf.double() for name, leaf in leaves_of(inputs).items()}


def run(function: Callable[..., Any], inputs: dict[str, Any], grad: Tensor) -> dict[str, Tensor]:
    """Hidden and cell states, and the gradients of <hidden, grad>."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves_of(inputs).items()}
    hidden, cell = function(**inputs | leaves)
    found = torch.autograd.grad(hidden, list(leaves.values()), grad.to(hidden.dtype), materialize_grads=True)
    return {"hidden": hidden.detach(), "cell": cell.detach(), **dict(zip(leaves, found, strict=True))}


def grad_of(inputs: dict[str, Any]) -> Tensor:
    total, columns = inputs["gates"].shape
    return torch.randn(total, columns // 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, shape: Any, dtype: torch.dtype) -> None:
    assert_accurate(ragged_lstm, shape, dtype)


def assert_accurate(function: Callable[..., Any], shape: Any, dtype: torch.dtype) -> None:
    draws = [make_inputs(*shape, dtype, initial) for initial in (True, False)]
    grads = [grad_of(inputs) for inputs in draws]
    ours, plain = ([run(f, *draw) for draw in zip(draws, grads, strict=True)] for f in (function, plain_lstm))
    exact = [run(ragged_lstm_reference, in_double(inputs), grad) for inputs, grad in zip(draws, grads, strict=True)]
    for name in ("hidden", "cell", *LEAVES):
        pairs = [
            [(of[name], e[name]) for of, e in zip(found, exact, strict=True) if name in e] for found in (ours, plain)
        ]
        error_of_ours, error_of_plain = (max(error(found, expected) for found, expected in some) for some in pairs)
        largest = max(expected.abs().max().item() for _, expected in pairs[0])
        assert error_of_ours <= max(2 * error_of_plain, 4e-6 * max(largest, 1)), f"{name}: {error_of_ours:.2g}"


def plain_lstm(gates: Tensor, weight: Tensor, offsets: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """The reference in the dtype of the inputs, with cells in float32 as ours are."""
    hidden, cell = ragged_lstm_reference(gates, weight, offsets, *rest, **named)
    return hidden, cell.float()


def test_it_is_nn_lstm() -> None:
    lstm = torch.nn.LSTM(12, 10, bidirectional=True).double()
    x = torch.randn(9, 12).double()
    weights = [torch.cat([getattr(lstm, f"{name}_l0{end}") for end in ("", "_reverse")]) for name in ("weight_ih",)]
    bias = torch.cat([lstm.bias_ih_l0 + lstm.bias_hh_l0, lstm.bias_ih_l0_reverse + lstm.bias_hh_l0_reverse])
    recurrent = torch.stack([lstm.weight_hh_l0, lstm.weight_hh_l0_reverse])
    gates = x @ weights[0].T + bias
    hidden, _ = ragged_lstm_reference(gates, recurrent, offsets_of([9]), 9)
    torch.testing.assert_close(hidden, lstm(x)[0])
    ours, _ = ragged_lstm(gates.float(), recurrent.float(), offsets_of([9]), 9)
    torch.testing.assert_close(ours.double(), hidden, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", NOTHING.values(), ids=NOTHING)
def test_nothing(cpu_isa: str, shape: Any, dtype: torch.dtype) -> None:
    inputs = make_inputs(*shape, dtype)
    for name, result in run(ragged_lstm, inputs, grad_of(inputs)).items():
        assert (result == 0).all(), name


def test_large_gates_saturate(cpu_isa: str) -> None:
    inputs = make_inputs([5, 3], 20, 2)
    inputs["gates"] *= 1e30
    found = run(ragged_lstm, inputs, grad_of(inputs))
    assert all(result.isfinite().all() for result in found.values())
    inputs["gates"][0, 3] = torch.nan
    hidden, _ = ragged_lstm(**inputs)
    assert hidden[0].isnan().any() and hidden[5:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_mates_and_threads_change_no_bit(cpu_isa: str, with_threads: Callable, dtype: torch.dtype) -> None:
    lengths = torch.randint(0, 12, (33,)).tolist()
    inputs = make_inputs(lengths, 24, 2, dtype)
    grad = grad_of(inputs)
    one = with_threads(1, run, ragged_lstm, inputs, grad)
    for threads in (2, 3, 7):
        more = with_threads(threads, run, ragged_lstm, inputs, grad)
        for name in one.keys() - {"weight"}:
            assert_same_bits(more[name], one[name])
    ends = inputs["offsets"].tolist()
    for first, count in ((0, 1), (4, 2), (7, 5), (2, 31), (32, 1)):
        rows, samples = slice(ends[first], ends[first + count]), slice(first, first + count)
        some = inputs | {
            "gates": inputs["gates"][rows],
            "offsets": offsets_of(lengths[samples]),
            **{name: inputs[name][samples] for name in ("initial_hidden", "initial_cell")},
        }
        found = run(ragged_lstm, some, grad[rows])
        for name in ("hidden", "cell", "gates"):
            assert_same_bits(found[name], one[name][rows])
        for name in ("initial_hidden", "initial_cell"):
            assert_same_bits(found[name], one[name][samples])


@given(
    lengths=st.lists(st.integers(0, 9), max_size=9),
    width=st.integers(1, 40),
    directions=st.integers(1, 2),
    dtype=st.sampled_from(DTYPES),
    initial=st.booleans(),
)
def test_any_shape_matches_the_reference(
    cpu_isa: str, lengths: list[int], width: int, directions: int, dtype: torch.dtype, initial: bool
) -> None:
    inputs = make_inputs(lengths, width, directions, dtype, initial)
    hidden, cell = ragged_lstm(**inputs)
    expected, expected_cell = ragged_lstm_reference(**in_double(inputs))
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert error(hidden, expected) <= tolerance and error(cell, expected_cell) <= tolerance


def test_strides_change_nothing() -> None:
    inputs = make_inputs([4, 6], 10, 2)
    strided = inputs | {name: leaf.repeat_interleave(2, -1)[..., ::2] for name, leaf in leaves_of(inputs).items()}
    assert_same_bits(ragged_lstm(**strided)[0], ragged_lstm(**inputs)[0])


def test_gradients_through_some_inputs_only() -> None:
    inputs = make_inputs([4, 6], 10, 1)
    whole = run(ragged_lstm, inputs, grad := grad_of(inputs))
    for name in LEAVES:
        leaf = inputs[name].clone().requires_grad_()
        hidden, cell = ragged_lstm(**inputs | {name: leaf})
        assert not cell.requires_grad
        assert_same_bits(torch.autograd.grad(hidden, leaf, grad)[0], whole[name])


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype, initial: bool) -> None:
    inputs = make_inputs([3, 0, 4], 9, 2, dtype, initial)
    leaves = [x.clone().requires_grad_() if name in LEAVES and x is not None else x for name, x in inputs.items()]
    torch.library.opcheck(torch.ops.vleff.ragged_lstm.default, tuple(leaves), {"activations": True})
    hidden, cell, activated = torch.ops.vleff.ragged_lstm(*inputs.values(), activations=True)
    backward = torch.ops.vleff.ragged_lstm_backward.default
    torch.library.opcheck(backward, (hidden, cell, activated, *inputs.values()))


def test_the_op_itself_says_that_gradients_need_activations() -> None:
    inputs = make_inputs([3], 4, 1)
    inputs["gates"].requires_grad_()
    hidden, _, _ = torch.ops.vleff.ragged_lstm(*inputs.values())
    with pytest.raises(RuntimeError, match="argument 'activations': expected True"):
        hidden.sum().backward()


def test_fake_results_have_the_shapes_of_real_ones() -> None:
    inputs = make_inputs([3, 4], 9, 2, torch.bfloat16)
    grad = grad_of(inputs)
    real = run(ragged_lstm, inputs, grad)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for differentiates in (False, True):
            fakes = {name: mode.from_tensor(x.detach()) for name, x in leaves_of(inputs).items()}
            for fake in fakes.values():
                fake.requires_grad_(differentiates)
            hidden, cell = ragged_lstm(**inputs | fakes)
            for name, result in (("hidden", hidden), ("cell", cell)):
                assert (result.shape, result.dtype) == (real[name].shape, real[name].dtype)


def test_compiles_once_for_all_row_counts() -> None:
    torch._dynamo.reset()

    def layer(inputs: dict[str, Any]) -> Tensor:
        return ragged_lstm(**inputs | {"gates": inputs["gates"] * 2})[0] + 1

    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for number, lengths in enumerate(([4, 9], [7, 2], [3, 3])):
        inputs = make_inputs(lengths, 8, 1)
        inputs["max_length"] = 9
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            assert_same_bits(compiled(inputs), layer(inputs))


def test_flops_and_profiler() -> None:
    inputs = make_inputs([5, 2], 6, 2)
    inputs["gates"].requires_grad_()
    with FlopCounterMode(display=False) as counter, torch.profiler.profile() as profile:
        ragged_lstm(**inputs)[0].sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 7 * (2 * 4 * 6) * 6
    names = {event.key for event in profile.key_averages()}
    assert {"vleff::ragged_lstm", "vleff::ragged_lstm_backward"} <= names


def test_gradients_are_those_of_the_formula() -> None:
    inputs = in_double(make_inputs([2, 0, 3], 2, 2))
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves_of(inputs).items()}

    def hidden(*values: Tensor) -> Tensor:
        return ragged_lstm_reference(**inputs | dict(zip(leaves, values, strict=True)))[0]

    assert torch.autograd.gradcheck(hidden, tuple(leaves.values()))


def test_second_derivatives_are_refused() -> None:
    inputs = make_inputs([3], 4, 1)
    leaf = inputs["gates"].requires_grad_()
    (grad,) = torch.autograd.grad(ragged_lstm(**inputs)[0].sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="ragged_lstm_reference"):
        grad.sum().backward()


WRONG = [
    ("gates", torch.zeros(7, 32).double()),
    ("gates", torch.zeros(7, 31)),
    ("gates", torch.zeros(32)),
    ("weight", torch.zeros(16, 4)),
    ("weight", torch.zeros(3, 16, 4)),
    ("weight", torch.zeros(2, 15, 4)),
    ("weight", torch.zeros(2, 0, 0)),
    ("weight", torch.zeros(2, 16, 4).half()),
    ("offsets", torch.tensor([0, 3, 7])),
    ("offsets", torch.zeros(0, dtype=torch.int32)),
    ("max_length", -1),
    ("initial_hidden", torch.zeros(2, 7)),
    ("initial_hidden", torch.zeros(2, 8).half()),
    ("initial_cell", torch.zeros(3, 8)),
    ("initial_cell", torch.zeros(2, 8).half()),
]
WRONG_VALUES = [
    ("offsets", torch.tensor([0, 3, 8]).int()),
    ("offsets", torch.tensor([1, 3, 7]).int()),
    ("offsets", torch.tensor([0, 8, 7]).int()),
    ("max_length", 3),
]


@pytest.mark.parametrize("argument, wrong", [*WRONG, *WRONG_VALUES])
def test_bad_argument(argument: str, wrong: Any) -> None:
    inputs = make_inputs([3, 4], 4, 2)
    hidden, cell, activated = torch.ops.vleff.ragged_lstm(*inputs.values(), activations=True)
    with pytest.raises(RuntimeError, match=rf"ragged_lstm: argument '{argument}': expected .+, got .+"):
        ragged_lstm(**inputs | {argument: wrong})
    with pytest.raises(RuntimeError, match=rf"ragged_lstm_backward: argument '{argument}': expected .+, got .+"):
        torch.ops.vleff.ragged_lstm_backward(hidden, cell, activated, *(inputs | {argument: wrong}).values())


@pytest.mark.parametrize("backward", [torch.ops.vleff.ragged_lstm_backward, ragged_lstm_backward_by_steps])
@pytest.mark.parametrize("argument", ["grad_hidden", "cell", "activated"])
@pytest.mark.parametrize("wrong", [torch.zeros(7, 9), torch.zeros(7, 8).double()], ids=str)
def test_bad_gradient(argument: str, wrong: Tensor, backward: Callable[..., Any]) -> None:
    inputs = make_inputs([3, 4], 4, 2)
    results = torch.ops.vleff.ragged_lstm(*inputs.values(), activations=True)
    given_results = dict(zip(("grad_hidden", "cell", "activated"), results, strict=True)) | {argument: wrong}
    with pytest.raises(RuntimeError, match=rf"ragged_lstm_backward: argument '{argument}': expected .+, got .+"):
        backward(**given_results, **inputs)


def steps_with_autograd(**inputs: Any) -> tuple[Tensor, Tensor]:
    """What runs on CUDA, on the CPU: forward and backward by steps, joined as the op's own are."""

    class Joined(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> tuple[Tensor, Tensor]:
            ctx.inputs = tensors
            hidden, ctx.cell, ctx.activated = ragged_lstm_by_steps(*tensors, activations=True)
            ctx.hidden = hidden
            return hidden, ctx.cell

        @staticmethod
        def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
            weight, offsets, _, initial_hidden, initial_cell = ctx.inputs[1:]
            made = ragged_lstm_backward_by_steps(grad, ctx.cell, ctx.activated, *ctx.inputs)
            before = _hidden_before(ctx.hidden, weight.shape, offsets, initial_hidden)
            by_direction = made[0].unflatten(1, (weight.shape[0], -1)).permute(1, 2, 0)
            of_weight = by_direction @ before.unflatten(1, (weight.shape[0], -1)).transpose(0, 1)
            states = [None if x is None else g for x, g in zip((initial_hidden, initial_cell), made[1:], strict=True)]
            return made[0], of_weight, None, None, *states

    names = ("gates", "weight", "offsets", "max_length", "initial_hidden", "initial_cell")
    return Joined.apply(*(inputs[name] for name in names))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES.values(), *NOTHING.values()], ids=[*SHAPES, *NOTHING])
def test_by_steps_it_is_what_the_kernel_makes(shape: Any, initial: bool, dtype: torch.dtype) -> None:
    inputs = make_inputs(*shape, dtype, initial)
    grad = grad_of(inputs)
    expected, actual = run(ragged_lstm, inputs, grad), run(steps_with_autograd, inputs, grad)
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (wanted.shape, wanted.dtype)
        bound = (4 * torch.finfo(dtype).eps + 1e-5) * float(wanted.float().abs().max()) if wanted.numel() else 0
        torch.testing.assert_close(actual[name], wanted, atol=bound, rtol=0, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_by_steps_its_error_is_at_most_twice_plain_torch(shape: Any, dtype: torch.dtype) -> None:
    assert_accurate(steps_with_autograd, shape, dtype)


def test_by_steps_rows_of_no_sample_are_zeros() -> None:
    inputs = make_inputs([3, 0, 4], 8, 2)
    more = inputs | {"gates": torch.cat([inputs["gates"], torch.full((2, 64), torch.nan)])}
    made, alone = (ragged_lstm_by_steps(**some, activations=True) for some in (more, inputs))
    grad = torch.cat([grad_of(inputs), torch.full((2, 16), torch.nan)])
    grads = ragged_lstm_backward_by_steps(grad, *made[1:], **more)
    grads_alone = ragged_lstm_backward_by_steps(grad[:7], *alone[1:], **inputs)
    for found, expected in zip((*made, grads[0]), (*alone, grads_alone[0]), strict=True):
        assert torch.equal(found[:7], expected) and found[7:].count_nonzero() == 0
    assert all(torch.equal(found, expected) for found, expected in zip(grads[1:], grads_alone[1:], strict=True))


@pytest.mark.parametrize("shape", NOTHING.values(), ids=NOTHING)
def test_by_steps_results_share_no_memory(shape: Any) -> None:
    inputs = make_inputs(*shape)
    inputs["gates"] = torch.ones(3, inputs["gates"].shape[1])
    made = ragged_lstm_by_steps(**inputs, activations=True)
    made += ragged_lstm_backward_by_steps(*made, **inputs)
    filled = [result.untyped_storage().data_ptr() for result in made if result.numel()]
    assert len(set(filled)) == len(filled)


def test_by_steps_more_steps_than_rows_change_no_bit() -> None:
    inputs = make_inputs([3, 0, 5], 9, 2)
    longer = inputs | {"max_length": 11}
    made, expected = (ragged_lstm_by_steps(**some, activations=True) for some in (longer, inputs))
    grad = grad_of(inputs)
    made += ragged_lstm_backward_by_steps(grad, *made[1:], **longer)
    expected += ragged_lstm_backward_by_steps(grad, *expected[1:], **inputs)
    for found, wanted in zip(made, expected, strict=True):
        assert_same_bits(found, wanted)


def test_by_steps_a_sample_that_is_not_finite_reaches_no_other() -> None:
    inputs = make_inputs([3, 0, 4], 8, 2)
    inputs["gates"][:3] = torch.nan
    made = ragged_lstm_by_steps(**inputs, activations=True)
    grads = ragged_lstm_backward_by_steps(grad_of(inputs), *made[1:], **inputs)
    assert made[0][:3].isnan().all() and made[0][3:].isfinite().all()
    assert grads[0][3:].isfinite().all() and grads[1][1:].isfinite().all() and grads[2][1:].isfinite().all()


@pytest.mark.parametrize("offsets", [[0, 2**30, -5, 7], [5, 3, 2**31 - 1, -(2**31)]], ids=str)
def test_by_steps_wrong_offsets_reach_no_other_memory(offsets: list[int]) -> None:
    inputs = make_inputs([3, 0, 4], 8, 2) | {"offsets": torch.tensor(offsets, dtype=torch.int32)}
    hidden, cell, activated = ragged_lstm_by_steps(**inputs, activations=True)
    ragged_lstm_backward_by_steps(hidden, cell, activated, **inputs)
    _hidden_before(hidden, inputs["weight"].shape, inputs["offsets"], inputs["initial_hidden"])


@pytest.mark.parametrize("argument, wrong", WRONG)
def test_by_steps_bad_argument(argument: str, wrong: Any) -> None:
    inputs = make_inputs([3, 4], 4, 2)
    results = ragged_lstm_by_steps(**inputs, activations=True)
    with pytest.raises(RuntimeError, match=rf"ragged_lstm: argument '{argument}': expected .+, got .+"):
        ragged_lstm_by_steps(**inputs | {argument: wrong})
    with pytest.raises(RuntimeError, match=rf"ragged_lstm_backward: argument '{argument}': expected .+, got .+"):
        ragged_lstm_backward_by_steps(*results, **inputs | {argument: wrong})


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("lengths", [[0, 3, 0, 0, 2, 1, 0], [4], [1, 1], [0, 0], []], ids=str)
def test_states_before_rows(lengths: list[int], initial: bool) -> None:
    inputs = make_inputs(lengths, 3, 2, initial=initial)
    hidden = torch.randn(sum(lengths), 6)
    first = inputs["initial_hidden"] if initial else torch.zeros(len(lengths), 6)
    expected = torch.empty_like(hidden)
    for sample, (begin, length) in enumerate(zip(inputs["offsets"].tolist(), lengths, strict=False)):
        for row in range(begin, begin + length):
            expected[row, :3] = hidden[row - 1, :3] if row > begin else first[sample, :3]
            expected[row, 3:] = hidden[row + 1, 3:] if row < begin + length - 1 else first[sample, 3:]
    found = _hidden_before(hidden, inputs["weight"].shape, inputs["offsets"], inputs["initial_hidden"])
    assert_same_bits(found, expected)


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("shape", [([3, 0, 5], 8, 2), ([2], 8, 1), *NOTHING.values()], ids=str)
def test_by_steps_no_value_is_read_on_cuda(shape: Any, initial: bool) -> None:
    inputs = make_inputs(*shape, torch.bfloat16, initial)
    for activations in (True, False):
        expected = torch.ops.vleff.ragged_lstm(*inputs.values(), activations=activations)
        with fake_cuda(allow_non_fake_inputs=True):
            there = {name: x.to("cuda") if isinstance(x, Tensor) else x for name, x in inputs.items()}
            made = ragged_lstm_by_steps(**there, activations=activations)
        assert_alike(made, expected)
    inputs = make_inputs(*shape, torch.bfloat16, initial)
    results = torch.ops.vleff.ragged_lstm(*inputs.values(), activations=True)
    expected = torch.ops.vleff.ragged_lstm_backward(*results, *inputs.values())
    with fake_cuda(allow_non_fake_inputs=True):
        there = {name: x.to("cuda") if isinstance(x, Tensor) else x for name, x in inputs.items()}
        hidden, *rest = (x.to("cuda") for x in results)
        made = ragged_lstm_backward_by_steps(hidden, *rest, **there)
        before = _hidden_before(hidden, there["weight"].shape, there["offsets"], there["initial_hidden"])
    assert_alike((*made, before), (*expected, results[0]))


def assert_alike(fakes: Sequence[Tensor], reals: Sequence[Tensor]) -> None:
    """The fakes are on the GPU, and otherwise as the reals."""
    for fake, real in zip(fakes, reals, strict=True):
        assert (fake.shape, fake.dtype, fake.device.type) == (real.shape, real.dtype, "cuda")
        assert fake.is_contiguous()
