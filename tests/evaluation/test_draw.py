"""Chunks and devices change nothing: the rows of a map, the samples of a seed, and the likelihoods of a source."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tiers import proof

from diffuse_jax import VP, NetworkDenoiser, log_prob, oracles, sample, sample_keys, solve, solvers, times
from diffuse_jax.codecs import Pixels
from diffuse_jax.data.sources import Arrays
from diffuse_jax.evaluation import Sampler, likelihoods
from diffuse_jax.evaluation.chunks import chunks, map_chunks
from diffuse_jax.likelihood import exact_trace, hutchinson_trace
from diffuse_jax.methods import flow_log_prob, solver_draw
from diffuse_jax.sampling import denoise_once
from diffuse_jax.training import make_mesh

SDE = VP()
MEAN, COV = np.array([0.3, -0.2, 0.5]), np.array([[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]])
GAUSSIAN = oracles.Gaussian(SDE, jnp.asarray(MEAN), jnp.asarray(COV))
CHUNKS = [(1, 1), (1, 7), (1, 64), (8, 3)]


def mesh(devices):
    return make_mesh(jax.devices()[:devices])


def sampler(solver, devices, batch_size):
    return Sampler(solver_draw(SDE, solver, times.uniform(SDE, 6)), mesh=mesh(devices), batch_size=batch_size)


@pytest.mark.parametrize(("devices", "batch_size"), CHUNKS)
@pytest.mark.parametrize("n", [1, 19])
def test_mapped_chunks_come_back_in_order_and_cut_to_n(devices, batch_size, n):
    sizes = []

    def rows(index):
        sizes.append(len(index))
        return {"square": index**2, "pair": np.stack([index, -index], axis=1)}

    out = map_chunks(rows, n, batch_size, mesh(devices))
    np.testing.assert_array_equal(out["square"], np.arange(n) ** 2)
    np.testing.assert_array_equal(out["pair"], np.stack([np.arange(n), -np.arange(n)], axis=1))
    assert len(set(sizes)) == 1 and sizes[0] % devices == 0  # one compilation, and every device its share


@pytest.mark.parametrize(("devices", "batch_size"), CHUNKS)
def test_chunks_after_those_that_are_left_out_are_what_they_would_be(devices, batch_size):
    asked = []

    def rows(index):
        asked.append(index.tolist())
        return index

    whole = list(chunks(rows, 19, batch_size, mesh(devices), first=5))
    calls = asked.copy()
    assert np.concatenate([part for _, part in whole]).tolist() == list(range(5, 24))
    assert [start for start, _ in whole] == np.cumsum([5, *(len(part) for _, part in whole[:-1])]).tolist()
    for skip in (0, 1, 7, 8, 18, 19):
        asked.clear()
        left = list(chunks(rows, 19, batch_size, mesh(devices), first=5, skip=skip))
        expected = [(start, part.tolist()) for start, part in whole if start + len(part) > 5 + skip]
        assert [(start, part.tolist()) for start, part in left] == expected
        assert asked == calls[len(calls) - len(left) :]  # the same rows in the same places


def test_the_next_chunk_is_under_way_while_one_is_worked_on():
    begun = []
    for start, _ in chunks(lambda index: begun.append(index[0]) or index, 12, 4, mesh(1)):
        assert begun == [0, 4, 8][: start // 4 + 2]


def test_samples_from_any_first_on_are_those_of_the_seed():
    draw = sampler(solvers.euler_maruyama(), 1, 7)
    denoise = NetworkDenoiser(SDE, jnp.asarray(0.1), label_net, shape=(3,))
    labels = np.arange(19) % 5
    whole = draw(denoise, seed=4, n=19, cond={"label": labels})
    for first, n in ((0, 7), (3, 9), (18, 1)):
        part = draw(denoise, seed=4, n=n, first=first, cond={"label": labels[first : first + n]})
        np.testing.assert_allclose(part.x, whole.x[first : first + n], rtol=1e-5, atol=1e-6)
    found = list(draw.chunks(denoise, seed=4, n=19, skip=9, conditions=lambda index: {"label": index % 5}))
    assert [start for start, _ in found] == [7, 14]
    np.testing.assert_array_equal(np.concatenate([drawn.x for _, drawn in found]), whole.x[7:])


@pytest.mark.parametrize(
    "solver", [solvers.euler_maruyama(), proof(solvers.adaptive(1e-4, 1e-4))], ids=["steps", "adaptive"]
)
def test_samples_are_those_of_the_library_whatever_chunks_and_devices(solver):
    direct = solve(sample_keys(4, 19), GAUSSIAN, solver, times.uniform(SDE, 6), path=True)
    for devices, batch_size in CHUNKS if solver.evaluations else CHUNKS[1::2]:
        drawn = sampler(solver, devices, batch_size)(GAUSSIAN, seed=4, n=19, path=True)
        np.testing.assert_allclose(drawn.x, direct.mean, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(drawn.path, np.moveaxis(direct.path, 0, 1), rtol=2e-4, atol=2e-4)
        count = np.full(19, 6) if solver.evaluations else direct.memory.evaluations
        np.testing.assert_array_equal(drawn.evaluations, count)


def test_a_solver_that_states_no_evaluations_draws_with_their_number_unknown():
    def halve(noise, x, memory, t, s, denoise):
        return x / 2, x / 2, {"steps": memory["steps"] + 1}

    solver = solvers.Solver(step=halve, init=lambda x, times, denoise: {"steps": 0})
    drawn = sampler(solver, 1, 4)(GAUSSIAN, seed=0, n=4)
    start = (
        GAUSSIAN.sde.prior_std() * solve(sample_keys(0, 4), GAUSSIAN, solver, times.uniform(SDE, 6), path=True).path[0]
    )
    np.testing.assert_allclose(drawn.x, start / 2**6, rtol=1e-6)
    assert np.isnan(drawn.evaluations).all()


def test_a_denoising_at_the_end_counts_as_an_evaluation():
    grid = times.uniform(SDE, 6)
    draw = Sampler(solver_draw(SDE, solvers.heun(), grid, finish=denoise_once), mesh=mesh(1), batch_size=4)
    assert (draw(GAUSSIAN, seed=0, n=4).evaluations == 2 * 6 + 1).all()


def label_net(params, x, t, *, cond=None, rng=None):
    return params * x + cond["label"][:, None]


def test_every_sample_has_its_own_label():
    denoise = NetworkDenoiser(SDE, jnp.asarray(0.1), label_net, shape=(3,))
    labels = np.arange(19) % 5
    drawn = sampler(solvers.heun(), 8, 8)(denoise, seed=0, n=19, cond={"label": labels})
    for i in (0, 7, 18):
        key = sample_keys(0, 1, first=i)
        own = {"label": jnp.asarray(labels[i : i + 1])}
        alone = sample(key, denoise, solvers.heun(), times.uniform(SDE, 6), cond=own)
        np.testing.assert_allclose(drawn.x[i], alone[0], rtol=1e-3)
    # dx/dt grows with the label at every time, so one seed's samples are ordered by it.
    labels = [{"label": np.array([k])} for k in range(3)]
    one = [sampler(solvers.heun(), 1, 8)(denoise, seed=0, n=1, cond=cond).x for cond in labels]
    assert np.all(np.diff(np.concatenate(one), axis=0) < 0)


def test_a_denoiser_with_other_parameters_does_not_compile_again(caplog):
    draw = sampler(solvers.heun(), 1, 8)
    denoise = NetworkDenoiser(SDE, jnp.asarray(0.1), label_net, shape=(3,))
    draw(denoise, seed=0, n=8, cond={"label": np.zeros(8, int)})
    size = draw._run._cache_size()
    other = NetworkDenoiser(SDE, jnp.asarray(0.2), label_net, shape=(3,))
    draw(other, seed=1, n=8, cond={"label": np.ones(8, int)})
    assert draw._run._cache_size() == size == 1


def test_samples_that_are_not_finite_are_refused():
    broken = oracles.Gaussian(SDE, jnp.asarray([jnp.nan, 0, 0]), jnp.asarray(COV))
    with pytest.raises(FloatingPointError, match="5 of 5 samples are not finite"):
        sampler(solvers.heun(), 1, 8)(broken, seed=0, n=5)


OPTIONS = {"t_min": 1e-5, "rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(("devices", "batch_size"), [proof(1, 7), (8, 16)])
def test_the_likelihoods_of_gaussian_rows_are_those_of_scipy(devices, batch_size):
    x = np.random.default_rng(0).multivariate_normal(MEAN, COV, 11).astype(np.float32)
    exact = flow_log_prob(Pixels((3,)), trace=exact_trace, **OPTIONS)
    found = likelihoods(exact, GAUSSIAN, Arrays(x), 11, seed=0, mesh=mesh(devices), batch_size=batch_size)
    expected = scipy.stats.multivariate_normal(MEAN, COV).logpdf(x)
    # The prior N(0, I) stands for N(α·m, C) at T, α² = 4e-5: some 1e-3 nats.
    np.testing.assert_allclose(found.log_prob, expected, atol=1e-2)
    np.testing.assert_allclose(found.bits_per_dim, -found.log_prob / 3 / np.log(2), rtol=1e-6)
    assert np.all(found.evaluations > 0)


@pytest.mark.parametrize(("centered", "offset"), [(True, np.log2(17) - 1), proof(False, np.log2(17))])
def test_the_bits_of_grey_levels_are_those_of_a_direct_call(centered, offset):
    levels = np.random.default_rng(0).integers(0, 17, (5, 2, 2, 1))
    images = np.round(levels * 255 / 16).astype(np.uint8)
    denoise = NetworkDenoiser(SDE, jnp.asarray(0.9), lambda params, x, t: params * x, shape=(2, 2, 1))
    estimated = flow_log_prob(Pixels((2, 2, 1), 17, centered), trace=hutchinson_trace, **OPTIONS)
    found = likelihoods(estimated, denoise, Arrays(images), 5, seed=3, mesh=mesh(1), batch_size=8)
    low, span = (-1, 2) if centered else (0, 1)
    keys = sample_keys(3, 5)
    # Row i's uniform numbers come from streams 1 and then 1 of its key.
    u = np.stack([jax.random.uniform(jax.random.fold_in(jax.random.fold_in(k, 1), 1), (2, 2, 1)) for k in keys])
    x = low + span * (levels + u) / 17
    direct = log_prob(denoise, jnp.asarray(x), trace=hutchinson_trace, keys=keys, **OPTIONS)
    np.testing.assert_allclose(found.log_prob, direct.log_prob, rtol=1e-4)
    np.testing.assert_allclose(found.bits_per_dim, -found.log_prob / 4 / np.log(2) + offset, rtol=1e-5)
