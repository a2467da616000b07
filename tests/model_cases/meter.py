import torch

from model_cases import text_inputs
from vleff.models.meter import MeterConfig, MeterModel
from vleff.models.meter_heads import (
    MeterForImageAndTextRetrieval,
    MeterForNLVR2,
    MeterForQuestionAnswering,
    MeterForVisualEntailment,
)

_LAYERS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 144}
SIZES = {
    MeterConfig: _LAYERS
    | {
        "num_labels": 3,
        "text_config": _LAYERS | {"vocab_size": 99},
        "vision_config": _LAYERS | {"image_size": 40, "patch_size": 8},
    }
}
ENCODERS: list[type[torch.nn.Module]] = []
HEADS = [
    MeterModel,
    MeterForQuestionAnswering,
    MeterForNLVR2,
    MeterForVisualEntailment,
    MeterForImageAndTextRetrieval,
]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = text_inputs()
    images = (4, 2) if isinstance(model, MeterForNLVR2) else (4,)
    return inputs | {"pixel_values": torch.randn(*images, 3, 40, 40)}, inputs["attention_mask"].bool()
