"""How score_sde names the parameters of our networks, in its JAX program and in its PyTorch one.

The JAX program numbers the modules of each class in the order in which it makes them, those without parameters too:
"ResnetBlockBigGANpp_3/Conv_0/kernel". The PyTorch program keeps its U-Nets' modules in one list, in the order of use:
"all_modules.7.Conv_0.weight"; a layer without parameters takes a place there where it resamples the trunk, not where
it resamples an image pyramid. Its RefineNets name their parts. Here each network is walked once, in the order of that
list, and every walk gives both spellings.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from diffuse_jax.nets import DDPM, NCSNpp
from diffuse_jax.nets.ncsn import NCSN, NCSNv2

Path = tuple[str, ...]
Shapes = Mapping[Path, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array: its path in our tree, None where our network has no such; its two names, None where that program has
    none; the axes that bring PyTorch's array to ours; our shape, and the one in the JAX program."""

    path: Path | None
    flax: str | None
    torch: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    flax_shape: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in np.argsort(self.axes))


_ROW, _MATRIX, _IMAGE = (0,), (0, 1), (2, 3, 1, 0)

# For each kind of layer: our name of each of its arrays, the JAX program's, PyTorch's, and the axes as in `Leaf`.
_KINDS: dict[str, tuple[tuple[str, str, str, tuple[int, ...]], ...]] = {
    "conv": (("kernel", "kernel", "weight", _IMAGE), ("bias", "bias", "bias", _ROW)),
    "fir conv": (("kernel", "weight", "weight", _IMAGE), ("bias", "bias", "bias", _ROW)),
    "dense": (("kernel", "kernel", "weight", (1, 0)), ("bias", "bias", "bias", _ROW)),
    "nin": (("kernel", "W", "W", _MATRIX), ("bias", "b", "b", _ROW)),
    "norm": (("scale", "scale", "weight", _ROW), ("bias", "bias", "bias", _ROW)),
    "frequencies": (("frequencies", "W", "W", _ROW),),
    "instance++": (
        ("gamma", "gamma", "gamma", _ROW),
        ("alpha", "alpha", "alpha", _ROW),
        ("beta", "beta", "beta", _ROW),
    ),
    "instance": (("scale", "scale", "weight", _ROW), ("bias", "bias", "bias", _ROW)),
    "variance": (("scale", "scale", "alpha", _ROW),),
    "levels": (("table", "Embed_0/embedding", "embed.weight", _MATRIX),),
}
# Kinds whose rows the JAX program stores as (1, 1, 1, channels).
_SPREAD = {"instance++", "instance", "variance"}

Layer = tuple[str, str, str, str]  # our path, the JAX program's path, PyTorch's path, kind

_PLAIN = {kind: (("", "", "", kind),) for kind in ("conv", "dense", "norm", "frequencies")}
_ATTENTION: tuple[Layer, ...] = (
    ("norm", "GroupNorm_0", "GroupNorm_0", "norm"),
    ("query", "NIN_0", "NIN_0", "nin"),
    ("key", "NIN_1", "NIN_1", "nin"),
    ("value", "NIN_2", "NIN_2", "nin"),
    ("out", "NIN_3", "NIN_3", "nin"),
)
_BLOCK: tuple[Layer, ...] = (
    ("norm_0", "GroupNorm_0", "GroupNorm_0", "norm"),
    ("conv_0", "Conv_0", "Conv_0", "conv"),
    ("time", "Dense_0", "Dense_0", "dense"),
    ("norm_1", "GroupNorm_1", "GroupNorm_1", "norm"),
    ("conv_1", "Conv_1", "Conv_1", "conv"),
)
_CONVOLUTION: tuple[Layer, ...] = (("conv", "Conv_0", "Conv_0", "conv"),)
_FILTERED: tuple[Layer, ...] = (("", "Conv2d_0", "Conv2d_0", "fir conv"),)


@dataclasses.dataclass(frozen=True)
class Part:
    """A module of the network: its path in our tree, its two names, and what may be inside."""

    path: Path
    flax: str
    torch: str
    layers: tuple[Layer, ...]


@dataclasses.dataclass(frozen=True)
class _Structure:
    """What decides which modules a `UNet` has, and the classes that they are of there."""

    biggan: bool
    progressive: str
    progressive_input: str
    fourier: bool
    fir: bool
    block: str
    attention: str


def _ncsnpp_structure(net: NCSNpp) -> _Structure:
    biggan = net.resblock_type == "biggan"
    block = "ResnetBlockBigGANpp" if biggan else "ResnetBlockDDPMpp"
    fourier = net.embedding_type == "fourier"
    return _Structure(biggan, net.progressive, net.progressive_input, fourier, net.fir, block, "AttnBlockpp")


_DDPM_STRUCTURE = _Structure(False, "none", "none", False, False, "ResnetBlockDDPM", "AttnBlock")


class _UNetWalk:
    """The parts of a `UNet` and its embedding of time, in the order in which nets/unet.py makes them; `tops` are the
    modules that ours has, which says where there is attention."""

    def __init__(self, net: NCSNpp | DDPM, structure: _Structure, tops: frozenset[str]) -> None:
        self.net, self.structure, self.tops = net, structure, tops
        shortcut = ("Conv_2", "Conv_2", "conv") if structure.biggan else ("NIN_0", "NIN_0", "nin")
        self.inside_block: tuple[Layer, ...] = (*_BLOCK, ("shortcut", *shortcut))
        self.inside_resampling = _FILTERED if structure.fir else _CONVOLUTION
        self.made: Counter[str] = Counter()
        self.places = itertools.count()

    def part(self, cls: str, layers: tuple[Layer, ...], *path: str, listed: bool = True) -> Part:
        name = f"{cls}_{self.made[cls]}"
        self.made[cls] += 1
        return Part(path, name, f"all_modules.{next(self.places)}" if listed else "", layers)

    def block(self, name: str) -> Part:
        return self.part(self.structure.block, self.inside_block, "unet", name)

    def attend(self, name: str) -> Iterator[Part]:
        if name in self.tops:
            yield self.part(self.structure.attention, _ATTENTION, "unet", name)

    def resample(self, cls: str, name: str) -> Part:
        return self.block(name) if self.structure.biggan else self.part(cls, self.inside_resampling, "unet", name)

    def image(self, name: str) -> Iterator[Part]:
        yield self.part("GroupNorm", _PLAIN["norm"], "unet", f"{name}_norm")
        yield self.part("Conv", _PLAIN["conv"], "unet", f"{name}_conv")

    def __iter__(self) -> Iterator[Part]:
        if self.structure.fourier:
            yield self.part("GaussianFourierProjection", _PLAIN["frequencies"], "fourier")
        if self.net.conditional:
            yield self.part("Dense", _PLAIN["dense"], "embedding", "dense_0")
            yield self.part("Dense", _PLAIN["dense"], "embedding", "dense_1")
        yield from self.down()
        yield self.block("middle_block_0")
        yield from self.attend("middle_attention")
        yield self.block("middle_block_1")
        yield from self.up()

    def down(self) -> Iterator[Part]:
        yield self.part("Conv", _PLAIN["conv"], "unet", "in_conv")
        for level in range(len(self.net.ch_mult)):
            for i in range(self.net.num_res_blocks):
                yield self.block(f"down_{level}_block_{i}")
                yield from self.attend(f"down_{level}_attention_{i}")
            if level == len(self.net.ch_mult) - 1:
                break
            yield self.resample("Downsample", f"down_{level}_resample")
            if self.structure.progressive_input == "input_skip":
                yield self.part("Downsample", (), listed=False)
                yield self.part("Combine", _CONVOLUTION, "unet", f"down_{level}_combine")
            elif self.structure.progressive_input == "residual":
                yield self.part("Downsample", self.inside_resampling, "unet", f"down_{level}_pyramid")

    def up(self) -> Iterator[Part]:
        deepest = len(self.net.ch_mult) - 1
        for level in reversed(range(len(self.net.ch_mult))):
            for i in range(self.net.num_res_blocks + 1):
                yield self.block(f"up_{level}_block_{i}")
            yield from self.attend(f"up_{level}_attention")
            if self.structure.progressive == "output_skip":
                if level < deepest:
                    yield self.part("Upsample", (), listed=False)
                yield from self.image(f"up_{level}_out")
            elif self.structure.progressive == "residual" and level == deepest:
                yield from self.image(f"up_{level}_pyramid")
            elif self.structure.progressive == "residual":
                yield self.part("Upsample", self.inside_resampling, "unet", f"up_{level}_pyramid")
            if level > 0:
                yield self.resample("Upsample", f"up_{level}_resample")
        if self.structure.progressive != "output_skip":
            yield from self.image("out")


def _walk_unet(net: NCSNpp | DDPM, structure: _Structure, shapes: Shapes) -> Iterator[Part]:
    return iter(_UNetWalk(net, structure, frozenset(path[1] for path in shapes if path[0] == "unet")))


_NORMS = {
    "instance++": ("InstanceNorm2dPlus", "instance++"),
    "instance": ("InstanceNorm2d", "instance"),
    "variance": ("VarianceNorm2d", "variance"),
    "group": ("GroupNorm", "norm"),
    "levels": ("ConditionalInstanceNorm2dPlus", "levels"),
}


@dataclasses.dataclass(frozen=True)
class _RefineWalk:
    """The parts of a `RefineNet` whose normalisations are of `kind`."""

    net: Any
    kind: str

    def norm(self, ours: str, number: int, torch: str) -> Layer:
        cls, kind = _NORMS[self.kind]
        return ours, f"{cls}_{number}", torch, kind

    def units(self, ours: str, flax: str, torch: str, blocks: int) -> Iterator[Layer]:
        for block, i in itertools.product(range(blocks), range(2)):
            number, place = 2 * block + i, f"{torch}.{block + 1}_{i + 1}"
            norm = self.norm(f"{ours}/block_{block}_norm_{i}", number, f"{place}_norm")
            yield norm[0], f"{flax}/{norm[1]}", *norm[2:]
            yield f"{ours}/block_{block}_conv_{i}", f"{flax}/Conv_{number}", f"{place}_conv", "conv"

    def chain(self, ours: str, flax: str, torch: str) -> Iterator[Layer]:
        """Two convolutions, each after a normalisation, if any."""
        for i in range(2):
            norm = self.norm(f"{ours}norm_{i}", i, f"{torch}.norms.{i}")
            yield norm[0], f"{flax}/{norm[1]}", *norm[2:]
            yield f"{ours}conv_{i}", f"{flax}/Conv_{i}", f"{torch}.convs.{i}", "conv"

    def refinement(self, inputs: int, blocks: int) -> Iterator[Layer]:
        prefix = "Cond" if self.kind == "levels" else ""
        for i in range(inputs):
            yield from self.units(f"input_{i}", f"{prefix}RCUBlock_{i}", f"adapt_convs.{i}", 2)
        yield from self.chain("fusion_", f"{prefix}MSFBlock_0", "msf")
        yield from self.chain("pooling/", f"{prefix}CRPBlock_0", "crp")
        yield from self.units("output", f"{prefix}RCUBlock_{inputs}", "output_convs", blocks)

    def block(self, pooled: bool) -> tuple[Layer, ...]:
        """`pooled`: the block halves the image, so that its last convolution and its shortcut are followed by means."""
        last = ("ConvMeanPool_0/Conv_0", "conv2.conv") if pooled else ("Conv_1", "conv2")
        shortcut = ("ConvMeanPool_1/Conv_0", "shortcut.conv") if pooled else ("Conv_2", "shortcut")
        return (
            self.norm("norm_0", 0, "normalize1"),
            ("conv_0", "Conv_0", "conv1", "conv"),
            self.norm("norm_1", 1, "normalize2"),
            ("conv_1", *last, "conv"),
            ("shortcut", *shortcut, "conv"),
        )

    def __iter__(self) -> Iterator[Part]:
        conditional, stages = self.kind == "levels", len(self.net.ch_mult)
        down, up = _stage_names(stages)
        block_class, refine_class = (
            ("ConditionalResidualBlock", "CondRefineBlock") if conditional else ("ResidualBlock", "RefineBlock")
        )
        yield Part(("refinenet", "in_conv"), "Conv_0", "begin_conv", _PLAIN["conv"])
        for stage, i in itertools.product(range(stages), range(2)):
            layers = self.block(pooled=stage > 0 and i == 0 and self.net.dilations[stage] == 1)
            path, flax = ("refinenet", f"stage_{stage}_block_{i}"), f"{block_class}_{2 * stage + i}"
            yield Part(path, flax, f"res{down[stage]}.{i}", layers)
        for number, stage in enumerate(reversed(range(stages))):
            refinement = tuple(self.refinement(1 if number == 0 else 2, 1 if stage else 3))
            path, flax = ("refinenet", f"refine_{stage}"), f"{refine_class}_{number}"
            yield Part(path, flax, f"refine{up[number]}", refinement)
        cls, kind = _NORMS[self.kind]
        yield Part(("refinenet", "out_norm"), f"{cls}_0", "normalizer", (("", "", "", kind),))
        yield Part(("refinenet", "out_conv"), "Conv_1", "end_conv", _PLAIN["conv"])


def _stage_names(stages: int) -> tuple[list[str], list[str]]:
    """PyTorch's names of the stages, from the first to the deepest, and of the refinements, from the deepest to the
    first: counted from 1, where of six stages the fourth is "31" and so is its refinement."""
    if stages != 6:
        return [str(i + 1) for i in range(stages)], [str(i + 1) for i in range(stages)]
    return ["1", "2", "3", "31", "4", "5"], ["1", "2", "31", "3", "4", "5"]


def _join(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)


def leaves(net: Any, shapes: Shapes) -> Iterator[Leaf]:
    """Every array of `net`, whose parameters have `shapes`, in the order of the PyTorch program's list of modules."""
    parts = _WALKS[type(net)](net, shapes)
    for part in parts:
        for ours, flax, torch, kind in part.layers:
            path = (*part.path, *filter(None, ours.split("/")))
            for leaf, flax_leaf, torch_leaf, axes in _KINDS[kind]:
                if (*path, leaf) in shapes:
                    shape = shapes[*path, leaf]
                    flax_shape = (1, 1, 1, *shape) if kind in _SPREAD else shape
                    flax_name = _join("/", part.flax, flax, flax_leaf)
                    yield Leaf(
                        (*path, leaf), flax_name, _join(".", part.torch, torch, torch_leaf), axes, shape, flax_shape
                    )
                elif torch == "Dense_0" and not net.conditional:
                    # PyTorch's blocks have it whether or not there is an embedding of time to read.
                    width = shapes[(*part.path, "conv_0", "bias")][0]
                    shape = (4 * net.nf, width) if leaf == "kernel" else (width,)
                    yield Leaf(None, None, _join(".", part.torch, torch, torch_leaf), axes, shape, shape)


_WALKS: dict[type, Callable[[Any, Shapes], Iterator[Part]]] = {
    NCSNpp: lambda net, shapes: _walk_unet(net, _ncsnpp_structure(net), shapes),
    DDPM: lambda net, shapes: _walk_unet(net, _DDPM_STRUCTURE, shapes),
    NCSN: lambda net, shapes: iter(_RefineWalk(net, "levels")),
    NCSNv2: lambda net, shapes: iter(_RefineWalk(net, net.normalization)),
}
