"""The engines that `vleff bench` compares, all in the same dtype and on the same threads."""

import copy
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Engine = Callable[[Inputs], Tensor]  # a padded batch -> last hidden states [batch, length, d]


class EngineUnavailableError(Exception):
    """The engine cannot run here; the message says why and what to do."""


def dense(model: nn.Module, example: Inputs) -> Engine:
    """The transformers model as users run it."""

    def run(inputs: Inputs) -> Tensor:
        with torch.inference_mode():
            return model(**inputs).last_hidden_state

    return run


def vleff(model: nn.Module, example: Inputs) -> Engine:
    """A copy of the model, accelerated.

    Raises:
        ValueError: the model cannot be accelerated.
    """
    from vleff import accelerate

    try:
        return dense(accelerate(copy.deepcopy(model)), example)
    except TypeError as error:
        raise ValueError(str(error)) from error


def compiled(model: nn.Module, example: Inputs) -> Engine:
    """torch.compile with its default settings."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise EngineUnavailableError("torch.compile needs a C++ compiler (g++ or clang++) on PATH")
    return dense(torch.compile(model), example)  # type: ignore[arg-type]


def openvino(model: nn.Module, example: Inputs) -> Engine:
    """OpenVINO's CPU plugin, with the inference precision of the model's dtype."""
    try:
        import openvino as ov
    except ImportError as error:
        raise EngineUnavailableError("OpenVINO is not installed: pip install openvino") from error
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[_dtype(model)]
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineUnavailableError("OpenVINO has no bf16 on this processor and would run fp32")
    traceable = _LastHiddenState(copy.deepcopy(model).float(), list(example))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about branches on shapes
        converted = ov.convert_model(traceable, example_input=tuple(_as_float(v) for v in example.values()))
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    executable = core.compile_model(converted, "CPU", settings)

    def run(inputs: Inputs) -> Tensor:
        return torch.from_numpy(executable([_as_float(value).numpy() for value in inputs.values()])[0])

    return run


def onnxruntime(model: nn.Module, example: Inputs) -> Engine:
    """ONNX Runtime's CPU provider, fp32 only."""
    try:
        import onnx  # noqa: F401  torch's exporter needs it
        import onnxruntime as ort
    except ImportError as error:
        raise EngineUnavailableError(f"{error.name} is not installed: pip install onnxruntime onnx") from error
    if _dtype(model) != torch.float32:
        raise EngineUnavailableError("ONNX Runtime has no bf16 matrix products on CPU")
    names = list(example)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # its threads would spin on into the next engine's turn
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.onnx")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns about branches on shapes
            torch.onnx.export(
                _LastHiddenState(copy.deepcopy(model), names),
                tuple(example.values()),
                file,
                dynamo=False,
                input_names=names,
                output_names=["last_hidden_state"],
                dynamic_axes={name: _dynamic_axes(name) for name in names},
                opset_version=17,
            )
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])

    return run


# what `--against` may name
OTHERS: dict[str, Callable[[nn.Module, Inputs], Engine]] = {
    "compile": compiled,
    "openvino": openvino,
    "onnxruntime": onnxruntime,
}


class _LastHiddenState(nn.Module):
    """The model with positional tensors in and one tensor out, as tracers want it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True))).last_hidden_state


def _dynamic_axes(name: str) -> dict[int, str]:
    return {0: "batch"} if name == "pixel_values" else {0: "batch", 1: "length"}


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _as_float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
