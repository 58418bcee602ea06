"""diffuse-jax evaluate and diffuse-jax likelihood."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffuse_jax._files import written_atomically
from diffuse_jax.checkpoints import write_json_atomic
from diffuse_jax.cli.common import TrainedRun, free_name, labels_in_turn, open_run, sampler, to_data
from diffuse_jax.cli.distributed import first, together
from diffuse_jax.cli.resources import check_samples
from diffuse_jax.config import load_data
from diffuse_jax.config.build import TRACES
from diffuse_jax.data import DataError, Dataset
from diffuse_jax.evaluation import HeldoutLoss, Likelihoods, PCAFeatures, frechet_between, likelihoods, mean_and_error

_PCA_ROWS = 10_000


def evaluate(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints a table of held-out loss, bits/dim and Fréchet distance, and writes it as evaluation.json under the
    workdir."""
    run = open_run(args, overrides)
    dataset = together(lambda: _with_test_part(run, 2))
    config = run.experiment.config
    n = args.num or config.evaluation.num_samples
    together(lambda: check_samples(run.experiment, n, "--num" if args.num else "config.evaluation.num_samples"))
    loss, loss_error = mean_and_error(
        HeldoutLoss(
            run.experiment.heldout_loss,
            dataset.test,
            config.evaluation.num_loss,
            seed=args.seed,
            mesh=run.mesh,
            batch_size=config.training.batch_size,
        )(run.denoise.params)
    )
    found = _likelihoods(run, dataset, config.evaluation.num_likelihood, args.seed)
    bits, bits_error = mean_and_error(found.bits_per_dim)
    drawn = sampler(run.experiment, run.mesh)(
        run.experiment.sampling_denoiser(run.denoise.params),
        seed=args.seed,
        n=n,
        labels=labels_in_turn(run.experiment, n),
        progress="samples",
    )
    if not first():
        return 0
    distance, space, reference = _frechet(run, dataset, to_data(run.experiment, drawn.x))
    rows: dict[str, Any] = {
        "checkpoint": run.step,
        "heldout_loss": loss,
        "heldout_loss_error": _finite(loss_error),
        "heldout_rows": min(config.evaluation.num_loss, len(dataset.test)),
        "bits_per_dim": bits,
        "bits_per_dim_error": _finite(bits_error),
        "likelihood_rows": len(found.bits_per_dim),
        "likelihood_evaluations": float(found.evaluations.mean()),
        "frechet_distance": distance,
        "frechet_space": space,
        "frechet_samples": n,
        "frechet_heldout": reference,
        "solver": run.experiment.plan.name,
        "steps": len(run.experiment.plan.times) - 1,
        "evaluations": float(drawn.evaluations.mean()),
        "seed": args.seed,
    }
    path = free_name(run.workdir / "evaluation.json")
    write_json_atomic(path, rows)
    print("\n".join(f"{name:24} {_text(value)}" for name, value in rows.items()))
    print(f"written to {path}")
    return 0


def likelihood(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Writes log p (nats) and bits/dim of each held-out row as likelihood.npz, and their means as likelihood.json."""
    run = open_run(args, overrides)
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
            "trace": run.experiment.config.evaluation.trace,
            "probes": run.experiment.config.evaluation.probes,
            "log_prob_error_of_trace": _finite(float(np.sqrt(np.mean(np.square(found.error)) / len(found.error)))),
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
    config = run.experiment.config
    return likelihoods(
        run.denoise,
        dataset.test,
        min(n, len(dataset.test)),
        seed=seed,
        levels=run.experiment.data.levels,
        centered=config.data.centered,
        trace=TRACES[config.evaluation.trace],
        probes=config.evaluation.probes,
        t_min=config.loss.t_min,
        rtol=config.evaluation.rtol,
        atol=config.evaluation.atol,
        mesh=run.mesh,
        batch_size=config.sampling.batch_size,
        progress="likelihoods",
    )


def _frechet(run: TrainedRun, dataset: Dataset, samples: np.ndarray) -> tuple[float, str, int]:
    """The distance between samples and held-out rows, the feature space in words, and the number of held-out rows."""
    index = np.arange(min(len(dataset.test), _PCA_ROWS))
    heldout = dataset.test[index]["x"]
    if samples.ndim == 2:
        return frechet_between(lambda x: np.asarray(x, np.float64), samples, heldout), "coordinates", len(heldout)
    rows = dataset.train[np.arange(min(len(dataset.train), _PCA_ROWS))]["x"]
    features = PCAFeatures.fit(rows, dims=run.experiment.config.evaluation.pca_dims)
    space = f"{features.components.shape[-1]} principal components of {len(rows)} training images, pixels in [0, 1]"
    return frechet_between(features, samples, heldout), space, len(heldout)


def _finite(number: float) -> float | None:
    """A number as JSON has it: None for the error of a single row."""
    return number if np.isfinite(number) else None


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
