"""What the output F of a network means: noise, x0, v, score, and score_sde's conventions.

A parameterization states both members of `Denoised` in closed form,

    x0 = a·x + b·F,    eps = c·x + d·F,

so that the one with a limit stays finite at the ends of time, and what F is trained towards. Since x is given, the
error of eps is d·(target − F): a loss needs no subtraction of nearly equal numbers and no division by a vanishing σ or
α.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffuse_jax.sde import SDE, Array

__all__ = [
    "Parameterization",
    "label_999t",
    "label_sigma",
    "label_t",
    "noise",
    "score",
    "score_sde_ve",
    "score_sde_vp",
    "v",
    "x0",
]


# --- time labels: what a network is told of the time ------------------------------------------------------------------


def label_t(sde: SDE, t: Any) -> Array:
    """t itself."""
    return jnp.asarray(t)


def label_999t(sde: SDE, t: Any) -> Array:
    """999·t, the label of score_sde's VP and sub-VP networks (T = 1), which read DDPM's step numbers 0 … 999."""
    return 999 * jnp.asarray(t)


def label_sigma(sde: SDE, t: Any) -> Array:
    """σ(t), the label of score_sde's VE networks."""
    return sde.sigma(t)


class Parameterization(NamedTuple):
    """What a network's output F means. Three pure functions, compared by identity; write your own by stating them.

    `coefficients(sde, t) -> (a, b, c, d)` with x0 = a·x + b·F and eps = c·x + d·F; `target(sde, x0, eps, t)` is the F
    that a perfect network would give for x = α·x0 + σ·eps (t broadcastable to x0); `label(sde, t)` is the time that the
    network reads.
    """

    coefficients: Callable[[SDE, Any], tuple[Any, Any, Any, Any]]
    target: Callable[[SDE, Array, Array, Any], Array]
    label: Callable[[SDE, Any], Array] = label_t


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


#: F = eps (Ho et al., 2006.11239, eq. 12).
noise = Parameterization(_noise_coefficients, _noise_target)
#: F = x0.
x0 = Parameterization(_x0_coefficients, _x0_target)
#: F = α·eps − σ·x0 (Salimans & Ho, 2202.00512, §4), for any α and σ: both members are finite at both ends of time.
v = Parameterization(_v_coefficients, _v_target)
#: F = ∇ log p_t(x).
score = Parameterization(_score_coefficients, _score_target)
#: score_sde's continuous VP and sub-VP networks: label 999·t, score = −F/σ, so F = eps.
score_sde_vp = noise._replace(label=label_999t)
#: score_sde's continuous VE networks: label σ, F = score (the network divides by σ itself where `scale_by_sigma` is
#: set).
score_sde_ve = score._replace(label=label_sigma)
