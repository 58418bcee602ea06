"""log p(x) by the probability-flow ODE (2011.13456, §4.3): log p(x) = log prior(x(T)) + ∫ ∇·(dx/dt) dt along the flow
from t_min to T.

The density is that of x(t_min) under the process's own prior at the end of its time grids (T, or t_max where the
process defines one). Each sample is integrated to its own tolerance, so its value does not depend on its batch-mates.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax._checks import (
    check_batched,
    check_denoiser,
    check_first_time,
    check_keys,
    check_levels,
    check_not_negative,
    check_tolerances,
)
from diffuse_jax._compile import compiled
from diffuse_jax.denoiser import Denoiser, unbind
from diffuse_jax.sampling import keyed_noise
from diffuse_jax.sde import Array
from diffuse_jax.sde.process import row_sums
from diffuse_jax.solvers.adaptive import integrate, one_velocity

__all__ = [
    "LogProb",
    "bits_per_dim",
    "dequantize",
    "exact_trace",
    "gaussian_trace",
    "hutchinson_trace",
    "log_prob",
    "nats_to_bits_per_dim",
]

Field = Callable[[Array], Array]
Trace = Callable[[Field, Array, Array | None], tuple[Array, Array]]


class LogProb(NamedTuple):
    """log p of each sample and what it cost; the latent (batch, …), the others (batch,). All is NaN for an exhausted
    sample.

    Args:
        log_prob: log p in nats.
        error: Its standard error from the estimate of the trace: 0 for an exact one, NaN for a single probe, which
            cannot tell.
        latent: The flow's end x(T).
        evaluations: The evaluations that each sample took.
        exhausted: Whether it met the bound on them before the end.
    """

    log_prob: Array
    error: Array
    latent: Array
    evaluations: Array
    exhausted: Array


def exact_trace(field: Field, x: Array, probes: Array | None) -> tuple[Array, Array]:
    """The exact divergence of a field at one sample, from as many derivatives as the sample has entries.

    Args:
        field: The vector field, mapping one sample to an array like it.
        x: One sample (…).
        probes: Not read; may be None.

    Returns:
        field(x), and its divergence, a number ().
    """
    value, derivative = jax.linearize(field, x)
    entries = jnp.arange(x.size)

    def entry(i: Array) -> Array:
        # The basis is made a vector at a time: all of it would be the square of a sample.
        return derivative((entries == i).astype(x.dtype).reshape(x.shape)).ravel()[i]

    return value, jnp.sum(jax.lax.map(entry, entries, batch_size=min(x.size, 64)))


def hutchinson_trace(field: Field, x: Array, probes: Array | None) -> tuple[Array, Array]:
    """Estimates vᵀ·J·v of the divergence with random signs v = sign(probes): unbiased, exact where the Jacobian J is
    diagonal (Hutchinson 1990).

    An estimate has the variance 2·Σ_{i≠j} S_ij², S the symmetric part of J.

    Args:
        field: The vector field, mapping one sample to an array like it.
        x: One sample (…).
        probes: Standard normal draws (k, …).

    Returns:
        field(x), and an estimate for each probe, (k,).

    Raises:
        ValueError: Without probes.
    """
    v = jnp.where(_given(probes, "hutchinson_trace") < 0, -1.0, 1.0).astype(x.dtype)
    return _quadratic_forms(field, x, v)


def gaussian_trace(field: Field, x: Array, probes: Array | None) -> tuple[Array, Array]:
    """`hutchinson_trace` with the standard normal probes themselves: the variance is 2·Σ_ij S_ij², never the smaller
    one, and does not depend on the basis in which x is written.

    Args:
        field: The vector field, mapping one sample to an array like it.
        x: One sample (…).
        probes: Standard normal draws (k, …).

    Returns:
        field(x), and an estimate for each probe, (k,).

    Raises:
        ValueError: Without probes.
    """
    return _quadratic_forms(field, x, _given(probes, "gaussian_trace"))


def _given(probes: Array | None, name: str) -> Array:
    if probes is None:
        raise ValueError(f"{name} draws probes for each sample: give keys=sample_keys(seed, n)")
    return probes


def _quadratic_forms(field: Field, x: Array, v: Array) -> tuple[Array, Array]:
    # Only the derivatives depend on v: under vmap the field itself is evaluated once, whatever the number of probes.
    values, derivatives = jax.vmap(lambda one: jax.jvp(field, (x,), (one,)))(v)
    return values[0], row_sums(v * derivatives)


def log_prob(
    denoise: Denoiser,
    x: Array,
    *,
    trace: Trace = exact_trace,
    keys: Array | None = None,
    probes: int = 1,
    cond: Any = None,
    t_min: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 25_000,
) -> LogProb:
    """log p of data under the model, by the probability-flow ODE.

    The probes of an estimated trace are held fixed through the solve, as an adaptive solver requires: each gives an
    unbiased log p of its own, and their spread the standard error. The first k of more probes are the same.

    Args:
        denoise: The denoiser. It is called with one sample at a time.
        x: Data (batch, …), taken as draws of x(t_min); computed with in float32 at least.
        trace: The divergence of the flow: `exact_trace`, `hutchinson_trace`, `gaussian_trace`, or a function of yours.
            `trace(field, x, v)` gives a field at one sample x (…) and its divergence: one number (), or an estimate for
            each of the probes v (k, …).
        keys: Keys (batch,), of `sample_keys`, for the probes; the exact trace needs none.
        probes: The standard normal draws for each sample from which an estimated trace is made; 2 or more give a
            standard error.
        cond: The condition of each sample, a pytree whose leaves lead with batch.
        t_min: The time of which x(t_min) is the data; None is the process's own. Published likelihoods under VP, sub-VP
            and VE take 1e-5 (2011.13456, appendix C).
        rtol: Relative tolerance of the ODE solver, for each sample on its own.
        atol: Absolute tolerance.
        max_evaluations: The most evaluations of the denoiser for a sample, six a step and one. A sample that needs more
            becomes NaN and is marked `exhausted`.

    Returns:
        log p in nats, with its error, the latent, the evaluations, and whether they ran out.

    Raises:
        TypeError: For keys, a denoiser or a trace that are none.
        ValueError: For a t_min outside of the process's times, and for tolerances that are no tolerances; where keys
            are missing or not one a row of x, for less than one probe or 7 evaluations, and for a denoiser that cannot
            be called with one sample, because it holds arrays of several that are no `cond`.
    """
    if probes < 1:
        raise ValueError(f"probes={probes}: at least 1 is needed, and 2 for a standard error")
    check_denoiser(denoise)
    if not callable(trace):
        raise TypeError(f"trace={trace!r} must be a function, such as likelihood.exact_trace")
    check_first_time(t_min, denoise.sde)
    check_tolerances("log_prob", rtol, atol, max_evaluations)
    check_batched(x)
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, jnp.float32))
    if keys is not None:
        check_keys(keys, x.shape[0])
    denoise, cond = unbind(denoise, cond)
    t_min = denoise.sde.t_min if t_min is None else t_min
    return _log_prob(
        denoise, x, keys, cond, t_min, rtol, atol, trace=trace, probes=probes, max_evaluations=max_evaluations
    )


@compiled("trace", "probes", "max_evaluations")
def _log_prob(
    denoise: Denoiser,
    x: Array,
    keys: Array | None,
    cond: Any,
    t_min: Any,
    rtol: Any,
    atol: Any,
    *,
    trace: Trace,
    probes: int,
    max_evaluations: int,
) -> LogProb:
    draw = None if keys is None else keyed_noise(keys, 0, x)
    v = None if draw is None else jax.vmap(draw, out_axes=1)(jnp.arange(probes))
    sde = denoise.sde
    t, s = jnp.asarray(t_min, x.dtype), jnp.asarray(sde.t_start, x.dtype)

    def field(time: Array, y: tuple[Array, Array], args: tuple[Denoiser, Any, Array | None]) -> tuple[Array, Array]:
        one, one_cond, v = args
        return trace(lambda point: one_velocity(one, point, time, one_cond), y[0], v)

    def solve(x: Array, v: Array | None, cond: Any) -> LogProb:
        args = (denoise, jax.tree.map(lambda leaf: leaf[None], cond), v)
        rates = jax.eval_shape(field, t, (x, None), args)[1]
        start = (x, jnp.zeros(rates.shape, x.dtype))
        max_steps = (max_evaluations - 1) // 6
        end = integrate(field, start, t, s, args, rtol=rtol, atol=atol, max_steps=max_steps)
        latent, gained = end.y
        error = jnp.zeros_like(gained) if gained.ndim == 0 else _standard_error(gained)
        nats = sde.prior_log_prob(latent[None])[0] + jnp.mean(gained)
        return LogProb(nats, error, latent, end.evaluations, ~end.finished)

    return jax.vmap(solve)(x, v, cond)


def _standard_error(estimates: Array) -> Array:
    """The standard error of the mean of independent estimates (k,), NaN for k = 1."""
    k = estimates.shape[0]
    return jnp.std(estimates, ddof=1) / np.sqrt(k) if k > 1 else jnp.full((), jnp.nan, estimates.dtype)


def dequantize(x: Array, u: Array, *, levels: int = 256, range: tuple[float, float] = (-1.0, 1.0)) -> Array:
    """Spreads discrete data over its cells: lo + (hi − lo)·(k + u)/levels for x = lo + (hi − lo)·k/(levels − 1).

    Args:
        x: Data with `levels` equally spaced values, the ends of `range` included.
        u: Uniform numbers in [0, 1), shaped like x.
        levels: The number of values.
        range: The smallest and the largest of them, (lo, hi).

    Returns:
        Continuous data in [lo, hi), shaped like x.
    """
    low, high = range
    k = jnp.round((x - low) / (high - low) * (levels - 1))
    return low + (high - low) * (k + u) / levels


def nats_to_bits_per_dim(
    log_prob: Array, dims: int, *, levels: int | None = 256, range: tuple[float, float] = (-1.0, 1.0)
) -> Array:
    """Bits a dimension, −log p/(dims·ln 2) + log2(levels/(hi − lo)), given the log density of the data dequantized over
    `range`.

    The offset is 7 for 256 levels in [−1, 1], and 8 for [0, 1].

    Args:
        log_prob: log p in nats, of any shape.
        dims: The number of dimensions of a sample.
        levels: The number of values that an entry may have; None has no cells and no offset, for a density as it is, or
            a log probability of discrete data (`elbo`).
        range: The smallest and the largest of them, (lo, hi).

    Returns:
        Bits a dimension, shaped like log_prob.
    """
    low, high = range
    bits = -log_prob / (dims * np.log(2))
    return bits if levels is None else bits + np.log2(levels / (high - low))


def bits_per_dim(
    denoise: Denoiser,
    x: Array,
    keys: Array,
    *,
    levels: int = 256,
    range: tuple[float, float] = (-1.0, 1.0),
    dequantization: Callable[..., Array] | None = dequantize,
    draws: int = 1,
    **solve: Any,
) -> Array:
    """Bits per dimension of discrete data: an upper bound on the code length.

    With `draws` = K > 1 the bound is −log of the mean of p over K dequantizations, which falls with K towards the code
    length of the cell's probability (Burda et al., 1509.00519, theorem 1; 1902.00275, §3.1). An estimated trace keeps
    the bound in the mean for K = 1 only: in a mean of densities its errors do not average out, so take the exact trace
    or many probes there.

    Args:
        denoise: The denoiser.
        x: Data (batch, …) with `levels` equally spaced values in `range`.
        keys: Keys (batch,), of `sample_keys`, for the dequantization and the probes of the trace.
        levels: The number of values that an entry may have.
        range: The smallest and the largest of them.
        dequantization: `dequantization(x, u, levels=…, range=…)` spreads each value over its cell, u being uniform;
            None says that x has been dequantized already.
        draws: The number K of dequantizations, and of solves, one after another.
        **solve: The rest of `log_prob`, whose trace is `hutchinson_trace` here unless given.

    Returns:
        Bits per dimension (batch,).

    Raises:
        TypeError: As `log_prob`.
        ValueError: For less than one draw, several draws of data that have been dequantized already, less than two
            levels, a range that does not ascend, and as `log_prob`.
    """
    if draws < 1 or (draws > 1 and dequantization is None):
        raise ValueError(
            f"draws={draws}: at least 1, and only 1 where dequantization=None says that x is drawn already"
        )
    check_levels(levels, range)
    check_batched(x)
    check_keys(keys, jnp.shape(x)[0])
    check_denoiser(denoise)
    # What `log_prob` can no longer see once it is traced.
    check_first_time(solve.get("t_min"), denoise.sde)
    check_not_negative("bits_per_dim", rtol=solve.get("rtol"), atol=solve.get("atol"))
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, jnp.float32))
    options: dict[str, Any] = {"trace": hutchinson_trace, **solve}
    nats = _mean_over_draws(denoise, x, keys, levels=levels, range=range, spread=dequantization, draws=draws, **options)
    return nats_to_bits_per_dim(nats, int(np.prod(x.shape[1:])), levels=levels, range=range)


@compiled("levels", "range", "spread", "draws", "trace", "probes", "max_evaluations")
def _mean_over_draws(
    denoise: Denoiser,
    x: Array,
    keys: Array,
    *,
    levels: int,
    range: tuple[float, float],
    spread: Callable[..., Array] | None,
    draws: int,
    **solve: Any,
) -> Array:
    """log of the mean of p over so many dequantizations (batch,)."""
    uniform = functools.partial(jax.random.uniform, shape=x.shape[1:], dtype=x.dtype)

    def one(draw: Array) -> Array:
        each = jax.vmap(jax.random.fold_in, (0, None))(keys, draw)
        # Stream 0 makes the probes.
        u = jax.vmap(lambda key: uniform(jax.random.fold_in(key, 1)))(each)
        drawn = x if spread is None else spread(x, u, levels=levels, range=range)
        return log_prob(denoise, drawn, keys=each, **solve).log_prob

    return jax.nn.logsumexp(jax.lax.map(one, jnp.arange(draws)), axis=0) - np.log(draws)
