"""CLIP: causal text with padding anywhere, pooling at the end-of-text token, both towers together."""

import copy

import numpy
import pytest
import torch
from model_cases import make_case, text_inputs
from model_cases.clip import EOS
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModel,
    pipeline,
)

import vleff
from vleff.nn import FusedLinear

RIGHT = [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
LEFT = [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]]
HOLES = [[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 1]]
MASKS = pytest.mark.parametrize("mask", [RIGHT, LEFT, HOLES], ids=["right", "left", "holes"])
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


@MASKS
@ATTENTION
def test_causal_order_with_padding_anywhere(mask, attention):
    ids, mask = torch.randint(5, 99, (2, 6)), torch.tensor(mask)
    plain, model = pair(CLIPTextModel, attention)
    expected, actual = outputs((plain, model), ids, mask)
    valid = mask.bool()
    assert_agree(actual.last_hidden_state[valid], expected.last_hidden_state[valid])
    later = ids.clone()
    later[:, 4] = 7  # changes nothing before
    (changed,) = outputs([model], later, mask)
    before = valid & (torch.arange(6) < 4)
    assert torch.equal(changed.last_hidden_state[before], actual.last_hidden_state[before])
    assert not torch.equal(changed.last_hidden_state[1, 4], actual.last_hidden_state[1, 4])
    padding = ids.masked_fill(~valid, 9)
    (other,) = outputs([model], padding, mask)
    assert torch.equal(other.last_hidden_state[valid], actual.last_hidden_state[valid])


@ATTENTION
def test_without_a_mask_the_order_is_causal_too(attention):
    ids = torch.randint(5, 99, (2, 6))
    plain, model = pair(CLIPTextModel, attention)
    expected, actual = outputs((plain, model), ids)
    assert_agree(actual.last_hidden_state, expected.last_hidden_state)
    (prefix,) = outputs([model], ids[:, :4])
    assert torch.equal(prefix.last_hidden_state, actual.last_hidden_state[:, :4])


def test_only_a_mask_saves_work():
    """A text padded to 77 tokens costs its own tokens, if the mask says so."""
    model = vleff.accelerate(make_case(CLIPTextModel, max_position_embeddings=77).model)
    rows = []
    model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    text = text_inputs((9, 14, 77))
    outputs([model], **text)
    outputs([model], text["input_ids"])
    assert rows == [9 + 14 + 77, 3 * 77]


@pytest.mark.parametrize(
    ("eos", "ending", "padding"),
    [(EOS, EOS, EOS), (EOS, EOS, 1), (2, 98, 98), (2, 98, 0)],
    ids=["padded by itself", "padded otherwise", "legacy, padded by itself", "legacy, padded otherwise"],
)
@ATTENTION
def test_pools_at_the_first_end_of_text(eos, ending, padding, attention):
    """A config whose eos_token_id is 2 pools at the highest token id, other configs at the first eos_token_id."""
    models = pair(CLIPTextModelWithProjection, attention, eos_token_id=eos)
    lengths = torch.tensor([3, 17, 11, 1])
    text = text_inputs()
    ids = text["input_ids"].clamp(max=90)
    ids[text["attention_mask"] == 0] = padding
    ids[torch.arange(4), lengths - 1] = ending
    expected, actual = outputs(models, ids, text["attention_mask"])
    assert_agree(actual.text_embeds, expected.text_embeds)
    at_the_end = actual.last_hidden_state[torch.arange(4), lengths - 1]
    assert torch.equal(actual.text_embeds, models[1].text_projection(at_the_end).detach())


@ATTENTION
def test_masks_of_four_dimensions_run_as_before(attention):
    models = pair(CLIPTextModel, attention)
    visible = (torch.rand(4, 1, 17, 17) < 0.7) | torch.eye(17, dtype=torch.bool)
    mask = torch.zeros(4, 1, 17, 17).masked_fill(~visible, torch.finfo(torch.float32).min)
    expected, actual = outputs(models, text_inputs()["input_ids"], mask)
    assert_agree(actual.last_hidden_state, expected.last_hidden_state)


def test_attention_weights_of_padded_text():
    models = pair(CLIPTextModel, "eager")
    expected, actual = outputs(models, **text_inputs(), output_attentions=True)
    for ours, plain in zip(actual.attentions, expected.attentions, strict=True):
        assert ours.triu(1).count_nonzero() == 0
        torch.testing.assert_close(ours, plain)


def test_what_a_call_says_of_its_order():
    """is_causal=True is honoured where SDPA would; without it the text encoder alone is bidirectional."""
    models = pair(CLIPVisionModel)
    pixels = torch.randn(2, 3, 40, 40)
    expected, actual = outputs(models, pixels, is_causal=True)
    assert not torch.allclose(expected.last_hidden_state, outputs(models, pixels)[0].last_hidden_state, atol=0.1)
    assert_agree(actual.last_hidden_state, expected.last_hidden_state)
    models = pair(CLIPTextModel)
    states = torch.randn(2, 6, 64)
    for order in ({}, {"is_causal": True}):
        expected, actual = outputs([model.encoder for model in models], states, **order)
        assert_agree(actual.last_hidden_state, expected.last_hidden_state)


def test_a_bidirectional_text_model_is_refused():
    model = make_case(CLIPTextModel).model
    model.config.is_causal = False
    with pytest.raises(TypeError, match=r"bidirectional attention \(config\.is_causal\)"):
        vleff.accelerate(model)


def test_the_activation_is_fused():
    model = vleff.accelerate(make_case(CLIPModel).model)
    for tower in (model.text_model, model.vision_model):
        assert all(layer.mlp.fc1.activation == "quick_gelu" for layer in tower.encoder.layers)
    assert isinstance(model.visual_projection, FusedLinear) and isinstance(model.text_projection, FusedLinear)
    assert [(part.path, part.family) for part in vleff.explain(model).encoders] == [
        ("text_model", "CLIP text"),
        ("vision_model", "CLIP vision"),
    ]


def test_features_alone():
    case = make_case(CLIPModel)
    plain, model = case.plain(), vleff.accelerate(case.model)
    text = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = plain.get_text_features(**text), plain.get_image_features(case.inputs["pixel_values"])
        actual = model.get_text_features(**text), model.get_image_features(case.inputs["pixel_values"])
    for ours, theirs in zip(actual, expected, strict=True):
        assert_agree(ours.pooler_output, theirs.pooler_output)


def test_images_of_another_size():
    models = pair(CLIPVisionModel)
    pixels = torch.randn(2, 3, 48, 56)
    expected, actual = outputs(models, pixels, interpolate_pos_encoding=True)
    assert actual.last_hidden_state.shape == (2, 43, 64)
    assert_agree(actual.last_hidden_state, expected.last_hidden_state)
    with pytest.raises(ValueError, match="doesn't match model"):
        models[1](pixels)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_contrastive_training(checkpointing):
    case = make_case(CLIPModel)
    models = case.plain().train(), vleff.accelerate(case.model).train()
    if checkpointing:
        models[1].gradient_checkpointing_enable()
    losses = []
    for model in models:
        loss = model(**case.inputs, return_loss=True).loss
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
    expected, actual = ({name: p.grad for name, p in model.named_parameters()} for model in models)
    assert expected.keys() == actual.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=2e-6 * largest, rtol=1e-4)


def test_attention_dropout():
    case = make_case(CLIPTextModel, attention_dropout=0.05)
    model = vleff.accelerate(case.model)
    expected = case.tokens(case.call(model).last_hidden_state)
    model.train()

    def run(seed):
        torch.manual_seed(seed)
        return case.tokens(case.call(model).last_hidden_state)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    samples = torch.stack([run(seed) for seed in range(50)])
    assert (samples.mean(0) - expected).abs().mean() < 0.3 * samples.std(0).mean()


def test_zero_shot_pipeline():
    characters = "abcdefghijklmnopqrstuvwxyz."
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    text = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "vocab_size": len(tokens)}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 144}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=sizes | text, vision_config=sizes | {"image_size": 40, "patch_size": 8})
    plain = CLIPModel(config).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=40)
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype="uint8"))

    def scores(model):
        classify = pipeline(
            "zero-shot-image-classification", model=model, tokenizer=tokenizer, image_processor=processor
        )
        result = classify(image, candidate_labels=["cat", "a dog on a sofa", "rain"])
        return {entry["label"]: entry["score"] for entry in result}

    expected = scores(plain)
    assert scores(vleff.accelerate(copy.deepcopy(plain))) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("model_class", [CLIPTextModelWithProjection, CLIPModel])
def test_one_graph_for_all_token_counts(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for lengths in [(3, 17, 11, 1), (17, 2, 2, 5), (17, 17, 17, 17), (1, 1, 1, 17)]:
        case.inputs |= text_inputs(lengths)
        expected, actual = case.call(model), case.call(compiled)
        torch.testing.assert_close(actual[0], expected[0], atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("model_class", [CLIPTextModel, CLIPVisionModel])
def test_export(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    expected = case.call(model).last_hidden_state
    with torch.no_grad():
        exported = torch.export.export(model, (), case.inputs, strict=False)
    actual = exported.module()(**case.inputs).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert "vleff.token_gather_attention" in str(exported.graph)
