"""LSUN bedrooms at 256 × 256, DDPM: Ho et al., 2006.11239."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import ANOTHER_RUN, Published, fid

PUBLISHED = Published(
    source="Ho et al., 2006.11239, table 3",
    original="configs/vp/ddpm/bedroom.py",
    parameters=111_569_923,
    nfe=1000,
    fid=fid(6.36, band=0.5, reason=ANOTHER_RUN, remembered=True),
    notes="DDPM's own weights, trained 1,150,000 steps; score_sde gives no figure.",
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpm")
    config.data.source = "tfds:lsun/bedroom"
    config.data.image_size = 256
    config.model.update(ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)
    config.optimizer.learning_rate = 2e-5
    config.training.batch_size = 64
    config.training.steps = 2_400_000
    config.training.checkpoint_every = 5000
    return config
