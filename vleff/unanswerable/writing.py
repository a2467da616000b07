"""Lets a pair-to-sequence model write: from sources to texts."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from vleff.nn.copy_attention import CopyAttention
from vleff.nn.ragged import RaggedBatch
from vleff.training.evaluating import evaluating
from vleff.unanswerable.batches import Batch
from vleff.unanswerable.beam_search import beam_search
from vleff.unanswerable.decoder import DecoderMemory
from vleff.unanswerable.decoding import Rules
from vleff.unanswerable.generation import GenerationSettings, different, in_batches
from vleff.unanswerable.sampling import sample
from vleff.unanswerable.source_words import SourceWords, source_words
from vleff.unanswerable.sources import Candidate, GenerationSource
from vleff.unanswerable.vocabulary import START_NUMBER
from vleff.unanswerable.words import Spelling

if TYPE_CHECKING:
    from vleff.unanswerable.model import PairToSequence


def write(
    model: "PairToSequence", sources: Sequence[GenerationSource], count: int, settings: GenerationSettings
) -> list[list[Candidate]]:
    """Questions for sources; see `PairToSequence.generate`."""
    limits = model.config.max_question_words, model.config.max_paragraph_words
    read = [(source, source_words(source, *limits)) for source in sources]

    def length(item: tuple[GenerationSource, SourceWords]) -> int:
        return len(item[1].question)

    with evaluating(model):
        return in_batches(read, settings.batch, length, lambda some: _write_batch(model, some, count, settings))


def _write_batch(
    model: "PairToSequence",
    read: Sequence[tuple[GenerationSource, SourceWords]],
    count: int,
    settings: GenerationSettings,
) -> list[list[Candidate]]:
    collator = model.collator()
    batch = collator([(words, None) for _, words in read])
    steps = ModelSteps(model, batch)
    lengths = batch["question_offsets"].diff().tolist()
    questions = [ids.tolist() for ids in batch["question_ids"].split(lengths)]
    rules = Rules(None if settings.may_copy else questions, [settings.longest(n) for n in lengths], settings.no_repeat)
    if settings.sample:
        seeds = [source_seed(settings.seed, source) for source, _ in read]
        found = sample(steps, rules, settings, count, seeds)
    else:
        found = beam_search(steps, rules, settings, count)
    results = []
    for (source, words), hypotheses in zip(read, found, strict=True):
        names = [*collator.vocabulary.words[: collator.vocabulary.generated], *collator.extension(words)]
        spelling = Spelling(source.question, source.paragraph)
        texts = [Candidate(spelling.join(names[word] for word in one.words), one.score) for one in hypotheses]
        results.append(different(texts, count))
    return results


class ModelSteps:
    """The steps of a PairToSequence that has read a batch of sources; `Steps` says what they do.

    The search is on the CPU, the model where it is.

    Args:
        model: in eval mode; the caller disables gradients.
        batch: as its collator makes it, without targets.
    """

    def __init__(self, model: "PairToSequence", batch: Batch) -> None:
        self._device = model.device
        batch = {name: x.to(self._device) if isinstance(x, Tensor) else x for name, x in batch.items()}
        read, written = model.embedding(batch)
        question, paragraph = model.encoder(read, batch)
        self._decoder = model.decoder
        self._memory = self._decoder.remember(question, paragraph, batch)
        self._hidden, self._cell = self._decoder.start(question, paragraph, batch)
        self._written = 0
        self._words = model.embedding.words.weight
        self._generated = model.config.generated_words
        self._extended = functional.embedding(batch["extended_words"], written)  # [words of all extensions, width]
        self._extensions = batch["extended_offsets"][:-1] - self._generated

    def first(self, per_source: Tensor) -> "ModelWords":
        """As of `Steps`."""
        sources = torch.arange(len(per_source)).repeat_interleave(per_source)
        return self._step(sources, self._words[START_NUMBER].expand(len(sources), -1), per_source)

    def next(self, parents: Tensor, words: Tensor, per_source: Tensor) -> "ModelWords":
        """As of `Steps`."""
        words = words.to(self._device)
        vectors = functional.embedding(words.clamp(max=self._generated - 1), self._words)
        if len(self._extended):
            sources = torch.arange(len(per_source)).repeat_interleave(per_source).to(self._device)
            is_extended = words >= self._generated
            places = torch.where(is_extended, words + self._extensions[sources], 0)
            vectors = torch.where(is_extended[:, None], functional.embedding(places, self._extended), vectors)
        return self._step(parents, vectors, per_source)

    def _step(self, parents: Tensor, vectors: Tensor, per_source: Tensor) -> "ModelWords":
        offsets = functional.pad(per_source.cumsum(0, dtype=torch.int32), (1, 0)).to(self._device)
        parents = parents.to(self._device)
        outputs, self._hidden, self._cell = self._decoder.step(
            vectors,
            self._hidden.index_select(0, parents),
            self._cell.index_select(0, parents),
            RaggedBatch(vectors, offsets, int(per_source.max())),
            self._memory,
            self._written,
        )
        self._written += 1
        return ModelWords(self._decoder.copy, outputs, self._memory)


class ModelWords:
    """`NextWords` of the outputs of a decoder."""

    def __init__(self, copy: CopyAttention, outputs: RaggedBatch, memory: DecoderMemory) -> None:
        self._copy, self._outputs, self._memory = copy, outputs, memory

    def likeliest(self, count: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """As of `NextWords`."""
        memory = self._memory
        found = self._copy.likeliest(self._outputs, memory.copied, memory.extended_size, count, end)
        log_probs, words, of_end = (part.cpu() for part in found)
        return log_probs, words, of_end

    def all(self) -> Tensor:
        """As of `NextWords`."""
        return self._copy.rows(self._outputs, self._memory.copied, self._memory.extended_size).cpu()


def source_seed(seed: int, source: GenerationSource) -> int:
    """Of the draws of a source: depends on what is in it, and not on its place."""
    text = repr((seed, source.question, source.paragraph, source.answer_text, source.answer_start))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
