"""The words and characters that a pair-to-sequence model knows."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vleff.training.checkpoints import replace_file
from vleff.unanswerable.pairs import QuestionPair
from vleff.unanswerable.words import lower_words

FILE = "vocabulary.json"
END, UNKNOWN, START = "<end>", "<unknown>", "<start>"
SPECIAL = (END, UNKNOWN, START)
END_NUMBER, UNKNOWN_NUMBER, START_NUMBER = range(3)
UNKNOWN_CHARACTER = 1  # 0 stands for no character
LONGEST_WORD = 20  # characters that are read of a word
_FORMAT = 1


class Vocabulary:
    """Words by number, and characters by number.

    The first `generated` words are those that the decoder may write itself; the others it reads, and copies where a
    source has them. Words that are not in the vocabulary are read by their characters, and copied as well.

    Attributes:
        words: in lower case, the special words END, UNKNOWN and START first.
        generated: how many of them the decoder generates.
        characters: their numbers begin at 2.

    Args:
        words: without the special ones, no word twice.
        generated: of these.
        characters: no character twice.

    Raises:
        ValueError: something is there twice, or `generated` is none of a vocabulary of this size.
    """

    def __init__(self, words: Sequence[str], generated: int, characters: Sequence[str]) -> None:
        if not 0 <= generated <= len(words):
            raise ValueError(f"argument 'generated': expected 0 to {len(words)}, the number of words, got {generated}")
        self.words = (*SPECIAL, *words)
        self.generated = len(SPECIAL) + generated
        self.characters = tuple(characters)
        self._numbers = {word: number for number, word in enumerate(self.words)}
        self._characters = {character: number for number, character in enumerate(self.characters, 2)}
        for name, values, numbers in (
            ("words", self.words, self._numbers),
            ("characters", self.characters, self._characters),
        ):
            if len(numbers) != len(values):
                twice = next(value for value, count in Counter(values).items() if count > 1)
                raise ValueError(f"argument '{name}': expected none twice, got {twice!r} twice")

    @classmethod
    def build(
        cls, pairs: Iterable[QuestionPair], size: int = 30_000, minimum: int = 1, minimum_generated: int = 2
    ) -> "Vocabulary":
        """The most frequent words of pairs to learn from.

        Generated are words of unanswerable questions: a decoder learns to write no others. Ties are broken by the
        alphabet, so that equal pairs give equal vocabularies.

        Args:
            pairs: to learn from.
            size: words at most.
            minimum: how often a word is there at least.
            minimum_generated: how often it is in unanswerable questions at least, to be generated.

        Raises:
            ValueError: there are no pairs, or size is below 1.
        """
        if size < 1:
            raise ValueError(f"argument 'size': expected at least 1, got {size}")
        targets: Counter[str] = Counter()
        read: Counter[str] = Counter()
        paragraphs: dict[str, None] = {}
        for pair in pairs:
            targets.update(lower_words(pair.unanswerable))
            read.update(lower_words(pair.answerable))
            paragraphs[pair.context] = None
        if not paragraphs:
            raise ValueError("argument 'pairs': expected at least one, got none")
        for paragraph in paragraphs:
            read.update(lower_words(paragraph))
        read += targets
        first = _frequent(targets, minimum_generated)[:size]
        written = set(first)
        others = [word for word in _frequent(read, minimum) if word not in written]
        characters = Counter(character for word, count in read.items() for character in word for _ in range(count))
        return cls([*first, *others][:size], len(first), _frequent(characters, 2))

    def number(self, word: str) -> int:
        """Of a word in lower case; that of UNKNOWN if the vocabulary lacks it."""
        return self._numbers.get(word, UNKNOWN_NUMBER)

    def spell(self, word: str) -> list[int]:
        """The numbers of the word's first characters; none of special words."""
        if word in SPECIAL:
            return []
        return [self._characters.get(character, UNKNOWN_CHARACTER) for character in word[:LONGEST_WORD]]

    @property
    def character_numbers(self) -> int:
        """How many numbers characters have."""
        return len(self.characters) + 2

    def save(self, folder: Path) -> None:
        """Writes `vocabulary.json` into a folder that exists."""
        content = {
            "format": _FORMAT,
            "words": self.words[len(SPECIAL) :],
            "generated": self.generated - len(SPECIAL),
            "characters": self.characters,
        }
        text = json.dumps(content, ensure_ascii=False)
        replace_file(folder / FILE, lambda part: part.write_text(text + "\n", encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """The vocabulary that `save` wrote.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is of another version of vleff.
        """
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if content.get("format") != _FORMAT:
            raise ValueError(f"{folder / FILE}: expected format {_FORMAT}, got {content.get('format')!r}")
        return cls(content["words"], content["generated"], content["characters"])

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return (self.words, self.generated, self.characters) == (other.words, other.generated, other.characters)

    def __hash__(self) -> int:
        return hash((self.words, self.generated, self.characters))


def _frequent(counts: Counter[str], minimum: int) -> list[str]:
    """Words that are there often enough, the most frequent first."""
    return sorted((word for word, count in counts.items() if count >= minimum), key=lambda word: (-counts[word], word))
