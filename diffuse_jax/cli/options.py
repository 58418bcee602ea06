"""Options that several commands have, each declared by a function that a command calls on its parser, and the types of
their values."""

import argparse
from collections.abc import Callable

__all__ = [
    "add_checkpoint",
    "add_conditions",
    "add_num",
    "add_processes",
    "add_run",
    "add_seed",
    "add_solver",
    "integer",
    "text",
]


def text(value: str) -> str:
    """What is not empty, as a variable that is not set would be."""
    if not value.strip():
        raise argparse.ArgumentTypeError("it is empty: give a name, or leave it out")
    return value


def integer(least: int, end: int | None = None) -> Callable[[str], int]:
    """What reads an integer from `least` up to, but without, `end`."""
    wanted = f"an integer of at least {least}" + ("" if end is None else f" and below {end}")

    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or number < least or (end is not None and number >= end):
            raise argparse.ArgumentTypeError(f"{value!r} must be {wanted}")
        return number

    return parse


def add_run(parser: argparse.ArgumentParser, default: str = "that of the run") -> None:
    """--config and --workdir, of which `diffuse_jax.cli.common` makes the run."""
    parser.add_argument(
        "--config", type=text, help=f"an experiment: a file, or the name of a built-in one (default: {default})"
    )
    parser.add_argument("--workdir", type=text, help="the folder of the run (default: runs/NAME of --config)")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """What `diffuse_jax.cli.distributed` joins several processes by, before the command runs."""
    group = parser.add_argument_group("several processes, each given the same command")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens (JAX_COORDINATOR_ADDRESS)")
    group.add_argument("--num_processes", metavar="N", help="how many there are (JAX_NUM_PROCESSES)")
    group.add_argument("--process_id", metavar="I", help="which this is, from 0 to N - 1 (JAX_PROCESS_ID)")
    group.add_argument("--distributed", action="store_true", help="let JAX find the three: on SLURM, on a TPU pod")
    group.add_argument(
        "--timeout",
        type=integer(1, 10**6),
        default=100,
        metavar="S",
        help="seconds to wait for the others, at the start and for a sign of life (default: 100)",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """--checkpoint, the step whose averaged parameters are loaded."""
    parser.add_argument("--checkpoint", type=integer(0), metavar="STEP", help="the step to load (default: the latest)")


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """--label, and the words on the other conditions, which `conditions.take_conditions` takes as overrides."""
    group = parser.add_argument_group(
        "conditions of all samples, of a run that was trained with them",
        "--cond.NAME=VALUE, as in --cond.label=K, --cond.image=PATH or --cond.tokens='a caption'",
    )
    group.add_argument(
        "--label", type=integer(0), metavar="K", help="the class to draw, of a run with config.data.labels"
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """--seed, of all that is random in a command."""
    parser.add_argument("--seed", type=integer(0, 2**32), default=0, help="the seed of what is random (default: 0)")


def add_num(parser: argparse.ArgumentParser, least: int, help: str) -> None:
    """--num, how many of what the command makes.

    Args:
        parser: The parser of the command.
        least: The smallest number.
        help: The line of --help.
    """
    parser.add_argument("--num", type=integer(least, 2**31), metavar="N", help=help)


def add_solver(parser: argparse.ArgumentParser) -> None:
    """--solver and --steps, short for two fields of config.sampling; the command's epilog is to be `solver_help()`."""
    parser.add_argument(
        "--solver", metavar="NAME", help="the solver, one of those below (default: config.sampling.solver)"
    )
    parser.add_argument("--steps", type=integer(1), metavar="N", help="its steps (default: config.sampling.steps)")
