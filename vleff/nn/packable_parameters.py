"""The parameters of a linear layer whose weight has one home: plain, or packed for the kernel."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import RLock
from typing import Any

import torch
import torch._guards
from torch.nn import Parameter
from torch.utils._python_dispatch import _disable_current_modes

from vleff.choices import packs_weight
from vleff.ops.fused_linear import pack_linear_weight, packs_linear_weight, unpack_linear_weight

_lock = RLock()  # held while a weight moves
_MOST_PACKINGS = 64  # a weight that is read after every forward is faster plain


class PackedWeight:
    """Holds the packed weight of a layer, None while its weight is plain."""

    def __init__(self) -> None:
        self.tensor: torch.Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, ()


class PackableParameters(dict[str, Parameter | None]):
    """The `_parameters` of a linear module, which move "weight" into a packed layout and back.

    A packed weight takes the place of the plain one: the Parameter object stays, but its values become NaN
    that share one element of memory. Every way to the Parameter that torch offers (attributes, `parameters`,
    `state_dict`, `load_state_dict`, `.to`, `requires_grad_`, copying, pickling, ...) leads through this dict,
    which puts the values back, bit for bit, before it hands the Parameter out. So nobody ever sees a packed
    weight, and none goes stale.

    A weight that anything else refers to (an optimizer, a tied layer, a variable, a view or NumPy array of
    its memory, an autograd graph) is not packed: it could be read or written behind this dict's back.
    """

    def __init__(self, parameters: dict[str, Parameter | None], packed: PackedWeight | None = None) -> None:
        super().__init__(parameters)
        self.packed = PackedWeight() if packed is None else packed
        self.packings = 0

    def requires_grad(self) -> bool:
        """Whether any parameter requires a gradient."""
        return any(parameter is not None and parameter.requires_grad for parameter in dict.values(self))

    def pack(self) -> torch.Tensor | None:
        """The packed weight, packed now if it may be; None if it has to stay plain."""
        with _lock:
            if self.packed.tensor is None and self.why_plain() is None:
                with _outside_of_modes():
                    self.packed.tensor = pack_linear_weight(_weight(self))
                    # A thread that fetches the Parameter from now on sees the packed weight and calls
                    # unpack(), which waits for the lock; one that has fetched it before is seen here.
                    if _references(self) == _SOLE_REFERENCE:
                        _release_memory(_weight(self))
                        self.packings += 1
                    else:
                        self.packed.tensor = None
            return self.packed.tensor

    def unpack(self) -> None:
        """Makes the weight plain."""
        if self.packed.tensor is None:
            return
        with _lock, _outside_of_modes():
            if self.packed.tensor is not None:
                _weight(self).data = unpack_linear_weight(self.packed.tensor)
                self.packed.tensor = None

    def why_plain(self) -> str | None:
        """Why the weight may not be packed now; None if it may."""
        reason = _unfit(dict.get(self, "weight"))
        if reason is None and _references(self) != _SOLE_REFERENCE:
            reason = "something outside this module refers to it (a variable, optimizer, tied layer or view)"
        if reason is None and self.packings >= _MOST_PACKINGS:
            reason = f"it was packed {self.packings} times and read as often; refresh() starts anew"
        return reason

    def __getitem__(self, name: str) -> Parameter | None:
        parameter = super().__getitem__(name)
        if name == "weight" and self.packed.tensor is not None:
            self.unpack()
        return parameter

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self.keys() else default

    def plain(self) -> dict[str, Parameter | None]:
        """The parameters in a dict of their own, the weight plain; nothing is packed while it lives."""
        parameters = dict(dict.items(self))
        if self.packed.tensor is not None and not _dynamo_is_looking():
            self.unpack()
        return parameters

    def items(self) -> Any:
        return self.plain().items()

    def values(self) -> Any:
        return self.plain().values()

    def __iter__(self) -> Iterator[str]:  # as long as a subclass has its own, dict(self) asks __getitem__
        return super().__iter__()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return PackableParameters, (self.plain(), self.packed)


def _after_unpacking(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    def call(self: PackableParameters, *args: Any, **kwargs: Any) -> Any:
        with _lock:
            self.unpack()
            return method(self, *args, **kwargs)

    return call


for _name in (
    *("__setitem__", "__delitem__", "pop", "popitem", "clear", "setdefault", "update", "copy"),
    *("__or__", "__ror__", "__ior__", "__eq__"),
):
    setattr(PackableParameters, _name, _after_unpacking(_name))


def _unfit(weight: torch.Tensor | None) -> str | None:
    """Why a weight cannot be packed, whoever refers to it."""
    if type(weight) is not Parameter:
        return f"it is no plain Parameter but {type(weight).__name__}"
    if weight.device.type != "cpu" or not packs_linear_weight(weight.dtype):
        return f"oneDNN takes no {weight.dtype} on {weight.device}".replace("torch.", "")
    if weight.dim() != 2 or not weight.is_contiguous():
        return "it is not contiguous"
    if weight.is_shared():
        return "its memory is shared with other processes"
    if not packs_weight(weight.shape[0], weight.shape[1], weight.dtype):
        return "packing gains less than 5 % at its size"
    return None


def _weight(parameters: dict[str, Parameter | None]) -> Any:
    """The Parameter as it is, packed or plain. Whoever keeps it in a variable keeps it from being packed."""
    return dict.__getitem__(parameters, "weight")


def _release_memory(weight: torch.Tensor) -> None:
    weight.data = weight.new_full((), torch.nan).expand(weight.shape)


def _references(parameters: dict[str, Parameter | None]) -> tuple[int, int, int]:
    """How many references Python, C++ and views hold to the weight, of which callers hold none."""
    weight = _weight(parameters)
    storage = weight.untyped_storage()
    return sys.getrefcount(weight), weight._use_count(), torch._C._storage_Use_Count(storage._cdata)


_SOLE_REFERENCE = _references({"weight": Parameter(torch.zeros(1))})


def _dynamo_is_looking() -> bool:
    """Whether torch.compile lists the parameters of a module that it is about to trace.

    It marks the Parameter objects and reads no values; unpacking would recompile every packed module as a plain one.
    """
    return torch._guards.CompileContext.try_get() is not None and not torch.compiler.is_exporting()


def _outside_of_modes() -> ExitStack:
    """Weights move the same way whatever mode their reader is in: inference, fake tensors, gradients."""
    modes = ExitStack()
    modes.enter_context(_disable_current_modes())
    modes.enter_context(torch.inference_mode(False))
    modes.enter_context(torch.no_grad())
    return modes
