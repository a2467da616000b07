"""BLIP: cross attention to an image, its mask, generation."""

import copy

import pytest
import torch
from model_cases import make_case
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextModel,
    BlipVisionModel,
)

import vleff


def text_and_memory(lengths=(3, 17, 11, 1)):
    case = make_case(BlipTextModel)
    memory = torch.randn(4, 9, 64)
    return case, case.inputs | {"encoder_hidden_states": memory}, torch.arange(9) < torch.tensor([[9], [4], [1], [7]])


def largest(tensor):
    return tensor.abs().max().item()


def test_cross_attention_equals_the_plain_models_on_memory_without_padding():
    case, inputs, _ = text_and_memory()
    everything = torch.ones(4, 9, dtype=torch.long)
    with torch.no_grad():
        expected = case.plain()(**inputs).last_hidden_state[case.valid]
        model = vleff.accelerate(case.model)
        for mask in ({}, {"encoder_attention_mask": everything}):
            actual = model(**inputs, **mask).last_hidden_state
            assert largest(actual[case.valid] - expected) <= 2e-6 * largest(expected)
            assert actual[~case.valid].count_nonzero() == 0


def test_the_plain_model_ignores_the_memorys_mask_and_the_accelerated_one_does_not():
    case, inputs, mask = text_and_memory()
    plain, model = case.plain(), vleff.accelerate(case.model)
    with torch.no_grad():
        unmasked = plain(**inputs).last_hidden_state
        assert torch.equal(plain(**inputs, encoder_attention_mask=mask.long()).last_hidden_state, unmasked)
        actual = model(**inputs, encoder_attention_mask=mask.long()).last_hidden_state
        for sample in range(4):
            alone = {name: x[sample : sample + 1] for name, x in inputs.items()}
            alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, : int(mask[sample].sum())]
            expected = plain(**alone).last_hidden_state[0][case.valid[sample]]
            assert largest(actual[sample][case.valid[sample]] - expected) <= 2e-6 * largest(expected)
    # the same where every layer runs as transformers wrote it
    with torch.no_grad():
        eager = model(**inputs, encoder_attention_mask=mask.long(), output_attentions=True).last_hidden_state
    assert largest((eager - actual)[case.valid]) <= 2e-6 * largest(actual)


def test_questions_with_padding_are_answered_as_alone():
    case = make_case(BlipForQuestionAnswering)
    plain, model = case.plain(), vleff.accelerate(case.model)
    pixels, ids = torch.randn(2, 3, 40, 40), torch.randint(5, 99, (2, 8))
    mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5])
    answers = torch.randint(5, 99, (2, 4))

    def logits(model, rows, length):
        image = model.vision_model(pixels[rows]).last_hidden_state
        text = {"input_ids": ids[rows, :length], "attention_mask": mask[rows, :length]}
        question = model.text_encoder(**text, encoder_hidden_states=image).last_hidden_state
        memory = {"encoder_hidden_states": question, "encoder_attention_mask": mask[rows, :length]}
        return model.text_decoder(input_ids=answers[rows], **memory).logits

    with torch.no_grad():
        together, alone = logits(model, slice(0, 2), 8), logits(plain, slice(1, 2), 3)
    assert largest(together[1] - alone[0]) <= 2e-6 * largest(alone)


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
@pytest.mark.parametrize("model_class", [BlipForConditionalGeneration, BlipForQuestionAnswering])
def test_generates_the_same_tokens(model_class, arguments):
    case = make_case(model_class)
    plain, model = case.plain(), vleff.accelerate(case.model)
    inputs = {name: case.inputs[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    if model_class is BlipForConditionalGeneration:
        inputs["input_ids"] = inputs["input_ids"][:, :2].contiguous()
        inputs["attention_mask"] = inputs["attention_mask"][:, :2].contiguous()
    expected, actual = (one.generate(**inputs, max_new_tokens=12, **arguments) for one in (plain, model))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("model_class", [BlipTextModel, BlipVisionModel, BlipForImageTextRetrieval])
def test_compiles_whole_and_keeps_one_graph(model_class):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for shift in range(3):
        batch = copy.deepcopy(case)
        if "attention_mask" in batch.inputs:
            batch.inputs["attention_mask"][1, 12 + shift :] = 0
        for actual, expected in zip(batch.call(compiled).to_tuple(), batch.call(model).to_tuple(), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_exports():
    case = make_case(BlipForImageTextRetrieval)
    model = vleff.accelerate(case.model)
    with torch.no_grad():
        program = torch.export.export(model, (), case.inputs, strict=False)
        torch.testing.assert_close(
            program.module()(**case.inputs).itm_score, model(**case.inputs).itm_score, atol=1e-5, rtol=1e-5
        )


def test_fused_projections_have_the_plain_gradients():
    case = make_case(BlipVisionModel)
    gradients = []
    for model in (case.plain(), vleff.accelerate(case.model)):
        model.train()(**case.inputs).pooler_output.square().sum().backward()
        gradients.append([layer.self_attn.qkv.weight.grad for layer in model.encoder.layers])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5 * largest(expected), rtol=1e-4)
