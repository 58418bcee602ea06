"""What callers of the library get wrong, said at once by the name of the argument. Traced values are not looked at."""

import math
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.sde import SDE

__all__ = [
    "check_batched",
    "check_denoiser",
    "check_first_time",
    "check_keys",
    "check_levels",
    "check_not_negative",
    "check_process",
    "check_seed",
    "check_solver",
    "check_times",
    "check_tolerances",
]


def check_keys(keys: Any, n: int | None = None) -> None:
    """TypeError unless `keys` is an array of random keys; ValueError unless one a sample, n of them where known."""
    shape: tuple[int, ...] = getattr(keys, "shape", ())
    dtype = getattr(keys, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and (dtype != np.uint32 or shape[-1:] != (2,)):
        raise TypeError(f"keys={_shown(keys)} must be an array of keys, one a sample: sample_keys(seed, n)")
    shape = shape if typed else shape[:-1]
    if len(shape) != 1 or n not in (None, shape[0]):
        wanted = "(n,)" if n is None else f"({n},), one for each row of x"
        raise ValueError(f"keys of shape {shape} must have shape {wanted}: sample_keys(seed, n)")


def check_seed(seed: Any, first: Any, n: Any) -> None:
    """TypeError unless `seed` is an integer or a key; ValueError unless it is below 2³², and `n` and `first` are whole
    numbers that keep a sample's own below it."""
    dtype = getattr(seed, "dtype", None)
    kinds = (np.integer, jax.dtypes.prng_key)
    known = isinstance(seed, Integral) if dtype is None else any(jnp.issubdtype(dtype, kind) for kind in kinds)
    if not known:
        raise TypeError(f"seed={_shown(seed)} must be an integer, or a key of jax.random.key")
    if isinstance(seed, Integral) and not 0 <= int(seed) < 2**32:
        raise ValueError(f"seed={seed} must be at least 0 and below 2**32")
    if not isinstance(n, Integral) or int(n) < 0:
        raise ValueError(f"n={n!r} must be a whole number of samples")
    if isinstance(first, (Real, np.ndarray)) and not (
        isinstance(first, Integral) and 0 <= int(first) <= 2**32 - int(n)
    ):
        raise ValueError(f"first={first!r} must be a whole number, with n={n} samples below 2**32")


def check_process(sde: Any) -> None:
    """TypeError unless `sde` is a process, and not its class."""
    if not isinstance(sde, SDE):
        instead = "call it, as in VP()" if isinstance(sde, type) else "give one, such as VP()"
        raise TypeError(f"sde={_shown(sde)} is no process: {instead}")


def check_batched(x: Any) -> None:
    """ValueError unless `x` has an axis of samples."""
    if np.ndim(x) < 1:
        raise ValueError(f"x={_shown(x)} must have shape (batch, …)")


def check_levels(levels: Any, range: tuple[float, float]) -> None:
    """ValueError unless there are two levels or more, and the range ascends."""
    if not isinstance(levels, Integral) or levels < 2:
        raise ValueError(f"levels={levels} must be an integer of at least 2: the number of values of an entry")
    if not range[0] < range[1]:
        raise ValueError(f"range={range} must be the smallest and the largest of the values")


def check_denoiser(denoise: Any) -> None:
    """TypeError unless `denoise` can be called and has a process."""
    if not callable(denoise) or not isinstance(getattr(denoise, "sde", None), SDE):
        raise TypeError(
            f"denoise={_shown(denoise)} must be a denoiser, which has a process `sde` and is called with (x, t): "
            "from_score(sde, score), NetworkDenoiser(sde, params, net), or load(workdir)"
        )


def check_solver(solver: Any) -> None:
    """TypeError unless `solver` has the functions `init` and `step`."""
    if not (callable(getattr(solver, "step", None)) and callable(getattr(solver, "init", None))):
        instead = "call it, as in solvers.heun()" if callable(solver) else "give one, such as solvers.heun()"
        raise TypeError(f"solver={_shown(solver)} is no Solver: {instead}")


def check_times(times: Any, sde: SDE) -> None:
    """TypeError unless `times` is an array, ValueError unless it has one axis and goes one way through the process's
    times; a corrector may stay at one."""
    if not isinstance(times, (jax.Array, np.ndarray)):
        raise TypeError(
            f"times={_shown(times)} must be an array of times, such as times.uniform(denoise.sde, 20); "
            "times.explicit(denoise.sde, [0.9, 0.5, 0.1]) makes one of numbers"
        )
    if times.ndim != 1 or times.shape[0] < 1 or not jnp.issubdtype(times.dtype, jnp.floating):
        raise ValueError(
            f"times of shape {times.shape}, {times.dtype}, must have shape (N + 1,), for N steps, of floats"
        )
    if isinstance(times, jax.core.Tracer) or not getattr(times, "is_fully_addressable", True):
        return
    steps = np.diff(found := np.asarray(times))
    # To the rounding of a grid's type.
    inside = (found >= 0) & (found <= sde.T * (1 + 2 * float(jnp.finfo(times.dtype).eps)))
    if not inside.all() or not ((steps <= 0).all() or (steps >= 0).all()):
        text = np.array2string(found, threshold=6, separator=", ", precision=4)
        raise ValueError(f"times={text} must lie in [0, {sde.T}], the times of the process, and go one way")


def check_first_time(t_min: Any, sde: SDE) -> None:
    """ValueError unless `t_min`, where given, lies between 0 and the end of the process's time; 0 itself has a score
    only where the process has noise there."""
    if t_min is None or isinstance(t_min, jax.core.Tracer):
        return
    if not 0 <= t_min < sde.t_start:
        raise ValueError(f"t_min={t_min} must lie above 0 and below {sde.t_start}, where the process's grids start")
    if t_min == 0:
        with jax.ensure_compile_time_eval():
            sigma = sde.sigma(0.0)
        if not isinstance(sigma, jax.core.Tracer) and not np.asarray(sigma) > 0:
            raise ValueError(f"t_min={t_min} must be above 0: the process has no noise there, and so no score")


def check_tolerances(where: str, rtol: Any, atol: Any, max_evaluations: int) -> None:
    """ValueError unless both tolerances are finite and not negative, one of them is positive, and the evaluations
    suffice for a step of Dormand-Prince."""
    check_not_negative(where, rtol=rtol, atol=atol)
    if isinstance(rtol, Real) and isinstance(atol, Real) and rtol == atol == 0:
        raise ValueError(f"{where}: rtol=0 and atol=0: one of them must be positive")
    if max_evaluations < 7:
        raise ValueError(f"{where}: max_evaluations={max_evaluations} must be at least 7: one step takes that many")


def check_not_negative(where: str, **numbers: Any) -> None:
    """ValueError, which begins with `where`, for a number that is negative, infinite or NaN."""
    for name, value in numbers.items():
        if isinstance(value, Real) and not 0 <= float(value) < math.inf:
            raise ValueError(f"{where}: {name}={value} must be at least 0 and finite")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]} …"
