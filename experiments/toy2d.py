"""Points in the plane with a small MLP: the quickest look at the whole path, half a minute on a CPU."""

from ml_collections import ConfigDict

from diffuse_jax.config import base, network


def get_config(source: str = "checkerboard") -> ConfigDict:
    config = base()
    config.data.source = source
    config.model = network("mlp", width=128, depth=4, frequencies=3)
    config.parameterization.name = "v"
    config.parameterization.c_noise = "t"
    config.loss.times = "importance"
    config.loss.t_min = 1e-3
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 100
    config.ema.halflife_images = 100_000.0
    config.ema.warmup = True
    config.training.batch_size = 512
    config.training.steps = 5000
    config.training.steps_per_call = 50
    config.training.checkpoint_every = 1000
    config.training.evaluate_every = 1000
    config.training.sample_every = 1000
    config.sampling.num = 4096
    config.sampling.batch_size = 4096
    config.evaluation.num_samples = 4096
    config.evaluation.trace = "exact"
    return config
