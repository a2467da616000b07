"""Accelerated models on the GPU give the outputs and gradients of the models that transformers wrote."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from model_cases import Case, encoders, heads, make_case, most_error, tensors
from torch import Tensor, nn
from transformers import (
    BertModel,
    CLIPModel,
    CLIPVisionModel,
    DistilBertModel,
    MPNetModel,
    ViltModel,
    ViTModel,
)

import vleff
from vleff.models import graphs
from vleff.nn import RaggedBatch, pending_count
from vleff.nn.pending_count import PendingCount


@pytest.fixture(params=encoders() + heads(), ids=lambda model_class: model_class.__name__)
def case(request: pytest.FixtureRequest, cuda: torch.device) -> Case:
    made = make_case(request.param)
    made.inputs = {name: x.to(cuda) for name, x in made.inputs.items()}
    made.valid = None if made.valid is None else made.valid.to(cuda)
    made.model.to(cuda)
    return made


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_agree(case: Case, dtype: torch.dtype) -> None:
    exact = tensors(case.call(case.plain(dtype).double()))
    expected = tensors(case.call(case.plain(dtype)))
    actual = tensors(case.call(vleff.accelerate(case.model).to(dtype)))
    assert actual.keys() == expected.keys()
    for name in expected:
        plain, double, ours = (case.tokens(outputs[name]) for outputs in (expected, exact, actual))
        assert ours.dtype == dtype and ours.device.type == "cuda"
        assert largest(ours - double) <= most_error(plain, double) + torch.finfo(dtype).eps * largest(double)


def test_layers_run_packed(case: Case) -> None:
    model = vleff.accelerate(case.model)
    ops: set[str] = set()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        case.call(model)
    ops = {event.name for event in profile.events()}
    assert ops & {"vleff::token_gather_attention", "vleff::fused_linear"}


def test_gradients_agree(case: Case) -> None:
    def gradients(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        model = model.to(dtype)
        inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in case.inputs.items()}
        torch.manual_seed(0)
        outputs = tensors(model(**inputs))
        total = sum((case.tokens(x) ** 2).sum() for x in outputs.values() if x.requires_grad)
        total.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    exact, expected = gradients(case.plain(), torch.float64), gradients(case.plain(), torch.float32)
    actual = gradients(vleff.accelerate(case.model), torch.float32)
    assert actual.keys() == expected.keys()
    scale = max(largest(g) for g in exact.values())
    for name in expected:
        bound = 4 * largest(expected[name] - exact[name]) + 1e-5 * largest(exact[name]) + 1e-7 * scale
        assert largest(actual[name] - exact[name]) <= bound, name


@contextmanager
def waits() -> Iterator[list[int]]:
    """What the host waited for."""
    numbers: list[int] = []
    wait = PendingCount.wait

    def noted(self: PendingCount) -> int:
        numbers.append(wait(self))
        return numbers[-1]

    pending_count.PendingCount.wait = noted
    try:
        yield numbers
    finally:
        pending_count.PendingCount.wait = wait


def bert(cuda: torch.device) -> Case:
    made = make_case(BertModel)
    made.inputs = {name: x.to(cuda) for name, x in made.inputs.items()}
    made.valid = made.valid.to(cuda)
    made.model = vleff.accelerate(made.model.to(cuda))
    return made


def test_host_waits_once_for_the_number_of_tokens(cuda: torch.device) -> None:
    case = bert(cuda)
    with waits() as numbers:
        case.call(case.model)
    assert numbers == [int(case.valid.sum())]


def test_without_a_mask_the_host_waits_for_nothing(cuda: torch.device) -> None:
    made = make_case(ViTModel)
    model = vleff.accelerate(made.model.to(cuda))
    pixels = made.inputs["pixel_values"].to(cuda)
    with torch.no_grad():
        model(pixel_values=pixels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(pixel_values=pixels)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("model_class", [ViTModel, CLIPVisionModel])
def test_whole_model_in_a_cuda_graph(model_class: type, cuda: torch.device) -> None:
    made = make_case(model_class)
    model = vleff.accelerate(made.model.to(cuda))
    pixels = made.inputs["pixel_values"].to(cuda)
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(pixel_values=pixels).last_hidden_state
        pixels.copy_(torch.randn_like(pixels))
        graph.replay()
        torch.testing.assert_close(captured, model(pixel_values=pixels).last_hidden_state)
    assert not torch.equal(captured, expected)


def test_encoder_with_padding_in_a_cuda_graph(cuda: torch.device) -> None:
    case = bert(cuda)
    encoder, mask = case.model.encoder, case.inputs["attention_mask"].bool()
    states = torch.randn(*mask.shape, case.model.config.hidden_size, device=cuda)
    with torch.no_grad():
        encoder(states, mask)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = encoder(states, mask).last_hidden_state
        for lengths in ([17, 3, 1, 9], [1, 1, 1, 1], [17, 17, 17, 17]):
            mask.copy_(torch.arange(17, device=cuda) < torch.tensor(lengths, device=cuda)[:, None])
            states.copy_(torch.randn_like(states))
            graph.replay()
            torch.testing.assert_close(captured, encoder(states, mask).last_hidden_state, atol=2e-5, rtol=2e-5)


def graphs_in(encoder: nn.Module) -> int:
    return len(graphs._graphs[encoder]._graphs)


def test_graphs_of_batches_of_any_lengths(cuda: torch.device) -> None:
    case = bert(cuda)
    model = vleff.use_cuda_graphs(case.model)
    plain = vleff.restore(copy.deepcopy(model))
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        plain.to(dtype)
        for lengths in ([17, 3, 1, 9], [1, 1, 1, 1], [17, 17, 17, 17], [60, 64, 2, 64], [17, 3, 2, 9]):
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(cuda)
            ids = torch.randint(5, 99, mask.shape, device=cuda)
            with torch.no_grad():
                actual = model(input_ids=ids, attention_mask=mask).last_hidden_state
                expected = plain(input_ids=ids, attention_mask=mask).last_hidden_state
            valid = mask.bool()
            error = largest((actual - expected)[valid].float()) / largest(expected[valid].float())
            assert error <= (1e-5 if dtype == torch.float32 else 3e-2), (dtype, lengths)
            assert actual[~valid].count_nonzero() == 0
        assert graphs_in(model.encoder) == 3  # by tokens: up to 64, to 128, to 192


def test_graphs_follow_weights_that_change(cuda: torch.device) -> None:
    case = bert(cuda)
    model = vleff.use_cuda_graphs(case.model)
    case.call(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    changed = case.call(model).last_hidden_state
    expected = case.call(vleff.restore(copy.deepcopy(model))).last_hidden_state
    assert largest((changed - expected)[case.valid]) <= 1e-5 * largest(expected)
    model.half()
    assert case.call(model).last_hidden_state.dtype == torch.float16
    assert graphs_in(model.encoder) == 1


def test_graphs_survive_that_others_free_memory(cuda: torch.device) -> None:
    case = bert(cuda)
    expected = case.call(case.model).last_hidden_state
    model = vleff.use_cuda_graphs(case.model)
    case.call(model)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    junk = [torch.full((1 << 20,), torch.nan, device=cuda) for _ in range(64)]
    actual = case.call(model).last_hidden_state
    assert largest((actual - expected)[case.valid]) <= 1e-5 * largest(expected)
    assert len(junk) == 64


def test_graphs_are_for_inference_only(cuda: torch.device) -> None:
    case = bert(cuda)
    model = vleff.use_cuda_graphs(case.model)
    model(**case.inputs).last_hidden_state.sum().backward()
    assert graphs_in(model.encoder) == 0
    assert model.encoder.layer[0].output.dense.weight.grad is not None
    vleff.use_cuda_graphs(model, False)
    case.call(model)
    assert model.encoder not in graphs._graphs


@pytest.mark.parametrize("model_class", [CLIPVisionModel, CLIPModel, ViltModel, DistilBertModel, MPNetModel])
def test_graphs_in_other_families(model_class: type, cuda: torch.device) -> None:
    made = make_case(model_class)
    made.model = vleff.accelerate(made.model.to(cuda))
    made.inputs = {name: x.to(cuda) for name, x in made.inputs.items()}
    made.valid = None if made.valid is None else made.valid.to(cuda)
    expected = tensors(made.call(made.model))
    vleff.use_cuda_graphs(made.model)
    for _ in range(2):
        actual = tensors(made.call(made.model))
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_class", [BertModel, ViTModel])
def test_compiles_whole(model_class: type, cuda: torch.device) -> None:
    made = make_case(model_class)
    made.model = vleff.accelerate(made.model.to(cuda))
    made.inputs = {name: x.to(cuda) for name, x in made.inputs.items()}
    expected = made.call(made.model).last_hidden_state
    compiled = torch.compile(made.model, fullgraph=True, dynamic=True)
    actual = made.call(compiled).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_autocast(cuda: torch.device) -> None:
    case = bert(cuda)
    expected = case.call(case.model).last_hidden_state
    with torch.autocast("cuda", dtype=torch.bfloat16):
        actual = case.call(case.model).last_hidden_state
    assert largest((actual.float() - expected)[case.valid]) <= 0.05 * largest(expected)


def test_float64_runs_as_before(cuda: torch.device) -> None:
    case = bert(cuda)
    expected = case.call(vleff.restore(case.plain(torch.float64))).last_hidden_state
    actual = case.call(vleff.accelerate(case.plain(torch.float64))).last_hidden_state
    torch.testing.assert_close(actual[case.valid], expected[case.valid])


def test_ragged_batch(cuda: torch.device) -> None:
    torch.manual_seed(0)
    padded, mask = torch.randn(5, 9, 3), torch.rand(5, 9) < 0.6
    ours, theirs = RaggedBatch.pack(padded.to(cuda), mask.to(cuda)), RaggedBatch.pack(padded, mask)
    for name in ("values", "offsets", "slots"):
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name))
    assert torch.equal(ours.unpack().cpu(), theirs.unpack())
    keep = torch.rand(theirs.values.shape[0]) < 0.5
    assert torch.equal(ours.compact(keep.to(cuda)).unpack().cpu(), theirs.compact(keep).unpack())
