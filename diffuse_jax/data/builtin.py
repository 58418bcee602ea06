"""Data that need no download: scikit-learn's digits, and four densities in the plane, made from a fixed seed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffuse_jax.conditions import Condition
from diffuse_jax.data.sources import Arrays, DataError, Dataset, split

TOY_TRAIN, TOY_TEST = 50_000, 10_000
TOY_SEED = 0


def digits(*, holdout: float = 0.1, labels: bool = False) -> Dataset:
    """The 1,797 images (8, 8, 1) of scikit-learn's `load_digits`, whose grey values v = 0..16 become uint8
    round(255·v/16); labels are 0..9. The test part is `holdout` of the rows, drawn with `SPLIT_SEED`.
    """
    from sklearn.datasets import load_digits  # half a second to import, and only this source needs it

    raw = load_digits()
    x = np.round(raw.images[..., None] * (255 / 16)).astype(np.uint8)
    train, test = split(Arrays(x, raw.target if labels else None), holdout)
    conditions = {"label": Condition((), 10)} if labels else {}
    return Dataset("digits", train, test, (8, 8, 1), levels=17, conditions=conditions)


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of k isotropic Gaussians in d dimensions.

    Args:
        weights: The probability of each component, (k,).
        means: Their means, (k, d).
        std: The standard deviation of all of them.
    """

    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    std: float

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n draws, (n, d)."""
        means = np.asarray(self.means)
        component = rng.choice(len(means), n, p=self.weights)
        return means[component] + self.std * rng.standard_normal((n, means.shape[1]))


EIGHT_GAUSSIANS = GaussianMixture(
    weights=(1 / 8,) * 8,
    means=tuple((0.8 * float(np.cos(a)), 0.8 * float(np.sin(a))) for a in np.arange(8) * np.pi / 4),
    std=0.08,
)


def sample_moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two interleaved half circles of radius 2/3, each half of the mass, blurred by a normal of deviation 0.04."""
    upper = rng.random(n) < 0.5
    angle = np.pi * rng.random(n)
    sign = np.where(upper, 1.0, -1.0)
    centre = np.where(upper[:, None], [-1 / 3, -1 / 6], [1 / 3, 1 / 6])
    circle = np.stack([np.cos(angle), sign * np.sin(angle)], axis=1)
    return centre + 2 / 3 * circle + 0.04 * rng.standard_normal((n, 2))


def sample_checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
    """Uniform on the eight cells of a 4x4 board over [-1, 1]² whose column and row add up to an even number."""
    column = rng.integers(0, 4, n)
    row = 2 * rng.integers(0, 2, n) + column % 2
    return (np.stack([column, row], axis=1) + rng.random((n, 2))) / 2 - 1


def sample_rings(rng: np.random.Generator, n: int) -> np.ndarray:
    """Three circles of radius 1/3, 2/3 and 1 with equal mass, whose radius is blurred by a normal of deviation 0.03."""
    radius = rng.integers(1, 4, n) / 3 + 0.03 * rng.standard_normal(n)
    angle = 2 * np.pi * rng.random(n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


TOYS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "moons": sample_moons,
    "checkerboard": sample_checkerboard,
    "eight_gaussians": EIGHT_GAUSSIANS.sample,
    "rings": sample_rings,
}


def toy(name: str) -> Dataset:
    """One of `TOYS` as float32 vectors (n, 2) of about unit range: `TOY_TRAIN` rows to train on and `TOY_TEST` fresh
    ones to test with, from `TOY_SEED`.
    """
    if name not in TOYS:
        raise DataError(f"there is no density {name!r}: the densities are {', '.join(TOYS)}")
    x = TOYS[name](np.random.default_rng(TOY_SEED), TOY_TRAIN + TOY_TEST).astype(np.float32)
    return Dataset(name, Arrays(x[:TOY_TRAIN]), Arrays(x[TOY_TRAIN:]), (2,), levels=None, conditions={})
