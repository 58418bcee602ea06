"""CIFAR-10, VP in continuous time, DDPM++ of twice the depth."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published, bits_per_dim, fid, inception_score

PUBLISHED = Published(
    source="Song et al., 2011.13456, tables 2 and 3, and the README of score_sde",
    original="configs/vp/cifar10_ddpmpp_deep_continuous.py",
    parameters=106_632_579,
    nfe=1000,
    fid=fid(2.41),
    inception_score=inception_score(9.68),
    fid_ode=fid(3.08),
    bits_per_dim=bits_per_dim(3.13),
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp_continuous")
    config.model.num_res_blocks = 8
    config.training.steps = 950_000
    return config
