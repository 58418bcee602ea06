"""The layers that the U-Nets share: residual blocks, attention, resampling, and the embeddings of time and class.

Choices that are the same for every layer of one network travel as one value, `Style`. Convolutions run in
`style.dtype`; parameters, normalisations, the softmax and the embeddings are float32.
"""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.nets import fir
from diffuse_jax.nets.attention import IMPLEMENTATIONS, Implementation, attend
from diffuse_jax.nets.convolution import convolve
from diffuse_jax.nets.dropout import dropout

Resampling = Literal["none", "up", "down"]

NONLINEARITIES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swish": nn.swish,
    "elu": nn.elu,
    "relu": nn.relu,
    "lrelu": lambda x: nn.leaky_relu(x, 0.2),
}


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network agree on.

    `max_groups` bounds the groups of a normalisation, of at least `group_size` channels each. `fir_kernel=None`
    resamples by the nearest pixel and the 2×2 mean. `skip_rescale` divides every sum of two branches by √2.
    `init_scale` scales the variance of the kernel that closes a branch at the start of training. `attention`: see
    `attend`.
    """

    nonlinearity: str
    dropout: float
    group_size: int = 4
    max_groups: int = 32
    skip_rescale: bool = False
    init_scale: float = 0.0
    fir_kernel: tuple[float, ...] | None = None
    dtype: Any = jnp.float32
    attention: Implementation = "xla"

    def act(self, x: jax.Array) -> jax.Array:
        return NONLINEARITIES[self.nonlinearity](x)

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The sum of two branches."""
        return (a + b) * 2**-0.5 if self.skip_rescale else a + b


def require(ok: bool, field: str, given: object, wanted: str) -> None:
    """Raises ValueError naming the field, what was given and what would do."""
    if not ok:
        raise ValueError(f"{field} must be {wanted}; got {given!r}")


def init_kernel(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform, of variance scale / mean(fan in, fan out) (Ho et al. 2020, arXiv:2006.11239); a scale of 0 is 1e-10."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def convolution(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, *, dimension_numbers: Any, **options: Any
) -> jax.Array:
    """`convolve` as nn.Conv's `conv_general_dilated`. ValueError where strides differ, and for dilations, groups and a
    precision, which it does not have."""
    plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1, "precision": None}
    asked = {name: value for name, value in options.items() if value != plain.get(name)}
    require(not asked, "a convolution's options", asked, f"{plain}")
    require(len(set(strides)) == 1, "a convolution's strides", strides, "equal")
    return convolve(x, kernel, strides[0], padding)


def of_channels(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """`convolve` as nn.Dense's `dot_general`, for x (batch, …, c) and kernel (c, features)."""
    y = convolve(x.reshape(x.shape[0], -1, 1, x.shape[-1]), kernel[None, None])
    return y.reshape(*x.shape[:-1], -1)


def conv(
    features: int,
    dtype: Any,
    name: str,
    *,
    size: int = 3,
    scale: float = 1.0,
    strides: int = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> nn.Conv:
    """A square convolution with zero padding, by default one that keeps the image's size (over `strides`)."""
    return nn.Conv(
        features,
        (size, size),
        strides,
        padding,
        dtype=dtype,
        kernel_init=init_kernel(scale),
        conv_general_dilated=convolution,
        name=name,
    )


def pointwise(features: int, dtype: Any, name: str, *, scale: float = 0.1) -> nn.Dense:
    """A linear map of the channels of x (batch, …, c), whose kernel starts at a tenth of the usual variance."""
    return nn.Dense(features, dtype=dtype, kernel_init=init_kernel(scale), dot_general=of_channels, name=name)


def group_norm(x: jax.Array, style: Style, name: str) -> jax.Array:
    """Group normalisation in float32 of x (batch, h, w, c), inside a compact module."""
    channels = x.shape[-1]
    groups = min(channels // style.group_size, style.max_groups)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"nf and ch_mult give a layer of {channels} channels, which do not divide into {groups} equal groups to be "
            "normalised: choose nf a multiple of 4, and of 32 where layers have 128 channels or more"
        )
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=jnp.float32, name=name)(x)


def norm_act(x: jax.Array, style: Style, name: str) -> jax.Array:
    """Normalises x and applies the nonlinearity; the result is in `style.dtype`."""
    return style.act(group_norm(x, style, name)).astype(style.dtype)


def repeat(x: jax.Array) -> jax.Array:
    """Each pixel becomes a 2×2 square: (batch, h, w, c) to (batch, 2h, 2w, c)."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def mean_pool(x: jax.Array) -> jax.Array:
    """Each 2×2 square becomes its mean: (batch, h, w, c) to (batch, h/2, w/2, c)."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def resample(x: jax.Array, style: Style, direction: Resampling) -> jax.Array:
    """Doubles or halves the image without parameters."""
    if direction == "none":
        return x
    if style.fir_kernel is None:
        return repeat(x) if direction == "up" else mean_pool(x)
    return (fir.upsample if direction == "up" else fir.downsample)(x, style.fir_kernel)


class ResampleConv(nn.Module):
    """Doubles or halves the image with a 3×3 convolution to `features` channels."""

    style: Style
    features: int
    direction: Resampling

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.style.fir_kernel is None:
            x, strides = (repeat(x), 1) if self.direction == "up" else (x, 2)
            return conv(self.features, self.style.dtype, "conv", strides=strides)(x)
        kernel = self.param("kernel", init_kernel(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.style.dtype) for a in (x, kernel, bias))
        return (fir.conv_up if self.direction == "up" else fir.conv_down)(x, kernel, self.style.fir_kernel) + bias


class ResBlock(nn.Module):
    """Norm–act–conv twice, with the time embedding added between, and a shortcut.

    x (batch, h, w, c) becomes (batch, h', w', features). The block resamples before its first convolution (Brock et al.
    2019, arXiv:1809.11096). The shortcut has a kernel where the channels or the size change: a 1×1 convolution, or with
    `small_shortcut` a linear map that starts at a tenth of its variance. `seed` (2,) is that of dropout, of which there
    is none without it.
    """

    style: Style
    features: int
    direction: Resampling = "none"
    small_shortcut: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None, seed: jax.Array | None = None) -> jax.Array:
        style = self.style
        h = resample(norm_act(x, style, "norm_0"), style, self.direction)
        x = resample(x, style, self.direction)
        h = conv(self.features, style.dtype, "conv_0")(h)
        if temb is not None:
            shift = nn.Dense(self.features, kernel_init=init_kernel(), dtype=style.dtype, name="time")
            h += shift(style.act(temb))[:, None, None, :]
        h = norm_act(h, style, "norm_1")
        h = dropout(h, style.dropout, seed)
        h = conv(self.features, style.dtype, "conv_1", scale=style.init_scale)(h)
        if x.shape[-1] != self.features or self.direction != "none":
            x = (
                pointwise(self.features, style.dtype, "shortcut")(x)
                if self.small_shortcut
                else conv(self.features, style.dtype, "shortcut", size=1)(x)
            )
        return style.merge(x, h)


class Attention(nn.Module):
    """Single-head self-attention over all pixels, softmax(q·k/√c), as a residual branch of x (batch, h, w, c)."""

    style: Style

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, height, width, c = x.shape
        dtype = self.style.dtype
        h = group_norm(x, self.style, "norm").astype(dtype).reshape(b, height * width, 1, c)
        q, k, v = (pointwise(c, dtype, name)(h) for name in ("query", "key", "value"))
        h = attend(q, k, v, self.style.attention)
        h = pointwise(c, dtype, "out", scale=self.style.init_scale)(h.reshape(x.shape))
        return self.style.merge(x, h)


class Combine(nn.Module):
    """Brings the pyramid to h's channels by a 1×1 convolution, then adds it ('sum') or puts it before them ('cat')."""

    method: Literal["sum", "cat"]
    dtype: Any

    @nn.compact
    def __call__(self, pyramid: jax.Array, h: jax.Array) -> jax.Array:
        pyramid = conv(h.shape[-1], self.dtype, "conv", size=1)(pyramid)
        return pyramid + h if self.method == "sum" else jnp.concatenate([pyramid, h], axis=-1)


class FourierFeatures(nn.Module):
    """[sin 2πWx, cos 2πWx] with fixed W ~ N(0, scale²) (arXiv:2006.10739): (batch,) to (batch, 2·size).

    W is stored among the parameters, so that it is saved with them, but receives no gradient. The angle is (x·W)·2π as
    published networks round it, or x·(2πW) if `angular`: of many turns the rounding shows.
    """

    size: int
    scale: float
    angular: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = jax.lax.stop_gradient(self.param("frequencies", nn.initializers.normal(self.scale), (self.size,)))
        angle = x[:, None] * (2 * jnp.pi * w) if self.angular else x[:, None] * w * 2 * jnp.pi
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def positional_features(
    c_noise: jax.Array,
    size: int,
    exponents: np.ndarray | None = None,
    *,
    base: float | np.floating[Any] = np.e,
    cosines_first: bool = False,
) -> jax.Array:
    """Sines and cosines of c_noise·base^exponents, or the cosines first (1706.03762): (batch,) to (batch, size); an odd
    size ends with 0.

    The ⌊size/2⌋ powers are 10000^(−k/steps), by default with steps = ⌊size/2⌋ − 1. An angle may be a thousand times its
    frequency, so that it matters how the program that trained a network rounded: `exponents` are float32 and rounded as
    there, of which the powers are then taken as exactly as float32 holds them.
    """
    if exponents is None:
        half = size // 2
        exponents = np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1))
    angle = c_noise[:, None] * np.power(base, exponents, dtype=np.float64).astype(np.float32)
    parts = [jnp.sin(angle), jnp.cos(angle)]
    features = jnp.concatenate(parts[::-1] if cosines_first else parts, axis=-1)
    return jnp.pad(features, ((0, 0), (0, size % 2)))


class Embedding(nn.Module):
    """The vector that every residual block reads: an MLP of the time features plus a vector a class; None if neither.

    `features` (batch, k) or None; `label` (batch,) integers or None, which is not read without num_classes. One outside
    0..num_classes − 1 (num_classes by custom) means "no label" and adds nothing, as does None.
    """

    width: int
    act: Callable[[jax.Array], jax.Array]
    num_classes: int | None

    @nn.compact
    def __call__(self, features: jax.Array | None, label: jax.Array | None, batch: int) -> jax.Array | None:
        embedding = None
        if features is not None:
            hidden = nn.Dense(self.width, kernel_init=init_kernel(), name="dense_0")(features)
            embedding = nn.Dense(self.width, kernel_init=init_kernel(), name="dense_1")(self.act(hidden))
        if self.num_classes is None:
            return embedding
        labels = jnp.full((batch,), self.num_classes) if label is None else jnp.asarray(label)
        if labels.shape != (batch,) or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"label must be integers of shape ({batch},); got {labels.dtype} of shape {labels.shape}")
        table = nn.Dense(self.width, use_bias=False, kernel_init=nn.initializers.normal(1.0), name="classes")
        added = table(jax.nn.one_hot(labels, self.num_classes))
        return added if embedding is None else embedding + added


def sigma_table(sigma_min: float, sigma_max: float, num_scales: int) -> jax.Array:
    """The geometric noise levels (num_scales,) from sigma_max down to sigma_min."""
    return jnp.asarray(np.geomspace(sigma_max, sigma_min, num_scales), jnp.float32)


def whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def make_tuple(net: Any, field: str) -> None:
    """Replaces a field given as a list, as JSON has it, by a tuple, so that the module can be hashed."""
    value = getattr(net, field)
    require(isinstance(value, list | tuple), field, value, "a tuple")
    object.__setattr__(net, field, tuple(value))


def check_probability(net: Any, field: str) -> None:
    value = getattr(net, field)
    require(real(value) and 0 <= value < 1, field, value, "a number in [0, 1)")


def check_sigmas(net: Any) -> None:
    low, high = net.sigma_min, net.sigma_max
    require(real(high) and high > 0, "sigma_max", high, "a positive number")
    require(real(low) and 0 < low <= high, "sigma_min", low, f"a number in (0, sigma_max = {high}]")


def check_dtype(net: Any) -> None:
    floating = jnp.issubdtype(jnp.dtype(net.dtype), jnp.floating)
    require(floating, "dtype", net.dtype, "a floating-point type such as jnp.bfloat16")


def check_attention(net: Any) -> None:
    require(net.attention in IMPLEMENTATIONS, "attention", net.attention, f"one of {IMPLEMENTATIONS}")


def check_levels(net: Any) -> None:
    """Raises ValueError for a field of a network's levels and of how they compute that cannot work."""
    make_tuple(net, "ch_mult")
    make_tuple(net, "attn_resolutions")
    require(whole(net.nf) and net.nf >= 4, "nf", net.nf, "an integer of at least 4")
    levels_ok = len(net.ch_mult) > 0 and all(whole(m) and m > 0 for m in net.ch_mult)
    require(levels_ok, "ch_mult", net.ch_mult, "a tuple of positive integers, one a level")
    blocks = net.num_res_blocks
    require(whole(blocks) and blocks > 0, "num_res_blocks", blocks, "a positive integer")
    heights_ok = all(whole(height) for height in net.attn_resolutions)
    require(heights_ok, "attn_resolutions", net.attn_resolutions, "a tuple of image heights")
    check_probability(net, "dropout")
    require(net.nonlinearity in NONLINEARITIES, "nonlinearity", net.nonlinearity, f"one of {sorted(NONLINEARITIES)}")
    check_dtype(net)
    check_attention(net)


def check_unet(net: Any) -> None:
    """Raises ValueError for a field that both U-Nets have and that cannot work."""
    check_levels(net)
    check_sigmas(net)
    for field in ("num_scales", "context_length", "context_width", "context_depth"):
        value = getattr(net, field)
        require(whole(value) and value > 0, field, value, "a positive integer")
    classes_ok = net.num_classes is None or (whole(net.num_classes) and net.num_classes > 0)
    require(classes_ok, "num_classes", net.num_classes, "None or a positive integer")
    channels, words = net.image_channels, net.vocabulary
    require(whole(channels) and channels >= 0, "image_channels", channels, "an integer of at least 0")
    words_ok = whole(words) and words >= 0 and words != 1
    require(words_ok, "vocabulary", words, "0, or an integer of at least 2, as padding is a token")
