"""Every process with every solver, grid and parameterization, in pairs: finite, of the right shape, and one compiled
call for each process."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import ALL_SDES
from menu import DETERMINISTIC, STOCHASTIC, VARIANTS
from tiers import first

from diffuse_jax import parameterizations, solvers, times
from diffuse_jax.denoiser import NetworkDenoiser
from diffuse_jax.sampling import last_state, sample

PARAMETERIZATIONS = [
    parameterizations.noise,
    parameterizations.x0,
    parameterizations.v,
    parameterizations.score,
    parameterizations.edm(0.5),
    parameterizations.flow,
]
GRIDS = [times.uniform, times.log_snr, times.karras, times.quadratic, times.cosine]
STEPS = 6
CORRECTED = {
    "pc": solvers.predictor_corrector(solvers.reverse_diffusion(), solvers.langevin()),
    "pc by batch": solvers.predictor_corrector(solvers.euler_maruyama(), solvers.langevin(norm="batch")),
    "pc multistep": solvers.predictor_corrector(solvers.unipc(3, start=1), solvers.langevin(steps=2)),
    "annealed": solvers.annealed_langevin(epsilon=1e-5, steps=2),
}
# Variants of a formula that have their own proofs of order on four processes stay out.
SOLVERS = {
    kind: solver for kind, solver in {**DETERMINISTIC, **STOCHASTIC, **CORRECTED}.items() if kind not in VARIANTS
}


def network(params: Any, x: Any, label: Any) -> Any:
    """Bounded, and not linear, so that nothing cancels."""
    return jnp.tanh(x @ params + 0.1 * label[:, None])


def cases() -> list[tuple[str, str, int, int]]:
    """(process, solver, parameterization, grid): each process with each solver, the other two going round with both."""
    return [
        (name, kind, (i + k) % len(PARAMETERIZATIONS), (i + k) % len(GRIDS))
        for i, name in enumerate(ALL_SDES)
        for k, kind in enumerate(SOLVERS)
    ]


def test_the_cases_have_every_pair_of_everything() -> None:
    sizes = (len(ALL_SDES), len(SOLVERS), len(PARAMETERIZATIONS), len(GRIDS))
    for a, b in itertools.combinations(range(4), 2):
        assert len({(case[a], case[b]) for case in cases()}) == sizes[a] * sizes[b]


@pytest.mark.parametrize("name", first(ALL_SDES, keep=["edm"]))
def test_a_process_is_finite_with_every_solver_grid_and_parameterization(name: str) -> None:
    sde, weights = ALL_SDES[name], jnp.asarray([[0.3, -0.2], [0.1, 0.4]])
    draws = jnp.asarray(np.random.default_rng(0).standard_normal((STEPS + 1, 5, 3, 2)), jnp.float32)
    mine = [case for case in cases() if case[0] == name]
    grids = [jnp.asarray(GRIDS[grid](sde, STEPS), jnp.float32) for *_, grid in mine]

    @jax.jit
    def run(draws: Any, grids: Any) -> list[Any]:
        ends = []
        for (_, kind, index, _), grid in zip(mine, grids, strict=True):
            denoise = NetworkDenoiser(sde, weights, network, PARAMETERIZATIONS[index])
            x = sde.prior_std() * draws[0, 0]
            noise = lambda keys, stream, x, span: lambda i: draws[stream, i]  # noqa: E731
            ends.append(sample(None, denoise, SOLVERS[kind], grid, x, noise=noise, finish=last_state))
        return ends

    for (_, kind, index, grid), x in zip(mine, run(draws, grids), strict=True):
        assert x.shape == (3, 2) and x.dtype == np.float32
        assert np.all(np.isfinite(x)), f"{kind} with {PARAMETERIZATIONS[index]} on {GRIDS[grid].__name__}"
