"""AFHQv2 at 64 × 64, EDM, DDPM++.

Prepare data/afhqv2 first: the folder of the data set. All its images train, none are held out.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import EDM_SPREAD, Published, fid

PUBLISHED = Published(
    source="Karras et al., 2206.00364, table 2, and the README of edm",
    original="--cond=0 --arch=ddpmpp --batch=256 --cres=1,2,2,2 --lr=2e-4 --dropout=0.25 --augment=0.15",
    parameters=61_805_571,
    nfe=79,
    fid=fid(1.96, band=0.12, reason=EDM_SPREAD),
)


def get_config() -> ConfigDict:
    config = read("ffhq64_edm_ddpmpp")
    config.data.source = "data/afhqv2"
    config.model.dropout = 0.25
    return config
