"""Bad input: one line on stderr that names what is wrong, exit status 2, no traceback, and nothing overwritten."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from cli_models import TINY, run
from PIL import Image
from tiers import proof

import diffuse_jax
from diffuse_jax.cli.commands import COMMANDS
from diffuse_jax.cli.train_run import only_trainer
from diffuse_jax.config import ConfigError, DataInfo, build, read
from diffuse_jax.config.workdir import read_run, write_run

ROOT = pathlib.Path(__file__).parents[2]


def refused(capsys, *argv, status=2):
    """The line with which a command is refused."""
    capsys.readouterr()
    assert run(*argv) == status
    err = capsys.readouterr().err
    line = err.splitlines()[-1]
    assert line.startswith("diffuse-jax") and "error: " in line and "Traceback" not in err
    assert status == 1 or err.count("\n") == 1, err
    return line


def damaged(run_folder, what):
    """Makes a copy of a run one that cannot be read; the name of what is wrong."""
    if what == "absent":
        shutil.rmtree(run_folder)
    elif what == "config.json":
        (run_folder / "config.json").write_text("{")
    elif what == "fields":
        (run_folder / "config.json").write_text('{"config": {"model": {"name": "mlp"}, "sde": 3}, "data": {}}')
    elif what == "foreign":
        (run_folder / "config.json").unlink()
    elif what == "empty":
        shutil.rmtree(run_folder / "checkpoints")
    elif what == "corrupt":
        for path in (run_folder / "checkpoints" / "8").rglob("*"):
            if path.is_file() and path.stat().st_size:
                path.write_bytes(b"\0" * 7)
    elif what == "another":
        content = json.loads((run_folder / "config.json").read_text())
        content["config"]["model"]["width"] = 8
        (run_folder / "config.json").write_text(json.dumps(content))
    elif what == "file":
        shutil.rmtree(run_folder)
        run_folder.write_text("")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("absent", ["holds no run"]),
        ("config.json", ["config.json is not JSON"]),
        ("fields", ["config.json: data lacks shape, levels"]),
        ("foreign", ["checkpoints/ but no config.json"]),
        ("empty", ["checkpoints"]),
        ("corrupt", ["checkpoints/8"]),
        ("another", ["checkpoints/8 does not fit", "float32"]),
        ("file", ["is a file: give a folder"]),
    ],
)
def test_a_run_that_cannot_be_read_is_named(toy_run, tmp_path, what, words, capsys):
    shutil.copytree(toy_run, tmp_path / "run")
    damaged(tmp_path / "run", what)
    line = refused(capsys, "sample", f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "run") in line and all(word in line for word in words), line


@pytest.mark.parametrize("what", ["file", "foreign", "config.json", "corrupt"])
def test_a_run_is_not_trained_over_what_is_not_its_own(toy_run, tmp_path, what, capsys):
    shutil.copytree(toy_run, tmp_path / "run")
    damaged(tmp_path / "run", what)
    refused(capsys, "train", *TINY, f"--workdir={tmp_path / 'run'}", "--config.training.steps=16")


@pytest.mark.parametrize("kind", ["empty", "broken", "tall"])
def test_a_folder_that_cannot_be_trained_on_is_named(kind, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    options = ["--config=digits", f"--config.data.source={folder}", f"--workdir={tmp_path / 'run'}"]
    size, words = 8, ["holds no images"]
    for i in range(0 if kind == "empty" else 3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")
    if kind == "broken":
        (folder / "1.png").write_bytes(b"not an image")
        words = ["1 of 3 images", "1.png", "or give --config.data.skip_unreadable=True"]
        line = refused(capsys, "train", *options, "--config.data.image_size=8", "--config.data.labels=True")
        assert "--config.data.labels=True needs every image" in line
        assert "needs --config.data.image_size=N" in refused(capsys, "train", *options)
    elif kind == "tall":
        size, words = 9, ["config.model does not fit data of shape (9, 9, 3)", "2"]
    line = refused(capsys, "train", *options, f"--config.data.image_size={size}")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    def read_only(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    assert str(tmp_path / "run") in refused(capsys, "train", *TINY, f"--workdir={tmp_path / 'run'}")


def test_a_workdir_has_one_trainer_at_a_time(tmp_path, capsys):
    with only_trainer(tmp_path):
        line = refused(capsys, "train", *TINY, f"--workdir={tmp_path}")
    assert str(tmp_path) in line and "another process" in line
    assert run("train", *TINY, "--config.training.steps=4", f"--workdir={tmp_path}") == 0


def test_a_first_attempt_without_a_checkpoint_is_begun_anew(tmp_path):
    write_run(tmp_path, read("toy2d"), DataInfo((2,), None))  # as left by a run that died in its first step
    assert run("train", *TINY, "--config.training.steps=4", f"--workdir={tmp_path}") == 0
    assert read_run(tmp_path)[0].training.batch_size == 16


def test_an_output_divided_by_a_label_that_is_not_sigma_is_refused():
    with pytest.raises(ConfigError, match=r"scale_by_sigma .*c_noise='sigma'"):
        build(read("digits", ["--config.model.scale_by_sigma=True"]))


def test_a_run_that_diverges_ends_with_status_1_and_its_last_good_checkpoint(tmp_path, capsys):
    wild = [
        *TINY,
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.warmup=5",
        "--config.optimizer.clip=0.0",
    ]
    line = refused(capsys, "train", *wild, "--config.training.checkpoint_every=2", f"--workdir={tmp_path}", status=1)
    assert "loss is not finite at step 3: the last good checkpoint is step 2" in line
    assert saved(tmp_path) == [2]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(diffuse_jax.load(tmp_path).params))


def test_an_interrupt_outside_of_training_ends_in_one_line(toy_run, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "sample", dataclasses.replace(COMMANDS["sample"], run=interrupt))
    assert run("sample", f"--workdir={toy_run}") == 130
    assert capsys.readouterr().err == "diffuse-jax: interrupted\n"


def start(folder, steps, every=10):
    folder.mkdir(exist_ok=True)
    cadence = [f"--config.training.{name}={every}" for name in ("log_every", "checkpoint_every")]
    off = ["--config.training.evaluate_every=0", "--config.training.sample_every=0"]
    command = [sys.executable, "-m", "diffuse_jax", "train", *TINY, *cadence, *off, f"--workdir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    with (folder / "stderr").open("ab") as log:
        return subprocess.Popen([*command, f"--config.training.steps={steps}"], env=environment, stdout=log, stderr=log)


def saved(folder):
    path = folder / "checkpoints"
    return sorted(int(p.name) for p in path.iterdir() if p.name.isdigit()) if path.is_dir() else []


def wait_for_a_new_save(process, folder, before):
    deadline = time.monotonic() + 120
    while saved(folder)[-1:] == before[-1:] and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, proof(signal.SIGINT)])
def test_a_signal_saves_and_ends_with_status_130(tmp_path, number):
    process = start(tmp_path, 1_000_000)
    wait_for_a_new_save(process, tmp_path, [])
    process.send_signal(number)
    assert process.wait(timeout=60) == 130
    log = (tmp_path / "stderr").read_text()
    assert f"stopped at step {saved(tmp_path)[-1]} of 1000000" in log and "Traceback" not in log


@pytest.mark.proof
def test_ten_kills_leave_the_bits_of_a_run_alone(tmp_path):
    killed, whole, rng = tmp_path / "killed", tmp_path / "whole", np.random.default_rng(0)
    for i in range(10):
        before = saved(killed)
        process = start(killed, 10_000_000, every=2)
        wait_for_a_new_save(process, killed, before)
        if i % 3 == 1:  # within a save
            while not any("tmp" in path.name for path in (killed / "checkpoints").iterdir()):
                pass
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (killed / "stderr").read_text()[-2000:]
    steps = saved(killed)[-1] + 20
    assert steps > 40
    for folder in (killed, whole):
        assert start(folder, steps, every=2).wait(timeout=300) == 0, (folder / "stderr").read_text()[-2000:]
    a, b = (diffuse_jax.load(folder, steps).params for folder in (killed, whole))
    jax.tree.map(np.testing.assert_array_equal, a, b)
