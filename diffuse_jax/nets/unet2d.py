"""The U-Net of diffusers' `UNet2DModel`, in whose terms DDPM's and NCSN++'s published networks can be written.

Down: at each level layers_per_block residual blocks, each followed by attention where the level has it; then the size
is halved. Middle: block, attention, block. Up: layers_per_block + 1 blocks a level, each of which also reads one saved
activation of the way down; then the size is doubled. Levels with "Skip" in their name run beside a pyramid of images,
as in NCSN++ (Song et al. 2021, arXiv:2011.13456, appendix H), divide sums of branches by √2 and resample with an FIR
filter.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffuse_jax.nets import fir
from diffuse_jax.nets.attention import Implementation
from diffuse_jax.nets.inputs import check_inputs, read_conditions
from diffuse_jax.nets.layers import (
    Embedding,
    FourierFeatures,
    Resampling,
    check_attention,
    check_dtype,
    check_probability,
    conv,
    make_tuple,
    positional_features,
    real,
    repeat,
    require,
    whole,
)
from diffuse_jax.nets.unet2d_blocks import (
    ACTIVATIONS,
    DOWN_KINDS,
    FIR_KERNEL,
    UP_KINDS,
    HeadAttention,
    Kind,
    TimeBlock,
    UNet2DStyle,
    normalise,
)

_SQRT2 = 2**0.5
_CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": tuple(sorted(ACTIVATIONS)),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}


class UNet2D(nn.Module):
    """The network of diffusers' `UNet2DModel`; fields have the names, meanings and defaults of its config.json.

    Exceptions: `num_classes` is its num_class_embeds, `centered=False` its center_input_sample, and `out_channels=None`
    stands for the channels of x.

    Args:
        block_out_channels: The channels of each level.
        down_block_types: The blocks of each level on the way down.
        up_block_types: Those on the way up, ordered from the smallest size.
        mid_block_type: "UNetMidBlock2D"; None leaves the middle out.
        add_attention: The middle has attention.
        layers_per_block: Residual blocks a level on the way down; one more on the way up.
        out_channels: The channels of the output; None is as many as x has.
        time_embedding_type: "positional" reads any number c_noise, "learned" an integer below `num_train_timesteps`,
            "fourier" a noise level σ, by which the output is divided.
        time_embedding_dim: The width of the embedding; None is 4·block_out_channels[0].
        freq_shift: Frequency k of "positional" is 10⁻⁴ to the power k/(n − freq_shift), of n frequencies.
        flip_sin_to_cos: The cosines of "positional" come before the sines.
        num_train_timesteps: The number of times that "learned" knows.
        downsample_padding: The zeros before the first row and column where a convolution halves the image, 0 or 1;
            there is one after the last.
        downsample_type: How "AttnDownBlock2D" halves the image: by a convolution ("conv") or a residual block
            ("resnet").
        upsample_type: How "AttnUpBlock2D" doubles it.
        mid_block_scale_factor: What sums of branches are divided by in the middle.
        resnet_time_scale_shift: The embedding shifts the second normalisation of a block ("default"), or scales it as
            well ("scale_shift").
        dropout: The probability of dropout in training.
        act_fn: The activation.
        attention_head_dim: The channels of a head; None makes one head.
        norm_num_groups: The groups of a normalisation. None lets c channels form min(⌊c/4⌋, 32) groups and needs "Skip"
            levels throughout, which always do so.
        attn_norm_num_groups: Those of the middle's attention; None is as elsewhere with "default", and no normalisation
            with "scale_shift".
        norm_eps: What normalisations add to the variance.
        class_embed_type: What the condition `label` is: one of `num_classes` (None), a number that is embedded like a
            time ("timestep"), or a vector of the embedding's width ("identity").
        centered: Whether x lies in [−1, 1]; if not, it lies in [0, 1] and is mapped to 2x − 1.
        num_classes: The number of classes of the condition `label`; None reads none.
        dtype: The type of the convolutions and attention products.
        attention: "xla", or "cudnn", a fused kernel on NVIDIA's GPUs (see `attend`).
        remat: Recompute residual blocks in the backward pass, to save memory.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
    """

    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    add_attention: bool = True
    layers_per_block: int = 2
    out_channels: int | None = None
    time_embedding_type: Literal["positional", "fourier", "learned"] = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    num_train_timesteps: int | None = None
    downsample_padding: int = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    mid_block_scale_factor: float = 1.0
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    class_embed_type: Literal["timestep", "identity"] | None = None
    centered: bool = True
    num_classes: int | None = None
    dtype: Any = jnp.float32
    attention: Implementation = "xla"
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("block_out_channels", "down_block_types", "up_block_types"):
            make_tuple(self, field)
        _check(self)

    @nn.compact
    def __call__(
        self, x: jax.Array, c_noise: jax.Array, cond: Mapping[str, jax.Array] | None = None, *, train: bool = False
    ) -> jax.Array:
        """x (batch, h, w, c), c_noise (batch,): float32 (batch, h, w, out_channels).

        `cond` is None or {"label": integers (batch,), or what `class_embed_type` says}. None, and a label outside
        0..num_classes − 1, mean "no label". h and w must be multiples of 2^(levels − 1), else ValueError. With
        train=True dropout draws from the rng "dropout".
        """
        check_inputs(self, x, c_noise, "block_out_channels", len(self.block_out_channels) - 1)
        given = read_conditions(self, cond, label="num_classes class_embed_type")
        temb = self._embed(c_noise, given["label"])
        x = x if self.centered else 2 * x - 1
        saved = self._down(x, temb, train)
        h = saved[-1] if self.mid_block_type is None else self._middle(saved[-1], temb, train)
        h, pyramid = self._up(h, saved, temb, train, self.out_channels or x.shape[-1])
        h = self._image(h, self._groups(None, h.shape[-1]), self.out_channels or x.shape[-1], "out")
        h = h if pyramid is None else h + pyramid
        return h / c_noise.astype(jnp.float32)[:, None, None, None] if self.time_embedding_type == "fourier" else h

    @nn.nowrap
    def kinds(self) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
        """What the levels are, on the way down and on the way up."""
        down = (DOWN_KINDS[name] for name in self.down_block_types)
        up = (UP_KINDS[name] for name in self.up_block_types)
        return (
            tuple(kind._replace(resampling=kind.resampling or self.downsample_type) for kind in down),
            tuple(kind._replace(resampling=kind.resampling or self.upsample_type) for kind in up),
        )

    @nn.nowrap
    def _embed(self, c_noise: jax.Array, label: jax.Array | None) -> jax.Array:
        """The vector that every residual block reads."""
        features, batch = self._features(), c_noise.shape[0]
        width = self.time_embedding_dim or 4 * self.block_out_channels[0]
        temb = Embedding(width, nn.silu, self.num_classes, name="embedding")(features(c_noise), label, batch)
        temb = cast(jax.Array, temb)
        if self.class_embed_type is None:
            return temb
        wanted = (batch, width) if self.class_embed_type == "identity" else (batch,)
        vector = jnp.ones(wanted) if label is None else jnp.asarray(label)
        if jnp.shape(vector) != wanted:
            raise ValueError(
                f"label must have shape {wanted} where class_embed_type is {self.class_embed_type!r}; got "
                f"{jnp.shape(vector)}"
            )
        if self.class_embed_type == "timestep":
            # Without a condition too, so that the parameters do not depend on it.
            embed = Embedding(width, nn.silu, None, name="class_embedding")
            vector = cast(jax.Array, embed(features(vector), None, batch))
        return temb if label is None else temb + vector

    @nn.nowrap
    def _features(self) -> Callable[[jax.Array], jax.Array]:
        """The function from c_noise (batch,) to what the embedding reads of them (batch, k)."""
        size = self.block_out_channels[0]
        if self.time_embedding_type == "fourier":
            fourier = FourierFeatures(size, 16.0, name="fourier")
            return lambda c_noise: fourier(jnp.log(c_noise.astype(jnp.float32)))
        if self.time_embedding_type == "learned":
            table = nn.Embed(cast(int, self.num_train_timesteps), size, name="times")
            return lambda c_noise: table(jnp.round(c_noise).astype(jnp.int32))
        k, steps = np.arange(size // 2, dtype=np.float32), np.float32(size // 2 - self.freq_shift)
        exponents = np.float32(-np.log(10000.0)) * k / steps
        first = self.flip_sin_to_cos
        return lambda c_noise: positional_features(c_noise.astype(jnp.float32), size, exponents, cosines_first=first)

    @nn.nowrap
    def _style(self) -> UNet2DStyle:
        scale_shift = self.resnet_time_scale_shift == "scale_shift"
        return UNet2DStyle(self.act_fn, self.dropout, self.norm_eps, scale_shift, self.dtype, self.attention)

    @nn.nowrap
    def _groups(self, kind: Kind | None, channels: int) -> int:
        if self.norm_num_groups is None or (kind is not None and kind.resampling == "skip"):
            return min(channels // 4, 32)
        return self.norm_num_groups

    @nn.nowrap
    def _block(
        self,
        kind: Kind | None,
        h: jax.Array,
        temb: jax.Array,
        train: bool,
        features: int,
        name: str,
        direction: Resampling = "none",
        groups: int | None = None,
    ) -> jax.Array:
        """A residual block of a level of the given kind, or of the middle where it is None."""
        skip = kind is not None and kind.resampling == "skip"
        divisor = _SQRT2 if skip else self.mid_block_scale_factor if kind is None else 1.0
        block = nn.remat(TimeBlock, static_argnums=(3,)) if self.remat else TimeBlock
        return block(
            self._style(),
            features,
            groups or self._groups(kind, h.shape[-1]),
            self._groups(kind, features),
            divisor,
            direction,
            skip and direction != "none",
            name=name,
        )(h, temb, train)

    @nn.nowrap
    def _attention(self, kind: Kind, h: jax.Array, name: str) -> jax.Array:
        skip = kind.resampling == "skip"
        groups = 32 if skip else self.norm_num_groups
        divisor = _SQRT2 if skip else 1.0
        return HeadAttention(self._style(), self.attention_head_dim or h.shape[-1], groups, divisor, name=name)(h)

    @nn.nowrap
    def _middle(self, h: jax.Array, temb: jax.Array, train: bool) -> jax.Array:
        channels = h.shape[-1]
        h = self._block(None, h, temb, train, channels, "middle_block_0")
        if self.add_attention:
            # Where the time also scales, the normalisation is left out unless its groups are given.
            usual = self._groups(None, channels) if self.resnet_time_scale_shift == "default" else None
            head_dim, groups = self.attention_head_dim or channels, self.attn_norm_num_groups or usual
            attention = HeadAttention(
                self._style(), head_dim, groups, self.mid_block_scale_factor, name="middle_attention"
            )
            h = attention(h)
        return self._block(None, h, temb, train, channels, "middle_block_1")

    @nn.nowrap
    def _down(self, x: jax.Array, temb: jax.Array, train: bool) -> list[jax.Array]:
        """All activations that the way up reads, the last being the trunk's."""
        pyramid = x
        h = conv(self.block_out_channels[0], self.dtype, "in_conv")(x)
        saved = [h]
        for level, (kind, features) in enumerate(zip(self.kinds()[0], self.block_out_channels, strict=True)):
            name = f"down_{level}"
            for i in range(self.layers_per_block):
                h = self._block(kind, h, temb, train, features, f"{name}_block_{i}")
                if kind.attention:
                    h = self._attention(kind, h, f"{name}_attention_{i}")
                saved.append(h)
            if level == len(self.block_out_channels) - 1:
                break
            if kind.resampling == "conv":
                h = self._halve(h, f"{name}_resample")
            else:
                h = self._block(kind, h, temb, train, features, f"{name}_resample", "down")
            if kind.resampling == "skip":
                pyramid = fir.downsample(pyramid, FIR_KERNEL)
                h += conv(features, self.dtype, f"{name}_skip_conv", size=1)(pyramid)
            saved.append(h)
        return saved

    @nn.nowrap
    def _halve(self, h: jax.Array, name: str) -> jax.Array:
        """A 3×3 convolution of stride two, with zeros on all sides or on the last two only."""
        pad = (self.downsample_padding, 1)
        return conv(h.shape[-1], self.dtype, name, strides=2, padding=(pad, pad))(h)

    @nn.nowrap
    def _up(
        self, h: jax.Array, saved: list[jax.Array], temb: jax.Array, train: bool, channels: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """The trunk at the image's size and the pyramid of images if there is one, using up `saved` from its end."""
        pyramid, levels = None, zip(self.kinds()[1], reversed(self.block_out_channels), strict=True)
        for level, (kind, features) in enumerate(levels):
            name, skip = f"up_{level}", kind.resampling == "skip"
            for i in range(self.layers_per_block + 1):
                beside = saved.pop()
                # The published networks with both pyramid and attention count groups so.
                groups = min(h.shape[-1] + beside.shape[-1] // 4, 32) if skip and kind.attention else None
                h = jnp.concatenate([h, beside], axis=-1)
                h = self._block(kind, h, temb, train, features, f"{name}_block_{i}", groups=groups)
                if kind.attention and not skip:
                    h = self._attention(kind, h, f"{name}_attention_{i}")
            if kind.attention and skip:
                h = self._attention(kind, h, f"{name}_attention_0")
            pyramid = fir.upsample(pyramid, FIR_KERNEL) if skip and pyramid is not None else pyramid
            if level == len(self.block_out_channels) - 1:
                break
            if skip:
                image = self._image(h, self._groups(kind, features), channels, f"{name}_skip")
                pyramid = image if pyramid is None else pyramid + image
            if kind.resampling == "conv":
                h = conv(features, self.dtype, f"{name}_resample")(repeat(h))
            else:
                h = self._block(kind, h, temb, train, features, f"{name}_resample", "up")
        return h, pyramid

    @nn.nowrap
    def _image(self, h: jax.Array, groups: int, channels: int, name: str) -> jax.Array:
        """Norm, SiLU and a convolution to the image's channels, all in float32."""
        h = nn.silu(normalise(h, groups, self.norm_eps, f"{name}_norm"))
        return conv(channels, jnp.float32, f"{name}_conv", scale=0.0)(h)


def _check(net: UNet2D) -> None:
    """Raises ValueError for a field that cannot work."""
    channels = net.block_out_channels
    ok = len(channels) > 0 and all(whole(c) and c > 1 for c in channels)
    require(ok, "block_out_channels", channels, "a tuple of integers of at least 2, one a level")
    for field, known in (("down_block_types", DOWN_KINDS), ("up_block_types", UP_KINDS)):
        given = getattr(net, field)
        for name in given:
            require(name in known, field, name, f"names of {', '.join(known)}")
        require(len(given) == len(channels), field, given, f"{len(channels)} names, as block_out_channels has levels")
    for field, choices in _CHOICES.items():
        require(getattr(net, field) in choices, field, getattr(net, field), f"one of {choices}")
    require(
        whole(net.layers_per_block) and net.layers_per_block > 0, "layers_per_block", net.layers_per_block, "positive"
    )
    for field in (
        "out_channels",
        "time_embedding_dim",
        "num_train_timesteps",
        "attention_head_dim",
        "norm_num_groups",
        "attn_norm_num_groups",
        "num_classes",
    ):
        value = getattr(net, field)
        require(value is None or (whole(value) and value > 0), field, value, "None or a positive integer")
    check_probability(net, "dropout")
    epsilon, divisor, shift = net.norm_eps, net.mid_block_scale_factor, net.freq_shift
    require(real(epsilon) and epsilon > 0, "norm_eps", epsilon, "a positive number")
    require(real(divisor) and divisor != 0, "mid_block_scale_factor", divisor, "a number that is not 0")
    ok = net.time_embedding_type != "positional" or (real(shift) and shift < channels[0] // 2)
    require(ok, "freq_shift", shift, f"a number below {channels[0] // 2}, half of block_out_channels[0]")
    ok = net.time_embedding_type != "learned" or net.num_train_timesteps is not None
    require(ok, "num_train_timesteps", None, "given where time_embedding_type is 'learned'")
    both = net.class_embed_type is not None and net.num_classes is not None
    require(not both, "num_classes", net.num_classes, f"None where class_embed_type is {net.class_embed_type!r}")
    check_dtype(net)
    check_attention(net)
    _check_pyramids(net)


def _check_pyramids(net: UNet2D) -> None:
    """Raises ValueError for levels beside which the pyramid of images would have another size than the trunk."""
    down, up = ([kind.resampling == "skip" for kind in kinds] for kinds in net.kinds())
    require(
        net.norm_num_groups is not None or all(down + up),
        "norm_num_groups",
        None,
        "given unless all block types have 'Skip' in their name",
    )
    # The last level down does not resample, so that nothing there reads the pyramid.
    whole_down = down[:-1] == sorted(down[:-1], reverse=True)
    require(whole_down, "down_block_types", net.down_block_types, "such that 'Skip' types follow no others")
    require(up == sorted(up), "up_block_types", net.up_block_types, "such that no others follow 'Skip' types")
