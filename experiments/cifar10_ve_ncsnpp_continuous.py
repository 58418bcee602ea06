"""CIFAR-10, VE process, NCSN++ continuous: Song et al., 2011.13456 (published FID 2.38, IS 9.83).

62,758,915 parameters; trained as the VP experiment is but for what stands here.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read


def get_config() -> ConfigDict:
    config = read("cifar10_vp_ddpmpp_continuous")
    config.data.centered = False
    config.sde.name = "ve"
    config.model = network("ncsnpp")
    config.parameterization.name = "score"
    config.parameterization.label = "sigma"
    config.loss.reduction = "half_sum"
    config.ema.rate = 0.999
    # The published step size couples the samples of a batch; "+langevin" does not.
    config.sampling.solver = "reverse_diffusion+batch_langevin"
    return config
