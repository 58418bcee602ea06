"""One step in a clock in which the linear part is exact: what the multistep and Runge–Kutta solvers share.

With λ = log(α/σ), half the log-SNR, the probability flow is linear but for a component y of the denoiser
(2206.00927, prop. 3.1; 2211.01095, eq. 4–8; noise of strength η in between, eq. 12–19 there):

    x_s = ratio·x_t + ∫₀^h weight(τ)·y(λ_t + τ) dτ + std·z,    h = λ_s − λ_t
    y = x0:   ratio = (σ_s/σ_t)·e^{−ηh},  weight = (1 + η)·α_s·e^{(1+η)(τ−h)},  std = σ_s·√(1 − e^{−2ηh})
    y = eps:  ratio = α_s/α_t,            weight = −σ_s·e^{h−τ},                no noise

and in the clock σ̃ = σ/α it is ratio = α_s/α_t, weight = α_s with y = eps. A solver is a polynomial through values of y
at some nodes, integrated against the weight: its moments ∫ weight·τ^k dτ are all that it needs of an interval.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from diffuse_jax.denoiser import Denoised
from diffuse_jax.sde import SDE, Array
from diffuse_jax.trees import pytree

__all__ = [
    "DataKernel",
    "Interval",
    "Kernel",
    "NoiseKernel",
    "SigmaRatioKernel",
    "integrate_through",
    "phi",
    "root",
    "sigma_ratio",
]

ORDERS = 4


class Interval(NamedTuple):
    """A step from t to s, x_s = ratio·x + ∫ weight·y + std·z.

    Args:
        ratio: The factor of x.
        moments: ∫ weight·τ^k dτ for k < `ORDERS`.
        length: Its length in the clock.
        std: The standard deviation of the noise; None where there is none.
    """

    ratio: Array
    moments: tuple[Array, ...]
    length: Array
    std: Array | None


class Kernel(Protocol):
    """A clock, the component of the denoiser (x0 or eps) that is integrated in it, and its intervals."""

    def clock(self, sde: SDE, t: Any) -> Array: ...

    def time(self, sde: SDE, clock: Array) -> Array: ...

    def component(self, denoised: Denoised) -> Array: ...

    def interval(self, sde: SDE, t: Any, s: Any) -> Interval:
        """The step from t to s.

        Args:
            sde: The process.
            t: The time at which it begins.
            s: The time at which it ends.

        Returns:
            The interval.
        """
        ...


def phi(k: int, z: Array) -> Array:
    """φ_k(z) = ∫₀¹ e^{(1−θ)z} θ^{k−1}/(k−1)! dθ for k ≥ 1, to a few roundings.

    φ_1 = (e^z − 1)/z, φ_{k+1} = (φ_k − 1/k!)/z; below |z| = 1, where the recursion cancels, the series.
    """
    small = jnp.abs(z) < 1
    far = jnp.where(small, 1.0, z)
    value = jnp.expm1(far) / far
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / far
    near = jnp.where(small, z, 0.0)
    # 18 terms: the next is below 1e-17 of the first.
    series = jnp.zeros_like(near)
    for j in reversed(range(18)):
        series = series * near + 1 / math.factorial(j + k)
    return jnp.where(small, series, value)


def _half_log_snr(sde: SDE, t: Any) -> Array:
    return 0.5 * sde.log_snr(t)


def _time_of_half_log_snr(sde: SDE, clock: Array) -> Array:
    return sde.inverse_log_snr(2 * clock)


def _exponential_moments(scale: Array, rate: Any, h: Array) -> tuple[Array, ...]:
    """∫₀^h scale·e^{rate(τ−h)}·τ^k dτ."""
    return tuple(scale * math.factorial(k) * h ** (k + 1) * phi(k + 1, -rate * h) for k in range(ORDERS))


def root(square: Array) -> Array:
    """√square, 0 below 0, with derivative 0 where it is 0 and not infinity."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def sigma_ratio(sde: SDE, t: Any) -> Array:
    """σ̃ = σ/α."""
    return jnp.exp(-0.5 * sde.log_snr(t))


@pytree
class DataKernel:
    """y = x0 in the clock λ: the probability flow where η is None, the reverse SDE at η = 1."""

    eta: Any = None

    clock = staticmethod(_half_log_snr)
    time = staticmethod(_time_of_half_log_snr)

    def component(self, denoised: Denoised) -> Array:
        return denoised.x0

    def interval(self, sde: SDE, t: Any, s: Any) -> Interval:
        """As `Kernel.interval`."""
        h = self.clock(sde, s) - self.clock(sde, t)
        eta = 0.0 if self.eta is None else self.eta
        ratio = jnp.exp(sde.log_sigma(s) - sde.log_sigma(t) - eta * h)
        moments = _exponential_moments((1 + eta) * sde.alpha(s), 1 + eta, h)
        return Interval(ratio, moments, h, None if self.eta is None else self.std(sde, t, s))

    def std(self, sde: SDE, t: Any, s: Any) -> Array:
        """The standard deviation of the noise of a step.

        Args:
            sde: The process.
            t: The time at which it begins.
            s: The time at which it ends.

        Returns:
            σ_s·√(1 − e^{−2ηh}).
        """
        h = self.clock(sde, s) - self.clock(sde, t)
        return sde.sigma(s) * root(-jnp.expm1(-2 * self.eta * h))


@pytree
class NoiseKernel:
    """y = eps in the clock λ, without noise."""

    clock = staticmethod(_half_log_snr)
    time = staticmethod(_time_of_half_log_snr)

    def component(self, denoised: Denoised) -> Array:
        return denoised.eps

    def interval(self, sde: SDE, t: Any, s: Any) -> Interval:
        """As `Kernel.interval`."""
        h = self.clock(sde, s) - self.clock(sde, t)
        ratio = jnp.exp(sde.log_alpha(s) - sde.log_alpha(t))
        return Interval(ratio, _exponential_moments(-sde.sigma(s), -1.0, h), h, None)


@pytree
class SigmaRatioKernel:
    """y = eps in the clock σ̃ = σ/α, without noise."""

    clock = staticmethod(sigma_ratio)

    def time(self, sde: SDE, clock: Array) -> Array:
        return sde.inverse_log_snr(-2 * jnp.log(clock))

    def component(self, denoised: Denoised) -> Array:
        return denoised.eps

    def interval(self, sde: SDE, t: Any, s: Any) -> Interval:
        """As `Kernel.interval`."""
        h = self.clock(sde, s) - self.clock(sde, t)
        ratio = jnp.exp(sde.log_alpha(s) - sde.log_alpha(t))
        moments = tuple(sde.alpha(s) * h ** (k + 1) / (k + 1) for k in range(ORDERS))
        return Interval(ratio, moments, h, None)


def integrate_through(
    values: tuple[Array, ...], clocks: tuple[Array, ...], known: tuple[Any, ...], moments: tuple[Array, ...]
) -> Array:
    """∫ weight·p of the polynomial p through some nodes, by Newton's divided differences.

    Args:
        values: The values at the nodes.
        clocks: The nodes in the clock, from the interval's start.
        known: Whether each node is there yet; the known ones come first, and the others take no part.
        moments: Those of the interval, ∫ weight·τ^k dτ.

    Returns:
        The integral, of the shape of a value.
    """
    differences = list(values)
    total = jnp.zeros_like(values[0])
    basis: list[Any] = [1.0]  # coefficients of Π_{j<k} (τ − clocks_j), ascending
    for k in range(len(values)):
        total = total + sum(c * m for c, m in zip(basis, moments, strict=False)) * differences[0]
        basis = [low - clocks[k] * here for low, here in zip([0.0, *basis], [*basis, 0.0], strict=True)]
        differences = [
            _divided(differences[i + 1] - differences[i], clocks[i + k + 1] - clocks[i], known[i + k + 1])
            for i in range(len(differences) - 1)
        ]
    return total


def _divided(difference: Array, by: Array, known: Any) -> Array:
    # Where a grid repeats a time, the two nodes are one.
    there = known & (by != 0)
    return difference * jnp.where(there, 1 / jnp.where(there, by, 1.0), 0.0)
