"""Makes the demo's data from what examples/smarttrim_tile_vqa.py trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import ViltImageProcessor

from vleff.data.preprocessor import Preprocessor
from vleff.data.tile_vqa import TileQuestion
from vleff.demo import FIGURES
from vleff.demo.held_out import write_held_out
from vleff.demo.run import MODEL, RANDOM_MODEL
from vleff.smarttrim.pretrained import from_pretrained, save_pretrained
from vleff.training.checkpoints import replace_file


def pack(
    folder: Path,
    trimmed: Path,
    random: Path,
    tokenizer: Any,
    questions: Sequence[TileQuestion],
    figures: dict[str, Any],
) -> None:
    """Writes both models in half precision with tokenizer and image processor, the questions and the figures.

    Args:
        folder: to write; without models.
        trimmed, random: folders of trained models, with trimmers and trimming at random.
        tokenizer: of both.
        questions: held out from training.
        figures: what was measured when they were trained.

    Raises:
        FileExistsError: the folder has models already.
    """
    for name, source in ((MODEL, trimmed), (RANDOM_MODEL, random)):
        model: Any = from_pretrained(source).half()
        save_pretrained(model, folder / name)
        patch, edge = model.config.patch_size, model.config.image_size
        processor = ViltImageProcessor(size={"shortest_edge": edge}, size_divisor=patch)
        Preprocessor(tokenizer, processor, model.config.max_position_embeddings).save_pretrained(folder / name)
    write_held_out(questions, folder)
    replace_file(folder / FIGURES, lambda part: part.write_text(json.dumps(figures, indent=1) + "\n"))
