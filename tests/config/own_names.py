"""What tests/config/test_own_names.py reaches by "own_names:NAME"."""

import jax.numpy as jnp
import optax

from diffuse_jax import parameterizations, solvers, times
from diffuse_jax.codecs import Pixels
from diffuse_jax.likelihood import exact_trace
from diffuse_jax.losses import uniform_times
from diffuse_jax.sampling import keyed_noise, last_state
from diffuse_jax.training import LossOutput, Method, Update, ema_decay


def weight(sde, t, *, power=1.0):
    return sde.sigma(t) ** power


def late_times(u, sde, t_min, *, share=0.5):
    return uniform_times(1 - share * u, sde, t_min)


def solver(*, eta=0.25):
    return solvers.ddim(eta)


def grid(sde, n, *, ratio=2.0):
    return times.karras(sde, n, rho=ratio)


def finish(solution, t, denoise, *, scale=1.0):
    return scale * last_state(solution, t, denoise)


def noise(*args, **options):
    return keyed_noise(*args, **options)


def trace(field, x, probes):
    return exact_trace(field, x, probes)


def parameterization(section):
    return parameterizations.v._replace(c_noise=parameterizations.c_noise_t)


def c_noise(sde, t):
    return 7 * sde.sigma(t)


def optimizer(*, learning_rate):
    return optax.sgd(learning_rate)


def method(config, data):
    """The mean of the data."""

    def loss(params, extra, batch, draws):
        return LossOutput(jnp.sum(jnp.square(batch["x"] - params), axis=-1))

    return Method(
        init=lambda key: (jnp.zeros(data.shape), {}),
        updates=(Update(loss, optax.sgd(config.method.rate)),),
        ema=ema_decay(rate=0.0, batch_size=1),
        model=lambda params, extra: params,
        heldout={"loss": loss},
    )


class Halves:
    """The mean and the half difference of two coordinates, and back; `broken` changes the shape that it says."""

    def __init__(self, shape, broken=False):
        self.shape = shape if not broken else (3,)

    def encode(self, batch, keys, *, train):
        a, b = batch["x"][:, 0], batch["x"][:, 1]
        return jnp.stack([(a + b) / 2, (a - b) / 2], axis=1), None

    def decode(self, x, cond=None):
        return jnp.stack([x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]], axis=1)


def codec(config, data):
    return Halves(data.shape, config.codec.get("broken", False))


def pixels(config, data):
    return Pixels(data.shape, data.levels)


def nothing(*args, **options):
    return None
