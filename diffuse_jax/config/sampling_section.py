"""`config.sampling` as a solver, a grid of times and a finish."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffuse_jax import sampling, solvers, times
from diffuse_jax.config.choices import choose, function_of, own_options, section
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.denoiser import from_score
from diffuse_jax.sde import SDE, VE, VP, DiscreteVE, DiscreteVP, SubVP

__all__ = [
    "CORRECTORS",
    "FIELDS",
    "SOLVERS",
    "SamplingPlan",
    "forget_unread",
    "sampling_plan",
    "settle",
    "value_of",
]


class _Choice(NamedTuple):
    """What makes a solver or a grid, and which field of `config.sampling` each of its arguments is. Where a field is
    None it is that of `_DEFAULTS`, or the argument's own default."""

    make: Callable[..., Any]
    fields: Mapping[str, str]

    def __call__(self, config: ConfigDict, *values: Any) -> Any:
        given = {argument: value_of(config, field) for argument, field in self.fields.items()}
        return self.make(*values, **{argument: value for argument, value in given.items() if value is not None})


_DEFAULTS = {"steps": 20}


def value_of(config: ConfigDict, field: str) -> Any:
    """A field of `config.sampling`, or what stands in for one that is None: None where that is the solver's own."""
    return _DEFAULTS.get(field) if config[field] is None else config[field]


def _reads(make: Callable[..., Any], *fields: str, **arguments: str) -> _Choice:
    """`make` of the `fields` under their own names, and of others under the names of `arguments`."""
    return _Choice(make, {field: field for field in fields} | arguments)


SOLVERS: dict[str, _Choice] = {
    "euler_maruyama": _reads(solvers.euler_maruyama, "kappa"),
    "euler_in_sigma": _reads(solvers.euler_in_sigma, "kappa"),
    "reverse_diffusion": _reads(solvers.reverse_diffusion),
    "ancestral": _reads(solvers.ancestral),
    "ddpm": _reads(partial(solvers.ancestral, variance="beta")),
    "ddim": _reads(solvers.ddim, "eta"),
    "heun": _reads(solvers.heun),
    "edm": _reads(solvers.edm, "churn", "churn_min", "churn_max", noise_scale="churn_noise"),
    "dpm_solver_single": _reads(solvers.dpm_solver_single, "order"),
    "dpm_solver_multi": _reads(solvers.dpm_solver_multi, "order"),
    "sde_dpm_solver": _reads(solvers.sde_dpm_solver, "order", "eta"),
    "sa_solver": _reads(solvers.sa_solver, "order", "eta"),
    "stochastic_runge_kutta": _reads(solvers.stochastic_runge_kutta, "eta"),
    "unipc": _reads(solvers.unipc, "order"),
    "deis": _reads(solvers.deis, "order"),
    "ipndm": _reads(solvers.ipndm, "order"),
    "adaptive": _reads(solvers.adaptive, "rtol", "atol", "max_evaluations"),
    # Annealed Langevin dynamics is a corrector that goes through the levels by itself.
    "annealed_langevin": _reads(solvers.annealed_langevin, "epsilon", "sigma_last", steps="corrector_steps"),
}
CORRECTORS: dict[str, _Choice] = {
    "langevin": _reads(solvers.langevin, "snr", steps="corrector_steps"),
    "batch_langevin": _reads(partial(solvers.langevin, norm="batch"), "snr", steps="corrector_steps"),
    "annealed_langevin": SOLVERS["annealed_langevin"],
}
#: Grids of `steps` steps down to t_min, and those that give `steps` times of a table or the times themselves.
_GRIDS: dict[str, _Choice] = {
    "uniform": _reads(times.uniform, "t_min", n="steps"),
    "log_snr": _reads(times.log_snr, "t_min", n="steps"),
    "karras": _reads(times.karras, "t_min", "rho", n="steps"),
    "quadratic": _reads(times.quadratic, "t_min", n="steps"),
    "cosine": _reads(times.cosine, "t_min", n="steps"),
    "leading": _reads(times.leading, n="steps"),
    "trailing": _reads(times.trailing, n="steps"),
    "linspace": _reads(times.linspace, n="steps"),
    "explicit": _reads(times.explicit, "times"),
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
#: The fields that the predictor and its grid read, and the corrector.
_OF_SCORE_SDE, _OF_ITS_CORRECTOR = ("kappa", "steps", "t_min"), ("snr", "corrector_steps")
_SHORT = {"pc": "reverse_diffusion+langevin"}
_FINISHES: dict[str, Callable[[ConfigDict], Callable[..., jax.Array]]] = {
    "mean": lambda config: sampling.last_mean,
    "denoise": lambda config: sampling.denoise_once,
    "state": lambda config: sampling.last_state,
}
_NOISES: dict[str, Callable[[ConfigDict], sampling.NoiseSource]] = {
    "keyed": lambda config: sampling.keyed_noise,
    "brownian": lambda config: sampling.brownian_noise,
}


@dataclass(frozen=True)
class SamplingPlan:
    """How samples are drawn.

    Args:
        name: The name of the solver.
        solver: The solver.
        times: The times that it goes through, falling.
        finish: What is taken at the end, such as `sampling.last_mean`.
        noise: Where its noise comes from, such as `sampling.keyed_noise`.
    """

    name: str
    solver: solvers.Solver
    times: jax.Array
    finish: Callable[..., jax.Array]
    noise: sampling.NoiseSource


def sampling_plan(experiment: ConfigDict, sde: SDE) -> SamplingPlan:
    """The plan of `sampling` of an experiment's config, with what is one's own in `own`. ConfigError naming the field
    that cannot be met, or is not read."""
    config = experiment.sampling
    name = _SHORT.get(config.solver, config.solver)
    predictor, plus, corrector = name.partition("+")
    make = _score_sde if name.startswith(_SCORE_SDE) else _solver_and_grid
    try:
        solver, grid = make(experiment, sde, predictor, corrector if plus else None)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.sampling: {error}") from error
    for field in sorted(_unread(config)):
        if config[field] is not None:
            raise ConfigError(
                f"config.sampling.{field}={config[field]} is not read by {name} on grid={config.grid!r}, but by "
                f"{', '.join(_readers(field))}: leave it out"
            )
    finish, noise = function_of(experiment, _FINISHES, "finish"), function_of(experiment, _NOISES, "noise")
    return SamplingPlan(name, solver, grid, finish, noise)


def settle(config: ConfigDict, before: tuple[str, str], given: Collection[str]) -> None:
    """Empties the fields of `config.sampling` that its solver and grid do not read, where these have changed; with
    another solver also order and eta, which mean something else to each.

    Args:
        config: The section `config.sampling`, which is changed.
        before: (solver, grid) before the change.
        given: Flags, "--config.sampling.NAME", whose fields stay as they are.
    """
    if (config.solver, config.grid) == before:
        return
    other = {"order", "eta"} if config.solver != before[0] else set()
    for field in _unread(config) | other:
        if f"--config.sampling.{field}" not in given:
            config[field] = None


def forget_unread(config: ConfigDict) -> None:
    """Empties the fields of `config.sampling` that its solver and grid do not read, as runs recorded them once."""
    for field in _unread(config):
        config[field] = None


def _unread(config: ConfigDict) -> set[str]:
    """The fields that some solver or grid reads, and those of `config.sampling` do not; none of an unknown name."""
    predictor, _, corrector = _SHORT.get(config.solver, config.solver).partition("+")
    if predictor.startswith(_SCORE_SDE):
        return FIELDS - {*_OF_SCORE_SDE, *(_OF_ITS_CORRECTOR if corrector else ())}
    own = _Choice(lambda: None, {}), _Choice(lambda: None, {"n": "steps"})
    solver = own[0] if ":" in predictor else SOLVERS.get(predictor)
    grid = own[1] if ":" in config.grid else _GRIDS.get(config.grid)
    moves = own[0] if ":" in corrector else CORRECTORS.get(corrector)
    used = [solver, grid, *([moves] if corrector else [])]
    if None in used:
        return set()
    return FIELDS - {field for choice in used if choice is not None for field in choice.fields.values()}


def _readers(field: str) -> list[str]:
    tables = {"": SOLVERS, "+": CORRECTORS, "grid=": _GRIDS}
    named = [
        f"{sign}{name}" for sign, table in tables.items() for name in table if field in table[name].fields.values()
    ]
    score_sde = [f"{_SCORE_SDE}PREDICTOR"] if field in _OF_SCORE_SDE else []
    return [*named, *score_sde, *([f"{_SCORE_SDE}PREDICTOR+CORRECTOR"] if field in _OF_ITS_CORRECTOR else [])]


#: All fields that one solver or grid reads and another does not.
FIELDS = {
    field for table in (SOLVERS, CORRECTORS, _GRIDS) for choice in table.values() for field in choice.fields.values()
}


def _solver_and_grid(
    experiment: ConfigDict, sde: SDE, predictor: str, corrector: str | None
) -> tuple[solvers.Solver, jax.Array]:
    config = experiment.sampling
    solver = _solver(experiment, SOLVERS, predictor)
    if corrector is not None:
        solver = solvers.predictor_corrector(solver, _solver(experiment, CORRECTORS, corrector))
    if config.grid == "explicit" and config.times is None:
        raise ConfigError(
            "config.sampling.times=None must be the times of the grid, with config.sampling.grid='explicit'"
        )
    grid = _grid(experiment, sde)
    if predictor == "annealed_langevin" and corrector is None:
        # It moves x at the times from which steps begin: the last one too.
        grid = jnp.append(grid, grid[-1])
    return solver, grid


def _solver(experiment: ConfigDict, table: Mapping[str, _Choice], name: str) -> solvers.Solver:
    """A solver or corrector: one's own ("module:name") is called with its options, those of `config.own.solver`."""
    make = choose(table, name, "sampling.solver")
    if ":" not in name:
        return make(experiment.sampling)
    made = section(make, "own.solver", **own_options(experiment, "solver"))
    if not isinstance(made, solvers.Solver):
        raise ConfigError(f"config.sampling.solver={name!r} made a {type(made).__name__}, no diffuse_jax.Solver")
    return made


def _grid(experiment: ConfigDict, sde: SDE) -> jax.Array:
    """The times: one's own grid is called as (sde, n) with its options, those of `config.own.grid`."""
    config = experiment.sampling
    make = choose(_GRIDS, config.grid, "sampling.grid")
    if ":" not in config.grid:
        return make(config, sde)
    steps = value_of(config, "steps")
    times = np.asarray(section(make, "own.grid", sde, steps, **own_options(experiment, "grid")))
    falls = times.ndim == 1 and len(times) > 1 and np.isfinite(times).all() and (np.diff(times) < 0).all()
    if not (falls and times[-1] > 0):
        raise ConfigError(f"config.sampling.grid={config.grid!r} must give falling times above 0, (n + 1,): {times}")
    return jnp.asarray(times)


def _score_sde(
    experiment: ConfigDict, sde: SDE, predictor: str, corrector: str | None
) -> tuple[solvers.Solver, jax.Array]:
    config = experiment.sampling
    if type(sde) not in _SCORE_SDE_OF:
        names = ", ".join(kind.__name__ for kind in _SCORE_SDE_OF)
        raise ConfigError(f"config.sampling.solver={config.solver!r} is not for {type(sde).__name__}, but for {names}")
    if config.grid != "uniform":
        raise ConfigError(
            f"config.sampling.grid={config.grid!r} is not read by {predictor}, whose times are those of score_sde: "
            "leave it at 'uniform'"
        )
    if config.kappa not in (None, 0, 1):
        raise ConfigError(f"config.sampling.kappa={config.kappa} must be 1 (the reverse SDE) or 0 (the flow)")
    discretization, t_min = _SCORE_SDE_OF[type(sde)]
    options = {"probability_flow": config.kappa == 0}
    make = _reads(partial(solvers.score_sde, **options), "snr", steps="corrector_steps")
    solver = make(config, predictor.removeprefix(_SCORE_SDE), corrector, discretization)
    grid = times.score_sde(sde, value_of(config, "steps"), t_min if config.t_min is None else config.t_min)
    # It says what it cannot do with these steps when it begins: here, and not where it is compiled.
    solver.init(jnp.zeros(1), grid, from_score(sde, lambda x, t: -x))
    return solver, grid
