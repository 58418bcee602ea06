"""The default: scikit-learn's digits (8×8, 17 grey levels) with a small NCSN++, in minutes on a laptop's CPU."""

from diffuse_jax.config import base, network


def get_config():
    config = base()
    config.model = network(
        "ncsnpp",
        nf=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(4,),
        embedding_type="positional",
        fir=False,
        scale_by_sigma=False,
        progressive_input="none",
        dropout=0.1,
    )
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 200
    config.ema.halflife_images = 50_000.0
    config.ema.warmup = True
    config.training.steps = 3000
    return config
