"""Asks a reading-comprehension model whether paragraphs answer questions."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedModel

import vleff
from vleff.data.span_features import SpanExample
from vleff.training.span_training import read_questions


class AnswerabilityReader:
    """A reader of transformers that may find that a paragraph does not answer a question.

    Its first token has to stand for "no answer", as in BERT, RoBERTa, DistilBERT, MPNet and others that were trained
    on SQuAD 2.0.

    Args:
        model: with `start_logits` and `end_logits`, best accelerated.
        tokenizer: a fast one.
        batch: windows at a time.
        max_length, stride: of the windows that paragraphs are cut into.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, batch: int = 32, max_length: int = 384, stride: int = 128
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch, self.max_length, self.stride = batch, max_length, stride

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: int) -> "AnswerabilityReader":
        """Loads a checkpoint, moves it to the GPU if there is one, and accelerates what vleff supports.

        Args:
            name: of a folder, or on the Hugging Face hub.
            options: `batch`, `max_length`, `stride`.

        Raises:
            OSError: there is no such checkpoint.
            ValueError: it is none of a reader.
        """
        model: Any
        model, info = AutoModelForQuestionAnswering.from_pretrained(name, output_loading_info=True)
        if info["missing_keys"]:  # transformers would draw them
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise ValueError(f"reader: expected a checkpoint for question answering, but {name} lacks {missing}")
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        with suppress(TypeError):  # a family without kernels runs as it is
            vleff.accelerate(model)
        return cls(model, AutoTokenizer.from_pretrained(name), **options)

    def null_margins(self, questions: Sequence[tuple[str, str]]) -> list[float]:
        """By how much "no answer" beats the best answer: above 0, the reader finds the question unanswerable.

        Args:
            questions: questions with their paragraphs.

        Returns:
            differences of logit sums, one a question.

        Raises:
            TypeError: the tokenizer is not a fast one.
            ValueError: a question leaves no room for its paragraph in a window.
        """
        if not questions:
            return []
        examples = [SpanExample(question, question, paragraph, ()) for question, paragraph in questions]
        sizes = {"batch": self.batch, "max_length": self.max_length, "stride": self.stride}
        return read_questions(self.model, self.tokenizer, examples, quiet=True, **sizes).null_margins()
