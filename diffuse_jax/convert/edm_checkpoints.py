"""Weights of EDM's networks (Karras et al. 2022, arXiv:2206.00364), named as in its PyTorch program's state dicts.

Each name there follows from a path here: level i of an image of r pixels is called after its size r/2^i, and a block's
parts correspond one to one. Kernels there are (out, in, h, w), and the channels of queries, keys and values alternate.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffuse_jax._fields import TEXT, check_fields, integer, optional
from diffuse_jax.convert.checks import ConversionError, check_names
from diffuse_jax.nets import LinenNet
from diffuse_jax.nets.edm import ADM, SongUNet

__all__ = ["edm_preconditioner", "from_edm"]

_NETWORKS: dict[str, Any] = {"SongUNet": SongUNet, "DhariwalUNet": ADM}
_SHARED = {"label_dim", "augment_dim", "model_channels", "channel_mult", "channel_mult_emb", "num_blocks"}
_SHARED |= {"attn_resolutions", "dropout", "label_dropout"}
_SONG = {"embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter"}
_OPTIONS = {"SongUNet": _SHARED | _SONG, "DhariwalUNet": _SHARED}

#: Options that say nothing of the raw network, and why.
NOT_THE_NETWORKS = {
    "use_fp16": "the precision of the original's GPU kernels: here it is the field dtype",
    "sigma_data": "EDM's preconditioning",
    "sigma_min": "the range of noise that the preconditioner states",
    "sigma_max": "the range of noise that the preconditioner states",
    "beta_d": "the VP preconditioning's process",
    "beta_min": "the VP preconditioning's process",
    "epsilon_t": "the VP preconditioning's process",
    "M": "the table of the VP and iDDPM preconditionings",
    "C_1": "the table of the iDDPM preconditioning",
    "C_2": "the table of the iDDPM preconditioning",
}
# The fields of networks are checked by these, as they are made.
_KINDS = {
    "model_type": TEXT,
    "class_name": optional(TEXT),
    "precond": optional(TEXT),
    **dict.fromkeys(("img_resolution", "img_channels", "in_channels", "out_channels"), integer(1)),
}
_STRUCTURE = {"model_type", "img_resolution", "img_channels", "in_channels", "out_channels", "class_name", "precond"}

# The parts of a block, here and there.
_PARTS = {
    "norm_0": "norm0",
    "conv_0": "conv0",
    "time": "affine",
    "norm_1": "norm1",
    "conv_1": "conv1",
    "shortcut": "skip",
    "attention/norm": "norm2",
    "attention/qkv": "qkv",
    "attention/out": "proj",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "frequencies": "freqs"}


def from_edm(params: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The raw network F and its variables of EDM's weights.

    `network.apply(variables, x, t, {"label": label}, augment=…)` is F(x, t, class_labels=label, augment_labels=augment)
    for NHWC float32 x.

    Args:
        params: The named arrays of a network's state dict or of its preconditioner's (names with "model.", or also
            "module.").
        config: The constructor's options: `model_type` "SongUNet" or "DhariwalUNet", `img_resolution`, and
            `img_channels` or `in_channels` and `out_channels` must be there, what else is left out has EDM's default.
            `class_name`, or `precond`, names the preconditioner: with iDDPM's, networks have two outputs a channel.

    Returns:
        The network, and its variables with the parameters under "params".

    Raises:
        ConversionError: For options that are missing, unknown or of no use, and for every name that is missing, unknown
            or of another shape; resampling filters among the weights must be the options'.
    """
    network, names, expected = _plan(config)
    given = _bare_names(params)
    filters = sorted(_filters(network).intersection(given))
    taps = getattr(network, "resample_filter", (1, 1))
    kernel = np.outer(taps, taps) / sum(taps) ** 2
    filter_shape = (1, 1, *kernel.shape)
    # "u" is the table of iDDPM's preconditioning.
    check_names(expected | dict.fromkeys(filters, filter_shape), given, ignored={"u"})
    for name in filters:
        if not np.allclose(_numpy(given[name])[0, 0], kernel, rtol=1e-3, atol=1e-6):
            raise ConversionError(f"{name} is not the filter that resample_filter = {taps} gives")
    flat = {path: jnp.asarray(_value_here(path, _numpy(given[name]))) for path, name in names.items()}
    return network, {"params": unflatten_dict(flat, sep="/")}


def edm_preconditioner(config: Mapping[str, Any]) -> str:
    """What `class_name`, or `precond`, names: "edm" (where neither is there), "vp", "ve" or "iddpm"."""
    named = str(config.get("class_name") or config.get("precond") or "edm")
    return named.rsplit(".", 1)[-1].lower().removesuffix("precond")


def _plan(config: Mapping[str, Any]) -> tuple[Any, dict[str, str], dict[str, tuple[int, ...]]]:
    """The network, the original's name of the parameter at each path, and the shape of each name."""
    network, in_channels = _network(config)
    size = config["img_resolution"]
    try:
        shape = (size, size, in_channels)
        shapes = flatten_dict(
            jax.eval_shape(lambda key: LinenNet(network).init(key, shape), jax.random.key(0)), sep="/"
        )
    except Exception as error:  # Flax has types of its own
        raise ConversionError(f"the options make no network: {error}") from error
    modules = _modules(network)
    names = {path: _name(path, modules) for path in shapes}
    return network, names, {names[path]: _shape_there(path, leaf.shape) for path, leaf in shapes.items()}


def _network(config: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The network that the options state, and the channels of the image that it reads."""
    channels = ["img_channels"] if "img_channels" in config else ["in_channels", "out_channels"]
    required = ("model_type", "img_resolution", *channels)
    missing = [name for name in required if config.get(name) is None]
    if missing:
        raise ConversionError(f"the options lack {', '.join(missing)}; EDM's constructors require them")
    check_fields(config, _KINDS, "the options", ConversionError)
    kind = config["model_type"]
    if kind not in _NETWORKS:
        raise ConversionError(f"model_type must be one of {sorted(_NETWORKS)}; got {kind!r}")
    unknown = sorted(set(config) - _OPTIONS[kind] - _STRUCTURE - set(NOT_THE_NETWORKS))
    if unknown:
        raise ConversionError(f"{kind} has no option {', '.join(unknown)}; its options are {sorted(_OPTIONS[kind])}")
    outputs = 2 if edm_preconditioner(config) == "iddpm" else 1
    in_channels = config.get("in_channels", config.get("img_channels"))
    out_channels = config.get("out_channels", outputs * config.get("img_channels", 0))
    fields = {name: value for name, value in config.items() if name in _OPTIONS[kind]}
    try:
        network = _NETWORKS[kind](img_resolution=config["img_resolution"], out_channels=out_channels, **fields)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"the options make no network: {error}") from error
    return network, in_channels


def _bare_names(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays without the prefixes "module." and "model."."""
    bare = {name.removeprefix("module.").removeprefix("model."): array for name, array in params.items()}
    if len(bare) < len(params):
        raise ConversionError(
            'some names are there with and without the prefix "model." or "module.": give one network'
        )
    return bare


def _sizes(network: Any) -> list[str]:
    sizes = [network.img_resolution >> level for level in range(len(network.channel_mult))]
    return [f"{size}x{size}" for size in sizes]


def _modules(network: Any) -> dict[str, str]:
    """Our modules' paths and the original's names for them; some are of no use to this network."""
    sizes = _sizes(network)
    table = {"fourier": "map_noise", "dense_0": "map_layer0", "dense_1": "map_layer1"}
    table |= {"classes": "map_label", "augment": "map_augment", "unet/in_conv": f"enc.{sizes[0]}_conv"}
    table |= {f"unet/middle_block_{i}": f"dec.{sizes[-1]}_in{i}" for i in range(2)}
    out = f"dec.{sizes[0]}_aux_" if isinstance(network, SongUNet) else "out_"
    table |= {f"unet/out_{part}": f"{out}{part}" for part in ("norm", "conv")}
    for level, at in enumerate(sizes):
        down, up = f"unet/down_{level}", f"unet/up_{level}"
        table |= {f"{down}_resample": f"enc.{at}_down", f"{up}_resample": f"dec.{at}_up"}
        table |= {f"{down}_combine": f"enc.{at}_aux_skip", f"{down}_pyramid": f"enc.{at}_aux_residual"}
        table |= {f"{up}_out_{part}": f"dec.{at}_aux_{part}" for part in ("norm", "conv")}
        table |= {f"{down}_block_{i}": f"enc.{at}_block{i}" for i in range(network.num_blocks)}
        table |= {f"{up}_block_{i}": f"dec.{at}_block{i}" for i in range(network.num_blocks + 1)}
    return table


def _name(path: str, modules: Mapping[str, str]) -> str:
    """The original's name of the parameter at `path`, such as "unet/down_1_block_0/conv_0/kernel"."""
    parts = path.split("/")
    depth = 2 if parts[0] == "unet" else 1
    inside = "/".join(parts[depth:-1])
    places = [modules["/".join(parts[:depth])], *([_PARTS[inside]] if inside else []), _LEAVES[parts[-1]]]
    return ".".join(places)


def _filters(network: Any) -> set[str]:
    """The names of the resampling filters that the original keeps beside its parameters."""
    sizes = _sizes(network)
    encoder, decoder = getattr(network, "encoder_type", ""), getattr(network, "decoder_type", "")
    down = ["down.conv0", "down.skip", *{"skip": ["aux_down"], "residual": ["aux_residual"]}.get(encoder, [])]
    up = ["up.conv0", "up.skip", *(["aux_up"] if decoder == "skip" else [])]
    names = {f"enc.{at}_{part}" for at in sizes[1:] for part in down}
    return {f"{name}.resample_filter" for name in names | {f"dec.{at}_{part}" for at in sizes[:-1] for part in up}}


def _numpy(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32)


def _shape_there(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not path.endswith("kernel"):
        return shape
    *window, inputs, outputs = shape
    return (outputs, inputs, *(window or ([1, 1] if "/attention/" in path else [])))


def _value_here(path: str, array: np.ndarray) -> np.ndarray:
    if "/attention/qkv/" in path:
        # Channel 3·c + j there is channel j·channels + c here; j = 0, 1, 2 are query, key and value.
        array = array.reshape(-1, 3, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    if not path.endswith("kernel"):
        return array
    kernel = np.moveaxis(array, (0, 1), (-1, -2))
    return kernel[0, 0] if "/attention/" in path else kernel
