"""A run killed at any moment, and started again with the same command, ends with the bits of a run that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiers import proof

HERE = pathlib.Path(__file__).parent


def start(folder, steps, program="toy_training.py"):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(HERE / program), str(folder), str(steps)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "XLA_FLAGS": ""}
    with (folder / "stderr").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(process, folder):
    assert process.wait(timeout=120) == 0, (folder / "stderr").read_text()[-2000:]


def entries(folder):
    """Names in the checkpoint folder: complete steps, and the temporary folders of those being written."""
    path = folder / "checkpoints"
    return set(os.listdir(path)) if path.is_dir() else set()


def kill(folder, steps, delay, during_save, program):
    """Starts the run, and kills it `delay` seconds after it has begun to write a new step, or within that write."""
    process, before = start(folder, steps, program), entries(folder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        new = entries(folder) - before
        if any("tmp" in name for name in new) if during_save else any(name.isdigit() for name in new):
            break
        time.sleep(0.0005)
    if not during_save:
        time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (folder / "stderr").read_text()[-2000:]


@pytest.mark.parametrize(
    ("program", "kills"), [("game.py", 2), proof("toy_training.py", 2), proof("toy_training.py", 10)]
)
def test_a_run_killed_so_often_ends_with_the_bits_of_one_that_was_not(program, kills, tmp_path):
    """Every third kill, the second being the first of them, is within the writing of a checkpoint."""
    steps = 24 * (kills + 1)
    rng = np.random.default_rng(kills)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start(whole, steps, program)
    for i in range(kills):
        kill(killed, steps, rng.uniform(0, 0.15), i % 3 == 1, program)
    finish(reference, whole)
    finish(start(killed, steps, program), killed)
    a, b = np.load(whole / "final.npz"), np.load(killed / "final.npz")
    assert int(a[".step"]) == steps and a.files == b.files
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    logs = [[json.loads(line) for line in (x / "metrics.jsonl").read_text().splitlines()] for x in (whole, killed)]
    assert [line["step"] for line in logs[1]] == list(range(2, steps + 1, 2))
    (name,) = {"loss", "x/loss"} & set(logs[0][0])
    assert [line[name] for line in logs[0]] == [line[name] for line in logs[1]]
    assert not any("tmp" in name for name in entries(killed))
