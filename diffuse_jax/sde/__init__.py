"""Processes: what a datum becomes at time t, and how the noise got there."""

from diffuse_jax.sde.base import SDE, Array, expand
from diffuse_jax.sde.own import from_drift_diffusion, from_log_alpha_sigma
from diffuse_jax.sde.song import VE, VP, SubVP

__all__ = ["SDE", "VE", "VP", "Array", "SubVP", "expand", "from_drift_diffusion", "from_log_alpha_sigma"]
