"""Multinomial logistic regression of dense features, for scikit-learn's searches and pipelines.

scikit-learn's own takes five to seven times as long for the quick start's features, at the same
objective: principal components differ widely in scale, and its L-BFGS does not precondition.
"""

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin


class LogisticRegression(ClassifierMixin, BaseEstimator):
    """Minimises C * (sum of cross-entropies) + |weights|² / 2 by preconditioned L-BFGS.

    The bias is not penalised. Weights and sums are float64; products are taken in the dtype of the
    features.
    """

    def __init__(self, C: float = 1.0):
        self.C = C

    def fit(
        self, features: Float[np.ndarray, "examples features"], labels: Int[np.ndarray, " examples"]
    ) -> "LogisticRegression":
        """Fits `coef_` [classes, features] and `intercept_` [classes] to examples."""
        self.classes_, columns = np.unique(labels, return_inverse=True)
        num_classes, num_features = len(self.classes_), features.shape[1]
        # Classes come first: sums over the long axis of few rows are several times as fast.
        one_hot = np.eye(num_classes, dtype=features.dtype)[:, columns]
        examples = np.arange(len(labels))
        # Every variable is scaled by the root of its curvature: 30 iterations instead of 1,000.
        square_sums = np.append(np.square(features).sum(axis=0, dtype=np.float64), len(labels))
        scale = 1 / np.sqrt(1 + 0.1 * self.C * square_sums)[None, :]

        def objective(variables: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = variables.reshape(num_classes, num_features + 1) * scale
            weights, bias = parameters[:, :-1], parameters[:, -1:]
            scores = weights.astype(features.dtype) @ features.T + bias.astype(features.dtype)
            scores -= scores.max(axis=0)
            exponentials = np.exp(scores)
            sums = exponentials.sum(axis=0)
            loss = np.log(sums).sum(dtype=np.float64)
            loss -= scores[columns, examples].sum(dtype=np.float64)
            residual = exponentials / sums - one_hot
            gradient = np.empty_like(parameters)
            gradient[:, :-1] = self.C * (residual @ features) + weights
            gradient[:, -1] = self.C * residual.sum(axis=1)
            value = self.C * loss + 0.5 * np.vdot(weights, weights)
            return float(value), (gradient * scale).ravel()

        found = scipy.optimize.minimize(
            objective,
            np.zeros(num_classes * (num_features + 1)),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 500, "gtol": 1e-3 * np.sqrt(self.C), "ftol": 1e-7},
        )
        parameters = found.x.reshape(num_classes, num_features + 1) * scale
        self.coef_, self.intercept_ = parameters[:, :-1], parameters[:, -1]
        return self

    def predict(
        self, features: Float[np.ndarray, "examples features"]
    ) -> Int[np.ndarray, " examples"]:
        """Returns the class with the highest score for each example."""
        scores = features @ self.coef_.T + self.intercept_[None, :]
        return self.classes_[np.argmax(scores, axis=1)]
