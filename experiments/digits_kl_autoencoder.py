"""Digits (8×8, 17 grey levels) as latents of 2×2×4 by a small autoencoder, in minutes on a laptop's CPU."""

from ml_collections import ConfigDict

from diffuse_jax.config import base, method, network


def get_config() -> ConfigDict:
    config = base()
    config.method = method("autoencoder", kl_weight=1.0)
    config.model = network("autoencoder", latent_channels=4, nf=16, ch_mult=(1, 2, 2), num_res_blocks=1, dropout=0.1)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 200
    config.optimizer.decay = "linear"
    config.ema.halflife_images = 30_000.0
    config.ema.warmup = True
    config.training.batch_size = 64
    config.training.steps = 2000
    config.training.steps_per_call = 10
    config.training.checkpoint_every = 500
    config.training.evaluate_every = 500
    config.training.sample_every = 1000
    config.evaluation.num_likelihood = 180
    config.evaluation.probes = 16
    return config
