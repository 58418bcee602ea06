"""CIFAR-10, DDPM whose network is not told the time."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/vp/ddpm/cifar10_unconditional.py",
    parameters=32_329_347,
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpm")
    config.model.conditional = False
    return config
