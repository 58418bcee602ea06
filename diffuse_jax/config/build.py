"""From an experiment's fields to objects: the only place that knows both."""

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from diffuse_jax import losses, parameterizations
from diffuse_jax.config.files import ConfigError
from diffuse_jax.config.schema import NETWORKS
from diffuse_jax.config.solvers import SamplingPlan, choose, sampling_plan
from diffuse_jax.data import Dataset, load_dataset
from diffuse_jax.denoiser import NetworkDenoiser
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
from diffuse_jax.training import TrainState, adam, create_state, ema_decay
from diffuse_jax.training.objectives import Objective, objective

__all__ = ["DataInfo", "Experiment", "build", "check_numbers", "describe", "load_data"]

# Each takes the section `config.sde`, with the noise levels below where it leaves them open.
_PROCESSES: dict[str, Callable[[Any], SDE]] = {
    "vp": lambda c: VP(beta_min=c.beta_min, beta_max=c.beta_max),
    "subvp": lambda c: SubVP(beta_min=c.beta_min, beta_max=c.beta_max),
    "ve": lambda c: VE(sigma_min=c.sigma_min, sigma_max=c.sigma_max),
    "cosine": lambda c: Cosine(s=c.s),
    "edm": lambda c: EDM(t_min=c.sigma_min, T=c.sigma_max),
    "flow": lambda c: RectifiedFlow(),
    "ddpm": lambda c: DiscreteVP(linear_betas(c.num_scales, c.beta_min / c.num_scales, c.beta_max / c.num_scales)),
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
_LABELS = {
    "t": parameterizations.label_t,
    "999t": parameterizations.label_999t,
    "sigma": parameterizations.label_sigma,
    "edm": parameterizations.label_edm,
    "index": parameterizations.label_index,
    "reversed_index": parameterizations.label_reversed_index,
    "nearest_index": parameterizations.label_nearest_index,
}
_WEIGHTS = {"sigma2": losses.sigma_squared, "g2": losses.g_squared}
_TIMES = {"uniform": losses.uniform_times, "importance": losses.importance_times}
_REDUCTIONS = {"mean": False, "half_sum": True}

_LEAST = {
    "training.steps_per_call": 1,
    "training.batch_size": 1,
    "training.steps": 1,
    "training.log_every": 1,
    "training.checkpoint_every": 1,
    "training.evaluate_every": 0,
    "training.sample_every": 0,
    "training.keep": 1,
    "training.keep_every": 0,
    "sampling.num": 1,
    "sampling.batch_size": 1,
    "sampling.eta": 0,
    "sampling.snr": 0,
    "sampling.epsilon": 0,
    "evaluation.num_samples": 2,
    "evaluation.num_loss": 1,
    "evaluation.num_likelihood": 1,
    "evaluation.pca_dims": 1,
    "evaluation.probes": 1,
}
_CADENCES = ("steps", "log_every", "checkpoint_every", "evaluate_every", "sample_every")


@dataclass(frozen=True)
class DataInfo:
    """What a network must know of its data: the shape of one row, its grey levels (None: continuous), its classes."""

    shape: tuple[int, ...]
    levels: int | None
    num_classes: int | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Experiment:
    """A config as objects. `params` holds the shapes of the network's parameters; `heldout_loss` is `loss` without
    flips and dequantization."""

    config: ConfigDict
    data: DataInfo
    sde: SDE
    net: LinenNet
    parameterization: Parameterization
    params: Any
    loss: Objective
    heldout_loss: Objective
    optimizer: optax.GradientTransformation
    ema: Callable[[jax.Array], jax.Array]
    plan: SamplingPlan

    def denoiser(self, params: Any) -> NetworkDenoiser:
        return NetworkDenoiser(self.sde, params, self.net, self.parameterization, self.data.shape)

    def create_state(self) -> TrainState:
        """The state at step 0, a function of the seed."""
        return create_state(self.net.init(self._key(0), self.data.shape), self.optimizer)

    @property
    def key(self) -> jax.Array:
        """The key of all that is random in training."""
        return self._key(1)

    def _key(self, purpose: int) -> jax.Array:
        # From the end of the numbers: those from 0 on are the keys of samples of the same seed (`sample_keys`).
        return jax.random.fold_in(jax.random.key(self.config.seed), np.uint32(2**32 - 1 - purpose))


def load_data(config: ConfigDict) -> Dataset:
    """The data set of `config.data`; DataError where it cannot be had."""
    c = config.data
    return load_dataset(
        c.source,
        image_size=c.image_size,
        channels=c.channels,
        holdout=c.holdout,
        labels=c.labels,
        skip_unreadable=c.skip_unreadable,
    )


def describe(config: ConfigDict, dataset: Dataset | None = None) -> DataInfo:
    """What the network must know of the data, without reading prepared data of which the config says it all."""
    c = config.data
    if dataset is None and c.source.startswith("tfds:") and c.image_size and c.channels and not c.labels:
        return DataInfo((c.image_size, c.image_size, c.channels), 256, None)
    dataset = dataset or load_data(config)
    return DataInfo(dataset.shape, dataset.levels, dataset.num_classes)


def build(config: ConfigDict, data: DataInfo | None = None) -> Experiment:
    """The experiment of a config; ConfigError, in one line, naming the field that cannot be met."""
    check_numbers(config)
    data = describe(config) if data is None else data
    sde = _process(config.sde)
    net = _network(config, data)
    parameterization = _parameterization(config, sde)
    if config.model.get("scale_by_sigma") and (config.model.embedding_type, config.parameterization.label) != (
        "fourier",
        "sigma",
    ):
        raise ConfigError(
            "config.model.scale_by_sigma divides the network's output by its label, which is σ only with "
            "config.model.embedding_type='fourier' and config.parameterization.label='sigma'"
        )
    params = _parameter_shapes(net, data)

    def denoiser(params: Any) -> NetworkDenoiser:
        return NetworkDenoiser(sde, params, net, parameterization, data.shape)

    loss = {
        "weight": choose(_WEIGHTS, config.loss.weight, "loss.weight"),
        "draw_times": choose(_TIMES, config.loss.times, "loss.times"),
        "stratified": config.loss.stratified,
        "t_min": config.loss.t_min,
        "half_sum": choose(_REDUCTIONS, config.loss.reduction, "loss.reduction"),
        "levels": data.levels,
        "centered": config.data.centered,
    }
    if not 0 < config.loss.t_min < sde.T:
        raise ConfigError(f"config.loss.t_min={config.loss.t_min} must lie between 0 and {sde.T}")
    if len(data.shape) == 1 and (config.data.flip or config.data.dequantize):
        raise ConfigError("config.data.flip and config.data.dequantize are for images; the data are vectors")
    return Experiment(
        config=config,
        data=data,
        sde=sde,
        net=net,
        parameterization=parameterization,
        params=params,
        loss=objective(denoiser, flip=config.data.flip, dequantize=config.data.dequantize, **loss),
        heldout_loss=objective(denoiser, **loss),
        optimizer=_section(adam, "optimizer", **config.optimizer),
        ema=_section(ema_decay, "ema", batch_size=config.training.batch_size, **config.ema),
        plan=sampling_plan(config.sampling, sde),
    )


def check_numbers(config: ConfigDict) -> None:
    """ConfigError naming the first number that is too small, or a number of steps that the calls do not make up."""
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"config.seed={config.seed} must be at least 0 and below 2**32")
    for field, least in _LEAST.items():
        section, name = field.split(".")
        if config[section][name] is not None and config[section][name] < least:
            raise ConfigError(f"config.{field}={config[section][name]} must be at least {least}")
    k = config.training.steps_per_call
    for name in _CADENCES:
        if config.training[name] % k:
            raise ConfigError(
                f"config.training.{name}={config.training[name]} must be a multiple of steps_per_call={k}"
            )


def _process(config: ConfigDict) -> SDE:
    if ":" in config.name:
        sde = _section(_imported(config.name, "sde.name"), "sde", config)
        if not isinstance(sde, SDE):
            raise ConfigError(f"config.sde.name={config.name!r} made a {type(sde).__name__}, not a diffuse_jax.SDE")
        return sde
    make = choose(_PROCESSES, config.name, "sde.name")
    levels = zip(("sigma_min", "sigma_max"), _NOISE_LEVELS.get(config.name, _SONGS_NOISE_LEVELS), strict=True)
    c = SimpleNamespace(**{**config, **{name: level for name, level in levels if config[name] is None}})
    for low, high in (("beta_min", "beta_max"), ("sigma_min", "sigma_max")):
        least, most = getattr(c, low), getattr(c, high)
        if not 0 < least < most:
            raise ConfigError(f"config.sde.{low}={least} must be positive and below {high}={most}")
    if c.s < 0:
        raise ConfigError(f"config.sde.s={c.s} must be at least 0")
    if c.num_scales < 2:
        raise ConfigError(f"config.sde.num_scales={c.num_scales} must be at least 2")
    if config.name == "ddpm" and c.num_scales <= c.beta_max:
        raise ConfigError(
            f"config.sde.num_scales={c.num_scales} must be above beta_max={c.beta_max}: their ratio is a β"
        )
    return _section(make, "sde", c)


def _parameterization(config: ConfigDict, sde: SDE) -> Parameterization:
    c = config.parameterization
    make = choose(_PARAMETERIZATIONS, c.name, "parameterization.name")
    label = choose(_LABELS, c.label, "parameterization.label")
    try:
        jax.eval_shape(lambda: label(sde, 0.5 * sde.T))
    except TypeError as error:
        raise ConfigError(f"config.parameterization.label={c.label!r}: {_line(error)}") from error
    if c.label == "edm" and (config.model.name == "mlp" or config.model.get("embedding_type") == "fourier"):
        raise ConfigError(
            "config.parameterization.label='edm' is negative at small noise, and the network takes its logarithm: with "
            "config.model.name='mlp' or config.model.embedding_type='fourier' the label must be 'sigma', or 't'"
        )
    return _section(make, "parameterization", c)._replace(label=label)


def _network(config: ConfigDict, data: DataInfo) -> LinenNet:
    options = {name: value for name, value in config.model.items() if name != "name"}
    if ":" in config.model.name:
        module = _imported(config.model.name, "model.name")
    else:
        module = choose(NETWORKS, config.model.name, "model.name")
        if "dtype" in options:
            options["dtype"] = _dtype(options["dtype"])
        if config.model.name != "mlp":
            options["centered"] = config.data.centered
    if data.num_classes is not None:
        options["num_classes"] = data.num_classes
    return LinenNet(_section(module, "model", **options))


def _dtype(name: str) -> Any:
    return choose({"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}, name, "model.dtype")


def _parameter_shapes(net: LinenNet, data: DataInfo) -> Any:
    try:
        return jax.eval_shape(lambda key: net.init(key, data.shape), jax.random.key(0))
    except Exception as error:  # Flax has types of its own, and a module of one's own may raise any
        raise ConfigError(f"config.model does not fit data of shape {data.shape}: {_line(error)}") from error


def _imported(path: str, field: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # an import runs a file, which may raise anything
        raise ConfigError(f"config.{field}={path!r} cannot be imported: {_line(error)}") from error


def _section(make: Callable[..., Any], section: str, *values: Any, **options: Any) -> Any:
    try:
        return make(*values, **options)
    except Exception as error:  # what is made may be the user's own
        raise ConfigError(f"config.{section}: {_line(error)}") from error


def _line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: {words}"
