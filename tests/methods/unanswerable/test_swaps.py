"""Swaps follow their rules, and are the same always and everywhere."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from methods.unanswerable.corpus import paragraphs

from vleff.unanswerable.antonyms import ANTONYMS
from vleff.unanswerable.pairs import build_pairs
from vleff.unanswerable.recognisers import find_mentions
from vleff.unanswerable.sources import GenerationSource
from vleff.unanswerable.swaps import VERSION, SwapGenerator, swap_pairs
from vleff.unanswerable.training import source_of
from vleff.unanswerable.words import lower_words

PARAGRAPH = (
    "The first war began in 1066, when William of Normandy sailed to England with 7,000 men. In May 1203 King Philip "
    "II took Rouen. About 30% of the towns in Scotland fell by 1210; three stayed in the hands of Henry's 900 knights."
)


def swaps(question: str, answer: str = "Rouen", count: int = 9) -> list[str]:
    source = GenerationSource(question, PARAGRAPH, answer, PARAGRAPH.index(answer))
    (candidates,) = SwapGenerator().generate([source], count=count)
    assert [candidate.score for candidate in candidates] == [float(-place) for place in range(len(candidates))]
    return [candidate.text for candidate in candidates]


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ("What is an old town?", ["What is a new town?"]),
        ("What is a useful thing?", ["What is a useless thing?"]),
        ("Which was the oldest town there?", ["Which was the newest town there?"]),
        ("Before what was it?", ["After what was it?"]),
        (
            "How many towns fell before spring?",
            ["How many towns rose before spring?", "How many towns fell after spring?"],
        ),
        ("What fell in 1066?", ["What rose in 1066?", "What fell in 1210?"]),
        ("Whose were 7,000 men?", ["Whose were 900 men?"]),
        ("What is it that is there?", []),
    ],
)
def test_antonyms_and_quantities(question: str, texts: list[str]) -> None:
    assert swaps(question) == texts


def test_capitals_make_names_of_words_with_antonyms() -> None:
    assert swaps("Who came from the New Town?", count=1) == ["Who came from the King Philip II?"]


def test_names_are_swapped_for_those_with_the_same_surroundings() -> None:
    assert swaps("What did he do in Scotland?", "7,000")[0] == "What did he do in Rouen?"
    assert swaps("Whose is Henry's land?")[0] == "Whose is Scotland's land?"
    assert swaps("What did King Philip II do?", "1210")[0] == "What did William of Normandy do?"


def test_neither_the_answer_nor_words_of_the_question_come_in() -> None:
    texts = swaps("Where did Henry meet William of Normandy?")
    assert texts and not any("Rouen" in text for text in texts)
    assert not any(lower_words(text).count(name) > 1 for text in texts for name in ("henry", "william", "normandy"))


def test_candidates_take_turns_between_places() -> None:
    texts = swaps("Which town fell in 1066, when England was at peace?")
    assert texts[:4] == [
        "Which town rose in 1066, when England was at peace?",
        "Which town fell in 1066, when England was at war?",
        "Which town fell in 1210, when England was at peace?",
        texts[3],
    ]
    assert texts[3].startswith("Which town fell in 1066, when ") and texts[3].endswith(" was at peace?")
    assert len(texts) == len(set(texts)) > 5 and swaps("Which town fell in 1066?", count=1) == [
        "Which town rose in 1066?"
    ]
    with pytest.raises(ValueError, match="'count': expected at least 1, got 0"):
        SwapGenerator().generate([], count=0)


def test_mentions() -> None:
    assert [(mention.text, mention.kind) for mention in find_mentions(PARAGRAPH)] == [
        ("first", "ordinal"),
        ("1066", "year"),
        ("William of Normandy", "name"),
        ("England", "name"),
        ("7,000", "number"),
        ("May 1203", "date"),
        ("King Philip II", "name"),
        ("Rouen", "name"),
        ("30%", "percent"),
        ("Scotland", "name"),
        ("1210", "year"),
        ("three", "number word"),
        ("Henry", "name"),
        ("900", "number"),
    ]


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("Tea grows. In China tea grows.", ["China"]),
        ("May we? On 3 May 1999 we may.", ["3 May 1999"]),
        ("The Zia-ul-Haq of the 1970s had a 22-year-old son, 1.5 m tall.", ["Zia-ul-Haq", "1970s", "1.5"]),
        ("NATO grew. Paris grew. It is in Paris.", ["NATO", "Paris", "Paris"]),
        ("What is $1500 or 3.1415 or 19th?", ["1500", "3.1415", "19th"]),
        ("what did tea cost in paris", []),
        ("", []),
    ],
)
def test_more_mentions(text: str, mentions: list[str]) -> None:
    found = find_mentions(text)
    assert [mention.text for mention in found] == mentions
    assert all(text[mention.start : mention.end] == mention.text for mention in found)


@given(st.text("AaBb .,1290%-'\u2019sé\n", max_size=40))
def test_mentions_never_overlap(text: str) -> None:
    found = find_mentions(text)
    ends = [0, *(mention.end for mention in found)]
    assert all(end <= mention.start < mention.end for end, mention in zip(ends, found, strict=False))
    assert all(text[mention.start : mention.end] == mention.text for mention in found)


def test_antonyms_are_antonyms_of_each_other() -> None:
    assert all(word.islower() and ANTONYMS[word] != word and ANTONYMS[word] in ANTONYMS for word in ANTONYMS)
    assert len(ANTONYMS) > 400
    back = sum(ANTONYMS[ANTONYMS[word]] == word for word in ANTONYMS)
    assert back > 0.9 * len(ANTONYMS)  # some words have two


def test_real_questions_change_in_one_place_and_always_alike() -> None:
    sources = [source_of(pair) for pair in build_pairs(paragraphs())]
    found = SwapGenerator().generate(sources, count=3)
    assert sum(bool(candidates) for candidates in found) > 0.6 * len(sources)
    assert found == [SwapGenerator().generate([source], count=3)[0] for source in sources]
    for source, candidates in zip(sources, found, strict=True):
        words = lower_words(source.question)
        for candidate in candidates:
            assert lower_words(candidate.text) != words
    # swaps that change need another VERSION: ids and provenance in augmented files depend on it
    texts = "\n".join(candidate.text for candidates in found for candidate in candidates)
    assert (VERSION, hashlib.sha256(texts.encode()).hexdigest()[:12]) == ("1", "664f2bcd93de")


def test_pairs_of_questions_and_their_best_swaps() -> None:
    known = paragraphs()
    pairs = swap_pairs(known)
    answerable = {question.id: question for one in known for question in one.questions if question.answers}
    assert 0.5 * len(answerable) < len(pairs) == len({pair.id for pair in pairs}) <= len(answerable)
    for pair in pairs:
        assert (pair.answerable, pair.answer) == (answerable[pair.id].text, answerable[pair.id].answers[0])
        (best,) = SwapGenerator().generate([source_of(pair)])[0]
        assert pair.unanswerable == best.text
    assert swap_pairs([]) == []
    answers = (replace(pairs[0].answer, start=pairs[0].answer.start + 1),)
    misplaced = replace(known[0], questions=tuple(replace(one, answers=answers) for one in known[0].questions))
    assert swap_pairs([misplaced]) == []
