"""The clean probability of each sample: a two-component Gaussian mixture on the losses, one for each given class.

DR-FER fits the mixture class by class. Tied variances, the repair of untied ones, the guards against splitting by force
and the shared mixture are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ferlab.errors import FerlabError


@dataclass(frozen=True)
class TwoGaussians:
    """Two Gaussians on a line: low and high mean, their standard deviations, and the weight of the low one."""

    low: float
    high: float
    low_std: float
    high_std: float
    low_weight: float

    def low_probability(self, values: np.ndarray) -> np.ndarray:
        """Posterior of the low component, [N] in [0, 1], never rising with the value.

        The log-odds is a parabola whose vertex lies outside [low, high]; values beyond the vertex, where a wide
        component would win back the far tail, count as the vertex itself.
        """
        precision = 1 / np.array([self.low_std, self.high_std]) ** 2
        difference = precision[0] - precision[1]
        if abs(difference) > 1e-9 * precision.sum():
            vertex = (self.low * precision[0] - self.high * precision[1]) / difference
            values = np.maximum(values, vertex) if difference > 0 else np.minimum(values, vertex)
        log_odds = (
            np.log(self.low_weight / (1 - self.low_weight))
            + np.log(self.high_std / self.low_std)
            - 0.5 * (values - self.low) ** 2 * precision[0]
            + 0.5 * (values - self.high) ** 2 * precision[1]
        )
        return 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))

    @property
    def separation(self) -> float:
        """Ashman's D, sqrt(2) |high - low| / sqrt(low_std² + high_std²); above about 2 the two are told apart."""
        return float(np.sqrt(2) * (self.high - self.low) / np.hypot(self.low_std, self.high_std))


def fit_two_gaussians(
    values: np.ndarray, tied: bool = True, iterations: int = 200, tolerance: float = 1e-6
) -> TwoGaussians | None:
    """Maximum likelihood by expectation-maximisation, from a split at the mean; None where the values are all alike.

    values: [N], finite. tied: one variance for both components, so that the posterior is monotone by itself.
    Deterministic: sums run over sorted values, so that the order of the samples does not matter.
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    spread = values.std()
    if len(values) < 2 or spread < 1e-9 * max(1.0, abs(values.mean())):
        return None
    floor = (1e-3 * spread) ** 2
    low_share = (values <= values.mean()).astype(np.float64)
    previous = -np.inf
    mixture = None
    for _ in range(iterations):
        share = np.stack([low_share, 1 - low_share])  # [2, N]
        weight = share.sum(1).clip(1e-9)
        mean = share @ values / weight
        variance = (share * (values - mean[:, None]) ** 2).sum(1) / weight
        if tied:
            variance[:] = (variance * weight).sum() / weight.sum()
        std = np.sqrt(np.maximum(variance, floor))
        weight = (weight / weight.sum()).clip(1e-9, 1 - 1e-9)
        log_density = np.log(weight / std)[:, None] - 0.5 * ((values - mean[:, None]) / std[:, None]) ** 2
        total = np.logaddexp(*log_density)
        low_share = np.exp(log_density[0] - total)
        mixture = TwoGaussians(mean[0], mean[1], std[0], std[1], weight[0])
        if abs(total.mean() - previous) < tolerance:
            break
        previous = total.mean()
    assert mixture is not None
    if mixture.low > mixture.high:
        mixture = TwoGaussians(mixture.high, mixture.low, mixture.high_std, mixture.low_std, 1 - mixture.low_weight)
    return mixture


class ClassMixture:
    """Clean probability from per-sample losses and given labels.

    scope: "class" fits a mixture to each given class's losses (the source's way); "shared" fits one to all of them.
    tied: both components share their variance. Untied ones are repaired to be monotone.
    minimum: a class with fewer samples is not split by itself.
    separation: nor is one whose components are closer than this (Ashman's D).
    A class that is not split by itself takes the shared mixture if that one separates, and is all clean otherwise.

    After ``fit``:
    clean_probability: float64 [N] in [0, 1], higher = cleaner, never rising with the loss within a class.
    mixtures: {class: TwoGaussians or None}; shared: TwoGaussians or None.
    status: {class: "split", "shared", "too small", "not separated"}, the last two meaning all clean.
    """

    def __init__(
        self,
        scope: Literal["class", "shared"] = "class",
        tied: bool = True,
        minimum: int = 30,
        separation: float = 1.0,
    ):
        if scope not in ("class", "shared"):
            raise FerlabError(f'The mixture\'s scope is "{scope}": give "class" or "shared".')
        self.scope, self.tied, self.minimum, self.separation = scope, tied, minimum, separation

    def fit(self, losses, labels) -> ClassMixture:
        """Fit to losses [N] (any finite score that is higher for wrong labels) and given labels int [N].

        Losses of +inf or NaN count as the highest finite loss. Raises FerlabError if the lengths differ.
        """
        losses, labels = np.array(losses, dtype=np.float64), np.asarray(labels)
        if losses.shape != labels.shape or losses.ndim != 1:
            raise FerlabError(f"{losses.shape} losses and {labels.shape} labels do not match: give [N] and [N].")
        finite = np.isfinite(losses)
        losses[~finite] = losses[finite].max() if finite.any() else 0.0
        self.shared = self._separated(fit_two_gaussians(losses, self.tied)) if len(losses) >= self.minimum else None
        self.mixtures: dict[int, TwoGaussians | None] = {}
        self.status: dict[int, str] = {}
        self.clean_probability = np.ones(len(losses))
        for c in np.unique(labels).tolist():
            mine = labels == c
            mixture, status = self._class_mixture(losses[mine])
            self.mixtures[c], self.status[c] = mixture, status
            if mixture is not None:
                self.clean_probability[mine] = mixture.low_probability(losses[mine])
        return self

    def _class_mixture(self, losses: np.ndarray) -> tuple[TwoGaussians | None, str]:
        if self.scope == "shared":
            return self.shared, "shared" if self.shared else "not separated"
        if len(losses) < self.minimum:
            return self.shared, "shared" if self.shared else "too small"
        mixture = self._separated(fit_two_gaussians(losses, self.tied))
        if mixture is not None:
            return mixture, "split"
        return self.shared, "shared" if self.shared else "not separated"

    def _separated(self, mixture: TwoGaussians | None) -> TwoGaussians | None:
        return mixture if mixture is not None and mixture.separation >= self.separation else None
