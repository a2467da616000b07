"""Trimmed models in folders."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from vleff.models.class_names import class_name, model_class
from vleff.models.trimming import install, uninstall
from vleff.smarttrim.attachment import attach
from vleff.smarttrim.config import SmartTrimConfig
from vleff.smarttrim.execution import trimmers_of
from vleff.smarttrim.trimming import Trimmers
from vleff.training.checkpoints import reading, replace_file
from vleff.training.sparse_checkpoints import holds_subnetwork, masked_layers, read_subnetwork, write_subnetwork

DESCRIPTION = "smarttrim.json"
WEIGHTS = "smarttrim.safetensors"
_FORMAT = 1


def save_pretrained(model: PreTrainedModel, folder: str | Path) -> None:
    """Saves an attached model.

    Writes the model as transformers does, which loads it from there without trimmers, or one with masked layers as
    `lottery.save_pretrained` does; the trimmers as `smarttrim.safetensors`, and their config as `smarttrim.json`.

    Raises:
        ValueError: the model has no trimmers.
        FileExistsError: the folder holds a trimmed model already.
    """
    folder, own = Path(folder), trimmer_parameters(model)
    if (folder / DESCRIPTION).exists():
        raise FileExistsError(f"{folder} holds a trimmed model already")
    config = trimmers_of(model)[0].execution.config
    folder.mkdir(parents=True, exist_ok=True)
    if masked_layers(model):
        with _without_trimmers(model):
            write_subnetwork(model, folder)
    else:
        plain = {name: value for name, value in model.state_dict().items() if name not in own}
        model.save_pretrained(folder, state_dict=plain)
    weights = {name: value.detach().contiguous() for name, value in own.items()}
    replace_file(folder / WEIGHTS, lambda part: save_file(weights, str(part)))
    description = {
        "format": _FORMAT,
        "class": class_name(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "config": config.to_dict(),
    }
    replace_file(folder / DESCRIPTION, lambda part: part.write_text(json.dumps(description, indent=1) + "\n"))


def from_pretrained(folder: str | Path) -> PreTrainedModel:
    """The attached model that `save_pretrained` saved, in evaluation mode.

    Raises:
        FileNotFoundError: the folder holds no trimmed model.
        ValueError: it is damaged, its description does not fit this version of vleff, or its trimmers do not fit the
            model.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        raise FileNotFoundError(f"{folder} holds no trimmed model: {DESCRIPTION} is not there")
    with reading(folder):
        return _read(folder)


def _read(folder: Path) -> PreTrainedModel:
    description = json.loads((folder / DESCRIPTION).read_text())
    if description.get("format") != _FORMAT:
        raise ValueError(f"{folder / DESCRIPTION}: expected format {_FORMAT}, got {description.get('format')!r}")
    dtype = getattr(torch, description["dtype"])
    if holds_subnetwork(folder):
        model = read_subnetwork(folder)
    else:
        model = model_class(description["class"]).from_pretrained(folder, dtype=dtype)
    attach(model, SmartTrimConfig(**description["config"]))
    weights, own = load_file(folder / WEIGHTS), trimmer_parameters(model)
    if weights.keys() != own.keys():
        first = min(weights.keys() ^ own.keys())
        raise ValueError(
            f"{folder / WEIGHTS}: expected the trimmers of the model, of which {first!r} is one side's only"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])
    return model.eval()


def trimmer_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The trimmers' parameters by their names in the model, for an optimizer group of their own for example.

    Raises:
        ValueError: the model has no trimmers.
    """
    inside = {id(parameter) for one in trimmers_of(model) for parameter in one.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in inside}


@contextmanager
def _without_trimmers(model: nn.Module) -> Iterator[None]:
    trimmed = {module: module.trimming for module in model.modules() if hasattr(module, "trimming")}
    for module in trimmed:
        uninstall(module)
    try:
        yield
    finally:
        for module, trimming in trimmed.items():
            install(module, cast(Trimmers, trimming))
