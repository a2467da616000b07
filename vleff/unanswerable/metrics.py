"""How generated questions compare with those that people wrote, and with what they were made from.

All metrics see words in lower case (`lower_words`).
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from vleff.unanswerable.words import lower_words

Words = Sequence[str]


def bleu(outputs: Sequence[str], references: Sequence[str], order: int = 4) -> float:
    """Corpus BLEU by sacreBLEU, 0 to 100.

    Args:
        outputs, references: one of each a source.
        order: longest n-grams.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise _missing("BLEU", "sacrebleu") from error
    metric = BLEU(tokenize="none", max_ngram_order=order, force=True)
    hypotheses, wanted = ([" ".join(lower_words(text)) for text in texts] for texts in (outputs, references))
    return float(metric.corpus_score(hypotheses, [wanted]).score)


def rouge_l(outputs: Sequence[str], references: Sequence[str]) -> float:
    """The mean F-measure of ROUGE-L by rouge-score, 0 to 100.

    Raises:
        ImportError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("ROUGE", "rouge-score") from error
    scorer = RougeScorer(["rougeL"], tokenizer=_Tokenizer())
    pairs = zip(outputs, references, strict=True)
    scores = [scorer.score(reference, output)["rougeL"].fmeasure for output, reference in pairs]
    return 100 * math.fsum(scores) / len(scores)


class _Tokenizer:
    """rouge-score's own drops marks and what is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return lower_words(text)


def gleu(outputs: Sequence[str], references: Sequence[str], sources: Sequence[str], order: int = 4) -> float:
    """Source-aware GLEU of a corpus with one reference, 0 to 100.

    Napoles, Sakaguchi, Post and Tetreault, "GLEU Without Tuning" (arXiv 1605.02592), for one reference: as BLEU, but
    from the n-grams of an output that are in the reference those are subtracted that it shares with the source and
    that the reference does not have (as often):

        p_n = sum max(0, sum over n-grams of C of min(C, R) - max(0, min(C, S) - min(C, R))) / sum |C|

    where C, S and R are counts in output, source and reference, and the outer sums are over the corpus. Keeping the
    source's words where the reference changes them thus costs more than other errors.

    Args:
        outputs, references, sources: one of each a source.
        order: longest n-grams.
    """
    matched, total = [0] * order, [0] * order
    output_words = reference_words = 0
    for texts in zip(outputs, references, sources, strict=True):
        output, reference, source = (lower_words(text) for text in texts)
        output_words += len(output)
        reference_words += len(reference)
        for n in range(1, order + 1):
            counts, in_reference, in_source = (_n_grams(words, n) for words in (output, reference, source))
            right = counts & in_reference
            kept = (counts & in_source) - right  # a Counter's difference has no counts below 0
            matched[n - 1] += max(0, right.total() - kept.total())
            total[n - 1] += counts.total()
    if not all(matched) or not output_words:
        return 0.0
    precision = math.fsum(math.log(one / all_of) for one, all_of in zip(matched, total, strict=True)) / order
    brevity = min(0.0, 1 - reference_words / output_words)
    return 100 * math.exp(precision + brevity)


def repetition_rate(outputs: Sequence[str]) -> float:
    """The share of questions that say something twice, 0 to 100: the same word twice in a row, or the same three words
    at two places. The known fault of neural generators; our definition.
    """
    return 100 * sum(_repeats(lower_words(text)) for text in outputs) / len(outputs)


def copy_rate(outputs: Sequence[str], sources: Sequence[str]) -> float:
    """The share of questions that have the words of their sources, 0 to 100."""
    pairs = zip(outputs, sources, strict=True)
    return 100 * sum(lower_words(output) == lower_words(source) for output, source in pairs) / len(outputs)


def _repeats(words: Words) -> bool:
    twice = any(first == second for first, second in pairwise(words))
    return twice or any(count > 1 for count in _n_grams(words, 3).values())


def _n_grams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _missing(metric: str, package: str) -> ImportError:
    return ImportError(f"{metric} needs {package}: pip install {package}, or vleff[evaluation]")
