"""Denoising score matching: E[weight(t)·‖score(x_t, t) + eps/σ‖²], x_t = α·x_0 + σ·eps (Vincent 2011; Song et al.,
2011.13456, eq. 7).

The pieces are separate so that they compose: draw unit numbers u, `stratify` them over the batch or not, turn them into
times with their density, and take the loss of each sample at its time. Any reduction can be made of the per-sample
values; an average of loss/density is the integral over time whichever way the times were drawn.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffuse_jax.denoiser import NetworkDenoiser
from diffuse_jax.sde import SDE, Array
from diffuse_jax.sde.base import row_sums

__all__ = [
    "denoising_score_matching",
    "g_squared",
    "importance_times",
    "sigma_squared",
    "stratify",
    "uniform_times",
]


def sigma_squared(sde: SDE, t: Array) -> Array:
    """The weight σ², under which the loss is ‖eps − eps(x_t)‖²."""
    return jnp.square(sde.sigma(t))


def g_squared(sde: SDE, t: Array) -> Array:
    """The weight g², under which half the loss, integrated over time, bounds −log p (Song et al., 2101.09258, theorem
    1)."""
    return sde.g2(t)


def denoising_score_matching(
    denoise: NetworkDenoiser,
    x0: Array,
    eps: Array,
    t: Array,
    *,
    weight: Callable[[SDE, Array], Array] = sigma_squared,
    cond: Any = None,
    rng: Array | None = None,
) -> Array:
    """weight(t)·‖score + eps/σ‖² of each sample, summed over its dimensions: shape (batch,).

    `x0` and `eps` are (batch, …), `t` is (batch,); `cond` goes to the network, and `rng` turns on its dropout.
    """
    square = row_sums(jnp.square(denoise.eps_error(x0, eps, t, cond, rng)))
    return weight(denoise.sde, t) / jnp.square(denoise.sde.sigma(t)) * square


def stratify(u: Array, index: Array, total: int) -> Array:
    """Unit numbers u (batch,) moved into the `total` equal cells of [0, 1), row `index` (batch,) of the global batch
    into cell index."""
    return (index + u) / total


def uniform_times(u: Array, sde: SDE, t_min: float = 1e-5) -> tuple[Array, Array]:
    """Times t_min + (t_max − t_min)·u, t_max being where the process's grids start (T, unless it states one), and their
    density relative to the uniform one, which is 1; both (batch,)."""
    return t_min + (sde.t_start - t_min) * u, jnp.ones_like(u)


def importance_times(u: Array, sde: SDE, t_min: float = 1e-5) -> tuple[Array, Array]:
    """Times with density ∝ g²/σ² on [t_min, t_max] and that density relative to the uniform one; both (batch,).

    g²/σ² = −d log_snr/dt, so these are the times of a uniform log-SNR (Song et al., 2101.09258, §5.1).
    """
    t_max = sde.t_start
    first, last = sde.log_snr(jnp.asarray([t_min, t_max]))
    t = jnp.clip(sde.inverse_log_snr(first + u * (last - first)), t_min, t_max)
    return t, sde.g2(t) / jnp.square(sde.sigma(t)) * (t_max - t_min) / (first - last)
