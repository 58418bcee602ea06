"""The command line: diffuse-jax train | sample | evaluate | likelihood | show | import | export | list."""

import argparse
import importlib.metadata
import logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from diffuse_jax.cli.interrupts import INTERRUPTED, STATUS, Interruptible, end, end_interrupted
from diffuse_jax.cli.solver_help import solver_help

__all__ = ["main", "run"]

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

_COMMANDS = {
    "train": "Train an experiment, or go on with it; ends by drawing a grid of samples.",
    "sample": "Draw samples of a trained run into samples.npz and samples.png, or into numbered files.",
    "evaluate": "Held-out loss, bits/dim and Fréchet distance of a trained run, as a table and evaluation.json.",
    "likelihood": "log p and bits/dim of each held-out image, into likelihood.npz and likelihood.json.",
    "show": "What a run is, how far it is, what files it has, and how to go on.",
    "import": "Make a run of weights that score_sde, diffusers or EDM trained.",
    "export": "Write a run's averaged parameters as safetensors, under the names of score_sde's PyTorch program.",
    "list": "The built-in experiments.",
}

_TRAIN = """\
Any field of the experiment can be changed: --config.section.field=value, as in --config.training.steps=2000 or
--config.model.ch_mult='(1, 2, 2)'. `--dry_run` prints every field with its value; docs/howto/experiments.md says what
each is, and what it may be.
"""

_UNRAISABLE = sys.unraisablehook  # as it was before a command put its own in front


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


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="diffuse-jax", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions of diffuse-jax and JAX")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    made = {}
    for name, text in _COMMANDS.items():
        epilog = {"train": _TRAIN, "sample": solver_help(), "evaluate": solver_help()}.get(name)
        made[name] = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=raw, allow_abbrev=False
        )
    _add_conversions(made["import"], made["export"])
    for name in ("train", "sample", "evaluate", "likelihood", "export"):
        made[name].add_argument(
            "--config",
            type=_text,
            help="an experiment: a file, or the name of a built-in one (default: "
            + ("that of the run, digits for a new one)" if name == "train" else "that of the run)"),
        )
        made[name].add_argument("--workdir", type=_text, help="the folder of the run (default: runs/NAME of --config)")
    for name in ("train", "sample", "evaluate", "likelihood"):
        _add_processes(made[name].add_argument_group("several processes, each given the same command"))
    made["train"].add_argument(
        "--dry_run", action="store_true", help="print the resolved config, parameter count and memory, and stop"
    )
    for name in ("sample", "evaluate", "likelihood", "export"):
        made[name].add_argument(
            "--checkpoint", type=_integer(0), metavar="STEP", help="the step to load (default: the latest)"
        )
    for name in ("sample", "evaluate", "likelihood"):
        made[name].add_argument(
            "--seed", type=_integer(0, 2**32), default=0, help="the seed of what is random (default: 0)"
        )
    for name, least, text in (
        ("sample", 1, "how many samples (default: config.sampling.num)"),
        ("evaluate", 2, "how many samples (default: config.evaluation.num_samples)"),
        ("likelihood", 1, "how many held-out rows (default: all)"),
    ):
        made[name].add_argument("--num", type=_integer(least, 2**31), metavar="N", help=text)
    for name in ("sample", "evaluate"):
        made[name].add_argument(
            "--solver", metavar="NAME", help="the solver, one of those below (default: config.sampling.solver)"
        )
        made[name].add_argument(
            "--steps", type=_integer(1), metavar="N", help="its steps (default: config.sampling.steps)"
        )
    made["sample"].add_argument(
        "--label", type=_integer(0), metavar="K", help="the class to draw, of a run with config.data.labels"
    )
    made["sample"].add_argument(
        "--first", type=_integer(0, 2**31), default=0, metavar="K", help="draw samples K … K + N - 1 (default: 0)"
    )
    made["sample"].add_argument(
        "--format",
        choices=("npz", "png", "shards"),
        default="npz",
        help="npz: all in samples.npz (the default); png: samples/00000000.png, …; shards: an npz a chunk in samples/; "
        "the last two are written as they are drawn, and the same command goes on from what is there",
    )
    made["sample"].add_argument(
        "--trajectory", action="store_true", help="also write trajectory.gif, an animation of the denoising"
    )
    made["show"].add_argument("--workdir", type=_text, required=True, help="the folder of the run")
    return parser


def _add_processes(group: Any) -> None:
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens (JAX_COORDINATOR_ADDRESS)")
    group.add_argument("--num_processes", metavar="N", help="how many there are (JAX_NUM_PROCESSES)")
    group.add_argument("--process_id", metavar="I", help="which this is, from 0 to N - 1 (JAX_PROCESS_ID)")
    group.add_argument("--distributed", action="store_true", help="let JAX find the three: on SLURM, on a TPU pod")
    group.add_argument(
        "--timeout",
        type=_integer(1, 10**6),
        default=100,
        metavar="S",
        help="seconds to wait for the others, at the start and for a sign of life (default: 100)",
    )


def _add_conversions(import_: argparse.ArgumentParser, export: argparse.ArgumentParser) -> None:
    import_.add_argument(
        "--from",
        dest="program",
        required=True,
        choices=("score_sde", "diffusers", "edm"),
        help="the program that trained the weights",
    )
    import_.add_argument(
        "--source",
        type=_text,
        required=True,
        help="its file: a checkpoint of score_sde (flax or .pth), a state_dict (.pth, .bin) or .safetensors; or the "
        "folder of a diffusers pipeline",
    )
    import_.add_argument(
        "--config",
        type=_text,
        help="the network's options: a JSON file of that program, or for score_sde an experiment of diffuse_jax "
        "(default: what the files themselves say)",
    )
    import_.add_argument("--workdir", type=_text, required=True, help="the folder of the run that is made")
    export.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file that is written")


def _text(text: str) -> str:
    """What is not empty, as a variable that is not set would be."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a name, or leave it out")
    return text


def _integer(least: int, end: int | None = None) -> Callable[[str], int]:
    """What reads an integer from `least` up to, but without, `end`."""
    wanted = f"an integer of at least {least}" + ("" if end is None else f" and below {end}")

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (end is not None and number >= end):
            raise argparse.ArgumentTypeError(f"{text!r} must be {wanted}")
        return number

    return parse


def _joined(overrides: Sequence[str]) -> list[str]:
    """["--config.a.b", "1"] as ["--config.a.b=1"]: both spellings are accepted."""
    joined: list[str] = []
    for argument in overrides:
        if joined and not argument.startswith("--") and joined[-1].startswith("--config.") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0; 2 for bad input and 1 for a run that diverged, after one line on
    stderr; 130 where it was interrupted."""
    return _status(argv)[0]


def run() -> NoReturn:
    """`main` as a program. What is torn from its work, or failed, ends without the interpreter's own end, which can
    crash while the devices still compute, and would wait for the threads of a checkpoint that could not be written."""
    signal.signal(signal.SIGINT, end_interrupted)
    status, torn = _status(argv=None)
    if torn or (status and not _several_processes()):
        end(status)
    # Its work is done; the interpreter's own end would put back the system's handler, which kills.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _several_processes() -> bool:
    """Whether others wait for this one at its end."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized())


def _status(argv: Sequence[str] | None) -> tuple[int, bool]:
    """The exit status, and whether an interrupt tore the command from its work; training ends by itself."""
    interrupt = Interruptible()
    try:
        status, torn = _command(argv, interrupt), interrupt.requested
    except BaseException as error:
        torn = interrupt.requested or isinstance(error, KeyboardInterrupt)
        # What an interrupted library raises says nothing.
        status = STATUS if torn else _failed(error)
    if torn:
        print(INTERRUPTED, file=sys.stderr)
    return (STATUS if torn else status), torn


def _command(argv: Sequence[str] | None, interrupt: Interruptible) -> int:
    parser = _parser()
    args, overrides = parser.parse_known_args(argv)
    if overrides and args.command == "list":
        parser.error(f"list takes no arguments, not {' '.join(overrides)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Modules that a config names may lie in the folder one works in; last, so that they shadow no installed one.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    _keep_compilations()
    _quiet_libraries()
    from diffuse_jax.cli import commands, distributed

    with interrupt, distributed.leave():
        if hasattr(args, "coordinator"):
            distributed.start(args)
        distributed.check_command(args)
        return commands.COMMANDS[args.command](args, _joined(overrides))


def _failed(error: BaseException) -> int:
    """The status of a command that raised `error`, after its line on stderr; raises what is no answer to the user."""
    from diffuse_jax.cli import distributed

    if isinstance(error, distributed.BAD_INPUT):
        print(f"diffuse-jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if isinstance(error, (FloatingPointError, distributed.Stopped)):
        if distributed.first():
            print(f"diffuse-jax: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    raise error


def _quiet_libraries() -> None:
    """What Orbax and asyncio log of an error, with its traceback, is raised too, and said here in one line."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = _show_unraisable


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Passes over what TensorStore's own threads can no longer hand to a reader that has failed."""
    if unraisable.object is not None or threading.current_thread() is threading.main_thread():
        _UNRAISABLE(unraisable)


def _keep_compilations() -> None:
    """JAX's compilation cache, in the user's cache folder unless JAX_COMPILATION_CACHE_DIR names another."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "diffuse_jax"))
