"""CIFAR-10, VP in continuous time, DDPM++: Song et al., 2011.13456."""

from ml_collections import ConfigDict

from diffuse_jax.config import base, network
from diffuse_jax.config.published import Published, bits_per_dim, fid, inception_score

PUBLISHED = Published(
    source="Song et al., 2011.13456, tables 2 and 3, and the README of score_sde",
    original="configs/vp/cifar10_ddpmpp_continuous.py",
    parameters=61_804_419,
    nfe=1000,
    fid=fid(2.55),
    inception_score=inception_score(9.58),
    fid_ode=fid(3.93),
    bits_per_dim=bits_per_dim(3.16),
)


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
    config.sampling.solver = "score_sde:euler_maruyama"
    config.sampling.steps = 1000
    config.evaluation.num_samples = 50_000
    config.evaluation.num_likelihood = 1024
    return config
