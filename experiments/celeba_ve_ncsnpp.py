"""CelebA at 64 × 64, SMLD's 1,000 noise levels, NCSN++.

Prepare data/celeba140 first: a folder of CelebA's aligned training images, each cropped to its central 140 × 140
pixels. They are resized here to 64 × 64. All of them train, none are held out.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published, fid

PUBLISHED = Published(
    source="score_sde, issue 10",
    original="configs/ve/celeba_ncsnpp.py",
    parameters=62_693_251,
    nfe=2000,
    fid=fid(2.5, band=0.3, reason="its author says about 2.5, and its weights were not given away"),
)


def get_config() -> ConfigDict:
    config = read("cifar10_ve_ncsnpp")
    config.data.source = "data/celeba140"
    config.data.image_size = 64
    config.data.holdout = 0.0
    config.sde.sigma_max = 90.0
    config.sampling.snr = 0.17
    return config
