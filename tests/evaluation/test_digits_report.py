"""The report on digits: its classifier against LIBSVM's, and what it says of real digits, a Gaussian and noise."""

import inspect
import json
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from diffuse_jax.evaluation import digits_report
from diffuse_jax.evaluation.digits import couple, digits_classifier

RAW = load_digits()
RNG = np.random.default_rng(0)


def to_bytes(values):
    return np.round(np.clip(values, 0, 16) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)


def gaussian(n):
    """Draws from the Gaussian with the digits' mean and covariance, in values 0..16."""
    return RNG.multivariate_normal(RAW.data.mean(axis=0), np.cov(RAW.data.T), n)


def test_coupling_recovers_the_probabilities_that_made_consistent_pairs():
    p = RNG.dirichlet(np.ones(5), 20)
    pairwise = p[:, :, None] / (p[:, :, None] + p[:, None, :]) * (1 - np.eye(5))
    np.testing.assert_allclose(couple(pairwise), p, atol=1e-10)


@pytest.mark.skipif("probability" not in inspect.signature(SVC).parameters, reason="scikit-learn no longer offers it")
def test_the_classifier_is_libsvms():
    # LIBSVM draws its own folds, so that probabilities differ by a per cent or so where classes compete.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        libsvm = SVC(C=10.0, gamma=0.001, probability=True, random_state=0).fit(RAW.data, RAW.target)
    own = digits_classifier(seed=0)
    for x in (RAW.data[::5], np.clip(gaussian(400), 0, 16)):
        difference = np.abs(own(x) - libsvm.predict_proba(x))
        assert difference.max() < 0.05
        assert difference.mean() < 0.005


def test_real_digits_are_confident_balanced_and_copies():
    report = digits_report(to_bytes(RAW.data))
    assert report["frechet_ratio"] == pytest.approx(0.25, abs=0.02)
    assert report["confident"] > 0.98
    np.testing.assert_allclose(report["class_shares"], np.bincount(RAW.target) / 1797, atol=0.003)
    assert report["nearer_than_1_percent"] == 1
    json.dumps(report)


def test_digits_with_a_little_noise_score_about_one_and_are_not_copies():
    # Noise of deviation 2 lies 2·√64 = 16 away from each digit, as far as digits lie from each other.
    report = digits_report(to_bytes(RAW.data + 2 * RNG.normal(size=RAW.data.shape)))
    assert 0.7 < report["frechet_ratio"] < 1.3
    assert report["confident"] > 0.8
    assert report["nearer_than_1_percent"] < 0.02


def test_a_fitted_gaussian_is_told_from_digits():
    report = digits_report(to_bytes(gaussian(1797)))
    assert 3.5 < report["frechet_ratio"] < 5
    assert 0.07 < report["confident"] < 0.16
    assert report["nearer_than_1_percent"] == 0


def test_uniform_noise_is_not_confident_and_far_away():
    report = digits_report(RNG.integers(0, 256, (1797, 8, 8, 1), np.uint8))
    assert 58 < report["frechet_ratio"] < 76
    assert report["confident"] == 0
    assert sum(report["class_shares"]) == pytest.approx(1)


def test_other_shapes_and_types_are_refused():
    with pytest.raises(ValueError, match=r"float32 \(3, 8, 8, 1\)"):
        digits_report(np.zeros((3, 8, 8, 1), np.float32))
