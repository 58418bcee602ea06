"""A residual multilayer perceptron for vectors: toy densities, tabular data, and tests of everything else."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.nets.inputs import read_conditions
from diffuse_jax.nets.layers import Embedding, check_probability, init_kernel, require

_FREQUENCIES = np.geomspace(0.25, 8.0, 16).astype(np.float32)


def log_time_features(c_noise: jax.Array) -> jax.Array:
    """Smooth features of c_noise ≥ 0: u, sin(ω·u) and cos(ω·u) of u = log(c_noise + 10⁻³), (batch,) to (batch, 33).

    They tell apart times in [0, 1], noise levels over many decades, and step numbers alike.
    """
    u = jnp.log(c_noise + 1e-3)[:, None]
    angle = u * _FREQUENCIES
    return jnp.concatenate([u / 4, jnp.sin(angle), jnp.cos(angle)], axis=-1)


class MLP(nn.Module):
    """A residual multilayer perceptron of swish units, each layer shifted by an embedding of time (and class).

    The output is smooth in x and in c_noise ≥ 0, which may be a time in [0, 1], a noise level or a step number.

    Args:
        width: The units of a layer.
        depth: The number of residual layers.
        frequencies: k adds sin and cos of π·x, 2π·x, …, 2^(k−1)·π·x to the input: data in [−1, 1] with sharp edges are
            learnt sooner (2006.10739).
        dropout: The probability of dropout in training.
        num_classes: The number of classes of the condition `label`; None reads none.
    """

    width: int = 128
    depth: int = 4
    frequencies: int = 0
    dropout: float = 0.0
    num_classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width > 0, "width", self.width, "a positive integer")
        require(self.depth > 0, "depth", self.depth, "a positive integer")
        require(self.frequencies >= 0, "frequencies", self.frequencies, "at least 0")
        check_probability(self, "dropout")
        require(
            self.num_classes is None or self.num_classes > 0,
            "num_classes",
            self.num_classes,
            "None or a positive integer",
        )

    @nn.compact
    def __call__(
        self, x: jax.Array, c_noise: jax.Array, cond: Mapping[str, jax.Array] | None = None, *, train: bool = False
    ) -> jax.Array:
        """x (batch, d), c_noise (batch,), cond None or {"label": integers (batch,)}: float32 (batch, d)."""
        if x.ndim != 2 or c_noise.shape != x.shape[:1]:
            raise ValueError(
                f"x must have shape (batch, d) and c_noise shape (batch,); got {x.shape} and {c_noise.shape}"
            )

        def dense(features: int, name: str, **kwargs: Any) -> nn.Dense:
            return nn.Dense(features, kernel_init=init_kernel(), name=name, **kwargs)

        label = read_conditions(self, cond, label="num_classes")["label"]
        embed = Embedding(self.width, nn.swish, self.num_classes, name="embedding")
        temb = embed(log_time_features(c_noise.astype(jnp.float32)), label, x.shape[0])
        angle = jnp.pi * x[..., None] * 2.0 ** jnp.arange(self.frequencies)
        waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(x.shape[0], -1)
        h = dense(self.width, "in")(jnp.concatenate([x, waves], axis=-1))
        for i in range(self.depth):
            inner = nn.swish(dense(self.width, f"layer_{i}")(h) + dense(self.width, f"time_{i}", use_bias=False)(temb))
            inner = nn.Dropout(self.dropout)(inner, deterministic=not train)
            h = h + dense(self.width, f"out_{i}")(inner)
        return dense(x.shape[-1], "out")(nn.swish(h))
