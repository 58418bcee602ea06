"""The probability flow to a tolerance, each sample with its own steps (diffrax)."""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from diffuse_jax._checks import check_tolerances
from diffuse_jax._compile import compiled
from diffuse_jax.denoiser import Denoiser, unbind
from diffuse_jax.sde import Array
from diffuse_jax.solvers.flow import velocity
from diffuse_jax.solvers.solver import Noise, Solver
from diffuse_jax.trees import Static

__all__ = ["AdaptiveMemory", "Integrated", "Transported", "adaptive", "integrate", "transport"]


class Integrated(NamedTuple):
    """The end of one adaptive solve.

    Args:
        y: Its state; NaN where `max_steps` was not enough.
        evaluations: The evaluations of the vector field.
        finished: Whether it got there.
    """

    y: Any
    evaluations: Array
    finished: Array


def integrate(field: Any, y: Any, t: Array, s: Array, args: Any, *, rtol: Any, atol: Any, max_steps: int) -> Integrated:
    """Integrates dy/dt = field(t, y, args) of one sample by Dormand–Prince 5(4) with a PID step size (diffrax).

    Args:
        field: The vector field.
        y: The state at t, an array or a tree of arrays.
        t: The time at which it begins.
        s: The time at which it ends, before or after t.
        args: What the field is given as its last argument.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_steps: The most steps, accepted or not.

    Returns:
        The state at s and what it cost.
    """
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri5(),
        t0=t,
        t1=s,
        dt0=0.01 * (s - t),
        y0=y,
        args=args,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        throw=False,
    )
    done = solution.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda leaf: jnp.where(done, leaf[-1], jnp.nan), solution.ys)
    # Six stages a step, accepted or not (the seventh is the next step's first), and the first stage of all.
    return Integrated(end, 6 * solution.stats["num_steps"] + 1, done)


class Transported(NamedTuple):
    """Where the probability flow took x.

    Args:
        x: The states (batch, …); NaN for samples that are exhausted.
        evaluations: The evaluations that each took, (batch,).
        exhausted: Whether each met the bound on evaluations before it was there, (batch,).
    """

    x: Array
    evaluations: Array
    exhausted: Array

    @property
    def mean_evaluations(self) -> Array:
        return jnp.mean(self.evaluations)

    @property
    def largest_evaluations(self) -> Array:
        """What a batch costs: the network runs for all until the slowest is there."""
        return jnp.max(self.evaluations)


def transport(
    denoise: Denoiser,
    x: Array,
    t: Any,
    s: Any,
    *,
    cond: Any = None,
    rtol: Any = 1e-5,
    atol: Any = 1e-5,
    max_evaluations: int = 25_000,
) -> Transported:
    """Takes x along the probability flow from time t to time s, up or down, each sample to its own tolerance, so that
    none depends on its batch-mates; differentiable in reverse mode.

    Args:
        denoise: The denoiser. It is called with one sample at a time.
        x: States (batch, …) at time t; computed with in float32 at least.
        t: The time at which they start, a scalar.
        s: The time to which they go, a scalar.
        cond: The condition of each sample, a pytree whose leaves lead with batch.
        rtol: Relative tolerance of the ODE solver.
        atol: Absolute tolerance.
        max_evaluations: The most evaluations of the denoiser for a sample, six a step and one.

    Returns:
        The states at time s, the evaluations of each sample, and whether any ran out of them.

    Raises:
        ValueError: For tolerances that are negative, not finite or both 0; for a bound of fewer than 7 evaluations,
            which one step takes; and for a denoiser that cannot be called with one sample.
    """
    check_tolerances("transport", rtol, atol, max_evaluations)
    denoise, cond = unbind(denoise, cond)
    return _transport(denoise, x, t, s, cond, rtol, atol, max_evaluations=max_evaluations)


@compiled("max_evaluations")
def _transport(
    denoise: Denoiser, x: Array, t: Any, s: Any, cond: Any, rtol: Any, atol: Any, *, max_evaluations: int
) -> Transported:
    x = jnp.asarray(x)
    x = x.astype(jnp.result_type(x, jnp.float32))
    t, s = jnp.asarray(t, x.dtype), jnp.asarray(s, x.dtype)

    def field(time: Array, y: Array, args: tuple[Denoiser, Any]) -> Array:
        one, one_cond = args
        return one_velocity(one, y, time, one_cond)

    def solve(y: Array, cond: Any) -> Integrated:
        args = (denoise, jax.tree.map(lambda leaf: leaf[None], cond))
        return integrate(field, y, t, s, args, rtol=rtol, atol=atol, max_steps=(max_evaluations - 1) // 6)

    end = jax.vmap(solve)(x, cond)
    return Transported(end.y, end.evaluations, ~end.finished)


def one_velocity(denoise: Denoiser, y: Array, t: Array, cond: Any) -> Array:
    """The velocity of one sample y (…). Raises ValueError where the denoiser holds arrays of other samples."""
    rate = velocity(denoise, y[None], t, cond)
    if rate.shape != (1, *y.shape):
        raise ValueError(
            f"a denoiser called with one sample of shape {y.shape} gave shape {rate.shape}: what belongs to each "
            "sample must be given as cond, and not be held by the denoiser"
        )
    return rate[0]


class AdaptiveMemory(NamedTuple):
    """Evaluations so far, and whether the bound was met in some interval; both (batch,)."""

    evaluations: Array
    exhausted: Array


def adaptive(rtol: float = 1e-5, atol: float = 1e-5, max_evaluations: int = 25_000) -> Solver:
    """`transport` over each interval of the grid; up the grid too, from data to latents.

    A sample that meets the bound in an interval becomes NaN and is marked in the memory (`AdaptiveMemory`).

    Args:
        rtol: Relative tolerance, for each sample on its own.
        atol: Absolute tolerance.
        max_evaluations: The most evaluations for a sample in one interval, six a step and one.

    Returns:
        The solver.

    Raises:
        ValueError: For tolerances that are negative, not finite or both 0, and for fewer than 7 evaluations.
    """
    check_tolerances("adaptive", rtol, atol, max_evaluations)
    return Solver(step=Partial(_adaptive, Static(max_evaluations), rtol, atol), init=_nothing_yet, count=_evaluations)


def _nothing_yet(x: Array, times: Array, denoise: Denoiser) -> AdaptiveMemory:
    return AdaptiveMemory(jnp.zeros(x.shape[0], jnp.int32), jnp.zeros(x.shape[0], bool))


def _evaluations(memory: AdaptiveMemory) -> Array:
    return memory.evaluations


def _adaptive(
    limit: Static,
    rtol: Array,
    atol: Array,
    noise: Noise,
    x: Array,
    memory: AdaptiveMemory,
    t: Array,
    s: Array,
    denoise: Denoiser,
) -> tuple[Array, Array, AdaptiveMemory]:
    end = transport(denoise, x, t, s, rtol=rtol, atol=atol, max_evaluations=limit.value)
    memory = AdaptiveMemory(memory.evaluations + end.evaluations, memory.exhausted | end.exhausted)
    return end.x, end.x, memory
