"""Several processes as one run: how they find each other, what they decide together, and how they end.

Every process runs the same command; together they have all devices of all of them. What only one does, such as writing
and printing, process 0 does (`first`). Whatever may fail in one of them before they compute is done by `together`, so
that they stop as one, with one line. A process that fails later tears the others out of their computation.
"""

import argparse
import contextlib
import hashlib
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffuse_jax.checkpoints import CheckpointError
from diffuse_jax.cli.interrupts import STATUS, end
from diffuse_jax.config import ConfigError
from diffuse_jax.convert import ConversionError
from diffuse_jax.data import DataError

__all__ = [
    "BAD_INPUT",
    "Stopped",
    "check_command",
    "check_same",
    "check_shared",
    "first",
    "from_first",
    "leave",
    "start",
    "together",
]

#: What a command says in one line, with exit status 2.
BAD_INPUT = (ConfigError, DataError, CheckpointError, ConversionError, OSError)

T = TypeVar("T")

# The flags, and what stands in for one that is not given.
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# What processes may be given each in its own way: the rest of a command is the same in all.
_OWN = {*_VARIABLES, "distributed", "timeout", "config", "workdir"}

_LINE = 1000  # bytes of an error that travel
_STALE = 10  # seconds for which a file system over a network may show what was there before


class Stopped(Exception):
    """All processes stop, for a reason that process 0 is to say."""


def start(args: argparse.Namespace) -> None:
    """Joins the processes that --coordinator, --num_processes and --process_id name, or the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or with --distributed those that JAX finds by itself
    (SLURM, TPU pods, …); where none of these is given it does nothing. Before anything touches a device.

    ConfigError, naming the flag, where they are incomplete or contradict each other. Where the processes do not meet
    within --timeout seconds this process ends, with one line: JAX itself would be aborted.
    """
    given = {name: found for name in _VARIABLES if (found := _given(args, name)) is not None}
    if args.distributed:
        flags = [source for _, source in given.values() if source.startswith("--")]
        if flags:
            raise ConfigError(f"--distributed finds the processes by itself: leave it out, or {' and '.join(flags)}")
        _initialize("--distributed", args.timeout)
    elif given:
        missing = [name for name in _VARIABLES if name not in given]
        if missing:
            have = " and ".join(f"{source}={value}" for value, source in given.values())
            wanted = " and ".join(f"--{name} (or {_VARIABLES[name]})" for name in missing)
            raise ConfigError(f"{have} wants {wanted} too: a run of several processes is told all three")
        count = _integer(*given["num_processes"], 1, None)
        number = _integer(*given["process_id"], 0, count)
        address = _address(*given["coordinator"])
        if number == 0:
            _check_free(address, given["coordinator"][1])
        _initialize(
            f"--coordinator={address} of {count} processes",
            args.timeout,
            coordinator_address=address,
            num_processes=count,
            process_id=number,
            # Or a cluster's launcher would say which single device this process has.
            cluster_detection_method="deactivate",
        )


def _given(args: argparse.Namespace, name: str) -> tuple[str, str] | None:
    """The value of a flag or of the environment variable in its place, and which of them it is."""
    if (flag := getattr(args, name)) is not None:
        return str(flag), f"--{name}"
    variable = _VARIABLES[name]
    return (os.environ[variable], variable) if os.environ.get(variable) else None


def _integer(text: str, source: str, least: int, end: int | None) -> int:
    number = int(text) if text.isdecimal() else -1
    if number < least or (end is not None and number >= end):
        wanted = f"an integer from {least}" + ("" if end is None else f" to {end - 1}, of {end} processes")
        raise ConfigError(f"{source}={text} must be {wanted}")
    return number


def _address(text: str, source: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"{source}={text} must be HOST:PORT, of the machine of process 0 and a free port there")
    return text


def _check_free(address: str, source: str) -> None:
    """ConfigError where process 0 cannot listen: JAX would crash."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise ConfigError(f"{source}={address}: process 0 cannot listen there: {error.strerror}") from error


def _initialize(whom: str, timeout: int, **options: Any) -> None:
    # JAX's own notice of preemption would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX aborts, with a stack trace of C++, when its time is up. This is up sooner, and says why.
    clock = threading.Timer(timeout, _never_met, (whom, timeout))
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=3600,  # while process 0 writes, and computes what one process computes
            **options,
        )
    except (ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())
        instead = "" if options else "; without a cluster give --coordinator, --num_processes and --process_id"
        raise ConfigError(f"{whom}: JAX could not start: {words}{instead}") from error
    finally:
        clock.cancel()


def _never_met(whom: str, timeout: int) -> None:
    _end(
        f"{whom}: not all processes met within {timeout} s: start each, with a coordinator that it can reach, or give "
        "a longer --timeout",
        2,
    )


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def together(function: Callable[[], T]) -> T:
    """`function()` in every process. Where it raises one of `BAD_INPUT` in any of several, all raise `Stopped` with the
    message of the first in which it did, and that one's number where it is not 0."""
    if jax.process_count() == 1:
        return function()
    result, error = None, None
    try:
        result = function()
    except BAD_INPUT as caught:
        error = caught
    lines = _from_all("" if error is None else " ".join(str(error).split()) or type(error).__name__)
    failed = [(number, line) for number, line in enumerate(lines) if line]
    if not failed:
        return result  # type: ignore[return-value]
    number, line = failed[0]
    raise Stopped(line if number == 0 else f"process {number}: {line}") from error


def check_command(args: argparse.Namespace) -> None:
    """Stops all processes where they have different numbers of devices, or one was given another command."""
    if not jax.distributed.is_initialized():
        return
    # Seen by each for itself: JAX exchanges nothing between such processes.
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{devices[number]} in process {number}" for number in sorted(devices))
        raise Stopped(f"the processes have different numbers of devices, {found}: give each as many")
    check_same("command", repr(sorted((name, value) for name, value in vars(args).items() if name not in _OWN)))


def check_same(what: str, value: str) -> None:
    """Stops all processes where one has another value than process 0."""
    if jax.process_count() == 1:
        return
    found = _from_all(hashlib.sha256(value.encode()).hexdigest())
    other = [number for number, line in enumerate(found) if line != found[0]]

    def check() -> None:
        if other and first():
            raise ConfigError(
                f"process {other[0]} has another {what} than process 0: give all the same command, and a --workdir on "
                "a file system that all of them see"
            )

    together(check)


def check_shared(workdir: pathlib.Path) -> None:
    """Stops all processes where one does not see a file that process 0 writes in `workdir`."""
    if jax.process_count() == 1:
        return
    path = workdir / f".seen_by_all.{from_first(secrets.randbelow(2**31))}"
    together(lambda: path.touch() if first() else None)

    def check() -> None:
        deadline = time.monotonic() + _STALE
        while not _sees(path):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"--workdir={workdir} is not the folder that process 0 sees: it must be on a file system that all "
                    "processes see"
                )
            time.sleep(0.2)

    try:
        together(check)
    finally:
        if first():
            path.unlink()


def _sees(path: pathlib.Path) -> bool:
    """Whether a file is in its folder. A folder that is opened NFS looks at anew; of one that is only named it may say
    for a minute that there is none."""
    for folder in reversed(path.absolute().parents):
        with contextlib.suppress(OSError):
            os.scandir(folder).close()
    return path.parent.is_dir() and path.name in os.listdir(path.parent)


def from_first(number: int) -> int:
    """The number of process 0, in all; from -2³¹ to 2³¹ - 1."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _from_all(line: str) -> list[str]:
    padded = np.zeros(_LINE, np.uint8)
    words = np.frombuffer(line.encode()[:_LINE], np.uint8)
    padded[: len(words)] = words
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in gathered]


@contextlib.contextmanager
def leave() -> Iterator[None]:
    """Around a command: what fails in this process alone ends it at once, without waiting for the others at the exit,
    which wait for it; the loss of them is told in one line."""
    try:
        yield
    except (FloatingPointError, Stopped):  # in all processes alike
        raise
    except (Exception, KeyboardInterrupt) as error:
        if not jax.distributed.is_initialized():
            raise
        who = _name()
        if isinstance(error, KeyboardInterrupt):
            _end(f"{who}: interrupted", STATUS)
        if isinstance(error, BAD_INPUT):
            _end(f"{who}: {' '.join(str(error).split())}", 2)
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            line = (str(error).splitlines() or [""])[0]
            _end(f"{who}: the computation broke off; did another process end? see its output ({line})", 1)
        traceback.print_exc()
        _end(f"{who}: {type(error).__name__}", 1)


def _name() -> str:
    try:
        return f"process {jax.process_index()}"
    except Exception:  # without devices JAX has no number for it either, and fails in more than one way
        return "this process"


def _end(line: str, status: int) -> NoReturn:
    print(f"diffuse-jax: error: {line}", file=sys.stderr)
    end(status)
