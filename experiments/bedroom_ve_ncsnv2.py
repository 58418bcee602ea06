"""LSUN bedrooms at 128 × 128, NCSNv2: Song & Ermon, 2006.09011.

The original misspells `continuous`, so that its program would train it in continuous time; NCSNv2's levels are built.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published
from diffuse_jax.nets.ncsn import NCSNV2_FORMS

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/ve/ncsnv2/bedroom.py",
)


def get_config() -> ConfigDict:
    config = read("cifar10_ve_ncsnv2")
    config.data.source = "tfds:lsun/bedroom"
    config.data.image_size = 128
    config.model.update(NCSNV2_FORMS[128])
    config.sde.num_scales, config.sde.sigma_max = 1086, 190.0
    config.ema.rate = 0.9999
    config.training.steps = 2_400_000
    config.training.checkpoint_every = 5000
    config.sampling.steps = 1086
    config.sampling.corrector_steps = 3
    config.sampling.snr = 0.095
    return config
