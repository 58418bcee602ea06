"""Other programs' options as the fields of an experiment that say the same, by their dotted names, and back.

Process, parameterization, data, and the training and sampling that a program states; what it does not state is not
here, and keeps the value of `base()`.
"""

from collections.abc import Mapping
from typing import Any

from diffuse_jax.config.build import Experiment
from diffuse_jax.convert import ConversionError, diffusers_process, options_of

__all__ = ["diffusers_fields", "edm_fields", "score_sde_fields", "score_sde_options"]

#: score_sde's options that say what a field here says.
_SCORE_SDE_FIELDS = {
    "ema_rate": "ema.rate",
    "centered": "data.centered",
    "random_flip": "data.flip",
    "uniform_dequantization": "data.dequantize",
    "batch_size": "training.batch_size",
    "n_iters": "training.steps",
    "lr": "optimizer.learning_rate",
    "warmup": "optimizer.warmup",
    "beta1": "optimizer.b1",
    "eps": "optimizer.eps",
    "weight_decay": "optimizer.weight_decay",
    "grad_clip": "optimizer.clip",
    "beta_min": "sde.beta_min",
    "beta_max": "sde.beta_max",
    "sigma_min": "sde.sigma_min",
    "sigma_max": "sde.sigma_max",
    "num_scales": "sde.num_scales",
    "image_size": "data.image_size",
    "num_channels": "data.channels",
    "snr": "sampling.snr",
    "n_steps_each": "sampling.corrector_steps",
}
#: (its name of a process, whether in continuous time) -> process, parameterization, label.
_SCORE_SDE_PROCESSES = {
    ("vesde", True): ("ve", "score", "sigma"),
    ("vesde", False): ("smld", "score", "reversed_index"),
    ("vpsde", True): ("vp", "noise", "999t"),
    ("vpsde", False): ("ddpm", "noise", "index"),
    # Its networks are told 999·t whatever `continuous` says.
    ("subvpsde", True): ("subvp", "noise", "999t"),
    ("subvpsde", False): ("subvp", "noise", "999t"),
}


def score_sde_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of score_sde's configs, as a dict of sections or with the fields of all at one level."""
    flat: dict[str, Any] = {}
    for section in ("data", "model", "training", "sampling", "optim"):
        flat |= options.get(section, {}) if "model" in options else options
    named = str(flat.get("sde", "")).lower()
    if (process := _SCORE_SDE_PROCESSES.get((named, bool(flat.get("continuous"))))) is None:
        raise ConversionError(f"the options say sde={flat.get('sde')!r}: give vesde, vpsde or subvpsde")
    fields: dict[str, Any] = {"data.channels": 3, "data.centered": False, "ema.rate": 0.999}
    fields |= {field: flat[option] for option, field in _SCORE_SDE_FIELDS.items() if option in flat}
    fields |= dict(zip(("sde.name", "parameterization.name", "parameterization.label"), process, strict=True))
    fields["loss.reduction"] = "mean" if flat.get("reduce_mean") else "half_sum"
    fields["loss.weight"] = "g2" if flat.get("likelihood_weighting") else "sigma2"
    fields["loss.times"] = "table" if process[0] in ("ddpm", "smld") else "uniform"
    return fields | _score_sde_sampling(flat, process[0])


def score_sde_options(experiment: Experiment) -> dict[str, Any]:
    """The options of score_sde, in sections as it has them, that say what an experiment does. ConversionError for a
    network or a process that it does not have."""
    config = experiment.config
    model = options_of(experiment.net.module, experiment.data.shape)
    said = (config.sde.name, config.parameterization.name, config.parameterization.label)
    named = next((named for named, process in _SCORE_SDE_PROCESSES.items() if process == said), None)
    if named is None:
        raise ConversionError(
            f"score_sde has no process {said[0]!r} with parameterization {said[1]!r} and label {said[2]!r}"
        )
    training = {option: config[field.split(".")[0]][field.split(".")[1]] for option, field in _SCORE_SDE_FIELDS.items()}
    training |= {"sde": named[0], "continuous": named[1], "reduce_mean": config.loss.reduction == "mean"}
    training["likelihood_weighting"] = config.loss.weight == "g2"
    return {"model": model, "training": {option: value for option, value in training.items() if value is not None}}


def _score_sde_sampling(flat: Mapping[str, Any], process: str) -> dict[str, Any]:
    """The sampler of its configs; its predictor–corrector loop takes as many steps as there are noise levels."""
    if str(flat.get("method", "pc")).lower() == "ode":
        return {"sampling.solver": "adaptive", "sampling.finish": "denoise" if flat.get("noise_removal") else "state"}
    default = (
        "reverse_diffusion" if process in ("ve", "smld") else "euler_maruyama" if process != "ddpm" else "ancestral"
    )
    predictor = str(flat.get("predictor", default)).lower().removesuffix("_sampling")
    corrector = str(flat.get("corrector", "none")).lower()
    return {
        "sampling.solver": f"score_sde:{predictor}" + ("" if corrector == "none" else f"+{corrector}"),
        "sampling.steps": flat.get("num_scales", 1000),
        "sampling.finish": "mean" if flat.get("noise_removal", True) else "state",
    }


def diffusers_fields(unet_config: Mapping[str, Any], scheduler_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of diffusers' networks and schedulers; samples are drawn as their pipelines draw them."""
    said = diffusers_process(unet_config, scheduler_config)
    if said["shape"] is None or said["shape"][0] != said["shape"][1]:
        raise ConversionError(f"sample_size={unet_config.get('sample_size')!r} must be the side of a square image")
    fields = {
        f"{section}.{name}": said[section][name] for section in ("sde", "parameterization") for name in said[section]
    }
    sampling = {"ddpm": ("ddpm", "linspace"), "ve": ("reverse_diffusion+langevin", "uniform")}
    solver, grid = sampling[fields["sde.name"]]
    if "sde.betas" in fields:
        fields["sde.betas"] = tuple(float(beta) for beta in fields["sde.betas"])
    return fields | {
        "ema.rate": 0.9999,
        "data.image_size": said["shape"][0],
        "data.channels": said["shape"][-1],
        "data.num_classes": said["num_classes"],
        "data.centered": said["centered"],
        "sampling.solver": solver,
        "sampling.grid": grid,
        "sampling.steps": fields.get("sde.num_scales", 1000),
        "sampling.finish": "denoise",
    }


def edm_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of EDM's networks: `precond` is the class of the preconditioner, EDMPrecond unless given."""
    precond = str(options.get("precond", "edm")).rsplit(".", 1)[-1].lower().removesuffix("precond")
    fields = {
        "ema.halflife_images": 500_000.0,
        "ema.rampup_ratio": 0.05,
        "data.image_size": options["img_resolution"],
        "data.channels": options.get("img_channels", 3),
        "data.num_classes": options.get("label_dim", 0) or None,
        # What its networks with an input for it were trained with.
        "data.augment": 0.12 if options.get("augment_dim") else 0.0,
        "sampling.solver": "heun",
        "sampling.grid": "karras",
        # 35 evaluations: the last of the published 18 steps, to σ = 0, is one denoising.
        "sampling.steps": 17,
        "sampling.finish": "denoise",
    }
    if precond == "edm":
        noise = {
            "sde.sigma_min": 0.002,
            "sde.sigma_max": 80.0,
            "parameterization.sigma_data": options.get("sigma_data", 0.5),
        }
        return {**fields, **noise, "sde.name": "edm", "parameterization.name": "edm", "parameterization.label": "edm"}
    if precond == "vp":
        beta_min = options.get("beta_min", 0.1)
        betas = {"sde.beta_min": beta_min, "sde.beta_max": beta_min + options.get("beta_d", 19.9)}
        return {**fields, **betas, "sde.name": "vp", "parameterization.name": "noise", "parameterization.label": "999t"}
    raise ConversionError(f"precond={options['precond']!r} is not carried over: only EDMPrecond and VPPrecond are")
