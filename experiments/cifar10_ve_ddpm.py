"""CIFAR-10, SMLD's 1,000 noise levels, DDPM's network."""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/ve/cifar10_ddpm.py",
    parameters=35_218_947,
)


def get_config() -> ConfigDict:
    config = read("cifar10_ve_ncsnpp")
    config.model = network("ddpm", scale_by_sigma=True)
    return config
