"""Sizes are held against memory before anything is made: one line that names the field and both numbers."""

import numpy as np
import pytest
from cli_models import TINY, run
from test_cli_errors import refused

GIB = 2**30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--config.training.batch_size=2000000000"], ["config.training.batch_size=2000000000", "GiB"]),
        (
            ["--config.training.batch_size=80000000", "--config.training.steps_per_call=4"],
            ["config.training.batch_size=80000000 with steps_per_call=4", "GiB"],
        ),
        (["--config.sampling.num=2000000000"], ["config.sampling.num=2000000000", "GiB"]),
        (
            ["--config.sampling.num=2000000000", "--config.sampling.batch_size=2000000000"],
            ["config.sampling.batch_size=2000000000", "GiB"],
        ),
        (["--config.model.width=100000", "--config.model.depth=3"], ["config.model.name='mlp'", "GiB"]),
        (["--config.training.batch_size=1000000000000"], ["config.training.batch_size=", "at most 2,147,483,647"]),
    ],
)
def test_a_training_that_memory_cannot_hold_is_refused(monkeypatch, tmp_path, capsys, options, words):
    monkeypatch.setattr("diffuse_jax._memory.available_memory", lambda: 2 * GIB)
    line = refused(capsys, "train", *TINY, f"--workdir={tmp_path / 'run'}", *options)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sample", "--num=2000000000"], ["--num=2000000000", "GiB"]),
        (["evaluate", "--num=2000000000"], ["--num=2000000000", "GiB"]),
        (["evaluate", "--config.evaluation.num_samples=2000000000"], ["config.evaluation.num_samples=", "GiB"]),
        (["sample", "--num=1000000000000"], ["--num", "below 2147483648"]),
        (["sample", "--timeout=1000000000000000000"], ["--timeout", "below 1000000"]),
    ],
)
def test_samples_that_memory_cannot_hold_are_refused(toy_run, monkeypatch, capsys, argv, words):
    monkeypatch.setattr("diffuse_jax._memory.available_memory", lambda: 2 * GIB)
    line = refused(capsys, argv[0], f"--workdir={toy_run}", *argv[1:])
    assert all(word in line for word in words), line


def test_files_that_are_written_as_they_are_drawn_need_the_memory_of_a_chunk(toy_run, tmp_path, monkeypatch):
    monkeypatch.setattr("diffuse_jax._memory.available_memory", lambda: 2 * 16 * 4 * 2)
    assert run("sample", f"--workdir={toy_run}", "--num=40", "--format=shards") == 0
    rows = [np.load(path)["samples"] for path in sorted((toy_run / "samples").glob("*.npz"))]
    assert np.isfinite(np.concatenate(rows)).all() and sum(map(len, rows)) == 40
