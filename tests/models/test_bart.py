"""BART: its encoder, and what decoders make of it."""

import pytest
import torch
from model_cases import make_case
from model_cases.bart import BartEncoder
from transformers import BartForConditionalGeneration

import vleff
from vleff.models.layer import PostNormLayer


def test_the_encoder_packs_once(monkeypatch):
    case = make_case(BartEncoder)
    model = vleff.accelerate(case.model)
    rows = []
    forward = PostNormLayer.forward_packed

    def record(self, values, context):
        rows.append(values.shape[0])
        return forward(self, values, context)

    monkeypatch.setattr(PostNormLayer, "forward_packed", record)
    output = case.call(model).last_hidden_state
    assert rows == [int(case.valid.sum())] * 3
    assert output[~case.valid].count_nonzero() == 0


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
def test_generates_the_same_tokens(arguments):
    case = make_case(BartForConditionalGeneration)
    plain, model = case.plain(), vleff.accelerate(case.model)
    inputs = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
    expected, actual = (one.generate(**inputs, max_new_tokens=12, **arguments) for one in (plain, model))
    assert torch.equal(actual, expected)


def test_layer_drop_draws_as_the_plain_model():
    case = make_case(BartEncoder, encoder_layerdrop=0.5, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    plain, model = case.plain().train(), vleff.accelerate(case.model).train()
    for seed in range(4):
        outputs = []
        for one in (plain, model):
            torch.manual_seed(seed)
            outputs.append(one(**case.inputs).last_hidden_state[case.valid])
        torch.testing.assert_close(outputs[1], outputs[0], atol=2e-5, rtol=2e-5)


def test_float16_runs_as_transformers_wrote_it():
    case = make_case(BartEncoder)
    expected = case.call(case.plain(torch.float16)).last_hidden_state
    actual = case.call(vleff.accelerate(case.model).half()).last_hidden_state
    torch.testing.assert_close(case.tokens(actual), case.tokens(expected), atol=2e-2, rtol=2e-2)
