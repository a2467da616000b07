"""DiDE: a dual encoder that answers like the fusion encoder that taught it, from precomputed representations.

`DualEncoder` is the student, `DistillationTrainer` and `distillation_loss` teach it, `encode` fills a
`RepresentationStore`, `Gallery` searches one and answers from it.
"""

from importlib import import_module
from typing import Any

# Public names by module, imported when first used: a store needs neither torch nor transformers.
_MODULES = {
    "DistillationConfig": "losses",
    "DistillationTrainer": "training",
    "DualEncoder": "dual_encoder",
    "DualEncoderConfig": "config",
    "DualEncoderForPreTraining": "pretraining",
    "DualEncoderOutput": "dual_encoder",
    "FaissIndex": "exact_search",
    "ForeignRepresentationsError": "version",
    "FusionTeacher": "teacher",
    "Gallery": "gallery",
    "PreTrainingCollator": "pretraining",
    "PreTrainingConfig": "pretraining",
    "PreTrainingTrainer": "pretraining",
    "Preprocessor": "preprocessing",
    "RepresentationStore": "store",
    "RepresentationVersion": "version",
    "attention_loss": "losses",
    "distil": "training",
    "distil_pretraining": "pretraining",
    "distillation_loss": "losses",
    "encode": "encoding",
    "encode_with_ray": "ray_encoding",
    "image_files": "encoding",
    "paper_arguments": "training",
    "search": "exact_search",
    "soft_label_loss": "losses",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vleff.dide' has no attribute '{name}'")
    value = getattr(import_module(f"vleff.dide.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
