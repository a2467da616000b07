"""The methods on the GPU: trimmed models, sparse layers, distillation, generators."""

import copy

import pytest
import torch
from methods.lottery.families import FAMILIES, inputs_of
from methods.smarttrim.families import MODELS, trimmed
from model_cases import tensors
from torch import nn

import vleff
from vleff import smarttrim
from vleff.nn import MaskedLinear
from vleff.nn.pending_count import PendingCount


def moved(family, device):
    family.model.to(device)
    family.accelerated.to(device)
    family.case.inputs = {name: x.to(device) for name, x in family.case.inputs.items()}
    return family


@pytest.mark.parametrize("model_class", MODELS)
def test_trimmed_models_give_what_they_give_on_the_cpu(model_class: type, cuda: torch.device) -> None:
    family = trimmed(model_class)
    with smarttrim.recorded(family.model) as on_the_cpu:
        expected = family.outputs()
    moved(family, cuda)
    with smarttrim.recorded(family.model) as runs:
        actual = family.outputs()
    for run, other in zip(runs, on_the_cpu, strict=True):
        for one, two in zip(run.layers, other.layers, strict=True):
            if two.logits is not None and bool((two.logits.abs() < 1e-4).any()):
                pytest.skip("a logit at the threshold")
            assert torch.equal(one.kept().cpu(), two.kept())
            for block, heads in two.heads.items():
                assert torch.equal(one.heads[block].cpu(), heads)
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        scale = max(float(wanted.abs().max()), 1.0)
        torch.testing.assert_close(actual[name].cpu(), wanted, atol=2e-5 * scale, rtol=0, msg=name)


@pytest.mark.parametrize("model_class", MODELS[:3])
def test_host_waits_once_for_each_trimmed_stream(model_class, cuda, monkeypatch) -> None:
    family = moved(trimmed(model_class), cuda)
    waited = []
    wait = PendingCount.wait
    monkeypatch.setattr(PendingCount, "wait", lambda self: waited.append(wait(self)) or waited[-1])
    with smarttrim.recorded(family.model) as runs:
        family.outputs()
    (run,) = runs
    scored = sum(record.logits is not None for record in run.layers)
    assert scored <= len(waited) <= scored + 1  # and for the padding, once


@pytest.mark.parametrize("mode", ["masked", "gathered"])
@pytest.mark.parametrize("model_class", MODELS[:6])
def test_trimmed_models_train(model_class: type, mode: str, cuda: torch.device) -> None:
    family = moved(trimmed(model_class), cuda)
    family.model.train()
    with smarttrim.running(family.model, mode):
        outputs = tensors(family.model(**family.case.inputs))
    sum(x.float().square().mean() for x in outputs.values() if x.requires_grad).backward()
    gradients = [p.grad for p in smarttrim.trimmer_parameters(family.model).values() if p.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_sparse_models(family: str, cuda: torch.device) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    inputs = inputs_of(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.weight.numel() > 4096:
                mask = torch.rand_like(child.weight) < 0.3
                setattr(module, name, MaskedLinear.from_dense(child, mask))
    model = vleff.accelerate(model)
    with torch.no_grad():
        expected = tensors(model(**inputs))
    model.to(cuda)
    inputs = {name: x.to(cuda) for name, x in inputs.items()}
    with torch.no_grad():
        actual = tensors(model(**inputs))
    for name, wanted in expected.items():
        scale = max(float(wanted.abs().max()), 1.0)
        torch.testing.assert_close(actual[name].cpu(), wanted, atol=2e-5 * scale, rtol=0, msg=name)
    outputs = tensors(model.train()(**inputs))
    sum(x.float().square().mean() for x in outputs.values() if x.requires_grad).backward()
    values = [module.values for module in model.modules() if isinstance(module, MaskedLinear)]
    assert values and sum(v.grad is not None and bool(v.grad.any()) for v in values) > len(values) // 2


def test_masked_linear_moves_there_and_back(cuda: torch.device) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 80)
    layer = MaskedLinear.from_dense(linear, torch.rand(80, 96) < 0.2)
    input = torch.randn(7, 96)
    expected = layer(input)
    there = copy.deepcopy(layer).to(cuda)
    torch.testing.assert_close(there(input.to(cuda)).cpu(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(there.cpu()(input), expected)
