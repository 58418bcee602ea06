"""CIFAR-10, DDPM: Ho et al., 2006.11239, as score_sde restates it."""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import Published, bits_per_dim, fid

PUBLISHED = Published(
    source="Song et al., 2011.13456, tables 2 and 3, and the README of score_sde",
    original="configs/vp/ddpm/cifar10.py",
    parameters=35_218_947,
    nfe=1000,
    fid=fid(3.24),
    fid_ode=fid(3.37),
    bits_per_dim=bits_per_dim(3.28),
    notes="DDPM's own paper has an FID of 3.17 from its own weights, trained 800,000 steps.",
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp")
    config.model = network("ddpm")
    return config
