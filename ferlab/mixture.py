"""The clean probability of each sample: a two-component Gaussian mixture on the losses, one for each given class.

DR-FER fits the mixture class by class. Tied variances, the repair of untied ones, the guards against splitting by force
and the shared mixture are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ferlab.data import as_array
from ferlab.errors import FerlabError

GROUPS = 4096  # of losses that are summed at once
FAR_APART = 2.5  # Ashman's D from which two heaps need no better evidence than their distance


def evidence(kind: str, losses: np.ndarray, margin: np.ndarray | None = None,
             among: tuple[np.ndarray, np.ndarray | None] | None = None) -> np.ndarray:
    """The score to split by, [N], higher = more likely wrong, from the losses [N] and the retrieval margin [N].

    kind: "loss" (the source's), "root", its square root (ours), "margin", the negative one, or "both", the standardised
    sum of root and negative margin. Only the last two need the margin. among: losses [M] and margin [M] of the faces
    by whose mean and spread "both" is standardised, where these are others.

    The root keeps the order. But right labels' losses pile up at zero with a long tail, as no Gaussian does; under the
    root, which evens out their spread, they are a heap. Log-odds do that too, and draw the surest faces out to a heap
    of their own, which is then taken for the clean ones (seen on FER2013).
    """
    root = np.sqrt(np.maximum(losses, 0))
    if kind in ("loss", "root"):
        return losses if kind == "loss" else root
    assert margin is not None
    if kind == "margin":
        return -margin
    others, their_margin = (losses, margin) if among is None else among
    assert their_margin is not None
    pairs = (root, np.sqrt(np.maximum(others, 0))), (-margin, -their_margin)
    return np.sum([(s - of.mean()) / max(of.std(ddof=min(1, len(of) - 1)), 1e-9) for s, of in pairs], axis=0)


@dataclass(frozen=True)
class TwoGaussians:
    """Two Gaussians on a line: low and high mean, their standard deviations, and the weight of the low one."""

    low: float
    high: float
    low_std: float
    high_std: float
    low_weight: float

    def log_densities(self, values: np.ndarray) -> np.ndarray:
        """Log of weight times density of the low and the high component, [2, N]."""
        weight = np.array([[self.low_weight], [1 - self.low_weight]])
        mean, std = np.array([[self.low], [self.high]]), np.array([[self.low_std], [self.high_std]])
        return np.log(weight / (std * np.sqrt(2 * np.pi))) - 0.5 * ((values - mean) / std) ** 2

    def low_probability(self, values: np.ndarray) -> np.ndarray:
        """Posterior of the low component, [N] in [0, 1], never rising with the value.

        The log-odds is a parabola whose vertex lies outside [low, high]; values beyond the vertex, where a wide
        component would win back the far tail, count as the vertex itself.
        """
        low_std, high_std = self.low_std, self.high_std
        if abs(low_std - high_std) <= 1e-6 * low_std:  # as good as tied: the log-odds is a line
            high_std = low_std
        low_precision, high_precision = low_std**-2, high_std**-2
        difference = low_precision - high_precision
        if difference:
            vertex = self.low - (self.high - self.low) * high_precision / difference
            values = np.maximum(values, vertex) if difference > 0 else np.minimum(values, vertex)
        low, high = (values - self.low) / low_std, (values - self.high) / high_std
        log_odds = np.log(self.low_weight / (1 - self.low_weight) * high_std / low_std)
        log_odds = log_odds + 0.5 * (high - low) * (high + low)  # half the difference of their squares
        probability = 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))
        order = np.argsort(values, kind="stable")  # rounding, far out, must not break the order either
        probability[order] = np.minimum.accumulate(probability[order])
        return probability

    @property
    def separation(self) -> float:
        """Ashman's D, sqrt(2) |high - low| / sqrt(low_std² + high_std²); above about 2 the two are told apart."""
        return float(np.sqrt(2) * (self.high - self.low) / np.hypot(self.low_std, self.high_std))


def fit_two_gaussians(
    values: np.ndarray, tied: bool = True, iterations: int = 1000, tolerance: float = 1e-9
) -> TwoGaussians | None:
    """Maximum likelihood by expectation-maximisation, from a split at the mean; None where the values are all alike.

    values: [N], finite. tied: one variance for both components, so that the posterior is monotone by itself.
    Deterministic: sums run over sorted values, so that the order of the samples does not matter. Of more values than
    ``GROUPS``, so many groups of neighbours are summed, each with one posterior, that of its mean: what a step costs
    does not grow with the number of faces.
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    spread = values.std()
    if len(values) < 2 or spread < 1e-9 * max(1.0, abs(values.mean())):
        return None
    floor = (1e-3 * spread) ** 2
    low_share = values <= values.mean()
    groups = min(len(values), GROUPS)
    first = np.arange(groups) * len(values) // groups
    count = np.diff(first, append=len(values))
    centre = np.add.reduceat(values, first) / count
    within = np.add.reduceat((values - np.repeat(centre, count)) ** 2, first) / count  # variance
    values, low_share = centre, low_share[first].astype(np.float64)
    previous = -np.inf
    mixture = None
    for _ in range(iterations):
        share = np.stack([low_share, 1 - low_share]) * count  # [2, groups]
        weight = share.sum(1).clip(1e-9)
        mean = share @ values / weight
        variance = (share * ((values - mean[:, None]) ** 2 + within)).sum(1) / weight
        if tied:
            variance[:] = (variance * weight).sum() / weight.sum()
        std = np.sqrt(np.maximum(variance, floor))
        weight = (weight / weight.sum()).clip(1e-9, 1 - 1e-9)
        mixture = TwoGaussians(float(mean[0]), float(mean[1]), float(std[0]), float(std[1]), float(weight[0]))
        log_density = mixture.log_densities(values)
        total = np.logaddexp(*log_density)
        low_share = np.exp(log_density[0] - total)
        likelihood = (total * count).sum() / count.sum()
        if abs(likelihood - previous) < tolerance:
            break
        previous = likelihood
    assert mixture is not None
    if mixture.low > mixture.high:
        mixture = TwoGaussians(mixture.high, mixture.low, mixture.high_std, mixture.low_std, 1 - mixture.low_weight)
    return mixture


def _one_heap(losses: np.ndarray) -> float:
    """Mean log density of sorted losses, not all equal, under the better of two skewed heaps from the least on, a gamma
    and a Weibull distribution."""
    from scipy import stats

    losses = losses[np.linspace(0, len(losses) - 1, min(len(losses), 5_000)).astype(int)]
    spread = np.ptp(losses) * len(losses) / (len(losses) - 1)
    place = (losses - losses[0]) / spread + 0.5 / len(losses)  # in (0, 1)
    heaps = stats.gamma, stats.weibull_min
    return float(max(heap.logpdf(place, *heap.fit(place, floc=0)).mean() for heap in heaps) - np.log(spread))


class ClassMixture:
    """Clean probability from per-sample losses and given labels.

    scope: "class" fits a mixture to each given class's losses (the source's way); "shared" fits one to all of them.
    tied: both components share their variance. Untied ones are repaired to be monotone.
    minimum: fewer samples are not split.
    separation: nor are losses whose components, each with a variance of its own, are closer than this (Ashman's D), or
    which one heap explains as well, a Gaussian or, below a D of 2.5, a skewed one (by the Bayesian information
    criterion). Roots of losses of FER+ (majority rule, right by definition) had a D of 1.5 to 1.8 over three splits, of
    FER2013 1.9, of rendered faces with 30 % of annotators' noise 2.2 and more, of symmetric noise 2.6 and more: a rule
    of thumb. Of some hundred evenly spread losses, which have a D of 3, the lower half count as clean.
    In scope "class", the faces of a class that is not split all count as clean; so do all faces if the shared mixture
    does not separate.

    After ``fit``:
    clean_probability: float64 [N] in [0, 1], higher = cleaner, never rising with the loss within a class.
    mixtures: {class: TwoGaussians or None where it is not split}.
    status: {class: "split", "shared" (split by the shared mixture), "too small" or "not separated"}.
    """

    def __init__(
        self,
        scope: Literal["class", "shared"] = "class",
        tied: bool = True,
        minimum: int = 30,
        separation: float = 1.85,
    ):
        if scope not in ("class", "shared"):
            raise FerlabError(f'The mixture\'s scope is "{scope}": give "class" or "shared".')
        self.scope, self.tied, self.minimum, self.separation = scope, tied, minimum, separation

    def fit(self, losses, labels) -> ClassMixture:
        """Fit to losses [N] (any finite score that is higher for wrong labels) and given labels int [N].

        Losses of +inf or NaN count as the highest finite loss, -inf as the lowest. Raises FerlabError if the lengths
        differ, and for labels that are no whole numbers from 0 on.
        """
        losses, labels = self._checked(losses, labels)
        self.mixtures: dict[int, TwoGaussians | None] = {}
        self.status: dict[int, str] = {}
        shared = self._split(losses) if self.scope == "shared" else None
        self.shared = shared[0] if shared else None
        for c in np.unique(labels).tolist():
            mine = labels == c
            mixture, status = shared or self._split(losses[mine])
            self.mixtures[c], self.status[c] = mixture, status
        self.clean_probability = self.predict(losses, labels)
        return self

    def predict(self, losses, labels) -> np.ndarray:
        """Clean probability of other samples, float64 [N], from losses [N] and labels int [N]; 1 in unsplit classes,
        and in scope "class" in those that ``fit`` has not seen."""
        losses, labels = self._checked(losses, labels)
        clean_probability = np.ones(len(losses))
        for c in np.unique(labels).tolist():
            if (mixture := self.mixtures.get(c, self.shared)) is not None:
                clean_probability[labels == c] = mixture.low_probability(losses[labels == c])
        return clean_probability

    @staticmethod
    def _checked(losses, labels) -> tuple[np.ndarray, np.ndarray]:
        losses, labels = as_array(losses, np.float64), as_array(labels)
        if losses.shape != labels.shape or losses.ndim != 1:
            raise FerlabError(f"{losses.shape} losses and {labels.shape} labels do not match: give [N] and [N].")
        if labels.dtype.kind in "if" and len(labels) and (labels.min() < 0 or (labels % 1 != 0).any()):
            raise FerlabError("Labels must be whole numbers from 0 on: give the class of each loss.")
        finite = losses[np.isfinite(losses)]
        lowest, highest = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
        return np.nan_to_num(losses, nan=highest, posinf=highest, neginf=lowest), labels

    def _split(self, losses: np.ndarray) -> tuple[TwoGaussians | None, str]:
        """The mixture of some losses and the status; None where they are too few, or where two are not called for."""
        if len(losses) < self.minimum:
            return None, "too small"
        losses = np.sort(losses)
        mixture = fit_two_gaussians(losses, self.tied)
        free = fit_two_gaussians(losses, tied=False) if self.tied else mixture
        if mixture is None or free is None or free.separation < self.separation:
            return None, "not separated"
        two = np.logaddexp(*mixture.log_densities(losses)).mean()
        one = -0.5 * (np.log(2 * np.pi * losses.var()) + 1)
        for_each = 0.5 * np.log(len(losses)) / len(losses)  # more parameters that two heaps have than one
        if two - one < (2 if self.tied else 3) * for_each:
            return None, "not separated"
        if free.separation < FAR_APART:
            gain = np.logaddexp(*free.log_densities(losses)).mean() - _one_heap(losses)
            if gain < 2 * for_each:  # 5 parameters, and 3
                return None, "not separated"
        return mixture, "shared" if self.scope == "shared" else "split"
