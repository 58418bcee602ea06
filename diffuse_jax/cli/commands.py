"""What each command does, by its name."""

import argparse
from collections.abc import Callable, Sequence

from diffuse_jax.cli.evaluate import evaluate, likelihood
from diffuse_jax.cli.import_export import export, import_
from diffuse_jax.cli.sample import sample
from diffuse_jax.cli.show import show
from diffuse_jax.cli.train import train
from diffuse_jax.config import experiments

__all__ = ["COMMANDS"]


def list_experiments(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the built-in experiments with the first line of their files."""
    for name, path in experiments().items():
        print(f"{name:38} {path.read_text(encoding='utf-8').splitlines()[0].strip(chr(34))}")
    return 0


#: Each takes its arguments and the overrides of the config, and returns the exit status.
COMMANDS: dict[str, Callable[[argparse.Namespace, Sequence[str]], int]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "likelihood": likelihood,
    "show": show,
    "import": import_,
    "export": export,
    "list": list_experiments,
}
