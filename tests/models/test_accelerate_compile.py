"""torch.compile takes an accelerated model whole and keeps one graph for all token counts."""

import pytest
import torch
from model_cases.bart import BartEncoder
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    BertForSequenceClassification,
    BertModel,
    DistilBertModel,
    RobertaModel,
    ViTForImageClassification,
    ViTModel,
)

import vleff


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def masked_inputs(lengths):
    mask = (torch.arange(17) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(5, 99, mask.shape), "attention_mask": mask}


@pytest.mark.parametrize(
    "model_class", [BertModel, BertForSequenceClassification, RobertaModel, DistilBertModel, BartEncoder]
)
def test_one_graph_for_all_token_counts(build_case, model_class):
    model = vleff.accelerate(build_case(model_class).model)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for lengths in [(3, 17, 11, 1), (17, 2, 2, 5), (17, 17, 17, 17), (1, 1, 1, 17)]:
        inputs = masked_inputs(lengths)
        with torch.no_grad():
            expected, actual = model(**inputs)[0], compiled(**inputs)[0]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


def test_changing_shapes_cost_no_more_graphs_than_in_the_plain_model(bert_case):
    def graphs(model):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
        for batch, length in [(3, 9), (5, 12), (2, 17), (7, 30)]:
            mask = torch.rand(batch, length).lt(0.6).long()
            mask[:, 0] = 1
            inputs = {"input_ids": torch.randint(5, 99, mask.shape), "attention_mask": mask}
            with torch.no_grad():
                expected, actual = model(**inputs)[0], compiled(**inputs)[0]
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        return counter.frame_count

    plain = graphs(bert_case.plain())
    assert graphs(vleff.accelerate(bert_case.model)) <= plain


def test_without_a_mask(bert_case):
    model = vleff.accelerate(bert_case.model)
    ids = bert_case.inputs["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(ids)[0], model(ids)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_vit(build_case, model_class):
    case = build_case(model_class)
    model = vleff.accelerate(case.model)
    expected = case.call(model)
    actual = case.call(torch.compile(model, fullgraph=True))
    torch.testing.assert_close(actual[0], expected[0], atol=1e-5, rtol=1e-5)


def test_training(build_case):
    case = build_case(BertModel, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = vleff.accelerate(case.model).train()

    def gradients(callable_model):
        model.zero_grad()
        callable_model(**case.inputs).last_hidden_state.square().sum().backward()
        return [parameter.grad.clone() for parameter in model.encoder.parameters()]

    expected = gradients(model)
    largest = max(gradient.abs().max() for gradient in expected)
    for actual, plain in zip(gradients(torch.compile(model, fullgraph=True)), expected, strict=True):
        torch.testing.assert_close(actual, plain, atol=1e-6 * largest, rtol=1e-4)
