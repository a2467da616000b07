import torch
from torch import nn
from transformers import (
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
    ViltForTokenClassification,
    ViltModel,
)

from model_cases import text_inputs

SIZES = {
    ViltConfig: {
        "vocab_size": 99,
        "image_size": 40,
        "patch_size": 8,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 144,
        "modality_type_vocab_size": 3,
        "num_images": 2,
    }
}
ENCODERS = [ViltModel]
HEADS = [
    ViltForMaskedLM,
    ViltForQuestionAnswering,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForTokenClassification,
]


def images_of_several_sizes(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and their mask, padded on the right and at the bottom."""
    pixel_mask = torch.zeros(batch, 48, 40, dtype=torch.long)
    for image, (height, width) in enumerate([(48, 24), (16, 40), (32, 32), (8, 40)]):
        pixel_mask[image, :height, :width] = 1
    return torch.randn(batch, 3, 48, 40) * pixel_mask[:, None], pixel_mask


def inputs_for(model: nn.Module) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Embedded images where the model takes them: their order is not random."""
    inputs = text_inputs()
    text = inputs["attention_mask"].bool()
    patches = torch.tensor([7, 3, 9, 1])
    image_mask = (torch.arange(9) < patches[:, None]).long()
    embedded = {"image_embeds": torch.randn(4, 9, 64), "pixel_mask": image_mask[:, None]}
    if isinstance(model, ViltForImagesAndTextClassification):
        both = {
            "image_embeds": torch.randn(4, 2, 9, 64),
            "pixel_mask": torch.stack([image_mask, image_mask.flip(0)], 1),
        }
        return inputs | both | {"pixel_mask": both["pixel_mask"][:, :, None]}, text
    valid = torch.cat([text, image_mask.bool()], 1)
    return inputs | embedded, text if isinstance(model, ViltForMaskedLM | ViltForTokenClassification) else valid
