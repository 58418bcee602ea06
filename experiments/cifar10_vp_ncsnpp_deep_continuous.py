"""CIFAR-10, VP in continuous time, NCSN++ of twice the depth."""

from ml_collections import ConfigDict

from diffuse_jax.config import read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/vp/cifar10_ncsnpp_deep_continuous.py",
    parameters=107_521_411,
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ncsnpp_continuous")
    config.model.num_res_blocks = 8
    config.training.steps = 950_000
    return config
