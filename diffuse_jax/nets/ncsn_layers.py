"""The parts of the RefineNets that have no branches: normalisations, convolutions and changes of size.

Convolutions run in `RefineStyle.dtype`; parameters and normalisations are float32.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.nets.layers import NONLINEARITIES, convolution


@dataclasses.dataclass(frozen=True)
class RefineStyle:
    """What all layers of a RefineNet agree on; `levels` is the number of noise levels that its normalisations tell
    apart, None if they do not."""

    nonlinearity: str
    normalization: str
    interpolation: str
    unbiased: bool
    affine: bool
    levels: int | None
    dtype: Any

    def act(self, x: jax.Array) -> jax.Array:
        return NONLINEARITIES[self.nonlinearity](x)


def _about_one(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def _about_one_and_zero(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The last third of the columns is zero."""
    return _about_one(key, shape, dtype).at[:, 2 * shape[1] // 3 :].set(0)


def _standardize(x: jax.Array, axes: tuple[int, ...], ddof: int, epsilon: float = 1e-5) -> jax.Array:
    variance = x.var(axes, keepdims=True, ddof=ddof)
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(variance + epsilon)


class InstanceNormPlus(nn.Module):
    """γ·(instance norm of x + α·m) + β, m being the channels' means, normalised over the channels (arXiv:1907.05600,
    appendix A). With `levels`, γ, α and β are rows of a table, read at the index of the noise level."""

    unbiased: bool
    levels: int | None

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]
        if self.levels is None:
            gamma = self.param("gamma", _about_one, (channels,))
            alpha = self.param("alpha", _about_one, (channels,))
            beta = self.param("beta", nn.initializers.zeros, (channels,))
        else:
            table = self.param("table", _about_one_and_zero, (self.levels, 3 * channels))
            gamma, alpha, beta = jnp.split(table[index][:, None, None, :], 3, axis=-1)
        means = _standardize(x.mean((1, 2), keepdims=True), (3,), int(self.unbiased))
        return gamma * (_standardize(x, (1, 2), 0) + alpha * means) + beta


class InstanceNorm(nn.Module):
    """Each channel of each image less its mean and over its deviation, scaled and shifted if `affine`."""

    affine: bool
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = _standardize(x, (1, 2), 0, self.epsilon)
        if not self.affine:
            return h
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return h * scale + self.param("bias", nn.initializers.zeros, x.shape[-1:])


class VarianceNorm(nn.Module):
    """Each channel of each image over its deviation, scaled; the mean stays."""

    unbiased: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        variance = x.var((1, 2), keepdims=True, ddof=int(self.unbiased))
        return x / jnp.sqrt(variance + 1e-5) * self.param("scale", _about_one, x.shape[-1:])


def normalize(x: jax.Array, style: RefineStyle, index: jax.Array | None, name: str, epsilon: float = 1e-5) -> jax.Array:
    """The normalisation of `style` in float32, inside a compact module; `epsilon` is that of "instance"."""
    x = x.astype(jnp.float32)
    if style.normalization == "instance++":
        return InstanceNormPlus(style.unbiased, style.levels, name=name)(x, index)
    if style.normalization == "instance":
        return InstanceNorm(style.affine, epsilon, name=name)(x)
    if style.normalization == "variance":
        return VarianceNorm(style.unbiased, name=name)(x)
    return nn.GroupNorm(32, epsilon=1e-6, dtype=jnp.float32, name=name)(x)


def conv(
    x: jax.Array,
    features: int,
    dtype: Any,
    name: str,
    *,
    size: int = 3,
    dilation: int = 1,
    bias: bool = True,
    pooled: bool = False,
) -> jax.Array:
    """A convolution that keeps the image's size and starts uniform in ±1/√(fan in), bias too; one that is then pooled
    starts normal of variance 1/fan in, with a bias of zero."""
    bound = (size * size * x.shape[-1]) ** -0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    layer = nn.Conv(
        features,
        (size, size),
        kernel_dilation=(dilation, dilation),
        use_bias=bias,
        kernel_init=nn.initializers.lecun_normal() if pooled else uniform,
        bias_init=nn.initializers.zeros if pooled else uniform,
        dtype=dtype,
        conv_general_dilated=convolution if dilation == 1 else None,  # None: the library's
        name=name,
    )
    return layer(x.astype(dtype))


def _corners_matrix(size: int, new: int) -> np.ndarray:
    """Linear interpolation from `size` to `new` points whose first and last coincide: (new, size)."""
    at = np.linspace(0, size - 1, new)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))).astype(np.float32)


def interpolate(x: jax.Array, shape: tuple[int, int], method: str) -> jax.Array:
    """x (batch, h, w, c) at (batch, *shape, c): "nearest", "bilinear" between the centres of pixels, or
    "bilinear_corners" with the corner pixels' centres kept in place."""
    if x.shape[1:3] == shape:
        return x
    if method != "bilinear_corners":
        return jax.image.resize(x, (x.shape[0], *shape, x.shape[3]), method)
    rows, columns = (_corners_matrix(x.shape[axis + 1], shape[axis]).astype(x.dtype) for axis in (0, 1))
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, x)
