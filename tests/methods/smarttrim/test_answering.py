"""Training, answering and watching a model with trimmers, on questions that random weights can learn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_vqa.small_clothes import write_small_clothes
from torch import Tensor
from transformers import BertConfig, BertModel, ViltConfig, ViltForQuestionAnswering

from vleff import smarttrim
from vleff.data.fashion_mnist import read_fashion_mnist
from vleff.data.tile_features import TileCollator, tile_tokenizer
from vleff.data.tile_vqa import ANSWERS, TileVqa
from vleff.models.vilt_patches import recorded_places
from vleff.smarttrim.answering import AnsweringTraining, answer, seconds_a_question, train_trimmed
from vleff.smarttrim.kept_patches import watching

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def attached(seed: int = 0, **config: Any) -> ViltForQuestionAnswering:
    torch.manual_seed(seed)
    settings = {**SIZES, "image_size": 112, "patch_size": 14, "vocab_size": 60, "max_image_length": -1}
    model = ViltForQuestionAnswering(ViltConfig(**settings, num_labels=len(ANSWERS)))
    return smarttrim.attach(model, smarttrim.SmartTrimConfig(**config)).eval()


def dropping(model: ViltForQuestionAnswering) -> ViltForQuestionAnswering:
    """Moves the trimmers' weights so that they drop about half."""
    with torch.no_grad():
        for parameter in smarttrim.trimmer_parameters(model).values():
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> TileVqa:
    return TileVqa(read_fashion_mnist(write_small_clothes(tmp_path_factory.mktemp("clothes"))), 30)


@pytest.fixture
def collate() -> TileCollator:
    return TileCollator(tile_tokenizer())


def test_answers_are_those_of_the_model(questions: TileVqa, collate: TileCollator) -> None:
    model = dropping(attached())
    batch = dict(collate(list(questions)))
    labels = batch.pop("labels").argmax(1)
    for mode in ("full", "gathered"):
        with torch.inference_mode(), smarttrim.running(model, mode):
            correct = model(**batch).logits.argmax(1) == labels
        answers = answer(model, questions, collate, batch=7, mode=mode, quiet=True)
        assert torch.equal(answers.correct, correct)
        assert answers.accuracy == pytest.approx(100 * correct.float().mean().item())
    assert answers.kept is not None and answers.kept.flop_ratio < 0.95
    plain = smarttrim.detach(model)
    assert answer(plain, questions, collate, quiet=True).kept is None


def test_questions_without_a_known_answer_count_as_wrong(questions: TileVqa, collate: TileCollator) -> None:
    def nothing_known(some: Sequence[Any]) -> dict[str, Tensor]:
        batch = collate(some)
        return {**batch, "labels": torch.zeros_like(batch["labels"])}

    assert answer(attached(), questions, nothing_known, quiet=True).accuracy == 0


def test_watched_patches_are_those_of_the_records(questions: TileVqa, collate: TileCollator) -> None:
    model = dropping(attached())
    some = [questions[number] for number in range(8)]
    with watching(model) as watcher:
        kept = answer(model, some, collate, batch=3, watch=watcher.add, quiet=True).kept
    assert kept is not None and len(watcher.samples) == 8
    for layer in kept.layers:
        assert [int(one.tokens[layer.layer]) for one in watcher.samples] == layer.tokens
        heads = layer.heads["self"] if "self" in layer.heads else next(iter(layer.heads.values()))
        assert [int(one.heads[layer.layer].sum()) for one in watcher.samples] == heads
    for one, question in zip(watcher.samples, some, strict=True):
        assert one.patches.shape == (2, 8, 8) and one.patches[0].all()
        assert one.text.shape[1] == len(collate.tokenizer(question.question)["input_ids"])
    assert any(not one.patches[1].all() and one.patches[1].any() for one in watcher.samples)
    assert "visual_embed" not in vars(model.vilt.embeddings)


def test_watched_patches_lie_where_the_pixels_are(questions: TileVqa, collate: TileCollator) -> None:
    """A trimmer that keeps bright patches only keeps the filled cells."""
    model = attached()
    batch = dict(collate([questions[number] for number in range(4)]))
    hidden = batch["pixel_values"].unfold(2, 14, 14).unfold(3, 14, 14).amax((1, 4, 5)) <= -1  # [batch, 8, 8]

    def hide(places: Tensor) -> Tensor:
        return torch.stack([dark[at[:, 0], at[:, 1]] for dark, at in zip(hidden, places, strict=True)])

    batch.pop("labels")
    with recorded_places(model, hide) as places, smarttrim.recorded(model) as runs, torch.inference_mode():
        model(**batch)
    for row, dark in enumerate(hidden):
        length = batch["input_ids"].shape[1] + 1
        kept = runs[0].layers[0].kept()[row, length:]
        at = places[0][row][kept]
        assert len(at) == int((~dark).sum()) and not dark[at[:, 0], at[:, 1]].any()


def test_training_goes_on_and_ends(questions: TileVqa, collate: TileCollator, tmp_path: Path) -> None:
    training = AnsweringTraining(steps=4, batch=4, save_steps=1, learning_rate=1e-3)
    wanted = train_trimmed(attached(), questions, collate, training, tmp_path / "whole", quiet=True).state_dict()
    calls = 0

    def interrupted(some: Sequence[Any]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("interrupted")
        return collate(some)

    with pytest.raises(RuntimeError, match="interrupted"):
        train_trimmed(attached(), questions, interrupted, training, tmp_path / "parts", quiet=True)
    for _ in ("the rest of it", "nothing more to do"):
        resumed = train_trimmed(attached(1), questions, collate, training, tmp_path / "parts", quiet=True)
        assert all(torch.equal(resumed.state_dict()[name], value) for name, value in wanted.items())
    with pytest.raises(ValueError, match="was made with steps = 4, now it is 5"):
        train_trimmed(attached(), questions, collate, replace(training, steps=5), tmp_path / "parts", quiet=True)
    with pytest.raises(ValueError, match="argument 'questions': expected at least one"):
        train_trimmed(attached(), [], collate, training, tmp_path / "none", quiet=True)


def test_time_of_each_mode(questions: TileVqa, collate: TileCollator) -> None:
    found = seconds_a_question(attached(), [collate([questions[number] for number in range(4)])])
    assert found.keys() == {"full", "gathered"} and all(0 < value < 10 for value in found.values())


def test_only_vilt_is_watched() -> None:
    model = BertModel(BertConfig(**SIZES, vocab_size=60))
    with pytest.raises(TypeError, match="expected one with ViltEmbeddings, got BertModel"), watching(model):
        pass
