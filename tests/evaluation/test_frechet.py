"""Fréchet distances against closed forms, principal components against the SVD, and what the ratio means."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

from diffuse_jax.evaluation import (
    PCAFeatures,
    Statistics,
    frechet_between,
    frechet_distance,
    frechet_ratio,
    statistics,
)

RNG = np.random.default_rng(0)


def covariance(d, rank=None):
    root = RNG.normal(size=(d, rank or d))
    return root @ root.T / d


def rotation(d):
    return np.linalg.qr(RNG.normal(size=(d, d)))[0]


def smooth_images(n, size=8, seed=0):
    """Random images whose pixels are correlated, uint8 (n, size, size, 1)."""
    noise = np.random.default_rng(seed).normal(size=(n, size, size, 1)).cumsum(axis=1).cumsum(axis=2)
    return np.clip(128 + 20 * noise, 0, 255).astype(np.uint8)


def test_commuting_gaussians_have_the_distance_of_their_standard_deviations():
    q, a, b = rotation(6), RNG.uniform(0, 3, 6), RNG.uniform(0, 3, 6)
    means = RNG.normal(size=(2, 6))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    distance = frechet_distance(means[0], (q * a) @ q.T, means[1], (q * b) @ q.T)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


def test_any_gaussians_agree_with_the_matrix_square_root():
    a, b, means = covariance(7), covariance(7), RNG.normal(size=(2, 7))
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(a + b - 2 * root.real)
    np.testing.assert_allclose(frechet_distance(means[0], a, means[1], b), expected, rtol=1e-10)


def test_the_distance_is_symmetric_zero_to_itself_and_blind_to_rotations():
    a, b, q, mean = covariance(5), covariance(5), rotation(5), RNG.normal(size=5)
    there = frechet_distance(mean, a, np.zeros(5), b)
    np.testing.assert_allclose(frechet_distance(np.zeros(5), b, mean, a), there, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(q @ mean, q @ a @ q.T, np.zeros(5), q @ b @ q.T), there, rtol=1e-9)
    # A root of a rounding error of 1e-16 is one of 1e-8.
    assert 0 <= frechet_distance(mean, a, mean, a) < 1e-8


def test_singular_covariances_are_fine():
    # Two lines through the origin at an angle θ: tr(S_a^½ S_b S_a^½)^½ = s_a s_b |cos θ|.
    theta, s_a, s_b = 0.7, 2.0, 3.0
    u, v = np.array([1.0, 0.0]), np.array([np.cos(theta), np.sin(theta)])
    distance = frechet_distance(np.zeros(2), s_a**2 * np.outer(u, u), np.zeros(2), s_b**2 * np.outer(v, v))
    np.testing.assert_allclose(distance, s_a**2 + s_b**2 - 2 * s_a * s_b * np.cos(theta), rtol=1e-12)
    flat = covariance(20, rank=3)
    assert frechet_distance(np.zeros(20), flat, np.zeros(20), flat) < 1e-6


def test_shapes_that_do_not_fit_and_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.zeros(2), np.eye(2), np.array([0, np.nan]), np.eye(2))


def test_statistics_gathered_in_chunks_are_those_of_the_whole():
    x = 1e4 + RNG.normal(size=(101, 4))
    total = Statistics.of(x[:1]) + Statistics.of(x[1:40]) + Statistics.of(x[40:])
    np.testing.assert_allclose(total.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(total.cov, np.cov(x.T), rtol=1e-10, atol=1e-10)
    images = smooth_images(50)
    chunked = statistics(PCAFeatures.fit(images, 3), images, chunk=7)
    np.testing.assert_allclose(chunked.cov, statistics(PCAFeatures.fit(images, 3), images).cov, rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match="at least 2"):
        _ = Statistics.of(x[:1]).cov


@pytest.mark.parametrize("n", [30, 200])  # fewer and more images than their 64 pixels
def test_features_are_the_coordinates_of_the_largest_singular_values(n):
    images = smooth_images(n)
    features = PCAFeatures.fit(images, 5)
    x = images.reshape(n, -1) / 255.0
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(features(images)), np.abs(u * s)[:, :5], atol=1e-9)
    np.testing.assert_allclose(features.components.T @ features.components, np.eye(5), atol=1e-12)


@pytest.mark.parametrize(("n", "size", "dims"), [(4, 8, 3), (30, 2, 4), (200, 8, 20)])
def test_dims_are_clipped_to_what_the_images_span(n, size, dims):
    images = smooth_images(n, size)
    assert PCAFeatures.fit(images)(images[:2]).shape == (2, dims)


def test_images_are_bytes_and_there_are_at_least_two():
    with pytest.raises(ValueError, match="uint8"):
        PCAFeatures.fit(smooth_images(4) / 255)
    with pytest.raises(ValueError, match="at least 2 images"):
        PCAFeatures.fit(smooth_images(1))


def test_frechet_between_is_the_distance_of_the_features_moments():
    a, b = smooth_images(60, seed=1), smooth_images(80, seed=2)
    features = PCAFeatures.fit(a, 4)
    moments = [m for x in (features(a), features(b)) for m in (x.mean(axis=0), np.cov(x.T))]
    np.testing.assert_allclose(frechet_between(features, a, b), frechet_distance(*moments), rtol=1e-9)


def test_the_ratio_is_about_one_for_fresh_images_and_large_for_others():
    digits = np.round(load_digits().images[..., None] * (255 / 16)).astype(np.uint8)
    fresh = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(1797)
        samples, real = digits[order[:599]], digits[order[599:]]  # as many as each half of the others
        fresh.append(frechet_ratio(samples, real, seed=seed))
    assert 0.8 < np.mean(fresh) < 1.25
    noise = np.random.default_rng(3).integers(0, 256, (599, 8, 8, 1), np.uint8)
    assert frechet_ratio(noise, real) > 20


def test_the_ratio_of_a_complete_copy_is_a_quarter():
    # A copy of A and B together has mean (a + b)/2: half as far from A as B is, and its squared distance a quarter.
    real = smooth_images(1000, seed=1)
    np.testing.assert_allclose(frechet_ratio(real, real), 0.25, atol=0.03)
