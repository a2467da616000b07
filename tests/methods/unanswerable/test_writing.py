"""Questions that models write: those of a plain search in float64, whatever the batch, within the rules."""

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from methods.unanswerable.generators import bert_model, items, model, pairs, sources
from methods.unanswerable.plain import PlainPairToSequence

import vleff
from vleff.unanswerable.beam_search import beam_search
from vleff.unanswerable.decoding import Rules
from vleff.unanswerable.generation import Candidate, GenerationSettings
from vleff.unanswerable.sources import GenerationSource
from vleff.unanswerable.words import lower_words
from vleff.unanswerable.writing import ModelSteps

SETTINGS = {
    "beams": GenerationSettings(batch=4),
    "groups": GenerationSettings(beams=4, groups=2),
    "draws": GenerationSettings(sample=True, top_p=0.9, temperature=0.8),
}


@pytest.mark.parametrize("make", [model, bert_model])
@pytest.mark.parametrize("beams", [1, 5])
def test_the_search_is_that_of_plain_torch(make: Any, beams: int) -> None:
    ours = make()
    some = items(9)
    batch = ours.collator()([(source, None) for source, _ in some])
    lengths = batch["question_offsets"].diff().tolist()
    questions = [ids.tolist() for ids in batch["question_ids"].split(lengths)]
    settings = GenerationSettings(beams=beams)
    rules = Rules(questions, [length + 3 for length in lengths], 2)
    with torch.inference_mode():
        found = beam_search(ModelSteps(ours, batch), rules, settings, 1)
    with torch.no_grad():
        expected = PlainPairToSequence(ours).double().search(batch, rules, settings)
    assert all(len(one) == beams for one in found)
    assert len({len(one.words) for hypotheses in found for one in hypotheses}) > 1
    for hypotheses, others in zip(found, expected, strict=True):
        assert [one.words for one in hypotheses] == [one.words for one in others]
        for one, other in zip(hypotheses, others, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)


@pytest.mark.parametrize("make", [model, bert_model])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_neither_order_nor_batch_change_anything(make: Any, settings: GenerationSettings) -> None:
    ours = make()
    if make is bert_model:
        vleff.accelerate(ours)
    every = sources(9)
    together = ours.generate(every, count=3, settings=settings)
    shuffled = random.Random(0).sample(range(9), 9)
    found = ours.generate([every[i] for i in shuffled], count=3, settings=replace(settings, batch=2))
    assert found == [together[i] for i in shuffled]
    assert [ours.generate([one], count=3, settings=settings)[0] for one in every[::3]] == together[::3]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_candidates_are_different_and_the_best_first(settings: GenerationSettings) -> None:
    ours = model()
    ours.settings = settings
    found = ours.generate(sources(), count=4)
    assert all(1 <= len(one) <= 4 for one in found) and max(map(len, found)) == 4
    for candidates in found:
        assert all(isinstance(one, Candidate) and not one.text[0].islower() and one.score < 0 for one in candidates)
        assert len({one.text for one in candidates}) == len(candidates)
        assert [one.score for one in candidates] == sorted((one.score for one in candidates), reverse=True)


def test_draws_follow_the_seed() -> None:
    ours = model()
    settings = GenerationSettings(sample=True, seed=1)
    first = ours.generate(sources(), settings=settings)
    assert first == ours.generate(sources(), settings=settings)
    assert first != ours.generate(sources(), settings=replace(settings, seed=2))


def test_a_question_keeps_the_rules() -> None:
    ours = model()
    some = sources(9)
    settings = GenerationSettings(extra_words=2, max_words=9, no_repeat=2, beams=8)
    for source, candidates in zip(some, ours.generate(some, count=8, settings=settings), strict=True):
        assert candidates
        for one in candidates:
            words = lower_words(one.text)
            assert 1 <= len(words) <= min(9, len(lower_words(source.question)) + 2)
            grams = list(pairwise(words))
            assert len(set(grams)) == len(grams)
            assert words != lower_words(source.question)


def test_a_copy_is_written_only_if_it_may_be() -> None:
    ours = model()
    (likeliest,) = ours.generate(sources(1))
    source = replace(sources(1)[0], question=likeliest[0].text)
    # the words that the model likes best become the question: found again only where that is allowed
    wide = GenerationSettings(beams=30, may_copy=True)
    allowed = {one.text for one in ours.generate([source], count=30, settings=wide)[0]}
    forbidden = {one.text for one in ours.generate([source], count=30, settings=replace(wide, may_copy=False))[0]}
    assert source.question not in forbidden and allowed - forbidden <= {source.question}


def test_words_that_only_the_source_has_are_copied_with_their_capitals() -> None:
    ours = model()
    with torch.no_grad():  # the gate opens to the paragraph, whose words are all unknown but the stop
        ours.decoder.copy.gate.weight.zero_()
        ours.decoder.copy.gate.bias.copy_(torch.tensor([-3.0, -9.0, 3.0]))
    source = GenerationSource("What is Zzq?", "Xyzzy BLORB-Qux", "BLORB", 6)
    (found,) = ours.generate([source], count=5)
    copied = {word for one in found for word in one.text.replace("-", " ").split()}
    assert {"Xyzzy", "BLORB", "Qux"} & copied


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, "expected a question with words"),
        ({"paragraph": "\n"}, "expected a paragraph with words"),
        ({"answer_text": "nothing"}, "expected the answer 'nothing' at character"),
        ({"answer_text": " "}, "expected the answer ' ' at character"),
        ({"answer_start": -3}, "at character -3"),
        ({"answer_start": 100_000}, "at character 100000"),
    ],
)
def test_bad_sources(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"source: .*{message}"):
        model().generate([*sources(2), replace(sources(1)[0], **change)])


def test_bad_count_and_no_sources() -> None:
    assert model().generate([], count=3) == []
    with pytest.raises(ValueError, match="argument 'count': expected at least 1, got 0"):
        model().generate(sources(1), count=0)


def test_training_mode_is_given_back() -> None:
    ours = model().train()
    first = ours.generate(sources(2))
    assert ours.training and first == ours.eval().generate(sources(2))


def test_long_texts_are_cut() -> None:
    ours = model(max_question_words=5, max_paragraph_words=12)
    found = ours.generate(sources(4), settings=GenerationSettings(extra_words=0))
    assert all(len(lower_words(one.text)) <= 5 for candidates in found for one in candidates)
    assert len(pairs()[-1].context.split()) > 100
