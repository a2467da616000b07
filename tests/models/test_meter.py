"""METER: assembled from CLIP, RoBERTa and co-attention layers."""

import copy

import pytest
import torch
from model_cases import make_case
from torch._dynamo.testing import CompileCounterWithBackend

import vleff
from vleff.models.meter import MeterConfig, MeterModel
from vleff.models.meter_checkpoint import load_original_state_dict
from vleff.models.meter_heads import (
    MeterForImageAndTextRetrieval,
    MeterForNLVR2,
    MeterForQuestionAnswering,
    MeterForVisualEntailment,
)


def largest(tensor):
    return tensor.abs().max().item()


def original_state_dict(model, head=None):
    """The model's parameters under the names and in the shapes of the authors' checkpoints."""
    state = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("meter.")
        if name.startswith("text_model."):
            name = name.replace("text_model.", "text_transformer.", 1)
        elif name.startswith("classifier."):
            name = name.replace("classifier", head, 1)
        elif name.startswith("vision_model."):
            name = name.removeprefix("vision_model.")
            for ours, theirs in (
                ("embeddings.class_embedding", "class_embedding"),
                ("embeddings.patch_embedding", "conv1"),
                ("embeddings.position_embedding.weight", "positional_embedding"),
                ("pre_layrnorm", "ln_pre"),
                ("post_layernorm", "ln_post"),
                ("encoder.layers", "transformer.resblocks"),
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm", "ln_"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                name = name.replace(ours, theirs)
            name = "vit_model.visual." + name
        state[name] = value
    for name in [name for name in state if "self_attn.q_proj" in name]:
        parts = [state.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        layer, kind = name.split(".self_attn.q_proj.")
        state[f"{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    return state


@pytest.mark.parametrize(
    ("model_class", "head"),
    [
        (MeterModel, None),
        (MeterForQuestionAnswering, "vqa_classifier"),
        (MeterForNLVR2, "nlvr2_classifier"),
        (MeterForVisualEntailment, "snli_classifier"),
        (MeterForImageAndTextRetrieval, "rank_output"),
    ],
)
def test_the_authors_layout_makes_a_round_trip(model_class, head):
    source = make_case(model_class)
    original = original_state_dict(source.model, head)
    assert not any(name.startswith(("vision_model", "text_model", "classifier", "meter")) for name in original)
    original["text_transformer.embeddings.position_ids"] = torch.arange(512)[None]
    original["mlm_score.bias"] = torch.zeros(99)
    target = make_case(model_class, seed=1).model
    unused = load_original_state_dict(target, original)
    assert sorted(unused) == ["mlm_score.bias", "text_transformer.embeddings.position_ids"]
    for name, value in source.model.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    with pytest.raises(RuntimeError, match="cross_modal_text_transform"):
        load_original_state_dict(target, {k: v for k, v in original.items() if "cross_modal_text_transform" not in k})


def test_a_checkpoint_with_two_modality_types_gives_the_second_image_the_first_ones():
    source = make_case(MeterModel, modality_types=2).model
    target = make_case(MeterModel, seed=1).model
    load_original_state_dict(target, original_state_dict(source))
    types = target.token_type_embeddings.weight
    assert torch.equal(types[:2], source.token_type_embeddings.weight) and torch.equal(types[2], types[1])


def test_both_streams_read_the_states_before_the_layer():
    case = make_case(MeterModel, num_hidden_layers=1)
    model, inputs = case.model, case.inputs
    with torch.no_grad():
        text = model.text_model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        image = model.vision_model.post_layernorm(model.vision_model(inputs["pixel_values"]).last_hidden_state)
        types = model.token_type_embeddings.weight
        text = model.cross_modal_text_transform(text) + types[0]
        image = model.cross_modal_image_transform(image) + types[1]
        hidden = torch.zeros(4, 1, 1, 17).masked_fill(~case.valid[:, None, None], torch.finfo(torch.float32).min)
        expected = (
            model.cross_modal_text_layers[0](text, image, attention_mask=hidden)[0],
            model.cross_modal_image_layers[0](image, text, encoder_attention_mask=hidden)[0],
        )
    output = case.call(model)
    torch.testing.assert_close(output.text_features[case.valid], expected[0][case.valid], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(output.image_features, expected[1], atol=1e-6, rtol=1e-6)


def test_text_padding_changes_nothing():
    case = make_case(MeterModel)
    for model in (case.plain(), vleff.accelerate(case.model)):
        together = case.call(model)
        for sample in range(4):
            alone = copy.deepcopy(case)
            length = int(case.valid[sample].sum())
            alone.inputs = {name: x[sample : sample + 1] for name, x in case.inputs.items()}
            alone.inputs |= {name: alone.inputs[name][:, :length] for name in ("input_ids", "attention_mask")}
            expected = alone.call(model)
            for name in ("image_features", "pooler_output"):
                torch.testing.assert_close(together[name][sample], expected[name][0], atol=2e-5, rtol=2e-5)


def test_losses_and_gradients():
    cases = {
        MeterForQuestionAnswering: torch.rand(4, 3),
        MeterForVisualEntailment: torch.tensor([0, 2, 1, 1]),
        MeterForNLVR2: torch.tensor([0, 1, 1, 0]),
        MeterForImageAndTextRetrieval: torch.tensor([1, 0]),
    }
    for model_class, labels in cases.items():
        case = make_case(model_class, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        plain, model = case.plain(), vleff.accelerate(case.model)
        losses = [one(**case.inputs, labels=labels).loss for one in (plain, model)]
        torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
        for loss in losses:
            loss.backward()
        expected = plain.meter.cross_modal_image_layers[0].crossattention.self.key.weight.grad
        actual = model.meter.cross_modal_image_layers[0].crossattention.self.key.weight.grad
        torch.testing.assert_close(actual, expected, atol=1e-5 * largest(expected), rtol=1e-4)


def test_compiles_whole_and_keeps_one_graph():
    case = make_case(MeterForNLVR2)
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
    model, ids, pixels = make_case(MeterModel).model, torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 3, 40, 40)
    with pytest.raises(ValueError, match="pixel_values or image_embeds: expected exactly one"):
        model(ids)
    with pytest.raises(ValueError, match=r"attention_mask: expected \[batch, length\]"):
        model(ids, attention_mask=torch.ones(1, 1, 3, 3), pixel_values=pixels)
    with pytest.raises(ValueError, match="two images"):
        make_case(MeterForNLVR2).model(ids, pixel_values=pixels)


def test_the_default_is_the_published_size():
    config = MeterConfig()
    assert (config.vision_config.image_size, config.vision_config.num_hidden_layers) == (288, 11)
    assert (config.text_config.num_hidden_layers, config.num_hidden_layers) == (12, 6)
    assert MeterConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
