"""The packed model of the FusedLinear tests."""

import pytest
import torch
from fused_linear_cases import DTYPES, IN, Model, fused_model, infer, is_packed


@pytest.fixture(params=DTYPES, ids=str)
def packed(request: pytest.FixtureRequest) -> tuple[Model, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A model with packed weights, its plain weights, an input and what the model makes of it."""
    model = fused_model(request.param)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    input = torch.randn(20, IN, dtype=request.param)
    output = infer(model, input)
    assert is_packed(model.first, model.second)
    return model, weights, input, output
