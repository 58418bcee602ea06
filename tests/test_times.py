"""Grids of times: their ends, their spacing, and what they refuse."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import ALL_PROCESSES, ALL_SDES, SDES, in_float64

from diffuse_jax import times
from diffuse_jax.sde import VE, VP, DiscreteVP, from_beta, linear_betas

every_sde = pytest.mark.parametrize("name", ALL_SDES)
GRIDS = {name: getattr(times, name) for name in ("uniform", "log_snr", "karras", "quadratic", "cosine")}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
TABLES = {name: getattr(times, name) for name in ("leading", "trailing", "linspace")}


@every_sde
def test_a_grid_runs_down_to_exactly_t_min_from_exactly_t_max(name: str) -> None:
    sde = ALL_SDES[name]
    grids = jax.jit(lambda sde: {grid: make(sde, 20) for grid, make in GRIDS.items()})(sde)
    for grid, t in grids.items():
        assert t.shape == (21,) and np.all(np.diff(t) < 0), grid
        assert t[0] == np.float32(0.995 if name in ("cosine", "flow") else sde.T), grid
        assert t[-1] == np.float32(sde.t_min), grid


@every_sde
@in_float64
def test_a_grid_is_evenly_spaced_in_what_it_is_named_for(name: str) -> None:
    sde, process = ALL_SDES[name], ALL_PROCESSES[name]

    def sigma_tilde(t: Any) -> Any:
        return process.sigma(t) / process.alpha(t)

    spaced_in = {
        "uniform": lambda t: t,
        "log_snr": process.log_snr,
        "karras": lambda t: sigma_tilde(t) ** (1 / 7),
        "quadratic": np.sqrt,
        "cosine": lambda t: np.arctan(sigma_tilde(t)),
    }
    grids = jax.jit(lambda sde: {name: grid(sde, 9, 0.01, 0.9) for name, grid in GRIDS.items()})(sde)
    for name, t in grids.items():
        value = spaced_in[name](np.asarray(t))
        np.testing.assert_allclose(np.diff(value), (value[-1] - value[0]) / 9, rtol=1e-8, err_msg=name)
        assert t[0] == 0.9 and t[-1] == 0.01


@in_float64
def test_karras_times_are_edms_noise_levels() -> None:
    """σ_i = (σ_max^{1/ρ} + i/(N − 1)·(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ with the settings of 2206.00364, table 1."""
    share = np.arange(18) / 17
    for rho in (7.0, 3.0):
        levels = (80 ** (1 / rho) + share * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
        np.testing.assert_allclose(times.karras(ALL_SDES["edm"], 17, rho=rho), levels, rtol=1e-9)
        # On another process, the times of the same noise levels.
        np.testing.assert_allclose(times.noise_levels(ALL_SDES["flow"], levels), levels / (1 + levels), rtol=1e-9)


def test_a_grid_follows_the_leaves_of_a_process() -> None:
    def stacked(sigma_max: Any) -> Any:
        return jnp.stack([grid(VE(sigma_max=sigma_max), 5) for grid in GRIDS.values()])

    sigma_max = jnp.asarray([20.0, 50.0])
    both, second = jax.jit(lambda values: (jax.vmap(stacked)(values), stacked(values[1])))(sigma_max)
    np.testing.assert_allclose(both[1], second, rtol=1e-5)
    assert not np.allclose(both[0, 2], both[1, 2], rtol=1e-2)


@every_grid
def test_one_step_is_the_smallest_grid(grid: Any) -> None:
    np.testing.assert_allclose(grid(SDES["vp"], 1), [1.0, 1e-3])


@every_grid
@pytest.mark.parametrize(
    ("n", "t_min", "t_max", "message"),
    [
        (0, None, None, "n=0"),
        (4, 0.0, None, "t_min=0.0"),
        (4, 1.0, None, "t_min=1.0"),
        (4, 0.5, 0.4, "t_min=0.5 must lie between 0 and t_max=0.4"),
        (4, None, 1.5, "t_max=1.5"),
    ],
)
def test_an_impossible_grid_is_refused(
    grid: Any, n: int, t_min: float | None, t_max: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid(SDES["vp"], n, t_min, t_max)


# --- times of a table -------------------------------------------------------------------------------------------------


def entries(t: Any, table: int = 1000) -> list[int]:
    """The numbers of a table's entries at its times (k + 1)/N."""
    k = np.asarray(t, np.float64) * table - 1
    np.testing.assert_allclose(k, np.round(k), atol=1e-3)
    return np.round(k).astype(int).tolist()


def test_spacings_of_a_table_are_those_of_2305_08891() -> None:
    """Table 2 there, for T = 1000 and 10 steps, whose entries count from 1."""
    published = {
        "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
        "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
        "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
    }
    for name, steps in published.items():
        t = TABLES[name](VP(), 10)
        assert [k + 1 for k in entries(t)] == steps and t[0] <= 1, name


def test_a_table_is_read_at_its_own_entries() -> None:
    sde = DiscreteVP(linear_betas(50))
    assert entries(times.leading(sde, 4, offset=1), 50) == [37, 25, 13, 1]
    assert entries(times.trailing(sde, 4), 50) == [49, 37, 24, 11]
    assert entries(times.linspace(sde, 4, table=10), 10) == [9, 6, 3, 0]
    for grid in TABLES.values():
        np.testing.assert_array_equal(grid(sde, 50), sde.table_times()[::-1])
        assert all(len(set(entries(grid(sde, n), 50))) == n for n in (1, 7, 25))


def test_leading_warns_where_it_leaves_out_most_of_the_table() -> None:
    with pytest.warns(UserWarning, match="n=600 of a table of 1000 are its entries 0 to 599"):
        t = times.leading(VP(), 600)
    assert entries(t) == list(range(599, -1, -1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(entries(times.leading(VP(), n))[0] == first for n, first in ((1000, 999), (500, 998), (300, 897)))


# --- times of one's own -----------------------------------------------------------------------------------------------


def test_noise_levels_are_reached_at_their_times() -> None:
    levels = np.array([20.0, 1.0, 0.05])
    for name in ("vp", "subvp", "ve", "ddpm"):
        t = np.asarray(times.noise_levels(ALL_SDES[name], levels), np.float64)
        process = ALL_PROCESSES[name]
        np.testing.assert_allclose(process.sigma(t) / process.alpha(t), levels, rtol=2e-5)
    np.testing.assert_allclose(times.explicit(VP(), (1.0, 0.5, 0.1)), [1.0, 0.5, 0.1])


def test_times_of_traced_numbers_are_those_of_known_ones() -> None:
    levels, own = jnp.asarray([20.0, 1.0, 0.05]), jnp.asarray([1.0, 0.5, 0.1])
    found = jax.jit(lambda sde, levels, own: (times.noise_levels(sde, levels), times.explicit(sde, own)))(
        VP(), levels, own
    )
    np.testing.assert_allclose(found[0], times.noise_levels(VP(), levels), rtol=1e-5)
    np.testing.assert_array_equal(found[1], own)


@pytest.mark.parametrize("name", ["vp", "cosine", "ve", "edm", "ddpm"])
def test_levels_that_fall_on_one_time_are_refused_with_the_range_of_the_process(name: str) -> None:
    sde = ALL_SDES[name]
    top = float(jnp.exp(-0.5 * sde.log_snr(sde.T)))
    once = times.noise_levels(sde, [2 * top, 0.5, 0.3])
    np.testing.assert_allclose(once[0], sde.T, rtol=1e-6)
    assert np.all(np.diff(once) < 0)
    for levels in ([3 * top, 2 * top, 0.5], [0.5, 1e-30, 1e-31] if name != "edm" else [2 * top, 1.5 * top]):
        for make in (times.noise_levels, lambda sde, levels: jax.jit(lambda: times.noise_levels(sde, levels))()):
            with pytest.raises(ValueError, match=r"give a time twice.*σ/α of the process goes from"):
                make(sde, levels)


def test_levels_beyond_an_end_are_refused_where_the_time_is_bisected() -> None:
    sde = from_beta(lambda t: 0.1 + 19.9 * t)
    with pytest.raises(ValueError, match="give a time twice"):
        jax.jit(lambda: times.noise_levels(sde, [1e6, 1e5, 0.5]))()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: times.noise_levels(VP(), [1.0, 2.0]), r"levels=\[1\., 2\.\] must be 2 or more positive numbers"),
        (lambda: times.noise_levels(VP(), [1.0, 0.0]), "levels"),
        (lambda: times.noise_levels(VP(), [1.0]), "levels"),
        (lambda: times.explicit(VP(), [0.5, 0.5]), r"times=\[0\.5, 0\.5\]"),
        (lambda: times.explicit(VP(), [1.5, 0.5]), r"times=\[1\.5, 0\.5\] must lie in \(0, 1\.0\]"),
        (lambda: times.explicit(VP(), [[0.5, 0.1]]), "times"),
        (lambda: times.leading(VP(), 0), "n=0 must lie between 1 and 1000"),
        (lambda: times.trailing(DiscreteVP(linear_betas(50)), 51), "n=51 must lie between 1 and 50"),
        (lambda: times.linspace(VP(), 11, table=10), "n=11 must lie between 1 and 10"),
        (lambda: times.leading(VP(), 10, offset=100), "offset=100 must be at least 0 and below 100"),
        (lambda: times.leading(VP(), 10, offset=-1), "offset=-1"),
        (lambda: times.karras(VP(), 10, rho=0.0), r"rho=0\.0 must be positive"),
    ],
)
def test_impossible_times_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
