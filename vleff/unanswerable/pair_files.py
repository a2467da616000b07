"""Files of pairs: JSON lines of vleff, the tables in which the paper's authors released their splits, SQuAD 2.0."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from vleff.data.squad import Answer
from vleff.data.squad_stream import BadRecord, stream_articles
from vleff.training.checkpoints import replace_file
from vleff.unanswerable.pairs import QuestionPair, build_pairs

Report = Callable[[BadRecord], object]
TABLES = ("{}-context.txt", "{}-answerable-questions.txt", "{}-unanswerable-questions.txt")


def load_pairs(name: str | Path, report: Report) -> list[QuestionPair]:
    """Pairs from any kind of file.

    Args:
        name: a file of `save_pairs` (`.jsonl`), a SQuAD 2.0 file (`.json`, `.json.gz`), or what the names of three
            released tables have in common: `QG/train` for `QG/train-context.txt`, ...
        report: called for each malformed record, which is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of no such kind.
    """
    path = Path(name)
    if path.name.endswith(".jsonl"):
        return _load_lines(path, report)
    if path.name.endswith((".json", ".json.gz")):
        return build_pairs(paragraph for article in stream_articles(path, report) for paragraph in article.paragraphs)
    return load_released_pairs(path, report)


def save_pairs(pairs: Sequence[QuestionPair], path: str | Path) -> None:
    """Writes one JSON object a line: id, title, context, answer, answerable, unanswerable, unanswerable_id."""
    text = "".join(json.dumps(_as_json(pair), ensure_ascii=False) + "\n" for pair in pairs)
    replace_file(Path(path), lambda part: part.write_text(text, encoding="utf-8"))


def load_released_pairs(prefix: str | Path, report: Report) -> list[QuestionPair]:
    """Pairs from the tables that the paper's authors released, words separated by spaces and in lower case.

    The columns, separated by tabs, of the three files, which have one pair a line:

    - `PREFIX-context.txt`: text, first and last word of the sentence with the answer;
    - `PREFIX-answerable-questions.txt`: id, text, first and last word of the answer in the context;
    - `PREFIX-unanswerable-questions.txt`: the same, of the plausible answer.

    Raises:
        FileNotFoundError: a file is missing.
    """
    prefix = Path(prefix)
    paths = [prefix.with_name(name.format(prefix.name)) for name in TABLES]
    pairs = []
    contents = (path.read_text(encoding="utf-8").splitlines() for path in paths)
    for number, lines in enumerate(zip_longest(*contents)):
        columns = [(line or "").split("\t") for line in lines]
        try:
            pairs.append(_released_pair(*columns))
        except ValueError as error:
            report(BadRecord(columns[1][0], f"{prefix.name}, line {number + 1}", str(error)))
    return pairs


def _released_pair(context: list[str], answerable: list[str], unanswerable: list[str]) -> QuestionPair:
    if (len(context), len(answerable), len(unanswerable)) != (3, 4, 4):
        found = f"{len(context)}, {len(answerable)}, {len(unanswerable)}"
        raise ValueError(f"expected 3, 4 and 4 columns in the three files, got {found}")
    words = context[0].split()
    spans = [(int(line[2]), int(line[3])) for line in (answerable, unanswerable)]
    for first, last in spans:
        if not 0 <= first <= last < len(words):
            raise ValueError(f"expected an answer within the {len(words)} words of the context, got {first} to {last}")
    if spans[0] != spans[1]:
        raise ValueError(f"expected the same span for both questions, got {spans[0]} and {spans[1]}")
    if not answerable[1].strip() or not unanswerable[1].strip():
        raise ValueError("a question is empty")
    first, last = spans[0]
    answer = Answer(" ".join(words[first : last + 1]), len(" ".join([*words[:first], ""])))
    return QuestionPair(answerable[0], " ".join(words), answer, answerable[1], unanswerable[1], "", unanswerable[0])


def _load_lines(path: Path, report: Report) -> list[QuestionPair]:
    with path.open(encoding="utf-8") as file:
        return list(_pairs_of_lines(path.name, file, report))


def _pairs_of_lines(name: str, lines: Any, report: Report) -> Iterator[QuestionPair]:
    for number, line in enumerate(lines):
        id = ""
        try:
            content = json.loads(line)
            id = str(content["id"])
            pair = QuestionPair(
                id,
                content["context"],
                Answer(content["answer"]["text"], content["answer"]["answer_start"]),
                content["answerable"],
                content["unanswerable"],
                content.get("title", ""),
                str(content.get("unanswerable_id", "")),
            )
            if not all(text.strip() for text in (pair.context, pair.answerable, pair.unanswerable)):
                raise ValueError("a text is empty")
            if not pair.context[pair.answer.start :].startswith(pair.answer.text):
                raise ValueError(f"answer {pair.answer.text!r} is not at character {pair.answer.start}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            report(BadRecord(id, f"{name}, line {number + 1}", reason))
            continue
        yield pair


def _as_json(pair: QuestionPair) -> dict[str, Any]:
    return {
        "id": pair.id,
        "title": pair.title,
        "context": pair.context,
        "answer": {"text": pair.answer.text, "answer_start": pair.answer.start},
        "answerable": pair.answerable,
        "unanswerable": pair.unanswerable,
        "unanswerable_id": pair.unanswerable_id,
    }
