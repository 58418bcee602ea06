"""CelebA at 64 × 64, NCSN; ":5", ":124" and ":1245" are its ablations, see cifar10_ve_ncsn.

Prepare data/celeba140 first: a folder of CelebA's aligned training images, each cropped to its central 140 × 140
pixels. They are resized here to 64 × 64. All of them train, none are held out. The original names its process in a
field that its program does not read, so it does not run; the one meant is built.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/ve/ncsn/celeba.py, celeba_5.py, celeba_124.py, celeba_1245.py",
)


def get_config(techniques: str = "") -> ConfigDict:
    config = read(f"cifar10_ve_ncsn:{techniques}")
    config.data.source = "data/celeba140"
    config.data.image_size = 64
    config.data.holdout = 0.0
    if "124" in techniques:
        config.sde.num_scales, config.sde.sigma_max = 500, 90.0
        config.sampling.steps = 500
        config.sampling.snr = 0.128
    return config
