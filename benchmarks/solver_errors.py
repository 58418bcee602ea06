"""What `solver_table.py` measures: errors of solvers of VP on two mixtures of Gaussians, in the plane and in 3,072
dimensions, from time 1 to t_min.

All solvers start from the same exact draws of x(1) and take the same normal draws, `keyed_noise` of the samples' keys.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from diffuse_jax import oracles, solvers, times
from diffuse_jax.denoiser import Denoised
from diffuse_jax.sampling import count_evaluations, keyed_noise, sample_keys
from diffuse_jax.sde import VP, Array
from diffuse_jax.solvers import Solver
from diffuse_jax.trees import pytree

SDE = VP()
#: The most evaluations of a fixed grid.
MOST = 100

# --- the problems -----------------------------------------------------------------------------------------------------


@pytree
class Mixture(oracles.Mixture):
    """`oracles.Mixture` at one time for all x, by matrix products, which 3,072 dimensions need: with v_k = α²·s_k² + σ²
    and q_k = responsibility_k/v_k, x0 = σ²·Σq_k·m_k + α·(Σq_k·s_k²)·x and eps = σ·((Σq_k)·x − α·Σq_k·m_k)."""

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        weights, means, stds = (leaf.astype(x.dtype) for leaf in (self.weights, self.means, self.stds))
        alpha, sigma = self.sde.alpha(t).astype(x.dtype), self.sde.sigma(t).astype(x.dtype)
        square = jnp.square(stds)
        variance = jnp.square(alpha) * square + jnp.square(sigma)
        distance = (
            jnp.sum(jnp.square(x), -1, keepdims=True)
            - 2 * alpha * (x @ means.T)
            + jnp.square(alpha) * jnp.sum(jnp.square(means), -1)
        )
        log_joint = jnp.log(weights) - 0.5 * (distance / variance + x.shape[-1] * jnp.log(variance))
        q = jax.nn.softmax(log_joint, axis=-1) / variance
        mean = q @ means
        x0 = jnp.square(sigma) * mean + alpha * jnp.sum(q * square, -1, keepdims=True) * x
        return Denoised(x0, sigma * (jnp.sum(q, -1, keepdims=True) * x - alpha * mean))


def plane() -> Mixture:
    """Three components in the plane."""
    means = jnp.asarray([[-1.2, 0.6], [0.9, 0.8], [0.2, -0.9]])
    return Mixture(SDE, jnp.asarray([0.2, 0.3, 0.5]), means, jnp.asarray([0.2, 0.3, 0.4]))


def images() -> Mixture:
    """Eight components whose means are smooth fields of 32 × 32 × 3 numbers, the largest of each being 1."""
    rng = np.random.default_rng(0)
    angle = np.pi * (np.arange(32) + 0.5)[:, None] / 32 * np.arange(4)
    # Of the cosine transform the lowest four frequencies a side, the higher ones weaker.
    decay = 1 / (1 + np.add.outer(np.arange(4), np.arange(4)))
    fields = np.einsum(
        "hi,wj,kijc->khwc", np.cos(angle), np.cos(angle), rng.standard_normal((8, 4, 4, 3)) * decay[..., None]
    )
    means = (fields / np.abs(fields).max(axis=(1, 2, 3), keepdims=True)).reshape(8, -1)
    return Mixture(SDE, jnp.full(8, 1 / 8), jnp.asarray(means), jnp.linspace(0.1, 0.3, 8))


def draw(data: Mixture, rng: np.random.Generator, n: int, t: float) -> np.ndarray:
    """Exact draws (n, d) of x(t)."""
    weights, means, stds = (np.asarray(leaf) for leaf in (data.weights, data.means, data.stds))
    k = rng.choice(len(weights), n, p=weights)
    x0 = means[k] + stds[k, None] * rng.standard_normal((n, means.shape[1]))
    return float(SDE.alpha(t)) * x0 + float(SDE.sigma(t)) * rng.standard_normal(x0.shape)


def quantiles(data: Mixture, directions: np.ndarray, n: int, t: float) -> np.ndarray:
    """The (i + ½)/n quantiles of x(t) along directions (d, r), by bisection: (n, r)."""
    alpha, sigma = float(SDE.alpha(t)), float(SDE.sigma(t))
    centres, spread = alpha * np.asarray(data.means) @ directions, np.hypot(alpha * np.asarray(data.stds), sigma)
    levels = (np.arange(n)[:, None] + 0.5) / n
    low = np.broadcast_to(centres.min(0) - 8 * spread.max(), (n, directions.shape[1]))
    high = np.broadcast_to(centres.max(0) + 8 * spread.max(), low.shape)
    for _ in range(48):
        middle = 0.5 * (low + high)
        below = sum(
            w * ndtr((middle - c) / s) for w, c, s in zip(np.asarray(data.weights), centres, spread, strict=True)
        )
        low, high = np.where(below < levels, middle, low), np.where(below < levels, high, middle)
    return 0.5 * (low + high)


class Problem(NamedTuple):
    """A mixture; `starts` points (in float64) for the error of the flow; `samples` samples, computed `chunk` at a time
    in `dtype`, for the error in law, along `directions` directions."""

    name: str
    data: Mixture
    starts: int
    samples: int
    chunk: int
    dtype: Any
    directions: np.ndarray


def problems(quick: bool) -> tuple[Problem, Problem]:
    angles = np.pi * np.arange(16) / 16
    normal = np.random.default_rng(1).standard_normal((3072, 64))
    few = 4 if quick else 1
    return (
        Problem("2-D", plane(), 256, 50_000 // few, 12_500, jnp.float64, np.stack([np.cos(angles), np.sin(angles)])),
        Problem("3,072-D", images(), 128 // few, 2048 // few, 64, jnp.float32, normal / np.linalg.norm(normal, axis=0)),
    )


# --- errors -----------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="draws")
def march(
    solver: Solver, denoise: Mixture, grid: Array, steps: Array, x: Array, memory: Any, pool: Array, draws: int
) -> Any:
    """The first `steps` steps of `sampling.solve`, their number being traced: one compilation a solver. Draw i of step
    k is pool[k·draws + i]."""

    def advance(k: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        x, memory = carry
        x, _, memory = solver.step(lambda i: pool[k * draws + i], x, memory, grid[k], grid[k + 1], denoise)
        return x, memory

    return jax.lax.fori_loop(0, steps, advance, (x, memory))


def run(solver: Solver, data: Mixture, grid: Array, x: Array, pool: Array) -> tuple[Array, int]:
    """Where the solver takes x along the grid, in the precision of x, and the most evaluations that one sample took."""
    grid = grid.astype(x.dtype)
    memory = solver.init(x, grid, data)
    padded = jnp.pad(grid, (0, MOST + 1 - len(grid)), mode="edge")
    x, memory = march(solver, data, padded, len(grid) - 1, x, memory, pool, solver.evaluations or 0)
    return x, int(jnp.max(count_evaluations(solver, grid, memory)))


@jax.jit
def draws_of(keys: Array, x: Array) -> Array:
    """As many draws shaped like x as a budget has evaluations, each from its own stream of the keys: no solver takes
    more than one for each of its evaluations, and all take the same."""
    return jax.vmap(lambda stream: keyed_noise(keys, stream, x)(0))(1 + jnp.arange(MOST))


class Found(NamedTuple):
    """An error, and the evaluations of the sample that took most."""

    error: float
    evaluations: int


#: A solver and its grid.
Case = tuple[Solver, Array]


def flow_errors(problem: Problem, cases: list[Case]) -> list[tuple[Found, Found]]:
    """Root mean square over the coordinates of x(t_min) − the exact flow: its root mean square over the starts, and its
    median."""
    x = jnp.asarray(draw(problem.data, np.random.default_rng(2), problem.starts, SDE.T))
    # No solver of the flow draws.
    end, _ = run(solvers.adaptive(1e-10, 1e-10, 10**6), problem.data, times.log_snr(SDE, 1), x, x[None])
    found = []
    for solver, grid in cases:
        x_end, calls = run(solver, problem.data, grid, x, x[None])
        square = jnp.mean(jnp.square(x_end - end), axis=-1)
        mean, median = (Found(float(jnp.sqrt(over(square))), calls) for over in (jnp.mean, jnp.median))
        found.append((mean, median))
    return found


def law_errors(problem: Problem, cases: list[Case]) -> tuple[list[Found], list[float]]:
    """Root mean square over the directions of the Wasserstein-2 distance of samples from the law of x(t_min), and the
    same of eight sets of as many exact draws."""
    data, n, directions = problem.data, problem.samples, problem.directions
    exact = quantiles(data, directions, n, SDE.t_min)

    def distance(projected: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(np.sort(projected, axis=0) - exact))))

    rng = np.random.default_rng(3)
    sets = [distance(draw(data, rng, n, SDE.t_min) @ directions) for _ in range(8)]
    starts, keys = draw(data, rng, n, SDE.T), sample_keys(0, n)
    onto = jnp.asarray(directions, problem.dtype)
    projected, most = [np.empty_like(exact) for _ in cases], [0] * len(cases)
    for first in range(0, n, problem.chunk):
        rows = slice(first, first + problem.chunk)
        x = jnp.asarray(starts[rows], problem.dtype)
        pool = draws_of(keys[rows], x)
        for i, (solver, grid) in enumerate(cases):
            x_end, calls = run(solver, data, grid, x, pool)
            projected[i][rows], most[i] = x_end @ onto, max(most[i], calls)
    found = [Found(distance(ends), calls) for ends, calls in zip(projected, most, strict=True)]
    return found, sets
