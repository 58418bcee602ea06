"""Ctrl-C, from the first moment of a command to its last: status 130 and one line, whatever it comes upon.

Nothing here imports JAX: a command can be interrupted while it loads.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

__all__ = ["INTERRUPTED", "STATUS", "Interruptible", "end", "end_interrupted"]

STATUS = 130
INTERRUPTED = "diffuse-jax: interrupted"
_GRACE = 5.0  # seconds within which a command clears up


class Interruptible:
    """While it is entered, SIGINT raises KeyboardInterrupt, so that what is half done is cleared up; a second one, or
    a first that had no effect for some seconds because the code that it met swallowed it, ends the process.

    `requested` says whether there was one: what fails after it failed of it. Only the main thread may set handlers:
    elsewhere this does nothing. Training has a handler of its own (`diffuse_jax.training.Interrupt`).
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._timer = threading.Timer(_GRACE, end_interrupted)
        self._timer.daemon = True

    def __enter__(self) -> "Interruptible":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            end_interrupted()
        self.requested = True
        self._timer.start()
        raise KeyboardInterrupt


def end_interrupted(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """Says so and ends the process at once; a handler of SIGINT too, where there is nothing to clear up."""
    os.write(2, f"{INTERRUPTED}\n".encode())  # what it interrupts may be within a print
    end(STATUS)


def end(status: int) -> NoReturn:
    """Ends the process at once, without the interpreter's own end."""
    with contextlib.suppress(RuntimeError):  # within a print
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(status)
