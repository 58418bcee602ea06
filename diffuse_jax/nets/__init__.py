"""Networks: Flax Linen modules called as `module(x, t, cond=None, *, train)`, and pure functions made of them.

`NCSNpp` (which DDPM++ is a setting of) and `DDPM` are for images, `MLP` is for vectors. Anything callable as
`net(params, x, t, *, cond, rng)` serves in their place: `LinenNet` makes one of a Linen module.
"""

from diffuse_jax.nets.ddpm import DDPM
from diffuse_jax.nets.linen import LinenNet, param_count
from diffuse_jax.nets.mlp import MLP
from diffuse_jax.nets.ncsnpp import NCSNpp

__all__ = ["DDPM", "MLP", "LinenNet", "NCSNpp", "param_count"]
