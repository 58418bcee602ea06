"""diffuse-jax train: its options."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.command import Command
from diffuse_jax.cli.options import add_processes, add_run

__all__ = ["COMMAND"]

_EPILOG = """\
Any field of the experiment can be changed: --config.section.field=value, as in --config.training.steps=2000 or
--config.model.ch_mult='(1, 2, 2)'. `--dry_run` prints every field with its value; docs/howto/experiments.md says what
each is, and what it may be.
"""


def _options(parser: argparse.ArgumentParser) -> None:
    add_run(parser, "that of the run, digits for a new one")
    add_processes(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="print the resolved config, parameter count and memory, and stop"
    )


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from diffuse_jax.cli.train_run import train

    return train(args, overrides)


COMMAND = Command(
    help="Train an experiment, or go on with it; ends by drawing a grid of samples.",
    options=_options,
    run=_run,
    epilog=_EPILOG,
)
