"""From an experiment's fields to objects: the only place that knows both."""

import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffuse_jax import likelihood, parameterizations
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.numbers import check_numbers
from diffuse_jax.config.objectives import objectives
from diffuse_jax.config.sampling_section import SamplingPlan, choose, sampling_plan
from diffuse_jax.config.schema import NETWORKS, base
from diffuse_jax.data import TOYS, DataError, Dataset, load_dataset
from diffuse_jax.data.augment import AUGMENT_DIM
from diffuse_jax.data.load import check_asked
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
from diffuse_jax.training import TrainState, adam, create_state, ema_decay, gathered, train_step
from diffuse_jax.training.objectives import Objective
from diffuse_jax.training.step import StepFn

__all__ = ["TRACES", "DataInfo", "Experiment", "build", "describe", "load_data"]

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
#: `config.evaluation.trace`.
TRACES = {
    "exact": likelihood.exact_trace,
    "hutchinson": likelihood.hutchinson_trace,
    "gaussian": likelihood.gaussian_trace,
}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
_ARGUMENT = re.compile(r"(?<![\w./=-])(image_size|channels|holdout|labels|num_classes|skip_unreadable)=")
_INDICES = ("index", "reversed_index", "nearest_index")


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
    flips and dequantization; `sampling_net` is `net` as `config.sampling.dtype` says."""

    config: ConfigDict
    data: DataInfo
    sde: SDE
    net: LinenNet
    sampling_net: LinenNet
    parameterization: Parameterization
    params: Any
    loss: Objective
    heldout_loss: Objective
    optimizer: optax.GradientTransformation
    ema: Callable[[jax.Array], jax.Array]
    plan: SamplingPlan

    def denoiser(self, params: Any) -> NetworkDenoiser:
        return NetworkDenoiser(self.sde, params, self.net, self.parameterization, self.data.shape)

    def sampling_denoiser(self, params: Any) -> NetworkDenoiser:
        """That from which samples are drawn: the network computes in `config.sampling.dtype`, and what a solver makes
        of its output is float32."""
        return replace(self.denoiser(params), net=self.sampling_net)

    def create_state(self) -> TrainState:
        """The state at step 0, a function of the seed."""
        return create_state(self.net.init(self._key(0), self.data.shape), self.optimizer)

    @property
    def state_shapes(self) -> TrainState:
        """The shapes of the state; the network was traced for those of its parameters, and is not again."""
        return jax.eval_shape(lambda params: create_state(params, self.optimizer), self.params)

    def update(self, mesh: Mesh | None = None) -> StepFn:
        """One update of the state, `train_step` as the config has it; where the mesh splits the state, of parameters
        that are gathered first."""
        return functools.partial(
            train_step,
            loss=self.loss if mesh is None else gathered(self.loss, mesh),
            optimizer=self.optimizer,
            ema=self.ema,
            key=self.key,
            accumulate=self.config.training.accumulate,
        )

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
    if not c.source:
        raise ConfigError("config.data.source is empty: it is not known what the network was trained on; name the data")
    with _flags_in_errors():
        return load_dataset(
            c.source,
            image_size=c.image_size,
            channels=c.channels,
            holdout=c.holdout,
            labels=c.labels,
            num_classes=c.num_classes,
            skip_unreadable=c.skip_unreadable,
        )


@contextlib.contextmanager
def _flags_in_errors() -> Iterator[None]:
    """A DataError within names the flags of a command where it would name arguments of `load_dataset`."""
    try:
        yield
    except DataError as error:
        raise DataError(_ARGUMENT.sub(r"--config.data.\1=", str(error))) from error


def describe(config: ConfigDict, dataset: Dataset | None = None) -> DataInfo:
    """What the network must know of the data, without reading data of which the config says it all. ConfigError
    where it says another number of classes than they have, DataError for fields that no data could meet."""
    c = config.data
    with _flags_in_errors():
        check_asked(c.image_size, c.channels, c.holdout)
    # What becomes images of the size that is asked for: a prepared data set, or a folder, be it here or not.
    images = c.source.startswith("tfds:") or not (c.source in ("digits", *TOYS) or c.source.endswith((".npy", ".npz")))
    if dataset is None and images and c.image_size and c.channels and (c.num_classes or not c.labels):
        return DataInfo((c.image_size, c.image_size, c.channels), 256, c.num_classes if c.labels else None)
    dataset = dataset or load_data(config)
    if c.labels and c.num_classes not in (None, dataset.num_classes):
        raise ConfigError(
            f"config.data.num_classes={c.num_classes}, but {dataset.name} has {dataset.num_classes} classes"
        )
    return DataInfo(dataset.shape, dataset.levels, dataset.num_classes)


def build(config: ConfigDict, data: DataInfo | None = None) -> Experiment:
    """The experiment of a config; ConfigError, in one line, naming the field that cannot be met."""
    check_numbers(config)
    choose(TRACES, config.evaluation.trace, "evaluation.trace")
    data = describe(config) if data is None else data
    sde = _process(config.sde)
    _check_process(config.sde, sde)
    net = _network(config, data)
    parameterization = _parameterization(config, sde)
    _check_c_noise(config)
    params = _parameter_shapes(config.model.name, net, parameterization, data)
    loss, heldout_loss = objectives(config, sde, net, parameterization, data.shape, data.levels)
    return Experiment(
        config=config,
        data=data,
        sde=sde,
        net=net,
        sampling_net=_sampling_net(config, net),
        parameterization=parameterization,
        params=params,
        loss=loss,
        heldout_loss=heldout_loss,
        optimizer=_section(adam, "optimizer", steps=config.training.steps, **config.optimizer),
        ema=_section(ema_decay, "ema", batch_size=config.training.batch_size, **config.ema),
        plan=sampling_plan(config.sampling, sde),
    )


def _process(config: ConfigDict) -> SDE:
    if ":" in config.name:
        sde = _section(_imported(config.name, "sde.name"), "sde", config)
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
    return _section(make, "sde", c)


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


def _parameterization(config: ConfigDict, sde: SDE) -> Parameterization:
    c = config.parameterization
    make = choose(_PARAMETERIZATIONS, c.name, "parameterization.name")
    c_noise = choose(_C_NOISES, c.c_noise, "parameterization.c_noise")
    try:
        jax.eval_shape(lambda: c_noise(sde, 0.5 * sde.T))
    except TypeError as error:
        raise ConfigError(f"config.parameterization.c_noise={c.c_noise!r}: {_line(error)}") from error
    return _section(make, "parameterization", c)._replace(c_noise=c_noise)


def _check_c_noise(config: ConfigDict) -> None:
    """ConfigError where a network of `NETWORKS` takes what it is told of the time for another one than it is."""
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


def _network(config: ConfigDict, data: DataInfo) -> LinenNet:
    options = {name: value for name, value in config.model.items() if name != "name"}
    if ":" in config.model.name:
        module = _imported(config.model.name, "model.name")
        if data.num_classes is not None:
            options["num_classes"] = data.num_classes
    else:
        module = choose(NETWORKS, config.model.name, "model.name")
        if "dtype" in options:
            options["dtype"] = choose(_DTYPES, options["dtype"], "model.dtype")
        names = {field.name for field in fields(module)}
        if data.num_classes is not None and not names & {"num_classes", "label_dim"}:
            raise ConfigError(f"config.data.labels=True: config.model.name={config.model.name!r} reads no classes")
        if config.data.augment and "augment_dim" not in names:
            raise ConfigError(
                f"config.data.augment={config.data.augment}: config.model.name={config.model.name!r} is not told how "
                "an image was transformed, and would learn to draw such images; song_unet and adm are"
            )
        options |= {name: value for name, value in _derived(config, data).items() if name in names}
    return LinenNet(_section(module, "model", **options))


def _derived(config: ConfigDict, data: DataInfo) -> dict[str, Any]:
    """The values of the fields `schema.DERIVED` of networks."""
    return {
        "num_classes": data.num_classes,
        "label_dim": data.num_classes or 0,
        "centered": config.data.centered,
        "img_resolution": data.shape[0],
        "out_channels": data.shape[-1],
        "augment_dim": AUGMENT_DIM if config.data.augment else 0,
        "num_scales": config.sde.get("num_scales", 1000),
        **_noise_levels(config.sde),
    }


def _sampling_net(config: ConfigDict, net: LinenNet) -> LinenNet:
    name = config.sampling.dtype
    if name is None:
        return net
    dtype = choose(_DTYPES, name, "sampling.dtype")
    if "dtype" not in {field.name for field in fields(net.module)}:
        raise ConfigError(
            f"config.sampling.dtype={name!r}: config.model.name={config.model.name!r} has no field dtype to be told so"
        )
    return LinenNet(net.module.clone(dtype=dtype))


def _parameter_shapes(name: str, net: LinenNet, parameterization: Parameterization, data: DataInfo) -> Any:
    """The shapes of the network's parameters. ConfigError where it cannot be made for such data, or returns arrays of
    another shape."""

    def init(key: jax.Array) -> tuple[jax.Array, Any]:
        output, params = net.init_with_output(key, data.shape)
        return parameterization.output(output, jnp.zeros((1, *data.shape))), params

    try:
        output, params = jax.eval_shape(init, jax.random.key(0))
    except Exception as error:  # Flax has types of its own, and a module of one's own may raise any
        raise ConfigError(f"config.model does not fit data of shape {data.shape}: {_line(error)}") from error
    if getattr(output, "shape", None) != (1, *data.shape) or not jnp.issubdtype(output.dtype, jnp.floating):
        raise ConfigError(
            f"config.model.name={name!r} does not fit data of shape {data.shape}: for x of shape "
            f"{(1, *data.shape)} it returns {getattr(output, 'shape', type(output).__name__)}"
            f"{f' of {output.dtype}' if hasattr(output, 'dtype') else ''}, and must return floats shaped like x"
        )
    return params


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
