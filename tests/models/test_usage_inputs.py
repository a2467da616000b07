"""Masks and inputs as people pass them, on several families."""

import pytest
import torch
from model_cases import make_case
from transformers import (
    BertModel,
    BlipTextModel,
    DistilBertModel,
    MPNetModel,
    RobertaModel,
    T5EncoderModel,
)

import vleff

MASKS = {
    "left": [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
    "holes": [[1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 0, 0]],
}


def largest(tensor):
    return tensor.abs().max().item()


def both(model_class, **inputs):
    """Last hidden states of the plain and of the accelerated model."""
    case = make_case(model_class)
    with torch.no_grad():  # BLIP adds to the caller's embeddings in place
        return [
            one(**{name: x.clone() for name, x in inputs.items()}).last_hidden_state
            for one in (case.plain(), vleff.accelerate(case.model))
        ]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("model_class", [RobertaModel, DistilBertModel, BlipTextModel, MPNetModel, T5EncoderModel])
def test_padding_anywhere(model_class, mask):
    valid = torch.tensor(MASKS[mask])
    ids = torch.randint(5, 99, valid.shape).where(valid.bool(), torch.tensor(1))
    expected, actual = both(model_class, input_ids=ids, attention_mask=valid)
    assert largest((actual - expected)[valid.bool()]) <= 2e-6 * largest(expected)
    assert actual[~valid.bool()].count_nonzero() == 0


@pytest.mark.parametrize("model_class", [BertModel, RobertaModel, DistilBertModel, BlipTextModel, MPNetModel])
def test_masks_of_four_dimensions_run_as_before(model_class):
    visible = torch.rand(4, 1, 17, 17).lt(0.7) | torch.eye(17, dtype=torch.bool)
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    expected, actual = both(model_class, input_ids=torch.randint(5, 99, (4, 17)), attention_mask=mask)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
@pytest.mark.parametrize("model_class", [RobertaModel, DistilBertModel, BlipTextModel])
def test_masks_of_three_dimensions_do_what_they_did(model_class, dtype):
    """transformers refuses them or not, as the mask's dtype and the attention implementation have it."""
    case = make_case(model_class)
    ids, mask = torch.randint(5, 99, (4, 17)), torch.eye(17).expand(4, 17, 17).to(dtype)
    outcomes = []
    for model in (case.plain(), vleff.accelerate(case.model)):
        try:
            with torch.no_grad():
                outcomes.append(model(ids, attention_mask=mask).last_hidden_state)
        except (RuntimeError, ValueError, IndexError) as error:
            outcomes.append(type(error))
    if isinstance(outcomes[0], torch.Tensor):
        torch.testing.assert_close(outcomes[1], outcomes[0], atol=1e-5, rtol=1e-5)
    else:
        assert outcomes[1] is outcomes[0]


@pytest.mark.parametrize("model_class", [BertModel, RobertaModel, BlipTextModel, MPNetModel])
def test_embeddings_and_positions_of_the_callers_own(model_class):
    valid = torch.tensor(MASKS["left"])
    positions = torch.arange(6).flip(0).expand(2, 6) + 2
    expected, actual = both(
        model_class, inputs_embeds=torch.randn(2, 6, 64), attention_mask=valid, position_ids=positions
    )
    assert largest((actual - expected)[valid.bool()]) <= 2e-6 * largest(expected)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("model_class", [DistilBertModel, BlipTextModel, T5EncoderModel])
def test_modes_of_inference_agree(model_class, mode):
    case = make_case(model_class)
    model = vleff.accelerate(case.model)
    expected = case.call(model).last_hidden_state
    with mode():
        output = model.requires_grad_(False)(**case.inputs).last_hidden_state
    assert torch.equal(output, expected) and not output.requires_grad
