r"""What a feature map loses: how far its predictions are from those of its kernel.

With K the kernel of the n fitting rows, k that of the held-out rows with them, and
:math:`\lambda` the penalty, the kernel machine predicts :math:`P y`, and ridge
regression on features predicts :math:`\hat P y`:

.. math:: P = k (K + \lambda I)^{-1}, \qquad
   \hat P = \Phi_h (\Phi^\top \Phi + \lambda I)^{-1} \Phi^\top.

Without targets the loss is the one expected under the kernel's own prior, the Gaussian
process :math:`y \sim N(0, K + \lambda I)`:

.. math:: E|P y - \hat P y|^2 = \mathrm{tr}\, k P^\top - 2\, \mathrm{tr}\, \hat P k^\top
   + \mathrm{tr}\, \hat P (K + \lambda I) \hat P^\top.

Source: Rasmussen and Williams, Gaussian processes for machine learning (2006),
equations 2.25 and 5.10 to 5.12.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import scipy
from numpy.typing import NDArray

# Penalties over the mean diagonal of the kernel: those that are tried with targets, and
# those of the prior.
TRIED = tuple(10.0 ** np.arange(-8, 0.6, 0.5))
OF_PRIOR = (1e-5, 1e-4, 1e-3, 1e-2)


class Loss(Protocol):
    """The loss of a map, from its features of the fitting and the held-out rows."""

    @property
    def name(self) -> str:
        """What the number is, in a few words."""
        ...

    @property
    def relative_penalty(self) -> float | None:
        """The one penalty over the mean diagonal of the kernel, if there is one."""
        ...

    def __call__(self, phi: NDArray, held_out: NDArray) -> float: ...


@dataclasses.dataclass(frozen=True, eq=False)
class _Spectrum:
    """The eigenvalues (n,) and vectors (n, n) of the kernel of the fitting rows."""

    values: NDArray
    vectors: NDArray

    @classmethod
    def of(cls, k: NDArray) -> "_Spectrum":
        values, vectors = scipy.linalg.eigh(k, check_finite=False)
        return cls(np.maximum(values, 0), vectors)

    @property
    def mean(self) -> float:
        """The mean of the diagonal; 1 where it is 0."""
        return float(self.values.mean()) or 1.0

    def solve(self, penalty: float, y: NDArray) -> NDArray:
        """Return (K + penalty I)^-1 y."""
        c = self.vectors.T @ y
        return self.vectors @ (c / (self.values + penalty)[:, None])

    def left_out_error(self, penalty: float, y: NDArray) -> float:
        """Return the mean squared error of each row predicted from the others."""
        inverse = 1 / (self.values + penalty)
        residuals = self.vectors @ (inverse[:, None] * (self.vectors.T @ y))
        return float(np.mean((residuals / (self.vectors**2 @ inverse)[:, None]) ** 2))

    def best_penalty(self, y: NDArray) -> float:
        """Return the penalty of the smallest leave-one-out error."""
        penalties = self.mean * np.array(TRIED)
        return float(min(penalties, key=lambda p: self.left_out_error(p, y)))


def _factor(gram: NDArray, penalty: float) -> tuple[NDArray, bool]:
    """Return the Cholesky factor of gram + penalty I."""
    a = gram.copy()
    a[np.diag_indices_from(a)] += penalty
    return scipy.linalg.cho_factor(a, overwrite_a=True, check_finite=False)


class DistanceToMachine:
    """The distance of predictions from the kernel machine's, over their size.

    The penalty is the one of the machine's smallest leave-one-out error.
    """

    name = "distance to the exact predictions"

    def __init__(self, k: NDArray, cross: NDArray, y: NDArray) -> None:
        spectrum = _Spectrum.of(k)
        self.y, self.penalty = y, spectrum.best_penalty(y)
        self.relative_penalty = self.penalty / spectrum.mean
        self.predictions = cross @ spectrum.solve(self.penalty, y)

    def __call__(self, phi: NDArray, held_out: NDArray) -> float:
        factor = _factor(phi.T @ phi, self.penalty)
        found = held_out @ scipy.linalg.cho_solve(factor, phi.T @ self.y)
        return _norm(found - self.predictions) / (_norm(self.predictions) or 1.0)


class ExpectedDistance:
    """The same for targets of the prior: the geometric mean over several penalties."""

    name = "expected distance to the exact predictions"
    relative_penalty = None

    def __init__(
        self, k: NDArray, cross: NDArray, penalties: Sequence[float] = OF_PRIOR
    ) -> None:
        self.k, self.cross = k, cross
        spectrum = _Spectrum.of(k)
        self.penalties = [spectrum.mean * p for p in penalties]
        rotated = (cross @ spectrum.vectors) ** 2
        self.sizes = [
            float(np.sum(rotated / (spectrum.values + p))) for p in self.penalties
        ]

    def __call__(self, phi: NDArray, held_out: NDArray) -> float:
        logs = []
        gram, of_k = phi.T @ phi, phi.T @ (self.k @ phi)
        mixed = self.cross @ phi
        for penalty, size in zip(self.penalties, self.sizes, strict=True):
            # The rows of (Phi^T Phi + penalty I)^-1 Phi_h^T.
            z = scipy.linalg.cho_solve(_factor(gram, penalty), held_out.T)
            square = np.sum(z * (of_k @ z)) + penalty * np.sum(z * (gram @ z))
            loss = size - 2 * np.sum(mixed.T * z) + square
            logs.append(0.5 * np.log(max(loss / (size or 1.0), 1e-16)))
        return float(np.exp(np.mean(logs)))


class HeldOutError:
    """The mean squared error on held-out rows, over that of the mean of the targets.

    It is for networks whose exact kernel would take too long. The penalty is the one of
    the smallest leave-one-out error on the fitting rows.
    """

    name = "held-out error"
    relative_penalty = None

    def __init__(self, y: NDArray, held_out_y: NDArray) -> None:
        self.y, self.held_out_y = y, held_out_y
        self.size = float(np.mean((held_out_y - y.mean(axis=0)) ** 2)) or 1.0

    def __call__(self, phi: NDArray, held_out: NDArray) -> float:
        spectrum = _Spectrum.of(phi @ phi.T)
        dual = spectrum.solve(spectrum.best_penalty(self.y), self.y)
        found = held_out @ (phi.T @ dual)
        return float(np.mean((found - self.held_out_y) ** 2)) / self.size


def _norm(a: NDArray) -> float:
    return float(np.linalg.norm(a))
