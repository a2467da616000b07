"""masked_linear against its reference in float64, its gradients, and what its bits depend on."""

from typing import Any

import pytest
import torch
from head_masked_cases import assert_within_twice_plain
from masked_linear_cases import make_inputs
from torch.utils.flop_counter import FlopCounterMode

from vleff.ops import MaskedStructure, masked_linear, masked_linear_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# rows, columns, share of elements: one element, none, rows without any, sizes around chunks, blocks and panels
WEIGHTS = [(1, 1, 1.0), (3, 5, 0.5), (65, 130, 0.3), (200, 300, 0.1), (64, 128, 0.0), (257, 513, 0.7), (130, 40, 0.02)]
TOKENS = [0, 1, 2, 15, 16, 17, 33, 48, 63, 64, 65, 130]


def in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_plain_torch(cpu_isa: str, dtype: torch.dtype) -> None:
    for rows, columns, share in WEIGHTS:
        for tokens in TOKENS:
            inputs = make_inputs(rows, columns, share, tokens, dtype)
            out = masked_linear(**inputs)
            assert out.shape == (tokens, rows) and out.dtype == dtype
            assert_within_twice_plain(
                out, masked_linear_reference(**inputs), masked_linear_reference(**in_float64(inputs))
            )


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_activations(cpu_isa: str, activation: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(65, 130, 0.3, 40, dtype) | {"activation": activation}
    reference = {**inputs, "activation": activation}
    assert_within_twice_plain(
        masked_linear(**inputs), masked_linear_reference(**reference), masked_linear_reference(**in_float64(reference))
    )
    inputs["input"][0] = float("nan")
    assert masked_linear(**inputs)[0, inputs["structure"].mask().any(1)].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(cpu_isa: str, dtype: torch.dtype) -> None:
    for rows, columns, share in WEIGHTS:
        for tokens in (0, 1, 17, 64, 130):
            inputs = make_inputs(rows, columns, share, tokens, dtype)
            grad = torch.randn(tokens, rows).to(dtype)

            def gradients(function: Any, cast: Any, given: dict[str, Any], by: torch.Tensor) -> list[torch.Tensor]:
                leaves = {
                    name: cast(x).detach().requires_grad_() for name, x in given.items() if isinstance(x, torch.Tensor)
                }
                function(**(given | leaves)).backward(cast(by))
                return [leaf.grad for leaf in leaves.values()]

            back = inputs | {"transposed": inputs["structure"].transposed()}
            actual = gradients(masked_linear, lambda x: x.clone(), back, grad)
            plain = gradients(masked_linear_reference, lambda x: x.clone(), inputs, grad)
            exact = gradients(masked_linear_reference, lambda x: x.double(), inputs, grad)
            for ours, theirs, double in zip(actual, plain, exact, strict=True):
                assert_within_twice_plain(ours, theirs, double)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_does_not_depend_on_the_others_nor_on_threads(
    cpu_isa: str, dtype: torch.dtype, with_threads: Any
) -> None:
    inputs = make_inputs(200, 300, 0.3, 150, dtype)
    together = masked_linear(**inputs)
    assert torch.equal(with_threads(1, lambda: masked_linear(**inputs)), together)
    for count in (1, 2, 15, 16, 31, 33, 64, 65, 149):
        some = inputs | {"input": inputs["input"][-count:], "residual": inputs["residual"][-count:]}
        assert torch.equal(masked_linear(**some), together[-count:]), count


def test_grad_values_do_not_depend_on_threads(with_threads: Any) -> None:
    inputs = make_inputs(200, 300, 0.3, 150, torch.float32)
    grad, s = torch.randn(150, 200), inputs["structure"]

    def run() -> torch.Tensor:
        return torch.ops.vleff.masked_linear_grad_values(
            grad, inputs["input"], s.starts, s.order, s.block_columns, s.row_chunk, s.column_block
        )

    assert torch.equal(with_threads(1, run), with_threads(2, run))


def test_leading_dimensions_and_gaps() -> None:
    inputs = make_inputs(65, 130, 0.3, 24, torch.float32) | {"residual": None}
    expected = masked_linear(**inputs)
    wide = torch.zeros(24, 200)
    wide[:, :130] = inputs["input"]
    assert torch.equal(masked_linear(**(inputs | {"input": wide[:, :130]})), expected)
    folded = masked_linear(**(inputs | {"input": inputs["input"].view(2, 3, 4, 130)}))
    assert torch.equal(folded, expected.view(2, 3, 4, 65))


@pytest.mark.parametrize("sizes", [(1, 1), (7, 13), (256, 256)])
def test_any_chunks_and_blocks_give_the_same_bits_by_row(sizes: tuple[int, int]) -> None:
    mask = torch.rand(90, 270) < 0.2
    weight, input = torch.randn(90, 270), torch.randn(20, 270)
    expected = masked_linear(input, (s := MaskedStructure.from_mask(mask)).gather(weight), s)
    other = MaskedStructure.from_mask(mask, *sizes).check()
    torch.testing.assert_close(masked_linear(input, other.gather(weight), other), expected, atol=1e-5, rtol=1e-5)


def test_torch_library_rules() -> None:
    inputs = make_inputs(65, 130, 0.3, 5, torch.float32)
    s, (t, elements) = inputs["structure"], inputs["structure"].transposed()
    leaves = [inputs[name].requires_grad_() for name in ("input", "values", "bias", "residual")]
    arguments = (leaves[0], leaves[1], s.starts, s.order, s.block_columns, 65, s.row_chunk, s.column_block)
    back = (None, None, t.starts, t.order, t.block_columns, elements)
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(torch.ops.vleff.masked_linear, (*arguments, leaves[2], leaves[3], "none", *back))
    grad = (torch.randn(5, 65), inputs["input"].detach(), *arguments[2:5], s.row_chunk, s.column_block)
    torch.library.opcheck(torch.ops.vleff.masked_linear_grad_values, grad)


def test_compiles_whole_for_all_token_counts() -> None:
    inputs = make_inputs(65, 130, 0.3, 9, torch.float32) | {"residual": None}
    compiled = torch.compile(masked_linear, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (9, 40, 17):
        some = inputs | {"input": torch.randn(tokens, 130)}
        assert torch.equal(compiled(**some), masked_linear(**some))


def test_flops_count_elements_only() -> None:
    inputs = make_inputs(65, 130, 0.3, 9, torch.float32)
    with FlopCounterMode(display=False) as counter:
        masked_linear(**inputs)
    assert counter.get_total_flops() == 2 * 9 * inputs["structure"].elements


def test_bad_input_is_named() -> None:
    inputs = make_inputs(65, 130, 0.3, 9, torch.float32)
    s = inputs["structure"]
    descending = s.starts.clone()
    descending[3] = s.elements
    cases: list[tuple[dict[str, Any], str]] = [
        ({"input": torch.zeros(9, 130, dtype=torch.int32)}, "argument 'input'"),
        ({"input": torch.zeros(9, 600)}, "argument 'starts'"),
        ({"values": inputs["values"][1:]}, "argument 'values'"),
        ({"values": inputs["values"].bfloat16()}, "argument 'values': expected float32"),
        ({"bias": torch.zeros(64)}, r"argument 'bias': expected float32 \[65\]"),
        ({"residual": torch.zeros(9, 64)}, "argument 'residual'"),
        ({"activation": "tanh"}, "argument 'activation'"),
        ({"structure": MaskedStructure(65, 130, 64, 128, descending, s.order, s.block_columns)}, "argument 'starts'"),
        ({"structure": MaskedStructure(65, 130, 0, 128, s.starts, s.order, s.block_columns)}, "argument 'row_chunk'"),
        (
            {"structure": MaskedStructure(65, 130, 64, 300, s.starts, s.order, s.block_columns)},
            "argument 'column_block'",
        ),
    ]
    for change, message in cases:
        with pytest.raises(RuntimeError, match=message):
            masked_linear(**(inputs | change))
    leaf = inputs["input"].requires_grad_()
    with pytest.raises(RuntimeError, match="argument 'transposed'"):
        masked_linear(**inputs).sum().backward()
    with pytest.raises(RuntimeError, match="argument 'activation': expected none"):
        masked_linear(**(inputs | {"activation": "gelu"})).sum().backward()
    assert leaf.grad is None


def test_numbers_that_do_not_fit_stay_within_memory() -> None:
    """Wrong `order` and `block_columns` give wrong results, but read and write nothing else."""
    inputs = make_inputs(65, 130, 0.3, 9, torch.float32)
    s = inputs["structure"]
    wrong = MaskedStructure(
        65,
        130,
        s.row_chunk,
        s.column_block,
        s.starts,
        torch.full_like(s.order, 255),
        torch.full_like(s.block_columns, 255),
    )
    assert masked_linear(**(inputs | {"structure": wrong})).shape == (9, 65)
    with pytest.raises(ValueError, match="order, block_columns"):
        wrong.check()
