"""The U-Net of EDM's two networks (Karras et al. 2022, arXiv:2206.00364, appendix F), and what tells them apart.

Down: each level but the first opens with a block that halves the image, then come num_blocks blocks. Middle: two
blocks, the first with attention. Up: each level but the smallest opens with a block that doubles the image, then come
num_blocks + 1 blocks, each of which also reads one saved activation of the way down. Attention is part of a block. What
tells the two networks apart inside a block is one value, `EDMStyle`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets import fir
from diffuse_jax.nets.attention import Implementation, attend
from diffuse_jax.nets.layers import ResampleConv, Resampling, Style, convolution, mean_pool, repeat

Role = Literal["open", "attention", "close"]
Inits = tuple[nn.initializers.Initializer, nn.initializers.Initializer]


def xavier(role: Role, fan_in: int) -> Inits:
    """Kernels uniform, of variance 1 / mean(fan in, fan out), a fifth of it in attention and almost none where a branch
    closes; biases zero."""
    scale = {"open": 1.0, "attention": 0.2, "close": 1e-10}[role]
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform"), nn.initializers.zeros


def kaiming(role: Role, fan_in: int) -> Inits:
    """Kernels and biases uniform within ±1/√(fan in), or zero where a branch closes."""
    if role == "close":
        return nn.initializers.zeros, nn.initializers.zeros

    def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return uniform, uniform


@dataclasses.dataclass(frozen=True)
class EDMStyle:
    """What all blocks of a network agree on.

    `adaptive`: the embedding scales and shifts the second normalised activation, else it is added before that
    normalisation. `rescale` divides every sum of two branches by √2. `head_size` is the channels of an attention head
    (None: one head). `project` puts a 1×1 convolution into the shortcut also where only the image's size changes.
    `taps` are the resampling filter's. `attention`: see `attend`.
    """

    adaptive: bool
    rescale: bool
    epsilon: float
    head_size: int | None
    project: bool
    init: Callable[[Role, int], Inits]
    dropout: float = 0.0
    taps: tuple[float, ...] = (1, 1)
    dtype: Any = jnp.float32
    attention: Implementation = "xla"

    def heads(self, channels: int) -> int:
        return 1 if self.head_size is None else channels // self.head_size

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return (a + b) * 2**-0.5 if self.rescale else a + b

    def resample(self, x: jax.Array, direction: Resampling) -> jax.Array:
        """Doubles or halves the image x (batch, h, w, c). On the way down the filter is a correlation."""
        if direction == "none":
            return x
        if self.taps == (1, 1):
            return repeat(x) if direction == "up" else mean_pool(x)
        return fir.upsample(x, self.taps) if direction == "up" else fir.downsample(x, self.taps[::-1])


SONG = EDMStyle(adaptive=False, rescale=True, epsilon=1e-6, head_size=None, project=True, init=xavier)
DHARIWAL = EDMStyle(adaptive=True, rescale=False, epsilon=1e-5, head_size=64, project=False, init=kaiming)


def conv(x: jax.Array, style: EDMStyle, features: int, name: str, role: Role = "open", size: int = 3) -> jax.Array:
    kernel, bias = style.init(role, x.shape[-1] * size**2)
    layer = nn.Conv(
        features,
        (size, size),
        kernel_init=kernel,
        bias_init=bias,
        dtype=style.dtype,
        conv_general_dilated=convolution,
        name=name,
    )
    return layer(x)


def dense(
    x: jax.Array, style: EDMStyle, features: int, name: str, role: Role = "open", use_bias: bool = True
) -> jax.Array:
    kernel, bias = style.init(role, x.shape[-1])
    return nn.Dense(features, use_bias, style.dtype, kernel_init=kernel, bias_init=bias, name=name)(x)


def norm(x: jax.Array, style: EDMStyle, name: str) -> jax.Array:
    """Group normalisation in float32 of x (batch, h, w, c): at most 32 groups, of at least 4 channels each."""
    channels = x.shape[-1]
    groups = min(32, channels // 4)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"model_channels and channel_mult give a layer of {channels} channels, which do not divide into {groups} "
            "equal groups to be normalised: choose model_channels a multiple of 4, and of 32 where layers have 128 "
            "channels or more"
        )
    # The fast variance E[x²] − E[x]² would lose digits that the published weights were trained with.
    return nn.GroupNorm(groups, epsilon=style.epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)(x)


class Attention(nn.Module):
    """Self-attention over all pixels, softmax(q·k/√c) in each head of c channels, as a residual branch of x (batch, h,
    w, channels)."""

    style: EDMStyle

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        style, (b, height, width, channels) = self.style, x.shape
        heads = style.heads(channels)
        if channels % heads:
            raise ValueError(
                f"model_channels and channel_mult give attention of {channels} channels, which do not divide into its "
                f"{heads} heads: choose model_channels a multiple of {style.head_size}"
            )
        size = channels // heads
        h = norm(x, style, "norm").astype(style.dtype).reshape(b, height * width, channels)
        qkv = dense(h, style, 3 * channels, "qkv", "attention").reshape(b, height * width, 3, heads, size)
        h = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], style.attention)
        h = dense(h.reshape(b, height * width, channels), style, channels, "out", "close")
        return style.merge(x, h.reshape(x.shape))


class Block(nn.Module):
    """Norm–act–conv twice, with the embedding (batch, k) between, a shortcut, and perhaps attention after: x (batch, h,
    w, c) becomes (batch, h', w', features). The first convolution reads the resampled image."""

    style: EDMStyle
    features: int
    direction: Resampling = "none"
    attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        style, features = self.style, self.features
        h = style.resample(nn.silu(norm(x, style, "norm_0")).astype(style.dtype), self.direction)
        h = conv(h, style, features, "conv_0")
        if style.adaptive:
            scale_shift = dense(embedding, style, 2 * features, "time")[:, None, None, :]
            scale, shift = jnp.split(scale_shift, 2, axis=-1)
            h = norm(h, style, "norm_1") * (scale + 1) + shift
        else:
            h = norm(h + dense(embedding, style, features, "time")[:, None, None, :], style, "norm_1")
        h = nn.Dropout(style.dropout)(nn.silu(h).astype(style.dtype), deterministic=not train)
        h = conv(h, style, features, "conv_1", "close")
        resampled = self.direction != "none"
        shortcut = style.resample(x, self.direction)
        if x.shape[-1] != features or (resampled and style.project):
            shortcut = conv(shortcut, style, features, "shortcut", size=1)
        h = style.merge(shortcut, h)
        if self.attention and style.heads(features):
            h = Attention(style, name="attention")(h)
        return h


class UNet(nn.Module):
    """See the head of this module. Level i has widths[i] channels, and attention where `attention[i]`: after every
    block on the way down, and on the way up after every block or, without `attend_all_up`, after the last.

    `encoder`: the levels on the way down also read a smaller copy of the input ("skip") or of its features
    ("residual"). `decoder`: the output is the last level's image, or the sum of one image a level ("skip").
    """

    style: EDMStyle
    first: int
    widths: tuple[int, ...]
    num_blocks: int
    attention: tuple[bool, ...]
    attend_all_up: bool
    out_channels: int
    encoder: Literal["standard", "skip", "residual"] = "standard"
    decoder: Literal["standard", "skip"] = "standard"
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        """x (batch, h, w, c), embedding (batch, k): float32 (batch, h, w, out_channels)."""
        make = nn.remat(Block, static_argnums=(3,)) if self.remat else Block

        def block(h: jax.Array, features: int, name: str, direction: Resampling, attention: bool) -> jax.Array:
            return make(self.style, features, direction, attention, name=name)(h, embedding, train)

        saved = self._down(x, block)
        h = saved[-1]
        h = block(h, h.shape[-1], "middle_block_0", "none", True)
        h = block(h, h.shape[-1], "middle_block_1", "none", False)
        return self._up(h, saved, block)

    @nn.nowrap
    def _down(self, x: jax.Array, block: Callable[..., jax.Array]) -> list[jax.Array]:
        """All activations that the way up reads, the last being the trunk's."""
        style, pyramid = self.style, x
        h = conv(x, style, self.first, "in_conv")
        saved = [h]
        for level, features in enumerate(self.widths):
            if level > 0:
                h = block(h, h.shape[-1], f"down_{level}_resample", "down", False)
                if self.encoder == "skip":
                    pyramid = style.resample(pyramid, "down")
                    h = h + conv(pyramid, style, h.shape[-1], f"down_{level}_combine", size=1)
                elif self.encoder == "residual":
                    halving = Style("swish", 0.0, fir_kernel=style.taps[::-1], dtype=style.dtype)
                    branch = ResampleConv(halving, h.shape[-1], "down", name=f"down_{level}_pyramid")(pyramid)
                    h = pyramid = (h + branch) * 2**-0.5
                saved.append(h)
            for i in range(self.num_blocks):
                h = block(h, features, f"down_{level}_block_{i}", "none", self.attention[level])
                saved.append(h)
        return saved

    @nn.nowrap
    def _up(self, h: jax.Array, saved: list[jax.Array], block: Callable[..., jax.Array]) -> jax.Array:
        """From the trunk at the smallest size to the image, using up `saved` from its end."""
        image = None
        for level in reversed(range(len(self.widths))):
            if level < len(self.widths) - 1:
                h = block(h, h.shape[-1], f"up_{level}_resample", "up", False)
            for i in range(self.num_blocks + 1):
                attend = self.attention[level] and (self.attend_all_up or i == self.num_blocks)
                h = jnp.concatenate([h, saved.pop()], axis=-1)
                h = block(h, self.widths[level], f"up_{level}_block_{i}", "none", attend)
            if self.decoder == "skip":
                new = self._image(h, f"up_{level}_out")
                image = new if image is None else self.style.resample(image, "up") + new
        return self._image(h, "out") if image is None else image

    @nn.nowrap
    def _image(self, h: jax.Array, name: str) -> jax.Array:
        """Norm, nonlinearity and a convolution to the image's channels, all in float32."""
        full = dataclasses.replace(self.style, dtype=jnp.float32)
        return conv(nn.silu(norm(h, full, f"{name}_norm")), full, self.out_channels, f"{name}_conv", "close")
