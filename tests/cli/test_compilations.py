"""Nothing is compiled twice in a run: XLA's compilations, those found in its cache too, counted as they happen."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_models import TINY, run

import diffuse_jax
from diffuse_jax import methods, solvers, times
from diffuse_jax.config import build
from diffuse_jax.config.workdir import read_run, restore
from diffuse_jax.data import load_dataset
from diffuse_jax.evaluation import HeldoutRows, Sampler, of_loss
from diffuse_jax.training import make_mesh
from diffuse_jax.training.logs import MetricLog


def test_the_count_sees_whatever_is_compiled(compiled: list[str]) -> None:
    double = jax.jit(lambda x: 2 * x)
    for size, count in ((3, 1), (3, 1), (5, 2)):
        double(np.ones(size, np.float32))
        assert len(compiled) == count


def test_a_run_compiles_up_to_its_second_line_and_never_after(
    tmp_path: pathlib.Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line of the log is at a grid, a held-out loss and a checkpoint; those of the first line are compiled after
    the line is written. The grid and the held-out rows end with an incomplete chunk."""
    at_line: list[int] = []
    write: Callable[..., None] = MetricLog.write

    def counted(*arguments: Any) -> None:
        at_line.append(len(compiled))
        write(*arguments)

    monkeypatch.setattr(MetricLog, "write", counted)
    for steps in (16, 32):  # the second goes on from the first
        at_line.clear()
        options = [f"--config.training.steps={steps}", "--config.sampling.num=24"]
        assert run("train", *TINY, *options, f"--workdir={tmp_path}") == 0
        assert len(at_line) == 4 and at_line[0] > 0
        assert compiled[at_line[1] :] == []


def test_other_seeds_numbers_denoisers_and_checkpoints_compile_nothing(
    toy_run: pathlib.Path, compiled: list[str]
) -> None:
    denoise = diffuse_jax.load(toy_run, step=4)
    heun = methods.solver_draw(denoise.sde, solvers.heun(), times.uniform(denoise.sde, 3))
    draw = Sampler(heun, mesh=make_mesh(), batch_size=8)
    first = draw(denoise, seed=0, n=19)
    config, data = read_run(toy_run)
    rebuilt = build(config, data)
    other = rebuilt.denoiser(restore(rebuilt, toy_run, 8)[0])
    scaled = rebuilt.denoiser(jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(0.9), other.params))
    before = len(compiled)
    assert before > 0
    drawn = [draw(d, seed=seed, n=n).x for d, seed, n in ((other, 0, 19), (scaled, 7, 19), (denoise, 2, 35))]
    assert compiled[before:] == []
    assert all(np.abs(x[:19] - first.x).max() > 0 for x in drawn)


def test_the_held_out_loss_of_another_checkpoint_compiles_nothing(toy_run: pathlib.Path, compiled: list[str]) -> None:
    experiment = build(*read_run(toy_run))
    rows = load_dataset("moons").test
    loss = of_loss(experiment.method.heldout["loss"])
    heldout = HeldoutRows(loss, rows, 20, seed=0, mesh=make_mesh(), batch_size=16)
    losses = [heldout(restore(experiment, toy_run, 4)[:2], 4)["loss"]]
    trained = restore(experiment, toy_run, 8)[:2]
    before = len(compiled)
    losses.append(heldout(trained, 8)["loss"])
    assert compiled[before:] == [] and jnp.any(losses[0] != losses[1])
