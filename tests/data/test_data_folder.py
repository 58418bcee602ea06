"""A folder of one's own images: sizes, modes and crops against Pillow alone, and what happens to broken files."""

import json

import numpy as np
import pytest
from PIL import Image

from diffuse_jax.conditions import Condition
from diffuse_jax.data import VOCABULARY, DataError, detokenize, load_dataset
from diffuse_jax.data.folder import fit_image, folder


def random_image(mode, size, seed=0):
    """A smooth random image, so that JPEG and resizing keep most of it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").resize(size, Image.Resampling.BICUBIC).convert(mode)


def central_square(image, size):
    """Pillow alone: the central square, resized with the Lanczos filter."""
    side = min(image.size)
    left, top = (image.size[0] - side) // 2, (image.size[1] - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def on_white(image):
    """What shows of an image before white: α·colour + (1 − α)·255."""
    if "A" not in image.getbands():
        return image
    *colour, alpha = np.moveaxis(np.asarray(image, np.float64), -1, 0)
    shown = np.stack([255 + alpha / 255 * (band - 255) for band in colour], axis=-1)
    return Image.fromarray(np.round(shown).astype(np.uint8).squeeze())


def everything(path, **options):
    data = load_dataset(str(path), holdout=0, **options)
    return data, data.train[np.arange(len(data.train))]


def test_images_of_every_mode_size_and_format_are_cropped_and_resized_as_by_pillow(tmp_path):
    made = [
        ("a.png", "RGB", (40, 30)),
        ("b/c.jpg", "RGB", (31, 50)),
        ("b/d.JPEG", "L", (16, 16)),
        ("b/e/f.webp", "RGBA", (20, 64)),
        ("g.bmp", "RGB", (7, 9)),
        ("h.gif", "P", (33, 32)),
        ("i.png", "LA", (24, 24)),
        ("j.png", "1", (24, 30)),
        ("k.jpg", "CMYK", (30, 24)),
    ]
    for i, (name, mode, size) in enumerate(made):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        random_image(mode, size, i).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_bytes(b"a file manager's leavings")
    for channels, mode in ((3, "RGB"), (1, "L")):
        data, rows = everything(tmp_path, image_size=16, channels=channels)
        assert (data.shape, data.levels, data.num_classes) == ((16, 16, channels), 256, None)
        for x, (name, _, _) in zip(rows["x"], made, strict=True):
            expected = np.asarray(central_square(on_white(Image.open(tmp_path / name)).convert(mode), 16))
            np.testing.assert_array_equal(x, expected.reshape(16, 16, channels), err_msg=name)


def test_shrinking_averages_where_plain_sampling_would_alias(tmp_path):
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    _, rows = everything(tmp_path, image_size=8)
    assert np.abs(rows["x"].astype(int) - 127.5).max() < 8


def test_sixteen_bit_grey_is_scaled_and_a_photograph_is_turned_upright(tmp_path):
    grey = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    photo = random_image("RGB", (8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    photo.save(tmp_path / "b.png", exif=exif)
    _, rows = everything(tmp_path, image_size=8)
    np.testing.assert_array_equal(rows["x"][0, ..., 0], np.round(grey / 257))
    np.testing.assert_array_equal(rows["x"][1], np.rot90(np.asarray(photo), -1))


def test_what_a_colour_or_a_palette_makes_transparent_is_white(tmp_path):
    half = np.repeat([[0, 1]], 8, axis=0).repeat(4, axis=1).astype(np.uint8)  # left 0, right 1
    palette = Image.fromarray(half, "P")
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    colours = Image.fromarray(np.array([[10, 20, 30], [200, 100, 0]], np.uint8)[half])
    colours.save(tmp_path / "b.png", transparency=(10, 20, 30))
    palette.save(tmp_path / "c.gif", transparency=0)
    _, rows = everything(tmp_path, image_size=8)
    for x in rows["x"]:
        np.testing.assert_array_equal(x[:, :4], 255)
        np.testing.assert_array_equal(x[:, 4:], np.broadcast_to([200, 100, 0], (8, 4, 3)))
    sixteen = Image.fromarray(np.uint16([[257, 514]]).repeat(2, axis=0))
    for transparent, expected in ((None, [[1, 2], [1, 2]]), (514, [[1, 255], [1, 255]])):
        sixteen.info["transparency"] = transparent
        np.testing.assert_array_equal(fit_image(sixteen, 2, 1)[..., 0], expected)


@pytest.fixture
def partly_broken(tmp_path):
    for i in range(10):
        random_image("RGB", (32, 32), i).save(tmp_path / f"{i}.jpg", quality=95)
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "7.jpg").write_bytes(b"")
    return tmp_path


def test_broken_files_are_all_named_before_anything_is_read(partly_broken):
    with pytest.raises(DataError, match=r"2 of 10 images .* 3\.jpg, 7\.jpg; .*skip_unreadable=True") as raised:
        load_dataset(str(partly_broken), image_size=8)
    assert "\n" not in str(raised.value)


def test_broken_files_are_left_out_on_request_with_a_warning(partly_broken):
    with pytest.warns(UserWarning, match=r"left out: 2 of 10 .*3\.jpg, 7\.jpg"):
        data, rows = everything(partly_broken, image_size=32, skip_unreadable=True)
    kept = [np.asarray(Image.open(partly_broken / f"{i}.jpg")) for i in (0, 1, 2, 4, 5, 6, 8, 9)]
    np.testing.assert_array_equal(rows["x"], kept)
    assert len(data.train) == 8


def test_a_long_list_of_broken_files_is_cut_short(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"8 of 8 .* 0\.png, 1\.png, 2\.png, 3\.png, 4\.png, …;"):
        load_dataset(str(tmp_path), image_size=8)
    with pytest.raises(DataError, match="8 of 8"):
        load_dataset(str(tmp_path), image_size=8, skip_unreadable=True)


def test_an_empty_folder_a_missing_size_and_a_missing_class_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        load_dataset(str(tmp_path), image_size=8)
    random_image("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="needs image_size"):
        load_dataset(str(tmp_path))
    with pytest.raises(DataError, match=r"a\.png is in none"):
        load_dataset(str(tmp_path), image_size=8, labels=True)


def test_an_existing_folder_wins_over_a_name(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    random_image("RGB", (8, 8)).save(tmp_path / "digits" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert load_dataset("digits", image_size=8, holdout=0).shape == (8, 8, 3)


def test_folders_are_classes_and_both_parts_together_are_the_whole_folder(tmp_path):
    for name, shade in (("cat", 10), ("ant", 20), ("bee", 30)):
        (tmp_path / name / "deep").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (shade, i, 0)).save(tmp_path / name / "deep" / f"{i}.png")
    data = load_dataset(str(tmp_path), image_size=8, labels=True, holdout=0.25)
    parts = [part[np.arange(len(part))] for part in (data.train, data.test)]
    assert (data.num_classes, len(data.train), len(data.test)) == (3, 9, 3)
    seen = {(int(x[0, 0, 0]), int(x[0, 0, 1]), int(y)) for p in parts for x, y in zip(p["x"], p["label"], strict=True)}
    assert seen == {(shade, i, label) for shade, label in ((20, 0), (30, 1), (10, 2)) for i in range(4)}


def described(root, lines, shades):
    """A folder of grey squares by their names, and a metadata.jsonl of `lines`."""
    for name, shade in shades.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), shade).save(root / name)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "metadata.jsonl").write_text(text, encoding="utf-8")
    return root


PAIRS = [
    {"file_name": "b/b.png", "text": "größer", "image_file_name": "behind/b.png", "label": 0},
    {"file_name": "a.png", "text": "", "image_file_name": "behind/a.png", "label": 2},
    {"file_name": "c.png", "image_file_name": "a.png", "label": 1},
]
SHADES = {"a.png": 10, "b/b.png": 20, "c.png": 30, "behind/a.png": 110, "behind/b.png": 120}


@pytest.mark.parametrize("cache_bytes", [2**20, 0])
def test_captions_images_and_labels_of_metadata_are_read_beside_their_rows_kept_or_not(tmp_path, cache_bytes):
    described(tmp_path, PAIRS, SHADES)
    (tmp_path / "c.txt").write_text("sea\n", encoding="utf-8")
    data = folder(
        tmp_path, image_size=4, channels=1, holdout=0, labels=True, images=True, tokens=9, cache_bytes=cache_bytes
    )
    assert data.conditions == {
        "label": Condition((), 3),
        "image": Condition((4, 4, 1), 256),
        "tokens": Condition((9,), VOCABULARY),
    }
    for _ in range(2):  # the second time, from memory where it is kept
        rows = data.train[np.array([2, 0, 1, 0])]
        assert rows["x"][:, 0, 0, 0].tolist() == [30, 10, 20, 10]
        assert rows["image"][:, 0, 0, 0].tolist() == [10, 110, 120, 110]
        assert rows["label"].tolist() == [1, 2, 0, 2]
        assert [detokenize(tokens) for tokens in rows["tokens"]] == ["sea", "", "größer", ""]
        assert {name: values.dtype for name, values in rows.items()} == {
            "x": np.uint8,
            "image": np.uint8,
            "label": np.int32,
            "tokens": np.int32,
        }


def test_the_rows_of_a_folder_are_the_same_whatever_conditions_are_asked_for(tmp_path):
    _, rows = everything(described(tmp_path, PAIRS, SHADES), image_size=8)
    assert rows["x"][:, 0, 0, 0].tolist() == [10, 20, 30]
    assert list(rows) == ["x"]


def test_every_folder_may_have_metadata_of_its_own_and_captions_may_stand_beside_the_images(tmp_path):
    described(tmp_path / "deep" / "er", [{"file_name": "a.png", "text": "a"}], {"a.png": 1})
    described(tmp_path, ["", json.dumps({"file_name": "deep/b.png", "text": "b"}), " "], {"deep/b.png": 2, "c.png": 3})
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfc\r\n")
    _, rows = everything(tmp_path, image_size=8, tokens=2)
    assert [(int(x[0, 0, 0]), detokenize(t)) for x, t in zip(rows["x"], rows["tokens"], strict=True)] == [
        (3, "c"),
        (2, "b"),
        (1, "a"),
    ]


A = {"file_name": "a.png", "text": "a", "image_file_name": "b.png", "label": 0}
C = {"file_name": "c.png", "text": "c"}


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([A, "{"], {}, r"metadata\.jsonl, line 2 is no JSON object: write"),
        ([A, "3"], {}, r"metadata\.jsonl, line 2 is no JSON object: write"),
        ([A, {"file": "b.png"}], {}, r"line 2 has no file_name: give a path"),
        ([A, {"file_name": "../a.png"}], {}, r"line 2 names '\.\./a\.png': .* has no such image"),
        ([A, A], {}, r"line 2 names .*a\.png again, after .*line 1"),
        ([{"file_name": "a.png"}], {"tokens": 4}, r"metadata\.jsonl, line 1 has no text.*write"),
        ([A | {"text": ["a"]}], {"tokens": 4}, r"metadata\.jsonl, line 1 has no text.*write"),
        (
            [A | {"text": "alpha"}, C],
            {"tokens": 4},
            r"a\.png has a caption of 5 tokens, more than tokens=4: .*tokens=5",
        ),
        ([A, {"file_name": "b.png", "text": "b"}], {"tokens": 4}, r"c\.png has no caption.*c\.txt"),
        ([A, {"file_name": "b.png"}], {"images": True}, "line 2 has no image_file_name: give a path"),
        ([A], {"images": True}, r"c\.png has no image to be conditioned on .*image_file_name"),
        ([A | {"image_file_name": "d.png"}], {"images": True}, r"line 1 names 'd\.png': .* has no such file"),
        ([], {"images": True}, r"the folder .* has no image to be conditioned on .*write .*image_file_name"),
        ([A], {"labels": True}, r"c\.png has no label"),
        ([A, {"file_name": "c.png", "label": "cat"}], {"labels": True}, "line 2 has the label 'cat': give an integer"),
        ([A, {"file_name": "c.png", "label": 7}], {"labels": True}, "label 7 and 2 distinct"),
    ],
)
def test_conditions_that_a_folder_lacks_are_named_with_their_file_and_line(tmp_path, lines, options, words):
    described(tmp_path, lines, {"a.png": 1, "b.png": 2, "c.png": 3})
    with pytest.raises(DataError, match=words) as raised:
        load_dataset(str(tmp_path), image_size=8, **options)
    assert "\n" not in str(raised.value)


def test_a_broken_image_condition_is_named_and_its_row_left_out_on_request(tmp_path):
    described(tmp_path, PAIRS, SHADES)
    (tmp_path / "behind" / "b.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"1 of 3 images .* b/b\.png; first, .*behind/b\.png cannot be read"):
        load_dataset(str(tmp_path), image_size=8, images=True)
    with pytest.warns(UserWarning, match="left out: 1 of 3"):
        _, rows = everything(tmp_path, image_size=8, images=True, skip_unreadable=True)
    assert rows["image"][:, 0, 0, 0].tolist() == [110, 10]


def test_a_set_too_large_for_memory_is_read_from_its_files_and_a_small_one_is_not(tmp_path):
    for i in range(3):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    small, large = (folder(tmp_path, image_size=8, holdout=0, cache_bytes=b) for b in (2**20, 100))
    Image.new("L", (8, 8), 99).save(tmp_path / "2.png")
    ask = np.array([2, 0, 2])
    assert small.train[ask]["x"][:, 0, 0, 0].tolist() == [2, 0, 2]
    assert large.train[ask]["x"][:, 0, 0, 0].tolist() == [99, 0, 99]
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png cannot be read"):
        large.train[ask]
