"""diffuse-jax import and diffuse-jax export: other programs' weights as a run, and a run's as score_sde's."""

import argparse
import os
import pathlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.cli.common import free_name, open_run, workdir_of
from diffuse_jax.cli.resources import check_file, check_writable
from diffuse_jax.config import ConfigError, describe, read
from diffuse_jax.config.foreign_options import score_sde_options
from diffuse_jax.config.imported import Imported, of_experiment, of_options, program_of
from diffuse_jax.config.workdir import CHECKPOINTS, is_run, write_run
from diffuse_jax.convert import ConversionError, read_options, read_weights, to_score_sde, write_safetensors
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
    assert plan is not None
    print(
        f"{param_count(state.params):,} parameters of step {int(state.step)}, {config.model.name}\n"
        f"  process           {config.sde.name}\n"
        f"  parameterization  {config.parameterization.name}, c_noise {config.parameterization.c_noise}\n"
        f"  sampling          {plan.name}, {len(plan.times) - 1} steps\n"
        f"  images            {experiment.data.shape} in {'[-1, 1]' if config.data.centered else '[0, 1]'}\n"
        f"next: diffuse-jax sample --workdir={shlex.quote(str(workdir))}"
    )
    return 0


def export(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Writes a run's averaged parameters under the names of score_sde's PyTorch program, its options with them."""
    output = _output(args.output)
    run = open_run(args, overrides, output.parent, check=score_sde_options)
    options = score_sde_options(run.experiment)
    assert run.experiment.net is not None
    arrays = to_score_sde(run.experiment.net.module, run.params, run.experiment.data.shape)
    write_safetensors(free_name(output), arrays, options, run.step)
    print(f"{len(arrays)} arrays of step {run.step} in {output}")
    return 0


def _output(name: str) -> pathlib.Path:
    """The file of --output."""
    if not name:
        raise ConfigError("--output is empty: give the name of a .safetensors file")
    try:
        return check_file(name)
    except ConfigError as error:
        raise ConfigError(f"--output={error}") from error


def _read(args: argparse.Namespace, overrides: Sequence[str]) -> Imported:
    """What --source holds, with the options of --config or of the files themselves."""
    source, options = pathlib.Path(args.source), _options(args.config, args.program)
    if args.program == "diffusers" and source.is_dir():
        source, found = _pipeline(source)
        options = found if options is None else {**found, "unet_config": options}
    elif args.program == "diffusers" and options is not None:
        options = {"unet_config": options, "scheduler_config": None}
    weights = read_weights(source)
    if args.config is None and options is None and weights.options is not None:
        options = _of_program(args.program, weights.options, str(source))
    if options is not None:
        try:
            return of_options(args.program, weights, options, overrides)
        except ConversionError as error:
            raise ConversionError(f"{f'{args.config} and ' if args.config else ''}{source}: {error}") from error
    if args.config is None:
        raise ConfigError(f"--config is missing, and {source} holds no options: give a JSON file of the network's own")
    if args.program != "score_sde":
        raise ConfigError(f"--config={args.config} must be a JSON file of the options of --from={args.program}")
    config = read(args.config, overrides)
    return of_experiment(config, describe(config), weights)


def _options(config: str | None, program: str) -> Mapping[str, Any] | None:
    """The options in a JSON file; None where --config names none."""
    if config is None or not config.endswith(".json"):
        return None
    return _of_program(program, read_options(config), config)


def _of_program(program: str, options: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The options; ConfigError where they seem to be another program's."""
    if (said := program_of(options)) not in (None, program):
        raise ConfigError(f"{where} holds options of {said}, not of {program}: give --from={said}")
    return options


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
