"""TFDS data are read without TensorFlow; unprepared data fail at once, with the command that prepares them."""

import io
import json
import shlex
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffuse_jax.data import DataError, load_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), np.uint8)


class OwnShapes(tfds.core.GeneratorBasedBuilder):
    """Twelve images of 6x8 pixels in three classes; eight to train, four to validate."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(6, 8, 3)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 8), "validation": self._generate_examples(8, 12)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            png = io.BytesIO()
            Image.fromarray(IMAGES[i]).save(png, "PNG")
            yield i, {"image": png.getvalue(), "label": i % 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    builder = OwnShapes(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def by_first_pixel(x):
    return x[np.lexsort(x[:, 0, 0, :].T)]


def test_prepared_data_are_read_exactly_with_their_labels_and_validation_as_test(prepared):
    data = load_dataset(f"tfds:{prepared}", labels=True)
    assert (data.shape, data.levels, data.num_classes) == ((6, 8, 3), 256, 3)
    for source, images in ((data.train, IMAGES[:8]), (data.test, IMAGES[8:])):
        rows = source[np.arange(len(source))]
        np.testing.assert_array_equal(by_first_pixel(rows["x"]), by_first_pixel(images))
        found = [int(np.flatnonzero((x == IMAGES).all(axis=(1, 2, 3)))[0]) for x in rows["x"]]
        assert [i % 3 for i in found] == rows["label"].tolist()
    assert "tensorflow" not in sys.modules


def test_prepared_data_are_found_by_name_in_the_data_folder(prepared, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared.parent.parent))
    assert len(load_dataset("tfds:own_shapes").train) == 8


def test_prepared_images_can_be_cropped_to_a_square_and_turned_grey(prepared):
    data = load_dataset(f"tfds:{prepared}", image_size=6, channels=1)
    expected = [np.asarray(Image.fromarray(image[:, 1:7]).convert("L"))[..., None] for image in IMAGES[8:]]
    rows = data.test[np.arange(4)]["x"]
    assert sorted(x.tobytes() for x in rows) == sorted(x.tobytes() for x in expected)
    wide = load_dataset(f"tfds:{prepared}", channels=1)
    assert wide.test[np.array([0])]["x"].shape == (1, *wide.shape) == (1, 6, 8, 1)


def test_a_stock_data_set_is_read_by_its_name():
    with tfds.testing.mock_data(num_examples=20):
        data = load_dataset("tfds:cifar10", labels=True)
        rows = data.train[np.array([3, 1, 3])]
        with pytest.raises(DataError, match=r"lsun/bedroom differ in size: give image_size"):
            load_dataset("tfds:lsun/bedroom")
        with pytest.raises(DataError, match=r"no class labels"):
            load_dataset("tfds:lsun/bedroom", image_size=8, labels=True)
        with pytest.raises(DataError, match=r"no uint8 feature 'image'"):
            load_dataset("tfds:ag_news_subset")
    assert (data.shape, data.num_classes, len(data.train), len(data.test)) == ((32, 32, 3), 10, 20, 20)
    assert (rows["x"].shape, rows["x"].dtype) == ((3, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(rows["x"][0], rows["x"][2])
    assert (rows["x"][0] != rows["x"][1]).any()


def test_unprepared_data_fail_within_a_second_with_the_command_that_prepares_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    started = time.perf_counter()
    with pytest.raises(DataError, match="tfds:cifar10 is not prepared at") as raised:
        load_dataset("tfds:cifar10")
    assert time.perf_counter() - started < 1
    assert "\n" not in str(raised.value)
    command = str(raised.value).split("this prepares it: ")[1]
    words = shlex.split(command)
    assert words[:4] == ["pip", "install", "diffuse-jax-sde[tfds-prepare]", "&&"]
    # The Python of the command, with nothing but the download itself replaced, asks for that data set in that format.
    asked = []
    monkeypatch.setattr(
        tfds.core.DatasetBuilder,
        "download_and_prepare",
        lambda self: asked.append((self.info.full_name, self.info.file_format.value)),
    )
    exec(words[-1], {})
    assert asked == [("cifar10/3.0.2", "array_record")]


def test_data_prepared_without_random_access_are_told_from_unprepared_data(prepared, tmp_path):
    copy = tmp_path / "own_shapes" / "1.0.0"
    copy.mkdir(parents=True)
    for file in prepared.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"without random access at .*moving that folder away this prepares it: pip"):
        load_dataset(f"tfds:{copy}")


@pytest.mark.parametrize(
    ("name", "words"),
    [("cifar1", "Did you mean: cifar1 -> cifar10"), ("mnist:9.9.9", "only: 3.0.1"), ("nosuchthing", "not found")],
)
def test_an_unknown_name_is_refused_in_one_line(name, words):
    with pytest.raises(DataError, match=words) as raised:
        load_dataset(f"tfds:{name}")
    assert "\n" not in str(raised.value)
