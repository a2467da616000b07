"""The engines that `vleff bench` compares, all in the same dtype and on the same threads."""

import copy
import os
import shutil
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
HiddenStates = tuple[Tensor, ...]  # of the text, of the image or of both, [batch, length, d] each
Engine = Callable[[Inputs], HiddenStates]  # takes a padded batch


class EngineUnavailableError(Exception):
    """The engine cannot run here; the message says why and what to do."""


def hidden_states(output: Any) -> HiddenStates:
    """The last hidden states in a model's output: one tensor or, of a model with two streams, text and image.

    Of a model with a head its logits.
    """
    if isinstance(output, tuple):
        return output
    if "logits" in output:
        return (output.logits,)
    if "text_features" in output:
        return output.text_features, output.image_features
    if "text_model_output" in output:
        return output.text_model_output.last_hidden_state, output.vision_model_output.last_hidden_state
    return (output.last_hidden_state,)


def dense(model: nn.Module, example: Inputs) -> Engine:
    """The transformers model as users run it."""

    def run(inputs: Inputs) -> HiddenStates:
        with torch.inference_mode():
            return hidden_states(model(**inputs))

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
    traceable = _HiddenStatesOnly(copy.deepcopy(model).float(), list(example))
    with _converting("OpenVINO"):
        converted = ov.convert_model(traceable, example_input=tuple(_as_float(v) for v in example.values()))
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    executable = core.compile_model(converted, "CPU", settings)

    def run(inputs: Inputs) -> HiddenStates:
        outputs = executable([_as_float(value).numpy() for value in inputs.values()])
        return tuple(torch.from_numpy(outputs[i]) for i in range(len(outputs)))

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
        with _converting("ONNX"), _without_stdout():  # the exporter prints the graph of a model that it fails on
            torch.onnx.export(
                _HiddenStatesOnly(copy.deepcopy(model), names),
                tuple(example.values()),
                file,
                dynamo=False,
                input_names=names,
                dynamic_axes={name: _dynamic_axes(name, "pixel_mask" in names) for name in names},
                opset_version=17,
            )
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> HiddenStates:
        outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return run


# what `--against` may name
OTHERS: dict[str, Callable[[nn.Module, Inputs], Engine]] = {
    "compile": compiled,
    "openvino": openvino,
    "onnxruntime": onnxruntime,
}


def reason(error: Exception) -> str:
    """The beginning of an error's message, on one line; its class if it has none."""
    return textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__


@contextmanager
def _converting(format: str) -> Iterator[None]:
    """Says that the model cannot be converted, whatever the tracer stumbles over."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns about branches on shapes
            yield
    except Exception as error:
        raise EngineUnavailableError(f"the model cannot be converted to {format}: {reason(error)}") from error


@contextmanager
def _without_stdout() -> Iterator[None]:
    """Drops what is printed, by compiled code as well."""
    with open(os.devnull, "w") as nowhere:
        stdout = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)


class _HiddenStatesOnly(nn.Module):
    """The model with positional tensors in and out, as tracers want it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> HiddenStates:
        return hidden_states(self.model(**dict(zip(self.names, inputs, strict=True))))


def _dynamic_axes(name: str, mixed_sizes: bool) -> dict[int, str]:
    if name == "pixel_mask":
        return {0: "batch", 1: "height", 2: "width"}
    if name == "pixel_values":
        return {0: "batch", 2: "height", 3: "width"} if mixed_sizes else {0: "batch"}
    return {0: "batch", 1: "length"}


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _as_float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
