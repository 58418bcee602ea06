"""The objective: unbiased however times are drawn, a function of the row alone, and equal to a direct computation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import proof

from diffuse_jax import NetworkDenoiser, losses
from diffuse_jax.codecs import Pixels
from diffuse_jax.data.sources import Arrays
from diffuse_jax.evaluation import HeldoutRows
from diffuse_jax.methods import objective
from diffuse_jax.sde import VP
from diffuse_jax.training import Draws, make_mesh

SHAPE = (4, 4, 1)
T_MIN = 1e-2
IMAGES = np.random.default_rng(0).integers(0, 256, (24, *SHAPE)).astype(np.uint8)
PARAMS = jnp.asarray(0.3)


def net(params, x, t, *, cond=None, rng=None):
    return params * x + (0 if cond is None else cond["label"][:, None, None, None])


PIXELS = ("levels", "centered", "flip", "dequantize")


def loss(**options):
    pixels = Pixels(SHAPE, **({"levels": 256} | {name: options.pop(name) for name in PIXELS if name in options}))
    defaults = {"stratified": False, "t_min": T_MIN}
    function = objective(
        lambda params, extra: NetworkDenoiser(VP(), params, net, shape=SHAPE), pixels, **(defaults | options)
    )
    return jax.jit(lambda params, batch, draws: function(params, {}, batch, draws).each)


def rows(n, total=None, start=0, seed=0):
    index = jnp.arange(start, start + n, dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), index)
    return Draws(keys=keys, index=index, rng=None, step=jnp.int32(0), total=total or n)


def expected(half_sum, weight):
    """E over time and noise of the loss of one image x0 with eps(x) = 0.3·x, by quadrature in float64.

    eps − 0.3·(α·x0 + σ·eps) has second moment (1 − 0.3·σ)² + 0.09·α²·x0² an entry.
    """
    t = np.linspace(T_MIN, 1, 20_001)
    alpha2 = np.exp(-(0.1 * t + 9.95 * t**2))
    sigma = np.sqrt(1 - alpha2)
    x0 = IMAGES[0].astype(np.float64) / 127.5 - 1
    scale = np.ones_like(t) if weight is losses.sigma_squared else (0.1 + 19.9 * t) / sigma**2
    each = scale * ((1 - 0.3 * sigma) ** 2 + 0.09 * alpha2 * np.mean(x0**2))
    return np.trapezoid(each, t) / (1 - T_MIN) * (x0.size / 2 if half_sum else 1)


@pytest.mark.parametrize("half_sum", [proof(False), True])
@pytest.mark.parametrize("weight", [proof(losses.sigma_squared), losses.g_squared])
@pytest.mark.parametrize(
    ("times", "stratified"),
    [(losses.uniform_times, False), (losses.uniform_times, True), (losses.importance_times, True)],
)
def test_the_mean_is_the_integral_however_times_are_drawn(half_sum, weight, times, stratified):
    n = 40_000
    function = loss(half_sum=half_sum, weight=weight, times=times, stratified=stratified)
    values = np.asarray(function(PARAMS, {"x": np.repeat(IMAGES[:1], n, 0)}, rows(n)), np.float64)
    # Stratified times vary less than independent ones, so this error is an upper bound on theirs.
    assert values.mean() == pytest.approx(expected(half_sum, weight), abs=4 * values.std() / np.sqrt(n))


@pytest.mark.parametrize("stratified", [False, True])
def test_a_row_comes_out_the_same_in_every_batch(stratified):
    function = loss(stratified=stratified, flip=True, dequantize=True)
    whole = function(PARAMS, {"x": IMAGES, "label": np.arange(24)}, rows(24))
    parts = [
        function(PARAMS, {"x": IMAGES[i : i + 8], "label": np.arange(i, i + 8)}, rows(8, 24, i)) for i in (0, 8, 16)
    ]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5)
    disturbed = IMAGES.copy()
    disturbed[1:] = 0
    other = function(PARAMS, {"x": disturbed, "label": np.arange(24)}, rows(24))
    np.testing.assert_allclose(whole[0], other[0], rtol=1e-6)
    assert np.all(np.abs(whole[1:] - other[1:]) > 1e-6)


def test_flips_and_dequantization_are_seen_where_asked_for_alone():
    batch = {"x": np.repeat(IMAGES[:1], 24, 0)}
    plain, flipped, spread = (
        np.asarray(loss(**options)(PARAMS, batch, rows(24)))
        for options in ({}, {"flip": True}, {"levels": 2, "dequantize": True})
    )
    mirrored = np.asarray(loss()(PARAMS, {"x": batch["x"][:, :, ::-1]}, rows(24)))
    same, turned = np.isclose(flipped, plain, rtol=1e-6), np.isclose(flipped, mirrored, rtol=1e-6)
    assert np.all(same | turned) and 4 <= turned.sum() <= 20
    assert np.isclose(spread, plain, rtol=1e-3).mean() < 0.5


@pytest.mark.parametrize(("devices", "batch_size"), [proof(1, 24), (1, 7), (8, 8), proof(8, 64)])
def test_the_heldout_loss_is_that_of_the_rows_whatever_chunks_and_devices(devices, batch_size):
    function = loss(stratified=True)
    source = Arrays(IMAGES, np.arange(24))
    make = functools.partial(HeldoutRows, function, source, seed=5, batch_size=batch_size)
    values = make(19, mesh=make_mesh(jax.devices()[:devices]))(PARAMS)
    direct = function(PARAMS, {"x": IMAGES[:19], "label": np.arange(19)}, rows(19, seed=5))
    np.testing.assert_allclose(values, direct, rtol=1e-5)
    everything = make(1000, mesh=make_mesh(jax.devices()[:devices]))(PARAMS)
    assert everything.shape == (24,)
