"""Sampling: a solver scanned over a grid of times, with every sample's randomness a function of its own key.

Sample i has the key fold_in(key(seed), i), whatever batch, chunk or shard it is computed in; stream 0 of a key makes
the sample's prior draw, stream k + 1 the draws of step k. With `brownian_noise` the draws of a step are those of a
Brownian motion between its two times, so that a grid of other steps drives the same image.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax._checks import (
    check_batched,
    check_denoiser,
    check_first_time,
    check_keys,
    check_seed,
    check_solver,
    check_times,
)
from diffuse_jax._compile import compiled
from diffuse_jax.denoiser import Conditioned, Denoiser
from diffuse_jax.sde import SDE, Array
from diffuse_jax.solvers.adaptive import Transported, transport
from diffuse_jax.solvers.solver import Noise, Solver

__all__ = [
    "NoiseSource",
    "Solution",
    "Span",
    "brownian_noise",
    "count_evaluations",
    "decode",
    "denoise_once",
    "encode",
    "keyed_noise",
    "last_mean",
    "last_state",
    "prior_sample",
    "sample",
    "sample_keys",
    "solve",
]


class Solution(NamedTuple):
    """The end of a solve.

    Args:
        x: The last state (batch, …).
        mean: Its mean, without the noise of the last step, (batch, …).
        memory: What the solver remembers.
        path: The states along the grid, the start first, (N + 1, batch, …); None where they were not asked for.
    """

    x: Array
    mean: Array
    memory: Any
    path: Array | None


def sample_keys(seed: Any, n: int, *, first: Any = 0) -> Array:
    """One random key for each of the samples first, …, first + n − 1 of a seed.

    Args:
        seed: An integer, or a key of `jax.random.key`.
        n: How many.
        first: The number of the first sample.

    Returns:
        Keys (n,), that of sample i a function of the seed and i alone.

    Raises:
        TypeError: For a seed that is neither.
        ValueError: For a seed, or numbers of samples, outside of 0 … 2³² − 1, or not whole.
    """
    check_seed(seed, first, n)
    key = jax.random.key(seed) if jnp.issubdtype(jnp.result_type(seed), jnp.integer) else seed
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(n, dtype=jnp.uint32))


class Span(NamedTuple):
    """A step's times, and the process that is sampled.

    Args:
        t: The time at which the step begins.
        s: The time at which it ends.
        sde: The process.
    """

    t: Any
    s: Any
    sde: SDE


#: What makes the draws of a step: (keys (batch,), stream, x (batch, …), span) -> noise, noise(i) being shaped like x.
NoiseSource = Callable[[Any, Any, Array, Span], Noise]


def keyed_noise(keys: Array, stream: Any, x: Array, span: Span | None = None) -> Noise:
    """The draws of a step, standard normal, each row from its own key and the step's stream, whatever its times.

    Args:
        keys: Keys (batch,), one a row.
        stream: The number of the stream: 0 is the prior's, k + 1 that of step k.
        x: An array (batch, …) of the shape and type of a draw.
        span: The step's times, which are not read.

    Returns:
        `noise`, of which noise(i) is the i-th draw of the step, shaped like x.
    """

    def draw(i: Any) -> Array:
        def one(key: Array) -> Array:
            return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, stream), i), x.shape[1:], x.dtype)

        return jax.vmap(one)(keys)

    return draw


# The clock of `brownian_noise`: log-SNR, in which the steps of all grids are of one magnitude. It runs over ±80, where
# α or σ is below the rounding of 64-bit floats, and is resolved to 160/2^18, below a thousandth.
_CLOCK_RANGE = 80.0
_CLOCK_BITS = 18
_SHORTEST = 4 * 2.0**-_CLOCK_BITS


def brownian_noise(keys: Array, stream: Any, x: Array, span: Span) -> Noise:
    """The draws of a step as increments of Brownian motions, divided by their deviation: (W_i(s) − W_i(t))/√(the time
    between), time being log-SNR, and W_i one path for each key and each i.

    Standard normal and independent between steps, as `keyed_noise`; but a finer grid refines the same paths, so the
    number of steps changes an image only by the solver's own error, for solvers that draw once a step (noise(0)). A
    step of less than 1/400 in log-SNR draws from its key instead. Costs some 40 normal draws the size of x for one.

    Args:
        keys: Keys (batch,), one a row.
        stream: The number of the step's stream, for steps too short for the path.
        x: An array (batch, …) of the shape and type of a draw.
        span: The step's times and the process.

    Returns:
        `noise`, of which noise(i) is the i-th draw of the step, shaped like x.
    """

    def clock(t: Any) -> Array:
        return (jnp.clip(span.sde.log_snr(t), -_CLOCK_RANGE, _CLOCK_RANGE) + _CLOCK_RANGE) / (2 * _CLOCK_RANGE)

    start, stop = clock(span.t), clock(span.s)
    long = stop - start > _SHORTEST
    length = jnp.where(long, stop - start, 1.0)

    def draw(i: Any) -> Array:
        def one(key: Array) -> Array:
            # Stream 0 is the prior's; the paths have streams from the end of the numbers.
            key = jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), i)
            shape = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
            path = diffrax.VirtualBrownianTree(0.0, 1.0, tol=2.0**-_CLOCK_BITS, shape=shape, key=key)
            return path.evaluate(start, stop) / jnp.sqrt(length)

        return jnp.where(long, jax.vmap(one)(keys).astype(x.dtype), keyed_noise(keys, stream, x)(i))

    return draw


def prior_sample(keys: Array, denoise: Denoiser, shape: tuple[int, ...] | None = None) -> Array:
    """Draws of the process's prior N(0, prior_std²·I), one for each key.

    Args:
        keys: Keys (batch,), of `sample_keys`.
        denoise: The denoiser, whose `sde` has the prior.
        shape: The shape of one sample; None is the denoiser's own.

    Returns:
        x at the end of time, (batch, *shape).

    Raises:
        ValueError: Where neither `shape` nor the denoiser gives the shape of one sample.
    """
    shape = getattr(denoise, "shape", None) if shape is None else shape
    if shape is None:
        raise ValueError(
            "the shape of one sample is unknown: give prior_sample(keys, denoise, shape) as x, "
            "or a denoiser with a `shape`"
        )
    check_keys(keys)
    return denoise.sde.prior_std() * keyed_noise(keys, 0, jnp.zeros((keys.shape[0], *shape)))(0)


def solve(
    keys: Array | None,
    denoise: Denoiser,
    solver: Solver,
    times: Array,
    x: Array | None = None,
    *,
    cond: Any = None,
    noise: NoiseSource = keyed_noise,
    path: bool = False,
) -> Solution:
    """Takes x from times[0] along a grid of times to times[-1], in one scan.

    Args:
        keys: Keys (batch,), one a sample, of `sample_keys`; None where x is given and the solver draws no noise.
        denoise: The denoiser.
        solver: The solver, of `diffuse_jax.solvers` or your own.
        times: The grid (N + 1,), decreasing, of `diffuse_jax.times`; a solver of the probability flow also goes up,
            from data to latents.
        x: The start (batch, …) at times[0]; None draws it from the prior, which belongs to the end of time.
        cond: The condition of each sample, a pytree whose leaves lead with batch; None is unconditional.
        noise: What makes the draws of a step: `keyed_noise`, `brownian_noise`, or a function of yours, such as one that
            returns recorded arrays.
        path: Keep every state, the start first.

    Returns:
        The last state, its mean without the last step's noise, the solver's memory, and the path (N + 1, batch, …) or
            None.

    Raises:
        TypeError: For keys, a denoiser, a solver or times that are none.
        ValueError: For keys that are not one a row of x, and where x must be drawn from the prior, and there are no
            keys or the shape of a sample is unknown.
    """
    check_denoiser(denoise)
    check_solver(solver)
    check_times(times, denoise.sde)
    if keys is not None:
        check_keys(keys, None if x is None else jnp.shape(x)[0])
    if x is None:
        if keys is None:
            raise ValueError("a solve needs keys to start from the prior: give keys=sample_keys(seed, n), or x")
        x = prior_sample(keys, denoise)
    return _solve(keys, Conditioned(denoise, cond), solver, times, x, noise=noise, path=path)


@compiled("noise", "path")
def _solve(
    keys: Array | None,
    denoise: Denoiser,
    solver: Solver,
    times: Array,
    x: Array,
    *,
    noise: NoiseSource,
    path: bool,
) -> Solution:
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, times))

    def advance(carry: tuple[Array, Array, Any], step: tuple[Array, Array, Array]) -> tuple[Any, Array | None]:
        x, _, memory = carry
        stream, t, s = step
        x, mean, memory = solver.step(noise(keys, stream, x, Span(t, s, denoise.sde)), x, memory, t, s, denoise)
        return (x, mean, memory), (x if path else None)

    start = (x, x, solver.init(x, times, denoise))
    streams = jnp.arange(1, times.shape[0])
    (end, mean, memory), states = jax.lax.scan(advance, start, (streams, times[:-1], times[1:]))
    return Solution(end, mean, memory, None if states is None else jnp.concatenate([x[None], states]))


def count_evaluations(solver: Solver, times: Array, memory: Any) -> Array:
    """The evaluations of the denoiser in a solve.

    Args:
        solver: The solver.
        times: The grid (N + 1,).
        memory: The memory with which the solve ended.

    Returns:
        A number, or one a sample (batch,) where the solver counts for itself; NaN where it does not say.
    """
    if solver.evaluations is None and solver.count is None:
        return jnp.asarray(jnp.nan)
    counted = 0 if solver.count is None else solver.count(memory)
    return jnp.asarray((solver.evaluations or 0) * (times.shape[0] - 1) + solver.start_evaluations + counted)


def last_mean(solution: Solution, t: Array, denoise: Denoiser) -> Array:
    """For `finish`: the last step's mean, the state without the noise that the step added.

    Args:
        solution: The end of the solve.
        t: The last time.
        denoise: The denoiser, which is not called.

    Returns:
        `solution.mean`, (batch, …).
    """
    return solution.mean


def last_state(solution: Solution, t: Array, denoise: Denoiser) -> Array:
    """For `finish`: the last state as it is, a draw of x(t_min).

    Args:
        solution: The end of the solve.
        t: The last time.
        denoise: The denoiser, which is not called.

    Returns:
        `solution.x`, (batch, …).
    """
    return solution.x


def denoise_once(solution: Solution, t: Array, denoise: Denoiser) -> Array:
    """For `finish`: E[x_0 | x(t_min)] at the last state, one evaluation more.

    Args:
        solution: The end of the solve.
        t: The last time.
        denoise: The denoiser.

    Returns:
        The x0 of the denoiser, (batch, …).
    """
    return denoise(solution.x, t).x0


def sample(
    keys: Array | None,
    denoise: Denoiser,
    solver: Solver,
    times: Array,
    x: Array | None = None,
    *,
    cond: Any = None,
    finish: Callable[[Solution, Array, Denoiser], Array] = last_mean,
    noise: NoiseSource = keyed_noise,
) -> Array:
    """Draws samples: `solve`, then `finish`.

    Args:
        keys: Keys (batch,), one a sample, of `sample_keys`; None where x is given and the solver draws no noise.
        denoise: The denoiser: of a network, a score, or a closed form.
        solver: The solver, of `diffuse_jax.solvers` or your own.
        times: The grid (N + 1,), decreasing, of `diffuse_jax.times`.
        x: The start (batch, …) at times[0]; None draws it from the prior.
        cond: The condition of each sample, a pytree whose leaves lead with batch; None is unconditional.
        finish: What is returned of the solution at t_min: its `last_mean`, `denoise_once` (E[x_0 | x], one evaluation
            more), `last_state`, or a function of yours.
        noise: What makes the draws of a step: `keyed_noise`, `brownian_noise`, or a function of yours.

    Returns:
        Samples (batch, …), in the range of the data that the denoiser knows.

    Raises:
        TypeError: For keys, a denoiser, a solver or times that are none.
        ValueError: For keys that are not one a row of x, and where x must be drawn from the prior, and there are no
            keys or the shape of a sample is unknown.
    """
    solution = solve(keys, denoise, solver, times, x, cond=cond, noise=noise)
    return _finish(solution, times[-1], Conditioned(denoise, cond), finish=finish)


@compiled("finish")
def _finish(
    solution: Solution, t: Array, denoise: Denoiser, *, finish: Callable[[Solution, Array, Denoiser], Array]
) -> Array:
    return finish(solution, t, denoise)


def encode(denoise: Denoiser, x: Array, *, t_min: float | None = None, **tolerances: Any) -> Transported:
    """The latents to which the probability flow takes data, by the adaptive solver.

    Args:
        denoise: The denoiser.
        x: Data (batch, …), taken as states at t_min.
        t_min: The time from which they go; None is the process's own.
        **tolerances: `cond`, `rtol`, `atol` and the rest of `solvers.transport`.

    Returns:
        The states at the end of time, the evaluations of each sample, and whether any ran out of them.

    Raises:
        ValueError: For a t_min outside of the process's times, and for tolerances that are no tolerances.
    """
    check_denoiser(denoise)
    check_batched(x)
    sde = denoise.sde
    check_first_time(t_min, sde)
    return transport(denoise, x, sde.t_min if t_min is None else t_min, sde.t_start, **tolerances)


def decode(denoise: Denoiser, latent: Array, *, t_min: float | None = None, **tolerances: Any) -> Transported:
    """The data to which the probability flow takes latents: the inverse of `encode`, to tolerance.

    Args:
        denoise: The denoiser.
        latent: States (batch, …) at the end of time.
        t_min: The time to which they go; None is the process's own.
        **tolerances: `cond`, `rtol`, `atol` and the rest of `solvers.transport`.

    Returns:
        The states at t_min, the evaluations of each sample, and whether any ran out of them.

    Raises:
        ValueError: For a t_min outside of the process's times, and for tolerances that are no tolerances.
    """
    check_denoiser(denoise)
    check_batched(latent)
    sde = denoise.sde
    check_first_time(t_min, sde)
    return transport(denoise, latent, sde.t_start, sde.t_min if t_min is None else t_min, **tolerances)
