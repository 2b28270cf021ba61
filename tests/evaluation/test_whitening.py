import numpy as np
import pytest
import sklearn.decomposition

from towers.errors import BadData
from towers.evaluation.whitening import fit_whitening


@pytest.fixture(scope="module")
def embeddings():
    random = np.random.default_rng(0)
    return np.abs(random.normal(size=(400, 12)) @ random.normal(size=(12, 12)) + 2) * random.uniform(1, 9, (400, 1))


def test_whitened_embeddings_have_unit_variance_and_no_correlation(embeddings):
    white = fit_whitening(embeddings)(embeddings)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(white.T), np.eye(12), atol=1e-8)


def test_it_is_scikit_learns_whitening(embeddings):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    want = sklearn.decomposition.PCA(whiten=True, svd_solver="full").fit_transform(unit)
    found = fit_whitening(embeddings)(embeddings)
    np.testing.assert_allclose(np.abs(found), np.abs(want), rtol=1e-6, atol=1e-8)


def test_the_classifier_gives_the_same_logits(embeddings):
    random = np.random.default_rng(1)
    weights = random.normal(size=(7, 12))
    whitening = fit_whitening(embeddings)
    others = random.uniform(0, 5, (50, 12))
    new, shift = whitening.classifier(weights)
    norms = np.linalg.norm(others, axis=1, keepdims=True)
    np.testing.assert_allclose(norms * (whitening(others) @ new.T + shift), others @ weights.T, rtol=1e-9)


def test_a_dead_channel_does_not_divide_by_nothing(embeddings):
    embeddings = embeddings.copy()
    embeddings[:, 4] = 0
    whitening = fit_whitening(embeddings)
    assert np.isfinite(whitening.projection).all()
    weights = np.random.default_rng(1).normal(size=(3, 12))
    others = np.abs(np.random.default_rng(2).normal(size=(20, 12)))
    new, shift = whitening.classifier(weights)
    norms = np.linalg.norm(others, axis=1, keepdims=True)
    np.testing.assert_allclose(norms * (whitening(others) @ new.T + shift), others @ weights.T, rtol=1e-6)


def test_fewer_pictures_than_dimensions_are_refused(embeddings):
    for num in (5, 12):
        with pytest.raises(BadData, match=f"12 dimensions from {num} pictures.*13 or more"):
            fit_whitening(embeddings[:num])
    fit_whitening(embeddings[:13])
