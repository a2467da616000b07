"""BLIP for NLVR2: cross attention to two images."""

import copy

import pytest
import torch
from model_cases import make_case
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import BlipTextModel

import vleff
from vleff.models.blip_nlvr2 import BlipForNLVR2, load_original_state_dict


def with_layers(count):
    text = make_case(BlipForNLVR2).model.config.text_config.to_dict() | {"num_hidden_layers": count}
    return make_case(BlipForNLVR2, text_config=text)


def test_upper_layers_merge_and_lower_ones_average():
    case = with_layers(8)
    outputs = [layer.crossattention.output for layer in case.model.encoder.layer]
    assert [hasattr(output, "merge_layer") for output in outputs] == [False] * 6 + [True] * 2
    first, second = torch.randn(2, 5, 64).unbind()
    torch.testing.assert_close(outputs[0].join(first, second), (first + second) / 2)
    merged = outputs[6].merge_layer(torch.cat([first, second], -1))
    torch.testing.assert_close(outputs[6].join(first, second), merged)
    expected = case.call(case.plain()).logits
    actual = case.call(vleff.accelerate(case.model)).logits
    assert (actual - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_with_one_image_twice_and_equal_projections_it_is_blips_text_encoder():
    """The average of two equal cross attentions is one cross attention."""
    case = make_case(BlipForNLVR2)
    model, reference = case.model, make_case(BlipTextModel, num_hidden_layers=3).model
    state = {}
    for name, value in reference.state_dict().items():
        state[
            name.replace("crossattention.self.", "crossattention.self0.").replace(
                "crossattention.output.dense", "crossattention.output.dense0"
            )
        ] = value
        if "crossattention.self." in name or "crossattention.output.dense" in name:
            state[name.replace(".self.", ".self1.").replace("output.dense", "output.dense1")] = value
    left, unexpected = model.load_state_dict(
        {k: v for k, v in state.items() if not k.startswith("pooler")}, strict=False
    )
    assert not unexpected and all(name.startswith(("vision_model", "classifier")) for name in left)
    image = torch.randn(4, 9, 64)
    text = {"input_ids": case.inputs["input_ids"], "attention_mask": case.inputs["attention_mask"]}
    with torch.no_grad():
        expected = reference(**text, encoder_hidden_states=image).last_hidden_state
        states = model._encode(model.embeddings(text["input_ids"]), text["attention_mask"], (image, image))[-1]
    torch.testing.assert_close(states[case.valid], expected[case.valid], atol=1e-5, rtol=1e-5)


def test_loss_gradients_and_the_order_of_images():
    case = make_case(BlipForNLVR2)
    plain, model = case.plain(), vleff.accelerate(case.model)
    labels = torch.tensor([0, 1, 1, 0])
    gradients = []
    for one in (plain, model):
        one(**case.inputs, labels=labels).loss.backward()
        gradients.append(one.encoder.layer[1].crossattention.self1.key.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5 * float(gradients[0].abs().max()), rtol=1e-4)
    swapped = copy.deepcopy(case)
    swapped.inputs["pixel_values"] = case.inputs["pixel_values"].flip(1)
    assert not torch.allclose(swapped.call(model).logits, case.call(model).logits)


def test_the_authors_layout_makes_a_round_trip():
    source, target = make_case(BlipForNLVR2).model, make_case(BlipForNLVR2, seed=1).model
    theirs = {
        "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
        "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
        "vision_model.embeddings.patch_embedding.weight": "visual_encoder.patch_embed.proj.weight",
        "vision_model.embeddings.patch_embedding.bias": "visual_encoder.patch_embed.proj.bias",
        "vision_model.post_layernorm.weight": "visual_encoder.norm.weight",
        "vision_model.post_layernorm.bias": "visual_encoder.norm.bias",
    }
    original = {}
    for name, value in source.state_dict().items():
        if name.startswith("vision_model.encoder.layers."):
            _, _, _, number, *rest = name.split(".")
            block = ".".join(rest).replace("self_attn.projection", "attn.proj").replace("self_attn", "attn")
            theirs[name] = f"visual_encoder.blocks.{number}.{block.replace('layer_norm', 'norm')}"
        elif name.startswith("classifier."):
            theirs[name] = name.replace("classifier.", "cls_head.")
        original[theirs.get(name, f"text_encoder.{name}")] = value
    assert not any("vision" in name for name in original)
    assert load_original_state_dict(target, original | {"text_encoder.pooler.dense.bias": torch.zeros(1)}) == [
        "text_encoder.pooler.dense.bias"
    ]
    assert all(torch.equal(target.state_dict()[name], value) for name, value in source.state_dict().items())


def test_compiles_whole_and_keeps_one_graph():
    case = make_case(BlipForNLVR2)
    model = vleff.accelerate(case.model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for shift in range(3):
        batch = copy.deepcopy(case)
        batch.inputs["attention_mask"][1, 12 + shift :] = 0
        torch.testing.assert_close(batch.call(compiled).logits, batch.call(model).logits, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_bad_input_is_named():
    case = make_case(BlipForNLVR2)
    with pytest.raises(ValueError, match=r"pixel_values: expected \[batch, 2, 3, height, width\]"):
        case.model(case.inputs["input_ids"], torch.zeros(4, 3, 40, 40))
    with pytest.raises(ValueError, match="attention_mask: expected"):
        case.model(**case.inputs | {"attention_mask": torch.ones(4, 3)})
    with pytest.raises(TypeError, match="output_atentions"):
        case.model(**case.inputs, output_atentions=True)


def test_hidden_states_of_the_text():
    case = make_case(BlipForNLVR2)
    expected = case.call(case.plain(), output_hidden_states=True)
    actual = case.call(vleff.accelerate(case.model), output_hidden_states=True)
    assert len(expected.hidden_states) == len(case.model.encoder.layer) + 1
    for ours, plain in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[case.valid], plain[case.valid], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.logits, case.call(case.model).logits, atol=1e-5, rtol=1e-5)
    case.model.config.output_hidden_states = True
    assert case.call(case.model).hidden_states is not None


def test_gradient_checkpointing():
    case = make_case(BlipForNLVR2)
    model = vleff.accelerate(case.model).train()
    labels = torch.tensor([0, 1, 1, 0])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert any(layer.gradient_checkpointing for layer in model.encoder.layer)
        torch.manual_seed(0)
        model.zero_grad()
        model(**case.inputs, labels=labels).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)
