"""Gradual pruning, in a loop and in a Trainer that is interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from methods.lottery.families import bert, inputs_of
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from vleff.lottery import GradualPruner, HeadScores, LotteryConfig, PruningCallback, attention_matrices

CONFIG = LotteryConfig(sparsity=0.7, start_step=1, end_step=9, interval=2)


def scores_for(model: transformers.PreTrainedModel) -> HeadScores:
    return HeadScores({a.module: torch.tensor([1.0, 2.0, 3.0, 40.0]) for a in attention_matrices(model)})


def test_a_loop_of_ones_own() -> None:
    model = bert()
    pruner = GradualPruner(model, CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    before: dict[str, torch.Tensor] = pruner.masks
    for number in range(1, 12):
        outputs = model(**inputs_of(model))
        (outputs.start_logits.square().sum() + outputs.end_logits.square().sum()).backward()
        optimizer.step()
        pruner.step(number)
        for name, mask in pruner.masks.items():
            assert not (mask & ~before[name]).any()  # pruned stays pruned
            assert (model.get_submodule(name).weight[~mask] == 0).all()
        before = pruner.masks
        if CONFIG.prunes_after(number):
            assert pruner.sparsity == pytest.approx(CONFIG.sparsity_at(number), abs=1e-4)
    assert pruner.sparsity == pytest.approx(0.7, abs=1e-5)


def test_magnitude_decides_and_heads_weigh_in() -> None:
    model = bert()
    config = LotteryConfig(sparsity=0.5, end_step=1)
    weights = {name: layer.weight.detach().clone() for name, layer in GradualPruner(model, config)._linears.items()}
    plain = GradualPruner(model, config)
    plain.step(1)
    threshold = torch.cat([weight.abs().flatten() for weight in weights.values()]).median()
    for name, mask in plain.masks.items():
        assert torch.equal(mask, weights[name].abs() > threshold)
    model = bert()
    soft = GradualPruner(model, config, scores_for(model))
    soft.step(1)
    attention = attention_matrices(model)[0]
    by_head = soft.masks[attention.query].float().view(4, 16, 64).mean((1, 2))
    assert (by_head.diff() > 0).all() and by_head[3] > 0.7 > 0.3 > by_head[0]
    columns = soft.masks[attention.output].float().view(64, 4, 16).mean((0, 2))
    assert (columns.diff() > 0).all()


class Questions(Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 99, (24, 12), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"input_ids": self.ids[number], "start_positions": number % 12, "end_positions": number % 12}


class Stop(TrainerCallback):
    """Interrupts training after a step, like a kill after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def trainer_for(folder: Path, *callbacks: TrainerCallback) -> tuple[Trainer, GradualPruner]:
    torch.manual_seed(0)
    model = bert()
    pruner = GradualPruner(model, CONFIG, scores_for(model))
    arguments = TrainingArguments(
        str(folder), max_steps=12, per_device_train_batch_size=4, save_steps=5, logging_steps=1, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Questions(), callbacks=[PruningCallback(pruner), *callbacks]), pruner


def test_an_interrupted_trainer_ends_in_the_same_masks(tmp_path: Path) -> None:
    whole, expected = trainer_for(tmp_path / "whole")
    whole.train()
    assert expected.sparsity == pytest.approx(0.7, abs=1e-5)

    stopped, _ = trainer_for(tmp_path / "stopped", Stop(7))
    stopped.train()
    assert (tmp_path / "stopped" / "checkpoint-5" / "pruning.safetensors").exists()
    for name in ("checkpoint-7",):  # as if the run had been killed after the checkpoint of step 5
        if (tmp_path / "stopped" / name).exists():
            (tmp_path / "stopped" / name).rename(tmp_path / "gone")
    resumed, actual = trainer_for(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 12
    for name, mask in expected.masks.items():
        assert torch.equal(actual.masks[name], mask), name
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(resumed.model.get_parameter(name), parameter), name


def test_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    trainer, _ = trainer_for(tmp_path)
    trainer.train()
    (tmp_path / "checkpoint-5" / "pruning.safetensors").unlink()
    resumed, _ = trainer_for(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no pruning\.safetensors in .*checkpoint-5"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_states_are_bits_and_belong_to_their_model() -> None:
    pruner = GradualPruner(bert(), CONFIG)
    pruner.step(9)
    state = pruner.state_dict()
    assert sum(bits.numel() for bits in state.values()) == sum(mask.numel() for mask in pruner.masks.values()) // 8
    other = GradualPruner(bert(), CONFIG)
    other.load_state_dict(state)
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in other.masks.items())
    few = GradualPruner(bert(), LotteryConfig(sparsity=0.5, end_step=1, matrices="query"))
    with pytest.raises(ValueError, match=r"expected masks of 2 layers such as bert.*query, got 12 such as"):
        few.load_state_dict(state)
    model = bert()
    with pytest.raises(KeyError, match=r"expected scores of bert\.encoder\.layer\.0\.attention\.self, got none"):
        GradualPruner(model, CONFIG, HeadScores({}))
