"""Time grids: decreasing arrays of times, pure functions of a process, independent of how a network was trained.

`uniform`, `log_snr`, `karras`, `quadratic` and `cosine` give n + 1 times from t_max (the process's own where None: T,
or a little before it where α(T) = 0) to t_min > 0, both exactly. `noise_levels` and `explicit` take numbers of yours.
`leading`, `trailing` and `linspace` pick n of a table of N times t_k = (k + 1)/N·T, the steps of a DDPM (2305.08891,
table 2): that is n − 1 steps of a solver, and with `finish=denoise_once` the n evaluations of DDIM, of which the last
goes to time 0. `score_sde` is the grid of that solver.
"""

import itertools
import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax._checks import check_process
from diffuse_jax.sde import SDE

__all__ = [
    "cosine",
    "explicit",
    "karras",
    "leading",
    "linspace",
    "log_snr",
    "noise_levels",
    "quadratic",
    "score_sde",
    "trailing",
    "uniform",
]


def uniform(sde: SDE, n: int, t_min: float | None = None, t_max: float | None = None) -> jax.Array:
    """Equally spaced times.

    Args:
        sde: The process.
        n: The number of steps, at least 1.
        t_min: The last time, between 0 and t_max; None is the process's own.
        t_max: The first time, in (0, T]; None is where the process's grids start.

    Returns:
        The times (n + 1,), decreasing, both ends exact.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: Where n is less than 1 or not whole, and for ends outside of the process's times.
    """
    start, stop = _ends(sde, n, t_min, t_max)
    return jnp.linspace(start, stop, n + 1)


def quadratic(sde: SDE, n: int, t_min: float | None = None, t_max: float | None = None) -> jax.Array:
    """Times equally spaced in √t (2010.02502, appendix D.2).

    Args:
        sde: The process.
        n: The number of steps, at least 1.
        t_min: The last time, between 0 and t_max; None is the process's own.
        t_max: The first time, in (0, T]; None is where the process's grids start.

    Returns:
        The times (n + 1,), decreasing, both ends exact.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: Where n is less than 1 or not whole, and for ends outside of the process's times.
    """
    start, stop = _ends(sde, n, t_min, t_max)
    return _between(start, stop, jnp.square(jnp.linspace(start**0.5, stop**0.5, n + 1)))


def log_snr(sde: SDE, n: int, t_min: float | None = None, t_max: float | None = None) -> jax.Array:
    """Times equally spaced in log-SNR (2206.00927, §3.4).

    Args:
        sde: The process.
        n: The number of steps, at least 1.
        t_min: The last time, between 0 and t_max; None is the process's own.
        t_max: The first time, in (0, T]; None is where the process's grids start.

    Returns:
        The times (n + 1,), decreasing, both ends exact.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: Where n is less than 1 or not whole, and for ends outside of the process's times.
    """
    return _in_log_snr(sde, n, t_min, t_max, lambda first, last, share: first + share * (last - first))


def karras(sde: SDE, n: int, t_min: float | None = None, t_max: float | None = None, rho: float = 7.0) -> jax.Array:
    """Times equally spaced in σ̃^{1/rho} with σ̃ = σ/α (2206.00364, eq. 5, which has n − 1 for this n, and a last step
    to 0).

    Args:
        sde: The process.
        n: The number of steps, at least 1.
        t_min: The last time, between 0 and t_max; None is the process's own.
        t_max: The first time, in (0, T]; None is where the process's grids start.
        rho: The power, positive: the greater, the shorter the steps at small noise.

    Returns:
        The times (n + 1,), decreasing, both ends exact.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: Unless rho > 0, where n is less than 1 or not whole, and for ends outside of the process's times.
    """
    if not rho > 0:
        raise ValueError(f"rho={rho} must be positive: noise levels are spaced evenly in their power 1/rho")

    def spaced(first: jax.Array, last: jax.Array, share: jax.Array) -> jax.Array:
        # Relative to the greatest σ̃, whose own powers could overflow.
        ratio = jnp.exp((first - last) / (2 * rho))
        return first - 2 * rho * jnp.log1p(share * (ratio - 1))

    return _in_log_snr(sde, n, t_min, t_max, spaced)


def cosine(sde: SDE, n: int, t_min: float | None = None, t_max: float | None = None) -> jax.Array:
    """Times equally spaced in the angle arctan(σ/α).

    Args:
        sde: The process.
        n: The number of steps, at least 1.
        t_min: The last time, between 0 and t_max; None is the process's own.
        t_max: The first time, in (0, T]; None is where the process's grids start.

    Returns:
        The times (n + 1,), decreasing, both ends exact.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: Where n is less than 1 or not whole, and for ends outside of the process's times.
    """

    def spaced(first: jax.Array, last: jax.Array, share: jax.Array) -> jax.Array:
        # The unit vectors (α, σ)/√(α² + σ²) of both ends, and those at equal angles between them: no tangent near π/2.
        cos_first, cos_last = (jnp.exp(0.5 * jax.nn.log_sigmoid(value)) for value in (first, last))
        sin_first, sin_last = (jnp.exp(0.5 * jax.nn.log_sigmoid(-value)) for value in (first, last))
        angle = jnp.arctan2(sin_first * cos_last - cos_first * sin_last, cos_first * cos_last + sin_first * sin_last)
        to_first, to_last = jnp.sin((1 - share) * angle), jnp.sin(share * angle)
        cos, sin = cos_first * to_first + cos_last * to_last, sin_first * to_first + sin_last * to_last
        return 2 * (jnp.log(cos) - jnp.log(sin))

    return _in_log_snr(sde, n, t_min, t_max, spaced)


def noise_levels(sde: SDE, levels: Any) -> jax.Array:
    """The times (m,) at which σ/α has the given values (m,), decreasing and positive; a value that the process does not
    reach gives the end of time nearest to it.

    ValueError for fewer than 2, values that are not of that kind, or two that fall on one time, as two beyond the same
    end do; traced levels are taken as they are, and those of a traced process may repeat.
    """
    levels = _decreasing(levels, "levels")
    if isinstance(levels, jax.Array):
        return sde.inverse_log_snr(-2 * jnp.log(levels))
    with jax.ensure_compile_time_eval():
        times = sde.inverse_log_snr(jnp.asarray(-2 * np.log(levels)))
        # Of the times themselves: what solvers divide by differences of.
        reached, ends = sde.log_snr(times), jnp.exp(-0.5 * sde.log_snr(jnp.asarray([0.0, sde.T])))
    if not isinstance(reached, jax.core.Tracer) and not all(a < b for a, b in itertools.pairwise(np.asarray(reached))):
        low, high = np.asarray(ends)
        raise ValueError(
            f"levels={_shown(levels)} give a time twice, {_shown(np.asarray(times))}: σ/α of the process goes from "
            f"{low:.4g} to {high:.4g}, and at most one level may lie beyond either end"
        )
    return times


def explicit(sde: SDE, times: Any) -> jax.Array:
    """The given times (m,) themselves. ValueError unless they are 2 or more, decrease, and lie in (0, T]; traced times
    are taken as they are."""
    check_process(sde)
    times = _decreasing(times, "times")
    if not isinstance(times, jax.Array) and times[0] > sde.T:
        raise ValueError(f"times={_shown(times)} must lie in (0, {sde.T}], the times of the process")
    return jnp.asarray(times)


def leading(sde: SDE, n: int, table: int | None = None, offset: int = 0) -> jax.Array:
    """The entries (N//n)·k + offset for k = n − 1, …, 0 of a table of N times (DDIM's spacing, 2010.02502).

    The first is entry (N//n)·(n − 1) + offset, the last entry `offset`, t_0 unless given. The first is short of T by a
    step where n divides N, and by more where it does not. For N/2 < n < N these are the earliest n entries of the
    table, whose first is far from the prior: that warns (`trailing` and `linspace` reach T).

    Args:
        sde: The process.
        n: The number of times, 1 ≤ n ≤ N.
        table: N; None is the process's own where it is one of a table, else 1000.
        offset: The entry of the last time.

    Returns:
        The times (n,), decreasing.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: Unless n is whole and 1 ≤ n ≤ N, and the entries lie in the table.
    """
    size = _table_size(sde, n, table)
    if size < 2 * n < 2 * size:
        warnings.warn(
            f"leading: n={n} of a table of {size} are its entries {offset} to {n - 1 + offset}, and leave out the end "
            "of time, where sampling starts: take trailing or linspace, or an n that divides the table",
            stacklevel=2,
        )
    entries = size // n * np.arange(n)[::-1]
    if not 0 <= offset < size - entries[0]:
        raise ValueError(
            f"offset={offset} must be at least 0 and below {size - entries[0]}: n={n} times of a table of {size} end "
            f"with entry {entries[0]} + offset"
        )
    return _of_table(sde, size, entries + offset)


def trailing(sde: SDE, n: int, table: int | None = None) -> jax.Array:
    """The entries round(N − k·N/n) − 1 for k = 0, …, n − 1 of a table of N times (2305.08891, §3.3).

    The first is T, the last about T/n.

    Args:
        sde: The process.
        n: The number of times, 1 ≤ n ≤ N.
        table: N; None is the process's own where it is one of a table, else 1000.

    Returns:
        The times (n,), decreasing.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: Unless n is whole and 1 ≤ n ≤ N.
    """
    size = _table_size(sde, n, table)
    return _of_table(sde, size, np.round(size - np.arange(n) * (size / n)) - 1)


def linspace(sde: SDE, n: int, table: int | None = None) -> jax.Array:
    """The entries nearest to n equally spaced ones from N − 1 to 0 of a table of N times (2102.09672, §4).

    The first is T, the last t_0 = T/N; for n = 1 the only time is T.

    Args:
        sde: The process.
        n: The number of times, 1 ≤ n ≤ N.
        table: N; None is the process's own where it is one of a table, else 1000.

    Returns:
        The times (n,), decreasing.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: Unless n is whole and 1 ≤ n ≤ N.
    """
    size = _table_size(sde, n, table)
    return _of_table(sde, size, np.round(np.linspace(size - 1, 0, n)))


def score_sde(sde: SDE, n: int, t_min: float | None = None) -> jax.Array:
    """The n times linspace(T, t_min, n) from which the n steps of score_sde's sampler begin, and the last once more.

    For `solvers.score_sde`, whose steps know their number and not the time at which they end. On a process of a table
    of n they are the times of the c_noise linspace(1, t_min/T, n)·(n − 1), entry 0 having c_noise 0: score_sde shows
    DDPM's networks values between the entries, for which t_min is 1e-3 there (and 1e-5 for SMLD's, which round them).

    Args:
        sde: The process.
        n: The number of steps; on a process of a table, the number of its entries.
        t_min: The last time; None is the process's own, and on a process of a table the grid of its entries.

    Returns:
        The times (n + 1,), of which the last two are equal.

    Raises:
        TypeError: For an sde that is no process.
        ValueError: For an n that is not the table's, or is less than 1 or not whole, and for a t_min outside of the
            process's times, or not below a step of the table.
    """
    if not hasattr(sde, "table_times"):
        start, stop = _ends(sde, n, t_min, None)
        times = jnp.linspace(start, stop, n)
    else:
        if n != _table_size(sde, n, None):
            raise ValueError(f"n={n} must be {_table_size(sde, 1, None)}, the number of times in the process's table")
        share = 0.0 if t_min is None else t_min / sde.T
        if not 0 <= share * (n - 1) < 1:
            raise ValueError(f"t_min={t_min} must be at least 0 and below {sde.T / (n - 1):.4g}, a step of the table")
        times = _of_table(sde, n, np.linspace(1, share, n) * (n - 1))
    return jnp.append(times, times[-1])


def _ends(sde: SDE, n: int, t_min: float | None, t_max: float | None) -> tuple[float, float]:
    check_process(sde)
    start = sde.t_start if t_max is None else t_max
    stop = sde.t_min if t_min is None else t_min
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"a time grid needs at least 1 step, and a whole number of them, not n={n}")
    if not 0 < start <= sde.T:
        raise ValueError(f"t_max={start} must lie in (0, {sde.T}], the times of the process")
    if not 0 < stop < start:
        raise ValueError(
            f"t_min={stop} must lie between 0 and t_max={start}: at t = 0 the score of a noiseless process is infinite"
        )
    return start, stop


def _in_log_snr(
    sde: SDE,
    n: int,
    t_min: float | None,
    t_max: float | None,
    spaced: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The times of log-SNR `spaced(first, last, share)`, share from 0 at the start to 1."""
    start, stop = _ends(sde, n, t_min, t_max)
    ends = sde.log_snr(jnp.asarray([start, stop]))
    return _between(start, stop, sde.inverse_log_snr(spaced(ends[0], ends[1], jnp.linspace(0, 1, n + 1))))


def _between(start: float, stop: float, times: jax.Array) -> jax.Array:
    """`times` with the ends that were asked for, and not their images under a function and its inverse."""
    start_stop = jnp.asarray([start, stop], times.dtype)
    return jnp.concatenate([start_stop[:1], times[1:-1], start_stop[1:]])


def _decreasing(values: Any, name: str) -> Any:
    """`values` in float64 NumPy, checked; a JAX array, unchecked, where they are traced."""
    if any(isinstance(value, jax.core.Tracer) for value in jax.tree.leaves(values)):
        return jnp.asarray(values)
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size < 2 or not (np.all(np.diff(array) < 0) and array[-1] > 0):
        raise ValueError(f"{name}={_shown(array)} must be 2 or more positive numbers, each below the one before it")
    return array


def _shown(values: np.ndarray) -> str:
    return np.array2string(values, threshold=6, separator=", ", precision=4)


def _table_size(sde: SDE, n: int, table: int | None) -> int:
    check_process(sde)
    size = int(getattr(sde, "N", 1000)) if table is None else table
    if not isinstance(n, Integral) or not 1 <= n <= size:
        raise ValueError(f"n={n} must lie between 1 and {size}, the number of times in the table, and be whole")
    return size


def _of_table(sde: SDE, size: int, entries: np.ndarray) -> jax.Array:
    return jnp.asarray((entries + 1) / size * sde.T)
