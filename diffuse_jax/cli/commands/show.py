"""diffuse-jax show: its options."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.command import Command
from diffuse_jax.cli.options import text

__all__ = ["COMMAND"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=text, required=True, help="the folder of the run")


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from diffuse_jax.cli.show_run import show

    return show(args, overrides)


COMMAND = Command(help="What a run is, how far it is, what files it has, and how to go on.", options=_options, run=_run)
