"""`config.sampling` is the solver, the grid and the noise of the same names in the library."""

from typing import Any

import chex
import pytest

from diffuse_jax import sampling, solvers, times
from diffuse_jax.config import ConfigError, base, override, sampling_plan
from diffuse_jax.config.sampling_section import CORRECTORS, FIELDS, SOLVERS, forget_unread
from diffuse_jax.sde import EDM, VP, DiscreteVP, linear_betas


def plan(sde: Any = None, **fields: Any) -> Any:
    config = base()
    config.sampling.update(fields)
    return sampling_plan(config, VP() if sde is None else sde)


@pytest.mark.parametrize(
    ("fields", "solver"),
    [
        ({"solver": "euler_maruyama", "kappa": 0.5}, solvers.euler_maruyama(0.5)),
        ({"solver": "euler_in_sigma", "kappa": 0.5}, solvers.euler_in_sigma(0.5)),
        ({"solver": "ddpm"}, solvers.ancestral("beta")),
        ({"solver": "ddim"}, solvers.ddim()),
        ({"solver": "ddim", "eta": 0.7}, solvers.ddim(0.7)),
        (
            {"solver": "edm", "churn": 30.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003},
            solvers.edm(30.0, 0.05, 50.0, 1.003),
        ),
        ({"solver": "dpm_solver_single", "order": 3}, solvers.dpm_solver_single(3)),
        ({"solver": "dpm_solver_multi"}, solvers.dpm_solver_multi()),
        ({"solver": "dpm_solver_multi", "order": 3}, solvers.dpm_solver_multi(3)),
        ({"solver": "sde_dpm_solver", "order": 3, "eta": 0.5}, solvers.sde_dpm_solver(3, 0.5)),
        ({"solver": "sa_solver", "order": 2, "eta": 0.5}, solvers.sa_solver(2, 0.5)),
        ({"solver": "stochastic_runge_kutta", "eta": 0.5}, solvers.stochastic_runge_kutta(0.5)),
        ({"solver": "unipc", "order": 3}, solvers.unipc(3)),
        ({"solver": "deis", "order": 2}, solvers.deis(2)),
        ({"solver": "ipndm", "order": 3}, solvers.ipndm(3)),
        (
            {"solver": "adaptive", "rtol": 1e-3, "atol": 1e-4, "max_evaluations": 99},
            solvers.adaptive(1e-3, 1e-4, 99),
        ),
        (
            {"solver": "annealed_langevin", "epsilon": 1e-3, "corrector_steps": 5},
            solvers.annealed_langevin(1e-3, None, 5),
        ),
        (
            {"solver": "unipc+langevin", "snr": 0.1, "corrector_steps": 2},
            solvers.predictor_corrector(solvers.unipc(), solvers.langevin(0.1, 2)),
        ),
    ],
    ids=lambda value: value["solver"] if isinstance(value, dict) else "",
)
def test_a_named_solver_is_the_librarys(fields: dict[str, Any], solver: Any) -> None:
    chex.assert_trees_all_equal(plan(**fields).solver, solver)


@pytest.mark.parametrize(
    ("fields", "grid"),
    [
        ({"grid": "uniform"}, lambda sde: times.uniform(sde, 20)),
        ({"grid": "log_snr", "steps": 6, "t_min": 0.01}, lambda sde: times.log_snr(sde, 6, 0.01)),
        ({"grid": "karras", "steps": 6, "rho": 5.0}, lambda sde: times.karras(sde, 6, rho=5.0)),
        ({"grid": "quadratic", "steps": 6}, lambda sde: times.quadratic(sde, 6)),
        ({"grid": "cosine", "steps": 6}, lambda sde: times.cosine(sde, 6)),
        ({"grid": "leading", "steps": 6}, lambda sde: times.leading(sde, 6)),
        ({"grid": "trailing", "steps": 6}, lambda sde: times.trailing(sde, 6)),
        ({"grid": "linspace", "steps": 6}, lambda sde: times.linspace(sde, 6)),
        ({"grid": "explicit", "times": (0.9, 0.5, 0.1)}, lambda sde: times.explicit(sde, (0.9, 0.5, 0.1))),
    ],
    ids=lambda value: value["grid"] if isinstance(value, dict) else "",
)
def test_a_named_grid_is_the_librarys(fields: dict[str, Any], grid: Any) -> None:
    for sde in (VP(), EDM(T=1.0), DiscreteVP(linear_betas())):
        chex.assert_trees_all_equal(plan(sde, **fields).times, grid(sde))


def test_annealed_langevin_by_itself_visits_the_last_level() -> None:
    grid = plan(solver="annealed_langevin", steps=6).times
    assert len(grid) == 8 and grid[-1] == grid[-2] == VP().t_min


def test_a_named_noise_is_the_librarys() -> None:
    assert plan().noise is sampling.keyed_noise and plan(noise="brownian").noise is sampling.brownian_noise


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "unipc", "order": 7}, "config.sampling: unipc: order=7 must be one of 1, 2, 3"),
        ({"solver": "unipc+langevin", "order": 3}, "config.sampling: predictor_corrector: .* start=1"),
        ({"solver": "edm", "churn": -1.0}, "config.sampling: edm: churn=-1.0"),
        ({"solver": "adaptive", "max_evaluations": 3}, "config.sampling: adaptive: max_evaluations=3"),
        ({"grid": "explicit", "times": (0.1, 0.5)}, "config.sampling: times="),
        ({"grid": "leading", "steps": 2000}, "config.sampling: n=2000"),
    ],
)
def test_what_cannot_be_met_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**fields)


#: Of each field that is not read by all, a solver and a grid that do not read it, and a reader that is named.
UNREAD = {
    "steps": ("heun", "explicit", "uniform"),
    "rho": ("heun", "uniform", "karras"),
    "times": ("heun", "log_snr", "explicit"),
    "t_min": ("heun", "trailing", "uniform"),
    "order": ("heun", "uniform", "dpm_solver_single"),
    "eta": ("reverse_diffusion+langevin", "uniform", "ddim"),
    "kappa": ("ddim", "uniform", "euler_maruyama"),
    "churn": ("heun", "uniform", "edm"),
    "churn_min": ("ddim", "karras", "edm"),
    "churn_max": ("ddim", "uniform", "edm"),
    "churn_noise": ("adaptive", "uniform", "edm"),
    "snr": ("ddim", "uniform", "langevin"),
    "corrector_steps": ("score_sde:ancestral", "uniform", "langevin"),
    "epsilon": ("reverse_diffusion+langevin", "uniform", "annealed_langevin"),
    "sigma_last": ("ddim", "uniform", "annealed_langevin"),
    "rtol": ("ddim", "uniform", "adaptive"),
    "atol": ("ddim", "uniform", "adaptive"),
    "max_evaluations": ("ddim", "uniform", "adaptive"),
}
VALUES: dict[str, Any] = {"times": (0.9, 0.5, 0.1), "order": 2, "steps": 4, "max_evaluations": 99, "corrector_steps": 2}


def test_every_field_that_not_all_read_is_known() -> None:
    assert set(UNREAD) == FIELDS


@pytest.mark.parametrize("field", UNREAD)
def test_a_field_that_is_not_read_is_refused_with_its_readers(field: str) -> None:
    solver, grid, reader = UNREAD[field]
    needed = {"times": (0.9, 0.5, 0.1)} if grid == "explicit" else {} if field == "steps" else {"steps": 100}
    message = rf"config\.sampling\.{field}=.* is not read by .*, but by .*{reader}"
    with pytest.raises(ConfigError, match=message):
        plan(solver=solver, grid=grid, **needed, **{field: VALUES.get(field, 0.5)})


@pytest.mark.parametrize("field", UNREAD)
def test_another_solver_or_grid_drops_what_it_does_not_read_and_keeps_what_is_given(field: str) -> None:
    solver, grid, reader = UNREAD[field]
    if reader in SOLVERS:
        before, after = {"solver": reader}, [f"--config.sampling.solver={solver}"]
    elif reader in CORRECTORS:
        before, after = {"solver": f"ancestral+{reader}"}, [f"--config.sampling.solver={solver}"]
    else:
        before, after = {"grid": reader}, [f"--config.sampling.grid={grid}"]
    config = base()
    config.sampling.update({**before, field: VALUES.get(field, 0.5)})
    given = f"--config.sampling.{field}={VALUES.get(field, 0.5)}".replace(" ", "")
    assert override(config.copy_and_resolve_references(), [])["sampling"][field] == VALUES.get(field, 0.5)
    assert override(config.copy_and_resolve_references(), after).sampling[field] is None
    assert override(config.copy_and_resolve_references(), [*after, given]).sampling[field] is not None


def test_a_corrector_keeps_its_numbers_under_another_predictor() -> None:
    config = base()
    config.sampling.update(solver="reverse_diffusion+langevin", snr=0.17, corrector_steps=2)
    changed = override(config, ["--config.sampling.solver=ancestral+langevin"]).sampling
    assert (changed.snr, changed.corrector_steps) == (0.17, 2)


def test_unread_fields_that_a_run_recorded_are_forgotten() -> None:
    experiment = base()
    config = experiment.sampling
    config.update(solver="ddim", eta=0.5, snr=0.16, kappa=1.0, churn_max=float("inf"), rtol=1e-5, rho=7.0)
    forget_unread(config)
    assert (config.eta, config.snr, config.kappa, config.churn_max, config.rtol, config.rho) == (0.5, *[None] * 5)
    chex.assert_trees_all_equal(sampling_plan(experiment, VP()).solver, solvers.ddim(0.5))
