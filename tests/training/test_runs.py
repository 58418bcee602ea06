"""Training from Python: ten lines that learn, resume and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffuse_jax import VP, sample, sample_keys, solvers, times, training
from diffuse_jax.checkpoints import CheckpointError
from diffuse_jax.codecs import of_dataset
from diffuse_jax.data import from_arrays
from diffuse_jax.methods import denoising
from diffuse_jax.nets import MLP, LinenNet

MEAN, STD = np.array([1.5, -0.5]), np.array([0.5, 0.2])
DATA = from_arrays({"x": (MEAN + STD * np.random.default_rng(0).normal(size=(2000, 2))).astype(np.float32)})
ONE = training.make_mesh(jax.devices()[:1])


def method(width=16, **options):
    net = LinenNet(MLP(width=width, depth=1))
    return denoising(VP(), net, of_dataset(DATA), optimizer=training.adam(5e-3, warmup=20), **options)


def run(folder, steps, **options):
    options = {"batch_size": 64, "mesh": ONE, "checkpoint_every": 20, "log_every": 20, "progress": False} | options
    return training.train(method(), DATA, folder, steps=steps, **options)


def test_a_method_trained_in_ten_lines_draws_the_data(tmp_path):
    made = method()
    outcome = training.train(
        made, DATA, tmp_path, steps=400, batch_size=256, mesh=ONE, steps_per_call=10, progress=False
    )
    denoise = made.model(outcome.state.ema, outcome.state.extra)
    x = np.asarray(sample(sample_keys(0, 2000), denoise, solvers.heun(), times.log_snr(denoise.sde, 20)))
    np.testing.assert_allclose(x.mean(axis=0), MEAN, atol=0.15)
    np.testing.assert_allclose(x.std(axis=0), STD, rtol=0.35)
    # The data's own moments are far from those of the prior that sampling began with.
    assert np.abs(MEAN).min() > 0.4 and STD.max() < 0.6


def test_a_run_that_stops_and_goes_on_has_the_bits_of_one_that_did_not(tmp_path):
    whole = run(tmp_path / "whole", 60).state
    run(tmp_path / "parts", 20)
    parts = run(tmp_path / "parts", 60).state
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    kept = run(None, 60).state  # without a folder nothing is written, and the same is learnt
    jax.tree.map(np.testing.assert_array_equal, whole, kept)


def test_a_folder_of_another_network_is_refused(tmp_path):
    run(tmp_path, 20)
    with pytest.raises(CheckpointError, match="does not fit"):
        training.train(method(width=8), DATA, tmp_path, steps=40, batch_size=64, mesh=ONE, progress=False)


def test_a_batch_that_does_not_split_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="batch_size = 60 does not split evenly over 8 devices"):
        run(tmp_path / "none", 20, mesh=training.make_mesh(), batch_size=60)
    assert not (tmp_path / "none").exists()


def test_dropped_conditions_reach_the_network_as_nulls():
    """A network that returns its label: the loss of rows that lost it is that of the null."""
    from diffuse_jax.codecs import Pixels
    from diffuse_jax.conditions import Condition
    from diffuse_jax.denoiser import NetworkDenoiser
    from diffuse_jax.methods import objective
    from diffuse_jax.training.step import step_draws

    def net(params, x, c_noise, *, cond, rng=None):
        return jnp.broadcast_to(cond["label"][:, None].astype(x.dtype), x.shape)

    denoiser = lambda params, extra: NetworkDenoiser(VP(), params, net)  # noqa: E731
    options = {"conditions": {"label": Condition((), 100)}}
    draws = step_draws(jax.random.key(0), jnp.int32(0), 512)
    batch = {"x": jnp.zeros((512, 2)), "label": jnp.zeros(512, jnp.int32)}
    plain, dropped, heldout = (
        np.asarray(objective(denoiser, Pixels((2,)), **options, **more)(None, {}, batch, draws).each)
        for more in ({}, {"drop": 0.25}, {"drop": 0.25, "train": False})
    )
    lost = dropped > 5000  # (eps − 100)² against eps²
    assert 0.15 < lost.mean() < 0.35
    np.testing.assert_array_equal(dropped[~lost], plain[~lost])
    np.testing.assert_array_equal(heldout, plain)
