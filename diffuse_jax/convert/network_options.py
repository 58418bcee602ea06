"""The options of score_sde's networks as networks here, and back.

The options of an experiment of theirs are those of the network and much else, in sections or all as one. Both programs
make the same U-Nets of them and not the same RefineNets; each is honoured as the program in question computes it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import numpy as np

from diffuse_jax._fields import TEXT, check_fields, integer, optional
from diffuse_jax.convert.checks import MOST_LEVELS, ConversionError
from diffuse_jax.nets import DDPM, NCSNpp
from diffuse_jax.nets.ncsn import NCSN, NCSNV2_FORMS, NCSNv2

__all__ = ["UNREAD_OPTIONS", "Spelling", "flat_options", "network_of", "options_of", "take"]

Spelling = Literal["flax", "torch"]

# Options of published configurations that no network of either program reads, and that are ignored here: beside those
# of the network some of its process and its averaging, and two that nothing reads (attention_type, conv_size); then
# those of the data, training, optimizer, sampling and evaluation, where all sections' are given as one. An option that
# only another of the networks reads, such as embedding_type beside "ddpm", is ignored too.
UNREAD_OPTIONS = frozenset(
    (
        *("beta_min", "beta_max", "sigma_begin", "ema_rate", "attention_type", "conv_size"),
        *("dataset", "category", "tfrecords_path", "random_flip", "uniform_dequantization"),
        *("sde", "loss", "continuouse", "likelihood_weighting", "reduce_mean", "batch_size", "n_iters"),
        *("n_jitted_steps", "eval_freq", "log_freq"),
        *("snapshot_freq", "snapshot_freq_for_preemption", "snapshot_sampling", "seed", "device"),
        *("optimizer", "lr", "beta1", "eps", "weight_decay", "warmup", "grad_clip", "amsgrad"),
        *("method", "predictor", "corrector", "n_steps_each", "noise_removal", "probability_flow", "snr"),
        *("begin_ckpt", "end_ckpt", "bpd_dataset", "enable_bpd", "enable_loss", "enable_sampling", "num_samples"),
    )
)

_SIGMAS = ("sigma_min", "sigma_max", "num_scales")
_UNET = (
    *("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "resamp_with_conv", "conditional"),
    *("nonlinearity", "scale_by_sigma", "centered", *_SIGMAS),
)
_NCSNPP = (
    *("fir", "fir_kernel", "skip_rescale", "init_scale", "resblock_type", "progressive", "progressive_input"),
    *("progressive_combine", "embedding_type"),
)
_REFINENET = ("nf", "nonlinearity", "centered", *_SIGMAS)
_DATA = ("image_size", "num_channels", "channels", "centered")
# Read by one network or another. An option that is neither here nor above may be of a changed program: it is refused.
_KNOWN = frozenset({*_UNET, *_NCSNPP, *_DATA, "name", "continuous", "fourier_scale"}) | {
    *("normalization", "interpolation", "num_classes")
}
_LOWERED = (
    "nonlinearity",
    "resblock_type",
    "progressive",
    "progressive_input",
    "progressive_combine",
    "embedding_type",
)
_FLAGS = ("resamp_with_conv", "conditional", "scale_by_sigma", "centered", "fir", "skip_rescale", "continuous")
# The fields of networks are checked by these, as they are made.
_KINDS = {
    **dict.fromkeys(("name", "normalization", "interpolation"), optional(TEXT)),
    **dict.fromkeys(("image_size", "num_channels", "channels"), optional(integer(1))),
    "num_scales": optional(integer(1, MOST_LEVELS)),
}
_NORMALIZATIONS = {
    "InstanceNorm++": "instance++",
    "InstanceNorm": "instance",
    "VarianceNorm": "variance",
    "GroupNorm": "group",
}
_INTERPOLATIONS = {"bilinear": "bilinear", "nearest_neighbor": "nearest"}


def flat_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the network, of either form of `config`, with the case that the programs do not tell apart."""
    if hasattr(config.get("model"), "keys"):  # a ConfigDict, which is no Mapping, too
        nested = {section: config.get(section, {}) for section in ("model", "data", "training")}
        for section, part in nested.items():
            if not hasattr(part, "keys"):
                raise ConversionError(f"{section} is {part!r}, and must be a section of options")
        nested = {section: dict(part) for section, part in nested.items()}
        options = nested["model"] | {key: nested["data"][key] for key in _DATA if key in nested["data"]}
        if "continuous" in nested["training"]:
            options["continuous"] = nested["training"]["continuous"]
    else:
        options = dict(config)
    unknown = sorted(set(options) - _KNOWN - UNREAD_OPTIONS)
    if unknown:
        raise ConversionError(f"config has options that score_sde's networks do not: {', '.join(unknown)}")
    check_fields(options, _KINDS, "config", ConversionError)
    return {
        key: value.lower() if key in _LOWERED and isinstance(value, str) else value for key, value in options.items()
    }


def take(options: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The options that a network reads; those that are missing or null, which fir_kernel may be, are refused, and flags
    that are neither true nor false."""
    missing = [name for name in wanted if name not in options or (options[name] is None and name != "fir_kernel")]
    if missing:
        raise ConversionError(
            f"config lacks {', '.join(missing)}, which {options.get('name', 'every network')!r} needs"
        )
    for name in wanted:
        if name in _FLAGS and options[name] not in (True, False):
            raise ConversionError(f"{name} must be true or false; got {options[name]!r}")
    return {name: options[name] for name in wanted}


def _choose(options: Mapping[str, Any], name: str, choices: Mapping[str, Any]) -> Any:
    value = take(options, [name])[name]
    if value not in choices:
        raise ConversionError(f"{name} must be one of {', '.join(choices)} for {options['name']!r}; got {value!r}")
    return choices[value]


def _ncsnpp(options: Mapping[str, Any], spelling: Spelling) -> nn.Module:
    fields = take(options, (*_UNET, *_NCSNPP))
    if fields["embedding_type"] == "fourier" or "fourier_scale" in options:
        fields |= take(options, ["fourier_scale"])
    if fields["embedding_type"] == "fourier" and not take(options, ["continuous"])["continuous"]:
        raise ConversionError("continuous must be true where embedding_type is 'fourier'; got false")
    if fields["fir_kernel"] is None:  # as the programs read it
        fields["fir_kernel"] = (1, 1)
    if np.ndim(fields["fir_kernel"]) != 1:
        raise ConversionError(f"fir_kernel must be one row, of a separable filter; got {fields['fir_kernel']!r}")
    return NCSNpp(**fields)


def _ddpm(options: Mapping[str, Any], spelling: Spelling) -> nn.Module:
    # PyTorch's always normalises groups; that of JAX also has the normalisations of NCSN.
    if spelling == "flax" and "normalization" in options:
        _choose(options, "normalization", {"GroupNorm": "group"})
    return DDPM(**take(options, _UNET))


def _ncsn(options: Mapping[str, Any], spelling: Spelling) -> nn.Module:
    fields = take(options, _REFINENET)
    _choose(options, "normalization", {"InstanceNorm++": "instance++"})
    if options.get("num_classes", fields["num_scales"]) != fields["num_scales"]:
        raise ConversionError(
            f"num_classes must be num_scales, {fields['num_scales']}, or absent; got {options['num_classes']}"
        )
    if spelling == "torch":
        return NCSN(**fields, refine_mult=(2, 2, 1, 1), interpolation="bilinear_corners", unbiased=True)
    interpolation = _choose(options, "interpolation", _INTERPOLATIONS)
    return NCSN(**fields, **take(options, ["scale_by_sigma"]), interpolation=interpolation)


def _ncsnv2(form: int, options: Mapping[str, Any], spelling: Spelling) -> nn.Module:
    fields = take(options, _REFINENET) | NCSNV2_FORMS[form]
    fields["normalization"] = _choose(options, "normalization", _NORMALIZATIONS)
    if spelling == "flax":
        fields["interpolation"] = _choose(options, "interpolation", _INTERPOLATIONS)
        return NCSNv2(**fields, **take(options, ["scale_by_sigma"]))
    if fields["normalization"] == "group":
        raise ConversionError("normalization 'GroupNorm' is not one that the PyTorch program's NCSNv2 can have")
    if form == 64:
        fields["refine_mult"] = (2, 2, 1, 1)
    return NCSNv2(
        **fields,
        interpolation="bilinear_corners",
        unbiased=True,
        affine=False,
        last_epsilon=float(fields["num_scales"]),
        scale_by_sigma=True,
    )


_NETWORKS: dict[str, Callable[[Mapping[str, Any], Spelling], nn.Module]] = {
    "ncsnpp": _ncsnpp,
    "ddpm": _ddpm,
    "ncsn": _ncsn,
    **{f"ncsnv2_{form}": partial(_ncsnv2, form) for form in NCSNV2_FORMS},
}


def network_of(config: Mapping[str, Any], spelling: Spelling = "flax") -> nn.Module:
    """The network that `config` describes, as the JAX or the PyTorch program computes it.

    Both programs make the same U-Nets of it, but not the same RefineNets (see `NCSN`, `NCSNv2`): PyTorch's never read
    interpolation and scale_by_sigma. Neither program's NCSN runs as it stands, nor PyTorch's NCSNv2 (it pads dilated
    convolutions by one pixel, and scales biases that are not there): here they compute what their layers are for, as
    the programs of those papers do.

    Args:
        config: Flat (the options of the model with image_size, centered and continuous), or with them in "model",
            "data" and "training" as the programs' own.
        spelling: "flax" for the JAX program, "torch" for the PyTorch one.

    Returns:
        The network.

    Raises:
        ConversionError: For an option that is missing, that the programs do not have or that cannot work, by its name.
    """
    options = flat_options(config)
    make = _choose(options, "name", _NETWORKS)
    try:
        return make(options, spelling)
    except ConversionError:
        raise
    except (ValueError, TypeError) as error:
        raise ConversionError(f"config of {options['name']!r}: {error}") from error


# What the configuration of either program calls a network, and the fields that it states under their own names.
_EXPORTED: dict[type, tuple[str, tuple[str, ...]]] = {
    NCSNpp: ("ncsnpp", (*_UNET, *_NCSNPP, "fourier_scale")),
    DDPM: ("ddpm", _UNET),
}


def options_of(module: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The flat options of a network, of which `network_of` makes it again.

    They are JSON's types, and all that either program's network reads; `continuous` is true where it has to be. What
    says how the module computes and not what (`dtype`, `remat`) is left out.

    Args:
        module: An `NCSNpp` or `DDPM`.
        image_shape: The shape (h, h, c) of its images, which are square.

    Returns:
        The options by name.

    Raises:
        ConversionError: For a module or an image that the programs do not have; RefineNets are among those, since
            PyTorch's cannot be made as published.
    """
    if type(module) not in _EXPORTED:
        raise ConversionError(f"module must be an NCSNpp or a DDPM; got {type(module).__name__}")
    if getattr(module, "num_classes", None) is not None:
        raise ConversionError(f"num_classes must be None: score_sde has no classes; got {module.num_classes}")
    for field in ("image_channels", "vocabulary"):
        if getattr(module, field):
            raise ConversionError(f"{field} must be 0: score_sde has no such condition; got {getattr(module, field)}")
    height, width, channels = image_shape
    if height != width:
        raise ConversionError(f"image_shape must be square: the options have one image_size; got {image_shape}")
    name, fields = _EXPORTED[type(module)]
    options = {field: getattr(module, field) for field in fields}
    options = {field: list(value) if isinstance(value, tuple) else value for field, value in options.items()}
    continuous = options.get("embedding_type") == "fourier"
    data = {"image_size": height, "num_channels": channels, "continuous": continuous}
    return {"name": name, "normalization": "GroupNorm", **options, **data}
