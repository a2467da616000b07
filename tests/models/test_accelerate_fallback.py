"""What cannot run packed gives the results of the model that transformers wrote, and `explain` says why."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertLayer

import vleff


def with_attention(case, name):
    case.model.set_attn_implementation(name)
    return case


def test_attention_weights(encoder_case):
    with_attention(encoder_case, "eager")
    expected = encoder_case.call(encoder_case.plain(), output_attentions=True)
    actual = encoder_case.call(vleff.accelerate(encoder_case.model), output_attentions=True)
    assert len(actual.attentions) == 3
    for ours, plain in zip(actual.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["additive", "bool"])
def test_user_made_masks(bert_case, attention, kind):
    with_attention(bert_case, attention)
    mask = torch.rand(4, 1, 17, 17).lt(0.7) | torch.eye(17, dtype=torch.bool)
    if kind == "additive" or (kind == "bool" and attention == "eager"):  # eager adds whatever it gets
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    ids = bert_case.inputs["input_ids"]
    with torch.no_grad():
        expected = bert_case.plain()(ids, attention_mask=mask).last_hidden_state
        actual = vleff.accelerate(bert_case.model)(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_mask_that_transformers_refuses_is_refused(bert_case):
    mask = torch.eye(17, dtype=torch.bool).expand(4, 17, 17)
    model = vleff.accelerate(bert_case.model)
    with pytest.raises(RuntimeError, match="number of dimensions"):
        model(bert_case.inputs["input_ids"], attention_mask=mask)


def test_causal_calls(bert_case):
    inputs = {"input_ids": bert_case.inputs["input_ids"]}
    with torch.no_grad():
        expected = bert_case.plain()(**inputs, is_causal=True).last_hidden_state
        bidirectional = bert_case.plain()(**inputs).last_hidden_state
        actual = vleff.accelerate(bert_case.model)(**inputs, is_causal=True).last_hidden_state
    assert not torch.allclose(expected, bidirectional, atol=1e-2)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_another_attention_implementation_set_later(bert_case):
    expected = bert_case.call(bert_case.plain()).last_hidden_state
    model = vleff.accelerate(bert_case.model)
    model.set_attn_implementation("eager")
    actual = bert_case.call(model).last_hidden_state
    torch.testing.assert_close(bert_case.tokens(actual), bert_case.tokens(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["layer", "attention", "attention.self", "output", "output.LayerNorm"])
def test_hooks_see_what_they_saw_before(bert_case, position):
    def hooked(model):
        seen = []
        module = model.encoder.layer[1].get_submodule(position if position != "layer" else "")
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        bert_case.call(model)
        return [output[0] if isinstance(output, tuple) else output for output in seen]

    (expected,) = hooked(bert_case.plain())
    (actual,) = hooked(vleff.accelerate(bert_case.model))
    assert actual.shape == expected.shape
    torch.testing.assert_close(bert_case.tokens(actual), bert_case.tokens(expected), atol=1e-5, rtol=1e-5)


def test_a_hook_on_a_linear_stays(bert_case):
    seen = []
    linear = bert_case.model.encoder.layer[0].output.dense
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    bert_case.call(vleff.accelerate(bert_case.model))
    assert len(seen) == 1


def test_a_layer_called_by_itself(bert_case):
    hidden, mask = torch.randn(4, 17, 64), bert_case.valid
    with torch.no_grad():
        expected = bert_case.plain().encoder.layer[0](hidden, mask[:, None, None])
        actual = vleff.accelerate(bert_case.model).encoder.layer[0](hidden, mask)
    torch.testing.assert_close(actual[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_a_vit_with_a_mask(build_case):
    case = build_case(ViTModel)
    mask = torch.ones(4, 26, dtype=torch.bool)
    mask[1, 20:] = mask[2, 5:9] = False
    expected = case.call(case.plain(), attention_mask=mask).last_hidden_state
    actual = case.call(vleff.accelerate(case.model), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(actual[mask], expected[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_class", "reason"), [(BertModel, "chunk"), (DistilBertModel, "chunk")])
def test_chunked_feed_forward_is_refused(build_case, model_class, reason):
    case = build_case(model_class, chunk_size_feed_forward=1)
    with pytest.raises(TypeError, match="chunk_size_feed_forward=1"):
        vleff.accelerate(case.model)
    assert "chunk_size_feed_forward=1" in str(vleff.explain(case.model))


def test_a_decoder_is_refused():
    config = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, is_decoder=True)
    with pytest.raises(TypeError, match="is_decoder"):
        vleff.accelerate(BertLMHeadModel(config))


def test_a_config_that_asks_for_attention_weights_is_refused(bert_case):
    with_attention(bert_case, "eager").model.config.output_attentions = True
    with pytest.raises(TypeError, match="output_attentions"):
        vleff.accelerate(bert_case.model)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2))])
def test_unknown_models_are_refused_by_name(model):
    with pytest.raises(TypeError, match=rf"BERT, .*DistilBERT.*RoBERTa.*ViT.*{type(model).__name__}"):
        vleff.accelerate(model)


def test_an_unknown_subclass_is_refused(bert_case):
    class OtherLayer(BertLayer):
        pass

    bert_case.model.encoder.layer[1].__class__ = OtherLayer
    with pytest.raises(TypeError, match="expected the class BertLayer, got its subclass OtherLayer"):
        vleff.accelerate(bert_case.model)


def test_what_is_not_supported_inside_a_model_is_left_and_listed():
    torch.manual_seed(0)
    encoder = ViTConfig(image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    decoder = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = VisionEncoderDecoderModel(config=config).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16), "decoder_input_ids": torch.randint(5, 99, (2, 7))}
    with torch.no_grad():
        expected = model(**inputs).logits
        actual = vleff.accelerate(model)(**inputs).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    by_path = {encoder.path: encoder for encoder in vleff.explain(model).encoders}
    assert by_path["encoder"].accelerated and by_path["encoder"].family == "ViT"
    assert not by_path["decoder.bert"].accelerated and "is_decoder" in by_path["decoder.bert"].reason


def test_cross_attention_and_caches(bert_case):
    """An encoder ignores encoder_hidden_states and takes a cache (prefix tuning); both must stay so."""
    from transformers import DynamicCache

    states = torch.randn(4, 5, 64)
    expected = bert_case.call(bert_case.plain(), encoder_hidden_states=states).last_hidden_state
    plain, model = bert_case.plain(), vleff.accelerate(bert_case.model)
    actual = bert_case.call(model, encoder_hidden_states=states).last_hidden_state
    torch.testing.assert_close(actual[bert_case.valid], expected[bert_case.valid], atol=1e-5, rtol=1e-5)

    def with_prefix(model):
        cache = DynamicCache(config=model.config)
        generator = torch.Generator().manual_seed(0)
        for layer in range(3):
            keys, values = torch.randn(2, 4, 4, 2, 16, generator=generator)
            cache.update(keys, values, layer)
        mask = torch.cat([torch.ones(4, 2, dtype=torch.long), bert_case.inputs["attention_mask"]], dim=1)
        ids = bert_case.inputs["input_ids"]
        with torch.no_grad():
            return model(ids, attention_mask=mask, past_key_values=cache).last_hidden_state

    torch.testing.assert_close(with_prefix(model), with_prefix(plain), atol=1e-5, rtol=1e-5)


def test_an_activation_that_layers_and_head_share(build_case):
    """A config may hold the activation module itself, which transformers then puts everywhere."""
    case = build_case(BertForMaskedLM)
    shared = GELUActivation()
    for layer in case.model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = shared
    case.model.cls.predictions.transform.transform_act_fn = shared
    expected = case.call(case.plain()).logits
    actual = case.call(vleff.accelerate(case.model)).logits
    torch.testing.assert_close(actual[case.valid], expected[case.valid], atol=1e-5, rtol=1e-5)
    vleff.restore(case.model)
    assert all(layer.intermediate.intermediate_act_fn is shared for layer in case.model.bert.encoder.layer)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got str"):
        vleff.accelerate("bert-base-uncased")
