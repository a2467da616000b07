"""What there is to show of questions: the image as the model sees it, its words, answers, and what layers kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from vleff.data.image_questions import ImageQuestion, ImageQuestionCollator
from vleff.smarttrim.execution import recorded, running
from vleff.smarttrim.kept_patches import KeptTokens, watching


@dataclass(frozen=True, eq=False)
class ShownQuestion:
    """A question, and what became of it.

    Attributes:
        image: uint8 [height, width, 3], cut into patches of `patch` pixels.
        words: the question's tokens, as many as `kept.text` has.
        kept: what each layer worked on.
        answer, full_answer: of the trimmed model, and of the same at full capacity.
        right: the answer that is known to be right, None if none is.
    """

    image: np.ndarray
    patch: int
    question: str
    words: list[str]
    kept: KeptTokens
    answer: str
    full_answer: str
    right: str | None


def shown_questions(
    model: PreTrainedModel, questions: Sequence[ImageQuestion], collate: ImageQuestionCollator, batch: int = 16
) -> list[ShownQuestion]:
    """Answers questions, and looks on.

    Args:
        model: an attached ViLT.
        collate: of the model.
        batch: questions at a time.

    Raises:
        TypeError: the model is no ViLT.
    """
    shown: list[ShownQuestion] = []
    model.eval()
    config: Any = model.config
    for first in range(0, len(questions), batch):
        some = questions[first : first + batch]
        inputs = dict(collate(some))
        del inputs["labels"]
        with torch.inference_mode(), watching(model) as watcher:
            with running(model, "full"):
                full = model(**inputs).logits.argmax(-1)
            with recorded(model) as runs:
                trimmed = model(**inputs).logits.argmax(-1)
            watcher.add(first, inputs, runs)
        images = _images(collate, inputs)
        for row, question in enumerate(some):
            kept = watcher.samples[row]
            rows, columns = kept.patches.shape[1:]
            ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
            shown.append(
                ShownQuestion(
                    images[row, : rows * config.patch_size, : columns * config.patch_size],
                    config.patch_size,
                    question.question,
                    collate.preprocessor.tokenizer.convert_ids_to_tokens(ids.tolist()),
                    kept,
                    config.id2label[int(trimmed[row])],
                    config.id2label[int(full[row])],
                    question.answer,
                )
            )
    return shown


def _images(collate: ImageQuestionCollator, inputs: Mapping[str, Tensor]) -> np.ndarray:
    """uint8 [batch, height, width, 3], the pixels before they were normalized."""
    processor = collate.preprocessor.image_processor
    pixels = inputs["pixel_values"].permute(0, 2, 3, 1).float()
    if getattr(processor, "do_normalize", False):
        pixels = pixels * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    return (pixels * 255).round().clamp(0, 255).byte().numpy()
