"""Sampling differentiates and vmaps: by parameters, guidance, times and the process's own numbers."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import in_float64
from tiers import first, proof

from diffuse_jax import oracles, solvers, times
from diffuse_jax.denoiser import Denoised, Denoiser, NetworkDenoiser
from diffuse_jax.oracles import Gaussian
from diffuse_jax.sampling import sample, sample_keys
from diffuse_jax.sde import EDM, VE, VP, Cosine, DiscreteVE, DiscreteVP, SubVP, geometric_sigmas, linear_betas
from diffuse_jax.trees import pytree

SOLVERS = {
    "heun": solvers.heun(),
    "sde-dpm 2m": solvers.sde_dpm_solver(2),
    "pc": solvers.predictor_corrector(solvers.dpm_solver_multi(3, start=1), solvers.langevin(0.1)),
}


@pytree
class Guided:
    """Classifier-free guidance as a user writes it: eps from two denoisers, x0 rebuilt."""

    good: Denoiser
    bad: Denoiser
    strength: Any

    @property
    def sde(self) -> Any:
        return self.good.sde

    def __call__(self, x: Any, t: Any, cond: Any = None) -> Denoised:
        good, bad = self.good(x, t), self.bad(x, t)
        eps = bad.eps + self.strength * (good.eps - bad.eps)
        return Denoised((x - self.sde.sigma(t) * eps) / self.sde.alpha(t), eps)


def network(params: Any, x: Any, label: Any) -> Any:
    return jnp.tanh(x @ params["w"] + label[:, None] * params["b"])


PARAMS = {"w": jnp.asarray([[0.9, -0.2], [0.3, 0.5]]), "b": jnp.asarray([0.1, -0.3])}


@pytest.mark.parametrize("kind", first(SOLVERS, keep=["heun"]))
@in_float64
def test_gradients_by_parameters_guidance_and_times_are_finite_differences(kind: str) -> None:
    keys, bad = sample_keys(0, 4), Gaussian(VP(), jnp.zeros(2), jnp.eye(2))

    @jax.jit
    @jax.value_and_grad
    def loss(leaves: dict[str, Any]) -> Any:
        good = NetworkDenoiser(VP(), leaves["params"], network, shape=(2,))
        x = sample(keys, Guided(good, bad, leaves["strength"]), SOLVERS[kind], leaves["times"], x=START)
        return jnp.mean(jnp.square(x))

    leaves = {
        "params": jax.tree.map(jnp.float64, PARAMS),
        "strength": jnp.asarray(1.5),
        "times": jnp.linspace(0.9, 0.1, 6),
    }
    gradient = loss(leaves)[1]
    directions = {
        "params": {"w": np.array([[1.0, 0.5], [-0.3, 0.2]]), "b": np.array([0.4, -1.0])},
        "strength": 1.0,
        "times": np.array([0.2, 1.0, -0.5, 0.3, 0.2, -0.1]),
    }
    for name, direction in directions.items():
        moved = [
            {**leaves, name: jax.tree.map(lambda leaf, d, h=h: leaf + h * d, leaves[name], direction)}
            for h in (1e-5, -1e-5)
        ]
        difference = (loss(moved[0])[0] - loss(moved[1])[0]) / 2e-5
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient[name], direction)))
        np.testing.assert_allclose(slope, difference, rtol=1e-5, err_msg=name)


START = np.random.default_rng(0).standard_normal((4, 2))


@pytest.mark.parametrize("kind", first(SOLVERS, keep=["sde-dpm 2m"]))
def test_vmapping_over_seeds_grids_and_beta_max_equals_a_loop(kind: str) -> None:
    def draw(seed: Any, t_min: Any, beta_max: Any) -> Any:
        sde = VP(beta_max=beta_max)
        grid = 1 + jnp.linspace(0, 1, 6) * (t_min - 1)
        return sample(sample_keys(seed, 3), Gaussian(sde, jnp.ones(2), 0.3 * jnp.eye(2)), SOLVERS[kind], grid)

    several = (jnp.asarray([0, 7, 3]), jnp.asarray([0.05, 0.1, 0.2]), jnp.asarray([15.0, 20.0, 25.0]))
    one = jax.jit(draw)
    loop = np.stack([one(*arguments) for arguments in zip(*several, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(draw))(*several), loop, rtol=2e-4, atol=2e-5)
    assert not np.allclose(loop[0], loop[1], atol=0.1)


@in_float64
def test_solvers_in_log_snr_do_not_know_the_process() -> None:
    """A denoiser stated on VP and on EDM, on grids of one log-SNR: x/α is one and the same at every step."""
    grids = {sde: times.log_snr(sde, 5, t_min=float(sde.inverse_log_snr(4.0)), t_max=float(sde.inverse_log_snr(-4.0)))
             for sde in (VP(), EDM())}  # fmt: skip

    @jax.jit
    def draw() -> list[Any]:
        several = (solvers.edm(4.0), solvers.unipc(3), solvers.deis(3), solvers.sde_dpm_solver(3))
        return [[scaled(sde, grid, solver) for sde, grid in grids.items()] for solver in several]

    def scaled(sde: Any, grid: Any, solver: Any) -> Any:
        data = Gaussian(sde, jnp.ones(2), 0.3 * jnp.eye(2))
        start = sde.alpha(grid[0]) * START * np.exp(2.0)
        return sample(sample_keys(0, 4), data, solver, grid, start) / sde.alpha(grid[-1])

    for on_vp, on_edm in draw():
        np.testing.assert_allclose(on_vp, on_edm, rtol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        proof(solvers.sde_dpm_solver(2, 0.0)),
        proof(solvers.stochastic_runge_kutta(0.0)),
        solvers.edm(10.0, 0.05, 1.0),
        proof(solvers.unipc(2, "bh1", start=2)),
        solvers.ddim(0.5),
    ],
    ids=["sde-dpm without noise", "runge-kutta without noise", "churn in a window", "bh1", "ddim"],
)
def test_gradients_by_times_are_finite_where_a_square_root_or_a_length_is_nothing(solver: Any) -> None:
    """On a grid that repeats its first time, too."""
    data, keys = Gaussian(VP(), jnp.ones(2), 0.3 * jnp.eye(2)), sample_keys(0, 2)

    @jax.jit
    @jax.value_and_grad
    def loss(grid: Any) -> Any:
        return jnp.sum(jnp.square(sample(keys, data, solver, grid)))

    value, slope = loss(jnp.asarray([1.0, 0.8, 0.5, 0.2]))
    assert np.isfinite(value) and np.all(np.isfinite(slope))
    assert np.isfinite(loss(jnp.asarray([1.0, 0.8, 0.8, 0.2]))[0])


def test_trees_of_two_types_have_two_structures_whatever_their_fields_hold():
    """Else a program that was compiled for one may be run for the other."""
    trees = [
        *(make() for make in (VP, SubVP, VE, Cosine)),
        DiscreteVP(linear_betas(4)),
        DiscreteVE(geometric_sigmas(0.01, 50.0, 4)),
        oracles.Gaussian(VP(), jnp.zeros(1), jnp.eye(1)),
        oracles.UniformBox(VP(), jnp.zeros(1), jnp.eye(1)),
        oracles.UniformBox(SubVP(), jnp.zeros(1), jnp.eye(1)),
    ]
    for a, b in itertools.combinations(trees, 2):
        assert jax.tree.structure(a) != jax.tree.structure(b), (a, b)
    assert jax.tree.structure(VP(0.2)) == jax.tree.structure(VP()) != jax.tree.structure(VP(t_min=0.1))
