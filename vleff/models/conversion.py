"""Turns one base model of a known family into its packed form and back."""

from dataclasses import dataclass, field
from typing import Any, TypeGuard

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, QuickGELUActivation

from vleff.models.attention_interface import implementations
from vleff.models.layer import FeedForwardParts, PackedLayer, has_hooks
from vleff.models.registry import Adapter, adapter_for, base_models, warn_if_unchecked
from vleff.models.trimming import Trimmable, Trimming
from vleff.nn.fused_linear import FusedLinear
from vleff.nn.masked_linear import MaskedLinear

_RECORD = "_vleff_conversion"
_FUSED_ACTIVATIONS: dict[type, str] = {
    GELUActivation: "gelu",
    GELUTanh: "gelu_tanh",
    NewGELUActivation: "gelu_tanh",
    QuickGELUActivation: "quick_gelu",
    nn.ReLU: "relu",
}


@dataclass
class Conversion:
    """What it takes to undo one; kept on the base model, copied and pickled with it.

    Attributes:
        attention_implementation: the one that the config named before.
        replaced: owner, name there, original and stand-in of each module that was exchanged.
    """

    attention_implementation: str
    replaced: list[tuple[nn.Module, str, nn.Module, nn.Module]] = field(default_factory=list)


def is_converted(base: PreTrainedModel) -> bool:
    """Whether `base` is in its packed form."""
    return _RECORD in base.__dict__


def unsupported(base: PreTrainedModel, adapter: Adapter) -> str | None:
    """Why `base` cannot run packed, None if it can."""
    attention, ours = base.config._attn_implementation, implementations(adapter.causal)
    if attention not in (*ours, *ours.values()):
        return f"its attention implementation is '{attention}', expected one of {', '.join(ours)}"
    if base.config.output_attentions:
        return "its config asks for attention weights (config.output_attentions), which are never built"
    for original, packed in adapter.packed_classes.items():
        modules = [module for module in base.modules() if isinstance(module, original)]
        if not modules and issubclass(packed, PackedLayer) and not packed.optional:
            return f"it has no {original.__name__}"
        for module in modules:
            if type(module) not in (original, packed):
                return f"expected the class {original.__name__}, got its subclass {type(module).__name__}"
            reason = packed.unsupported(module) if issubclass(packed, PackedLayer) else None
            if reason is not None:
                return reason
    return None


def convert(model: nn.Module, base: PreTrainedModel, adapter: Adapter) -> None:
    """Exchanges classes, linears and attention implementation of `base` and its head, if any, in `model`."""
    warn_if_unchecked(adapter.family, adapter.checked_versions)
    ours, current = implementations(adapter.causal), base.config._attn_implementation
    # it is ours already where another base model shares the config
    conversion = Conversion(next((name for name, own in ours.items() if own == current), current))
    _set_attention(base, ours[conversion.attention_implementation])
    for module in list(base.modules()):
        module.__class__ = adapter.packed_classes.get(type(module), type(module))
        if isinstance(module, PackedLayer):
            _exchange_linears(module, conversion, module.parts().feed_forward)
    # torch's own linears, in poolers and heads, would change a sample's bits with the size of its batch
    for owner in _models_around(base, model):
        _exchange_linears(owner, conversion)
    base.__dict__[_RECORD] = conversion


def trimmable_modules(model: nn.Module) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The path in `model` and the module of everything that can be trimmed, and of every decoder, which cannot but has
    to know that its memory was."""
    decoder_classes = tuple(kind for _, _, adapter in base_models(model) for kind in adapter.decoders)
    decoders = [path for path, module in model.named_modules() if isinstance(module, decoder_classes)]
    holders = [
        path
        for path, module in model.named_modules()
        if isinstance(module, Trimmable) and module.holds_streams_inside and module.streams()
    ]
    trimmed, decoding = [], []
    for path, module in model.named_modules():
        if not isinstance(module, Trimmable) or not module.streams():
            continue
        if any(_lies_in(path, decoder) for decoder in decoders):
            decoding.append((path, module))
        elif not any(_lies_in(path, holder) and path != holder for holder in holders):
            trimmed.append((path, module))
    return trimmed, decoding


def _lies_in(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(f"{other}.")


def install_trimmed_classes(base: PreTrainedModel, adapter: Adapter) -> None:
    """Exchanges the classes that have to know more to trim tokens."""
    for module in base.modules():
        module.__class__ = adapter.trimmed_classes.get(type(module), type(module))


def uninstall_trimmed_classes(base: PreTrainedModel, adapter: Adapter) -> None:
    """Undoes `install_trimmed_classes`."""
    untrimmed = {trimmed: plain for plain, trimmed in adapter.trimmed_classes.items()}
    for module in base.modules():
        module.__class__ = untrimmed.get(type(module), type(module))


def revert(base: PreTrainedModel, adapter: Adapter) -> None:
    """Undoes `convert`, except for modules that were exchanged again meanwhile.

    Raises:
        RuntimeError: a trimming is installed.
    """
    if any(isinstance(module, Trimming) for module in base.modules()):
        raise RuntimeError("model: expected one without trimmers, which need it accelerated; detach them first")
    conversion: Conversion = base.__dict__.pop(_RECORD)
    for owner, name, original, replacement in conversion.replaced:
        if getattr(owner, name) is replacement:
            if isinstance(replacement, FusedLinear) and isinstance(original, nn.Linear):
                replacement.move_parameters_to(original)
            setattr(owner, name, original.train(replacement.training))
    original_classes = {packed: original for original, packed in adapter.packed_classes.items()}
    for module in base.modules():
        module.__class__ = original_classes.get(type(module), type(module))
    _set_attention(base, conversion.attention_implementation)


def _set_attention(base: PreTrainedModel, implementation: str) -> None:
    if base._can_set_attn_implementation():
        base.set_attn_implementation(implementation)
    else:  # a family with attention of its own: only its masks are made by the implementation's name
        base.config._attn_implementation_internal = implementation


def _models_around(base: PreTrainedModel, model: nn.Module) -> list[PreTrainedModel]:
    """The transformers models in `model` that contain `base`, itself included."""
    return [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and any(inner is base for inner in module.modules())
    ]


def _exchange_linears(root: nn.Module, conversion: Conversion, feed_forward: FeedForwardParts | None = None) -> None:
    """Puts a FusedLinear for each linear in `root`, other base models of known families left out.

    Of a layer whose `feed_forward` is given, the activation is fused, too, also into a MaskedLinear.
    """
    fused = _FUSED_ACTIVATIONS.get(type(feed_forward.activation)) if feed_forward is not None else None
    if fused is None or feed_forward is None or not _takes_activation(feed_forward.intermediate):
        fused, intermediate, activation = None, None, None
    else:
        intermediate, activation = feed_forward.intermediate, feed_forward.activation
    for owner in _modules_outside_of_base_models(root):
        for name, module in list(owner.named_children()):
            replacement: nn.Module
            if module is activation:
                replacement = nn.Identity()
            elif isinstance(module, MaskedLinear) and module is intermediate and fused is not None:
                replacement = module.with_activation(fused)
            elif _is_fusible(module):
                replacement = FusedLinear.from_linear(module, fused if module is intermediate and fused else "none")
            else:
                continue
            setattr(owner, name, replacement.train(module.training))
            conversion.replaced.append((owner, name, module, replacement))


def _modules_outside_of_base_models(root: nn.Module) -> list[nn.Module]:
    """`root` and the modules in it, except base models of known families and what they contain."""
    found = [root]
    for child in root.children():
        if not (isinstance(child, PreTrainedModel) and adapter_for(child) is not None):
            found += _modules_outside_of_base_models(child)
    return found


def _takes_activation(module: Any) -> bool:
    masked = isinstance(module, MaskedLinear) and module.activation == "none" and not has_hooks(module)
    return masked or _is_fusible(module)


def _is_fusible(module: Any) -> TypeGuard[nn.Linear]:
    return type(module) in (nn.Linear, NonDynamicallyQuantizableLinear) and not has_hooks(module)
