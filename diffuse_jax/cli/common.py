"""What the commands share: the run that they work on, its denoiser, its samplers, and where files go."""

import argparse
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.cli.commands import COMMANDS
from diffuse_jax.cli.distributed import check_same, check_shared, from_first, together
from diffuse_jax.cli.resources import check_writable
from diffuse_jax.codecs import Codec
from diffuse_jax.conditions import Condition
from diffuse_jax.config import ConfigError, Experiment, build, override, read
from diffuse_jax.config.workdir import CHECKPOINTS, check_fits, read_run, restore
from diffuse_jax.data import Dataset
from diffuse_jax.data.sources import Source
from diffuse_jax.evaluation import HeldoutRows, Sampler, image_grid, mean_and_error, of_loss, scatter_picture
from diffuse_jax.evaluation.draw import Conditions
from diffuse_jax.training import make_mesh, replicated

__all__ = [
    "TrainedRun",
    "as_asked",
    "can",
    "conditions_in_turn",
    "free_name",
    "heldout_losses",
    "labels_in_turn",
    "open_run",
    "picture",
    "sampler",
    "to_data",
    "workdir_of",
]


@dataclass(frozen=True)
class TrainedRun:
    """A run at one of its checkpoints.

    Args:
        workdir: The folder of the run.
        experiment: What it was trained as.
        params: The averaged parameters.
        extra: What is carried beside them.
        step: The step of the checkpoint.
        mesh: The devices, on all of which the arrays are whole.
    """

    workdir: pathlib.Path
    experiment: Experiment
    params: Any
    extra: Any
    step: int
    mesh: Mesh

    @property
    def model(self) -> Any:
        """What it trained."""
        return self.experiment.method.model(self.params, self.extra)


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
    """The run that a command names, with --solver and --steps in its config. Its data are not looked at.

    Args:
        args: The arguments of the command.
        overrides: Fields of the config, as "--config.section.field=value".
        output: The folder that the command writes to; None is the run's own.
        check: Raises for what else the command cannot do with the experiment.

    Returns:
        The run.

    Raises:
        ConfigError: Before its parameters are loaded, for a --config that does not fit the run and an output folder
            that cannot be written to; and what `check` raises.
    """
    workdir = together(lambda: workdir_of(args))
    experiment, step = together(lambda: _experiment(args, overrides, workdir))
    together(lambda: check_writable(output or workdir))
    together(lambda: check(experiment))
    check_same("experiment", json.dumps(experiment.config.to_dict(), default=str))
    check_shared(workdir)
    mesh = make_mesh()
    # A run that is still training may have saved meanwhile: all take the step that process 0 saw.
    params, extra, step = restore(experiment, workdir, from_first(step), replicated(mesh))
    return TrainedRun(workdir, experiment, params, extra, step, mesh)


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


def can(experiment: Experiment, capability: str, what: str) -> None:
    """Checks that the method of an experiment has some capability.

    Args:
        experiment: The experiment.
        capability: A field of `Method`.
        what: What a run without it does or has not, as the error says.

    Raises:
        ConfigError: Where the field is None.
    """
    if getattr(experiment.method, capability) is None:
        raise ConfigError(f"config.method.name={experiment.config.method.name!r}: this kind of run {what}")


def sampler(experiment: Experiment, mesh: Mesh) -> Sampler:
    """What draws samples of an experiment's model."""
    can(experiment, "draw", "has nothing to sample")
    assert experiment.method.draw is not None
    return Sampler(experiment.method.draw, mesh=mesh, batch_size=experiment.config.sampling.batch_size)


def labels_in_turn(known: Mapping[str, Condition], index: np.ndarray) -> dict[str, np.ndarray]:
    """The classes of samples by their numbers, each in turn; {} where there are none."""
    return {"label": (index % known["label"].values).astype(np.int32)} if "label" in known else {}


def conditions_in_turn(experiment: Experiment, source: Source | None = None) -> Conditions | None:
    """The conditions of samples by their numbers, for pictures and evaluations: classes each in turn, and what else
    there is as the rows of a source have it; None for a run without conditions."""
    known = experiment.data.conditions
    if not known:
        return None

    def of(index: np.ndarray) -> dict[str, np.ndarray]:
        given = {} if set(known) == {"label"} else _conditions_of_rows(experiment, source, index)
        return {**given, **labels_in_turn(known, index)}

    return of


def _conditions_of_rows(experiment: Experiment, source: Source | None, index: np.ndarray) -> dict[str, np.ndarray]:
    """Those of rows index mod n of a source, in the model's range."""
    assert source is not None and len(source) > 0
    batch = source[index % len(source)]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), np.asarray(index, np.uint32))
    cond = experiment.codec.encode(batch, keys, train=False)[1]
    return {name: np.asarray(value) for name, value in cond.items()}


def heldout_losses(
    experiment: Experiment, dataset: Dataset, *, seed: int, mesh: Mesh, batch_size: int
) -> Callable[[Any, int], dict[str, tuple[float, float]]]:
    """The held-out losses of an experiment's method.

    Args:
        experiment: The experiment, whose evaluation.num_loss rows are read.
        dataset: The data, of which the test part is.
        seed: The seed of what is random in a loss.
        mesh: The devices.
        batch_size: The rows that are evaluated at once.

    Returns:
        What maps (params, extra) at a step to the mean of each loss, and of its metrics, with its standard error, by
            name, which is `heldout_loss` where the loss is called "loss".
    """
    rows: dict[str, Any] = {"seed": seed, "mesh": mesh, "batch_size": batch_size}
    n = experiment.config.evaluation.num_loss
    losses = experiment.method.heldout
    found = {name: HeldoutRows(of_loss(loss), dataset.test, n, **rows) for name, loss in losses.items()}

    def numbers(trained: Any, step: int) -> dict[str, tuple[float, float]]:
        columns: dict[str, np.ndarray] = {}
        for name, of in found.items():
            # The loss is called by its own name, and a metric by its.
            columns |= {f"heldout_{name if key == 'loss' else key}": each for key, each in of(trained, step).items()}
        return {name: mean_and_error(each) for name, each in columns.items()}

    return numbers


def to_data(experiment: Experiment, x: Any) -> np.ndarray:
    """Samples in the model's space as the data are: uint8 images (the nearest grey level), or float32 vectors."""
    return np.asarray(_decode(experiment.codec, x))


@jax.jit
def _decode(codec: Codec, x: Any) -> jax.Array:
    return codec.decode(x)


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
