"""Are samples copies? Distances to the nearest real image, against those between real images."""

import numpy as np


def nearest_distances(a: np.ndarray, b: np.ndarray, *, chunk: int = 1024) -> np.ndarray:
    """The Euclidean distance from each row of a to the nearest row of b. Where `a is b` a row is not its own neighbour.

    The neighbour is found by |a|² + |b|² - 2a·b, and its distance computed from the difference, so that a copy is at
    exactly zero.

    Args:
        a: Rows (n, …).
        b: Rows (m, …) of the same shape.
        chunk: The rows of a compared at a time.

    Returns:
        Distances (n,), float64.

    Raises:
        ValueError: Where the rows differ in size, or b has no other row.
    """
    own = a is b
    left, right = (np.asarray(v).reshape(len(v), -1).astype(np.float64) for v in (a, b))
    if left.shape[1] != right.shape[1] or len(right) < 1 + own:
        raise ValueError(
            f"a has shape {np.shape(a)} and b {np.shape(b)}: give rows of one size, and b at least {1 + own}"
        )
    squares = np.sum(right**2, axis=1)
    nearest = np.empty(len(left), np.int64)
    for first in range(0, len(left), chunk):
        rows = np.arange(first, min(first + chunk, len(left)))
        score = squares - 2 * left[rows] @ right.T  # |a|² is the same for every b
        if own:
            score[rows - first, rows] = np.inf
        nearest[rows] = score.argmin(axis=1)
    return np.linalg.norm(left - right[nearest], axis=1)


def fraction_nearer(samples: np.ndarray, real: np.ndarray, *, percentile: float = 1.0) -> float:
    """The share of samples that are nearer to a real image than real images are to each other. For fresh real images it
    is about percentile/100; a model that copies its training images scores far more.

    Args:
        samples: Images (n, …).
        real: The images trained on (m, …).
        percentile: Which percentile of the real images' distances to their own nearest neighbours is "near".

    Returns:
        A share in [0, 1].
    """
    threshold = np.percentile(nearest_distances(real, real), percentile)
    return float(np.mean(nearest_distances(samples, real) < threshold))
