"""diffuse-jax export: its options."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.command import Command
from diffuse_jax.cli.options import add_checkpoint, add_run

__all__ = ["COMMAND"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file that is written")
    add_run(parser)
    add_checkpoint(parser)


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from diffuse_jax.cli.import_export import export

    return export(args, overrides)


COMMAND = Command(
    help="Write a run's averaged parameters as safetensors, under the names of score_sde's PyTorch program.",
    options=_options,
    run=_run,
    unread=("training", "evaluation"),
)
