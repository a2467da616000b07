"""PairToSequence: writes an unanswerable question from an answerable one and its paragraph."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import ModelOutput

from vleff.nn.ragged import RaggedBatch
from vleff.training.checkpoints import reading
from vleff.unanswerable.batches import SourceCollator
from vleff.unanswerable.config import PairToSequenceConfig
from vleff.unanswerable.decoder import Decoder
from vleff.unanswerable.encoders import PairEncoder, TransformerEncoder, WordEmbedding
from vleff.unanswerable.generation import GenerationSettings, checked_count
from vleff.unanswerable.sources import Candidate, GenerationSource
from vleff.unanswerable.vocabulary import Vocabulary
from vleff.unanswerable.writing import write

TOKENIZER = "encoder_tokenizer"


@dataclass
class PairToSequenceOutput(ModelOutput):
    """What a PairToSequence returns.

    Attributes:
        loss: scalar, the mean of -log_probs, of words that can be written, and of the coverage loss by its weight.
        log_probs: float32 [targets], -inf for words that can neither be generated nor copied.
        coverage_loss: float32 [targets], if its weight is not 0.
    """

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    coverage_loss: Tensor | None = None


class PairToSequence(PreTrainedModel):
    """The pair-to-sequence model (arXiv 1906.06045, section 4.2).

    Two encoders read question and paragraph, which attend to each other; a decoder attends to both, and generates
    words or copies them. Everything runs on ragged batches: nothing is computed for padding, and what becomes of a
    sample does not depend on its batch mates, on the CPU not in a bit.

    Attributes:
        vocabulary: its words.
        tokenizer: of a transformer as encoder; else None.
        settings: how questions are searched; not saved.
        embedding, encoder, decoder: its parts.

    Args:
        config: fits the vocabulary; `build` makes it.
        vocabulary, tokenizer: None if they are set later, as `from_pretrained` does.
    """

    config_class = PairToSequenceConfig
    config: PairToSequenceConfig
    base_model_prefix = "pair_to_sequence"
    main_input_name = "words"
    _supports_sdpa = True

    def __init__(
        self, config: PairToSequenceConfig, vocabulary: Vocabulary | None = None, tokenizer: Any = None
    ) -> None:
        super().__init__(config)
        self.vocabulary, self.tokenizer = vocabulary, tokenizer
        self.settings = GenerationSettings()
        self.embedding = WordEmbedding(config)
        self.encoder = PairEncoder(config)
        self.decoder = Decoder(config)
        self.post_init()

    @classmethod
    def build(cls, vocabulary: Vocabulary, **config: Any) -> "PairToSequence":
        """A new model with the paper's encoders, bidirectional LSTMs.

        Args:
            vocabulary: its words.
            config: further attributes of `PairToSequenceConfig`.
        """
        return cls(PairToSequenceConfig(**_sizes(vocabulary), **config), vocabulary)

    @classmethod
    def from_encoder(
        cls, encoder: PreTrainedModel, tokenizer: Any, vocabulary: Vocabulary, **config: Any
    ) -> "PairToSequence":
        """A new model that begins with a pretrained encoder, whose weights are copied: BERT, MiniLM, ...

        Args:
            encoder: what AutoModel makes of its config; takes input_ids and attention_mask.
            tokenizer: the encoder's, a fast one.
            vocabulary: the decoder's words.
            config: further attributes of `PairToSequenceConfig`.

        Raises:
            TypeError: the tokenizer is not a fast one, or AutoModel makes another class of the encoder's config.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise TypeError(f"argument 'tokenizer': expected a fast tokenizer, got {type(tokenizer).__name__}")
        config = {"encoder": "transformer", "encoder_config": encoder.config.to_dict(), **_sizes(vocabulary), **config}
        model = cls(PairToSequenceConfig(**config), vocabulary, tokenizer)
        own = model.encoder.encoder
        assert isinstance(own, TransformerEncoder)
        if type(own.model) is not type(encoder):
            raise TypeError(
                f"argument 'encoder': expected the model that its config stands for, {type(own.model).__name__}, got "
                f"{type(encoder).__name__}"
            )
        own.model.load_state_dict(encoder.state_dict())
        return model

    def collator(self) -> SourceCollator:
        """What makes batches for this model.

        Raises:
            ValueError: the model has no vocabulary, or lacks its encoder's tokenizer.
        """
        if self.vocabulary is None:
            raise ValueError("the model has no vocabulary: set its attribute 'vocabulary'")
        if self.config.encoder == "transformer" and self.tokenizer is None:
            raise ValueError("the model has no tokenizer: set its attribute 'tokenizer'")
        return SourceCollator(self.vocabulary, self.tokenizer)

    def forward(self, **batch: Any) -> PairToSequenceOutput:
        """Log-probabilities of targets.

        Args:
            batch: what the collator makes of sources and targets.
        """
        read, written = self.embedding(batch)
        question, paragraph = self.encoder(read, batch)
        memory = self.decoder.remember(question, paragraph, batch)
        inputs = functional.embedding(batch["inputs"], written)
        inputs = functional.dropout(inputs, self.config.dropout, self.training)
        words = RaggedBatch(inputs, batch["target_offsets"], batch["max_target"])
        outputs = self.decoder.decode(words, *self.decoder.start(question, paragraph, batch), memory)
        log_probs, coverage_loss = self.decoder.copy(outputs, memory.copied, batch["targets"])
        can_be_written = log_probs > -torch.inf
        loss = -log_probs.masked_fill(~can_be_written, 0).sum() / can_be_written.sum().clamp(min=1)
        if coverage_loss is not None:
            loss = loss + self.config.coverage * coverage_loss.mean()
        return PairToSequenceOutput(loss=loss, log_probs=log_probs, coverage_loss=coverage_loss)

    def generate(
        self, sources: Sequence[GenerationSource], *, count: int = 1, settings: GenerationSettings | None = None
    ) -> list[list[Candidate]]:
        """Writes questions.

        Args:
            sources: to write from.
            count: questions for each, at most.
            settings: of the search; the model's own if None.

        Returns:
            for each source different questions, the best first: with the capitals and spaces of the source, and
            scores that are log-probabilities divided by lengths.

        Raises:
            ValueError: a source is none, or `count` is below 1.
        """
        return write(self, sources, checked_count(count), settings or self.settings)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **options: Any) -> None:
        """As of transformers: config and weights, safetensors; and the vocabulary, and the encoder's tokenizer."""
        super().save_pretrained(save_directory, *args, **options)
        if self.vocabulary is not None:
            self.vocabulary.save(Path(save_directory))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(Path(save_directory) / TOKENIZER)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> "PairToSequence":
        """The model that `save_pretrained` saved in a folder, in eval mode.

        Raises:
            FileNotFoundError: the folder has no vocabulary.
            OSError: it holds no model.
            ValueError: it is damaged, or of another version of vleff.
        """
        folder = Path(pretrained_model_name_or_path)
        with reading(folder):
            model = super().from_pretrained(folder, *args, **options)
            model.vocabulary = Vocabulary.load(folder)
            if (folder / TOKENIZER).is_dir():
                model.tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """Parts make their own first weights."""


def _sizes(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "vocabulary_size": len(vocabulary),
        "generated_words": vocabulary.generated,
        "character_numbers": vocabulary.character_numbers,
    }
