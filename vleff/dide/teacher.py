"""FusionTeacher: a frozen fusion encoder that shows a student its answers and its attention, over the same patches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ViltModel, ViltPreTrainedModel

from vleff.models.queries_and_keys import Recording, record_queries_and_keys
from vleff.models.vilt_patches import draw_patches, embed_patches

Self = TypeVar("Self", bound="FusionTeacher")

# pairs that a retrieval teacher reads at once
_PAIRS = 64


@dataclass
class SharedInputs:
    """A batch whose patches are drawn, so that teacher and student see the same ones.

    Attributes:
        teacher: the teacher's arguments; images are embedded by its own weights.
        patches: int64 [batch, patches], or [batch, 2, patches]; None where images came embedded.
        text_mask: bool [batch, text length].
        image_masks: for each image of a text, bool [batch, image tokens].
    """

    teacher: dict[str, Tensor]
    patches: Tensor | None
    text_mask: Tensor
    image_masks: list[Tensor]


class FusionTeacher:
    """A fine-tuned fusion encoder, in eval mode and without gradients.

    Args:
        model: ViLT with a head for the task, changed in place and best accelerated; for soft labels alone any
            model of transformers whose output has `logits`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def to(self: Self, device: torch.device | str) -> Self:
        """Moves the teacher."""
        nn.Module.to(self.model, device=device)
        return self

    @property
    def shows_attention(self) -> bool:
        """Whether attention can be distilled from it."""
        return isinstance(self.model, ViltPreTrainedModel)

    @torch.no_grad()
    def share(self, inputs: Mapping[str, Tensor]) -> SharedInputs:
        """Draws the patches of a batch once, and embeds them with the teacher's weights.

        ViLT draws patches anew in each pass, even in eval mode; a teacher that reads other patches than its student
        has other keys.

        Args:
            inputs: the arguments of a DualEncoder, without labels.

        Raises:
            TypeError: the teacher's attention cannot be recorded.
        """
        if not self.shows_attention:
            raise TypeError(
                "teacher: expected ViLT to distil attention from, got "
                f"{type(self.model).__name__}: learn from its soft labels alone, attention_weight=0"
            )
        text = {name: value for name, value in inputs.items() if not name.startswith(("pixel_", "image_"))}
        tokens = text.get("inputs_embeds", text.get("input_ids"))
        assert tokens is not None
        text_mask = text.get("attention_mask", tokens.new_ones(tokens.shape[:2], dtype=torch.int64)) != 0
        text["attention_mask"] = text_mask.long()
        if "image_embeds" in inputs:
            embedded, patches = inputs["image_embeds"], None
            ones = torch.ones(embedded.shape[:-1], dtype=torch.int64, device=embedded.device)
            mask = inputs.get("pixel_mask", ones).reshape(embedded.shape[:-1])
        else:
            embedded, mask, patches = self._embed(inputs["pixel_values"], inputs.get("pixel_mask"))
        masks = [mask != 0] if mask.dim() == 2 else [mask[:, number] != 0 for number in range(mask.shape[1])]
        images = {"image_embeds": embedded, "pixel_mask": mask[..., None, :]}  # as of images of one row of pixels
        return SharedInputs(text | images, patches, text_mask, masks)

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The teacher's logits.

        Args:
            inputs: its arguments.
        """
        return self.model(**inputs).logits

    @torch.no_grad()
    def show(self, shared: SharedInputs) -> tuple[Tensor, Recording]:
        """The teacher's logits, and the queries and keys of its last layer."""
        with record_queries_and_keys(self.model) as recording:
            logits = self.answer(shared.teacher)
        return logits, recording

    @torch.no_grad()
    def rank(self, inputs: Mapping[str, Tensor], scores: Tensor, candidates: int) -> Tensor:
        """How well the teacher finds texts and images of a batch to fit, where a student finds them similar.

        Args:
            inputs: the teacher's arguments for pairs; text and image of each belong together.
            scores: [texts, images], the student's.
            candidates: images a text, and texts an image: the right one and the most similar others.

        Returns:
            [texts, images], NaN where the teacher was not asked.
        """
        first = scores.detach().float().clone()
        first.fill_diagonal_(torch.inf)
        count = min(candidates, first.shape[0])
        wanted = torch.zeros_like(first, dtype=torch.bool)
        wanted.scatter_(1, first.topk(count, 1).indices, True)
        wanted.scatter_(0, first.topk(count, 0).indices, True)
        texts, images = wanted.nonzero().unbind(1)
        answers = []
        for pairs in zip(texts.split(_PAIRS), images.split(_PAIRS), strict=True):
            answers.append(self.answer(_pairs(inputs, *pairs)).float().flatten())
        ranked = torch.full_like(first, torch.nan)
        ranked[texts, images] = torch.cat(answers)
        return ranked

    def _embed(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [batch, (2,) tokens, d], their mask and the patches [batch, (2,) patches]."""
        model: Any = self.model
        base: Any = model if isinstance(model, ViltModel) else model.vilt
        pixels = pixel_values.flatten(0, -4)
        mask = torch.ones_like(pixels[:, 0]) if pixel_mask is None else pixel_mask.flatten(0, -3)
        patches = draw_patches(mask, base.config.patch_size, base.config.max_image_length)
        embedded, token_mask, _ = embed_patches(base.embeddings, pixels, mask, patches)
        leading = pixel_values.shape[:-3]
        return embedded.unflatten(0, leading), token_mask.unflatten(0, leading), patches.unflatten(0, leading)


def _pairs(inputs: Mapping[str, Tensor], texts: Tensor, images: Tensor) -> dict[str, Tensor]:
    """The arguments for these texts with these images."""
    return {name: value[images if name.startswith(("pixel_", "image_")) else texts] for name, value in inputs.items()}
