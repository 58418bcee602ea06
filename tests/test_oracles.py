"""The box: its posterior and density against SciPy's quadrature and its own limits, in float64 and at the edges of
float32. (The other oracles' proofs are with the denoisers.)"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from closed_forms import ALL_PROCESSES, ALL_SDES, SDES, in_float64

from diffuse_jax.oracles import UniformBox

LOW, HIGH = -1.0, 0.5
TIMES = (1e-3, 0.1, 0.5, 0.9)


def box(name: str) -> UniformBox:
    return UniformBox(ALL_SDES[name], jnp.asarray([LOW]), jnp.asarray([HIGH]))


def places(name: str, t: float) -> np.ndarray:
    """x within the box's image, around its two ends, and far outside in units of the noise; (n, 1)."""
    alpha, sigma = ALL_PROCESSES[name].alpha(t), ALL_PROCESSES[name].sigma(t)
    around = sigma * np.array([-60, -12, -3, -1, -0.1, 0.0, 0.1, 1, 3, 12, 60])
    return np.concatenate([alpha * LOW + around, alpha * HIGH + around, alpha * np.linspace(LOW, HIGH, 5)])[:, None]


def by_quadrature(name: str, t: float, x: float) -> tuple[float, float]:
    """log p and E[x_0 | x], integrating around the mode of the posterior of y = (x_0 − mode)·α/σ."""
    alpha, sigma = float(ALL_PROCESSES[name].alpha(t)), float(ALL_PROCESSES[name].sigma(t))
    mode = min(max(x / alpha, LOW), HIGH)
    z = (alpha * mode - x) / sigma if mode in (LOW, HIGH) else 0.0
    ends = np.clip([-12.0, 12.0], alpha * (LOW - mode) / sigma, alpha * (HIGH - mode) / sigma)
    cuts = np.unique(np.clip([ends[0], -1.0, -0.05, 0.0, 0.05, 1.0, ends[1]], *ends))

    def integral(of: Any) -> float:
        pieces = [scipy.integrate.quad(of, a, b, epsabs=1e-15, epsrel=1e-12)[0] for a, b in itertools.pairwise(cuts)]
        return float(np.sum(pieces))

    mass = integral(lambda y: np.exp(-z * y - y * y / 2))
    mean = integral(lambda y: y * np.exp(-z * y - y * y / 2)) / mass
    return np.log(mass) - z * z / 2 - 0.5 * np.log(2 * np.pi) - np.log(
        alpha * (HIGH - LOW)
    ), mode + sigma / alpha * mean


@in_float64
def test_the_boxs_density_and_posterior_mean_are_scipys() -> None:
    run = jax.jit(lambda oracle, x, t: (oracle.log_prob(x, t), oracle(x, t).x0))
    for name in ("vp", "ve"):
        for t in TIMES:
            x = places(name, t)
            exact = np.array([by_quadrature(name, t, float(one)) for one in x[:, 0]])
            log_prob, x0 = run(box(name), jnp.asarray(x), t)
            np.testing.assert_allclose(log_prob, exact[:, 0], rtol=1e-9, atol=1e-9, err_msg=f"{name} {t}")
            np.testing.assert_allclose(x0[:, 0], exact[:, 1], rtol=1e-9, atol=1e-9, err_msg=f"{name} {t}")


@in_float64
def test_on_every_process_the_boxs_score_is_the_gradient_of_its_log_density() -> None:
    """And x = α·x0 + σ·eps with x0 in the box."""

    @jax.jit
    def both(oracle: UniformBox, x: Any, t: Any) -> Any:
        return oracle(x, t), jax.grad(lambda x: jnp.sum(oracle.log_prob(x, t)))(x)

    for name, process in ALL_PROCESSES.items():
        t = np.repeat(TIMES, len(places(name, 0.1)))
        x = np.concatenate([places(name, time) for time in TIMES])
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        (x0, eps), gradient = both(box(name), jnp.asarray(x), jnp.asarray(t))
        np.testing.assert_allclose(gradient, -eps / sigma, rtol=1e-7, atol=1e-7 / sigma.min(), err_msg=name)
        np.testing.assert_allclose(alpha * x0 + sigma * eps, x, rtol=1e-7, atol=1e-9, err_msg=name)
        assert np.all((x0 >= LOW - 1e-12) & (x0 <= HIGH + 1e-12)), name


@pytest.mark.parametrize("name", SDES)
def test_the_box_holds_in_float32_from_the_smallest_time_to_the_last_and_far_outside(name: str) -> None:
    """What float64 says, at x up to a thousand deviations or boxes away; nothing is NaN, with two derivatives."""
    oracle, t = box(name), np.repeat(np.float32([1e-5, 1e-3, 0.3, 1.0]), 9)
    alpha, sigma = ALL_PROCESSES[name].alpha(t), ALL_PROCESSES[name].sigma(t)
    x = (np.tile([-1e3, -30.0, -2.0, LOW, -0.3, HIGH, 0.7, 30.0, 1e3], 4) * np.where(t < 1, 1, alpha + sigma))[:, None]
    x = np.float32(x)

    def run(x: Any, t: Any, dtype: Any) -> Any:
        given = UniformBox(oracle.sde, jnp.asarray([LOW], dtype), jnp.asarray([HIGH], dtype))
        x, t = jnp.asarray(x, dtype), jnp.asarray(t, dtype)
        x0, slope = jax.jvp(lambda x: given(x, t).x0, (x,), (jnp.ones_like(x),))
        return x0, given.log_prob(x, t), slope, jax.grad(lambda x: jnp.sum(given.log_prob(x, t)))(x)

    found = jax.jit(lambda: run(x, t, jnp.float32))()
    with jax.enable_x64(True):
        exact = jax.tree.map(np.asarray, jax.jit(lambda: run(x, t, jnp.float64))())
    assert all(np.all(np.isfinite(leaf)) for leaf in found)
    np.testing.assert_allclose(found[0], exact[0], atol=2e-5)
    # log p has a slope of z/σ: an x that float32 rounds is another x.
    rounding = 1e-6 * (1 + np.abs(exact[3][:, 0] * x[:, 0]))
    np.testing.assert_array_less(np.abs(found[1] - exact[1]), 1e-4 + 10 * rounding)


@in_float64
def test_the_boxs_limits_are_the_datum_the_centre_and_the_nearest_corner() -> None:
    oracle = UniformBox(SDES["ve"], jnp.asarray([-1.0, 0.0]), jnp.asarray([1.0, 3.0]))
    x = jnp.asarray([[0.3, 1.7], [-0.9, 2.9]])
    run = jax.jit(lambda x, t: (oracle(x, t).x0, oracle.log_prob(x, t)))
    x0, log_prob = run(x, 0.0)
    np.testing.assert_allclose(x0, x, atol=1e-9)
    np.testing.assert_allclose(log_prob, np.full(2, -np.log(6)), atol=1e-9)
    np.testing.assert_allclose(run(x, 1.0)[0], np.broadcast_to([0.0, 1.5], (2, 2)), atol=2e-3)
    far = run(jnp.asarray([[9.0, -9.0], [-1e6, 1e6]]), 0.1)[0]
    np.testing.assert_allclose(far, [[1.0, 0.0], [-1.0, 3.0]], atol=1e-3)


def test_a_box_of_images_is_a_product_of_its_entries_and_states_its_shape() -> None:
    low = jnp.asarray([-1.0, 0.0, 0.5])
    oracle = UniformBox(SDES["vp"], low, jnp.ones((2, 4, 3)))
    assert oracle.shape == (2, 4, 3)
    x = jax.random.normal(jax.random.key(0), (5, 2, 4, 3))
    each = UniformBox(SDES["vp"], jnp.broadcast_to(low, (2, 4, 3)).ravel(), jnp.ones(24))
    t = jnp.linspace(0.1, 0.9, 5)
    run = jax.jit(lambda oracle, x: (oracle.log_prob(x, t), oracle(x, t).x0.reshape(5, 24)))
    for found, expected in zip(run(oracle, x), run(each, x.reshape(5, 24)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
