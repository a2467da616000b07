"""An accelerated model is still the model it was: restored, copied, saved, loaded, cast, switched."""

import copy
import pickle
import warnings

import pytest
import torch
from model_cases import most_error, tensors
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    CLIPTextModel,
    DistilBertModel,
    T5EncoderModel,
    ViltModel,
    ViTModel,
)

import vleff
from vleff.models import registry
from vleff.models.layer import PostNormLayer
from vleff.nn import FusedLinear


def state(model):
    return {name: (id(parameter), parameter._version) for name, parameter in model.named_parameters()}


def modules(model):
    return {name: (id(module), type(module)) for name, module in model.named_modules()}


def call(case, model):
    return tensors(case.call(model))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5 * max(1, expected.abs().max() / 4), rtol=1e-5)


def test_accelerate_keeps_class_keys_and_parameters(any_case):
    model = any_case.model
    before, keys, kind = state(model), list(model.state_dict()), type(model)
    assert vleff.accelerate(model) is model
    assert isinstance(model, kind)
    assert list(model.state_dict()) == keys
    assert state(model) == before


def test_weights_are_packed_before_the_first_layer_runs(build_case, monkeypatch):
    case = build_case(BertModel, hidden_size=128, intermediate_size=256)
    model = vleff.accelerate(case.model)
    linears = [module for module in model.encoder.modules() if isinstance(module, FusedLinear)]
    packed = []
    forward = PostNormLayer.forward_packed

    def record(self, *arguments):
        packed.append([linear.is_packed for linear in linears])
        return forward(self, *arguments)

    monkeypatch.setattr(PostNormLayer, "forward_packed", record)
    case.call(model)
    assert len(linears) == 6 * len(model.encoder.layer)
    assert all(packed[0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_restore_gives_back_modules_parameters_and_config(any_case, attention):
    model = any_case.model
    if not (model._can_set_attn_implementation() and model._supports_sdpa):
        attention = model.config._attn_implementation
    model.set_attn_implementation(attention)
    expected = call(any_case, model)
    before, parameters, config = modules(model), state(model), copy.deepcopy(model.config)
    call(any_case, vleff.accelerate(model))
    assert modules(model) != before
    assert vleff.restore(model) is model
    assert modules(model) == before
    assert state(model) == parameters
    assert model.config.to_dict() == config.to_dict()
    assert model.config._attn_implementation == attention
    restored = call(any_case, model)
    for name in expected:
        assert torch.equal(restored[name], expected[name])


def test_restore_leaves_a_plain_model_alone(bert_case):
    before = modules(bert_case.model)
    vleff.restore(bert_case.model)
    assert modules(bert_case.model) == before


def test_accelerating_twice_is_harmless(any_case):
    model = vleff.accelerate(any_case.model)
    once, expected = modules(model), call(any_case, model)
    vleff.accelerate(model)
    assert modules(model) == once
    again = call(any_case, model)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    vleff.restore(model)
    assert not any(isinstance(module, FusedLinear) or "Packed" in type(module).__name__ for module in model.modules())


def test_restore_keeps_what_was_exchanged_meanwhile(build_case):
    model = vleff.accelerate(build_case(BertForQuestionAnswering).model)
    model.qa_outputs = new_head = nn.Linear(64, 2)
    vleff.restore(model)
    assert model.qa_outputs is new_head


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_accelerated_and_independent(any_case, copier):
    model = vleff.accelerate(any_case.model)
    expected = call(any_case, model)
    other = copier(model)
    outputs = call(any_case, other)
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)
    assert vleff.explain(other).encoders[0].accelerated
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    again = call(any_case, model)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    vleff.restore(other)
    assert all(parameter.count_nonzero() == 0 for parameter in other.parameters())


def test_plain_transformers_loads_the_saved_model(any_case, tmp_path):
    attention = any_case.model.config._attn_implementation
    model = vleff.accelerate(any_case.model)
    expected = call(any_case, model)
    model.save_pretrained(tmp_path)
    assert "vleff" not in (tmp_path / "config.json").read_text()
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config._attn_implementation == attention
    outputs = call(any_case, loaded.eval())
    for name in expected:
        close(any_case.tokens(outputs[name]), any_case.tokens(expected[name]))


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict(any_case, assign):
    other = copy.deepcopy(any_case.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    expected = call(any_case, other)
    model = vleff.accelerate(any_case.model)
    call(any_case, model)
    model.load_state_dict(other.state_dict(), assign=assign)
    outputs = call(any_case, model)
    for name in expected:
        close(any_case.tokens(outputs[name]), any_case.tokens(expected[name]))
    parameters = state(model)
    restored = call(any_case, vleff.restore(model))
    assert state(model) == parameters
    for name in expected:
        close(any_case.tokens(restored[name]), any_case.tokens(expected[name]))


def test_in_place_updates_are_noticed(any_case):
    model = vleff.accelerate(any_case.model).bfloat16()
    call(any_case, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    outputs = call(any_case, model)
    expected = call(any_case, vleff.accelerate(vleff.restore(copy.deepcopy(model))))
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)


def test_refresh_after_writes_through_data(any_case):
    model = vleff.accelerate(any_case.model).bfloat16()
    call(any_case, model)
    for parameter in model.parameters():
        parameter.data.mul_(1.25)
    assert vleff.refresh(model) is model
    outputs = call(any_case, model)
    expected = call(any_case, vleff.accelerate(vleff.restore(copy.deepcopy(model))))
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)


def test_dtype_changes_before_and_after_agree(any_case):
    before = call(any_case, vleff.accelerate(any_case.plain(torch.bfloat16)))
    after = call(any_case, vleff.accelerate(any_case.model).to(torch.bfloat16))
    assert all(torch.equal(before[name], after[name]) for name in before)
    back = vleff.restore(any_case.model)
    assert {parameter.dtype for parameter in back.parameters()} == {torch.bfloat16}


def test_train_and_eval(bert_case):
    model = vleff.accelerate(bert_case.model)
    expected = bert_case.call(model).last_hidden_state
    model.train()
    assert all(module.training for module in model.modules())
    assert not torch.equal(bert_case.call(model).last_hidden_state, expected)
    model.eval()
    assert torch.equal(bert_case.call(model).last_hidden_state, expected)
    model.train()
    vleff.restore(model)
    assert all(module.training for module in model.modules())


def test_inference_mode_no_grad_and_frozen_parameters_agree(bert_case):
    model = vleff.accelerate(bert_case.model)
    expected = bert_case.call(model).last_hidden_state
    with torch.inference_mode():
        inference = model(**bert_case.inputs).last_hidden_state
    frozen = model.requires_grad_(False)(**bert_case.inputs).last_hidden_state
    assert torch.equal(inference, expected)
    assert torch.equal(frozen, expected) and not frozen.requires_grad


def test_autocast(any_case):
    plain = any_case.plain()
    with torch.autocast("cpu", torch.bfloat16):
        expected = call(any_case, plain)
        actual = call(any_case, vleff.accelerate(any_case.model))
    exact = call(any_case, any_case.plain(torch.float64))
    for name in expected:
        theirs, ours, double = (any_case.tokens(outputs[name]) for outputs in (expected, actual, exact))
        assert ours.dtype == theirs.dtype
        assert (ours - double).abs().max() <= most_error(theirs, double)


def test_tied_weights_stay_tied(build_case):
    model = vleff.accelerate(build_case(BertForMaskedLM).model)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    model.resize_token_embeddings(120)
    assert model(torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 120)
    vleff.restore(model)
    assert model(torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 120)


def test_explain(bert_case):
    before = vleff.explain(bert_case.model)
    assert not before.encoders[0].accelerated and "vleff.accelerate" in str(before)
    report = vleff.explain(vleff.accelerate(bert_case.model))
    assert report.cpu_isa == torch.ops.vleff.cpu_isa()
    (encoder,) = report.encoders
    assert encoder.accelerated and encoder.family == "BERT" and encoder.reason is None
    assert [path for path, _ in encoder.layers] == ["encoder.layer.0", "encoder.layer.1", "encoder.layer.2"]
    text = str(report)
    assert report.cpu_isa in text and "token_gather_attention" in text and "output_attentions" in text
    assert "no transformers model" in str(vleff.explain(nn.Linear(2, 2)))


@pytest.mark.parametrize("model_class", [DistilBertModel, ViTModel, CLIPTextModel, ViltModel, T5EncoderModel])
def test_explain_says_what_falls_back(build_case, model_class):
    report = vleff.explain(vleff.accelerate(build_case(model_class).model))
    (encoder,) = report.encoders
    assert encoder.accelerated and len(encoder.layers) >= 2 and "output_attentions" in str(report)


def test_unchecked_versions_of_transformers_warn_once(build_case, monkeypatch):
    registry.warn_if_unchecked.cache_clear()
    monkeypatch.setattr("transformers.__version__", "5.99.1")
    with pytest.warns(
        UserWarning, match=r"BERT adapter was checked with transformers 5\.17, .*; 5\.99\.1 is installed"
    ):
        vleff.accelerate(build_case(BertModel).model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vleff.accelerate(build_case(BertModel).model)
    registry.warn_if_unchecked.cache_clear()


def test_a_class_that_is_gone_is_reported(monkeypatch):
    import transformers.models.vit.modeling_vit as modeling_vit

    registry._load.cache_clear()
    monkeypatch.delattr(modeling_vit, "ViTLayer")
    monkeypatch.delitem(__import__("sys").modules, "vleff.models.vit", raising=False)
    with pytest.raises(ImportError, match=r"vleff\.models\.vit does not fit .*ViTLayer"):
        registry._load("vleff.models.vit")
    registry._load.cache_clear()
