"""Sources as words: what models read of a question and a paragraph."""

from collections.abc import Sequence
from dataclasses import dataclass

from vleff.unanswerable.sources import GenerationSource
from vleff.unanswerable.words import Word, span_words, split_words


@dataclass(frozen=True)
class SourceWords:
    """A source, split and cut.

    Attributes:
        question, paragraph: words as they are spelled.
        answer: the words of the answer in `paragraph`, as the first and the one behind the last.
    """

    question: tuple[str, ...]
    paragraph: tuple[str, ...]
    answer: tuple[int, int]

    @property
    def lower_question(self) -> list[str]:
        """The question's words in lower case."""
        return [word.lower() for word in self.question]

    @property
    def lower_paragraph(self) -> list[str]:
        """The paragraph's words in lower case."""
        return [word.lower() for word in self.paragraph]


def source_words(source: GenerationSource, max_question: int = 60, max_paragraph: int = 400) -> SourceWords:
    """Splits a source into words.

    Args:
        source: its question, its paragraph and its answer have words.
        max_question: words of the question at most; its end is cut.
        max_paragraph: words of the paragraph at most; a longer one is cut around the answer.

    Raises:
        ValueError: a text has no words, or the answer is not at its place; the message names what.
    """
    question, paragraph = split_words(source.question), split_words(source.paragraph)
    for name, words in (("question", question), ("paragraph", paragraph)):
        if not words:
            raise ValueError(f"source: expected a {name} with words, got {getattr(source, name)!r}")
    kept, answer = _cut(source, paragraph, max_paragraph)
    return SourceWords(_texts(question[:max_question]), _texts(kept), answer)


def cut_paragraph(source: GenerationSource, max_words: int) -> str:
    """The paragraph; of one with more words a stretch around the answer.

    Raises:
        ValueError: the answer is not at its place.
    """
    kept, _ = _cut(source, split_words(source.paragraph), max_words)
    return source.paragraph[kept[0].start : kept[-1].end] if kept else ""


def _cut(source: GenerationSource, words: Sequence[Word], most: int) -> tuple[Sequence[Word], tuple[int, int]]:
    """At most so many of the paragraph's words, and where the answer is in them."""
    start, text = source.answer_start, source.answer_text
    if not text.strip() or start < 0 or source.paragraph[start : start + len(text)] != text:
        found = source.paragraph[max(start, 0) : max(start, 0) + len(text)]
        raise ValueError(f"source: expected the answer {text!r} at character {start} of the paragraph, got {found!r}")
    first, end = span_words(words, start, start + len(text))
    middle = (first + end - most) // 2
    begin = max(0, min(middle, first, len(words) - most))
    kept = words[begin : begin + most]
    return kept, (min(first - begin, len(kept)), min(end - begin, len(kept)))


def _texts(words: Sequence[Word]) -> tuple[str, ...]:
    return tuple(word.text for word in words)
