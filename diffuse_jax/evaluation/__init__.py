"""Evaluation: samples, held-out loss and likelihood, distances between sets of images, a check for copies, pictures."""

from diffuse_jax.evaluation.digits import digits_report
from diffuse_jax.evaluation.draw import Sampler
from diffuse_jax.evaluation.frechet import (
    PCAFeatures,
    Statistics,
    frechet_between,
    frechet_distance,
    frechet_ratio,
    statistics,
)
from diffuse_jax.evaluation.heldout import HeldoutRows, likelihoods, mean_and_error, of_loss
from diffuse_jax.evaluation.neighbours import fraction_nearer, nearest_distances
from diffuse_jax.evaluation.pictures import image_grid, save_gif, save_png, scatter_picture

__all__ = [
    "HeldoutRows",
    "PCAFeatures",
    "Sampler",
    "Statistics",
    "digits_report",
    "fraction_nearer",
    "frechet_between",
    "frechet_distance",
    "frechet_ratio",
    "image_grid",
    "likelihoods",
    "mean_and_error",
    "nearest_distances",
    "of_loss",
    "save_gif",
    "save_png",
    "scatter_picture",
    "statistics",
]
