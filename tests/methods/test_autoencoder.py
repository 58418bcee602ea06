"""The autoencoder: its bound against the closed form of a linear one, its likelihood and divergence against sums and
quadrature, its randomness row by row, and its use as a codec."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats
from tiers import first

from diffuse_jax import VP
from diffuse_jax.codecs import Pixels
from diffuse_jax.data import from_arrays
from diffuse_jax.evaluation import HeldoutRows, Sampler
from diffuse_jax.methods import autoencoder, denoising
from diffuse_jax.methods.kl_autoencoder import KLAutoencoder
from diffuse_jax.nets import Autoencoder, Encoder, LinenAutoencoder, LinenNet
from diffuse_jax.sampling import sample_keys
from diffuse_jax.training import Draws, make_mesh, train
from diffuse_jax.variational_bound import discretized_gaussian, standard_normal_kl

# --- probabilistic PCA ------------------------------------------------------------------------------------------------

SHAPE, LATENT, LEVELS = (2, 2, 1), (1, 1, 2), 256
RNG = np.random.default_rng(0)
# Orthogonal columns, so that the exact posterior is of independent entries, as q is.
W = np.linalg.qr(RNG.normal(size=(4, 2)))[0] * [0.25, 0.12]
MEAN, SCALE = np.array([0.1, -0.1, 0.0, 0.2]), 0.08
PRECISION = np.diag(W.T @ W) / SCALE**2 + 1
EXACT = {
    "read": jnp.asarray(W.T / SCALE**2 / PRECISION[:, None], jnp.float32),
    "log_variance": jnp.asarray(-np.log(PRECISION), jnp.float32),
}
MARGINAL = scipy.stats.multivariate_normal(MEAN, W @ W.T + SCALE**2 * np.eye(4))
CELL = 4 * np.log(2 / (LEVELS - 1))  # ln of the volume of a cell


@dataclasses.dataclass(frozen=True)
class Linear:
    """x = W·z + mean + scale·noise, and q(z | x) = N(read·(x − mean), exp(log_variance))."""

    def init(self, key, shape):
        return EXACT

    def encode(self, params, x, *, rng=None):
        mean = (x.reshape(-1, 4) - jnp.asarray(MEAN, x.dtype)) @ params["read"].T
        return tuple(a.reshape(-1, *LATENT) for a in (mean, jnp.broadcast_to(params["log_variance"], mean.shape)))

    def decode(self, params, z, *, rng=None):
        mean = z.reshape(-1, 2) @ jnp.asarray(W.T, z.dtype) + jnp.asarray(MEAN, z.dtype)
        return mean.reshape(-1, *SHAPE), jnp.log(SCALE)


PIXELS = Pixels(SHAPE, LEVELS)
BYTES = np.clip(np.round((MARGINAL.rvs(6, random_state=1) + 1) * 127.5), 0, 255).astype(np.uint8).reshape(6, *SHAPE)
X = BYTES.reshape(6, 4) / 127.5 - 1
OTHERS = {
    "exact": EXACT,
    "too narrow": {**EXACT, "log_variance": EXACT["log_variance"] - 1},
    "of another mean": {**EXACT, "read": 0.7 * EXACT["read"]},
}


def closed_form(params):
    """The bound E_q[ln N(x; W·z + mean, scale²)] − KL(q ‖ N(0, I)) of each row, and the volume of its cell."""
    mu = (X - MEAN) @ np.float64(params["read"]).T
    v = np.exp(np.float64(params["log_variance"]))
    off = np.square(X - MEAN - mu @ W.T).sum(1) + (np.square(W) * v).sum()
    given = -0.5 * (4 * np.log(2 * np.pi * SCALE**2) + off / SCALE**2)
    return given - 0.5 * (np.square(mu) + v - 1 - np.log(v)).sum(1) + CELL


@pytest.mark.parametrize("q", first(OTHERS, keep=["exact", "of another mean"]))
def test_the_bound_of_a_linear_autoencoder_is_its_closed_form(q):
    """Of cells of a tenth of the scale the Gaussian's mass is its density by the volume, to 0.1 %."""
    method = autoencoder(Linear(), PIXELS, draws=2000)
    model = method.model(OTHERS[q], {})
    found = jax.jit(method.log_prob.function)(model, {"x": jnp.asarray(BYTES)}, sample_keys(0, 6))
    expected = closed_form(OTHERS[q])
    assert np.all(found.error < 0.1) and np.all(np.abs(found.log_prob - expected) < 5 * found.error + 5e-3)
    np.testing.assert_allclose(found.bits_per_dim, -found.log_prob / 4 / np.log(2), rtol=1e-5)
    # The exact log-likelihood is above by KL(q ‖ posterior): by nothing where q is the posterior.
    exact = MARGINAL.logpdf(X) + CELL
    gap = exact - expected
    np.testing.assert_allclose(gap, 0, atol=1e-6) if q == "exact" else np.testing.assert_array_less(0.04, gap)
    assert np.all(found.log_prob < exact + 5 * found.error + 5e-3)


def test_the_loss_is_the_bound_a_dimension_and_weighs_the_divergence():
    keys = sample_keys(0, 6)
    draws = Draws(keys=keys, index=jnp.arange(6), rng=None, step=jnp.int32(0), total=6)
    once, twice = (
        jax.jit(autoencoder(Linear(), PIXELS, kl_weight=weight).heldout["loss"])(EXACT, {}, {"x": BYTES}, draws)
        for weight in (1.0, 2.0)
    )
    np.testing.assert_allclose(once.each, once.metrics["reconstruction"] + once.metrics["kl"], rtol=1e-6)
    np.testing.assert_allclose(twice.each - once.each, once.metrics["kl"], rtol=1e-4)
    mu = (X - MEAN) @ np.float64(EXACT["read"]).T
    kl = 0.5 * (np.square(mu) + 1 / PRECISION - 1 + np.log(PRECISION)).sum(1)
    np.testing.assert_allclose(once.metrics["kl"], kl / 4, rtol=1e-4)


def test_one_draw_does_not_tell_its_error():
    method = autoencoder(Linear(), PIXELS)
    found = method.log_prob.function(method.model(EXACT, {}), {"x": jnp.asarray(BYTES)}, sample_keys(0, 6))
    assert np.all(np.isnan(found.error)) and np.all(np.isfinite(found.log_prob)) and np.all(found.evaluations == 1)


# --- the two terms ----------------------------------------------------------------------------------------------------


def test_the_divergence_from_the_standard_normal_is_that_of_quadrature():
    means, log_variances = np.array([[0.0, 1.5], [-2.0, 0.3]]), np.array([[0.0, -3.0], [1.0, -0.2]])

    def divergence(mean, log_variance):
        q, p = scipy.stats.norm(mean, np.exp(log_variance / 2)), scipy.stats.norm()
        return scipy.integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -12, 12, points=[mean])[0]

    expected = np.vectorize(divergence)(means, log_variances).sum(1)
    np.testing.assert_allclose(standard_normal_kl(jnp.asarray(means), jnp.asarray(log_variances)), expected, atol=1e-6)


@pytest.mark.parametrize("levels", first([2, 17, 256], keep=[17]))
@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 30.0])
def test_the_probabilities_of_all_grey_levels_sum_to_one(levels, scale):
    values = jnp.linspace(-1.0, 1.0, levels)[:, None]
    for mean in (-1.4, 0.013, 1.0):
        logs = discretized_gaussian(values, jnp.full((levels, 1), mean), jnp.log(scale), levels=levels)
        assert jnp.sum(jnp.exp(logs)) == pytest.approx(1, abs=2e-4)


def test_the_probability_of_a_level_is_scipys_and_has_a_finite_slope_in_the_tails():
    k, mean, scale = np.array([0, 3, 8, 16, 12]), np.array([-0.9, 0.9, 0.05, 0.5, -30.0]), 0.1
    x = np.linspace(0, 1, 17)[k]
    above = np.where(k == 16, np.inf, (x + 1 / 32 - mean) / scale)
    below = np.where(k == 0, -np.inf, (x - 1 / 32 - mean) / scale)
    right = above + below > 0
    cdf = scipy.stats.norm.logcdf
    greater, less = cdf(np.where(right, -below, above)), cdf(np.where(right, -above, below))
    expected = greater + np.log(-np.expm1(less - greater))
    arrays = (jnp.asarray(a, jnp.float32)[:, None] for a in (x, mean))

    def found(x, mean, log_scale):
        return discretized_gaussian(x, mean, log_scale, levels=17, range=(0.0, 1.0))

    x, mean = arrays
    np.testing.assert_allclose(found(x, mean, jnp.log(scale)), expected, rtol=1e-4)
    slopes = jax.grad(lambda m, s: found(x, m, s).sum(), argnums=(0, 1))(mean, jnp.log(scale))
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


# --- randomness -------------------------------------------------------------------------------------------------------

MODEL = KLAutoencoder(EXACT, Linear(), PIXELS, LATENT)


def test_prior_draws_are_functions_of_their_keys_whatever_the_chunks_and_devices():
    method = autoencoder(Linear(), PIXELS)
    one, eight = make_mesh(jax.devices()[:1]), make_mesh()
    whole = Sampler(method.draw, mesh=one, batch_size=16)(MODEL, seed=3, n=11)
    parts = Sampler(method.draw, mesh=eight, batch_size=8)(MODEL, seed=3, n=6, first=5)
    assert whole.x.shape == (11, *SHAPE) and np.all(whole.evaluations == 1) and whole.path is None
    np.testing.assert_allclose(parts.x, whole.x[5:], rtol=1e-5, atol=1e-6)
    assert len(np.unique(whole.x[:, 0, 0, 0])) == 11


def test_prior_draws_of_a_linear_autoencoder_have_the_moments_of_its_means():
    x = autoencoder(Linear(), PIXELS).draw.function(MODEL, sample_keys(0, 20_000), None, False).x.reshape(-1, 4)
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.01)
    np.testing.assert_allclose(np.cov(x.T), W @ W.T, atol=2e-3)


def test_the_latent_of_a_row_is_the_same_in_every_batch():
    keys = sample_keys(1, 6)
    whole, _ = MODEL.encode({"x": jnp.asarray(BYTES)}, keys, train=False)
    for rows in ([4], [5, 2, 0]):
        part, _ = MODEL.encode({"x": jnp.asarray(BYTES[rows])}, keys[jnp.array(rows)], train=False)
        np.testing.assert_allclose(part, whole[jnp.array(rows)], rtol=1e-5)
    other, _ = MODEL.encode({"x": jnp.asarray(BYTES)}, sample_keys(2, 6), train=False)
    assert np.all(np.abs(other - whole) > 1e-6)


TRACED = []


class Counted(Linear):
    def decode(self, params, z, *, rng=None):
        TRACED.append(z.shape)
        return super().decode(params, z, rng=rng)


def test_a_second_plain_call_with_other_numbers_does_not_trace_again():
    z = jnp.zeros((3, *LATENT))
    for shift in (0.0, 0.5):
        model = KLAutoencoder({**EXACT, "read": EXACT["read"] + shift}, Counted(), Pixels(SHAPE, LEVELS), LATENT)
        model.mean(z + shift)
    assert len(TRACED) == 1


# --- a network, and the codec that it becomes -------------------------------------------------------------------------

FIELDS = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1}
NET = LinenAutoencoder(Autoencoder(1, latent_channels=2, **FIELDS))
DISCS = np.where(
    np.hypot(*(np.indices((8, 8))[:, None] - RNG.uniform(2, 5, (2, 96, 1, 1)))) < 2.2, 255, 0
).astype(np.uint8)[..., None]  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """An autoencoder of discs somewhere in images of 8×8."""
    data = from_arrays({"x": DISCS}, holdout=0.1)
    method = autoencoder(NET, Pixels((8, 8, 1), 256), kl_weight=0.1, optimizer=optax.adam(3e-3))
    outcome = train(
        dataclasses.replace(method, ema=lambda step: jnp.float32(0)),
        data,
        steps=150,
        batch_size=16,
        mesh=make_mesh(jax.devices()[:1]),
        progress=False,
        log_every=50,
    )
    return method, method.model(outcome.state.params, outcome.state.extra)


def test_the_parameters_have_a_name_for_each_half():
    params = jax.eval_shape(lambda: NET.init(jax.random.key(0), (8, 8, 1)))
    assert sorted(params) == ["decoder", "encoder", "log_scale"]
    alone = LinenNet(Encoder(4, "moments", conditional=False, **FIELDS, attn_resolutions=(), resblock_type="ddpm"))
    shapes = jax.eval_shape(lambda: alone.init(jax.random.key(0), (8, 8, 1)))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params["encoder"])


def test_a_trained_autoencoder_is_a_codec_that_brings_images_back(trained):
    method, model = trained
    batch = {"x": jnp.asarray(DISCS[:32])}
    z, cond = model.encode(batch, sample_keys(0, 32), train=False)
    back = model.decode(z, cond)
    assert z.shape == (32, *model.shape) == (32, 4, 4, 2) and z.dtype == jnp.float32 and cond is None
    assert back.shape == (32, 8, 8, 1) and back.dtype == jnp.uint8
    error, apart = (np.mean(np.abs(np.float32(a) - DISCS[:32])) for a in (back, DISCS[:32].mean(0)))
    assert error < 0.25 * apart
    rows = HeldoutRows(
        method.evaluations["reconstruction"],
        from_arrays({"x": DISCS}).train,
        32,
        seed=0,
        mesh=make_mesh(jax.devices()[:1]),
        batch_size=32,
    )(model)
    np.testing.assert_allclose(rows["psnr"], -10 * np.log10(np.maximum(rows["mse"], 1e-12)), rtol=1e-5)
    assert rows["psnr"].mean() > 12


def test_held_out_rows_are_shown_beside_their_reconstructions(trained):
    method, model = trained
    draws = Draws(keys=sample_keys(0, 3), index=jnp.arange(3), rng=None, step=jnp.int32(0), total=3)
    shown = jax.jit(method.pictures["reconstructions"])(model, {"x": DISCS[:3]}, draws)
    x = DISCS[:3] / 127.5 - 1
    assert shown.shape == (3, 8, 16, 1)
    np.testing.assert_allclose(shown[:, :, :8], x, atol=1e-6)
    back = model.reconstruct(np.float32(x))
    np.testing.assert_allclose(shown[:, :, 8:], back, atol=1e-5)


class Pointwise(nn.Module):
    """A layer of so many channels."""

    channels: int

    @nn.compact
    def __call__(self, x, c_noise, cond=None, *, train):
        return nn.Dense(self.channels)(x)


def test_a_denoiser_trains_on_its_latents(trained):
    _, model = trained
    method = denoising(VP(), LinenNet(Pointwise(2)), model)
    data = from_arrays({"x": DISCS}, holdout=0.1)
    outcome = train(method, data, steps=1, batch_size=8, mesh=make_mesh(jax.devices()[:1]), progress=False, log_every=1)
    assert outcome.state.step == 1 and method.model(outcome.state.params, {}).shape == (4, 4, 2)


def test_a_denoiser_of_another_latent_shape_is_refused_by_both_shapes(trained):
    _, model = trained
    method = denoising(VP(), LinenNet(Pointwise(3)), model)
    draws = Draws(keys=sample_keys(0, 5), index=jnp.arange(5), rng=None, step=jnp.int32(0), total=5)
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"shape \(5, 4, 4, 3\) for x of shape \(5, 4, 4, 2\)"):
        jax.eval_shape(lambda p: method.updates[0].loss(p, {}, {"x": jnp.asarray(DISCS[:5])}, draws).each, params)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Autoencoder(1, latent_channels=0), ValueError, "latent_channels must be a positive integer; got 0"),
        (lambda: Autoencoder(0), ValueError, "out_channels must be a positive integer; got 0"),
        (lambda: Autoencoder(1, nf=2), ValueError, "nf must be an integer of at least 4; got 2"),
        (lambda: LinenAutoencoder(Encoder(2)), TypeError, "module Encoder has no method 'encode'"),
        (lambda: autoencoder(Linear(), Pixels((2,))), ValueError, r"vectors of shape \(2,\)"),
        (lambda: autoencoder(Linear(), Pixels(SHAPE, 17, dequantize=True)), ValueError, "leave it out"),
        (lambda: autoencoder(Linear(), PIXELS, kl_weight=-1.0), ValueError, "kl_weight=-1.0 must be at least 0"),
        (lambda: autoencoder(Linear(), PIXELS, draws=0), ValueError, "draws=0 must be at least 1"),
        (lambda: autoencoder(Linear(), Pixels((4, 2, 1), 17)), ValueError, r"\(4, 2, 1\) back with shape \(2, 2, 1\)"),
        (lambda: autoencoder(NET, Pixels((7, 7, 1), 17)), ValueError, "multiples of 2; got 7×7"),
    ],
)
def test_what_cannot_work_is_refused_by_name(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
