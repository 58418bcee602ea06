"""FFHQ at 64 × 64, EDM, DDPM++.

Prepare data/ffhq first: the folder of the 70,000 images of 1024 × 1024. All of them train, none are held out.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import EDM_SPREAD, Published, fid

PUBLISHED = Published(
    source="Karras et al., 2206.00364, table 2, and the README of edm",
    original="--cond=0 --arch=ddpmpp --batch=256 --cres=1,2,2,2 --lr=2e-4 --dropout=0.05 --augment=0.15",
    parameters=61_805_571,
    nfe=79,
    fid=fid(2.39, band=0.12, reason=EDM_SPREAD),
)


def get_config() -> ConfigDict:
    config = read("cifar10_edm_ddpmpp")
    config.data.source = "data/ffhq"
    config.data.image_size = 64
    config.data.augment = 0.15
    config.data.holdout = 0.0
    config.model.channel_mult = (1, 2, 2, 2)
    config.model.dropout = 0.05
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 10e6 / 256
    config.training.batch_size = 256
    config.training.steps = 781_250
    config.sampling.steps = 39
    return config
