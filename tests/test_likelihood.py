"""Likelihoods by the flow against closed forms, the trace estimators, and bits a dimension of laws that are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from closed_forms import (
    ALL_PROCESSES,
    ALL_SDES,
    MIXTURE,
    PROCESSES,
    SDES,
    gaussian_data,
    gaussian_flow_log_prob,
    in_float64,
    marginal,
)
from tiers import first

from diffuse_jax.denoiser import Conditioned, from_score, on_process
from diffuse_jax.likelihood import (
    bits_per_dim,
    dequantize,
    exact_trace,
    gaussian_trace,
    hutchinson_trace,
    log_prob,
    nats_to_bits_per_dim,
)
from diffuse_jax.oracles import Gaussian, Mixture
from diffuse_jax.sampling import keyed_noise, sample_keys
from diffuse_jax.sde import VP
from diffuse_jax.variational_bound import elbo

MEAN, COV = gaussian_data(8)
X = np.random.default_rng(0).multivariate_normal(MEAN, COV, 4)


def gaussian(name: str, cov: np.ndarray = COV) -> Gaussian:
    return Gaussian(ALL_SDES[name], jnp.asarray(MEAN), jnp.asarray(cov))


def flow_log_prob(name: str, x: np.ndarray, t: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """The closed form, with the start of the process's grids for the time 1 at which the flow ends."""
    sde, process = ALL_SDES[name], ALL_PROCESSES[name]
    process = process._replace(
        alpha=lambda time: ALL_PROCESSES[name].alpha(sde.t_start if time == 1 else time),
        sigma=lambda time: ALL_PROCESSES[name].sigma(sde.t_start if time == 1 else time),
    )
    return gaussian_flow_log_prob(process, MEAN, COV, x, t, PRIOR_STD.get(name, 1.0))


#: The rest have a prior of unit variance.
PRIOR_STD = {"ve": 50.0, "smld": 50.0, "edm": 80.0}


@pytest.mark.parametrize("name", first(ALL_SDES, keep=["vp"]))
def test_a_full_gaussian_has_its_density_to_a_thousandth_of_a_nat_in_float32(name: str) -> None:
    """In 8 dimensions: the density of x(t_min) under the process's own prior, whatever a sample's batch-mates."""
    # EDM's time is σ itself: its first steps are long ones.
    tolerance = 1e-6 if name == "edm" else 1e-5
    run = jax.jit(lambda x: log_prob(gaussian(name), x, t_min=1e-5, rtol=tolerance, atol=tolerance))
    x = jnp.asarray(X, jnp.float32)
    found = run(x)
    expected, latent = flow_log_prob(name, X)
    np.testing.assert_allclose(found.log_prob, expected, atol=1e-3)
    np.testing.assert_allclose(found.latent, latent, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.error, np.zeros(4))
    other = run(x.at[1:].multiply(5.0))
    np.testing.assert_array_equal(other.log_prob[0], found.log_prob[0])
    assert other.evaluations[0] == found.evaluations[0] and found.evaluations.shape == (4,)


@pytest.mark.parametrize("name", first(ALL_SDES, keep=["ve"]))
@in_float64
def test_a_mixture_has_its_density_but_for_the_priors_mismatch(name: str) -> None:
    """The gap is log p_T(x(T)) − log prior(x(T)), known at the flow's end; it is below 0.03 nats at these x. The
    drift of DDPM's table jumps a thousand times, of which an adaptive solver makes a few thousandths of a nat."""
    sde = ALL_SDES[name]
    oracle = Mixture(sde, *map(jnp.asarray, MIXTURE))
    x = jnp.asarray([[-1.0, 0.5], [0.6, 0.1], [0.0, 0.0]])
    found = jax.jit(lambda x: log_prob(oracle, x, t_min=1e-3, rtol=1e-6, atol=1e-6))(x)
    mismatch = oracle.log_prob(found.latent, sde.t_start) - sde.prior_log_prob(found.latent)
    np.testing.assert_allclose(
        found.log_prob + mismatch, oracle.log_prob(x, 1e-3), atol=5e-3 if name == "ddpm" else 1e-4
    )
    assert np.all(np.abs(mismatch) < 0.03)


# --- traces -----------------------------------------------------------------------------------------------------------

MATRIX = np.random.default_rng(1).standard_normal((6, 6))


def cubic(x: Any) -> Any:
    """A field on (2, 3) with divergence tr M + 3·Σx²."""
    return (jnp.asarray(MATRIX, x.dtype) @ x.ravel()).reshape(x.shape) + x**3


@in_float64
def test_the_exact_trace_is_the_divergence() -> None:
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3)))
    value, divergence = exact_trace(cubic, x, jnp.zeros_like(x))
    np.testing.assert_allclose(value, cubic(x))
    np.testing.assert_allclose(divergence, np.trace(MATRIX) + 3 * np.sum(np.asarray(x) ** 2), rtol=1e-12)


SYMMETRIC = (MATRIX + MATRIX.T) / 2
#: 2·Σ_{i≠j} S_ij² with random signs, 2·Σ_ij S_ij² with normal probes.
VARIANCE = {
    hutchinson_trace: 2 * np.sum((SYMMETRIC - np.diag(np.diag(SYMMETRIC))) ** 2),
    gaussian_trace: 2 * np.sum((SYMMETRIC + 3 * np.eye(6)) ** 2),
}
both_traces = pytest.mark.parametrize("trace", first(VARIANCE, keep=[hutchinson_trace]))


@both_traces
@in_float64
def test_an_estimated_trace_is_unbiased_with_its_variance(trace: Any) -> None:
    """At x² = 1, where the cubic adds 3 to the diagonal of the Jacobian."""
    x, n = jnp.asarray([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]]), 8000
    value, estimates = trace(cubic, x, jnp.asarray(np.random.default_rng(3).standard_normal((n, 2, 3))))
    estimates = np.asarray(estimates)
    np.testing.assert_allclose(value, cubic(x))
    assert estimates.shape == (n,)
    assert abs(estimates.mean() - np.trace(MATRIX) - 18) < 4 * estimates.std() / np.sqrt(n)
    np.testing.assert_allclose(estimates.var(), VARIANCE[trace], rtol=0.1)


@in_float64
def test_random_signs_are_exact_for_a_diagonal_jacobian() -> None:
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3)))
    probes = jnp.asarray(np.random.default_rng(3).standard_normal((5, 2, 3)))
    estimates = hutchinson_trace(lambda x: x**3, x, probes)[1]
    np.testing.assert_allclose(estimates, np.full(5, 3 * np.sum(np.asarray(x) ** 2)), rtol=1e-12)


@both_traces
def test_the_field_is_evaluated_once_for_all_probes(trace: Any) -> None:
    matrix = jnp.ones((64, 64))

    def products(probes: int) -> int:
        run = jax.jit(lambda x, v: trace(lambda x: matrix @ x, x, v))
        cost = run.lower(jnp.ones((64, 16)), jnp.ones((probes, 64, 16))).compile().cost_analysis()
        return int(cost["flops"] / (2 * 64 * 64 * 16))

    assert [products(k) for k in (1, 2, 8)] == [2, 3, 9]


@both_traces
def test_each_probe_gives_a_log_prob_of_its_own_and_their_spread_the_error(trace: Any) -> None:
    """The flow of a Gaussian has a Jacobian that depends on t alone, with the integral G = ½·log(C_1·C_t⁻¹): so with
    probes held through the solve the estimates are log prior + vᵀ·G·v, and the error is their deviation over √k."""
    n, k = 256, 16
    keys, x = sample_keys(0, n), jnp.broadcast_to(jnp.asarray(X[:1], jnp.float32), (n, 8))
    found = jax.jit(lambda x, keys: log_prob(gaussian("vp"), x, trace=trace, t_min=1e-5, keys=keys, probes=k))(x, keys)

    (_, start), (_, end) = (marginal(PROCESSES["vp"], MEAN, COV, t) for t in (1e-5, 1.0))
    vectors = np.linalg.eigh(COV)[1]
    gains = [np.diag(vectors.T @ cov @ vectors) for cov in (start, end)]
    integral = vectors @ np.diag(0.5 * np.log(gains[1] / gains[0])) @ vectors.T
    v = np.stack([keyed_noise(keys, 0, x)(j) for j in range(k)]).astype(np.float64)
    v = np.sign(v) if trace is hutchinson_trace else v
    forms = np.einsum("kni,ij,knj->kn", v, integral, v)
    exact = flow_log_prob("vp", X[:1])[0][0]
    np.testing.assert_allclose(found.log_prob, exact - np.trace(integral) + forms.mean(0), atol=3e-3)
    np.testing.assert_allclose(found.error, forms.std(0, ddof=1) / np.sqrt(k), rtol=2e-3, atol=1e-3)

    # Unbiased, and the errors are those of the estimates: z has Student's distribution, of variance (k − 1)/(k − 3).
    z = (np.asarray(found.log_prob, np.float64) - exact) / np.asarray(found.error)
    assert abs(z.mean()) < 4 * z.std() / np.sqrt(n) + 0.1
    np.testing.assert_allclose(z.var(), (k - 1) / (k - 3), rtol=0.35)
    # They shrink as √k, from the deviation of a single probe.
    np.testing.assert_allclose(np.mean(np.square(found.error)), forms.var() / k, rtol=0.05)


def test_one_probe_is_held_through_the_solve_belongs_to_the_sample_and_tells_no_error() -> None:
    seen: list[Any] = []

    def spying(field: Any, x: Any, probes: Any) -> Any:
        jax.debug.callback(lambda v: seen.append(tuple(np.asarray(v).ravel())), probes)
        return hutchinson_trace(field, x, probes)

    run = jax.jit(lambda denoise, x, keys: log_prob(denoise, x, trace=spying, t_min=1e-5, keys=keys))
    x = jnp.asarray(X, jnp.float32)
    found = run(gaussian("vp"), x, sample_keys(0, 4))
    jax.effects_barrier()
    assert len(seen) > 100 and len(set(seen)) == 4
    assert np.all(np.isnan(found.error)) and np.all(np.isfinite(found.log_prob))
    shifted = run(gaussian("vp"), x[1:].repeat(2, axis=0)[:4], sample_keys(0, 3, first=1)[jnp.asarray([0, 0, 1, 1])])
    np.testing.assert_allclose(shifted.log_prob[::2], found.log_prob[1:3], rtol=1e-6)
    # One estimate is exact where the Jacobian is diagonal.
    diagonal = np.diag(np.linspace(0.1, 1.5, 8))
    once = run(gaussian("vp", diagonal), x, sample_keys(0, 4)).log_prob
    expected = gaussian_flow_log_prob(PROCESSES["vp"], MEAN, diagonal, X, 1e-5, 1.0)[0]
    np.testing.assert_allclose(once, expected, atol=2e-3)


def test_what_is_missing_is_asked_for() -> None:
    x, keys = jnp.asarray(X, jnp.float32), sample_keys(0, 4)
    for trace in VARIANCE:
        with pytest.raises(ValueError, match=f"{trace.__name__} draws probes for each sample: give keys"):
            log_prob(gaussian("vp"), x, trace=trace)
    with pytest.raises(ValueError, match="probes=0"):
        log_prob(gaussian("vp"), x, probes=0)
    with pytest.raises(ValueError, match="draws=0"):
        bits_per_dim(gaussian("vp"), x, keys, draws=0)
    with pytest.raises(ValueError, match=r"draws=2.*dequantization=None"):
        bits_per_dim(gaussian("vp"), x, keys, draws=2, dequantization=None)


# --- bits a dimension -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "levels", "offset"), [((-1.0, 1.0), 256, 7.0), ((0.0, 1.0), 256, 8.0), ((0.0, 17.0), 17, 0.0)]
)
def test_the_offset_of_bits_is_the_volume_of_a_cell(bounds: Any, levels: int, offset: float) -> None:
    assert nats_to_bits_per_dim(jnp.zeros(()), 3, levels=levels, range=bounds) == offset
    np.testing.assert_allclose(
        nats_to_bits_per_dim(jnp.asarray(-6 * np.log(2)), 3, levels=levels, range=bounds), offset + 2
    )
    np.testing.assert_allclose(nats_to_bits_per_dim(jnp.asarray(-6 * np.log(2)), 3, levels=None, range=bounds), 2)


@pytest.mark.parametrize(("bounds", "levels"), [((-1.0, 1.0), 256), ((0.0, 1.0), 17)])
def test_dequantization_spreads_each_level_over_its_cell(bounds: Any, levels: int) -> None:
    low, high = bounds
    k = np.arange(levels)
    x = jnp.asarray(low + (high - low) * k / (levels - 1), jnp.float32)
    u = jax.random.uniform(jax.random.key(0), x.shape)
    position = (np.asarray(dequantize(x, u, levels=levels, range=bounds), np.float64) - low) / (high - low) * levels
    np.testing.assert_allclose(position - k, u, atol=1e-4)
    edges = [np.asarray(dequantize(x, jnp.full(x.shape, v), levels=levels, range=bounds)) for v in (0.0, 1.0)]
    np.testing.assert_allclose(edges[0][1:], edges[1][:-1], atol=1e-6)
    np.testing.assert_allclose((edges[0][0], edges[1][-1]), bounds, atol=1e-6)


def test_bits_of_a_known_discrete_law_are_their_closed_form() -> None:
    """17 levels in [0, 1] under a Gaussian: −E log2 of its density over a level's cell, by SciPy, plus log2 17."""
    n, level, t_min = 1024, 11, 1e-3
    process = PROCESSES["vp"]
    model = Mixture(SDES["vp"], jnp.ones(1), jnp.full((1, 1), 0.4), jnp.full(1, 0.3))

    def model_log_prob(y: float) -> float:
        return float(
            gaussian_flow_log_prob(process, np.array([0.4]), np.array([[0.09]]), np.array([[y]]), t_min, 1.0)[0][0]
        )

    nats = scipy.integrate.quad(lambda u: model_log_prob((level + u) / 17), 0, 1)[0]
    x = jnp.full((n, 1), level / 16, jnp.float32)
    keys = sample_keys(0, n)

    @jax.jit
    def bits(x: Any) -> tuple[Any, Any]:
        given = {"levels": 17, "range": (0.0, 1.0), "t_min": t_min}
        return bits_per_dim(model, x, keys, **given), bits_per_dim(model, x[:1], keys[:1], dequantization=None, **given)

    found, already = map(np.asarray, bits(x))
    expected = -nats / np.log(2) + np.log2(17)
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(n) + 1e-3
    np.testing.assert_allclose(already, [-model_log_prob(level / 16) / np.log(2) + np.log2(17)], atol=2e-3)


def test_bounds_of_several_dequantizations_fall_to_the_code_length_of_the_cell() -> None:
    """Five levels in [0, 1] under a Gaussian narrower than a cell: the flow's law is a Gaussian, whose mass in the cell
    is the code length; −E log of the mean of K densities exceeds it by about Var/(2K·mean²)."""
    n, level, t_min, (m, v) = 256, 2, 1e-3, (0.4, 0.01)
    model = Mixture(SDES["vp"], jnp.ones(1), jnp.full((1, 1), m), jnp.full(1, v**0.5))
    (mean_t, cov_t), (mean_1, cov_1) = (
        marginal(PROCESSES["vp"], np.array([m]), np.array([[v]]), t) for t in (t_min, 1.0)
    )
    gain = float(np.sqrt(cov_1 / cov_t)[0, 0])
    law = scipy.stats.norm(mean_t[0] - mean_1[0] / gain, 1 / gain)
    mass = law.cdf((level + 1) / 5) - law.cdf(level / 5)
    second = scipy.integrate.quad(lambda y: law.pdf(y) ** 2 * 5, level / 5, (level + 1) / 5)[0]
    relative = second / (5 * mass) ** 2 - 1

    x, keys = jnp.full((n, 1), level / 4, jnp.float32), sample_keys(0, n)

    def bits(draws: int) -> np.ndarray:
        options: dict[str, Any] = {"levels": 5, "range": (0.0, 1.0), "t_min": t_min, "trace": exact_trace}
        return np.asarray(jax.jit(lambda x: bits_per_dim(model, x, keys, draws=draws, **options))(x), np.float64)

    excess = {k: (bits(k) + np.log2(mass)) * np.log(2) for k in (1, 4, 16)}
    for k, found in excess.items():
        assert found.mean() > 0, k
    once = -scipy.integrate.quad(lambda y: law.logpdf(y) * 5, level / 5, (level + 1) / 5)[0] + np.log(5 * mass)
    assert abs(excess[1].mean() - once) < 4 * excess[1].std() / np.sqrt(n) + 1e-3
    assert excess[1].mean() > 2 * excess[4].mean() > 4 * excess[16].mean()
    np.testing.assert_allclose(excess[16].mean(), relative / 32, atol=4 * excess[16].std() / np.sqrt(n) + 1e-3)


def test_a_condition_goes_to_each_samples_own_flow() -> None:
    """A model N(shift, 1) under VP stays N(α·shift, 1): so log p is that at t_min, up to the prior's mismatch."""
    denoise = from_score(SDES["vp"], lambda x, t, shift: SDES["vp"].alpha(t) * shift - x)
    shift = jnp.asarray([[0.5, -0.5], [2.0, 1.0]])
    x = jnp.asarray([[0.1, 0.2], [1.5, 1.5]])
    found = jax.jit(lambda x, shift: log_prob(denoise, x, cond=shift).log_prob)(x, shift)
    expected = -0.5 * np.sum(np.square(x - shift), -1) - np.log(2 * np.pi)
    np.testing.assert_allclose(found, expected, atol=0.05)
    # Also where it is bound inside the denoiser's own process; but arrays of several samples must be a condition.
    inside = on_process(Conditioned(denoise, shift), VP(beta_max=10.0))
    run = jax.jit(lambda denoise, x, cond: log_prob(denoise, x, cond=cond).log_prob)
    np.testing.assert_allclose(run(inside, x, None), run(on_process(denoise, inside.sde), x, shift), rtol=1e-6)
    hidden = from_score(SDES["vp"], lambda x, t: SDES["vp"].alpha(t) * shift - x)
    with pytest.raises(ValueError, match="must be given as cond"):
        log_prob(hidden, x)


def test_the_start_is_the_processs_own_unless_given() -> None:
    """Of data so narrow that the first noise widens them."""
    x = jnp.asarray(MEAN[None], jnp.float32)
    for name in ("edm", "ddpm"):
        data, t_min = gaussian(name, 1e-5 * np.eye(8)), ALL_SDES[name].t_min
        found = jax.jit(lambda data, x: log_prob(data, x, rtol=1e-6, atol=1e-6).log_prob)(data, x)
        np.testing.assert_allclose(found, data.log_prob(x, t_min), atol=0.3)
        assert data.log_prob(x, 1e-5) - data.log_prob(x, t_min) > 1


def test_a_sample_that_meets_the_bound_on_evaluations_is_marked() -> None:
    x = jnp.asarray(X[:2], jnp.float32)
    found = jax.jit(lambda x: log_prob(gaussian("vp"), x, max_evaluations=14))(x)
    assert np.all(found.exhausted) and np.all(np.isnan(found.log_prob)) and np.all(found.evaluations == 13)
    assert not np.any(jax.jit(lambda x: log_prob(gaussian("vp"), x).exhausted)(x))
    with pytest.raises(ValueError, match="max_evaluations=6 must be at least 7"):
        log_prob(gaussian("vp"), x, max_evaluations=6)


@pytest.mark.parametrize("dtype", first([jnp.bfloat16, jnp.float16, jnp.int32], keep=[jnp.bfloat16]))
def test_lesser_numbers_are_computed_with_in_float32(dtype: Any) -> None:
    x = jnp.asarray([[1, -1], [0, 2]], dtype)
    denoise = Mixture(SDES["vp"], jnp.ones(1), jnp.zeros((1, 2)), jnp.ones(1))
    run = jax.jit(lambda x: (log_prob(denoise, x).log_prob, elbo(denoise, x, sample_keys(0, 2)).total))
    found, expected = run(x), run(x.astype(jnp.float32))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


@in_float64
@pytest.mark.parametrize("name", first(["vp", "ve", "edm"], keep=["ve"]))
def test_float32_stays_float32_beside_float64(name: str) -> None:
    denoise = Mixture(
        ALL_SDES[name], *(jnp.asarray(a, jnp.float32) for a in (np.ones(1), np.zeros((1, 2)), np.ones(1)))
    )
    x = jnp.ones((2, 2), jnp.float32)
    found = jax.eval_shape(lambda x: (log_prob(denoise, x), elbo(denoise, x, sample_keys(0, 2))), x)
    likelihood, bound = found
    for leaf in (likelihood.log_prob, likelihood.error, likelihood.latent, *bound):
        assert leaf.dtype == jnp.float32


def test_the_exact_trace_makes_no_square_of_a_sample() -> None:
    x = jnp.linspace(-1.0, 1.0, 512)
    run = jax.jit(lambda x: exact_trace(lambda y: y**3 + jnp.roll(y, 1), x, None)[1])
    assert "512x512" not in run.lower(x).as_text()
    np.testing.assert_allclose(run(x), 3 * np.sum(np.square(x)), rtol=1e-5)
