"""SQuAD 2.0 content made from the real excerpt: each question gets an unanswerable twin over the same answer."""

import json
from pathlib import Path
from typing import Any

from reading.excerpt import EXCERPT

from vleff.data.squad import Paragraph, Question, question_json, read_squad


def paragraphs() -> list[Paragraph]:
    """The paragraphs of the excerpt; the twin of "What is ..." is "What is not ...", with the answer plausible."""
    return [
        Paragraph(
            paragraph.title,
            paragraph.context,
            tuple(one for question in paragraph.questions for one in (question, twin(question))),
        )
        for paragraph in read_squad(EXCERPT)
    ]


def twin(question: Question) -> Question:
    words = question.text.split()
    text = " ".join([*words[:2], "not", *words[2:]])
    return Question(f"{question.id}-twin", text, (), question.answers[:1], True)


def squad2(paragraphs: list[Paragraph]) -> dict[str, Any]:
    articles: dict[str, list[Any]] = {}
    for paragraph in paragraphs:
        content = {"context": paragraph.context, "qas": [question_json(question) for question in paragraph.questions]}
        articles.setdefault(paragraph.title, []).append(content)
    return {"version": "v2.0", "data": [{"title": title, "paragraphs": some} for title, some in articles.items()]}


def write_squad2(path: Path, paragraphs: list[Paragraph]) -> Path:
    path.write_text(json.dumps(squad2(paragraphs)), encoding="utf-8")
    return path
