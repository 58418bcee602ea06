"""The noise-conditional classifier against the exact posterior of mixtures, whose components are the classes.

What is exact is computed here in NumPy, in float64, from the processes restated in closed_forms.
"""

import dataclasses
from collections import OrderedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import ALL_PROCESSES, ALL_SDES
from tiers import first, proof

from diffuse_jax import losses, parameterizations, times, training
from diffuse_jax.codecs import of_dataset
from diffuse_jax.conditions import Condition
from diffuse_jax.config import ConfigError, base, build, read
from diffuse_jax.config.build import DataInfo
from diffuse_jax.data import from_arrays
from diffuse_jax.evaluation import HeldoutRows
from diffuse_jax.methods import Classifier, classifier, cross_entropy
from diffuse_jax.nets import Encoder, LinenNet
from diffuse_jax.nets.mlp import log_time_features

PROCESSES = ["vp", "ve", "edm", "flow"]
ONE = training.make_mesh(jax.devices()[:1])
T_MIN = 0.02

#: Three classes in the plane, and two on the line.
PLANE = np.array([0.5, 0.3, 0.2]), np.array([[-0.8, 0.2], [0.7, 0.6], [0.3, -0.9]]), np.array([0.3, 0.2, 0.4])
LINE = np.array([0.35, 0.65]), np.array([[-0.5], [0.6]]), np.array([0.4, 0.25])


def draw(mixture, n, seed=0):
    """A data set of a mixture, the label being the component."""
    weights, means, stds = mixture
    rng = np.random.default_rng(seed)
    label = rng.choice(len(weights), n, p=weights)
    x = means[label] + stds[label, None] * rng.normal(size=(n, means.shape[1]))
    return from_arrays({"x": x.astype(np.float32), "label": label.astype(np.int32)})


def joint(mixture, name, x, t):
    """log p(y, x_t) in float64, (batch, classes), of x (batch, d) and a scalar t."""
    weights, means, stds = mixture
    process = ALL_PROCESSES[name]
    variance = process.alpha(t) ** 2 * stds**2 + process.sigma(t) ** 2
    square = np.sum((x[:, None] - process.alpha(t) * means) ** 2, axis=-1)
    return np.log(weights) - 0.5 * square / variance - 0.5 * means.shape[1] * np.log(2 * np.pi * variance)


def posterior(mixture, name, x, t):
    log_joint = joint(mixture, name, x, t)
    return log_joint - np.logaddexp.reduce(log_joint, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Exact:
    """The logits of a mixture as a network that is told t and shown x/√(α² + σ²)."""

    name: str

    def init(self, key, shape, cond=None):
        return {}

    def __call__(self, mixture, x, t, *, cond=None, rng=None):
        sde = ALL_SDES[self.name]
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        weights, means, stds = mixture
        x = x * jnp.sqrt(alpha**2 + sigma**2)
        variance = jnp.square(alpha * stds) + jnp.square(sigma)
        square = jnp.sum(jnp.square(x[:, None] - alpha[..., None] * means), -1)
        # Logits are free of a number of each row.
        return jnp.log(weights) - 0.5 * square / variance - 0.5 * x.shape[-1] * jnp.log(variance) + 7.0 * t[:, None]


def exact(mixture, name):
    return Classifier(ALL_SDES[name], tuple(jnp.asarray(part, jnp.float32) for part in mixture), Exact(name))


@pytest.mark.parametrize("name", first(PROCESSES, keep=["vp", "ve"]))
def test_log_prob_and_its_gradient_are_the_exact_posterior_and_the_difference_of_scores(name):
    classify, process = exact(PLANE, name), ALL_PROCESSES[name]
    rng = np.random.default_rng(1)
    _, means, stds = PLANE
    log_prob = jax.jit(lambda x, t, label: classify.log_prob(x, t, label))
    gradient = jax.jit(jax.grad(lambda x, t, label: classify.log_prob(x, t, label).sum()))
    for t in (0.1, 0.4, 0.8):
        label = rng.integers(0, 3, 32)
        x = process.alpha(t) * (means[label] + 0.5 * rng.normal(size=(32, 2))) + process.sigma(t) * rng.normal(
            size=(32, 2)
        )
        log_posterior = posterior(PLANE, name, x, t)
        of_rows = jnp.asarray(x, jnp.float32), jnp.full(32, t), jnp.asarray(label)
        np.testing.assert_allclose(log_prob(*of_rows), log_posterior[np.arange(32), label], rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(log_prob(of_rows[0], t, 1), log_posterior[:, 1], rtol=2e-4, atol=2e-4)
        # ∇ log p(y given x) = ∇ log p(x given y) − ∇ log p(x).
        variance = process.alpha(t) ** 2 * stds**2 + process.sigma(t) ** 2
        scores = -(x[:, None] - process.alpha(t) * means) / variance[:, None]
        of_all = np.sum(np.exp(log_posterior)[..., None] * scores, axis=1)
        expected = scores[np.arange(32), label] - of_all
        found = np.asarray(gradient(*of_rows))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(scores).max())
        assert np.abs(expected).max() > 0.01


def quadrature(name, t):
    """x (n, 1) over all of x_t on the line, its spacing, and log p(y, x_t)."""
    process = ALL_PROCESSES[name]
    reach = process.alpha(t) * 2.5 + 8 * process.sigma(t)
    x = np.linspace(-reach, reach, 4001)[:, None]
    return joint(LINE, name, x, t), x[1, 0] - x[0, 0]


def entropy_at(name, t):
    """−E log p(y given x_t): the least cross-entropy at a time."""
    log_joint, dx = quadrature(name, t)
    log_posterior = log_joint - np.logaddexp.reduce(log_joint, axis=1, keepdims=True)
    return -np.sum(np.exp(log_joint) * log_posterior) * dx


def bayes_accuracy(name, t):
    """E of the largest p(y given x_t): the greatest accuracy at a time."""
    log_joint, dx = quadrature(name, t)
    return np.sum(np.exp(log_joint).max(axis=1)) * dx


ROWS = draw(LINE, 44_000)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("vp", losses.uniform_times),
        ("flow", losses.importance_times),
        proof("vp", losses.importance_times),
        proof("flow", losses.uniform_times),
    ],
)
def test_the_loss_of_the_exact_posterior_is_its_entropy_over_time(name, law):
    sde = ALL_SDES[name]
    loss = cross_entropy(lambda params, extra: exact(LINE, name), of_dataset(ROWS), times=law, t_min=T_MIN)
    source, n = ROWS.train, len(ROWS.train)
    index = jnp.arange(n, dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), index)
    draws = training.Draws(keys=keys, index=index, rng=None, step=jnp.int32(0), total=n)
    found = jax.jit(lambda batch: loss({}, {}, batch, draws))(source[np.arange(n)])
    t = np.linspace(T_MIN, sde.t_start, 201)
    expected = np.trapezoid([entropy_at(name, value) for value in t], t) / (sde.t_start - T_MIN)
    each = np.asarray(found.each, np.float64)
    assert each.mean() == pytest.approx(expected, abs=4 * each.std() / np.sqrt(n))
    # A posterior that takes the classes to be alike is worse, and so told apart.
    alike = cross_entropy(
        lambda params, extra: exact((np.array([0.5, 0.5]), *LINE[1:]), name),
        of_dataset(ROWS),
        times=law,
        t_min=T_MIN,
    )
    worse = jax.jit(lambda batch: alike({}, {}, batch, draws).each)(source[np.arange(n)])
    assert np.asarray(worse, np.float64).mean() > expected + 4 * each.std() / np.sqrt(n)
    if law is losses.uniform_times:
        accuracy = np.trapezoid([bayes_accuracy(name, value) for value in t], t) / (sde.t_start - T_MIN)
        assert np.mean(found.metrics["accuracy"]) == pytest.approx(accuracy, abs=2 / np.sqrt(n))


@pytest.mark.parametrize("name", first(PROCESSES, keep=["vp"]))
def test_the_accuracy_at_each_level_is_that_of_bayes_and_the_least_noise_is_first(name):
    sde = ALL_SDES[name]
    made = classifier(sde, Exact(name), of_dataset(ROWS), levels=5)
    rows = HeldoutRows(made.evaluations["accuracy"], ROWS.test, 4400, seed=3, mesh=ONE, batch_size=2048)
    found = rows(exact(LINE, name))
    assert isinstance(found, OrderedDict) and len(found) == 5
    grid = np.asarray(times.log_snr(sde, 4))[::-1]
    levels = [float(key.removeprefix("accuracy_at_noise_")) for key in found]
    np.testing.assert_allclose(levels, np.exp(-ALL_PROCESSES[name].log_snr(grid) / 2), rtol=6e-3)
    assert np.all(np.diff(levels) > 0)
    expected = [bayes_accuracy(name, t) for t in grid]
    for each, accuracy in zip(found.values(), expected, strict=True):
        assert set(np.unique(each)) <= {0.0, 1.0} and each.shape == (4400,)
        assert each.mean() == pytest.approx(accuracy, abs=4 * np.sqrt(accuracy * (1 - accuracy) / 4400) + 2e-3)
    assert expected[0] > 0.94 and expected[-1] < 0.7  # from nearly all to little more than the larger class


class Small(nn.Module):
    """Logits of two layers of tanh units that see x and the noise."""

    out_features: int

    @nn.compact
    def __call__(self, x, c_noise, cond=None, *, train):
        h = jnp.concatenate([x, log_time_features(c_noise)], axis=-1)
        for _ in range(2):
            h = jnp.tanh(nn.Dense(48)(h))
        return nn.Dense(self.out_features)(h)


def test_a_learnt_classifier_comes_near_the_exact_posterior():
    data, sde = draw(PLANE, 20_000), ALL_SDES["vp"]
    made = classifier(
        sde,
        LinenNet(Small(3)),
        of_dataset(data),
        optimizer=training.adam(5e-3, warmup=20, decay="linear", steps=600),
        c_noise=parameterizations.c_noise_sigma,
        conditions=data.conditions,
        t_min=T_MIN,
    )
    outcome = training.train(
        made, data, None, steps=600, batch_size=512, mesh=ONE, steps_per_call=20, log_every=600, progress=False
    )
    classify = made.model(outcome.state.ema, outcome.state.extra)
    assert isinstance(classify, Classifier) and classify.shape == (2,)
    rng, (_, means, stds), process = np.random.default_rng(5), PLANE, ALL_PROCESSES["vp"]
    for t in (0.05, 0.2, 0.4):
        label = rng.choice(3, 2000, p=PLANE[0])
        x0 = means[label] + stds[label, None] * rng.normal(size=(2000, 2))
        x = process.alpha(t) * x0 + process.sigma(t) * rng.normal(size=(2000, 2))
        log_posterior = posterior(PLANE, "vp", x, t)
        learnt = jax.nn.log_softmax(classify(jnp.asarray(x, jnp.float32), t))
        divergence = np.mean(np.sum(np.exp(log_posterior) * (log_posterior - learnt), axis=1))
        ignorance = np.mean(np.sum(np.exp(log_posterior) * (log_posterior - np.log(PLANE[0])), axis=1))
        assert divergence < 0.06 * ignorance


def test_the_gradient_of_an_encoder_is_of_the_row_alone_and_finite_at_every_noise():
    sde = ALL_SDES["ve"]
    net = LinenNet(Encoder(out_features=4, nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), head="mean"))
    rng = np.random.default_rng(0)  # of shapes alone, so that nothing compiles, and no branch is hidden by zeros
    shapes = jax.eval_shape(lambda key: net.init(key, (4, 4, 1)), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    classify = Classifier(sde, params, net, parameterizations.c_noise_sigma)
    t, label = jnp.linspace(sde.t_min, sde.T, 6), jnp.arange(6) % 4
    x = sde.sigma(t)[:, None, None, None] * jnp.asarray(rng.normal(size=(6, 4, 4, 1)), jnp.float32)
    of_rows = jax.jit(lambda x: (jax.grad(lambda x: classify.log_prob(x, t, label).sum())(x), classify(x, t)))
    found, logits = of_rows(x)
    assert np.isfinite(found).all() and (np.abs(found).max(axis=(1, 2, 3)) > 0).all()
    np.testing.assert_allclose(
        of_rows(x.at[1:].set(0.0))[0][0], found[0], rtol=1e-4, atol=1e-5 * np.abs(found[0]).max()
    )
    # At noise of 50 x is of that size, and the network is shown neither.
    assert np.isfinite(logits).all() and np.abs(logits).max() < 100


def test_the_network_is_shown_other_conditions_and_never_the_label():
    seen = []

    class Told:
        def init(self, key, shape, cond=None):
            seen.append(sorted(cond))
            return jnp.zeros(())

        def __call__(self, params, x, c_noise, *, cond=None, rng=None):
            seen.append(sorted(cond))
            return jnp.zeros((x.shape[0], 3)).at[:, 2].set(cond["tokens"][:, 0] * 1.0)

    conditions = {"label": Condition((), 3), "tokens": Condition((2,), 9)}
    made = classifier(ALL_SDES["vp"], Told(), of_dataset(draw(PLANE, 10)), conditions=conditions)
    params, extra = made.init(jax.random.key(0))
    index = jnp.arange(2)
    keys = jax.random.split(jax.random.key(0), 2)
    draws = training.Draws(keys=keys, index=index, rng=None, step=jnp.int32(0), total=2)
    batch = {"x": jnp.zeros((2, 2)), "label": jnp.array([2, 2]), "tokens": jnp.array([[8, 0], [0, 0]])}
    found = made.heldout["loss"](params, extra, batch, draws)
    np.testing.assert_allclose(found.each, [np.log1p(2 * np.exp(-8)), np.log(3)], rtol=1e-4)
    assert seen == [["tokens"], ["tokens"]]
    with pytest.raises(ValueError, match=r"trained on labels, and the batch has none"):
        made.heldout["loss"](params, extra, {"x": batch["x"]}, draws)
    with pytest.raises(ValueError, match=r"output has shape \(2,\) .* must be \(batch, classes\)"):
        Classifier(ALL_SDES["vp"], None, lambda params, x, c_noise: x[:, 0])(batch["x"], 0.5)
    assert np.isnan(exact(PLANE, "vp").log_prob(batch["x"], 0.5, 3)).all()


DIGITS = DataInfo((8, 8, 1), 17, {"label": Condition((), 10)})


def test_an_experiment_has_the_parts_that_its_sections_say():
    made = build(
        read("digits_classifier", ["--config.sde.beta_max=15.0", "--config.parameterization.c_noise=t"]), DIGITS
    )
    assert made.sde.beta_max == 15.0 and made.net.module.out_features == 10
    can = made.method
    assert can.draw is None and can.log_prob is None and can.denoiser is None and not can.pictures
    assert list(can.heldout) == ["loss"] and list(can.evaluations) == ["accuracy"]
    model = can.model(made.params, {})
    assert model.c_noise is parameterizations.c_noise_t and model.shape == (8, 8, 1)


def config(**sections):
    made = read("digits_classifier")
    for name, fields in sections.items():
        made[name] = fields if name == "model" else {**made[name], **fields}
    return made


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"loss": {"weight": "g2"}}, r"config\.loss\.weight='g2' is not read by .*'classifier': leave it at 'sigma2'"),
        ({"loss": {"drop_conditions": 0.1}}, r"config\.loss\.drop_conditions=0\.1 is not read by"),
        ({"parameterization": {"name": "v"}}, r"config\.parameterization\.name='v' is not read by"),
        ({"sampling": {"solver": "ddim"}}, r"config\.sampling\.solver='ddim' is not read by"),
        ({"data": {"augment": 0.5}}, r"config\.data\.augment=0\.5 is not read by config\.method\.name='classifier'"),
        ({"model": base().model}, r"config\.model\.name='ncsnpp' returns an array like x, .* such as encoder"),
        ({"method": {"name": "denoising"}}, r"config\.model\.name='encoder' returns features, .* such as ncsnpp"),
        ({"parameterization": {"c_noise": "index"}}, r"config\.parameterization\.c_noise='index': an index is for"),
    ],
)
def test_what_it_does_not_read_or_cannot_use_is_refused_by_name(sections, words):
    with pytest.raises(ConfigError, match=words):
        build(config(**sections), DIGITS)


def test_a_head_that_gives_no_logits_and_data_without_labels_are_refused():
    made = read("digits_classifier", ["--config.model.head=moments"])
    with pytest.raises(ConfigError, match=r"returns \(1, 4, 4, 10\) of float32, and must return floats of shape"):
        build(made, DIGITS)
    with pytest.raises(ConfigError, match=r"config\.data\.labels=False: .* learns labels, give True"):
        build(read("digits_classifier", ["--config.data.labels=False"]), DataInfo((8, 8, 1), 17))
