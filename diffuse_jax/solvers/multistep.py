"""Multistep solvers: a polynomial through the latest values of x0 or eps, integrated against the weight of a step.

One method in four names. DPM-Solver++ 2M and 3M (2211.01095), its stochastic form, DEIS (2204.13902) and UniPC
(2302.04867) differ in the clock, in the component of the denoiser and in whether the next evaluation corrects the last
step; iPNDM takes the steps for equal. Each takes one evaluation a step.

A start of order q leaves one error of order q + 1 in the step, which the later steps never mend, so that no order above
q + 1 is reached. `start=1` is the published first-order start. A higher one takes q − 1 evaluations more: the first
step is a Runge–Kutta step, whose last evaluation takes the place of the one at the first time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from diffuse_jax.denoiser import Denoiser
from diffuse_jax.sde import Array
from diffuse_jax.solvers.exponential import DataKernel, Interval, Kernel, SigmaRatioKernel, integrate_through, phi
from diffuse_jax.solvers.runge_kutta import check_eta, check_order, kernel_of, last_stage, midpoint
from diffuse_jax.solvers.solver import Noise, Solver
from diffuse_jax.trees import Static, pytree, static

__all__ = ["deis", "dpm_solver_multi", "ipndm", "sa_solver", "sde_dpm_solver", "unipc"]


def dpm_solver_multi(
    order: int = 2, predict: str = "x0", *, start: int | None = None, form: str = "midpoint", legacy: bool = False
) -> Solver:
    """DPM-Solver++ 2M and 3M (2211.01095, algorithm 2), or their DPM-Solver counterparts.

    Args:
        order: The number of values that a step goes by, 1, 2 or 3.
        predict: "x0" for DPM-Solver++, "eps" for DPM-Solver.
        start: The order of the first step, 1 … order; None is the least that the order needs. A start above 1 costs
            start − 1 evaluations once; 1 is the published one.
        form: How a step with two values takes their difference: "midpoint", as published, or "taylor".
        legacy: 3M as published code computes it, with half of the second difference and a first-order start: second
            order.

    Returns:
        The solver.

    Raises:
        ValueError: For another order, prediction, start or form, and for `legacy` with another order or start than
            3M's.
    """
    check_order("dpm_solver_multi", "order", order, range(1, 4))
    kernel = kernel_of("dpm_solver_multi", predict)
    if legacy and (order != 3 or start not in (None, 1)):
        raise ValueError(f"dpm_solver_multi: legacy is 3M as published: order=3, start=1, not {order=}, {start=}")
    start = _start("dpm_solver_multi", start, 1 if legacy else max(order - 1, 1), order)
    two = _rule("dpm_solver_multi", form, start)
    stated = 2 if legacy else min(order, start + 1)
    return _multistep(kernel, _Form(order, start, two, legacy), order=stated, start_evaluations=start - 1)


def sde_dpm_solver(order: int = 2, eta: float = 1.0, *, form: str = "midpoint", legacy: bool = False) -> Solver:
    """SDE-DPM-Solver++ 1, 2M and 3M with noise of strength η (2211.01095, §5; 3M by the same rule). Weak order 1 for 1,
    and 2 for 2M and 3M.

    Args:
        order: The number of values that a step goes by, 1, 2 or 3.
        eta: η, at least 0: the reverse SDE at 1, the probability flow as η → 0.
        form: As in `dpm_solver_multi`; "taylor" is known as heun.
        legacy: As in `dpm_solver_multi`; k-diffusion's 3M is "taylor" and legacy.

    Returns:
        The solver.

    Raises:
        ValueError: For another order or form, an η that is negative or not finite, and for `legacy` with another order
            than 3.
    """
    check_order("sde_dpm_solver", "order", order, range(1, 4))
    check_eta("sde_dpm_solver", eta)
    if legacy and order != 3:
        raise ValueError(f"sde_dpm_solver: legacy is 3M as published: order=3, not {order=}")
    two = _rule("sde_dpm_solver", form, 1)
    return _multistep(DataKernel(eta), _Form(order, 1, two, legacy), weak_order=min(order, 2))


def deis(order: int = 3, *, start: int | None = None) -> Solver:
    """The Adams–Bashforth method of variable steps in σ̃ = σ/α (DEIS, 2204.13902, with polynomials in that clock).

        x_s = (α_s/α_t)·x + α_s·Σ_j C_j·eps_j,    C_j = ∫ℓ_j dσ̃

    Args:
        order: The number of values that a step goes by, 1 to 4.
        start: The order of the first step, 1 … min(order, 3); None is the least that the order needs. A start above 1
            costs start − 1 evaluations once; 1 is the published one.

    Returns:
        The solver.

    Raises:
        ValueError: For another order or start.
    """
    check_order("deis", "order", order, range(1, 5))
    start = _start("deis", start, max(order - 1, 1), min(order, 3))
    form = _Form(order, start, _taylor, False)
    return _multistep(SigmaRatioKernel(), form, order=min(order, start + 1), start_evaluations=start - 1)


def ipndm(order: int = 4) -> Solver:
    """The Adams–Bashforth weights w of equal steps, whatever the steps (iPNDM, 2204.13902, §3.2; 2202.09778, eq. 12):
    cheap in error at few steps.

        x_s = (α_s/α_t)·x + α_s·(σ̃_s − σ̃_t)·Σ_j w_j·eps_j

    The weights are off by the change of the step from one to the next, so on a smooth grid it has order 2, for orders 2
    to 4.

    Args:
        order: The number of values that a step goes by, 1 to 4.

    Returns:
        The solver.

    Raises:
        ValueError: For another order.
    """
    check_order("ipndm", "order", order, range(1, 5))
    form = _Form(order, 1, _taylor, False)
    return Solver(
        step=Partial(_ipndm_step, SigmaRatioKernel(), form),
        init=Partial(_init, SigmaRatioKernel(), form, Static(order - 1)),
        order=min(order, 2),
        evaluations=1,
    )


def unipc(order: int = 2, b: str = "bh2", *, start: int | None = None) -> Solver:
    """UniPC-p (2302.04867): the multistep step of order p, then, once x0 at its end is known, the same step again with
    that value among its nodes (UniC-p), at no evaluation more.

    Order p + 1 at the least `start` that allows it, which is the default; with `start=1`, p + 1 for p ≤ 2. The last
    state is not corrected, which costs no order.

    Args:
        order: p, 1, 2 or 3.
        b: B(h) of the steps with two values, whose coefficient is ½ by definition: "bh1" for h, "bh2" for e^h − 1.
        start: The order of the first step, 1 … p; None is the least that order p + 1 needs. A start above 1 costs start
            − 1 evaluations once; 1 is the published one.

    Returns:
        The solver.

    Raises:
        ValueError: For another order, start or b.
    """
    check_order("unipc", "order", order, range(1, 4))
    # The first step is corrected, to second order at least, before it is left.
    start = _start("unipc", start, 3 if order == 3 else 1, order)
    rules: dict[str, Rule] = {"bh1": _half_of_length, "bh2": midpoint}
    if b not in rules:
        raise ValueError(f"unipc: b={b!r} must be one of {', '.join(map(repr, rules))}")
    form = _Form(order, start, _taylor if start == 3 else rules[b], False)
    return Solver(
        step=Partial(_unipc_step, DataKernel(), form),
        init=Partial(_unipc_init, DataKernel(), form),
        order=min(order, max(start, 2)) + 1,
        evaluations=1,
        start_evaluations=start - 1,
    )


def sa_solver(order: int = 3, eta: float = 1.0) -> Solver:
    """SDE-DPM-Solver++ of this order, each step corrected as UniPC corrects, with its noise kept: the stochastic Adams
    method with a predictor of `order` values and a corrector of one more (SA-Solver, 2309.05019, algorithm 1, at a
    constant τ = η). One evaluation a step. Weak order 2.

    Args:
        order: The number of values of the predictor, 1, 2 or 3.
        eta: η, at least 0: the strength of the noise.

    Returns:
        The solver.

    Raises:
        ValueError: For another order, and an η that is negative or not finite.
    """
    check_order("sa_solver", "order", order, range(1, 4))
    check_eta("sa_solver", eta)
    form = _Form(order, 1, _taylor, False)
    return Solver(
        step=Partial(_unipc_step, DataKernel(eta), form),
        init=Partial(_unipc_init, DataKernel(eta), form),
        weak_order=2,
        evaluations=1,
    )


# --- what a form of the method is -------------------------------------------------------------------------------------

#: The moments by which a step with two values goes.
Rule = Callable[[Interval], tuple[Array, ...]]


def _taylor(interval: Interval) -> tuple[Array, ...]:
    return interval.moments


def _half_of_length(interval: Interval) -> tuple[Array, ...]:
    """As `midpoint`, with α_s·h, what the weight integrates to as h → 0, in the place of ∫ weight."""
    zeroth, _, *others = interval.moments
    return (zeroth, 0.5 * interval.length * zeroth / phi(1, -interval.length), *others)


def _rule(solver: str, form: str, start: int) -> Rule:
    rules: dict[str, Rule] = {"midpoint": midpoint, "taylor": _taylor}
    if form not in rules:
        raise ValueError(f"{solver}: form={form!r} must be one of {', '.join(map(repr, rules))}")
    # A third-order start is the straight line through 0 and 2/3 of the step, integrated exactly.
    return _taylor if start == 3 else rules[form]


def _start(solver: str, start: int | None, least: int, most: int) -> int:
    if start is None:
        return least
    check_order(solver, "start", start, range(1, most + 1))
    return start


@pytree
class _Form:
    """What a compilation depends on, compared by value."""

    order: int = static()
    start: int = static()
    two: Rule = static()
    legacy: bool = static()

    def through(self, value: Array, clock: Array, history: "History", start: Array, interval: Interval) -> Array:
        """∫ weight·(the polynomial through the value at `clock` and those of the history), from the clock `start`."""
        values, clocks, count = (value, *history.values), (clock, *history.clocks), history.known + 1
        moments = interval.moments
        if len(values) > 1:
            two = self.two(interval)
            moments = tuple(jnp.where(count == 2, rule, exact) for rule, exact in zip(two, moments, strict=True))
        if self.legacy:
            moments = (*moments[:2], 0.5 * moments[2], *moments[3:])
        known = tuple(k < count for k in range(len(values)))
        return integrate_through(values, tuple(node - start for node in clocks), known, moments)


# --- what is remembered -----------------------------------------------------------------------------------------------


class History(NamedTuple):
    """Values at earlier times, the latest first, their clocks, and how many there are so far."""

    values: tuple[Array, ...]
    clocks: tuple[Array, ...]
    known: Array

    def add(self, value: Array, clock: Array) -> "History":
        room = len(self.values)
        known = jnp.minimum(self.known + 1, room)
        return History((value, *self.values)[:room], (clock, *self.clocks)[:room], known)

    def latest(self, n: int) -> "History":
        return History(self.values[:n], self.clocks[:n], jnp.minimum(self.known, n))


class Memory(NamedTuple):
    """The history, and for a start above 1 where the first step evaluates: a state, its time, and the value at the
    first time."""

    history: History
    pending: tuple[Array, Array, Array] | None


def _init(kernel: Kernel, form: _Form, room: Static, x: Array, times: Array, denoise: Denoiser) -> Memory:
    clock = jnp.zeros_like(kernel.clock(denoise.sde, times[0]))
    history = History((jnp.zeros_like(x),) * room.value, (clock,) * room.value, jnp.zeros((), jnp.int32))
    if form.start == 1:
        return Memory(history, None)
    y = kernel.component(denoise(x, times[0]))
    return Memory(history, (*last_stage(kernel, form.start, x, y, times[0], times[1], denoise), y))


def _evaluate(kernel: Kernel, memory: Memory, x: Array, t: Array, denoise: Denoiser) -> tuple[Array, History, Memory]:
    """The one evaluation of a step, at (x, t), or where the start put that of the first step: the value at t, the
    history to go by, and the memory that the step leaves."""
    history, sde = memory.history, denoise.sde
    clock = kernel.clock(sde, t)
    if memory.pending is None:
        value = kernel.component(denoise(x, t))
        return value, history, Memory(history.add(value, clock), None)
    u, m, y = memory.pending
    first = history.known == 0
    at = jnp.where(first, m, t)
    value, when = kernel.component(denoise(jnp.where(first, u, x), at)), kernel.clock(sde, at)

    def choose(in_first: Any, later: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(first, a, b), in_first, later)

    # In the first step the value just taken lies ahead of the one at t.
    goes_by = choose(history.add(value, when), history)
    leaves = choose(history.add(y, clock).add(value, when), history.add(value, clock))
    return choose(y, value), goes_by, Memory(leaves, memory.pending)


# --- steps ------------------------------------------------------------------------------------------------------------


def _multistep(kernel: Kernel, form: _Form, **stated: Any) -> Solver:
    return Solver(
        step=Partial(_step, kernel, form),
        init=Partial(_init, kernel, form, Static(form.order - 1)),
        evaluations=1,
        **stated,
    )


def _step(
    kernel: Kernel, form: _Form, noise: Noise, x: Array, memory: Memory, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, Memory]:
    sde = denoise.sde
    interval, clock = kernel.interval(sde, t, s), kernel.clock(sde, t)
    value, history, memory = _evaluate(kernel, memory, x, t, denoise)
    x_mean = interval.ratio * x + form.through(value, clock, history, clock, interval)
    return _with_noise(interval, noise, x_mean), x_mean, memory


#: Row k: the weights of k + 1 values, the latest first.
_ADAMS_BASHFORTH = np.asarray([[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23, -16, 5, 0], [55, -59, 37, -9]]) / [
    [1],
    [1],
    [12],
    [24],
]


def _ipndm_step(
    kernel: Kernel, form: _Form, noise: Noise, x: Array, memory: Memory, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, Memory]:
    interval = kernel.interval(denoise.sde, t, s)
    value, history, memory = _evaluate(kernel, memory, x, t, denoise)
    weights = jnp.asarray(_ADAMS_BASHFORTH, x.dtype)[history.known]
    mean = sum(w * y for w, y in zip(weights, (value, *history.values), strict=False))
    x = interval.ratio * x + interval.moments[0] * mean
    return x, x, memory


class UniPCMemory(NamedTuple):
    """A memory, the time at which the last step began, and what that step added to ratio·x."""

    memory: Memory
    t: Array
    added: Array


def _unipc_init(kernel: Kernel, form: _Form, x: Array, times: Array, denoise: Denoiser) -> UniPCMemory:
    return UniPCMemory(_init(kernel, form, Static(form.order), x, times, denoise), times[0], jnp.zeros_like(x))


def _unipc_step(
    kernel: Kernel, form: _Form, noise: Noise, x: Array, memory: UniPCMemory, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, UniPCMemory]:
    sde, (inner, r, added) = denoise.sde, memory
    clock = kernel.clock(sde, t)
    value, history, inner = _evaluate(kernel, inner, x, t, denoise)
    # The last step again, from r to t, now with the value at its end, in the place of what it added; in the first step
    # r = t and both are nothing. A correction of x, so that what else has moved x in between is kept.
    last = kernel.interval(sde, r, t)
    x = x + form.through(value, clock, history, kernel.clock(sde, r), last) - added
    interval = kernel.interval(sde, t, s)
    added = form.through(value, clock, history.latest(form.order - 1), clock, interval)
    x_mean = interval.ratio * x + added
    return _with_noise(interval, noise, x_mean), x_mean, UniPCMemory(inner, t, added)


def _with_noise(interval: Interval, noise: Noise, x_mean: Array) -> Array:
    return x_mean if interval.std is None else x_mean + interval.std * noise(0)
