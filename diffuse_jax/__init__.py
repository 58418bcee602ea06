"""diffuse_jax: diffusion models as pure functions, for JAX and Flax.

A process, a network and a solver are three values; loss, sampling and likelihood are pure functions of them:

    keys = sample_keys(seed=0, n=64)
    x = sample(keys, denoise, solvers.heun(), times.uniform(denoise.sde, 18))
"""

import lazy_loader

# What `__init__.pyi` lists is imported on first use: a command answers, and can be interrupted, before JAX is loaded.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
