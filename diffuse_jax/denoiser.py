"""From a raw network to a denoiser, the only thing that a solver or a likelihood knows of it.

A denoiser carries its process `sde` and is called as `denoise(x, t, cond=None) -> Denoised(x0, eps)` with x = α·x0 +
σ·eps; the score is −eps/σ. Static parts compare by value, so that a denoiser built anew from equal parts does not
recompile what it is passed to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from diffuse_jax import parameterizations
from diffuse_jax._checks import check_denoiser, check_process
from diffuse_jax.conditions import merge_conditions
from diffuse_jax.parameterizations import Parameterization
from diffuse_jax.sde import SDE, Array, expand
from diffuse_jax.trees import pytree, static

__all__ = [
    "Conditioned",
    "Denoised",
    "Denoiser",
    "NetworkDenoiser",
    "OnProcess",
    "ScoreDenoiser",
    "from_score",
    "on_process",
    "score_of",
    "unbind",
]


class Denoised(NamedTuple):
    """E[x_0 | x(t)] and the noise that goes with it, both shaped like x: x(t) = α·x0 + σ·eps."""

    x0: Array
    eps: Array


class Denoiser(Protocol):
    """Any pytree with a process and this call, which returns the `Denoised` of x (batch, …) at t, a scalar or (batch,),
    under cond, a pytree whose leaves lead with batch.
    """

    @property
    def sde(self) -> SDE: ...

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised: ...


def score_of(denoise: Denoiser, x: Array, t: Any, cond: Any = None) -> Array:
    """The score ∇ log p_t(x) = −eps/σ.

    Args:
        denoise: The denoiser.
        x: States (batch, …).
        t: Their time, a scalar or (batch,).
        cond: The condition of each sample, a pytree whose leaves lead with batch.

    Returns:
        The score, shaped like x.
    """
    return -denoise(x, t, cond).eps / expand(denoise.sde.sigma(t), x)


def _shaped_like(x: Array, value: Any, what: str) -> Array:
    """`value`, shaped like x: another shape could be broadcast against x, and mean nothing."""
    if jnp.shape(value) != jnp.shape(x):
        raise ValueError(
            f"{what} has shape {jnp.shape(value)} for x of shape {jnp.shape(x)}: it must be shaped like x, and what "
            "belongs to each sample must be given as cond"
        )
    return value


@pytree
class NetworkDenoiser:
    """The denoiser of a network.

    `net`, `parameterization` and `shape` are static and compared by value. A call raises ValueError where F has another
    shape than x.

    Args:
        sde: The process that the network knows.
        params: Its parameters, which may be None.
        net: `net(params, x, c_noise, *, cond, rng) -> F`, any callable with F shaped like x (batch, …), but for a
            parameterization whose `output` takes a part. `cond` and `rng` are passed only where present; `rng` turns on
            dropout.
        parameterization: What F means.
        shape: The shape of one sample, where it is known, so that sampling can start from the prior.

    Raises:
        TypeError: For a net that is no function, and a parameterization that is none.
    """

    sde: SDE
    params: Any
    net: Callable[..., Array] = static()
    parameterization: Parameterization = static(default=parameterizations.noise)
    shape: tuple[int, ...] | None = static(default=None)

    def __post_init__(self) -> None:
        # Of the static parts alone: transformations put into the others what they like.
        if not callable(self.net):
            raise TypeError(f"net={self.net!r} must be a function (params, x, c_noise), such as LinenNet(module)")
        if hasattr(self.net, "apply"):
            raise TypeError(f"net={type(self.net).__name__} is a module, not a function: give LinenNet(module)")
        if not isinstance(self.parameterization, Parameterization):
            given = repr(self.parameterization)
            raise TypeError(f"parameterization={given} must be a Parameterization, such as parameterizations.noise")

    def raw(self, x: Array, t: Any, cond: Any = None, rng: Array | None = None) -> Array:
        """The network's output F.

        Args:
            x: States (batch, …).
            t: Their time, a scalar or (batch,).
            cond: The condition of each sample; None is not passed on.
            rng: The key of the dropout; None turns it off.

        Returns:
            F, shaped like x.

        Raises:
            ValueError: Where F has another shape.
        """
        c_noise = jnp.broadcast_to(self.parameterization.c_noise(self.sde, t), x.shape[:1])
        present = {name: value for name, value in (("cond", cond), ("rng", rng)) if value is not None}
        scaled = expand(self.parameterization.scale(self.sde, t), x) * x
        output = self.parameterization.output(self.net(self.params, scaled, c_noise, **present), x)
        return _shaped_like(x, output, "the network's output")

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        raw = self.raw(x, t, cond)
        a, b, c, d = (expand(k, x) for k in self.parameterization.coefficients(self.sde, t))
        return Denoised(a * x + b * raw, c * x + d * raw)

    def eps_error(self, x0: Array, eps: Array, t: Any, cond: Any = None, rng: Array | None = None) -> Array:
        """eps − eps(x, t) at x = α·x0 + σ·eps, as d·(target − F): what denoising score matching squares.

        Args:
            x0: Data (batch, …).
            eps: Standard normal, shaped like x0.
            t: Times, a scalar or (batch,).
            cond: The condition of each sample; None is not passed on.
            rng: The key of the dropout; None turns it off.

        Returns:
            The error, shaped like x0.

        Raises:
            ValueError: Where F has another shape than x0.
        """
        raw = self.raw(self.sde.perturb(x0, t, eps), t, cond, rng)
        d = expand(self.parameterization.coefficients(self.sde, t)[3], x0)
        return d * (self.parameterization.target(self.sde, x0, eps, expand(t, x0)) - raw)


@pytree
class ScoreDenoiser:
    """The denoiser of a score, x0 = (x + σ²·score)/α and eps = −σ·score; made by `from_score`.

    Args:
        sde: The process.
        score: `score(x, t)`, or `score(x, t, cond)` where there is a condition, shaped like x (batch, …).
        shape: The shape of one sample, where it is known.
    """

    sde: SDE
    score: Any
    shape: tuple[int, ...] | None = static(default=None)

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        value = self.score(x, t) if cond is None else self.score(x, t, cond)
        value = _shaped_like(x, value, "the score")
        a, b, c, d = (expand(k, x) for k in parameterizations.score.coefficients(self.sde, t))
        return Denoised(a * x + b * value, c * x + d * value)


def from_score(sde: SDE, score: Callable[..., Array], shape: tuple[int, ...] | None = None) -> ScoreDenoiser:
    """The denoiser of a hand-written score. A call raises ValueError where the score has another shape than x.

    A plain function is compared by identity under jit; `jax.tree_util.Partial(function, arrays)` keeps its arrays as
    leaves.

    Args:
        sde: The process.
        score: `score(x, t)`, or `score(x, t, cond)` where there is a condition, shaped like x (batch, …).
        shape: The shape of one sample, so that sampling can start from the prior.

    Returns:
        The denoiser.

    Raises:
        TypeError: For an sde that is no process, or a score that is no function.
    """
    check_process(sde)
    if not callable(score):
        raise TypeError(f"score={score!r} must be a function of (x, t)")
    # A Partial within another would hide its arrays.
    function = score if isinstance(score, jax.tree_util.Partial) else jax.tree_util.Partial(score)
    return ScoreDenoiser(sde, function, shape)


@pytree
class Conditioned:
    """A denoiser with its conditions bound: what solvers are given, so that none of them passes `cond` along. Those
    that are given at a call are merged with them, by name, and win."""

    denoise: Denoiser
    cond: Any

    @property
    def sde(self) -> SDE:
        return self.denoise.sde

    @property
    def shape(self) -> tuple[int, ...] | None:
        return getattr(self.denoise, "shape", None)

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        return self.denoise(x, t, merge_conditions(self.cond, cond))


@pytree
class OnProcess:
    """A denoiser carried over to another process than its own; made by `on_process`."""

    denoise: Denoiser
    sde: SDE

    @property
    def shape(self) -> tuple[int, ...] | None:
        return getattr(self.denoise, "shape", None)

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Denoised:
        own = self.denoise.sde
        own_t = own.inverse_log_snr(self.sde.log_snr(t))
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        scale = jnp.hypot(own.alpha(own_t), own.sigma(own_t)) / jnp.hypot(alpha, sigma)
        x0, eps = self.denoise(expand(scale, x) * x, own_t, cond)
        # x = α·x0 + σ·eps to rounding, and where its own range of log-SNR ends: the component that is divided by the
        # greater factor follows from the other.
        alpha, sigma = expand(alpha, x), expand(sigma, x)
        return Denoised(
            jnp.where(alpha > sigma, (x - sigma * eps) / jnp.maximum(alpha, sigma), x0),
            jnp.where(alpha > sigma, eps, (x - alpha * x0) / jnp.maximum(alpha, sigma)),
        )


def on_process(denoise: Denoiser, sde: SDE) -> OnProcess:
    """`denoise`, which knows its own process, as a denoiser of `sde`: x(t) is the same datum under the same noise as on
    its own process at the time of equal log-SNR, but for a factor √(α² + σ²) (2206.00364, §2).

    So any solver and grid of one process serves networks of another. Where log-SNR leaves the range of the denoiser's
    own process it is asked at the end of its time. The result keeps `shape`.

    Args:
        denoise: The denoiser.
        sde: The process on which it is wanted.

    Returns:
        A denoiser whose process is `sde`.

    Raises:
        TypeError: For what is no denoiser or no process.
    """
    check_denoiser(denoise)
    check_process(sde)
    return OnProcess(denoise, sde)


def unbind(denoise: Denoiser, cond: Any = None) -> tuple[Denoiser, Any]:
    """A denoiser and its condition apart, for what evaluates one sample at a time: `cond`, or else the bound one, also
    where it is bound inside `on_process`."""
    if isinstance(denoise, Conditioned):
        return unbind(denoise.denoise, merge_conditions(denoise.cond, cond))
    if isinstance(denoise, OnProcess):
        bare, cond = unbind(denoise.denoise, cond)
        return OnProcess(bare, denoise.sde), cond
    return denoise, cond
