"""From the words of a command line to the values of its options and the overrides of its config."""

import argparse
import importlib.metadata
from collections.abc import Sequence
from typing import Any, NoReturn

from diffuse_jax.cli.commands import COMMANDS

__all__ = ["make_parser", "read_arguments"]

_DESCRIPTION = "Train diffusion models and draw from them. One experiment file drives every command."

_EPILOG = """\
A run lives in its --workdir: config.json, checkpoints/, metrics.jsonl, tensorboard/, grids/ and what the other commands
write. The same train command again goes on from the last checkpoint, after a kill too.

Any field of an experiment can be given as --config.section.field=value; `train --dry_run` prints them all.

  diffuse-jax train --config=digits --workdir=runs/digits
  diffuse-jax sample --workdir=runs/digits --num=100 --solver=heun --steps=20
  diffuse-jax evaluate --workdir=runs/digits
  diffuse-jax show --workdir=runs/digits
  diffuse-jax train --config=digits --workdir=runs/mine --config.data.source=path/to/images --config.data.image_size=32
  diffuse-jax import --from=score_sde --source=checkpoint_14.pth --config=cifar10_ve_ncsnpp_continuous --workdir=runs/ve
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help)\n")


class _Version(argparse.Action):
    """Looks the versions up only where they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        distributions = {"diffuse-jax": "diffuse-jax-sde", "jax": "jax"}
        print(", ".join(f"{name} {importlib.metadata.version(of)}" for name, of in distributions.items()))
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command of `COMMANDS`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="diffuse-jax", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions of diffuse-jax and JAX")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    for name, command in COMMANDS.items():
        made = commands.add_parser(
            name,
            help=command.help,
            description=command.help,
            epilog=command.epilog,
            formatter_class=raw,
            allow_abbrev=False,
        )
        command.options(made)
    return parser


def read_arguments(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Sequence[str]]:
    """The values of a command's options, and the overrides of its config.

    Raises SystemExit after the help, and with status 2 after one line on stderr for what cannot be read.
    """
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    try:
        return args, COMMANDS[args.command].overrides(args, _joined(rest))
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))


def _joined(overrides: Sequence[str]) -> list[str]:
    """["--config.a.b", "1"] as ["--config.a.b=1"]: both spellings are accepted."""
    joined: list[str] = []
    for argument in overrides:
        open_ = joined and joined[-1].startswith(("--config.", "--cond.")) and "=" not in joined[-1]
        if open_ and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
