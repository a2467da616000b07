"""The batches that CUDA graphs of encoders are given. A stand-in for graphs runs here, the real ones in tests/gpu."""

import copy

import pytest
import torch
from model_cases import Case, make_case
from torch import nn
from transformers import BertModel, MPNetModel, ViTModel

import vleff
from vleff.models import graphs
from vleff.models.graphs import capacity_for
from vleff.nn import RaggedBatch


class Recording:
    """Captures nothing: a replay runs the layers again on the tensors that were there at the capture."""

    captured = 0

    def __init__(self, batch, layers, pool) -> None:
        Recording.captured += 1
        self.batch, self.layers = batch.replace(batch.values.clone()), layers

    def replay(self, batch):
        self.batch.values.copy_(batch.values)
        self.batch.offsets.copy_(batch.offsets)
        tokens = int(batch.offsets[-1])  # the CPU's kernels take no rows that belong to nobody
        made = self.layers(RaggedBatch(self.batch.values[:tokens], self.batch.offsets, self.batch.max_length))
        return torch.cat([made, torch.full_like(self.batch.values[tokens:], torch.nan)])


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Recording.captured = 0
    monkeypatch.setattr(graphs, "_capture", Recording)
    monkeypatch.setattr(graphs.EncoderGraphs, "takes", lambda self, states: not torch.is_grad_enabled())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


def call(model: nn.Module, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 99, mask.shape, generator=torch.Generator().manual_seed(len(lengths)))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask


def pair(case: Case) -> tuple[nn.Module, nn.Module]:
    return vleff.use_cuda_graphs(vleff.accelerate(case.model)), case.plain()


@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 65, 511, 512, 513, 1000, 1023, 1024, 5000, 100_000])
def test_capacity(tokens: int) -> None:
    capacity = capacity_for(tokens)
    assert max(tokens, 1) <= capacity and capacity % 64 == 0
    assert capacity <= max(tokens * 9 / 8, tokens + 64)


def test_few_capacities_take_all_batches() -> None:
    assert len({capacity_for(tokens) for tokens in range(1, 65_536)}) <= 64


def test_outputs_are_those_of_transformers(on_the_cpu: None) -> None:
    ours, plain = pair(make_case(BertModel))
    for lengths in ([17, 3, 1, 9], [1, 1, 1, 1], [17, 17, 17, 17], [60, 64, 2, 64], [17, 3, 2, 9], [5]):
        (actual, mask), (expected, _) = call(ours, lengths), call(plain, lengths)
        torch.testing.assert_close(actual[mask], expected[mask], atol=1e-5, rtol=1e-5)
        assert actual[~mask].count_nonzero() == 0
    assert Recording.captured == 4  # 4 samples with up to 64, 128 and 192 tokens; 1 sample


def test_graphs_are_captured_anew_where_weights_have_moved(on_the_cpu: None) -> None:
    ours, _ = pair(make_case(BertModel))
    call(ours, [4, 2])
    call(ours, [4, 3])
    assert Recording.captured == 1
    ours.double().float()
    call(ours, [4, 2])
    assert Recording.captured == 2


def test_the_graph_not_used_for_longest_goes_first(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    ours, _ = pair(make_case(BertModel))
    for samples in (1, 2, 1, 3, 1, 2):
        call(ours, [4] * samples)
    assert Recording.captured == 4  # for 1, 2 and 3 samples, and again for 2


def test_calls_that_graphs_cannot_serve_run_as_without(on_the_cpu: None) -> None:
    for model in (vleff.accelerate(make_case(BertModel).model).train(), vleff.accelerate(make_case(MPNetModel).model)):
        call(vleff.use_cuda_graphs(model), [3, 5])
    assert Recording.captured == 0


def test_on_the_cpu_nothing_changes() -> None:
    case = make_case(BertModel)
    model = vleff.accelerate(copy.deepcopy(case.model))
    expected = case.call(model).last_hidden_state
    assert vleff.use_cuda_graphs(model) is model
    assert torch.equal(case.call(model).last_hidden_state, expected)


def test_forgotten_graphs_and_copies() -> None:
    model = vleff.use_cuda_graphs(vleff.accelerate(make_case(BertModel).model))
    assert graphs.graphs_of(model.encoder) is not None
    assert graphs.graphs_of(copy.deepcopy(model).encoder) is None
    vleff.use_cuda_graphs(model, False)
    assert graphs.graphs_of(model.encoder) is None


@pytest.mark.parametrize("model_class", [BertModel, ViTModel])
def test_models_without_packed_encoders_are_refused(model_class: type) -> None:
    model = make_case(model_class).model
    if model_class is ViTModel:
        vleff.accelerate(model)
    with pytest.raises(TypeError, match=f"model: expected .*packed encoder.*, got {model_class.__name__}"):
        vleff.use_cuda_graphs(model)
