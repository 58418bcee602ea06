"""The range of every number in an experiment: one that is outside, NaN or infinite is refused by name."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffuse_jax.config.errors import ConfigError

__all__ = ["RANGES", "Range", "check_numbers"]

_LARGEST = float(np.finfo(np.float32).max)
_INT32 = 2**31 - 1


class Range(NamedTuple):
    """The numbers between two ends, in float32: finite unless `most` is infinite.

    Args:
        least: The lower end.
        most: The upper end.
        open_least: The lower end is not one of them.
        open_most: The upper end is not one of them.
    """

    least: float = -_LARGEST
    most: float = _LARGEST
    open_least: bool = False
    open_most: bool = False

    def __contains__(self, value: Any) -> bool:
        with np.errstate(over="ignore"):  # floats as they are computed with: 1e-50 is 0, and 1 - 1e-9 is 1
            number = value if isinstance(value, int) else float(np.float32(value))
        above = number > self.least if self.open_least else number >= self.least
        return above and (number < self.most if self.open_most else number <= self.most)

    def __str__(self) -> str:
        words = [f"{'above' if self.open_least else 'at least'} {self.least:,.15g}"] if self.least > -_LARGEST else []
        if self.most == _LARGEST:
            words.append("finite")
        elif self.most < _LARGEST:
            words.append(f"{'below' if self.open_most else 'at most'} {self.most:,.15g}")
        return " and ".join(words)


_POSITIVE = Range(0, open_least=True)
_NOT_NEGATIVE = Range(0)
_SHARE = Range(0, 1)
_BELOW_ONE = Range(0, 1, open_most=True)
_INSIDE = Range(0, 1, open_least=True, open_most=True)
_COUNT = Range(1, _INT32)
_CADENCE = Range(0, _INT32)
#: What a loop or a table goes through: more would not end.
_STEPS = Range(1, 1_000_000)

#: Of the fields of `base()` and of methods, except those of networks; of a tuple each entry.
RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1),
    "method.kl_weight": _NOT_NEGATIVE,
    "data.image_size": Range(1, 2**15),
    "data.channels": Range(1, 3),
    "data.holdout": _BELOW_ONE,
    "data.num_classes": _COUNT,
    "data.augment": _SHARE,
    "data.tokens": Range(0, 65_536),
    "data.vocabulary": _COUNT,
    "sde.beta_min": _POSITIVE,
    "sde.beta_max": _POSITIVE,
    "sde.sigma_min": _POSITIVE,
    "sde.sigma_max": _POSITIVE,
    "sde.s": _NOT_NEGATIVE,
    "sde.num_scales": Range(2, 1_000_000),
    "sde.betas": _INSIDE,
    "parameterization.sigma_data": _POSITIVE,
    "loss.p_mean": Range(),
    "loss.p_std": _POSITIVE,
    "loss.t_min": _POSITIVE,
    "loss.drop_conditions": _SHARE,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup": _NOT_NEGATIVE,
    "optimizer.clip": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.b1": _BELOW_ONE,
    "optimizer.b2": _BELOW_ONE,
    "optimizer.eps": _POSITIVE,
    "ema.rate": _BELOW_ONE,
    "ema.halflife_images": _POSITIVE,
    "ema.rampup_ratio": _POSITIVE,
    "training.steps": _COUNT,
    "training.batch_size": _COUNT,
    "training.accumulate": _COUNT,
    "training.fsdp": _COUNT,
    "training.steps_per_call": _COUNT,
    "training.log_every": _COUNT,
    "training.checkpoint_every": _COUNT,
    "training.keep": _COUNT,
    "training.keep_every": _CADENCE,
    "training.evaluate_every": _CADENCE,
    "training.sample_every": _CADENCE,
    "sampling.steps": _STEPS,
    "sampling.rho": _POSITIVE,
    "sampling.times": _POSITIVE,
    "sampling.t_min": _POSITIVE,
    "sampling.order": Range(1, 10),
    "sampling.eta": _NOT_NEGATIVE,
    "sampling.kappa": _NOT_NEGATIVE,
    "sampling.churn": _NOT_NEGATIVE,
    "sampling.churn_min": _NOT_NEGATIVE,
    "sampling.churn_max": Range(0, float("inf")),
    "sampling.churn_noise": _NOT_NEGATIVE,
    "sampling.snr": _NOT_NEGATIVE,
    "sampling.corrector_steps": _STEPS,
    "sampling.epsilon": _POSITIVE,
    "sampling.sigma_last": _POSITIVE,
    "sampling.rtol": _SHARE,
    "sampling.atol": _SHARE,
    "sampling.max_evaluations": Range(7, _INT32),
    "sampling.num": _COUNT,
    "sampling.batch_size": _COUNT,
    "evaluation.num_samples": Range(2, _INT32),
    "evaluation.num_loss": _COUNT,
    "evaluation.num_likelihood": _COUNT,
    "evaluation.pca_dims": _COUNT,
    "evaluation.probes": Range(1, 10_000),
    "evaluation.rtol": _SHARE,
    "evaluation.atol": _SHARE,
}
#: Of networks: a width or a depth beyond would overflow before it could be refused for its memory.
_OF_NETWORKS = Range(-1_000_000, 1_000_000)

_CADENCES = ("steps", "log_every", "checkpoint_every", "evaluate_every", "sample_every")


def check_numbers(config: ConfigDict) -> None:
    """ConfigError naming the first number that is out of its range, or a number of steps that the calls do not make
    up. A process or a network of one's own ("module:name") checks the fields of its section itself."""
    for field, value in _numbers(config):
        allowed = _OF_NETWORKS if field.startswith("model.") else RANGES[field]
        if not all(_is_number(entry) and entry in allowed for entry in _flat(value)):
            raise ConfigError(f"config.{field}={value} must be {allowed}")
    k = config.training.steps_per_call
    for name in _CADENCES:
        if config.training[name] % k:
            raise ConfigError(
                f"config.training.{name}={config.training[name]} must be a multiple of steps_per_call={k}"
            )
    for section in ("sampling", "evaluation"):
        if config[section].rtol == config[section].atol == 0:
            raise ConfigError(f"config.{section}.rtol=0 and atol=0: one of them must be above 0")


def _numbers(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """The numeric fields by their dotted names, but for the open ones and those of one's own sections; what
    stands in a field of `RANGES`, be it a number or not."""
    for section, content in config.items():
        if not isinstance(content, ConfigDict):
            content, prefix = {section: content}, ""
        elif ":" in str(content.get("name", "")):
            continue
        else:
            prefix = f"{section}."
        for name, value in content.items():
            # What is no number a network refuses itself.
            numeric = f"{prefix}{name}" in RANGES or (prefix == "model." and all(map(_is_number, _flat(value))))
            if numeric and value is not None:
                yield f"{prefix}{name}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for entry in value for leaf in _flat(entry)]
    return [value]
