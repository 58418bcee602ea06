"""Training methods: what a run trains, each a function that returns a `training.Method`."""

from diffuse_jax.methods.denoising import denoising, flow_log_prob, objective, solver_draw
from diffuse_jax.methods.kl_autoencoder import AutoencoderNet, KLAutoencoder, autoencoder

__all__ = [
    "AutoencoderNet",
    "KLAutoencoder",
    "autoencoder",
    "denoising",
    "flow_log_prob",
    "objective",
    "solver_draw",
]
