"""The model families that vleff accelerates: one adapter each, in one file each.

A family's file is imported when a model of that family is first seen, so that a class that another version of
transformers renamed breaks that family only, with a message that says which.
"""

import warnings
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import transformers
from torch import nn
from transformers import PreTrainedModel

# a transformers model's folder -> the file here that holds its adapter, where the names differ
_ALIASES = {"xlm_roberta": "roberta", "camembert": "roberta"}
# files here that define models of their own, with their adapters
_OWN_FAMILIES = ("meter", "blip_nlvr2", "vilt_towers")

# The versions of transformers that the adapters were checked with.
CHECKED_VERSIONS = ("5.17", "5.23", "5.24")


@dataclass(frozen=True)
class Adapter:
    """How one family of transformers models runs packed.

    Attributes:
        family: its name, as in the documentation.
        model_class: the base model, which makes the attention mask and owns the encoder layers.
        packed_classes: each encoder and layer class of the family, with the subclass of it that runs packed.
            A module runs packed when its class is exchanged for that subclass.
        causal: whether its tokens see only tokens up to their own.
        decoders: classes inside which tokens are made one by one; encoders there are not trimmed.
        trimmed_classes: each class whose forward has to know more than its encoder to trim tokens, with the subclass
            of it that takes its place while a trimming is installed.
        checked_versions: the versions of transformers, as "major.minor", that the adapter was checked with.
    """

    family: str
    model_class: type[PreTrainedModel]
    packed_classes: dict[type[nn.Module], type[nn.Module]]
    causal: bool = False
    decoders: tuple[type[nn.Module], ...] = ()
    trimmed_classes: dict[type[nn.Module], type[nn.Module]] = field(default_factory=dict)
    checked_versions: tuple[str, ...] = CHECKED_VERSIONS


_ADAPTERS: dict[type, Adapter] = {}


def register(adapter: Adapter) -> None:
    """Makes a family known: models of `adapter.model_class` and its subclasses can be accelerated."""
    _ADAPTERS[adapter.model_class] = adapter


def families() -> list[str]:
    """The names of all families, sorted."""
    for module in iter_modules([str(Path(__file__).parent)]):
        if module.name in _OWN_FAMILIES or find_spec(f"transformers.models.{module.name}"):
            _load(f"vleff.models.{module.name}")
    return sorted({adapter.family for adapter in _ADAPTERS.values()})


def adapter_for(module: nn.Module) -> Adapter | None:
    """The adapter whose base model `module` is, None if there is none.

    Raises:
        ImportError: transformers defines the family differently from what the adapter was written for.
    """
    for ancestor in type(module).__mro__:
        file = _file_of(ancestor.__module__)
        if file is not None:
            _load(file)
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
def _file_of(module: str) -> str | None:
    """The file here with the adapter of the models that a transformers module defines, None if there is none."""
    if not module.startswith("transformers.models."):
        return None
    family = module.split(".")[2]
    file = f"vleff.models.{_ALIASES.get(family, family)}"
    return file if find_spec(file) else None


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
