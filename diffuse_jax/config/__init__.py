"""Experiment files as objects: the one package that knows both ml_collections and the library."""

from diffuse_jax.config.build import DataInfo, Experiment, build, describe, load_data
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.experiment_files import experiments, override, read, resolve
from diffuse_jax.config.numbers import check_numbers
from diffuse_jax.config.sampling_section import SamplingPlan, sampling_plan
from diffuse_jax.config.schema import base, method, network
from diffuse_jax.config.workdir import load

__all__ = [
    "ConfigError",
    "DataInfo",
    "Experiment",
    "SamplingPlan",
    "base",
    "build",
    "check_numbers",
    "describe",
    "experiments",
    "load",
    "load_data",
    "method",
    "network",
    "override",
    "read",
    "resolve",
    "sampling_plan",
]
