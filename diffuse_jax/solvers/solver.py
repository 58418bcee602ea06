"""What a solver is, and how two of them make a predictor–corrector."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.tree_util import Partial

from diffuse_jax._checks import check_solver
from diffuse_jax.denoiser import Denoiser
from diffuse_jax.sde import Array
from diffuse_jax.trees import pytree, static

__all__ = ["Noise", "Solver", "predictor_corrector"]

Noise = Callable[[Any], Array]
"""`noise(i)` is the i-th standard normal draw of a step, shaped like x."""


def _no_memory(x: Array, times: Array, denoise: Denoiser) -> tuple[()]:
    return ()


@pytree
class Solver:
    """A record of pure functions that takes x from time t to time s < t; a corrector is a step with s = t.

    Functions given plainly are compared by identity under jit; numbers bound with `jax.tree_util.Partial` are leaves.

    Args:
        step: `step(noise, x, memory, t, s, denoise) -> (x, x_mean, memory)` acts on the whole batch: `noise(i)` is the
            i-th normal draw of the step, `x_mean` is x without the noise that the step added last, and `memory` is what
            a multistep method carries from step to step.
        init: `init(x, times, denoise) -> memory` begins the memory.
        order: The order of the error in the step size, of a deterministic solver.
        weak_order: The order of the moments, of a stochastic one.
        evaluations: The calls of `denoise` a step.
        start_evaluations: The calls of `denoise` in `init`.
        count: What a solver counts for itself (batch,), read off its memory; added to the two before.
    """

    step: Callable[[Noise, Array, Any, Array, Array, Denoiser], tuple[Array, Array, Any]]
    init: Callable[[Array, Array, Denoiser], Any] = _no_memory
    order: int | None = static(default=None)
    weak_order: int | None = static(default=None)
    evaluations: int | None = static(default=None)
    start_evaluations: int = static(default=0)
    count: Callable[[Any], Array] | None = static(default=None)

    def __post_init__(self) -> None:
        for name in ("step", "init"):
            function = getattr(self, name)
            if callable(function) and not isinstance(function, Partial):
                object.__setattr__(self, name, Partial(function))


def predictor_corrector(predictor: Solver, corrector: Solver) -> Solver:
    """At every step the corrector at t, then the predictor from t to s: the order of score_sde's sampler (2011.13456,
    algorithm 1 has the predictor first).

    x_mean is the predictor's. The two draw from separate streams of noise.

    Args:
        predictor: The solver that moves from t to s; a multistep one with `start=1`.
        corrector: The solver that is called with s = t.

    Returns:
        The solver of both.

    Raises:
        TypeError: For what is no solver.
        ValueError: For a predictor whose `init` evaluates: its start would not see what the corrector does first.
    """
    check_solver(predictor)
    check_solver(corrector)
    if predictor.start_evaluations:
        raise ValueError(
            f"predictor_corrector: the predictor begins with {predictor.start_evaluations} evaluations, before the "
            "corrector has moved x: give a multistep predictor start=1"
        )
    stated = [solver.evaluations for solver in (predictor, corrector) if solver.count is None]
    return Solver(
        step=Partial(_predictor_corrector_step, predictor, corrector),
        init=Partial(_predictor_corrector_init, predictor, corrector),
        evaluations=None if None in stated else sum(n for n in stated if n is not None),
        start_evaluations=corrector.start_evaluations,
        count=None if predictor.count is corrector.count is None else _BothCounts(predictor.count, corrector.count),
    )


@dataclasses.dataclass(frozen=True)
class _BothCounts:
    """What a predictor and a corrector count for themselves, read off the memory of the pair; compared by value."""

    predictor: Callable[[Any], Array] | None
    corrector: Callable[[Any], Array] | None

    def __call__(self, memory: tuple[Any, Any]) -> Any:
        both = zip((self.predictor, self.corrector), memory, strict=True)
        return sum(count(its_own) for count, its_own in both if count is not None)


def _predictor_corrector_init(
    predictor: Solver, corrector: Solver, x: Array, times: Array, denoise: Denoiser
) -> tuple[Any, Any]:
    return predictor.init(x, times, denoise), corrector.init(x, times, denoise)


def _predictor_corrector_step(
    predictor: Solver,
    corrector: Solver,
    noise: Noise,
    x: Array,
    memory: tuple[Any, Any],
    t: Array,
    s: Array,
    denoise: Denoiser,
) -> tuple[Array, Array, tuple[Any, Any]]:
    predictor_memory, corrector_memory = memory
    # Even draws for one and odd for the other: no need to know how many each takes.
    x, _, corrector_memory = corrector.step(lambda i: noise(2 * i), x, corrector_memory, t, t, denoise)
    x, x_mean, predictor_memory = predictor.step(lambda i: noise(2 * i + 1), x, predictor_memory, t, s, denoise)
    return x, x_mean, (predictor_memory, corrector_memory)
