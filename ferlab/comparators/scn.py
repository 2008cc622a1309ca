"""SCN, the self-cure network: each face weighs itself, and the lightest are relabelled.

Wang, Peng, Yang, Lu and Qiao, Suppressing Uncertainties for Large-Scale Facial Expression Recognition, CVPR 2020.

    alpha_i = sigmoid(w^T x_i)                                              self-attention importance
    L_wce = -1/N sum_i log softmax(alpha_i W x_i)_{y_i}                     logit-weighted cross-entropy
    L_rr = max(0, delta1 - (mean alpha of the high group - mean alpha of the low group))   rank regularisation
    L = gamma L_rr + (1 - gamma) L_wce
    y'_i = argmax P if P_max - P_{y_i} > delta2, for the low group of the batch            relabelling

Source: these formulas; beta = 70 % in the high group, delta1 = 0.15, delta2 = 0.2, gamma = 0.5. Ours: x is [L; G] of
the shared backbone; relabelling begins after ``warm_up`` epochs, as DR-FER's does. (The paper's 10 are of a network
that was pre-trained on faces; from scratch most faces of rare classes were then given to big ones.) Left out: learning
delta1 (a variant of the paper). The authors' code relabels the whole batch; the paper, and this file, its low group
alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab import metrics
from ferlab.comparators._parts import Backbone, Comparator
from ferlab.config import Config
from ferlab.data import FaceSet
from ferlab.model import Features
from ferlab.training import Batch, Trainer


class SCNNetwork(Backbone):
    def __init__(self, config: Config, num_classes: int):
        super().__init__(config, num_classes)
        self.attend = nn.Linear(self.embedding_dimensions, 1)

    def weighted(self, x: Tensor) -> tuple[Features, Tensor]:
        """Features with logits alpha W x, and alpha [B] in (0, 1), higher = more certain."""
        parts = self.parts(x)
        alpha = self.attend(parts.vector).sigmoid()
        return self.features(parts, alpha * self.classifier(parts.vector)), alpha.squeeze(1)

    def forward(self, x: Tensor) -> Features:
        return self.weighted(x)[0]


class SCN(Comparator):
    """labels: int [N], as they are trained on now; buffers ``new_targets`` [N, C] likewise."""

    network_class = SCNNetwork
    smallest_batch = 2
    needs_warm_up = True
    high_share = 0.7  # beta
    rank_margin = 0.15  # delta1
    relabel_margin = 0.2  # delta2
    rank_weight = 0.5  # gamma
    labels: Tensor
    new_targets: Tensor

    def __init__(self, config: Config, train: FaceSet):
        super().__init__(config, train)
        self.register_buffer("labels", self.given.clone())
        self.register_buffer("new_targets", self.targets.clone())

    def frequencies(self) -> Tensor:
        return self.smoothed(self.new_targets.mean(0))

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        features, alpha = network.weighted(batch.images)
        high, low = self.groups(alpha.detach())
        terms = {
            "cross_entropy": (1 - self.rank_weight) * self.cross_entropy(
                features.logits, self.new_targets[batch.index]),
            "rank": self.rank_weight * F.relu(self.rank_margin - (alpha[high].mean() - alpha[low].mean())),
        }
        if self.epochs_done >= self.config.warm_up:
            self.relabel(features.logits.detach().float().softmax(1)[low], batch.index[low])
        return terms

    def groups(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Places in the batch of the high and the low group by importance [B], neither of them empty."""
        order = alpha.argsort(descending=True)
        count = min(max(1, round(self.high_share * len(alpha))), len(alpha) - 1)
        return order[:count], order[count:]

    def relabel(self, probability: Tensor, index: Tensor) -> None:
        """Give the rows ``index`` [M] their most probable class where it beats their label by the margin."""
        best, label = probability.max(1)
        own = probability.gather(1, self.labels[index, None]).squeeze(1)
        changed = best - own > self.relabel_margin
        self.labels[index[changed]] = label[changed]
        self.new_targets[index[changed]] = F.one_hot(label[changed], self.num_classes).float()

    def after_epoch(self, epoch: int, trainer: Trainer) -> dict:
        super().after_epoch(epoch, trainer)
        changed = (self.labels != self.given).cpu().numpy()
        truth = self.faces.truth
        quality = {} if truth is None else metrics.relabelling_quality(
            self.new_targets.cpu().numpy(), changed, self.faces.labels, truth, None)
        return {"relabelled": {"share": float(changed.mean())} | quality}
