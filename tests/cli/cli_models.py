"""What experiments of one's own name as "cli_models:…": networks of known answers and a process; and a command run."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax import from_log_alpha_sigma
from diffuse_jax.cli import main

STEPS = {name: 4 for name in ("log_every", "checkpoint_every", "evaluate_every", "sample_every")}

# Small enough for any command to take a second, on one device or eight.
TINY = [
    "--config=toy2d",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.training.batch_size=16",
    "--config.training.steps=8",
    "--config.training.steps_per_call=2",
    *(f"--config.training.{name}={value}" for name, value in STEPS.items()),
    "--config.sampling.num=16",
    "--config.sampling.steps=4",
    "--config.sampling.batch_size=16",
    "--config.evaluation.num_loss=40",
    "--config.evaluation.num_likelihood=8",
    "--config.evaluation.num_samples=24",
]

TINY_CLASSIFIER = [
    "--config=digits_classifier",
    *(f"--config.model.{field}" for field in ("nf=4", "ch_mult=(1,)", "attn_resolutions=()", "head=mean")),
    *(f"--config.training.{name}=4" for name in ("steps", "log_every", "checkpoint_every", "evaluate_every")),
    "--config.training.steps_per_call=2",
    "--config.training.batch_size=16",
    "--config.evaluation.num_loss=40",
]


def run(*argv: str) -> int:
    """The exit status of `diffuse-jax argv`, in this process."""
    try:
        return main(argv)
    except SystemExit as stop:  # of argparse
        return int(stop.code or 0)


class ExactNormal(nn.Module):
    """eps = σ·x, to the rounding of `dtype`: the denoiser of N(0, I) data under a VP process, given label "sigma". Its
    parameter has no effect."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: Any = None, *, train: bool) -> jax.Array:
        eps = t.astype(self.dtype)[:, None] * x.astype(self.dtype)
        return eps.astype(jnp.float32) + 0 * self.param("unused", nn.initializers.zeros, (1,))


class Features(nn.Module):
    """A layer of so many features, whatever x has."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: Any = None, *, train: bool) -> jax.Array:
        return nn.Dense(self.features)(x)


class ClassConstant(nn.Module):
    """x0 = (2·label − 9)/18 in every pixel, given parameterization "x0"."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: Any = None, *, train: bool) -> jax.Array:
        label = jnp.zeros(x.shape[:1]) if cond is None else cond["label"]
        value = ((2 * label - 9) / 18)[:, None, None, None]
        return jnp.broadcast_to(value, x.shape) + 0 * self.param("unused", nn.initializers.zeros, (1,))


def cosine(config: Any) -> Any:
    """α = cos(bend·t), σ = sin(bend·t): a process of one's own that reads a field of its own."""
    bend = config.bend
    return from_log_alpha_sigma(lambda t: jnp.log(jnp.cos(bend * t)), lambda t: jnp.log(jnp.sin(bend * t)), t_min=1e-3)


def brightness(samples, dataset, config):
    return {"brightness": float(samples.mean()), "of": dataset.name}
