"""SwapGenerator: unanswerable questions without training, by one exchanged word, name, date or number.

A reconstruction after Gautam, Zhang and Klakow, "A Lightweight Method to Generate Unanswerable Questions in English"
(Findings of EMNLP 2023), whose swaps of antonyms and entities were a strong baseline; the list of antonyms, the
recognisers and the order of candidates are ours, and numbers are swapped too.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vleff.data.squad import Paragraph
from vleff.unanswerable.antonyms import ANTONYMS
from vleff.unanswerable.pairs import QuestionPair
from vleff.unanswerable.recognisers import NAME, NUMBER, YEAR, Mention, find_mentions
from vleff.unanswerable.sources import Candidate, GenerationSource
from vleff.unanswerable.words import lower_words, split_words

VERSION = "1"  # another one where the rules or lists change

_VOWELS = frozenset("aeiou")


@dataclass(frozen=True)
class _Swap:
    """Characters of a question and what they are replaced by; `rank` is the place among the choices for them."""

    start: int
    end: int
    text: str
    rank: int


class SwapGenerator:
    """Writes questions that differ from their sources in one place.

    The rules:

    - a word of the list of antonyms is exchanged for its antonym, unless "how" is before it;
    - a name, date, year, decade, ordinal, percentage or number of the question is exchanged for another of the same
      kind in the paragraph. Not for the answer, nor for one that shares a word with it, with the answer, or with the
      rest of the question. First those with the same surroundings (the word before; a possessive, a word or a mark
      behind), then those of as many words, then those near the answer; of years and numbers the nearest in value.

    Candidates take the first choice at each place of the question, antonyms first, then the second choices, and so
    on. A candidate's score is minus its place in this order. Where nothing can be swapped there are none. The same
    sources give the same candidates, always and everywhere.
    """

    def generate(self, sources: Sequence[GenerationSource], *, count: int = 1) -> list[list[Candidate]]:
        """At most `count` candidates for each source, the best first.

        Raises:
            ValueError: `count` is not positive.
        """
        if count < 1:
            raise ValueError(f"argument 'count': expected at least 1, got {count}")
        # the questions of a paragraph come one after the other
        paragraph, mentions, found = "", [], []
        for source in sources:
            if source.paragraph != paragraph:
                paragraph, mentions = source.paragraph, find_mentions(source.paragraph)
            texts = islice(_texts(source, mentions), count)
            found.append([Candidate(text, 0.0 - place) for place, text in enumerate(texts)])
        return found


def swap_pairs(paragraphs: Iterable[Paragraph]) -> list[QuestionPair]:
    """Of each answerable question in which something can be swapped: the question and its best swap.

    Answers that are not where they should be do not count, as in a few questions of SQuAD.
    Easy pairs for a generator to learn copying from, where there are few written by people (reconstruction).
    """
    swaps, pairs = SwapGenerator(), []
    for paragraph in paragraphs:
        known = []
        for question in paragraph.questions:
            placed = [one for one in question.answers if paragraph.context.startswith(one.text, one.start)]
            known += [(question, answer) for answer in placed[:1]]
        sources = [GenerationSource(one.text, paragraph.context, answer.text, answer.start) for one, answer in known]
        for (one, answer), candidates in zip(known, swaps.generate(sources), strict=True):
            pairs += [
                QuestionPair(one.id, paragraph.context, answer, one.text, swap.text, paragraph.title)
                for swap in candidates
            ]
    return pairs


def _texts(source: GenerationSource, mentions: Sequence[Mention]) -> Iterator[str]:
    question = source.question
    swaps = [*_antonym_swaps(question), *_mention_swaps(source, mentions)]
    seen = {question.strip().lower()}
    for swap in sorted(swaps, key=lambda swap: swap.rank):  # stable: antonyms stay first
        text = _applied(question, swap).strip()
        if text.lower() not in seen:
            seen.add(text.lower())
            yield text


def _antonym_swaps(question: str) -> Iterator[_Swap]:
    for word in split_words(question):
        antonym = ANTONYMS.get(word.text.lower())
        # a capital within the question belongs to a name: "the First Crusade"; "how few" asks what "how many" asks
        as_it_is = word.start > 0 and (not word.text.islower() or _word_before(question, word.start) == "how")
        if antonym is not None and not as_it_is:
            yield _Swap(word.start, word.end, antonym, 0)


def _mention_swaps(source: GenerationSource, mentions: Sequence[Mention]) -> Iterator[_Swap]:
    question = source.question
    for place in find_mentions(question):
        rest = {*lower_words(question[: place.start]), *lower_words(question[place.end :])}
        forbidden = {*lower_words(place.text), *lower_words(source.answer_text)}
        if place.kind == NAME:
            forbidden |= rest
        choices = [
            mention
            for mention in mentions
            if mention.kind == place.kind and not forbidden & set(lower_words(mention.text))
        ]
        choices.sort(key=lambda mention: _unfitness(mention, place, source))
        for rank, text in enumerate(dict.fromkeys(mention.text for mention in choices)):
            yield _Swap(place.start, place.end, text, rank)


def _unfitness(mention: Mention, place: Mention, source: GenerationSource) -> tuple[float, ...]:
    """What a mention is sorted by to stand at a place of the question: the smaller the better."""
    distance = abs(mention.start - source.answer_start)
    if place.kind in (YEAR, NUMBER):
        return abs(_value(mention.text) - _value(place.text)), distance
    before = _word_before(source.paragraph, mention.start) != _word_before(source.question, place.start)
    behind = _kind_behind(source.paragraph, mention.end) != _kind_behind(source.question, place.end)
    return before + behind, abs(len(mention.text.split()) - len(place.text.split())), distance


def _word_before(text: str, start: int) -> str:
    words = text[max(0, start - 30) : start].split()
    return words[-1].lower() if words else ""


def _kind_behind(text: str, end: int) -> str:
    behind = text[end : end + 2]
    if behind[:1] in ("'", "\u2019"):
        return "possessive"
    return "word" if behind[:1] == " " and behind[1:].isalnum() else "mark"


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _applied(question: str, swap: _Swap) -> str:
    before, replaced, after = question[: swap.start], question[swap.start : swap.end], question[swap.end :]
    text = swap.text[0].upper() + swap.text[1:] if replaced[0].isupper() else swap.text
    return _article(before, replaced, text) + text + after


def _article(before: str, replaced: str, text: str) -> str:
    """What stands before the swap, with "a" or "an" as the new word wants it, unless the old one broke the rule."""
    words = before.rsplit(None, 1)
    if not words or not before.endswith(" ") or words[-1].lower() not in ("a", "an"):
        return before
    old, new = (word[0].lower() in _VOWELS for word in (replaced, text))
    if old == new or old != (words[-1].lower() == "an"):
        return before
    article = words[-1][0] + ("n" if new else "")
    return before[: len(before) - 1 - len(words[-1])] + article + " "
