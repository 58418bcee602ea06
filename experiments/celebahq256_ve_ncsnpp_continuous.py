"""CelebA-HQ at 256 × 256, VE in continuous time, NCSN++.

Prepare data/celebahq first: a folder of the 30,000 images of 1024 × 1024. All of them train, none are held out.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="Song et al., 2011.13456, and the README of score_sde, samples without figures",
    original="configs/ve/celebahq_256_ncsnpp_continuous.py",
    parameters=65_574_549,
)


def get_config() -> ConfigDict:
    config = read("ffhq256_ve_ncsnpp_continuous")
    config.data.source = "data/celebahq"
    return config
