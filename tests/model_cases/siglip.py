import torch
from transformers import (
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model_cases import text_inputs

_LAYERS = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 144}
_TEXT = _LAYERS | {"vocab_size": 99, "max_position_embeddings": 24, "projection_size": 64}
_VISION = _LAYERS | {"image_size": 40, "patch_size": 8}
SIZES = {
    SiglipTextConfig: _TEXT,
    SiglipVisionConfig: _VISION,
    SiglipConfig: {"text_config": _TEXT, "vision_config": _VISION},
}
ENCODERS = [SiglipTextModel, SiglipVisionModel]
HEADS = [SiglipForImageClassification, SiglipModel]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    pixels = {"pixel_values": torch.randn(4, 3, 40, 40)}
    if isinstance(model, SiglipVisionModel | SiglipForImageClassification):
        return pixels, None
    # padded on the left: the model reads the last position
    text = {name: tensor.flip(1) for name, tensor in text_inputs().items()}
    return text | (pixels if isinstance(model, SiglipModel) else {}), text["attention_mask"].bool()
