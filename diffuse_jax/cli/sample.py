"""diffuse-jax sample."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffuse_jax._files import written_atomically
from diffuse_jax.checkpoints import write_json_atomic
from diffuse_jax.cli.distributed import first, together
from diffuse_jax.cli.run import TrainedRun, free_name, labels_in_turn, open_run, picture, sampler, to_data
from diffuse_jax.config import ConfigError
from diffuse_jax.evaluation import save_gif, save_png
from diffuse_jax.evaluation.draw import Drawn
from diffuse_jax.sde import SDE

_FRAMES = 40
_ANIMATED = 64


def sample(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Draws samples 0 … N − 1 of a seed into samples.npz, samples.png and samples.json under the workdir."""
    run = open_run(args, overrides)
    config = run.experiment.config.sampling
    n = args.num or config.num
    labels = together(lambda: class_labels(run, n, args.label))
    draw = sampler(run.experiment, run.mesh)
    denoise = run.experiment.sampling_denoiser(run.denoise.params)
    drawn = draw(denoise, seed=args.seed, n=n, labels=labels, progress="samples")
    few = min(n, _ANIMATED) if len(run.experiment.data.shape) == 3 else n
    animated = {"n": few, "labels": labels, "path": True, "progress": "trajectory"}
    path = draw(denoise, seed=args.seed, **animated).path if args.trajectory else None
    if first():
        _write(args, run, drawn, labels, path)
    return 0


def _write(
    args: argparse.Namespace, run: TrainedRun, drawn: Drawn, labels: np.ndarray | None, path: np.ndarray | None
) -> None:
    """The files of the samples, and of the path (few, N + 1, …) of those that are animated."""
    samples = to_data(run.experiment, drawn.x)
    n = len(samples)
    arrays: dict[str, Any] = {"samples": samples} if labels is None else {"samples": samples, "labels": labels}
    written = [free_name(run.workdir / name) for name in ("samples.npz", "samples.png", "samples.json")]
    with written_atomically(written[0]) as file:
        np.savez(file, **arrays)
    save_png(picture(samples), written[1])
    facts = {
        "checkpoint": run.step,
        "solver": run.experiment.plan.name,
        "steps": len(run.experiment.plan.times) - 1,
        "dtype": run.experiment.config.sampling.dtype,
        "evaluations": float(drawn.evaluations.mean()),
        "largest_evaluations": float(drawn.evaluations.max()),
        "seed": args.seed,
        "num": n,
        "label": args.label,
    }
    write_json_atomic(written[2], facts)
    if path is not None:
        written.append(free_name(run.workdir / "trajectory.gif"))
        save_gif(_frames(run, path, samples[: len(path)]), written[-1])
    most = f", at most {facts['largest_evaluations']:g}" if facts["largest_evaluations"] != facts["evaluations"] else ""
    print(f"{n} samples of step {run.step}, {facts['solver']} with {facts['evaluations']:g} evaluations each{most}:")
    print("\n".join(f"  {path}" for path in written))


def class_labels(run: TrainedRun, n: int, label: int | None) -> np.ndarray | None:
    """The classes of n samples: `label`, or all in turn; None for a run without classes, of which no label can be
    asked."""
    classes = run.experiment.data.num_classes
    if classes is None:
        if label is not None:
            raise ConfigError(f"--label={label}: {run.workdir} was trained without labels (config.data.labels)")
        return None
    if label is not None and not 0 <= label < classes:
        raise ConfigError(f"--label={label} must be one of 0 … {classes - 1}")
    return np.full(n, label, np.int32) if label is not None else labels_in_turn(run.experiment, n)


def _frames(run: TrainedRun, path: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    """Pictures of a path (n, N + 1, …), brought to the size of the data at every time, ending with the samples."""
    times = run.experiment.plan.times
    chosen = np.unique(np.linspace(0, len(times) - 1, _FRAMES).round().astype(int))
    frames = [picture(to_data(run.experiment, path[:, k] * _scale(run.experiment.sde, times[k]))) for k in chosen]
    return [*frames, *[picture(last)] * 10]


def _scale(sde: SDE, t: Any) -> float:
    return float(1 / np.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2))
