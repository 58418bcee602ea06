"""CIFAR-10, sub-VP in continuous time, DDPM's network."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published, bits_per_dim, fid

PUBLISHED = Published(
    source="Song et al., 2011.13456, table 2, and the README of score_sde",
    original="configs/subvp/cifar10_ddpm_continuous.py",
    parameters=35_218_947,
    nfe=1000,
    fid_ode=fid(3.56),
    bits_per_dim=bits_per_dim(3.05),
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpm_continuous")
    config.sde.name = "subvp"
    return config
