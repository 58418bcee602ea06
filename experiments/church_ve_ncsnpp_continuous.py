"""LSUN churches at 256 × 256, VE in continuous time, NCSN++."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="Song et al., 2011.13456, and the README of score_sde, samples without figures",
    original="configs/ve/church_ncsnpp_continuous.py",
    parameters=65_574_549,
)


def get_config() -> ConfigDict:
    config = read("bedroom_ve_ncsnpp_continuous")
    config.data.source = "tfds:lsun/church_outdoor"
    config.sde.sigma_max = 380.0
    return config
