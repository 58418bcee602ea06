"""CIFAR-10, VP process, DDPM++ continuous (61,804,419 parameters).

Song et al., 2011.13456, publish an FID of 2.55 and a NLL of 3.16 bits/dim.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import base, network


def get_config() -> ConfigDict:
    config = base()
    config.data.source = "tfds:cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True
    config.model = network(
        "ncsnpp", fir=False, progressive_input="none", embedding_type="positional", scale_by_sigma=False
    )
    config.loss.stratified = False
    config.optimizer.warmup = 5000
    config.ema.rate = 0.9999
    config.training.steps = 1_300_000
    config.training.log_every = 100
    config.training.checkpoint_every = 10_000
    config.training.keep_every = 50_000
    config.training.evaluate_every = 10_000
    config.training.sample_every = 10_000
    config.sampling.solver = "euler_maruyama"
    config.sampling.steps = 1000
    config.evaluation.num_samples = 50_000
    config.evaluation.num_likelihood = 1024
    return config
