"""What both sides of the comparison share: the data with its exact denoiser, the noise, and what a method is.

Everything is stated in the coordinates α = 1, σ = t (2206.00364, table 1, EDM), in float64. A method takes x at σ_0
along the given σ_0 > … > σ_n > 0 to σ_n. The denoiser is one formula for NumPy, PyTorch and JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import scipy.special

__all__ = ["CHURN", "Counted", "Data", "Draws", "Method", "Mixture", "Normals", "normal_draws", "unit_draws"]

#: The churn of EDM's stochastic sampler on ImageNet-64 (2206.00364, table 5).
CHURN = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "noise_scale": 1.003}


class Data(Protocol):
    """Data whose denoiser E[x_0 | x(σ)] is a closed form; `xp` is numpy, torch or jax.numpy."""

    def x0(self, xp: ModuleType, x: Any, sigma: Any) -> Any: ...


@dataclass(frozen=True)
class Mixture:
    """Σ_k weights_k·N(means_k, stds_k²·I): weights (k,), means (k, d), stds (k,)."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    def x0(self, xp: ModuleType, x: Any, sigma: Any) -> Any:
        weights, means, stds = (xp.asarray(a) for a in (self.weights, self.means, self.stds))
        variance = stds**2 + sigma**2
        offset = x[:, None] - means
        log_joint = xp.log(weights / variance ** (means.shape[1] / 2)) - 0.5 * (offset**2).sum(-1) / variance
        share = xp.exp(log_joint - xp.amax(log_joint, 1)[:, None])
        share = share / share.sum(1)[:, None]
        return (share[..., None] * (means + (stds**2 / variance)[:, None] * offset)).sum(1)

    def quantiles(self, direction: np.ndarray, n: int, sigma: float) -> np.ndarray:
        """The n quantiles (i + ½)/n of direction·x(σ)."""
        means, stds = self.means @ direction, np.sqrt(self.stds**2 + sigma**2)
        grid = np.linspace((means - 8 * stds).min(), (means + 8 * stds).max(), 20001)
        cdf = scipy.special.ndtr((grid[:, None] - means) / stds) @ self.weights
        return np.interp((np.arange(n) + 0.5) / n, cdf, grid)

    def draw(self, rng: np.random.Generator, n: int, sigma: float) -> np.ndarray:
        """n states of x(σ)."""
        k = rng.choice(len(self.weights), n, p=self.weights)
        std = np.sqrt(self.stds[k] ** 2 + sigma**2)[:, None]
        return self.means[k] + std * rng.standard_normal((n, self.means.shape[1]))


@dataclass(frozen=True)
class Normals:
    """Independent coordinates N(means_j, stds_j²): the denoiser is affine, so that any solver is an affine map."""

    means: np.ndarray
    stds: np.ndarray

    def x0(self, xp: ModuleType, x: Any, sigma: Any) -> Any:
        means, variance = xp.asarray(self.means), xp.asarray(self.stds**2)
        return means + variance / (variance + sigma**2) * (x - means)


class Draws:
    """The noise of a solve: `array(k)` is the k-th standard normal array. Methods that draw in turn call `next`; those
    that ask for the Brownian increment of an interval of σ, divided by its standard deviation, call `between`, and
    `knots` (decreasing) are all the ends that they ask for."""

    def __init__(self, array: Callable[[int], np.ndarray], knots: np.ndarray):
        self.array, self.knots, self.taken = array, knots, 0

    def next(self) -> np.ndarray:
        self.taken += 1
        return self.array(self.taken - 1)

    def between(self, first: Any, second: Any) -> np.ndarray:
        ends = sorted(int(np.argmin(np.abs(np.log(self.knots / float(end))))) for end in (first, second))
        widths = -np.diff(self.knots)[ends[0] : ends[1]]
        return sum(np.sqrt(w / widths.sum()) * self.array(ends[0] + k) for k, w in enumerate(widths))


def normal_draws(shape: tuple[int, ...], seed: int) -> Callable[[int], np.ndarray]:
    """The k-th array is standard normal, the same for every method."""
    return lambda k: np.random.default_rng((seed, k)).standard_normal(shape)


def unit_draws(rows: int, dims: int) -> Callable[[int], np.ndarray]:
    """The k-th array is 1 in row k + 2 and 0 elsewhere: row by row, what one draw alone does to an affine solver."""

    def array(k: int) -> np.ndarray:
        if k + 2 >= rows:
            raise ValueError(f"draw {k} has no row among {rows}: the method takes more draws than it states")
        one = np.zeros((rows, dims))
        one[k + 2] = 1
        return one

    return array


class Counted:
    """The denoiser of `data` in one array library, counting its calls: x (batch, d), a number σ."""

    def __init__(self, data: Data, xp: ModuleType):
        self.data, self.xp, self.calls = data, xp, 0

    def __call__(self, x: Any, sigma: Any) -> Any:
        self.calls += 1
        return self.data.x0(self.xp, x, sigma)


@dataclass(frozen=True)
class Method:
    """A solver of a library, under its own name. `family` is the published definition that it computes: methods of one
    family are the same solver. `run(data, sigmas, x, draws) -> (x at the last σ, calls of the denoiser)`. It takes
    `per_step` calls a step and `extra` more in all, and `draws` arrays of noise a step."""

    library: str
    name: str
    family: str | None
    run: Callable[[Data, np.ndarray, np.ndarray, Draws | None], tuple[np.ndarray, int]]
    per_step: int = 1
    extra: int = 0
    draws: int = 0

    def steps(self, budget: int) -> int:
        """The most steps that `budget` calls pay for."""
        return (budget - self.extra) // self.per_step
