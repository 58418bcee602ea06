"""Networks: Flax Linen modules called as `module(x, c_noise, cond=None, *, train=False)`, and pure functions of them.

`c_noise` (batch,) is what a network is told of the time, `cond` None or a mapping from the names of conditions to
arrays that lead with the batch: `label`, `image`, `tokens` (see `diffuse_jax.conditions`). A condition that is not
given is its null; one that the network has no field for is a ValueError.

For images: `NCSNpp` (which DDPM++ is a setting of), `DDPM`, and the others that published weights need: `NCSN` and
`NCSNv2`, EDM's `SongUNet` and `ADM`, diffusers' `UNet2D`. `MLP` is for vectors. `Encoder` and `Decoder` are the halves
of a U-Net, for classifiers and autoencoders, of which `Autoencoder` joins the two; `TransformerBlock` and
`TokenEncoder` are parts to build with. Anything callable as `net(params, x, c_noise, *, cond, rng)` serves in their
place: `LinenNet` makes one of a Linen module.
"""

from diffuse_jax.nets.autoencoder import Autoencoder, LinenAutoencoder
from diffuse_jax.nets.ddpm import DDPM
from diffuse_jax.nets.decoder import Decoder
from diffuse_jax.nets.edm import ADM, SongUNet
from diffuse_jax.nets.encoder import Encoder
from diffuse_jax.nets.linen import LinenNet, param_count
from diffuse_jax.nets.mlp import MLP
from diffuse_jax.nets.ncsn import NCSN, NCSNv2
from diffuse_jax.nets.ncsnpp import NCSNpp
from diffuse_jax.nets.transformer import TokenEncoder, TransformerBlock
from diffuse_jax.nets.unet2d import UNet2D

__all__ = [
    "ADM",
    "DDPM",
    "MLP",
    "NCSN",
    "Autoencoder",
    "Decoder",
    "Encoder",
    "LinenAutoencoder",
    "LinenNet",
    "NCSNpp",
    "NCSNv2",
    "SongUNet",
    "TokenEncoder",
    "TransformerBlock",
    "UNet2D",
    "param_count",
]
