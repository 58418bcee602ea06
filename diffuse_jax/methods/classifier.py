"""A classifier that knows the noise, p(y given x_t, t), trained by the cross-entropy of labels at noised data (Song et
al., 2011.13456, section 5; Dhariwal & Nichol, 2105.05233, section 4). By Bayes' rule

    ∇ log p_t(x given y) = ∇ log p_t(x) + ∇ log p(y given x, t),

so that its gradient makes a conditional model of an unconditional one.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffuse_jax import parameterizations
from diffuse_jax.codecs import Codec
from diffuse_jax.conditions import Condition, null_row
from diffuse_jax.losses import uniform_times
from diffuse_jax.methods.defaults import ema_or_default, optimizer_or_default
from diffuse_jax.methods.noising import Times, encoded_rows, noised_rows
from diffuse_jax.sde import SDE, expand
from diffuse_jax.times import log_snr
from diffuse_jax.training import Draws, LossOutput, Method, Update
from diffuse_jax.trees import pytree, static

__all__ = ["Classifier", "accuracy_by_noise", "classifier", "cross_entropy"]


@pytree
class Classifier:
    """log p(y given x_t, t) of a network.

    `net`, `c_noise` and `shape` are static and compared by value. The network reads x/√(α² + σ²), which is of the
    data's size at every time of every process, and is x itself where α² + σ² = 1.

    Args:
        sde: The process that noised the data.
        params: The network's parameters, which may be None.
        net: `net(params, x, c_noise, *, cond, rng) -> logits` (batch, classes), such as `LinenNet(module)`. `cond` and
            `rng` are passed only where present; `rng` turns on dropout.
        c_noise: `c_noise(sde, t)` is the time as the network reads it, as in `diffuse_jax.parameterizations`.
        shape: The shape of one sample, where it is known.
    """

    sde: SDE
    params: Any
    net: Callable[..., jax.Array] = static()
    c_noise: Callable[[SDE, Any], jax.Array] = static(default=parameterizations.c_noise_t)
    shape: tuple[int, ...] | None = static(default=None)

    def __call__(self, x: jax.Array, t: Any, cond: Any = None, rng: jax.Array | None = None) -> jax.Array:
        """The logits, log p(y given x_t, t) but for a number of each row.

        Args:
            x: States (batch, …).
            t: Their time, a scalar or (batch,).
            cond: Other conditions than the label, by name; None is not passed on.
            rng: The key of the dropout; None turns it off.

        Returns:
            (batch, classes) float32.

        Raises:
            ValueError: Where the network returns anything but a row of numbers for each of x.
        """
        told = jnp.broadcast_to(self.c_noise(self.sde, t), x.shape[:1])
        size = jnp.hypot(self.sde.alpha(t), self.sde.sigma(t))
        present = {name: value for name, value in (("cond", cond), ("rng", rng)) if value is not None}
        logits = self.net(self.params, x / expand(size, x), told, **present)
        if logits.ndim != 2 or logits.shape[0] != x.shape[0]:
            raise ValueError(
                f"the network's output has shape {logits.shape} for x of shape {x.shape}: it must be (batch, classes)"
            )
        return logits.astype(jnp.float32)

    def log_prob(self, x: jax.Array, t: Any, label: Any, cond: Any = None, rng: jax.Array | None = None) -> jax.Array:
        """log p(label given x_t, t) in nats, whose gradient with respect to x guides a sampler.

        Args:
            x: States (batch, …).
            t: Their time, a scalar or (batch,).
            label: Classes 0 … classes − 1, (batch,), or one for all.
            cond: Other conditions than the label, by name; None is not passed on.
            rng: The key of the dropout; None turns it off.

        Returns:
            (batch,) float32; NaN for a label that is none of the classes.
        """
        return _log_prob_of(self(x, t, cond, rng), jnp.broadcast_to(jnp.asarray(label), x.shape[:1]))


def _log_prob_of(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The log-softmax of logits (batch, classes) at labels (batch,)."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=-1, mode="fill")[:, 0]


def classifier(
    sde: SDE,
    net: Any,
    codec: Codec,
    *,
    optimizer: optax.GradientTransformation | None = None,
    ema: Callable[[jax.Array], jax.Array] | None = None,
    c_noise: Callable[[SDE, Any], jax.Array] = parameterizations.c_noise_t,
    conditions: Mapping[str, Condition] | None = None,
    levels: int = 7,
    times: Times = uniform_times,
    stratified: bool = True,
    t_min: float = 1e-5,
) -> Method:
    """A noise-conditional classifier of labelled data: one network, one loss. It has nothing to sample and no density.

    Args:
        sde: The process that noises the data.
        net: The network, such as `LinenNet(Encoder(out_features=classes))`: `init(key, shape, cond)` makes its
            parameters, and called as `net(params, x, c_noise, *, cond, rng)` it returns logits (batch, classes).
        codec: Between the data and the process's space, such as `codecs.of_dataset(dataset)`.
        optimizer: The optimizer; None is `adam(2e-4, warmup=1000, clip=1.0)`.
        ema: The decay of the average; None is `ema_decay(rate=0.999)` that forgets its start.
        c_noise: What the network is told of the time.
        conditions: What is known of the conditions of the data, by name. The label is what is told, the others are
            shown to the network.
        levels: The number of noise levels at which the accuracy is evaluated.
        times: `times(u, sde, t_min) -> (times, density)` of unit numbers u, as in `diffuse_jax.losses`.
        stratified: Spread the times of a batch evenly.
        t_min: The least time of training.

    Returns:
        The method. Its model is a `Classifier`.
    """
    shown = {name: known for name, known in (conditions or {}).items() if name != "label"}

    def model(params: Any, extra: Any) -> Classifier:
        return Classifier(sde, params, net, c_noise, codec.shape)

    noised: dict[str, Any] = {"times": times, "stratified": stratified, "t_min": t_min}
    loss = cross_entropy(model, codec, **noised)
    return Method(
        init=lambda key: (net.init(key, codec.shape, **({"cond": null_row(shown)} if shown else {})), {}),
        updates=(Update(loss, optimizer_or_default(optimizer)),),
        ema=ema_or_default(ema),
        model=model,
        heldout={"loss": cross_entropy(model, codec, train=False, **noised)},
        evaluations={"accuracy": accuracy_by_noise(codec, log_snr(sde, levels - 1)[::-1], sde)},
    )


def cross_entropy(
    model: Callable[[Any, Any], Classifier],
    codec: Codec,
    *,
    times: Times = uniform_times,
    stratified: bool = True,
    t_min: float = 1e-5,
    train: bool = True,
) -> Callable[[Any, Any, Any, Draws], LossOutput]:
    """−log p(label given x_t, t) at noised data as the loss of an `Update`, with the metric "accuracy", 0 or 1 a row.

    Args:
        model: `model(params, extra)` makes the classifier.
        codec: What makes x and the label of a batch.
        times: `times(u, sde, t_min) -> (times, density)` of unit numbers u, as in `diffuse_jax.losses`: the loss is
            divided by the density, so that its mean is the integral over time.
        stratified: Spread the times of a batch evenly.
        t_min: The least time.
        train: False leaves out the codec's augmentation. Dropout is off where the draws have no rng.

    Returns:
        The loss. It raises ValueError for a batch without labels.
    """

    def loss(params: Any, extra: Any, batch: Any, draws: Draws) -> LossOutput:
        classify = model(params, extra)
        x0, cond, eps, t, density = noised_rows(
            classify.sde, codec, batch, draws, times=times, stratified=stratified, t_min=t_min, train=train
        )
        label, cond = _label_and_others(cond)
        logits = classify(classify.sde.perturb(x0, t, eps), t, cond, draws.rng)
        return LossOutput(-_log_prob_of(logits, label) / density, {"accuracy": _right(logits, label)})

    return loss


def accuracy_by_noise(
    codec: Codec, times: jax.Array, sde: SDE
) -> Callable[[Classifier, Any, Draws], OrderedDict[str, jax.Array]]:
    """Whether a classifier's first choice is a row's label, at some levels of noise, all with the same draw of it.

    Args:
        codec: What makes x and the label of a batch.
        times: The times (levels,).
        sde: The process, by which they are named.

    Returns:
        One of the `evaluations` of a method, a function of (model, batch, draws), which gives 0 or 1 a row, (B,), of
            each level by its name, accuracy_at_noise_ and its σ/α in three digits.
    """
    names = [f"accuracy_at_noise_{level:.3g}" for level in np.exp(-0.5 * np.asarray(sde.log_snr(times)))]

    def accuracy(model: Classifier, batch: Any, draws: Draws) -> OrderedDict[str, jax.Array]:
        x0, cond, eps = encoded_rows(codec, batch, draws, train=False)
        label, cond = _label_and_others(cond)
        found = jax.lax.map(lambda t: _right(model(model.sde.perturb(x0, t, eps), t, cond), label), times)
        return OrderedDict(zip(names, found, strict=True))  # of a dict JAX would sort the names

    return accuracy


def _right(logits: jax.Array, label: jax.Array) -> jax.Array:
    return (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)


def _label_and_others(cond: Mapping[str, jax.Array] | None) -> tuple[jax.Array, dict[str, jax.Array] | None]:
    """The label, and what else is known of the rows, or None. ValueError where there is no label."""
    if cond is None or "label" not in cond:
        raise ValueError("a classifier is trained on labels, and the batch has none: give it an array label (batch,)")
    return cond["label"], {name: value for name, value in cond.items() if name != "label"} or None
