"""Every row of bad_inputs.py: one line that says what is wrong, the right status or exception, and nothing written."""

import json
import math
import pathlib
import shlex

import bad_inputs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers
from cli_models import TINY, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffuse_jax
from diffuse_jax import checkpoints, config, data, evaluation, nets, oracles, sde, training
from diffuse_jax.cli.asked_conditions import read_conditions
from diffuse_jax.conditions import Condition
from diffuse_jax.config.numbers import RANGES
from diffuse_jax.config.schema import METHOD_FIELDS

# What warns says more than one line.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

DRY = ("train", "--dry_run", *TINY)


def refused(capfd, *argv, status=2):
    """The one line on stderr with which a command is refused; the programs of C++ would be heard too."""
    capfd.readouterr()
    assert run(*argv) == status
    err = capfd.readouterr().err
    assert err.startswith("diffuse-jax") and "error: " in err and err.count("\n") == 1, err
    return err.rstrip("\n")


def assert_says(line, words):
    assert all(word in line for word in words), (line, words)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def first(row):
    """The name of a test."""
    return str(row[0]).replace("\n", ";") if isinstance(row, tuple) else None


def test_the_table_holds_three_hundred_rows_and_every_field_with_a_range():
    tables = (table for name, table in vars(bad_inputs).items() if name.isupper() and isinstance(table, list))
    assert sum(map(len, tables)) >= 300
    fields = [field for field, *_ in bad_inputs.NUMBERS]
    assert len(fields) == len(set(fields)) and set(RANGES) <= set(fields)


@pytest.mark.parametrize("row", bad_inputs.TRAIN, ids=first)
def test_a_field_that_cannot_be_met_is_named(row, tmp_path, monkeypatch, capfd):
    argument, *words = row
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    line = refused(capfd, "train", *TINY, f"--workdir={tmp_path / 'run'}", argument)
    assert_says(line, words)
    assert not (tmp_path / "run").exists()
    # Several processes are not begun for a dry run, which refuses all else that training does.
    if "process" not in argument:
        assert refused(capfd, *DRY, argument) == line


@pytest.mark.parametrize("row", tiers.first(bad_inputs.NUMBERS, keep=bad_inputs.NUMBERS[::10]), ids=first)
def test_a_number_that_is_out_of_its_range_is_named(row, tmp_path, capfd):
    field, values, *needed = row
    needed = [f"--config.{other}" for other in needed]
    lines = []
    for value in values.split():
        lines.append(refused(capfd, *DRY, *needed, f"--config.{field}={value}"))
        assert "config." in lines[-1] and field.rpartition(".")[-1] in lines[-1], lines[-1]
    argument = f"--config.{field}={values.split()[0]}"
    assert refused(capfd, "train", *TINY, f"--workdir={tmp_path / 'run'}", *needed, argument) == lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("row", bad_inputs.EXPERIMENTS, ids=first)
def test_an_experiment_file_that_cannot_be_read_is_named(row, tmp_path, capfd):
    text, *words = row
    file = tmp_path / "digits.py"  # of a built-in experiment's name: a path is never taken for a name
    if text is not None:
        imports = "from ml_collections import ConfigDict\nfrom diffuse_jax.config import base, method, network\n"
        file.write_text(text if text.startswith("def get_config(:") else imports + text)
    line = refused(capfd, "train", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert_says(line, [str(file), *words])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("row", bad_inputs.ARRAYS, ids=first)
def test_a_file_of_data_that_cannot_be_trained_on_is_named(row, tmp_path, capfd):
    expression, *words = row
    arrays = eval(expression, {"np": np})
    file = tmp_path / ("data.npz" if isinstance(arrays, dict) else "data.npy")
    np.savez(file, **arrays) if isinstance(arrays, dict) else np.save(file, arrays)
    labels = "--config.data.labels=True" if "label" in arrays else "--config.data.labels=False"
    line = refused(capfd, "train", *TINY, f"--workdir={tmp_path / 'run'}", f"--config.data.source={file}", labels)
    assert_says(line, [str(file), *words])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("row", bad_inputs.RECORDS, ids=lambda row: f"{row[0]}={row[1]!r}")
def test_a_record_of_a_run_that_cannot_be_read_is_named(row, toy_run, tmp_path, capfd):
    path, value, *words = row
    content = json.loads((toy_run / "config.json").read_text())
    *sections, field = path.split(".")
    section = content
    for name in sections:
        section = section[name]
    section[field] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    for command in ("sample", "show"):
        assert_says(refused(capfd, command, f"--workdir={tmp_path}"), [str(tmp_path / "config.json"), *words])


@pytest.mark.parametrize("row", bad_inputs.COMMANDS, ids=first)
def test_a_command_line_that_cannot_be_met_is_refused_and_leaves_all_as_it_is(row, toy_run, tmp_path, capfd):
    assert_refused_beside(toy_run, row, tmp_path, capfd)


@pytest.mark.parametrize("row", bad_inputs.OF_A_CLASSIFIER, ids=first)
def test_what_a_classifier_cannot_be_asked_is_refused_and_leaves_all_as_it_is(row, classifier_run, tmp_path, capfd):
    assert_refused_beside(classifier_run, row, tmp_path, capfd)


def assert_refused_beside(folder, row, tmp_path, capfd):
    command, *words = row
    places = {"run": folder, "new": tmp_path / "new", "empty": tmp_path / "empty", "file": tmp_path / "file"}
    places["empty"].mkdir()
    places["file"].touch()
    before = contents(folder)
    argv = shlex.split(command.format(tiny=shlex.join(TINY), **places))
    assert_says(refused(capfd, *argv), [word.format(**places) for word in words])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"] and contents(folder) == before


class Nothing(sde.SDE):
    """A process that defines nothing."""


VP = diffuse_jax.VP()
NAMES = {
    **{name: getattr(diffuse_jax, name) for name in diffuse_jax.__all__},
    **{module.__name__.rpartition(".")[-1]: module for module in (checkpoints, config, data, evaluation, oracles, sde)},
    **{"training": training, "MLP": nets.MLP, "Nothing": Nothing, "jax": jax, "jnp": jnp, "np": np},
    # A process, a denoiser of it, a grid, and keys and rows for three samples; points, and images.
    **{
        "SDE": VP,
        "ORACLE": diffuse_jax.from_score(VP, lambda x, t: -x, (2,)),
        "GRID": diffuse_jax.times.uniform(VP, 4),
    },
    **{"GRID": diffuse_jax.times.uniform(VP, 4), "KEYS": diffuse_jax.sample_keys(0, 3), "X": jnp.zeros((3, 2))},
    **{"PTS": np.zeros((5, 2), np.float32), "U8": np.zeros((4, 8, 8, 1), np.uint8)},
    # What runs were trained with: ten classes, images of eight pixels, captions of eight bytes.
    **{"read_conditions": read_conditions, "Condition": Condition, "CONDITIONED": {"label": Condition((), 10)}},
    **{"ILLUSTRATED": {"image": Condition((8, 8, 3), 256)}, "CAPTIONED": {"tokens": Condition((8,), 257)}},
}


@pytest.mark.parametrize("row", bad_inputs.LIBRARY, ids=first)
def test_a_wrong_argument_of_the_library_is_named(row, tmp_path):
    expression, kind, *words = row
    with pytest.raises((TypeError, ValueError, OSError)) as caught:
        eval(expression, {**NAMES, "TMP": tmp_path})
    assert type(caught.value).__name__ == kind and "\n" not in str(caught.value)
    assert words
    assert_says(str(caught.value), words)


# --- all numeric fields -----------------------------------------------------------------------------------------------

TINY_IMAGES = [argument for argument in TINY if ".model." not in argument and "--config=" not in argument] + [
    "--config=digits",
    "--config.model.nf=4",
    "--config.model.ch_mult=1,",
    "--config.model.attn_resolutions=()",
    "--config.model.num_res_blocks=1",
]


def numeric(section, prefix):
    """The fields of a section that hold numbers, or would if they were not empty."""
    for name, value in section.items():
        texts = isinstance(value, tuple) and any(isinstance(entry, str) for entry in value)
        if section.get_type(name) in (int, float, tuple) and not isinstance(value, bool) and not texts:
            yield f"{prefix}{name}", section.get_type(name) is tuple


#: Of each network the arguments that make an experiment tiny, and its fields: the name, and whether it is a tuple.
FIELDS = {
    "mlp": (TINY, [*sorted((field, field in ("sde.betas", "sampling.times")) for field in RANGES)]),
    "ncsnpp": (TINY_IMAGES, []),
}
for name, (_, fields) in FIELDS.items():
    fields.extend(numeric(config.network(name), "model."))
VALUES = (math.nan, math.inf, -math.inf, -1, 0, 10**18)
#: What must be set for a field to be read.
NEEDED = {field: [f"--config.{other}" for other in needed] for field, _, *needed in bad_inputs.NUMBERS}


@st.composite
def overrides(draw, most):
    """A tiny experiment with a value in each of a few numeric fields, and the last names of these."""
    tiny, fields = FIELDS[draw(st.sampled_from(sorted(FIELDS)))]
    chosen = draw(st.lists(st.sampled_from(fields), min_size=1, max_size=most, unique=True))
    given = [draw(st.sampled_from(VALUES)) for _ in chosen]
    texts = [
        f"--config.{field}=({value},)" if row else f"--config.{field}={value}"
        for (field, row), value in zip(chosen, given, strict=True)
    ]
    return [*tiny, *NEEDED.get(chosen[0][0], ()), *texts], [field.rpartition(".")[-1] for field, _ in chosen]


ALWAYS_THE_SAME = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_the_fields_are_those_of_base():
    base = config.base()
    found = {field for name in base if hasattr(base[name], "items") for field, _ in numeric(base[name], f"{name}.")}
    of_methods = {f"method.{field}" for fields in METHOD_FIELDS.values() for field in fields}
    assert {field for field in found if not field.startswith("model.")} | {"seed"} | of_methods == set(RANGES)


@pytest.mark.proof
@settings(ALWAYS_THE_SAME, max_examples=150)
@given(case=overrides(most=2))
def test_any_number_in_any_field_is_taken_or_refused_by_its_name(case, capfd):
    argv, names = case
    capfd.readouterr()
    status = run("train", "--dry_run", *argv)
    err = capfd.readouterr().err
    assert status in (0, 2), err
    if status:
        assert err.startswith("diffuse-jax: error: ") and err.count("\n") == 1, err
        assert any(name in err for name in names), (err, names)
    else:
        assert not err


def numbers_of(file):
    """Every number in a file that a command wrote."""
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return [arrays[name] for name in arrays]
    found = json.loads(file.read_text())
    # The error of a single row is none.
    return [value for name, value in found.items() if not name.endswith("_error") and not isinstance(value, str)]


@pytest.mark.slow
@settings(ALWAYS_THE_SAME, max_examples=40)
@given(case=overrides(most=1))
def test_what_is_taken_is_run_to_finite_numbers_or_ends_in_one_line(case, one_device, tmp_path_factory, capfd):
    argv, _ = case
    if run("train", "--dry_run", *argv) != 0:
        return
    folder = tmp_path_factory.mktemp("number") / "run"
    written = {"train": None, "sample": "samples.npz", "evaluate": "evaluation.json"}
    for command, name in written.items():
        capfd.readouterr()
        status = run(command, *(argv if command == "train" else ()), f"--workdir={folder}")
        err = capfd.readouterr().err
        assert status in (0, 1, 2) and "Traceback" not in err, err
        assert status == 0 or [line for line in err.splitlines() if "error: " in line] == err.splitlines()[-1:], err
        if status == 0 and name is None:
            leaves = jax.tree.leaves(diffuse_jax.load(pathlib.Path(folder)).params)
            assert all(np.isfinite(leaf).all() for leaf in leaves), argv[-1]
        elif status == 0:
            assert all(np.isfinite(np.asarray(value, float)).all() for value in numbers_of(folder / name)), argv[-1]
        elif command == "train":
            return
