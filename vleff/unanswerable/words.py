"""Texts as words and back."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_WORD = re.compile(r"['\u2019][sS]\b|[^\W_]+(?:['\u2019](?![sS]\b)[^\W_]+)*|\S")
_ENDS_SENTENCE = frozenset(".!?")
_NO_SPACE_BEFORE = frozenset(".,?!;:)]}%'\u2019")
_NO_SPACE_AFTER = frozenset("([{$£€#")


class Word(NamedTuple):
    """A word of a text, with the characters where it begins and ends."""

    text: str
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Words, numbers and punctuation marks; a possessive 's is a word of its own.

    Texts that are split already, with spaces between the words, as in the authors' files, stay as they are.
    """
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def lower_words(text: str) -> list[str]:
    """The words of a text in lower case, as models and metrics see them."""
    return [match.group().lower() for match in _WORD.finditer(text)]


def span_words(words: Sequence[Word], start: int, end: int) -> tuple[int, int]:
    """The words of characters `start` to `end`, as the first and the one behind the last; they may be cut by it."""
    first = next((number for number, word in enumerate(words) if word.end > start), len(words))
    last = next((number for number, word in enumerate(words) if word.start >= end), len(words))
    return first, max(last, first)


class Spelling:
    """Writes words in lower case as their sources spell and space them.

    Args:
        question: the text that a new question is made from.
        paragraph: the text that it is about.
    """

    def __init__(self, question: str, paragraph: str) -> None:
        self._question = question
        found: dict[str, Counter[str]] = {}
        self._spaced: dict[tuple[str, str], bool] = {}
        for text in (paragraph, question):
            words = split_words(text)
            before = Word(".", -1, -1)
            for word in words:
                key = before.text.lower(), word.text.lower()
                self._spaced[key] = word.start > before.end
                # the capital of a sentence's first word says nothing
                if before.text not in _ENDS_SENTENCE or not word.text.istitle():
                    found.setdefault(key[1], Counter())[word.text] += 1
                before = word
        self._spelling = {lower: counts.most_common(1)[0][0] for lower, counts in found.items()}

    def join(self, words: Iterable[str]) -> str:
        """The words, in lower case, as a question: with a capital if the source question has one."""
        text, before = "", ""
        for word in words:
            spelled = self._spelling.get(word, word)
            text += f" {spelled}" if text and self._is_spaced(before, word) else spelled
            before = word
        return text[:1].upper() + text[1:] if self._question[:1].isupper() else text

    def _is_spaced(self, before: str, word: str) -> bool:
        default = word[0] not in _NO_SPACE_BEFORE and before not in _NO_SPACE_AFTER
        return self._spaced.get((before, word), default)
