"""Processes that are to be interrupted."""

import signal


def hear_interruptions() -> None:
    """For `preexec_fn`: a shell's background job, and all that it starts, ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
