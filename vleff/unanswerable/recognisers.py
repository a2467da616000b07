"""Simple recognisers of names, dates and numbers in English text: by capitals, digits and lists of words.

A reconstruction: no paper fixes them. What they miss or take wrongly costs swaps, never a wrong file.
"""

import re
from dataclasses import dataclass

from vleff.unanswerable.words import Word

NAME, DATE, YEAR, DECADE, ORDINAL, PERCENT, NUMBER, NUMBER_WORD = (
    "name",
    "date",
    "year",
    "decade",
    "ordinal",
    "percent",
    "number",
    "number word",
)

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_ONES = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|hundred"
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth"
_COUNT = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
# the first pattern that fits at a character wins
_PATTERNS = (
    (DATE, rf"\b(?:\d{{1,2}} )?(?:{_MONTHS})(?: \d{{1,2}}\b)?(?:,? \d{{4}}\b)?"),
    (DECADE, r"\b1\d{3}s\b|\b20\d{2}s\b"),
    (ORDINAL, rf"\b\d+(?:st|nd|rd|th)\b|\b(?:{_ORDINALS})\b"),
    (PERCENT, rf"\b(?:{_COUNT}) ?(?:%|percent\b|per cent\b)"),
    (YEAR, r"(?<![\d.,$£€])(?:1[0-9]\d{2}|20\d{2})(?![\d%]|[.,]\d)\b"),
    (NUMBER, rf"(?<![\w.-])(?:{_COUNT})(?![\w%-]|[.,]\d)"),
    (NUMBER_WORD, rf"\b(?:{_ONES})\b"),
)
_QUANTITY = re.compile("|".join(f"(?P<k{number}>{pattern})" for number, (_, pattern) in enumerate(_PATTERNS)))

# a word, with what apostrophes and hyphens join to it, without a possessive 's; or a mark
_TOKEN = re.compile(r"['\u2019][sS]\b|[^\W_]+(?:(?:['\u2019](?![sS]\b)|-)[^\W_]+)*|\S")
_LINKS = frozenset(("of", "de", "von", "van", "du", "del", "la", "al", "bin"))
_ENDS_SENTENCE = frozenset('.?!:;"“”•')
# words whose capital at the beginning of a sentence, or of a question, makes no name of them
_NO_NAMES_TEXT = """
a about according after all along also although among an and another any are around as at be because been before being
between both but by can could despite did do does during each eight either every few first five following for four
from furthermore had has have he hence her his how however i if in instead into is it its just later like many may
meanwhile might more moreover most much must name near neither nine no nor not of off on once one only or other our
out over second seven she should since six so some such ten than that the their them then there therefore these they
third this those though three through thus to today two under unlike until up upon was we were what when where whereas
whether which while who whom whose why will with within without would you your
"""
_NO_NAMES = frozenset(_NO_NAMES_TEXT.split())


@dataclass(frozen=True)
class Mention:
    """A name, a date or a number in a text.

    Attributes:
        text: as it is written.
        start, end: its characters.
        kind: one of the constants of this module.
    """

    text: str
    start: int
    end: int
    kind: str


def find_mentions(text: str) -> list[Mention]:
    """The mentions of a text in their order; none overlaps another.

    Quantities come first: a month within a name is a date. Names are runs of capitalised words, joined by words such
    as "of". A word that begins a sentence only counts if it is capitalised within a sentence too, if another
    capitalised word follows, or if it is all capitals.
    """
    found = [
        Mention(match.group(), match.start(), match.end(), _PATTERNS[int(str(match.lastgroup)[1:])][0])
        for match in _QUANTITY.finditer(text)
        if match.group() != "May" or not _begins_sentence(text, match.start())
    ]
    taken = {character for mention in found for character in range(mention.start, mention.end)}
    return sorted([*found, *_names(text, taken)], key=lambda mention: mention.start)


def _names(text: str, taken: set[int]) -> list[Mention]:
    tokens = (Word(match.group(), match.start(), match.end()) for match in _TOKEN.finditer(text))
    words = [word for word in tokens if word.start not in taken]
    starts = [number == 0 or words[number - 1].text[-1] in _ENDS_SENTENCE for number in range(len(words))]
    within = {word.text for word, first in zip(words, starts, strict=True) if not first and word.text[0].isupper()}
    found: list[Mention] = []
    number = 0
    while number < len(words):
        last = _end_of_run(words, number)
        if last > number:
            first = number
            while first < last and starts[number] and words[first].text.lower() in _NO_NAMES:
                first += 1
            if first < last and _is_name(words[first:last], starts[first], within):
                start, end = words[first].start, words[last - 1].end
                found.append(Mention(text[start:end], start, end, NAME))
        number = max(last, number + 1)
    return found


def _end_of_run(words: list[Word], first: int) -> int:
    """The word behind a run of capitalised words, joined by links; `first` itself if there is none."""
    end = number = first
    while number < len(words) and (number == first or words[number].start - words[number - 1].end == 1):
        word = words[number].text
        if word[0].isupper() and (len(word) > 1 or number > first):
            end = number + 1
        elif end == first or word not in _LINKS:
            break
        number += 1
    return end


def _is_name(run: list[Word], begins: bool, within: set[str]) -> bool:
    word = run[0].text
    return not begins or len(run) > 1 or word in within or (word.isupper() and len(word) > 1)


def _begins_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip()
    return not before or before[-1] in _ENDS_SENTENCE
