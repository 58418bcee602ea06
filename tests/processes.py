"""Several real processes on this machine, which share four simulated devices: started, waited for, and always ended."""

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = 4  # of all processes together


def free_port():
    """Below the ports that the system gives to connections, of which one could take it before process 0 does."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def start(commands, folders=None, **environment):
    """Python with each of `commands`, in its folder where they are given."""
    environment = {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "cli"))),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // len(commands)}",
        **environment,
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | environment,
            cwd=folders and folders[number],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, command in enumerate(commands)
    ]


@contextlib.contextmanager
def killed(started):
    """At the end, whatever happens, no process is left."""
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def end(started, timeout=100):
    """The exit status, standard output and errors of each, all of which end by themselves in time."""
    deadline, late = time.monotonic() + timeout, []
    with killed(started):
        for number, process in enumerate(started):
            try:
                process.wait(timeout=max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(number)
    ends = [(process.returncode, *process.communicate()) for process in started]
    assert not late, (late, ends)
    return ends


def saved(workdir):
    """The steps of the checkpoints of a run, ascending."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def reached(workdir, step, started):
    """Waits until a checkpoint of at least `step` is there, which the running processes write."""
    deadline = time.monotonic() + 60
    while max(saved(workdir), default=-1) < step:
        if time.monotonic() > deadline or any(process.poll() is not None for process in started):
            raise AssertionError(f"step {step} is not reached: {end(started, timeout=10)}")
        time.sleep(0.005)
