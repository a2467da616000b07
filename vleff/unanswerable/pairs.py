"""Pairs of an answerable and an unanswerable question about the same span of a paragraph."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from vleff.data.splits import split_paragraphs
from vleff.data.squad import Answer, Paragraph, Question
from vleff.unanswerable.words import lower_words


@dataclass(frozen=True)
class QuestionPair:
    """Two questions about one paragraph.

    Attributes:
        id: of the answerable question.
        context: the paragraph.
        answer: the answer of one question, the plausible answer of the other.
        answerable, unanswerable: the questions.
        title: of the article; empty if unknown.
        unanswerable_id: of the other question.
    """

    id: str
    context: str
    answer: Answer
    answerable: str
    unanswerable: str
    title: str = ""
    unanswerable_id: str = ""


def build_pairs(paragraphs: Iterable[Paragraph]) -> list[QuestionPair]:
    """Pairs up the questions of each paragraph: the answer of one is the plausible answer of the other.

    A question is in one pair at most. Where a span belongs to several questions, those that share most words pair
    up first (reconstruction: the paper says that the span is the pivot and that pairs are one to one).
    """
    return [pair for paragraph in paragraphs for pair in _pairs_of(paragraph)]


def _pairs_of(paragraph: Paragraph) -> list[QuestionPair]:
    candidates = []
    for a, answerable in enumerate(paragraph.questions):
        if answerable.is_impossible:
            continue
        spans = {(answer.start, answer.text): answer for answer in answerable.answers}
        for u, unanswerable in enumerate(paragraph.questions):
            shared = [spans.get((answer.start, answer.text)) for answer in unanswerable.plausible_answers]
            answer = next((answer for answer in shared if answer is not None), None)
            if unanswerable.is_impossible and answer is not None:
                candidates.append((-_similarity(answerable, unanswerable), a, u, answer))
    taken: set[int] = set()
    pairs = []
    for _, a, u, answer in sorted(candidates, key=lambda candidate: candidate[:3]):
        if a in taken or u in taken:
            continue
        taken |= {a, u}
        first, second = paragraph.questions[a], paragraph.questions[u]
        pair = QuestionPair(first.id, paragraph.context, answer, first.text, second.text, paragraph.title, second.id)
        pairs.append((a, pair))
    return [pair for _, pair in sorted(pairs, key=lambda numbered: numbered[0])]


def _similarity(first: Question, second: Question) -> float:
    return SequenceMatcher(None, lower_words(first.text), lower_words(second.text), autojunk=False).ratio()


def split_pairs(
    paragraphs: Sequence[Paragraph], development: float = 0.1, test: float = 0.1, seed: int = 0
) -> dict[str, list[QuestionPair]]:
    """Pairs for training, development and test, from articles that none of the others has.

    Args:
        paragraphs: of SQuAD 2.0.
        development, test: their shares of the questions, about.
        seed: of the choice of articles.

    Returns:
        pairs by "train", "development" and "test".

    Raises:
        ValueError: a share is not between 0 and 1, or there are too few articles.
    """
    rest, last = split_paragraphs(paragraphs, test, seed)
    first, middle = split_paragraphs(rest, development / (1 - test), seed)
    return {name: build_pairs(part) for name, part in (("train", first), ("development", middle), ("test", last))}


def check_disjoint(first: Iterable[QuestionPair], second: Iterable[QuestionPair], names: tuple[str, str]) -> None:
    """Checks that pairs to learn from and pairs to test with share no article.

    Where a pair has no title, paragraphs are compared.

    Raises:
        ValueError: they share one; the message has `names` and the article.
    """
    articles = [{pair.title or pair.context for pair in pairs} for pairs in (first, second)]
    shared = sorted(articles[0] & articles[1])
    if shared:
        raise ValueError(
            f"{names[0]} and {names[1]} share {len(shared)} articles, the first {shared[0][:60]!r}: split by article"
        )


@dataclass(frozen=True)
class PairStatistics:
    """What pairs look like.

    Attributes:
        pairs, articles, paragraphs: numbers.
        question_words, paragraph_words, target_words: means; targets are the unanswerable questions.
        copied: share of target words that are in the question or the paragraph.
        one_word: share of pairs whose questions differ by one word put in, taken out or exchanged.
    """

    pairs: int
    articles: int
    paragraphs: int
    question_words: float
    paragraph_words: float
    target_words: float
    copied: float
    one_word: float

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs, {self.paragraphs} paragraphs, {self.articles} articles; words: question "
            f"{self.question_words:.1f}, paragraph {self.paragraph_words:.1f}, target {self.target_words:.1f}; "
            f"target words copied {self.copied:.1%}; pairs that differ by one word {self.one_word:.1%}"
        )


def pair_statistics(pairs: Sequence[QuestionPair]) -> PairStatistics:
    """Statistics of at least one pair.

    Raises:
        ValueError: there are none.
    """
    if not pairs:
        raise ValueError("argument 'pairs': expected at least one, got none")
    contexts = {pair.context: lower_words(pair.context) for pair in pairs}
    words = [(lower_words(pair.answerable), contexts[pair.context], lower_words(pair.unanswerable)) for pair in pairs]
    targets = sum(len(target) for _, _, target in words)
    copied = sum(word in {*question, *context} for question, context, target in words for word in target)
    return PairStatistics(
        len(pairs),
        len({pair.title or pair.context for pair in pairs}),
        len(contexts),
        sum(len(question) for question, _, _ in words) / len(pairs),
        sum(len(context) for context in contexts.values()) / len(contexts),
        targets / len(pairs),
        copied / targets,
        sum(edit_distance(question, target) == 1 for question, _, target in words) / len(pairs),
    )


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """The fewest words to put in, take out or exchange."""
    row = list(range(len(second) + 1))
    for i, word in enumerate(first, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    return row[-1]
