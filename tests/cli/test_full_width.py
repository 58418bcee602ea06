"""The published CIFAR-10 network at its full width: minutes to compile on a CPU."""

import jax
import numpy as np
import pytest

from diffuse_jax.config import build, override, read
from diffuse_jax.data.sources import Arrays
from diffuse_jax.evaluation import Sampler
from diffuse_jax.nets import param_count
from diffuse_jax.training import compile_step, global_batch, make_mesh, make_state


@pytest.mark.slow
def test_the_published_cifar10_network_trains_and_samples():
    config = read("cifar10_ve_ncsnpp_continuous", ["--config.training.batch_size=2"])
    experiment = build(config)
    assert param_count(experiment.params) == 62_758_915
    mesh = make_mesh(jax.devices()[:1])
    state = make_state(experiment.create_state, mesh)
    call = compile_step(experiment.update(), mesh)
    rows = Arrays(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8))
    for step in range(2):
        batch = {"x": rows[np.arange(2) + 2 * step]["x"][None]}
        state, metrics = call(state, global_batch(mesh, batch, scanned=True))
        # An untrained network is almost 0 and leaves ‖eps‖²/2, half of chi-squared with 3,072 degrees: 1536 ± 28.
        assert float(metrics["loss"][0]) == pytest.approx(1536, abs=150)
    assert int(state.step) == 2
    sampled = build(override(config, ["--config.sampling.steps=2"])).method.draw
    assert sampled.facts["solver"] == "score_sde:reverse_diffusion+langevin"
    draw = Sampler(sampled, mesh=mesh, batch_size=2)
    drawn = draw(experiment.denoiser(state.ema), seed=0, n=2)
    assert drawn.x.shape == (2, 32, 32, 3) and (drawn.evaluations == 4).all()
