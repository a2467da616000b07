"""Training an accelerated model: the same gradients, dropout in the kernel, real text."""

import copy

import pytest
import torch
from model_cases.bart import BartEncoder
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    CLIPTextModel,
    DistilBertModel,
    RobertaModel,
    ViTForImageClassification,
    ViTModel,
)

import vleff

NO_DROPOUT = {
    BertModel: {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    RobertaModel: {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    DistilBertModel: {"dropout": 0.0, "attention_dropout": 0.0},
    ViTModel: {},
    BartEncoder: {"dropout": 0.0, "attention_dropout": 0.0},
}


def loss_and_gradients(case, model):
    model.train()
    output = model(**case.inputs).last_hidden_state
    loss = (case.tokens(output) * torch.linspace(-1, 1, 64)).tanh().sum()
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("model_class", NO_DROPOUT, ids=lambda model_class: model_class.__name__)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_without_dropout_equal_the_plain_models(build_case, model_class, checkpointing):
    case = build_case(model_class, **NO_DROPOUT[model_class])
    expected_loss, expected = loss_and_gradients(case, case.plain())
    model = vleff.accelerate(case.model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    loss, gradients = loss_and_gradients(case, model)
    torch.testing.assert_close(loss, expected_loss, atol=1e-4, rtol=1e-5)
    # the gradients of the keys' biases are zero but for rounding
    largest = max(gradient.abs().max() for gradient in expected.values() if gradient is not None)
    for name, gradient in expected.items():
        if gradient is None:
            assert gradients[name] is None
        else:
            torch.testing.assert_close(gradients[name], gradient, atol=1e-6 * largest, rtol=1e-4)


def test_gradients_in_eval_mode_and_with_respect_to_inputs(bert_case):
    def saliency(model):
        embeds = model.embeddings.word_embeddings(bert_case.inputs["input_ids"]).detach().requires_grad_()
        output = model(inputs_embeds=embeds, attention_mask=bert_case.inputs["attention_mask"])
        output.last_hidden_state[bert_case.valid].square().sum().backward()
        return embeds.grad

    expected = saliency(bert_case.plain())
    model = vleff.accelerate(bert_case.model)
    for frozen in (False, True):
        actual = saliency(model.requires_grad_(not frozen))
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_dropout_is_reproducible_and_unbiased(bert_case):
    model = vleff.accelerate(bert_case.model).train()

    def run(seed):
        torch.manual_seed(seed)
        return bert_case.call(model).last_hidden_state

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_attention_dropout_runs_in_the_kernel(build_case):
    """With attention dropout alone, outputs scatter around those without."""
    case = build_case(BertModel, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.1)
    model = vleff.accelerate(case.model)
    expected = case.tokens(case.call(model).last_hidden_state)
    model.train()
    samples = torch.stack([case.tokens(case.call(model).last_hidden_state) for _ in range(50)])
    assert samples.std(0).max() > 1e-3
    assert (samples.mean(0) - expected).abs().mean() < 0.2 * samples.std(0).mean()


def test_checkpointing_replays_dropout(bert_case):
    def gradients(model):
        torch.manual_seed(3)
        model.train()
        model(**bert_case.inputs).last_hidden_state[bert_case.valid].square().sum().backward()
        return [parameter.grad for parameter in model.encoder.parameters()]

    model = vleff.accelerate(bert_case.model)
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    for actual, expected in zip(gradients(other), gradients(model), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def masked_language_losses(paragraphs, steps=40):
    """Losses of a default-config (but small) BERT on real text, characters as tokens."""
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    assert config.attention_probs_dropout_prob == config.hidden_dropout_prob == 0.1
    model = vleff.accelerate(BertForMaskedLM(config)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        texts = [paragraphs[(4 * step + i) % len(paragraphs)][: 40 + 20 * i] for i in range(4)]
        ids = torch.zeros(4, 100, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(list(text.encode("ascii", "replace")))
        mask = ids != 0
        hidden = mask & (torch.rand(ids.shape) < 0.15)
        loss = model(
            input_ids=ids.masked_fill(hidden, 1),
            attention_mask=mask.long(),
            labels=ids.masked_fill(~hidden, -100),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_fine_tuning_on_real_text_lowers_the_loss_reproducibly(squad_paragraphs):
    losses = masked_language_losses(squad_paragraphs)
    assert sum(losses[-5:]) / 5 < 0.75 * sum(losses[:5]) / 5
    assert masked_language_losses(squad_paragraphs, steps=5) == losses[:5]


def test_heads_train(build_case):
    case = build_case(BertForQuestionAnswering)
    model = vleff.accelerate(case.model).train()
    positions = torch.tensor([0, 3, 2, 0])
    model(**case.inputs, start_positions=positions, end_positions=positions).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    case = build_case(ViTForImageClassification)
    vleff.accelerate(case.model).train()(**case.inputs, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in case.model.parameters())


@pytest.mark.parametrize("model_class", [BertModel, DistilBertModel, ViTModel, CLIPTextModel])
def test_autocast_training(build_case, model_class):
    case = build_case(model_class)
    with torch.autocast("cpu", torch.bfloat16):
        expected = case.plain().train(False)(**case.inputs).last_hidden_state
        model = vleff.accelerate(case.model)
        output = model(**case.inputs).last_hidden_state
        output[case.valid].square().sum().backward()
    assert output.dtype == expected.dtype
    layers = [parameter for name, parameter in model.named_parameters() if ".layer" in f".{name}"]
    assert len(layers) > 20 and all(parameter.grad is not None for parameter in layers)
    torch.testing.assert_close(output[case.valid], expected[case.valid], atol=0.1, rtol=0.1)
