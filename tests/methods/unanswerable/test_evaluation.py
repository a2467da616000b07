"""Metrics against their formulas, and generators beside people, copies and swaps."""

import math
import sys
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from methods.unanswerable.corpus import paragraphs
from methods.unanswerable.own_generators import Negator
from reading.excerpt import make_tokenizer, small_reader

from vleff.unanswerable.answerability import AnswerabilityReader
from vleff.unanswerable.evaluation import HEADINGS, GenerationScores, evaluate
from vleff.unanswerable.metrics import bleu, copy_rate, gleu, repetition_rate, rouge_l
from vleff.unanswerable.pairs import build_pairs
from vleff.unanswerable.words import lower_words

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = build_pairs(paragraphs())[:40]


def naive_gleu(outputs: list[str], references: list[str], sources: list[str], order: int) -> float:
    """By the formula, n-gram by n-gram."""
    sums = {n: [0, 0] for n in range(1, order + 1)}
    lengths = [0, 0]
    for output, reference, source in zip(outputs, references, sources, strict=True):
        texts = [lower_words(text) for text in (output, reference, source)]
        lengths = [lengths[0] + len(texts[0]), lengths[1] + len(texts[1])]
        for n in sums:
            c, r, s = (Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1)) for words in texts)
            numerator = 0
            for gram in c:
                numerator += min(c[gram], r[gram]) - max(0, min(c[gram], s[gram]) - min(c[gram], r[gram]))
            sums[n][0] += max(0, numerator)
            sums[n][1] += sum(c.values())
    if not all(one for one, _ in sums.values()):
        return 0.0
    precisions = [one / of for one, of in sums.values()]
    penalty = 1.0 if lengths[0] > lengths[1] else math.exp(1 - lengths[1] / lengths[0])
    return 100 * penalty * math.prod(precisions) ** (1 / order)


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "A", "?"]), max_size=9).map(" ".join)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4), st.integers(1, 4))
def test_gleu_is_its_formula(triples: list[tuple[str, str, str]], order: int) -> None:
    outputs, references, sources = ([triple[place] for triple in triples] for place in range(3))
    assert gleu(outputs, references, sources, order) == pytest.approx(
        naive_gleu(outputs, references, sources, order), abs=1e-9
    )


def test_gleu_punishes_what_should_have_changed() -> None:
    reference, source = ["who did not win the war ?"], ["who won the war ?"]
    assert gleu(reference, reference, source) == pytest.approx(100)
    # of 5 words 4 are right; "won" is not, and is in the source
    assert gleu(source, reference, source, 1) == pytest.approx(100 * 3 / 5 * math.exp(1 - 7 / 5))
    assert gleu(["who lost the war ?"], reference, source, 1) == pytest.approx(100 * 4 / 5 * math.exp(1 - 7 / 5))
    assert gleu([""], reference, source) == 0


def test_bleu_and_rouge_see_words_in_lower_case() -> None:
    assert bleu(["What's HOT ?"], ["what 's hot?"], 3) == pytest.approx(100)
    assert rouge_l(["Where is tea hot?", "a"], ["where IS the tea ?", "b"]) == pytest.approx(100 * (2 * 4 / 10) / 2)
    # 6 of 6 words, 3 of 5 pairs, 1 of 4 triples
    output, reference = ["a b c d e f"], ["a b c e f d"]
    assert bleu(output, reference, 3) == pytest.approx(100 * (6 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))


def test_repetition_and_copies() -> None:
    texts = ["what is is it ?", "when was it when was it built ?", "the man of the house of the man ?", "who ?"]
    assert repetition_rate(texts) == 50
    assert copy_rate(["What is it?", "Who?"], ["what is it ?", "Whose?"]) == 50


def test_generators_beside_people_copies_and_swaps() -> None:
    tokenizer = make_tokenizer()
    reader = AnswerabilityReader(small_reader(), tokenizer, max_length=96, stride=32)
    scores = evaluate({"mine": Negator()}, PAIRS, reader, threshold=-0.9, batch=7, quiet=True)
    assert list(scores) == ["people", "copy the input", "swaps", "mine"]
    people, copies, swaps, mine = scores.values()
    assert people.bleu_4 == pytest.approx(100) and people.rouge_l == pytest.approx(100) and people.copied == 0
    assert copies.copied == 100 and copies.missing == 0
    sources, references = [pair.answerable for pair in PAIRS], [pair.unanswerable for pair in PAIRS]
    assert copies.bleu_4 == bleu(sources, references) and copies.gleu_3 == gleu(sources, references, sources, 3)
    outputs = [f"{text}, not 0" for text in sources]
    assert mine.rouge_l == rouge_l(outputs, references) and mine.copied == mine.missing == 0
    margins = reader.null_margins([(text, pair.context) for text, pair in zip(outputs, PAIRS, strict=True)])
    assert mine.unanswerable == pytest.approx(100 * sum(margin > -0.9 for margin in margins) / len(PAIRS))
    assert 0 < swaps.missing == swaps.copied < 60
    without = evaluate({}, PAIRS, batch=7, quiet=True)
    assert list(without) == ["people", "copy the input", "swaps"] and without["swaps"].unanswerable is None
    assert HEADINGS.keys() == GenerationScores.__dataclass_fields__.keys()


def test_what_cannot_be_evaluated() -> None:
    with pytest.raises(ValueError, match="'pairs': expected at least one, got none"):
        evaluate({}, [])
    with pytest.raises(ValueError, match="the name 'swaps' is taken"):
        evaluate({"swaps": Negator()}, PAIRS)


@pytest.mark.parametrize(("package", "call"), [("sacrebleu", bleu), ("rouge_score", rouge_l)])
def test_without_the_extra_it_says_how_to_get_it(
    package: str, call: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install .*, or vleff\[evaluation\]"):
        call(["a"], ["b"])
