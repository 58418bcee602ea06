"""What an experiment is as objects, and what is known of its data."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffuse_jax.codecs import Codec
from diffuse_jax.conditions import Condition
from diffuse_jax.config.sampling_section import SamplingPlan
from diffuse_jax.nets import LinenNet
from diffuse_jax.parameterizations import Parameterization
from diffuse_jax.sde import SDE
from diffuse_jax.training import Method, TrainState, create_state, first_state, gathered, run_key, train_step
from diffuse_jax.training.step import StepFn

__all__ = ["DataInfo", "Experiment"]


@dataclass(frozen=True)
class DataInfo:
    """What a network must know of its data.

    Args:
        shape: The shape of one row.
        levels: Its grey levels; None where the data are continuous.
        conditions: What is known of its conditions, by name.
    """

    shape: tuple[int, ...]
    levels: int | None
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """The classes of the labels; None where there are none."""
        return self.conditions["label"].values if "label" in self.conditions else None

    def as_json(self) -> dict[str, Any]:
        """What JSON holds of it."""
        conditions = {name: known._asdict() for name, known in self.conditions.items()}
        return {"shape": self.shape, "levels": self.levels, "conditions": conditions}


@dataclass(frozen=True)
class Experiment:
    """A config as objects.

    Args:
        config: The config.
        data: What is known of the data.
        method: What is trained, and what it can do.
        codec: Between the data and the model's space.
        params: The shapes of the parameters.
        extra: The shapes of what is carried beside them.
        sde: The process, of a method that has one.
        net: The network, of a method that has one that is called as a denoiser's is.
        parameterization: What its output means, of a method that trains a denoiser.
        plan: How samples are drawn, of a method that does it by a solver.
    """

    config: ConfigDict
    data: DataInfo
    method: Method
    codec: Codec
    params: Any
    extra: Any = field(default_factory=dict)
    sde: SDE | None = None
    net: LinenNet | None = None
    parameterization: Parameterization | None = None
    plan: SamplingPlan | None = None

    def create_state(self) -> TrainState:
        """The state at step 0, a function of the seed."""
        return first_state(self.method, self.config.seed)

    def denoiser(self, params: Any, extra: Any = None) -> Any:
        """The denoiser of a method that trains one."""
        assert self.method.denoiser is not None
        return self.method.denoiser(params, {} if extra is None else extra)

    @property
    def state_shapes(self) -> TrainState:
        """The shapes of the state; the network was traced for those of its parameters, and is not again."""
        return jax.eval_shape(lambda p, e: create_state(p, self.method.updates, e), self.params, self.extra)

    def update(self, mesh: Mesh | None = None) -> StepFn:
        """One step of training, `train_step` as the config has it; where the mesh splits the state, of parameters that
        are gathered first."""
        return functools.partial(
            train_step,
            updates=self.method.updates if mesh is None else gathered(self.method.updates, mesh),
            ema=self.method.ema,
            key=run_key(self.config.seed, 1),
            accumulate=self.config.training.accumulate,
        )
