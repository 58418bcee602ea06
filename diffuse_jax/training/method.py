"""What a run trains, as records of pure functions: one or more losses, each with the parameters that it moves, and what
the trained parameters are good for.

    batch ─▶ each Update in turn: loss → gradient of its own parameters → its optimizer ─▶ params, extra

`params` is what the updates move: any tree, or where they move parts of it a dict from name to tree. `extra` is what is
carried and not trained: a dict, {} where there is nothing, of frozen networks and of buffers that a loss brings up to
date. It is saved, sharded, donated and resumed like the parameters. What changes it is a function of the step and the
batch, so that a run that resumes is exact to the bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import optax

from diffuse_jax.trees import pytree, static

__all__ = ["Density", "Draw", "Drawn", "Draws", "Likelihoods", "Loss", "LossOutput", "Method", "Update", "tagged"]


def tagged(keys: jax.Array, tag: int | jax.Array) -> jax.Array:
    """Keys of the rows, (B,), that are independent of those of other tags."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, jax.numpy.uint32(tag))


@pytree
class Draws:
    """The randomness of one loss, and which rows of the global batch it sees.

    Args:
        keys: One typed key a row, (B,): what concerns a row is drawn from its own.
        index: The rows' positions in the global batch, (B,) int32.
        rng: The key of dropout; None outside of training, where there is none.
        step: The number of updates made before, an int32 scalar.
        total: The size of the global batch. B = total, except under `jax.pmap`, where a device sees its share.
    """

    keys: jax.Array
    index: jax.Array
    rng: jax.Array | None
    step: jax.Array
    total: int = static()

    def stream(self, tag: int) -> jax.Array:
        """Keys of the rows, (B,), that are independent of those of other tags."""
        return tagged(self.keys, tag)


class LossOutput(NamedTuple):
    """What a loss returns.

    Args:
        each: The loss of each row, (B,); their mean is minimised.
        metrics: Further numbers to log, by name: scalars, or (B,), of which the mean is logged.
        extra: The entries of `extra` that the loss brings up to date, by name; None where it leaves them all. A float
            entry should be a mean over the rows or linear in one: where the batch is gone through in parts, or spread
            by `jax.pmap`, it is averaged over the parts.
    """

    each: jax.Array
    metrics: Mapping[str, jax.Array] = {}
    extra: Mapping[str, Any] | None = None


class Loss(Protocol):
    """`loss(params, extra, batch, draws)`: a batch is a tree of arrays that lead with B."""

    def __call__(self, params: Any, extra: Any, batch: Any, draws: Draws, /) -> LossOutput: ...


@dataclass(frozen=True)
class Update:
    """One loss and what it moves.

    Args:
        loss: The loss.
        optimizer: The optimizer, such as `adam`.
        of: The names of the top-level parameters that it moves; None moves all of them.
        every: It is made at the steps that are multiples of this number.
        name: What its metrics are called: loss and grad_norm where it is empty, NAME/loss and NAME/grad_norm otherwise.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    of: tuple[str, ...] | None = None
    every: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every = {self.every} must be at least 1")
        if isinstance(self.of, str):
            raise ValueError(f"of = {self.of!r} must be a tuple of names, or None for all parameters")

    def moved(self, params: Any) -> Any:
        """Those of `params` that it moves. ValueError naming what `params` lack."""
        if self.of is None:
            return params
        if missing := [name for name in self.of if name not in params]:
            raise ValueError(f"of = {self.of} names {missing[0]!r}, and the parameters are {', '.join(params)}")
        return {name: params[name] for name in self.of}

    def put(self, params: Any, moved: Any) -> Any:
        """`params` with those that it moves in place of the ones before."""
        return moved if self.of is None else {**params, **moved}


class Drawn(NamedTuple):
    """What a method draws.

    Args:
        x: The samples (n, …), in the model's range.
        evaluations: How many evaluations of the network each took, (n,); NaN where it is not known.
        path: Their states (n, N + 1, …), where asked for.
    """

    x: Any
    evaluations: Any
    path: Any = None


class Likelihoods(NamedTuple):
    """The likelihood of each row, all (n,).

    Args:
        log_prob: In nats log p of the (dequantized) data in the model's range, or log P of grey levels; or a bound from
            below.
        error: Its standard error from what is estimated: 0 where nothing is, NaN where it is not known.
        bits_per_dim: Bits per dimension.
        evaluations: The evaluations of the network.
    """

    log_prob: Any
    error: Any
    bits_per_dim: Any
    evaluations: Any


@dataclass(frozen=True)
class Draw:
    """How a method makes data.

    Args:
        function: `function(model, keys, cond, path) -> Drawn`, pure: n keys, conditions by name or None, and whether
            (a Python bool) the states on the way are wanted.
        facts: What decides what is drawn beside the model and the keys, as it is written beside samples.
        frames: The factor (N + 1,) that brings each state of a path to the size of the data; None: there is no path.
    """

    function: Callable[[Any, jax.Array, Any, bool], Drawn]
    facts: Mapping[str, Any] = field(default_factory=dict)
    frames: Any = None


@dataclass(frozen=True)
class Density:
    """How a method tells the likelihood of rows.

    Args:
        function: `function(model, batch, keys) -> Likelihoods`, pure: n rows and their keys.
        facts: What decides the numbers beside the model, the rows and the keys, as it is written beside them.
    """

    function: Callable[[Any, Any, jax.Array], Likelihoods]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """What a run trains. Commands ask for what a method can do by its presence, and never for its name.

    Args:
        init: `init(key) -> (params, extra)`.
        updates: What a step does, in order; each sees what the one before left.
        ema: The decay of the moving average of the parameters as a function of the step, such as `ema_decay`.
        model: `model(params, extra)` is what the library calls a model: a denoiser, a classifier, an autoencoder.
        heldout: Losses of held-out rows by name, evaluated without dropout.
        denoiser: `denoiser(params, extra)`; None where there is none.
        draw: How data are made; None where there is nothing to draw.
        log_prob: How the likelihood of rows is told; None where there is no density.
        evaluations: `function(model, batch, draws) -> {name: (B,)}` of held-out rows, by name.
        pictures: `function(model, batch, draws) -> x (B, …)` in the model's range, shown as grids, by name.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    updates: tuple[Update, ...]
    ema: Callable[[jax.Array], jax.Array]
    model: Callable[[Any, Any], Any]
    heldout: Mapping[str, Loss] = field(default_factory=dict)
    denoiser: Callable[[Any, Any], Any] | None = None
    draw: Draw | None = None
    log_prob: Density | None = None
    evaluations: Mapping[str, Callable[[Any, Any, Draws], Mapping[str, jax.Array]]] = field(default_factory=dict)
    pictures: Mapping[str, Callable[[Any, Any, Draws], jax.Array]] = field(default_factory=dict)
