"""Pictures hold what was put into them, and files appear whole or not at all."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffuse_jax._files import written_atomically
from diffuse_jax.evaluation import image_grid, save_gif, save_png, scatter_picture

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "columns", "pad", "min_tile", "factor", "rows"),
    [((7, 8, 8, 1), None, 2, 32, 4, 3), ((5, 9, 40, 3), 2, 0, 16, 2, 3), ((4, 32, 32, 3), 4, 3, 32, 1, 1)],
)
def test_every_image_is_recovered_from_its_place_in_the_grid(shape, columns, pad, min_tile, factor, rows):
    images = RNG.integers(0, 256, shape, np.uint8)
    picture = image_grid(images, columns=columns, pad=pad, min_tile=min_tile)
    n, height, width, channels = shape
    columns = columns or 3
    tall, wide = height * factor, width * factor
    assert picture.shape == (pad + rows * (tall + pad), pad + columns * (wide + pad), channels)
    covered = np.zeros(picture.shape[:2], bool)
    for i in range(n):
        top, left = pad + (i // columns) * (tall + pad), pad + (i % columns) * (wide + pad)
        tile = picture[top : top + tall, left : left + wide]
        for dy in range(factor):
            np.testing.assert_array_equal(tile[dy::factor, dy::factor], images[i])
        covered[top : top + tall, left : left + wide] = True
    assert len(np.unique(picture[~covered])) <= 1


def test_a_grid_refuses_what_are_not_byte_images():
    with pytest.raises(ValueError, match=r"float64 \(2, 8, 8, 1\)"):
        image_grid(np.zeros((2, 8, 8, 1)))
    with pytest.raises(ValueError, match="n >= 1"):
        image_grid(np.zeros((0, 8, 8, 1), np.uint8))


def test_a_scatter_picture_is_darkest_where_most_points_lie_with_up_upwards():
    points = np.array([[0.9, 0.9]] * 4 + [[-0.9, 0.1]] + [[5.0, 5.0]] * 9)
    picture = scatter_picture(points, extent=1.0, size=10)[..., 0]
    assert picture[0, 9] == 0
    assert picture[4, 0] == 128  # a quarter of the count: half of the shade
    assert (np.delete(picture.ravel(), [9, 40]) == 255).all()
    assert (scatter_picture(np.empty((0, 2))) == 255).all()
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        scatter_picture(np.zeros((3, 4)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_picture(tmp_path, channels):
    picture = RNG.integers(0, 256, (9, 7, channels), np.uint8)
    save_png(picture, tmp_path / "deep" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")).reshape(9, 7, channels), picture)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_holds_every_frame_and_its_time(tmp_path, channels):
    frames = RNG.integers(0, 256, (5, 8, 8, channels), np.uint8)  # 64 colours a frame: within a palette
    save_gif(list(frames), tmp_path / "a.gif", duration=0.25)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"]) == (5, 0)
        for frame, expected in zip(ImageSequence.Iterator(gif), frames, strict=True):
            assert frame.info["duration"] == 250
            found = np.asarray(frame.convert("L" if channels == 1 else "RGB")).reshape(expected.shape)
            np.testing.assert_array_equal(found, expected)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), written_atomically(target) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    with pytest.raises(ValueError, match="at least one frame"):
        save_gif([], tmp_path / "b.gif")
