"""CIFAR-10, NCSNv2: Song & Ermon, 2006.09011.

Samples end with one denoising, as in the paper; score_sde asks for it too (`noise_removal`), but does none where there
is no predictor.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import ANOTHER_RUN, Published, fid, inception_score

PUBLISHED = Published(
    source="Song & Ermon, 2006.09011, table 1",
    original="configs/ve/ncsnv2/cifar10.py",
    nfe=1161,
    fid=fid(10.87, band=0.5, reason=ANOTHER_RUN, remembered=True),
    inception_score=inception_score(8.40, remembered=True),
    notes="NCSNv2's own program, of 300,000 steps; score_sde gives no figure and trains 1,300,000.",
)


def get_config() -> ConfigDict:
    config = read("cifar10_ve_ncsn:1245")
    config.model = network("ncsnv2")
    config.optimizer.learning_rate = 1e-4
    config.sampling.finish = "denoise"
    return config
