"""attach and detach: trimmers on a transformers model."""

from typing import TypeVar

from torch import nn

from vleff.acceleration import accelerate
from vleff.models.conversion import (
    install_trimmed_classes,
    is_converted,
    trimmable_modules,
    uninstall_trimmed_classes,
)
from vleff.models.head_projections import forget_head_masked
from vleff.models.registry import base_models
from vleff.models.trimming import install, uninstall
from vleff.smarttrim.config import SmartTrimConfig
from vleff.smarttrim.execution import Execution
from vleff.smarttrim.span_heads import unwatch_span_heads, watch_span_heads
from vleff.smarttrim.trimming import Trimmers

Model = TypeVar("Model", bound=nn.Module)


def attach(model: Model, config: SmartTrimConfig | None = None) -> Model:
    """Accelerates a model and puts trimmers before its layers, in place.

    New trimmers keep everything; training makes them choose. Their parameters are the model's from now on: they
    train, move, save and load with it.

    In evaluation each sample then gets, in every layer, the tokens and heads that its trimmers keep. In outputs by
    token, dropped tokens are zeros. In training mode what is dropped is drawn, with straight-through gradients.

    Args:
        model: a transformers model of a family that docs/smarttrim.md lists, with any head, accelerated or not.
        config: by default `SmartTrimConfig()`.

    Returns:
        `model` itself.

    Raises:
        TypeError: nothing in the model can be trimmed.
        ValueError: it has trimmers already, or `config.layers` names a layer that no module has.
    """
    config = SmartTrimConfig() if config is None else config
    if any(isinstance(module, Trimmers) for module in model.modules()):
        raise ValueError("model: expected one without trimmers, got one that has them; detach them first")
    accelerate(model)
    modules, decoders = trimmable_modules(model)
    if not modules:
        raise TypeError(f"model: expected one of a family that can be trimmed, got {type(model).__name__}")
    longest = max(len(spec.layers) for _, module in modules for spec in module.streams())
    if config.layers is not None and max(config.layers, default=-1) >= longest:
        raise ValueError(f"argument 'layers': expected numbers below {longest}, got {max(config.layers)}")
    parameter = next(model.parameters())
    execution = Execution(config)
    for path, module in modules:
        trimmers = Trimmers(path, module.streams(), execution).to(parameter.device, parameter.dtype)
        install(module, trimmers.train(module.training))
    for path, module in decoders:
        install(module, Trimmers(path, (), execution).train(module.training))
    watch_span_heads(model, execution)
    for _, base, adapter in base_models(model):
        if is_converted(base):
            install_trimmed_classes(base, adapter)
    return model


def detach(model: Model) -> Model:
    """Takes the trimmers off a model, in place; it stays accelerated.

    Returns:
        `model` itself; one without trimmers stays as it is.
    """
    for module in list(model.modules()):
        if isinstance(getattr(module, "trimming", None), Trimmers):
            uninstall(module)
    unwatch_span_heads(model)
    forget_head_masked(model)
    for _, base, adapter in base_models(model):
        uninstall_trimmed_classes(base, adapter)
    return model
