"""CelebA-HQ at 256 × 256, DDPM: Ho et al., 2006.11239.

Prepare data/celebahq first: a folder of the 30,000 images of 1024 × 1024. All of them train, none are held out. The
original says 256 pixels and names records of 1024, which its program does not resize; what it evidently means is built.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/vp/ddpm/celebahq.py",
    parameters=111_569_923,
)


def get_config() -> ConfigDict:
    config = read("bedroom_vp_ddpm")
    config.data.source = "data/celebahq"
    config.data.holdout = 0.0
    return config
