"""From bytes to the model's range and back; flips and dequantization, with bounds from their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffuse_jax.data import load_dataset, preprocess, preprocess_conditions, to_uint8

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize(("centered", "low", "high"), [(True, -1.0, 1.0), (False, 0.0, 1.0)])
def test_bytes_become_the_range_and_come_back(centered, low, high):
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    y = preprocess(x, keys(1), levels=256, centered=centered)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y.ravel(), np.linspace(low, high, 256), atol=2e-7)
    np.testing.assert_array_equal(to_uint8(y, centered=centered), x)


def test_to_uint8_rounds_to_the_nearest_and_clips():
    x = jnp.array([-7.0, -1.0, -1 + 2 * 0.49 / 255, -1 + 2 * 0.51 / 255, 1.0, 1.5])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255]


def test_the_digits_grey_values_are_recovered_exactly():
    digits = load_dataset("digits")
    y = preprocess(digits.test[np.arange(180)]["x"], keys(180), levels=17, centered=False)
    values = np.asarray(y, np.float64) * 16
    np.testing.assert_allclose(values, np.round(values), atol=1e-6)
    assert set(np.round(values).ravel()) == set(range(17))


def test_a_flip_mirrors_whole_images_about_half_of_the_time():
    n = 2000
    x = np.broadcast_to(np.arange(4, dtype=np.uint8)[None, None, :, None], (n, 2, 4, 1))
    y = np.asarray(to_uint8(preprocess(x, keys(n), levels=256, flip=True)))
    mirrored = (y == x[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (y == x).all(axis=(1, 2, 3))).all()
    assert abs(mirrored.sum() - n / 2) < 5 * np.sqrt(n) / 2


@pytest.mark.parametrize("centered", [True, False])
def test_x_and_the_image_that_it_is_conditioned_on_are_mirrored_together_and_the_image_gets_no_noise(centered):
    batch = {"x": IMAGES, "image": IMAGES[..., :1], "label": np.arange(64), "tokens": np.arange(128).reshape(64, 2)}
    x = preprocess(batch["x"], keys(64), levels=256, centered=centered, flip=True)
    cond = preprocess_conditions(batch, keys(64), centered=centered, flip=True)
    assert list(cond) == ["image", "label", "tokens"]
    np.testing.assert_array_equal(cond["image"], x[..., :1])
    mirrored = np.asarray(x != preprocess(IMAGES, keys(64), levels=256, centered=centered)).any(axis=(1, 2, 3))
    assert 0 < mirrored.sum() < 64
    for name in ("label", "tokens"):
        np.testing.assert_array_equal(cond[name], batch[name])
    noisy = preprocess(batch["x"], keys(64), levels=256, centered=centered, flip=True, dequantize=True)
    # Noise moves a grey level by less than one of 256 and by the levels' shrinking: rows are mirrored as they were.
    np.testing.assert_allclose(cond["image"], noisy[..., :1], atol=2 / 255)


def test_rows_without_conditions_have_none():
    assert preprocess_conditions({"x": IMAGES}, keys(64), flip=True) is None


@pytest.mark.parametrize(("levels", "centered", "low", "high"), [(256, True, -1, 1), (17, False, 0, 1)])
def test_dequantization_is_uniform_within_each_grey_level(levels, centered, low, high):
    k = np.resize(np.arange(levels), (500, 4, 4, 1))
    x = np.round(255 * k / (levels - 1)).astype(np.uint8)
    y = np.asarray(preprocess(x, keys(500), levels=levels, centered=centered, dequantize=True), np.float64)
    # A float32 in [-1, 1] places (k + u) within levels·2⁻²⁴ or so.
    u = (y - low) / (high - low) * levels - k
    assert u.min() >= -levels * 2e-7
    assert u.max() <= 1 + levels * 2e-7
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-4


def test_a_row_comes_out_the_same_in_every_batch():
    compiled = jax.jit(lambda x, k: preprocess(x, k, levels=256, flip=True, dequantize=True))
    whole = compiled(IMAGES, keys(64))
    rows = np.array([5, 60, 13])
    np.testing.assert_array_equal(compiled(IMAGES[rows], keys(64)[rows]), whole[rows])
    assert (compiled(IMAGES[rows], keys(64, seed=1)[rows]) != whole[rows]).any()


def test_vectors_pass_through_and_refuse_what_is_for_images():
    x = np.array([[0.25, -3.0]], np.float32)
    np.testing.assert_array_equal(preprocess(x, keys(1), levels=None), x)
    for options, words in (({"flip": True}, "flip mirrors images"), ({"dequantize": True}, "already continuous")):
        with pytest.raises(ValueError, match=words):
            preprocess(x, keys(1), levels=None, **options)
    with pytest.raises(ValueError, match="levels=None"):
        preprocess(IMAGES, keys(64), levels=None)
