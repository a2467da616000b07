"""SigLIP: text whose last position is the result, and the attention that pools an image."""

import numpy
import pytest
import torch
from model_cases import make_case, text_inputs
from model_cases.siglip2 import image_inputs
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    CLIPTokenizer,
    Siglip2Model,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextModel,
    SiglipVisionModel,
    pipeline,
)

import vleff

ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def assert_agree(actual, expected, tolerance=2e-6):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def pair(model_class, attention="sdpa", **config):
    """The plain model and the accelerated one."""
    case = make_case(model_class, **config)
    case.model.set_attn_implementation(attention)
    return case.plain(), vleff.accelerate(case.model)


@torch.no_grad()
def outputs(models, *arguments, **named):
    return [model(*arguments, **named) for model in models]


@ATTENTION
def test_a_padded_last_position_still_is_the_result(attention):
    """It sees the text, though the text does not see it; left out as padding, all texts would be the same."""
    models = pair(SiglipTextModel, attention)
    expected, actual = outputs(models, **text_inputs())
    assert_agree(actual.pooler_output, expected.pooler_output)
    assert_agree(actual.last_hidden_state, expected.last_hidden_state)
    assert (actual.pooler_output[0] - actual.pooler_output[2]).abs().max() > 0.1


def test_rows_that_a_call_computes():
    model = vleff.accelerate(make_case(SiglipTextModel).model)
    rows = []
    model.encoder.layers[0].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[:-1].numel())
    )
    right = text_inputs((9, 17))
    left = {name: tensor.flip(1) for name, tensor in right.items()}
    outputs([model], **left)
    outputs([model], **right)
    outputs([model], right["input_ids"])
    assert rows == [9 + 17, 2 * 17, 2 * 17]


@ATTENTION
def test_autocast_with_a_padded_last_position(attention):
    models = pair(SiglipTextModel, attention)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = outputs(models, **text_inputs())
    assert actual.pooler_output.dtype == expected.pooler_output.dtype
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("images", [1, 5])
def test_pooling_head(images):
    plain, model = pair(SiglipVisionModel)
    states = torch.randn(images, 25, 64)
    with torch.no_grad():
        expected, actual = plain.head(states), model.head(states)
    assert actual.shape == (images, 64)
    assert_agree(actual, expected)
    assert "token_gather_attention" in dict(vleff.explain(model).encoders[0].layers)["head"]


def test_pooling_head_runs_as_before_where_someone_looks():
    plain, model = pair(SiglipVisionModel)
    seen = []
    for one in (plain, model):
        one.head.attention.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    expected, actual = outputs((plain, model), torch.randn(2, 3, 40, 40))
    assert len(seen) == 2
    assert_agree(seen[1], seen[0])
    assert_agree(actual.pooler_output, expected.pooler_output)


def test_a_vision_model_without_its_head():
    models = pair(SiglipVisionModel, vision_use_head=False)
    expected, actual = outputs(models, torch.randn(2, 3, 40, 40))
    assert actual.pooler_output is None
    assert_agree(actual.last_hidden_state, expected.last_hidden_state)


def test_is_causal_is_ignored_as_before():
    models = pair(SiglipVisionModel)
    pixels = torch.randn(2, 3, 40, 40)
    expected, actual = outputs(models, pixels, is_causal=True)
    assert_agree(actual.last_hidden_state, expected.last_hidden_state)


def test_features_alone():
    case = make_case(SiglipModel)
    plain, model = case.plain(), vleff.accelerate(case.model)
    text = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = plain.get_text_features(**text), plain.get_image_features(case.inputs["pixel_values"])
        actual = model.get_text_features(**text), model.get_image_features(case.inputs["pixel_values"])
    for ours, theirs in zip(actual, expected, strict=True):
        assert_agree(ours.pooler_output, theirs.pooler_output)


def test_images_of_another_size():
    models = pair(SiglipVisionModel)
    expected, actual = outputs(models, torch.randn(2, 3, 48, 56), interpolate_pos_encoding=True)
    assert actual.last_hidden_state.shape == (2, 42, 64)
    assert_agree(actual.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training(checkpointing):
    case = make_case(SiglipModel)
    models = case.plain().train(), vleff.accelerate(case.model).train()
    if checkpointing:
        models[1].gradient_checkpointing_enable()
    losses = []
    for model in models:
        loss = model(**case.inputs, return_loss=True).loss
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-5)
    expected, actual = ({name: p.grad for name, p in model.named_parameters()} for model in models)
    assert expected.keys() == actual.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=2e-6 * largest, rtol=1e-4)


def test_zero_shot_pipeline():
    """The pipeline pads to 64 tokens; this tokenizer says which are padding, SigLIP's own does not."""
    characters = "abcdefghijklmnopqrstuvwxyz."
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 144}
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config=sizes | {"vocab_size": len(tokens), "projection_size": 64, "pad_token_id": 0},
        vision_config=sizes | {"image_size": 40, "patch_size": 8},
    )
    model = SiglipModel(config).eval()
    processor = SiglipImageProcessorPil(size={"height": 40, "width": 40})
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype="uint8"))

    def scores(model, **arguments):
        tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], **arguments)
        classify = pipeline(
            "zero-shot-image-classification", model=model, tokenizer=tokenizer, image_processor=processor
        )
        result = classify(image, candidate_labels=["cat", "a dog on a sofa", "rain"])
        return {entry["label"]: entry["score"] for entry in result}

    kinds = [{}, {"model_input_names": ["input_ids"]}]
    expected = [scores(model, **kind) for kind in kinds]
    assert expected[0] != expected[1]
    vleff.accelerate(model)
    for kind, plain in zip(kinds, expected, strict=True):
        assert scores(model, **kind) == pytest.approx(plain, rel=1e-5)


@ATTENTION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_of_several_shapes(attention, dtype):
    """SigLIP 2 pads the patches of smaller images; in float64 everything runs as before, with the same mask."""
    models = [model.to(dtype) for model in pair(Siglip2Model, attention)]
    images = image_inputs((3, 4), (5, 5), (2, 3), (4, 6))
    images["pixel_values"] = images["pixel_values"].to(dtype)
    expected, actual = outputs(models, **images, **text_inputs())
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        assert_agree(actual[name], expected[name])


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("model_class", [SiglipTextModel, SiglipModel])
def test_one_graph_for_all_token_counts(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for lengths in [(3, 17, 11, 1), (17, 2, 2, 5), (17, 17, 17, 17), (1, 1, 1, 17)]:
        for text in (text_inputs(lengths), {name: tensor.flip(1) for name, tensor in text_inputs(lengths).items()}):
            case.inputs |= text
            expected, actual = case.call(model), case.call(compiled)
            name = "logits_per_text" if model_class is SiglipModel else "pooler_output"
            torch.testing.assert_close(actual[name], expected[name], atol=1e-4, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_dynamo")
def test_one_graph_for_all_image_shapes():
    case = make_case(Siglip2VisionModel)
    model = vleff.accelerate(case.model)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for shapes in [[(3, 4), (5, 5), (2, 3), (4, 6)], [(1, 1), (2, 2), (5, 4), (5, 5)], [(5, 5)] * 4]:
        case.inputs = image_inputs(*shapes)
        expected, actual = case.call(model), case.call(compiled)
        torch.testing.assert_close(actual.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("model_class", [SiglipTextModel, SiglipVisionModel])
def test_export(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    case.inputs.pop("attention_mask", None)
    expected = case.call(model)
    with torch.no_grad():
        exported = torch.export.export(model, (), case.inputs, strict=False)
    actual = exported.module()(**case.inputs)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)
    assert "vleff.token_gather_attention" in str(exported.graph)
