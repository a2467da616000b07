import torch
from transformers import (
    BridgeTowerConfig,
    BridgeTowerForContrastiveLearning,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerForMaskedLM,
    BridgeTowerModel,
)

from model_cases import text_inputs

_TEXT = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 144,
    "max_position_embeddings": 40,
}
SIZES = {
    BridgeTowerConfig: {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "contrastive_hidden_size": 32,
        "logit_scale_init_value": 2.6592,
        "text_config": _TEXT,
        "vision_config": {"hidden_size": 64, "num_hidden_layers": 4, "image_size": 40, "patch_size": 8},
    }
}
ENCODERS: list[type[torch.nn.Module]] = []
HEADS = [
    BridgeTowerModel,
    BridgeTowerForMaskedLM,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerForContrastiveLearning,
]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = text_inputs()
    return inputs | {"pixel_values": torch.randn(4, 3, 40, 40)}, inputs["attention_mask"].bool()
