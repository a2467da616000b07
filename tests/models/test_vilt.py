"""ViLT: patches in random order, images of several sizes in one batch."""

import copy

import pytest
import torch
from model_cases import make_case, text_inputs
from model_cases.vilt import images_of_several_sizes
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import ViltForImagesAndTextClassification, ViltForQuestionAnswering, ViltModel

import vleff


def seeded(model, inputs, seed=1):
    torch.manual_seed(seed)
    return model(**inputs)


def with_images(mask=True):
    pixels, pixel_mask = images_of_several_sizes()
    if mask:
        return text_inputs() | {"pixel_values": pixels, "pixel_mask": pixel_mask}
    return text_inputs() | {"pixel_values": pixels[:, :, :40]}


def pair(**config):
    case = make_case(ViltModel, hidden_dropout_prob=0.0, **config)
    return case.plain(), vleff.accelerate(case.model)


def valid_tokens(model, inputs):
    """bool [batch, tokens] as the embeddings say, after the same seed."""
    torch.manual_seed(1)
    mask = inputs.get("pixel_mask", torch.ones(4, 40, 40))
    _, mask = model.embeddings(
        inputs["input_ids"], inputs["attention_mask"], None, inputs["pixel_values"], mask, None, None
    )
    return mask.bool()


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("max_image_length", [-1, 5])
def test_the_same_patches_under_the_same_seed(mask, max_image_length):
    plain, model = pair(max_image_length=max_image_length)
    inputs = with_images(mask)
    with torch.no_grad():
        valid = valid_tokens(plain, inputs)
        expected, actual = (seeded(one, inputs).last_hidden_state for one in (plain, model))
        other = seeded(model, inputs, seed=2).last_hidden_state
    assert actual.shape == expected.shape
    assert (actual - expected)[valid].abs().max() <= 2e-6 * expected[valid].abs().max()
    assert not torch.equal(actual[:, 17:], other[:, 17:])  # the order of patches is random


def test_embeddings_and_mask_are_the_plain_ones():
    plain, model = pair()
    inputs = with_images()
    arguments = (inputs["pixel_values"], inputs["pixel_mask"])
    torch.manual_seed(3)
    tokens, mask, (places, shape) = plain.embeddings.visual_embed(*arguments, max_image_length=-1)
    torch.manual_seed(3)
    ours, our_mask, (our_places, our_shape) = model.embeddings.visual_embed(*arguments, max_image_length=-1)
    torch.testing.assert_close(ours, tokens, atol=2e-6, rtol=2e-6)
    assert torch.equal(our_mask, mask) and torch.equal(our_places, places) and our_shape == shape


def test_images_of_one_patch_and_tables_of_other_sizes():
    plain, model = pair(image_size=64)
    inputs = text_inputs((2, 3)) | {"pixel_values": torch.randn(2, 3, 8, 24)}
    inputs["pixel_mask"] = torch.tensor([[8, 8], [8, 24]])[:, 1, None, None] > torch.arange(24).expand(2, 8, 24)
    with torch.no_grad():
        expected, actual = (seeded(one, inputs).pooler_output for one in (plain, model))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=2e-6)


def test_gradients_of_positions_and_patches():
    gradients, inputs = [], with_images()
    for model in pair():
        seeded(model.train(), inputs).pooler_output.square().sum().backward()
        embeddings = model.embeddings
        gradients.append([embeddings.position_embeddings.grad, embeddings.patch_embeddings.projection.weight.grad])
    for actual, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-6 * float(expected.abs().max()), rtol=1e-4)


def test_two_images_of_several_sizes():
    case = make_case(ViltForImagesAndTextClassification)
    plain, model = case.plain(), vleff.accelerate(case.model)
    pixels, mask = images_of_several_sizes()
    inputs = text_inputs() | {
        "pixel_values": torch.stack([pixels, pixels.flip(0)], 1),
        "pixel_mask": torch.stack([mask, mask.flip(0)], 1),
    }
    with torch.no_grad():
        expected, actual = (seeded(one, inputs).logits for one in (plain, model))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("mask", [True, False])
def test_compiles_whole_and_keeps_one_graph(mask):
    model = vleff.accelerate(make_case(ViltForQuestionAnswering).model)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    inputs = with_images(mask)
    with torch.no_grad():
        for shift in range(3):
            batch = copy.deepcopy(inputs)
            batch["attention_mask"][0, 5 + shift :] = 0
            if mask:
                batch["pixel_mask"][0, :, 8 * (shift + 1) :] = 0
            expected, actual = seeded(model, batch).logits, seeded(compiled, batch).logits
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_exports():
    model = vleff.accelerate(make_case(ViltModel).model)
    inputs = with_images()
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, strict=False)
        expected = seeded(model, inputs).pooler_output
        actual = seeded(program.module(), inputs).pooler_output
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
