"""Solvers: records of pure functions that take a batch from one time of a grid to the next, given a denoiser."""

from diffuse_jax.solvers.adaptive import Transported, adaptive, transport
from diffuse_jax.solvers.flow import ddim, edm, heun, velocity
from diffuse_jax.solvers.langevin import annealed_langevin, langevin
from diffuse_jax.solvers.multistep import deis, dpm_solver_multi, ipndm, sa_solver, sde_dpm_solver, unipc
from diffuse_jax.solvers.published_sampler import score_sde
from diffuse_jax.solvers.reverse import ancestral, euler_in_sigma, euler_maruyama, reverse_diffusion
from diffuse_jax.solvers.runge_kutta import dpm_solver_single, stochastic_runge_kutta
from diffuse_jax.solvers.solver import Noise, Solver, predictor_corrector

__all__ = [
    "Noise",
    "Solver",
    "Transported",
    "adaptive",
    "ancestral",
    "annealed_langevin",
    "ddim",
    "deis",
    "dpm_solver_multi",
    "dpm_solver_single",
    "edm",
    "euler_in_sigma",
    "euler_maruyama",
    "heun",
    "ipndm",
    "langevin",
    "predictor_corrector",
    "reverse_diffusion",
    "sa_solver",
    "score_sde",
    "sde_dpm_solver",
    "stochastic_runge_kutta",
    "transport",
    "unipc",
    "velocity",
]
