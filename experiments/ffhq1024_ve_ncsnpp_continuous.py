"""FFHQ at 1024 × 1024, VE in continuous time, NCSN++.

Prepare data/ffhq first: the folder of the 70,000 images of 1024 × 1024. All of them train, none are held out. The
original imports PyTorch and lacks fields that its own program reads, so it does not run; what it states stands here.
Unlike the other VE settings it takes the mean over the pixels in the loss.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="Song et al., 2011.13456, and the README of score_sde, samples without figures",
    original="configs/ve/ffhq_ncsnpp_continuous.py",
    parameters=105_785_896,
)


def get_config() -> ConfigDict:
    config = read("ffhq256_ve_ncsnpp_continuous")
    config.data.image_size = 1024
    config.sde.sigma_max = 1348.0
    config.model.update(nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1)
    config.loss.reduction = "mean"
    config.ema.rate = 0.9999
    config.training.batch_size = 8
    config.sampling.snr = 0.15
    config.sampling.num = config.sampling.batch_size = 8
    return config
