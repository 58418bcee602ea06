"""The MLP, and the bridge from Linen modules to pure functions."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_params import random_params

from diffuse_jax.nets import MLP, LinenNet, NCSNpp, param_count

SMALL = MLP(width=16, depth=2)


def test_mlp_learns_a_function_of_vector_time_and_class_at_every_scale_of_time():
    net = LinenNet(MLP(width=64, depth=2, num_classes=2))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 400))

    def batch(key, t_max):
        k_x, k_t, k_c = jax.random.split(key, 3)
        x, c = jax.random.normal(k_x, (256, 2)), jax.random.randint(k_c, (256,), 0, 2)
        u = jax.random.uniform(k_t, (256,))
        return (x, u * t_max, c), x * jnp.sin(4 * u)[:, None] + c[:, None]

    def loss(params, key, t_max):
        (x, t, c), target = batch(key, t_max)
        return jnp.mean((net(params, x, t, cond={"label": c}) - target) ** 2)

    @jax.jit
    def fit(key, t_max):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, key, t_max), state)
            return (optax.apply_updates(params, updates), state), None

        params = net.init(key, (2,))
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 400))
        return loss(params, jax.random.key(9), t_max)

    for t_max in (1.0, 50.0, 999.0):
        assert fit(jax.random.key(0), t_max) < 0.02  # the target's variance is about 0.7


def test_mlp_has_finite_derivatives_in_x_and_t_at_time_zero():
    net = LinenNet(SMALL)
    params = random_params(net, (2,))
    dt = jax.jacfwd(lambda t: net(params, jnp.ones((1, 2)), t))(0.0)
    dx = jax.jacfwd(lambda x: net(params, x, 0.0))(jnp.zeros((1, 2)))
    assert jnp.all(jnp.isfinite(dt)) and jnp.all(jnp.isfinite(dx)) and jnp.any(dt != 0)


def test_waves_of_the_input_repeat_with_the_longest_period_and_not_before():
    net = LinenNet(MLP(width=16, depth=1, frequencies=3))
    params = random_params(net, (2,))
    kernel = params["in"]["kernel"]
    params["in"]["kernel"] = kernel.at[:2].set(0)  # x itself is left out: only its waves are read
    x = jnp.array([[0.3, -0.2]])
    np.testing.assert_allclose(net(params, x + 2, 0.5), net(params, x, 0.5), atol=1e-4)
    assert jnp.max(jnp.abs(net(params, x + 1, 0.5) - net(params, x, 0.5))) > 1e-2
    assert kernel.shape == (2 + 2 * 2 * 3, 16)


@pytest.mark.parametrize("field", ["width", "depth", "num_classes"])
def test_mlp_refuses_a_size_of_zero_by_name(field):
    with pytest.raises(ValueError, match=f"{field} must be .*positive integer; got 0"):
        MLP(**{field: 0})


def test_mlp_refuses_images():
    with pytest.raises(ValueError, match="x must have shape"):
        LinenNet(MLP()).init(jax.random.key(0), (8, 8, 3))


@pytest.mark.parametrize("cond", [{}, {"label": jnp.array([2, -1])}], ids=["empty", "null"])
def test_conditions_that_are_all_null_are_no_conditions(cond):
    net, x = LinenNet(MLP(width=16, depth=1, num_classes=2)), jnp.ones((2, 2))
    params = random_params(net, (2,))
    np.testing.assert_array_equal(net(params, x, 0.5, cond=cond), net(params, x, 0.5))


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (jnp.zeros(2, int), "cond must be a mapping from name to array"),
        ({"label": jnp.zeros(2, int)}, "cond has 'label', which MLP without the field num_classes does not read"),
        ({"depth": jnp.zeros(2)}, "cond has 'depth', which MLP does not read"),
    ],
)
def test_conditions_that_a_network_does_not_read_are_refused_by_name(cond, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: SMALL.init(jax.random.key(0), jnp.zeros((2, 2)), jnp.ones(2), cond))


def test_equal_networks_made_twice_do_not_recompile():
    chex.clear_trace_counter()

    @jax.jit(static_argnums=0)
    @chex.assert_max_traces(n=2)
    def apply(net, params, x):
        return net(params, x, 0.5)

    x = jnp.ones((1, 2))
    params = random_params(LinenNet(SMALL), x.shape[1:])
    for _ in range(3):
        apply(LinenNet(MLP(width=16, depth=2)), params, x)
    apply(LinenNet(MLP(width=16, depth=2, dropout=0.1)), params, x)
    a, b = LinenNet(NCSNpp(ch_mult=(1, 2))), LinenNet(NCSNpp(ch_mult=[1, 2]))
    assert a == b and hash(a) == hash(b)
    assert LinenNet(NCSNpp()) != LinenNet(NCSNpp(fir=False)) and LinenNet(NCSNpp()) != LinenNet(MLP())


def test_a_scalar_time_is_the_same_time_for_every_row():
    net, x = LinenNet(SMALL), jax.random.normal(jax.random.key(1), (3, 2))
    params = random_params(net, (2,))
    np.testing.assert_array_equal(net(params, x, 0.5), net(params, x, jnp.full(3, 0.5)))


class Scale(nn.Module):
    """A user's module: no `cond`, dropout of its own."""

    @nn.compact
    def __call__(self, x, t, *, train):
        return nn.Dropout(0.5, deterministic=not train)(self.param("a", nn.initializers.ones, ()) * x + t[:, None])


class Averaging(nn.Module):
    @nn.compact
    def __call__(self, x, t, *, train):
        return nn.BatchNorm(use_running_average=not train)(x)


def test_any_linen_module_serves_and_trains_exactly_when_given_a_key():
    net, x = LinenNet(Scale()), jnp.ones((2, 50))
    params = jax.jit(net.init, static_argnums=1)(jax.random.key(0), (50,))
    np.testing.assert_array_equal(net(params, x, 2.0), 3 * x)
    assert set(np.unique(net(params, x, 2.0, rng=jax.random.key(1)))) == {0.0, 6.0}


class Conditioned(nn.Module):
    """A user's module that makes parameters for the conditions it is given."""

    @nn.compact
    def __call__(self, x, c_noise, cond=None, *, train):
        return x if cond is None else x + nn.Dense(x.shape[-1])(cond["features"])


def test_parameters_for_conditions_are_made_from_their_shapes_or_arrays_and_from_none_without():
    net, shapes = LinenNet(Conditioned()), {"features": jax.ShapeDtypeStruct((1, 5), jnp.float32)}
    made = net.init(jax.random.key(0), (3,), shapes)
    assert made["Dense_0"]["kernel"].shape == (5, 3) and net.init(jax.random.key(0), (3,)) == {}
    chex.assert_trees_all_equal(made, net.init(jax.random.key(0), (3,), {"features": jnp.full((1, 5), jnp.nan)}))
    output, _ = net.init_with_output(jax.random.key(0), (3,), shapes)
    assert output.shape == (1, 3)


def test_a_module_with_state_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'params' alone; got also \['batch_stats'\]"):
        LinenNet(Averaging()).init(jax.random.key(0), (3,))


def test_parameters_are_counted_from_arrays_and_from_shapes_alike():
    net = LinenNet(nn.Dense(3))
    tree = {"kernel": np.zeros((4, 3)), "bias": np.zeros(3), "scalar": np.float32(0)}
    assert param_count(tree) == 16
    assert param_count(jax.eval_shape(lambda: tree)) == 16
    assert param_count(jax.eval_shape(lambda key: net.module.init(key, jnp.ones((1, 4))), jax.random.key(0))) == 15
