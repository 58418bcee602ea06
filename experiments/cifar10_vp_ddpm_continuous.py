"""CIFAR-10, VP in continuous time, DDPM's network."""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import Published, bits_per_dim, fid

PUBLISHED = Published(
    source="Song et al., 2011.13456, table 2, and the README of score_sde",
    original="configs/vp/ddpm/cifar10_continuous.py",
    parameters=35_218_947,
    nfe=1000,
    fid_ode=fid(3.69),
    bits_per_dim=bits_per_dim(3.21),
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp_continuous")
    config.model = network("ddpm")
    return config
