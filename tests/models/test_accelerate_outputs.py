"""An accelerated model gives the outputs of the model that transformers wrote."""

import copy

import pytest
import torch
from model_cases import most_error, tensors
from torch import nn
from transformers import (
    BertModel,
    BlipTextModel,
    CLIPVisionModel,
    DistilBertModel,
    MPNetModel,
    RobertaModel,
    ViTModel,
)

import vleff

LEFT = [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]
HOLES = [[1, 0, 1, 1, 0], [0, 1, 0, 1, 1]]
FULL = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def largest(tensor):
    return tensor.abs().max().item()


def test_float32_outputs_agree(any_case):
    expected = any_case.call(any_case.plain())
    exact = any_case.call(any_case.plain(torch.float64))
    actual = any_case.call(vleff.accelerate(any_case.model))
    assert type(actual) is type(expected) and actual.keys() == expected.keys()
    expected, exact, actual = tensors(expected), tensors(exact), tensors(actual)
    for name in expected:
        plain, double, ours = (any_case.tokens(outputs[name]) for outputs in (expected, exact, actual))
        assert largest(ours - plain) <= 2e-6 * largest(plain)
        # a float32 has 24 bits: below one unit of the last place of the largest value the ratio is noise
        assert largest(ours - double) <= most_error(plain, double) + 2**-23 * largest(double)


def test_bfloat16_error_is_at_most_twice_that_of_plain_torch(any_case):
    exact = any_case.call(any_case.plain(torch.bfloat16).double())
    expected = any_case.call(any_case.plain(torch.bfloat16))
    actual = any_case.call(vleff.accelerate(any_case.model).bfloat16())
    expected, exact, actual = tensors(expected), tensors(exact), tensors(actual)
    for name in expected:
        plain, double, ours = (any_case.tokens(outputs[name]) for outputs in (expected, exact, actual))
        assert ours.dtype == torch.bfloat16
        assert largest(ours - double) <= most_error(plain, double)


@pytest.mark.parametrize(
    "model_class", [BertModel, RobertaModel, DistilBertModel, MPNetModel, ViTModel, CLIPVisionModel, BlipTextModel]
)
def test_float16_runs_packed(build_case, model_class):
    case = build_case(model_class)
    expected = case.tokens(case.call(case.plain()).last_hidden_state)
    actual = case.call(vleff.accelerate(case.model).half()).last_hidden_state
    assert actual.dtype == torch.float16
    if case.valid is not None:
        assert actual[~case.valid].count_nonzero() == 0
    assert largest(case.tokens(actual).float() - expected) <= 2e-2 * largest(expected)


def test_float64_runs_as_before(encoder_case):
    expected = encoder_case.call(encoder_case.plain(torch.float64)).last_hidden_state
    actual = encoder_case.call(vleff.accelerate(encoder_case.model).double()).last_hidden_state
    torch.testing.assert_close(encoder_case.tokens(actual), encoder_case.tokens(expected))


def test_padded_positions_are_zero(bert_case):
    output = bert_case.call(vleff.accelerate(bert_case.model)).last_hidden_state
    assert output[~bert_case.valid].count_nonzero() == 0
    assert output[bert_case.valid].count_nonzero() > 0


@pytest.mark.parametrize("mask", [LEFT, HOLES, FULL, None], ids=["left", "holes", "full", "none"])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.float32, torch.bool])
def test_masks(bert_case, mask, mask_dtype):
    ids = torch.randint(5, 99, (2, 5))
    valid = torch.tensor(FULL if mask is None else mask).bool()
    arguments = {} if mask is None else {"attention_mask": valid.to(mask_dtype)}
    plain = bert_case.plain()
    with torch.no_grad():
        expected = plain(ids, **arguments).last_hidden_state
        actual = vleff.accelerate(bert_case.model)(ids, **arguments).last_hidden_state
    assert largest((actual - expected)[valid]) <= 2e-6 * largest(expected[valid])
    assert actual[~valid].count_nonzero() == 0


def test_a_sample_without_tokens(bert_case):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    output = vleff.accelerate(bert_case.model)(torch.ones_like(mask), attention_mask=mask).last_hidden_state
    assert output.isfinite().all()
    assert output[1].count_nonzero() == 0


def test_inputs_embeds_and_tuples(bert_case):
    embeds = bert_case.model.embeddings.word_embeddings(bert_case.inputs["input_ids"]).detach()
    mask = bert_case.inputs["attention_mask"]
    expected = bert_case.plain()(inputs_embeds=embeds, attention_mask=mask, return_dict=False)
    actual = vleff.accelerate(bert_case.model)(inputs_embeds=embeds, attention_mask=mask, return_dict=False)
    assert isinstance(actual, tuple) and len(actual) == len(expected)
    torch.testing.assert_close(actual[1], expected[1], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("by_config", [False, True])
def test_hidden_states(encoder_case, by_config):
    arguments = {} if by_config else {"output_hidden_states": True}
    encoder_case.model.config.output_hidden_states = by_config
    expected = encoder_case.call(encoder_case.plain(), **arguments).hidden_states
    model = vleff.accelerate(encoder_case.model)
    output = encoder_case.call(model, **arguments)
    assert len(output.hidden_states) == len(expected) == 4
    for actual, plain in zip(output.hidden_states, expected, strict=True):
        difference = encoder_case.tokens(actual) - encoder_case.tokens(plain)
        assert largest(difference) <= 2e-6 * largest(encoder_case.tokens(plain))
        if encoder_case.valid is not None:
            assert actual[~encoder_case.valid].count_nonzero() == 0
    # asking for them leaves hooks behind; the next call packs once again and gives the same bits
    model.config.output_hidden_states = False
    again = encoder_case.call(model)
    assert again.hidden_states is None
    assert torch.equal(again.last_hidden_state, output.last_hidden_state)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu"])
def test_activations(build_case, activation):
    case = build_case(BertModel, hidden_act=activation)
    expected = case.tokens(case.call(case.plain()).last_hidden_state)
    actual = case.tokens(case.call(vleff.accelerate(case.model)).last_hidden_state)
    assert largest(actual - expected) <= 2e-6 * largest(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_does_not_depend_on_its_batch_mates(any_case, dtype):
    model = vleff.accelerate(any_case.model).to(dtype)
    count = 33
    inputs = {name: torch.cat([x.roll(shift, 0) for shift in range(9)])[:count] for name, x in any_case.inputs.items()}
    together = copy.deepcopy(any_case)
    together.inputs = inputs
    batched = tensors(together.call(model))
    for sample in (0, 1, 2, 3, 31, 32):
        alone = copy.deepcopy(any_case)
        alone.inputs = {name: x[sample : sample + 1] for name, x in inputs.items()}
        single = tensors(alone.call(model))
        for name in single:
            if single[name].shape[1:] == batched[name].shape[1:]:  # not between all pairs, as contrastive logits are
                assert torch.equal(single[name][0], batched[name][sample]), (name, sample)


def test_a_model_around_models(bert_case):
    class TwoTowers(nn.Module):
        def __init__(self, left, right):
            super().__init__()
            self.left, self.right = left, right

        def forward(self, **inputs):
            return self.left(**inputs).pooler_output @ self.right(**inputs).pooler_output.T

    towers = TwoTowers(bert_case.model, bert_case.plain())
    expected = bert_case.call(towers)
    actual = bert_case.call(vleff.accelerate(towers))
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-6)
    assert [encoder.accelerated for encoder in vleff.explain(towers).encoders] == [True, True]
