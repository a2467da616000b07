"""What generators of questions read and write."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationSource:
    """An answerable question, from which an unanswerable one is made.

    Attributes:
        question: the answerable question.
        paragraph: the text that answers it.
        answer_text: its answer.
        answer_start: the character of `paragraph` at which the answer begins.
    """

    question: str
    paragraph: str
    answer_text: str
    answer_start: int


@dataclass(frozen=True)
class Candidate:
    """A question that a generator wrote.

    Attributes:
        text: the question.
        score: larger for what the generator finds likelier; comparable among candidates of the same generator.
    """

    text: str
    score: float
