"""diffuse-jax list."""

import argparse
from collections.abc import Sequence

from diffuse_jax.cli.command import Command

__all__ = ["COMMAND"]


def _options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def _overrides(args: argparse.Namespace, rest: Sequence[str]) -> Sequence[str]:
    if rest:
        raise argparse.ArgumentTypeError(f"list takes no arguments, not {' '.join(rest)}")
    return rest


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the built-in experiments with the first line of their files."""
    from diffuse_jax.config import experiments

    for name, path in experiments().items():
        print(f"{name:38} {path.read_text(encoding='utf-8').splitlines()[0].strip(chr(34))}")
    return 0


COMMAND = Command(help="The built-in experiments.", options=_options, run=_run, overrides=_overrides)
