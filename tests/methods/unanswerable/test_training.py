"""Generators are trained, interrupted, and go on as if nothing had been."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.unanswerable.generators import bert_model, items, model, pairs, sources
from transformers import TrainerCallback

import vleff
from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.training import GeneratorTraining, train_generator

TRAINING = GeneratorTraining(steps=6, batch=4, save_steps=2, learning_rate=1e-2)


def weights(trained: PairToSequence) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.state_dict().items()}


def fresh() -> PairToSequence:
    torch.manual_seed(0)
    return model()


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def loss_of(trained: PairToSequence) -> float:
    with torch.no_grad():
        return trained(**trained.collator()(items(12))).loss.item()


def test_it_learns(tmp_path: Path) -> None:
    ours = fresh()
    before = loss_of(ours)
    training = replace(TRAINING, steps=None, epochs=5.0, batch=8, save_steps=1000)
    trained = train_generator(ours, pairs()[:24], training, tmp_path / "training", quiet=True)
    assert trained is ours and not trained.training
    assert loss_of(trained) < 0.8 * before


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    whole = train_generator(fresh(), pairs()[:20], TRAINING, tmp_path / "whole", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train_generator(fresh(), pairs()[:20], TRAINING, tmp_path / "parts", [Stop(5)], quiet=True)
    assert (tmp_path / "parts" / "checkpoint-4" / "vocabulary.json").exists()
    resumed = train_generator(fresh(), pairs()[:20], TRAINING, tmp_path / "parts", quiet=True)
    for name, value in weights(whole).items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-6, rtol=1e-6)
    loaded = PairToSequence.from_pretrained(tmp_path / "parts" / "checkpoint-6")
    assert loaded.generate(sources(3)) == resumed.generate(sources(3))


def test_a_transformer_is_trained_accelerated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = vleff.accelerate(bert_model())
    before = loss_of(ours)
    train_generator(ours, pairs()[:12], replace(TRAINING, steps=8), tmp_path, quiet=True)
    assert loss_of(ours) < before
    assert torch.isfinite(torch.tensor(loss_of(vleff.restore(ours))))


def test_coverage_counts_in_the_loss() -> None:
    losses = []
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        losses.append(loss_of(model(coverage=weight)))
    assert losses[1] - losses[0] == pytest.approx(losses[2] - losses[1], abs=1e-4) and losses[1] > losses[0] + 0.01


def test_bad_trainings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument 'pairs': expected at least one"):
        train_generator(fresh(), [], TRAINING, tmp_path)
    broken = replace(pairs()[0], answerable=" ")
    with pytest.raises(ValueError, match="expected a question with words"):
        train_generator(fresh(), [broken], TRAINING, tmp_path)
    train_generator(fresh(), pairs()[:4], replace(TRAINING, steps=1), tmp_path, quiet=True)
    with pytest.raises(ValueError, match="was made with steps = 1, now it is 6"):
        train_generator(fresh(), pairs()[:4], TRAINING, tmp_path, quiet=True)
