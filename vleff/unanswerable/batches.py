"""Batches of sources, as tensors."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vleff.unanswerable.source_words import SourceWords
from vleff.unanswerable.vocabulary import END, END_NUMBER, START, UNKNOWN_NUMBER, Vocabulary

QUESTION_TYPE, PARAGRAPH_TYPE, ANSWER_TYPE = range(3)
_WINDOW = 3  # characters that an embedding of a character sees

Batch = dict[str, Any]


class SourceCollator:
    """Makes batches of sources, with targets to learn from or without.

    A word has two numbers. The first says which of the batch's distinct words it is, whose vocabulary numbers and
    letters the batch has. The second is its number in the extended vocabulary of its sample: generated words keep
    their own, and the sample's others follow in the order in which they are first read.

    Args:
        vocabulary: of the model.
        tokenizer: of a model with a transformer, a fast one.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: Any = None) -> None:
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer

    def __call__(self, pairs: Sequence[tuple[SourceWords, Sequence[str] | None]]) -> Batch:
        """A batch.

        Args:
            pairs: at least one source, with the words of its target in lower case, or with None for all.

        Returns:
            words: int64 [distinct], numbers of the vocabulary.
            letters: int64 [letters, 3], the characters around each letter, in bags of an embedding of
                3 * character_numbers rows; word_lengths: int64 [distinct], letters of each word.
            question_words, paragraph_words: int64 [tokens], numbers of distinct words.
            question_ids, paragraph_ids: int32 [tokens], numbers of the extended vocabulary.
            question_offsets, paragraph_offsets: int32 [batch + 1]; max_question, max_paragraph: longest lengths.
            paragraph_types: int64 [tokens], whether a word is in the answer.
            answer_rows: int64 [tokens of answers], among those of paragraphs; answer_offsets: int64 [batch].
            extended_words: int64 [words], the distinct words of each sample's extension; extended_offsets: int64
                [batch + 1]; extended_size: the size of the largest extended vocabulary.
            with targets also inputs: int64 [targets], numbers of distinct words, each sample's first is START;
                targets: int64 [targets], numbers of the extended vocabulary, extended_size for what is in none, each
                sample's last is END; target_offsets: int32 [batch + 1]; max_target.
            with a tokenizer also what `_subwords` makes of questions and paragraphs.
        """
        sources = [source for source, _ in pairs]
        distinct = _Numbers()
        questions = [source.lower_question for source in sources]
        paragraphs = [source.lower_paragraph for source in sources]
        batch: Batch = {
            "question_words": distinct.of_all(questions),
            "paragraph_words": distinct.of_all(paragraphs),
            **_offsets("question", questions),
            **_offsets("paragraph", paragraphs),
        }
        extensions = [self.extension(source) for source in sources]
        extended_size = self.vocabulary.generated + max(len(extension) for extension in extensions)
        for name, texts in (("question", questions), ("paragraph", paragraphs)):
            ids = [
                self._id(word, extension) for extension, words in zip(extensions, texts, strict=True) for word in words
            ]
            batch[f"{name}_ids"] = torch.tensor(ids, dtype=torch.int32)
        batch |= {
            "extended_words": distinct.of_all(extensions),
            "extended_offsets": torch.tensor([0, *accumulate(map(len, extensions))]),
            "extended_size": extended_size,
            **_answers(sources, batch["paragraph_offsets"]),
        }
        if any(target is not None for _, target in pairs):
            targets = [list(target or ()) for _, target in pairs]
            batch["inputs"] = distinct.of_all([[START, *target] for target in targets])
            ids = [
                self._id(word, extension, extended_size)
                for extension, target in zip(extensions, targets, strict=True)
                for word in [*target, END]
            ]
            batch["targets"] = torch.tensor(ids)
            batch |= _offsets("target", [[*target, END] for target in targets])
        batch |= self._words(distinct.words)
        if self.tokenizer is not None:
            for name in ("question", "paragraph"):
                batch |= _subwords(name, [getattr(source, name) for source in sources], self.tokenizer)
        return batch

    def extension(self, source: SourceWords) -> dict[str, int]:
        """Numbers of the words that the decoder does not generate, in the order in which they are read."""
        extension: dict[str, int] = {}
        for words in (source.lower_question, source.lower_paragraph):
            for word in words:
                if not self._is_generated(word):
                    extension.setdefault(word, self.vocabulary.generated + len(extension))
        return extension

    def _is_generated(self, word: str) -> bool:
        return UNKNOWN_NUMBER != self.vocabulary.number(word) < self.vocabulary.generated

    def _id(self, word: str, extension: dict[str, int], otherwise: int = -1) -> int:
        if word == END:
            return END_NUMBER
        return self.vocabulary.number(word) if self._is_generated(word) else extension.get(word, otherwise)

    def _words(self, words: Sequence[str]) -> Batch:
        spelled = [self.vocabulary.spell(word) for word in words]
        count = self.vocabulary.character_numbers
        windows = [
            [character + place * count for place, character in enumerate(around)]
            for letters in spelled
            for around in zip([0, *letters], letters, [*letters[1:], 0], strict=False)
        ]
        return {
            "words": torch.tensor([self.vocabulary.number(word) for word in words]),
            "letters": torch.tensor(windows, dtype=torch.int64).view(-1, _WINDOW),
            "word_lengths": torch.tensor([len(letters) for letters in spelled]),
        }


class _Numbers:
    """Numbers words as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of_all(self, texts: Iterable[Iterable[str]]) -> Tensor:
        """int64 [words of all texts]"""
        numbers = self._numbers
        return torch.tensor([numbers.setdefault(word, len(numbers)) for words in texts for word in words]).long()

    @property
    def words(self) -> list[str]:
        return list(self._numbers)


def _offsets(name: str, texts: Sequence[Sequence[str]]) -> Batch:
    lengths = [len(words) for words in texts]
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return {f"{name}_offsets": offsets, f"max_{name}": max(lengths)}


def _answers(sources: Sequence[SourceWords], offsets: Tensor) -> Batch:
    types = torch.full((int(offsets[-1]),), PARAGRAPH_TYPE)
    rows = [torch.arange(*source.answer) + begin for source, begin in zip(sources, offsets.tolist(), strict=False)]
    chosen = torch.cat(rows)
    types[chosen] = ANSWER_TYPE
    starts = [0, *accumulate(map(len, rows))][:-1]
    return {"paragraph_types": types, "answer_rows": chosen, "answer_offsets": torch.tensor(starts)}


def _subwords(name: str, texts: Sequence[Sequence[str]], tokenizer: Any) -> Batch:
    """What a transformer reads of words: a text too long for it in several windows.

    Returns:
        {name}_input_ids, {name}_attention_mask: int64 [windows, length].
        {name}_first: int64 [words], where in [windows * length] each word's first token is; words without any are
            represented by the first token of a window.
    """
    encoded = tokenizer(
        [list(words) for words in texts],
        is_split_into_words=True,
        truncation=True,
        max_length=min(tokenizer.model_max_length, 512),
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    length = encoded["input_ids"].shape[1]
    places: list[dict[int, int]] = [{} for _ in texts]
    windows: list[int] = [-1] * len(texts)
    for window, text in enumerate(encoded["overflow_to_sample_mapping"].tolist()):
        windows[text] = window if windows[text] < 0 else windows[text]
        for place, word in enumerate(encoded.word_ids(window)):
            if word is not None:
                places[text].setdefault(word, window * length + place)
    first = [
        places[text].get(word, windows[text] * length) for text, words in enumerate(texts) for word in range(len(words))
    ]
    return {
        f"{name}_input_ids": encoded["input_ids"],
        f"{name}_attention_mask": encoded["attention_mask"],
        f"{name}_first": torch.tensor(first),
    }
