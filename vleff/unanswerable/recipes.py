"""From pairs to a trained generator in a folder: what `vleff unanswerable train` does."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

import vleff
from vleff.training.checkpoints import check_settings, holds_something_else
from vleff.unanswerable.generators import TRAINED
from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.pairs import QuestionPair
from vleff.unanswerable.seq2seq import Seq2SeqGenerator
from vleff.unanswerable.training import GeneratorTraining, train_generator
from vleff.unanswerable.vocabulary import Vocabulary

KINDS = ("lstm", "transformer", "seq2seq")
_RATES = {"lstm": 1e-3, "transformer": 3e-4, "seq2seq": 1e-4}


@dataclass(frozen=True)
class NewGenerator:
    """What kind of generator is to be trained.

    Attributes:
        kind: "lstm", the paper's encoders; "transformer", a PairToSequence that starts from a pretrained encoder; or
            "seq2seq", a pretrained T5, BART, ...
        model: the checkpoint to start from, a folder or a name on the hub; None for "lstm".
        width: of embeddings and memories; of a PairToSequence only.
        coverage: weight of the coverage loss; of a PairToSequence only.
        vocabulary: words at most; of a PairToSequence only.

    Raises:
        ValueError: the kind is none of these, or `model` does not go with it.
    """

    kind: str = "lstm"
    model: str | None = None
    width: int = 300
    coverage: float = 0.0
    vocabulary: int = 30_000

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if (self.kind == "lstm") != (self.model is None):
            expected = "none" if self.kind == "lstm" else "a checkpoint to start from"
            raise ValueError(f"model: expected {expected} for {self.kind!r}, got {self.model!r}")

    @property
    def learning_rate(self) -> float:
        """What is usual for the kind (reconstruction)."""
        return _RATES[self.kind]

    def make(self, pairs: Sequence[QuestionPair]) -> PairToSequence | Seq2SeqGenerator:
        """An untrained generator, whose vocabulary is that of the pairs; its new weights are torch's seed's."""
        sizes: dict[str, Any] = {"width": self.width, "coverage": self.coverage}
        start: Any = self.model
        if self.kind == "lstm":
            return PairToSequence.build(Vocabulary.build(pairs, self.vocabulary), **sizes)
        tokenizer: Any = AutoTokenizer.from_pretrained(start)
        if self.kind == "transformer":
            encoder = AutoModel.from_pretrained(start)
            words = Vocabulary.build(pairs, self.vocabulary)
            return PairToSequence.from_encoder(encoder, tokenizer, words, **sizes)
        return Seq2SeqGenerator(AutoModelForSeq2SeqLM.from_pretrained(start), tokenizer)


def train(
    pairs: Sequence[QuestionPair],
    folder: str | Path,
    new: NewGenerator,
    training: GeneratorTraining,
    quiet: bool = False,
    easy_pairs: Sequence[QuestionPair] = (),
    easy_epochs: float = 2.0,
) -> Path:
    """Trains a generator; a call with the same folder, kind and training goes on where one was interrupted.

    Args:
        pairs: to learn from.
        folder: gets checkpoints, and the generator when it is trained, for `generator_recipe` and `load_generator`.
        new: the generator.
        training: of `train_generator`.
        quiet: without a progress bar.
        easy_pairs, easy_epochs: to learn from first, and how often; `swap_pairs` for example.

    Returns:
        the folder of the generator, in `folder`.

    Raises:
        FileExistsError: there is something else in the folder, or a generator already.
        ValueError: there are no pairs, or the folder is that of another training.
    """
    import torch

    folder = Path(folder)
    if (folder / TRAINED).exists():
        raise FileExistsError(f"{folder} holds a generator already")
    if holds_something_else(folder):
        raise FileExistsError(f"{folder} exists already, and not as the folder of a training")
    easy = {"easy_pairs": len(easy_pairs), "easy_epochs": easy_epochs} if easy_pairs else {}
    check_settings(folder, {**asdict(new), **asdict(training), **easy})
    torch.manual_seed(training.seed)
    generator: Any = new.make([*pairs, *easy_pairs])
    own = generator.model if isinstance(generator, Seq2SeqGenerator) else generator
    accelerated = new.kind != "lstm"
    if accelerated:
        vleff.accelerate(own)
    if easy_pairs:
        easy_training = replace(training, epochs=easy_epochs, steps=None)
        train_generator(generator, easy_pairs, easy_training, folder / "easy-training", quiet=quiet)
    train_generator(generator, pairs, training, folder / "training", quiet=quiet)
    if accelerated:
        vleff.restore(own)
    part = folder / f"{TRAINED}.part"
    generator.save_pretrained(part)
    part.rename(folder / TRAINED)
    return folder / TRAINED
