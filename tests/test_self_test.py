"""`vleff doctor --self-test`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_kernels import listed_instantiations
from fake_cuda import fake_cuda
from torch import Tensor
from typer.testing import CliRunner

import vleff.ops
from vleff import self_test
from vleff.cli import app
from vleff.self_test.case import Case
from vleff.self_test.cases import all_cases
from vleff.self_test.cases.attention import HEAD_DIMS
from vleff.self_test.running import STORED_ROUNDINGS, _converted, _in_float64, relative_error, run
from vleff.self_test.targets import Target, find_targets, gpu_problem

CPU = torch.device("cpu")
CASES = {(case.op, case.name): case for case in all_cases()}


def the_case(op: str) -> Case:
    return next(case for case in all_cases() if case.op == op)


def doctor(*options: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *options])


def test_all_ops_pass_on_this_machine() -> None:
    result = doctor("--self-test")
    assert result.exit_code == 0, result.output
    assert "self-test: 0 of" in result.output and "FAILED" not in result.output
    references = {name.removesuffix("_reference") for name in vleff.ops.__all__ if name.endswith("_reference")}
    assert references <= {case.op for case in all_cases()}
    targets, gpu = find_targets()
    assert [target.name for target in targets if target.device.type == "cpu"] == torch.ops.vleff.cpu_isa_levels()
    assert f"GPU: {gpu}" in result.output
    for name in (*references, *(target.name for target in targets)):
        assert name in result.output


def wrong_output(rows: Tensor, index: Tensor, stored: int) -> Tensor:
    sums = vleff.ops.sum_rows(rows, index, stored)
    return sums + 1e-4 * sums.detach().abs().max()


def wrong_gradient(rows: Tensor, index: Tensor, stored: int) -> Tensor:
    return vleff.ops.sum_rows(rows, index, stored) - 0.1 * rows.sum() + 0.1 * rows.detach().sum()


def not_a_number(rows: Tensor, index: Tensor, stored: int) -> Tensor:
    return vleff.ops.sum_rows(rows, index, stored) * torch.nan


def raising(rows: Tensor, index: Tensor, stored: int) -> Tensor:
    return vleff.ops.sum_rows(rows, index, -1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(wrong_output, "output 1"), (wrong_gradient, "gradient 1"), (not_a_number, "output 1"), (raising, "stored")],
)
def test_wrong_result_is_reported_and_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable, said: str
) -> None:
    case = dataclasses.replace(the_case("sum_rows"), function=wrong, dtypes=(torch.float32,))
    monkeypatch.setattr(self_test, "all_cases", lambda: [case])
    result = doctor("--self-test")
    assert result.exit_code == 1
    failures = [line for line in result.output.splitlines() if line.startswith("FAILED sum_rows")]
    assert len(failures) == len(torch.ops.vleff.cpu_isa_levels())
    assert all(said in failure for failure in failures)


def test_without_the_option_no_op_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "all_cases", lambda: pytest.fail("tested"))
    assert doctor().exit_code == 0


def test_each_level_runs_and_the_one_in_use_comes_back() -> None:
    before = torch.ops.vleff.cpu_isa()
    levels = []

    def noting_the_level(**arguments: Any) -> Tensor:
        levels.append(torch.ops.vleff.cpu_isa())
        return vleff.ops.sum_rows(**arguments)

    case = dataclasses.replace(the_case("sum_rows"), function=noting_the_level, dtypes=(torch.float32,))
    targets = [Target(level, CPU) for level in torch.ops.vleff.cpu_isa_levels()]
    assert all(outcome.ok for outcome in run([case], targets))
    assert levels == torch.ops.vleff.cpu_isa_levels()
    assert torch.ops.vleff.cpu_isa() == before


@pytest.mark.parametrize(
    ("compiled_with", "capability", "problem"),
    [
        ("13.0", None, "torch sees no GPU"),
        ("", (9, 0), "built without CUDA"),
        ("13.0", (7, 5), "expected 8.0 or later, got 7.5"),
        ("13.0", (8, 0), ""),
        ("13.0", (12, 0), ""),
    ],
)
def test_gpu_is_tested_where_the_kernels_can_run(
    compiled_with: str, capability: tuple[int, int] | None, problem: str
) -> None:
    found = gpu_problem(compiled_with, capability)
    assert problem in found and bool(problem) == bool(found)


def test_ops_without_a_kernel_are_left_out() -> None:
    gpu = Target("cuda", torch.device("cuda"))
    assert gpu.runs("ragged_lstm") and not gpu.runs("masked_feed_forward")
    assert Target("baseline", CPU).runs("masked_feed_forward")
    assert list(run([the_case("masked_feed_forward")], [gpu])) == []


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, -3.0], [1.0, -4.0], 0.25),
        ([-torch.inf, 2.0], [-torch.inf, 2.0], 0.0),
        ([torch.inf, 2.0], [-torch.inf, 2.0], torch.inf),
        ([1.0, 2.0], [-torch.inf, 2.0], torch.inf),
        ([torch.nan, 2.0], [1.0, 2.0], torch.inf),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1e-9], [0.0, 0.0], torch.inf),
        ([1.0], [1.0, 2.0], torch.inf),
    ],
)
def test_relative_error(actual: list[float], expected: list[float], error: float) -> None:
    assert relative_error(torch.tensor(actual), torch.tensor(expected)) == error


def test_integers_must_be_equal() -> None:
    numbers = torch.tensor([1, 2])
    assert relative_error(numbers, numbers) == 0
    assert relative_error(numbers + 1, numbers) == torch.inf


@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if "threshold" in case.arguments], ids=lambda c: c.name
)
def test_no_allowed_error_carries_a_logit_over_the_threshold(case: Case) -> None:
    """Otherwise a right kernel could keep other tokens than the reference."""
    for dtype in case.dtypes:
        arguments = _in_float64(_converted(case.arguments, CPU, dtype))
        logits = case.reference(**arguments)[-1]
        nearest = (logits - arguments["threshold"]).abs().min() / logits.abs().max()
        assert nearest > STORED_ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("op", "sizes"),
    [
        ("token_gather_attention", HEAD_DIMS),
        ("token_gather_attention_backward", HEAD_DIMS),
        ("attention_distillation", HEAD_DIMS),
        (
            "masked_linear",
            [CASES["masked_linear", f"density {x}"].arguments["structure"].column_block for x in (0.3, 0.1)],
        ),
    ],
)
def test_every_instantiation_on_cuda_is_reached(op: str, sizes: list[int]) -> None:
    widths = {width for _, width, *_ in listed_instantiations(op)}
    assert {min(width for width in widths if width >= size) for size in sizes} == widths


CPU_ONLY = ("pack_", "masked_feed_forward")


@pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if not case.op.startswith((*CPU_ONLY, "trim_tokens"))],
    ids=lambda case: f"{case.op}-{case.name}",
)
def test_cases_keep_all_tensors_on_the_gpu(case: Case) -> None:
    """As far as forward and shapes go; the case of trim_tokens reads how many tokens stay."""
    arguments = _converted(case.arguments, CPU, torch.bfloat16)
    expected = tuple_of(case.function(**arguments))
    with fake_cuda(allow_non_fake_inputs=True):
        actual = tuple_of(case.function(**_converted(arguments, torch.device("cuda"), torch.bfloat16)))
    assert {output.device.type for output in actual} == {"cuda"}
    assert [(x.shape, x.dtype) for x in actual] == [(x.shape, x.dtype) for x in expected]


def tuple_of(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
