"""The model families that vleff accelerates: one adapter each, in one file each.

A family's file is imported when a model of that family is first seen, so that a class that another version of
transformers renamed breaks that family only, with a message that says which.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import transformers
from torch import nn
from transformers import PreTrainedModel

# the transformers module that defines a base model -> the file here that holds its adapter
_FAMILY_FILES = {
    "transformers.models.bert.modeling_bert": "vleff.models.bert",
    "transformers.models.roberta.modeling_roberta": "vleff.models.roberta",
    "transformers.models.xlm_roberta.modeling_xlm_roberta": "vleff.models.roberta",
    "transformers.models.camembert.modeling_camembert": "vleff.models.roberta",
    "transformers.models.distilbert.modeling_distilbert": "vleff.models.distilbert",
    "transformers.models.vit.modeling_vit": "vleff.models.vit",
}


# The versions of transformers that the adapters were checked with.
CHECKED_VERSIONS = ("5.17", "5.23")


@dataclass(frozen=True)
class Adapter:
    """How one family of transformers models runs packed.

    Attributes:
        family: its name, as in the documentation.
        model_class: the base model, which makes the attention mask and owns the encoder layers.
        packed_classes: each encoder and layer class of the family, with the subclass of it that runs packed.
            A module runs packed when its class is exchanged for that subclass.
        checked_versions: the versions of transformers, as "major.minor", that the adapter was checked with.
    """

    family: str
    model_class: type[PreTrainedModel]
    packed_classes: dict[type[nn.Module], type[nn.Module]]
    checked_versions: tuple[str, ...] = CHECKED_VERSIONS


_ADAPTERS: dict[type, Adapter] = {}


def register(adapter: Adapter) -> None:
    """Makes a family known: models of `adapter.model_class` and its subclasses can be accelerated."""
    _ADAPTERS[adapter.model_class] = adapter


def families() -> list[str]:
    """The names of all families, sorted."""
    for file in _FAMILY_FILES.values():
        _load(file)
    return sorted({adapter.family for adapter in _ADAPTERS.values()})


def adapter_for(module: nn.Module) -> Adapter | None:
    """The adapter whose base model `module` is, None if there is none.

    Raises:
        ImportError: transformers defines the family differently from what the adapter was written for.
    """
    for ancestor in type(module).__mro__:
        if ancestor.__module__ in _FAMILY_FILES:
            _load(_FAMILY_FILES[ancestor.__module__])
        if ancestor in _ADAPTERS:
            return _ADAPTERS[ancestor]
    return None


def base_models(model: nn.Module) -> list[tuple[str, PreTrainedModel, Adapter]]:
    """The path inside `model`, module and adapter of every base model of a known family.

    Raises:
        TypeError: `model` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    found = []
    for path, module in model.named_modules():
        adapter = adapter_for(module) if isinstance(module, PreTrainedModel) else None
        if adapter is not None:
            found.append((path, module, adapter))
    return found


@cache
def warn_if_unchecked(adapter_family: str, checked_versions: tuple[str, ...]) -> None:
    """Warns, once a family, if its adapter was not checked with the installed transformers."""
    installed = ".".join(transformers.__version__.split(".")[:2])
    if installed not in checked_versions:
        warnings.warn(
            f"vleff's {adapter_family} adapter was checked with transformers {', '.join(checked_versions)}; "
            f"{transformers.__version__} is installed. Compare a few outputs before you rely on it.",
            stacklevel=4,
        )


@cache
def _load(file: str) -> None:
    try:
        import_module(file)
    except ImportError as error:
        raise ImportError(
            f"{file} does not fit the installed transformers {transformers.__version__} (vleff was checked "
            f"with {', '.join(CHECKED_VERSIONS)}): {error}"
        ) from error
