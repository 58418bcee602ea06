"""Networks: Flax Linen modules called as `module(x, t, cond=None, *, train=False)`, and pure functions made of them.

For images: `NCSNpp` (which DDPM++ is a setting of), `DDPM`, and the others that published weights need: `NCSN` and
`NCSNv2`, EDM's `SongUNet` and `ADM`, diffusers' `UNet2D`. `MLP` is for vectors. Anything callable as
`net(params, x, t, *, cond, rng)` serves in their place: `LinenNet` makes one of a Linen module.
"""

from diffuse_jax.nets.ddpm import DDPM
from diffuse_jax.nets.edm import ADM, SongUNet
from diffuse_jax.nets.linen import LinenNet, param_count
from diffuse_jax.nets.mlp import MLP
from diffuse_jax.nets.ncsn import NCSN, NCSNv2
from diffuse_jax.nets.ncsnpp import NCSNpp
from diffuse_jax.nets.unet2d import UNet2D

__all__ = [
    "ADM",
    "DDPM",
    "MLP",
    "NCSN",
    "LinenNet",
    "NCSNpp",
    "NCSNv2",
    "SongUNet",
    "UNet2D",
    "param_count",
]
