"""Readers: a token that was dropped is no answer."""

from typing import Any

import torch
from torch import Tensor, nn

from vleff.models.trimming import stream_of
from vleff.smarttrim.execution import Execution

_HEAD = "qa_outputs"
_PENALTY = 20.0  # in training: finite, so that a dropped answer costs, and its gradient asks to keep it


class _NoAnswer:
    """A forward hook on a span head: tokens whose states are zeros get the least logits there are.

    In training they get logits lower by a constant times 1 - gate, so that gates get gradients.
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution

    def __call__(self, head: nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> Tensor:
        if self.execution.mode == "full":
            return logits
        states = arguments[0]
        dropped = ~(states != 0).any(-1, keepdim=True)
        if not head.training:
            return logits.masked_fill(dropped, torch.finfo(logits.dtype).min)
        stream = stream_of(states)
        if stream is None or stream.gates is None:
            return logits - _PENALTY * dropped.to(logits.dtype)
        gates = stream.tokens.replace(stream.gates).unpack()[:, :, None]
        return logits - _PENALTY * (1 - gates.to(logits.dtype))


def watch_span_heads(model: nn.Module, execution: Execution) -> None:
    """Puts the hook on every span head in the model."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == _HEAD:
            module.register_forward_hook(_NoAnswer(execution))


def unwatch_span_heads(model: nn.Module) -> None:
    """Takes the hooks off."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _NoAnswer):
                del module._forward_hooks[key]
