"""Gradients to the trimmers, the objective, random trimming, and the Trainer."""

import copy
from pathlib import Path

import pytest
import torch
from methods.smarttrim.families import stir, trimmed
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments, ViltForQuestionAnswering

from vleff import smarttrim
from vleff.smarttrim import SmartTrimConfig, SmartTrimTrainer, training_loss


def with_labels(family):
    logits = family.outputs()["logits"]
    return family.case.inputs | {"labels": (torch.rand(logits.shape) < 0.3).float()}


def vqa(config=None, stirred=True):
    return trimmed(ViltForQuestionAnswering, stirred, config)


@pytest.mark.parametrize("training", ["masked", "gathered"])
def test_gradients_reach_every_trimmer_and_the_model(training):
    family = vqa(SmartTrimConfig(training=training))
    model = family.model.train()
    parts = training_loss(model, with_labels(family), 5, 10)
    parts.loss.backward()
    for name, parameter in model.named_parameters():
        unused = "image_embeds" in family.case.inputs and ("patch" in name or name.endswith("cls_token"))
        if unused or (name.endswith("embeddings.position_embeddings") and "text" not in name):
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_dropped_tokens_get_gradients_where_they_are_masked_only():
    reached = {}
    for training in ("masked", "gathered"):
        family = vqa(SmartTrimConfig(training=training, heads=False, cost=0.0))
        with smarttrim.recorded(family.model) as runs:
            family.outputs()
        inputs = with_labels(family)
        family.model.train()
        with smarttrim.repeated(family.model, runs), smarttrim.recorded(family.model) as made:
            outputs = family.model(**inputs)
        shares = [record.share_gates for record in made[0].layers if record.share_gates is not None]
        grads = torch.autograd.grad(outputs.loss, shares, allow_unused=True)
        dropped = [grad[gates == 0] for grad, gates in zip(grads, shares, strict=True) if grad is not None]
        reached[training] = bool(dropped) and any(grad.any() for grad in dropped)
    assert reached == {"masked": True, "gathered": False}


def test_the_loss_is_the_sum_of_its_parts():
    config = SmartTrimConfig(distillation=0.5, cost=3.0, token_target=0.3, head_target=0.4)
    family = vqa(config)
    parts = training_loss(family.model.train(), with_labels(family), 9, 10)
    expected = parts.task + parts.full_task + 0.5 * parts.distillation + 3 * parts.cost
    torch.testing.assert_close(parts.loss, expected)
    cost = (parts.token_share - 0.3).square() + (parts.head_share - 0.4).square()
    torch.testing.assert_close(parts.cost, cost)
    assert 0 < parts.flop_ratio < 1 and parts.distillation > 0
    assert set(parts.numbers()) == {
        "loss",
        "task",
        "full_task",
        "distillation",
        "cost",
        "token_share",
        "head_share",
        "flop_ratio",
    }


def test_targets_fall_linearly():
    config = SmartTrimConfig(token_target=0.2, curriculum=0.4)
    assert [round(config.target_at(0.2, progress), 6) for progress in (0, 0.1, 0.2, 0.4, 1)] == [1, 0.8, 0.6, 0.2, 0.2]


def test_a_flop_target_takes_the_place_of_shares():
    family = vqa(SmartTrimConfig(flop_target=0.4))
    parts = training_loss(family.model.train(), with_labels(family), 10, 10)
    torch.testing.assert_close(parts.cost, (parts.flop_ratio - 0.4).square())


def test_shares_and_flops_agree_with_what_is_left():
    """A run's differentiable shares equal counts of what was really computed."""
    family = vqa()
    for mode in ("masked", "gathered"):
        family.model.train()
        torch.manual_seed(1)
        with smarttrim.running(family.model, mode), smarttrim.recorded(family.model) as runs:
            family.model(**family.case.inputs)
        for record in runs[0].layers:
            counted = record.kept().sum(1).float()
            torch.testing.assert_close(record.kept_tokens().detach(), counted)
        differentiable = smarttrim.kept_by(family.model, runs).flop_ratio
        family.model.eval()
        with smarttrim.repeated(family.model, runs), smarttrim.recorded(family.model) as again:
            family.outputs()
        assert abs(smarttrim.kept_by(family.model, again).flop_ratio - differentiable) < 1e-6


@pytest.mark.parametrize("target", [{"token_target": 0.7, "head_target": 0.6}, {"flop_target": 0.6}])
def test_training_reaches_the_target(target):
    config = SmartTrimConfig(**target, initial_logit=2.0, cost=50.0, training="gathered")
    family = vqa(config, stirred=False)
    model, inputs = family.model.train(), with_labels(family)
    trimmers = list(smarttrim.trimmer_parameters(model).values())
    optimizer = torch.optim.Adam(trimmers, lr=0.05)
    last = []
    for step in range(60):
        parts = training_loss(model, inputs, step, 60)
        optimizer.zero_grad()
        parts.loss.backward()
        optimizer.step()
        last = [*last, parts][-15:]
    for name, wanted in target.items():
        share = {"token_target": "token_share", "head_target": "head_share", "flop_target": "flop_ratio"}[name]
        mean = sum(one.numbers()[share] for one in last) / len(last)
        assert abs(mean - wanted) < 0.08, (name, mean)


def test_random_trimming_keeps_given_shares():
    learned = vqa()
    with smarttrim.recorded(learned.model) as runs:
        learned.outputs()
    kept = smarttrim.kept_by(learned.model, runs)
    family = vqa(SmartTrimConfig(random_shares=kept.random_shares()), stirred=False)
    assert not smarttrim.trimmer_parameters(family.model)
    with smarttrim.recorded(family.model) as runs:
        first = family.outputs()
    made = smarttrim.kept_by(family.model, runs)
    for one, two in zip(kept.layers, made.layers, strict=True):
        assert abs(one.token_share - two.token_share) < 0.1
    again = family.outputs()
    assert all(torch.equal(first[name], again[name]) for name in first)
    alone = family.outputs(**{name: value[1:2] for name, value in family.case.inputs.items()})
    assert torch.equal(alone["logits"][0], first["logits"][1])
    model = family.model.train()
    draws = []
    for _ in range(2):
        with smarttrim.recorded(model) as runs:
            training_loss(model, with_labels(family), 5, 10).loss.backward()
        draws.append(runs)
    model.train()
    with smarttrim.recorded(model) as runs:
        model(**family.case.inputs)
        model(**family.case.inputs)
    assert not torch.equal(runs[0].layers[1].kept(), runs[1].layers[1].kept())


class Samples(Dataset):
    def __init__(self, family) -> None:
        self.inputs = with_labels(family)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {name: value[number % 4] for name, value in self.inputs.items()}


class Interrupt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_steps=3,
        logging_steps=2,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )


def trained(folder: Path, resume: bool = False, stop: int | None = None):
    family = vqa()
    samples = Samples(family)
    callbacks = [] if stop is None else [Interrupt(stop)]
    trainer = SmartTrimTrainer(family.model, arguments(folder), train_dataset=samples, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_trainer_logs_resumes_and_evaluates(tmp_path):
    whole = trained(tmp_path / "whole")
    logged = [entry for entry in whole.state.log_history if "token_share" in entry]
    assert len(logged) == 3 and all(0 < entry["flop_ratio"] < 1 for entry in logged)
    trained(tmp_path / "parts", stop=3)
    resumed = trained(tmp_path / "parts", resume=True)
    expected, actual = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    metrics = whole.evaluate(Samples(vqa()))
    whole.model.eval()
    with torch.no_grad():
        loss = whole.model(**Samples(vqa()).inputs).loss
    assert abs(metrics["eval_loss"] - float(loss)) < 1e-4


def test_full_and_trimmed_gradients_do_not_leak_between_steps():
    family = vqa()
    model, inputs = family.model.train(), with_labels(family)
    training_loss(model, inputs, 1, 10).loss.backward()
    last = [module.last for module in model.modules() if isinstance(module, smarttrim.Trimmers)]
    assert last and all(not tensor.requires_grad for run in last for one in run.layers for tensor in one.heads.values())
    assert copy.deepcopy(model) is not model


def test_a_step_needs_trimmers_labels_and_logits():
    family = vqa()
    inputs = family.case.inputs
    with pytest.raises(ValueError, match="labels or `task_loss`"):
        training_loss(family.model.train(), inputs, 0, 10)
    parts = training_loss(family.model, inputs, 0, 10, task_loss=lambda outputs, _: outputs.logits.square().mean())
    assert parts.loss.isfinite()
    with pytest.raises(ValueError, match="attach"):
        training_loss(smarttrim.detach(family.model), inputs, 0, 10)


def test_stirring_is_reproducible():
    one, two = vqa(), vqa()
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    stir(two.model, seed=1)
    assert not all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
