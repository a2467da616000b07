"""Checks of argument values where they are not free."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_enabled: ContextVar[bool] = ContextVar("vleff.debug_checks", default=False)


@contextmanager
def debug_checks() -> Iterator[None]:
    """Checks the values of offsets, indices and biases on devices too, where reading them waits for the device.

    On the CPU values are always checked. On CUDA a kernel clamps bad values, so that they cannot read or write
    out of bounds, and says nothing; within this context they raise the same errors as on the CPU:

        with vleff.debug_checks():
            model(**inputs)

    Graphs that torch.compile made do not check.
    """
    token = _enabled.set(True)
    try:
        yield
    finally:
        _enabled.reset(token)


def checks_values() -> bool:
    """Whether the caller is within `debug_checks`."""
    return _enabled.get()
