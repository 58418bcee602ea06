"""Other programs' options as the fields of an experiment that say the same, by their dotted names, and back.

Process, parameterization, data, and the training and sampling that a program states; what it does not state is not
here, and keeps the value of `base()`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from diffuse_jax._fields import FLAG, TEXT, check_fields, integer, number, optional
from diffuse_jax.config.build import Experiment
from diffuse_jax.config.schema import base, field_kinds
from diffuse_jax.convert import MOST_LEVELS, ConversionError, diffusers_process, edm_preconditioner, options_of

__all__ = ["diffusers_fields", "edm_fields", "score_sde_fields", "score_sde_options"]

#: score_sde's options, by section, and the fields here that say the same.
_SCORE_SDE_FIELDS = {
    "model.ema_rate": "ema.rate",
    "model.beta_min": "sde.beta_min",
    "model.beta_max": "sde.beta_max",
    "model.sigma_min": "sde.sigma_min",
    "model.sigma_max": "sde.sigma_max",
    "model.num_scales": "sde.num_scales",
    "data.image_size": "data.image_size",
    "data.num_channels": "data.channels",
    "data.centered": "data.centered",
    "data.random_flip": "data.flip",
    "data.uniform_dequantization": "data.dequantize",
    "training.batch_size": "training.batch_size",
    "training.n_iters": "training.steps",
    "optim.lr": "optimizer.learning_rate",
    "optim.warmup": "optimizer.warmup",
    "optim.beta1": "optimizer.b1",
    "optim.eps": "optimizer.eps",
    "optim.weight_decay": "optimizer.weight_decay",
    "optim.grad_clip": "optimizer.clip",
    "sampling.snr": "sampling.snr",
    "sampling.n_steps_each": "sampling.corrector_steps",
}
_SECTIONS = ("data", "model", "training", "sampling", "optim")
#: Those that are no field here, or that choose between some.
_SCORE_SDE_KINDS = {
    **dict.fromkeys(("sde", "dataset", "method", "predictor", "corrector"), optional(TEXT)),
    **dict.fromkeys(("continuous", "reduce_mean", "likelihood_weighting"), optional(FLAG)),
    **dict.fromkeys(("noise_removal", "probability_flow"), optional(FLAG)),
    "image_size": integer(1),
    "num_channels": integer(1),
    "num_scales": integer(1, MOST_LEVELS),
}
#: Its data sets that TFDS prepares at the size that it trains on.
_DATASETS = {"CIFAR10": "tfds:cifar10", "SVHN": "tfds:svhn_cropped"}
#: (its name of a process, whether in continuous time) -> process, parameterization, c_noise.
_SCORE_SDE_PROCESSES = {
    ("vesde", True): ("ve", "score", "sigma"),
    ("vesde", False): ("smld", "score", "reversed_index"),
    ("vpsde", True): ("vp", "noise", "999t"),
    ("vpsde", False): ("ddpm", "noise", "index"),
    # Its networks are told 999·t whatever `continuous` says.
    ("subvpsde", True): ("subvp", "noise", "999t"),
    ("subvpsde", False): ("subvp", "noise", "999t"),
}


#: What its configs of these processes are sampled with, where the options do not say: predictor, corrector.
_SCORE_SDE_SAMPLERS = {
    "ve": ("reverse_diffusion", "langevin"),
    "smld": ("reverse_diffusion", "langevin"),
    "vp": ("euler_maruyama", "none"),
    "ddpm": ("ancestral_sampling", "none"),
    "subvp": ("euler_maruyama", "none"),
}


def score_sde_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of score_sde's configs, as a dict of sections or with the fields of all at one level."""
    flat = _flat_score_sde(options)
    named = str(flat.get("sde", "")).lower()
    if (process := _SCORE_SDE_PROCESSES.get((named, bool(flat.get("continuous"))))) is None:
        raise ConversionError(
            f'the options say sde={flat.get("sde")!r}: give "sde" among them as vesde, vpsde or subvpsde'
        )
    given = {field: option.partition(".")[2] for option, field in _SCORE_SDE_FIELDS.items()}
    fields: dict[str, Any] = {"data.channels": 3, "data.centered": False, "ema.rate": 0.999}
    fields |= {field: flat[option] for field, option in given.items() if option in flat}
    fields |= dict(zip(("sde.name", "parameterization.name", "parameterization.c_noise"), process, strict=True))
    if fields.get("optimizer.clip", 0.0) < 0:  # it does not clip then, as with 0 here
        fields["optimizer.clip"] = 0.0
    fields["data.source"] = _DATASETS.get(str(flat.get("dataset", "")).upper(), "")
    fields["loss.reduction"] = "mean" if flat.get("reduce_mean") else "half_sum"
    fields["loss.weight"] = "g2" if flat.get("likelihood_weighting") else "sigma2"
    fields["loss.times"] = "table" if process[0] in ("ddpm", "smld") else "uniform"
    return fields | _score_sde_sampling(flat, process[0])


def _flat_score_sde(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of all sections at one level; ConversionError for one that is not what its field here must be."""
    flat: dict[str, Any] = {}
    for section in _SECTIONS:
        part = options.get(section, {}) if "model" in options else options
        check_fields(part, {}, f"the section {section!r} of the options", ConversionError)
        flat |= part
    sections, kinds = base(), dict(_SCORE_SDE_KINDS)
    for option, field in _SCORE_SDE_FIELDS.items():
        section, leaf = field.split(".")
        kinds = {option.partition(".")[2]: field_kinds(sections[section])[leaf]} | kinds
    check_fields(flat, kinds, "the options", ConversionError)
    return flat


def _score_sde_sampling(flat: Mapping[str, Any], process: str) -> dict[str, Any]:
    """The sampler of its configs; its predictor–corrector loop takes as many steps as there are noise levels."""
    if str(flat.get("method", "pc")).lower() == "ode":
        return {"sampling.solver": "adaptive", "sampling.finish": "denoise" if flat.get("noise_removal") else "state"}
    predictor, corrector = (
        str(flat.get(name, default)).lower().removesuffix("_sampling")
        for name, default in zip(("predictor", "corrector"), _SCORE_SDE_SAMPLERS[process], strict=True)
    )
    return {
        "sampling.solver": f"score_sde:{predictor}" + ("" if corrector == "none" else f"+{corrector}"),
        "sampling.kappa": 0.0 if flat.get("probability_flow") else None,
        "sampling.steps": flat.get("num_scales", 1000),
        "sampling.finish": "mean" if flat.get("noise_removal", True) else "state",
    }


def score_sde_options(experiment: Experiment) -> dict[str, Any]:
    """The options of score_sde, in its sections, that say what an experiment does. A sampler that it does not have is
    left out. ConversionError for a network or a process that it does not have."""
    config = experiment.config
    if experiment.net is None or experiment.parameterization is None:
        raise ConversionError(f"config.method.name={config.method.name!r} trains no denoiser, which score_sde's are")
    said = (config.sde.name, config.parameterization.name, config.parameterization.c_noise)
    named = next((named for named, process in _SCORE_SDE_PROCESSES.items() if process == said), None)
    if named is None:
        known = "; ".join(", ".join(process) for process in sorted(set(_SCORE_SDE_PROCESSES.values())))
        raise ConversionError(
            f"score_sde has no process {said[0]!r} with parameterization {said[1]!r} and c_noise {said[2]!r}: a run "
            f"that can be exported has one of {known}"
        )
    options: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    options["model"] |= options_of(experiment.net.module, experiment.data.shape)
    for option, field in _SCORE_SDE_FIELDS.items():
        (section, name), (ours, leaf) = option.split("."), field.split(".")
        if config[ours][leaf] is not None:
            options[section][name] = config[ours][leaf]
    options["training"] |= {"sde": named[0], "continuous": named[1], "reduce_mean": config.loss.reduction == "mean"}
    options["training"]["likelihood_weighting"] = config.loss.weight == "g2"
    options["sampling"] |= _sampling_options(config.sampling)
    return options


def _sampling_options(config: ConfigDict) -> dict[str, Any]:
    common = {"noise_removal": config.finish != "state"}
    if config.solver == "adaptive":
        return {"method": "ode", **common}
    program, _, names = config.solver.partition(":")
    if program != "score_sde":
        return {}
    predictor, _, corrector = names.partition("+")
    predictor = "ancestral_sampling" if predictor == "ancestral" else predictor
    pair = {"predictor": predictor, "corrector": corrector or "none", "probability_flow": config.kappa == 0}
    return {"method": "pc", **pair, **common}


#: What a scheduler says of sampling; the rest of it `diffusers_process` looks at.
_SCHEDULER_SAMPLING = {"snr": number(0), "correct_steps": integer(0), "sampling_eps": number(0)}


def diffusers_fields(unet_config: Mapping[str, Any], scheduler_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of diffusers' networks and schedulers. Samples are drawn as by `DDPMPipeline`, without its clipping, or by
    `ScoreSdeVePipeline`."""
    said = diffusers_process(unet_config, scheduler_config)
    if said["shape"] is None or said["shape"][0] != said["shape"][1]:
        raise ConversionError(f"sample_size={unet_config.get('sample_size')!r} must be the side of a square image")
    check_fields(scheduler_config or {}, _SCHEDULER_SAMPLING, "the scheduler's options", ConversionError)
    fields = {
        f"{section}.{name}": said[section][name] for section in ("sde", "parameterization") for name in said[section]
    }
    if "sde.betas" in fields:
        fields["sde.betas"] = tuple(float(beta) for beta in fields["sde.betas"])
    sampling = _ve_sampling if fields["sde.name"] == "ve" else _ddpm_sampling
    return fields | {
        "ema.rate": 0.9999,
        "data.source": "",
        "data.image_size": said["shape"][0],
        "data.channels": said["shape"][-1],
        "data.num_classes": said["num_classes"],
        "data.centered": said["centered"],
        **sampling(fields, scheduler_config or {}),
    }


def _ddpm_sampling(fields: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "loss.times": "table",
        "sampling.solver": "ddpm",
        "sampling.grid": "linspace",
        "sampling.steps": fields["sde.num_scales"],
        "sampling.finish": "denoise",
    }


def _ve_sampling(fields: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """score_sde's sampler, under the names and defaults of ScoreSdeVeScheduler."""
    return {
        "sampling.solver": "score_sde:reverse_diffusion+langevin",
        "sampling.steps": scheduler.get("num_train_timesteps", 2000),
        "sampling.snr": scheduler.get("snr", 0.15),
        "sampling.corrector_steps": scheduler.get("correct_steps", 1),
        "sampling.t_min": scheduler.get("sampling_eps", 1e-5),
        "sampling.finish": "mean",
    }


#: Those of a preconditioner, and those of its network that say what the data are.
_EDM_KINDS = {
    "img_resolution": integer(1),
    "img_channels": integer(1),
    "label_dim": integer(0),
    "augment_dim": integer(0),
    "sigma_data": number(0),
    "beta_min": number(0),
    "beta_d": number(0),
    "class_name": optional(TEXT),
    "precond": optional(TEXT),
}


def edm_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of EDM's networks, in the preconditioner that `class_name` or `precond` names."""
    check_fields(options, _EDM_KINDS, "the options", ConversionError, wanted=("img_resolution",))
    precond = edm_preconditioner(options)
    fields = {
        "ema.halflife_images": 500_000.0,
        "ema.rampup_ratio": 0.05,
        "data.source": "",
        "data.image_size": options["img_resolution"],
        "data.channels": options.get("img_channels", 3),
        "data.num_classes": options.get("label_dim", 0) or None,
        # What its networks with an input for it were trained with on CIFAR-10; on faces it was 0.15.
        "data.augment": 0.12 if options.get("augment_dim") else 0.0,
        "sampling.solver": "heun",
        "sampling.grid": "karras",
        # 35 evaluations: the last of the published 18 steps, to σ = 0, is one denoising.
        "sampling.steps": 17,
        "sampling.finish": "denoise",
    }
    if precond == "edm":
        return fields | {
            "sde.name": "edm",
            "sde.sigma_min": 0.002,
            "sde.sigma_max": 80.0,
            "parameterization.name": "edm",
            "parameterization.c_noise": "edm",
            "parameterization.sigma_data": options.get("sigma_data", 0.5),
            "loss.weight": "edm",
            "loss.times": "log_normal",
        }
    if precond == "vp":
        beta_min = options.get("beta_min", 0.1)
        betas = {"sde.beta_min": beta_min, "sde.beta_max": beta_min + options.get("beta_d", 19.9)}
        return {
            **fields,
            **betas,
            "sde.name": "vp",
            "parameterization.name": "noise",
            "parameterization.c_noise": "999t",
        }
    named = options.get("class_name") or options["precond"]
    raise ConversionError(f"precond={named!r} is not carried over: only EDMPrecond and VPPrecond are")
