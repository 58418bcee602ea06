"""What a method of one update takes where it is given no optimizer or no decay of its average."""

from collections.abc import Callable

import jax
import optax

from diffuse_jax.training import adam, ema_decay

__all__ = ["ema_or_default", "optimizer_or_default"]


def optimizer_or_default(optimizer: optax.GradientTransformation | None) -> optax.GradientTransformation:
    """The optimizer, or `adam(2e-4, warmup=1000, clip=1.0)`."""
    return adam(2e-4, warmup=1000, clip=1.0) if optimizer is None else optimizer


def ema_or_default(ema: Callable[[jax.Array], jax.Array] | None) -> Callable[[jax.Array], jax.Array]:
    """The decay of the average, or `ema_decay(rate=0.999)` that forgets its start."""
    return ema_decay(rate=0.999, batch_size=1, warmup=True) if ema is None else ema
