"""Ctrl-C, from the first moment of a command to its last: status 130 and one line, whatever it comes upon.

Nothing here imports JAX: a command can be interrupted while it loads.
"""

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

__all__ = ["INTERRUPTED", "STATUS", "Interruptible", "end", "end_interrupted"]

STATUS = 130
INTERRUPTED = "diffuse-jax: interrupted"
_GRACE = 5.0  # seconds within which a command clears up
_AGAIN = 0.02  # seconds after which an interrupt that was ignored is raised anew


class Interruptible:
    """While it is entered, SIGINT raises KeyboardInterrupt, so that what is half done is cleared up. Where that was
    ignored, as in a callback of the garbage collector, it is raised anew; a second SIGINT, or one that had no effect
    for some seconds, ends the process.

    `requested` says whether there was one: what fails after it failed of it. Only the main thread may set handlers:
    elsewhere this does nothing. Training has a handler of its own (`diffuse_jax.training.Interrupt`).
    """

    def __init__(self) -> None:
        self.requested = False
        self._ignored = False
        self._handler: Any = None
        self._hook = sys.unraisablehook
        self._patience = _timer(_GRACE, end_interrupted)

    def __enter__(self) -> "Interruptible":
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patience.cancel()
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            sys.unraisablehook = self._hook

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested and not self._ignored:
            end_interrupted()
        if not self.requested:
            self._patience.start()
        self.requested, self._ignored = True, False
        raise KeyboardInterrupt

    def _unraisable(self, what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            self._ignored = True
            _timer(_AGAIN, _thread.interrupt_main).start()
        else:
            self._hook(what)


def _timer(seconds: float, function: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    return timer


def end_interrupted(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """Says so and ends the process at once; a handler of SIGINT too, where there is nothing to clear up."""
    os.write(2, f"{INTERRUPTED}\n".encode())  # what it interrupts may be within a print
    end(STATUS)


def end(status: int) -> NoReturn:
    """Ends the process at once, without the interpreter's own end."""
    with contextlib.suppress(RuntimeError, OSError):  # within a print; of a reader that is gone
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(status)
