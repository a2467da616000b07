import torch
from transformers import (
    Siglip2Config,
    Siglip2ForImageClassification,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2TextModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from model_cases import text_inputs

_LAYERS = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 144}
_TEXT = _LAYERS | {"vocab_size": 99, "max_position_embeddings": 24, "projection_size": 64}
_VISION = _LAYERS | {"num_patches": 25, "patch_size": 8}
SIZES = {
    Siglip2TextConfig: _TEXT,
    Siglip2VisionConfig: _VISION,
    Siglip2Config: {"text_config": _TEXT, "vision_config": _VISION},
}
ENCODERS = [Siglip2TextModel, Siglip2VisionModel]
HEADS = [Siglip2ForImageClassification, Siglip2Model]


def image_inputs(*shapes_in_patches: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The patches of four images, padded on the right."""
    shapes = torch.tensor(shapes_in_patches)
    mask = (torch.arange(25) < shapes.prod(1)[:, None]).long()
    return {"pixel_values": torch.randn(4, 25, 192), "pixel_attention_mask": mask, "spatial_shapes": shapes}


def inputs_for(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    if isinstance(model, Siglip2VisionModel | Siglip2ForImageClassification):
        images = image_inputs((3, 4), (5, 5), (2, 3), (4, 6))
        return images, images["pixel_attention_mask"].bool()
    images = image_inputs(*[(5, 5)] * 4)  # one padding a case: that of the text
    # padded on the left: the model reads the last position
    text = {name: tensor.flip(1) for name, tensor in text_inputs().items()}
    return text | (images if isinstance(model, Siglip2Model) else {}), text["attention_mask"].bool()
