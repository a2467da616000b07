"""Unanswerable questions, written from answerable ones and their paragraphs (arXiv 1906.06045).

`PairToSequence` and `Seq2SeqGenerator` write them, `train_generator` trains them, `load_generator` loads either;
`SwapGenerator` needs no training. `augment` adds them to a SQuAD file, `evaluate` compares generators.
"""

from importlib import import_module
from typing import Any

# Public names by module, imported when first used: pairs and words need neither torch nor transformers.
_MODULES = {
    "AnswerabilityReader": "answerability",
    "AugmentationReport": "augmented_file",
    "AugmentationSettings": "augmenting",
    "Candidate": "sources",
    "GenerationSettings": "generation",
    "GenerationSource": "sources",
    "GenerationScores": "evaluation",
    "GeneratorRecipe": "generators",
    "GeneratorTraining": "training",
    "PairToSequence": "model",
    "PairToSequenceConfig": "config",
    "PairToSequenceOutput": "model",
    "QuestionGenerator": "generation",
    "QuestionPair": "pairs",
    "Seq2SeqGenerator": "seq2seq",
    "SwapGenerator": "swaps",
    "swap_pairs": "swaps",
    "Vocabulary": "vocabulary",
    "augment": "augmentation_processes",
    "augment_with_ray": "ray_augmentation",
    "evaluate": "evaluation",
    "generator_recipe": "generators",
    "load_generator": "loading",
    "load_pairs": "pair_files",
    "train_generator": "training",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vleff.unanswerable' has no attribute '{name}'")
    value = getattr(import_module(f"vleff.unanswerable.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
