"""vleff: Transformer encoders made faster by kernels that do only the work that matters for each input."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public names by module. They are imported when first used: `import vleff` stays quick and needs no transformers.
_MODULES = {
    "accelerate": "vleff.acceleration",
    "restore": "vleff.acceleration",
    "refresh": "vleff.acceleration",
    "explain": "vleff.acceleration",
    "use_cuda_graphs": "vleff.models.graphs",
    "RaggedBatch": "vleff.nn.ragged",
    "debug_checks": "vleff.ops.debug",
}
__all__ = [
    "RaggedBatch",
    "__version__",
    "accelerate",
    "debug_checks",
    "explain",
    "refresh",
    "restore",
    "use_cuda_graphs",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vleff' has no attribute '{name}'")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
