"""Other programs' weights: pure functions from their named arrays and options to (network, variables), and readers of
their files that run no foreign code."""

from diffuse_jax.convert.checks import MOST_LEVELS, ConversionError
from diffuse_jax.convert.diffusers_checkpoints import diffusers_process, from_diffusers, to_diffusers
from diffuse_jax.convert.edm_checkpoints import edm_preconditioner, from_edm
from diffuse_jax.convert.score_sde_checkpoints import (
    from_score_sde,
    named_ema,
    network_of,
    options_of,
    score_sde_params,
    to_score_sde,
)
from diffuse_jax.convert.weights import Weights, read_options, read_weights, write_safetensors

__all__ = [
    "MOST_LEVELS",
    "ConversionError",
    "Weights",
    "diffusers_process",
    "edm_preconditioner",
    "from_diffusers",
    "from_edm",
    "from_score_sde",
    "named_ema",
    "network_of",
    "options_of",
    "read_options",
    "read_weights",
    "score_sde_params",
    "to_diffusers",
    "to_score_sde",
    "write_safetensors",
]
