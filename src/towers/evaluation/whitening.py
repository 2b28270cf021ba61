"""PCA whitening of embeddings, and the classifier that gives the same logits after it.

MultiGrain (Berman et al., 2019, https://arxiv.org/abs/1902.05509), section 3.5.
"""

from dataclasses import dataclass

import numpy as np
import sklearn.decomposition

from ..errors import BadData

# A direction with less of the largest variance than this counts as having so much: a channel that never fires has none,
# and dividing by nothing could not be undone for the classifier.
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Whitening:
    """Phi(e) = projection (e / |e| - mean), of variance 1 in every direction: mean [D], projection [D, D], float64."""

    mean: np.ndarray
    projection: np.ndarray

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Un-normalised embeddings [N, D] -> whitened [N, D], not normalised; of the same dtype."""
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return ((unit - self.mean) @ self.projection.T).astype(embeddings.dtype)

    def classifier(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W' [C, D] and b' [C] with W e = |e| (W' Phi(e) + b') for the class weights W [C, D]; float64."""
        # The rows of the projection are orthogonal: its inverse is its transpose over their squared lengths.
        inverse = self.projection.T / np.sum(self.projection**2, axis=1)
        weights = np.asarray(weights, np.float64)
        return weights @ inverse, weights @ self.mean


def fit_whitening(embeddings: np.ndarray) -> Whitening:
    """Whitening by all principal components of the L2-normalised embeddings [N, D], in the order of their variances.

    Raises:
      BadData: no more pictures than dimensions.
    """
    num, dimensions = embeddings.shape
    if num <= dimensions:
        raise BadData(
            f"whitening of {dimensions} dimensions from {num} pictures: it needs {dimensions + 1} or more, ten times "
            "as many to be good (MultiGrain took 20,000); give a larger folder"
        )
    unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = sklearn.decomposition.PCA(svd_solver="covariance_eigh").fit(unit)
    variances = np.maximum(found.explained_variance_, LEAST_VARIANCE * found.explained_variance_[0])
    return Whitening(found.mean_, found.components_ / np.sqrt(variances)[:, None])
