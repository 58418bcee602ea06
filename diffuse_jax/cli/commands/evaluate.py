"""diffuse-jax evaluate: its options."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.command import Command
from diffuse_jax.cli.options import add_checkpoint, add_num, add_processes, add_run, add_seed, add_solver
from diffuse_jax.cli.solver_help import solver_help

__all__ = ["COMMAND"]


def _options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_processes(parser)
    add_checkpoint(parser)
    add_seed(parser)
    add_num(parser, 2, "how many samples (default: config.evaluation.num_samples)")
    add_solver(parser)


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from diffuse_jax.cli.evaluate_run import evaluate

    return evaluate(args, overrides)


COMMAND = Command(
    help="Held-out loss, bits/dim and Fréchet distance of a trained run, as a table and evaluation.json.",
    options=_options,
    run=_run,
    unread=("training",),
    epilog=solver_help(),
)
