"""The parts of an experiment, each made of its section of the config: process, network, parameterization, optimizer."""

from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from diffuse_jax import parameterizations
from diffuse_jax.conditions import Condition
from diffuse_jax.config.choices import choose, imported, line, section
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.experiment import DataInfo
from diffuse_jax.config.schema import NETWORKS, OPTIMIZERS, base
from diffuse_jax.data.augment import AUGMENT_DIM
from diffuse_jax.nets import LinenNet
from diffuse_jax.parameterizations import Parameterization
from diffuse_jax.sde import (
    EDM,
    SDE,
    VE,
    VP,
    Cosine,
    DiscreteVE,
    DiscreteVP,
    RectifiedFlow,
    SubVP,
    geometric_sigmas,
    linear_betas,
)
from diffuse_jax.training import ema_decay

__all__ = [
    "make_c_noise",
    "make_ema",
    "make_network",
    "make_optimizer",
    "make_parameterization",
    "make_process",
    "make_sampling_net",
]

# Each takes the section `config.sde`, with the noise levels below where it leaves them open.
_PROCESSES: dict[str, Callable[[Any], SDE]] = {
    "vp": lambda c: VP(beta_min=c.beta_min, beta_max=c.beta_max),
    "subvp": lambda c: SubVP(beta_min=c.beta_min, beta_max=c.beta_max),
    "ve": lambda c: VE(sigma_min=c.sigma_min, sigma_max=c.sigma_max),
    "cosine": lambda c: Cosine(s=c.s),
    "edm": lambda c: EDM(t_min=c.sigma_min, T=c.sigma_max),
    "flow": lambda c: RectifiedFlow(),
    "ddpm": lambda c: DiscreteVP(_betas(c)),
    "smld": lambda c: DiscreteVE(geometric_sigmas(c.sigma_min, c.sigma_max, c.num_scales)),
}
_NOISE_LEVELS = {"edm": (0.002, 80.0)}
_SONGS_NOISE_LEVELS = (0.01, 50.0)
_PARAMETERIZATIONS: dict[str, Callable[[ConfigDict], Parameterization]] = {
    "noise": lambda c: parameterizations.noise,
    "x0": lambda c: parameterizations.x0,
    "v": lambda c: parameterizations.v,
    "score": lambda c: parameterizations.score,
    "edm": lambda c: parameterizations.edm(c.sigma_data),
    "flow": lambda c: parameterizations.flow,
}
_C_NOISES = {
    "t": parameterizations.c_noise_t,
    "999t": parameterizations.c_noise_999t,
    "sigma": parameterizations.c_noise_sigma,
    "edm": parameterizations.c_noise_edm,
    "index": parameterizations.c_noise_index,
    "reversed_index": parameterizations.c_noise_reversed_index,
    "nearest_index": parameterizations.c_noise_nearest_index,
}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
_INDICES = ("index", "reversed_index", "nearest_index")
#: The fields of networks that say that they read a condition.
_READERS = {"label": ("num_classes", "label_dim"), "image": ("image_channels",), "tokens": ("vocabulary",)}


def make_process(config: ConfigDict) -> SDE:
    """The process of `config.sde`. ConfigError where it is none, or breaks off in float32."""
    sde = _process(config)
    _check_process(config, sde)
    return sde


def _process(config: ConfigDict) -> SDE:
    if ":" in config.name:
        sde = section(imported(config.name, "sde.name"), "sde", config)
        if not isinstance(sde, SDE):
            raise ConfigError(f"config.sde.name={config.name!r} made a {type(sde).__name__}, not a diffuse_jax.SDE")
        return sde
    make = choose(_PROCESSES, config.name, "sde.name")
    c = SimpleNamespace(**{**config, **_noise_levels(config)})
    for low, high in (("beta_min", "beta_max"), ("sigma_min", "sigma_max")):
        least, most = getattr(c, low), getattr(c, high)
        if not least < most:
            raise ConfigError(f"config.sde.{low}={least} must be below {high}={most}")
    if config.name == "ddpm" and c.num_scales <= c.beta_max:
        raise ConfigError(
            f"config.sde.num_scales={c.num_scales} must be above beta_max={c.beta_max}: their ratio is a β"
        )
    return section(make, "sde", c)


def _check_process(config: ConfigDict, sde: SDE) -> None:
    """ConfigError where α or σ of a process is nothing, infinite or NaN between the ends of its grids, or noise does
    not grow: what numbers within their ranges can still make of it in float32, and a process of one's own."""
    t = jnp.linspace(sde.t_min, sde.t_start, 33)
    alpha, sigma = np.asarray(sde.alpha(t)), np.asarray(sde.sigma(t))
    whole = np.isfinite([alpha, sigma]).all() and min(alpha.min(), sigma.min()) > 0
    if not (whole and (sigma[:-1] * alpha[1:] < sigma[1:] * alpha[:-1]).all()):
        defaults = base().sde
        own = ", ".join(f"{field}={value!r}" for field, value in config.items() if value != defaults.get(field))
        raise ConfigError(
            f"config.sde with {own or 'these values'} goes from α={alpha[0]:.4g}, σ={sigma[0]:.4g} to "
            f"α={alpha[-1]:.4g}, σ={sigma[-1]:.4g} in float32: both must be above 0 and finite, and σ/α must grow"
        )


def _betas(c: Any) -> np.ndarray:
    """The table of a DDPM."""
    if c.betas is None:
        return linear_betas(c.num_scales, c.beta_min / c.num_scales, c.beta_max / c.num_scales)
    if len(c.betas) != c.num_scales:
        raise ConfigError(f"config.sde.betas has {len(c.betas)} entries, and config.sde.num_scales={c.num_scales}")
    return np.asarray(c.betas, np.float64)


def _noise_levels(config: ConfigDict) -> dict[str, float]:
    """sigma_min and sigma_max of `config.sde`, or where it leaves them open those of the process."""
    levels = zip(("sigma_min", "sigma_max"), _NOISE_LEVELS.get(config.name, _SONGS_NOISE_LEVELS), strict=True)
    return {name: level if config.get(name) is None else config[name] for name, level in levels}


def make_parameterization(config: ConfigDict, sde: SDE) -> Parameterization:
    """What the network's output means on that process, and what it is told of the time. ConfigError, too, where a
    network of `NETWORKS` takes what it is told for another one than it is."""
    c_noise = make_c_noise(config, sde)
    c = config.parameterization
    made = section(choose(_PARAMETERIZATIONS, c.name, "parameterization.name"), "parameterization", c)
    if not isinstance(made, Parameterization):
        raise ConfigError(f"config.parameterization.name={c.name!r} made a {type(made).__name__}, no Parameterization")
    return made._replace(c_noise=c_noise)


def make_c_noise(config: ConfigDict, sde: SDE) -> Callable[[SDE, Any], jax.Array]:
    """What the network is told of the time. ConfigError where the process does not have it, or the network takes it for
    another thing than it is."""
    _check_c_noise(config)
    name = config.parameterization.c_noise
    c_noise: Callable[[SDE, Any], jax.Array] = choose(_C_NOISES, name, "parameterization.c_noise")
    try:
        jax.eval_shape(lambda: c_noise(sde, 0.5 * sde.T))
    except TypeError as error:
        raise ConfigError(f"config.parameterization.c_noise={name!r}: {line(error)}") from error
    return c_noise


def _check_c_noise(config: ConfigDict) -> None:
    model, c_noise = config.model, config.parameterization.c_noise
    fourier = "fourier" in (model.get("embedding_type"), model.get("time_embedding_type"))
    if c_noise == "edm" and (model.name == "mlp" or (fourier and model.name != "song_unet")):
        raise ConfigError(
            "config.parameterization.c_noise='edm' is negative at small noise, and the network takes its logarithm: "
            f"with config.model.name={model.name!r} it must be 'sigma', or 't'"
        )
    if ":" in model.name:
        return
    if fourier and (model.get("scale_by_sigma") or model.name == "unet2d") and c_noise != "sigma":
        raise ConfigError(
            f"config.parameterization.c_noise={c_noise!r} must be 'sigma': with Fourier features config.model.name="
            f"{model.name!r} divides its output by it, as config.model.scale_by_sigma says where there is one"
        )
    if model.get("scale_by_sigma") and not fourier and (config.sde.name, c_noise) != ("smld", "reversed_index"):
        raise ConfigError(
            "config.model.scale_by_sigma divides the network's output by the entry of a descending table of noise "
            "levels that c_noise names: it needs config.sde.name='smld' and config.parameterization.c_noise="
            "'reversed_index', or of ncsnpp config.model.embedding_type='fourier' and c_noise='sigma'"
        )
    if model.name == "ncsn" and c_noise not in _INDICES:
        raise ConfigError(
            f"config.parameterization.c_noise={c_noise!r} must be one of {', '.join(_INDICES)}, of a process of a "
            "table: config.model.name='ncsn' has parameters for each noise level"
        )


def make_network(config: ConfigDict, data: DataInfo, out_features: int | None = None) -> LinenNet:
    """The network of `config.model`.

    Args:
        config: The experiment's config.
        data: What is known of the data.
        out_features: The number of features a row that it is to return; None: an array like x.

    Returns:
        The network.

    Raises:
        ConfigError: Where there is no such network, or it returns something else, or does not read one of the
            conditions.
    """
    options = {name: value for name, value in config.model.items() if name != "name"}
    if ":" in config.model.name:
        module = imported(config.model.name, "model.name")
        own = {"num_classes": data.num_classes, "out_features": out_features}
        options |= {name: value for name, value in own.items() if value is not None}
        return LinenNet(section(module, "model", **options))
    module = choose(NETWORKS, config.model.name, "model.name")
    if "dtype" in options:
        options["dtype"] = choose(_DTYPES, options["dtype"], "model.dtype")
    names = {field.name for field in fields(module)}
    if ("out_features" in names) != (out_features is not None):
        returned, others = ("features", "ncsnpp") if "out_features" in names else ("an array like x", "encoder")
        raise ConfigError(
            f"config.model.name={config.model.name!r} returns {returned}, which config.method.name="
            f"{config.method.name!r} cannot use: take another network, such as {others}, or another method"
        )
    for condition in data.conditions:
        if not names & set(_READERS[condition]):
            raise ConfigError(
                f"config.data has the condition {condition!r}, which config.model.name={config.model.name!r} does not "
                f"read: leave it out, or take a network with the field {' or '.join(_READERS[condition])}"
            )
    if config.data.augment and "augment_dim" not in names:
        raise ConfigError(
            f"config.data.augment={config.data.augment}: config.model.name={config.model.name!r} is not told how "
            "an image was transformed, and would learn to draw such images; song_unet and adm are"
        )
    derived = {**_derived(config, data), "out_features": out_features}
    options |= {name: value for name, value in derived.items() if name in names}
    return LinenNet(section(module, "model", **options))


def _derived(config: ConfigDict, data: DataInfo) -> dict[str, Any]:
    """The values of the fields `schema.DERIVED` of networks that the data and the process say."""
    return {
        "num_classes": data.num_classes,
        "label_dim": data.num_classes or 0,
        "image_channels": data.conditions["image"].shape[-1] if "image" in data.conditions else 0,
        **_of_tokens(data.conditions.get("tokens")),
        "centered": config.data.centered,
        "img_resolution": data.shape[0],
        "out_channels": data.shape[-1],
        "augment_dim": AUGMENT_DIM if config.data.augment else 0,
        "num_scales": config.sde.get("num_scales", 1000),
        **_noise_levels(config.sde),
    }


def _of_tokens(known: Condition | None) -> dict[str, int]:
    """What a network must know of captions; without them it is told of no words, and of their number nothing."""
    return {"vocabulary": 0} if known is None else {"vocabulary": known.values, "context_length": known.shape[0]}


def make_sampling_net(config: ConfigDict, net: LinenNet) -> LinenNet:
    """`net` as it is sampled: the network computes in `config.sampling.dtype`, and what a solver makes of its output is
    float32."""
    name = config.sampling.dtype
    if name is None:
        return net
    dtype = choose(_DTYPES, name, "sampling.dtype")
    if "dtype" not in {field.name for field in fields(net.module)}:
        raise ConfigError(
            f"config.sampling.dtype={name!r}: config.model.name={config.model.name!r} has no field dtype to be told so"
        )
    return LinenNet(net.module.clone(dtype=dtype))


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimizer of a section such as `config.optimizer`, of a run of so many steps; one's own ("module:name") is
    called with the fields of its section."""
    options = {name: value for name, value in config.items() if name != "name"}
    make = choose(OPTIMIZERS, config.name, "optimizer.name")
    made = section(make, "optimizer", **options, **({} if ":" in config.name else {"steps": steps}))
    if not isinstance(made, optax.GradientTransformation):
        raise ConfigError(f"config.optimizer.name={config.name!r} made a {type(made).__name__}, no optax optimizer")
    return made


def make_ema(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """The decay of the moving average, of `config.ema`."""
    decay: Callable[[jax.Array], jax.Array] = section(
        ema_decay, "ema", batch_size=config.training.batch_size, **config.ema
    )
    return decay
