"""The optimizer against a transcription of the papers in NumPy, and the moving average against its closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_training as toy

from diffuse_jax import training


def numpy_adam(p, gradients, lr, warmup, clip, decay):
    """Kingma & Ba's algorithm 1 with bias correction, after clipping, with decoupled decay and a linear warm-up from
    0.
    """
    m, v = np.zeros_like(p), np.zeros_like(p)
    for n, g in enumerate(gradients):
        norm = np.linalg.norm(g)
        if clip is not None and clip > 0:
            g = g * clip / max(norm, clip)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = (m / (1 - 0.9 ** (n + 1))) / (np.sqrt(v / (1 - 0.999 ** (n + 1))) + 1e-8)
        p = p - lr * (min(n / warmup, 1) if warmup else 1) * (direction + decay * p)
    return p


@pytest.mark.parametrize("warmup", [0, 5, 7.25])
@pytest.mark.parametrize(("clip", "decay"), [(None, 0.0), (-1.0, 0.1), (1.0, 0.0)])
def test_adam_is_the_papers_with_warm_up_clipping_and_decay(warmup, clip, decay):
    rng = np.random.default_rng(1)
    p, gradients = rng.normal(size=6), rng.normal(size=(12, 6))  # norms on both sides of the clip
    gradients[::3] *= 0.1
    with jax.enable_x64(True):
        optimizer = training.adam(0.02, warmup=warmup, clip=clip, weight_decay=decay)
        params = {"a": jnp.asarray(p[:2]), "b": jnp.asarray(p[2:])}
        memory = optimizer.init(params)
        for g in gradients:
            tree = {"a": jnp.asarray(g[:2]), "b": jnp.asarray(g[2:])}
            updates, memory = optimizer.update(tree, memory, params)
            params = optax.apply_updates(params, updates)
        result = np.concatenate([params["a"], params["b"]])
    np.testing.assert_allclose(result, numpy_adam(p, gradients, 0.02, warmup, clip, decay), rtol=1e-6)


def numpy_radam(p, gradients, lr):
    """Liu et al., 1908.03265, algorithm 2, rectified from ρ_t = 5 on as its authors' program does it."""
    m, v, most = np.zeros_like(p), np.zeros_like(p), 2 / (1 - 0.999) - 1
    for n, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rho = most - 2 * n * 0.999**n / (1 - 0.999**n)
        direction = m / (1 - 0.9**n)
        if rho >= 5:
            rectified = np.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
            direction = rectified * direction / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
        p = p - lr * direction
    return p


def test_radam_is_the_papers():
    rng = np.random.default_rng(1)
    p, gradients = rng.normal(size=6), rng.normal(size=(12, 6))
    with jax.enable_x64(True):
        optimizer = training.radam(0.02)
        params = jnp.asarray(p)
        memory = optimizer.init(params)
        for g in gradients:
            change, memory = optimizer.update(jnp.asarray(g), memory, params)
            params = optax.apply_updates(params, change)
    np.testing.assert_allclose(params, numpy_radam(p, gradients, 0.02), rtol=1e-6)
    assert not np.allclose(params, numpy_radam(p, gradients[:5], 0.02), rtol=1e-3)  # past the rectification


def test_adamw_is_adam_with_a_decay_that_it_wants():
    rng = np.random.default_rng(1)
    p, g = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.normal(size=6))
    one, other = training.adamw(0.02, weight_decay=0.1), training.adam(0.02, weight_decay=0.1)
    (a, _), (b, _) = (optimizer.update(g, optimizer.init(p), p) for optimizer in (one, other))
    np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="weight_decay = 0 must be above 0: AdamW without it is adam"):
        training.adamw(0.02, weight_decay=0)


def test_the_first_update_of_a_warm_up_changes_nothing():
    start = toy.state()
    after, _ = jax.jit(toy.step())(start, toy.batch(0))
    jax.tree.map(np.testing.assert_array_equal, start.params, after.params)
    assert float(optax.tree.norm(after.opt_state[1].mu)) > 0


def test_the_optimizers_tree_does_not_depend_on_what_is_switched_off():
    options = {"warmup": 3, "clip": 1.0, "weight_decay": 0.1, "decay": "linear", "steps": 9}
    full, bare = training.adam(1.0, **options), training.adam(1.0)
    assert jax.tree.structure(full.init(toy.params())) == jax.tree.structure(bare.init(toy.params()))


def linear(lr):
    """Descends the mean of rows·p, whose gradient does not depend on p."""
    loss = lambda params, extra, batch, draws: training.LossOutput(batch @ params)  # noqa: E731
    return (training.Update(loss, optax.sgd(lr)),)


def linear_step(lr, ema):
    return jax.jit(
        lambda state, batch: training.train_step(state, batch, updates=linear(lr), ema=ema, key=jax.random.key(0))
    )


def test_the_moving_average_of_a_straight_line_has_its_closed_form():
    """p_k = p_0 − k·c gives ema_n = p_0 − c·(n − r(1 − rⁿ)/(1 − r))."""
    r, n, lr = 0.8, 7, 0.5
    with jax.enable_x64(True):
        p0, batch = jnp.asarray([1.0, -2.0]), jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
        step = linear_step(lr, training.ema_decay(rate=r, batch_size=2))
        state = training.create_state(p0, linear(lr))
        for _ in range(n):
            state, _ = step(state, batch)
        c = lr * np.mean(batch, axis=0)
        np.testing.assert_allclose(state.params, p0 - n * c, rtol=1e-12)
        np.testing.assert_allclose(state.ema, p0 - c * (n - r * (1 - r**n) / (1 - r)), rtol=1e-12)


def test_a_warming_up_average_forgets_its_start_as_one_over_a_binomial():
    """Π_{k<n} (1 + k)/(10 + k) = n!·9!/(n + 9)!."""
    n = 6
    with jax.enable_x64(True):
        step = linear_step(0.0, training.ema_decay(rate=0.9999, batch_size=2, warmup=True))
        state = training.create_state(jnp.zeros(1), linear(0.0))
        state = training.TrainState(step=state.step, params=state.params, ema=jnp.ones(1), opt_state=state.opt_state)
        for _ in range(n):
            state, _ = step(state, jnp.ones((1, 1)))
        np.testing.assert_allclose(state.ema, [1 / math.comb(n + 9, 9)], rtol=1e-6)


def test_the_warm_up_of_the_average_ends_at_its_rate():
    decay = training.ema_decay(rate=0.5, batch_size=1, warmup=True)
    np.testing.assert_allclose([decay(jnp.int32(n)) for n in (0, 1, 8, 100)], [0.1, 2 / 11, 0.5, 0.5], rtol=1e-6)


def test_half_of_a_weight_is_left_after_the_half_life():
    decay = float(training.ema_decay(halflife_images=1000, batch_size=50)(jnp.int32(0)))
    np.testing.assert_allclose(decay ** (1000 / 50), 0.5, rtol=1e-5)


def test_a_ramp_over_so_many_images_is_their_number_over_the_batchs_size():
    """EDM's: the rate of an update is lr·min(images seen before it/10⁷, 1), with batches of 512."""
    step, images = 0.01, 10e6 / 512
    optimizer = training.adam(step, warmup=images)
    memory = optimizer.init(jnp.zeros(1))
    for n in (0, 1, 9765, 19531, 19532, 10**6):
        clock = optax.tree.set(memory, count=jnp.int32(n), mu=jnp.ones(1), nu=jnp.ones(1))
        scale, _ = optimizer.update(jnp.ones(1), clock, jnp.zeros(1))
        full, _ = training.adam(step).update(jnp.ones(1), clock, jnp.zeros(1))
        np.testing.assert_allclose(scale / full, min(n * 512 / 10e6, 1), rtol=1e-5)


def test_a_half_life_that_ramps_up_is_the_published_recursion():
    """2206.00364's program: half-life min(H, 0.05·images seen), decay 0.5^(batch/half-life), in float64 scalars."""
    halflife, ratio, batch = 900.0, 0.05, 64
    decay = jax.jit(training.ema_decay(halflife_images=halflife, rampup_ratio=ratio, batch_size=batch))
    average = found = 5.0
    for step in range(400):
        value = math.sin(0.1 * step) + 2
        beta = 0.5 ** (batch / max(min(halflife, step * batch * ratio), 1e-8))
        average = beta * average + (1 - beta) * value
        rate = float(decay(jnp.int32(step)))
        found = rate * found + (1 - rate) * value
        np.testing.assert_allclose(found, average, rtol=1e-5)
        assert step > 0 or found == value
    np.testing.assert_allclose(float(decay(jnp.int32(2**31 - 1))), 0.5 ** (batch / halflife), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"rate": 0.9, "rampup_ratio": 0.05}, "rampup_ratio=0.05"),
        ({"halflife_images": 5.0, "rampup_ratio": 0.0}, "rampup_ratio=0.0"),
        ({"rate": 0.9, "halflife_images": 5.0}, "exactly one"),
        ({"rate": 1.0}, "rate = 1.0"),
        ({"halflife_images": 0.0}, "halflife_images=0.0"),
    ],
)
def test_an_average_without_one_sensible_rate_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        training.ema_decay(batch_size=8, **options)


@pytest.mark.parametrize("bad", [{"learning_rate": 0.0}, {"warmup": -1}, {"weight_decay": -0.1}])
def test_an_optimizer_that_cannot_descend_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        training.adam(**{"learning_rate": 1e-3} | bad)


@pytest.mark.parametrize(
    ("decay", "left"),
    [
        ("none", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 3 / 4, 1 / 2, 1 / 4, 1e-9, 0]),
        ("cosine", [1, (1 + math.sqrt(1 / 2)) / 2, 1 / 2, (1 - math.sqrt(1 / 2)) / 2, 0, 0]),
    ],
)
@pytest.mark.parametrize("warmup", [0, 5e8])
def test_the_rate_falls_to_nothing_over_the_run_beside_its_warm_up(decay, left, warmup):
    steps = 10**9
    scheduled, constant = training.adam(0.5, warmup=warmup, decay=decay, steps=steps), training.adam(0.5)
    with jax.enable_x64(True):
        memory = scheduled.init(jnp.zeros(1))
        for n, factor in zip([0, steps // 4, steps // 2, 3 * steps // 4, steps - 1, steps + 7], left, strict=True):
            clock = optax.tree.set(memory, count=jnp.int32(n), mu=jnp.ones(1), nu=jnp.ones(1))
            (update, _), (full, _) = (each.update(jnp.ones(1), clock, jnp.zeros(1)) for each in (scheduled, constant))
            ramp = min(n / warmup, 1) if warmup else 1
            np.testing.assert_allclose(update / full, factor * ramp, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "step"}, "decay = 'step' must be one of none, linear, cosine"),
        ({"decay": "linear"}, "decay = 'linear' .* steps = None"),
        ({"decay": "cosine", "steps": 0}, "steps = 0"),
    ],
)
def test_a_decay_that_is_unknown_or_never_ends_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        training.adam(1e-3, **options)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_new_state_can_be_donated_whole(compiled):
    """XLA refuses to donate one buffer twice, which an average that aliased the parameters would be."""
    state = (jax.jit(toy.state) if compiled else toy.state)()
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema))]
    assert len(set(pointers)) == len(pointers)
    after, _ = jax.jit(toy.step(), donate_argnums=0)(state, toy.batch(0))
    assert int(after.step) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.ema)))
