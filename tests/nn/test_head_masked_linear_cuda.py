"""HeadMaskedLinear on fake CUDA tensors: the ops run, on the plain weight, and nothing is read back."""

import pytest
import torch
from fake_cuda import fake_cuda
from torch.utils._python_dispatch import TorchDispatchMode

from vleff.nn import HeadMaskedLinear, head_masked_linear, project_heads

WIDTH, HEADS, HEAD_DIM, TOKENS = 48, 3, 16, 43
FEATURES = HEADS * HEAD_DIM


class Called(TorchDispatchMode):
    """Notes the ops of vleff that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "vleff":
            self.ops.append(function._schema.name.removeprefix("vleff::"))
        return function(*args, **kwargs or {})


@pytest.fixture
def with_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library was built with CUDA; fake tensors need no kernels."""
    monkeypatch.setattr(head_masked_linear, "DEVICES", ("cpu", "cuda"))


def make(direction: str, dtype: torch.dtype = torch.bfloat16) -> HeadMaskedLinear:
    sizes = (WIDTH, FEATURES) if direction == "project" else (FEATURES, WIDTH)
    return HeadMaskedLinear(*sizes, HEADS, direction, device="cuda", dtype=dtype)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("direction", ["project", "reduce"])
def test_layers_run_the_ops(with_cuda_kernels: None, direction: str, inference: bool) -> None:
    with fake_cuda():
        layer = make(direction)
        input = torch.empty(TOKENS, layer.in_features, device="cuda", dtype=torch.bfloat16)
        offsets = torch.empty(5, dtype=torch.int32, device="cuda")
        mask = torch.empty(4, HEADS, dtype=torch.bool, device="cuda")
        with torch.set_grad_enabled(not inference), Called() as called:
            out = layer(input, offsets, mask)
    assert called.ops == [f"head_masked_{direction}"]
    assert (out.shape, out.dtype, out.device.type) == ((TOKENS, layer.out_features), torch.bfloat16, "cuda")
    assert out.requires_grad != inference


def test_query_key_and_value_are_one_product(with_cuda_kernels: None) -> None:
    with fake_cuda(), torch.no_grad():
        layers = [make("project") for _ in range(3)]
        input = torch.empty(TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16)
        offsets = torch.empty(5, dtype=torch.int32, device="cuda")
        with Called() as called:
            out = project_heads(layers, input, offsets)
    assert called.ops == ["head_masked_project"]
    assert out.shape == (TOKENS, 3 * FEATURES)


def test_other_dtypes_and_builds_without_cuda_take_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for built_for, dtype in ((("cpu", "cuda"), torch.float64), (("cpu",), torch.bfloat16)):
        monkeypatch.setattr(head_masked_linear, "DEVICES", built_for)
        with fake_cuda(), torch.no_grad():
            layer = make("project", dtype)
            input = torch.empty(TOKENS, WIDTH, device="cuda", dtype=dtype)
            offsets = torch.empty(5, dtype=torch.int32, device="cuda")
            with Called() as called:
                out = layer(input, offsets, torch.empty(4, HEADS, dtype=torch.bool, device="cuda"))
        assert called.ops == [] and out.device.type == "cuda"
        assert "plain torch" in layer.explain()
