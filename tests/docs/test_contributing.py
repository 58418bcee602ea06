"""What a contributor is told is true: paths are there, tools read their files, and the workflow runs .ci/run."""

import pathlib
import re
import shlex
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: What a path in the guide begins with.
FOLDERS = ("diffuse_jax/", "tests/", "docs/", "experiments/", "benchmarks/", ".ci/", ".github/")


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_every_path_of_the_guide_exists():
    words = {word.rstrip(",.;:") for code in re.findall(r"`([^`\n]+)`", GUIDE) for word in code.split()}
    paths = {word for word in words if word.startswith(FOLDERS)}
    paths |= set(re.findall(r"\]\((?!https?:)([^)#]+)", GUIDE))
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_commands_of_the_guide_run_files_that_are_there_with_marks_extras_and_tools_of_the_project():
    blocks = re.findall(r"^```bash\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:python|pip|bash) [^`\n]+)`", GUIDE)
    lines = [shlex.split(line) for line in [*"".join(blocks).splitlines(), *inline]]
    options = PROJECT["tool"]["pytest"]["ini_options"]
    for words in lines:
        files = [word for word in words if "/" in word and not word.startswith(".venv")]
        files = [word for word in files if word != ".venv/bin/activate"]
        assert all((ROOT / file).exists() for file in files), words
        for extra in [extra for word in words for extra in re.findall(r"\.\[(\w+)\]", word)]:
            assert extra in PROJECT["project"]["optional-dependencies"], words
        if "pytest" in words and "-m" in words[3:]:
            mark = words[words.index("-m", 3) + 1]
            assert any(marker.startswith(f"{mark}:") for marker in options["markers"]), words
    ran = {words[0] for words in lines}
    assert {"ruff", "mypy", "bash", "python"} <= ran


def test_marks_that_the_first_tier_leaves_out_are_those_that_are_declared():
    options = PROJECT["tool"]["pytest"]["ini_options"]
    declared = {marker.partition(":")[0] for marker in options["markers"]}
    assert set(re.findall(r"not (\w+)", options["addopts"])) == declared == {"proof", "slow"}


def test_the_workflow_runs_the_checks_on_the_first_and_the_last_python_that_are_named():
    workflow = read_yaml(".github/workflows/ci.yml")
    assert {"push", "pull_request"} <= workflow[True].keys()  # YAML 1.1 reads the key `on` as true
    (job,) = workflow["jobs"].values()
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    named = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
    assert job["strategy"]["matrix"]["python-version"] == [named[0], named[-1]]


def test_hooks_are_the_tools_that_the_checks_run():
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for hook in hooks:
        words = hook["entry"].replace(" --force-exclude", "")
        assert f'"$venv/bin/{words.split()[0]}" {" ".join(words.split()[1:])}'.rstrip() in script, hook["id"]
    assert {hook["entry"].split()[0] for hook in hooks} == {"ruff", "mypy"}


@pytest.mark.parametrize("heading", ["Unreleased", PROJECT["project"]["version"]])
def test_the_changelog_has_what_is_coming_and_this_version(heading):
    assert re.search(
        rf"^## \[{re.escape(heading)}\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
