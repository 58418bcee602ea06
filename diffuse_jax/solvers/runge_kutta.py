"""Singlestep exponential solvers: DPM-Solver and DPM-Solver++ of orders 1 to 3, and a stochastic one of weak order
2."""

import math
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from diffuse_jax.denoiser import Denoiser
from diffuse_jax.sde import Array
from diffuse_jax.solvers.exponential import DataKernel, Interval, Kernel, NoiseKernel, integrate_through
from diffuse_jax.solvers.solver import Noise, Solver
from diffuse_jax.trees import Static

__all__ = ["dpm_solver_single", "stochastic_runge_kutta"]

KERNELS: dict[str, Kernel] = {"x0": DataKernel(), "eps": NoiseKernel()}


def kernel_of(solver: str, predict: str) -> Kernel:
    if predict not in KERNELS:
        raise ValueError(f"{solver}: predict={predict!r} must be one of {', '.join(map(repr, KERNELS))}")
    return KERNELS[predict]


def check_order(solver: str, name: str, order: int, orders: range) -> None:
    if not isinstance(order, int) or order not in orders:
        raise ValueError(f"{solver}: {name}={order!r} must be one of {', '.join(map(str, orders))}")


def dpm_solver_single(order: int = 2, predict: str = "x0") -> Solver:
    """DPM-Solver++ 1S, 2S and 3S (2211.01095, algorithm 1), or DPM-Solver-1, -2 and -3 (2206.00927).

    `order` evaluations a step, at 0, at 1/2, and at 1/3 and 2/3 of the step in λ = log(α/σ). 1S is DDIM. The grids that
    suit it are even in log-SNR.

    Args:
        order: 1, 2 or 3.
        predict: "x0" for DPM-Solver++, "eps" for DPM-Solver.

    Returns:
        The solver.

    Raises:
        ValueError: For another order or prediction.
    """
    check_order("dpm_solver_single", "order", order, range(1, 4))
    kernel = kernel_of("dpm_solver_single", predict)
    return Solver(step=Partial(_single, kernel, Static(order)), order=order, evaluations=order)


def midpoint(interval: Interval) -> tuple[Array, ...]:
    """Moments under which a straight line is integrated as its value in the middle of the step: the published rule of
    second order."""
    zeroth, _, *others = interval.moments
    return (zeroth, 0.5 * interval.length * zeroth, *others)


def last_stage(
    kernel: Kernel, order: int, x: Array, y: Array, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array]:
    """Where the last evaluation of a step of this order (2 or 3) is: the state and its time; y is the kernel's
    component at (x, t)."""
    sde = denoise.sde
    start, length = kernel.clock(sde, t), kernel.clock(sde, s) - kernel.clock(sde, t)

    def euler(part: float) -> tuple[Array, Array]:
        m = kernel.time(sde, start + part * length)
        interval = kernel.interval(sde, t, m)
        return interval.ratio * x + interval.moments[0] * y, m

    if order == 2:
        return euler(1 / 2)
    u, m = euler(1 / 3)
    second = kernel.component(denoise(u, m))
    m = kernel.time(sde, start + 2 / 3 * length)
    interval = kernel.interval(sde, t, m)
    clocks = (jnp.zeros_like(length), length / 3)
    return interval.ratio * x + integrate_through((y, second), clocks, (True, True), interval.moments), m


def _single(
    kernel: Kernel, order: Static, noise: Noise, x: Array, memory: Any, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, Any]:
    interval = kernel.interval(denoise.sde, t, s)
    y = kernel.component(denoise(x, t))
    if order.value == 1:
        x = interval.ratio * x + interval.moments[0] * y
        return x, x, memory
    u, m = last_stage(kernel, order.value, x, y, t, s, denoise)
    last = kernel.component(denoise(u, m))
    part, moments = (1 / 2, midpoint(interval)) if order.value == 2 else (2 / 3, interval.moments)
    clocks = (jnp.zeros_like(interval.length), part * interval.length)
    x = interval.ratio * x + integrate_through((y, last), clocks, (True, True), moments)
    return x, x, memory


def check_eta(solver: str, eta: Any) -> None:
    if eta is None or (isinstance(eta, Real) and not 0 <= float(eta) < math.inf):
        raise ValueError(f"{solver}: eta={eta} must be at least 0 and finite")


def stochastic_runge_kutta(eta: float = 1.0) -> Solver:
    """DPM-Solver++ 2S with noise of strength η (2211.01095, §5 in two stages; k-diffusion's dpmpp_sde). Weak order 2
    with two evaluations a step.

    A state u in the middle of the step in λ carries noise of its own, std_m·z₀, and

        x_s = ratio·x + (∫weight)·x0(u) + std_s·(ρ·z₀ + √(1 − ρ²)·z₁),    ρ² = (σ̃_t − σ̃_m)/(σ̃_t − σ̃_s)

    ρ² is the share of a Brownian motion in σ̃ = σ/α that has gone by.

    Args:
        eta: η, at least 0: 1 is the reverse SDE, 0 the deterministic 2S.

    Returns:
        The solver.

    Raises:
        ValueError: For an η that is negative or not finite.
    """
    check_eta("stochastic_runge_kutta", eta)
    return Solver(step=Partial(_stochastic, DataKernel(eta)), weak_order=2, evaluations=2)


def _stochastic(
    kernel: DataKernel, noise: Noise, x: Array, memory: Any, t: Array, s: Array, denoise: Denoiser
) -> tuple[Array, Array, Any]:
    sde = denoise.sde
    start, stop = kernel.clock(sde, t), kernel.clock(sde, s)
    m = kernel.time(sde, 0.5 * (start + stop))
    half, whole = kernel.interval(sde, t, m), kernel.interval(sde, t, s)
    early = noise(0)
    u = half.ratio * x + half.moments[0] * denoise(x, t).x0 + kernel.std(sde, t, m) * early
    x_mean = whole.ratio * x + whole.moments[0] * denoise(u, m).x0
    # (σ̃_t − σ̃_m)/(σ̃_t − σ̃_s) = 1/(1 + e^{−h/2}), since σ̃ = e^{−λ} and m is half way in λ.
    share = jax.nn.sigmoid(0.5 * (stop - start))
    z = jnp.sqrt(share) * early + jnp.sqrt(1 - share) * noise(1)
    return x_mean + kernel.std(sde, t, s) * z, x_mean, memory
