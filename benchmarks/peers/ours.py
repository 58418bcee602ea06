"""diffuse_jax's solvers on the process EDM (α = 1, σ = t), with its own closed-form denoisers."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax import oracles
from diffuse_jax.denoiser import Denoised
from diffuse_jax.sde import EDM
from diffuse_jax.solvers import (
    Solver,
    ancestral,
    ddim,
    deis,
    dpm_solver_multi,
    dpm_solver_single,
    edm,
    euler_in_sigma,
    euler_maruyama,
    heun,
    ipndm,
    reverse_diffusion,
    sa_solver,
    sde_dpm_solver,
    stochastic_runge_kutta,
    unipc,
)
from peers.common import CHURN, Data, Draws, Method, Mixture

LIBRARY = "diffuse_jax"


@jax.jit
def _start(solver: Solver, x: Any, times: Any, denoise: Any) -> Any:
    return solver.init(x, times, denoise)


@jax.jit
def _step(solver: Solver, z: Any, x: Any, memory: Any, t: Any, s: Any, denoise: Any) -> Any:
    x, _, memory = solver.step(lambda i: z[i], x, memory, t, s, denoise)
    return x, memory


def _oracle(data: Data) -> Any:
    if isinstance(data, Mixture):
        return oracles.Mixture(EDM(), *map(jnp.asarray, (data.weights, data.means, data.stds)))
    return oracles.Gaussian(EDM(), jnp.asarray(data.means), jnp.diag(jnp.asarray(data.stds**2)))


def _calls(solver: Solver, draws_a_step: int) -> tuple[int, int]:
    """Calls of the denoiser in `init` and in a step, counted where JAX traces them, not taken from the solver."""
    sigma, calls = jnp.asarray([2.0, 1.0]), []

    class Tally:
        sde = EDM()

        def __call__(self, x: Any, t: Any, cond: Any = None) -> Denoised:
            calls.append(1)
            return Denoised(x, x)

    x = jnp.ones((1, 2))
    memory = solver.init(x, sigma, Tally())
    start = len(calls)
    z = jnp.ones((max(draws_a_step, 1), *x.shape))
    jax.eval_shape(lambda x, memory: solver.step(lambda i: z[i], x, memory, *sigma, Tally()), x, memory)
    return start, len(calls) - start


def _run(
    solver: Solver,
    draws_a_step: int,
    calls: tuple[int, int],
    data: Data,
    sigmas: np.ndarray,
    x: np.ndarray,
    draws: Draws | None,
) -> tuple[np.ndarray, int]:
    """The solver's steps one by one: one compilation a solver, whatever their number."""
    times, state, denoise = jnp.asarray(sigmas), jnp.asarray(x), _oracle(data)
    memory = _start(solver, state, times, denoise)
    z = jnp.zeros((1, *x.shape))
    for t, s in itertools.pairwise(times):
        if draws is not None:
            z = jnp.asarray(np.stack([draws.next() for _ in range(draws_a_step)]))
        state, memory = _step(solver, z, state, memory, t, s, denoise)
    return np.asarray(state), calls[0] + calls[1] * (len(times) - 1)


def methods() -> list[Method]:
    def one(family: str | None, factory: Callable[..., Solver], *args: Any, draws: int = 0, **options: Any) -> Method:
        shown = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in options.items())])
        solver = factory(*args, **options)
        return Method(
            LIBRARY,
            f"{factory.__name__}({shown})",
            family,
            partial(_run, solver, draws, _calls(solver, draws)),
            solver.evaluations or 0,
            solver.start_evaluations,
            draws,
        )

    multi, single = dpm_solver_multi, dpm_solver_single
    return [
        one("Euler", ddim),
        one("Heun", heun),
        one("Heun", edm),
        one("DPM-Solver-2", single, 2, "eps"),
        one("DPM-Solver-3", single, 3, "eps"),
        one("DPM-Solver++ 2S", single, 2),
        one("DPM-Solver++ 3S", single, 3),
        one("DPM-Solver++ 2M", multi, 2, start=1),
        one("DPM-Solver++ 2M taylor", multi, 2, start=1, form="taylor"),
        one("DPM-Solver++ 3M as shipped, midpoint start", multi, 3, start=1, legacy=True),
        one("DPM-Solver++ 3M as shipped, taylor start", multi, 3, start=1, form="taylor", legacy=True),
        one("DPM-Solver++ 3M", multi, 3, start=1, form="taylor"),
        one("DPM-Solver 2M", multi, 2, "eps", start=1),
        *(one(f"DPM-Solver {k}M taylor", multi, k, "eps", start=1, form="taylor") for k in (2, 3)),
        *(one(f"LMS {k}", deis, k, start=1) for k in (2, 3, 4)),
        one("IPNDM", ipndm),
        *(one(f"UniPC-{k} {b}", unipc, k, b, start=1) for k in (1, 2, 3) for b in ("bh1", "bh2")),
        *(one(None, multi, k, start=start) for k, start in ((2, 2), (3, 2), (3, 3))),
        *(one(None, multi, k, "eps", start=start) for k, start in ((2, 2), (3, 2), (3, 3))),
        *(one(None, deis, k, start=start) for k, start in ((2, 2), (3, 2), (3, 3), (4, 2), (4, 3))),
        *(one(None, unipc, k, "bh2", start=start) for k, start in ((2, 2), (3, 2), (3, 3))),
        one("ancestral", ddim, 1.0, draws=1),
        one("ancestral", ancestral, draws=1),
        one("ancestral", sde_dpm_solver, 1, draws=1),
        one("EDM with churn", edm, draws=1, **CHURN),
        one("stochastic 2S", stochastic_runge_kutta, draws=2),
        one("SDE-DPM-Solver++ 2M", sde_dpm_solver, 2, draws=1),
        one("SDE-DPM-Solver++ 2M taylor", sde_dpm_solver, 2, form="taylor", draws=1),
        one("SDE-DPM-Solver++ 3M as shipped", sde_dpm_solver, 3, form="taylor", legacy=True, draws=1),
        one("Euler in σ, noise integrated", euler_in_sigma, draws=1),
        one("SA-Solver 3/4", sa_solver, 3, draws=1),
        one(None, sa_solver, 2, draws=1),
        one(None, sde_dpm_solver, 3, draws=1),
        one(None, sde_dpm_solver, 3, form="taylor", draws=1),
        one(None, euler_maruyama, draws=1),
        one(None, reverse_diffusion, draws=1),
    ]
