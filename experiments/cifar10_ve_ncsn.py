"""CIFAR-10, NCSN: Song & Ermon, 1907.05600; ":5", ":124" and ":1245" are its ablations.

Their numbers are the techniques of NCSNv2 (2006.09011) that they add: 1, 2 and 4 the noise levels and steps, 5 the
moving average. The step at the smallest noise level, 2·(snr·σ)², is NCSN's 2e-5. Its sampler has no predictor, so that
the denoising that score_sde asks for does nothing: samples are the last state, as NCSN's are.
"""

from ml_collections import ConfigDict

from diffuse_jax.config import network, read
from diffuse_jax.config.published import ANOTHER_RUN, Published, fid, inception_score

PUBLISHED = Published(
    source="Song & Ermon, 1907.05600, table 1",
    original="configs/ve/ncsn/cifar10.py, cifar10_5.py, cifar10_124.py, cifar10_1245.py",
    nfe=1000,
    fid=fid(25.32, band=2.0, reason=ANOTHER_RUN, remembered=True),
    inception_score=inception_score(8.87, remembered=True),
    notes="NCSN's own program, of 200,000 steps; score_sde gives no figure and trains 1,300,000.",
)


def get_config(techniques: str = "") -> ConfigDict:
    if techniques not in ("", "5", "124", "1245"):
        raise ValueError(f"cifar10_ve_ncsn:{techniques} must be one of :5, :124, :1245, or without a colon")
    config = read("cifar10_ve_ncsnpp")
    config.model = network("ncsn")
    config.sde.num_scales, config.sde.sigma_max = (232, 50.0) if "124" in techniques else (10, 1.0)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 0
    config.optimizer.clip = 0.0
    config.ema.rate = 0.999 if "5" in techniques else 0.0
    config.sampling.solver = "score_sde:none+ald"
    config.sampling.steps = config.sde.num_scales
    config.sampling.snr, config.sampling.corrector_steps = (0.176, 5) if "124" in techniques else (0.316, 100)
    return config
