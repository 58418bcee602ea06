"""The orders that solvers state, regressed: pathwise against SciPy's flow, in moments by exact recursion."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import MIXTURE, PROCESSES, SDES, in_float64, mixture_flow, slope

from diffuse_jax import solvers
from diffuse_jax.oracles import Gaussian, Mixture
from diffuse_jax.sampling import sample_keys, solve
from diffuse_jax.solvers import Solver

STOP = 0.05
COUNTS = (64, 128, 256)
every_sde = pytest.mark.parametrize("name", SDES)


def adams_bashforth() -> Solver:
    """A user's multistep method: x + h·(3v − v′)/2, v′ being the velocity one step ago, which it carries as memory."""

    def init(x: Any, times: Any, denoise: Any) -> tuple[Any, Any]:
        return jnp.zeros_like(x), jnp.asarray(True)

    def step(noise: Any, x: Any, memory: Any, t: Any, s: Any, denoise: Any) -> Any:
        previous, first = memory
        v = solvers.velocity(denoise, x, t)
        x = x + (s - t) * jnp.where(first, v, 1.5 * v - 0.5 * previous)
        return x, x, (v, jnp.asarray(False))

    return Solver(step=step, init=init, order=2, evaluations=1)


@every_sde
@pytest.mark.parametrize("solver", [solvers.ddim(), solvers.heun(), adams_bashforth()], ids=["ddim", "heun", "users"])
@in_float64
def test_a_solver_of_the_flow_has_its_order_on_a_mixture(name: str, solver: Solver) -> None:
    start, end = mixture_flow(name, 1.0, STOP)
    denoise, keys = Mixture(SDES[name], *map(jnp.asarray, MIXTURE)), sample_keys(0, 0, len(start))
    # Steps from STOP to STOP change nothing, so that one compilation serves all counts.
    grids = np.stack([np.append(np.linspace(1, STOP, n + 1), np.full(COUNTS[-1] - n, STOP)) for n in COUNTS])
    ends = jax.jit(jax.vmap(lambda times: solve(keys, denoise, solver, times, jnp.asarray(start)).x))(grids)
    errors = np.max(np.abs(np.asarray(ends) - end), axis=(1, 2))
    assert abs(slope(COUNTS, errors) - solver.order) < 0.2, errors


STOCHASTIC = {
    "euler_maruyama": solvers.euler_maruyama(),
    "reverse_diffusion": solvers.reverse_diffusion(),
    "ancestral posterior": solvers.ancestral(),
    "ancestral beta": solvers.ancestral("beta"),
    "ddim 0.5": solvers.ddim(0.5),
    "ddim 1": solvers.ddim(1.0),
}
DATA_MEAN, DATA_VARIANCE = 0.7, 0.3
# Nearer to 0 the first-order terms of Euler–Maruyama on VE all but cancel: its slope is 2 until steps are very small.
MOMENT_STOP = 0.4


def moments_at_the_end(name: str, solver: Solver) -> np.ndarray:
    """Mean and variance (counts, 2) at MOMENT_STOP, exactly: on Gaussian data a step is x ↦ p·x + q + c·z."""
    oracle = Gaussian(SDES[name], jnp.asarray([DATA_MEAN]), jnp.asarray([[DATA_VARIANCE]]))
    grids = [np.linspace(1, MOMENT_STOP, n + 1) for n in COUNTS]

    @jax.jit
    @jax.vmap
    def coefficients(t: Any, s: Any) -> tuple[Any, Any, Any]:
        def step(x: float, z: float) -> Any:
            return solver.step(lambda i: jnp.full((1, 1), z), jnp.full((1, 1), x), (), t, s, oracle)[0][0, 0]

        return step(1.0, 0.0) - step(0.0, 0.0), step(0.0, 0.0), step(0.0, 1.0) - step(0.0, 0.0)

    p, q, c = map(
        np.asarray,
        coefficients(*(np.concatenate(times) for times in ([g[:-1] for g in grids], [g[1:] for g in grids]))),
    )
    moments = []
    for first, n in zip(np.cumsum((0, *COUNTS)), COUNTS, strict=False):
        mean, variance = exact_moments(name, 1.0)
        for k in range(first, first + n):
            mean, variance = p[k] * mean + q[k], p[k] ** 2 * variance + c[k] ** 2
        moments.append((mean, variance))
    return np.array(moments)


def exact_moments(name: str, t: float) -> tuple[float, float]:
    alpha, sigma = PROCESSES[name].alpha(t), PROCESSES[name].sigma(t)
    return float(alpha * DATA_MEAN), float(alpha**2 * DATA_VARIANCE + sigma**2)


@every_sde
@pytest.mark.parametrize("solver", STOCHASTIC.values(), ids=STOCHASTIC)
@in_float64
def test_a_stochastic_solver_has_its_weak_order_in_exact_moments(name: str, solver: Solver) -> None:
    errors = np.abs(moments_at_the_end(name, solver) - exact_moments(name, MOMENT_STOP))
    assert abs(slope(COUNTS, errors[:, 1]) - solver.weak_order) < 0.2, errors
    if name == "ve" or solver not in (STOCHASTIC["euler_maruyama"], STOCHASTIC["reverse_diffusion"]):
        # What is written in x0 and eps moves the mean exactly: there eps = 0. So do all where f = 0.
        np.testing.assert_allclose(errors[:, 0], 0, atol=1e-12)
    else:
        assert abs(slope(COUNTS, errors[:, 0]) - solver.weak_order) < 0.2, errors


def test_solvers_state_their_evaluations() -> None:
    calls = []

    class Counted:
        sde = SDES["vp"]

        def __call__(self, x: Any, t: Any, cond: Any = None) -> Any:
            calls.append(t)
            return Gaussian(self.sde, jnp.zeros(1), jnp.eye(1))(x, t)

    stated = (*STOCHASTIC.values(), solvers.ddim(), solvers.heun(), solvers.langevin())
    for solver in (*stated, solvers.predictor_corrector(solvers.heun(), solvers.langevin())):
        calls.clear()
        solver.step(lambda i: jnp.ones((2, 1)), jnp.ones((2, 1)), solver.init(None, None, None), 0.5, 0.4, Counted())
        # A loop is traced once: these take one step each.
        assert len(calls) == solver.evaluations
    pc = solvers.predictor_corrector(solvers.heun(), solvers.annealed_langevin(steps=7))
    assert (solvers.langevin(steps=5).evaluations, pc.evaluations) == (5, 9)
    assert solvers.predictor_corrector(solvers.heun(), solvers.adaptive()).evaluations is None
