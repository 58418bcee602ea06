"""diffusionjax's solvers, whose grid is a table of σ over equally spaced times: the given σ are that table."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import diffusionjax.solvers
import jax
import jax.numpy as jnp
import numpy as np

from peers.common import Counted, Data, Draws, Method


def _sample(
    make: Callable[..., Any],
    noisy: bool,
    data: Data,
    sigmas: np.ndarray,
    x: np.ndarray,
    draws: Draws | None,
) -> tuple[np.ndarray, int]:
    times = jnp.linspace(0.0, 1.0, len(sigmas))
    table = jnp.asarray(sigmas[::-1])
    x0 = Counted(data, jnp)
    # One number σ a call: the solvers hand over either σ itself, of shape (batch,), or the time of its table entry.
    solver = make(x0, lambda t: table[jnp.rint(t * (len(sigmas) - 1)).astype(int)], times)
    state = jnp.asarray(x)
    noise = (lambda key, shape: jnp.asarray(draws.next())) if draws else (lambda key, shape: jnp.zeros(shape))
    with mock.patch.object(diffusionjax.solvers.random, "normal", noise):
        # The table's first entry is the last σ: the solver's own step from there to 0 is left out.
        for time in times[:0:-1]:
            end = solver.update(jax.random.key(0), state, jnp.full(len(x), time))
            state = end[0]
    return np.asarray(state), x0.calls


def _edm(name: str) -> Callable[..., Any]:
    def make(x0: Counted, sigma: Any, times: Any) -> Any:
        return getattr(diffusionjax.solvers, name)(lambda x, s: x0(x, s[0]), sigma=sigma, ts=times)

    return make


def _ddim(eta: float) -> Callable[..., Any]:
    def make(x0: Counted, sigma: Any, times: Any) -> Any:
        def eps(x: Any, t: Any) -> Any:
            return (x - x0(x, sigma(t[0]))) / sigma(t[0])

        return diffusionjax.solvers.DDIMVE(eps, eta=eta, sigma=sigma, ts=times)

    return make


def _smld(x0: Counted, sigma: Any, times: Any) -> Any:
    def score(x: Any, t: Any) -> Any:
        return (x0(x, sigma(t[0])) - x) / sigma(t[0]) ** 2

    return diffusionjax.solvers.SMLD(score, sigma=sigma, ts=times)


def methods() -> list[Method]:
    def one(name: str, family: str | None, make: Callable[..., Any], per_step: int = 1, draws: int = 0) -> Method:
        return Method("diffusionjax", name, family, partial(_sample, make, draws > 0), per_step, draws=draws)

    return [
        one("EDMEuler", "Euler", _edm("EDMEuler")),
        one("DDIMVE eta=0", "Euler", _ddim(0.0)),
        # No Heun's method: it adds the averaged slope to the predicted state, so that a step goes twice as far.
        one("EDMHeun", None, _edm("EDMHeun"), 2),
        one("SMLD", "ancestral", _smld, draws=1),
        one("DDIMVE eta=1", "ancestral", _ddim(1.0), draws=1),
    ]
