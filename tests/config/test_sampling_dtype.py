"""`config.sampling.dtype`: the network computes in that type, and all that a solver keeps is float32."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from diffuse_jax.config import ConfigError, DataInfo, build, override, read
from diffuse_jax.sampling import sample_keys

DATA = DataInfo((8, 8, 1), 17)
SOLVERS = ("ancestral", "dpm_solver_multi", "reverse_diffusion+langevin")


def experiment(*fields: str) -> Any:
    config = read("digits")
    config.sampling.update(solver="heun", eta=None, steps=4, grid="uniform")
    return build(override(config, [f"--config.{field}" for field in fields]), DATA)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, with those inside of its loops and calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def program(experiment: Any) -> Any:
    """The whole of sampling, traced and not compiled."""
    draw = lambda params, keys: experiment.method.draw.function(experiment.denoiser(params), keys, None, False).x  # noqa: E731
    return jax.make_jaxpr(draw)(experiment.params, jax.eval_shape(lambda: sample_keys(0, 2))).jaxpr


def products(jaxpr: Any) -> list[Any]:
    """The type of each convolution and matrix product."""
    names = ("conv_general_dilated", "dot_general", "convolve")
    return [e.invars[0].aval.dtype for e in equations(jaxpr) if e.primitive.name in names]


def floats(variables: Any) -> set[Any]:
    return {v.aval.dtype for v in variables if jnp.issubdtype(v.aval.dtype, jnp.floating)}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_bfloat16_network_leaves_the_solvers_state_in_float32(solver: str) -> None:
    jaxpr = program(experiment(f"sampling.solver={solver}", "sampling.dtype=bfloat16"))
    kinds = products(jaxpr)
    # Of the network's products those of the time embedding and the last convolution stay float32.
    assert kinds.count(jnp.bfloat16) > 0.7 * len(kinds)
    assert floats([*jaxpr.invars, *jaxpr.outvars]) == {jnp.dtype("float32")}
    (solve,) = [e.params["jaxpr"].jaxpr for e in jaxpr.eqns if e.params.get("name") == "_solve"]
    (loop,) = [e for e in solve.eqns if e.primitive.name == "scan"]
    assert floats([*loop.invars, *loop.outvars]) == {jnp.dtype("float32")}


def test_the_type_of_sampling_is_that_of_the_model_unless_it_is_given() -> None:
    float32, half = jnp.dtype("float32"), jnp.dtype("bfloat16")
    assert set(products(program(experiment()))) == {float32}
    assert half in products(program(experiment("model.dtype=bfloat16")))
    given = experiment("model.dtype=bfloat16", "sampling.dtype=float32")
    assert set(products(program(given))) == {float32}
    # The loss and the likelihood are of the network as it was trained.
    assert given.denoiser(None).net.module.dtype == half


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["sampling.dtype=int8"], "config.sampling.dtype='int8' must be one of float32, bfloat16, float16"),
        (["model.dtype=half"], "config.model.dtype='half' must be one of float32, bfloat16, float16"),
    ],
)
def test_another_type_is_refused(fields: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(*fields)


def test_a_network_that_cannot_be_told_a_type_is_refused() -> None:
    config = override(read("toy2d"), ["--config.sampling.dtype=bfloat16"])
    with pytest.raises(ConfigError, match=r"config.sampling.dtype='bfloat16': config.model.name='mlp' has no field"):
        build(config, DataInfo((2,), None))
