"""CIFAR-10, VE in continuous time, NCSN++: Song et al., 2011.13456.

Trained as the VP experiment is but for what stands here.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import Published, fid, inception_score

PUBLISHED = Published(
    source="Song et al., 2011.13456, table 3, and the README of score_sde",
    original="configs/ve/cifar10_ncsnpp_continuous.py",
    parameters=62_758_915,
    nfe=2000,
    fid=fid(2.38),
    inception_score=inception_score(9.83),
)


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp_continuous")
    config.data.centered = False
    config.sde.name = "ve"
    config.model = network("ncsnpp")
    config.parameterization.name = "score"
    config.parameterization.c_noise = "sigma"
    config.loss.reduction = "half_sum"
    config.ema.rate = 0.999
    # Its corrector couples the samples of a batch; that of "reverse_diffusion+langevin" does not.
    config.sampling.solver = "score_sde:reverse_diffusion+langevin"
    config.sampling.snr, config.sampling.corrector_steps = 0.16, 1
    return config
