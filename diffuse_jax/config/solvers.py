"""`config.sampling` as a solver, a grid of times and a finish."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffuse_jax import sampling, solvers, times
from diffuse_jax.config.files import ConfigError
from diffuse_jax.denoiser import from_score
from diffuse_jax.sde import SDE, VE, VP, DiscreteVE, DiscreteVP, SubVP

__all__ = ["CORRECTORS", "SOLVERS", "SamplingPlan", "choose", "sampling_plan"]


def _given(config: ConfigDict, **fields: str) -> dict[str, Any]:
    """Arguments of a solver from the fields of those names; its own defaults stand where they are None."""
    return {name: config[field] for name, field in fields.items() if config[field] is not None}


SOLVERS: dict[str, Callable[[ConfigDict], solvers.Solver]] = {
    "euler_maruyama": lambda c: solvers.euler_maruyama(c.kappa),
    "euler_in_sigma": lambda c: solvers.euler_in_sigma(c.kappa),
    "reverse_diffusion": lambda c: solvers.reverse_diffusion(),
    "ancestral": lambda c: solvers.ancestral(),
    "ddpm": lambda c: solvers.ancestral(variance="beta"),
    "ddim": lambda c: solvers.ddim(**_given(c, eta="eta")),
    "heun": lambda c: solvers.heun(),
    "edm": lambda c: solvers.edm(c.churn, c.churn_min, c.churn_max, c.churn_noise),
    "dpm_solver_single": lambda c: solvers.dpm_solver_single(**_given(c, order="order")),
    "dpm_solver_multi": lambda c: solvers.dpm_solver_multi(**_given(c, order="order")),
    "sde_dpm_solver": lambda c: solvers.sde_dpm_solver(**_given(c, order="order", eta="eta")),
    "sa_solver": lambda c: solvers.sa_solver(**_given(c, order="order", eta="eta")),
    "stochastic_runge_kutta": lambda c: solvers.stochastic_runge_kutta(**_given(c, eta="eta")),
    "unipc": lambda c: solvers.unipc(**_given(c, order="order")),
    "deis": lambda c: solvers.deis(**_given(c, order="order")),
    "ipndm": lambda c: solvers.ipndm(**_given(c, order="order")),
    "adaptive": lambda c: solvers.adaptive(c.rtol, c.atol, c.max_evaluations),
    # Annealed Langevin dynamics is a corrector that goes through the levels by itself.
    "annealed_langevin": lambda c: _annealed_langevin(c),
}
CORRECTORS: dict[str, Callable[[ConfigDict], solvers.Solver]] = {
    "langevin": lambda c: solvers.langevin(c.snr, c.corrector_steps),
    "batch_langevin": lambda c: solvers.langevin(c.snr, c.corrector_steps, norm="batch"),
    "annealed_langevin": lambda c: _annealed_langevin(c),
}
#: The solvers that read a field which is empty unless given.
_READ_BY = {
    "order": ("dpm_solver_single", "dpm_solver_multi", "sde_dpm_solver", "sa_solver", "unipc", "deis", "ipndm"),
    "eta": ("ddim", "sde_dpm_solver", "sa_solver", "stochastic_runge_kutta"),
}
#: "score_sde:PREDICTOR" and "score_sde:PREDICTOR+CORRECTOR" are score_sde's own sampler of these processes, with its
#: discretization of each, and where it ends if not where the process does.
_SCORE_SDE = "score_sde:"
_SCORE_SDE_OF: dict[type[SDE], tuple[str, float | None]] = {
    VP: ("vp", None),
    SubVP: ("euler", None),
    VE: ("ve", None),
    DiscreteVP: ("ddpm", 1e-3),
    DiscreteVE: ("smld", 1e-5),
}
_SHORT = {"pc": "reverse_diffusion+langevin"}
#: Grids of `steps` steps down to t_min, and those that give `steps` times of a table or the times themselves.
_GRIDS: dict[str, Callable[[SDE, ConfigDict], jax.Array]] = {
    "uniform": lambda sde, c: times.uniform(sde, c.steps, c.t_min),
    "log_snr": lambda sde, c: times.log_snr(sde, c.steps, c.t_min),
    "karras": lambda sde, c: times.karras(sde, c.steps, c.t_min, rho=c.rho),
    "quadratic": lambda sde, c: times.quadratic(sde, c.steps, c.t_min),
    "cosine": lambda sde, c: times.cosine(sde, c.steps, c.t_min),
    "leading": lambda sde, c: times.leading(sde, c.steps),
    "trailing": lambda sde, c: times.trailing(sde, c.steps),
    "linspace": lambda sde, c: times.linspace(sde, c.steps),
    "explicit": lambda sde, c: times.explicit(sde, _times(c)),
}
_OF_TIMES = ("leading", "trailing", "linspace", "explicit")
_FINISHES = {"mean": sampling.last_mean, "denoise": sampling.denoise_once, "state": sampling.last_state}
_NOISES: dict[str, sampling.NoiseSource] = {"keyed": sampling.keyed_noise, "brownian": sampling.brownian_noise}


def _times(config: ConfigDict) -> tuple[float, ...]:
    if config.times is None:
        raise ConfigError(
            "config.sampling.times=None must be the times of the grid, with config.sampling.grid='explicit'"
        )
    return config.times


def _annealed_langevin(config: ConfigDict) -> solvers.Solver:
    return solvers.annealed_langevin(config.epsilon, config.sigma_last, config.corrector_steps)


@dataclass(frozen=True)
class SamplingPlan:
    """How samples are drawn: a solver by its name, the times it goes through, what is taken at the end, and the
    noise."""

    name: str
    solver: solvers.Solver
    times: jax.Array
    finish: Callable[..., jax.Array]
    noise: sampling.NoiseSource


def sampling_plan(config: ConfigDict, sde: SDE) -> SamplingPlan:
    """The plan of `config.sampling`; ConfigError naming the field that cannot be met."""
    name = _SHORT.get(config.solver, config.solver)
    predictor, plus, corrector = name.partition("+")
    if config.steps < 1:
        raise ConfigError(f"config.sampling.steps={config.steps} must be at least 1")
    if config.corrector_steps < 1:
        raise ConfigError(f"config.sampling.corrector_steps={config.corrector_steps} must be at least 1")
    for field, readers in _READ_BY.items():
        known = predictor in SOLVERS or predictor.startswith(_SCORE_SDE)
        if config[field] is not None and known and predictor not in readers:
            raise ConfigError(
                f"config.sampling.{field}={config[field]} is not read by {predictor}, but by {', '.join(readers)}"
            )
    if config.t_min is not None and config.grid in _OF_TIMES:
        raise ConfigError(f"config.sampling.t_min={config.t_min} is not read by config.sampling.grid={config.grid!r}")
    make = _score_sde if name.startswith(_SCORE_SDE) else _solver_and_grid
    try:
        solver, grid = make(config, sde, predictor, corrector if plus else None)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.sampling: {error}") from error
    finish = choose(_FINISHES, config.finish, "sampling.finish")
    return SamplingPlan(name, solver, grid, finish, choose(_NOISES, config.noise, "sampling.noise"))


def _solver_and_grid(
    config: ConfigDict, sde: SDE, predictor: str, corrector: str | None
) -> tuple[solvers.Solver, jax.Array]:
    make_solver, make_grid = choose(SOLVERS, predictor, "sampling.solver"), choose(_GRIDS, config.grid, "sampling.grid")
    solver = make_solver(config)
    if corrector is not None:
        solver = solvers.predictor_corrector(solver, choose(CORRECTORS, corrector, "sampling.solver")(config))
    grid = make_grid(sde, config)
    if predictor == "annealed_langevin" and corrector is None:
        # It moves x at the times from which steps begin: the last one too.
        grid = jnp.append(grid, grid[-1])
    return solver, grid


def _score_sde(config: ConfigDict, sde: SDE, predictor: str, corrector: str | None) -> tuple[solvers.Solver, jax.Array]:
    if type(sde) not in _SCORE_SDE_OF:
        names = ", ".join(kind.__name__ for kind in _SCORE_SDE_OF)
        raise ConfigError(f"config.sampling.solver={config.solver!r} is not for {type(sde).__name__}, but for {names}")
    if config.grid != "uniform":
        raise ConfigError(
            f"config.sampling.grid={config.grid!r} is not read by {predictor}, whose times are those of score_sde: "
            "leave it at 'uniform'"
        )
    if config.kappa not in (0, 1):
        raise ConfigError(f"config.sampling.kappa={config.kappa} must be 1 (the reverse SDE) or 0 (the flow)")
    discretization, t_min = _SCORE_SDE_OF[type(sde)]
    solver = solvers.score_sde(
        predictor.removeprefix(_SCORE_SDE),
        corrector,
        discretization,
        snr=config.snr,
        steps=config.corrector_steps,
        probability_flow=config.kappa == 0,
    )
    grid = times.score_sde(sde, config.steps, t_min if config.t_min is None else config.t_min)
    # It says what it cannot do with these steps when it begins: here, and not where it is compiled.
    solver.init(jnp.zeros(1), grid, from_score(sde, lambda x, t: -x))
    return solver, grid


def choose(table: dict[str, Any], name: str, field: str) -> Any:
    """The entry of that name; ConfigError with the names there are."""
    if name not in table:
        raise ConfigError(f"config.{field}={name!r} must be one of {', '.join(table)}")
    return table[name]
