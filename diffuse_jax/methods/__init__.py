"""Training methods: what a run trains, each a function that returns a `training.Method`."""

from diffuse_jax.methods.classifier import Classifier, accuracy_by_noise, classifier, cross_entropy
from diffuse_jax.methods.denoising import denoising, flow_log_prob, objective, solver_draw
from diffuse_jax.methods.kl_autoencoder import AutoencoderNet, KLAutoencoder, autoencoder

__all__ = [
    "AutoencoderNet",
    "Classifier",
    "KLAutoencoder",
    "accuracy_by_noise",
    "autoencoder",
    "classifier",
    "cross_entropy",
    "denoising",
    "flow_log_prob",
    "objective",
    "solver_draw",
]
