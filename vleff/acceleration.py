"""`vleff.accelerate(model)`: the same transformers model with the same outputs, on vleff's kernels."""

from typing import TypeVar

from torch import nn

from vleff.models.conversion import convert, is_converted, revert, unsupported
from vleff.models.registry import base_models, families
from vleff.models.report import Report, report_on
from vleff.nn.fused_linear import FusedLinear
from vleff.nn.masked_linear import MaskedLinear

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Makes every supported encoder in a transformers model run packed with fused kernels, in place.

    The class, the interface, the state_dict and the parameters stay. Outputs agree within rounding at valid
    positions (docs/accelerate.md gives the bounds) and are zero at padded ones. Doing it twice is harmless.

    Args:
        model: a transformers model of a supported family (docs/accelerate.md lists them) with any head, or a
            module that contains such models. What is not supported in it stays as it
            is, and `explain` lists it.

    Returns:
        `model` itself.

    Raises:
        TypeError: nothing in `model` can be accelerated; the message says why.
    """
    found = base_models(model)
    reasons = [unsupported(base, adapter) for _, base, adapter in found]
    if all(reasons):  # also when nothing was found
        details = [f"{path or 'it'}: {reason}" for (path, _, _), reason in zip(found, reasons, strict=True)]
        raise TypeError(
            f"model: expected a transformers model of the families {', '.join(families())}, got "
            f"{type(model).__name__} ({'; '.join(details) or 'without such a model inside'})"
        )
    for (_, base, adapter), reason in zip(found, reasons, strict=True):
        if reason is None and not is_converted(base):
            convert(model, base, adapter)
    return model


def restore(model: Model) -> Model:
    """Undoes `accelerate` in place: the original modules and config, with the very same Parameter objects.

    Returns:
        `model` itself; one that is not accelerated stays as it is.
    """
    for _, base, adapter in base_models(model):
        if is_converted(base):
            revert(base, adapter)
    return model


def refresh(model: Model) -> Model:
    """Makes all weights plain, to be packed or copied anew: after writes to them that go past torch.

    Returns:
        `model` itself.
    """
    for module in model.modules():
        if isinstance(module, (FusedLinear, MaskedLinear)):
            module.refresh()
    return model


def explain(model: nn.Module) -> Report:
    """Says what computes each encoder layer inside `model`, accelerated or not, or why it is left as it was.

    Returns:
        a report to print or to read.
    """
    return report_on(model)
