"""RAN, region attention: the face and five crops of it, pooled by attention in two steps.

Wang, Peng, Yang, Meng and Qiao, Region Attention Networks for Pose and Occlusion Robust Facial Expression Recognition,
IEEE Transactions on Image Processing 29, 2020.

    F_0: vector of the face; F_1..F_5: of its crops, by the same backbone
    mu_i = sigmoid(F_i^T q0);   F_m = sum_i mu_i F_i / sum_i mu_i                               self-attention
    nu_i = sigmoid([F_i; F_m]^T q1);   P = sum_i mu_i nu_i [F_i; F_m] / sum_i mu_i nu_i         relation attention
    L = CE(W P, y) + max(0, alpha - (max_{i>0} mu_i - mu_0))                                    region-biased loss

Source: these formulas and fixed crops: two upper corners and the lower middle at 0.75 of the face, the centre at 0.9
and 0.85; alpha = 0.1, as in the authors' code, where a softmax over the regions brings the mu closer together before.
Ours: vectors are [L; G] of the shared backbone. Left out: random and landmark crops. A step costs six times plain's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab.comparators._parts import Backbone, Comparator
from ferlab.config import Config
from ferlab.model import Features
from ferlab.training import Batch

CROPS = ((0.0, 0.0, 0.75), (0.0, 0.25, 0.75), (0.25, 0.125, 0.75),  # top, left, side, as shares of the face
         (0.05, 0.05, 0.9), (0.075, 0.075, 0.85))


class RANNetwork(Backbone):
    def __init__(self, config: Config, num_classes: int):
        super().__init__(config, num_classes)
        self.self_attention = nn.Linear(self.embedding_dimensions, 1)  # q0
        self.relation_attention = nn.Linear(2 * self.embedding_dimensions, 1)  # q1
        self.embedding_dimensions *= 2
        self.classifier = nn.Linear(self.embedding_dimensions, num_classes)

    def attended(self, x: Tensor) -> tuple[Features, Tensor]:
        """Features of P, and mu [6, B] in (0, 1), the face's own first."""
        parts = self.parts(regions(x))
        vectors = parts.vector.unflatten(0, (1 + len(CROPS), len(x)))  # F, [6, B, D]
        mu = self.self_attention(vectors).sigmoid()
        middle = (mu * vectors).sum(0, keepdim=True) / mu.sum(0)  # F_m, [1, B, D]
        joined = torch.cat([vectors, middle.expand_as(vectors)], dim=2)  # [6, B, 2D]
        weight = mu * self.relation_attention(joined).sigmoid()  # mu nu
        pooled = (weight * joined).sum(0) / weight.sum(0)  # P, [B, 2D]
        face = parts._replace(attention=parts.attention[: len(x)])
        return self.features(face, self.classifier(pooled), pooled), mu.squeeze(2)

    def forward(self, x: Tensor) -> Features:
        return self.attended(x)[0]


class RAN(Comparator):
    network_class = RANNetwork
    margin = 0.1  # alpha
    region_weight = 1.0

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        features, mu = network.attended(batch.images)
        return {"cross_entropy": self.cross_entropy(features.logits, self.targets[batch.index]),
                "region": self.region_weight * region_biased_loss(mu, self.margin)}


def regions(x: Tensor) -> Tensor:
    """The faces [B, 3, size, size] and then their crops, enlarged to the same size: [6 B, 3, size, size]."""
    size = x.shape[-1]
    parts = [x]
    for top, left, side in CROPS:
        row, column, width = (round(share * size) for share in (top, left, side))
        part = x[:, :, row : row + width, column : column + width]
        parts.append(F.interpolate(part, (size, size), mode="bilinear", align_corners=False))
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def region_biased_loss(mu: Tensor, margin: float) -> Tensor:
    """max(0, margin - (the greatest attention of a crop - the face's)), mean over faces; mu [6, B], the face first."""
    return F.relu(margin - (mu[1:].max(0).values - mu[0])).mean()
