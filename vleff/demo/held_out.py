"""Questions about pictures of one size, stored compactly: one sheet of pictures, one list of questions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vleff.data.image_questions import ImageQuestion
from vleff.data.tile_vqa import TileQuestion
from vleff.training.checkpoints import replace_file

SHEET, QUESTIONS = "pictures.png", "questions.json"
_ACROSS = 20


def write_held_out(questions: Sequence[TileQuestion], folder: Path) -> None:
    """Writes `pictures.png`, all grids twenty abreast, and `questions.json`."""
    pictures = [question.grid.picture for question in questions]
    height, width, _ = pictures[0].shape
    down = -(-len(pictures) // _ACROSS)
    sheet = np.zeros((down * height, _ACROSS * width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, _ACROSS)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    rows = [{"kind": one.kind, "question": one.question, "answer": one.answer} for one in questions]
    content = {"height": height, "width": width, "questions": rows}
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(sheet)
    replace_file(folder / SHEET, lambda part: image.save(part, "PNG", optimize=True))
    replace_file(folder / QUESTIONS, lambda part: part.write_text(json.dumps(content) + "\n"))


def read_held_out(folder: Any) -> list[ImageQuestion]:
    """The questions of `write_held_out`, in their order.

    Args:
        folder: a Path, or a folder of package data.
    """
    content = json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))
    with (folder / SHEET).open("rb") as file, Image.open(file) as opened:
        sheet = opened.convert("RGB")
    height, width = content["height"], content["width"]
    questions = []
    for number, row in enumerate(content["questions"]):
        down, across = divmod(number, _ACROSS)
        box = (across * width, down * height, (across + 1) * width, (down + 1) * height)
        questions.append(ImageQuestion(sheet.crop(box), row["question"], row["answer"]))
    return questions
