"""diffuse-jax train."""

import argparse
import contextlib
import fcntl
import json
import math
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.cli.common import conditions_in_turn, heldout_losses, picture, sampler, to_data, workdir_of
from diffuse_jax.cli.distributed import check_same, check_shared, first, together
from diffuse_jax.cli.resources import check_disk, check_training, check_writable, device_bytes
from diffuse_jax.config import ConfigError, Experiment, build, check_numbers, describe, load_data, override, read
from diffuse_jax.config.workdir import CHECKPOINTS, check_fits, is_run, read_run, write_run
from diffuse_jax.data import TOYS, Dataset
from diffuse_jax.evaluation import HeldoutRows, save_png
from diffuse_jax.nets import param_count
from diffuse_jax.training import (
    Callback,
    TrainState,
    begin,
    check_batch,
    make_mesh,
    replicated,
    state_sharding,
)
from diffuse_jax.training import train as run

# (state, step) -> the files of the grids; FloatingPointError where samples are not finite.
GridDrawer = Callable[[TrainState, int], list[pathlib.Path]]


def train(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Trains an experiment in its workdir, from its last checkpoint where there is one."""
    config, mesh = together(lambda: _config_and_mesh(args, overrides))
    check_same("experiment", json.dumps(config.to_dict(), default=str))
    if args.dry_run:
        return together(lambda: _dry_run(config, mesh) if first() else 0)
    workdir = together(lambda: workdir_of(args))
    for folder in (workdir, *(workdir / name for name in (CHECKPOINTS, "grids", "tensorboard"))):
        together(partial(check_writable, folder))
    dataset, experiment = together(lambda: _data_and_experiment(config, workdir))
    together(lambda: check_training(experiment, mesh))
    check_same("data set", f"{experiment.data} {len(dataset.train)} {len(dataset.test)}")
    with contextlib.ExitStack() as held:
        together(lambda: held.enter_context(_prepared(experiment, dataset, workdir)) if first() else None)
        check_shared(workdir)
        c = config.training
        kept = held.enter_context(Checkpoints(workdir / CHECKPOINTS, keep=c.keep, keep_every=c.keep_every or None))
        together(lambda: check_disk(experiment, kept) if first() else None)
        return _run(experiment, dataset, workdir, kept, mesh)


def _config_and_mesh(args: argparse.Namespace, overrides: Sequence[str]) -> tuple[ConfigDict, Mesh]:
    config = _config(args, overrides)
    check_numbers(config)  # before the data, which may take long
    try:
        mesh = make_mesh(fsdp=config.training.fsdp)
        check_batch(config.training.batch_size, mesh.size, config.training.accumulate)
    except ValueError as error:
        raise ConfigError(f"config.training.{error}") from error
    return config, mesh


def _data_and_experiment(config: ConfigDict, workdir: pathlib.Path) -> tuple[Dataset, Experiment]:
    is_run(workdir)  # refuses a folder with checkpoints of something else
    dataset = load_data(config)
    return dataset, build(config, describe(config, dataset))


@contextlib.contextmanager
def _prepared(experiment: Experiment, dataset: Dataset, workdir: pathlib.Path) -> Iterator[None]:
    """The workdir made and locked, with the experiment recorded in it, or found to be the one that was."""
    config = experiment.config
    workdir.mkdir(parents=True, exist_ok=True)
    with only_trainer(workdir):
        # What never reached a checkpoint, as one that ran out of memory, may be begun anew.
        if steps := Checkpoints(workdir / CHECKPOINTS, read_only=True).steps():
            check_fits(config, experiment.data, workdir, len(dataset.train))
            if steps[-1] > config.training.steps:
                raise ConfigError(
                    f"config.training.steps={config.training.steps}, but --workdir={workdir} is at step {steps[-1]} "
                    "already: give more"
                )
        write_run(workdir, config, experiment.data, len(dataset.train))
        yield


def _config(args: argparse.Namespace, overrides: Sequence[str]) -> ConfigDict:
    """The experiment of --config; without one that of the run in --workdir, or digits where there is none."""
    if args.config is None and args.workdir and is_run(args.workdir):
        return override(read_run(args.workdir)[0], overrides)
    args.config = args.config or "digits"
    return read(args.config, overrides)


@contextlib.contextmanager
def only_trainer(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a lock on a workdir, which the system releases whatever ends the process. ConfigError where it is held."""
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--workdir={workdir} is being trained by another process: name another") from error
        yield


def _run(experiment: Experiment, dataset: Dataset, workdir: pathlib.Path, kept: Checkpoints, mesh: Mesh) -> int:
    config, method = experiment.config, experiment.method
    state = begin(method, kept, seed=config.seed, mesh=mesh)
    start, steps = int(state.step), config.training.steps
    if first():
        print(f"{'going on from' if start else 'training from'} step {start} to {steps} in {workdir}", file=sys.stderr)
    draw_grids = _grid_drawer(experiment, dataset, workdir, mesh)
    outcome = run(
        method,
        dataset,
        workdir,
        steps=steps,
        batch_size=config.training.batch_size,
        seed=config.seed,
        mesh=mesh,
        accumulate=config.training.accumulate,
        steps_per_call=config.training.steps_per_call,
        log_every=config.training.log_every,
        checkpoint_every=config.training.checkpoint_every,
        callbacks=_callbacks(experiment, dataset, mesh, draw_grids),
        checkpoints=kept,
        state=state,
    )
    step = int(outcome.state.step)
    if outcome.interrupted:
        if first():
            print(f"stopped at step {step} of {steps}, which is saved; the same command goes on from there")
        return 130
    try:
        grids = ", ".join(map(str, draw_grids(outcome.state, step)))
    except FloatingPointError as error:
        grids = f"none: {error}"
    if first():
        _print_summary(workdir, kept, step, grids, experiment)
    return 0


def _print_summary(workdir: pathlib.Path, kept: Checkpoints, step: int, grids: str, experiment: Experiment) -> None:
    quoted, curves = (shlex.quote(str(path)) for path in (workdir, workdir / "tensorboard"))
    samples = f"  samples      {grids}\n" if grids else ""
    sample = "" if experiment.method.draw is None else f"diffuse-jax sample --workdir={quoted}, "
    print(
        f"trained to step {step}\n{samples}"
        f"  checkpoints  {workdir / CHECKPOINTS} (steps {', '.join(map(str, kept.steps()))})\n"
        f"  metrics      {workdir / 'metrics.jsonl'}, and tensorboard --logdir={curves}\n"
        f"next: {sample}diffuse-jax evaluate --workdir={quoted}"
    )


def _grid_drawer(experiment: Experiment, dataset: Dataset, workdir: pathlib.Path, mesh: Mesh) -> GridDrawer:
    """What draws a grid of samples of the averaged parameters, and the method's pictures of held-out rows."""
    config, method = experiment.config, experiment.method
    n = config.sampling.num
    source = dataset.test if len(dataset.test) else dataset.train
    draw = None if method.draw is None else sampler(experiment, mesh)
    conditions = conditions_in_turn(experiment, source)
    cond = None if conditions is None else conditions(np.arange(n))
    rows = {"seed": config.seed, "mesh": mesh, "batch_size": config.sampling.batch_size}
    shown = {name: HeldoutRows(function, source, n, **rows) for name, function in method.pictures.items()}

    def draw_grids(state: TrainState, step: int) -> list[pathlib.Path]:
        model = method.model(state.ema, state.extra)
        drawn = {} if draw is None else {"step": draw(model, seed=config.seed, n=n, cond=cond).x}
        drawn |= {name: rows(model, step) for name, rows in shown.items()}
        paths = [workdir / "grids" / f"{name}_{step:08d}.png" for name in drawn]
        if first():
            for path, x in zip(paths, drawn.values(), strict=True):
                save_png(picture(to_data(experiment, x)), path)
        return paths

    return draw_grids


def _callbacks(experiment: Experiment, dataset: Dataset, mesh: Mesh, draw_grids: GridDrawer) -> list[Callback]:
    config, method = experiment.config, experiment.method
    callbacks = []
    if config.training.evaluate_every and len(dataset.test):
        heldout = heldout_losses(
            experiment, dataset, seed=config.seed, mesh=mesh, batch_size=config.training.batch_size
        )

        def heldout_numbers(state: TrainState, step: int) -> Mapping[str, float]:
            return {name: mean for name, (mean, _) in heldout((state.ema, state.extra), step).items()}

        callbacks.append(Callback(config.training.evaluate_every, heldout_numbers))
    if config.training.sample_every and (method.draw is not None or method.pictures):

        def grid(state: TrainState, step: int) -> Mapping[str, float]:
            # The last grid is drawn, and named, at the end of the run. A network that cannot be sampled yet trains on.
            if step < config.training.steps:
                try:
                    draw_grids(state, step)
                except FloatingPointError as error:
                    if first():
                        print(f"no grid at step {step}: {error}", file=sys.stderr)
            return {}

        callbacks.append(Callback(config.training.sample_every, grid))
    return callbacks


def _dry_run(config: ConfigDict, mesh: Mesh) -> int:
    """Prints what would be trained, reading the data only where the config does not say their shape; writes nothing."""
    experiment = build(config)
    state = experiment.state_shapes
    sharding = state_sharding(mesh, state)
    print(json.dumps(config.to_dict(), indent=2, default=str))
    shape = experiment.data.shape
    batch = config.training.batch_size * math.prod(shape) * 4
    print(f"data         {config.data.source}, rows of shape {shape}{_about_source(config.data.source)}")
    print(f"parameters   {param_count(experiment.params):,}")
    parts = f"parameters, average, the optimizer's state{' and what is carried beside them' if state.extra else ''}"
    print(f"state        {_mib(state, sharding)} on each device: {parts}")
    print(f"gradients    {_mib(state.params, sharding.params)} on each device")
    if mesh.shape["fsdp"] > 1:
        whole = jax.tree.map(lambda _: replicated(mesh), state.params)
        print(f"gathered     {_mib(state.params, whole)} on each device: the parameters in use")
    print(f"batch        {batch / 2**20:.1f} MiB in float32 over {mesh.size} devices; activations come on top")
    return 0


def _about_source(source: str) -> str:
    """A note where a file or folder is not on this machine, as one may plan for another."""
    if source in ("digits", *TOYS) or source.startswith("tfds:") or os.path.exists(source):
        return ""
    return f"\nnote         there is no file or folder {source} here: training needs it"


def _mib(tree: Any, sharding: Any) -> str:
    return f"{device_bytes(tree, sharding) / 2**20:.1f} MiB"
