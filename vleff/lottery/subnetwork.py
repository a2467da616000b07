"""The subnetwork that a mask leaves of a transformers model: extracted, tuned, saved, loaded, made dense again."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from vleff.lottery.frozen_remainder import FrozenRemainderLinear
from vleff.models.class_names import class_name, model_class
from vleff.nn.masked_linear import MaskedLinear
from vleff.training.checkpoints import replace_file

Model = TypeVar("Model", bound=PreTrainedModel)

WEIGHTS, DESCRIPTION = "subnetwork.safetensors", "subnetwork.json"
MaskedLayer = MaskedLinear | FrozenRemainderLinear
REMAINDERS: dict[str, type[MaskedLinear] | type[FrozenRemainderLinear]] = {
    "zero": MaskedLinear,
    "frozen": FrozenRemainderLinear,
}
_FORMAT = 1


def extract(
    model: Model, masks: Mapping[str, Tensor], remainder: str = "zero", freeze_embeddings: bool = True
) -> Model:
    """Puts the subnetwork in place of the model's linear layers, and leaves only what is to be tuned trainable.

    Args:
        model: a transformers model, changed in place; not accelerated.
        masks: bool [out_features, in_features] by the names of linear layers, True where a weight stays.
        remainder: "zero" makes the other weights zero, and the layers sparse and fast; "frozen" keeps them as
            they are, untrained, and the layers dense.
        freeze_embeddings: whether embeddings are not trained (reconstruction: the paper does not say).

    Returns:
        `model` itself. The elements of the masked weights, biases, LayerNorms and the head are trainable.

    Raises:
        KeyError, TypeError, ValueError: a name is none of a linear layer of the model, a mask does not fit its
            weight, or `remainder` is something else; the model is then as it was.
    """
    if remainder not in REMAINDERS:
        raise ValueError(f"argument 'remainder': expected one of {', '.join(REMAINDERS)}, got {remainder!r}")
    layers = dict(model.named_modules())
    replacements = {}
    for name, mask in masks.items():
        if name not in layers:
            raise KeyError(f"argument 'masks': expected names of linear layers of the model, got {name!r}")
        try:
            replacements[name] = REMAINDERS[remainder].from_dense(layers[name], mask)
        except (TypeError, ValueError) as error:
            raise type(error)(f"argument 'masks', {name!r}: {error}") from error
    for name, replacement in replacements.items():
        _put(model, name, replacement)
    if freeze_embeddings:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
    return model


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, MaskedLayer)}


def to_dense(model: Model) -> Model:
    """A copy of the model with plain nn.Linear layers, which transformers saves and loads like any other.

    Args:
        model: with a subnetwork, not accelerated (`vleff.restore` undoes that).
    """
    dense = deepcopy(model)
    for name, layer in masked_layers(dense).items():
        _put(dense, name, layer.to_dense())
    return dense


def save_pretrained(model: PreTrainedModel, folder: str | Path) -> None:
    """Saves a model with a subnetwork, elements and places only.

    Writes the model's config, the weights as `subnetwork.safetensors` and what is masked as `subnetwork.json`.
    Plain transformers cannot read these and says so: it reads what `to_dense(model).save_pretrained` writes.

    Raises:
        ValueError: the model has no masked layers.
        FileExistsError: the folder holds a subnetwork already.
    """
    folder, layers = Path(folder), masked_layers(model)
    if not layers:
        raise ValueError("argument 'model': expected a model with masked layers, got one without")
    if (folder / DESCRIPTION).exists():
        raise FileExistsError(f"{folder} holds a subnetwork already")
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    replace_file(folder / WEIGHTS, lambda part: save_model(model, str(part)))
    description = {
        "format": _FORMAT,
        "class": class_name(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": {name: _kind(layer) for name, layer in layers.items()},
    }
    replace_file(folder / DESCRIPTION, lambda part: part.write_text(json.dumps(description, indent=1) + "\n"))


def from_pretrained(folder: str | Path) -> PreTrainedModel:
    """The model that `save_pretrained` saved, in eval mode.

    Raises:
        FileNotFoundError: the folder holds no subnetwork.
        ValueError: its description does not fit this version of vleff, or its weights.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        raise FileNotFoundError(f"{folder} holds no subnetwork: {DESCRIPTION} is not there")
    description = json.loads((folder / DESCRIPTION).read_text())
    if description.get("format") != _FORMAT:
        raise ValueError(f"{folder / DESCRIPTION}: expected format {_FORMAT}, got {description.get('format')!r}")
    config, weights = AutoConfig.from_pretrained(folder), load_file(folder / WEIGHTS)
    model = model_class(description["class"])(config).to(getattr(torch, description["dtype"]))
    for name, kind in description["layers"].items():
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"{folder / DESCRIPTION}: expected the name of a linear layer, got {name!r}")
        parts = {key.removeprefix(f"{name}."): weights[key] for key in weights if key.startswith(f"{name}.")}
        _put(model, name, REMAINDERS[kind].from_parts(linear, parts))
    load_model(model, folder / WEIGHTS)
    return model.eval()


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, layer)


def _kind(layer: nn.Module) -> str:
    return next(kind for kind, layer_class in REMAINDERS.items() if isinstance(layer, layer_class))
