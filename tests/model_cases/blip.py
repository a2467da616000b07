import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from model_cases import text_inputs

_LAYERS = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 144}
_TEXT = _LAYERS | {
    "vocab_size": 99,
    "max_position_embeddings": 40,
    "encoder_hidden_size": 64,
    "bos_token_id": 3,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "pad_token_id": 1,
    "projection_dim": 32,
}
_VISION = _LAYERS | {"image_size": 40, "patch_size": 8}
SIZES = {
    BlipTextConfig: _TEXT,
    BlipVisionConfig: _VISION,
    BlipConfig: {
        "text_config": _TEXT,
        "vision_config": _VISION,
        "projection_dim": 32,
        "image_text_hidden_size": 32,
    },
}
ENCODERS = [BlipTextModel, BlipVisionModel]
HEADS = [BlipForImageTextRetrieval, BlipForQuestionAnswering, BlipForConditionalGeneration, BlipModel]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    pixels = {"pixel_values": torch.randn(4, 3, 40, 40)}
    if isinstance(model, BlipVisionModel):
        return pixels, None
    text = text_inputs()
    if isinstance(model, BlipTextModel):
        return text, text["attention_mask"].bool()
    if isinstance(model, BlipForQuestionAnswering):  # transformers' decoder reads padding of the question
        text = text_inputs((11, 11, 11, 11))
        text["decoder_input_ids"] = torch.randint(5, 99, (4, 6))
        return text | pixels, None
    return text | pixels, text["attention_mask"].bool()
