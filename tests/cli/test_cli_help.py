"""The help says what there is."""

import importlib
import importlib.metadata
import subprocess
import sys

import pytest
from cli_models import run

from diffuse_jax.cli import main
from diffuse_jax.cli.commands import COMMANDS
from diffuse_jax.cli.solver_help import CORRECTORS, GROUPS
from diffuse_jax.config import sampling_section as solvers


def test_the_help_names_exactly_the_solvers_and_correctors_of_the_config():
    named = [name for names in GROUPS.values() for name in names]
    assert sorted(named) == sorted(solvers.SOLVERS)
    assert sorted(CORRECTORS) == sorted(solvers.CORRECTORS)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sample", [*solvers.SOLVERS, *solvers.CORRECTORS, "reverse SDE", "probability flow"]),
        ("evaluate", [*solvers.SOLVERS, *solvers.CORRECTORS, "reverse SDE", "probability flow"]),
        ("train", ["--config.section.field=value", "--dry_run", "docs/howto/experiments.md"]),
    ],
)
def test_the_help_of_a_command_says_what_its_arguments_may_be(command, words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert [word for word in words if word not in text] == []


def test_the_version_is_that_of_the_package_and_of_jax(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    own, jax = (importlib.metadata.version(name) for name in ("diffuse-jax-sde", "jax"))
    assert capsys.readouterr().out == f"diffuse-jax {own}, jax {jax}\n"


QUICK = """
import contextlib, io, sys
from diffuse_jax.cli import main
from diffuse_jax.cli.commands import COMMANDS
refused = [["nothing"], ["list", "x"], ["sample", "--num=x"]]
for argv in [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS), *refused]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main(argv)
    except SystemExit as stop:
        assert bool(stop.code) == (argv in refused), argv
    loaded = {"jax", "flax", "orbax", "numpy"} & set(sys.modules)
    assert not loaded, (argv, loaded)
print("quick")
"""


def test_help_the_version_and_usage_errors_import_neither_jax_nor_numpy():
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True)
    assert done.stdout == "quick\n", done.stderr


ONE_FILE = '''
"""diffuse-jax greet."""

from diffuse_jax.cli.command import Command
from diffuse_jax.cli.options import add_run, add_seed, integer


def options(parser):
    add_run(parser)
    add_seed(parser)
    parser.add_argument("--times", type=integer(1, 4), default=1, metavar="N", help="how often to greet")


def greet(args, overrides):
    print(args.command, args.workdir, args.seed, args.times, overrides)
    return 7


COMMAND = Command(help="Greet a run.", options=options, run=greet, epilog="It is polite.")
'''


def test_a_command_is_one_file_and_its_line_in_the_table(tmp_path, monkeypatch, capsys):
    (tmp_path / "greet_command.py").write_text(ONE_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "greet", importlib.import_module("greet_command").COMMAND)

    assert run("greet", "--workdir=here", "--seed=3", "--times=2", "--config.seed", "1") == 7
    assert capsys.readouterr().out == "greet here 3 2 ['--config.seed=1']\n"

    assert run("--help") == 0
    assert "Greet a run." in capsys.readouterr().out
    assert run("greet", "--help") == 0
    text = capsys.readouterr().out
    assert all(
        words in text for words in ("Greet a run.", "--times N", "how often to greet", "--seed", "It is polite.")
    )

    assert run("greet", "--times=4") == 2
    assert "greet: error: argument --times: '4' must be an integer of at least 1 and below 4" in capsys.readouterr().err
