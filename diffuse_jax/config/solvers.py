"""`config.sampling` as a solver, a grid of times and a finish."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from diffuse_jax import sampling, solvers, times
from diffuse_jax.config.files import ConfigError
from diffuse_jax.sde import SDE

__all__ = ["CORRECTORS", "SOLVERS", "SamplingPlan", "choose", "sampling_plan"]

SOLVERS: dict[str, Callable[[ConfigDict], solvers.Solver]] = {
    "euler_maruyama": lambda c: solvers.euler_maruyama(),
    "reverse_diffusion": lambda c: solvers.reverse_diffusion(),
    "ancestral": lambda c: solvers.ancestral(),
    "ddpm": lambda c: solvers.ancestral(variance="beta"),
    "ddim": lambda c: solvers.ddim(c.eta),
    "heun": lambda c: solvers.heun(),
    "adaptive": lambda c: solvers.adaptive(c.rtol, c.atol),
}
CORRECTORS: dict[str, Callable[[ConfigDict], solvers.Solver]] = {
    "langevin": lambda c: solvers.langevin(c.snr, c.corrector_steps),
    "batch_langevin": lambda c: solvers.langevin(c.snr, c.corrector_steps, norm="batch"),
    "annealed_langevin": lambda c: solvers.annealed_langevin(c.epsilon, c.sigma_last, c.corrector_steps),
}
_SHORT = {"pc": "reverse_diffusion+langevin"}
_GRIDS = {"uniform": times.uniform, "log_snr": times.log_snr}
_FINISHES = {"mean": sampling.last_mean, "denoise": sampling.denoise_once, "state": sampling.last_state}


@dataclass(frozen=True)
class SamplingPlan:
    """How samples are drawn: a solver by its name, the times it goes through, and what is taken at the end."""

    name: str
    solver: solvers.Solver
    times: jax.Array
    finish: Callable[..., jax.Array]


def sampling_plan(config: ConfigDict, sde: SDE) -> SamplingPlan:
    """The plan of `config.sampling`; ConfigError naming the field that cannot be met."""
    name = _SHORT.get(config.solver, config.solver)
    predictor, plus, corrector = name.partition("+")
    if config.steps < 1:
        raise ConfigError(f"config.sampling.steps={config.steps} must be at least 1")
    solver = choose(SOLVERS, predictor, "sampling.solver")(config)
    if plus:
        if solver.evaluations is None:
            raise ConfigError(f"config.sampling.solver={name!r}: {predictor} takes no corrector")
        if config.corrector_steps < 1:
            raise ConfigError(f"config.sampling.corrector_steps={config.corrector_steps} must be at least 1")
        solver = solvers.predictor_corrector(solver, choose(CORRECTORS, corrector, "sampling.solver")(config))
    make_grid = choose(_GRIDS, config.grid, "sampling.grid")
    try:
        grid = make_grid(sde, config.steps, config.t_min)
    except ValueError as error:
        raise ConfigError(f"config.sampling: {error}") from error
    return SamplingPlan(name, solver, grid, choose(_FINISHES, config.finish, "sampling.finish"))


def choose(table: dict[str, Any], name: str, field: str) -> Any:
    """The entry of that name; ConfigError with the names there are."""
    if name not in table:
        raise ConfigError(f"config.{field}={name!r} must be one of {', '.join(table)}")
    return table[name]
