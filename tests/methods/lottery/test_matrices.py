"""Which linear layers are pruned, and which rows and columns a head owns."""

import pytest
import torch
import transformers
from methods.lottery.families import FAMILIES, SIZES, TEXT, bert, inputs_of
from torch import nn

import vleff
from vleff.lottery import attention_matrices, prunable_linears
from vleff.lottery.matrices import spread_heads

# linear layers in repeated layers, attentions; 2 layers each
COUNTS = {"bert": (12, 2), "roberta": (12, 2), "mpnet": (12, 2), "vilt": (12, 2), "t5": (12 + 20, 2 + 4)}
OTHERS = {
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, image_size=32)),
    "distilbert": lambda: transformers.DistilBertForQuestionAnswering(
        transformers.DistilBertConfig(vocab_size=99, dim=64, hidden_dim=128, n_layers=2, n_heads=4)
    ),
    "bart": lambda: transformers.BartModel(
        transformers.BartConfig(
            vocab_size=99, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=64,
        )
    ),
    "clip": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)),
}  # fmt: skip
COUNTS |= {"vit": (12, 2), "distilbert": (12, 2), "bart": (12 + 20, 2 + 4), "clip": (12, 2)}


@pytest.mark.parametrize("family", COUNTS)
def test_layers_and_heads_of_a_family(family: str) -> None:
    model = (FAMILIES | OTHERS)[family]().eval()
    linears, attentions = prunable_linears(model), attention_matrices(model)
    assert (len(linears), len(attentions)) == COUNTS[family]
    assert not any("classifier" in name or "qa_outputs" in name or "pooler" in name for name in linears)
    for attention in attentions:
        assert attention.heads == 4 and {*attention[1:5]} <= linears.keys()
    accelerated = vleff.accelerate(model)
    assert prunable_linears(accelerated).keys() == linears.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_owns_its_rows_and_columns(family: str) -> None:
    """Without its rows of value, or without its columns of output, a head adds nothing: the same outputs."""
    model = FAMILIES[family]().eval()
    inputs = inputs_of(model)
    attention = attention_matrices(model)[0]
    chosen = torch.tensor([1.0, 0.0, 1.0, 1.0])

    def outputs() -> torch.Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return model(**inputs)[0]

    def without(name: str, by_row: bool) -> torch.Tensor:
        layer = model.get_submodule(name)
        kept = layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()
        keep = spread_heads(chosen, layer.weight.shape[0 if by_row else 1])
        with torch.no_grad():
            layer.weight.mul_(keep[:, None] if by_row else keep)
            if by_row and layer.bias is not None:
                layer.bias.mul_(keep)
            result = outputs()
            layer.weight.copy_(kept[0])
            if kept[1] is not None:
                layer.bias.copy_(kept[1])
        return result

    before = outputs()
    rows, columns = without(attention.value, True), without(attention.output, False)
    torch.testing.assert_close(rows, columns, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(rows, before, atol=1e-6)


def test_patterns() -> None:
    model = bert()
    assert len(prunable_linears(model, r"attention")) == 8
    with pytest.raises(ValueError, match=r"matches none of 12 names such as bert\.encoder"):
        prunable_linears(model, "nothing")
    with pytest.raises(ValueError, match="expected a regular expression, got '\\('"):
        prunable_linears(model, "(")


def test_models_without_any() -> None:
    with pytest.raises(ValueError, match="expected linear layers inside of repeated layers"):
        prunable_linears(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="got Sequential without any that is known"):
        attention_matrices(nn.Sequential(nn.Linear(3, 3)))
