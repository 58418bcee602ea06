"""diffuse-jax sample: its options."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.asked_conditions import take_conditions
from diffuse_jax.cli.command import Command
from diffuse_jax.cli.options import (
    add_checkpoint,
    add_conditions,
    add_num,
    add_processes,
    add_run,
    add_seed,
    add_solver,
    integer,
)
from diffuse_jax.cli.solver_help import solver_help

__all__ = ["COMMAND"]


def _options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_processes(parser)
    add_checkpoint(parser)
    add_seed(parser)
    add_num(parser, 1, "how many samples (default: config.sampling.num)")
    add_solver(parser)
    add_conditions(parser)
    parser.add_argument(
        "--first", type=integer(0, 2**31), default=0, metavar="K", help="draw samples K … K + N - 1 (default: 0)"
    )
    parser.add_argument(
        "--format",
        choices=("npz", "png", "shards"),
        default="npz",
        help="npz: all in samples.npz (the default); png: samples/00000000.png, …; shards: an npz a chunk in samples/; "
        "the last two are written as they are drawn, and the same command goes on from what is there",
    )
    parser.add_argument(
        "--trajectory", action="store_true", help="also write trajectory.gif, an animation of the denoising"
    )


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from diffuse_jax.cli.sample_run import sample

    return sample(args, overrides)


COMMAND = Command(
    help="Draw samples of a trained run into samples.npz and samples.png, or into numbered files.",
    options=_options,
    run=_run,
    overrides=take_conditions,
    unread=("training", "evaluation"),
    epilog=solver_help(),
)
