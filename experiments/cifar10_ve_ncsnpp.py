"""CIFAR-10, SMLD's 1,000 noise levels, NCSN++."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published, fid, inception_score

PUBLISHED = Published(
    source="Song et al., 2011.13456, table 3, and the README of score_sde",
    original="configs/ve/cifar10_ncsnpp.py",
    parameters=62_693_251,
    nfe=2000,
    fid=fid(2.45),
    inception_score=inception_score(9.73),
)


def get_config() -> ConfigDict:
    config = read("cifar10_ve_ncsnpp_continuous")
    config.sde.name = "smld"
    config.model.embedding_type = "positional"
    config.parameterization.c_noise = "reversed_index"
    config.loss.times = "table"
    return config
