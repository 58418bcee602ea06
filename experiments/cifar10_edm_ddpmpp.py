"""CIFAR-10, EDM, DDPM++: Karras et al., 2206.00364.

The loss is the published one halved, which Adam does not see. Published runs replace gradients that are not finite by
zeros; here a loss that is not finite ends the run. Beyond its first reflection the augmentation reads further
reflections, not zeros. The rate rises over 10 million images. Heun's 18 published steps are 17 and the last, to no
noise, `finish="denoise"`. All of this holds for the other settings of EDM too.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import EDM_SPREAD, Published, fid

PUBLISHED = Published(
    source="Karras et al., 2206.00364, table 2, and the README of edm",
    original="--cond=0 --arch=ddpmpp",
    parameters=55_733_891,
    nfe=35,
    fid=fid(1.97, band=0.12, reason=EDM_SPREAD),
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp_continuous")
    # Mirroring is a part of the augmentation.
    config.data.flip = False
    config.data.augment = 0.12
    config.sde.name = "edm"
    config.model = network("song_unet", channel_mult=(2, 2, 2), dropout=0.13)
    config.parameterization.name = config.parameterization.c_noise = "edm"
    config.loss.times = "log_normal"
    config.loss.weight = "edm"
    config.loss.reduction = "half_sum"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 10e6 / 512
    config.optimizer.clip = 0.0
    config.ema.rate = None
    config.ema.halflife_images = 500_000.0
    config.ema.rampup_ratio = 0.05
    config.training.batch_size = 512
    config.training.steps = 390_625
    config.sampling.solver = "heun"
    config.sampling.grid = "karras"
    config.sampling.steps = 17
    config.sampling.finish = "denoise"
    return config
