"""Ctrl-C at any moment of any command: status 130, one line, and every file whole or not there."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_models import TINY
from tiers import proof

import diffuse_jax
from diffuse_jax.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]

#: Each takes seconds: long solves and likelihoods, and a training of a million steps.
COMMANDS = {
    "train": ["train", *TINY, "--config.training.steps=1000000"],
    "sample": ["sample", "--num=3000", "--solver=adaptive"],
    "evaluate": ["evaluate", "--num=3000", "--config.evaluation.num_likelihood=2000"],
    "likelihood": ["likelihood", "--config.evaluation.rtol=1e-5", "--config.evaluation.atol=1e-5"],
}


def interrupted(command, workdir, moment):
    """The exit status and stderr of a command that gets SIGINT so many seconds after its start."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'cli'}", "XLA_FLAGS": ""}
    argv = [sys.executable, "-m", "diffuse_jax", *COMMANDS[command], f"--workdir={workdir}"]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=60), process.stderr.read()


def check_whole(workdir):
    """Every file of a run can be read, and none is left half written."""
    left = [path for path in workdir.rglob(".*") if path.is_file() and path.name != ".lock"]
    assert not left
    for path in workdir.glob("*.npz"):
        assert all(np.isfinite(array).all() for array in np.load(path).values())
    for path in workdir.glob("*.json"):
        json.loads(path.read_text())
    if Checkpoints(workdir / "checkpoints", read_only=True).steps():
        diffuse_jax.load(workdir)


def check_interrupted(command, toy_run, folder, moment):
    workdir = folder / f"{command}_{moment:.6f}"
    shutil.copytree(toy_run, workdir)
    status, err = interrupted(command, workdir, moment)
    said = [line for line in err.splitlines() if line.startswith("diffuse-jax")]
    assert status == 130 and "Traceback" not in err and "Error" not in err, (command, moment, status, err[-3000:])
    # Once its first step is under way training says where it stopped instead, on stdout.
    assert said == ["diffuse-jax: interrupted"] or (command == "train" and not said), err[-3000:]
    check_whole(workdir)


@pytest.mark.parametrize(("command", "moment"), [("train", 0.6), proof("sample", 1.2), proof("evaluate", 3.5)])
def test_an_interrupted_command_ends_with_status_130_and_whole_files(toy_run, tmp_path, command, moment):
    check_interrupted(command, toy_run, tmp_path, moment)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_twenty_interrupts_at_random_moments(toy_run, tmp_path, command):
    for moment in np.random.default_rng(0).uniform(0.2, 6.0, 20):
        check_interrupted(command, toy_run, tmp_path, moment)
