"""Pairs by the span that both questions share, their files, and splits that share no article."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from methods.unanswerable.corpus import paragraphs, write_squad2

from vleff.data.squad import Answer, Paragraph, Question
from vleff.data.squad_stream import BadRecord
from vleff.unanswerable.pair_files import load_pairs, save_pairs
from vleff.unanswerable.pairs import build_pairs, check_disjoint, edit_distance, pair_statistics, split_pairs
from vleff.unanswerable.words import Spelling, lower_words, span_words, split_words

CONTEXT = "Tea comes from China. Coffee comes from Ethiopia."
CHINA, ETHIOPIA = Answer("China", 15), Answer("Ethiopia", 40)


def answerable(id: str, text: str, *answers: Answer) -> Question:
    return Question(id, text, answers)


def unanswerable(id: str, text: str, *plausible: Answer) -> Question:
    return Question(id, text, (), plausible, True)


def test_the_span_is_the_pivot() -> None:
    questions = (
        answerable("a1", "Where does tea come from?", Answer("from China", 10), CHINA),
        answerable("a2", "Where does coffee come from?", ETHIOPIA),
        answerable("a3", "What comes from China?", Answer("Tea", 0)),
        unanswerable("u1", "Where does milk come from?", ETHIOPIA),
        unanswerable("u2", "Where does tea not come from?", CHINA),
        unanswerable("u3", "Who drinks coffee?", Answer("Ethiopia", 41)),
    )
    pairs = build_pairs([Paragraph("Drinks", CONTEXT, questions)])
    assert [(pair.id, pair.unanswerable_id, pair.answer) for pair in pairs] == [
        ("a1", "u2", CHINA),
        ("a2", "u1", ETHIOPIA),
    ]
    assert pairs[0].answerable == questions[0].text and pairs[0].unanswerable == questions[4].text
    assert pairs[0].title == "Drinks" and pairs[0].context == CONTEXT


def test_pairs_are_one_to_one_and_the_most_similar_first() -> None:
    questions = (
        answerable("a1", "Which country has tea?", CHINA),
        answerable("a2", "Where does tea come from?", CHINA),
        unanswerable("u1", "Where does tea not come from?", CHINA),
        unanswerable("u2", "Which country has no tea?", CHINA),
        unanswerable("u3", "Which country exports milk to the north?", CHINA),
    )
    pairs = build_pairs([Paragraph("", CONTEXT, questions)])
    assert [(pair.id, pair.unanswerable_id) for pair in pairs] == [("a1", "u2"), ("a2", "u1")]


def test_pairs_of_the_excerpt_are_its_twins() -> None:
    pairs = build_pairs(paragraphs())
    assert len(pairs) > 60 and all(pair.unanswerable_id == f"{pair.id}-twin" for pair in pairs)
    statistics = pair_statistics(pairs)
    assert statistics.pairs == len(pairs) and statistics.one_word > 0.95 and 0.85 < statistics.copied < 1
    assert f"{len(pairs)} pairs, {statistics.paragraphs} paragraphs, 48 articles" in str(statistics)
    with pytest.raises(ValueError, match="'pairs': expected at least one"):
        pair_statistics([])


def test_splits_share_no_article() -> None:
    splits = split_pairs(paragraphs(), 0.2, 0.3)
    titles = [{pair.title for pair in pairs} for pairs in splits.values()]
    assert list(splits) == ["train", "development", "test"] and sum(map(len, titles)) == len(set().union(*titles))
    assert len(titles[1]) > 6 and len(titles[2]) > 10 and splits == split_pairs(paragraphs(), 0.2, 0.3)
    assert splits != split_pairs(paragraphs(), 0.2, 0.3, seed=1)
    check_disjoint(splits["train"], splits["test"], ("a", "b"))
    with pytest.raises(ValueError, match="a and b share 1 articles, the first"):
        check_disjoint(splits["train"], splits["test"] + splits["train"][:1], ("a", "b"))
    without = [[dataclasses.replace(pair, title="") for pair in pairs] for pairs in splits.values()]
    check_disjoint(without[0], without[2], ("a", "b"))
    with pytest.raises(ValueError, match="share 1 articles"):
        check_disjoint(without[0], without[0][:1], ("a", "b"))


def test_lines_are_what_was_saved(tmp_path: Path) -> None:
    pairs = build_pairs(paragraphs())
    bad: list[BadRecord] = []
    save_pairs(pairs, tmp_path / "pairs.jsonl")
    assert load_pairs(tmp_path / "pairs.jsonl", bad.append) == pairs
    assert load_pairs(write_squad2(tmp_path / "squad.json", paragraphs()), bad.append) == pairs and not bad
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    broken = [{**first, "answerable": " "}, {**first, "answer": {"text": "x", "answer_start": 3}}, {"id": "z"}, [3]]
    lines[1:1] = ["nonsense", *map(json.dumps, broken)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    assert load_pairs(tmp_path / "pairs.jsonl", bad.append) == pairs
    assert [one.id for one in bad] == ["", pairs[0].id, pairs[0].id, "z", ""]
    assert [one.place for one in bad] == [f"pairs.jsonl, line {number}" for number in range(2, 7)]
    assert "'context' is missing" in bad[3].reason
    with pytest.raises(FileNotFoundError):
        load_pairs(tmp_path / "none.jsonl", bad.append)


def test_the_authors_tables(tmp_path: Path) -> None:
    context = "tea comes from the people 's republic of china . coffee does not .\t0\t9"
    rows = [
        (context, "1\twhere does tea come from ?\t3\t8", "2\twhere does milk come from ?\t3\t8"),
        (context, "3\twhat comes ?\t0\t0", "4\twhat does not come ?\t0\t0"),
        (context, "5\twhat ?\t0\t15", "6\twhat ?\t0\t15"),
        (context, "7\twhat ?\t0\t1", "8\twhat ?\t0\t0"),
        (context, "9\twhat ?\tx\t1", "10\twhat ?\t0\t0"),
        ("no columns", "11\twhat ?\t0\t1", "12\twhat ?\t0\t0"),
        (context, "13\t \t0\t1", "14\twhat ?\t0\t1"),
    ]
    names = ("dev-context.txt", "dev-answerable-questions.txt", "dev-unanswerable-questions.txt")
    for name, lines in zip(names, zip(*rows, strict=True), strict=True):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    bad: list[BadRecord] = []
    first, second = load_pairs(tmp_path / "dev", bad.append)
    assert (first.id, first.unanswerable_id, first.answerable) == ("1", "2", "where does tea come from ?")
    assert first.answer == Answer("the people 's republic of china", 15) and second.answer == Answer("tea", 0)
    assert first.context[15:].startswith(first.answer.text)
    assert lower_words(first.context) == first.context.split()
    assert [one.id for one in bad] == ["5", "7", "9", "11", "13"]
    assert bad[0].place == "dev, line 3" and "within the 14 words" in bad[0].reason
    (tmp_path / names[2]).unlink()
    with pytest.raises(FileNotFoundError):
        load_pairs(tmp_path / "dev", bad.append)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Who's there?", ["Who", "'s", "there", "?"]),
        ("Don't the Normans' O'Neill sing?", ["Don't", "the", "Normans", "'", "O'Neill", "sing", "?"]),
        ("$1.5 (10%)", ["$", "1", ".", "5", "(", "10", "%", ")"]),
        ("naïve—Ωmega_3", ["naïve", "—", "Ωmega", "_", "3"]),
        (" \n", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    found = split_words(text)
    assert [word.text for word in found] == words
    assert all(text[word.start : word.end] == word.text for word in found)
    assert lower_words(" ".join(words).lower()) == [word.lower() for word in words]


@given(st.text("abÉ's\u2019. -1$?\n", max_size=20))
def test_words_that_are_split_stay_split(text: str) -> None:
    words = [word.text for word in split_words(text)]
    assert "".join(words) == "".join(text.split())
    assert [word.text for word in split_words(" ".join(words))] == words


def test_spans_of_words() -> None:
    words = split_words("Tea comes from China.")
    assert span_words(words, 4, 14) == (1, 3) and span_words(words, 5, 12) == (1, 3)
    assert span_words(words, 15, 21) == (3, 5) and span_words(words, 21, 21) == (5, 5)


def test_words_are_joined_as_the_sources_spell_them() -> None:
    spelling = Spelling("What is the A-100's top speed (km/h)?", "The A-100 drives. It beats Ford's best at 1.5 km/h.")
    for text in (
        "What is the A-100's top speed (km/h)?",
        "The top speed is 1.5 km/h?",
        "Is Ford's A-100 not it, the best?",
    ):
        assert spelling.join(lower_words(text)) == text
    assert Spelling("what is tea?", "Tea grows.").join(["what", "grows", "?"]) == "what grows?"
    assert spelling.join([]) == ""


def test_edit_distance() -> None:
    cases = [("abc", "abc", 0), ("abc", "axbc", 1), ("abc", "bd", 2), ("", "ab", 2), ("kitten", "sitting", 3)]
    assert [edit_distance(list(first), list(second)) for first, second, _ in cases] == [wanted for *_, wanted in cases]
