"""ImageNet at 64 × 64 with its classes, EDM, ADM: Karras et al., 2206.00364.

Prepare data/imagenet first: the training images, in one folder a class. All of them train, none are held out. The
published run computes in float16 and scales its loss by 100 for it; bfloat16 needs no scale.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import EDM_SPREAD, Published, fid

PUBLISHED = Published(
    source="Karras et al., 2206.00364, and the README of edm",
    original="--cond=1 --arch=adm --duration=2500 --batch=4096 --lr=1e-4 --ema=50 --dropout=0.10 --augment=0 "
    "--fp16=1 --ls=100 --tick=200",
    parameters=295_899_267,
    nfe=511,
    fid=fid(1.36, band=0.12, reason=EDM_SPREAD),
)


def get_config() -> ConfigDict:
    config = read("cifar10_edm_ddpmpp")
    config.data.source = "data/imagenet"
    config.data.image_size = 64
    config.data.augment = 0.0
    config.data.labels = True
    config.data.num_classes = 1000
    config.data.holdout = 0.0
    config.model = network("adm", dropout=0.1, dtype="bfloat16")
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 10e6 / 4096
    config.ema.halflife_images = 50_000_000.0
    config.training.batch_size = 4096
    config.training.steps = 610_352
    config.sampling.solver = "edm"
    config.sampling.steps = 255
    config.sampling.churn = 40.0
    config.sampling.churn_min = 0.05
    config.sampling.churn_max = 50.0
    config.sampling.churn_noise = 1.003
    return config
