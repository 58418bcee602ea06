"""Resampling of NHWC images by two with a separable FIR kernel, in plain JAX.

An image is read as zero outside its frame. With k the taps scaled to unit sum, and * a convolution along one spatial
axis,

    upsample:   (x with a zero after each pixel) * 2k      downsample:  every second sample of x * k
    conv_up:    a 3×3 convolution of upsample(x)            conv_down:   a 3×3 convolution of x * k with stride two

cropped so that 2n pixels come from n and n/2 from n (Karras et al. 2019, arXiv:1912.04958, appendix B). The filter is
a sum of shifted slices along each axis in turn: XLA fuses that into one pass over memory, where a depthwise
convolution is many times slower.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffuse_jax.nets.convolution import convolve

_NHWC = ("NHWC", "HWIO", "NHWC")


def _taps(kernel: Sequence[float]) -> np.ndarray:
    """The kernel as float64 taps of unit sum."""
    taps = np.asarray(kernel, np.float64)
    if taps.ndim != 1 or taps.size == 0 or not np.all(np.isfinite(taps)) or taps.sum() == 0:
        raise ValueError(
            f"fir_kernel must be a sequence of numbers with a sum that is not 0, such as (1, 3, 3, 1); got {kernel!r}"
        )
    return taps / taps.sum()


def _filter(x: jax.Array, taps: np.ndarray, pad: tuple[int, int], *, up: int = 1, down: int = 1) -> jax.Array:
    """On both axes: puts up − 1 zeros between pixels, pads, convolves with `taps` and keeps every `down`-th sample."""
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    for axis in (1, 2):
        widths = [(0, 0, 0)] * 4
        widths[axis] = (*pad, up - 1)
        x = lax.pad(x, jnp.zeros((), x.dtype), widths)
        span = (x.shape[axis] - len(taps)) // down * down + 1
        x = sum(
            (float(tap) * lax.slice_in_dim(x, i, i + span, down, axis) for i, tap in enumerate(taps[::-1])),
            start=jnp.zeros((), x.dtype),
        )
    return x.astype(dtype)


def upsample(x: jax.Array, kernel: Sequence[float]) -> jax.Array:
    """Doubles height and width of x (batch, h, w, c); kernel (1, 1) repeats each pixel."""
    taps = _taps(kernel)
    excess = len(taps) - 2
    # The zero after the last pixel is part of the padding.
    return _filter(x, 2 * taps, ((excess + 1) // 2 + 1, excess // 2 + 1), up=2)


def downsample(x: jax.Array, kernel: Sequence[float]) -> jax.Array:
    """Halves height and width of x (batch, h, w, c), both even. Kernel (1, 1) is the mean of each 2×2 square."""
    taps = _taps(kernel)
    excess = len(taps) - 2
    return _filter(x, taps, ((excess + 1) // 2, excess // 2), down=2)


def conv_up(x: jax.Array, weight: jax.Array, kernel: Sequence[float]) -> jax.Array:
    """Upsamples x (batch, h, w, c) by two and convolves it with weight (3, 3, c, features): (batch, 2h, 2w, features).

    The two filters commute, so the dense one runs first, as a transposed convolution that multiplies no inserted zero.
    """
    taps = _taps(kernel)
    size = weight.shape[0]
    full = [(size - 1, size - 1)] * 2
    y = lax.conv_general_dilated(x, weight, (1, 1), full, lhs_dilation=(2, 2), dimension_numbers=_NHWC)
    excess = len(taps) - 2 - (size - 1)
    return _filter(y, 2 * taps, ((excess + 1) // 2 + 1, excess // 2 + 1))


def conv_down(x: jax.Array, weight: jax.Array, kernel: Sequence[float]) -> jax.Array:
    """Filters x (batch, h, w, c), then convolves it with weight (3, 3, c, features): (batch, h/2, w/2, features)."""
    taps = _taps(kernel)
    excess = len(taps) - 2 + (weight.shape[0] - 1)
    x = _filter(x, taps, ((excess + 1) // 2, excess // 2))
    return convolve(x, weight, 2, "VALID")
