"""diffuse-jax evaluate and diffuse-jax likelihood."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffuse_jax._files import written_atomically
from diffuse_jax.checkpoints import write_json_atomic
from diffuse_jax.cli.common import (
    TrainedRun,
    can,
    conditions_in_turn,
    free_name,
    heldout_losses,
    open_run,
    sampler,
    to_data,
)
from diffuse_jax.cli.distributed import first, together
from diffuse_jax.cli.resources import check_samples
from diffuse_jax.config import Experiment, load_data
from diffuse_jax.config.choices import choose
from diffuse_jax.data import DataError, Dataset
from diffuse_jax.evaluation import HeldoutRows, PCAFeatures, frechet_between, likelihoods, mean_and_error
from diffuse_jax.training import Density, Likelihoods

_PCA_ROWS = 10_000


def evaluate(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints a table of what can be told of a run, and writes it as evaluation.json under the workdir: held-out losses,
    and as far as its method has them bits/dim, the Fréchet distance of samples and evaluations of its own."""
    run = open_run(args, overrides, check=_metrics)
    dataset = together(lambda: _with_test_part(run, 2))
    n = args.num or run.experiment.config.evaluation.num_samples
    together(lambda: check_samples(run.experiment, n, "--num" if args.num else "config.evaluation.num_samples"))
    method = run.experiment.method
    rows: dict[str, Any] = {"checkpoint": run.step, **_losses(run, dataset, args.seed)}
    if method.log_prob is not None:
        rows |= _bits(run, dataset, args.seed)
    if method.draw is not None:
        rows |= _distance(run, dataset, n, args.seed)
    rows |= {**_evaluations(run, dataset, args.seed), "seed": args.seed}
    if not first():
        return 0
    path = free_name(run.workdir / "evaluation.json")
    write_json_atomic(path, rows)
    width = max(24, *map(len, rows))
    print("\n".join(f"{name:{width}} {_text(value)}" for name, value in rows.items()))
    print(f"written to {path}")
    return 0


def _losses(run: TrainedRun, dataset: Dataset, seed: int) -> dict[str, Any]:
    config = run.experiment.config
    batch_size = config.training.batch_size
    losses = heldout_losses(run.experiment, dataset, seed=seed, mesh=run.mesh, batch_size=batch_size)
    found = losses((run.params, run.extra), run.step)
    return _with_errors(found) | {"heldout_rows": min(config.evaluation.num_loss, len(dataset.test))}


def _bits(run: TrainedRun, dataset: Dataset, seed: int) -> dict[str, Any]:
    found = _likelihoods(run, dataset, run.experiment.config.evaluation.num_likelihood, seed)
    return {
        **_with_errors({"bits_per_dim": mean_and_error(found.bits_per_dim)}),
        "likelihood_rows": len(found.bits_per_dim),
        "likelihood_evaluations": float(found.evaluations.mean()),
    }


def _metrics(experiment: Experiment) -> list[Callable[..., Mapping[str, Any]]]:
    """What is told of samples, of `config.evaluation.metrics`."""
    return [choose(_METRICS, name, "evaluation.metrics") for name in experiment.config.evaluation.metrics]


def _distance(run: TrainedRun, dataset: Dataset, n: int, seed: int) -> dict[str, Any]:
    conditions = conditions_in_turn(run.experiment, dataset.test)
    cond = None if conditions is None else conditions(np.arange(n))
    drawn = sampler(run.experiment, run.mesh)(run.model, seed=seed, n=n, cond=cond, progress="samples")
    if not first():
        return {}
    samples = to_data(run.experiment, drawn.x)
    found: dict[str, Any] = {}
    for metric in _metrics(run.experiment):
        found |= metric(samples, dataset, run.experiment.config)
    facts = {} if run.experiment.method.draw is None else run.experiment.method.draw.facts
    return {
        **found,
        **{name: facts[name] for name in ("solver", "steps") if name in facts},
        "evaluations": float(drawn.evaluations.mean()),
    }


def _evaluations(run: TrainedRun, dataset: Dataset, seed: int) -> dict[str, Any]:
    """The method's own numbers of held-out rows."""
    config = run.experiment.config
    rows = {"seed": seed, "mesh": run.mesh, "batch_size": config.training.batch_size}
    found: dict[str, Any] = {}
    for function in run.experiment.method.evaluations.values():
        each = HeldoutRows(function, dataset.test, config.evaluation.num_loss, **rows)(run.model, run.step)
        found |= _with_errors({name: mean_and_error(values) for name, values in each.items()})
    return found


def _with_errors(found: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Means under their names, and their standard errors beside them."""
    pairs = {name: {name: mean, f"{name}_error": _finite(error)} for name, (mean, error) in found.items()}
    return {name: value for pair in pairs.values() for name, value in pair.items()}


def likelihood(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Writes log p (nats) and bits/dim of each held-out row as likelihood.npz, and their means as likelihood.json."""
    run = open_run(args, overrides, check=lambda experiment: can(experiment, "log_prob", "has no density"))
    dataset = together(lambda: _with_test_part(run, 1))
    found = _likelihoods(run, dataset, args.num or len(dataset.test), args.seed)
    if not first():
        return 0
    bits, error = mean_and_error(found.bits_per_dim)
    arrays, table = free_name(run.workdir / "likelihood.npz"), free_name(run.workdir / "likelihood.json")
    with written_atomically(arrays) as file:
        arrays_of: dict[str, Any] = found._asdict()
        np.savez(file, **arrays_of)
    write_json_atomic(
        table,
        {
            "checkpoint": run.step,
            "rows": len(found.bits_per_dim),
            "log_prob": float(found.log_prob.mean()),
            "bits_per_dim": bits,
            "bits_per_dim_error": _finite(error),
            "evaluations": float(found.evaluations.mean()),
            **_density(run).facts,
            "log_prob_error_of_estimate": _finite(float(np.sqrt(np.mean(np.square(found.error)) / len(found.error)))),
            "seed": args.seed,
            "each": {"log_prob": found.log_prob.tolist(), "bits_per_dim": found.bits_per_dim.tolist()},
        },
    )
    print(f"{bits:.4f} ± {error:.4f} bits/dim over {len(found.bits_per_dim)} held-out rows, step {run.step}")
    print(f"  {arrays}\n  {table}")
    return 0


def _with_test_part(run: TrainedRun, least: int) -> Dataset:
    dataset = load_data(run.experiment.config)
    if len(dataset.test) < least:
        raise DataError(
            f"{dataset.name} has {len(dataset.test)} held-out rows, and {least} are needed: "
            "train with a larger config.data.holdout"
        )
    return dataset


def _likelihoods(run: TrainedRun, dataset: Dataset, n: int, seed: int) -> Likelihoods:
    return likelihoods(
        _density(run),
        run.model,
        dataset.test,
        min(n, len(dataset.test)),
        seed=seed,
        mesh=run.mesh,
        batch_size=run.experiment.config.sampling.batch_size,
        progress="likelihoods",
    )


def _density(run: TrainedRun) -> Density:
    assert run.experiment.method.log_prob is not None
    return run.experiment.method.log_prob


def _frechet(samples: np.ndarray, dataset: Dataset, config: ConfigDict) -> dict[str, Any]:
    """The Fréchet distance of samples to held-out rows, and what it was taken of."""
    index = np.arange(min(len(dataset.test), _PCA_ROWS))
    heldout = dataset.test[index]["x"]
    if samples.ndim == 2:
        distance, space = frechet_between(lambda x: np.asarray(x, np.float64), samples, heldout), "coordinates"
    else:
        rows = dataset.train[np.arange(min(len(dataset.train), _PCA_ROWS))]["x"]
        features = PCAFeatures.fit(rows, dims=config.evaluation.pca_dims)
        distance = frechet_between(features, samples, heldout)
        space = f"{features.components.shape[-1]} principal components of {len(rows)} training images, pixels in [0, 1]"
    return {
        "frechet_distance": distance,
        "frechet_space": space,
        "frechet_samples": len(samples),
        "frechet_heldout": len(heldout),
    }


#: What is told of samples: (samples as data, data set, config) -> numbers by name.
_METRICS: dict[str, Callable[[np.ndarray, Dataset, ConfigDict], dict[str, Any]]] = {"frechet": _frechet}


def _finite(number: float) -> float | None:
    """A number as JSON has it: None for the error of a single row."""
    return number if np.isfinite(number) else None


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
