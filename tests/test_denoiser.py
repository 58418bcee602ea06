"""Parameterizations, denoisers and the closed-form oracles against each other and against automatic differentiation."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from closed_forms import MIXTURE, PROCESSES, SDES, gaussian_data, in_float64

from diffuse_jax import parameterizations
from diffuse_jax.denoiser import Conditioned, Denoised, NetworkDenoiser, from_score, score_of, unbind
from diffuse_jax.oracles import Gaussian, Mixture, PointMass
from diffuse_jax.sde import SDE
from diffuse_jax.solvers import velocity

PARAMETERIZATIONS = {
    name: getattr(parameterizations, name) for name in ("noise", "x0", "v", "score", "score_sde_vp", "score_sde_ve")
}
every_sde = pytest.mark.parametrize("name", SDES)

MEAN, COV = gaussian_data(3)
X = np.random.default_rng(1).normal(0, 1.5, (5, 3))
TIMES = np.array([0.01, 0.1, 0.3, 0.7, 1.0])


def gaussian(sde: SDE) -> Gaussian:
    return Gaussian(sde, jnp.asarray(MEAN), jnp.asarray(COV))


def mixture(sde: SDE) -> Mixture:
    return Mixture(sde, *map(jnp.asarray, MIXTURE))


def small_net(params: Any, x: Any, label: Any, **present: Any) -> Any:
    return jnp.tanh(x @ params + jnp.log1p(label)[:, None])


def given_output(params: Any, x: Any, label: Any) -> Any:
    """A network whose parameters are its output."""
    return params


# --- parameterizations ------------------------------------------------------------------------------------------------


@every_sde
@in_float64
def test_x_is_alpha_x0_plus_sigma_eps_whatever_a_network_says(name: str) -> None:
    sde, params = SDES[name], np.random.default_rng(0).standard_normal((3, 3))

    @jax.jit
    def rebuilt(x: Any, t: Any) -> dict[str, Any]:
        outputs = {p: NetworkDenoiser(sde, params, small_net, kind)(x, t) for p, kind in PARAMETERIZATIONS.items()}
        return {p: sde.perturb(out.x0, t, out.eps) for p, out in outputs.items()}

    chex.assert_trees_all_close(rebuilt(X, TIMES), dict.fromkeys(PARAMETERIZATIONS, X), rtol=1e-9, atol=1e-9)


@every_sde
@in_float64
def test_a_network_that_gives_the_oracles_target_is_the_oracle(name: str) -> None:
    sde = SDES[name]
    x = jnp.asarray(X)

    @jax.jit
    def reproduced(x: Any, t: Any) -> tuple[Any, dict[str, Any]]:
        oracle = gaussian(sde)(x, t)
        found = {}
        for p, kind in PARAMETERIZATIONS.items():
            target = kind.target(sde, oracle.x0, oracle.eps, t[:, None])
            found[p] = NetworkDenoiser(sde, target, given_output, kind)(x, t)
        return oracle, found

    oracle, found = reproduced(x, TIMES)
    chex.assert_trees_all_close(found, dict.fromkeys(PARAMETERIZATIONS, oracle), rtol=1e-8, atol=1e-8)


@every_sde
@in_float64
def test_eps_error_is_eps_minus_the_denoisers_eps(name: str) -> None:
    sde, params = SDES[name], np.random.default_rng(0).standard_normal((3, 3))
    x0, eps = np.random.default_rng(2).standard_normal((2, 5, 3))

    @jax.jit
    def both(x0: Any, eps: Any, t: Any) -> Any:
        nets = {p: NetworkDenoiser(sde, params, small_net, kind) for p, kind in PARAMETERIZATIONS.items()}
        x = sde.perturb(x0, t, eps)
        return {p: net.eps_error(x0, eps, t) for p, net in nets.items()}, {
            p: eps - net(x, t).eps for p, net in nets.items()
        }

    chex.assert_trees_all_close(*both(x0, eps, TIMES), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_the_member_with_a_limit_is_finite_at_the_ends_of_time(name: str) -> None:
    sde, x, raw = SDES[name], jnp.full((2, 3), 0.5), jnp.full((2, 3), 0.25)
    for p, member in (("noise", "eps"), ("x0", "x0"), ("v", "x0"), ("v", "eps"), ("score", "eps"), ("score", "x0")):
        for t in (0.0, 1.0):
            value = getattr(NetworkDenoiser(sde, raw, given_output, PARAMETERIZATIONS[p])(x, t), member)
            assert np.all(np.isfinite(value)), (p, member, t)
    at_zero = {
        p: NetworkDenoiser(sde, raw, given_output, PARAMETERIZATIONS[p])(x, 0.0) for p in ("noise", "x0", "v", "score")
    }
    # Without noise x is x0; F is eps under noise and v, and x0 under x0.
    np.testing.assert_allclose(at_zero["noise"].x0, x)
    np.testing.assert_allclose(at_zero["score"].x0, x)
    np.testing.assert_allclose(at_zero["v"], Denoised(x, raw))
    np.testing.assert_allclose(at_zero["x0"].x0, raw)


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_score_sdes_vp_network_reads_999_t_and_its_score_is_minus_f_over_the_deviation(name: str) -> None:
    t = jnp.asarray([0.0, 1e-3, 0.5, 1.0])
    reads_label = NetworkDenoiser(
        SDES[name], None, lambda params, x, label: label[:, None] + x, parameterizations.score_sde_vp
    )
    x = jnp.ones((4, 1))
    np.testing.assert_allclose(reads_label.raw(x, t)[:, 0], 999 * t + 1, rtol=1e-6)
    expected = -(999 * t[1:] + 1) / PROCESSES[name].sigma(t[1:])
    np.testing.assert_allclose(score_of(reads_label, x[1:], t[1:])[:, 0], expected, rtol=1e-5)


def test_score_sdes_ve_network_reads_sigma_and_is_the_score() -> None:
    t = jnp.asarray([1e-5, 0.5, 1.0])
    reads_label = NetworkDenoiser(
        SDES["ve"], None, lambda params, x, label: label[:, None] + x, parameterizations.score_sde_ve
    )
    expected = PROCESSES["ve"].sigma(t) + 1
    np.testing.assert_allclose(reads_label.raw(jnp.ones((3, 1)), t)[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(score_of(reads_label, jnp.ones((3, 1)), t)[:, 0], expected, rtol=1e-5)


# --- denoisers --------------------------------------------------------------------------------------------------------


def test_a_network_is_passed_cond_and_rng_only_where_present() -> None:
    seen = []

    def net(params: Any, x: Any, label: Any, **present: Any) -> Any:
        seen.append(present)
        return x

    denoise, x, key = NetworkDenoiser(SDES["vp"], None, net), jnp.ones((2, 3)), jax.random.key(0)
    denoise(x, 0.5)
    denoise(x, 0.5, {"label": 1})
    denoise.eps_error(x, x, 0.5, rng=key)
    denoise.eps_error(x, x, 0.5, {"label": 2}, key)
    assert seen == [{}, {"cond": {"label": 1}}, {"rng": key}, {"cond": {"label": 2}, "rng": key}]


def test_a_rebuilt_denoiser_does_not_recompile() -> None:
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(denoise: NetworkDenoiser, x: Any) -> Any:
        return denoise(x, 0.5)

    for scale in (1.0, 2.0):
        sde = type(SDES["vp"])(beta_max=20.0 * scale)
        run(NetworkDenoiser(sde, scale * jnp.eye(3), small_net, parameterizations.v, shape=(3,)), jnp.ones((2, 3)))


def test_a_bound_condition_reaches_the_denoiser_and_can_be_unbound() -> None:
    denoise = from_score(SDES["vp"], lambda x, t, shift: shift - x)
    x, shift = jnp.ones((2, 3)), jnp.full((2, 3), 4.0)
    bound = Conditioned(denoise, shift)
    chex.assert_trees_all_close(bound(x, 0.5), denoise(x, 0.5, shift))
    assert bound.sde is denoise.sde and unbind(bound) == (denoise, shift) and unbind(denoise) == (denoise, None)


@every_sde
@in_float64
def test_a_hand_written_score_becomes_the_oracle(name: str) -> None:
    oracle = gaussian(SDES[name])
    by_hand = from_score(SDES[name], lambda x, t: -oracle(x, t).eps / SDES[name].sigma(t)[:, None], shape=(3,))
    chex.assert_trees_all_close(by_hand(jnp.asarray(X), TIMES), oracle(jnp.asarray(X), TIMES), rtol=1e-8, atol=1e-8)
    assert by_hand.shape == (3,)


class TestADenoiser(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_is_the_same_function_however_it_is_run(self) -> None:
        """On N(0, I) under VP the marginal is N(0, I): x0 = α·x, eps = σ·x."""
        oracle = Gaussian(SDES["vp"], jnp.zeros(2), jnp.eye(2))
        x, t = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), np.array([0.2, 0.6], np.float32)
        out = self.variant(lambda denoise, x, t: denoise(x, t))(oracle, x, t)
        process = PROCESSES["vp"]
        expected = Denoised(process.alpha(t)[:, None] * x, process.sigma(t)[:, None] * x)
        chex.assert_trees_all_close(out, jax.tree.map(np.float32, expected), rtol=1e-5)


# --- oracles ----------------------------------------------------------------------------------------------------------


@every_sde
@pytest.mark.parametrize("make", [gaussian, mixture], ids=["gaussian", "mixture"])
@in_float64
def test_an_oracles_score_is_the_gradient_of_its_log_density(name: str, make: Any) -> None:
    oracle = make(SDES[name])
    x = jnp.asarray(X[:, : oracle.shape[0]])

    @jax.jit
    def both(x: Any, t: Any) -> tuple[Any, Any]:
        return score_of(oracle, x, t), jax.grad(lambda x: jnp.sum(oracle.log_prob(x, t)))(x)

    chex.assert_trees_all_close(*both(x, TIMES), rtol=1e-9, atol=1e-9)


@every_sde
@in_float64
def test_the_gaussian_log_density_is_scipys(name: str) -> None:
    process, t = PROCESSES[name], 0.3
    law = scipy.stats.multivariate_normal(
        process.alpha(t) * MEAN, process.alpha(t) ** 2 * COV + process.sigma(t) ** 2 * np.eye(3)
    )
    np.testing.assert_allclose(gaussian(SDES[name]).log_prob(jnp.asarray(X), t), law.logpdf(X), rtol=1e-10)


@every_sde
@in_float64
def test_the_gaussian_flow_satisfies_its_differential_equation(name: str) -> None:
    oracle, x = gaussian(SDES[name]), jnp.asarray(X)

    @jax.jit
    def there_and_back(x: Any) -> Any:
        there, rate = jax.jvp(lambda s: oracle.flow(x, 0.8, s), (0.2,), (1.0,))
        return (rate, x, x), (velocity(oracle, there, 0.2), oracle.flow(x, 0.8, 0.8), oracle.flow(there, 0.2, 0.8))

    chex.assert_trees_all_close(*there_and_back(x), rtol=1e-9, atol=1e-9)


@every_sde
@in_float64
def test_a_mixture_of_one_component_is_a_gaussian_and_a_gaussian_without_spread_is_a_point(name: str) -> None:
    sde, x, mean = SDES[name], jnp.asarray(X), jnp.asarray(MEAN)
    one = Mixture(sde, jnp.ones(1), mean[None], jnp.full(1, 0.4))
    round_gaussian = Gaussian(sde, mean, 0.16 * jnp.eye(3))

    @jax.jit
    def pairs(x: Any, t: Any) -> Any:
        spread = (one(x, t), one.log_prob(x, t)), (round_gaussian(x, t), round_gaussian.log_prob(x, t))
        return spread, (PointMass(sde, mean)(x, t), Gaussian(sde, mean, jnp.zeros((3, 3)))(x, t))

    for pair in pairs(x, TIMES):
        chex.assert_trees_all_close(*pair, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "make", [gaussian, mixture, lambda sde: PointMass(sde, jnp.asarray(MEAN))], ids=["gaussian", "mixture", "point"]
)
@in_float64
def test_one_time_for_all_is_that_time_for_each(make: Any) -> None:
    oracle = make(SDES["subvp"])
    x = jnp.asarray(X[:, : oracle.shape[0]])
    both = jax.jit(lambda x: (oracle(x, 0.3), oracle(x, jnp.full(5, 0.3))))(x)
    chex.assert_trees_all_close(*both, rtol=1e-9, atol=1e-12)
