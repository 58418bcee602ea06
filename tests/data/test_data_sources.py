"""The built-in data, arrays in memory, and what is refused."""

import io
import zipfile

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from diffuse_jax.conditions import Condition
from diffuse_jax.data import EIGHT_GAUSSIANS, TOYS, DataError, from_arrays, load_dataset


def rows(source):
    return source[np.arange(len(source))]


def test_digits_are_all_the_images_of_scikit_learn_in_17_grey_levels():
    digits = load_dataset("digits", labels=True)
    train, test = rows(digits.train), rows(digits.test)
    x, label = (np.concatenate([train[k], test[k]]) for k in ("x", "label"))
    assert (x.shape, x.dtype, label.dtype) == ((1797, 8, 8, 1), np.uint8, np.int32)
    assert (digits.shape, digits.levels, digits.num_classes) == ((8, 8, 1), 17, 10)
    assert digits.conditions == {"label": Condition((), 10)}
    assert len(np.unique(x)) == 17
    raw = load_digits()
    # Each row is found again, with its label, by its grey values: the two parts are all rows, each once.
    values = np.round(x[..., 0] * (16 / 255)).astype(int)
    own = sorted((*v.ravel(), y) for v, y in zip(values, label, strict=True))
    assert own == sorted((*v.ravel(), y) for v, y in zip(raw.images.astype(int), raw.target, strict=True))


def test_the_digits_split_is_fixed_disjoint_and_as_large_as_asked():
    first, again, wider = (load_dataset("digits", holdout=h) for h in (0.1, 0.1, 0.25))
    np.testing.assert_array_equal(first.train.indices, again.train.indices)
    assert not set(first.train.indices) & set(first.test.indices)
    assert (len(first.test), len(wider.test)) == (180, 449)
    assert "label" not in rows(first.test)


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_density_is_the_same_vectors_every_time_with_other_ones_to_test(name):
    toy, again = load_dataset(name), load_dataset(name)
    x = rows(toy.train)["x"]
    assert (x.dtype, x.shape[1:], toy.levels, toy.conditions, toy.num_classes) == (np.float32, (2,), None, {}, None)
    np.testing.assert_array_equal(x, rows(again.train)["x"])
    assert not set(map(tuple, x)) & set(map(tuple, rows(toy.test)["x"]))
    assert np.abs(x).max() < 1.5
    assert (x.std(axis=0) > 0.3).all()


def test_eight_gaussians_have_the_moments_and_the_radii_of_their_closed_form():
    x = rows(load_dataset("eight_gaussians").train)["x"].astype(np.float64)
    n, mixture = len(x), EIGHT_GAUSSIANS
    means, weights = np.array(mixture.means), np.array(mixture.weights)
    mean = weights @ means
    cov = (weights[:, None] * (means - mean)).T @ (means - mean) + mixture.std**2 * np.eye(2)
    # Five standard errors of a mean, and of a second moment of variables within ±1.2.
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=5 * np.sqrt(np.diag(cov).max() / n))
    np.testing.assert_allclose(np.cov(x.T), cov, atol=5 * 1.2**2 / np.sqrt(n))
    offsets = x - means[np.linalg.norm(x[:, None] - means, axis=2).argmin(axis=1)]
    assert stats.kstest((offsets**2).sum(axis=1) / mixture.std**2, stats.chi2(2).cdf).pvalue > 1e-4


def test_the_checkerboard_fills_every_other_cell_evenly():
    x = rows(load_dataset("checkerboard").train)["x"]
    cells = np.floor((x + 1) * 2).astype(int).clip(0, 3)
    counts = np.zeros((4, 4), int)
    np.add.at(counts, tuple(cells.T), 1)
    even = np.add.outer(np.arange(4), np.arange(4)) % 2 == 0
    assert counts[~even].sum() == 0
    assert stats.chisquare(counts[even]).pvalue > 1e-4


def test_rings_and_moons_lie_on_their_circles():
    radius = np.linalg.norm(rows(load_dataset("rings").train)["x"], axis=1)
    ring = np.round(radius * 3).clip(1, 3)
    assert stats.kstest((radius - ring / 3) / 0.03, "norm").pvalue > 1e-4
    moons = rows(load_dataset("moons").train)["x"]
    off = [np.abs(np.linalg.norm(moons - c, axis=1) - 2 / 3) for c in ([-1 / 3, -1 / 6], [1 / 3, 1 / 6])]
    assert np.minimum(*off).max() < 6 * 0.04


def test_arrays_in_memory_become_a_data_set():
    x = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    data = from_arrays({"x": x, "label": np.array([0, 4])}, num_classes=5, holdout=0.5)
    assert (len(data.train), len(data.test)) == (1, 1)
    assert (data.shape, data.levels, data.num_classes) == ((4, 4, 3), 256, 5)
    vectors = from_arrays(np.ones((5, 7)), np.zeros((2, 7), int))
    assert (vectors.shape, vectors.levels, len(vectors.train), len(vectors.test)) == ((7,), None, 5, 2)
    assert rows(vectors.test)["x"].dtype == np.float32


def test_a_file_of_arrays_is_read_as_it_was_written(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), np.uint8), np.arange(6)
    np.savez(tmp_path / "a.npz", x=x[:4], label=y[:4], x_test=x[4:], label_test=y[4:])
    data = load_dataset(str(tmp_path / "a.npz"), labels=True)
    np.testing.assert_array_equal(rows(data.test)["x"], x[4:])
    np.testing.assert_array_equal(rows(data.test)["label"], y[4:])
    np.save(tmp_path / "b.npy", x)
    assert "label" not in rows(load_dataset(str(tmp_path / "b.npy"), holdout=0).train)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (np.zeros((3, 4, 4, 3), np.float32), "images are uint8"),
        (np.zeros((3, 4, 4, 2), np.uint8), "1 or 3"),
        (np.zeros((3, 4, 4), np.uint8), "give uint8 images"),
        (np.array([[np.nan, 0.0]]), "not finite"),
        ({"x": np.zeros((3, 2)), "label": np.zeros(2, int)}, "one integer"),
        ({"x": np.zeros((3, 2)), "label": np.array([0, 1, 2**32 + 2])}, "one integer"),
        ({"images": np.zeros((3, 2))}, "give x"),
        ({"x": np.zeros((3, 2)), "image": np.zeros((3, 2, 2, 1))}, r"images float64 \(3, 2, 2, 1\): give uint8"),
        ({"x": np.zeros((3, 2)), "image": np.zeros((2, 2, 2, 1), np.uint8)}, "each of 3 rows"),
        ({"x": np.zeros((3, 2)), "tokens": np.zeros((3, 2))}, r"tokens float64 \(3, 2\): give integers"),
        ({"x": np.zeros((3, 2)), "tokens": np.full((3, 2), -1)}, "0 or more"),
        ({"x": np.zeros((3, 2)), "tokens": np.zeros((2, 2), int)}, "each of 3 rows"),
        (np.zeros((0, 2)), "no rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_words(arrays, words):
    with pytest.raises(DataError, match=words):
        from_arrays(arrays)


def test_conditions_in_arrays_are_stated_and_read_beside_their_rows(tmp_path):
    rng = np.random.default_rng(0)
    given = {
        "x": rng.standard_normal((5, 2)),
        "label": np.arange(5) % 3,
        "image": rng.integers(0, 256, (5, 3, 4, 2), np.uint8),
        "tokens": rng.integers(0, 50, (5, 6)),
    }
    given["tokens"][0, 0] = 99
    held = {f"{name}_test": values[:2] for name, values in given.items()} | {"tokens_test": given["tokens"][:2, :4]}
    np.savez(tmp_path / "a.npz", **given, **held)
    options = {"labels": True, "images": True, "tokens": 8}
    data = load_dataset(str(tmp_path / "a.npz"), **options)
    stated = {"label": Condition((), 3), "image": Condition((3, 4, 2), 256), "tokens": Condition((8,), 100)}
    assert data.conditions == stated
    for source, tokens in ((data.train, given["tokens"]), (data.test, held["tokens_test"])):
        read = source[np.array([1, 0])]
        assert {name: values.dtype for name, values in read.items()} == {
            "x": np.float32,
            "label": np.int32,
            "image": np.uint8,
            "tokens": np.int32,
        }
        np.testing.assert_array_equal(read["label"], [1, 0])
        np.testing.assert_array_equal(read["image"], given["image"][[1, 0]])
        np.testing.assert_array_equal(read["tokens"], np.pad(tokens, ((0, 0), (0, 8 - tokens.shape[1])))[[1, 0]])
    wider = load_dataset(str(tmp_path / "a.npz"), tokens=8, vocabulary=32_000)
    assert wider.conditions == {"tokens": Condition((8,), 32_000)}
    assert load_dataset(str(tmp_path / "a.npz")).conditions == {}


def test_tokens_are_cut_where_they_are_padding_and_a_longer_row_is_refused():
    part = {"x": np.zeros((3, 2)), "tokens": np.array([[1, 2, 0, 0], [1, 0, 3, 0], [1, 1, 1, 1]])}
    with pytest.raises(DataError, match=r"arrays, train: row 1 has 3 tokens, more than tokens=2: .* tokens=4, which"):
        from_arrays(part, tokens=2)
    short = {name: values[:1] for name, values in part.items()}
    assert rows(from_arrays(short, holdout=0, tokens=2).train)["tokens"].tolist() == [[1, 2]]
    for options, words in (({"tokens": -1}, "tokens=-1: give"), ({"vocabulary": 3}, "vocabulary=3 with a token 3")):
        with pytest.raises(DataError, match=words):
            from_arrays(part, **options)


def test_levels_classes_and_parts_that_contradict_the_arrays_are_refused():
    images, labels = np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 2])
    with pytest.raises(DataError, match="levels=17 with rows of float32"):
        from_arrays(np.zeros((3, 2)), levels=17)
    with pytest.raises(DataError, match="levels=1 "):
        from_arrays(images, levels=1)
    with pytest.raises(DataError, match="num_classes=2 with a label 2"):
        from_arrays({"x": images, "label": labels}, num_classes=2)
    with pytest.raises(DataError, match="train and test differ"):
        from_arrays(images, np.zeros((3, 4, 5, 1), np.uint8))
    with pytest.raises(DataError, match="train and test differ"):
        from_arrays({"x": images, "label": labels}, images)
    with pytest.raises(DataError, match=r"train and test differ .* image is \(4, 4, 1\) and \(2, 4, 1\)"):
        from_arrays({"x": images, "image": images}, {"x": images, "image": images[:, :2]})
    assert from_arrays({"x": images, "label": labels}, num_classes=7).num_classes == 7


def test_a_broken_or_foreign_file_of_arrays_is_refused_in_words(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(DataError, match=r"a\.npz cannot be read as a NumPy file"):
        load_dataset(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", images=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"b\.npz holds the arrays images: it needs x"):
        load_dataset(str(tmp_path / "b.npz"))


def test_labels_of_which_most_have_no_row_are_no_classes_unless_their_number_is_given(tmp_path):
    x, path = np.zeros((4, 3)), str(tmp_path / "a.npz")
    np.savez(path, x=x, label=[0, 1_000_000, 0, 0])
    with pytest.raises(DataError, match=r"a\.npz has a label 1000000 and 2 distinct .*or give num_classes=1000001$"):
        load_dataset(path, labels=True)
    assert load_dataset(path, labels=True, num_classes=1_000_001).num_classes == 1_000_001
    assert load_dataset(path).num_classes is None
    assert from_arrays({"x": x, "label": np.array([0, 3, 3, 3])}).num_classes == 4


def with_header(shape, dtype="|u1", size=0):
    """The bytes of a .npy file whose header claims a shape, and `size` bytes of it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(size)


@pytest.mark.parametrize("packed", [False, True], ids=["npy", "npz"])
def test_a_header_that_claims_more_than_there_is_is_refused_before_anything_is_made(packed, tmp_path, monkeypatch):
    def allocate(*args, **kwargs):
        raise AssertionError("arrays are read")

    def write(content):
        path = tmp_path / ("a.npz" if packed else "a.npy")
        if packed:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("x.npy", content)
        else:
            path.write_bytes(content)
        return str(path)

    monkeypatch.setattr(np, "load", allocate)
    with pytest.raises(DataError, match=r"cut short: x uint8 \(10000000, 64, 64, 3\) takes 122880000000 bytes"):
        load_dataset(write(with_header((10_000_000, 64, 64, 3))))
    with pytest.raises(DataError, match="Python objects"):
        load_dataset(write(with_header((1,), "|O", 8)))
    with pytest.raises(DataError, match="cannot be read as a NumPy file"):
        load_dataset(write(with_header((1, 1), size=1)[:50]))
    monkeypatch.setattr("diffuse_jax._memory.available_memory", lambda: 100)
    with pytest.raises(DataError, match=r"x uint8 \(101, 1\), needs at least 101 bytes, and this machine has 100"):
        load_dataset(write(with_header((101, 1), size=101)))


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("digit", {}, r"'digit'.*digits, moons, checkerboard, eight_gaussians, rings, tfds:NAME"),
        ("digits", {"image_size": 16}, r"\(8, 8, 1\).*image_size=16"),
        ("digits", {"channels": 3}, "channels=3 do not fit"),
        ("moons", {"image_size": 2}, "image_size=2"),
        ("moons", {"labels": True}, "no class labels"),
        ("moons", {"images": True}, "moons has no images beside its rows: .* a folder of images or a .npz file"),
        ("digits", {"tokens": 4}, "digits has no captions: .* a folder of images or a .npz file"),
        ("tfds:cifar10", {"images": True}, "tfds:cifar10 has no images beside its rows: .*folder of images or a .npz"),
        ("tfds:cifar10", {"tokens": 4}, "tfds:cifar10 has no captions: .*folder of images or a .npz"),
        ("digits", {"tokens": -4}, "tokens=-4: give"),
        ("digits", {"holdout": 1.0}, "holdout=1.0: give"),
        ("digits", {"channels": 2}, "channels=2: give"),
        ("digits", {"image_size": 0}, "image_size=0: give"),
        ("digits", {"holdout": float("nan")}, "holdout=nan: give"),
        ("tfds:cifar10", {"image_size": 10**6}, r"image_size=1000000 in float32 needs at least 10\.9 TiB, and this"),
    ],
)
def test_what_a_source_cannot_give_is_refused_in_one_line(source, options, words):
    with pytest.raises(DataError, match=words) as raised:
        load_dataset(source, **options)
    assert "\n" not in str(raised.value)
