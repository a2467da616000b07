"""Generators in folders, whichever kind they are."""

from pathlib import Path

import torch

import vleff
from vleff.unanswerable import seq2seq, vocabulary
from vleff.unanswerable.generation import GenerationSettings
from vleff.unanswerable.model import PairToSequence
from vleff.unanswerable.seq2seq import Seq2SeqGenerator


def load_generator(
    folder: str | Path, settings: GenerationSettings | None = None, accelerate: bool = True
) -> PairToSequence | Seq2SeqGenerator:
    """The generator that is stored in a folder.

    Args:
        folder: as `save_pretrained` of a PairToSequence or a Seq2SeqGenerator wrote it.
        settings: how it searches.
        accelerate: whether `vleff.accelerate` is called for its transformers.

    Returns:
        the generator, in eval mode; a PairToSequence in float32, whatever its weights are stored in.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    folder = Path(folder)
    generator: PairToSequence | Seq2SeqGenerator
    if (folder / vocabulary.FILE).exists():
        generator = PairToSequence.from_pretrained(folder, dtype=torch.float32)
        if accelerate and generator.config.encoder == "transformer":
            vleff.accelerate(generator)
    elif (folder / seq2seq.DESCRIPTION).exists():
        generator = Seq2SeqGenerator.from_pretrained(folder)
        if accelerate:
            vleff.accelerate(generator.model)
    else:
        raise FileNotFoundError(
            f"{folder}: expected a generator, with {vocabulary.FILE} or {seq2seq.DESCRIPTION}, found neither"
        )
    generator.settings = settings or generator.settings
    return generator
