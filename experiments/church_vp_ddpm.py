"""LSUN churches at 256 × 256, DDPM: Ho et al., 2006.11239."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import ANOTHER_RUN, Published, fid

PUBLISHED = Published(
    source="Ho et al., 2006.11239, table 3",
    original="configs/vp/ddpm/church.py",
    parameters=111_569_923,
    nfe=1000,
    fid=fid(7.89, band=0.5, reason=ANOTHER_RUN, remembered=True),
    notes="DDPM's own weights, trained 1,200,000 steps; score_sde gives no figure.",
)


def get_config() -> ConfigDict:
    config = read("bedroom_vp_ddpm")
    config.data.source = "tfds:lsun/church_outdoor"
    return config
