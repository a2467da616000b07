"""ViLT's towers compute what ViltModel does when it does not see the other modality."""

import copy

import pytest
import torch
from methods.dide.small_models import VILT, images, shaken, texts
from transformers import ViltConfig, ViltModel

import vleff
from vleff.models.vilt_patches import all_patches, draw_patches, embed_patches
from vleff.models.vilt_towers import ViltImageModel, ViltTextModel

TOLERANCE = {"atol": 2e-6, "rtol": 2e-5}


@pytest.fixture
def fusion() -> ViltModel:
    return shaken(ViltModel(ViltConfig(**VILT)))


@pytest.mark.parametrize("accelerated", [False, True])
def test_text_tower_is_vilt_without_image(fusion: ViltModel, accelerated: bool) -> None:
    tower = ViltTextModel.from_fusion(fusion)
    tower = vleff.accelerate(tower) if accelerated else tower
    inputs = texts()
    valid = inputs["attention_mask"].bool()
    with torch.no_grad():
        hidden = fusion(**inputs, image_embeds=torch.randn(4, 5, 64), pixel_mask=torch.zeros(4, 1, 5))
        output = tower(**inputs)
    expected = hidden.last_hidden_state[:, :12]
    torch.testing.assert_close(output.last_hidden_state[valid], expected[valid], **TOLERANCE)
    torch.testing.assert_close(output.pooler_output, hidden.pooler_output, **TOLERANCE)


@pytest.mark.parametrize("accelerated", [False, True])
def test_image_tower_is_vilt_without_text(fusion: ViltModel, accelerated: bool) -> None:
    tower = ViltImageModel.from_fusion(fusion)
    tower = vleff.accelerate(tower) if accelerated else tower
    inputs = images()
    patches = draw_patches(inputs["pixel_mask"], 8, -1)
    embedded, mask, _ = embed_patches(fusion.embeddings, **inputs, patches=patches)
    text = texts((12, 12, 12, 12)) | {"attention_mask": torch.zeros(4, 12, dtype=torch.int64)}
    with torch.no_grad():
        expected = fusion(**text, image_embeds=embedded, pixel_mask=mask).last_hidden_state[:, 12:]
        output = tower(**inputs, patches=patches)
        as_embedded = tower(image_embeds=embedded, pixel_mask=mask)
    valid = mask.bool()
    torch.testing.assert_close(output.last_hidden_state[valid], expected[valid], **TOLERANCE)
    pooled = torch.tanh(fusion.pooler.dense(expected[:, 0]))
    torch.testing.assert_close(output.pooler_output, pooled, **TOLERANCE)
    torch.testing.assert_close(as_embedded.pooler_output, pooled, **TOLERANCE)


def test_an_image_has_one_output_alone_and_among_others(fusion: ViltModel) -> None:
    tower = vleff.accelerate(ViltImageModel.from_fusion(fusion))
    inputs = images()
    with torch.no_grad():
        together = tower(**inputs).pooler_output
        assert torch.equal(together, tower(**inputs).pooler_output)
        for row, (height, width) in enumerate(((40, 24), (16, 32), (32, 32), (8, 32))):
            alone = tower(inputs["pixel_values"][row : row + 1, :, :height, :width]).pooler_output
            assert torch.equal(alone[0], together[row])
    drawn = draw_patches(inputs["pixel_mask"], 8, -1)
    with torch.no_grad():
        torch.testing.assert_close(tower(**inputs, patches=drawn).pooler_output, together, **TOLERANCE)
        fewer = tower(**inputs, patches=draw_patches(inputs["pixel_mask"], 8, 4)).pooler_output
    assert (fewer - together).abs().max() > 1e-3


def test_all_patches_are_in_order_and_padding_comes_last() -> None:
    patches = all_patches(images(((16, 16), (24, 8)))["pixel_mask"], 8)
    assert patches.tolist() == [[0, 1, 2, 3], [0, 2, 4, 1]]  # of a grid of 3 rows and 2 columns


def test_towers_load_a_fusion_checkpoint_and_train(fusion: ViltModel, tmp_path) -> None:
    fusion.save_pretrained(tmp_path)
    for tower_class in (ViltTextModel, ViltImageModel):
        loaded, copied = tower_class.from_pretrained(tmp_path), tower_class.from_fusion(fusion)
        for (name, own), (other, theirs) in zip(loaded.state_dict().items(), copied.state_dict().items(), strict=True):
            assert name == other and torch.equal(own, theirs)
        places = [{parameter.data_ptr() for parameter in part.parameters()} for part in (copied, fusion)]
        assert places[0].isdisjoint(places[1])
    tower = vleff.accelerate(copy.deepcopy(ViltImageModel.from_fusion(fusion))).train()
    tower(**images()).pooler_output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())
