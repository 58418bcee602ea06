"""CIFAR-10, EDM, NCSN++."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import EDM_SPREAD, Published, fid

PUBLISHED = Published(
    source="Karras et al., 2206.00364, table 2, and the README of edm",
    original="--cond=0 --arch=ncsnpp",
    parameters=56_397_955,
    nfe=35,
    fid=fid(1.98, band=0.12, reason=EDM_SPREAD),
    notes="Of the parameters, as of the other NCSN++ of EDM, 128 are the frequencies of the Fourier features, which "
    "the original does not count.",
)


def get_config() -> ConfigDict:
    config = read("cifar10_edm_ddpmpp")
    config.model.update(
        embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=(1, 3, 3, 1)
    )
    return config
