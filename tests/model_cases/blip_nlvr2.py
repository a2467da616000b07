import torch
from transformers import BlipConfig

from model_cases import text_inputs
from model_cases.blip import SIZES as BLIP_SIZES
from vleff.models.blip_nlvr2 import BlipForNLVR2

SIZES: dict[type, dict[str, object]] = {BlipConfig: BLIP_SIZES[BlipConfig]}
ENCODERS: list[type[torch.nn.Module]] = []
HEADS = [BlipForNLVR2]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = text_inputs()
    return inputs | {"pixel_values": torch.randn(4, 2, 3, 40, 40)}, inputs["attention_mask"].bool()
