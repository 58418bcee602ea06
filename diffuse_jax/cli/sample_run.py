"""diffuse-jax sample."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from diffuse_jax._files import written_atomically
from diffuse_jax.checkpoints import write_json_atomic
from diffuse_jax.cli.common import TrainedRun, free_name, open_run, picture, sampler, to_data
from diffuse_jax.cli.conditions import read_conditions
from diffuse_jax.cli.distributed import first, together
from diffuse_jax.cli.resources import check_samples
from diffuse_jax.cli.sample_files import sample_files
from diffuse_jax.conditions import Condition
from diffuse_jax.config import ConfigError
from diffuse_jax.evaluation import save_gif, save_png
from diffuse_jax.evaluation.draw import Drawn
from diffuse_jax.sde import SDE

_FRAMES = 40
_ANIMATED = 64
_SAMPLES = 2**31  # of a seed, as far as processes can tell each other numbers


def sample(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Draws samples FIRST … FIRST + N − 1 of a seed into samples.npz, samples.png and samples.json under the workdir,
    or one by one or chunk by chunk into files of samples/."""
    together(lambda: _check(args))
    run = open_run(args, overrides)
    n = args.num or run.experiment.config.sampling.num
    classes = together(lambda: _classes(run, args, n))
    # Of files that are written as they are drawn no more than a chunk is held.
    held = n if args.format == "npz" else min(n, run.experiment.config.sampling.batch_size)
    together(lambda: check_samples(run.experiment, held, "--num"))
    if args.format == "npz":
        _one_file(args, run, n, None if classes is None else classes(np.arange(args.first, args.first + n)))
    else:
        sample_files(args, run, n, classes)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.trajectory and args.format != "npz":
        raise ConfigError(f"--trajectory goes with --format=npz alone, not with --format={args.format}")


def _classes(run: TrainedRun, args: argparse.Namespace, n: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """The classes of samples by their numbers: --label, or all in turn; None for a run without classes, of which no
    label can be asked."""
    classes = run.experiment.data.num_classes
    if args.first + n > _SAMPLES:
        raise ConfigError(f"--first={args.first} and {n} samples: a seed has the samples 0 … {_SAMPLES - 1}")
    conditions = {} if classes is None else {"label": Condition((), classes)}
    label = read_conditions(args.cond, conditions, centered=run.experiment.config.data.centered).get("label")
    if classes is None:
        return None
    return lambda index: (index % classes if label is None else np.full(len(index), label)).astype(np.int32)


def _one_file(args: argparse.Namespace, run: TrainedRun, n: int, labels: np.ndarray | None) -> None:
    denoise = run.experiment.sampling_denoiser(run.denoise.params)
    draw = partial(sampler(run.experiment, run.mesh), denoise, seed=args.seed, first=args.first, labels=labels)
    drawn = draw(n=n, progress="samples")
    few = min(n, _ANIMATED) if len(run.experiment.data.shape) == 3 else n
    path = draw(n=few, path=True, progress="trajectory").path if args.trajectory else None
    if first():
        _write(args, run, drawn, labels, path)


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
        "first": args.first,
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


def _frames(run: TrainedRun, path: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    """Pictures of a path (n, N + 1, …), brought to the size of the data at every time, ending with the samples."""
    times = run.experiment.plan.times
    chosen = np.unique(np.linspace(0, len(times) - 1, _FRAMES).round().astype(int))
    frames = [picture(to_data(run.experiment, path[:, k] * _scale(run.experiment.sde, times[k]))) for k in chosen]
    return [*frames, *[picture(last)] * 10]


def _scale(sde: SDE, t: Any) -> float:
    return float(1 / np.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2))
