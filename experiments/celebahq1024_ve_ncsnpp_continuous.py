"""CelebA-HQ at 1024 × 1024, VE in continuous time, NCSN++.

Prepare data/celebahq first: a folder of the 30,000 images of 1024 × 1024. All of them train, none are held out. The
original imports PyTorch and lacks fields that its own program reads, so it does not run; what it states stands here.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="Song et al., 2011.13456, and the README of score_sde, samples without figures",
    original="configs/ve/celebahq_ncsnpp_continuous.py",
    parameters=105_785_896,
)


def get_config() -> ConfigDict:
    config = read("ffhq1024_ve_ncsnpp_continuous")
    config.data.source = "data/celebahq"
    config.loss.reduction = "half_sum"
    return config
