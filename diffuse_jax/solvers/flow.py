"""Solvers of the probability flow dx/dt = α′·x0 + σ′·eps (2011.13456, eq. 13, without ∞ − ∞), and DDIM's family around
it.

∫x0 dα + ∫eps dσ over [s, t] is all there is to integrate, so a rule for Stieltjes integrals needs α and σ at two times
and no derivative: the left-point rule is DDIM, the trapezoid is Heun.
"""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from diffuse_jax._pytree import pytree, static
from diffuse_jax.denoiser import Denoised, Denoiser, unbind
from diffuse_jax.sde import Array, expand
from diffuse_jax.solvers.base import Noise, Solver

__all__ = ["adaptive", "ddim", "heun", "integrate", "velocity"]


def ddim(eta: float = 0.0) -> Solver:
    """x_s = α_s·x0 + √(σ_s² − ς²)·eps + ς·z with ς = η·σ_s·√(1 − (α_t·σ_s/(α_s·σ_t))²) (2010.02502, eq. 12 and 16).

    η = 0 is the first-order solver of the flow, exact in one step for a point mass; η = 1 is ancestral sampling.
    """
    return Solver(step=Partial(_ddim, eta), order=1 if _is_zero(eta) else None, weak_order=1, evaluations=1)


def _is_zero(eta: Any) -> bool:
    return isinstance(eta, int | float) and eta == 0


def _ddim(
    eta: Array, noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, tuple[()]]:
    sde = denoise.sde
    x0, eps = denoise(x, t)
    share = -jnp.square(eta) * jnp.expm1(sde.log_snr(t) - sde.log_snr(s))
    x_mean = sde.alpha(s) * x0 + sde.sigma(s) * jnp.sqrt(1 - share) * eps
    # η·√(…), not √(η²·…): the square root has no derivative at η = 0.
    std = eta * sde.sigma(s) * jnp.sqrt(-jnp.expm1(sde.log_snr(t) - sde.log_snr(s)))
    return x_mean + std * noise(0), x_mean, memory


def heun() -> Solver:
    """x_s = x + (α_s − α_t)·(x0 + x0′)/2 + (σ_s − σ_t)·(eps + eps′)/2, primes taken at the DDIM step. Order 2.

    On VE this is the deterministic sampler of EDM (2206.00364, algorithm 1) on the grid's own σ.
    """
    return Solver(step=_heun, order=2, evaluations=2)


def _heun(
    noise: Noise, x: Array, memory: tuple[()], t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, tuple[()]]:
    sde = denoise.sde
    d_alpha, d_sigma = sde.alpha(s) - sde.alpha(t), sde.sigma(s) - sde.sigma(t)
    first = denoise(x, t)
    second = denoise(x + d_alpha * first.x0 + d_sigma * first.eps, s)
    mean = Denoised(0.5 * (first.x0 + second.x0), 0.5 * (first.eps + second.eps))
    x = x + d_alpha * mean.x0 + d_sigma * mean.eps
    return x, x, memory


def velocity(denoise: Denoiser, x: Array, t: Any, cond: Any = None) -> Array:
    """dx/dt of the probability flow at x (batch, …) and t, a scalar or (batch,)."""
    x0, eps = denoise(x, t, cond)
    return expand(denoise.sde.alpha_rate(t), x) * x0 + expand(denoise.sde.sigma_rate(t), x) * eps


class Integrated(NamedTuple):
    """The end of one adaptive solve: its state (NaN where `max_steps` was not enough) and the vector field's
    evaluations."""

    y: Any
    evaluations: Array


def integrate(field: Any, y: Any, t: Array, s: Array, args: Any, *, rtol: Any, atol: Any, max_steps: int) -> Integrated:
    """Integrates dy/dt = field(t, y, args) of one sample from t to s by Dormand–Prince 5(4) with a PID step size
    (diffrax)."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri5(),
        t0=t,
        t1=s,
        dt0=0.01 * (s - t),
        y0=y,
        args=args,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        throw=False,
    )
    done = solution.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda leaf: jnp.where(done, leaf[-1], jnp.nan), solution.ys)
    # Six stages a step, accepted or not (the seventh is the next step's first), and the first stage of all.
    return Integrated(end, 6 * solution.stats["num_steps"] + 1)


def adaptive(rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Solver:
    """The flow from t to s to a tolerance, each sample with its own step sizes, so that it does not depend on its
    batch-mates.

    The memory is the number of evaluations so far, (batch,). A sample that needs more than `max_steps` steps in an
    interval becomes NaN.
    """
    return Solver(step=Partial(_adaptive, _Limit(max_steps), rtol, atol), init=_no_evaluations, count=_as_they_are)


def _no_evaluations(x: Array, times: Array, denoise: Denoiser) -> Array:
    return jnp.zeros(x.shape[0], jnp.int32)


def _as_they_are(evaluations: Array) -> Array:
    return evaluations


@pytree
class _Limit:
    """What a compilation depends on, compared by value."""

    max_steps: int = static()


def _adaptive(
    limit: _Limit,
    rtol: Array,
    atol: Array,
    noise: Noise,
    x: Array,
    evaluations: Array,
    t: Array,
    s: Array,
    denoise: Denoiser,
) -> tuple[Array, Array, Array]:
    denoise, cond = unbind(denoise)

    def field(time: Array, y: Array, args: tuple[Denoiser, Any]) -> Array:
        one, one_cond = args
        return velocity(one, y[None], time, one_cond)[0]

    def solve(y: Array, cond: Any) -> Integrated:
        one_cond = jax.tree.map(lambda leaf: leaf[None], cond)
        return integrate(field, y, t, s, (denoise, one_cond), rtol=rtol, atol=atol, max_steps=limit.max_steps)

    end = jax.vmap(solve)(x, cond)
    return end.y, end.y, evaluations + end.evaluations
