"""The features of time: their closed forms, and how they round where an angle is many turns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffuse_jax.nets.layers import FourierFeatures, positional_features

T = np.array([0.0, 1.5, 37.0, 999.0], np.float32)


@pytest.mark.parametrize("size", [4, 7, 128])
def test_positional_features_are_sines_and_cosines_of_their_closed_form(size):
    """An angle of 999 is known to half a unit in its last place, 3e-5; its frequency's rounding is as large."""
    half = size // 2
    angle = T[:, None].astype(np.float64) * 1e4 ** (-np.arange(half) / (half - 1))
    padding = np.zeros((4, size % 2))
    sin_cos = np.concatenate([np.sin(angle), np.cos(angle), padding], axis=1)
    np.testing.assert_allclose(positional_features(jnp.asarray(T), size), sin_cos, atol=1.5e-4)
    exponents = (np.arange(half) / (half - 1)).astype(np.float32)
    cos_sin = positional_features(jnp.asarray(T), size, exponents, base=1e-4, cosines_first=True)
    np.testing.assert_allclose(cos_sin, np.concatenate([np.cos(angle), np.sin(angle), padding], axis=1), atol=1.5e-4)


def test_a_positional_frequency_is_the_power_of_the_rounded_exponent_that_float32_has_nearest():
    """Half a unit in the last place of a frequency moves the angle of t = 2^20 by up to 2^-5: the sine would tell."""
    exponents = -np.linspace(0.1, 9, 64, dtype=np.float32)
    frequencies = np.exp(exponents.astype(np.longdouble)).astype(np.float32)
    angle = np.float32(2**20) * frequencies  # exact
    features = jax.jit(lambda t: positional_features(t, 128, exponents))(jnp.full(1, 2.0**20))
    np.testing.assert_allclose(features[0, :64], np.sin(angle.astype(np.float64)), atol=1e-5)


@pytest.mark.parametrize("angular", [False, True])
def test_the_angle_of_fourier_features_is_rounded_in_the_order_stated(angular):
    """The two orders differ by 1e-4 in an angle of a thousand, and the sine is that of either to 1e-6."""
    w, x = np.random.default_rng(0).normal(0, 16, (2, 50)).astype(np.float32)
    two_pi = np.float32(2 * np.pi)
    angles = {False: (x[:, None] * w) * two_pi, True: x[:, None] * (two_pi * w)}
    module = FourierFeatures(50, 16.0, angular)
    features = jax.jit(module.apply)({"params": {"frequencies": jnp.asarray(w)}}, jnp.asarray(x))
    expected, other = (np.sin(angles[order].astype(np.float64)) for order in (angular, not angular))
    np.testing.assert_allclose(features[:, :50], expected, atol=2e-6)
    assert np.abs(features[:, :50] - other).max() > 2e-5
