"""Time grids: decreasing arrays of n + 1 times from T to t_min > 0. Pure functions of a process, independent of how a
network was trained."""

import jax
import jax.numpy as jnp

from diffuse_jax.sde import SDE

__all__ = ["log_snr", "uniform"]


def uniform(sde: SDE, n: int, t_min: float | None = None) -> jax.Array:
    """n + 1 equally spaced times from T to t_min (the process's own where None), shape (n + 1,)."""
    return jnp.linspace(sde.T, _stop(sde, n, t_min), n + 1)


def log_snr(sde: SDE, n: int, t_min: float | None = None) -> jax.Array:
    """n + 1 times from T to t_min, equally spaced in log-SNR (2206.00927, §3.4), shape (n + 1,)."""
    stop = _stop(sde, n, t_min)
    ends = sde.log_snr(jnp.asarray([sde.T, stop]))
    inner = sde.inverse_log_snr(jnp.linspace(ends[0], ends[1], n + 1)[1:-1])
    return jnp.concatenate([jnp.full(1, sde.T, inner.dtype), inner, jnp.full(1, stop, inner.dtype)])


def _stop(sde: SDE, n: int, t_min: float | None) -> float:
    stop = sde.t_min if t_min is None else t_min
    if n < 1:
        raise ValueError(f"a time grid needs at least 1 step, not n={n}")
    if not 0 < stop < sde.T:
        raise ValueError(
            f"t_min={stop} must lie between 0 and T={sde.T}: at t = 0 the score of a noiseless process is infinite"
        )
    return stop
