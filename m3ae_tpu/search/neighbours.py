"""Nearest neighbours by the cosine of standardised features."""

import numpy as np
from jaxtyping import Float, Float32

_ROWS_AT_A_TIME = 65_536


class Neighbours:
    """Rows of features that are compared with queries.

    Features are standardised first, by the mean and deviation of all rows: raw features share a
    large mean, which would make all cosines nearly 1.
    """

    def __init__(self, features: Float[np.ndarray, "rows width"]):
        """Takes features of any float dtype; keeps a reference and two vectors."""
        sums, squares = np.zeros((2, features.shape[1]), np.float64)
        for start in range(0, len(features), _ROWS_AT_A_TIME):
            chunk = features[start : start + _ROWS_AT_A_TIME].astype(np.float64)
            sums, squares = sums + chunk.sum(axis=0), squares + np.square(chunk).sum(axis=0)
        mean = sums / len(features)
        deviation = np.sqrt(np.maximum(squares / len(features) - np.square(mean), 0.0))
        # A value that never differs says nothing.
        is_constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
        self._features = features
        self._mean = mean.astype(np.float32)
        self._scale = np.where(is_constant, 0.0, 1.0 / np.where(is_constant, 1.0, deviation))
        self._scale = self._scale.astype(np.float32)

    def cosines(self, query: Float[np.ndarray, " width"]) -> Float32[np.ndarray, " rows"]:
        """Returns the cosine of each row with a query, from -1 to 1; 0 for a vector of zeros."""
        direction = self._directions(query[None])[0]
        return np.concatenate(
            [
                self._directions(self._features[start : start + _ROWS_AT_A_TIME]) @ direction
                for start in range(0, len(self._features), _ROWS_AT_A_TIME)
            ]
        )

    def _directions(
        self, features: Float[np.ndarray, "rows width"]
    ) -> Float32[np.ndarray, "rows width"]:
        standardised = (features.astype(np.float32) - self._mean) * self._scale
        norms = np.linalg.norm(standardised, axis=1, keepdims=True)
        return standardised / np.maximum(norms, np.float32(1e-12))


def best(scores: Float32[np.ndarray, " rows"], count: int) -> np.ndarray:
    """Returns the rows of the highest scores, highest first; the earlier of equal ones first."""
    return np.argsort(-scores, kind="stable")[:count]
