"""What `vleff.explain` says about a model."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from vleff import choices
from vleff.models.conversion import is_converted, unsupported
from vleff.models.layer import PackedLayer
from vleff.models.registry import Adapter, base_models
from vleff.models.trimming import Trimming
from vleff.nn.fused_linear import FusedLinear
from vleff.nn.masked_linear import MaskedLinear

CALLS_AS_BEFORE = (
    "Calls that run as transformers wrote them: output_attentions, masks of 3 or 4 dimensions, is_causal, "
    "caches and encoder_hidden_states, dtypes other than float32, bfloat16 and float16, devices without kernels, "
    "hooks inside a layer."
)


@dataclass(frozen=True)
class EncoderReport:
    """One transformers model found inside the explained one.

    Attributes:
        path: its name inside the explained model, "" for that model itself.
        class_name: its class.
        family: the name of its adapter, None if there is none.
        accelerated: whether it runs packed.
        reason: why it does not, None if it does.
        layers: for each layer its path and what computes it.
        attention: the attention implementation that its config names; once accelerated, ours.
    """

    path: str
    class_name: str
    family: str | None
    accelerated: bool
    reason: str | None
    layers: list[tuple[str, str]] = field(default_factory=list)
    attention: str | None = None

    def alike(self) -> list[tuple[int, str, str]]:
        """Equal layers together: how many, their path with * for the numbers, and what computes them."""
        counted = Counter((re.sub(r"\b\d+\b", "*", path), kernels) for path, kernels in self.layers)
        return [(count, path, kernels) for (path, kernels), count in counted.items()]

    def __str__(self) -> str:
        name = f"{self.path or 'model'} ({self.class_name}"
        name += f", {self.family})" if self.family else ")"
        if not self.accelerated:
            return f"{name}: as transformers wrote it: {self.reason}"
        lines = [f"{name}: packed; attention implementation {self.attention!r}"]
        lines += [f"  {count} x {path}: {kernels}" for count, path, kernels in self.alike()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What runs where in a model; print it, or read its parts.

    Attributes:
        cpu_isa: the instruction-set level that vleff's kernels use.
        encoders: every transformers model found inside.
        linears: what computes the linear layers outside of packed layers (poolers, projections, heads, decoders),
            and how many of them.
        choices: the choice table in use.
        trimmings: for each module whose tokens and heads are trimmed, what its last run kept.
    """

    cpu_isa: str
    encoders: list[EncoderReport]
    linears: dict[str, int] = field(default_factory=dict)
    choices: str = ""
    trimmings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"vleff kernels at instruction-set level {self.cpu_isa}; choice table: {self.choices}"]
        lines += [str(encoder) for encoder in self.encoders]
        lines += [f"other linear layers: {count} x {kernel}" for kernel, count in self.linears.items()]
        lines += self.trimmings
        if any(encoder.accelerated for encoder in self.encoders):
            lines.append(CALLS_AS_BEFORE)
        return "\n".join(lines)


def report_on(model: nn.Module) -> Report:
    """The report on `model`, accelerated or not."""
    known = base_models(model)
    encoders = [_report_on_base(path, base, adapter) for path, base, adapter in known]
    encoders += [
        EncoderReport(path, type(module).__name__, None, False, "there is no adapter for its class")
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and not _is_related(path, [path for path, _, _ in known])
    ]
    if not encoders:
        encoders = [EncoderReport("", type(model).__name__, None, False, "it contains no transformers model")]
    in_layers = {inner for layer in model.modules() if isinstance(layer, PackedLayer) for inner in layer.modules()}
    outside = [module for module in model.modules() if module not in in_layers]
    trimmings = [module.explain() for module in model.modules() if isinstance(module, Trimming)]
    return Report(torch.ops.vleff.cpu_isa(), encoders, _linears(outside), str(choices.table()), trimmings)


def _is_related(path: str, known: list[str]) -> bool:
    """Whether the module at `path` contains a module at a known path or lies in one."""
    dotted = f"{path}." if path else ""
    return any(other.startswith(dotted) or dotted.startswith(f"{other}." if other else "") for other in known)


def _report_on_base(path: str, base: PreTrainedModel, adapter: Adapter) -> EncoderReport:
    name = type(base).__name__
    reason = unsupported(base, adapter)
    if reason is None and not is_converted(base):
        reason = "vleff.accelerate was not called on it"
    if reason is not None:
        return EncoderReport(path, name, adapter.family, False, reason)
    prefix = f"{path}." if path else ""
    layers = [(prefix + at, _kernels(layer)) for at, layer in base.named_modules() if isinstance(layer, PackedLayer)]
    return EncoderReport(path, name, adapter.family, True, None, layers, base.config._attn_implementation)


def _kernels(layer: PackedLayer) -> str:
    linears = [f"{count} x {kernel}" for kernel, count in _linears(layer.modules()).items()]
    return "; ".join(["token_gather_attention", "residual_layer_norm", *linears])


def _linears(modules: Iterable[nn.Module]) -> dict[str, int]:
    """What computes the linear layers among `modules`, and how many of them."""
    return dict(
        Counter(
            module.explain() if isinstance(module, (FusedLinear, MaskedLinear)) else "linear by torch"
            for module in modules
            if isinstance(module, (nn.Linear, MaskedLinear))
        )
    )
