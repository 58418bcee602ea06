"""The processes against score_sde's published numbers, NumPy, SciPy's integrators, and each other's restatements."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from closed_forms import PROCESSES, SDES, in_float64
from jax.tree_util import Partial

from diffuse_jax.sde import SDE, VE, VP, SubVP, expand, from_drift_diffusion, from_log_alpha_sigma

every_sde = pytest.mark.parametrize("name", SDES)

# score_sde (commit 0acb9e0), evaluated in double precision: t, and by process the factor, the deviation and g².
GOLDEN_TIMES = (1e-5, 1e-3, 0.1, 0.5, 1.0)
GOLDEN_ALPHA = (0.9999995, 0.99994503, 0.9467218, 0.28118288, 0.0065715865)
GOLDEN = {
    "vp": (
        GOLDEN_ALPHA,
        (1.0004971e-3, 0.010485416, 0.32205254, 0.9596542, 0.99997841),
        (0.100199, 0.1199, 2.09, 10.05, 20.0),
    ),
    "subvp": (
        GOLDEN_ALPHA,
        (1.0009945e-6, 1.0994396e-4, 0.10371784, 0.92093619, 0.99995681),
        (2.005972e-7, 2.6363111e-5, 0.41105761, 9.9871766, 20.0),
    ),
    "ve": (
        (1.0,) * 5,
        (0.010000852, 0.010085536, 0.023436729, 0.70710678, 50.0),
        (1.7037288e-3, 1.7327042e-3, 9.3566524e-3, 8.5171932, 42585.966),
    ),
}


@every_sde
def test_score_sdes_values_hold_in_float32_down_to_1e_5(name: str) -> None:
    sde, t = SDES[name], jnp.asarray(GOLDEN_TIMES)
    chex.assert_trees_all_close(
        (sde.alpha(t), sde.sigma(t), sde.g2(t)), tuple(map(jnp.asarray, GOLDEN[name])), rtol=1e-5
    )


def test_the_importance_normaliser_of_vp_is_score_sdes() -> None:
    log_snr = VP().log_snr(jnp.asarray([1e-5, 1.0]))
    np.testing.assert_allclose(log_snr[0] - log_snr[1], 23.864472, rtol=1e-6)
    pieces = [scipy.integrate.quad(lambda t: PROCESSES["vp"].g2(t) / PROCESSES["vp"].sigma(t) ** 2, a, b)[0]
              for a, b in zip((1e-5, 1e-3, 0.1), (1e-3, 0.1, 1.0), strict=True)]  # fmt: skip
    np.testing.assert_allclose(sum(pieces), 23.864472, rtol=1e-7)


def _b(t: Any) -> Any:
    return 0.1 * t + 9.95 * t**2


# What a user would write: (log α, log σ), and (f, g, σ(0)).
BY_LOGARITHMS = {
    "vp": (lambda t: -_b(t) / 2, lambda t: 0.5 * jnp.log(-jnp.expm1(-_b(t)))),
    "subvp": (lambda t: -_b(t) / 2, lambda t: jnp.log(-jnp.expm1(-_b(t)))),
    "ve": (lambda t: 0.0 * t, lambda t: jnp.log(0.01) + t * jnp.log(5000.0)),
}
BY_COEFFICIENTS = {
    "vp": (lambda t: -0.05 - 9.95 * t, lambda t: jnp.sqrt(0.1 + 19.9 * t), 0.0),
    "subvp": (lambda t: -0.05 - 9.95 * t, lambda t: jnp.sqrt(-(0.1 + 19.9 * t) * jnp.expm1(-2 * _b(t))), 0.0),
    "ve": (lambda t: 0.0, lambda t: 0.01 * 5000.0**t * jnp.sqrt(2 * jnp.log(5000.0)), 0.01),
}


@every_sde
@pytest.mark.parametrize("statement", ["log_alpha_sigma", "drift_diffusion"])
def test_a_restated_process_is_the_same_in_float32(name: str, statement: str) -> None:
    restate = {
        "log_alpha_sigma": lambda: from_log_alpha_sigma(*BY_LOGARITHMS[name]),
        "drift_diffusion": lambda: from_drift_diffusion(*BY_COEFFICIENTS[name]),
    }
    sde, t = restate[statement](), np.geomspace(1e-5, 1, 101, dtype=np.float32)
    values = jax.jit(lambda sde, t: (sde.alpha(t), sde.sigma(t), sde.f(t), sde.g2(t)))(sde, t)
    exact = (getattr(PROCESSES[name], quantity)(t) for quantity in ("alpha", "sigma", "f", "g2"))
    for value, expected in zip(values, exact, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_restated_process_has_the_prior_it_is_given() -> None:
    f, g, sigma_0 = BY_COEFFICIENTS["vp"]
    z = jnp.ones((2, 3))
    np.testing.assert_allclose(
        from_drift_diffusion(f, g, sigma_0, prior_std=1.0).prior_log_prob(z), VP().prior_log_prob(z)
    )
    np.testing.assert_allclose(from_drift_diffusion(f, g, sigma_0).prior_std(), VP().sigma(1.0), rtol=1e-6)
    np.testing.assert_allclose(from_log_alpha_sigma(*BY_LOGARITHMS["ve"]).prior_std(), 50.0, rtol=1e-6)
    assert from_log_alpha_sigma(*BY_LOGARITHMS["vp"], prior_std=2.0).prior_std() == 2.0


@every_sde
@in_float64
def test_drift_and_diffusion_integrate_to_the_marginals(name: str) -> None:
    """dm/dt = f·m and dv/dt = 2f·v + g², by SciPy."""
    sde = SDES[name]
    coefficients = jax.jit(lambda t: (sde.f(t), sde.g2(t)))

    def rate(t: float, y: np.ndarray) -> list[float]:
        f, g2 = coefficients(t)
        return [float(f) * y[0], 2 * float(f) * y[1] + float(g2)]

    t = np.array([1e-3, 0.03, 0.3, 1.0])
    alpha, sigma = np.asarray(sde.alpha(t)), np.asarray(sde.sigma(t))
    solved = scipy.integrate.solve_ivp(rate, (t[0], t[-1]), [alpha[0], sigma[0] ** 2], t_eval=t, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(solved.y, [alpha, sigma**2], rtol=1e-6)


@every_sde
@in_float64
def test_the_flow_rates_are_the_derivatives_of_alpha_and_sigma(name: str) -> None:
    process, t, h = PROCESSES[name], np.geomspace(1e-2, 0.99, 9), 1e-6
    for rate, function in ((SDES[name].alpha_rate, process.alpha), (SDES[name].sigma_rate, process.sigma)):
        np.testing.assert_allclose(rate(t), (function(t + h) - function(t - h)) / (2 * h), rtol=1e-6, atol=1e-8)


@every_sde
@in_float64
def test_transitions_compose_and_agree_with_the_marginals(name: str) -> None:
    sde = SDES[name]
    s, r, t = (jnp.asarray(v) for v in ([1e-4, 0.2, 0.5], [1e-2, 0.3, 0.50001], [0.9, 0.31, 1.0]))
    (a_rs, std_rs), (a_tr, std_tr), (a_ts, std_ts) = sde.transition(s, r), sde.transition(r, t), sde.transition(s, t)
    chex.assert_trees_all_close((a_ts, std_ts**2), (a_tr * a_rs, a_tr**2 * std_rs**2 + std_tr**2), rtol=1e-10)
    process = PROCESSES[name]
    np.testing.assert_allclose(a_ts * process.alpha(s), process.alpha(t), rtol=1e-12)
    np.testing.assert_allclose((a_ts * process.sigma(s)) ** 2 + std_ts**2, process.sigma(t) ** 2, rtol=1e-10)


@every_sde
def test_a_transition_over_a_thousandth_keeps_three_digits_in_float32(name: str) -> None:
    t = np.linspace(1e-3, 1, 1000, dtype=np.float32)
    std, process = SDES[name].transition(t[:-1], t[1:])[1], PROCESSES[name]
    a = process.alpha(t[1:]) / process.alpha(t[:-1])
    np.testing.assert_allclose(std, np.sqrt(process.sigma(t[1:]) ** 2 - (a * process.sigma(t[:-1])) ** 2), rtol=1e-3)


# --- the inverse of log_snr -------------------------------------------------------------------------------------------

generic_and_own = pytest.mark.parametrize("inverse", [SDE.inverse_log_snr, None], ids=["generic", "own"])


def _inverse(inverse: Any) -> Any:
    return jax.jit(lambda sde, value: sde.inverse_log_snr(value) if inverse is None else inverse(sde, value))


@every_sde
@generic_and_own
def test_inverse_log_snr_is_the_inverse_to_float_resolution(name: str, inverse: Any) -> None:
    """In log-SNR, and to what float32 numbers t and log_snr resolve: VE is flat near 0, where t cannot be recovered."""
    sde, process, t = SDES[name], PROCESSES[name], np.geomspace(1e-4, 1, 300)
    value = process.log_snr(t)
    found = np.asarray(_inverse(inverse)(sde, jnp.asarray(value, jnp.float32)), np.float64)
    resolution = np.finfo(np.float32).eps * (process.g2(t) / process.sigma(t) ** 2 * t + 1 + np.abs(value))
    assert np.all(np.abs(process.log_snr(found) - value) < 4 * resolution)


@every_sde
@generic_and_own
def test_inverse_log_snr_is_clamped_to_the_ends_of_time(name: str, inverse: Any) -> None:
    value = jnp.asarray([jnp.inf, 1e4, -1e4, -jnp.inf])
    t = _inverse(inverse)(SDES[name], value)
    np.testing.assert_allclose(t, [0, 0, 1, 1], rtol=1e-6, atol=1e-15)
    assert np.all((t >= 0) & (t <= 1))


@every_sde
@generic_and_own
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_inverse_log_snr_has_the_derivatives_of_the_implicit_function(name: str, inverse: Any, x64: bool) -> None:
    """dt/dλ = 1/λ′(t), and by a parameter p: dt/dp = −(∂λ/∂p)/λ′(t)."""
    parameter = "sigma_max" if name == "ve" else "beta_max"
    with jax.enable_x64(x64):
        t = jnp.asarray([1e-3, 0.02, 0.4, 0.95])

        def with_parameter(p: Any) -> SDE:
            return type(SDES[name])(**{parameter: p})

        def solved(p: Any, value: Any) -> Any:
            sde = with_parameter(p)
            return sde.inverse_log_snr(value) if inverse is None else inverse(sde, value)

        p = jnp.asarray(20.0)
        value, by_time = jax.jvp(with_parameter(p).log_snr, (t,), (jnp.ones_like(t),))
        by_parameter = jax.jvp(lambda p: with_parameter(p).log_snr(t), (p,), (jnp.ones_like(p),))[1]
        rtol = 1e-8 if x64 else 1e-3
        forward = jax.jit(jax.jacfwd(solved))(p, value)
        np.testing.assert_allclose(forward, -by_parameter / by_time, rtol=rtol, atol=rtol * 1e-4)
        backward = jax.jit(jax.grad(lambda value: jnp.sum(solved(p, value))))(value)
        np.testing.assert_allclose(backward, 1 / by_time, rtol=rtol)


# --- a user's own process ---------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cosine(SDE):
    """α = cos(½π·rate·t), σ = sin(½π·rate·t): so f = −½π·rate·tan(½π·rate·t) and, with α² + σ² = 1, g² = −2f."""

    rate: Any = 0.99

    def log_alpha(self, t: Any) -> Any:
        return jnp.log(jnp.cos(0.5 * jnp.pi * self.rate * t))

    def log_sigma(self, t: Any) -> Any:
        return jnp.log(jnp.sin(0.5 * jnp.pi * self.rate * t))


class TestAUsersProcess(chex.TestCase):
    times = np.linspace(0.05, 0.95, 7, dtype=np.float32)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_has_its_coefficients_derived(self) -> None:
        f, g2, t = self.variant(lambda sde, t: (sde.f(t), sde.g2(t), sde.inverse_log_snr(sde.log_snr(t))))(
            Cosine(), self.times
        )
        expected = -0.5 * np.pi * 0.99 * np.tan(0.5 * np.pi * 0.99 * self.times)
        chex.assert_trees_all_close((f, g2, t), (expected, -2 * expected, self.times), rtol=2e-5)

    def test_vmaps_and_differentiates_over_its_parameter(self) -> None:
        rates = jnp.asarray([0.5, 0.9])
        sigma = jax.jit(jax.vmap(lambda rate: Cosine(rate=rate).sigma(self.times)))(rates)
        angle = 0.5 * np.pi * np.outer(rates, self.times)
        np.testing.assert_allclose(sigma, np.sin(angle), rtol=1e-5)
        by_rate = jax.vmap(jax.jacfwd(lambda rate: Cosine(rate=rate).alpha(self.times)))(rates)
        np.testing.assert_allclose(by_rate, -0.5 * np.pi * self.times * np.sin(angle), rtol=1e-5)

    def test_keeps_its_horizon_static(self) -> None:
        assert jax.tree.leaves(Cosine(T=2.0, t_min=0.1)) == [0.99]
        assert jax.jit(lambda sde: jnp.float32(sde.T))(Cosine(T=2.0)) == 2


def test_vp_vmapped_over_beta_max_equals_a_loop() -> None:
    def values(beta_max: Any) -> Any:
        sde, t = VP(beta_max=beta_max), jnp.asarray([1e-5, 0.1, 1.0])
        return sde.alpha(t), sde.sigma(t), sde.g2(t), sde.inverse_log_snr(jnp.asarray([-3.0, 3.0]))

    beta_max = jnp.asarray([10.0, 20.0, 30.0])
    looped = [values(b) for b in beta_max]
    chex.assert_trees_all_close(
        jax.jit(jax.vmap(values))(beta_max), jax.tree.map(lambda *rows: jnp.stack(rows), *looped), rtol=1e-6
    )


def test_coefficients_bound_with_partial_are_learnable() -> None:
    """f = −½b·t gives log α = −¼b·t², so d log α/db = −¼t²; with g² = −2f it is VP with B = ½b·t²."""
    f, g = Partial(lambda b, t: -0.5 * b * t), Partial(lambda b, t: jnp.sqrt(b * t))

    def values(b: Any) -> Any:
        sde = from_drift_diffusion(Partial(f, b), Partial(g, b))
        return sde.log_alpha(0.8), sde.sigma(0.8)

    by_b = jax.jit(jax.jacrev(values))(3.0)
    big_b = 0.5 * 3.0 * 0.8**2
    sigma = np.sqrt(1 - np.exp(-big_b))
    np.testing.assert_allclose(by_b, (-0.25 * 0.8**2, 0.5 / sigma * np.exp(-big_b) * 0.5 * 0.8**2), rtol=1e-5)
    assert jax.tree.leaves(from_drift_diffusion(Partial(f, 3.0), Partial(g, 3.0))) == [3.0, 3.0, 0.0]


@every_sde
def test_the_prior_log_density_is_scipys(name: str) -> None:
    z = np.random.default_rng(0).normal(0, 2, (3, 4, 2)).astype(np.float32)
    std = 50.0 if name == "ve" else 1.0
    expected = scipy.stats.norm.logpdf(z.astype(np.float64), scale=std).sum((1, 2))
    np.testing.assert_allclose(SDES[name].prior_log_prob(jnp.asarray(z)), expected, rtol=1e-5)


def test_perturb_takes_one_time_or_one_a_sample() -> None:
    sde, t = SubVP(), jnp.asarray([0.1, 0.5])
    x0, eps = jnp.ones((2, 3, 1)), jnp.full((2, 3, 1), 2.0)
    both = sde.perturb(x0, t, eps)
    for row, time in enumerate((0.1, 0.5)):
        expected = PROCESSES["subvp"].alpha(time) + 2 * PROCESSES["subvp"].sigma(time)
        np.testing.assert_allclose(both[row], np.full((3, 1), expected), rtol=1e-6)
        np.testing.assert_allclose(sde.perturb(x0, time, eps)[row], both[row], rtol=1e-6)
    assert expand(t, x0).shape == (2, 1, 1) and expand(0.1, x0).shape == ()


@pytest.mark.parametrize(
    ("f", "g", "name"),
    [
        (lambda x, t: -x, lambda t: t, "f"),
        (lambda t: -t, lambda x, t: t, "g"),
        (lambda t: -t, lambda t: t[..., None, None] * jnp.eye(2), "g"),
    ],
    ids=["f(x, t)", "g(x, t)", "matrix g"],
)
def test_what_is_out_of_scope_is_refused_by_name(f: Any, g: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} must .*out of scope"):
        from_drift_diffusion(f, g)


def test_a_process_without_its_functions_says_so() -> None:
    with pytest.raises(TypeError, match="SDE states no log_alpha"):
        SDE().alpha(0.5)
    with pytest.raises(TypeError, match="SDE states no log_sigma"):
        SDE().sigma(0.5)


def test_ve_carries_its_smallest_noise_at_time_zero() -> None:
    np.testing.assert_allclose(VE(sigma_min=0.02, sigma_max=3.0).sigma(jnp.asarray([0.0, 1.0])), [0.02, 3.0], rtol=1e-6)


def test_a_constant_serves_as_a_function_of_time() -> None:
    process = from_log_alpha_sigma(lambda t: 0.0, lambda t: jnp.log(0.01 + t))
    t = jnp.asarray([0.1, 0.5])
    chex.assert_trees_all_close(process.alpha(t), jnp.ones(2))
    chex.assert_trees_all_close(process.marginal(jnp.ones((2, 3)), t)[0], jnp.ones((2, 3)))
