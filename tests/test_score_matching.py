"""Score matching without a kernel: values in closed form, and densities whose score each objective recovers.

Where a model is linear in its parameters the objectives are quadratic in them, so their minimiser is one linear solve:
recovery is exact on the data, or the quadrature, on which they are taken.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from closed_forms import gaussian_data, in_float64
from tiers import proof

from diffuse_jax.oracles import Mixture, UniformBox
from diffuse_jax.score_matching import (
    denoising_score_matching_of,
    implicit_score_matching,
    score_of_energy,
    sliced_score_matching,
)
from diffuse_jax.sde import EDM

D = 4
ROWS = np.random.default_rng(0).multivariate_normal(*gaussian_data(D), 40)
#: Four directions of signs with Σ v·vᵀ = 4·I: an exact mean over directions.
SIGNS = scipy.linalg.hadamard(D).astype(np.float64)


def minimiser(loss: Any, size: int) -> np.ndarray:
    """The parameters (size,) at which a quadratic loss is least."""
    gradient, hessian = jax.jit(lambda p: (jax.grad(loss)(p), jax.hessian(loss)(p)))(jnp.zeros(size))
    return np.linalg.solve(hessian, -gradient)


def every_pair(x: np.ndarray, v: np.ndarray) -> tuple[Any, Any]:
    """Each row of x with each row of v."""
    return jnp.repeat(jnp.asarray(x), len(v), 0), jnp.tile(jnp.asarray(v), (len(x), 1))


# --- values -----------------------------------------------------------------------------------------------------------


@in_float64
def test_the_objectives_of_a_round_gaussian_are_their_closed_form() -> None:
    """s = −x/θ: −d/θ + ‖x‖²/(2θ²) for each sample, and with x² = σ² the published −d/θ + dσ²/(2θ²)."""
    theta, variance = 0.7, 0.4
    x = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], (5, 2, 3)) * np.sqrt(variance))
    v = jnp.asarray(np.random.default_rng(2).standard_normal((5, 2, 3)))
    value = -6 / theta + 6 * variance / (2 * theta**2)
    for found in (
        implicit_score_matching(lambda x: -x / theta, x),
        sliced_score_matching(lambda x: -x / theta, x, jnp.sign(v)),
    ):
        np.testing.assert_allclose(found, np.full(5, value), rtol=1e-12)
    # With normal directions the terms are −‖v‖²/θ and ½(v·x)²/θ² or ½‖x‖²/θ².
    curvature, projection = -np.sum(v**2, (1, 2)) / theta, np.sum(v * x, (1, 2)) / theta
    plain = sliced_score_matching(lambda x: -x / theta, x, v, variance_reduced=False)
    np.testing.assert_allclose(plain, curvature + 0.5 * projection**2, rtol=1e-12)
    reduced = sliced_score_matching(lambda x: -x / theta, x, v)
    np.testing.assert_allclose(reduced, curvature + 3 * variance / theta**2, rtol=1e-12)


def swirl(x: Any) -> Any:
    """A score, row by row, whose Jacobian is neither diagonal nor symmetric."""
    return jnp.sin(x @ jnp.asarray(SIGNS[:, ::-1].copy(), x.dtype)) - x**3


@pytest.mark.parametrize("variance_reduced", [True, False])
@in_float64
def test_sliced_over_all_directions_is_implicit(variance_reduced: bool) -> None:
    x, v = every_pair(ROWS, SIGNS)
    sliced = sliced_score_matching(swirl, x, v, variance_reduced=variance_reduced).reshape(-1, D).mean(1)
    np.testing.assert_allclose(sliced, implicit_score_matching(swirl, jnp.asarray(ROWS)), rtol=1e-10)


@in_float64
def test_denoising_takes_one_sigma_or_one_a_sample() -> None:
    eps, sigma = np.random.default_rng(3).standard_normal(ROWS.shape), np.linspace(0.1, 2.0, len(ROWS))
    found = denoising_score_matching_of(swirl, jnp.asarray(ROWS), jnp.asarray(eps), jnp.asarray(sigma))
    by_hand = np.asarray(swirl(jnp.asarray(ROWS + sigma[:, None] * eps))) + eps / sigma[:, None]
    np.testing.assert_allclose(found, 0.5 * np.sum(by_hand**2, 1), rtol=1e-12)
    one = denoising_score_matching_of(swirl, jnp.asarray(ROWS[7:8]), jnp.asarray(eps[7:8]), float(sigma[7]))
    np.testing.assert_allclose(one, found[7:8], rtol=1e-12)


# --- recovery ---------------------------------------------------------------------------------------------------------


def affine(p: Any) -> Any:
    """The score c − A·x of parameters (A, c) in a row."""
    matrix, offset = p[: D * D].reshape(D, D), p[D * D :]
    return lambda x: offset - x @ matrix.T


@pytest.mark.parametrize("kind", ["implicit", "sliced", "sliced plain", "denoising"])
@in_float64
def test_an_affine_score_becomes_the_precision_of_the_data(kind: str) -> None:
    """The inverse of the rows' own covariance, plus σ²·I for the denoising objective, on ±√d·e_i as noise."""
    rows, sigma = jnp.asarray(ROWS), 0.6
    cov, mean = np.cov(ROWS.T, bias=True), ROWS.mean(0)
    x, v = every_pair(ROWS, SIGNS)
    noisy, eps = every_pair(ROWS, np.concatenate([np.eye(D), -np.eye(D)]) * np.sqrt(D))

    def loss(p: Any) -> Any:
        score = affine(p)
        if kind == "implicit":
            return jnp.mean(implicit_score_matching(score, rows))
        if kind == "denoising":
            return jnp.mean(denoising_score_matching_of(score, noisy, eps, sigma))
        return jnp.mean(sliced_score_matching(score, x, v, variance_reduced=kind == "sliced"))

    precision = np.linalg.inv(cov + (sigma**2 * np.eye(D) if kind == "denoising" else 0))
    found = minimiser(loss, D * D + D)
    np.testing.assert_allclose(found[: D * D].reshape(D, D), precision, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found[D * D :], precision @ mean, rtol=1e-8, atol=1e-8)


#: Densities in one dimension, with noise of deviation ½.
SIGMA = 0.5
BOX = UniformBox(EDM(), np.array([-1.0]), np.array([2.0]))
TWO = Mixture(EDM(), np.array([0.3, 0.7]), np.array([[-1.5], [0.8]]), np.array([0.4, 0.2]))


@pytest.mark.parametrize("oracle", [proof(BOX), TWO], ids=["box", "mixture"])
@pytest.mark.parametrize("kind", ["implicit", "sliced", "denoising"])
@in_float64
def test_a_score_that_is_not_linear_is_picked_out_of_a_basis(oracle: Any, kind: str) -> None:
    """Among Σ p_i·b_i(x) with b_0 the density's own score the minimiser is b_0, and the least value −½·E‖∇ log p‖² for
    the objectives without noise."""

    def own(x: Any) -> Any:
        return -oracle(x, SIGMA).eps / SIGMA

    def score(p: Any) -> Any:
        basis = (own, lambda x: x, lambda x: x**3, jnp.sin, lambda x: jnp.ones_like(x))
        return lambda x: sum(p[i] * basis[i](x) for i in range(5))

    if kind == "denoising":
        x, weights = clean(oracle)
        nodes, eps_weights = np.polynomial.hermite_e.hermegauss(100)
        x, eps = every_pair(x[:, None], nodes[:, None])
        weights = np.outer(weights, eps_weights / eps_weights.sum()).ravel()
        losses = lambda p: denoising_score_matching_of(score(p), x, eps, SIGMA)  # noqa: E731
    else:
        x = jnp.linspace(-6, 6, 1201)[:, None]
        weights = np.exp(jax.jit(oracle.log_prob)(x, SIGMA)) * 0.01
        losses = lambda p: (  # noqa: E731
            implicit_score_matching(score(p), x)
            if kind == "implicit"
            else sliced_score_matching(score(p), x, jnp.ones_like(x))
        )

    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-8)
    found = minimiser(lambda p: jnp.sum(weights * losses(p)), 5)
    np.testing.assert_allclose(found, [1, 0, 0, 0, 0], atol=1e-5)
    if kind != "denoising":
        least = jax.jit(lambda: (jnp.sum(weights * losses(found)), -0.5 * jnp.sum(weights * own(x)[:, 0] ** 2)))()
        np.testing.assert_allclose(*least, rtol=1e-6)


def clean(oracle: Any) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature nodes and weights of the data without noise."""
    if oracle is BOX:
        nodes, weights = np.polynomial.legendre.leggauss(60)
        return 0.5 + 1.5 * nodes, weights / 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x = TWO.means + TWO.stds[:, None] * nodes
    return x.ravel(), np.outer(TWO.weights, weights / weights.sum()).ravel()


# --- energies ---------------------------------------------------------------------------------------------------------


@in_float64
def test_the_score_of_an_energy_is_minus_its_gradient_for_any_shape() -> None:
    x = jnp.asarray(np.random.default_rng(4).standard_normal((3, 2, 2)))
    score = score_of_energy(lambda x: jnp.sum(jnp.cosh(x) * jnp.arange(1.0, 3.0), axis=(1, 2)))
    np.testing.assert_allclose(score(x), -np.sinh(x) * [1.0, 2.0], rtol=1e-12)


def test_an_energy_network_learns_under_jit_and_its_gradients_are_finite_differences() -> None:
    """Both objectives differentiate the network twice, and the parameters' gradient a third time."""
    rng = np.random.default_rng(5)
    rows = jnp.asarray(rng.normal(1.0, 0.5, (256, 1)), jnp.float32)
    signs = jnp.ones_like(rows)
    params = [jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for shape in ((1, 16), (16,), (16,))]

    def energy(params: Any, x: Any) -> Any:
        weights, bias, out = params
        # Grows as x² whatever the parameters, so that the density exists.
        return 0.1 * jnp.sum(x**2, -1) + jax.nn.softplus(x @ weights + bias) @ out

    def loss(params: Any) -> Any:
        return jnp.mean(sliced_score_matching(score_of_energy(lambda x: energy(params, x)), rows, signs))

    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    first, gradient = value_and_gradient(params)
    implicit = jnp.mean(implicit_score_matching(score_of_energy(lambda x: energy(params, x)), rows))
    np.testing.assert_allclose(first, implicit, rtol=1e-4)
    step = [1e-2 * jnp.asarray(rng.choice([-1.0, 1.0], p.shape), jnp.float32) for p in params]
    ahead, behind = (
        value_and_gradient([p + sign * s for p, s in zip(params, step, strict=True)])[0] for sign in (1, -1)
    )
    along = sum(jnp.sum(g * s) for g, s in zip(gradient, step, strict=True))
    np.testing.assert_allclose((ahead - behind) / 2, along, rtol=2e-2)
    for _ in range(300):
        value, gradient = value_and_gradient(params)
        params = [p - 0.05 * g for p, g in zip(params, gradient, strict=True)]
    # The least value on N(1, ¼) is −½·E‖∇ log p‖² = −2.
    assert value < -1.6 and first > -1
