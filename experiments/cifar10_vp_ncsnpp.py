"""CIFAR-10, DDPM's 1,000 steps, NCSN++, sampled by reverse diffusion."""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import Published

PUBLISHED = Published(
    source="score_sde, without figures",
    original="configs/vp/cifar10_ncsnpp.py",
    parameters=62_693_251,
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp")
    config.model = network("ncsnpp", embedding_type="positional", scale_by_sigma=False)
    config.sampling.solver = "score_sde:reverse_diffusion"
    return config
