"""CIFAR-10 with its classes, EDM, DDPM++."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import EDM_SPREAD, Published, fid

PUBLISHED = Published(
    source="Karras et al., 2206.00364, table 2, and the README of edm",
    original="--cond=1 --arch=ddpmpp",
    parameters=55_735_299,
    nfe=35,
    fid=fid(1.79, band=0.12, reason=EDM_SPREAD),
)


def get_config() -> ConfigDict:
    config = read("cifar10_edm_ddpmpp")
    config.data.labels = True
    config.data.num_classes = 10
    return config
