"""An autoencoder with a Gaussian latent, trained by its evidence bound (Kingma & Welling, 1312.6114).

    −log p(x) ≤ E_q(z|x)[−log p(x | z)] + KL(q(z | x) ‖ N(0, I)),      q(z | x) = N(μ(x), diag σ(x)²)

p(x | z) is a probability of grey levels, a Gaussian of learnt width (Rybkin et al., 2006.13202) over the cell of each,
so that the bound is one on a code length. With a small weight of the second term it is the first stage of latent
diffusion (Rombach et al., 2112.10752): what is trained is a codec.

Row i of a batch draws all that it needs from its own key: tag 0 what the pixels' codec does to it, and 2 its latent.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from diffuse_jax._compile import compiled
from diffuse_jax.codecs import Pixels
from diffuse_jax.likelihood import nats_to_bits_per_dim
from diffuse_jax.methods.defaults import ema_or_default, optimizer_or_default
from diffuse_jax.methods.noising import normal_rows
from diffuse_jax.training import Density, Draw, Drawn, Draws, Likelihoods, LossOutput, Method, Update
from diffuse_jax.training.method import tagged
from diffuse_jax.trees import pytree, static
from diffuse_jax.variational_bound import discretized_gaussian, standard_normal_kl

__all__ = ["AutoencoderNet", "KLAutoencoder", "autoencoder"]

#: Within which ln σ² is kept, as in latent diffusion: outside of it float32 knows no σ².
_LOG_VARIANCES = (-30.0, 20.0)
_LATENT = 2
_LEAST_MSE = 1e-12  # a PSNR of 120 dB


class AutoencoderNet(Protocol):
    """What `autoencoder` trains, such as `LinenAutoencoder(module)`. It is static, and compared by value."""

    def init(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """Fresh parameters for data of that shape."""
        ...

    def encode(self, params: Any, x: jax.Array, *, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The distribution of latents, given their data.

        Args:
            params: The parameters.
            x: The data (batch, …).
            rng: The key of the dropout; None turns it off.

        Returns:
            The mean and the log-variance of the latent of each x, of one shape.
        """
        ...

    def decode(self, params: Any, z: jax.Array, *, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The distribution of data, given their latents.

        Args:
            params: The parameters.
            z: The latents (batch, …).
            rng: The key of the dropout; None turns it off.

        Returns:
            The mean of the data, shaped like x, and the logarithm of their standard deviation, which broadcasts against
                it.
        """
        ...


@pytree
class KLAutoencoder:
    """A trained autoencoder, and a codec (see `Codec`): the space is that of its latents. A second plain call of a
    method with other parameters, keys or images does not trace again.

    Args:
        params: The parameters of the network.
        net: The network.
        pixels: Between the images and the range in which the network knows them.
        shape: The shape of one latent.
    """

    params: Any
    net: AutoencoderNet = static()
    pixels: Pixels = static()
    shape: tuple[int, ...] = static()

    @compiled()
    def moments(self, x: jax.Array, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """x (B, …) in the model's range as the mean and the log-variance of q(z | x), each (B, *shape)."""
        mean, log_variance = self.net.encode(self.params, x, rng=rng)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCES)

    @compiled()
    def mean(self, z: jax.Array) -> jax.Array:
        """The mean (B, …) of p(x | z) in the model's range, of latents z (B, *shape)."""
        return self.net.decode(self.params, z)[0]

    @compiled()
    def reconstruct(self, x: jax.Array) -> jax.Array:
        """x (B, …) in the model's range by way of the mean of its latent."""
        return self.mean(self.moments(x)[0])

    @compiled("train")
    def encode(self, batch: Any, keys: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        """A batch of images as latents.

        Args:
            batch: {"x": uint8 images (B, h, w, c), conditions by name}.
            keys: One key a row, (B,), with which its latent is drawn.
            train: Whether the codec of the pixels augments the images.

        Returns:
            Latents (B, *shape) drawn from q(z | x), and the conditions of the rows by name, or None.
        """
        x, cond = self.pixels.encode(batch, keys, train=train)
        # The tags before are the pixels' own.
        return posterior_sample(*self.moments(x), tagged(keys, _LATENT)), cond

    @compiled()
    def decode(self, z: jax.Array, cond: Any = None) -> jax.Array:
        """The means of latents z (B, *shape) as uint8 images."""
        return self.pixels.decode(self.mean(z), cond)

    def bound(self, x: jax.Array, keys: jax.Array, rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The two terms of the bound on −log P(x).

        Args:
            x: Grey levels in the model's range, (B, …).
            keys: One key a row, (B,), with which its latent z is drawn.
            rng: The key of the dropout; None turns it off.

        Returns:
            −log P(x | z) of one z, and KL(q(z | x) ‖ N(0, I)), each (B,) in nats.
        """
        mean, log_variance = self.moments(x, rng)
        z = posterior_sample(mean, log_variance, keys)
        decoded, log_scale = self.net.decode(self.params, z, rng=rng)
        assert self.pixels.levels is not None
        given = discretized_gaussian(x, decoded, log_scale, levels=self.pixels.levels, range=self.pixels.range)
        return -given, standard_normal_kl(mean, log_variance)


def posterior_sample(mean: jax.Array, log_variance: jax.Array, keys: jax.Array) -> jax.Array:
    """z ~ N(mean, exp(log_variance)), each row's from its own key."""
    return mean + jnp.exp(0.5 * log_variance) * normal_rows(keys, mean.shape[1:], mean.dtype)


def autoencoder(
    net: AutoencoderNet,
    codec: Pixels,
    *,
    kl_weight: float = 1.0,
    draws: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    ema: Callable[[jax.Array], jax.Array] | None = None,
) -> Method:
    """An autoencoder with a Gaussian latent: of a row −log P(x | z) + kl_weight·KL(q(z | x) ‖ N(0, I)), in nats a
    dimension of x.

    Args:
        net: The network, such as `LinenAutoencoder(Autoencoder(out_channels=1))`.
        codec: Between the images and the model's range, such as `codecs.of_dataset(dataset)`; not dequantized.
        kl_weight: The weight of the divergence: with 1 the loss is the bound itself.
        draws: How many latents of a row `log_prob` takes the mean of: several tell its error.
        optimizer: The optimizer; None is `adam(2e-4, warmup=1000, clip=1.0)`.
        ema: The decay of the average; None is `ema_decay(rate=0.999)` that forgets its start.

    Returns:
        The method. Its model is a `KLAutoencoder`.

    Raises:
        ValueError: For data that are no images of grey levels, a codec that dequantizes them, a network that does not
            bring them back to their own shape, a weight that is negative, and less than one draw.
    """
    if codec.levels is None or len(codec.shape) != 3:
        raise ValueError(f"an autoencoder is for images of grey levels; the data are vectors of shape {codec.shape}")
    if codec.dequantize:
        raise ValueError("dequantize spreads the grey levels, whose probability an autoencoder gives: leave it out")
    if not 0 <= kl_weight < math.inf:
        raise ValueError(f"kl_weight={kl_weight} must be at least 0 and finite")
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    shape = _latent_shape(net, codec.shape)

    def model(params: Any, extra: Any) -> KLAutoencoder:
        return KLAutoencoder(params, net, codec, shape)

    return Method(
        init=lambda key: (net.init(key, codec.shape), {}),
        updates=(Update(_objective(model, kl_weight, train=True), optimizer_or_default(optimizer)),),
        ema=ema_or_default(ema),
        model=model,
        heldout={"loss": _objective(model, kl_weight, train=False)},
        draw=Draw(_draw, {"prior": "N(0, I)"}),
        log_prob=_density(draws),
        evaluations={"reconstruction": _errors},
        pictures={"reconstructions": _beside},
    )


def _latent_shape(net: AutoencoderNet, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one latent of data of that shape; ValueError unless they come back in their own."""

    def there_and_back(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = net.init(key, shape)
        mean, _ = net.encode(params, jnp.zeros((1, *shape)))
        return mean, net.decode(params, mean)[0]

    z, x = jax.eval_shape(there_and_back, jax.random.key(0))
    if x.shape[1:] != shape:
        raise ValueError(f"the network brings x of shape {shape} back with shape {x.shape[1:]}, and must keep it")
    return tuple(z.shape[1:])


def _objective(model: Callable[[Any, Any], KLAutoencoder], kl_weight: float, *, train: bool) -> Any:
    """The loss, and its parts as metrics, all in nats a dimension of x."""

    def loss(params: Any, extra: Any, batch: Any, draws: Draws) -> LossOutput:
        found = model(params, extra)
        x, _ = found.pixels.encode(batch, draws.stream(0), train=train)
        terms = found.bound(x, draws.stream(_LATENT), draws.rng)
        reconstruction, kl = (nats / math.prod(x.shape[1:]) for nats in terms)
        return LossOutput(reconstruction + kl_weight * kl, {"reconstruction": reconstruction, "kl": kl})

    return loss


def _draw(model: KLAutoencoder, keys: jax.Array, cond: Any, path: bool) -> Drawn:
    """The means of what the prior draws."""
    return Drawn(model.mean(normal_rows(tagged(keys, _LATENT), model.shape, jnp.float32)), jnp.ones(keys.shape))


def _density(draws: int) -> Density:
    """The bound, the mean over so many draws, and its standard error."""

    def of_rows(model: KLAutoencoder, batch: Mapping[str, jax.Array], keys: jax.Array) -> Likelihoods:
        x, _ = dataclasses.replace(model.pixels, flip=False).encode(batch, keys, train=False)

        def one(draw: jax.Array) -> jax.Array:
            reconstruction, kl = model.bound(x, tagged(tagged(keys, _LATENT), draw))
            return -(reconstruction + kl)

        each = jax.lax.map(one, jnp.arange(draws))
        error = jnp.std(each, axis=0, ddof=1) / math.sqrt(draws) if draws > 1 else jnp.full(x.shape[0], jnp.nan)
        nats = each.mean(axis=0)
        bits = nats_to_bits_per_dim(nats, math.prod(x.shape[1:]), levels=None)
        return Likelihoods(nats, error, bits, jnp.full(x.shape[0], float(draws)))

    return Density(of_rows, {"bound": "evidence", "draws": draws})


def _errors(model: KLAutoencoder, batch: Mapping[str, jax.Array], draws: Draws) -> dict[str, jax.Array]:
    """Of reconstructed rows, in [0, 1]: the mean squared error, and the PSNR in dB."""
    x, _ = model.pixels.encode(batch, draws.stream(0), train=False)
    low, high = model.pixels.range
    square = jnp.square((jnp.clip(model.reconstruct(x), low, high) - x) / (high - low))
    mse = square.mean(axis=tuple(range(1, square.ndim)))
    return {"mse": mse, "psnr": -10 * jnp.log10(jnp.maximum(mse, _LEAST_MSE))}


def _beside(model: KLAutoencoder, batch: Mapping[str, jax.Array], draws: Draws) -> jax.Array:
    """Rows, each with its reconstruction to its right."""
    x, _ = model.pixels.encode(batch, draws.stream(0), train=False)
    return jnp.concatenate([x, model.reconstruct(x)], axis=2)
