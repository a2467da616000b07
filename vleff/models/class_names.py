"""Classes of models by their names, for files that say what is saved in them."""

from importlib import import_module
from typing import Any

from transformers import PreTrainedModel


def class_name(model: PreTrainedModel) -> str:
    """The name, with its module, of the class under which a model is saved."""
    kind = getattr(type(model), "original_class", type(model))
    return f"{kind.__module__}.{kind.__qualname__}"


def model_class(name: str) -> Any:
    """A model class of transformers or vleff, and of nothing else: the name comes from a file.

    Raises:
        ValueError: the name is none of such a class.
    """
    module, _, qualified = name.rpartition(".")
    if module.partition(".")[0] not in ("transformers", "vleff"):
        raise ValueError(f"expected a model class of transformers or vleff, got {name!r}")
    found = getattr(import_module(module), qualified, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(f"expected a model class, got {name!r}")
    return found
