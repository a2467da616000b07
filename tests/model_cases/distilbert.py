import torch
from transformers import DistilBertConfig, DistilBertForTokenClassification, DistilBertModel

from model_cases import text_inputs

SIZES = {DistilBertConfig: {"vocab_size": 99, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 144}}
ENCODERS = [DistilBertModel]
HEADS = [DistilBertForTokenClassification]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = text_inputs()
    return inputs, inputs["attention_mask"].bool()
