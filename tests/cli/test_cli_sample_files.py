"""`sample --format=png|shards`: the files hold the bits of samples.npz, a kill loses none, and memory does not grow."""

import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref

import jax
import numpy as np
import pytest
from cli_models import TINY, run
from PIL import Image
from tiers import first, proof

from diffuse_jax.cli import sample_files
from diffuse_jax.evaluation import draw

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def classes_run(tmp_path_factory):
    """A run on digits with labels whose samples, before they are noised, are the grey of their class."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / "classes.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from diffuse_jax.config import base\n"
        "def get_config():\n"
        "    config = base()\n"
        "    config.data.labels = True\n"
        "    config.model = ConfigDict({'name': 'cli_models:ClassConstant'})\n"
        "    config.parameterization.name = 'x0'\n"
        "    config.ema.rate = 0.9\n"
        "    config.training.evaluate_every = config.training.sample_every = 0\n"
        "    return config\n"
    )
    tiny = [a for a in TINY[1:] if not any(name in a for name in (".model.", "evaluate_every", "sample_every"))]
    assert run("train", f"--config={folder / 'classes.py'}", *tiny, f"--workdir={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture
def classes(classes_run, tmp_path, one_device):
    return pathlib.Path(shutil.copytree(classes_run, tmp_path / "run"))


@pytest.fixture
def points(toy_run, tmp_path, one_device):
    return pathlib.Path(shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("samples*")))


def sample(workdir, *argv):
    return run("sample", f"--workdir={workdir}", "--solver=euler_maruyama", *argv)


def arrays(workdir, *argv):
    """What samples.npz holds."""
    assert sample(workdir, *argv) == 0
    with np.load(workdir / "samples.npz") as file:
        return dict(file)


def images(workdir):
    """The samples in PNG files, by number."""
    found = {}
    for path in (workdir / "samples").glob("[0-9]*.png"):
        with Image.open(path) as image:
            found[int(path.stem)] = np.asarray(image)
    return found


def shards(workdir, name="samples"):
    """The rows in shards of an array, by number."""
    found = {}
    for path in sorted((workdir / "samples").glob("[0-9]*.npz")):
        first, last = map(int, path.stem.split("-"))
        with np.load(path) as file:
            assert len(file[name]) == last - first + 1 and not found.keys() & {*range(first, last + 1)}
            found |= dict(enumerate(file[name], first))
    return found


def contents(workdir):
    """Every file of the samples, and its bytes; nothing is there that is hidden but the lock."""
    files = {path.name: path.read_bytes() for path in (workdir / "samples").iterdir()}
    assert files.pop(".lock") == b"" and not any(name.startswith(".") for name in files)
    return files


@pytest.mark.parametrize(("first", "n", "batch"), [proof(0, 21, 4), proof(5, 7, 64), (1000, 13, 5)])
def test_files_hold_the_bits_and_labels_of_the_same_samples_in_one_file(classes, first, n, batch, capsys):
    which = [f"--first={first}", f"--num={n}"]
    options = [*which, f"--config.sampling.batch_size={batch}"]
    alone = arrays(classes, *which)
    assert alone["samples"].dtype == np.uint8 and len(np.unique(alone["samples"], axis=0)) == n
    np.testing.assert_array_equal(alone["labels"], np.arange(first, first + n) % 10)
    assert json.loads((classes / "samples.json").read_text())["first"] == first
    assert sample(classes, *options, "--format=png") == 0
    assert f"samples {first} … {first + n - 1} of step 8" in capsys.readouterr().out
    found = images(classes)
    assert sorted(found) == list(range(first, first + n))
    np.testing.assert_array_equal([found[i] for i in sorted(found)], alone["samples"][..., 0])
    facts = json.loads((classes / "samples" / "samples.json").read_text())
    assert (facts["classes"], facts["label"], facts["shape"]) == (10, "index mod classes", [8, 8, 1])
    assert sample(classes, *options, "--format=shards") == 0  # another format: the pictures are moved aside
    assert "kept the earlier samples as samples.1" in capsys.readouterr().out
    assert len(list((classes / "samples.1").glob("*.png"))) == n
    for name in ("samples", "labels"):
        rows = shards(classes, name)
        assert sorted(rows) == list(range(first, first + n))
        np.testing.assert_array_equal(list(rows.values()), alone[name])


def test_the_first_sample_is_the_same_wherever_a_file_begins(points):
    whole = arrays(points, "--num=40")["samples"]
    np.testing.assert_allclose(arrays(points, "--first=23", "--num=9")["samples"], whole[23:32], rtol=1e-5, atol=1e-6)
    assert "labels" not in arrays(points, "--num=3")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["png", "shards"])
@pytest.mark.parametrize("at", first([0, 3, 17, 29], keep=[17]))
def test_killed_at_any_file_and_gone_on_with_is_undisturbed(classes, kind, at, monkeypatch, capsys):
    command = ["--num=30", "--first=2", "--config.sampling.batch_size=8", f"--format={kind}"]
    assert sample(classes, *command) == 0
    undisturbed = contents(classes)
    shutil.rmtree(classes / "samples")
    at = at if kind == "png" else at // 8
    count, write = iter(range(1000)), sample_files.written_atomically

    def killed(path):
        if next(count) == at:
            (path.parent / f".{path.name}.abc").write_bytes(b"half of a file")
            raise Killed
        return write(path)

    with monkeypatch.context() as patch:
        patch.setattr(
            f"diffuse_jax.{'evaluation.pictures' if kind == 'png' else 'cli.sample_files'}.written_atomically", killed
        )
        with pytest.raises(Killed):
            sample(classes, *command)
    there = {path: os.stat(path).st_mtime_ns for path in (classes / "samples").glob("[0-9]*")}
    assert len(there) == at
    capsys.readouterr()
    assert sample(classes, *command) == 0
    done = at if kind == "png" else 8 * at
    said = capsys.readouterr()
    assert (f"going on after {done} of 30 samples" in said.err) == (done > 0) and "kept" not in said.out
    assert contents(classes) == undisturbed
    assert {path: os.stat(path).st_mtime_ns for path in there} == there  # none was written again


def test_what_is_there_is_not_drawn_again_and_more_may_be_added(points, monkeypatch):
    drawn = []
    original = draw.Sampler.chunks

    def counted(self, *args, **options):
        for start, part in original(self, *args, **options):
            drawn.append((start, len(part.x)))
            yield start, part

    monkeypatch.setattr(draw.Sampler, "chunks", counted)
    size = ["--format=shards", "--config.sampling.batch_size=8"]
    assert sample(points, *size, "--num=20") == sample(points, *size, "--num=20") == 0
    assert drawn == [(0, 8), (8, 8), (16, 4)]
    assert sample(points, *size, "--num=30") == 0
    assert drawn[3:] == [(16, 8), (24, 6)]
    assert sample(points, *size, "--first=40", "--num=5") == sample(points, *size, "--num=50") == 0
    rows = shards(points)  # which are asserted not to overlap
    whole = arrays(points, "--num=50")["samples"]
    assert list(rows) == list(range(50))
    np.testing.assert_allclose(list(rows.values()), whole, rtol=1e-5, atol=1e-6)


FACTS = ["--seed=1", "--steps=3", "--checkpoint=4", "--config.sampling.finish=denoise"]


@pytest.mark.parametrize("option", first(FACTS, keep=["--seed=1"]))
def test_samples_of_other_facts_are_moved_aside(points, option, capsys):
    assert sample(points, "--num=4", "--format=shards") == 0
    before = contents(points)
    assert sample(points, "--num=4", "--format=shards", option) == 0
    assert "kept the earlier samples as samples.1" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (points / "samples.1").glob("[!.]*")} == before
    assert contents(points)["00000000-00000003.npz"] != before["00000000-00000003.npz"]


def test_a_folder_into_which_a_command_writes_is_not_moved_aside(points, capsys):
    assert sample(points, "--num=4", "--format=shards") == 0
    facts = json.loads((points / "samples" / "samples.json").read_text())
    with sample_files._opened(points / "samples", facts):
        assert sample(points, "--num=4", "--format=shards", "--first=4") == 0
        capsys.readouterr()
        assert sample(points, "--num=4", "--format=shards", "--seed=1") == 2
    assert "samples is being written by a command with other settings" in capsys.readouterr().err
    assert list(shards(points)) == list(range(8))


def test_a_label_is_that_of_all_and_a_fact_in_both_spellings(classes):
    assert sample(classes, "--num=5", "--label=7", "--format=shards", "--first=3") == 0
    assert set(shards(classes, "labels").values()) == {7}
    np.testing.assert_array_equal(
        list(shards(classes).values()), arrays(classes, "--num=5", "--cond.label=7", "--first=3")["samples"]
    )
    assert json.loads((classes / "samples" / "samples.json").read_text())["label"] == 7
    assert json.loads((classes / "samples.json").read_text())["label"] == 7


def test_a_sample_that_is_not_finite_ends_with_what_was_before_it(points, monkeypatch, capsys):
    original = draw.Sampler.chunks

    def broken(self, *args, **options):
        run = self._run
        self._run = lambda keys, *rest: _broken(run(keys, *rest))
        return original(self, *args, **options)

    calls = iter(range(100))

    def _broken(out):
        return (out[0] * (np.nan if next(calls) == 2 else 1), *out[1:])

    monkeypatch.setattr(draw.Sampler, "chunks", broken)
    assert sample(points, "--num=20", "--config.sampling.batch_size=4", "--format=shards") == 1
    err = capsys.readouterr().err
    assert "4 of 4 samples are not finite, the first being sample 8" in err and "Traceback" not in err
    assert list(shards(points)) == list(range(8))


def test_memory_does_not_grow_with_the_number_of_samples(points, monkeypatch):
    size = 1024
    options = ["--format=shards", f"--config.sampling.batch_size={size}", "--steps=1"]
    arrays_held, held, parts, write = [], [], [], sample_files._Shards.write

    def watched(self, start, samples, labels):
        parts.append(weakref.ref(samples))
        assert sum(part() is not None for part in parts) <= 2
        arrays_held.append(len(jax.live_arrays()))
        if len(arrays_held) == chunks:
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0] - before)
        write(self, start, samples, labels)

    monkeypatch.setattr(sample_files._Shards, "write", watched)
    chunks, before = 0, 0
    assert sample(points, *options, f"--num={size}") == 0  # compiles
    for seed, chunks in ((1, 4), (2, 20)):
        arrays_held.clear()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        assert sample(points, *options, f"--seed={seed}", f"--num={size * chunks}") == 0
        tracemalloc.stop()
        assert len(arrays_held) == chunks and max(arrays_held) == arrays_held[1]
    # Keys, labels or samples of all of the second would be 4 bytes or more for each of 16,384 more: 65,536. What is
    # seen is some thousands, and 31,000 once beside other tests.
    assert held[1] - held[0] < 50_000, held


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["png", "shards"])
def test_a_command_that_is_killed_leaves_whole_files_and_goes_on_to_the_same_set(classes, kind):
    command = ["sample", "--num=600", "--config.sampling.batch_size=8", f"--format={kind}", "--steps=8"]
    alone = pathlib.Path(shutil.copytree(classes, classes.parent / "alone"))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'cli'}", "XLA_FLAGS": ""}

    def begun(workdir):
        argv = [sys.executable, "-m", "diffuse_jax", *command, f"--workdir={workdir}"]
        return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    process = begun(alone)
    assert process.communicate(timeout=200)[1] is not None and process.returncode == 0
    for _ in range(2):
        before = len(list((classes / "samples").glob("[0-9]*")))
        process, deadline = begun(classes), time.monotonic() + 100
        while len(list((classes / "samples").glob("[0-9]*"))) < before + 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert before + 5 <= len(list((classes / "samples").glob("[0-9]*"))) < (600 if kind == "png" else 75)
    process = begun(classes)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 0 and "going on after" in said
    assert contents(classes) == contents(alone)
