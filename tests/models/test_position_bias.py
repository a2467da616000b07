"""T5 and MPNet: a bias by relative places in the padded batch, which all layers share."""

import copy

import pytest
import torch
from model_cases import make_case
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import MPNetModel, T5EncoderModel, T5ForConditionalGeneration

import vleff

FAMILIES = pytest.mark.parametrize("model_class", [T5EncoderModel, MPNetModel])
MASKS = {
    "left": [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
    "holes": [[1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 1]],
}


def largest(tensor):
    return tensor.abs().max().item()


@FAMILIES
@pytest.mark.parametrize("mask", MASKS)
def test_places_count_in_the_padded_batch(model_class, mask):
    case = make_case(model_class)
    ids, valid = torch.randint(5, 99, (2, 6)), torch.tensor(MASKS[mask])
    plain, model = case.plain(), vleff.accelerate(case.model)
    with torch.no_grad():
        expected = plain(ids, attention_mask=valid).last_hidden_state
        actual = model(ids, attention_mask=valid).last_hidden_state
    assert largest((actual - expected)[valid.bool()]) <= 2e-6 * largest(expected)
    assert actual[~valid.bool()].count_nonzero() == 0


@FAMILIES
def test_gradients_reach_the_table_of_places(model_class):
    case = make_case(model_class)
    tables = []
    for model in (case.plain(), vleff.accelerate(case.model)):
        model(**case.inputs).last_hidden_state[case.valid].square().sum().backward()
        tables.append(next(p.grad for name, p in model.named_parameters() if "relative_attention_bias" in name))
    torch.testing.assert_close(tables[1], tables[0], atol=2e-6 * largest(tables[0]), rtol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gated-gelu", "gated-silu"])
def test_feed_forward_blocks_of_t5(activation):
    case = make_case(T5EncoderModel, feed_forward_proj=activation)
    expected = case.call(case.plain()).last_hidden_state
    actual = case.call(vleff.accelerate(case.model)).last_hidden_state
    assert largest((actual - expected)[case.valid]) <= 2e-6 * largest(expected)


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
@pytest.mark.parametrize("model_class", [T5ForConditionalGeneration])
def test_t5_generates_the_same_tokens(model_class, arguments):
    case = make_case(model_class)
    plain, model = case.plain(), vleff.accelerate(case.model)
    inputs = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
    expected, actual = (one.generate(**inputs, max_new_tokens=12, **arguments) for one in (plain, model))
    assert torch.equal(actual, expected)
    encoder, decoder = vleff.explain(model).encoders
    assert encoder.accelerated and decoder.reason == "it is a decoder"


@FAMILIES
def test_compiles_whole_and_keeps_one_graph(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for shift in range(3):
        batch = copy.deepcopy(case)
        batch.inputs["attention_mask"][1, 12 + shift :] = 0
        actual, expected = (batch.call(one).last_hidden_state for one in (compiled, model))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_float16_t5_runs_as_transformers_wrote_it():
    case = make_case(T5EncoderModel)
    expected = case.call(case.plain(torch.float16)).last_hidden_state
    actual = case.call(vleff.accelerate(case.model).half()).last_hidden_state
    torch.testing.assert_close(case.tokens(actual), case.tokens(expected), atol=2e-2, rtol=2e-2)
