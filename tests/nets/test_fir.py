"""FIR resampling against scipy's convolutions in float64."""

import jax
import numpy as np
import pytest
from scipy import signal
from tiers import first

from diffuse_jax.nets import fir

KERNELS = [(1, 3, 3, 1), (1, 1), (1, 2, 1), (1, 4, 6, 4, 1), (5, -1, 2, 3), (2,)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def reference(x, taps, weight, up, down, offset, size):
    """Per channel: zeros inserted, full convolution, a full 3×3 correlation summed over channels, then rows offset,
    offset + down, …
    """
    taps = up * np.asarray(taps, np.float64) / np.sum(taps)
    out = np.zeros((x.shape[0], *size, weight.shape[-1]))
    for n, c, f in np.ndindex(x.shape[0], x.shape[-1], weight.shape[-1]):
        y = signal.upfirdn(taps, signal.upfirdn(taps, x[n, :, :, c], up, axis=0), up, axis=1)
        y = signal.correlate2d(y, weight[:, :, c, f], "full")
        y = np.pad(y, 8)[8 + offset :: down, 8 + offset :: down]
        out[n, ..., f] += y[: size[0], : size[1]]
    return out


@pytest.mark.parametrize("kernel", first(KERNELS, keep=[(1, 3, 3, 1)]), ids=str)
def test_resampling_is_scipy_upfirdn_cropped_about_its_centre(rng, kernel):
    x, identity, half = rng.normal(size=(2, 6, 4, 3)), np.eye(3)[None, None], len(kernel) // 2
    with jax.enable_x64(True):
        up, down = fir.upsample(x, kernel), fir.downsample(x, kernel)
    np.testing.assert_allclose(up, reference(x, kernel, identity, 2, 1, half - 1, (12, 8)), atol=1e-13)
    np.testing.assert_allclose(down, reference(x, kernel, identity, 1, 2, half, (3, 2)), atol=1e-13)


@pytest.mark.parametrize("kernel", first(KERNELS, keep=[(1, 3, 3, 1)]), ids=str)
def test_fused_convolutions_are_resampling_and_a_same_convolution_of_the_unbounded_plane(rng, kernel):
    x, weight, half = rng.normal(size=(2, 6, 4, 3)), rng.normal(size=(3, 3, 3, 2)), len(kernel) // 2
    with jax.enable_x64(True):
        up, down = fir.conv_up(x, weight, kernel), fir.conv_down(x, weight, kernel)
    np.testing.assert_allclose(up, reference(x, kernel, weight, 2, 1, half, (12, 8)), atol=1e-12)
    np.testing.assert_allclose(down, reference(x, kernel, weight, 1, 2, half + 1, (3, 2)), atol=1e-12)


def test_kernel_of_two_ones_repeats_pixels_and_averages_squares(rng):
    x = rng.normal(size=(1, 4, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(fir.upsample(x, (1, 1)), x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(fir.downsample(x, (1, 1)), x.reshape(1, 2, 2, 2, 2, 2).mean((2, 4)), atol=1e-6)


def test_upsampling_is_four_times_the_adjoint_of_downsampling_for_a_symmetric_kernel(rng):
    x, y = rng.normal(size=(1, 8, 6, 1)), rng.normal(size=(1, 4, 3, 1))
    with jax.enable_x64(True):
        left = (fir.upsample(y, (1, 3, 3, 1)) * x).sum()
        right = 4 * (fir.downsample(x, (1, 3, 3, 1)) * y).sum()
    np.testing.assert_allclose(left, right, rtol=1e-12)


@pytest.mark.parametrize("kernel", [(), (1, -1), ((1, 2), (3, 4)), (float("nan"), 1)])
def test_a_kernel_that_cannot_be_scaled_to_unit_sum_is_refused(kernel):
    with pytest.raises(ValueError, match="fir_kernel must be"):
        fir.upsample(np.zeros((1, 4, 4, 1)), kernel)
