"""DiDE: a dual encoder that answers like the fusion encoder that taught it, from precomputed representations.

`DualEncoder` is the student, `DistillationTrainer` and `distillation_loss` teach it, `encode` fills a
`RepresentationStore`, `Gallery` searches one and answers from it.
"""

from importlib import import_module
from typing import Any

# Public names by module, imported when first used: a store needs neither torch nor transformers.
_MODULES = {
    "ForeignRepresentationsError": "store",
    "RepresentationStore": "store",
    "RepresentationVersion": "store",
    "DualEncoder": "dual_encoder",
    "DualEncoderConfig": "config",
    "DualEncoderOutput": "dual_encoder",
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
