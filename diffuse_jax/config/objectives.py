"""`config.loss` and `config.data` as what a run descends, and what it is judged by on held-out rows."""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from diffuse_jax import losses
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.sampling_section import choose
from diffuse_jax.denoiser import NetworkDenoiser
from diffuse_jax.nets import LinenNet
from diffuse_jax.parameterizations import Parameterization
from diffuse_jax.sde import SDE
from diffuse_jax.training.objectives import Objective, objective

__all__ = ["objectives"]


_WEIGHTS: dict[str, Callable[[ConfigDict], Callable[..., jax.Array]]] = {
    "sigma2": lambda config: losses.sigma_squared,
    "g2": lambda config: losses.g_squared,
    "edm": lambda config: losses.edm_weight(config.parameterization.sigma_data),
}
_TIMES: dict[str, Callable[[ConfigDict], Callable[..., tuple[jax.Array, jax.Array]]]] = {
    "uniform": lambda config: losses.uniform_times,
    "importance": lambda config: losses.importance_times,
    "table": lambda config: losses.table_times,
    "log_normal": lambda config: losses.log_normal_times(config.loss.p_mean, config.loss.p_std),
}
_REDUCTIONS = {"mean": False, "half_sum": True}


def objectives(
    config: ConfigDict,
    sde: SDE,
    net: LinenNet,
    parameterization: Parameterization,
    shape: tuple[int, ...],
    levels: int | None,
) -> tuple[Objective, Objective]:
    """What training descends, and the same without flips, dequantization and augmentation, for rows of that `shape` and
    so many grey levels. ConfigError naming the field that cannot be met."""
    c = config.loss
    if c.times == "table" and not hasattr(sde, "table_times"):
        raise ConfigError("config.loss.times='table' needs a process of a table: config.sde.name='ddpm' or 'smld'")
    if not 0 < c.t_min < sde.T:
        raise ConfigError(f"config.loss.t_min={c.t_min} must lie between 0 and {sde.T}")
    if len(shape) == 1 and (config.data.flip or config.data.dequantize or config.data.augment):
        raise ConfigError("config.data.flip, dequantize and augment are for images; the data are vectors")
    weight, times = choose(_WEIGHTS, c.weight, "loss.weight"), choose(_TIMES, c.times, "loss.times")
    half_sum = choose(_REDUCTIONS, c.reduction, "loss.reduction")
    try:
        weight, times = weight(config), times(config)
    except ValueError as error:
        raise ConfigError(f"config.loss: {error}") from error

    def denoiser(params: Any) -> NetworkDenoiser:
        return NetworkDenoiser(sde, params, net, parameterization, shape)

    def of(**spread: Any) -> Objective:
        return objective(
            denoiser,
            weight=weight,
            draw_times=times,
            stratified=c.stratified,
            t_min=c.t_min,
            half_sum=half_sum,
            levels=levels,
            centered=config.data.centered,
            **spread,
        )

    data = config.data
    return of(flip=data.flip, dequantize=data.dequantize, augmentation=data.augment), of()
