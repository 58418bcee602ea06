"""CIFAR-10, VE process, NCSN++ continuous (62,758,915 parameters).

Song et al., 2011.13456, table 3, where it has an FID of 2.38 and an IS of 9.83.
"""

from diffuse_jax.config import base, network


def get_config():
    config = base()
    config.data.source = "tfds:cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.centered = False
    config.data.flip = True
    config.sde.name = "ve"
    config.model = network("ncsnpp")
    config.parameterization.name = "score"
    config.parameterization.label = "sigma"
    config.loss.stratified = False
    config.loss.reduction = "half_sum"
    config.optimizer.warmup = 5000
    config.ema.rate = 0.999
    config.training.steps = 1_300_000
    config.training.log_every = 100
    config.training.checkpoint_every = 10_000
    config.training.keep_every = 50_000
    config.training.evaluate_every = 10_000
    config.training.sample_every = 10_000
    config.sampling.solver = "reverse_diffusion+langevin"
    config.sampling.steps = 1000
    config.evaluation.num_samples = 50_000
    config.evaluation.num_likelihood = 1024
    return config
