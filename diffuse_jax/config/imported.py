"""Other programs' weights and options as an experiment and its training state.

Each program's options become the fields of an experiment that say the same: process, parameterization, network, and
the training and sampling that it defines. What a program does not define keeps the value of `base()`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffuse_jax._fields import GROUP, check_fields, optional
from diffuse_jax.conditions import Condition
from diffuse_jax.config.build import DataInfo, Experiment, build
from diffuse_jax.config.experiment_files import override
from diffuse_jax.config.foreign_options import diffusers_fields, edm_fields, score_sde_fields
from diffuse_jax.config.sampling_section import forget_unread
from diffuse_jax.config.schema import NETWORKS, base, field_kinds, network
from diffuse_jax.convert import (
    ConversionError,
    Weights,
    from_diffusers,
    from_edm,
    from_score_sde,
    named_ema,
    score_sde_params,
)
from diffuse_jax.training import TrainState

__all__ = ["PROGRAMS", "Imported", "of_experiment", "of_options", "program_of"]


class Imported(NamedTuple):
    """An experiment and the state of its training: raw and averaged parameters, the step, and an optimizer that starts
    anew."""

    experiment: Experiment
    state: TrainState


class _Parts(NamedTuple):
    """What a program's files hold: its network, raw and averaged parameters of it, and other fields of an experiment
    by their dotted names."""

    network: nn.Module
    params: Any
    ema: Any
    fields: Mapping[str, Any]


def _score_sde(weights: Weights, options: Mapping[str, Any]) -> _Parts:
    fields = score_sde_fields(options)
    network, variables = from_score_sde(weights.arrays, options)
    ema = _averaged(weights)
    averaged = variables if ema is None else from_score_sde(ema, options)[1]
    return _Parts(network, variables["params"], averaged["params"], fields)


def _diffusers(weights: Weights, options: Mapping[str, Any]) -> _Parts:
    kinds = {"unet_config": GROUP, "scheduler_config": optional(GROUP)}
    check_fields(options, kinds, "the options", ConversionError, wanted=kinds)
    fields = diffusers_fields(options["unet_config"], options["scheduler_config"])
    network, variables = from_diffusers(weights.arrays, options["unet_config"])
    return _Parts(network, variables["params"], variables["params"], fields)


def _edm(weights: Weights, options: Mapping[str, Any]) -> _Parts:
    fields = edm_fields(options)
    network, variables = from_edm(weights.arrays, options)
    return _Parts(network, variables["params"], variables["params"], fields)


PROGRAMS: dict[str, Callable[[Weights, Mapping[str, Any]], _Parts]] = {
    "score_sde": _score_sde,
    "diffusers": _diffusers,
    "edm": _edm,
}


# Options that a program's networks alone have.
_TELLING = {
    "score_sde": ("model", "nf"),
    "diffusers": ("unet_config", "down_block_types", "block_out_channels"),
    "edm": ("model_type", "img_resolution"),
}


def program_of(options: Mapping[str, Any]) -> str | None:
    """The one of `PROGRAMS` whose options these seem to be; None where nothing tells."""
    return next((program for program, names in _TELLING.items() if any(name in options for name in names)), None)


def of_options(program: str, weights: Weights, options: Mapping[str, Any], overrides: Sequence[str] = ()) -> Imported:
    """What another program trained, from its own options.

    Args:
        program: The program, one of `PROGRAMS`.
        weights: Its weights.
        options: Its options.
        overrides: Fields of the experiment that come last, as "--config.section.field=value".

    Returns:
        The experiment and the state of its training.

    Raises:
        ConversionError: Where weights and options do not fit each other.
        ConfigError: Where their experiment cannot be built.
    """
    parts = PROGRAMS[program](weights, options)
    config = base()
    config.model = _model_section(parts.network)
    for name, value in parts.fields.items():
        section, field = name.split(".")
        config[section][field] = value
    config.data.labels = config.data.num_classes is not None
    forget_unread(config.sampling)  # other programs state a number for every sampler
    config = override(config, overrides)
    c = config.data
    # Of what the network was trained on only the shape is known, and that it was images of 8 bits.
    conditions = {} if c.num_classes is None else {"label": Condition((), c.num_classes)}
    data = DataInfo((c.image_size, c.image_size, c.channels), 256, conditions)
    experiment = build(config, data)
    _check_same(parts.network, _module(experiment))
    return _imported(experiment, parts.params, parts.ema, weights.step)


def of_experiment(config: ConfigDict, data: DataInfo, weights: Weights) -> Imported:
    """What score_sde trained, as an experiment here defines it.

    Args:
        config: The config of the experiment.
        data: What is known of its data.
        weights: The weights of score_sde.

    Returns:
        The experiment and the state of its training.

    Raises:
        ConversionError: Where the weights are of another network.
    """
    experiment = build(config, data)
    module, shape = _module(experiment), data.shape
    params = score_sde_params(module, shape, weights.arrays)
    ema = _averaged(weights)
    averaged = params if ema is None else score_sde_params(module, shape, ema)
    return _imported(experiment, params, averaged, weights.step)


def _module(experiment: Experiment) -> nn.Module:
    """The network. ConversionError where the experiment trains no denoiser."""
    if experiment.net is None or experiment.parameterization is None:
        raise ConversionError(f"config.method.name={experiment.config.method.name!r} trains no denoiser")
    return experiment.net.module


def _averaged(weights: Weights) -> Mapping[str, Any] | None:
    """score_sde's averaged parameters by name."""
    return named_ema(weights.arrays, weights.ema) if isinstance(weights.ema, list) else weights.ema


def _imported(experiment: Experiment, params: Any, ema: Any, step: int) -> Imported:
    (update,) = experiment.method.updates
    state = TrainState(
        step=jnp.asarray(step, jnp.int32), params=params, ema=ema, opt_state=update.optimizer.init(params)
    )
    return Imported(experiment, state)


def _model_section(module: nn.Module) -> ConfigDict:
    """`config.model` of a network."""
    (name,) = [name for name, kind in NETWORKS.items() if type(module) is kind]
    section = network(name)
    fields = {field: getattr(module, field) for field in section if field not in ("name", "dtype")}
    check_fields(fields, field_kinds(section), "the network of the options", ConversionError)
    section.update(fields)
    return section


def _check_same(wanted: nn.Module, built: nn.Module) -> None:
    """ConversionError unless the experiment's network is the one that the weights are of: overrides, and options that
    disagree about the process and the network, can change it."""
    for field in dataclasses.fields(wanted):
        theirs, ours = getattr(wanted, field.name), getattr(built, field.name)
        if field.name not in ("name", "parent", "dtype") and theirs != ours:
            raise ConversionError(
                f"the network of these weights has {field.name}={theirs!r}, and that of the experiment {ours!r}"
            )
