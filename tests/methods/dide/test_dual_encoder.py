"""DualEncoder: towers of several families, the heads of the paper, saving, acceleration, sparse layers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.dide.small_models import (
    ANSWERS,
    PAIRS,
    TEACHERS,
    images,
    inputs,
    labels,
    shaken,
    student,
    teacher,
    texts,
)
from torch import nn
from torch.nn import functional

import vleff
from vleff import lottery
from vleff.dide import DualEncoder, DualEncoderConfig
from vleff.dide.heads import ClassificationHead, PairOfImagesHead, RetrievalHead, ShallowInteraction

TASKS = list(TEACHERS)
TOLERANCE = {"atol": 2e-6, "rtol": 2e-5}


def pair(name: str, task: str = "retrieval", **config: Any) -> DualEncoder:
    text, image, pooling = PAIRS[name]
    return shaken(DualEncoder.from_towers(text(), image(), task, **pooling, **config))


@pytest.mark.parametrize("task", TASKS)
def test_towers_begin_as_the_fusion_encoder(task: str) -> None:
    fusion = teacher(task)
    model = DualEncoder.from_fusion(fusion, task)
    own, theirs = model.state_dict(), fusion.state_dict()
    for tower in ("text_model", "image_model"):
        names = [name for name in own if name.startswith(f"{tower}.")]
        assert len(names) > 30
        for name in names:
            assert torch.equal(own[name], theirs[name.replace(tower, "vilt", 1)]), name
            assert own[name].data_ptr() != theirs[name.replace(tower, "vilt", 1)].data_ptr()
    assert model.config.num_labels == {"vqa": ANSWERS, "nlvr2": 2, "snli-ve": 3, "retrieval": 2}[task]


def test_shallow_interaction_is_a_layer_over_both() -> None:
    head = shaken(ShallowInteraction(16))
    joint = nn.Linear(32, 32)
    joint.weight.data = torch.cat([head.text.weight, head.image.weight], 1)
    joint.bias.data = head.text.bias
    text, image = torch.randn(5, 16), torch.randn(5, 16)
    expected = head.output(functional.gelu(head.norm(joint(torch.cat([text, image], -1)))))
    torch.testing.assert_close(head(text, image), expected)
    sizes = [tuple(parameter.shape) for parameter in ClassificationHead(16, 9).classifier.parameters()]
    assert sizes == [(32, 16), (32,), (32,), (32,), (9, 32), (9,)]
    sizes = [tuple(parameter.shape) for parameter in PairOfImagesHead(16, 2).classifier.parameters()]
    assert sizes == [(32, 32), (32,), (32,), (32,), (2, 32), (2,)]


@pytest.mark.parametrize("task", TASKS)
def test_forward_is_encoding_and_scoring(task: str) -> None:
    model, batch = student(task), inputs(task)
    with torch.no_grad():
        output = model(**batch)
        text = model.encode_text(batch["input_ids"], batch["attention_mask"])
        pixels = {name: batch[name] for name in ("pixel_values", "pixel_mask")}
        if task == "nlvr2":
            both = [model.encode_image(**{name: value[:, one] for name, value in pixels.items()}) for one in (0, 1)]
            torch.testing.assert_close(output.image, torch.stack(both, 1))
            torch.testing.assert_close(output.logits, model.score(text, *both))
        else:
            image = model.encode_image(**pixels)
            torch.testing.assert_close(output.image, image)
            all_pairs = model.score(text[:, None], image)
            assert all_pairs.shape[:2] == (4, 4)
            rows = torch.arange(4)
            torch.testing.assert_close(model.score(text, image), all_pairs[rows, rows], **TOLERANCE)
            expected = all_pairs if task == "retrieval" else all_pairs[rows, rows]
            torch.testing.assert_close(output.logits, expected, **TOLERANCE)
        if task == "retrieval":
            for some in (output.text, output.image):
                torch.testing.assert_close(some.norm(dim=-1), torch.ones(4))
    with pytest.raises(ValueError, match="argument 'images': expected"):
        model.score(text, text, text, text)


@pytest.mark.parametrize("task", TASKS)
def test_accelerated_outputs_agree(task: str) -> None:
    plain, batch = student(task), inputs(task)
    model = vleff.accelerate(copy.deepcopy(plain))
    report = str(vleff.explain(model))
    assert report.count("token_gather_attention") >= 2
    with torch.no_grad():
        expected, actual = plain(**batch), model(**batch)
    for name in ("logits", "text", "image"):
        torch.testing.assert_close(actual[name], expected[name], **TOLERANCE)
    # a pair's bits do not depend on its batch
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
    with torch.no_grad():
        alone = model(**{name: batch[name][1:2] for name in names})
    assert torch.equal(alone.text[0], actual.text[1]) and torch.equal(alone.image[0], actual.image[1])
    if task != "retrieval":
        assert torch.equal(alone.logits[0], actual.logits[1])


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_any_pair_of_encoders(name: str, task: str, tmp_path: Path) -> None:
    model = pair(name, task, **({"num_labels": ANSWERS} if task == "vqa" else {}))
    batch = texts() | {"pixel_values": torch.randn(4, 3, 32, 32)}
    if name == "clip":
        batch["input_ids"][torch.arange(4), batch["attention_mask"].sum(1) - 1] = 98  # the end of the text
    with torch.no_grad():
        expected = model(**batch)
        accelerated = vleff.accelerate(copy.deepcopy(model))(**batch)
    assert expected.text.shape == expected.image.shape == (4, 64)
    torch.testing.assert_close(accelerated.logits, expected.logits, **TOLERANCE)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(DualEncoder.from_pretrained(tmp_path)(**batch).logits, expected.logits)


def test_width_of_its_own() -> None:
    model = pair("bert and vit", width=24)
    assert model.encode_text(**texts()).shape == (4, 24)
    assert isinstance(student("vqa").text_projection, nn.Identity)
    assert isinstance(pair("clip", "vqa", width=24).image_projection, nn.Linear)


def test_mean_pooling_leaves_padding_out() -> None:
    model, batch = pair("bert and vit"), texts()
    with torch.no_grad():
        together = model.encode_text(**batch)
        alone = model.encode_text(batch["input_ids"][:1, :3])
    torch.testing.assert_close(together[:1], alone, **TOLERANCE)


@pytest.mark.parametrize("task", TASKS)
def test_hard_labels(task: str) -> None:
    model, batch, gold = student(task), inputs(task), labels(task)
    output = model(**batch, labels=gold)
    logits = output.logits.double()
    if task == "vqa":
        probability = logits.sigmoid()
        expected = -(gold * probability.log() + (1 - gold) * (1 - probability).log()).sum(1).mean()
    elif task == "retrieval":
        ways = (logits.log_softmax(1), logits.log_softmax(0))
        expected = -sum(way.diagonal().mean() for way in ways) / 2
    else:
        expected = -logits.log_softmax(-1)[torch.arange(4), gold].mean()
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-5, atol=1e-6)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_pairs_about_the_same_are_all_right() -> None:
    head, scores = RetrievalHead(0.1), torch.randn(3, 3, dtype=torch.float64)
    loss = head.loss(scores, torch.tensor([5, 7, 5]))
    right = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]], dtype=torch.float64)
    expected = -((right * scores.log_softmax(1)).sum() + (right * scores.T.log_softmax(1)).sum()) / 6
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("accelerated", [False, True])
def test_saved_and_loaded(tmp_path: Path, accelerated: bool) -> None:
    model, batch = student("nlvr2"), inputs("nlvr2")
    with torch.no_grad():
        expected = model(**batch).logits
    (vleff.accelerate(model) if accelerated else model).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "config.json").exists()
    loaded = DualEncoder.from_pretrained(tmp_path)
    assert not loaded.training and loaded.config.task == "nlvr2" and loaded.config.num_labels == 2
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)


def test_lottery_layers_compose(tmp_path: Path) -> None:
    model, batch = student("vqa"), inputs("vqa")
    masks = {name: torch.rand(layer.weight.shape) < 0.2 for name, layer in lottery.prunable_linears(model).items()}
    assert {name.split(".")[0] for name in masks} == {"text_model", "image_model"}
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            pruned.get_submodule(name).weight.mul_(mask)
        expected = pruned(**batch).logits
    lottery.extract(model, masks)
    lottery.save_pretrained(model, tmp_path / "sparse")
    vleff.accelerate(model)
    assert "masked_linear" in str(vleff.explain(model))
    loaded = lottery.from_pretrained(tmp_path / "sparse")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-4)


def test_bad_configurations() -> None:
    for arguments, message in (
        ({"task": "captions"}, "'task': expected one of vqa, nlvr2, snli-ve, retrieval, got 'captions'"),
        ({"text_pooling": "last"}, "'text_pooling': expected one of pooler, first, mean, got 'last'"),
        ({"temperature": 0.0}, "'temperature': expected a positive number, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            DualEncoderConfig(**arguments)
    fusion = teacher("vqa").vilt
    with pytest.raises(
        TypeError, match="argument 'text_model': expected the encoder that its config stands for, ViltTextModel"
    ):
        DualEncoder.from_towers(fusion, PAIRS["clip"][1](), "vqa")
    without = PAIRS["bert and vit"][1]()
    without.pooler = None
    model = DualEncoder.from_towers(PAIRS["clip"][0](), PAIRS["clip"][1](), "retrieval")
    model.image_model = without
    with pytest.raises(ValueError, match="expected a tower with a pooler"):
        model.encode_image(images(((32, 32),))["pixel_values"])
