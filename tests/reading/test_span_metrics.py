"""Exact match and F1 by hand-computed cases."""

import pytest

from vleff.data.span_features import SpanExample
from vleff.data.span_metrics import exact_match, f1, normalize_answer, score_answers
from vleff.data.squad import Answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple, a day", "apple day"),
        ("A.B.C.", "abc"),
        ("theatre", "theatre"),
        (" \n", ""),
    ],
)
def test_normalization(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "overlap"),
    [
        ("the cat", "Cat.", 100, 100),
        ("black cat", "cat", 0, 200 / 3),
        ("black cat", "white dog", 0, 0),
        ("to be or not to be", "to be", 0, 200 * 2 / 8),
        ("", "", 100, 100),
        ("", "cat", 0, 0),
        ("the", "", 100, 100),
    ],
)
def test_scores(prediction: str, answer: str, exact: float, overlap: float) -> None:
    assert exact_match(prediction, answer) == exact
    assert f1(prediction, answer) == pytest.approx(overlap)


def test_the_best_accepted_answer_counts() -> None:
    examples = [
        SpanExample("1", "", "", (Answer("dog", 0), Answer("black cat", 0))),
        SpanExample("2", "", "", ()),
        SpanExample("3", "", "", ()),
    ]
    scores = score_answers({"1": "cat", "2": "", "3": "something"}, examples)
    assert scores.exact_match.tolist() == [0, 100, 0]
    assert scores.f1.tolist() == [pytest.approx(200 / 3), 100, 0]
    low, high = scores.interval()
    assert 0 <= low < scores.f1.mean() < high <= 100 and scores.interval() == (low, high)
    assert str(scores).startswith("EM 33.3, F1 55.6 (") and str(scores).endswith("3 questions")
    with pytest.raises(KeyError, match="an answer to question '3'"):
        score_answers({"1": "", "2": ""}, examples)
    with pytest.raises(ValueError, match="at least one question"):
        score_answers({}, [])
