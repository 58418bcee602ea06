"""diffuse-jax import and diffuse-jax export: other programs' weights as a run, and a run's as score_sde's."""

import argparse
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.cli.run import check_writable, free_name, open_run, workdir_of
from diffuse_jax.config import ConfigError, describe, read
from diffuse_jax.config.foreign_options import score_sde_options
from diffuse_jax.config.imported import Imported, of_experiment, of_options
from diffuse_jax.config.run import CHECKPOINTS, is_run, write_run
from diffuse_jax.convert import read_options, read_weights, to_score_sde, write_safetensors
from diffuse_jax.nets import param_count

# The files of a diffusers pipeline, all in one folder or in those of its parts.
_DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_DIFFUSERS_CONFIG = "config.json"
_DIFFUSERS_SCHEDULER = "scheduler_config.json"


def import_(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Writes a run with another program's weights, from which the other commands work."""
    workdir = workdir_of(args)
    if workdir.is_file() or is_run(workdir) or (workdir.exists() and any(workdir.iterdir())):
        raise ConfigError(f"--workdir={workdir} is not an empty folder: name another")
    check_writable(workdir)
    experiment, state = _read(args, overrides)
    # All or nothing: until it is whole the folder has another name.
    partial = workdir.absolute().with_name(f"{workdir.absolute().name}.{os.getpid()}.importing")
    try:
        partial.mkdir(parents=True)
        write_run(partial, experiment.config, experiment.data)
        with Checkpoints(partial / CHECKPOINTS) as checkpoints:
            checkpoints.save(int(state.step), state)
        partial.rename(workdir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    config, plan = experiment.config, experiment.plan
    print(
        f"{param_count(state.params):,} parameters of step {int(state.step)}, {config.model.name}\n"
        f"  process           {config.sde.name}\n"
        f"  parameterization  {config.parameterization.name}, label {config.parameterization.label}\n"
        f"  sampling          {plan.name}, {len(plan.times) - 1} steps\n"
        f"  images            {experiment.data.shape} in {'[-1, 1]' if config.data.centered else '[0, 1]'}\n"
        f"next: diffuse-jax sample --workdir={workdir}"
    )
    return 0


def export(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Writes a run's averaged parameters under the names of score_sde's PyTorch program, its options with them."""
    output = pathlib.Path(args.output)
    run = open_run(args, overrides, output.parent)
    options = score_sde_options(run.experiment)
    arrays = to_score_sde(run.experiment.net.module, run.denoise.params, run.experiment.data.shape)
    write_safetensors(free_name(output), arrays, options, run.step)
    print(f"{len(arrays)} arrays of step {run.step} in {output}")
    return 0


def _read(args: argparse.Namespace, overrides: Sequence[str]) -> Imported:
    """What --source holds, with the options of --config or of the files themselves."""
    source, options = pathlib.Path(args.source), _options(args.config)
    if args.program == "diffusers" and source.is_dir():
        source, found = _pipeline(source)
        options = found if options is None else {**found, "unet_config": options}
    elif args.program == "diffusers" and options is not None:
        options = {"unet_config": options, "scheduler_config": None}
    weights = read_weights(source)
    options = weights.options if options is None and args.config is None else options
    if options is not None:
        return of_options(args.program, weights, options, overrides)
    if args.config is None:
        raise ConfigError(f"--config is missing, and {source} holds no options: give a JSON file of the network's own")
    if args.program != "score_sde":
        raise ConfigError(f"--config={args.config} must be a JSON file of the options of --from={args.program}")
    config = read(args.config, overrides)
    return of_experiment(config, describe(config), weights)


def _options(config: str | None) -> Mapping[str, Any] | None:
    """The options in a JSON file; None where --config names none."""
    return read_options(config) if config is not None and config.endswith(".json") else None


def _pipeline(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """The weights and options of a diffusers pipeline's folder, or of its network's alone."""
    places = [folder / "unet", folder]
    weights = next((place / name for place in places for name in _DIFFUSERS_WEIGHTS if (place / name).is_file()), None)
    if weights is None:
        raise ConfigError(f"--source={folder} holds none of {', '.join(_DIFFUSERS_WEIGHTS)}, nor does its unet/")
    schedulers = [folder / "scheduler" / _DIFFUSERS_SCHEDULER, folder / _DIFFUSERS_SCHEDULER]
    scheduler = next((read_options(path) for path in schedulers if path.is_file()), None)
    return weights, {
        "unet_config": read_options(weights.with_name(_DIFFUSERS_CONFIG)),
        "scheduler_config": scheduler,
    }
