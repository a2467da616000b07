"""Pre-training distillation: its objectives, its Trainer, and what fine-tuning goes on from."""

from pathlib import Path

import pytest
import torch
from methods.dide.small_models import COLOURS, VILT, picture, preprocessor, shaken, student, teacher
from torch.utils.data import Dataset
from transformers import ViltConfig, ViltForMaskedLM

import vleff
from vleff.dide import (
    DualEncoder,
    DualEncoderConfig,
    DualEncoderForPreTraining,
    FusionTeacher,
    PreTrainingCollator,
    PreTrainingConfig,
    PreTrainingTrainer,
    distil_pretraining,
    paper_arguments,
)
from vleff.models.vilt_pretraining import ViltForPreTraining


class Pairs(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> dict[str, object]:
        colour = list(COLOURS)[number % 4]
        return {"text": f"a {colour} picture is it what colour", "image": picture(colour, number)}


def collator() -> PreTrainingCollator:
    made = preprocessor()
    return PreTrainingCollator(made.tokenizer, made.image_processor, 12, masked=0.4)


def fusion() -> ViltForPreTraining:
    return shaken(ViltForPreTraining(ViltConfig(**VILT)))


def model() -> DualEncoderForPreTraining:
    config = DualEncoderConfig(text_config=ViltConfig(**VILT), image_config=ViltConfig(**VILT))
    return shaken(DualEncoderForPreTraining(config))


def test_collator_masks_words_and_nothing_else() -> None:
    batch = collator()([Pairs()[number] for number in range(4)])
    words = batch["words"]
    assert 0 < int(words.sum()) < words.numel() / 2
    assert torch.equal(batch["masked_ids"][~words], batch["input_ids"][~words])
    assert (batch["masked_ids"][words] == 4).float().mean() > 0.4
    assert not (words & ((batch["input_ids"] <= 3) | (batch["attention_mask"] == 0))).any()


def test_losses_are_the_formulas() -> None:
    judge, own, batch = fusion(), model(), collator()([Pairs()[number] for number in range(4)])
    torch.manual_seed(2)
    losses = distil_pretraining(own, FusionTeacher(judge), batch, PreTrainingConfig(words=2.0))
    assert losses.parts.keys() == {"contrast", "matching", "words", "attention"}
    total = sum(part * (2.0 if name == "words" else 1.0) for name, part in losses.parts.items())
    torch.testing.assert_close(losses.total, total)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    images = {name: batch[name] for name in ("pixel_values", "pixel_mask")}
    with torch.no_grad():
        contrast, matching, words = own(texts, texts | {"input_ids": batch["masked_ids"]}, batch["words"], images)
        masked = judge(
            words=batch["words"], input_ids=batch["masked_ids"], attention_mask=texts["attention_mask"], **images
        )
    ways = (contrast.log_softmax(1), contrast.log_softmax(0))
    torch.testing.assert_close(losses.parts["contrast"], -sum(way.diagonal().mean() for way in ways) / 2)
    target = masked.word_logits.softmax(-1)
    expected = (target * (target.log() - words.log_softmax(-1))).sum(1).mean()
    torch.testing.assert_close(losses.parts["words"], expected, rtol=1e-3, atol=1e-5)
    assert matching.shape == (4, 4, 2) and words.shape == (int(batch["words"].sum()), 99)
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in own.parameters())


def test_accelerated_losses_are_the_same() -> None:
    judge, own, batch = fusion(), model(), collator()([Pairs()[number] for number in range(4)])
    found = []
    for accelerated in (False, True):
        if accelerated:
            vleff.accelerate(judge)
            vleff.accelerate(own)
        torch.manual_seed(2)
        found.append(distil_pretraining(own, FusionTeacher(judge), batch, PreTrainingConfig()).parts)
    for name, part in found[0].items():
        torch.testing.assert_close(found[1][name], part, rtol=1e-4, atol=1e-7)


def test_trained_then_fine_tuned(tmp_path: Path) -> None:
    own = model()
    arguments = paper_arguments(
        "vqa", str(tmp_path / "training"), max_steps=8, per_device_train_batch_size=4, learning_rate=2e-3,
        logging_steps=2, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    run = PreTrainingTrainer(
        vleff.accelerate(own), arguments, FusionTeacher(fusion()), train_dataset=Pairs(), data_collator=collator()
    )
    run.train()
    history = [entry for entry in run.state.log_history if "contrast_loss" in entry]
    assert history[-1]["loss"] < history[0]["loss"]
    vleff.restore(own).save_pretrained(tmp_path / "pre-trained")
    tuned = DualEncoder.from_pretrained(tmp_path / "pre-trained", task="vqa", num_labels=5)
    for name, value in tuned.state_dict().items():
        if not name.startswith("head.classifier"):
            assert torch.equal(value, own.state_dict()[name]), name


def test_teachers(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a ViltForPreTraining, got ViltForQuestionAnswering"):
        distil_pretraining(student("vqa"), FusionTeacher(teacher("vqa")), collator()([Pairs()[0]]), PreTrainingConfig())
    words = shaken(ViltForMaskedLM(ViltConfig(**VILT)))
    words.save_pretrained(tmp_path)
    loaded = ViltForPreTraining.from_pretrained(tmp_path)
    batch = collator()([Pairs()[number] for number in range(4)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_mask")}
    wanted = torch.ones_like(batch["words"])
    with torch.no_grad():
        expected = words.eval()(**inputs).logits.flatten(0, 1)
        output = loaded.eval()(words=wanted, **inputs)
    torch.testing.assert_close(output.word_logits, expected, rtol=1e-4, atol=1e-5)
    matches = torch.tensor([0, 1, 1, 0])
    gold = batch["input_ids"].flatten()
    loss = loaded.loss(output, matches, gold)
    expected = -output.logits.log_softmax(-1)[torch.arange(4), matches].mean()
    expected = expected - output.word_logits.log_softmax(-1)[torch.arange(len(gold)), gold].mean()
    torch.testing.assert_close(loss, expected)
