"""CIFAR-10, DDPM's 1,000 steps, DDPM++.

The published sampler tells the network labels of up to one more than the entry of the table that it reads. DDPM's own
sampler, without that, is the solver "ddpm" with grid "trailing" and finish "denoise".
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published, fid, inception_score

PUBLISHED = Published(
    source="Song et al., 2011.13456, table 3, and the README of score_sde",
    original="configs/vp/cifar10_ddpmpp.py",
    parameters=61_804_419,
    nfe=1000,
    fid=fid(2.78),
    inception_score=inception_score(9.64),
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp_continuous")
    config.sde.name = "ddpm"
    config.parameterization.c_noise = "index"
    config.loss.times = "table"
    config.sampling.solver = "score_sde:ancestral"
    return config
