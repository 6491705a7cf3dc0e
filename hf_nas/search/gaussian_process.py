"""Regression with a Gaussian process for some hundred noisy values of a search, in numpy and scipy."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize


__all__ = ["GaussianProcess", "Hyperparameters"]

_ROOT_5 = math.sqrt(5)
_JITTER = 1e-8
# Of the logarithms of the hyper-parameters: mean and standard deviation of their normal priors, and bounds. The
# values they are for have variance 1.
_LENGTH_DEVIATION, _LENGTH_BOUNDS = 1.0, (math.log(0.02), math.log(1e4))
_VARIANCES = {
    "signal": (0.0, 1.0, (-6.0, 6.0)),
    "slope": (0.0, 2.0, (-9.0, 6.0)),
    "noise": (math.log(1e-2), 2.0, (math.log(1e-7), 0.0)),
}


@dataclass(frozen=True)
class Hyperparameters:
    """What the marginal likelihood chooses.

    Args:
        lengths: one length scale a feature, of shape (features,).
        signal: variance of what is not linear.
        slope: variance of the linear part, at the corners of the unit cube.
        noise: variance of the noise on each value.
    """

    lengths: np.ndarray
    signal: float
    slope: float
    noise: float

    @classmethod
    def prior(cls, features: int) -> "Hyperparameters":
        """Where a first fit starts: the centre of the priors."""
        return cls.from_vector(_prior(features)[0])

    def to_vector(self) -> np.ndarray:
        """Their logarithms, of shape (features + 3,)."""
        return np.log(np.concatenate([self.lengths, [self.signal, self.slope, self.noise]]))

    @classmethod
    def from_vector(cls, vector: np.ndarray) -> "Hyperparameters":
        """The inverse of [`Hyperparameters.to_vector`]."""
        values = np.exp(vector)
        return cls(values[:-3], *values[-3:].tolist())


def _prior(features: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the logarithms of the hyper-parameters, of shape (features + 3,) each."""
    # Distances in the unit cube grow with the root of the number of features (Hvarfner et al. 2024). Length scales are
    # longer there; here what is smooth is left to the linear kernel.
    length = 0.5 * math.log(features)
    means = [length] * features + [mean for mean, _, _ in _VARIANCES.values()]
    deviations = [_LENGTH_DEVIATION] * features + [deviation for _, deviation, _ in _VARIANCES.values()]
    return np.array(means), np.array(deviations)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of shape (rows of the first, rows of the second)."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None]
    return np.maximum(squares - 2 * first @ second.T, 0)


def _centred(features: np.ndarray) -> np.ndarray:
    """Features from -1 to 1, divided so that the squares of a corner of the cube sum to one."""
    return (2 * features - 1) / math.sqrt(features.shape[1])


def _matern(squared: np.ndarray) -> np.ndarray:
    root = _ROOT_5 * np.sqrt(squared)
    return (1 + root + root**2 / 3) * np.exp(-root)


def _standardise(values: np.ndarray) -> tuple[float, float, np.ndarray]:
    mean, scale = float(values.mean()), float(values.std())
    # Equal values differ by rounding alone.
    scale = scale if scale > 1e-12 * max(1.0, abs(mean)) else 1.0
    return mean, scale, (values - mean) / scale


class GaussianProcess:
    """A Gaussian process with noise (Rasmussen & Williams 2006).

    Its kernel is a linear one, which knows the trend after a few values, plus a Matern 5/2 kernel with one length
    scale a feature for the rest.

    Args:
        features: in the unit cube, of shape (points, features).
        values: of shape (points,); their mean and scale are taken out and put back.
        hyperparameters: for values of mean 0 and variance 1.
    """

    def __init__(self, features: np.ndarray, values: np.ndarray, hyperparameters: Hyperparameters):
        self.hyperparameters = hyperparameters
        self._features = features
        self._mean, self._scale, standard = _standardise(values)
        kernel = self._kernel(features)
        kernel[np.diag_indices_from(kernel)] += hyperparameters.noise + _JITTER
        self._factor = cholesky(kernel, lower=True, check_finite=False)
        half = solve_triangular(self._factor, standard, lower=True, check_finite=False)
        self._weights = solve_triangular(self._factor, half, lower=True, trans=1, check_finite=False)

    @classmethod
    def fit(
        cls, features: np.ndarray, values: np.ndarray, start: Hyperparameters | None = None, steps: int = 60
    ) -> "GaussianProcess":
        """The process whose hyper-parameters have the highest posterior density, found by gradient.

        Args:
            features: in the unit cube, of shape (points, features).
            values: of shape (points,).
            start: where to start beside the centre of the priors, such as what fitted most of the values.
            steps: of L-BFGS at most, from each start.
        """
        dimensions = features.shape[1]
        bounds = [_LENGTH_BOUNDS] * dimensions + [bounds for _, _, bounds in _VARIANCES.values()]
        arguments = (features, _standardise(values)[2])
        # A few noisy values often look like a rough function without noise, and from there no gradient leads back.
        starts = [Hyperparameters.prior(dimensions), *([] if start is None else [start])]
        found = [
            minimize(
                _loss, each.to_vector(), arguments, "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": steps}
            )
            for each in starts
        ]
        best = min(found, key=lambda each: each.fun)
        return cls(features, values, Hyperparameters.from_vector(best.x))

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the function, without the noise, both of shape (points,)."""
        own = self.hyperparameters
        kernel = self._kernel(features)
        half = solve_triangular(self._factor, kernel.T, lower=True, check_finite=False)
        prior = own.signal + own.slope * (_centred(features) ** 2).sum(axis=1)
        variance = np.maximum(prior - (half**2).sum(axis=0), 1e-12)
        return self._mean + self._scale * (kernel @ self._weights), self._scale * np.sqrt(variance)

    def _kernel(self, features: np.ndarray) -> np.ndarray:
        own = self.hyperparameters
        squared = _squared_distances(features / own.lengths, self._features / own.lengths)
        return own.signal * _matern(squared) + own.slope * _centred(features) @ _centred(self._features).T


def _loss(vector: np.ndarray, features: np.ndarray, values: np.ndarray) -> tuple[float, np.ndarray]:
    """Negative log posterior density of the hyper-parameters' logarithms, without constants, and its gradient."""
    own = Hyperparameters.from_vector(vector)
    scaled, centred = features / own.lengths, _centred(features)
    root = _ROOT_5 * np.sqrt(_squared_distances(scaled, scaled))
    decay = np.exp(-root)
    curved = own.signal * (1 + root + root**2 / 3) * decay
    linear = own.slope * centred @ centred.T
    kernel = curved + linear
    kernel[np.diag_indices_from(kernel)] += own.noise + _JITTER
    factor = cholesky(kernel, lower=True, check_finite=False)
    inverse = dpotri(factor, lower=1)[0]
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = inverse @ values
    loss = 0.5 * values @ weights + np.log(np.diag(factor)).sum()
    # Of the loss by each entry of the kernel, twice; then by each hyper-parameter.
    outer = inverse - np.outer(weights, weights)
    by_distance = outer * (own.signal * 5 / 6 * (1 + root) * decay)
    # The sum over pairs of by_distance * (x_i - x_j)^2, negative half of it, without a third axis.
    by_length = (scaled * (by_distance @ scaled)).sum(axis=0) - by_distance.sum(axis=1) @ scaled**2
    by_variance = [(outer * curved).sum(), (outer * linear).sum(), own.noise * np.trace(outer)]
    gradient = np.append(-2 * by_length, 0.5 * np.array(by_variance))
    means, deviations = _prior(features.shape[1])
    offsets = (vector - means) / deviations
    return float(loss + 0.5 * (offsets**2).sum()), gradient + offsets / deviations
