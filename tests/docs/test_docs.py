"""The documentation is true: its Python runs, its commands parse, its names exist, and its pages are in the site."""

import functools
import importlib
import inspect
import pathlib
import re
import shlex
import shutil
import subprocess
import tomllib
import unittest

import jax
import pytest
import yaml
from tiers import proof

from diffuse_jax import nets, sde, solvers
from diffuse_jax.checkpoints import Checkpoints
from diffuse_jax.cli.arguments import read_arguments
from diffuse_jax.cli.commands import COMMANDS
from diffuse_jax.cli.common import as_asked
from diffuse_jax.config import build, read, sampling_plan
from diffuse_jax.config.workdir import CHECKPOINTS, write_run
from diffuse_jax.sde import VP

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TINY = {"nf": 8, "ch_mult": (1,), "attn_resolutions": ()}


def blocks(page: str, language: str) -> list[tuple[int, str | None, str]]:
    """(line, title, text) of the fenced blocks of a language."""
    text = PAGES[page]
    found = BLOCK.finditer(text)
    return [(text[: m.start(3)].count("\n"), m[2], m[3]) for m in found if m[1] == language]


def with_blocks(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def commands(page: str) -> list[list[str]]:
    """The shell commands of a page, as words."""
    text = "".join(block for _, _, block in blocks(page, "bash")).replace("\\\n", " ").replace("&&", "\n")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def arguments(words: list[str]) -> list[str] | None:
    """What a shell command gives to diffuse-jax, or None for another command."""
    for i, word in enumerate(words):
        if pathlib.PurePath(word).name == "diffuse-jax":
            return words[i + 1 :]
        if words[i : i + 2] == ["-m", "diffuse_jax"]:
            return words[i + 2 :]
    return None


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The folder of a run of an experiment on digits that was stopped at step 0, of a tiny network."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        config = read(name)
        config.model.update(TINY)
        experiment = build(config)
        write_run(folder, config, experiment.data)
        with Checkpoints(folder / CHECKPOINTS) as checkpoints:
            checkpoints.save(0, jax.jit(experiment.create_state)())
        return folder

    return run


#: Pages whose Python takes long beside what it adds to the others'.
LONG = [
    f"docs/howto/{name}.md"
    for name in (
        *("autoencoder", "classifier", "devices", "library", "likelihood", "notebook", "own-network", "own-sde"),
        *("own-solver", "testing"),
    )
]


@pytest.mark.parametrize("page", [proof(page) if page in LONG else page for page in with_blocks("python")])
def test_python_of_the_page_runs(page, tmp_path, monkeypatch, run_of):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = blocks(page, "python")
    for name in {name for _, _, text in code for name in re.findall(r"runs/(digits\w*)", text)}:
        shutil.copytree(run_of(name), tmp_path / "runs" / name)
    namespace = {"__name__": "documentation"}
    for line, title, text in code:
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        exec(compile("\n" * line + text, str(ROOT / page), "exec"), namespace)
    for case in [x for x in namespace.values() if isinstance(x, type) and issubclass(x, unittest.TestCase)]:
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert result.testsRun and result.wasSuccessful(), [*result.failures, *result.errors]


@pytest.mark.parametrize("page", with_blocks("bash"))
def test_commands_of_the_page_have_the_flags_fields_and_extras_that_they_use(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _, title, text in blocks(page, "python"):
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for words in commands(page):
        if "install" in words:
            asked = [extra for word in words for group in re.findall(r"\[(.+)\]", word) for extra in group.split(",")]
            assert set(asked) <= set(extras), words
        if (given := arguments(words)) is not None:
            args, overrides = read_arguments(given)
            named = getattr(args, "config", None) or "digits"
            if named.endswith(".json"):  # another program's options
                continue
            config = read(named, as_asked(args, overrides))
            if getattr(args, "solver", None):
                sampling_plan(config, VP())


def test_the_readme_trains_and_tests_in_one_line_each():
    lines = [line for _, _, text in blocks("README.md", "bash") for line in text.splitlines()]
    train = [line for line in lines if line.startswith("python3 -m venv") and "--config=digits" in line]
    test = [line for line in lines if "pytest" in line]
    assert len(train) == len(test) == 1
    # What .ci/run needs to take the line apart.
    assert re.fullmatch(
        r"python3 -m venv \.venv && \.venv/bin/pip install .+ && \.venv/bin/python -m pytest[\w -]*", test[0]
    )


def test_ci_is_bash_and_executable():
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111


def test_names_in_the_design_exist():
    rows = re.findall(r"^\| `([\w/]+)` \| (`.+`) \|", PAGES["docs/design.md"], re.MULTILINE)
    assert len(rows) >= 14
    for room, names in rows:
        module = importlib.import_module(f"diffuse_jax.{room.rstrip('/')}")
        for name in re.findall(r"`(\w+)", names):
            assert hasattr(module, name) or (room == "cli/" and name in COMMANDS), f"{room} has no {name}"


def test_every_page_is_in_the_site_and_every_link_and_reference_leads_somewhere():
    class Loader(yaml.SafeLoader):
        """mkdocs.yml names Python functions by a tag; they are of no interest here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    listed = re.findall(r"[\w/-]+\.md", str(site["nav"]))
    assert sorted(f"docs/{page}" for page in listed) == sorted(page for page in PAGES if page.startswith("docs/"))
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", text):
            assert (ROOT / page).parent.joinpath(target).is_file(), f"{page} links to {target}"
        for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
            importlib.import_module(name)


CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if "$" in CODE.sub("", PAGES[page])])
def test_formulas_are_closed_and_keep_to_what_mathjax_and_tables_read(page):
    text = CODE.sub("", PAGES[page])
    formulas = ["".join(found) for found in FORMULA.findall(text)]
    assert formulas and "$" not in FORMULA.sub("", text), "a dollar is alone"
    for formula in formulas:
        assert formula.count("{") == formula.count("}"), formula
        assert len(re.findall(r"\\left\b", formula)) == len(re.findall(r"\\right\b", formula)), formula
        # A bar ends the cell of a table, and MathJax shows the backslash of an escaped underscore.
        assert "|" not in formula and "\\_" not in formula, formula


def test_every_solver_is_in_the_table_of_solvers():
    named = set(re.findall(r"^\| `(?:predictor_corrector\()?(\w+)", PAGES["docs/solvers.md"], re.MULTILINE))
    no_solvers = {"Noise", "Solver", "Transported", "predictor_corrector", "transport", "velocity"}
    # It has a grid of its own, on which it knows not where its steps end.
    elsewhere = {"score_sde"}
    assert set(solvers.__all__) - no_solvers - elsewhere <= named
    assert all(f"`{name}" in PAGES["docs/solvers.md"] for name in elsewhere)


PROCESSES = [getattr(sde, name) for name in sde.__all__ if inspect.isclass(getattr(sde, name)) and name != "Array"]


@pytest.mark.parametrize("kind", [*PROCESSES, solvers.Solver, nets.NCSNpp, nets.DDPM, nets.SongUNet, nets.MLP])
def test_every_argument_of_a_constructor_is_explained_where_it_is_defined(kind):
    explained = inspect.getdoc(kind).partition("Args:")[2]
    arguments = [name for name in inspect.signature(kind).parameters if name not in ("name", "parent")]  # Flax's own
    missing = [name for name in arguments if not re.search(rf"^\s+{name}: \S", explained, re.MULTILINE)]
    assert arguments and not missing, f"the docstring of {kind.__name__} does not explain {missing}"


def test_every_public_name_has_its_api_page():
    shown = {name for text in PAGES.values() for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
    rooms = re.findall(r"^\| `([\w/]+)` \| `", PAGES["docs/design.md"], re.MULTILINE)
    for room in [importlib.import_module(f"diffuse_jax.{room.rstrip('/')}") for room in rooms if room != "cli/"]:
        objects = {name: getattr(room, name) for name in room.__all__}
        own = {name: o for name, o in objects.items() if inspect.isfunction(o) or inspect.isclass(o)}
        missing = [
            name for name, o in own.items() if o.__module__.startswith("diffuse_jax") and o.__module__ not in shown
        ]
        assert not missing, f"no page of docs/api shows {missing} of {room.__name__}"
