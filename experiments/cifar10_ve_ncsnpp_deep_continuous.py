"""CIFAR-10, VE in continuous time, NCSN++ of twice the depth."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published, fid, inception_score

PUBLISHED = Published(
    source="Song et al., 2011.13456, table 3, and the README of score_sde",
    original="configs/ve/cifar10_ncsnpp_deep_continuous.py",
    parameters=107_587_075,
    nfe=2000,
    fid=fid(2.20),
    inception_score=inception_score(9.89),
)


def get_config() -> ConfigDict:
    config = read("cifar10_ve_ncsnpp_continuous")
    config.model.num_res_blocks = 8
    config.training.steps = 950_000
    return config
