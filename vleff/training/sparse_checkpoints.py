"""Folders of models whose linear layers are masked: the elements of the weights and their places, in safetensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_model
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from vleff.models.class_names import class_name, model_class
from vleff.nn.frozen_remainder_linear import FrozenRemainderLinear
from vleff.nn.masked_linear import MaskedLinear
from vleff.training.checkpoints import replace_file

WEIGHTS, DESCRIPTION = "subnetwork.safetensors", "subnetwork.json"
MaskedLayer = MaskedLinear | FrozenRemainderLinear
REMAINDERS: dict[str, type[MaskedLinear] | type[FrozenRemainderLinear]] = {
    "zero": MaskedLinear,
    "frozen": FrozenRemainderLinear,
}
_FORMAT = 1


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, MaskedLayer)}


def put_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Exchanges the layer of that name."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, layer)


def holds_subnetwork(folder: Path) -> bool:
    """Whether `write_subnetwork` wrote into the folder."""
    return (folder / DESCRIPTION).exists()


def write_subnetwork(model: PreTrainedModel, folder: Path) -> None:
    """Writes config, weights and what is masked; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    replace_file(folder / WEIGHTS, lambda part: save_model(model, str(part)))
    description = {
        "format": _FORMAT,
        "class": class_name(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": {name: _kind(layer) for name, layer in masked_layers(model).items()},
    }
    replace_file(folder / DESCRIPTION, lambda part: part.write_text(json.dumps(description, indent=1) + "\n"))


def read_subnetwork(folder: Path) -> PreTrainedModel:
    """The model that `write_subnetwork` wrote, in eval mode.

    Raises:
        ValueError: its description does not fit this version of vleff, or its weights.
    """
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
        put_layer(model, name, REMAINDERS[kind].from_parts(linear, parts))
    load_model(model, folder / WEIGHTS)
    return model.eval()


def _kind(layer: nn.Module) -> str:
    return next(kind for kind, layer_class in REMAINDERS.items() if isinstance(layer, layer_class))
