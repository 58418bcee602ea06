"""`show` says what a run is from its files alone, whatever state they are in, and leaves them as they are."""

import json
import os
import pathlib
import shutil

import jax
import pytest
from cli_models import TINY, run

from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.config import build, read
from diffuse_jax.config.workdir import CHECKPOINTS, write_run


def shown(workdir, capsys):
    """The rows of what `show` prints, by name, and the commands after them."""
    capsys.readouterr()
    assert run("show", f"--workdir={workdir}") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == str(workdir) and len(lines) < 24
    end = lines.index("next:")
    return dict(line.split(maxsplit=1) for line in lines[:end]), [line.strip() for line in lines[end + 1 :]]


def state_of(folder):
    return {path: (os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def trained(toy_run, tmp_path):
    folder = tmp_path / "a run"
    return pathlib.Path(shutil.copytree(toy_run, folder, ignore=shutil.ignore_patterns("samples*", "*.json.*")))


def test_a_trained_run_is_described_from_its_files_and_left_as_it_is(trained, compiled, capsys):
    assert run("sample", f"--workdir={trained}", "--num=5", "--seed=3") == 0
    assert run("sample", f"--workdir={trained}", "--num=20", "--format=shards", "--solver=ddim") == 0
    table = {"checkpoint": 8, "heldout_loss": 0.25, "bits_per_dim": 2.34567, "frechet_distance": 0.1}
    (trained / "evaluation.json").write_text(json.dumps(table))
    expected = f"mlp, {number_of_parameters():,} parameters"
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    before = state_of(trained)
    jax.clear_caches()
    compiled.clear()
    rows, commands = shown(trained, capsys)
    assert state_of(trained) == before and not compiled
    assert rows["data"] == "checkerboard: 50000 training rows of shape (2,)"
    assert rows["process"] == "vp" and rows["parameterization"] == "v, c_noise t"
    assert rows["network"] == expected
    assert rows["progress"] == "step 8 of 8; checkpoints of steps 4, 8"
    assert f"step 8: loss {last['loss']:.4g}, held-out loss {last['heldout_loss']:.4g}, images/s" in rows["metrics"]
    assert rows["sampling"] == "heun, 4 steps on grid uniform, finish mean; 16 samples"
    assert rows["samples.npz"].startswith("5 samples of step 8, heun; 20")
    assert rows["samples/"].startswith("2 files, shards, of step 8, ddim; 20")
    assert rows["evaluation.json"].startswith("heldout_loss 0.25, bits_per_dim 2.346, frechet_distance 0.1, step 8; 20")
    assert rows["grids"].startswith("2, the last step_00000008.png")
    assert commands == [f"diffuse-jax {name} --workdir='{trained}'" for name in ("sample", "evaluate")]


def number_of_parameters():
    experiment = build(read("toy2d", [argument for argument in TINY if ".model." in argument]))
    return sum(leaf.size for leaf in jax.tree.leaves(experiment.params))


def test_a_run_that_goes_on_is_shown_with_what_is_whole(trained, capsys):
    config = json.loads((trained / "config.json").read_text())
    config["config"]["training"]["steps"] = 100
    (trained / "config.json").write_text(json.dumps(config))
    lines = [{"step": 12, "loss": None, "images_per_second": 12345.6}, {"step": 16, "los": 0}]
    with (trained / "metrics.jsonl").open("a") as file:
        file.write(f"{json.dumps(lines[0])}\n{json.dumps(lines[1])[:12]}")
    (trained / CHECKPOINTS / "12.orbax-checkpoint-tmp").mkdir()
    rows, commands = shown(trained, capsys)
    assert rows["progress"] == "step 8 of 100; checkpoints of steps 4, 8"
    assert rows["metrics"].startswith("step 12: loss not finite, held-out loss ")
    assert "(step 8), images/s 12,346; " in rows["metrics"]
    assert commands[0] == f"diffuse-jax train --workdir='{trained}'"


def test_a_run_without_a_checkpoint_and_one_of_imported_weights_are_shown(tmp_path, capsys):
    config = read("digits", ["--config.sde.name=ve", "--config.sde.sigma_max=30.0"])
    experiment = build(config)
    write_run(tmp_path, config, experiment.data)
    rows, commands = shown(tmp_path, capsys)
    assert rows["progress"] == "no checkpoint yet, of 3000 steps" and rows["network"] == "ncsnpp"
    assert rows["process"] == "ve, sigma_max=30.0"
    assert rows["data"] == "digits: rows of shape (8, 8, 1), 17 grey levels" and "metrics" not in rows
    assert commands == [f"diffuse-jax train --workdir={tmp_path}"]
    assert rows["sampling"].startswith("sde_dpm_solver, 50 steps")
    config.data.source, config.sampling.steps = "", None
    write_run(tmp_path, config, experiment.data)
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        checkpoints.save(5000, {"step": jax.numpy.asarray(5000), "ema": {"a": jax.numpy.zeros((3, 4))}})
    rows, commands = shown(tmp_path, capsys)
    assert rows["data"].startswith("not known: rows") and rows["network"] == "ncsnpp, 12 parameters"
    assert rows["progress"] == "step 5000 of 3000; checkpoints of steps 5000"
    assert rows["sampling"].startswith("sde_dpm_solver, 20 steps")
    source = f"--workdir={tmp_path} --config.data.source=PATH"
    assert commands == [f"diffuse-jax sample --workdir={tmp_path}", f"diffuse-jax evaluate {source}"]
