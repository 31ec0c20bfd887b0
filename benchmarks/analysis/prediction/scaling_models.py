"""Models of the throughput on N devices, and how they are fitted.

Here are the scaling laws: X(N) = l N / (1 + s (N - 1) + k N (N - 1)) with s, k >= 0, the universal scalability law
(Gunther, "Guerrilla capacity planning", 2007), and Amdahl's law, the same with k = 0.
"""

from dataclasses import dataclass

import numpy as np

from mnist_dist.lazy import scipy

GAUSS_NEWTON_STEPS = 15

Floats = np.ndarray  # float64


@dataclass(frozen=True)
class ScalingLaw:
    """X(N) = rate N / (1 + contention (N - 1) + coherency N (N - 1)), the rate in images per second."""

    rate: float
    contention: float
    coherency: float

    @property
    def free_parameters(self) -> int:
        """How many parameters the points have determined: those at a bound are not counted."""
        return 1 + (self.contention > 0) + (self.coherency > 0)

    def images_per_second(self, devices: Floats) -> Floats:
        others = devices - 1
        return self.rate * devices / (1 + self.contention * others + self.coherency * devices * others)


@dataclass(frozen=True)
class ScalingLawModel:
    """The universal scalability law, or, with no cost of coherency, Amdahl's."""

    has_coherency: bool

    @property
    def fewest_points(self) -> int:
        return 3 if self.has_coherency else 2

    def fit(self, devices: Floats, images_per_second: Floats, rng: np.random.Generator | None = None) -> ScalingLaw:
        """Fits the logarithms of throughputs, float64 [points]; `rng` is for models with a part fitted beforehand.

        N / X(N) is linear in 1 / l, s / l and k / l, none of which is negative.
        """
        columns = np.column_stack([np.ones_like(devices), devices - 1, devices * (devices - 1)])
        seconds = devices / images_per_second
        constant, *shares = fit_nonnegative(columns[:, : self.fewest_points], seconds).tolist()
        constant = max(constant, 1e-6 * seconds[0])  # Zero for points without any likeness to the law.
        contention, coherency, *_ = [share / constant for share in shares] + [0.0]
        return ScalingLaw(1 / constant, contention, coherency)


def fit_nonnegative(columns: Floats, values: Floats, *, robust: bool = False) -> Floats:
    """Returns c >= 0 that minimises the squares of log(columns @ c / values), by Gauss and Newton's steps.

    Each step is a linear problem for `scipy.optimize.nnls`, which finds the coefficients that are exactly zero, as
    `least_squares` does not, in a tenth of its time.

    Args:
        columns: float64 [points, coefficients], not negative.
        values: float64 [points], positive.
        robust: give residuals beyond 1.345 robust standard deviations less weight (Huber's).
    """
    fitted, weights = values, np.ones(len(values))
    for _ in range(GAUSS_NEWTON_STEPS):
        # A fit far above a value must not step below zero.
        targets = np.maximum(1 + np.log(values / fitted), 0.0)
        coefficients, _ = scipy.optimize.nnls(columns * (weights / fitted)[:, None], weights * targets)
        fitted = np.maximum(columns @ coefficients, 1e-3 * values)
        if robust:
            residuals = np.abs(np.log(values / fitted))
            limit = max(1.345 * 1.4826 * float(np.median(residuals)), 1e-12)  # Robust: 1.4826 medians of |x|.
            weights = np.sqrt(limit / np.maximum(residuals, limit))
    return coefficients
