"""Every solver against its published formula in NumPy (`published`), along a whole trajectory; φ; refusals."""

import copy
import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from closed_forms import ALL_SDES, SMLD_SIGMAS, in_float64
from published import (
    MIXED,
    POINT,
    Form,
    Published,
    Setting,
    algorithm_2,
    ancestral,
    by_steps,
    ddim,
    ddpm,
    deis,
    euler_ancestral,
    euler_in_sigma,
    euler_maruyama,
    forward_variance,
    ipndm,
    multistep,
    multistep_after_2s,
    reverse_diffusion,
    sa_solver,
    singlestep,
    stochastic_two_stages,
    trapezoid,
    unipc,
)
from tiers import proof

from diffuse_jax import solvers
from diffuse_jax.denoiser import Denoised
from diffuse_jax.sampling import denoise_once, last_state, sample, solve
from diffuse_jax.sde import SDE
from diffuse_jax.solvers import Solver
from diffuse_jax.solvers.exponential import phi


class Network(NamedTuple):
    """NumPy's denoiser, as the library takes one."""

    sde: SDE
    on: Setting

    def __call__(self, x: Any, t: Any, cond: Any = None) -> Denoised:
        return Denoised(*map(jnp.asarray, self.on.members(np.asarray(x), float(t))))


def run(
    function: Callable[..., Any], name: str, on: Setting, solver: Solver, times: Any, x: Any, **options: Any
) -> Any:
    """`solve` or `sample` on recorded noise, its scan unrolled in Python: nothing here is worth a compilation."""

    def recorded(keys: Any, stream: Any, x: Any, span: Any) -> Any:
        return lambda i: jnp.asarray(on.z)[stream - 1, i]

    with jax.disable_jit():
        network = Network(ALL_SDES[name], on)
        return function(None, network, solver, jnp.asarray(times), jnp.asarray(x), noise=recorded, **options)


# --- every solver -----------------------------------------------------------------------------------------------------

SHIFT = np.array([0.3, -0.2])


def shift(on: Setting, x: np.ndarray, t: float, z: np.ndarray) -> np.ndarray:
    return x + SHIFT


def shifting(noise: Any, x: Any, memory: Any, t: Any, s: Any, denoise: Any) -> Any:
    return x + SHIFT, x + SHIFT, memory


def langevin(on: Setting, x: np.ndarray, t: float, z: np.ndarray) -> np.ndarray:
    """A step of the annealed Langevin dynamics of 2011.13456's code: ε = 2(r·σ)²."""
    epsilon = 2 * (0.16 * on.sigma(t)) ** 2
    return x + epsilon * on.score(x, t) + np.sqrt(2 * epsilon) * z[0]


def without_last_draws(published: Published, on: Setting, states: np.ndarray) -> np.ndarray:
    quiet = copy.copy(on)
    quiet.z = np.concatenate([on.z[:-1], np.zeros_like(on.z[:1])])
    return published(quiet)[-1]


def as_it_ends(published: Published, on: Setting, states: np.ndarray) -> np.ndarray:
    return states[-1]


class Case(NamedTuple):
    """A formula, and the solvers that are it, on some processes; `exact` where it is exact for a point, in law; and
    what its last mean is, from its states."""

    published: Published
    solvers: tuple[Solver, ...]
    on: tuple[str, ...] = ("vp", "flow")
    exact: bool = True
    mean: Callable[[Published, Setting, np.ndarray], np.ndarray] = without_last_draws


def two_stages(eta: float) -> Case:
    def mean(published: Published, on: Setting, states: np.ndarray) -> np.ndarray:
        t, s = on.times[-2:]
        return stochastic_two_stages(eta, added=0.0)(on, states[-2], t, s, on.z[-1])

    return Case(by_steps(stochastic_two_stages(eta)), (solvers.stochastic_runge_kutta(eta),), mean=mean)


def sde_dpm(order: int, eta: float, **options: Any) -> tuple[Published, tuple[Solver, ...]]:
    two = options.get("form", "midpoint")
    return multistep(order, Form("x0", eta), two=two), (solvers.sde_dpm_solver(order, eta, **options),)


SONGS = ("vp", "subvp", "ve")
WINDOW = {"churn_min": 0.7, "churn_max": 4.5}
CASES = {
    "ddim": Case(
        by_steps(ddim(0.0)),
        (
            solvers.ddim(),
            solvers.dpm_solver_single(1),
            solvers.dpm_solver_single(1, "eps"),
            solvers.dpm_solver_multi(1),
            solvers.dpm_solver_multi(1, "eps"),
            solvers.deis(1),
            solvers.sde_dpm_solver(1, 0.0),
        ),
        (*SONGS, "flow"),
    ),
    "ddim 0.5": Case(by_steps(ddim(0.5)), (solvers.ddim(0.5),), SONGS),
    "ddim 1": Case(
        by_steps(ddim(1.0)), (solvers.ddim(1.0), solvers.ancestral(), solvers.sde_dpm_solver(1, 1.0)), SONGS
    ),
    "ddim's larger noise": Case(by_steps(ddim(1.0, noise=1.0)), (solvers.ancestral("beta"),), ("vp",), exact=False),
    "ddpm": Case(by_steps(ddpm), (solvers.ddim(1.0), solvers.ancestral(), solvers.sde_dpm_solver(1, 1.0)), ("vp",)),
    "euler ancestral": Case(
        by_steps(euler_ancestral),
        (solvers.ddim(1.0), solvers.ancestral(), solvers.sde_dpm_solver(1, 1.0)),
        ("ve", "edm"),
    ),
    "euler": Case(by_steps(euler_maruyama(0.0)), (solvers.euler_maruyama(0),), SONGS, exact=False),
    "euler-maruyama 0.5": Case(by_steps(euler_maruyama(0.5)), (solvers.euler_maruyama(0.5),), SONGS, exact=False),
    "euler-maruyama": Case(by_steps(euler_maruyama(1.0)), (solvers.euler_maruyama(),), SONGS, exact=False),
    "reverse diffusion": Case(by_steps(reverse_diffusion), (solvers.reverse_diffusion(),), SONGS, exact=False),
    "ancestral beta": Case(
        by_steps(ancestral(lambda on, t, s: forward_variance(on, t, s)[1])),
        (solvers.ancestral("beta"),),
        SONGS,
        exact=False,
    ),
    "ancestral posterior": Case(
        by_steps(ancestral(lambda on, t, s: forward_variance(on, t, s)[1] * (on.sigma(s) / on.sigma(t)) ** 2)),
        (solvers.ancestral(),),
        SONGS,
    ),
    "trapezoid": Case(by_steps(trapezoid), (solvers.heun(),)),
    "edm": Case(by_steps(algorithm_2()), (solvers.edm(), solvers.heun()), ("ve", "edm")),
    "edm in x/alpha": Case(by_steps(algorithm_2()), (solvers.edm(),)),
    "edm churned": Case(
        by_steps(algorithm_2(2.0, 0.7, 4.5)), (solvers.edm(2.0, **WINDOW),), ("edm", "vp"), mean=as_it_ends
    ),
    "edm churned most": Case(
        by_steps(algorithm_2(40.0, 0.7, 4.5, 1.007)),
        (solvers.edm(40.0, noise_scale=1.007, **WINDOW),),
        ("edm", "vp"),
        exact=False,
        mean=as_it_ends,
    ),
    "2s": Case(singlestep(2), (solvers.dpm_solver_single(2), solvers.stochastic_runge_kutta(0.0))),
    "3s": Case(singlestep(3), (solvers.dpm_solver_single(3),)),
    "2s eps": Case(singlestep(2, "eps"), (solvers.dpm_solver_single(2, "eps"),)),
    "3s eps": Case(singlestep(3, "eps"), (solvers.dpm_solver_single(3, "eps"),)),
    "2m": Case(multistep(2), (solvers.dpm_solver_multi(2), solvers.sde_dpm_solver(2, 0.0))),
    "2m taylor": Case(
        multistep(2, two="taylor"),
        (solvers.dpm_solver_multi(2, form="taylor"), solvers.sde_dpm_solver(2, 0.0, form="taylor")),
    ),
    "2m eps": Case(multistep(2, Form("eps")), (solvers.dpm_solver_multi(2, "eps"),)),
    "2m eps taylor": Case(
        multistep(2, Form("eps"), two="taylor"), (solvers.dpm_solver_multi(2, "eps", form="taylor"),)
    ),
    "3m": Case(multistep(3), (solvers.dpm_solver_multi(3, start=1), solvers.sde_dpm_solver(3, 0.0))),
    "3m eps": Case(multistep(3, Form("eps")), (solvers.dpm_solver_multi(3, "eps", start=1),)),
    "3m legacy": Case(multistep(3, second=1.0), (solvers.dpm_solver_multi(3, legacy=True),)),
    "3m eps legacy": Case(multistep(3, Form("eps"), second=1.0), (solvers.dpm_solver_multi(3, "eps", legacy=True),)),
    "2m after 2s": Case(multistep_after_2s(2), (solvers.dpm_solver_multi(2, start=2),)),
    "2m after 2s taylor": Case(
        multistep_after_2s(2, two="taylor"), (solvers.dpm_solver_multi(2, start=2, form="taylor"),)
    ),
    "3m after 2s": Case(multistep_after_2s(3), (solvers.dpm_solver_multi(3),)),
    "3m eps after 2s": Case(multistep_after_2s(3, Form("eps")), (solvers.dpm_solver_multi(3, "eps"),)),
    "sde 1, 0.5": Case(*sde_dpm(1, 0.5)),
    "sde 2m": Case(*sde_dpm(2, 1.0)),
    "sde 2m, 0.5": Case(*sde_dpm(2, 0.5)),
    "sde 2m heun": Case(*sde_dpm(2, 1.0, form="taylor")),
    "sde 2m heun, 0.5": Case(*sde_dpm(2, 0.5, form="taylor")),
    "sde 3m": Case(*sde_dpm(3, 1.0)),
    "sde 3m, 0.5": Case(*sde_dpm(3, 0.5, form="taylor")),
    "stochastic 2s": two_stages(1.0),
    "stochastic 2s, 0.5": two_stages(0.5),
    "sde 3m legacy": Case(
        multistep(3, Form("x0", 1.0), two="taylor", second=1.0),
        (solvers.sde_dpm_solver(3, form="taylor", legacy=True),),
    ),
    "sa 1": Case(sa_solver(1, 1.0), (solvers.sa_solver(1),)),
    "sa 2": Case(sa_solver(2, 0.5), (solvers.sa_solver(2, 0.5),)),
    "sa 3": Case(sa_solver(3, 1.0), (solvers.sa_solver(3),)),
    "ipndm": Case(ipndm, (solvers.ipndm(),)),
    "euler in sigma": Case(by_steps(euler_in_sigma(1.0)), (solvers.euler_in_sigma(),), SONGS, exact=False),
    "euler in sigma, 0.5": Case(by_steps(euler_in_sigma(0.5)), (solvers.euler_in_sigma(0.5),), SONGS, exact=False),
    "deis 2": Case(deis(2), (solvers.deis(2),)),
    "deis 3": Case(deis(3), (solvers.deis(3, start=1),)),
    "deis 4": Case(deis(4), (solvers.deis(4, start=1),)),
    "deis 3 after 2": Case(deis(3, 2), (solvers.deis(3),)),
    "deis 4 after 3": Case(deis(4, 3), (solvers.deis(4),)),
    "unipc 1 bh1": Case(unipc(1, "bh1"), (solvers.unipc(1, "bh1"),)),
    "unipc 1 bh2": Case(unipc(1), (solvers.unipc(1),)),
    "unipc 2 bh1": Case(unipc(2, "bh1"), (solvers.unipc(2, "bh1"),)),
    "unipc 2 bh2": Case(unipc(2), (solvers.unipc(2),)),
    "unipc 3 bh1": Case(unipc(3, "bh1"), (solvers.unipc(3, "bh1", start=1),)),
    "unipc 3 bh2": Case(unipc(3), (solvers.unipc(3, start=1),)),
    "unipc 3 after 3s": Case(unipc(3, start=3), (solvers.unipc(3),)),
    "unipc moved by a constant": Case(
        unipc(2, move=shift), (solvers.predictor_corrector(solvers.unipc(2), Solver(step=shifting)),), exact=False
    ),
    "unipc moved by langevin": Case(
        unipc(2, move=langevin),
        (solvers.predictor_corrector(solvers.unipc(2), solvers.langevin()),),
        exact=False,
        mean=as_it_ends,
    ),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) if i == 0 else proof(kind, name) for kind, case in CASES.items() for i, name in enumerate(case.on)],
)
@in_float64
def test_a_solver_is_its_published_formula_and_exact_for_a_point(kind: str, name: str) -> None:
    """Exact in law, noise and all: what of each draw is in x(t) adds up to the mean α·point and the variance σ²."""
    case, on = CASES[kind], Setting(name)
    states = case.published(on)
    last_mean = case.mean(case.published, on, states)
    for solver in case.solvers:
        solution = run(solve, name, on, solver, on.times, on.x, path=True)
        path = np.asarray(solution.path)
        np.testing.assert_allclose(path, states, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(solution.mean, last_mean, rtol=1e-9, atol=1e-10)
        if not case.exact:
            continue
        mean, parts = path[:, MIXED], path[:, MIXED + 1 :] - path[:, MIXED, None]
        np.testing.assert_allclose(mean, on.alpha(on.times)[:, None] * POINT, rtol=1e-9)
        np.testing.assert_allclose((parts**2).sum(1), np.outer(on.sigma(on.times) ** 2, np.ones(2)), rtol=1e-9)
        assert np.all(parts[:, 0] > 0)


# --- whole samplers ---------------------------------------------------------------------------------------------------


@in_float64
def test_edm_with_a_last_denoising_is_algorithm_2_to_level_zero() -> None:
    on = Setting("edm")
    churned = {"churn": 3.0, "noise_scale": 1.003, **WINDOW}
    x = by_steps(algorithm_2(3.0, 0.7, 4.5, 1.003))(on)[-1]
    level = on.times[-1]
    x = x + (0 - level) * (x - on.members(x, level)[0]) / level
    found = run(sample, "edm", on, solvers.edm(**churned), on.times, on.x, finish=denoise_once)
    np.testing.assert_allclose(found, x, rtol=1e-9)


#: SMLD's entries of the levels of a small table, and how often each is visited.
ENTRIES, VISITS = np.array([999, 870, 700, 520, 370, 250]), 3


@pytest.mark.parametrize("sigma_last", [None, 0.2])
@pytest.mark.parametrize("name", ["smld", "ve"])
@pytest.mark.parametrize("version", [1, 2])
@in_float64
def test_annealed_langevin_is_the_sampler_of_ncsn(version: int, name: str, sigma_last: float | None) -> None:
    """NCSN (1907.05600, algorithm 1) and NCSNv2 with its last denoising (2006.09011, algorithm 1), over a geometric
    table: of the discrete process, and of the continuous one."""
    on, levels, epsilon = Setting(name), SMLD_SIGMAS[ENTRIES], 1e-3
    times = (ENTRIES + 1) / 1000 if name == "smld" else np.log(levels / 0.01) / np.log(5000)
    on.z = np.random.default_rng(1).standard_normal((len(levels), VISITS, *on.x.shape))
    start = levels[0] * on.x

    def score(x: np.ndarray, i: int) -> np.ndarray:
        return (on.members(x, times[i])[0] - x) / levels[i] ** 2

    x = start
    for i, level in enumerate(levels):
        a = epsilon * (level / (levels[-1] if sigma_last is None else sigma_last)) ** 2
        for z in on.z[i]:
            x = x + (a / 2 * score(x, i) + np.sqrt(a) * z if version == 1 else a * score(x, i) + np.sqrt(2 * a) * z)
    x = x if version == 1 else x + levels[-1] ** 2 * score(x, -1)

    solver = solvers.annealed_langevin(epsilon, sigma_last, VISITS, version)
    finish = last_state if version == 1 else denoise_once
    found = run(sample, name, on, solver, np.append(times, times[-1]), start, finish=finish)
    np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-9)


# --- φ ----------------------------------------------------------------------------------------------------------------


def phi_by_series(k: int, z: float) -> float:
    """Σ_j z^j/(j + k)!, in 60 digits."""
    with localcontext(prec=60):
        total, term = Decimal(0), 1 / Decimal(math.factorial(k))
        for j in range(1, 250):
            total, term = total + term, term * Decimal(z) / (j + k)
        return float(total)


@in_float64
def test_phi_is_its_series_and_its_integral() -> None:
    """On both sides of |z| = 1, at 0, and where the exponential is large."""
    z = np.concatenate([np.linspace(-30, 30, 25), *([-v, v] for v in (1e-8, 1e-3, 0.3, 0.999, 1.0, 1.001, 1.5))])
    for k in range(1, 5):
        for dtype, tolerance in ((np.float32, 2e-6), (np.float64, 1e-13)):
            found = phi(k, jnp.asarray(z, dtype))
            assert found.dtype == dtype
            exact = [phi_by_series(k, float(value)) for value in z.astype(dtype)]
            np.testing.assert_allclose(found, exact, rtol=tolerance)
        weight = lambda u, value, k=k: np.exp((1 - u) * value) * u ** (k - 1) / math.factorial(k - 1)  # noqa: E731
        integrals = [scipy.integrate.quad(weight, 0, 1, args=(value,), epsabs=0, epsrel=1e-12)[0] for value in z[::5]]
        np.testing.assert_allclose(found[::5], integrals, rtol=1e-11)


# --- what there is not ------------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[], Solver]] = {
    "dpm_solver_single: order=4 must be one of 1, 2, 3": lambda: solvers.dpm_solver_single(4),
    "dpm_solver_single: order=0 must be one of 1, 2, 3": lambda: solvers.dpm_solver_single(0),
    "dpm_solver_single: predict='v' must be one of 'x0', 'eps'": lambda: solvers.dpm_solver_single(2, "v"),
    "dpm_solver_multi: order=4 must be one of 1, 2, 3": lambda: solvers.dpm_solver_multi(4),
    "dpm_solver_multi: predict='v' must be one of 'x0', 'eps'": lambda: solvers.dpm_solver_multi(2, "v"),
    "dpm_solver_multi: start=3 must be one of 1, 2": lambda: solvers.dpm_solver_multi(2, start=3),
    "dpm_solver_multi: start=0 must be one of 1, 2, 3": lambda: solvers.dpm_solver_multi(3, start=0),
    "dpm_solver_multi: form='heun' must be one of 'midpoint', 'taylor'": lambda: solvers.dpm_solver_multi(form="heun"),
    "dpm_solver_multi: legacy is 3M as published: order=3, start=1, not order=2, start=None": (
        lambda: solvers.dpm_solver_multi(2, legacy=True)
    ),
    "dpm_solver_multi: legacy is 3M as published: order=3, start=1, not order=3, start=2": (
        lambda: solvers.dpm_solver_multi(3, start=2, legacy=True)
    ),
    "sde_dpm_solver: order=4 must be one of 1, 2, 3": lambda: solvers.sde_dpm_solver(4),
    "sde_dpm_solver: form='heun' must be one of 'midpoint', 'taylor'": lambda: solvers.sde_dpm_solver(form="heun"),
    "sde_dpm_solver: legacy is 3M as published: order=3, not order=2": lambda: solvers.sde_dpm_solver(2, legacy=True),
    "sde_dpm_solver: eta=-0.5 must be at least 0 and finite": lambda: solvers.sde_dpm_solver(2, -0.5),
    "stochastic_runge_kutta: eta=-0.5 must be at least 0 and finite": lambda: solvers.stochastic_runge_kutta(-0.5),
    "edm: churn_min=2.0 must not be above churn_max=1.0": lambda: solvers.edm(1.0, 2.0, 1.0),
    "adaptive: max_evaluations=6 must be at least 7: one step takes that many": (
        lambda: solvers.adaptive(max_evaluations=6)
    ),
    "predictor_corrector: the predictor begins with 2 evaluations, before the corrector has moved x: give a multistep "
    "predictor start=1": lambda: solvers.predictor_corrector(solvers.unipc(3), solvers.langevin()),
    "ddim: eta=1.2 must lie in [0, 1]": lambda: solvers.ddim(1.2),
    "langevin: snr=-1.0 must be at least 0 and finite": lambda: solvers.langevin(-1.0),
    "sde_dpm_solver: eta=None must be at least 0 and finite": lambda: solvers.sde_dpm_solver(2, None),
    "unipc: order=2.0 must be one of 1, 2, 3": lambda: solvers.unipc(2.0),
    "ipndm: order=5 must be one of 1, 2, 3, 4": lambda: solvers.ipndm(5),
    "deis: order=5 must be one of 1, 2, 3, 4": lambda: solvers.deis(5),
    "deis: start=4 must be one of 1, 2, 3": lambda: solvers.deis(4, start=4),
    "unipc: order=4 must be one of 1, 2, 3": lambda: solvers.unipc(4),
    "unipc: start=3 must be one of 1, 2": lambda: solvers.unipc(2, start=3),
    "unipc: b='bh3' must be one of 'bh1', 'bh2'": lambda: solvers.unipc(2, "bh3"),
    "edm: churn=-1.0 must be at least 0 and finite": lambda: solvers.edm(-1.0),
    "ancestral: variance='large' must be one of 'posterior', 'beta'": lambda: solvers.ancestral("large"),
    "langevin: norm='sample' must be None or 'batch'": lambda: solvers.langevin(norm="sample"),
    "langevin: steps=0 must be at least 1": lambda: solvers.langevin(steps=0),
    "annealed_langevin: version=3 must be 1 (NCSN) or 2 (NCSNv2)": lambda: solvers.annealed_langevin(version=3),
    "annealed_langevin: steps=0 must be at least 1": lambda: solvers.annealed_langevin(steps=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_refusal_names_the_solver_the_argument_and_what_would_do(message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        REFUSED[message]()
    assert str(refusal.value) == message
