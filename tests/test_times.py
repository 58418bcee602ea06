"""Grids of times: their ends, their spacing, and what they refuse."""

from typing import Any

import jax
import numpy as np
import pytest
from closed_forms import PROCESSES, SDES, in_float64

from diffuse_jax import times

every_sde = pytest.mark.parametrize("name", SDES)
every_grid = pytest.mark.parametrize("grid", [times.uniform, times.log_snr])


@every_sde
@every_grid
def test_a_grid_runs_down_from_the_end_of_time_to_exactly_t_min(name: str, grid: Any) -> None:
    sde = SDES[name]
    for t_min, stop in ((None, sde.t_min), (0.02, 0.02)):
        t = np.asarray(jax.jit(lambda sde: grid(sde, 20, t_min))(sde))  # noqa: B023
        assert t.shape == (21,) and t[0] == 1 and t[-1] == np.float32(stop) and np.all(np.diff(t) < 0)


@every_sde
@in_float64
def test_a_grid_is_evenly_spaced_in_what_it_is_named_for(name: str) -> None:
    t = np.asarray(times.uniform(SDES[name], 9, 0.01))
    np.testing.assert_allclose(np.diff(t), -0.11, rtol=1e-12)
    log_snr = PROCESSES[name].log_snr(np.asarray(times.log_snr(SDES[name], 9, 0.01)))
    np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / 9, rtol=1e-9)


@every_grid
def test_one_step_is_the_smallest_grid(grid: Any) -> None:
    np.testing.assert_allclose(grid(SDES["vp"], 1), [1.0, 1e-3])


@every_grid
@pytest.mark.parametrize(("n", "t_min", "message"), [(0, None, "n=0"), (4, 0.0, "t_min=0.0"), (4, 1.0, "t_min=1.0")])
def test_an_impossible_grid_is_refused(grid: Any, n: int, t_min: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(SDES["vp"], n, t_min)
