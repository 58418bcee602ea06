"""Parameterizations, denoisers and the closed-form oracles against each other and against automatic differentiation."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from closed_forms import ALL_PROCESSES, ALL_SDES, MIXTURE, PROCESSES, SDES, gaussian_data, in_float64

from diffuse_jax import parameterizations
from diffuse_jax.denoiser import Conditioned, Denoised, NetworkDenoiser, from_score, on_process, score_of, unbind
from diffuse_jax.oracles import Gaussian, Mixture, PointMass
from diffuse_jax.sde import EDM, SDE, VE, VP, Cosine, DiscreteVE, DiscreteVP, RectifiedFlow, cosine_betas
from diffuse_jax.solvers import velocity

PARAMETERIZATIONS = {
    name: getattr(parameterizations, name)
    for name in ("noise", "x0", "v", "score", "flow", "score_sde_vp", "score_sde_ve")
} | {"edm": parameterizations.edm(0.7)}
songs_sde = pytest.mark.parametrize("name", SDES)
every_sde = pytest.mark.parametrize("name", ALL_SDES)

MEAN, COV = gaussian_data(3)
X = np.random.default_rng(1).normal(0, 1.5, (5, 3))
TIMES = np.array([0.01, 0.1, 0.3, 0.7, 1.0])


def gaussian(sde: SDE) -> Gaussian:
    return Gaussian(sde, jnp.asarray(MEAN), jnp.asarray(COV))


def mixture(sde: SDE) -> Mixture:
    return Mixture(sde, *map(jnp.asarray, MIXTURE))


def small_net(params: Any, x: Any, label: Any, **present: Any) -> Any:
    return jnp.tanh(x @ params + jnp.sin(label)[:, None])


def given_output(params: Any, x: Any, label: Any) -> Any:
    """A network whose parameters are its output."""
    return params


# --- parameterizations ------------------------------------------------------------------------------------------------


@every_sde
@in_float64
def test_x_is_alpha_x0_plus_sigma_eps_and_eps_error_is_eps_minus_eps_whatever_a_network_says(name: str) -> None:
    sde, params = ALL_SDES[name], np.random.default_rng(0).standard_normal((3, 3))
    x0, eps = np.random.default_rng(2).standard_normal((2, 5, 3))

    @jax.jit
    def values(x0: Any, eps: Any, t: Any) -> Any:
        x = sde.perturb(x0, t, eps)
        found = {}
        for p, kind in PARAMETERIZATIONS.items():
            denoise = NetworkDenoiser(sde, params, small_net, kind)
            out = denoise(x, t)
            found[p] = sde.perturb(out.x0, t, out.eps), eps - out.eps, denoise.eps_error(x0, eps, t)
        return x, found

    x, found = values(x0, eps, TIMES * sde.t_start)
    for p, (rebuilt, difference, error) in found.items():
        np.testing.assert_allclose(rebuilt, x, rtol=1e-9, atol=1e-9, err_msg=p)
        np.testing.assert_allclose(error, difference, rtol=1e-7, atol=1e-7, err_msg=p)


@every_sde
@in_float64
def test_a_network_that_gives_the_oracles_target_is_the_oracle(name: str) -> None:
    """Whatever its parameterization; and the outputs of all of them turn into each other, all the way round."""
    sde = ALL_SDES[name]

    @jax.jit
    def reproduced(x: Any, t: Any) -> Any:
        oracle = gaussian(sde)(x, t)
        found, first, around = {}, None, oracle
        for p, kind in PARAMETERIZATIONS.items():
            target = kind.target(sde, oracle.x0, oracle.eps, t[:, None])
            found[p] = NetworkDenoiser(sde, target, given_output, kind)(x, t)
            output = kind.target(sde, around.x0, around.eps, t[:, None])
            around = NetworkDenoiser(sde, output, given_output, kind)(x, t)
            first = target if first is None else first
        last = PARAMETERIZATIONS["noise"].target(sde, around.x0, around.eps, t[:, None])
        return (oracle, first), (found, last)

    (oracle, first), (found, last) = reproduced(jnp.asarray(X), TIMES * sde.t_start)
    chex.assert_trees_all_close(found, dict.fromkeys(PARAMETERIZATIONS, oracle), rtol=1e-8, atol=1e-8)
    chex.assert_trees_all_close(last, first, rtol=1e-8, atol=1e-8)


def test_v_flow_and_edm_are_finite_at_both_ends_of_time_on_every_process() -> None:
    kinds = {name: PARAMETERIZATIONS[name] for name in ("v", "flow", "edm")}

    @jax.jit
    def at_the_ends(sdes: dict[str, SDE], x: Any, raw: Any) -> Any:
        return {
            (name, p): NetworkDenoiser(sde, raw, given_output, kind)(x, jnp.asarray([0.0, sde.T]))
            for name, sde in sdes.items()
            for p, kind in kinds.items()
        }

    for case, out in at_the_ends(ALL_SDES, jnp.full((2, 3), 0.5), jnp.full((2, 3), 0.25)).items():
        assert np.all(np.isfinite(out)), case


@in_float64
def test_edms_output_and_input_are_of_unit_variance_for_data_of_its_deviation() -> None:
    """For x0 and eps of deviations σ_data and 1: the property from which 2206.00364, appendix B.6, derives it."""
    for sde in (EDM(), RectifiedFlow(), SDES["subvp"]):
        t = jnp.asarray([0.02, 0.5, 0.9]) * sde.T
        kind = parameterizations.edm(0.3)
        by_x0, by_eps = kind.target(sde, jnp.asarray(1.0), jnp.asarray(0.0), t), kind.target(sde, 0.0, 1.0, t)
        np.testing.assert_allclose((0.3 * by_x0) ** 2 + by_eps**2, 1, rtol=1e-12)
        variance = (0.3 * sde.alpha(t)) ** 2 + sde.sigma(t) ** 2
        np.testing.assert_allclose(kind.scale(sde, t) ** 2 * variance, 1, rtol=1e-12)


def test_equal_settings_of_edm_are_one_parameterization() -> None:
    assert parameterizations.edm(0.5) == parameterizations.edm() != parameterizations.edm(0.6)
    with pytest.raises(ValueError, match=r"sigma_data=0\.0 must be positive"):
        parameterizations.edm(0.0)


def test_labels_of_tables_are_the_numbers_of_their_entries() -> None:
    ddpm, smld = ALL_SDES["ddpm"], DiscreteVE(np.geomspace(0.1, 10, 5))
    t = np.concatenate([[0.0], np.arange(1, 1001) / 1000]).astype(np.float32)

    @jax.jit
    def labels(t: Any) -> Any:
        between = smld.inverse_log_snr(-2 * jnp.log(jnp.asarray([0.2, 0.215])))
        return (
            parameterizations.c_noise_index(ddpm, t),
            parameterizations.c_noise_nearest_index(ddpm, t),
            parameterizations.c_noise_reversed_index(smld, smld.table_times()),
            parameterizations.c_noise_nearest_index(smld, between),
        )

    index, nearest, reversed_index, between = labels(t)
    entries = np.concatenate([[0], np.arange(1000)])
    np.testing.assert_allclose(index, entries, atol=2e-4)
    np.testing.assert_array_equal(nearest, entries)
    np.testing.assert_array_equal(reversed_index, [4, 3, 2, 1, 0])
    # Between 0.1 and √0.1 the middle is 0.208: σ, not its logarithm, is rounded.
    np.testing.assert_array_equal(between, [0, 1])
    for label in ("c_noise_index", "c_noise_reversed_index", "c_noise_nearest_index"):
        with pytest.raises(TypeError, match="a process of a table, DiscreteVP or DiscreteVE, not EDM"):
            getattr(parameterizations, label)(EDM(), t)


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
        SDES[name], None, lambda params, x, c_noise: c_noise[:, None] + x, parameterizations.score_sde_vp
    )
    x = jnp.ones((4, 1))
    np.testing.assert_allclose(reads_label.raw(x, t)[:, 0], 999 * t + 1, rtol=1e-6)
    expected = -(999 * t[1:] + 1) / PROCESSES[name].sigma(t[1:])
    np.testing.assert_allclose(score_of(reads_label, x[1:], t[1:])[:, 0], expected, rtol=1e-5)


def test_score_sdes_ve_network_reads_sigma_and_is_the_score() -> None:
    t = jnp.asarray([1e-5, 0.5, 1.0])
    reads_label = NetworkDenoiser(
        SDES["ve"], None, lambda params, x, c_noise: c_noise[:, None] + x, parameterizations.score_sde_ve
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


@songs_sde
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


# --- a denoiser on another process ------------------------------------------------------------------------------------

LOG_SNR = np.array([4.0, 1.0, 0.0, -1.0, -4.0])


@pytest.mark.parametrize(
    ("make", "pairs"),
    [
        (gaussian, list(zip(ALL_SDES, [*list(ALL_SDES)[1:], "vp"], strict=True))),
        (mixture, [("vp", "edm"), ("ve", "flow"), ("ddpm", "cosine")]),
    ],
    ids=["gaussian", "mixture"],
)
@in_float64
def test_an_oracle_on_another_process_is_the_oracle_of_that_process(make: Any, pairs: Any) -> None:
    def times_of(name: str) -> np.ndarray:
        t = np.geomspace(1e-4, ALL_SDES[name].t_start, 10_000)
        return np.interp(LOG_SNR, ALL_PROCESSES[name].log_snr(t)[::-1], t[::-1])

    @jax.jit
    def both(sdes: dict[str, SDE], x: Any, times: dict[str, Any]) -> Any:
        return [
            (on_process(make(sdes[source]), sdes[target])(x, times[target]), make(sdes[target])(x, times[target]))
            for source, target in pairs
        ]

    x, times = jnp.asarray(X[:, : make(VP()).shape[0]]), {target: times_of(target) for _, target in pairs}
    for pair, (found, expected) in zip(pairs, both(ALL_SDES, x, times), strict=True):
        for member, exact in zip(found, expected, strict=True):
            np.testing.assert_allclose(member, exact, rtol=1e-7, atol=1e-9, err_msg=f"{pair}")


@in_float64
def test_x_is_alpha_x0_plus_sigma_eps_where_the_own_process_knows_no_such_noise() -> None:
    """σ̃ is from 0.002 to 80 on EDM, from 0.01 to 50 on VE, and below 152 on VP."""
    cases = [(VE(), EDM()), (VE(), VP()), (EDM(), Cosine())]

    @jax.jit
    def rebuilt(x: Any, t: Any) -> Any:
        found = [on_process(gaussian(source), target)(x, t * target.T) for source, target in cases]
        # Noisier than its last time, it is asked at that time, about the same x but for the scale.
        at_last = gaussian(VE())(x * jnp.sqrt((50**2 + 1) / (80**2 + 1)), 1.0)
        back = [target.perturb(out.x0, t * target.T, out.eps) for (_, target), out in zip(cases, found, strict=True)]
        return back, (found[0].x0[-1], at_last.x0[-1])

    back, last = rebuilt(jnp.asarray(X), jnp.asarray([1e-6, 0.002, 0.5, 1.0, 1.0]))
    for x in back:
        np.testing.assert_allclose(x, X, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(*last, rtol=1e-12)


def fixed_net(x: Any, label: Any, channels: int = 1) -> Any:
    """A function with nothing special about it, in NumPy or JAX."""
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.concatenate([xp.tanh(x * (k + 1) + xp.sin(label / 50)[:, None]) for k in range(channels)], axis=-1)


class TestThePublishedPreconditioners:
    """D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise) as 2206.00364, table 1, tabulates it, in NumPy."""

    sigma = np.array([0.0123, 0.2, 1.0, 7.0, 45.0])
    x = np.random.default_rng(5).standard_normal((5, 3)) * 3

    def check(self, denoise: Any, expected: np.ndarray) -> None:
        found = jax.jit(lambda x, sigma: on_process(denoise, EDM())(x, sigma).x0)(self.x, self.sigma)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)

    @in_float64
    def test_vp(self) -> None:
        sigma = self.sigma[:, None]
        t = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(1 + self.sigma**2)) - 0.1) / 19.9
        denoise = NetworkDenoiser(VP(), None, lambda p, x, c: fixed_net(x, c), parameterizations.score_sde_vp)
        self.check(denoise, self.x - sigma * fixed_net(self.x / np.sqrt(1 + sigma**2), 999 * t))

    @in_float64
    def test_ve(self) -> None:
        sigma = self.sigma[:, None]
        # score_sde's network divides by σ, and so is the score.
        denoise = NetworkDenoiser(
            VE(),
            None,
            lambda p, x, label: fixed_net(x, jnp.log(label / 2)) / label[:, None],
            parameterizations.score_sde_ve,
        )
        self.check(denoise, self.x + sigma * fixed_net(self.x, np.log(self.sigma / 2)))

    @in_float64
    def test_edm_on_its_own_process_and_on_others(self) -> None:
        sigma, norm = self.sigma[:, None], np.sqrt(self.sigma[:, None] ** 2 + 0.5**2)
        raw = fixed_net(self.x / norm, np.log(self.sigma) / 4)
        expected = 0.5**2 / norm**2 * self.x + 0.5 * sigma / norm * raw
        for sde in (EDM(), VP(), RectifiedFlow()):
            denoise = NetworkDenoiser(sde, None, lambda p, x, c: fixed_net(x, c), parameterizations.edm(0.5))
            self.check(denoise, expected)

    @in_float64
    def test_iddpm(self) -> None:
        steps, sigma = 1000, self.sigma[:, None]
        alpha_bar = np.sin(np.pi / 2 * np.arange(steps + 1) / steps / 1.008) ** 2
        u = np.zeros(steps + 1)
        for j in range(steps, 0, -1):
            u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], 0.001) - 1)
        label = steps - 1 - np.argmin(np.abs(u[:, None] - self.sigma), axis=0)
        raw = fixed_net(self.x / np.sqrt(1 + sigma**2), label, channels=2)[:, :3]
        denoise = NetworkDenoiser(
            DiscreteVP(cosine_betas(steps)),
            None,
            lambda p, x, c: fixed_net(x, c, 2),
            parameterizations.iddpm,
        )
        self.check(denoise, self.x - sigma * raw)


def test_a_denoiser_on_another_process_keeps_its_shape_and_its_condition() -> None:
    denoise = from_score(VP(), lambda x, t, shift: shift - x, shape=(3,))
    x, shift = jnp.ones((2, 3)), jnp.full((2, 3), 4.0)
    assert on_process(denoise, EDM()).shape == (3,) and on_process(denoise, EDM()).sde == EDM()
    bound = on_process(Conditioned(denoise, shift), EDM())
    chex.assert_trees_all_close(bound(x, 0.5), on_process(denoise, EDM())(x, 0.5, shift))
    chex.assert_trees_all_close(Conditioned(on_process(denoise, EDM()), shift)(x, 0.5), bound(x, 0.5))
    assert unbind(bound) == (on_process(denoise, EDM()), shift)
    outer = jnp.zeros((2, 3))
    assert unbind(Conditioned(bound, outer))[1] is outer


# --- oracles ----------------------------------------------------------------------------------------------------------


@songs_sde
@pytest.mark.parametrize("make", [gaussian, mixture], ids=["gaussian", "mixture"])
@in_float64
def test_an_oracles_score_is_the_gradient_of_its_log_density(name: str, make: Any) -> None:
    oracle = make(SDES[name])
    x = jnp.asarray(X[:, : oracle.shape[0]])

    @jax.jit
    def both(x: Any, t: Any) -> tuple[Any, Any]:
        return score_of(oracle, x, t), jax.grad(lambda x: jnp.sum(oracle.log_prob(x, t)))(x)

    chex.assert_trees_all_close(*both(x, TIMES), rtol=1e-9, atol=1e-9)


@songs_sde
@in_float64
def test_the_gaussian_log_density_is_scipys(name: str) -> None:
    process, t = PROCESSES[name], 0.3
    law = scipy.stats.multivariate_normal(
        process.alpha(t) * MEAN, process.alpha(t) ** 2 * COV + process.sigma(t) ** 2 * np.eye(3)
    )
    np.testing.assert_allclose(gaussian(SDES[name]).log_prob(jnp.asarray(X), t), law.logpdf(X), rtol=1e-10)


@songs_sde
@in_float64
def test_the_gaussian_flow_satisfies_its_differential_equation(name: str) -> None:
    oracle, x = gaussian(SDES[name]), jnp.asarray(X)

    @jax.jit
    def there_and_back(x: Any) -> Any:
        there, rate = jax.jvp(lambda s: oracle.flow(x, 0.8, s), (0.2,), (1.0,))
        return (rate, x, x), (velocity(oracle, there, 0.2), oracle.flow(x, 0.8, 0.8), oracle.flow(there, 0.2, 0.8))

    chex.assert_trees_all_close(*there_and_back(x), rtol=1e-9, atol=1e-9)


@songs_sde
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


@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (2,), (3, 2, 1), ()])
def test_an_output_that_is_not_shaped_like_x_is_refused_and_not_broadcast(shape: tuple[int, ...]) -> None:
    x, t, sde = jnp.ones((3, 2)), jnp.full(3, 0.5), VP()
    message = rf"has shape {re.escape(str(shape))} for x of shape \(3, 2\): it must be shaped like x"
    score = from_score(sde, lambda x, t: jnp.ones(shape))
    network = NetworkDenoiser(sde, None, lambda params, x, t: jnp.ones(shape))
    for denoise in (score, network):
        with pytest.raises(ValueError, match=message):
            denoise(x, t)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(denoise, x, t)
    with pytest.raises(ValueError, match=message):
        network.eps_error(x, x, t)
