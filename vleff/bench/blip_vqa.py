"""The part of BLIP for visual question answering that reads: what `vleff bench --model blip` measures."""

import torch
from torch import Tensor
from transformers import BlipConfig, BlipForQuestionAnswering


class BlipVqaEncoders(BlipForQuestionAnswering):
    """BLIP for visual question answering without its decoder: the vision model and the question encoder."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        del self.text_decoder

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states [batch, length, d] of the question, which attends to the image, and of the image."""
        image = self.vision_model(pixel_values=pixel_values).last_hidden_state
        question = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.int64, device=image.device),
        )
        return question.last_hidden_state, image
