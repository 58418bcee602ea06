"""`config.method` and the sections that it reads, as an experiment."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffuse_jax import likelihood, losses, methods
from diffuse_jax.codecs import Codec, Pixels
from diffuse_jax.conditions import null_row
from diffuse_jax.config.choices import choose, function_of, imported, line, section
from diffuse_jax.config.codec_section import make_codec
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.experiment import DataInfo, Experiment
from diffuse_jax.config.parts import (
    make_c_noise,
    make_ema,
    make_network,
    make_optimizer,
    make_parameterization,
    make_process,
    make_sampling_net,
)
from diffuse_jax.config.sampling_section import SamplingPlan, sampling_plan
from diffuse_jax.config.schema import METHOD_FIELDS, base
from diffuse_jax.nets import LinenAutoencoder, LinenNet
from diffuse_jax.parameterizations import Parameterization
from diffuse_jax.sde import SDE
from diffuse_jax.training import Density, Method

__all__ = ["METHODS", "build_method", "reads"]

_WEIGHTS: dict[str, Callable[[ConfigDict], Callable[..., jax.Array]]] = {
    "sigma2": lambda config: losses.sigma_squared,
    "g2": lambda config: losses.g_squared,
    "edm": lambda config: losses.edm_weight(config.parameterization.sigma_data),
}
_TIMES: dict[str, Callable[[ConfigDict], Callable[..., tuple[jax.Array, jax.Array]]]] = {
    "uniform": lambda config: losses.uniform_times,
    "importance": lambda config: losses.importance_times,
    "table": lambda config: losses.table_times,
    "log_normal": lambda config: losses.log_normal_times(config.loss.p_mean, config.loss.p_std),
}
_REDUCTIONS = {"mean": False, "half_sum": True}
_TRACES: dict[str, Callable[[ConfigDict], Callable[..., Any]]] = {
    "exact": lambda config: likelihood.exact_trace,
    "hutchinson": lambda config: likelihood.hutchinson_trace,
    "gaussian": lambda config: likelihood.gaussian_trace,
}


def build_method(config: ConfigDict, data: DataInfo) -> Experiment:
    """The experiment of a config with such data; ConfigError naming the field that cannot be met, or that is given and
    not read."""
    name = config.method.name
    if ":" in name:
        return _own(config, data)
    build, _ = choose(METHODS, name, "method.name")
    if lacking := [field for field in METHOD_FIELDS[name] if field not in config.method]:
        raise ConfigError(
            f"config.method lacks {lacking[0]!r}: in an experiment file it is config.method = method({name!r})"
        )
    defaults = base()
    for field, value, default in (found for part in sorted(_DENOISING) for found in _fields_of(config, defaults, part)):
        if value != default and not reads(name, field):
            raise ConfigError(
                f"config.{field}={value!r} is not read by config.method.name={name!r}: leave it at {default!r}"
            )
    experiment: Experiment = build(config, data)
    return experiment


def reads(name: str, part: str) -> bool:
    """Whether the method of that name reads a section, or a field of one such as "loss.weight", that not every method
    does; one of one's own may read them all."""
    return name not in METHODS or bool(METHODS[name][1] & {part, part.partition(".")[0]})


def _fields_of(config: ConfigDict, defaults: ConfigDict, part: str) -> Iterator[tuple[str, Any, Any]]:
    """The dotted name, value and default of each field of a section, or of the one field "section.field"."""
    section, _, field = part.partition(".")
    for name in [field] if field else {**defaults[section], **config[section]}:
        yield f"{section}.{name}", config[section].get(name), defaults[section].get(name)


def _own(config: ConfigDict, data: DataInfo) -> Experiment:
    """A method of one's own: "module:name" names a function (config, data) -> Method."""
    method = section(imported(config.method.name, "method.name"), "method", config, data)
    if not isinstance(method, Method):
        raise ConfigError(f"config.method.name={config.method.name!r} made a {type(method).__name__}, no Method")
    params, extra = section(lambda: jax.eval_shape(method.init, jax.random.key(0)), "method")
    return Experiment(config, data, method, make_codec(config, data), params, extra)


def _denoising(config: ConfigDict, data: DataInfo) -> Experiment:
    sde, codec = make_process(config.sde), make_codec(config, data)
    coded = dataclasses.replace(data, shape=codec.shape)  # what the network has to do with
    net = make_network(config, coded)
    parameterization = make_parameterization(config, sde)
    params = _denoiser_shapes(config.model.name, net, parameterization, coded)
    plan = sampling_plan(config, sde)
    sampling_net = make_sampling_net(config, net)
    method = methods.denoising(
        sde,
        net,
        codec,
        optimizer=make_optimizer(config.optimizer, config.training.steps),
        ema=make_ema(config),
        parameterization=parameterization,
        conditions=data.conditions,
        draw=methods.solver_draw(
            sde,
            plan.solver,
            plan.times,
            finish=plan.finish,
            noise=plan.noise,
            net=None if sampling_net is net else sampling_net,
            facts=_facts(config, plan),
        ),
        log_prob=_flow_log_prob(config, codec),
        augmentation=config.data.augment,
        drop=config.loss.drop_conditions,
        half_sum=choose(_REDUCTIONS, config.loss.reduction, "loss.reduction"),
        weight=function_of(config, _WEIGHTS, "weight"),
        **noise_times(config, sde),
    )
    return Experiment(
        config, data, method, codec, params, sde=sde, net=net, parameterization=parameterization, plan=plan
    )


def _flow_log_prob(config: ConfigDict, codec: Codec) -> Density | None:
    """The density of the data that pixels give; of what another codec makes of them there is none here."""
    if not isinstance(codec, Pixels):
        return None
    c = config.evaluation
    return methods.flow_log_prob(
        codec,
        trace=function_of(config, _TRACES, "trace"),
        probes=c.probes,
        t_min=config.loss.t_min,
        rtol=c.rtol,
        atol=c.atol,
        facts={"trace": c.trace, "probes": c.probes},
    )


def _classifier(config: ConfigDict, data: DataInfo) -> Experiment:
    if data.num_classes is None:
        raise ConfigError("config.data.labels=False: config.method.name='classifier' learns labels, give True")
    if config.data.augment:
        raise ConfigError(f"config.data.augment={config.data.augment} is not read by config.method.name='classifier'")
    sde = make_process(config.sde)
    # The label is what it tells, and not what it is told.
    told = dataclasses.replace(data, conditions={n: known for n, known in data.conditions.items() if n != "label"})
    net = make_network(config, told, out_features=data.num_classes)
    params = _classifier_shapes(config.model.name, net, told, data.num_classes)
    codec = make_codec(config, data)
    method = methods.classifier(
        sde,
        net,
        codec,
        optimizer=make_optimizer(config.optimizer, config.training.steps),
        ema=make_ema(config),
        c_noise=make_c_noise(config, sde),
        conditions=data.conditions,
        **noise_times(config, sde),
    )
    return Experiment(config, data, method, codec, params, sde=sde, net=net)


def _autoencoder(config: ConfigDict, data: DataInfo) -> Experiment:
    if data.levels is None:
        raise ConfigError(
            f"config.method.name={config.method.name!r} is for images of grey levels; the data of config.data.source="
            f"{config.data.source!r} are vectors of shape {data.shape}"
        )
    if config.data.dequantize:
        raise ConfigError(
            "config.data.dequantize=True spreads the grey levels of which config.method.name='autoencoder' gives the "
            "probability: leave it out"
        )
    codec = make_codec(config, data)
    if not isinstance(codec, Pixels):
        raise ConfigError(f"config.codec.name={config.codec.name!r}: config.method.name='autoencoder' is of pixels")
    try:
        net = LinenAutoencoder(make_network(config, data).module)
        method = methods.autoencoder(
            net,
            codec,
            kl_weight=config.method.kl_weight,
            draws=config.evaluation.probes,
            optimizer=make_optimizer(config.optimizer, config.training.steps),
            ema=make_ema(config),
        )
    except ConfigError:
        raise
    except Exception as error:  # Flax has types of its own, and a module of one's own may raise any
        raise ConfigError(
            f"config.model.name={config.model.name!r} is no autoencoder of data of shape {data.shape}: {line(error)}"
        ) from error
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    return Experiment(config, data, method, codec, params, extra)


def noise_times(config: ConfigDict, sde: SDE) -> dict[str, Any]:
    """How the times of training are drawn, of `config.loss`: the arguments times, t_min and stratified of a loss."""
    c = config.loss
    if c.times == "table" and not hasattr(sde, "table_times"):
        raise ConfigError("config.loss.times='table' needs a process of a table: config.sde.name='ddpm' or 'smld'")
    if not 0 < c.t_min < sde.T:
        raise ConfigError(f"config.loss.t_min={c.t_min} must lie between 0 and {sde.T}")
    return {"times": function_of(config, _TIMES, "times"), "t_min": c.t_min, "stratified": c.stratified}


def _facts(config: ConfigDict, plan: SamplingPlan) -> dict[str, Any]:
    """What decides what a solver draws, in words."""
    sampling, defaults = config.sampling, base().sampling
    others = {
        name: value
        for name, value in sampling.items()
        if name not in ("solver", "steps", "grid", "dtype", "num", "batch_size") and value != defaults[name]
    }
    named = {"solver": plan.name, "steps": len(plan.times) - 1, "grid": sampling.grid, "dtype": sampling.dtype}
    return {**named, "sampling": others}


def _denoiser_shapes(name: str, net: LinenNet, parameterization: Parameterization, data: DataInfo) -> Any:
    """The shapes of a denoiser's parameters. ConfigError where it cannot be made for such data, or returns arrays of
    another shape."""
    like_x = (1, *data.shape)
    return _shapes(
        name, net, data, like_x, "floats shaped like x", lambda raw: parameterization.output(raw, jnp.zeros(like_x))
    )


def _classifier_shapes(name: str, net: LinenNet, data: DataInfo, classes: int) -> Any:
    """The shapes of a classifier's parameters. ConfigError where it cannot be made for such data, or returns no
    logits."""
    return _shapes(name, net, data, (1, classes), f"floats of shape (batch, {classes}), a logit for each class")


def _shapes(
    name: str,
    net: LinenNet,
    data: DataInfo,
    wanted: tuple[int, ...],
    words: str,
    output_of: Callable[[jax.Array], jax.Array] = lambda raw: raw,
) -> Any:
    """The shapes of the parameters of a network, which must return floats of the shape `wanted`, in words, of a batch
    of one."""

    def init(key: jax.Array) -> tuple[jax.Array, Any]:
        cond = {"cond": null_row(data.conditions)} if data.conditions else {}
        output, params = net.init_with_output(key, data.shape, **cond)
        return output_of(output), params

    try:
        output, params = jax.eval_shape(init, jax.random.key(0))
    except Exception as error:  # Flax has types of its own, and a module of one's own may raise any
        raise ConfigError(f"config.model does not fit data of shape {data.shape}: {line(error)}") from error
    if getattr(output, "shape", None) != wanted or not jnp.issubdtype(output.dtype, jnp.floating):
        raise ConfigError(
            f"config.model.name={name!r} does not fit data of shape {data.shape}: for x of shape "
            f"{(1, *data.shape)} it returns {getattr(output, 'shape', type(output).__name__)}"
            f"{f' of {output.dtype}' if hasattr(output, 'dtype') else ''}, and must return {words}"
        )
    return params


#: The sections, and fields of others, that say how a denoiser is trained, drawn from and evaluated; and what of them
#: each method reads.
_DENOISING = frozenset(
    {
        *("sde", "parameterization", "loss", "sampling"),
        *(f"evaluation.{field}" for field in ("trace", "probes", "rtol", "atol")),
    }
)
_NOISING = frozenset({"sde", *(f"loss.{field}" for field in ("times", "p_mean", "p_std", "stratified", "t_min"))})
METHODS: dict[str, tuple[Callable[[ConfigDict, DataInfo], Experiment], frozenset[str]]] = {
    "denoising": (_denoising, _DENOISING),
    "classifier": (_classifier, _NOISING | {"parameterization.c_noise"}),
    "autoencoder": (_autoencoder, frozenset({"sampling.num", "sampling.batch_size", "evaluation.probes"})),
}
