"""Denoising score matching of a network: what makes a score-based generative model of it (Song et al., 2011.13456).

Beside what `noised_rows` draws of the key of a row, tag 3 makes its augmentation, and 4 says whether it loses its
conditions.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffuse_jax import parameterizations
from diffuse_jax.codecs import Codec, Pixels
from diffuse_jax.conditions import Condition, drop_conditions, null_row
from diffuse_jax.data.augment import augment
from diffuse_jax.denoiser import Conditioned, NetworkDenoiser
from diffuse_jax.likelihood import hutchinson_trace, log_prob
from diffuse_jax.losses import denoising_score_matching, sigma_squared, uniform_times
from diffuse_jax.methods.defaults import ema_or_default, optimizer_or_default
from diffuse_jax.methods.noising import Times, noised_rows
from diffuse_jax.parameterizations import Parameterization
from diffuse_jax.sampling import NoiseSource, count_evaluations, denoise_once, keyed_noise, last_mean, solve
from diffuse_jax.sde import SDE
from diffuse_jax.solvers import Solver
from diffuse_jax.training import Density, Draw, Drawn, Draws, Likelihoods, LossOutput, Method, Update
from diffuse_jax.training.method import tagged

__all__ = ["denoising", "flow_log_prob", "objective", "solver_draw"]

Weight = Callable[[SDE, jax.Array], jax.Array]


def denoising(
    sde: SDE,
    net: Any,
    codec: Codec,
    *,
    optimizer: optax.GradientTransformation | None = None,
    ema: Callable[[jax.Array], jax.Array] | None = None,
    parameterization: Parameterization = parameterizations.noise,
    conditions: Mapping[str, Condition] | None = None,
    draw: Draw | None = None,
    log_prob: Density | None = None,
    **options: Any,
) -> Method:
    """Denoising score matching: one network, one loss.

    Args:
        sde: The process.
        net: The network, such as `LinenNet(module)`: `init(key, shape, cond)` makes its parameters, and called as
            `net(params, x, c_noise, *, cond, rng)` it returns an array like x.
        codec: Between the data and the process's space, such as `codecs.of_dataset(dataset)`.
        optimizer: The optimizer; None is `adam(2e-4, warmup=1000, clip=1.0)`.
        ema: The decay of the average; None is `ema_decay(rate=0.999)` that forgets its start.
        parameterization: What the network's output means, and what it is told of the time.
        conditions: What is known of the conditions of the data, by name.
        draw: How samples are drawn, of `solver_draw`; None leaves that to the caller.
        log_prob: The log-likelihood of rows, of `flow_log_prob`; None leaves that to the caller.
        options: Those of `objective`.

    Returns:
        The method. Its model is a `NetworkDenoiser`.
    """
    known = dict(conditions or {})

    def denoiser(params: Any, extra: Any) -> NetworkDenoiser:
        return NetworkDenoiser(sde, params, net, parameterization, codec.shape)

    loss = objective(denoiser, codec, conditions=known, **options)
    heldout = objective(denoiser, codec, conditions=known, train=False, **options)
    return Method(
        init=lambda key: (net.init(key, codec.shape, **({"cond": null_row(known)} if known else {})), {}),
        updates=(Update(loss, optimizer_or_default(optimizer)),),
        ema=ema_or_default(ema),
        model=denoiser,
        heldout={"loss": heldout},
        denoiser=denoiser,
        draw=draw,
        log_prob=log_prob,
    )


def objective(
    denoiser: Callable[[Any, Any], NetworkDenoiser],
    codec: Codec,
    *,
    weight: Weight = sigma_squared,
    times: Times = uniform_times,
    stratified: bool = True,
    t_min: float = 1e-5,
    half_sum: bool = False,
    augmentation: float = 0.0,
    conditions: Mapping[str, Condition] | None = None,
    drop: float = 0.0,
    train: bool = True,
) -> Callable[[Any, Any, Any, Draws], LossOutput]:
    """Denoising score matching as the loss of an `Update`.

    Args:
        denoiser: `denoiser(params, extra)` makes the denoiser.
        codec: What makes x and conditions of a batch.
        weight: `weight(sde, t)` of the score's error, as in `diffuse_jax.losses`.
        times: `times(u, sde, t_min) -> (times, density)` of unit numbers u, as in `diffuse_jax.losses`.
        stratified: Spread the times of a batch evenly.
        t_min: The least time.
        half_sum: A row's sum over its dimensions is halved, else divided by their number.
        augmentation: The probability of each transformation of `diffuse_jax.data.augment`, of which the network is
            told as its argument `augment` (EDM, 2206.00364, appendix F.2).
        conditions: What is known of the conditions by name, where some are dropped.
        drop: The probability with which a row loses its conditions (Ho & Salimans, 2207.12598).
        train: False leaves out what is done to rows in training alone: the codec's augmentation, `augmentation` and
            `drop`. Dropout is off where the draws have no rng.

    Returns:
        The loss.
    """
    augmentation, drop = (augmentation, drop) if train else (0.0, 0.0)

    def loss(params: Any, extra: Any, batch: Any, draws: Draws) -> LossOutput:
        denoise = denoiser(params, extra)
        x0, cond, eps, t, density = noised_rows(
            denoise.sde, codec, batch, draws, times=times, stratified=stratified, t_min=t_min, train=train
        )
        if augmentation:
            x0, done = augment(draws.stream(3), x0, augmentation)
            denoise = dataclasses.replace(denoise, net=functools.partial(denoise.net, augment=done))
        if drop and cond:
            cond = drop_conditions(draws.stream(4), cond, drop, conditions or {})
        each = denoising_score_matching(denoise, x0, eps, t, weight=weight, cond=cond, rng=draws.rng)
        return LossOutput(each / density * (0.5 if half_sum else 1 / np.prod(x0.shape[1:])))

    return loss


def solver_draw(
    sde: SDE,
    solver: Solver,
    times: jax.Array,
    *,
    finish: Callable[..., jax.Array] = last_mean,
    noise: NoiseSource = keyed_noise,
    net: Any = None,
    facts: Mapping[str, Any] | None = None,
) -> Draw:
    """Samples of a denoiser by a solver on a grid of times.

    Args:
        sde: The process of the denoiser.
        solver: The solver.
        times: The grid (N + 1,).
        finish: What is returned of a solution, as in `diffuse_jax.sample`.
        noise: What makes the draws of a step, as in `diffuse_jax.sample`.
        net: A network in place of the denoiser's, with the same parameters, such as one that computes in bfloat16; None
            keeps it.
        facts: What decides what is drawn, in words.

    Returns:
        The `draw` of a method whose model is a `NetworkDenoiser`.
    """

    def draw(denoise: NetworkDenoiser, keys: jax.Array, cond: Any, path: bool) -> Drawn:
        denoise = denoise if net is None else dataclasses.replace(denoise, net=net)
        solution = solve(keys, denoise, solver, times, cond=cond, noise=noise, path=path)
        x = finish(solution, times[-1], Conditioned(denoise, cond))
        count = count_evaluations(solver, times, solution.memory) + (finish is denoise_once)
        each = jnp.broadcast_to(count, keys.shape[:1])
        return Drawn(x, each, None if solution.path is None else jnp.moveaxis(solution.path, 0, 1))

    frames = 1 / np.sqrt(np.square(sde.alpha(times)) + np.square(sde.sigma(times)))
    return Draw(draw, dict(facts or {}), frames)


def flow_log_prob(
    codec: Pixels,
    *,
    trace: Callable[..., Any] = hutchinson_trace,
    probes: int = 1,
    t_min: float | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    facts: Mapping[str, Any] | None = None,
) -> Density:
    """The log-likelihood of the probability flow, as the `log_prob` of a method whose model is a denoiser.

    Discrete data are dequantized uniformly: of them it bounds a log probability from below.

    Args:
        codec: The pixels or vectors that the model is one of.
        trace: `likelihood.exact_trace`, `hutchinson_trace` or `gaussian_trace`.
        probes: Probes of an estimated trace for each row.
        t_min: The time of which x(t_min) is the data; None is the process's own.
        rtol: The relative tolerance of the ODE solver.
        atol: The absolute tolerance.
        facts: What decides the numbers, in words.

    Returns:
        The `log_prob` of a method whose model is a denoiser.
    """
    spread = dataclasses.replace(codec, flip=False, dequantize=codec.levels is not None)
    solve: dict[str, Any] = {"trace": trace, "probes": probes, "t_min": t_min, "rtol": rtol, "atol": atol}

    def of_rows(denoise: Any, batch: Any, keys: jax.Array) -> Likelihoods:
        # Stream 0 of a key makes the probes of the trace, stream 1 the dequantization.
        x, cond = spread.encode(batch, tagged(keys, 1), train=True)
        found = log_prob(denoise, x, keys=keys, cond=cond, **solve)
        return Likelihoods(found.log_prob, found.error, codec.bits_per_dim(found.log_prob), found.evaluations)

    return Density(of_rows, dict(facts or {}))
