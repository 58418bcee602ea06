"""What the commands share: the run that they work on, its denoiser, its samplers, and where files go."""

import argparse
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.cli.commands import COMMANDS
from diffuse_jax.cli.distributed import check_same, check_shared, from_first, together
from diffuse_jax.cli.resources import check_writable
from diffuse_jax.config import ConfigError, Experiment, build, override, read
from diffuse_jax.config.workdir import CHECKPOINTS, check_fits, read_run, restore
from diffuse_jax.data import to_uint8
from diffuse_jax.denoiser import NetworkDenoiser
from diffuse_jax.evaluation import Sampler, image_grid, scatter_picture
from diffuse_jax.training import make_mesh, replicated

__all__ = [
    "TrainedRun",
    "as_asked",
    "free_name",
    "labels_in_turn",
    "open_run",
    "picture",
    "sampler",
    "to_data",
    "workdir_of",
]


@dataclass(frozen=True)
class TrainedRun:
    """A run with the averaged parameters of one of its checkpoints."""

    workdir: pathlib.Path
    experiment: Experiment
    denoise: NetworkDenoiser
    step: int
    mesh: Mesh


def workdir_of(args: argparse.Namespace) -> pathlib.Path:
    """--workdir, or runs/NAME for --config=NAME. ConfigError for a name that checkpoints cannot have."""
    if not args.workdir and not args.config:
        raise ConfigError("--workdir is missing: give the folder of a run, or --config=NAME for runs/NAME")
    name = args.workdir or f"runs/{os.path.basename(args.config.partition(':')[0]).removesuffix('.py')}"
    if os.path.exists(name) and not os.path.isdir(name):
        raise ConfigError(f"--workdir={name} is a file: give a folder")
    path = os.fsencode(os.path.abspath(name)).decode(errors="backslashreplace")
    if path != os.path.abspath(name):
        raise ConfigError(f"--workdir={path} is not UTF-8, which checkpoints need: give another name")
    return pathlib.Path(name)


def open_run(
    args: argparse.Namespace,
    overrides: Sequence[str],
    output: pathlib.Path | None = None,
    *,
    check: Callable[[Experiment], Any] = lambda experiment: None,
) -> TrainedRun:
    """The run that a command names, with --solver and --steps in its config. A --config that does not fit the run is
    refused, and what `check` refuses, and an output folder (default: the run's own) that cannot be written to, before
    its parameters are loaded; its data are not looked at."""
    workdir = together(lambda: workdir_of(args))
    experiment, step = together(lambda: _experiment(args, overrides, workdir))
    together(lambda: check_writable(output or workdir))
    together(lambda: check(experiment))
    check_same("experiment", json.dumps(experiment.config.to_dict(), default=str))
    check_shared(workdir)
    mesh = make_mesh()
    # A run that is still training may have saved meanwhile: all take the step that process 0 saw.
    params, step = restore(experiment, workdir, from_first(step), replicated(mesh))
    return TrainedRun(workdir, experiment, experiment.denoiser(params), step, mesh)


def _experiment(args: argparse.Namespace, overrides: Sequence[str], workdir: pathlib.Path) -> tuple[Experiment, int]:
    stored, data = read_run(workdir)
    overrides = as_asked(args, overrides)
    _check_read(args.command, overrides)
    config = override(stored, overrides) if args.config is None else read(args.config, overrides)
    check_fits(config, data, workdir)
    return build(config, data), Checkpoints(workdir / CHECKPOINTS, read_only=True).step(args.checkpoint)


def _check_read(command: str, overrides: Sequence[str]) -> None:
    """Refuses what is given of the sections of the config that a command does not read: nor may it be ignored."""
    for argument in overrides:
        for section in COMMANDS[command].unread:
            if argument.removeprefix("--no").removeprefix("--").startswith(f"config.{section}."):
                raise ConfigError(
                    f"{argument.partition('=')[0]}: {command} does not read config.{section}: leave it out"
                )


def as_asked(args: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """The overrides with --solver and --steps among them, which are short for those of `config.sampling`."""
    flags = {name: getattr(args, name, None) for name in ("solver", "steps")}
    return [*(f"--config.sampling.{name}={value}" for name, value in flags.items() if value is not None), *overrides]


def sampler(experiment: Experiment, mesh: Mesh) -> Sampler:
    """The sampler of `config.sampling`, for the experiment's `sampling_denoiser`."""
    plan = experiment.plan
    batch_size = experiment.config.sampling.batch_size
    return Sampler(plan.solver, plan.times, plan.finish, mesh=mesh, batch_size=batch_size, noise=plan.noise)


def labels_in_turn(experiment: Experiment, n: int) -> np.ndarray | None:
    """The classes of n samples, each in turn; None where there are none."""
    classes = experiment.data.num_classes
    return None if classes is None else np.arange(n, dtype=np.int32) % classes


def to_data(experiment: Experiment, x: Any) -> np.ndarray:
    """Samples in the model's range as the data are: uint8 images (the nearest grey level), or float32 vectors."""
    if len(experiment.data.shape) == 1:
        return np.asarray(x, np.float32)
    return np.asarray(to_uint8(jax.numpy.asarray(x), centered=experiment.config.data.centered))


def picture(samples: np.ndarray) -> np.ndarray:
    """Samples as one picture: a grid of images; a histogram of points in the plane, or of the first two coordinates."""
    return image_grid(samples) if samples.ndim == 4 else scatter_picture(samples[:, :2])


def free_name(path: pathlib.Path) -> pathlib.Path:
    """`path`, after what has that name, a file or a folder, has been moved aside to name.1, name.2, … and that been
    said."""
    if path.exists():
        number = 1
        while (aside := path.with_stem(f"{path.stem}.{number}")).exists():
            number += 1
        path.rename(aside)
        print(f"kept the earlier {path.name} as {aside.name}")
    return path
