"""Windows of tokens over real paragraphs, and what becomes of their logits."""

import dataclasses

import pytest
import torch
from reading.excerpt import excerpt, make_tokenizer

from vleff.data.span_features import SpanExample, WindowCollator, make_windows, span_examples
from vleff.data.span_predictions import AnswerCollector, best_spans
from vleff.data.splits import sample, split_paragraphs
from vleff.data.squad import Answer, Paragraph, Question

TOKENIZER = make_tokenizer()


@pytest.mark.parametrize(("max_length", "stride"), [(384, 128), (96, 32)])
def test_gold_spans_are_the_answers(max_length: int, stride: int) -> None:
    examples = excerpt()
    windows = make_windows(TOKENIZER, examples, max_length, stride)
    assert all(len(window.input_ids) <= max_length for window in windows)
    assert {window.example for window in windows} == set(range(len(examples)))
    found = set()
    for window in windows:
        example = examples[window.example]
        inside = window.offsets[:, 0] >= 0
        assert inside.sum() > 10 and not inside[0]
        if window.start:
            text = example.context[int(window.offsets[window.start, 0]) : int(window.offsets[window.end, 1])]
            assert example.answers[0].text in text and len(text) <= len(example.answers[0].text) + 12
            found.add(window.example)
    assert len(found) > 0.95 * sum(bool(example.answers) for example in examples)


def test_windows_cover_the_whole_paragraph() -> None:
    example = max(excerpt(), key=lambda one: len(one.context))
    windows = make_windows(TOKENIZER, [example], 96, 32)
    assert len(windows) > 2
    covered = torch.zeros(len(example.context), dtype=torch.bool)
    for window in windows:
        for begin, end in window.offsets[window.offsets[:, 0] >= 0].tolist():
            covered[begin:end] = True
    assert all(covered[i] or example.context[i].isspace() for i in range(len(covered)))


def test_batches_are_padded_to_their_longest() -> None:
    windows = make_windows(TOKENIZER, excerpt(6), 128, 32)
    batch = WindowCollator(TOKENIZER)(windows)
    lengths = [len(window.input_ids) for window in windows]
    assert batch["input_ids"].shape == (len(windows), max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["input_ids"][batch["attention_mask"] == 0] == TOKENIZER.pad_token_id).all()
    assert batch["token_type_ids"].max() == 1 and batch["start_positions"].tolist() == [w.start for w in windows]
    without = [dataclasses.replace(window, token_type_ids=None) for window in windows]
    assert WindowCollator(TOKENIZER, with_gold=False)(without).keys() == {"input_ids", "attention_mask"}


def test_best_spans_are_those_of_a_search() -> None:
    windows = make_windows(TOKENIZER, excerpt(5), 96, 32)
    length = max(len(window.input_ids) for window in windows)
    starts, ends = torch.randn(2, len(windows), length)
    for window, start, end, (score, first, last) in zip(
        windows, starts, ends, best_spans(starts, ends, windows, 7), strict=True
    ):
        inside = [i for i, (begin, _) in enumerate(window.offsets.tolist()) if begin >= 0]
        options = [(float(start[i] + end[j]), i, j) for i in inside for j in inside if i <= j < i + 7]
        assert (first, last) == max(options)[1:] and score == pytest.approx(max(options)[0])


def test_gold_logits_give_gold_answers() -> None:
    examples = [example for example in excerpt() if example.answers]
    windows = make_windows(TOKENIZER, examples, 96, 32)
    collector = AnswerCollector(examples)
    for some in (windows[::2], windows[1::2]):
        length = max(len(window.input_ids) for window in some)
        starts, ends = torch.zeros(2, len(some), length)
        for row, window in enumerate(some):
            if window.start:
                starts[row, window.start] = ends[row, window.end] = 5.0
        collector.add(some, starts, ends)
    answers = collector.answers()
    right = sum(example.answers[0].text in answers[example.id] for example in examples)
    assert answers.keys() == {example.id for example in examples} and right > 0.95 * len(examples)


def test_no_answer_has_to_be_beaten() -> None:
    examples = excerpt(2)
    windows = make_windows(TOKENIZER, examples, 384, 128)
    starts = torch.zeros(len(windows), max(len(window.input_ids) for window in windows))
    starts[:, 0] = torch.tensor([3.0, -3.0])
    for threshold, empty in ((None, [False, False]), (0.0, [True, False]), (-9.0, [False, False])):
        collector = AnswerCollector(examples, threshold)
        collector.add(windows, starts, torch.zeros_like(starts))
        assert [not answer for answer in collector.answers().values()] == empty


def test_nothing_is_learnt_from_misplaced_answers() -> None:
    good, bad = Answer("tea", 0), Answer("tea", 1)
    unanswerable = Question("3", "?", (), is_impossible=True)
    questions = (Question("1", "?", (bad, good)), Question("2", "?", (bad,)), unanswerable)
    with pytest.warns(UserWarning, match="2 questions, the first '1', have answers that are not at their place"):
        examples = span_examples([Paragraph("", "tea or coffee", questions)])
    assert [(example.id, example.answers) for example in examples] == [("1", (bad, good)), ("2", (bad,)), ("3", ())]
    starts = [window.start for window in make_windows(TOKENIZER, examples, 64, 8)]
    assert starts[0] > 0 and starts[1:] == [0, 0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"question 'x': expected at most 23 tokens.* got"):
        make_windows(TOKENIZER, [SpanExample("x", "why " * 100, "because", ())], 64, 32)
    with pytest.raises(TypeError, match="expected a fast tokenizer, got dict"):
        make_windows({}, excerpt(1))


def test_splits_share_no_article_or_paragraph() -> None:
    def paragraphs(titles: int) -> list[Paragraph]:
        questions = (Question("q", "?", ()),)
        return [Paragraph(str(n % titles), f"text {n}", questions) for n in range(60)]

    for titles in (1, 12):
        train, test = split_paragraphs(paragraphs(titles), 0.25)
        assert len(train) + len(test) == 60 and 15 <= len(test) <= 20
        keys = [{p.title if titles > 1 else p.context for p in part} for part in (train, test)]
        assert not keys[0] & keys[1]
        assert split_paragraphs(paragraphs(titles)[::-1], 0.25)[1][::-1] == test or titles > 1
    assert split_paragraphs(paragraphs(12), 0.25, seed=1) != split_paragraphs(paragraphs(12), 0.25, seed=2)
    with pytest.raises(ValueError, match="expected two articles or paragraphs at least, got 1"):
        split_paragraphs(paragraphs(1)[:1], 0.5)
    with pytest.raises(ValueError, match="'share': expected between 0 and 1"):
        split_paragraphs(paragraphs(2), 1.0)
    assert sample(range(100), 5) == sample(range(100), 5) != sample(range(100), 5, seed=1)
    with pytest.raises(ValueError, match="expected at most 3, the items, got 4"):
        sample(range(3), 4)
