"""Sampling: a solver scanned over a grid of times, with every sample's randomness a function of its own key.

Sample i has the key fold_in(key(seed), i), whatever batch, chunk or shard it is computed in; stream 0 of a key makes
the sample's prior draw, stream k + 1 the draws of step k.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffuse_jax.denoiser import Conditioned, Denoiser
from diffuse_jax.sde import Array
from diffuse_jax.solvers.base import Noise, Solver

__all__ = [
    "Solution",
    "count_evaluations",
    "denoise_once",
    "keyed_noise",
    "last_mean",
    "last_state",
    "prior_sample",
    "sample",
    "sample_keys",
    "solve",
]


class Solution(NamedTuple):
    """The end of a solve: the last state, its mean (without the last step's noise), the solver's memory, and the path
    (N + 1, batch, …) or None."""

    x: Array
    mean: Array
    memory: Any
    path: Array | None


def sample_keys(seed: Any, first: Any, n: int) -> Array:
    """Keys (n,) of the samples first, …, first + n − 1 of a seed (an integer or a key)."""
    key = jax.random.key(seed) if jnp.issubdtype(jnp.result_type(seed), jnp.integer) else seed
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(n, dtype=jnp.uint32))


def keyed_noise(keys: Array, stream: Any, x: Array) -> Noise:
    """The draws of a step: `noise(i)` is standard normal, shaped like x (batch, …), each row from its own key of `keys`
    (batch,)."""

    def draw(i: Any) -> Array:
        def one(key: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, stream), i), x.shape[1:], x.dtype)

        return jax.vmap(one)(keys)

    return draw


def prior_sample(keys: Array, denoise: Denoiser, shape: tuple[int, ...] | None = None) -> Array:
    """Draws of the process's prior, (batch, *shape), one a key; `shape` is the denoiser's own where None.

    Raises ValueError where neither states the shape of one sample.
    """
    shape = getattr(denoise, "shape", None) if shape is None else shape
    if shape is None:
        raise ValueError(
            "the shape of one sample is unknown: give prior_sample(keys, denoise, shape) as x, "
            "or a denoiser with a `shape`"
        )
    return denoise.sde.prior_std() * keyed_noise(keys, 0, jnp.zeros((keys.shape[0], *shape)))(0)


def solve(
    keys: Array,
    denoise: Denoiser,
    solver: Solver,
    times: Array,
    x: Array | None = None,
    *,
    cond: Any = None,
    noise: Callable[[Array, Any, Array], Noise] = keyed_noise,
    path: bool = False,
) -> Solution:
    """Takes x (batch, …) at times[0] along the decreasing grid `times` (N + 1,) to times[-1], in one scan.

    `x` defaults to draws of the prior, which belong to times[0] = T. `cond` is a pytree whose leaves lead with batch.
    `noise(keys, k + 1, x)` makes the draws of step k: by default from the keys; a function of yours may return recorded
    arrays instead. `path=True` keeps every state, x itself first.
    """
    x = prior_sample(keys, denoise) if x is None else jnp.asarray(x)
    x = x.astype(jnp.result_type(x, times))
    bound = Conditioned(denoise, cond)

    def advance(carry: tuple[Array, Array, Any], step: tuple[Array, Array, Array]) -> tuple[Any, Array | None]:
        x, _, memory = carry
        stream, t, s = step
        x, mean, memory = solver.step(noise(keys, stream, x), x, memory, t, s, bound)
        return (x, mean, memory), (x if path else None)

    start = (x, x, solver.init(x, times, bound))
    streams = jnp.arange(1, times.shape[0])
    (end, mean, memory), states = jax.lax.scan(advance, start, (streams, times[:-1], times[1:]))
    return Solution(end, mean, memory, None if states is None else jnp.concatenate([x[None], states]))


def count_evaluations(solver: Solver, times: Array, memory: Any) -> Array:
    """The evaluations of the denoiser in a solve along `times` that ended with `memory`: a number, or one a sample
    (batch,) where the solver counts for itself; NaN where it states none."""
    if solver.evaluations is not None:
        return jnp.asarray(solver.evaluations * (times.shape[0] - 1))
    return jnp.asarray(jnp.nan) if solver.count is None else solver.count(memory)


def last_mean(solution: Solution, t: Array, denoise: Denoiser) -> Array:
    """The last step's mean: the state without the noise that the step added."""
    return solution.mean


def last_state(solution: Solution, t: Array, denoise: Denoiser) -> Array:
    """The last state as it is: a draw of x(t_min)."""
    return solution.x


def denoise_once(solution: Solution, t: Array, denoise: Denoiser) -> Array:
    """E[x_0 | x(t_min)] at the last state."""
    return denoise(solution.x, t).x0


def sample(
    keys: Array,
    denoise: Denoiser,
    solver: Solver,
    times: Array,
    x: Array | None = None,
    *,
    cond: Any = None,
    finish: Callable[[Solution, Array, Denoiser], Array] = last_mean,
    noise: Callable[[Array, Any, Array], Noise] = keyed_noise,
) -> Array:
    """Samples (batch, …), one a key: `solve`, then `finish`, which is `last_mean`, `denoise_once`, `last_state` or a
    function of yours."""
    solution = solve(keys, denoise, solver, times, x, cond=cond, noise=noise)
    return finish(solution, times[-1], Conditioned(denoise, cond))
