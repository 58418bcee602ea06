"""log p(x) by the probability-flow ODE (2011.13456, §4.3): log p(x) = log prior(x(T)) + ∫ ∇·(dx/dt) dt along the flow
from t_min to T.

The density is that of x(t_min) under the process's own prior at T. Each sample is integrated to its own tolerance, so
its value does not depend on its batch-mates.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.denoiser import Denoiser, unbind
from diffuse_jax.sampling import keyed_noise
from diffuse_jax.sde import Array
from diffuse_jax.solvers.flow import integrate, velocity

__all__ = [
    "LogProb",
    "bits_per_dim",
    "dequantize",
    "exact_trace",
    "hutchinson_trace",
    "log_prob",
    "nats_to_bits_per_dim",
]

Field = Callable[[Array], Array]


class LogProb(NamedTuple):
    """log p in nats (batch,), the flow's end x(T) (batch, …), and the evaluations that each sample took (batch,)."""

    log_prob: Array
    latent: Array
    evaluations: Array


def exact_trace(field: Field, x: Array, probe: Array | None) -> tuple[Array, Array]:
    """field(x) and its exact divergence at one sample x, from as many derivatives as x has entries; the probe is not
    used."""
    value, derivative = jax.linearize(field, x)
    basis = jnp.eye(x.size, dtype=x.dtype)
    diagonal = jax.lax.map(
        lambda e: jnp.sum(e * derivative(e.reshape(x.shape)).ravel()), basis, batch_size=min(x.size, 64)
    )
    return value, jnp.sum(diagonal)


def hutchinson_trace(field: Field, x: Array, probe: Array | None) -> tuple[Array, Array]:
    """field(x) and the estimate vᵀ·J·v of its divergence, v = sign(probe): unbiased, exact where J is diagonal.

    Raises ValueError without a probe.
    """
    if probe is None:
        raise ValueError("hutchinson_trace draws a probe for each sample: give keys=sample_keys(seed, first, n)")
    v = jnp.where(probe < 0, -1.0, 1.0).astype(x.dtype)
    value, derivative = jax.jvp(field, (x,), (v,))
    return value, jnp.sum(v * derivative)


def log_prob(
    denoise: Denoiser,
    x: Array,
    *,
    trace: Callable[[Field, Array, Array | None], tuple[Array, Array]] = exact_trace,
    keys: Array | None = None,
    cond: Any = None,
    t_min: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> LogProb:
    """log p of x (batch, …), taken as draws of x(t_min), in nats.

    `hutchinson_trace` needs `keys` (batch,) (`sample_keys`), from which one probe a sample is drawn and held fixed
    through the solve, as an adaptive solver requires. A sample that needs more than `max_steps` steps becomes NaN.
    Raises ValueError where keys are missing.
    """
    probe = None if keys is None else keyed_noise(keys, 0, x)(0)
    denoise, cond = unbind(denoise, cond)
    sde = denoise.sde

    def field(time: Array, y: tuple[Array, Array], args: tuple[Denoiser, Any, Array | None]) -> tuple[Array, Array]:
        one, one_cond, v = args
        return trace(lambda point: velocity(one, point[None], time, one_cond)[0], y[0], v)

    def solve(x: Array, v: Array | None, cond: Any) -> LogProb:
        one_cond = jax.tree.map(lambda leaf: leaf[None], cond)
        start = (x, jnp.zeros((), x.dtype))
        t, s = jnp.asarray(t_min, x.dtype), jnp.asarray(sde.T, x.dtype)
        end = integrate(field, start, t, s, (denoise, one_cond, v), rtol=rtol, atol=atol, max_steps=max_steps)
        latent, gained = end.y
        return LogProb(sde.prior_log_prob(latent[None])[0] + gained, latent, end.evaluations)

    return jax.vmap(solve)(x, probe, cond)


def dequantize(x: Array, u: Array, *, levels: int = 256, range: tuple[float, float] = (-1.0, 1.0)) -> Array:
    """Spreads discrete data over its cells: lo + (hi − lo)·(k + u)/levels for x = lo + (hi − lo)·k/(levels − 1) and u
    in [0, 1) shaped like x."""
    low, high = range
    k = jnp.round((x - low) / (high - low) * (levels - 1))
    return low + (high - low) * (k + u) / levels


def nats_to_bits_per_dim(
    log_prob: Array, dims: int, *, levels: int = 256, range: tuple[float, float] = (-1.0, 1.0)
) -> Array:
    """Bits a dimension of data with `levels` values, given the log density of the data dequantized over `range`.

    −log p/(dims·ln 2) + log2(levels/(hi − lo)): an offset of 7 for 256 levels in [−1, 1], of 8 for [0, 1].
    """
    low, high = range
    return -log_prob / (dims * np.log(2)) + np.log2(levels / (high - low))


def bits_per_dim(
    denoise: Denoiser,
    x: Array,
    keys: Array,
    *,
    levels: int = 256,
    range: tuple[float, float] = (-1.0, 1.0),
    dequantization: Callable[..., Array] | None = dequantize,
    **solve: Any,
) -> Array:
    """Bits a dimension of discrete data x (batch, …) with `levels` values in `range`: an upper bound on the code
    length, (batch,).

    `dequantization(x, u, levels=…, range=…)` spreads each value over its cell, with uniform u drawn from `keys`
    (batch,); None says that x has been dequantized already. The rest goes to `log_prob`, with the trace estimated
    (`hutchinson_trace`) unless said otherwise.
    """
    if dequantization is not None:
        # Stream 0 makes the probe.
        uniform = functools.partial(jax.random.uniform, shape=x.shape[1:], dtype=x.dtype)
        u = jax.vmap(lambda key: uniform(jax.random.fold_in(key, 1)))(keys)
        x = dequantization(x, u, levels=levels, range=range)
    nats = log_prob(denoise, x, keys=keys, **{"trace": hutchinson_trace, **solve}).log_prob
    return nats_to_bits_per_dim(nats, int(np.prod(x.shape[1:])), levels=levels, range=range)
