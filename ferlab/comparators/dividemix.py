"""DivideMix: two networks; each divides the faces into clean and noisy for the other, and learns by MixMatch.

Li, Socher and Hoi, DivideMix: Learning with Noisy Labels as Semi-supervised Learning, ICLR 2020.

    warm-up: cross-entropy on all labels; then before each epoch, for each network,
    w_i = posterior of the low mean of two Gaussians on the other network's losses of all classes    co-divide
    labelled (w_i > 0.5):  t_i = sharpen(w_i y_i + (1 - w_i) mean of the network's guesses)          co-refine
    unlabelled:            t_i = sharpen(mean of both networks' guesses)                             co-guess
    sharpen(p)_c = p_c^(1/T) / sum_k p_k^(1/T)
    x'_i = l x_i + (1 - l) x_j,  t'_i likewise,  l = max(b, 1 - b),  b ~ Beta(4, 4)                  mixing
    L = CE(labelled) + lambda_u MSE(unlabelled) + sum_c pi_c log(pi_c / mean_i p_ic),  pi = 1/C

Source: these formulas, T = 0.5, Beta(4, 4), the threshold 0.5, the Gaussians' settings (ten steps of EM on losses
scaled to [0, 1], no variance below 0.0005), lambda_u = 0 (the paper's choice on CIFAR-10 for 20 % symmetric noise and
for asymmetric noise, and for labels as people gave them; else 25 to 150), the mean of both networks as prediction.
Ours: both networks take every step together, each guessing as it trains (the authors' code trains one an epoch while
the other is fixed); the warm-up takes ``warm_up`` epochs, as DR-FER's does (after the paper's 10 the hard classes of
rendered faces, all in doubt, were lost); guesses are of the augmented face and its mirror image; a batch holds labelled
and unlabelled faces as they come; the losses are of the averaged weights. Left out: training on both views of a face,
batches of equal parts, the confidence penalty of the paper's warm-up under asymmetric noise. A step costs about three
times plain's, and there are twice as many weights.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from ferlab import metrics
from ferlab.comparators._parts import Comparator
from ferlab.config import Config
from ferlab.data import FaceSet
from ferlab.errors import FerlabError
from ferlab.masking import batch_statistics_untouched
from ferlab.model import DRFER, Features
from ferlab.training import Batch, Trainer, collect


class TwinNetwork(nn.Module):
    """Two networks that begin differently; logits are their mean, the embedding is of both."""

    def __init__(self, config: Config, num_classes: int):
        super().__init__()
        self.size, self.num_classes = config.size, num_classes
        twins = [DRFER(config, num_classes) for _ in range(2)]
        self.twins = nn.ModuleList(twins)
        self.embedding_dimensions = sum(twin.embedding_dimensions for twin in twins)

    def forward(self, x: Tensor) -> Features:
        one, two = (twin(x) for twin in self.twins)
        embedding, attention = (torch.cat(pair, dim=1) for pair in zip(one[1:], two[1:], strict=True))
        return Features((one.logits + two.logits) / 2, F.normalize(embedding, dim=1), attention)


class DivideMix(Comparator):
    """clean_probability: [2, N], row k by network k's losses, for the other one to use; 1 during the warm-up."""

    network_class = TwinNetwork
    needs_warm_up = True
    threshold = 0.5
    temperature = 0.5  # T
    beta = 4.0
    unlabelled_weight = 0.0  # lambda_u
    rise = 16  # epochs after the warm-up in which lambda_u rises from 0
    clean_probability: Tensor

    def __init__(self, config: Config, train: FaceSet):
        super().__init__(config, train)
        if not (self.temperature > 0 and self.beta > 0):
            raise FerlabError("own.temperature and own.beta of dividemix have to be above 0.")
        self.register_buffer("clean_probability", torch.ones(2, len(train)))

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        targets = self.targets[batch.index]
        if self.epochs_done < self.config.warm_up:
            losses = [self.cross_entropy(twin(batch.images).logits, targets) for twin in network.twins]
            return {"cross_entropy": torch.stack(losses).sum()}
        with torch.no_grad(), batch_statistics_untouched(network):
            guesses = [torch.stack([twin(view).logits.float().softmax(1) for view in
                                    (batch.images, batch.images.flip(3))]).mean(0) for twin in network.twins]
        risen = (int(self.epochs_done) - self.config.warm_up) / self.rise if self.rise > 0 else 1.0
        unlabelled_weight = self.unlabelled_weight * min(1.0, risen)
        totals = []
        for k, twin in enumerate(network.twins):
            w = self.clean_probability[1 - k, batch.index]
            labelled = (w > self.threshold).float()
            soft = refine(w, labelled, targets, guesses[k], (guesses[0] + guesses[1]) / 2, self.temperature)
            images, mixed = mix(batch.images, soft, self.beta, generator)
            log_p = twin(images).logits.float().log_softmax(1)
            totals.append(torch.stack([
                mean_of(-(mixed * log_p).sum(1), labelled),
                unlabelled_weight * mean_of(((log_p.exp() - mixed) ** 2).mean(1), 1 - labelled),
                class_balance(log_p.exp().mean(0)),
            ]))
        return dict(zip(("labelled", "unlabelled", "balance"), torch.stack(totals).sum(0), strict=True))

    def after_epoch(self, epoch: int, trainer: Trainer) -> dict:
        super().after_epoch(epoch, trainer)
        if epoch < self.config.warm_up or epoch >= self.config.epochs:
            return {}
        average: Any = trainer.average
        for k, twin in enumerate(average.twins):
            logits = collect(twin, self.faces, device=trainer.device, precision=trainer.precision).logits
            losses = F.cross_entropy(logits, self.given, reduction="none").cpu().numpy().astype(np.float64)
            self.clean_probability[k] = torch.from_numpy(divide(losses, self.config.seed)).float()
        given, truth, w = self.faces.labels, self.faces.truth, self.clean_probability.mean(0).cpu().numpy()
        if truth is None:
            return {}
        return {"split": metrics.by_class(
            lambda rows: metrics.split_quality(w[rows], given[rows], truth[rows], self.threshold), given,
            self.faces.classes)}


def divide(losses: np.ndarray, seed: int = 0) -> np.ndarray:
    """Posterior [N] of the Gaussian with the lower mean, of losses [N] scaled to [0, 1]; 1 of a single one."""
    if len(losses) < 2:
        return np.ones(len(losses))
    scaled = (losses - losses.min()) / max(losses.max() - losses.min(), 1e-12)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten steps are all it gets
        mixture.fit(scaled[:, None])
    return mixture.predict_proba(scaled[:, None])[:, mixture.means_.argmin()]


def refine(w: Tensor, labelled: Tensor, targets: Tensor, own: Tensor, both: Tensor, temperature: float) -> Tensor:
    """Sharpened soft labels [B, C]: co-refined where labelled (1, else 0), co-guessed elsewhere; w, labelled [B]."""
    refined = w[:, None] * targets + (1 - w[:, None]) * own
    return sharpen(torch.where(labelled[:, None] > 0, refined, both), temperature)


def sharpen(probability: Tensor, temperature: float) -> Tensor:
    """p^(1/T), normalised: rows [B, C]; T below 1 makes them more decided."""
    return (probability.log() / temperature).softmax(1)


def mix(images: Tensor, targets: Tensor, beta: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every face and its soft label mixed with another of the batch, its own share being at least a half."""
    draw = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator))).beta(beta, beta)
    own = max(draw, 1 - draw)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    return own * images + (1 - own) * images[partner], own * targets + (1 - own) * targets[partner]


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the values [B] where ``chosen`` [B] is 1; 0 where none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def class_balance(probability: Tensor) -> Tensor:
    """sum_c pi_c log(pi_c / p_c) with pi = 1/C: 0 for uniform mean probabilities [C], else positive."""
    return -(probability.clamp(min=1e-8) * len(probability)).log().mean()
