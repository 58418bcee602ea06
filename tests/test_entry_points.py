"""Entry points called plainly compile themselves: other numbers do not trace again, and transformations go through."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.tree_util import Partial
from tiers import first

from diffuse_jax import (
    VP,
    bits_per_dim,
    decode,
    encode,
    from_score,
    log_prob,
    sample,
    sample_keys,
    solve,
    solvers,
    times,
)
from diffuse_jax.likelihood import hutchinson_trace
from diffuse_jax.sampling import denoise_once
from diffuse_jax.training import make_mesh
from diffuse_jax.variational_bound import discrete_reconstruction, elbo

TRACES = []


def score(variance: jax.Array, x: jax.Array, t: Any) -> jax.Array:
    """That of N(0, variance) data under VP, and a mark where it is traced."""
    TRACES.append(None)
    sde = VP()
    return -x / (jnp.square(sde.alpha(t)) * variance + jnp.square(sde.sigma(t))).reshape((-1, 1))


def model(variance: float) -> Any:
    """A denoiser built anew, with its number as a leaf."""
    return from_score(VP(), Partial(score, jnp.asarray(variance)), (2,))


X = np.full((3, 2), 0.3, np.float32)
#: Each is called as (denoiser, x, seed, tolerance); solvers, grids and options are built anew at every call.
CALLS: dict[str, Callable[..., Any]] = {
    "sample": lambda d, x, seed, tol: sample(sample_keys(seed, 3), d, solvers.ddim(0.5 + tol), times.uniform(VP(), 4)),
    "sample, denoised": lambda d, x, seed, tol: sample(
        sample_keys(seed, 3), d, solvers.heun(), times.uniform(VP(), 4), finish=denoise_once
    ),
    "solve": lambda d, x, seed, tol: solve(None, d, solvers.unipc(), times.log_snr(VP(), 4), x, path=True),
    "log_prob": lambda d, x, seed, tol: log_prob(d, x, rtol=tol, atol=tol, t_min=0.01 + tol),
    "log_prob, estimated": lambda d, x, seed, tol: log_prob(
        d, x, trace=hutchinson_trace, keys=sample_keys(seed, 3), probes=2, rtol=tol
    ),
    "elbo": lambda d, x, seed, tol: elbo(d, x, sample_keys(seed, 3), draws=4, t_min=0.01 + tol),
    "elbo of levels": lambda d, x, seed, tol: elbo(
        d, x, sample_keys(seed, 3), draws=4, reconstruction=discrete_reconstruction(17)
    ),
    "encode": lambda d, x, seed, tol: encode(d, x, rtol=tol),
    "decode": lambda d, x, seed, tol: decode(d, x, atol=tol),
    "bits_per_dim": lambda d, x, seed, tol: bits_per_dim(d, x, sample_keys(seed, 3), levels=17, rtol=tol),
}


@pytest.mark.parametrize("name", first(CALLS, keep=("sample", "solve", "log_prob", "elbo", "encode", "decode")))
def test_a_second_plain_call_with_other_numbers_does_not_trace_again(name: str) -> None:
    first = CALLS[name](model(0.5), X, 0, 1e-2)
    traced = len(TRACES)
    second = CALLS[name](model(2.0), X + 0.1, 1, 2e-2)
    assert len(TRACES) == traced > 0
    # And they are other numbers: those of the second call, as one that was traced for it computes them.
    whole = jax.jit(lambda: CALLS[name](model(2.0), X + 0.1, 1, 2e-2))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), second, whole)
    assert not np.allclose(jax.tree.leaves(first)[0], jax.tree.leaves(second)[0])


def test_what_is_no_tree_of_arrays_is_still_called() -> None:
    class Plain:
        """A denoiser that JAX knows nothing of."""

        sde, shape = VP(), (2,)

        def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> Any:
            return model(0.5)(x, t)

    plain, made = (sample(sample_keys(0, 3), d, solvers.ddim(), times.uniform(VP(), 4)) for d in (Plain(), model(0.5)))
    np.testing.assert_allclose(plain, made, rtol=1e-4, atol=1e-6)


def test_entry_points_are_used_within_shard_map() -> None:
    mesh, grid, keys = make_mesh(jax.devices()[:2]), times.uniform(VP(), 4), sample_keys(0, 4)
    share = PartitionSpec(("data", "fsdp"))
    draw = jax.shard_map(
        lambda keys: sample(keys, model(0.5), solvers.heun(), grid), mesh=mesh, in_specs=share, out_specs=share
    )
    np.testing.assert_allclose(draw(keys), sample(keys, model(0.5), solvers.heun(), grid), rtol=1e-5)


def test_the_gradient_by_what_a_score_closes_over_goes_through() -> None:
    """A function made within the differentiated one: its cells hold tracers."""
    grid, x = times.uniform(VP(), 4), jnp.asarray(X)

    def end(scale: Any, closed: bool) -> jax.Array:
        own = (lambda x, t: -scale * x) if closed else Partial(lambda scale, x, t: -scale * x, scale)
        return jnp.sum(sample(None, from_score(VP(), own), solvers.ddim(), grid, x))

    gradients = [jax.grad(end)(1.3, closed) for closed in (True, False)]
    np.testing.assert_allclose(*gradients, rtol=1e-5)
    assert abs(gradients[0]) > 0.1
