"""Reads SQuAD files article by article: memory holds one article, and what is malformed is left out and reported."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vleff.data.squad import Paragraph, Question, parse_question

_CHUNK = 1 << 20  # characters
_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\],]', re.DOTALL)


@dataclass(frozen=True)
class BadRecord:
    """A part of a file that is not in SQuAD format.

    Attributes:
        id: of the question; empty where there is none.
        place: for example "article 3, paragraph 0, question 5", counted from 0.
        reason: what is wrong.
    """

    id: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}{f' (id {self.id})' if self.id else ''}: {self.reason}"


@dataclass(frozen=True)
class Article:
    """An article of a SQuAD file, its number counted from 0."""

    number: int
    title: str
    paragraphs: tuple[Paragraph, ...]


def stream_articles(path: str | Path, report: Callable[[BadRecord], object]) -> Iterator[Article]:
    """The articles of a file in SQuAD 1.1 or 2.0 format, one after the other.

    Questions, paragraphs and articles that are malformed are left out: fields that are missing or of another type,
    texts that are empty or no Unicode, answers that are not at their place, questions that are impossible and answered
    or neither, and ids that an article has twice. Articles without any sound paragraph still come, without paragraphs.

    Args:
        path: a `.json` file, or a `.json.gz` file.
        report: called for each part that is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON with a list "data", or ends within it; all articles before came already.
    """
    path = Path(path)
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        try:
            for number, text in enumerate(_elements(iter(lambda: file.read(_CHUNK), ""))):
                yield _article(number, text, report)
        except (gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
            raise ValueError(f"{path}: expected JSON in SQuAD format (.json or .json.gz), got {error}") from error


def question_fault(question: Question, context: str) -> str | None:
    """What is wrong with a question that was read; None if nothing is."""
    if not isinstance(question.text, str) or not question.text.strip() or not _is_unicode(question.text):
        return f'"question" is {question.text!r}, expected text'
    if not question.id or not _is_unicode(question.id):
        return f'"id" is {question.id!r}, expected text'
    if question.is_impossible == bool(question.answers):
        return "is_impossible, but has answers" if question.answers else "has no answer, but is not is_impossible"
    for answer in question.answers + question.plausible_answers:
        if not isinstance(answer.text, str) or not answer.text:
            return f"an answer is {answer.text!r}, expected text"
        if answer.start < 0 or context[answer.start : answer.start + len(answer.text)] != answer.text:
            return f"answer {answer.text!r} is not at character {answer.start} of the paragraph"
    return None


def _elements(chunks: Iterable[str]) -> Iterator[str]:
    """The texts of the elements of the list "data" in the text of a JSON object."""
    text, read, depth, name, start = "", 0, 0, "", -1  # start: of the element in `text`, -1 outside the list
    for chunk in chunks:
        dropped = read if start < 0 else start
        text, read, start = text[dropped:] + chunk, read - dropped, min(start, 0)
        for match in _STRUCTURE.finditer(text, read):
            mark = match.group()
            if mark == '"':  # a string that goes on in the next chunk
                break
            read = match.end()
            if mark[0] == '"':
                name = mark if depth == 1 else name
            elif mark == ",":
                if depth == 2 and start >= 0:
                    yield text[start : match.start()]
                    start = read
            elif mark in "{[":
                depth += 1
                if depth == 2 and mark == "[" and name == '"data"':
                    start = read
            else:
                depth -= 1
                if depth == 1 and start >= 0:
                    if text[start : match.start()].strip():
                        yield text[start : match.start()]
                    return
    what = 'no list "data"' if start < 0 else 'the end of the file within "data"'
    raise ValueError(what)


def _article(number: int, text: str, report: Callable[[BadRecord], object]) -> Article:
    place = f"article {number}"
    try:
        content = json.loads(text)
        title = content.get("title", "")
        paragraphs = content["paragraphs"]
        if not isinstance(title, str) or not _is_unicode(title) or not isinstance(paragraphs, list):
            raise TypeError('expected a text "title" and a list "paragraphs"')
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        report(BadRecord("", place, _reason(error)))
        return Article(number, "", ())
    ids: set[str] = set()
    read = (_paragraph(title, one, f"{place}, paragraph {p}", ids, report) for p, one in enumerate(paragraphs))
    return Article(number, title, tuple(paragraph for paragraph in read if paragraph is not None))


def _paragraph(
    title: str, content: Any, place: str, ids: set[str], report: Callable[[BadRecord], object]
) -> Paragraph | None:
    try:
        context, contents = content["context"], content["qas"]
        is_text = isinstance(context, str) and context.strip() and _is_unicode(context)
        if not is_text or not isinstance(contents, list):
            raise TypeError('expected a text "context" and a list "qas"')
    except (KeyError, TypeError) as error:
        report(BadRecord("", place, _reason(error)))
        return None
    questions = []
    for q, one in enumerate(contents):
        name = str(one.get("id", "")) if isinstance(one, dict) else ""
        try:
            question = parse_question(one)
            fault = question_fault(question, context)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            fault = _reason(error)
        if fault is None and name in ids:
            fault = "another question of the article has this id"
        if fault is None:
            ids.add(name)
            questions.append(question)
        else:
            printable = name.encode(errors="backslashreplace").decode()
            report(BadRecord(printable, f"{place}, question {q}", fault))
    return Paragraph(title, context, tuple(questions))


def _is_unicode(text: str) -> bool:
    """JSON may hold halves of surrogate pairs, which no file can be written with."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
