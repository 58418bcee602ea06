"""The parts of `UNet2D`: residual blocks and attention whose groups, heads and scale are given.

What differs from block to block travels as fields; what is the same for a whole network as one value, `UNet2DStyle`.
Convolutions run in `style.dtype`; parameters, normalisations and the softmax are float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets import fir
from diffuse_jax.nets.attention import Implementation, attend
from diffuse_jax.nets.layers import Resampling, conv, init_kernel, mean_pool, pointwise, repeat

#: Taps of the filter with which blocks with an image pyramid resample.
FIR_KERNEL = (1, 3, 3, 1)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": jax.nn.mish,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
}


class Kind(NamedTuple):
    """What the name of a level's block says: attention or not, and "conv", "resnet" or "skip" resampling, the last with
    an image pyramid beside the level; None where the network's own field says it."""

    attention: bool
    resampling: str | None


_CONV, _RESNET, _SKIP = Kind(False, "conv"), Kind(False, "resnet"), Kind(False, "skip")
_ATTENTION, _ATTENTION_SKIP = Kind(True, None), Kind(True, "skip")

DOWN_KINDS = {
    "DownBlock2D": _CONV,
    "AttnDownBlock2D": _ATTENTION,
    "ResnetDownsampleBlock2D": _RESNET,
    "SkipDownBlock2D": _SKIP,
    "AttnSkipDownBlock2D": _ATTENTION_SKIP,
}
UP_KINDS = {
    "UpBlock2D": _CONV,
    "AttnUpBlock2D": _ATTENTION,
    "ResnetUpsampleBlock2D": _RESNET,
    "SkipUpBlock2D": _SKIP,
    "AttnSkipUpBlock2D": _ATTENTION_SKIP,
}


@dataclasses.dataclass(frozen=True)
class UNet2DStyle:
    """What all blocks of a network agree on. `scale_shift` lets the time scale the second normalisation as well."""

    act_fn: str
    dropout: float
    norm_eps: float
    scale_shift: bool
    dtype: Any
    attention: Implementation

    def act(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.act_fn](x)


def normalise(x: jax.Array, groups: int, eps: float, name: str) -> jax.Array:
    """Group normalisation in float32 of x (batch, h, w, c), inside a compact module."""
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"block_out_channels give a layer of {channels} channels, which do not divide into {groups} equal groups "
            "to be normalised: choose other block_out_channels, or norm_num_groups where no block has an image pyramid"
        )
    return nn.GroupNorm(groups, epsilon=eps, dtype=jnp.float32, name=name)(x)


class TimeBlock(nn.Module):
    """Norm–act–conv twice with the time between, and a shortcut: x (batch, h, w, c) to (batch, h', w', features).

    The block resamples before its first convolution: by nearest pixel and 2×2 mean, or with `FIR_KERNEL` if `fir`, in
    which case the shortcut has a kernel, as it has where the channels change. The sum is divided by `divisor`.
    """

    style: UNet2DStyle
    features: int
    groups_in: int
    groups_out: int
    divisor: float = 1.0
    direction: Resampling = "none"
    fir: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, train: bool) -> jax.Array:
        style, dtype = self.style, self.style.dtype
        h = style.act(normalise(x, self.groups_in, style.norm_eps, "norm_0")).astype(dtype)
        h, x = self._resample(h), self._resample(x)
        h = conv(self.features, dtype, "conv_0")(h)
        width = 2 * self.features if style.scale_shift else self.features
        time = nn.Dense(width, kernel_init=init_kernel(), dtype=dtype, name="time")(style.act(temb))[:, None, None, :]
        if style.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = normalise(h, self.groups_out, style.norm_eps, "norm_1") * (1 + scale) + shift
        else:
            h = normalise(h + time, self.groups_out, style.norm_eps, "norm_1")
        h = nn.Dropout(style.dropout)(style.act(h).astype(dtype), deterministic=not train)
        h = conv(self.features, dtype, "conv_1", scale=0.0)(h)
        if x.shape[-1] != self.features or self.fir:
            x = conv(self.features, dtype, "shortcut", size=1)(x)
        return (x + h) / self.divisor

    @nn.nowrap
    def _resample(self, x: jax.Array) -> jax.Array:
        if self.direction == "none":
            return x
        if self.fir:
            return (fir.upsample if self.direction == "up" else fir.downsample)(x, FIR_KERNEL)
        return repeat(x) if self.direction == "up" else mean_pool(x)


class HeadAttention(nn.Module):
    """Self-attention over all pixels in heads of `head_dim` channels, as a residual branch of x (batch, h, w, c).

    There are ⌊c/head_dim⌋ heads. `groups=None` leaves out the normalisation. The sum is divided by `divisor`.
    """

    style: UNet2DStyle
    head_dim: int
    groups: int | None
    divisor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, height, width, c = x.shape
        dtype, heads = self.style.dtype, c // self.head_dim
        if heads < 1:
            raise ValueError(f"attention_head_dim={self.head_dim} must be at most the {c} channels of every attention")
        h = x if self.groups is None else normalise(x, self.groups, self.style.norm_eps, "norm")
        h = h.astype(dtype).reshape(b, height * width, c)
        q, k, v = (
            pointwise(heads * self.head_dim, dtype, name)(h).reshape(b, -1, heads, self.head_dim)
            for name in ("query", "key", "value")
        )
        h = attend(q, k, v, self.style.attention).reshape(b, height * width, -1)
        h = pointwise(c, dtype, "out", scale=0.0)(h).reshape(x.shape)
        return (x + h) / self.divisor
