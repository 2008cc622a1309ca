"""RUL, relative uncertainty learning: features of two faces are mixed in proportion to their uncertainties.

Zhang, Wang and Deng, Relative Uncertainty Learning for Facial Expression Recognition, NeurIPS 2021.

    mu_i, log sigma_i^2 = two heads of the backbone's vector;   s_i = mean_d sigma_id^2
    m_ij = (s_i mu_i + s_j mu_j) / (s_i + s_j)                  j: a random partner in the batch
    L = CE(W m_ij, y_i) + CE(W m_ij, y_j)                       add-up loss

The face of the pair that is harder to recognise must get the greater share for both labels to be found in the mixture,
so that s learns to be its uncertainty. Inference uses W mu. Source: these formulas (the authors' code halves L, which
AdamW does not notice). Ours: heads of one linear layer and BatchNorm on [L; G] of the shared backbone, 64 dimensions.
Left out: the dropout in the authors' heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ferlab.comparators._parts import Backbone, Comparator
from ferlab.config import Config
from ferlab.model import Features
from ferlab.training import Batch


class RULNetwork(Backbone):
    by_face = (*Backbone.by_face, "gaussians")
    dimensions = 64

    def __init__(self, config: Config, num_classes: int):
        super().__init__(config, num_classes)
        self.mean, self.log_variance = (
            nn.Sequential(nn.Linear(self.embedding_dimensions, self.dimensions), nn.BatchNorm1d(self.dimensions))
            for _ in range(2)
        )
        self.embedding_dimensions = self.dimensions
        self.classifier = nn.Linear(self.dimensions, num_classes)

    def gaussians(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of each face's embedding, [B, dimensions] both."""
        return self.mean(vector), self.log_variance(vector)

    def forward(self, x: Tensor) -> Features:
        parts = self.parts(x)
        mu = self.mean(parts.vector)
        return self.features(parts, self.classifier(mu), mu)


class RUL(Comparator):
    network_class = RULNetwork
    smallest_batch = 2

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        mu, log_variance = network.gaussians(network.parts(batch.images).vector)
        uncertainty = log_variance.float().exp().mean(1, keepdim=True)  # s, [B, 1]
        partner = torch.randperm(len(mu), generator=generator).to(mu.device)
        logits = network.classifier(mix(mu, uncertainty, partner))
        targets = self.targets[batch.index]
        return {"cross_entropy": self.cross_entropy(logits, targets),
                "partner": self.cross_entropy(logits, targets[partner])}


def mix(mu: Tensor, uncertainty: Tensor, partner: Tensor) -> Tensor:
    """(s_i mu_i + s_j mu_j) / (s_i + s_j): mu [B, D], s [B, 1] > 0, j = partner [B] -> [B, D]."""
    weighted = uncertainty * mu
    return (weighted + weighted[partner]) / (uncertainty + uncertainty[partner])
