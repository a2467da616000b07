"""Small models of every supported family with random weights, and where real data lies."""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertForTokenClassification,
    DistilBertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

TESTS = Path(__file__).resolve().parents[1]
BERT_SIZES = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 144,
}
SIZES = {
    BertConfig: BERT_SIZES,
    RobertaConfig: BERT_SIZES,
    XLMRobertaConfig: BERT_SIZES,
    CamembertConfig: BERT_SIZES,
    DistilBertConfig: {"vocab_size": 99, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 144},
    ViTConfig: {
        "image_size": 40,
        "patch_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 144,
    },
}


@dataclass
class Case:
    """A model in eval mode and one call's arguments; valid [batch, length] marks tokens, None if all are."""

    model: nn.Module
    inputs: dict[str, torch.Tensor]
    valid: torch.Tensor | None

    def plain(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A copy of the model as transformers wrote it."""
        return copy.deepcopy(self.model).to(dtype)

    def call(self, model: nn.Module, **arguments: object) -> dict[str, torch.Tensor]:
        """The outputs without gradients; floating-point inputs follow the model's dtype."""
        dtype = next(model.parameters()).dtype
        inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in self.inputs.items()}
        with torch.no_grad():
            return model(**inputs, **arguments)

    def tokens(self, output: torch.Tensor) -> torch.Tensor:
        """The rows of the output that belong to valid tokens, all rows of one that is not by token."""
        by_token = self.valid is not None and output.shape[:2] == self.valid.shape
        return output[self.valid] if by_token else output


def text_inputs(lengths: tuple[int, ...] = (3, 17, 11, 1), seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids of samples of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 99, mask.shape, generator=generator)
    return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}


def make_case(model_class: type[nn.Module], seed: int = 0, **config: object) -> Case:
    """A small model with random weights, biases and norms included, and inputs for it."""
    torch.manual_seed(seed)
    config_class = model_class.config_class
    model = model_class(config_class(**SIZES[config_class] | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    if config_class is ViTConfig:
        return Case(model, {"pixel_values": torch.randn(4, 3, 40, 40)}, None)
    inputs = text_inputs()
    return Case(model, inputs, inputs["attention_mask"].bool())


ENCODERS = [BertModel, RobertaModel, XLMRobertaModel, CamembertModel, DistilBertModel, ViTModel]
HEADS = [
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    DistilBertForTokenClassification,
    ViTForImageClassification,
]


@pytest.fixture
def build_case() -> Callable[..., Case]:
    return make_case


@pytest.fixture(params=ENCODERS, ids=lambda model_class: model_class.__name__)
def encoder_case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture(params=ENCODERS + HEADS, ids=lambda model_class: model_class.__name__)
def any_case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture
def bert_case() -> Case:
    return make_case(BertModel)


@pytest.fixture(scope="session")
def squad_paragraphs() -> list[str]:
    """48 real paragraphs, one an article."""
    articles = json.loads((TESTS / "data" / "squad_excerpt.json").read_text())["data"]
    return [article["paragraphs"][0]["context"] for article in articles]


@pytest.fixture(scope="session")
def shared_data() -> Path | None:
    """The folder of larger data sets: VLEFF_DATA or shared/data beside the repository, None if absent."""
    folder = Path(os.environ.get("VLEFF_DATA", TESTS.parents[1] / "shared" / "data"))
    return folder if folder.is_dir() else None
