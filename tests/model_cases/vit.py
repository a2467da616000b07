import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

SIZES = {
    ViTConfig: {
        "image_size": 40,
        "patch_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 144,
    }
}
ENCODERS = [ViTModel]
HEADS = [ViTForImageClassification]


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], None]:
    return {"pixel_values": torch.randn(4, 3, 40, 40)}, None
