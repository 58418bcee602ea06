"""CIFAR-10, sub-VP in continuous time, DDPM++."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published, bits_per_dim, fid, inception_score

PUBLISHED = Published(
    source="Song et al., 2011.13456, tables 2 and 3, and the README of score_sde",
    original="configs/subvp/cifar10_ddpmpp_continuous.py",
    parameters=61_804_419,
    nfe=1000,
    fid=fid(2.61),
    inception_score=inception_score(9.56),
    fid_ode=fid(3.16),
    bits_per_dim=bits_per_dim(3.02),
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp_continuous")
    config.sde.name = "subvp"
    return config
