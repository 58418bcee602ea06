"""What the output F of a network means: noise, x0, v, score, EDM's, flow, and the conventions of published networks.

A parameterization gives both fields of `Denoised` in closed form,

    x0 = a·x + b·F,    eps = c·x + d·F,

so that the one with a limit stays finite at the ends of time, and what F is trained towards. Since x is given, the
error of eps is d·(target − F): a loss needs no subtraction of nearly equal numbers and no division by a vanishing σ or
α.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffuse_jax.sde import SDE, Array

__all__ = [
    "Parameterization",
    "c_noise_999t",
    "c_noise_edm",
    "c_noise_index",
    "c_noise_nearest_index",
    "c_noise_reversed_index",
    "c_noise_sigma",
    "c_noise_t",
    "edm",
    "flow",
    "iddpm",
    "noise",
    "score",
    "score_sde_ve",
    "score_sde_vp",
    "v",
    "x0",
]


# --- c_noise: what a network is told of the time (EDM's name, 2206.00364, eq. 7) --------------------------------------


def c_noise_t(sde: SDE, t: Any) -> Array:
    """t itself."""
    return jnp.asarray(t)


def c_noise_999t(sde: SDE, t: Any) -> Array:
    """999·t, as score_sde's VP and sub-VP networks are told (T = 1), which read DDPM's step numbers 0 … 999."""
    return 999 * jnp.asarray(t)


def c_noise_sigma(sde: SDE, t: Any) -> Array:
    """σ(t), as score_sde's VE networks are told."""
    return sde.sigma(t)


def c_noise_edm(sde: SDE, t: Any) -> Array:
    """¼·log(σ/α), as EDM's networks are told (2206.00364, table 1): it is negative at small noise."""
    return -0.125 * sde.log_snr(t)


def c_noise_index(sde: SDE, t: Any) -> Array:
    """t·N/T − 1, at least 0 and not rounded: at an own time of a process of a table of N, the number of its entry, what
    DDPM's networks read. TypeError for a process without a table."""
    return jnp.maximum(jnp.asarray(t) * (_table_of(sde).N / sde.T) - 1, 0)


def c_noise_reversed_index(sde: SDE, t: Any) -> Array:
    """N − 1 − `c_noise_index`, rounded: what SMLD's networks read, whose noise levels descend. TypeError for a process
    without a table."""
    return _table_of(sde).N - 1 - jnp.round(c_noise_index(sde, t))


def c_noise_nearest_index(sde: SDE, t: Any) -> Array:
    """The entry, 0 … N − 1, of a process's table whose σ/α is the nearest to that at t: EDM's rounding for networks
    that know N times only (2206.00364, table 1). TypeError for a process without a table."""
    times = _table_of(sde).table_times()
    levels = jnp.exp(-0.5 * sde.log_snr(times))
    level = jnp.exp(-0.5 * sde.log_snr(t))
    return jnp.searchsorted(0.5 * (levels[1:] + levels[:-1]), level).astype(level.dtype)


def _table_of(sde: SDE) -> Any:
    if not hasattr(sde, "table_times"):
        raise TypeError(f"an index is for a process of a table, DiscreteVP or DiscreteVE, not {type(sde).__name__}")
    return sde


def _no_scale(sde: SDE, t: Any) -> Any:
    return 1.0


def _whole(raw: Array, x: Array) -> Array:
    return raw


class Parameterization(NamedTuple):
    """What a network's output F means. Pure functions, compared by identity; write your own by defining the first two.

    Args:
        coefficients: `coefficients(sde, t) -> (a, b, c, d)` with x0 = a·x + b·F and eps = c·x + d·F.
        target: `target(sde, x0, eps, t)` is the F that a perfect network would give for x = α·x0 + σ·eps; t broadcasts
            to x0.
        c_noise: `c_noise(sde, t)` is the time as the network reads it.
        scale: `scale(sde, t)` is the factor on the x that it reads.
        output: `output(raw, x)` is what of its raw output is F.
    """

    coefficients: Callable[[SDE, Any], tuple[Any, Any, Any, Any]]
    target: Callable[[SDE, Array, Array, Any], Array]
    c_noise: Callable[[SDE, Any], Array] = c_noise_t
    scale: Callable[[SDE, Any], Any] = _no_scale
    output: Callable[[Array, Array], Array] = _whole


def _noise_coefficients(sde: SDE, t: Any) -> tuple[Any, Any, Any, Any]:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return 1 / alpha, -sigma / alpha, 0.0, 1.0


def _noise_target(sde: SDE, x0: Array, eps: Array, t: Any) -> Array:
    return eps


def _x0_coefficients(sde: SDE, t: Any) -> tuple[Any, Any, Any, Any]:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return 0.0, 1.0, 1 / sigma, -alpha / sigma


def _x0_target(sde: SDE, x0: Array, eps: Array, t: Any) -> Array:
    return x0


def _v_coefficients(sde: SDE, t: Any) -> tuple[Any, Any, Any, Any]:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    norm = jnp.square(alpha) + jnp.square(sigma)
    return alpha / norm, -sigma / norm, sigma / norm, alpha / norm


def _v_target(sde: SDE, x0: Array, eps: Array, t: Any) -> Array:
    return sde.alpha(t) * eps - sde.sigma(t) * x0


def _score_coefficients(sde: SDE, t: Any) -> tuple[Any, Any, Any, Any]:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return 1 / alpha, jnp.square(sigma) / alpha, 0.0, -sigma


def _score_target(sde: SDE, x0: Array, eps: Array, t: Any) -> Array:
    return -eps / sde.sigma(t)


def _flow_coefficients(sde: SDE, t: Any) -> tuple[Any, Any, Any, Any]:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    total = alpha + sigma
    return 1 / total, -sigma / total, 1 / total, alpha / total


def _flow_target(sde: SDE, x0: Array, eps: Array, t: Any) -> Array:
    return eps - x0


def _edm_coefficients(sigma_data: float, sde: SDE, t: Any) -> tuple[Any, Any, Any, Any]:
    # The signal's deviation α·σ_data and the noise's, as the sine and cosine of an angle.
    signal, sigma = sigma_data * sde.alpha(t), sde.sigma(t)
    norm = jnp.hypot(signal, sigma)
    sin, cos = signal / norm, sigma / norm
    return sin * sigma_data / norm, cos * sigma_data, cos / norm, -sin


def _edm_target(sigma_data: float, sde: SDE, x0: Array, eps: Array, t: Any) -> Array:
    signal, sigma = sigma_data * sde.alpha(t), sde.sigma(t)
    return (sigma / sigma_data * x0 - signal * eps) / jnp.hypot(signal, sigma)


def _edm_scale(sigma_data: float, sde: SDE, t: Any) -> Array:
    return 1 / jnp.hypot(sigma_data * sde.alpha(t), sde.sigma(t))


def edm(sigma_data: float = 0.5) -> Parameterization:
    """EDM's preconditioning (2206.00364, table 1) for data of deviation `sigma_data`, on any process: with n² = σ² +
    α²·sigma_data², the network reads x/n, and F = (σ/sigma_data·x0 − α·sigma_data·eps)/n is of unit variance. Equal
    arguments give the same object. ValueError unless sigma_data > 0.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data={sigma_data} must be positive: it is the standard deviation of the data")
    return _edm(float(sigma_data))


@functools.cache
def _edm(sigma_data: float) -> Parameterization:
    return Parameterization(
        functools.partial(_edm_coefficients, sigma_data),
        functools.partial(_edm_target, sigma_data),
        c_noise_edm,
        functools.partial(_edm_scale, sigma_data),
    )


def _first_channels(raw: Array, x: Array) -> Array:
    return raw[..., : x.shape[-1]]


#: F = eps (Ho et al., 2006.11239, eq. 12).
noise = Parameterization(_noise_coefficients, _noise_target)
#: F = x0.
x0 = Parameterization(_x0_coefficients, _x0_target)
#: F = α·eps − σ·x0 (Salimans & Ho, 2202.00512, §4), for any α and σ: x0 and eps are finite at both ends of time.
v = Parameterization(_v_coefficients, _v_target)
#: F = ∇ log p_t(x).
score = Parameterization(_score_coefficients, _score_target)
#: score_sde's continuous VP and sub-VP networks: told 999·t, score = −F/σ, so F = eps.
score_sde_vp = noise._replace(c_noise=c_noise_999t)
#: score_sde's continuous VE networks: told σ, F = score (the network divides by σ itself where `scale_by_sigma` is
#: set).
score_sde_ve = score._replace(c_noise=c_noise_sigma)
#: F = eps − x0, the velocity of rectified flow (Liu et al., 2209.03003, eq. 1), for any α and σ.
flow = Parameterization(_flow_coefficients, _flow_target)
#: Improved DDPM's and ADM's networks (2102.09672) on a DiscreteVP: F = eps is the first half of their output, the
#: other half being a learned variance, and they are told the nearest entry of their table.
iddpm = noise._replace(c_noise=c_noise_nearest_index, output=_first_channels)
