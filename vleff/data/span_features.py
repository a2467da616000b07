"""Questions over paragraphs as a reader sees them: windows of tokens, with the gold span in them."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vleff.data.squad import Answer, Paragraph


@dataclass(frozen=True)
class SpanExample:
    """A question about a paragraph.

    Attributes:
        id, question, context: texts.
        answers: the accepted answers; empty if the paragraph does not answer the question.
        title: of the article.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    title: str = ""


@dataclass(frozen=True)
class Window:
    """What a reader sees of one question: the question and a part of its paragraph.

    Attributes:
        example: the question's number.
        input_ids: the tokens.
        token_type_ids: 0 for the question, 1 for the paragraph; None for tokenizers without.
        offsets: int64 [tokens, 2], where each token of the paragraph begins and ends in it; -1 for the others.
        start, end: the tokens of the gold answer; 0, the first token, where it is not in the window.
    """

    example: int
    input_ids: list[int]
    token_type_ids: list[int] | None
    offsets: Tensor
    start: int = 0
    end: int = 0


def span_examples(paragraphs: Iterable[Paragraph]) -> list[SpanExample]:
    """All questions of all paragraphs.

    An answer that is not at its place in the paragraph counts where answers are scored, but nothing can be learnt
    from it; warns once, with the number of such questions and the first one.
    """
    examples = [
        SpanExample(question.id, question.text, paragraph.context, question.answers, paragraph.title)
        for paragraph in paragraphs
        for question in paragraph.questions
    ]
    misplaced = [
        example.id
        for example in examples
        if not all(_is_in_place(answer, example.context) for answer in example.answers)
    ]
    if misplaced:
        warnings.warn(
            f"{len(misplaced)} questions, the first {misplaced[0]!r}, have answers that are not at their place in the "
            "paragraph; nothing is learnt from these answers",
            stacklevel=2,
        )
    return examples


def _is_in_place(answer: Answer, context: str) -> bool:
    return context[answer.start : answer.start + len(answer.text)] == answer.text


def make_windows(
    tokenizer: Any, examples: Sequence[SpanExample], max_length: int = 384, stride: int = 128
) -> list[Window]:
    """Cuts paragraphs that are too long into windows that overlap.

    Args:
        tokenizer: a fast tokenizer of transformers.
        max_length: tokens of a window, the question included.
        stride: tokens that neighbouring windows share.

    Raises:
        TypeError: the tokenizer is not a fast one, which alone knows where its tokens stand.
        ValueError: a question leaves no room for its paragraph.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"argument 'tokenizer': expected a fast tokenizer, got {type(tokenizer).__name__}")
    questions, longest = [example.question.strip() for example in examples], max_length - stride - 9
    for number, ids in enumerate(tokenizer(questions)["input_ids"]):
        if len(ids) > longest:
            raise ValueError(
                f"question {examples[number].id!r}: expected at most {longest} tokens, so that windows of {max_length} "
                f"that share {stride} have room for the paragraph, got {len(ids)}"
            )
    encoded = tokenizer(
        questions,
        [example.context for example in examples],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = []
    for row, number in enumerate(encoded["overflow_to_sample_mapping"]):
        of_context = torch.tensor([part == 1 for part in encoded.sequence_ids(row)])
        offsets = torch.tensor(encoded["offset_mapping"][row]).masked_fill(~of_context[:, None], -1)
        types = encoded["token_type_ids"][row] if "token_type_ids" in encoded else None
        start, end = _gold(offsets, examples[number])
        windows.append(Window(number, encoded["input_ids"][row], types, offsets, start, end))
    return windows


def _gold(offsets: Tensor, example: SpanExample) -> tuple[int, int]:
    """The tokens of the first answer that is at its place; 0, 0 if they are not all there."""
    answers = (answer for answer in example.answers if answer.text and _is_in_place(answer, example.context))
    answer = next(answers, None)
    if answer is None:
        return 0, 0
    first, last = answer.start, answer.start + len(answer.text)
    begins = (offsets[:, 0] <= first) & (offsets[:, 1] > first)
    ends = (offsets[:, 0] < last) & (offsets[:, 1] >= last)
    if not bool(begins.any() and ends.any()):
        return 0, 0
    return int(begins.nonzero()[0]), int(ends.nonzero()[-1])


class WindowCollator:
    """Makes a batch of windows, padded to its longest.

    Args:
        tokenizer: gives the padding.
        with_gold: whether the batch has `start_positions` and `end_positions`.
    """

    def __init__(self, tokenizer: Any, with_gold: bool = True) -> None:
        self.padding = tokenizer.pad_token_id
        self.with_gold = with_gold

    def __call__(self, windows: Sequence[Window]) -> dict[str, Tensor]:
        """int64 tensors [windows, longest], by the names of transformers' arguments."""
        length = max(len(window.input_ids) for window in windows)

        def padded(rows: Iterable[Sequence[int]], value: int) -> Tensor:
            return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])

        batch = {
            "input_ids": padded((window.input_ids for window in windows), self.padding),
            "attention_mask": padded(([1] * len(window.input_ids) for window in windows), 0),
        }
        if windows[0].token_type_ids is not None:
            batch["token_type_ids"] = padded((window.token_type_ids or [] for window in windows), 0)
        if self.with_gold:
            batch["start_positions"] = torch.tensor([window.start for window in windows])
            batch["end_positions"] = torch.tensor([window.end for window in windows])
        return batch
