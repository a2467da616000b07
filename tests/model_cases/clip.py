import torch
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from model_cases import text_inputs

EOS = 3
_LAYERS = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 144,
    "projection_dim": 48,
}
_TEXT = _LAYERS | {"vocab_size": 99, "max_position_embeddings": 24, "bos_token_id": 4, "eos_token_id": EOS}
_VISION = _LAYERS | {"image_size": 40, "patch_size": 8}
SIZES = {
    CLIPTextConfig: _TEXT,
    CLIPVisionConfig: _VISION,
    CLIPConfig: {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 48},
}
ENCODERS = [CLIPTextModel, CLIPVisionModel]
HEADS = [CLIPTextModelWithProjection, CLIPVisionModelWithProjection, CLIPForImageClassification, CLIPModel]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    pixels = {"pixel_values": torch.randn(4, 3, 40, 40)}
    if isinstance(model, CLIPVisionModel | CLIPVisionModelWithProjection | CLIPForImageClassification):
        return pixels, None
    text = text_inputs()
    text["input_ids"][torch.arange(4), text["attention_mask"].sum(1) - 1] = EOS
    return text | (pixels if isinstance(model, CLIPModel) else {}), text["attention_mask"].bool()
