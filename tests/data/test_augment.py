"""EDM's augmentation against the original's images and labels, NumPy's own moves, closed forms, and its law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffuse_jax.data.augment import AUGMENT_DIM, Augmentation, augment, draw_augmentation

NOTHING = {"mirror_x": 0.0, "mirror_y": 0.0, "scale": 0.0, "turn": 0.0, "stretch": 0.0, "axis": 0.0}
apply = jax.jit(lambda augmentation, image: (augmentation(image), augmentation.label()))


def augmentation(**fields):
    """One that does only what `fields` say."""
    values = NOTHING | {"move": [0.0, 0.0]} | fields
    return Augmentation(**{name: jnp.asarray(value, jnp.float32) for name, value in values.items()})


def image(height=13, width=16):
    return np.random.default_rng(0).uniform(-1, 1, (height, width, 3)).astype(np.float32)


def test_the_originals_draws_give_its_images_and_labels(fixtures):
    """At probability ½, so that one image has many transformations; the order of the draws is that of the original."""
    with np.load(fixtures / "edm" / "augment.npz") as file:
        data = dict(file)
    draws = [data[name].squeeze() for name in sorted(data) if name.startswith("draw/")]

    def perhaps(value, chance, probability=0.5):
        return jnp.asarray(np.where(draws[chance] < probability, value, 0), jnp.float32)

    drawn = Augmentation(
        mirror_x=perhaps(draws[0], 1, 1.0),
        mirror_y=perhaps(draws[2], 3),
        scale=perhaps(draws[4], 5),
        turn=perhaps((2 * draws[6] - 1) * np.pi, 7),
        stretch=perhaps(draws[8], 10),
        axis=perhaps((2 * draws[9] - 1) * np.pi, 11),
        move=perhaps(draws[12], 13).T,
    )
    images, labels = jax.jit(jax.vmap(lambda a, x: (a(x), a.label())))(drawn, data["x"] / np.float32(127.5) - 1)
    assert np.all((data["labels"] != 0).any(axis=0))
    np.testing.assert_allclose(labels, data["labels"], atol=1e-6)
    np.testing.assert_allclose(images, data["y"], atol=2e-5)


def test_nothing_done_gives_the_image_back_and_the_label_zero():
    x = image()
    y, label = apply(augmentation(), x)
    np.testing.assert_allclose(y, x, atol=2e-6)
    np.testing.assert_array_equal(label, np.zeros(AUGMENT_DIM))


def test_mirror_images_are_numpys():
    x = image()
    for fields, expected, entries in (
        ({"mirror_x": 1.0}, x[:, ::-1], [1, 0]),
        ({"mirror_y": 1.0}, x[::-1], [0, 1]),
        ({"mirror_x": 1.0, "mirror_y": 1.0}, x[::-1, ::-1], [1, 1]),
    ):
        y, label = apply(augmentation(**fields), x)
        np.testing.assert_allclose(y, expected, atol=2e-6)
        np.testing.assert_array_equal(label, entries + [0] * 7)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-5, 4), (15, 12)])
def test_whole_moves_are_numpys_with_reflection(right, down):
    """By pixels to the right and down: the window of np.pad(mode="reflect") that many to the left and up."""
    x = image()
    height, width, _ = x.shape
    move = [right / (0.125 * width), down / (0.125 * height)]
    y, label = apply(augmentation(move=move), x)
    padded = np.pad(x, ((height - 1,) * 2, (width - 1,) * 2, (0, 0)), mode="reflect")
    top, left = height - 1 - down, width - 1 - right
    np.testing.assert_allclose(y, padded[top : top + height, left : left + width], atol=5e-5)
    np.testing.assert_allclose(label, [0] * 7 + move, rtol=1e-6)


def waves(n, kx, ky):
    """Slow waves whose continuation by reflection is smooth, so that the filters hardly change them."""
    i = np.pi * np.arange(n) / (n - 1)
    return (np.cos(kx * i)[None, :, None] * np.cos(ky * i)[:, None, None] + 0.3 * np.cos(i)[:, None, None]).astype("f4")


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_numpys(quarters):
    """On slow waves, to a tenth of a pixel: the filter is not symmetric, and a turned one does not quite undo it."""
    x = waves(24, 2, 1)
    y, label = apply(augmentation(turn=quarters * np.pi / 2), x)
    np.testing.assert_allclose(y, np.rot90(x, quarters), atol=0.03)
    assert np.abs(x - np.rot90(x, quarters)).max() > 1
    expected = [np.cos(quarters * np.pi / 2) - 1, np.sin(quarters * np.pi / 2)]
    np.testing.assert_allclose(label[3:5], expected, atol=1e-6)


def test_a_bump_is_scaled_turned_stretched_and_moved_to_its_closed_form():
    """f(p) becomes f(s⁻¹·R(turn)·R(−axis)·diag(1/a, a)·R(axis)·(p − move)) about the centre, x right and y down; to a
    tenth of a pixel."""
    height, width = 40, 48

    def bump(x, y):
        return np.exp(-((x - 4) ** 2) / 60 - (y + 3) ** 2 / 30)

    x = np.arange(width)[None, :] - (width - 1) / 2
    y = np.arange(height)[:, None] - (height - 1) / 2
    scale, turn, stretch, axis, move = 0.9, 0.7, -1.4, 2.2, np.array([0.4, -0.6])
    found, label = apply(
        augmentation(scale=scale, turn=turn, stretch=stretch, axis=axis, move=move), bump(x, y)[..., None].astype("f4")
    )

    def reflect(x, size):
        return (size - 1) / 2 - np.abs((size - 1) - (x + (size - 1) / 2) % (2 * (size - 1)))

    def rotate(x, y, angle):
        return np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y

    u, v = rotate(x - move[0] * 0.125 * width, y - move[1] * 0.125 * height, axis)
    u, v = rotate(u / 2 ** (0.2 * stretch), v * 2 ** (0.2 * stretch), turn - axis)
    expected = bump(reflect(u / 2 ** (0.2 * scale), width), reflect(v / 2 ** (0.2 * scale), height))
    np.testing.assert_allclose(found[..., 0], expected, atol=0.015)
    assert np.abs(expected - bump(x, y)).max() > 0.3
    turned = [np.cos(turn) - 1, np.sin(turn), stretch * np.cos(axis), stretch * np.sin(axis)]
    np.testing.assert_allclose(label, [0, 0, scale, *turned, *move], atol=1e-6)


def test_the_draws_follow_the_published_law():
    n, p = 20000, 0.12
    keys = jax.random.split(jax.random.key(0), n)
    drawn = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: draw_augmentation(key, p)))(keys))
    happened = {name: np.asarray(getattr(drawn, name)).reshape(n, -1)[:, 0] != 0 for name in [*NOTHING, "move"]}
    chances = {"mirror_x": 0.5, "mirror_y": p / 2, "scale": p, "turn": p, "stretch": p, "axis": 0.5, "move": p}
    for name, chance in chances.items():
        assert abs(happened[name].mean() - chance) < 5 * np.sqrt(chance * (1 - chance) / n), name
    together = np.corrcoef(np.stack([*happened.values()]))
    assert np.abs(together - np.eye(7)).max() < 5 / np.sqrt(n)
    assert np.array_equal(drawn.move[:, 0] != 0, drawn.move[:, 1] != 0)
    normals = [drawn.scale, drawn.stretch, drawn.move[:, 0], drawn.move[:, 1]]
    for values in normals:
        assert scipy.stats.kstest(values[values != 0], "norm").pvalue > 1e-3
    for values in (drawn.turn, drawn.axis):
        assert scipy.stats.kstest(values[values != 0], "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-3


def test_a_row_comes_out_the_same_wherever_it_is_in_the_batch():
    keys, images = jax.random.split(jax.random.key(1), 4), jnp.stack([image(), 2 * image(), image() - 1, -image()])
    run, order = jax.jit(lambda keys, x: augment(keys, x, 1.0)), np.array([2, 0, 3, 1])
    transformed, labels = run(keys, images)
    again, labels_again = run(keys[order], images[order])
    np.testing.assert_allclose(transformed[order], again, atol=1e-5)
    np.testing.assert_array_equal(labels[order], labels_again)
    assert labels.shape == (4, AUGMENT_DIM) and len(np.unique(labels[:, 2])) == 4


@pytest.mark.parametrize(
    ("images", "probability", "message"),
    [
        (jnp.zeros((2, 4, 4, 3), jnp.uint8), 0.1, "floats"),
        (jnp.zeros((2, 4)), 0.1, "images must be"),
        (jnp.zeros((2, 1, 4, 3)), 0.1, "at least 2×2"),
        (jnp.zeros((2, 4, 4, 3)), 1.1, "probability = 1.1"),
    ],
)
def test_what_cannot_be_augmented_is_refused(images, probability, message):
    with pytest.raises(ValueError, match=message):
        augment(jax.random.split(jax.random.key(0), 2), images, probability)
