"""PairToSequenceConfig: the sizes of a pair-to-sequence model."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

ENCODERS = ("lstm", "transformer")


class PairToSequenceConfig(PreTrainedConfig):
    """The sizes of a pair-to-sequence model (arXiv 1906.06045).

    Values are reconstructions where the comment does not say otherwise: the paper gives the parts, not their sizes.

    Attributes:
        encoder: "lstm" for the paper's bidirectional LSTMs, or "transformer" for any encoder of transformers.
        encoder_config: of that encoder; None for "lstm".
        vocabulary_size, generated_words, character_numbers: of the vocabulary, as `Vocabulary` counts them.
        width: of embeddings, memories and the decoder; even.
        heads: of the attention between question and paragraph, and from the decoder to both.
        dropout: in training, of embeddings, memories and the decoder's outputs.
        coverage: weight of the coverage loss, which punishes looking at the same words twice; 0 for none.
        places: how many words of a question, and of what is written, are known by their places too; 0 for none. What
            is written mostly follows its question word by word, and few pairs teach that by places only.
        max_question_words, max_paragraph_words: longer texts are cut, a paragraph around the answer.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "vleff_pair_to_sequence"
    sub_configs: ClassVar[Any] = {"encoder_config": AutoConfig}

    encoder: str = "lstm"
    encoder_config: Any = None
    vocabulary_size: int = 30_003
    generated_words: int = 30_003
    character_numbers: int = 100
    width: int = 300
    heads: int = 4
    dropout: float = 0.3
    coverage: float = 0.0
    places: int = 64
    max_question_words: int = 60
    max_paragraph_words: int = 400

    def __post_init__(self, **kwargs: Any) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"argument 'encoder': expected one of {', '.join(ENCODERS)}, got {self.encoder!r}")
        if (self.encoder == "transformer") != (self.encoder_config is not None):
            expected = "a config" if self.encoder == "transformer" else "None"
            raise ValueError(
                f"argument 'encoder_config': expected {expected} for {self.encoder!r}, got {self.encoder_config!r}"
            )
        if isinstance(self.encoder_config, dict):
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        for name, least in (
            ("vocabulary_size", 4),
            ("generated_words", 3),
            ("character_numbers", 2),
            ("width", 2),
            ("heads", 1),
            ("places", 0),
            ("max_question_words", 1),
            ("max_paragraph_words", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"argument '{name}': expected at least {least}, got {getattr(self, name)}")
        if self.generated_words > self.vocabulary_size:
            raise ValueError(
                f"argument 'generated_words': expected at most vocabulary_size = {self.vocabulary_size}, got "
                f"{self.generated_words}"
            )
        if self.width % 2 or self.width % self.heads or self.width // self.heads > 256:
            raise ValueError(
                f"argument 'width': expected an even multiple of heads = {self.heads}, at most 256 times as large, got "
                f"{self.width}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"argument 'dropout': expected a probability in [0, 1), got {self.dropout}")
        if self.coverage < 0:
            raise ValueError(f"argument 'coverage': expected at least 0, got {self.coverage}")
        super().__post_init__(**kwargs)


AutoConfig.register(PairToSequenceConfig.model_type, PairToSequenceConfig)
