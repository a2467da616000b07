"""BERT and the families with its layer: RoBERTa, XLM-RoBERTa, CamemBERT."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    CamembertConfig,
    CamembertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from model_cases import text_inputs

_SIZES = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 144,
}
SIZES = dict.fromkeys([BertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig], _SIZES)
ENCODERS = [BertModel, RobertaModel, XLMRobertaModel, CamembertModel]
HEADS = [
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    RobertaForSequenceClassification,
]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = text_inputs()
    return inputs, inputs["attention_mask"].bool()
