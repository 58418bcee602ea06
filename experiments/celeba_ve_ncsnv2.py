"""CelebA at 64 × 64, NCSNv2: Song & Ermon, 2006.09011.

Prepare data/celeba140 first: a folder of CelebA's aligned training images, each cropped to its central 140 × 140
pixels. They are resized here to 64 × 64. All of them train, none are held out.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import ANOTHER_RUN, Published, fid

PUBLISHED = Published(
    source="Song & Ermon, 2006.09011, table 1",
    original="configs/ve/ncsnv2/celeba.py",
    nfe=2501,
    fid=fid(10.23, band=0.5, reason=ANOTHER_RUN, remembered=True),
    notes="NCSNv2's own program, of 210,000 steps; score_sde gives no figure and trains 1,300,000.",
)


def get_config() -> ConfigDict:
    config = read("celeba_ve_ncsn:1245")
    config.model = network("ncsnv2")
    config.optimizer.learning_rate = 1e-4
    config.sampling.finish = "denoise"
    return config
