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
from closed_forms import (
    ALL_PROCESSES,
    ALL_SDES,
    DDPM_BETAS,
    PROCESSES,
    SDES,
    SMLD_SIGMAS,
    in_float64,
)
from jax.tree_util import Partial
from tiers import proof

from diffuse_jax.sde import (
    EDM,
    SDE,
    VE,
    VP,
    Cosine,
    DiscreteVE,
    DiscreteVP,
    RectifiedFlow,
    SubVP,
    cosine_betas,
    expand,
    from_beta,
    from_drift_diffusion,
    from_log_alpha_sigma,
    geometric_sigmas,
    linear_betas,
)
from diffuse_jax.trees import pytree

songs_sde = pytest.mark.parametrize("name", SDES)
every_sde = pytest.mark.parametrize("name", ALL_SDES)
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


@songs_sde
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


@songs_sde
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


# --- every process ----------------------------------------------------------------------------------------------------


@every_sde
def test_a_process_is_its_restatement_in_float32_at_both_ends_of_time(name: str) -> None:
    sde, process = ALL_SDES[name], ALL_PROCESSES[name]
    # Between the own times of the tables, where f and g² jump.
    early = np.geomspace(1.03e-5, 0.9037, 100)
    t = np.append(early, 1 - early)
    t = (t * (sde.t_start if name in ("cosine", "flow") else sde.T)).astype(np.float32)

    @jax.jit
    def values(sde: SDE, t: Any) -> Any:
        return sde.alpha(t), sde.sigma(t), sde.f(t), sde.g2(t), sde.alpha_rate(t), sde.sigma_rate(t)

    alpha, sigma, f, g2 = process.alpha(t), process.sigma(t), process.f(t), process.g2(t)
    expected = (alpha, sigma, f, g2, alpha * f, f * sigma + g2 / (2 * sigma))
    for value, exact in zip(values(sde, t), expected, strict=True):
        np.testing.assert_allclose(value, exact, rtol=3e-6)
    ends = values(sde, np.resize(np.asarray([0.0, sde.T], np.float32), t.shape))
    assert np.all(np.isfinite(ends[:5]))
    # Where α(T) = 0 it is floored at rounding.
    np.testing.assert_allclose(ends[0][:2], [1, process.alpha(sde.T)], rtol=1e-6, atol=1.2e-7)


@every_sde
@in_float64
def test_drift_and_diffusion_integrate_to_the_marginals(name: str) -> None:
    """d log α/dt = f and d(σ²/α²)/dt = g²/α², by Gauss–Legendre quadrature on every thousandth of time."""
    sde = ALL_SDES[name]
    edges = np.arange(1, 1001 if sde.t_start == sde.T else 991) / 1000 * sde.T
    nodes, weights = np.polynomial.legendre.leggauss(8)
    widths = np.diff(edges)[:, None]
    t = edges[:-1, None] + widths * (nodes + 1) / 2

    @jax.jit
    def values(t: Any, edges: Any) -> Any:
        ends = sde.log_alpha(edges), jnp.exp(-sde.log_snr(edges))
        return (sde.f(t), sde.g2(t) / jnp.square(sde.alpha(t))), ends

    for integrand, end in zip(*values(t, edges), strict=True):
        integral = np.cumsum(np.sum(widths / 2 * weights * integrand, axis=1))
        np.testing.assert_allclose(end[1:] - end[0], integral, rtol=1e-9, atol=1e-14)


@every_sde
@in_float64
def test_the_flow_rates_are_the_derivatives_of_alpha_and_sigma(name: str) -> None:
    sde, process = ALL_SDES[name], ALL_PROCESSES[name]
    # Within the segments of the tables.
    t, h = np.array([12.5, 50.5, 200.5, 500.5, 900.5, 985.5]) / 1000 * sde.T, 1e-6 * sde.T
    rates = jax.jit(lambda t: (sde.alpha_rate(t), sde.sigma_rate(t)))(t)
    for rate, function in zip(rates, (process.alpha, process.sigma), strict=True):
        np.testing.assert_allclose(rate, (function(t + h) - function(t - h)) / (2 * h), rtol=1e-6, atol=1e-8)


@every_sde
@in_float64
def test_transitions_compose_and_agree_with_the_marginals(name: str) -> None:
    sde, process = ALL_SDES[name], ALL_PROCESSES[name]
    s, r, t = (jnp.asarray(v) * sde.t_start for v in ([1e-4, 0.2, 0.5], [1e-2, 0.3, 0.50001], [0.9, 0.31, 1.0]))
    all_three = jax.jit(lambda s, r, t: (sde.transition(s, r), sde.transition(r, t), sde.transition(s, t)))
    (a_rs, std_rs), (a_tr, std_tr), (a_ts, std_ts) = all_three(s, r, t)
    chex.assert_trees_all_close((a_ts, std_ts**2), (a_tr * a_rs, a_tr**2 * std_rs**2 + std_tr**2), rtol=1e-10)
    np.testing.assert_allclose(a_ts * process.alpha(s), process.alpha(t), rtol=1e-12)
    np.testing.assert_allclose((a_ts * process.sigma(s)) ** 2 + std_ts**2, process.sigma(t) ** 2, rtol=1e-10)


@every_sde
def test_a_transition_over_a_thousandth_keeps_three_digits_in_float32(name: str) -> None:
    sde, process = ALL_SDES[name], ALL_PROCESSES[name]
    t = np.linspace(1e-3, 1, 1000, dtype=np.float32) * np.float32(sde.t_start)
    std = jax.jit(sde.transition)(t[:-1], t[1:])[1]
    a = process.alpha(t[1:]) / process.alpha(t[:-1])
    np.testing.assert_allclose(std, np.sqrt(process.sigma(t[1:]) ** 2 - (a * process.sigma(t[:-1])) ** 2), rtol=1e-3)


# --- the inverse of log_snr -------------------------------------------------------------------------------------------

generic_and_own = pytest.mark.parametrize("inverse", [SDE.inverse_log_snr, None], ids=["generic", "own"])


@pytest.mark.parametrize("x64", [False, proof(True)], ids=["float32", "float64"])
@every_sde
def test_inverse_log_snr_is_the_inverse_to_float_resolution_and_clamped_to_the_ends_of_time(
    name: str, x64: bool
) -> None:
    """In log-SNR, and to what floats t and log_snr resolve: VE is flat near 0, where t cannot be recovered. The slope
    is that of the implicit function, dt/dλ = −σ²/g²."""
    sde, process = ALL_SDES[name], ALL_PROCESSES[name]
    t = np.geomspace(1.01e-4, sde.t_start / sde.T, 300) * sde.T
    value = process.log_snr(t)
    beyond = np.array([np.inf, 1e4, -1e4, -np.inf])

    @jax.jit
    def inverses(sde: SDE, values: Any) -> Any:
        solvers = {"generic": lambda value: SDE.inverse_log_snr(sde, value)}
        if type(sde).inverse_log_snr is not SDE.inverse_log_snr:
            solvers["own"] = sde.inverse_log_snr
        return {name: jax.jvp(solve, (values,), (jnp.ones_like(values),)) for name, solve in solvers.items()}

    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        for found, slope in inverses(sde, np.append(value, beyond).astype(dtype)).values():
            found, ends = np.asarray(found[:-4], np.float64), found[-4:]
            resolution = np.finfo(dtype).eps * (process.g2(t) / process.sigma(t) ** 2 * t + 1 + np.abs(value))
            assert np.all(np.abs(process.log_snr(found) - value) < 4 * resolution)
            exact = -(process.sigma(t) ** 2) / process.g2(t)
            np.testing.assert_allclose(slope[1:-5], exact[1:-1], rtol=1e-8 if x64 else 1e-4)
            np.testing.assert_allclose(ends, [0, 0, sde.T, sde.T], rtol=1e-6, atol=1e-14)
            assert np.all((ends >= 0) & (ends <= sde.T))


@songs_sde
@generic_and_own
@pytest.mark.parametrize("x64", [False, proof(True)], ids=["float32", "float64"])
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


@pytree
class MyCosine(SDE):
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
            MyCosine(), self.times
        )
        expected = -0.5 * np.pi * 0.99 * np.tan(0.5 * np.pi * 0.99 * self.times)
        chex.assert_trees_all_close((f, g2, t), (expected, -2 * expected, self.times), rtol=2e-5)

    def test_vmaps_and_differentiates_over_its_parameter(self) -> None:
        rates = jnp.asarray([0.5, 0.9])
        sigma = jax.jit(jax.vmap(lambda rate: MyCosine(rate=rate).sigma(self.times)))(rates)
        angle = 0.5 * np.pi * np.outer(rates, self.times)
        np.testing.assert_allclose(sigma, np.sin(angle), rtol=1e-5)
        by_rate = jax.vmap(jax.jacfwd(lambda rate: MyCosine(rate=rate).alpha(self.times)))(rates)
        np.testing.assert_allclose(by_rate, -0.5 * np.pi * self.times * np.sin(angle), rtol=1e-5)

    def test_keeps_its_horizon_static(self) -> None:
        assert jax.tree.leaves(MyCosine(T=2.0, t_min=0.1)) == [0.99]
        assert jax.jit(lambda sde: jnp.float32(sde.T))(MyCosine(T=2.0)) == 2


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
    std = {"ve": 50.0, "smld": 50.0, "edm": 80.0}.get(name, 1.0)
    expected = scipy.stats.norm.logpdf(z.astype(np.float64), scale=std).sum((1, 2))
    np.testing.assert_allclose(ALL_SDES[name].prior_log_prob(jnp.asarray(z)), expected, rtol=1e-5)


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


# --- tables and schedules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_a_process_of_a_table_is_the_table_at_its_own_times(x64: bool) -> None:
    rtol = 1e-13 if x64 else 6e-7
    with jax.enable_x64(x64):
        ddpm, smld = (
            jax.jit(
                lambda sde: {name: getattr(sde, name)(sde.table_times()) for name in ("alpha", "sigma", "f", "g2")}
            )(ALL_SDES[name])
            for name in ("ddpm", "smld")
        )
        alpha_bar = np.exp(np.cumsum(np.log(1 - DDPM_BETAS)))
        np.testing.assert_allclose(ddpm["alpha"], np.sqrt(alpha_bar), rtol=max(rtol, 1e-12))
        np.testing.assert_allclose(ddpm["sigma"], np.sqrt(1 - alpha_bar), rtol=max(rtol, 1e-12))
        np.testing.assert_allclose(ddpm["alpha"][-1], 0.006352818, rtol=1e-6)
        # The step that leads to an own time is the one whose β it has.
        np.testing.assert_allclose(-2 * ddpm["f"], -1000 * np.log1p(-DDPM_BETAS), rtol=rtol)
        np.testing.assert_allclose(ddpm["g2"], -1000 * np.log1p(-DDPM_BETAS), rtol=rtol)
        np.testing.assert_allclose(smld["sigma"], SMLD_SIGMAS, rtol=rtol)
        np.testing.assert_allclose(smld["sigma"][1:] / smld["sigma"][:-1], 1.00856217, rtol=1e-6)
    for sde in (ALL_SDES["ddpm"], ALL_SDES["smld"]):
        np.testing.assert_allclose(sde.table_times(), np.arange(1, 1001) / 1000, rtol=1e-7)
        assert sde.N == 1000 and sde.t_min == 1e-3


def test_ddpms_step_is_the_transition_between_own_times() -> None:
    t = ALL_SDES["ddpm"].table_times()
    factor, std = jax.jit(ALL_SDES["ddpm"].transition)(t[:-1], t[1:])
    np.testing.assert_allclose(factor, np.sqrt(1 - DDPM_BETAS[1:]), rtol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(DDPM_BETAS[1:]), rtol=2e-4)


def test_the_cosine_table_is_improved_ddpms_and_tends_to_the_cosine_schedule() -> None:
    def alpha_bar(t: Any) -> Any:
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    betas, k = cosine_betas(4000), np.arange(4000)
    np.testing.assert_allclose(betas[:-1], 1 - alpha_bar((k[:-1] + 1) / 4000) / alpha_bar(k[:-1] / 4000), rtol=1e-9)
    assert np.flatnonzero(betas == 0.999).tolist() == [3999]
    t = np.arange(1, 40, dtype=np.float32) / 40
    np.testing.assert_allclose(
        *jax.jit(lambda table, t: (table.alpha(t), Cosine().alpha(t)))(DiscreteVP(betas), t), 1e-5
    )


def test_what_is_left_of_a_schedule_where_alpha_vanishes_is_exact() -> None:
    """The straight line moves at constant rates, and the angle of the cosine schedule at its own, up to T."""
    t = jnp.asarray([0.0, 1e-6, 0.5, 1.0])
    np.testing.assert_array_equal(RectifiedFlow(T=2.0).alpha_rate(2 * t), [-0.5] * 4)
    np.testing.assert_array_equal(RectifiedFlow(T=2.0).sigma_rate(2 * t), [0.5] * 4)
    np.testing.assert_array_equal(EDM().sigma_rate(80 * t), [1.0] * 4)
    np.testing.assert_allclose(
        Cosine().alpha_rate(1.0), -np.pi / 2 / 1.008 / np.cos(0.008 / 1.008 * np.pi / 2), rtol=1e-6
    )


def test_processes_vmapped_over_their_leaves_are_those_of_each_leaf() -> None:
    beta = Partial(lambda b, t: b * (1 + t))
    makes = {
        "cosine": (lambda p: Cosine(s=p), jnp.asarray([0.004, 0.02])),
        "beta": (lambda p: from_beta(Partial(beta, p)), jnp.asarray([3.0, 8.0])),
        "ddpm": (DiscreteVP, jnp.linspace(0.001, jnp.asarray([0.1, 0.3]), 50).T),
        "smld": (DiscreteVE, jnp.geomspace(0.01, jnp.asarray([3.0, 8.0]), 50).T),
    }
    t = jnp.asarray([0.03, 0.5, 0.97])

    def values(sde: SDE) -> Any:
        return sde.alpha(t), sde.sigma(t), sde.g2(t), sde.inverse_log_snr(jnp.asarray([-1.0, 2.0]))

    @jax.jit
    def both(parameters: Any) -> Any:
        made = {name: jax.vmap(make)(parameters[name]) for name, (make, _) in makes.items()}
        second = {name: values(make(parameters[name][1])) for name, (make, _) in makes.items()}
        return jax.tree.map(lambda rows: rows[1], {name: jax.vmap(values)(sde) for name, sde in made.items()}), second

    chex.assert_trees_all_close(*both({name: p for name, (_, p) in makes.items()}), rtol=1e-5)


def test_a_table_is_learnable() -> None:
    """log α(T) = ½Σ log(1 − β) and log σ(T) = log σ_{N−1}."""
    betas, sigmas = jnp.linspace(0.01, 0.2, 5), jnp.geomspace(0.1, 3.0, 4)
    by_betas, by_sigmas = jax.jit(
        jax.grad(lambda b, s: DiscreteVP(b).log_alpha(1.0) + DiscreteVE(s).log_sigma(1.0), (0, 1))
    )(betas, sigmas)
    np.testing.assert_allclose(by_betas, -0.5 / (1 - betas), rtol=1e-5)
    np.testing.assert_allclose(by_sigmas, [0, 0, 0, 1 / 3], atol=1e-6)


def test_beta_given_with_its_integral_is_the_same_process() -> None:
    by_quadrature = from_beta(lambda t: 0.1 + 19.9 * t)
    given = from_beta(lambda t: 0.1 + 19.9 * t, integrated_beta=_b)
    t = jnp.asarray(GOLDEN_TIMES)
    values = jax.jit(lambda *sdes: [(sde.alpha(t), sde.sigma(t), sde.g2(t)) for sde in sdes])
    for found in values(by_quadrature, given):
        chex.assert_trees_all_close(found, tuple(map(jnp.asarray, GOLDEN["vp"])), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteVP([0.1, 1.0]), r"betas .* lie in \(0, 1\), not 2 numbers from 0.1 to 1.0"),
        (lambda: DiscreteVP(0.1), "betas .* not 0.1"),
        (lambda: DiscreteVE([1.0]), "sigmas .* at least 2 .* not 1 numbers"),
        (lambda: DiscreteVE(geometric_sigmas()[::-1]), "sigmas .* ascend, not 1000 numbers from 50"),
        (lambda: DiscreteVP(linear_betas(1000, 0.0)), "betas"),
    ],
)
def test_a_table_that_is_none_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="needs its table"):
        DiscreteVP()


@pytest.mark.parametrize("make", [Cosine, RectifiedFlow])
def test_a_process_that_ends_in_noise_has_its_default_ends_in_proportion_to_T(make: Any) -> None:
    one, thousand = make(), make(T=1000.0)
    assert (one.t_start, one.t_min) == (0.995, 1e-3) and (thousand.t_start, thousand.t_min) == (995.0, 1.0)
    np.testing.assert_allclose(thousand.log_snr(thousand.t_start), one.log_snr(one.t_start), rtol=1e-4)
    given = make(T=1000.0, t_min=5.0, t_max=900.0)
    assert (given.t_start, given.t_min) == (900.0, 5.0) and jax.tree.map(lambda leaf: leaf, given) == given
    assert dataclasses.replace(one, T=10.0).t_start == 9.95


@in_float64
@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "cosine", "edm", "flow"])
def test_the_density_of_the_prior_keeps_the_precision_of_its_argument(name: str) -> None:
    assert ALL_SDES[name].prior_log_prob(jnp.ones((2, 3), jnp.float32)).dtype == jnp.float32
