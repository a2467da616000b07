"""Small models of every supported family with random weights: one file a family, found by themselves.

A family's file has
    SIZES: for each of its config classes the arguments of a small one,
    ENCODERS: its base models whose outputs have last_hidden_state and, if asked for, hidden_states,
    HEADS: other models, with a head or around several encoders,
    inputs_for(model): a call's arguments, and which tokens of its outputs are valid.
"""

import copy
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class Case:
    """A model in eval mode and one call's arguments; valid [batch, length] marks tokens, None if all are."""

    model: nn.Module
    inputs: dict[str, torch.Tensor]
    valid: torch.Tensor | None

    def plain(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A copy of the model as transformers wrote it."""
        return copy.deepcopy(self.model).to(dtype)

    def call(self, model: nn.Module, **arguments: object) -> ModelOutput:
        """The outputs without gradients, in eval mode after one seed; floating-point inputs follow the model."""
        dtype = next(model.parameters()).dtype
        inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in self.inputs.items()}
        if not model.training:
            torch.manual_seed(0)
        with torch.no_grad():
            return model(**inputs, **arguments)

    def tokens(self, output: torch.Tensor) -> torch.Tensor:
        """The rows of the output that belong to valid tokens, all rows of one that is not by token."""
        by_token = self.valid is not None and output.shape[:2] == self.valid.shape
        return output[self.valid] if by_token else output


FEW_VALUES = 64


def most_error(plain: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """How far from the exact output one may be where plain torch gives `plain`: twice as far.

    Three times as far in an output of few values: the largest of few rounding errors is a matter of chance.
    """
    return (2 if exact.numel() >= FEW_VALUES else 3) * (plain - exact).abs().max()


def tensors(output: object, name: str = "") -> dict[str, torch.Tensor]:
    """The floating-point tensors in an output, by their path, those in nested outputs included.

    Attention weights are left out: BridgeTower returns them unasked, accelerated only where they are asked for.
    """
    if isinstance(output, torch.Tensor):
        return {name: output} if output.is_floating_point() else {}
    items: list[tuple[str, object]] = []
    if isinstance(output, ModelOutput):
        items = [(key, item) for key, item in output.items() if key != "attentions"]
    elif isinstance(output, list | tuple):
        items = [(str(number), item) for number, item in enumerate(output)]
    found = {}
    for key, item in items:
        found |= tensors(item, f"{name}.{key}" if name else key)
    return found


def text_inputs(lengths: tuple[int, ...] = (3, 17, 11, 1), seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids of samples of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 99, mask.shape, generator=generator)
    return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}


def _families() -> list[ModuleType]:
    return [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]


def encoders() -> list[type[nn.Module]]:
    """The base models of all families."""
    return [model for family in _families() for model in family.ENCODERS]


def heads() -> list[type[nn.Module]]:
    """The other models of all families."""
    return [model for family in _families() for model in family.HEADS]


def make_case(model_class: type[nn.Module], seed: int = 0, **config: object) -> Case:
    """A small model with random weights, biases and norms included, and inputs for it."""
    config_class = model_class.config_class
    fitting = [family for family in _families() if config_class in family.SIZES]
    family = next((family for family in fitting if model_class in family.ENCODERS + family.HEADS), fitting[0])
    torch.manual_seed(seed)
    model = model_class(config_class(**family.SIZES[config_class] | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    inputs, valid = family.inputs_for(model)
    return Case(model, inputs, valid)
