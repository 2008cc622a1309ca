"""DACL, the deep attentive centre loss: features move to their class's centre, in the dimensions that matter.

Farzaneh and Qi, Facial Expression Recognition in the Wild via Deep Attentive Center Loss, WACV 2021.

    e_i = encoder(feature map);   A_id = softmax(two logits of e_i)_1        estimated for each dimension d
    L_sc = 1/(2N) sum_i sum_d A_id (x_id - c_{y_i d})^2                      sparse centre loss
    L = CE + lambda L_sc
    c_j <- c_j - rate * sum_{y_i = j} A_i (c_j - x_i) / (1 + n_j)            after each batch

Source: the loss and lambda = 0.01. Centres follow the rule of centre loss (Wen et al., ECCV 2016; its rate 0.5), with A
as the gradient has it. Ours: the encoder has 512 and 64 units on the stage-4 map, x is [L; G] of the shared backbone,
and the centres begin at 0. Left out: the encoder's third layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ferlab.comparators._parts import Backbone, Comparator
from ferlab.config import Config
from ferlab.data import FaceSet
from ferlab.training import Batch


class DACLNetwork(Backbone):
    by_face = (*Backbone.by_face, "weights")

    def __init__(self, config: Config, num_classes: int):
        super().__init__(config, num_classes)
        width = self.embedding_dimensions - config.local_dimensions
        side = -(-config.size // (2 * self.cell))  # of the stage-4 map
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(width * side * side, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True),
            nn.Linear(512, 64), nn.BatchNorm1d(64), nn.Tanh(),
        )
        self.attend = nn.Linear(64, 2 * self.embedding_dimensions)

    def weights(self, whole_map: Tensor) -> Tensor:
        """A, [B, D] in (0, 1), from the stage-4 map: higher = the dimension counts more."""
        return self.attend(self.encoder(whole_map)).float().unflatten(1, (-1, 2)).softmax(2)[..., 1]


class DACL(Comparator):
    network_class = DACLNetwork
    smallest_batch = 2
    centre_weight = 0.01  # lambda
    centre_rate = 0.5
    centres: Tensor

    def __init__(self, config: Config, train: FaceSet):
        super().__init__(config, train)
        self.register_buffer("centres", torch.zeros(0))

    def build_network(self) -> Any:
        network = super().build_network()
        self.centres = torch.zeros(self.num_classes, network.embedding_dimensions, device=self.given.device)
        return network

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        parts = network.parts(batch.images)
        x, given, weight = parts.vector.float(), self.given[batch.index], network.weights(parts.whole_map)
        terms = {
            "cross_entropy": self.cross_entropy(network.classifier(parts.vector), self.targets[batch.index]),
            "centre": self.centre_weight * sparse_centre_loss(x, self.centres[given], weight),
        }
        self.move_centres(x.detach(), given, weight.detach())
        return terms

    def move_centres(self, x: Tensor, given: Tensor, weight: Tensor) -> None:
        """A step of the centres towards the batch: x, weight [B, D], given int [B]."""
        pull = torch.zeros_like(self.centres).index_add_(0, given, weight * (self.centres[given] - x))
        count = torch.bincount(given, minlength=self.num_classes)[:, None]
        self.centres = self.centres - self.centre_rate * pull / (1 + count)


def sparse_centre_loss(x: Tensor, centres: Tensor, weight: Tensor) -> Tensor:
    """1/(2N) sum_i sum_d A_id (x_id - c_id)^2: features, their centres and weights [N, D]."""
    return 0.5 * (weight * (x - centres) ** 2).sum(1).mean()
