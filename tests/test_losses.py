"""Denoising score matching on Gaussian data, where its mean and minimum are closed forms; and the laws of the times."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from closed_forms import ALL_SDES, PROCESSES, SDES, gaussian_data, in_float64
from test_denoiser import PARAMETERIZATIONS, small_net
from tiers import first

from diffuse_jax import losses, parameterizations
from diffuse_jax.denoiser import NetworkDenoiser
from diffuse_jax.oracles import Gaussian
from diffuse_jax.sde import SDE

every_sde = pytest.mark.parametrize("name", SDES)
WEIGHTS = {"sigma_squared": losses.sigma_squared, "g_squared": losses.g_squared}
MEAN, COV = gaussian_data(3)


def oracle_network(params: Any, x: Any, label: Any) -> Any:
    """(1 + excess)·eps of the oracle: the true noise at excess = 0."""
    oracle, excess = params
    return (1 + excess) * oracle(x, label).eps


def expected_eps_error(name: str, t: Any) -> Any:
    """E‖eps − E[eps | x]‖² = d − σ²·tr C⁻¹: eps given x has covariance I − σ²·C⁻¹, C = α²·S + σ²·I."""
    values = np.linalg.eigvalsh(COV)[:, None]
    alpha, sigma = PROCESSES[name].alpha(t), PROCESSES[name].sigma(t)
    return 3 - (sigma**2 / (alpha**2 * values + sigma**2)).sum(0)


@every_sde
@in_float64
def test_the_loss_of_the_true_score_is_its_closed_form_and_its_minimum(name: str) -> None:
    """(1 + δ)·E[eps | x] costs δ²·σ²·tr C⁻¹ more: within five standard errors, at δ = 0 and δ = ½, for both weights."""
    n, process = 20000, PROCESSES[name]
    rng = np.random.default_rng(0)
    x0 = rng.multivariate_normal(MEAN, COV, n)
    eps, t = rng.standard_normal((n, 3)), np.full(n, 0.2)
    oracle = Gaussian(SDES[name], jnp.asarray(MEAN), jnp.asarray(COV))

    @jax.jit
    def values(excess: Any) -> dict[str, Any]:
        denoise = NetworkDenoiser(SDES[name], (oracle, excess), oracle_network)
        return {w: losses.denoising_score_matching(denoise, x0, eps, t, weight=WEIGHTS[w]) for w in WEIGHTS}

    base = float(expected_eps_error(name, np.array([0.2]))[0])
    weights = {"sigma_squared": 1.0, "g_squared": process.g2(0.2) / process.sigma(0.2) ** 2}
    for excess in (0.0, 0.5):
        found = values(excess)
        for kind, weight in weights.items():
            error = np.mean(found[kind]) / weight - (base + excess**2 * (3 - base))
            assert abs(error) < 5 * np.std(found[kind]) / weight / np.sqrt(n), (kind, excess)
    slopes = jax.jvp(lambda e: values(e)["sigma_squared"], (0.0,), (1.0,))[1]
    assert abs(np.mean(slopes)) < 5 * np.std(slopes) / np.sqrt(n)


def test_the_weights_are_sigma_squared_and_g_squared_times_the_squared_score_error() -> None:
    sde, t = SDES["subvp"], jnp.asarray([0.1, 0.9])
    denoise = NetworkDenoiser(sde, None, lambda params, x, label: jnp.zeros_like(x))
    x0, eps = jnp.zeros((2, 2, 2)), jnp.ones((2, 2, 2))
    score_error = 4 / PROCESSES["subvp"].sigma(np.asarray(t)) ** 2
    for weight, factor in (
        (losses.sigma_squared, PROCESSES["subvp"].sigma(t) ** 2),
        (losses.g_squared, PROCESSES["subvp"].g2(t)),
    ):
        found = losses.denoising_score_matching(denoise, x0, eps, t, weight=weight)
        np.testing.assert_allclose(found, factor * score_error, rtol=1e-5)


@pytest.mark.parametrize("name", first(SDES, keep=["vp"]))
def test_gradients_are_finite_in_float32_at_the_smallest_time(name: str) -> None:
    sde, params = SDES[name], jnp.eye(3)
    x0, eps = jnp.ones((2, 3)), jnp.full((2, 3), 0.5)

    @jax.jit
    def gradients(params: Any, sde: SDE) -> Any:
        def total(params: Any, sde: SDE, kind: Any, weight: Any) -> Any:
            denoise = NetworkDenoiser(sde, params, small_net, kind)
            return jnp.sum(losses.denoising_score_matching(denoise, x0, eps, jnp.asarray([1e-5, 1.0]), weight=weight))

        return {
            (p, w): jax.grad(total, (0, 1))(params, sde, kind, weight)
            for p, kind in PARAMETERIZATIONS.items()
            for w, weight in WEIGHTS.items()
        }

    for leaf in jax.tree.leaves(gradients(params, sde)):
        assert np.all(np.isfinite(leaf))


# --- times ------------------------------------------------------------------------------------------------------------


def test_stratify_puts_one_time_in_each_cell_in_one_shard_or_several() -> None:
    u, index = jax.random.uniform(jax.random.key(0), (64,)), jnp.arange(64)
    moved = losses.stratify(u, index, 64)
    np.testing.assert_array_equal(np.floor(np.asarray(moved) * 64), np.arange(64))
    np.testing.assert_allclose(np.asarray(moved) * 64 % 1, u, atol=1e-5)
    shards = [losses.stratify(u[i : i + 16], index[i : i + 16], 64) for i in range(0, 64, 16)]
    np.testing.assert_array_equal(np.concatenate(shards), moved)


@every_sde
@in_float64
def test_importance_times_have_density_g_squared_over_sigma_squared(name: str) -> None:
    """F(t(u)) = u for the distribution function F of g²/σ² on [t_min, T], and the density is F′·(T − t_min)."""
    process, u = PROCESSES[name], np.linspace(0, 1, 101)
    t, density = losses.importance_times(jnp.asarray(u), SDES[name], t_min=1e-3)
    t = np.asarray(t)
    rate = lambda t: process.g2(t) / process.sigma(t) ** 2  # noqa: E731
    total = scipy.integrate.quad(rate, 1e-3, 1, limit=200)[0]
    for i in (10, 50, 90):
        np.testing.assert_allclose(scipy.integrate.quad(rate, 1e-3, t[i], limit=200)[0] / total, u[i], rtol=1e-6)
    np.testing.assert_allclose(t[[0, -1]], [1e-3, 1], rtol=1e-9)
    np.testing.assert_allclose(density, rate(t) * (1 - 1e-3) / total, rtol=1e-6)


@pytest.mark.parametrize("draw_times", [losses.uniform_times, losses.importance_times])
def test_times_end_where_the_grids_of_the_process_start(draw_times: Any) -> None:
    """Before T where α(T) = 0: log-SNR, and the density of the importance-sampled times, are finite."""
    for name in ("flow", "cosine", "edm"):
        t, density = draw_times(jnp.asarray([0.0, 0.5, 1.0]), ALL_SDES[name], t_min=1e-3)
        np.testing.assert_allclose(t[jnp.asarray([0, 2])], [1e-3, ALL_SDES[name].t_start], rtol=1e-5)
        assert np.all(np.isfinite(density)) and np.all(np.asarray(density) > 0)


@every_sde
@in_float64
def test_uniform_stratified_and_importance_times_estimate_one_integral(name: str) -> None:
    """The integral of the true score's g²-weighted loss over [t_min, T], against SciPy's."""
    sde, process, n = SDES[name], PROCESSES[name], 4096

    def integrand(t: Any) -> Any:
        return process.g2(t) / process.sigma(t) ** 2 * expected_eps_error(name, t)

    exact = scipy.integrate.quad(lambda t: float(integrand(np.array([t]))[0]), 1e-3, 1, limit=200, points=[0.01, 0.1])[
        0
    ]
    u = jax.random.uniform(jax.random.key(1), (n,))
    for times in (losses.uniform_times, losses.importance_times):
        for stratified in (False, True):
            t, density = times(losses.stratify(u, jnp.arange(n), n) if stratified else u, sde, t_min=1e-3)
            values = integrand(np.asarray(t)) / density
            estimate, deviation = np.mean(values) * (1 - 1e-3), np.std(values)
            # One sample in each of n cells is far better than n samples.
            assert abs(estimate - exact) < (0.002 * deviation if stratified else 5 * deviation / np.sqrt(n)), (
                times,
                stratified,
            )


@every_sde
def test_importance_times_have_no_variance_on_their_own_weight(name: str) -> None:
    u = jax.random.uniform(jax.random.key(0), (256,))
    t, density = losses.importance_times(u, SDES[name], t_min=1e-5)
    process, t = PROCESSES[name], np.asarray(t, np.float64)
    values = process.g2(t) / process.sigma(t) ** 2 / np.asarray(density)
    exact = (process.log_snr(1e-5) - process.log_snr(1.0)) / (1 - 1e-5)
    np.testing.assert_allclose(values, exact, rtol=1e-4)
    assert t.min() >= np.float32(1e-5) and t.max() <= 1


# --- EDM's objective --------------------------------------------------------------------------------------------------


def tanh_network(params: Any, x: Any, label: Any) -> Any:
    """A fixed F(x, label) for arrays of JAX and NumPy alike."""
    module = jnp if isinstance(x, jax.Array) else np
    return 0.7 * module.tanh(1.3 * x + label[:, None]) - 0.2


@in_float64
def test_the_loss_under_edms_weight_and_preconditioning_is_edms() -> None:
    """λ(σ)·‖D(y + n; σ) − y‖², written from table 1 of 2206.00364; and it is ‖F − F's target‖²."""
    rng, sigma_data = np.random.default_rng(0), 0.6
    y, eps, sigma = rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), np.geomspace(0.002, 80, 5)
    n, s2 = eps * sigma[:, None], (sigma**2)[:, None]
    total = s2 + sigma_data**2
    network = tanh_network(None, (y + n) / np.sqrt(total), np.log(sigma) / 4)
    denoised = sigma_data**2 / total * (y + n) + sigma[:, None] * sigma_data / np.sqrt(total) * network
    each = (total / (s2 * sigma_data**2)) * (denoised - y) ** 2

    kind = parameterizations.edm(sigma_data)
    denoise = NetworkDenoiser(ALL_SDES["edm"], None, tanh_network, kind)
    found = losses.denoising_score_matching(denoise, y, eps, sigma, weight=losses.edm_weight(sigma_data))
    np.testing.assert_allclose(found, each.sum(1), rtol=1e-9)
    target = kind.target(ALL_SDES["edm"], y, eps, sigma[:, None])
    np.testing.assert_allclose(found, np.sum((network - target) ** 2, axis=1), rtol=1e-9)


@every_sde
@in_float64
def test_edms_weight_is_on_the_error_of_x0_at_the_same_noise_on_any_process(name: str) -> None:
    process, t, sigma_data = PROCESSES[name], np.array([0.01, 0.3, 0.9]), 0.5
    rng = np.random.default_rng(1)
    x0, eps = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    denoise = NetworkDenoiser(SDES[name], None, tanh_network)
    found = losses.denoising_score_matching(denoise, x0, eps, t, weight=losses.edm_weight(sigma_data))
    x = process.alpha(t)[:, None] * x0 + process.sigma(t)[:, None] * eps
    error = np.sum((np.asarray(denoise(jnp.asarray(x), t).x0) - x0) ** 2, axis=1)
    s = process.sigma(t) / process.alpha(t)
    np.testing.assert_allclose(found, (s**2 + sigma_data**2) / (s * sigma_data) ** 2 * error, rtol=1e-6)


@pytest.mark.parametrize("name", ["edm", "vp", "flow"])
@in_float64
def test_log_normal_times_have_a_truncated_normal_log_of_sigma_over_alpha(name: str) -> None:
    """SciPy's quantiles of the truncated law; the ends are those of [t_min, t_max], and nothing is left to divide."""
    sde, t_min, mean, std = ALL_SDES[name], 2e-3, -1.1, 1.3
    low, high = -0.5 * np.asarray(sde.log_snr(jnp.asarray([t_min, sde.t_start])))
    law = scipy.stats.truncnorm((low - mean) / std, (high - mean) / std, loc=mean, scale=std)
    u = np.linspace(0, 1, 41)
    t, density = losses.log_normal_times(mean, std)(jnp.asarray(u), sde, t_min)
    np.testing.assert_allclose(-0.5 * sde.log_snr(t[1:-1]), law.ppf(u[1:-1]), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(t[np.array([0, -1])], [t_min, sde.t_start], rtol=1e-6)
    np.testing.assert_array_equal(density, np.ones(41))


def test_log_normal_times_in_float32_are_within_the_grid_also_where_the_law_lies_outside_it() -> None:
    sde, u = ALL_SDES["edm"], jnp.asarray([0.0, 1e-7, 0.5, 1 - 6e-8, 1.0])
    for mean in (-1.2, -30.0, 30.0):
        t, _ = losses.log_normal_times(mean, 1.2)(u, sde, 0.002)
        assert np.all((t >= np.float32(0.002)) & (t <= 80)) and np.all(np.diff(t) >= 0), mean
    exact = np.exp(-1.2 + 1.2 * scipy.stats.norm.ppf([0.01, 0.3, 0.5, 0.9, 0.999]))
    t, _ = losses.log_normal_times()(jnp.asarray([0.01, 0.3, 0.5, 0.9, 0.999]), sde, 0.002)
    np.testing.assert_allclose(t, exact, rtol=1e-3)


def test_edms_objective_refuses_deviations_that_are_not_positive() -> None:
    with pytest.raises(ValueError, match="sigma_data=0"):
        losses.edm_weight(0)
    with pytest.raises(ValueError, match=r"p_std=-1\.0"):
        losses.log_normal_times(-1.2, -1.0)
