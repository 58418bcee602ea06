"""Do samples look like digits? Four numbers against scikit-learn's 1,797 real ones.

The classifier is a support vector machine with a radial kernel (C = 10, γ = 0.001 on pixel values 0..16) and
probabilities by Platt's sigmoids for each pair of classes, coupled by the second method of Wu, Lin and Weng (2004):
what LIBSVM computes.
"""

import functools
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from diffuse_jax.evaluation.frechet import frechet_ratio
from diffuse_jax.evaluation.neighbours import fraction_nearer

CLASSES = 10
CONFIDENT = 0.9


def digits_report(samples: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Judges uint8 samples (n, 8, 8, 1) by all the real digits; `seed` chooses the halvings of the ratio and the folds
    of the classifier.

    Returns `frechet_ratio` (about 1 for fresh real digits), `class_shares` (ten shares of the predicted classes),
    `confident` (the share with a largest class probability above 0.9) and `nearer_than_1_percent` (the share nearer to
    a real digit than the 1st percentile of the real nearest-neighbour distances: copies).
    """
    from sklearn.datasets import load_digits  # half a second to import, and only this report needs it

    samples = np.asarray(samples)
    if samples.dtype != np.uint8 or samples.shape[1:] != (8, 8, 1) or len(samples) < 2:
        raise ValueError(f"samples are {samples.dtype} {samples.shape}: give at least 2 of uint8 (n, 8, 8, 1)")
    raw = load_digits()
    real = np.round(raw.images[..., None] * (255 / 16)).astype(np.uint8)
    values = samples.reshape(len(samples), 64) * (16 / 255)
    probabilities = digits_classifier(seed)(values)
    return {
        "frechet_ratio": frechet_ratio(samples, real, seed=seed),
        "class_shares": (np.bincount(probabilities.argmax(axis=1), minlength=CLASSES) / len(samples)).tolist(),
        "confident": float(np.mean(probabilities.max(axis=1) > CONFIDENT)),
        "nearer_than_1_percent": fraction_nearer(values, raw.data),
    }


@dataclass(frozen=True, eq=False)
class PairwiseClassifier:
    """One calibrated machine for each pair of the classes 0..`classes` - 1, in the order of `itertools.combinations`;
    called with x (n, d) it returns (n, classes).
    """

    classes: int
    machines: tuple[Any, ...]

    @classmethod
    def fit(cls, x: np.ndarray, label: np.ndarray, seed: int) -> "PairwiseClassifier":
        """Fits x (n, d) with labels (n,): every sigmoid is fitted to decision values from five folds, every machine to
        all rows of its two classes.
        """
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.model_selection import StratifiedKFold
        from sklearn.svm import SVC

        classes = int(label.max()) + 1
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)

        def machine(i: int, j: int) -> Any:
            rows = (label == i) | (label == j)
            platt = CalibratedClassifierCV(SVC(C=10.0, gamma=0.001), method="sigmoid", cv=folds, ensemble=False)
            return platt.fit(x[rows], label[rows] == i)

        return cls(classes, tuple(machine(i, j) for i, j in combinations(range(classes), 2)))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        pairwise = np.zeros((len(x), self.classes, self.classes))
        for (i, j), machine in zip(combinations(range(self.classes), 2), self.machines, strict=True):
            pairwise[:, i, j] = np.clip(machine.predict_proba(x)[:, 1], 1e-7, 1 - 1e-7)
            pairwise[:, j, i] = 1 - pairwise[:, i, j]
        return couple(pairwise)


@functools.cache
def digits_classifier(seed: int) -> PairwiseClassifier:
    """The classifier of all real digits, x (n, 64) in 0..16; 45 machines, fitted once a process for each seed."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    return PairwiseClassifier.fit(raw.data, raw.target, seed)


def couple(pairwise: np.ndarray) -> np.ndarray:
    """Class probabilities p (n, k) from r_ij = P(i | i or j), given as (n, k, k) with zeros on the diagonal: the
    minimiser of Σ_ij (r_ji p_i - r_ij p_j)² on Σ p = 1 (Wu, Lin and Weng 2004, eq. 19-21), which solves one linear
    system a row.
    """
    n, k, _ = pairwise.shape
    system = np.zeros((n, k + 1, k + 1))
    system[:, :k, :k] = -np.swapaxes(pairwise, 1, 2) * pairwise
    system[:, range(k), range(k)] = np.sum(pairwise**2, axis=1)
    system[:, :k, k] = system[:, k, :k] = 1
    right = np.zeros((n, k + 1, 1))
    right[:, k] = 1
    return np.linalg.solve(system, right)[:, :k, 0]
