"""A user's model whose linears are FusedLinear, and what tests ask of it."""

import torch
from torch import nn

from vleff.nn import FusedLinear
from vleff.ops import packs_linear_weight

IN, OUT = 256, 128
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if packs_linear_weight(dtype)]


class Model(nn.Module):
    """A user's model around two linears."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first: nn.Module = nn.Linear(IN, OUT, dtype=dtype)
        self.second: nn.Module = nn.Linear(OUT, IN, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.second(nn.functional.gelu(self.first(input)))


def fused_model(dtype: torch.dtype = torch.float32) -> Model:
    model = Model(dtype)
    model.first, model.second = FusedLinear.from_linear(model.first), FusedLinear.from_linear(model.second)
    return model


def infer(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(*inputs)


def is_packed(*modules: nn.Module) -> bool:
    return all("weight packed" in module.explain() for module in modules)


def assert_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert list(state) == list(weights)
    for name, weight in weights.items():
        assert torch.equal(state[name], weight), name


def assert_packs_again(model: nn.Module, input: torch.Tensor, output: torch.Tensor) -> None:
    assert torch.equal(infer(model, input), output)
    assert is_packed(model.first, model.second)
