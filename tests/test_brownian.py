"""Noise that belongs to times: increments of a Brownian motion in log-SNR, one for each sample's key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import MIXTURE, SDES, in_float64
from tiers import proof

from diffuse_jax import solvers, times
from diffuse_jax.oracles import Mixture
from diffuse_jax.sampling import Span, brownian_noise, keyed_noise, sample, sample_keys

VP = SDES["vp"]


def increments(keys: Any, grid: Any, i: int) -> np.ndarray:
    """The draws of every step of a grid, (steps, batch, 3)."""
    x = jnp.zeros((keys.shape[0], 3))
    draw = jax.jit(jax.vmap(lambda t, s: brownian_noise(keys, 0, x, Span(t, s, VP))(i)))
    return np.asarray(draw(grid[:-1], grid[1:]), np.float64)


def test_draws_are_standard_normal_and_independent_between_steps_samples_and_indices() -> None:
    n, grid = 4096, times.log_snr(VP, 3)
    draws = [increments(sample_keys(0, n), grid, i) for i in (0, 1)]
    columns = np.concatenate([*draws[0], *draws[1]], axis=1)
    np.testing.assert_allclose(columns.mean(0), 0, atol=4 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(columns.T), np.eye(columns.shape[1]), atol=6 / np.sqrt(n))
    neighbours = np.corrcoef(draws[0][0][:-1, 0], draws[0][0][1:, 0])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(n)


def test_the_draws_of_a_fine_grid_add_up_to_those_of_a_coarse_one() -> None:
    """√(h₁ + h₂)·z = √h₁·z₁ + √h₂·z₂, h being the length of a step in log-SNR."""
    fine = times.log_snr(VP, 8)
    keys = sample_keys(3, 4)
    h = np.diff(np.asarray(VP.log_snr(fine), np.float64))
    weighted = np.sqrt(h)[:, None, None] * increments(keys, fine, 0)
    coarse = increments(keys, fine[::2], 0)
    expected = (weighted[::2] + weighted[1::2]) / np.sqrt(h[::2] + h[1::2])[:, None, None]
    np.testing.assert_allclose(coarse, expected, atol=2e-3)


def test_a_sample_has_the_same_path_in_every_batch() -> None:
    grid = times.log_snr(VP, 2)
    np.testing.assert_array_equal(
        increments(sample_keys(0, 8), grid, 0)[:, 5:7], increments(sample_keys(0, 2, first=5), grid, 0)
    )


@pytest.mark.parametrize(
    "solver",
    [proof(solvers.sde_dpm_solver(2)), solvers.ancestral()],
    ids=["sde-dpm 2m", "ancestral"],
)
@in_float64
def test_more_steps_refine_the_image_with_brownian_noise_and_draw_another_without(solver: Any) -> None:
    denoise, keys = Mixture(VP, *map(jnp.asarray, MIXTURE)), sample_keys(0, 64)

    @jax.jit
    def draw(grid: Any) -> Any:
        return [sample(keys, denoise, solver, grid, noise=source) for source in (brownian_noise, keyed_noise)]

    ends = [[np.asarray(end) for end in draw(times.log_snr(VP, n, t_min=1e-2))] for n in (40, 80, 160)]
    change = [[np.median(np.abs(b - a)) for a, b in zip(ends[k], ends[k + 1], strict=True)] for k in (0, 1)]
    (coarse, keyed), (fine, _) = change
    # Halved steps divide the change by √2 at least; the median of 64 samples has an error of its own.
    assert coarse < 0.3 * keyed and fine < 0.85 * coarse


def test_short_steps_draw_from_their_keys_and_stay_standard_normal() -> None:
    """Of 1e-4 in log-SNR, and of nothing at all."""
    keys, x = sample_keys(0, 2000), jnp.zeros((2000, 1))
    t = 0.5
    for s in (float(VP.inverse_log_snr(VP.log_snr(t) + 1e-4)), t):
        z = np.asarray(brownian_noise(keys, 7, x, Span(t, s, VP))(0))
        np.testing.assert_array_equal(z, keyed_noise(keys, 7, x)(0))
