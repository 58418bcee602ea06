"""Rows of a batch under noise, as the losses of a diffusion see them.

Row i of a batch draws all that it needs from its own key: tag 0 what its codec does to it, 1 the noise, 2 the time; a
method takes other tags for what else it draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from diffuse_jax.codecs import Codec
from diffuse_jax.losses import stratify
from diffuse_jax.sde import SDE
from diffuse_jax.training import Draws

__all__ = ["NoisedRows", "Times", "encoded_rows", "noised_rows", "normal_rows"]

Times = Callable[..., tuple[jax.Array, jax.Array]]


class NoisedRows(NamedTuple):
    """What makes x(t) = α·x0 + σ·eps of each row.

    Args:
        x0: The data in the process's space, (B, …).
        cond: The conditions of the rows by name, or None.
        eps: Standard normal, shaped like x0.
        t: Times (B,).
        density: That of the times, (B,), by which a loss is divided to be an integral over time.
    """

    x0: jax.Array
    cond: Any
    eps: jax.Array
    t: jax.Array
    density: jax.Array


def normal_rows(keys: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Standard normal rows, each from its own key.

    Args:
        keys: One key a row, (B,).
        shape: The shape of one row.
        dtype: Their type.

    Returns:
        (B, *shape).
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def encoded_rows(codec: Codec, batch: Any, draws: Draws, *, train: bool) -> tuple[jax.Array, Any, jax.Array]:
    """The rows of a batch in the process's space, and the noise of each.

    Args:
        codec: What makes x0 and conditions of a batch.
        batch: The batch.
        draws: The rows' keys.
        train: False leaves out the codec's augmentation.

    Returns:
        x0 (B, …), the conditions by name or None, and eps shaped like x0.
    """
    x0, cond = codec.encode(batch, draws.stream(0), train=train)
    return x0, cond, normal_rows(draws.stream(1), x0.shape[1:], x0.dtype)


def noised_rows(
    sde: SDE, codec: Codec, batch: Any, draws: Draws, *, times: Times, stratified: bool, t_min: float, train: bool
) -> NoisedRows:
    """The rows of a batch with their noise and times.

    Args:
        sde: The process.
        codec: What makes x0 and conditions of a batch.
        batch: The batch.
        draws: The rows' keys.
        times: `times(u, sde, t_min) -> (times, density)` of unit numbers u, as in `diffuse_jax.losses`.
        stratified: Spread the times of a batch evenly.
        t_min: The least time.
        train: False leaves out the codec's augmentation.

    Returns:
        x0, conditions, eps, t and the density of t.
    """
    x0, cond, eps = encoded_rows(codec, batch, draws, train=train)
    u = jax.vmap(lambda key: jax.random.uniform(key, dtype=x0.dtype))(draws.stream(2))
    if stratified:
        u = stratify(u, draws.index, draws.total)
    return NoisedRows(x0, cond, eps, *times(u, sde, t_min))
