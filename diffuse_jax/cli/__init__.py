"""The command line, diffuse-jax COMMAND: what all commands have around them. What they are is in `cli.commands`."""

import logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from diffuse_jax.cli.arguments import read_arguments
from diffuse_jax.cli.commands import COMMANDS
from diffuse_jax.cli.interrupts import INTERRUPTED, STATUS, Interruptible, end, end_interrupted

__all__ = ["main", "run"]

_UNRAISABLE = sys.unraisablehook  # as it was before a command put its own in front


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0; 2 for bad input and 1 for a run that diverged, after one line on
    stderr; 130 where it was interrupted."""
    return _status(argv)[0]


def run() -> NoReturn:
    """`main` as a program. What is torn from its work, or failed, ends without the interpreter's own end, which can
    crash while the devices still compute, and would wait for the threads of a checkpoint that could not be written."""
    signal.signal(signal.SIGINT, end_interrupted)
    status, torn = _status(argv=None)
    if torn or (status and not _several_processes()):
        end(status)
    # Its work is done; the interpreter's own end would put back the system's handler, which kills.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _several_processes() -> bool:
    """Whether others wait for this one at its end."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized())


def _status(argv: Sequence[str] | None) -> tuple[int, bool]:
    """The exit status, and whether an interrupt tore the command from its work; training ends by itself."""
    interrupt = Interruptible()
    try:
        status, torn = _command(argv, interrupt), interrupt.requested
    except BaseException as error:
        torn = interrupt.requested or isinstance(error, KeyboardInterrupt)
        # What an interrupted library raises says nothing.
        status = STATUS if torn else _failed(error)
    if torn:
        print(INTERRUPTED, file=sys.stderr)
    return (STATUS if torn else status), torn


def _command(argv: Sequence[str] | None, interrupt: Interruptible) -> int:
    args, overrides = read_arguments(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Modules that a config names may lie in the folder one works in; last, so that they shadow no installed one.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    _keep_compilations()
    _quiet_libraries()
    from diffuse_jax.cli import distributed

    with interrupt, distributed.leave():
        if hasattr(args, "coordinator"):
            distributed.start(args)
        distributed.check_command(args)
        return COMMANDS[args.command].run(args, overrides)


def _failed(error: BaseException) -> int:
    """The status of a command that raised `error`, after its line on stderr; raises what is no answer to the user."""
    if isinstance(error, SystemExit):  # of --help or a usage error, which have been said, and are to be quick
        raise error
    from diffuse_jax.cli import distributed

    if isinstance(error, distributed.BAD_INPUT):
        print(f"diffuse-jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if isinstance(error, (FloatingPointError, distributed.Stopped)):
        if distributed.first():
            print(f"diffuse-jax: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    raise error


def _quiet_libraries() -> None:
    """What Orbax and asyncio log of an error, with its traceback, is raised too, and said here in one line."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = _show_unraisable


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Passes over what TensorStore's own threads can no longer hand to a reader that has failed."""
    if unraisable.object is not None or threading.current_thread() is threading.main_thread():
        _UNRAISABLE(unraisable)


def _keep_compilations() -> None:
    """JAX's compilation cache, in the user's cache folder unless JAX_COMPILATION_CACHE_DIR names another."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "diffuse_jax"))
