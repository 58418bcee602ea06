"""diffuse_jax: diffusion models as pure functions, for JAX and Flax.

A process, a network and a solver are three values; loss, sampling and likelihood are pure functions of them:

    keys = sample_keys(seed=0, first=0, n=64)
    x = sample(keys, denoise, solvers.heun(), times.uniform(denoise.sde, 18))
"""

from typing import TYPE_CHECKING, Any

from diffuse_jax import (
    elbo,
    likelihood,
    losses,
    nets,
    oracles,
    parameterizations,
    sampling,
    score_matching,
    solvers,
    times,
)
from diffuse_jax.denoiser import Conditioned, Denoised, Denoiser, NetworkDenoiser, from_score, on_process, score_of
from diffuse_jax.likelihood import bits_per_dim, log_prob
from diffuse_jax.losses import denoising_score_matching
from diffuse_jax.sampling import decode, encode, prior_sample, sample, sample_keys, solve
from diffuse_jax.sde import (
    EDM,
    SDE,
    VE,
    VP,
    Cosine,
    DiscreteVE,
    DiscreteVP,
    RectifiedFlow,
    SubVP,
    from_beta,
    from_drift_diffusion,
    from_log_alpha_sigma,
)
from diffuse_jax.solvers import Solver, predictor_corrector

if TYPE_CHECKING:
    from diffuse_jax.config import load

__all__ = [
    "EDM",
    "SDE",
    "VE",
    "VP",
    "Conditioned",
    "Cosine",
    "Denoised",
    "Denoiser",
    "DiscreteVE",
    "DiscreteVP",
    "NetworkDenoiser",
    "RectifiedFlow",
    "Solver",
    "SubVP",
    "bits_per_dim",
    "decode",
    "denoising_score_matching",
    "elbo",
    "encode",
    "from_beta",
    "from_drift_diffusion",
    "from_log_alpha_sigma",
    "from_score",
    "likelihood",
    "load",
    "log_prob",
    "losses",
    "nets",
    "on_process",
    "oracles",
    "parameterizations",
    "predictor_corrector",
    "prior_sample",
    "sample",
    "sample_keys",
    "sampling",
    "score_matching",
    "score_of",
    "solve",
    "solvers",
    "times",
]


def __getattr__(name: str) -> Any:
    # What reads experiment files and checkpoints is imported on first use: the numerics need none of its packages.
    if name == "load":
        from diffuse_jax.config import load

        return load
    raise AttributeError(f"module 'diffuse_jax' has no attribute {name!r}")
