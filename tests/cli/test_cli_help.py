"""The help says what there is."""

import importlib.metadata

import pytest

from diffuse_jax.cli import main
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
