"""The fields of an experiment and their defaults: an experiment file takes `base()` and changes what differs."""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import optax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffuse_jax._fields import FLAG, ROW, TEXT, Kind, integer, number, optional
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.nets import DDPM, MLP, Autoencoder, Encoder, NCSNpp
from diffuse_jax.nets.edm import ADM, SongUNet
from diffuse_jax.nets.ncsn import NCSN, NCSNv2
from diffuse_jax.nets.unet2d import UNet2D
from diffuse_jax.training import adam, adamw, radam

__all__ = ["DERIVED", "METHOD_FIELDS", "NETWORKS", "OPTIMIZERS", "base", "field_kinds", "method", "network"]

NETWORKS: dict[str, type[nn.Module]] = {
    "ncsnpp": NCSNpp,
    "ddpm": DDPM,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
    "song_unet": SongUNet,
    "adm": ADM,
    "unet2d": UNet2D,
    "mlp": MLP,
    "encoder": Encoder,
    "autoencoder": Autoencoder,
}

#: The fields of `config.method` beside the name, of each method, with their defaults.
METHOD_FIELDS: dict[str, dict[str, Any]] = {
    "denoising": {},
    "classifier": {},
    # The weight of the latents' divergence from N(0, I); with 1 the loss is a bound on the code length.
    "autoencoder": {"kl_weight": 1.0},
}

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": adam, "adamw": adamw, "radam": radam}

#: Fields of networks that are not options of an experiment: the data say how large the images are, how many channels
#: and classes there are, and whether they are augmented, and their range says `centered`; the table of noise levels
#: is that of the process; how many features come out the method says.
DERIVED = (
    "num_classes",
    "label_dim",
    "image_channels",
    "vocabulary",
    "context_length",
    "centered",
    "img_resolution",
    "out_channels",
    "out_features",
    "augment_dim",
    "sigma_min",
    "sigma_max",
    "num_scales",
)


def network(name: str, **options: Any) -> ConfigDict:
    """`config.model` for a network of `NETWORKS`: every field of the module at its default, but for those given.
    ConfigError for another name."""
    if name not in NETWORKS:
        raise ConfigError(f"network: {name!r} must be one of {', '.join(NETWORKS)}")
    config = ConfigDict({"name": name})
    for field in dataclasses.fields(NETWORKS[name]):
        if field.name not in (*DERIVED, "name", "parent"):
            config[field.name] = "float32" if field.name == "dtype" else _default(field)
    config.update(options)
    return config


def method(name: str, **options: Any) -> ConfigDict:
    """`config.method` for a method of `METHOD_FIELDS`: its fields at their defaults, but for those given. ConfigError
    for another name, or another field."""
    if name not in METHOD_FIELDS:
        raise ConfigError(f"method: {name!r} must be one of {', '.join(METHOD_FIELDS)}")
    fields = METHOD_FIELDS[name]
    if unknown := [field for field in options if field not in fields]:
        raise ConfigError(f"method: {name!r} has no field {unknown[0]!r}; it has {', '.join(fields) or 'none'}")
    return ConfigDict({"name": name, **fields, **options})


def _default(field: "dataclasses.Field[Any]") -> Any:
    """The default of a field, or where that is None a placeholder of the field's type."""
    default: Any = field.default
    if default is not None:
        return float(default) if field.type is float else default
    (kind,) = [kind for kind in typing.get_args(field.type) if kind is not types.NoneType]
    return placeholder(str if typing.get_origin(kind) is typing.Literal else kind)


def base() -> ConfigDict:
    """Every field of an experiment. `model`, `parameterization` and `ema` suit each other only once an experiment has
    set them; the rest are values that serve small data. Wherever a name is chosen, "package.module:name" serves too.

    Tuples, not lists, stand for sequences, so that they can be given on the command line. A `placeholder` may be None.
    """
    return ConfigDict(
        {
            # Randomness of initial parameters, data order, noise, dropout.
            "seed": 0,
            # What is trained: denoising; classifier, which knows the noise and wants data.labels; autoencoder; or
            # "package.module:function" that makes a training.Method of (config, data); the other fields of the section
            # are those of that method.
            "method": method("denoising"),
            "data": {
                # digits, moons, checkerboard, eight_gaussians, rings, tfds:NAME, a .npy or .npz file, or a folder.
                "source": "digits",
                # The side of the images, for folders and to check others against.
                "image_size": placeholder(int),
                # 1 for grey, 3 for RGB; what the data have where None.
                "channels": placeholder(int),
                # The share of rows held out for testing, where the source has no test split.
                "holdout": 0.1,
                # Train on class labels too.
                "labels": False,
                # How many classes the labels name; what the data have where None.
                "num_classes": placeholder(int),
                # Each row has an image beside it, as a condition: image_file_name in metadata.jsonl, or
                # the array image of a file.
                "images": False,
                # Each row has a caption, as so many tokens; 0: none.
                "tokens": 0,
                # How many values the tokens of an array file take; one more than the largest where None.
                "vocabulary": placeholder(int),
                # Leave out images that cannot be decoded instead of refusing the folder.
                "skip_unreadable": False,
                # Values in [-1, 1] if true, in [0, 1] if false.
                "centered": True,
                # Mirror half of the images, left to right.
                "flip": False,
                # Spread each grey level uniformly over its cell.
                "dequantize": False,
                # The probability of each of EDM's geometric transformations of an image, which also tell song_unet and
                # adm what was done; mirroring, the first, is done to half of all images. 0: none.
                "augment": 0.0,
            },
            # Between data and the space in which the process runs: pixels, as they are, or "package.module:function" of
            # (config, data) that makes a codecs.Codec; the other fields of the section are those of one's own.
            "codec": {"name": "pixels"},
            "sde": {
                # vp, subvp, ve, cosine, edm, flow, ddpm, smld, or "package.module:function" that makes a process from
                # this section.
                "name": "vp",
                # vp, subvp; ddpm has these over num_scales as the ends of its table.
                "beta_min": 0.1,
                "beta_max": 20.0,
                # ve, smld (0.01 and 50 where None) and edm (0.002 and 80).
                "sigma_min": placeholder(float),
                "sigma_max": placeholder(float),
                # cosine: the offset s of its angle.
                "s": 0.008,
                # ddpm, smld: the number of entries of the table.
                "num_scales": 1000,
                # ddpm: the table itself, in place of the line from beta_min/num_scales to beta_max/num_scales.
                "betas": placeholder(tuple),
            },
            "model": network("ncsnpp"),
            "parameterization": {
                # What the network's output means: noise, x0, v, score, edm or flow.
                "name": "noise",
                # The time it is told: t, 999t, sigma, edm (¼·log of σ/α), or of ddpm and smld the entry of their table:
                # index, reversed_index, nearest_index.
                "c_noise": "999t",
                # edm: the standard deviation of the data.
                "sigma_data": 0.5,
            },
            "loss": {
                # sigma2: the plain loss on eps; g2: likelihood weighting; edm: that of the F of EDM's preconditioning.
                "weight": "sigma2",
                # uniform; importance: proportional to g²/σ²; table: the entries of the table of ddpm and smld;
                # log_normal: log σ/α is normal.
                "times": "uniform",
                # log_normal: mean and standard deviation.
                "p_mean": -1.2,
                "p_std": 1.2,
                # Spread the times of a batch evenly.
                "stratified": True,
                "t_min": 1e-5,
                # mean over the dimensions, or half_sum.
                "reduction": "mean",
                # The probability with which a row of training loses its conditions, for classifier-free guidance.
                "drop_conditions": 0.0,
            },
            "optimizer": {
                # adam; adamw, which wants weight_decay; radam; or "package.module:function" that makes an optax
                # optimizer of the other fields of the section.
                "name": "adam",
                "learning_rate": 2e-4,
                # Steps, not necessarily a whole number, over which the rate rises from 0.
                "warmup": 1000.0,
                # linear or cosine: the rate falls to 0 at training.steps; none: it stays.
                "decay": "none",
                # Largest global norm of the gradient; 0 does not clip.
                "clip": 1.0,
                "weight_decay": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
            },
            "ema": {
                # One of the two: the decay of each step, or the images after which a weight has halved.
                "rate": placeholder(float),
                "halflife_images": placeholder(float),
                # Forget faster at the start: at most (1 + step)/(10 + step).
                "warmup": False,
                # halflife_images is at most this share of the images seen so far.
                "rampup_ratio": placeholder(float),
            },
            "training": {
                "steps": 1000,
                "batch_size": 128,
                # Parts of a batch that a step goes through one after the other, for batches that do not fit in memory.
                "accumulate": 1,
                # Devices over which each copy of parameters, average and moments is split; 1: every device has its own.
                "fsdp": 1,
                # Steps compiled into one call; all numbers of steps below are multiples of it. On CPU: 1 for images.
                "steps_per_call": 1,
                "log_every": 100,
                "checkpoint_every": 500,
                # Checkpoints kept: the latest, and every so many steps (0: no others).
                "keep": 3,
                "keep_every": 0,
                # Held-out loss and grid of samples; 0: never.
                "evaluate_every": 500,
                "sample_every": 500,
            },
            "sampling": {
                # A solver, or "predictor+corrector"; see `diffuse-jax sample --help`. "score_sde:predictor" and
                # "score_sde:predictor+corrector" are score_sde's own sampler, with its grid in place of uniform:
                # euler_maruyama, reverse_diffusion, ancestral or none, and langevin or ald.
                "solver": "heun",
                # 20 where None; a field below that the solver or the grid does not read must be None, and is its own
                # default where it is.
                "steps": placeholder(int),
                # uniform in time, log_snr, karras, quadratic, cosine; leading, trailing or linspace: `steps` times of
                # a table; explicit: `times`.
                "grid": "uniform",
                "rho": placeholder(float),
                "times": placeholder(tuple),
                # Where the grid ends; the process's own where None.
                "t_min": placeholder(float),
                # What is returned: mean (the last step without its noise), denoise (E[x0] at the end) or state.
                "finish": "mean",
                # keyed, or brownian: the same paths of noise whatever the number of steps.
                "noise": "keyed",
                # Of solvers that come in several, and the strength of noise; the solver's own where None.
                "order": placeholder(int),
                "eta": placeholder(float),
                # euler_maruyama, score_sde: 0 is the probability flow, 1 the reverse SDE.
                "kappa": placeholder(float),
                # edm: S_churn, S_tmin, S_tmax and S_noise of EDM.
                "churn": placeholder(float),
                "churn_min": placeholder(float),
                "churn_max": placeholder(float),
                "churn_noise": placeholder(float),
                "snr": placeholder(float),
                "corrector_steps": placeholder(int),
                # annealed_langevin: the step at the smallest noise level of NCSN, and that level (the grid's last
                # where None).
                "epsilon": placeholder(float),
                "sigma_last": placeholder(float),
                # adaptive.
                "rtol": placeholder(float),
                "atol": placeholder(float),
                "max_evaluations": placeholder(int),
                # The type in which the network computes: float32, bfloat16 or float16; that of model.dtype where None.
                # States, times, noise and parameters stay float32.
                "dtype": placeholder(str),
                # Samples in the grids of training, and in one compiled call.
                "num": 64,
                "batch_size": 64,
            },
            "evaluation": {
                "num_samples": 1000,
                # Held-out rows for the loss, and for bits/dim (the costly one).
                "num_loss": 1024,
                "num_likelihood": 64,
                # What is told of samples: frechet, or "package.module:function" of (samples, data set, config) that
                # returns numbers by name.
                "metrics": ("frechet",),
                # Principal components of the training images in which the Fréchet distance is taken.
                "pca_dims": 20,
                # hutchinson or gaussian, of signs or of normal draws; exact: as many derivatives an evaluation as the
                # data have dimensions.
                "trace": "hutchinson",
                # Probes of the estimated trace, or draws of an autoencoder's latent: with several, each row's log p has
                # a standard error.
                "probes": 1,
                "rtol": 1e-3,
                "atol": 1e-3,
            },
            # Options of what is one's own ("module:name") in a section that has other fields too: own.solver, own.grid,
            # own.finish, own.noise, own.weight, own.times and own.trace, each a section of keyword arguments.
            "own": {},
        }
    )


def field_kinds(config: ConfigDict) -> dict[str, Kind]:
    """What each field of a section may be, by the type of its default; one that is empty by default may be empty.

    Of a network any field may be: it says itself, when it is made, what it needs.
    """
    kinds: dict[type, Kind] = {bool: FLAG, int: integer(), float: number(infinite=True), str: TEXT, tuple: ROW}
    of_network = config.get("name") in NETWORKS
    return {
        name: optional(kind) if (of_network and name != "name") or value is None else kind
        for name, value in config.items()
        if (kind := kinds.get(config.get_type(name))) is not None
    }
