"""Denoising score matching: E[weight(t)·‖score(x_t, t) + eps/σ‖²], x_t = α·x_0 + σ·eps (Vincent 2011; Song et al.,
2011.13456, eq. 7).

The pieces are separate so that they compose: draw unit numbers u, `stratify` them over the batch or not, turn them into
times with their density, and take the loss of each sample at its time. Any reduction can be made of the per-sample
values; an average of loss/density is the integral over time whichever way the times were drawn, except where their law
is itself the weighting that an objective defines (`log_normal_times`): then the density is 1.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from diffuse_jax.denoiser import NetworkDenoiser
from diffuse_jax.sde import SDE, Array
from diffuse_jax.sde.process import row_sums

__all__ = [
    "denoising_score_matching",
    "edm_weight",
    "g_squared",
    "importance_times",
    "log_normal_times",
    "sigma_squared",
    "stratify",
    "table_times",
    "uniform_times",
]


def sigma_squared(sde: SDE, t: Array) -> Array:
    """The weight σ², under which the loss is ‖eps − eps(x_t)‖²."""
    return jnp.square(sde.sigma(t))


def g_squared(sde: SDE, t: Array) -> Array:
    """The weight g², under which half the loss, integrated over time, bounds −log p (Song et al., 2101.09258, theorem
    1)."""
    return sde.g2(t)


def edm_weight(sigma_data: float = 0.5) -> Callable[[SDE, Array], Array]:
    """EDM's weight (2206.00364, table 1) for data of deviation `sigma_data`, on any process: with s = σ/α it is
    (s² + sigma_data²)/(s·sigma_data)² on ‖x0 − x0(x_t)‖², so σ²·(1 + (s/sigma_data)²) on the score's error. Under the
    parameterization `edm(sigma_data)` the loss is then ‖F − target‖². ValueError unless sigma_data > 0.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data={sigma_data} must be positive: it is the standard deviation of the data")
    return functools.partial(_edm_weight, sigma_data)


def _edm_weight(sigma_data: float, sde: SDE, t: Array) -> Array:
    return jnp.square(sde.sigma(t)) * (1 + jnp.exp(-sde.log_snr(t)) / sigma_data**2)


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
    """weight(t)·‖score + eps/σ‖² of each sample, summed over its dimensions.

    Args:
        denoise: The network's denoiser.
        x0: Data (batch, …).
        eps: Standard normal, shaped like x0.
        t: Times (batch,).
        weight: `weight(sde, t)`, such as `sigma_squared`, `g_squared` or `edm_weight()`.
        cond: The condition of each sample, given to the network; None is not passed on.
        rng: The key of the network's dropout; None turns it off.

    Returns:
        The loss of each sample, (batch,).
    """
    square = row_sums(jnp.square(denoise.eps_error(x0, eps, t, cond, rng)))
    return weight(denoise.sde, t) / jnp.square(denoise.sde.sigma(t)) * square


def stratify(u: Array, index: Array, total: int) -> Array:
    """Unit numbers moved into equal cells of [0, 1), one cell for each row of the global batch.

    Args:
        u: Numbers in [0, 1), (batch,).
        index: The position of each row in the global batch, (batch,), which is the number of its cell.
        total: The number of cells: the size of the global batch.

    Returns:
        (index + u)/total, (batch,).
    """
    return (index + u) / total


def uniform_times(u: Array, sde: SDE, t_min: float = 1e-5) -> tuple[Array, Array]:
    """Times t_min + (t_max − t_min)·u, of density 1, t_max being where the process's grids start (T, unless it defines
    one).

    Args:
        u: Numbers in [0, 1), (batch,).
        sde: The process.
        t_min: The smallest time.

    Returns:
        The times and their density relative to the uniform one, both (batch,).
    """
    return t_min + (sde.t_start - t_min) * u, jnp.ones_like(u)


def importance_times(u: Array, sde: SDE, t_min: float = 1e-5) -> tuple[Array, Array]:
    """Times with density ∝ g²/σ² on [t_min, t_max], t_max being where the process's grids start.

    g²/σ² = −d log_snr/dt, so these are the times of a uniform log-SNR (Song et al., 2101.09258, §5.1).

    Args:
        u: Numbers in [0, 1), (batch,).
        sde: The process.
        t_min: The smallest time.

    Returns:
        The times and their density relative to the uniform one, both (batch,).
    """
    t_max = sde.t_start
    first, last = sde.log_snr(jnp.asarray([t_min, t_max]))
    t = jnp.clip(sde.inverse_log_snr(first + u * (last - first)), t_min, t_max)
    return t, sde.g2(t) / jnp.square(sde.sigma(t)) * (t_max - t_min) / (first - last)


def table_times(u: Array, sde: Any, t_min: float = 1e-5) -> tuple[Array, Array]:
    """Times of a process of a table, each entry as probable as another: their density is 1.

    Args:
        u: Numbers in [0, 1), (batch,).
        sde: A process of a table, `DiscreteVP` or `DiscreteVE`.
        t_min: The smallest time; not read, since the table has its own first.

    Returns:
        The times and their density relative to the uniform one, both (batch,).

    Raises:
        TypeError: For another process.
    """
    if not hasattr(sde, "table_times"):
        raise TypeError(f"sde={sde!r} must be a process of a table, DiscreteVP or DiscreteVE")
    return sde.table_times()[jnp.minimum((u * sde.N).astype(jnp.int32), sde.N - 1)], jnp.ones_like(u)


def log_normal_times(p_mean: float = -1.2, p_std: float = 1.2) -> Callable[..., tuple[Array, Array]]:
    """EDM's draw of times (2206.00364, table 1): log(σ/α) ~ N(p_mean, p_std²), truncated to what the process has on
    [t_min, t_max].

    EDM defines its objective as an expectation over this law: the draw is the weighting, and nothing is divided by it.
    So the density, relative to that law, is 1. On `sde.EDM()` the truncation to σ in [0.002, 80] leaves out 2e-5 of the
    law.

    Args:
        p_mean: The mean of log(σ/α), finite.
        p_std: Its standard deviation, positive and finite.

    Returns:
        A function (u, sde, t_min) -> (times, density) like `uniform_times`, the times being the quantiles u of the law.

    Raises:
        ValueError: For other numbers.
    """
    if not math.isfinite(p_mean):
        raise ValueError(f"p_mean={p_mean} must be finite: it is the mean of log(σ/α)")
    if not 0 < p_std < math.inf:
        raise ValueError(f"p_std={p_std} must be positive and finite: it is the standard deviation of log(σ/α)")
    return functools.partial(_log_normal_times, p_mean, p_std)


def _log_normal_times(p_mean: float, p_std: float, u: Array, sde: SDE, t_min: float = 1e-5) -> tuple[Array, Array]:
    ends = -0.5 * sde.log_snr(jnp.asarray([t_min, sde.t_start]))
    first, last = (ends - p_mean) / p_std
    below, upto = ndtr(first), ndtr(last)
    z = jnp.clip(ndtri(below + u * (upto - below)), first, last)
    t = sde.inverse_log_snr(-2 * (p_mean + p_std * z))
    return jnp.clip(t, t_min, sde.t_start), jnp.ones_like(u)
