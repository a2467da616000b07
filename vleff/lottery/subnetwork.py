"""The subnetwork that a mask leaves of a transformers model: extracted, tuned, saved, loaded, made dense again."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from vleff.training.checkpoints import reading
from vleff.training.sparse_checkpoints import (
    DESCRIPTION,
    REMAINDERS,
    holds_subnetwork,
    masked_layers,
    put_layer,
    read_subnetwork,
    write_subnetwork,
)

Model = TypeVar("Model", bound=PreTrainedModel)


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
        put_layer(model, name, replacement)
    if freeze_embeddings:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
    return model


def to_dense(model: Model) -> Model:
    """A copy of the model with plain nn.Linear layers, which transformers saves and loads like any other.

    Args:
        model: with a subnetwork, not accelerated (`vleff.restore` undoes that).
    """
    dense = deepcopy(model)
    for name, layer in masked_layers(dense).items():
        put_layer(dense, name, layer.to_dense())
    return dense


def save_pretrained(model: PreTrainedModel, folder: str | Path) -> None:
    """Saves a model with a subnetwork, elements and places only.

    Writes the model's config, the weights as `subnetwork.safetensors` and what is masked as `subnetwork.json`.
    Plain transformers cannot read these and says so: it reads what `to_dense(model).save_pretrained` writes.

    Raises:
        ValueError: the model has no masked layers.
        FileExistsError: the folder holds a subnetwork already.
    """
    folder = Path(folder)
    if not masked_layers(model):
        raise ValueError("argument 'model': expected a model with masked layers, got one without")
    if (folder / DESCRIPTION).exists():
        raise FileExistsError(f"{folder} holds a subnetwork already")
    write_subnetwork(model, folder)


def from_pretrained(folder: str | Path) -> PreTrainedModel:
    """The model that `save_pretrained` saved, in eval mode.

    Raises:
        FileNotFoundError: the folder holds no subnetwork.
        ValueError: it is damaged, or its description does not fit this version of vleff, or its weights.
    """
    folder = Path(folder)
    if not holds_subnetwork(folder):
        raise FileNotFoundError(f"{folder} holds no subnetwork: {DESCRIPTION} is not there")
    with reading(folder):
        return read_subnetwork(folder)
