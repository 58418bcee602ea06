"""LSUN bedrooms at 256 × 256, VE in continuous time, NCSN++."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="Song et al., 2011.13456, and the README of score_sde, samples without figures",
    original="configs/ve/bedroom_ncsnpp_continuous.py",
    parameters=65_574_549,
)


def get_config() -> ConfigDict:
    config = read("cifar10_ve_ncsnpp_continuous")
    config.data.source = "tfds:lsun/bedroom"
    config.data.image_size = 256
    config.sde.sigma_max = 378.0
    config.model.update(
        ch_mult=(1, 1, 2, 2, 2, 2, 2),
        num_res_blocks=2,
        dropout=0.0,
        progressive="output_skip",
        progressive_input="input_skip",
    )
    config.training.batch_size = 64
    config.training.steps = 2_400_000
    config.training.checkpoint_every = 5000
    config.sampling.steps = 2000
    config.sampling.snr = 0.075
    return config
