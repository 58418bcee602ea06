"""Processes in discrete time, continued to all times: DDPM's table of β and SMLD's table of σ.

The k-th entry of a table of N, k = 0 … N − 1, belongs to the time t_k = (k + 1)/N·T. At these times α and σ are the
table's to floating-point precision; between them log α, or log σ, is linear in t:

    DiscreteVP    log α(t_k) = ½Σ_{j ≤ k} log(1 − β_j),  log α(0) = 0,  σ² = 1 − α²                  (2006.11239, §2)
    DiscreteVE    log σ(t_k) = log σ_k,  α = 1; the first segment is continued below t_0               (1907.05600, §4)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.sde.process import SDE, Array, VariancePreserving, floating
from diffuse_jax.trees import pytree

__all__ = ["DiscreteVE", "DiscreteVP", "cosine_betas", "geometric_sigmas", "linear_betas"]


@pytree
class _PiecewiseLinear(SDE):
    """A logarithm given by its `nodes` (N + 1,) at the times k·T/N and its `steps` (N,) between them, which a
    difference of the nodes would know to fewer digits."""

    nodes: Any = None
    steps: Any = None

    @property
    def N(self) -> int:
        """The number of entries of the table."""
        return int(self.steps.shape[-1])

    def table_times(self) -> Array:
        """The times (N,) of the table's entries, ascending from T/N to T."""
        return jnp.asarray(np.arange(1, self.N + 1) / self.N * self.T)

    def _position(self, t: Any) -> tuple[Array, Array]:
        """t·N/T, and the number of the segment in which it lies; an own time ends its segment."""
        position = floating(t) * (self.N / self.T)
        nearest = jnp.round(position)
        # An own time is a whole number to rounding: made so, it finds the table's entry with all its digits.
        rounding = 4 * jnp.finfo(position.dtype).eps * nearest
        gap = jnp.where(jnp.abs(nearest - position) <= rounding, nearest - position, 0)
        position += jax.lax.stop_gradient(gap)
        return position, jnp.clip(jnp.ceil(position).astype(jnp.int32) - 1, 0, self.N - 1)

    def _logarithm(self, t: Any) -> Array:
        position, segment = self._position(t)
        nodes, steps = (jnp.asarray(a, position.dtype) for a in (self.nodes, self.steps))
        # From the nearer end: the value at an own time is the node itself.
        start, end = position - segment, position - (segment + 1)
        return jnp.where(
            start < 0.5, nodes[segment] + start * steps[segment], nodes[segment + 1] + end * steps[segment]
        )

    def _slope(self, t: Any) -> Array:
        position, segment = self._position(t)
        return jnp.asarray(self.steps, position.dtype)[segment] * (self.N / self.T)

    def _time(self, logarithm: Array) -> Array:
        """The time in [0, T] at which the logarithm has the given value."""
        nodes, steps = (jnp.asarray(a, logarithm.dtype) for a in (self.nodes, self.steps))
        sign = jnp.sign(steps[0])
        after = jnp.searchsorted(jax.lax.stop_gradient(sign * nodes), jax.lax.stop_gradient(sign * logarithm))
        segment = jnp.clip(after - 1, 0, self.N - 1)
        position = segment + (logarithm - nodes[segment]) / steps[segment]
        return jnp.clip(position * (self.T / self.N), 0, self.T)


@pytree
class DiscreteVP(_PiecewiseLinear, VariancePreserving):
    """DDPM's forward process x_k = √(1 − β_k)·x_{k−1} + √β_k·z (Ho et al., 2006.11239, eq. 2) of a table of β,
    continued to all times.

    It keeps the sums log α, not the β: those are its leaves. At a time t_k of the table, f and g² are those of the step
    that leads to it.

    Args:
        betas: The table (N,), N ≥ 2, in (0, 1): of `linear_betas`, `cosine_betas`, or your own.
        nodes: log α (N + 1,) at the times k·T/N, in place of `betas`: what JAX rebuilds the pytree from.
        steps: Their N differences, with all digits; given with `nodes`.
        T: The end of time, that of the table's last entry. Static.
        t_min: The time at which sampling stops by default; None is T/N, that of the table's first entry. Static.
        t_max: The time at which sampling starts by default; None is T. Static.

    Raises:
        ValueError: Where the table is not of that form (and its numbers are known, which they are not under a
            transformation).
        TypeError: Where there is no table.
    """

    def __init__(
        self,
        betas: Any = None,
        *,
        nodes: Any = None,
        steps: Any = None,
        T: float = 1.0,
        t_min: float | None = None,
        t_max: float | None = None,
    ) -> None:
        if betas is not None:
            betas = _table(betas, "betas", "lie in (0, 1)", lambda b: bool(np.all((b > 0) & (b < 1))))
            xp: Any = np if isinstance(betas, np.ndarray) else jnp
            steps = 0.5 * xp.log1p(-betas)
            nodes = xp.concatenate([xp.zeros_like(steps[:1]), xp.cumsum(steps)])
        _assign(self, nodes=nodes, steps=steps, T=T, t_min=_first_time(steps, T, t_min), t_max=t_max)

    def log_alpha(self, t: Any) -> Array:
        return self._logarithm(t)

    def f(self, t: Any) -> Array:
        return self._slope(t)

    def inverse_log_snr(self, log_snr: Any) -> Array:
        return self._time(-0.5 * jax.nn.softplus(-floating(log_snr)))


@pytree
class DiscreteVE(_PiecewiseLinear):
    """SMLD's noise levels σ_0 < … < σ_{N−1} (Song and Ermon, 1907.05600, §4), continued to all times.

    It keeps the logarithms, not the σ: those are its leaves.

    Args:
        sigmas: The table (N,), N ≥ 2, positive and ascending: of `geometric_sigmas`, or your own.
        nodes: log σ (N + 1,) at the times k·T/N, in place of `sigmas`: what JAX rebuilds the pytree from.
        steps: Their N differences, with all digits; given with `nodes`.
        T: The end of time, that of the table's last entry. Static.
        t_min: The time at which sampling stops by default; None is T/N, that of the table's first entry. Static.
        t_max: The time at which sampling starts by default; None is T. Static.

    Raises:
        ValueError: Where the table is not of that form (and its numbers are known, which they are not under a
            transformation).
        TypeError: Where there is no table.
    """

    def __init__(
        self,
        sigmas: Any = None,
        *,
        nodes: Any = None,
        steps: Any = None,
        T: float = 1.0,
        t_min: float | None = None,
        t_max: float | None = None,
    ) -> None:
        if sigmas is not None:
            sigmas = _table(
                sigmas, "sigmas", "be positive and ascend", lambda s: s[0] > 0 and bool(np.all(np.diff(s) > 0))
            )
            xp: Any = np if isinstance(sigmas, np.ndarray) else jnp
            logs = xp.log(sigmas)
            inner = xp.log(sigmas[1:] / sigmas[:-1])
            steps = xp.concatenate([inner[:1], inner])
            nodes = xp.concatenate([logs[:1] - inner[:1], logs])
        _assign(self, nodes=nodes, steps=steps, T=T, t_min=_first_time(steps, T, t_min), t_max=t_max)

    def log_alpha(self, t: Any) -> Array:
        return jnp.zeros_like(floating(t))

    def log_sigma(self, t: Any) -> Array:
        return self._logarithm(t)

    def f(self, t: Any) -> Array:
        return self.log_alpha(t)

    def g2(self, t: Any) -> Array:
        return 2 * jnp.square(self.sigma(t)) * self._slope(t)

    def inverse_log_snr(self, log_snr: Any) -> Array:
        return self._time(-0.5 * floating(log_snr))


def linear_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """DDPM's table, a straight line (2006.11239, §4).

    Args:
        n: The number of entries.
        first: β_0.
        last: β_{n−1}.

    Returns:
        β (n,), ascending.
    """
    return np.linspace(first, last, n)


def cosine_betas(n: int = 1000, max_beta: float = 0.999, s: float = 0.008) -> np.ndarray:
    """Improved DDPM's table (2102.09672, eq. 17): 1 − β_k is the ratio of ᾱ = cos²((k/n + s)/(1 + s)·π/2) over a step.

    Args:
        n: The number of entries.
        max_beta: The most that β may be; the last steps are clipped to it.
        s: The offset of the angle.

    Returns:
        β (n,), ascending.
    """
    # From the other end, so that ᾱ vanishes exactly where it should.
    alpha_bar = np.sin((1 - np.arange(n + 1) / n) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def geometric_sigmas(sigma_min: float = 0.01, sigma_max: float = 50.0, n: int = 1000) -> np.ndarray:
    """SMLD's noise levels, in a constant ratio (1907.05600, §4).

    Args:
        sigma_min: The first and smallest.
        sigma_max: The last and largest.
        n: How many.

    Returns:
        σ (n,), ascending.

    Raises:
        ValueError: Unless 0 < sigma_min < sigma_max, finite, and n is at least 2.
    """
    if not (0 < sigma_min < sigma_max < math.inf and n >= 2):
        raise ValueError(f"sigma_min={sigma_min} must be above 0 and below sigma_max={sigma_max}, and n={n} at least 2")
    return np.geomspace(sigma_min, sigma_max, n)


def _table(values: Any, name: str, demand: str, fits: Any) -> Any:
    """`values` (N,), N ≥ 2: in float64 NumPy where they are known numbers, so that the sums keep their digits; as they
    are under a transformation."""
    if isinstance(values, jax.core.Tracer):
        return values
    table = np.asarray(values, np.float64)
    if table.ndim != 1 or table.shape[0] < 2 or not fits(table):
        given = f"{table.shape[0]} numbers from {table[0]} to {table[-1]}" if table.size and table.ndim == 1 else table
        raise ValueError(f"{name} must be a table of at least 2 numbers that {demand}, not {given}")
    return table


def _first_time(steps: Any, T: float, t_min: float | None) -> float:
    if t_min is None and steps is None:
        raise TypeError("a process of a table needs its table: DiscreteVP(betas) or DiscreteVE(sigmas)")
    return T / steps.shape[-1] if t_min is None else t_min


def _assign(sde: Any, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(sde, name, value)
