"""What a case of the self-test is, and how its arguments are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """Arguments on which an op is compared with its reference.

    Attributes:
        op: its name in torch.ops.vleff. The case runs wherever this op has a kernel.
        name: what is special about the arguments.
        function: calls the op.
        reference: the formula in plain torch.
        arguments: of both, by name, on the CPU. Tensors in float64 get the dtype under test, all others keep theirs;
            gradients are compared of those that require them.
        dtypes: those under test.
    """

    op: str
    name: str
    function: Function
    reference: Function
    arguments: dict[str, Any]
    dtypes: tuple[torch.dtype, ...] = DTYPES


class Draw:
    """Draws the arguments of a case, the same ones on every machine."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def leaf(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed, float64; its gradient is compared."""
        return self.constant(*shape, scale=scale).requires_grad_()

    def constant(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed, float64; without a gradient."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale

    def integers(self, end: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """From 0 to below `end`."""
        return torch.randint(end, shape, generator=self.generator, dtype=dtype)

    def chances(self, share: float, *shape: int) -> Tensor:
        """bool, True for about this share."""
        return torch.rand(shape, generator=self.generator) < share


def offsets_of(lengths: Sequence[int]) -> Tensor:
    """int32 [batch + 1], where each sample begins."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
