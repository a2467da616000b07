"""The methods are trained on the GPU: losses like on the CPU, and Trainers that run there."""

import copy
from pathlib import Path

import pytest
import torch
from methods.dide import small_models
from methods.dide.test_distillation import trainer
from methods.lottery.families import bert
from methods.smarttrim.families import MODELS, trimmed
from transformers import ViltForQuestionAnswering

import vleff
from vleff import smarttrim
from vleff.dide import DistillationConfig, DualEncoder, FusionTeacher, distil
from vleff.lottery import GradualPruner, HeadScores, LotteryConfig, attention_matrices


@pytest.mark.parametrize("model_class", MODELS[:6])
def test_shares_and_flops_are_those_of_the_cpu(model_class: type, cuda: torch.device) -> None:
    family = trimmed(model_class)
    with smarttrim.recorded(family.model) as on_the_cpu:
        family.outputs()
    expected = smarttrim.kept_by(family.model, on_the_cpu)
    family.model.to(cuda)
    family.case.inputs = {name: x.to(cuda) for name, x in family.case.inputs.items()}
    with smarttrim.recorded(family.model) as runs:
        family.outputs()
    kept = smarttrim.kept_by(family.model, runs)
    assert kept.flop_ratio == pytest.approx(expected.flop_ratio, abs=0.02)  # a logit may be at the threshold


@pytest.mark.parametrize("mode", ["masked", "gathered"])
@pytest.mark.parametrize("target", [{"flop_target": 0.5}, {}], ids=["flops", "shares"])
def test_a_step_of_self_distillation(mode: str, target: dict[str, float], cuda: torch.device) -> None:
    config = smarttrim.SmartTrimConfig(training=mode, **target)
    family = trimmed(ViltForQuestionAnswering, config=config)
    family.model.to(cuda).train()
    inputs = {name: x.to(cuda) for name, x in family.case.inputs.items()}
    inputs["labels"] = torch.rand(len(inputs["input_ids"]), family.model.config.num_labels, device=cuda)
    parts = smarttrim.training_loss(family.model, inputs, step=5, total_steps=10)
    parts.loss.backward()
    numbers = parts.numbers()
    assert 0 < numbers["flop_ratio"] < 1.2 and 0 < numbers["token_share"] <= 1 and 0 < numbers["head_share"] <= 1
    gradients = [value.grad for value in smarttrim.trimmer_parameters(family.model).values()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("task", list(small_models.TEACHERS))
def test_distillation_losses_are_those_of_the_cpu(task: str, accelerated: bool, cuda: torch.device) -> None:
    fusion, model = small_models.teacher(task), small_models.student(task)
    batch = small_models.inputs(task) | {"labels": small_models.labels(task)}
    found = []
    for device in (torch.device("cpu"), cuda):
        own, theirs = copy.deepcopy(model).to(device), copy.deepcopy(fusion).to(device)
        if accelerated:
            vleff.accelerate(own)
            vleff.accelerate(theirs)
        torch.manual_seed(1)  # the patches
        there = {name: value.to(device) for name, value in batch.items()}
        losses, _ = distil(own, FusionTeacher(theirs), there, DistillationConfig(hard_label_weight=0.5))
        losses.total.backward()
        found.append((losses.parts, {name: p.grad.cpu() for name, p in own.named_parameters() if p.grad is not None}))
    (parts, gradients), (there, gradients_there) = found
    assert parts.keys() == there.keys() == {"soft", "attention", "hard"}
    for name, part in parts.items():
        torch.testing.assert_close(there[name].cpu(), part, rtol=1e-4, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_there[name], gradient, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_a_trainer_lowers_the_losses(task: str, cuda: torch.device, tmp_path: Path) -> None:
    fusion = small_models.teacher(task)
    labels = {"num_labels": small_models.ANSWERS} if task == "vqa" else {}
    run = trainer(vleff.accelerate(DualEncoder.from_fusion(fusion, task, **labels)), vleff.accelerate(fusion), tmp_path)
    run.train()
    assert next(run.model.parameters()).device.type == cuda.type
    history = [entry for entry in run.state.log_history if "attention_loss" in entry]
    assert history[-1]["attention_loss"] < history[0]["attention_loss"]


def test_pruning_keeps_what_it_keeps_on_the_cpu(cuda: torch.device) -> None:
    model = bert()
    scores = HeadScores({a.module: torch.tensor([1.0, 2.0, 3.0, 40.0]) for a in attention_matrices(model)})
    pruners = []
    for device in (torch.device("cpu"), cuda):
        own = copy.deepcopy(model)
        pruners.append(GradualPruner(own, LotteryConfig(sparsity=0.7, end_step=1), scores))
        own.to(device)  # after the pruner was made, as a Trainer does
        pruners[-1].step(1)
    for name, mask in pruners[0].masks.items():
        assert torch.equal(pruners[1].masks[name].cpu(), mask)
