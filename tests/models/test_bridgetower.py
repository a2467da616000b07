"""BridgeTower: two towers and the layers in which both attend to each other."""

import copy
import json

import pytest
import torch
from model_cases import make_case
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import BridgeTowerForContrastiveLearning, BridgeTowerModel

import vleff


def largest(tensor):
    return tensor.abs().max().item()


@pytest.mark.parametrize("link", ["add", "scaled_add", "interpolate"])
def test_link_towers_add_the_states_of_the_same_tokens(link):
    """Against the plain model in float64: in float32 its own error is as large as ours."""
    case = make_case(BridgeTowerModel, link_tower_type=link)
    expected = case.call(case.plain().double())
    actual = case.call(vleff.accelerate(case.model))
    for name in ("text_features", "image_features", "pooler_output"):
        theirs, ours = case.tokens(expected[name]), case.tokens(actual[name])
        assert largest(ours - theirs) <= 2e-6 * largest(theirs)


def test_cross_layers_see_later_tokens_whatever_is_causal_says():
    model = vleff.accelerate(make_case(BridgeTowerModel).model)
    assert all(layer.attention.self.is_causal for layer in model.cross_modal_text_layers)
    inputs = {"input_ids": torch.randint(5, 99, (1, 7)), "pixel_values": torch.randn(1, 3, 40, 40)}
    with torch.no_grad():
        first = model(**inputs).hidden_states[2]
        inputs["input_ids"][0, -1] = 4 + inputs["input_ids"][0, -1] % 90
        second = model(**inputs).hidden_states[2]
    assert not torch.equal(first[0][0][:, 0], second[0][0][:, 0])


@pytest.mark.parametrize("arguments", [{"output_attentions": True}, {}], ids=["attentions", "hooks"])
def test_calls_as_before_give_the_plain_outputs(arguments):
    case = make_case(BridgeTowerModel)
    expected = case.call(case.plain(), **arguments)
    model = vleff.accelerate(case.model)
    if not arguments:
        model.text_model.encoder.layer[1].attention.register_forward_hook(lambda *_: None)
    actual = case.call(model, **arguments)
    for name in ("text_features", "image_features", "pooler_output"):
        torch.testing.assert_close(case.tokens(actual[name]), case.tokens(expected[name]), atol=1e-5, rtol=1e-5)
    assert actual.attentions[0][0] is not None


def test_image_embeds_and_masks_of_four_dimensions():
    case = make_case(BridgeTowerModel)
    plain, model = case.plain(), vleff.accelerate(case.model)
    embeds = torch.randn(4, 26, 64)
    text = {"input_ids": case.inputs["input_ids"], "attention_mask": case.inputs["attention_mask"]}
    with torch.no_grad():
        expected = plain(**text, image_embeds=embeds).image_features
        assert largest(model(**text, image_embeds=embeds).image_features - expected) <= 2e-6 * largest(expected)


@pytest.mark.parametrize("model_class", [BridgeTowerModel, BridgeTowerForContrastiveLearning])
def test_compiles_whole_and_keeps_one_graph(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for shift in range(3):
        batch = copy.deepcopy(case)
        batch.inputs["attention_mask"][1, 12 + shift :] = 0
        actual, expected = batch.call(compiled), batch.call(model)
        name = "pooler_output" if model_class is BridgeTowerModel else "logits"
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_training_gives_the_plain_gradients():
    case = make_case(BridgeTowerForContrastiveLearning)
    gradients = []
    for model in (case.plain(), vleff.accelerate(case.model)):
        model(**case.inputs, return_loss=True).loss.backward()
        named = {name: parameter.grad for name, parameter in model.named_parameters()}
        gradients.append({name: grad for name, grad in named.items() if grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    scale = max(largest(grad) for grad in gradients[0].values())
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=2e-6 * scale, rtol=1e-4)


def test_it_is_saved_under_its_own_name(tmp_path):
    model = vleff.accelerate(make_case(BridgeTowerModel).model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BridgeTowerModel"]
    assert vleff.explain(model).encoders[0].accelerated
    assert type(vleff.restore(model)) is BridgeTowerModel
