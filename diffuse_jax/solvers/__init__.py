"""Solvers: records of pure functions that take a batch from one time of a grid to the next, given a denoiser."""

from diffuse_jax.solvers.base import Noise, Solver, predictor_corrector
from diffuse_jax.solvers.flow import adaptive, ddim, heun, velocity
from diffuse_jax.solvers.langevin import annealed_langevin, langevin
from diffuse_jax.solvers.reverse import ancestral, euler_maruyama, reverse_diffusion

__all__ = [
    "Noise",
    "Solver",
    "adaptive",
    "ancestral",
    "annealed_langevin",
    "ddim",
    "euler_maruyama",
    "heun",
    "langevin",
    "predictor_corrector",
    "reverse_diffusion",
    "velocity",
]
