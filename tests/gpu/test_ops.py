"""Every op on the GPU: against float64, the same bits again, on another stream, in a CUDA graph."""

from typing import Any

import pytest
import torch
from attention_cases import FEATURE_LENGTHS, FEATURES, make_inputs
from torch import Tensor

from vleff.ops import token_gather_attention
from vleff.self_test.case import Case
from vleff.self_test.cases import all_cases
from vleff.self_test.running import _converted, run
from vleff.self_test.targets import Target

CASES = list(all_cases())
GPU = Target("cuda", torch.device("cuda"))
# These decide by the values of what they compute how much of it there is, or are no kernels.
READING = ("trim_tokens",)


def on_the_gpu(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    return _converted(case.arguments, GPU.device, dtype)


def results(case: Case, arguments: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        made = case.function(**arguments)
    return list(made) if isinstance(made, tuple) else [made]


def runs_here(case: Case) -> None:
    if not GPU.runs(case.op):
        pytest.skip("no kernel for CUDA")


def named(case: Case) -> str:
    return f"{case.op}-{case.name}"


@pytest.mark.parametrize("case", CASES, ids=named)
def test_outputs_and_gradients_agree_with_float64(case: Case) -> None:
    runs_here(case)
    for outcome in run([case], [GPU]):
        assert outcome.ok, outcome


@pytest.mark.parametrize("case", CASES, ids=named)
def test_same_bits_again_and_on_another_stream(case: Case) -> None:
    runs_here(case)
    for dtype in case.dtypes:
        arguments = on_the_gpu(case, dtype)
        expected = results(case, arguments)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)  # a kernel on the default stream would be done before its input is there
            late = {name: x.clone() if isinstance(x, Tensor) else x for name, x in arguments.items()}
            again = results(case, late)
        stream.synchronize()
        for one, other in zip(expected, again, strict=True):
            assert torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))


@pytest.mark.parametrize("case", [case for case in CASES if not case.op.startswith(READING)], ids=named)
def test_in_a_cuda_graph(case: Case) -> None:
    runs_here(case)
    if case.op == "fused_linear":
        pytest.skip("torch's own products")
    for dtype in case.dtypes:
        arguments = on_the_gpu(case, dtype)
        expected = results(case, arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(case, arguments)
        for result in captured:
            result.zero_()
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(expected, captured, strict=True):
            assert torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("feature", FEATURES)
def test_a_samples_attention_has_the_same_bits_alone(feature: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    options = FEATURES[feature]()
    if {"q_index", "k_index", "dropout_p"} & options.keys():
        pytest.skip("rows and drawn elements are numbered in the batch")
    inputs = make_inputs(*FEATURE_LENGTHS, dtype=dtype, **options)
    inputs = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    together = token_gather_attention(**inputs)[0]
    q, k = (inputs[name].tolist() for name in ("q_offsets", "k_offsets"))
    for sample in range(len(q) - 1):
        of_q, of_k = slice(q[sample], q[sample + 1]), slice(k[sample], k[sample + 1])
        alone = inputs | {"q": inputs["q"][of_q], "k": inputs["k"][of_k], "v": inputs["v"][of_k]}
        alone["q_offsets"] = inputs["q_offsets"][sample : sample + 2] - q[sample]
        alone["k_offsets"] = inputs["k_offsets"][sample : sample + 2] - k[sample]
        if inputs.get("head_mask") is not None:
            alone["head_mask"] = inputs["head_mask"][sample : sample + 1]
        if inputs.get("key_bias") is not None:
            alone["key_bias"] = inputs["key_bias"][of_k]
        assert torch.equal(token_gather_attention(**alone)[0], together[of_q])


@pytest.mark.parametrize("feature", FEATURES)
def test_opcheck(feature: str) -> None:
    torch.manual_seed(0)
    inputs = make_inputs(*FEATURE_LENGTHS, **FEATURES[feature]())
    inputs = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    for name in ("q", "k", "v"):
        inputs[name].requires_grad_()
    positional = [inputs.pop(name) for name in ("q", "k", "v", "q_offsets", "k_offsets", "max_q", "max_k")]
    inputs.setdefault("scale", 0.25)
    torch.library.opcheck(torch.ops.vleff.token_gather_attention, tuple(positional), inputs)


def test_no_launch_waits_for_the_device() -> None:
    inputs = make_inputs(*FEATURE_LENGTHS, **FEATURES["everything"]())
    inputs = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    for name in ("q", "k", "v"):
        inputs[name].requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        token_gather_attention(**inputs)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_wrong_offsets_and_rows_touch_no_other_memory() -> None:
    inputs = make_inputs(*FEATURE_LENGTHS)
    inputs = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    inputs["k_offsets"] = torch.tensor([0, 2**30, -5, 7, 2**31 - 1], dtype=torch.int32, device="cuda")
    inputs["k_index"] = torch.full((66,), 2**31 - 1, dtype=torch.int32, device="cuda")
    token_gather_attention(**inputs)
    torch.cuda.synchronize()
