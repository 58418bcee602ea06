"""Weights and options of diffusers' `UNet2DModel`, and what its schedulers say of the process it was trained on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffuse_jax._fields import FLAG, TEXT, Kind, check_fields, integer, number, optional, row
from diffuse_jax.convert.checks import MOST_LEVELS, ConversionError, check_names
from diffuse_jax.nets import LinenNet
from diffuse_jax.nets.unet2d import UNet2D
from diffuse_jax.sde import cosine_betas

__all__ = ["diffusers_process", "from_diffusers", "to_diffusers"]

#: Options of the original and the fields here that have another name.
_RENAMED = {"num_class_embeds": "num_classes", "center_input_sample": "centered"}
#: Keys of config.json that the original's forward pass never reads.
_UNREAD = {
    "sample_size": "the size of its images: a network here reads those of any size that fits",
    **dict.fromkeys(
        ("decay", "min_decay", "inv_gamma", "power", "optimization_step", "update_after_step", "use_ema_warmup"),
        "state of the moving average that wrote the file",
    ),
}
_OPTIONS = {
    *(field for field in UNet2D.__dataclass_fields__ if field not in ("parent", "name", "dtype", "remat")),
    "in_channels",
    *_RENAMED,
} - set(_RENAMED.values())

_SIDE, _SIDES = integer(1), row(integer(1), (2,))
# The fields of networks are checked by these, as they are made.
_UNET_KINDS = {
    "sample_size": optional(Kind("a side in pixels, or two", lambda size: _SIDE.fits(size) or _SIDES.fits(size))),
    "in_channels": integer(1),
    "num_class_embeds": optional(integer(1)),
    "center_input_sample": FLAG,
    "down_block_types": row(TEXT),
    "up_block_types": row(TEXT),
    "time_embedding_type": TEXT,
}
_SCHEDULER_KINDS = {
    **dict.fromkeys(("_class_name", "variance_type", "prediction_type"), optional(TEXT)),
    **dict.fromkeys(("rescale_betas_zero_snr", "use_flow_sigmas", "predict_epsilon"), optional(FLAG)),
    **dict.fromkeys(("beta_start", "beta_end", "sigma_min", "sigma_max"), number(0)),
    "beta_schedule": TEXT,
    "trained_betas": optional(row(number(0))),
    "num_train_timesteps": integer(1, MOST_LEVELS),
}

_BLOCK = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "time": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "shortcut": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_DENSE = {"dense_0": "linear_1", "dense_1": "linear_2"}
#: Layers of an attention in older files, and their names since.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_diffusers(params: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[UNet2D, dict[str, Any]]:
    """The network of a `UNet2DModel` and its variables.

    `network.apply(variables, x, t)` is the original's output for x (batch, h, w, in_channels) and its timestep t
    (batch,), with class labels as `cond={"label": …}`.

    Args:
        params: The original's state_dict as arrays, under today's names or those of older files.
        config: Its config.json, where an absent key has the default of `UNet2DModel` and keys that start with "_" say
            nothing.

    Returns:
        The network, and its variables with the parameters under "params".

    Raises:
        ConversionError: Names options that cannot be carried over, and lists all missing, unknown and misshapen
            weights.
    """
    fields = _fields(config)
    try:
        network = UNet2D(**fields)
        leaves = _leaves(network, config.get("in_channels", 3))
    except Exception as error:  # Flax has types of its own
        raise ConversionError(f"the config cannot be carried over: {error}") from error
    given = _today(params)
    check_names({name: shape for name, shape, _ in leaves.values()}, given, ignored=("time_proj.W",))
    arrays = {
        path: jnp.asarray(np.asarray(given[name]).astype(np.float32).transpose(np.argsort(order)))
        for path, (name, _, order) in leaves.items()
    }
    return network, {"params": unflatten_dict(arrays)}


def to_diffusers(network: UNet2D, params: Any) -> dict[str, np.ndarray]:
    """The inverse of `from_diffusers`: the parameters of a UNet2D as the state_dict of a `UNet2DModel`."""
    arrays = flatten_dict(params)
    channels = arrays["in_conv", "kernel"].shape[2]
    return {
        name: np.asarray(arrays[path]).transpose(order) for path, (name, _, order) in _leaves(network, channels).items()
    }


def diffusers_process(
    unet_config: Mapping[str, Any], scheduler_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What config.json and scheduler_config.json of a pipeline say of its training, under this library's names.

        "sde"                {"name": "ddpm", "num_scales", "beta_min", "beta_max"}: a table of β that is linear from
                             beta_min/num_scales to beta_max/num_scales; {"name": "ddpm", "num_scales", "betas"}: any,
                             an array (num_scales,); or {"name": "ve", "sigma_min", "sigma_max"}
        "parameterization"   {"name": "noise", "x0", "v" or "score", "c_noise": "index" or "sigma"}
        "shape"              (h, w, c) of a sample, or None if the network does not say
        "num_classes"        an integer or None
        "centered"           False where the network maps samples in [0, 1] to [−1, 1] itself

    Clipping and thresholding of predictions, spacings of time and kinds of variance belong to sampling there and are
    not carried over.

    Args:
        unet_config: The network's config.json.
        scheduler_config: The scheduler's; None is what the pipelines of such networks have by default: VE from σ 0.01
            to 1348 with time_embedding_type "fourier", DDPM's linear table else.

    Returns:
        The fields above.

    Raises:
        ConversionError: For a scheduler of another process, or an option that changes what was learned.
    """
    check_fields(unet_config, _UNET_KINDS, "the config", ConversionError)
    check_fields(scheduler_config or {}, _SCHEDULER_KINDS, "the scheduler's config", ConversionError)
    size, channels = unet_config.get("sample_size"), unet_config.get("in_channels", 3)
    about = {
        "shape": None if size is None else (*((size, size) if isinstance(size, int) else size), channels),
        "num_classes": unet_config.get("num_class_embeds"),
        "centered": not unet_config.get("center_input_sample", False),
    }
    fourier = unet_config.get("time_embedding_type", "positional") == "fourier"
    scheduler = dict(scheduler_config or {})
    kind = scheduler.get("_class_name") or ("ScoreSdeVeScheduler" if fourier else "DDPMScheduler")
    if kind == "ScoreSdeVeScheduler":
        levels = {"sigma_min": scheduler.get("sigma_min", 0.01), "sigma_max": scheduler.get("sigma_max", 1348.0)}
        return {"sde": {"name": "ve", **levels}, "parameterization": {"name": "score", "c_noise": "sigma"}, **about}
    if kind not in _TABLE_SCHEDULERS:
        raise ConversionError(
            f"the process of {kind} is not carried over: the scheduler must be ScoreSdeVeScheduler or one of "
            f"{', '.join(_TABLE_SCHEDULERS)}"
        )
    return {"sde": _table(scheduler), "parameterization": {"name": _prediction(scheduler), "c_noise": "index"}, **about}


# --- options ----------------------------------------------------------------------------------------------------------


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the network."""
    check_fields(config, _UNET_KINDS, "the config", ConversionError)
    options = {key: value for key, value in config.items() if not key.startswith("_") and key not in _UNREAD}
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise ConversionError(
            f"the config has {', '.join(unknown)}, which UNet2DModel has not and are not carried over"
        )
    options.pop("in_channels", None)
    fields = {"out_channels": 3} | {_RENAMED.get(key, key): value for key, value in options.items()}
    fields["centered"] = not fields.get("centered", False)
    for field in ("down_block_types", "up_block_types"):
        if field in fields:
            fields[field] = tuple(name.removeprefix("UNetRes") for name in fields[field])
    for field in ("downsample_type", "upsample_type"):
        fields[field] = fields.get(field) or "conv"
    fields["act_fn"] = str(fields.get("act_fn", "silu")).lower()
    if fields.get("class_embed_type") is not None:
        fields.pop("num_classes", None)  # which the original does not read then
    return fields


#: Schedulers whose networks read the number of an entry of a table of β, with the same options and defaults.
_TABLE_SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}


def _prediction(scheduler: Mapping[str, Any]) -> str:
    """The name of the parameterization."""
    for option in ("rescale_betas_zero_snr", "use_flow_sigmas"):
        if scheduler.get(option):
            raise ConversionError(f"{option}=True is not carried over: its process is not that of the table of β")
    if str(scheduler.get("variance_type")).startswith("learned"):
        raise ConversionError(
            f"variance_type={scheduler['variance_type']!r} is not carried over: half of the output is a variance"
        )
    # In older files predict_epsilon says it.
    kind = scheduler.get("prediction_type") or ("epsilon" if scheduler.get("predict_epsilon", True) else "sample")
    if kind not in _PREDICTIONS:
        raise ConversionError(
            f"prediction_type={kind!r} is not carried over: it must be one of {', '.join(_PREDICTIONS)}"
        )
    return _PREDICTIONS[kind]


def _table(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The process of a table of β."""
    if (trained := scheduler.get("trained_betas")) is not None:
        return {"name": "ddpm", "num_scales": len(trained), "betas": np.asarray(trained, np.float64)}
    n, schedule = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule", "linear")
    first, last = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    if schedule == "linear":
        return {"name": "ddpm", "num_scales": n, "beta_min": n * first, "beta_max": n * last}
    tables: dict[str, Callable[[], np.ndarray]] = {
        "scaled_linear": lambda: np.linspace(first**0.5, last**0.5, n) ** 2,
        "squaredcos_cap_v2": lambda: cosine_betas(n),
        "sigmoid": lambda: first + (last - first) / (1 + np.exp(-np.linspace(-6, 6, n))),
    }
    if schedule not in tables:
        known = ", ".join(("linear", *tables))
        raise ConversionError(f"beta_schedule={schedule!r} is not carried over: it must be one of {known}")
    return {"name": "ddpm", "num_scales": n, "betas": tables[schedule]()}


# --- names ------------------------------------------------------------------------------------------------------------


def _today(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays under today's names."""
    given = {_today_name(name): array for name, array in params.items()}
    # The frequencies of a Fourier embedding were once saved under two names.
    if "time_proj.W" in given:
        given.setdefault("time_proj.weight", given["time_proj.W"])
    return given


def _today_name(name: str) -> str:
    *path, layer, leaf = name.rsplit(".", 2)
    if layer in _OLD_ATTENTION and ".attentions." in name:
        return ".".join((*path, _OLD_ATTENTION[layer], leaf))
    return name


def _leaves(network: UNet2D, channels: int) -> dict[tuple[str, ...], tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Of every parameter here, by its path: name and shape in the original, and the order of axes that leads there."""
    size = 2 ** (len(network.block_out_channels) - 1)
    shapes = jax.eval_shape(lambda key: LinenNet(network).init(key, (size, size, channels)), jax.random.key(0))
    layers = dict(_layers(network))
    found = {}
    for path, leaf in flatten_dict(shapes).items():
        order = tuple(range(leaf.ndim))
        if path[-1] == "kernel" and path[-2] != "classes":
            order = (*reversed(order[-2:]), *order[:-2])
        name = f"{layers[path[:-1]]}.{'bias' if path[-1] == 'bias' else 'weight'}"
        found[path] = name, tuple(leaf.shape[axis] for axis in order), order
    return found


def _layers(network: UNet2D) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path here and the name there of every layer that a network of this structure may have."""
    down, up = network.kinds()
    yield ("in_conv",), "conv_in"
    yield ("fourier",), "time_proj"
    yield ("times",), "time_proj"
    yield from _within("embedding", "time_embedding", _DENSE)
    yield from _within("class_embedding", "class_embedding", _DENSE)
    yield ("embedding", "classes"), "class_embedding"
    for level, kind in enumerate(down):
        yield from _level(f"down_{level}", f"down_blocks.{level}", network.layers_per_block, kind.resampling, "down")
    for i in range(2):
        yield from _within(f"middle_block_{i}", f"mid_block.resnets.{i}", _BLOCK)
    yield from _within("middle_attention", "mid_block.attentions.0", _ATTENTION)
    for level, kind in enumerate(up):
        yield from _level(f"up_{level}", f"up_blocks.{level}", network.layers_per_block + 1, kind.resampling, "up")
    yield ("out_norm",), "conv_norm_out"
    yield ("out_conv",), "conv_out"


def _level(
    ours: str, theirs: str, layers: int, resampling: str | None, direction: str
) -> Iterator[tuple[tuple[str, ...], str]]:
    for i in range(layers):
        yield from _within(f"{ours}_block_{i}", f"{theirs}.resnets.{i}", _BLOCK)
        yield from _within(f"{ours}_attention_{i}", f"{theirs}.attentions.{i}", _ATTENTION)
    if resampling == "conv":
        yield (f"{ours}_resample",), f"{theirs}.{direction}samplers.0.conv"
    else:
        name = f"resnet_{direction}" if resampling == "skip" else f"{direction}samplers.0"
        yield from _within(f"{ours}_resample", f"{theirs}.{name}", _BLOCK)
    yield (f"{ours}_skip_norm",), f"{theirs}.skip_norm"
    yield (f"{ours}_skip_conv",), f"{theirs}.skip_conv"


def _within(ours: str, theirs: str, layers: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], str]]:
    for layer, name in layers.items():
        yield (ours, layer), f"{theirs}.{name}"
