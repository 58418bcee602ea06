"""FFHQ at 64 × 64, EDM, NCSN++.

Prepare data/ffhq first: the folder of the 70,000 images of 1024 × 1024. All of them train, none are held out.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import EDM_SPREAD, Published, fid

PUBLISHED = Published(
    source="Karras et al., 2206.00364, table 2, and the README of edm",
    original="--cond=0 --arch=ncsnpp --batch=256 --cres=1,2,2,2 --lr=2e-4 --dropout=0.05 --augment=0.15",
    parameters=62_761_219,
    nfe=79,
    fid=fid(2.53, band=0.12, reason=EDM_SPREAD),
)


def get_config() -> ConfigDict:
    config = read("ffhq64_edm_ddpmpp")
    config.model.update(
        embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=(1, 3, 3, 1)
    )
    return config
