"""The RefineNets of NCSN (Song & Ermon 2019, arXiv:1907.05600) and NCSNv2 (2020, arXiv:2006.09011).

Down: two residual blocks a stage, the first of which halves the image by a 2×2 mean (dilation 1) or, deeper, looks
wider instead (dilation > 1). Up: from the deepest stage to the first a refinement (Lin et al. 2017, arXiv:1611.06612)
of the stage's output and of what came from below. The level of noise is told by its index c_noise in the table of noise
levels: NCSN reads it in every normalisation, NCSNv2 only divides its output by the noise level.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffuse_jax.nets.inputs import check_inputs, read_conditions
from diffuse_jax.nets.layers import (
    NONLINEARITIES,
    check_dtype,
    check_sigmas,
    make_tuple,
    mean_pool,
    real,
    require,
    sigma_table,
    whole,
)
from diffuse_jax.nets.ncsn_layers import RefineStyle, conv, interpolate, normalize

NORMALIZATIONS = ("instance++", "instance", "variance", "group")
INTERPOLATIONS = ("bilinear", "bilinear_corners", "nearest")

# The published forms of NCSNv2 by the size of the image. The widths on the way up of the first are those of the JAX
# program of Song et al. 2021; with (2, 2, 1, 1) it is the network of the PyTorch programs, and of NCSN there.
NCSNV2_FORMS: dict[int, dict[str, tuple[int, ...]]] = {
    64: {"ch_mult": (1, 2, 2, 2), "dilations": (1, 1, 2, 4), "refine_mult": (2, 2, 2, 1)},
    128: {"ch_mult": (1, 2, 2, 4, 4), "dilations": (1, 1, 1, 2, 4), "refine_mult": (4, 2, 2, 1, 1)},
    256: {"ch_mult": (1, 2, 2, 2, 4, 4), "dilations": (1, 1, 1, 1, 2, 4), "refine_mult": (4, 2, 2, 2, 1, 1)},
}


class RefineResBlock(nn.Module):
    """Norm–act–conv twice and a shortcut; `down` halves the image after the second convolution if dilation is 1."""

    style: RefineStyle
    features: int
    dilation: int
    down: bool

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array | None) -> jax.Array:
        style, dilation, pooled = self.style, self.dilation, self.down and self.dilation == 1
        h = style.act(normalize(x, style, index, "norm_0"))
        width = x.shape[-1] if self.down else self.features
        h = style.act(normalize(conv(h, width, style.dtype, "conv_0", dilation=dilation), style, index, "norm_1"))
        h = conv(h, self.features, style.dtype, "conv_1", dilation=dilation, pooled=pooled)
        if self.down:
            size = 1 if pooled else 3
            x = conv(x, self.features, style.dtype, "shortcut", size=size, dilation=dilation, pooled=pooled)
        return mean_pool(x) + mean_pool(h) if pooled else x + h


class ConvUnits(nn.Module):
    """`blocks` residual branches of act–conv twice, normalised first where normalisations know the noise."""

    style: RefineStyle
    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array | None) -> jax.Array:
        style = self.style
        for block in range(self.blocks):
            h = x
            for i in range(2):
                if style.levels is not None:
                    h = normalize(h, style, index, f"block_{block}_norm_{i}")
                h = conv(style.act(h), x.shape[-1], style.dtype, f"block_{block}_conv_{i}", bias=False)
            x = x + h
        return x


class ChainedPooling(nn.Module):
    """act(x) plus a chain of two 5×5 pools and convolutions of it: of the maximum, or of the mean after a normalisation
    that knows the noise."""

    style: RefineStyle

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array | None) -> jax.Array:
        style = self.style
        x = path = style.act(x)
        for i in range(2):
            if style.levels is None:
                path = nn.max_pool(path, (5, 5), (1, 1), "SAME")
            else:
                path = nn.avg_pool(normalize(path, style, index, f"norm_{i}"), (5, 5), (1, 1), "SAME")
            path = conv(path, x.shape[-1], style.dtype, f"conv_{i}", bias=False)
            x = x + path
        return x


class Refinement(nn.Module):
    """Fuses the output of a stage with what came from below, at the stage's size and in `features` channels."""

    style: RefineStyle
    features: int
    blocks: int

    @nn.compact
    def __call__(self, inputs: list[jax.Array], index: jax.Array | None) -> jax.Array:
        style, fused = self.style, []
        for i, x in enumerate(inputs):
            h = ConvUnits(style, 2, name=f"input_{i}")(x, index)
            if len(inputs) > 1:
                if style.levels is not None:
                    h = normalize(h, style, index, f"fusion_norm_{i}")
                h = conv(h, self.features, style.dtype, f"fusion_conv_{i}")
                h = interpolate(h, (inputs[0].shape[1], inputs[0].shape[2]), style.interpolation)
            fused.append(h)
        h = ChainedPooling(style, name="pooling")(sum(fused[1:], start=fused[0]), index)
        return ConvUnits(style, self.blocks, name="output")(h, index)


class RefineNet(nn.Module):
    """See the head of this module."""

    style: RefineStyle
    nf: int
    ch_mult: tuple[int, ...]
    dilations: tuple[int, ...]
    refine_mult: tuple[int, ...]
    last_epsilon: float
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, index: jax.Array | None) -> jax.Array:
        """x (batch, h, w, c): float32 (batch, h, w, c)."""
        style, outputs = self.style, []
        resblock = nn.remat(RefineResBlock) if self.remat else RefineResBlock
        h = conv(x, self.nf, style.dtype, "in_conv")
        for stage, (mult, dilation) in enumerate(zip(self.ch_mult, self.dilations, strict=True)):
            for i in range(2):
                down, name = stage > 0 and i == 0, f"stage_{stage}_block_{i}"
                h = resblock(style, self.nf * mult, dilation, down, name=name)(h, index)
            outputs.append(h)
        below: list[jax.Array] = []
        for stage, mult in zip(reversed(range(len(outputs))), self.refine_mult, strict=True):
            refinement = Refinement(style, self.nf * mult, 1 if stage else 3, name=f"refine_{stage}")
            below = [refinement([outputs[stage], *below], index)]
        h = style.act(normalize(below[0], style, index, "out_norm", self.last_epsilon))
        return conv(h, x.shape[-1], jnp.float32, "out_conv")


def _check(net: Any) -> None:
    """Raises ValueError for a field of either network that cannot work."""
    require(whole(net.nf) and net.nf > 0, "nf", net.nf, "a positive integer")
    for field in ("ch_mult", "dilations", "refine_mult"):
        make_tuple(net, field)
        value, stages = getattr(net, field), len(net.ch_mult)
        ok = stages > 0 and len(value) == stages and all(whole(m) and m > 0 for m in value)
        require(ok, field, value, f"a tuple of {max(stages, 1)} positive integers, one a stage as in ch_mult")
    choices = {"nonlinearity": sorted(NONLINEARITIES), "interpolation": INTERPOLATIONS}
    for field, allowed in choices.items():
        require(getattr(net, field) in allowed, field, getattr(net, field), f"one of {allowed}")
    require(whole(net.num_scales) and net.num_scales > 0, "num_scales", net.num_scales, "a positive integer")
    check_sigmas(net)
    check_dtype(net)


def _apply(
    net: Any,
    refine: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    c_noise: jax.Array,
    cond: Mapping[str, jax.Array] | None,
) -> jax.Array:
    """What both networks do before and after their RefineNet."""
    read_conditions(net, cond)
    check_inputs(net, x, c_noise, "dilations", sum(dilation == 1 for dilation in net.dilations[1:]))
    index = c_noise.astype(jnp.int32)
    h = refine(x if net.centered else 2 * x - 1, index)
    if not net.scale_by_sigma:
        return h
    return h / sigma_table(net.sigma_min, net.sigma_max, net.num_scales)[index][:, None, None, None]


class NCSN(nn.Module):
    """The RefineNet of NCSN, whose normalisations know the noise level; by default its CIFAR-10 network.

    Args:
        nf: The number by which channels are counted; stage i has nf·ch_mult[i].
        ch_mult: The multiple of nf at each stage.
        dilations: The first block of stage i > 0 halves the image where dilations[i] is 1, and else widens its view by
            that factor.
        refine_mult: The widths on the way up in nf, from the deepest stage to the first; the default is that of the JAX
            program of Song et al. 2021, (2, 2, 1, 1) that of the PyTorch ones.
        nonlinearity: The activation.
        interpolation: How a refinement enlarges an image: "bilinear" and "nearest" are what the JAX program reads,
            "bilinear_corners" is what the PyTorch ones compute.
        unbiased: Of the normalisations' variances, that over the channels is unbiased (n − 1), as in PyTorch and not in
            JAX.
        scale_by_sigma: Divide the output by entry ⌊c_noise⌋ of the geometric table of num_scales levels from sigma_max
            down to sigma_min.
        centered: Whether x lies in [−1, 1]; if not, it lies in [0, 1] and is mapped to 2x − 1.
        sigma_min: The smallest noise level of the table.
        sigma_max: The largest.
        num_scales: The number of noise levels.
        dtype: As in `NCSNpp`.
        remat: As in `NCSNpp`.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
    """

    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    refine_mult: tuple[int, ...] = (2, 2, 2, 1)
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "elu"
    interpolation: Literal["bilinear", "bilinear_corners", "nearest"] = "bilinear"
    unbiased: bool = False
    scale_by_sigma: bool = False
    centered: bool = False
    sigma_min: float = 0.01
    sigma_max: float = 1.0
    num_scales: int = 10
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    @nn.compact
    def __call__(
        self, x: jax.Array, c_noise: jax.Array, cond: Mapping[str, jax.Array] | None = None, *, train: bool = False
    ) -> jax.Array:
        """x (batch, h, w, c), c_noise (batch,) indices in 0..num_scales − 1, no conditions: float32 of x's shape.

        h and w must be multiples of 2 to the number of halvings, else ValueError. There is no dropout: `train` is part
        of the call of every network, and changes nothing here.
        """
        style = RefineStyle(
            self.nonlinearity, "instance++", self.interpolation, self.unbiased, True, self.num_scales, self.dtype
        )
        refine = RefineNet(
            style, self.nf, self.ch_mult, self.dilations, self.refine_mult, 1e-5, self.remat, name="refinenet"
        )
        return _apply(self, refine, x, c_noise, cond)


class NCSNv2(nn.Module):
    """The RefineNet of NCSNv2, which reads the image alone and divides by σ; by default its CIFAR-10 network.

    `NCSNV2_FORMS` has ch_mult, dilations and refine_mult of the networks for 64, 128 and 256 pixels.

    Args:
        nf: The number by which channels are counted, as in `NCSN`.
        ch_mult: The multiple of nf at each stage.
        dilations: As in `NCSN`.
        refine_mult: The widths on the way up in nf, as in `NCSN`.
        normalization: "instance++" (arXiv:1907.05600), "instance" (with scale and bias if `affine`), "variance" (which
            keeps the mean), or "group" (32 groups, so nf is a multiple of 32).
        nonlinearity: The activation.
        interpolation: How a refinement enlarges an image, as in `NCSN`.
        unbiased: As in `NCSN`, of "instance++" and "variance".
        affine: "instance" has a scale and a bias; not so in the PyTorch program of Song et al. 2021.
        last_epsilon: The term that "instance" adds to the variance in the last normalisation, 1e-5 in the others: that
            PyTorch program hands it num_scales there.
        scale_by_sigma: Divide the output by σ, as in `NCSN`.
        centered: Whether x lies in [−1, 1]; if not, it lies in [0, 1] and is mapped to 2x − 1.
        sigma_min: The smallest noise level of the table.
        sigma_max: The largest.
        num_scales: The number of noise levels.
        dtype: As in `NCSNpp`.
        remat: As in `NCSNpp`.

    Raises:
        ValueError: When the module is made, for a value that cannot work.
    """

    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    refine_mult: tuple[int, ...] = (2, 2, 2, 1)
    normalization: Literal["instance++", "instance", "variance", "group"] = "instance++"
    nonlinearity: Literal["swish", "elu", "relu", "lrelu"] = "elu"
    interpolation: Literal["bilinear", "bilinear_corners", "nearest"] = "bilinear"
    unbiased: bool = False
    affine: bool = True
    last_epsilon: float = 1e-5
    scale_by_sigma: bool = True
    centered: bool = False
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 232
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        ok = self.normalization in NORMALIZATIONS
        require(ok, "normalization", self.normalization, f"one of {NORMALIZATIONS}")
        last_ok = real(self.last_epsilon) and self.last_epsilon > 0
        require(last_ok, "last_epsilon", self.last_epsilon, "a positive number")
        grouped = self.normalization != "group" or self.nf % 32 == 0
        require(grouped, "nf", self.nf, 'a multiple of 32, the number of groups of normalization "group"')

    @nn.compact
    def __call__(
        self, x: jax.Array, c_noise: jax.Array, cond: Mapping[str, jax.Array] | None = None, *, train: bool = False
    ) -> jax.Array:
        """As `NCSN`."""
        style = RefineStyle(
            self.nonlinearity, self.normalization, self.interpolation, self.unbiased, self.affine, None, self.dtype
        )
        refine = RefineNet(
            style,
            self.nf,
            self.ch_mult,
            self.dilations,
            self.refine_mult,
            self.last_epsilon,
            self.remat,
            name="refinenet",
        )
        return _apply(self, refine, x, c_noise, cond)
