"""A small reader learns real questions, resumes, and answers the same however it is run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reading.excerpt import excerpt, make_tokenizer, small_reader

import vleff
from vleff.data.span_features import make_windows
from vleff.data.span_metrics import score_answers
from vleff.lottery import extract, prunable_linears
from vleff.training.span_training import SpanTraining, predict_answers, train_reader

TOKENIZER = make_tokenizer()
EXAMPLES = [example for example in excerpt(24) if example.answers]
WINDOWS = make_windows(TOKENIZER, EXAMPLES, 96, 32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A model this small is slower with two threads, many times so beside other programs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def score(model: transformers.PreTrainedModel) -> float:
    answers = predict_answers(model, TOKENIZER, EXAMPLES, max_length=96, stride=32, quiet=True)
    return float(score_answers(answers, EXAMPLES).f1.mean())


def test_it_learns_and_answers_the_same_accelerated(tmp_path: Path) -> None:
    model = small_reader()
    before = score(model)
    training = SpanTraining(steps=250, learning_rate=2e-3, save_steps=1000)
    train_reader(model, [window for window in WINDOWS if window.start], TOKENIZER, training, tmp_path, quiet=True)
    assert not model.training
    after = score(model)
    assert after > before + 20
    answers = [predict_answers(model, TOKENIZER, EXAMPLES, batch, 96, 32, quiet=True) for batch in (1, 7, 32)]
    assert answers[0] == answers[1] == answers[2]
    accelerated = predict_answers(vleff.accelerate(model), TOKENIZER, EXAMPLES, 32, 96, 32, quiet=True)
    assert accelerated == answers[2]


class KilledError(Exception):
    pass


class Kill(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise KilledError


@pytest.mark.parametrize("kind", ["dense", "subnetwork"])
def test_an_interrupted_training_ends_in_the_same_weights(kind: str, tmp_path: Path) -> None:
    def reader() -> transformers.PreTrainedModel:
        model = small_reader()
        if kind == "subnetwork":
            torch.manual_seed(1)
            masks = {name: torch.rand(x.weight.shape) < 0.3 for name, x in prunable_linears(model).items()}
            model = vleff.accelerate(extract(model, masks))
        return model

    training = SpanTraining(steps=12, batch=4, learning_rate=1e-3, save_steps=5)
    whole = train_reader(reader(), WINDOWS, TOKENIZER, training, tmp_path / "whole", quiet=True)
    with pytest.raises(KilledError):
        train_reader(reader(), WINDOWS, TOKENIZER, training, tmp_path / "killed", [Kill()], quiet=True)
    resumed = train_reader(reader(), WINDOWS, TOKENIZER, training, tmp_path / "killed", quiet=True)
    for name, parameter in whole.named_parameters():
        assert torch.equal(resumed.get_parameter(name), parameter), name


def test_the_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    train_reader(small_reader(), WINDOWS, TOKENIZER, SpanTraining(steps=1), tmp_path, quiet=True)
    with pytest.raises(ValueError, match="was made with steps = 1, now it is 2"):
        train_reader(small_reader(), WINDOWS, TOKENIZER, SpanTraining(steps=2), tmp_path, quiet=True)


def test_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'windows': expected at least one"):
        train_reader(small_reader(), [], TOKENIZER, SpanTraining(steps=1), tmp_path)
