"""CIFAR-10, VP in continuous time, NCSN++."""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/vp/cifar10_ncsnpp_continuous.py",
    parameters=62_693_251,
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp_continuous")
    config.model = network("ncsnpp", embedding_type="positional", scale_by_sigma=False)
    return config
