"""Two real processes train as one does, and either goes on from where the other was killed or stopped."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
STEPS, WIDTH = 60, 1024
DEVICES = 4  # of all processes together


def free_port():
    """Below the ports that the system gives to connections, of which one could take it before process 0 does."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def start(folder, processes, fsdp=1, steps=STEPS):
    """The toy's processes, in float64, with four devices together."""
    folder.mkdir(exist_ok=True)
    address, started = f"127.0.0.1:{free_port()}", []
    for number in range(processes):
        environment = os.environ | {
            "PYTHONPATH": str(HERE.parents[1]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
            "JAX_ENABLE_X64": "1",
        }
        if processes > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
            environment["JAX_PROCESS_ID"] = str(number)
        command = [sys.executable, str(HERE / "toy_training.py"), str(folder), str(steps), str(WIDTH), str(fsdp)]
        with (folder / f"log.{number}").open("ab") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return started


@contextlib.contextmanager
def ended(started):
    """Whatever happens, no process is left."""
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def finish(folder, started):
    with ended(started):
        for process in started:
            assert process.wait(timeout=60) == 0, "\n".join(p.read_text()[-2000:] for p in folder.glob("log.*"))


def reached(folder, step, started):
    """Waits until a checkpoint of at least `step` is there."""
    path, deadline = folder / "checkpoints", time.monotonic() + 60
    while not path.is_dir() or max([int(p.name) for p in path.iterdir() if p.name.isdigit()], default=-1) < step:
        assert time.monotonic() < deadline and all(process.poll() is None for process in started), [
            p.read_text()[-2000:] for p in folder.glob("log.*")
        ]
        time.sleep(0.005)


def final(folder):
    with np.load(folder / "final.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final state of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, start(folder, 1))
    return final(folder)


def assert_same(found, whole):
    assert found.keys() == whole.keys() and int(found[".step"]) == STEPS
    for name, leaf in whole.items():
        assert leaf.dtype == found[name].dtype
        np.testing.assert_allclose(found[name], leaf, rtol=1e-9, atol=1e-15, err_msg=name)


def test_runs_killed_in_two_processes_and_in_one_go_on_in_the_other_number(whole, tmp_path):
    """Two processes, their state split over all four devices, are killed; one, which has it whole, goes on and is
    killed; two finish."""
    for processes, fsdp, step in ((2, 4, 8), (1, 1, 28)):
        started = start(tmp_path, processes, fsdp)
        with ended(started):
            reached(tmp_path, step, started)
        assert {process.returncode for process in started} == {-signal.SIGKILL}
    assert not (tmp_path / "final.npz").exists()
    finish(tmp_path, start(tmp_path, 2, 2))
    assert_same(final(tmp_path), whole)


@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGTERM, [1]),
        pytest.param(signal.SIGINT, [0], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, [0, 1], marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_any_process_stops_all_at_one_step_which_is_saved(whole, tmp_path, number, to):
    started = start(tmp_path, 2)
    with ended(started):
        reached(tmp_path, 4, started)
        for i in to:
            started[i].send_signal(number)
        assert [process.wait(timeout=60) for process in started] == [0, 0]
    stopped = {int((tmp_path / f"stopped.{i}").read_text()) for i in range(2)}
    assert len(stopped) == 1 and stopped <= {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert 4 < stopped.pop() < STEPS
    finish(tmp_path, start(tmp_path, 1))
    assert_same(final(tmp_path), whole)
