"""diffuse-jax likelihood: its options."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.command import Command
from diffuse_jax.cli.options import add_checkpoint, add_num, add_processes, add_run, add_seed

__all__ = ["COMMAND"]


def _options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_processes(parser)
    add_checkpoint(parser)
    add_seed(parser)
    add_num(parser, 1, "how many held-out rows (default: all)")


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from diffuse_jax.cli.evaluate_run import likelihood

    return likelihood(args, overrides)


COMMAND = Command(
    help="log p and bits/dim of each held-out image, into likelihood.npz and likelihood.json.",
    options=_options,
    run=_run,
    unread=("training",),
)
