"""The Fréchet distance between Gaussians fitted to features, and a feature space that needs no downloaded network.

d² = |m_a - m_b|² + tr(S_a) + tr(S_b) - 2 tr((S_a^½ S_b S_a^½)^½) (Dowson and Landau 1982; with Inception features it
is the FID of arXiv:1706.08500). A number is comparable with another only where the features, the reference images and
the number of samples are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

Features = Callable[[np.ndarray], np.ndarray]


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The squared Fréchet (Wasserstein-2) distance between N(mean_a, cov_a) and N(mean_b, cov_b), in float64.

    Both square roots are taken by `eigh`, whose eigenvalues are clipped at zero.

    Args:
        mean_a: (d,).
        cov_a: (d, d), which may be singular.
        mean_b: (d,).
        cov_b: (d, d), which may be singular.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: Where the shapes do not fit or a number is not finite.
    """
    mean_a, cov_a, mean_b, cov_b = (np.asarray(v, np.float64) for v in (mean_a, cov_a, mean_b, cov_b))
    d = mean_a.size
    if not (mean_a.shape == mean_b.shape == (d,) and cov_a.shape == cov_b.shape == (d, d)):
        raise ValueError(
            f"means {mean_a.shape} and {mean_b.shape} with covariances {cov_a.shape} and {cov_b.shape}: "
            "give two of shape (d,) and two of shape (d, d)"
        )
    if not all(np.isfinite(v).all() for v in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("a mean or covariance is not finite: were the samples?")
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0, None)).sum()
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


@dataclass(frozen=True, eq=False)
class Statistics:
    """The first two moments of feature vectors, in float64; chunks are gathered with `+` (Chan et al. 1983).

    Args:
        count: The number of vectors.
        mean: Their mean (d,).
        scatter: Their sum of squared deviations (d, d).
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Statistics":
        """The statistics of features (n, d), n >= 1."""
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        return cls(len(features), mean, (features - mean).T @ (features - mean))

    def __add__(self, other: "Statistics") -> "Statistics":
        count = self.count + other.count
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / count)
        return Statistics(count, self.mean + gap * (other.count / count), scatter)

    @property
    def cov(self) -> np.ndarray:
        """The unbiased covariance (d, d). Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, and there are {self.count}")
        return self.scatter / (self.count - 1)


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 images (n, h, w, c) as float64 vectors (n, h·w·c) in [0, 1]."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim < 2:
        raise ValueError(f"images are {images.dtype} {images.shape}: give uint8 of shape (n, h, w, c)")
    return images.reshape(len(images), -1) / 255.0


@dataclass(frozen=True, eq=False)
class PCAFeatures:
    """A feature space defined by data alone, made by `PCAFeatures.fit`: pixels in [0, 1], flattened, centred, and
    projected on the directions of largest variance of the images it was fitted to. Called with uint8 images
    (n, h, w, c) it returns features (n, dims), float64.

    Args:
        mean: The mean of the pixels (D,).
        components: Orthonormal directions (D, dims).
    """

    mean: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, images: np.ndarray, dims: int = 20) -> "PCAFeatures":
        """Fits min(dims, n - 1, D) components to uint8 images (n, …) with D pixels each, because n images
        span at most n - 1 directions. Raises ValueError where n < 2.
        """
        x = pixels(images)
        n, size = x.shape
        if n < 2 or dims < 1:
            raise ValueError(
                f"principal components need at least 2 images and dims >= 1, and there are {n} images and dims={dims}"
            )
        dims = min(dims, n - 1, size)
        mean = x.mean(axis=0)
        if n < size:
            components = np.linalg.svd(x - mean, full_matrices=False)[2][:dims].T
        else:
            scatter = (x - mean).T @ (x - mean)
            components = scipy.linalg.eigh(scatter, subset_by_index=[size - dims, size - 1])[1][:, ::-1]
        return cls(mean, components)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return (pixels(images) - self.mean) @ self.components


def frechet_between(features: Features, images_a: np.ndarray, images_b: np.ndarray, *, chunk: int = 10_000) -> float:
    """`frechet_distance` of the features of two sets of images.

    Args:
        features: A feature space, such as `PCAFeatures`.
        images_a: uint8 images (n, …), at least two.
        images_b: uint8 images (m, …), at least two.
        chunk: The images read at a time.

    Returns:
        The distance, at least 0.
    """
    a, b = (statistics(features, images, chunk) for images in (images_a, images_b))
    return frechet_distance(a.mean, a.cov, b.mean, b.cov)


def statistics(features: Features, images: np.ndarray, chunk: int = 10_000) -> Statistics:
    """The statistics of the features of images.

    Args:
        features: The features of images, a function.
        images: The images (n, …), at least one.
        chunk: How many images are read at a time.

    Returns:
        The statistics of all.

    Raises:
        ValueError: Without images.
    """
    if len(images) == 0:
        raise ValueError("there are no images to take statistics of")
    total = Statistics.of(features(images[:chunk]))
    for first in range(chunk, len(images), chunk):
        total = total + Statistics.of(features(images[first : first + chunk]))
    return total


def frechet_ratio(samples: np.ndarray, real: np.ndarray, *, dims: int = 20, splits: int = 5, seed: int = 0) -> float:
    """How far samples are from real images, in units of how far real images are from each other: the mean, over random
    halvings of the real images into A and B, of FD(samples, A) / FD(B, A), with FD in the `PCAFeatures` of A.

    Fresh real images score about 1; a complete copy of the real ones scores 1/4, because its mean and covariance lie
    halfway between those of A and B. A Fréchet distance falls with the number of samples, so give at least as many as
    half B has; fewer read as worse.

    Args:
        samples: uint8 images (n, …).
        real: uint8 images (m, …) of the same shape, at least four.
        dims: The number of principal components.
        splits: The number of halvings.
        seed: The seed of the halvings.

    Returns:
        The ratio; smaller is better.

    Raises:
        ValueError: For fewer than four real images or less than one halving.
    """
    if len(real) < 4 or splits < 1:
        raise ValueError(
            f"the ratio needs at least 4 real images and splits >= 1, and there are {len(real)} and splits={splits}"
        )
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(splits):
        order = rng.permutation(len(real))
        half_a, half_b = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
        features = PCAFeatures.fit(half_a, dims)
        ratios.append(frechet_between(features, samples, half_a) / frechet_between(features, half_b, half_a))
    return float(np.mean(ratios))
