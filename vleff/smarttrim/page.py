"""A page that shows what questions keep, layer by layer, in one file that needs nothing else."""

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from vleff.smarttrim.shown import ShownQuestion
from vleff.training.checkpoints import replace_file


class _Page(Template):
    """Of text with dollars in it."""

    delimiter = "%%"


def write_page(
    shown: Sequence[ShownQuestion],
    path: Path,
    title: str,
    figures: Sequence[tuple[str, Path]] = (),
    table: Sequence[Sequence[str]] = (),
    notes: str = "",
) -> None:
    """Writes the page.

    Args:
        title: what is shown.
        figures: headings with PNG files, which the page will contain.
        table: rows of figures, the first its head.
        notes: on the table.
    """
    sections = [f"<h2>Accuracy and time</h2>{_table(table)}<p>{html.escape(notes)}</p>"] if table else []
    for heading, figure in figures:
        source = _data_url(figure.read_bytes())
        sections.append(
            f'<h2>{html.escape(heading)}</h2><figure><img src="{source}" alt="{html.escape(heading)}"></figure>'
        )
    data = json.dumps([_as_json(one) for one in shown]).replace("</", "<\\/")
    template = _Page(files("vleff.smarttrim").joinpath("page.html").read_text(encoding="utf-8"))
    text = template.substitute(
        title=html.escape(title), last_layer=len(shown[0].kept.patches) - 1, sections="\n".join(sections), data=data
    )
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def _as_json(one: ShownQuestion) -> dict[str, Any]:
    content = io.BytesIO()
    Image.fromarray(one.image).save(content, "PNG")
    rows, columns = one.kept.patches.shape[1:]
    return {
        "image": _data_url(content.getvalue()),
        "rows": rows,
        "columns": columns,
        "question": one.question,
        "words": one.words,
        "answer": one.answer,
        "full": one.full_answer,
        "right": one.right,
        "patches": [_digits(kept) for kept in one.kept.patches],
        "text": [_digits(kept) for kept in one.kept.text],
        "heads": [_digits(kept) for kept in one.kept.heads],
    }


def _digits(kept: np.ndarray) -> str:
    return "".join("01"[int(one)] for one in kept.flatten())


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        lines.append(f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"
