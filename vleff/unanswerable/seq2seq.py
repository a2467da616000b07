"""Seq2SeqGenerator: T5, BART and other models of transformers as generators of questions."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from vleff.training.checkpoints import reading, replace_file
from vleff.training.evaluating import evaluating
from vleff.unanswerable.beam_search import beam_search
from vleff.unanswerable.decoding import DenseWords, Rules
from vleff.unanswerable.generation import GenerationSettings, checked_count, different, in_batches
from vleff.unanswerable.sampling import sample
from vleff.unanswerable.source_words import cut_paragraph
from vleff.unanswerable.sources import Candidate, GenerationSource
from vleff.unanswerable.writing import source_seed

DESCRIPTION = "seq2seq_generator.json"
_FORMAT = 1
_NO_LOSS = -100


class Seq2SeqGenerator:
    """A model of transformers with encoder and decoder, that reads question, answer and paragraph as one text.

    It searches as a PairToSequence does, with the same settings, whose words are the model's tokens here.
    `vleff.accelerate(generator.model)` makes what vleff supports of it faster.

    Args:
        model: T5, BART or another model for conditional generation.
        tokenizer: of the model.
        settings: how questions are searched; not saved.
        max_paragraph_words: a longer paragraph is cut around the answer.
        max_tokens: of what the model reads; what is longer is cut at its end.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        settings: GenerationSettings | None = None,
        max_paragraph_words: int = 300,
        max_tokens: int = 512,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.settings = settings or GenerationSettings()
        self.max_paragraph_words, self.max_tokens = max_paragraph_words, max_tokens
        config: Any = model.config
        self._start = [config.decoder_start_token_id]
        forced = getattr(model.generation_config, "forced_bos_token_id", None)
        if forced is not None:
            self._start.append(forced)
        self._end = config.eos_token_id

    def generate(
        self, sources: Sequence[GenerationSource], *, count: int = 1, settings: GenerationSettings | None = None
    ) -> list[list[Candidate]]:
        """Writes questions; see `PairToSequence.generate`."""
        settings = settings or self.settings
        checked_count(count)
        read = [(source, self.text_of(source)) for source in sources]

        def length(item: tuple[GenerationSource, str]) -> int:
            return len(item[1])

        with evaluating(self.model):
            return in_batches(read, settings.batch, length, lambda some: self._write(some, count, settings))

    def text_of(self, source: GenerationSource) -> str:
        """What the model reads.

        Raises:
            ValueError: the question is empty, or the answer is not at its place.
        """
        if not source.question.strip():
            raise ValueError(f"source: expected a question with words, got {source.question!r}")
        paragraph = cut_paragraph(source, self.max_paragraph_words)
        return f"question: {source.question} answer: {source.answer_text} context: {paragraph}"

    def collate(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """A batch to learn from, on the CPU: input_ids, attention_mask and labels, of what is read and written."""
        inputs = self._tokenize([text for text, _ in pairs], self.max_tokens)
        targets = self._tokenize([text for _, text in pairs], self.max_tokens)
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, _NO_LOSS)
        return {**inputs, "labels": labels}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model, its tokenizer and how long paragraphs may be."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        names = ("max_paragraph_words", "max_tokens")
        description = {"format": _FORMAT, **{name: getattr(self, name) for name in names}}
        replace_file(folder / DESCRIPTION, lambda part: part.write_text(json.dumps(description, indent=1) + "\n"))

    @classmethod
    def from_pretrained(cls, folder: str | Path, settings: GenerationSettings | None = None) -> "Seq2SeqGenerator":
        """The generator that `save_pretrained` saved, its model in eval mode.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: it is damaged, or of another version of vleff.
        """
        folder = Path(folder)
        if not (folder / DESCRIPTION).exists():
            raise FileNotFoundError(f"{folder} holds no Seq2SeqGenerator: {DESCRIPTION} is not there")
        with reading(folder):
            description = json.loads((folder / DESCRIPTION).read_text())
            if description.pop("format", None) != _FORMAT:
                raise ValueError(f"{folder / DESCRIPTION}: expected format {_FORMAT}")
            model = AutoModelForSeq2SeqLM.from_pretrained(folder)
            return cls(model, AutoTokenizer.from_pretrained(folder), settings, **description)

    def _tokenize(self, texts: Sequence[str], most: int) -> dict[str, Tensor]:
        encoded = self.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _write(
        self, read: Sequence[tuple[GenerationSource, str]], count: int, settings: GenerationSettings
    ) -> list[list[Candidate]]:
        sources = [source for source, _ in read]
        encode = self.tokenizer.encode
        questions = [encode(source.question, add_special_tokens=False) for source in sources]
        longest = [settings.longest(len(question)) for question in questions]
        never = {*self._start, *self.tokenizer.all_special_ids} - {self._end}  # of BART the end is the start as well
        copied = None if settings.may_copy else questions
        rules = Rules(copied, longest, settings.no_repeat, self._end, sorted(never))
        batch = self._tokenize([text for _, text in read], self.max_tokens)
        steps = _ModelSteps(self.model, {name: x.to(self.model.device) for name, x in batch.items()}, self._start)
        if settings.sample:
            seeds = [source_seed(settings.seed, source) for source in sources]
            found = sample(steps, rules, settings, count, seeds)
        else:
            found = beam_search(steps, rules, settings, count)
        results = []
        for hypotheses in found:
            texts = self.tokenizer.batch_decode([list(one.words) for one in hypotheses], skip_special_tokens=True)
            scored = zip(texts, hypotheses, strict=True)
            results.append(different([Candidate(text.strip(), one.score) for text, one in scored], count))
        return results


class _ModelSteps:
    """The steps of a model of transformers that has read a batch of sources; `Steps` says what they do."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor], start: Sequence[int]) -> None:
        self._model: Any = model
        self._mask = inputs["attention_mask"]
        self._start = torch.tensor([start])
        self._read: Tensor = self._model.get_encoder()(**inputs).last_hidden_state
        # releases of transformers differ in what they call it
        parameters = inspect.signature(type(model).forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._cache: Any = None

    def first(self, per_source: Tensor) -> DenseWords:
        sources = _sources_of_rows(per_source)
        start = self._start.expand(len(sources), -1)
        return self._step(start, self._read[sources], sources)

    def next(self, parents: Tensor, words: Tensor, per_source: Tensor) -> DenseWords:
        sources = _sources_of_rows(per_source)
        self._cache.batch_select_indices(parents)
        # the cache has what the decoder makes of the sources: only the shape of what they read counts from now on
        return self._step(words[:, None], self._read[:1].expand(len(sources), -1, -1), sources)

    def _step(self, words: Tensor, read: Tensor, sources: Tensor) -> DenseWords:
        outputs = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=read),
            attention_mask=self._mask[sources],
            decoder_input_ids=words.to(read.device),
            use_cache=True,
            **{self._cache_name: self._cache},
        )
        self._cache = outputs[self._cache_name]
        return DenseWords(outputs.logits[:, -1].float().log_softmax(1).cpu())


def _sources_of_rows(per_source: Tensor) -> Tensor:
    return torch.arange(len(per_source)).repeat_interleave(per_source)
