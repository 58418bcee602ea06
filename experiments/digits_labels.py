"""Digits with their classes, dropped from one row in ten: `sample --label=3` draws threes; minutes on a CPU."""

from ml_collections import ConfigDict

from diffuse_jax.config import read


def get_config() -> ConfigDict:
    config = read("digits")
    config.data.labels = True
    # What a row without its class teaches is the unconditional network, for classifier-free guidance.
    config.loss.drop_conditions = 0.1
    return config
