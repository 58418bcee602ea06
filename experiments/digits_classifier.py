"""A classifier of noised digits, p(label given x_t, t): half of a U-Net, in minutes on a laptop's CPU."""

from ml_collections import ConfigDict

from diffuse_jax.config import base, network


def get_config() -> ConfigDict:
    config = base()
    config.method.name = "classifier"
    config.data.labels = True
    config.model = network("encoder", nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.1)
    # Noise where the classes are decided, as in the experiment digits.
    config.loss.times = "log_normal"
    config.loss.p_mean = -0.4
    config.loss.p_std = 1.2
    config.loss.t_min = 1e-3
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 100
    config.optimizer.decay = "linear"
    config.ema.halflife_images = 10_000.0
    config.ema.warmup = True
    config.training.batch_size = 64
    config.training.steps = 1500
    config.training.steps_per_call = 10
    config.training.checkpoint_every = 500
    config.training.evaluate_every = 250
    return config
