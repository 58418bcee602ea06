"""FFHQ at 256 × 256, VE in continuous time, NCSN++.

Prepare data/ffhq first: the folder of the 70,000 images of 1024 × 1024. All of them train, none are held out.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="Song et al., 2011.13456, and the README of score_sde, samples without figures",
    original="configs/ve/ffhq_256_ncsnpp_continuous.py",
    parameters=65_574_549,
)


def get_config() -> ConfigDict:
    config = read("bedroom_ve_ncsnpp_continuous")
    config.data.source = "data/ffhq"
    config.data.holdout = 0.0
    config.sde.sigma_max = 348.0
    return config
