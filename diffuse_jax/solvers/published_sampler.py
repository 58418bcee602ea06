"""score_sde's own sampler: the predictor–corrector loop of Song et al. (2011.13456) as their program runs it, with
which their figures were taken.

It differs from `reverse_diffusion`, `ancestral`, `euler_maruyama` and `langevin` in that a step knows the number N of
steps of the loop, and not the time at which it ends. At the time t the discretized forward process takes the step
x_{i+1} = m·x_i + √v·z with i = ⌊t(N − 1)/T⌋, of which `times.score_sde` meets each once:

    vp      m² = 1 − β_i,  v = β_i,  β_i = linspace(β_min/N, β_max/N, N)_i                         (appendix B, eq. 24)
    ve      m = 1,  v = σ_i² − σ_{i−1}²,  log σ_i = linspace(log σ_min, log σ_max, N)_i,  σ_{−1} = 0         (eq. 20)
    euler   m = 1 + f(t)/N,  v = g²(t)/N
    ddpm    as vp, with the β_i and the σ_i = √(1 − ᾱ_i) in the score −eps/σ_i of the table of a `DiscreteVP`
    smld    as ve, with the σ_i of the table of a `DiscreteVE`
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from diffuse_jax._checks import check_not_negative
from diffuse_jax.denoiser import Denoiser
from diffuse_jax.sde import SDE, VE, VP, Array, DiscreteVE, DiscreteVP
from diffuse_jax.solvers.langevin import batch_norm_ratio, langevin_steps
from diffuse_jax.solvers.solver import Noise, Solver, predictor_corrector
from diffuse_jax.trees import Static, pytree, static

__all__ = ["score_sde"]


def score_sde(
    predictor: str = "reverse_diffusion",
    corrector: str | None = None,
    discretization: str = "vp",
    *,
    snr: float = 0.16,
    steps: int = 1,
    probability_flow: bool = False,
) -> Solver:
    """At every time of `times.score_sde` the steps of the corrector, then the predictor:

        euler_maruyama       x_mean = x − (f·x − h·g²·score)/N,    x = x_mean + g·√(1/N)·z, whatever the grid's spacing
        reverse_diffusion    x_mean = (2 − m)·x + h·v·score,       x = x_mean + √v·z
        ancestral            x_mean = (x + v·score)/m,             x = x_mean + √w·z
        none                 x as it is, which is x_mean too
        langevin             x + ε·score + √(2ε)·z,                ε = 2m²(snr·‖z‖/‖score‖)²
        ald                  the same with                         ε = 2m²(snr·σ_t)²

    with h = 1, or ½ and no noise for the `probability_flow`; w = v for vp and ddpm, v·σ_{i−1}²/σ_i² for ve and smld;
    ‖·‖ averaged over the batch, so that a sample depends on its batch-mates. One evaluation for the predictor, but none
    for "none", and one for each step of the corrector.

    Args:
        predictor: "euler_maruyama", "reverse_diffusion", "ancestral" or "none".
        corrector: "langevin", "ald" or None.
        discretization: That of the process: "vp", "ve", "euler" (sub-VP, or another that has f and g²), "ddpm" or
            "smld".
        snr: The signal-to-noise ratio of the corrector.
        steps: The number of its steps, at least 1.
        probability_flow: Halves the score and leaves out the predictor's noise.

    Returns:
        The solver.

    Raises:
        ValueError: For other names; for what score_sde has not, which is ancestral steps and correctors for "euler" and
            ancestral steps of the flow; for euler_maruyama on a table; for an snr that is negative or not finite, and
            no steps; and when it begins, for another process, for N so small that a β_i ≥ 1, and for an N that is not
            the table's.
    """
    check_not_negative("score_sde", snr=snr)
    _refuse(predictor, corrector, discretization, steps, probability_flow)
    form = _Form(_DISCRETIZATIONS[discretization][1], steps, probability_flow)
    step = Partial(_PREDICTORS[predictor], form)
    if predictor == "none":
        predict = Solver(step=step, evaluations=0)
    else:
        reads = "euler" if predictor == "euler_maruyama" else discretization
        predict = Solver(step=step, init=Partial(_begin, Static(reads)), evaluations=1)
    if corrector is None:
        return predict
    correct = Solver(
        step=Partial(_correct, form, Static(_EPSILONS[corrector]), snr),
        init=Partial(_begin, Static(discretization)),
        evaluations=steps,
    )
    return predictor_corrector(predict, correct)


class _Step(NamedTuple):
    """The forward step at a time, its m and v; the variance w that an ancestral step adds; the σ of the score."""

    m: Array
    v: Array
    w: Array
    sigma: Array


@pytree
class _Form:
    """What a compilation depends on, compared by value."""

    discretize: Callable[[SDE, Array, Array], _Step] = static()
    steps: int = static()
    probability_flow: bool = static()


def _begin(discretization: Static, x: Array, times: Array, denoise: Denoiser) -> Array:
    """The memory of predictor and corrector: N, the number of steps."""
    n = times.shape[0] - 1
    process = _DISCRETIZATIONS[discretization.value][0]
    if not isinstance(denoise.sde, process):
        raise ValueError(
            f"score_sde: discretization={discretization.value!r} is that of {process.__name__}, not of "
            f"{type(denoise.sde).__name__}"
        )
    sde: Any = denoise.sde
    if discretization.value == "vp":
        last = sde.beta(sde.T) / n
        if not isinstance(last, jax.core.Tracer) and last >= 1:
            raise ValueError(
                f"score_sde: {n} steps are too few for vp, whose last β is β_max/N = {float(last):.4g} and must be "
                f"below 1: take more than {float(sde.beta(sde.T)):.4g}, or a solver that knows the times"
            )
    if discretization.value in _TABLES and n != sde.N:
        raise ValueError(f"score_sde: {n} steps do not suit {discretization.value}, whose table has {sde.N} entries")
    return jnp.asarray(n, times.dtype)


# --- predictors and correctors ----------------------------------------------------------------------------------------


def _score(form: _Form, x: Array, t: Array, denoise: Denoiser, n: Array) -> tuple[Array, _Step]:
    step = form.discretize(denoise.sde, t, n)
    return -denoise(x, t).eps / step.sigma, step


def _moved(form: _Form, noise: Noise, x_mean: Array, variance: Array, n: Array) -> tuple[Array, Array, Array]:
    return (x_mean if form.probability_flow else x_mean + jnp.sqrt(variance) * noise(0)), x_mean, n


def _euler_maruyama(form: _Form, noise: Noise, x: Array, n: Array, t: Array, s: Array, denoise: Denoiser) -> Any:
    sde = denoise.sde
    h, g2 = 0.5 if form.probability_flow else 1.0, sde.g2(t)
    score = -denoise(x, t).eps / sde.sigma(t)
    return _moved(form, noise, x - (sde.f(t) * x - h * g2 * score) / n, g2 / n, n)


def _reverse_diffusion(form: _Form, noise: Noise, x: Array, n: Array, t: Array, s: Array, denoise: Denoiser) -> Any:
    score, step = _score(form, x, t, denoise, n)
    h = 0.5 if form.probability_flow else 1.0
    return _moved(form, noise, (2 - step.m) * x + h * step.v * score, step.v, n)


def _ancestral(form: _Form, noise: Noise, x: Array, n: Array, t: Array, s: Array, denoise: Denoiser) -> Any:
    score, step = _score(form, x, t, denoise, n)
    return _moved(form, noise, (x + step.v * score) / step.m, step.w, n)


def _none(form: _Form, noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser) -> Any:
    return x, x, memory


def _correct(
    form: _Form, epsilon: Static, snr: Array, noise: Noise, x: Array, n: Array, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, Array]:
    def score_and_size(x: Array, z: Array) -> tuple[Array, Array]:
        score, step = _score(form, x, t, denoise, n)
        return score, 2 * jnp.square(step.m * snr * epsilon.value(denoise.sde.sigma(t), z, score))

    x, x_mean = langevin_steps(form.steps, noise, x, score_and_size)
    return x, x_mean, n


def _batch_ratio(sigma: Array, z: Array, score: Array) -> Array:
    return batch_norm_ratio(z, score)


def _deviation(sigma: Array, z: Array, score: Array) -> Array:
    return sigma


_PREDICTORS: dict[str, Callable[..., Any]] = {
    "euler_maruyama": _euler_maruyama,
    "reverse_diffusion": _reverse_diffusion,
    "ancestral": _ancestral,
    "none": _none,
}
_EPSILONS: dict[str, Callable[[Array, Array, Array], Array]] = {"langevin": _batch_ratio, "ald": _deviation}


# --- discretizations --------------------------------------------------------------------------------------------------


def _floor(position: Array) -> Array:
    """The entry at a position in a table; one short of a whole number by rounding is that number."""
    nearest = jnp.round(position)
    rounding = 4 * jnp.finfo(position.dtype).eps * nearest
    return jnp.floor(jnp.where(jnp.abs(nearest - position) <= rounding, nearest, position))


def _vp(sde: Any, t: Array, n: Array) -> _Step:
    last = jnp.maximum(n - 1, 1)
    beta = sde.beta(_floor(t * last / sde.T) / last * sde.T) / n
    return _Step(jnp.sqrt(1 - beta), beta, beta, sde.sigma(t))


def _ve(sde: SDE, t: Array, n: Array) -> _Step:
    last = jnp.maximum(n - 1, 1)
    i = _floor(t * last / sde.T)
    sigma, below = (sde.sigma(entry / last * sde.T) for entry in (i, i - 1))
    return _between(sigma, jnp.where(i == 0, 0, below), sde.sigma(t))


def _euler(sde: SDE, t: Array, n: Array) -> _Step:
    variance = sde.g2(t) / n
    return _Step(1 + sde.f(t) / n, variance, variance, sde.sigma(t))


def _ddpm(sde: Any, t: Array, n: Array) -> _Step:
    i = _entry(sde, t)
    step = jnp.asarray(sde.steps, t.dtype)[i.astype(int)]
    beta = -jnp.expm1(2 * step)
    return _Step(jnp.exp(step), beta, beta, sde.sigma((i + 1) * (sde.T / sde.N)))


def _smld(sde: Any, t: Array, n: Array) -> _Step:
    i = _entry(sde, t)
    sigma, below = (sde.sigma((entry + 1) * (sde.T / sde.N)) for entry in (i, i - 1))
    return _between(sigma, jnp.where(i == 0, 0, below), sde.sigma(t))


def _entry(sde: Any, t: Array) -> Array:
    return _floor(jnp.maximum(t * (sde.N / sde.T) - 1, 0))


def _between(sigma: Array, below: Array, of_score: Array) -> _Step:
    variance = (sigma - below) * (sigma + below)
    return _Step(jnp.ones_like(sigma), variance, variance * jnp.square(below / sigma), of_score)


#: The processes that each is of, and the step.
_DISCRETIZATIONS: dict[str, tuple[type[SDE], Callable[[Any, Array, Array], _Step]]] = {
    "vp": (VP, _vp),
    "ve": (VE, _ve),
    "euler": (SDE, _euler),
    "ddpm": (DiscreteVP, _ddpm),
    "smld": (DiscreteVE, _smld),
}
_TABLES = ("ddpm", "smld")


def _refuse(predictor: str, corrector: str | None, discretization: str, steps: int, probability_flow: bool) -> None:
    for name, given, known in (
        ("predictor", predictor, _PREDICTORS),
        ("corrector", corrector, (None, *_EPSILONS)),
        ("discretization", discretization, _DISCRETIZATIONS),
    ):
        if given not in known:
            raise ValueError(f"score_sde: {name}={given!r} must be one of {', '.join(map(repr, known))}")
    reasons = {
        "the sampler would do nothing": predictor == "none" and corrector is None,
        "score_sde has no ancestral steps for sub-VP": (predictor, discretization) == ("ancestral", "euler"),
        "score_sde's correctors fail for sub-VP, which has no α_i: predictor_corrector(…, langevin(norm='batch')) "
        "is the like of it": corrector is not None and discretization == "euler",
        "it takes f and g of a process in continuous time": predictor == "euler_maruyama" and discretization in _TABLES,
        "ancestral steps have no probability flow": predictor == "ancestral" and probability_flow,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(
                f"score_sde: {predictor=} with {corrector=}, {discretization=} and {probability_flow=}: {reason}"
            )
    if steps < 1:
        raise ValueError(f"score_sde: steps={steps} must be at least 1")
