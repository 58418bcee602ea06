"""--cond.NAME=VALUE: taken from the command line as text, and made what a network reads once the run is known."""

import argparse

import jax
import numpy as np
import pytest
from PIL import Image

from diffuse_jax.cli.arguments import read_arguments
from diffuse_jax.cli.asked_conditions import parse, read_conditions
from diffuse_jax.conditions import Condition
from diffuse_jax.data import preprocess

LABEL, IMAGE, TOKENS = Condition((), 10), Condition((8, 8, 3), 256), Condition((12,), 257)


@pytest.mark.parametrize(
    ("argv", "cond", "rest"),
    [
        ([], {}, []),
        (["--cond.label=3"], {"label": "3"}, []),
        (["--label=3"], {"label": "3"}, []),
        (["--cond.label", "3", "--config.seed=1"], {"label": "3"}, ["--config.seed=1"]),
        (["--config.seed=1", "--cond.image=a=b.png"], {"image": "a=b.png"}, ["--config.seed=1"]),
        (["--cond.tokens", "two words", "--cond.label=0"], {"tokens": "two words", "label": "0"}, []),
        (["--cond.tokens=--cond.label=1"], {"tokens": "--cond.label=1"}, []),
    ],
)
def test_conditions_are_taken_by_name_and_the_rest_is_of_the_config(argv, cond, rest):
    args, overrides = read_arguments(["sample", *argv])
    assert (args.cond, overrides) == (cond, rest)
    assert args.label == (int(cond["label"]) if "label" in cond else None)


@pytest.mark.parametrize("argument", ["--cond", "--cond=3", "--cond.", "--cond.=3", "--cond.label", "--cond.label= "])
def test_a_condition_without_a_name_or_a_value_is_refused(argument):
    with pytest.raises(argparse.ArgumentTypeError, match=r"give --cond.NAME=VALUE"):
        parse([argument])


def test_a_label_is_an_integer_and_may_be_left_out():
    label = read_conditions({"label": "9"}, {"label": LABEL})["label"]
    assert label == 9 and label.dtype == np.int32 and label.shape == ()
    assert read_conditions({}, {"label": LABEL}) == {}


@pytest.mark.parametrize("centered", [True, False])
def test_an_image_is_cropped_resized_and_in_the_range_of_the_model(centered, tmp_path):
    rows, columns = np.mgrid[:8, :8] * 36
    pixels = np.stack([rows, columns, 255 - rows], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "as_it_is.png")
    Image.fromarray(np.pad(pixels, ((0, 0), (4, 4), (0, 0))).repeat(3, 0).repeat(3, 1)).save(tmp_path / "wide.png")

    exact, wide = (
        read_conditions({"image": str(tmp_path / name)}, {"image": IMAGE}, centered=centered)["image"]
        for name in ("as_it_is.png", "wide.png")
    )

    assert exact.dtype == wide.dtype == np.float32 and exact.shape == wide.shape == IMAGE.shape
    expected = preprocess(pixels[None], jax.random.key(0)[None], levels=256, centered=centered)[0]
    np.testing.assert_array_equal(exact, expected)
    np.testing.assert_allclose(exact, 2 * (pixels / 255) - 1 if centered else pixels / 255, atol=1e-6)
    # Its black sides are cropped; enlarged three times, it is resized to what it was but for the filter's rounding.
    np.testing.assert_allclose(wide, exact, atol=0.05 * (exact.max() - exact.min()))


def test_a_grey_condition_reads_a_coloured_file_as_grey(tmp_path):
    Image.new("RGB", (20, 10), "white").save(tmp_path / "white.png")
    image = read_conditions({"image": str(tmp_path / "white.png")}, {"image": Condition((4, 4, 1), 256)})["image"]
    np.testing.assert_array_equal(image, np.ones((4, 4, 1), np.float32))


def test_a_caption_is_its_bytes_padded_with_zeros():
    tokens = read_conditions({"tokens": "né"}, {"tokens": TOKENS})["tokens"]
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, [ord("n") + 1, 0xC3 + 1, 0xA9 + 1, *[0] * 9])


def test_conditions_of_a_run_are_read_together(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    conditions = {"label": LABEL, "image": IMAGE}
    assert set(read_conditions({"image": str(tmp_path / "x.png")}, conditions)) == {"image"}
    assert set(read_conditions({"image": str(tmp_path / "x.png"), "label": "1"}, conditions)) == {"image", "label"}
