"""What a command is to the command line: its help, its options and the function that does it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Command", "every_argument"]


def every_argument(args: argparse.Namespace, rest: Sequence[str]) -> Sequence[str]:
    """All that is no option is an override of the config."""
    return rest


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the program.

    Args:
        help: What it does, in a line.
        options: Declares its options on its parser, most of them by functions of `cli.options`.
        run: Does it, given the values of the options and the overrides of the config; returns the exit status. What is
            slow to import it imports when it is called: `--help` and a mistyped option are answered without it.
        overrides: Picks the overrides of the config from the arguments that are no options, and may set values for what
            else is among them. Raises argparse.ArgumentTypeError for one that the command does not take.
        unread: Sections of the config that it does not read, of which it therefore refuses overrides.
        epilog: What its help ends with.
    """

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Sequence[str]], int]
    overrides: Callable[[argparse.Namespace, Sequence[str]], Sequence[str]] = every_argument
    unread: tuple[str, ...] = ()
    epilog: str | None = None
