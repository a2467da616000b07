"""fused_linear against torch's linear, activation and addition, and against oneDNN's prepacked linear."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from vleff.ops.fused_linear import fused_linear, pack_linear_weight

ROWS = (1, 40, 2152, 8608)


@dataclass(frozen=True)
class Layer:
    """One linear layer of BERT-base, with what follows it."""

    inputs: int
    outputs: int
    activation: str = "none"
    residual: bool = False


LAYERS = {
    "query": Layer(768, 768),
    "attention output + residual": Layer(768, 768, residual=True),
    "FFN up + gelu": Layer(768, 3072, activation="gelu"),
    "FFN down + residual": Layer(3072, 768, residual=True),
}


@pytest.mark.benchmark(group="fused_linear")
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_fused_linear(
    interleaved: Callable[..., None], layer: Layer, rows: int, packed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, layer.inputs).to(dtype)
    weight = (torch.randn(layer.outputs, layer.inputs) * layer.inputs**-0.5).to(dtype)
    bias = torch.randn(layer.outputs).to(dtype)
    residual = torch.randn(rows, layer.outputs).to(dtype) if layer.residual else None
    our_weight = pack_linear_weight(weight) if packed else weight
    onednn_weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def ours() -> Tensor:
        return fused_linear(x, our_weight, bias, residual, layer.activation)

    def torch_linear() -> Tensor:
        y = linear(x, weight, bias)
        y = gelu(y) if layer.activation == "gelu" else y
        return y if residual is None else y + residual

    def prepacked_onednn() -> Tensor:
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, onednn_weight, bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, onednn_weight, bias, layer.activation, [], "none")

    with torch.inference_mode():
        exact = linear(x.double(), weight.double(), bias.double())
        exact = gelu(exact) if layer.activation == "gelu" else exact
        exact = exact if residual is None else exact + residual.double()
        error, torch_error = ((y.double() - exact).abs().max() for y in (ours(), torch_linear()))
        # in fp32 oneDNN sums in another order than MKL, with up to three times its (tiny) error
        allowed = 2e-6 * exact.abs().max() if dtype == torch.float32 else 2 * torch_error
        assert error <= allowed, f"error {error:.1e} against fp64, torch has {torch_error:.1e}"
        flops = 2 * rows * layer.inputs * layer.outputs
        baselines = {"torch": torch_linear, "prepacked oneDNN": prepacked_onednn}
        interleaved(ours, baselines, {"torch": 1.0}, budget=3, flops=flops)
