"""Small models of the families that can be trimmed, with trimmers that drop a good part."""

import copy
from dataclasses import dataclass

import torch
from model_cases import Case, make_case, tensors
from torch import nn
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
    BridgeTowerForContrastiveLearning,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerModel,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    DistilBertForQuestionAnswering,
    RobertaForQuestionAnswering,
    ViltForQuestionAnswering,
    ViltModel,
)

import vleff
from vleff import smarttrim
from vleff.models.blip_nlvr2 import BlipForNLVR2
from vleff.models.meter import MeterModel
from vleff.models.meter_heads import MeterForNLVR2, MeterForQuestionAnswering

MODELS: list[type] = [
    ViltModel,
    ViltForQuestionAnswering,
    BertForSequenceClassification,
    BertForQuestionAnswering,
    RobertaForQuestionAnswering,
    DistilBertForQuestionAnswering,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    MeterModel,
    MeterForQuestionAnswering,
    MeterForNLVR2,
    BlipForQuestionAnswering,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipModel,
    BlipForNLVR2,
    BridgeTowerModel,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerForContrastiveLearning,
]


@dataclass
class Trimmed:
    """An attached model, the same model accelerated, and a call's arguments."""

    case: Case
    model: nn.Module
    accelerated: nn.Module

    def outputs(self, model: nn.Module | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The floating-point outputs without gradients, of the attached model if none is given."""
        torch.manual_seed(0)
        with torch.no_grad():
            return tensors((self.model if model is None else model)(**(self.case.inputs | inputs)))


def stir(model: nn.Module, seed: int = 0, bias: float = -0.5, strength: float = 8.0) -> nn.Module:
    """Makes new trimmers drop by what they see instead of keeping everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in smarttrim.trimmer_parameters(model).items():
            if name.endswith("score_bias"):
                parameter.fill_(bias)
            else:
                noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
                scale = strength if name.endswith(("score_weight", "temperature")) else 1.5
                parameter.copy_(scale * noise / parameter.shape[-1] ** 0.5)
    return model


def trimmed(model_class: type, stirred: bool = True, config: smarttrim.SmartTrimConfig | None = None) -> Trimmed:
    """A small attached model in evaluation mode."""
    case = make_case(model_class)
    accelerated = vleff.accelerate(copy.deepcopy(case.model))
    model = smarttrim.attach(case.model, config)
    return Trimmed(case, stir(model) if stirred else model, accelerated)
