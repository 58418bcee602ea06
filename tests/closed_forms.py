"""Shared by the proofs of the numerics: the processes restated in NumPy, closed forms, reference flows, a slope.

Nothing here calls the library's numerics: α, σ, f and g² are written again from Song et al. (2011.13456), in float64.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.linalg
import scipy.special
import scipy.stats

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
    from_beta,
    geometric_sigmas,
    linear_betas,
)

SDES: dict[str, SDE] = {"vp": VP(), "subvp": SubVP(), "ve": VE()}


def in_float64(test: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a test with 64-bit floats enabled."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(True):
            return test(*args, **kwargs)

    return run


class Process(NamedTuple):
    """A process in NumPy: four functions of t."""

    alpha: Callable[[Any], Any]
    sigma: Callable[[Any], Any]
    f: Callable[[Any], Any]
    g2: Callable[[Any], Any]

    def log_snr(self, t: Any) -> Any:
        return 2 * np.log(self.alpha(t) / self.sigma(t))


def _beta(t: Any) -> Any:
    return 0.1 + 19.9 * np.asarray(t, np.float64)


def _integrated_beta(t: Any) -> Any:
    t = np.asarray(t, np.float64)
    return 0.1 * t + 9.95 * t**2


PROCESSES = {
    "vp": Process(
        alpha=lambda t: np.exp(-_integrated_beta(t) / 2),
        sigma=lambda t: np.sqrt(-np.expm1(-_integrated_beta(t))),
        f=lambda t: -_beta(t) / 2,
        g2=_beta,
    ),
    "subvp": Process(
        alpha=lambda t: np.exp(-_integrated_beta(t) / 2),
        sigma=lambda t: -np.expm1(-_integrated_beta(t)),
        f=lambda t: -_beta(t) / 2,
        g2=lambda t: -_beta(t) * np.expm1(-2 * _integrated_beta(t)),
    ),
    "ve": Process(
        alpha=lambda t: np.ones_like(np.asarray(t, np.float64)),
        sigma=lambda t: 0.01 * 5000.0 ** np.asarray(t, np.float64),
        f=lambda t: np.zeros_like(np.asarray(t, np.float64)),
        g2=lambda t: (0.01 * 5000.0 ** np.asarray(t, np.float64)) ** 2 * 2 * np.log(5000.0),
    ),
}


def gaussian_data(dims: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A mean (dims,) and a full covariance (dims, dims) with eigenvalues from 0.1 to 1.5."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    return rng.uniform(-1, 1, dims), rotation @ np.diag(np.linspace(0.1, 1.5, dims)) @ rotation.T


def marginal(process: Process, mean: np.ndarray, cov: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x(t) for data N(mean, cov)."""
    return process.alpha(t) * mean, process.alpha(t) ** 2 * cov + process.sigma(t) ** 2 * np.eye(len(mean))


def gaussian_flow_log_prob(
    process: Process, mean: np.ndarray, cov: np.ndarray, x: np.ndarray, t: float, prior_std: float
) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) (batch,) and x(T = 1), from the flow's affine map: log prior(x(T)) + ½ log det(C_1·C_t⁻¹)."""
    (mean_t, cov_t), (mean_1, cov_1) = marginal(process, mean, cov, t), marginal(process, mean, cov, 1.0)
    gain = np.real(scipy.linalg.sqrtm(cov_1) @ np.linalg.inv(scipy.linalg.sqrtm(cov_t)))
    end = mean_1 + (x - mean_t) @ gain.T
    log_prior = scipy.stats.norm.logpdf(end, scale=prior_std).sum(-1)
    return log_prior + 0.5 * (np.linalg.slogdet(cov_1)[1] - np.linalg.slogdet(cov_t)[1]), end


#: Two well separated Gaussians in the plane: weights, means and standard deviations.
MIXTURE = (np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [0.8, -0.2]]), np.array([0.3, 0.5]))


@functools.cache
def mixture_flow(name: str, start: float, stop: float) -> tuple[np.ndarray, np.ndarray]:
    """Four states of MIXTURE's flow dx/dt = f·x − ½g²·score at `start`, and where SciPy takes them at `stop`."""
    process, (weights, means, stds) = ALL_PROCESSES[name], MIXTURE

    def rate(t: float, flat: np.ndarray) -> np.ndarray:
        x = flat.reshape(-1, 2)
        variance = process.alpha(t) ** 2 * stds**2 + process.sigma(t) ** 2
        offset = x[:, None] - process.alpha(t) * means
        log_joint = np.log(weights / variance) - 0.5 * (offset**2).sum(-1) / variance
        share = scipy.special.softmax(log_joint, axis=1)
        score = -(share[..., None] * offset / variance[:, None]).sum(1)
        return (process.f(t) * x - 0.5 * process.g2(t) * score).ravel()

    begin = float(process.sigma(start)) * np.array([[1.0, 0.3], [-0.4, 0.8], [0.2, -1.1], [-0.9, -0.5]])
    end = scipy.integrate.solve_ivp(rate, (start, stop), begin.ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    return begin, end.y[:, -1].reshape(-1, 2)


def slope(counts: Any, errors: Any) -> float:
    """The order p of errors ∝ counts^−p, by least squares in logarithms."""
    return -float(np.polyfit(np.log(np.asarray(counts, float)), np.log(np.asarray(errors, float)), 1)[0])


# --- every process ----------------------------------------------------------------------------------------------------


def _float64(t: Any) -> np.ndarray:
    return np.asarray(t, np.float64)


def _variance_preserving(log_alpha: Callable[[Any], Any], f: Callable[[Any], Any]) -> Process:
    return Process(
        alpha=lambda t: np.exp(log_alpha(t)),
        sigma=lambda t: np.sqrt(-np.expm1(2 * log_alpha(t))),
        f=f,
        g2=lambda t: -2 * f(t),
    )


def _table(logs: np.ndarray) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The broken line through `logs` (N + 1,) at k/N, and its slope, at a node that of the segment which it ends."""
    n = len(logs) - 1

    def segment(t: Any) -> Any:
        return np.clip(np.ceil(np.round(_float64(t) * n, 9)).astype(int) - 1, 0, n - 1)

    return lambda t: np.interp(_float64(t) * n, np.arange(n + 1), logs), lambda t: n * np.diff(logs)[segment(t)]


#: The angle of the cosine schedule (2102.09672, eq. 17), and what it is at time 0.
_COSINE_RATE = np.pi / 2 / 1.008
_COSINE_FIRST = 0.008 * _COSINE_RATE


def _cosine_angle(t: Any) -> Any:
    return _COSINE_FIRST + _COSINE_RATE * _float64(t)


#: DDPM's table of β and SMLD's of σ, and the logarithms that they give at k/N.
DDPM_BETAS = np.linspace(1e-4, 0.02, 1000)
SMLD_SIGMAS = np.exp(np.linspace(np.log(0.01), np.log(50.0), 1000))
_DDPM_LOG_ALPHA, _DDPM_F = _table(np.concatenate([[0.0], np.cumsum(np.log1p(-DDPM_BETAS)) / 2]))
_SMLD_LOG_SIGMA, _SMLD_SLOPE = _table(np.log(np.concatenate([[SMLD_SIGMAS[0] ** 2 / SMLD_SIGMAS[1]], SMLD_SIGMAS])))

ALL_SDES: dict[str, SDE] = SDES | {
    "cosine": Cosine(),
    "edm": EDM(),
    "flow": RectifiedFlow(),
    "beta": from_beta(lambda t: 6 - 4 * jnp.cos(jnp.pi * t)),
    "ddpm": DiscreteVP(linear_betas()),
    "smld": DiscreteVE(geometric_sigmas()),
}
#: Their restatements. Where α(T) = 0 the library floors it at rounding: compare short of T.
ALL_PROCESSES: dict[str, Process] = PROCESSES | {
    "cosine": Process(
        alpha=lambda t: np.cos(_cosine_angle(t)) / np.cos(_COSINE_FIRST),
        # 1 − α² by sin²a − sin²b = sin(a − b)·sin(a + b), which does not cancel.
        sigma=lambda t: (
            np.sqrt(np.sin(_COSINE_RATE * _float64(t)) * np.sin(_COSINE_FIRST + _cosine_angle(t)))
            / np.cos(_COSINE_FIRST)
        ),
        f=lambda t: -_COSINE_RATE * np.tan(_cosine_angle(t)),
        g2=lambda t: 2 * _COSINE_RATE * np.tan(_cosine_angle(t)),
    ),
    "edm": Process(
        alpha=lambda t: np.ones_like(_float64(t)),
        sigma=_float64,
        f=lambda t: np.zeros_like(_float64(t)),
        g2=lambda t: 2 * _float64(t),
    ),
    "flow": Process(
        alpha=lambda t: 1 - _float64(t),
        sigma=_float64,
        f=lambda t: -1 / (1 - _float64(t)),
        g2=lambda t: 2 * _float64(t) / (1 - _float64(t)),
    ),
    "beta": _variance_preserving(
        lambda t: -3 * _float64(t) + 2 / np.pi * np.sin(np.pi * _float64(t)),
        lambda t: -3 + 2 * np.cos(np.pi * _float64(t)),
    ),
    "ddpm": _variance_preserving(_DDPM_LOG_ALPHA, _DDPM_F),
    "smld": Process(
        alpha=lambda t: np.ones_like(_float64(t)),
        sigma=lambda t: np.exp(_SMLD_LOG_SIGMA(t)),
        f=lambda t: np.zeros_like(_float64(t)),
        g2=lambda t: 2 * _SMLD_SLOPE(t) * np.exp(2 * _SMLD_LOG_SIGMA(t)),
    ),
}
