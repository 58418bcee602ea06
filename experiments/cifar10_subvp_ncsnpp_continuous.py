"""CIFAR-10, sub-VP in continuous time, NCSN++."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/subvp/cifar10_ncsnpp_continuous.py",
    parameters=62_693_251,
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ncsnpp_continuous")
    config.sde.name = "subvp"
    return config
