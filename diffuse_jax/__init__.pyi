"""The public names of diffuse_jax, and where each is defined: what `__init__.py` loads on first use."""

from . import (
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
from .config import load
from .denoiser import Conditioned, Denoised, Denoiser, NetworkDenoiser, from_score, on_process, score_of
from .likelihood import bits_per_dim, log_prob
from .losses import denoising_score_matching
from .sampling import decode, encode, prior_sample, sample, sample_keys, solve
from .sde import (
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
from .solvers import Solver, predictor_corrector
from .trees import pytree, static
from .variational_bound import elbo

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
    "pytree",
    "sample",
    "sample_keys",
    "sampling",
    "score_matching",
    "score_of",
    "solve",
    "solvers",
    "static",
    "times",
]
