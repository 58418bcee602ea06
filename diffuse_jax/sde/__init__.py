"""Processes: what a datum becomes at time t, and how the noise got there."""

from diffuse_jax.sde.own import from_beta, from_drift_diffusion, from_log_alpha_sigma
from diffuse_jax.sde.process import SDE, Array, expand
from diffuse_jax.sde.schedules import EDM, Cosine, RectifiedFlow
from diffuse_jax.sde.song import VE, VP, SubVP
from diffuse_jax.sde.tables import DiscreteVE, DiscreteVP, cosine_betas, geometric_sigmas, linear_betas

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Array",
    "Cosine",
    "DiscreteVE",
    "DiscreteVP",
    "RectifiedFlow",
    "SubVP",
    "cosine_betas",
    "expand",
    "from_beta",
    "from_drift_diffusion",
    "from_log_alpha_sigma",
    "geometric_sigmas",
    "linear_betas",
]
