"""diffuse-jax sample."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from diffuse_jax._files import written_atomically
from diffuse_jax.checkpoints import write_json_atomic
from diffuse_jax.cli.asked_conditions import read_conditions
from diffuse_jax.cli.common import TrainedRun, can, free_name, labels_in_turn, open_run, picture, sampler, to_data
from diffuse_jax.cli.distributed import first, together
from diffuse_jax.cli.resources import check_samples
from diffuse_jax.cli.sample_files import sample_files
from diffuse_jax.config import ConfigError
from diffuse_jax.evaluation import save_gif, save_png
from diffuse_jax.evaluation.draw import Conditions
from diffuse_jax.training import Draw, Drawn

_FRAMES = 40
_ANIMATED = 64
_SAMPLES = 2**31  # of a seed, as far as processes can tell each other numbers


def sample(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Draws samples FIRST … FIRST + N − 1 of a seed into samples.npz, samples.png and samples.json under the workdir,
    or one by one or chunk by chunk into files of samples/."""
    together(lambda: _check(args))
    run = open_run(args, overrides, check=lambda experiment: can(experiment, "draw", "has nothing to sample"))
    n = args.num or run.experiment.config.sampling.num
    conditions = together(lambda: _conditions(run, args, n))
    if args.trajectory and _draw(run).frames is None:
        raise ConfigError("--trajectory: this kind of run draws in one step, and has no path to show: leave it out")
    # Of files that are written as they are drawn no more than a chunk is held.
    held = n if args.format == "npz" else min(n, run.experiment.config.sampling.batch_size)
    together(lambda: check_samples(run.experiment, held, "--num"))
    if args.format == "npz":
        _one_file(args, run, n, None if conditions is None else conditions(np.arange(args.first, args.first + n)))
    else:
        sample_files(args, run, n, conditions)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.trajectory and args.format != "npz":
        raise ConfigError(f"--trajectory goes with --format=npz alone, not with --format={args.format}")


def _conditions(run: TrainedRun, args: argparse.Namespace, n: int) -> Conditions | None:
    """The conditions of samples by their numbers: what is asked for, and where it is not classes all in turn; None for
    a run without conditions, of which none can be asked."""
    if args.first + n > _SAMPLES:
        raise ConfigError(f"--first={args.first} and {n} samples: a seed has the samples 0 … {_SAMPLES - 1}")
    known = run.experiment.data.conditions
    asked = read_conditions(args.cond, known, centered=run.experiment.config.data.centered)
    if not known:
        return None

    def of(index: np.ndarray) -> dict[str, np.ndarray]:
        return labels_in_turn(known, index) | {
            name: np.broadcast_to(row, (len(index), *row.shape)) for name, row in asked.items()
        }

    return of


def _one_file(args: argparse.Namespace, run: TrainedRun, n: int, cond: Mapping[str, np.ndarray] | None) -> None:
    draw = partial(sampler(run.experiment, run.mesh), run.model, seed=args.seed, first=args.first)
    drawn = draw(n=n, cond=cond, progress="samples")
    few = min(n, _ANIMATED) if len(run.experiment.data.shape) == 3 else n
    of_few = None if cond is None else {name: rows[:few] for name, rows in cond.items()}
    path = draw(n=few, cond=of_few, path=True, progress="trajectory").path if args.trajectory else None
    if first():
        _write(args, run, drawn, None if cond is None else cond.get("label"), path)


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
        **_draw(run).facts,
        "evaluations": float(drawn.evaluations.mean()),
        "largest_evaluations": float(drawn.evaluations.max()),
        "seed": args.seed,
        "first": args.first,
        "num": n,
        "label": args.label,
        "cond": args.cond,
    }
    write_json_atomic(written[2], facts)
    if path is not None:
        written.append(free_name(run.workdir / "trajectory.gif"))
        save_gif(_frames(run, path, samples[: len(path)]), written[-1])
    most = f", at most {facts['largest_evaluations']:g}" if facts["largest_evaluations"] != facts["evaluations"] else ""
    by = facts.get("solver", run.experiment.config.method.name)
    print(f"{n} samples of step {run.step}, {by} with {facts['evaluations']:g} evaluations each{most}:")
    print("\n".join(f"  {path}" for path in written))


def _frames(run: TrainedRun, path: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    """Pictures of a path (n, N + 1, …), brought to the size of the data at every time, ending with the samples."""
    scales = _draw(run).frames
    chosen = np.unique(np.linspace(0, len(scales) - 1, _FRAMES).round().astype(int))
    frames = [picture(to_data(run.experiment, path[:, k] * scales[k])) for k in chosen]
    return [*frames, *[picture(last)] * 10]


def _draw(run: TrainedRun) -> Draw:
    assert run.experiment.method.draw is not None
    return run.experiment.method.draw
