"""The order of a solver, measured: how its error falls with the number of steps on data whose answer is known.

On Gaussian data every denoiser is affine, so a step is affine in the state, in what the solver remembers and in its
noise, and mean and covariance go from step to step exactly: weak orders need no Monte Carlo.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax import times as grids
from diffuse_jax.oracles.closed_forms import Gaussian
from diffuse_jax.sampling import solve
from diffuse_jax.sde import SDE, Array
from diffuse_jax.solvers.adaptive import adaptive
from diffuse_jax.solvers.solver import Solver

__all__ = ["Order", "moments", "order_of"]


class Order(NamedTuple):
    """The measured order.

    Args:
        order: Minus the slope of log error over log steps.
        counts: The numbers of steps.
        errors: The error with each.
    """

    order: float
    counts: tuple[int, ...]
    errors: tuple[float, ...]


def order_of(
    solver: Solver,
    sde: SDE,
    data: Any = None,
    *,
    counts: Sequence[int] = (32, 64, 128),
    t_max: float | None = None,
    t_min: float | None = None,
    grid: Callable[..., Array] = grids.log_snr,
    draws: int | None = None,
) -> Order:
    """The order of a solver, from its errors on grids of several numbers of steps.

    On an `oracles.Gaussian` of vectors: the error of mean and covariance, exact, starting from the exact law at t_max;
    for a stochastic solver that is its weak order, for a deterministic one its order. On any other denoiser of vectors
    that has a `shape`: the error of trajectories of the probability flow from fixed points, against the adaptive
    solver; for deterministic solvers, and the harder test of them, because it is not linear. Enable 64-bit floats
    (`jax.enable_x64`): in 32 bits rounding hides an order above 1.

    Args:
        solver: The solver.
        sde: The process.
        data: The denoiser of the data, of the same process; None is a Gaussian in the plane.
        counts: The numbers of steps, two or more.
        t_max: The first time; None is where the process's grids start.
        t_min: The last time; None is the process's own.
        grid: The grid of n steps, `grid(sde, n, t_min=…, t_max=…)`.
        draws: The normal draws of a step at most, as in `moments`.

    Returns:
        The order, with the numbers of steps and the errors from which it is measured.

    Raises:
        ValueError: For fewer than two counts, data of another process, a solver with noise on data that are not
            Gaussian, and one that chooses its own steps.
    """
    if len(counts) < 2:
        raise ValueError(f"order_of: counts={tuple(counts)} must name at least two numbers of steps")
    # Two variances, so that an error that changes its sign at one of them is not taken for a small one.
    data = Gaussian(sde, jnp.asarray([0.7, -0.4]), jnp.diag(jnp.asarray([0.3, 2.0]))) if data is None else data
    if not _equal(data.sde, sde):
        raise ValueError(f"order_of: data are of the process {data.sde}, not of sde={sde}")
    if solver.count is not None:
        raise ValueError("order_of: the solver counts its own evaluations: it has no order in the steps of a grid")
    if not isinstance(data, Gaussian) and solver.weak_order is not None:
        raise ValueError(
            "order_of: a solver with noise is measured in moments, which are exact on oracles.Gaussian alone"
        )
    grid_of = [grid(sde, n, t_min=t_min, t_max=t_max) for n in counts]
    ends = grid_of[0][jnp.asarray([0, -1])]
    if isinstance(data, Gaussian):
        run, exact = jax.jit(lambda times: moments(solver, data, times, draws)), data.marginal(ends[1])
    else:
        x = _points(data, ends[0])
        run = jax.jit(lambda times: solve(None, data, solver, times, x).x)
        exact = jax.jit(lambda ends: solve(None, data, adaptive(1e-11, 1e-11, 65536), ends, x).x)(ends)
    errors = tuple(_distance(run(times), exact) for times in grid_of)
    return Order(-float(np.polyfit(np.log(counts), np.log(errors), 1)[0]), tuple(counts), errors)


def moments(solver: Solver, data: Gaussian, times: Array, draws: int | None = None) -> tuple[Array, Array]:
    """Mean and covariance of x(times[-1]) under a solver, exactly, from the law of the data at times[0].

    What a solver remembers in the shape of x counts as affine in x; the rest of its memory as independent of it, which
    leaves out step sizes that look at the state (Langevin by batch norms, the adaptive solver).

    Args:
        solver: The solver.
        data: The Gaussian whose denoiser it is given.
        times: The grid (N + 1,).
        draws: The most normal draws that a step takes; None is two an evaluation and two more. The mean under one that
            takes more is NaN.

    Returns:
        The mean (d,) and the covariance (d, d).
    """
    draws = 2 * (solver.evaluations or 3) + 2 if draws is None else draws
    mean, cov = data.marginal(times[0])
    d = mean.shape[0]

    def begin(x: Array) -> tuple[Array, Any]:
        return x[None], solver.init(x[None], times, data)

    def advance(state: tuple[Array, Any], z: Array, t: Array, s: Array) -> tuple[Array, Any]:
        x, memory = state

        def noise(i: Any) -> Array:
            return jnp.where(i < draws, z[jnp.minimum(i, draws - 1)], jnp.nan)[None]

        x, _, memory = solver.step(noise, x, memory, t, s, data)
        return x, memory

    def split(state: Any) -> tuple[Array, Callable[[Array], Any]]:
        leaves, tree = jax.tree.flatten(state)
        affine = [jnp.shape(leaf) == (1, d) for leaf in leaves]
        vector = jnp.concatenate([leaf[0] for leaf, yes in zip(leaves, affine, strict=True) if yes])

        def join(vector: Array) -> Any:
            parts = iter(jnp.split(vector, sum(affine)))
            joined = [next(parts)[None] if yes else leaf for leaf, yes in zip(leaves, affine, strict=True)]
            return jax.tree.unflatten(tree, joined)

        return vector, join

    def step(carry: tuple[Any, Array], ends: tuple[Array, Array]) -> tuple[tuple[Any, Array], None]:
        state, cov = carry
        vector, join = split(state)

        def move(vector: Array, z: Array) -> Array:
            return split(advance(join(vector), z, *ends))[0]

        still = jnp.zeros((draws, d), mean.dtype)
        by_state, by_noise = jax.jacfwd(move, (0, 1))(vector, still)
        by_noise = by_noise.reshape(len(vector), -1)
        return (advance(state, still, *ends), by_state @ cov @ by_state.T + by_noise @ by_noise.T), None

    by_x = jax.jacfwd(lambda x: split(begin(x))[0])(mean)
    carry = (begin(mean), by_x @ cov @ by_x.T)
    (state, cov), _ = jax.lax.scan(step, carry, (times[:-1], times[1:]))
    return state[0][0], cov[:d, :d]


def _equal(a: Any, b: Any) -> bool:
    first: Any = jax.tree.structure(a)
    return bool(first == jax.tree.structure(b)) and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def _points(data: Any, t: Array) -> Array:
    """Eight fixed points, spread as x(t) is for data of unit size."""
    spread = jnp.sqrt(jnp.square(data.sde.alpha(t)) + jnp.square(data.sde.sigma(t)))
    draws = np.random.default_rng(0).standard_normal((8, *data.shape))
    return spread * jnp.asarray(draws, jnp.result_type(float))


def _distance(found: Any, exact: Any) -> float:
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), found, exact)
    return float(jnp.max(jnp.stack(jax.tree.leaves(differences))))
