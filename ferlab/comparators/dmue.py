"""DMUE: auxiliary branches, each blind to one class, tell what else a face could be; uncertainty weighs it.

She, Hu, Shi, Wang, Shen and Mei, Dive into Ambiguity: Latent Distribution Mining and Pairwise Uncertainty Estimation
for Facial Expression Recognition, CVPR 2021.

    branch j, of C: a (C-1)-way classifier trained by L_aux on the faces that are not of class j
    q_i = softmax(branch_{y_i}(x_i) / T)                        latent distribution over the other C-1 classes
    L_soft = mean over faces and classes of (p_ic - q_ic)^2     p_i: the target branch's softmax, 0 for y_i, as is q_i
    L_wce = CE(w_i W x_i, y_i)                                  w_i = sigmoid(MLP(pairwise similarities, label))
    L = up(e) (L_wce + 0.5 L_soft) + down(e) L_aux              e: epoch
    up(e) = exp(-(1 - e/b)^2) until epoch b, then 1;   down(e) = 1 until epoch b, then exp(-(1 - b/e)^2)

Source: branches, the L2 loss to the latent distribution and its weight, T = 1.2, w on the logits, the two ramps, b = 6
(as for AffectNet; 10 to 14 for FER+). Ours: branches are linear heads on the shared vector; the similarities are the
mean cosines with each class's faces in the batch, without a gradient to the vector; and logits are weighed only after
``warm_up`` epochs. (From scratch, w = 0 is the cheapest answer to a class that the network does not find yet, and then
it never learns it.) Left out: a last stage of the backbone for each branch, the similarity-preserving loss between the
branches.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab.comparators._parts import Backbone, Comparator
from ferlab.config import Config
from ferlab.data import FaceSet
from ferlab.training import Batch


class DMUENetwork(Backbone):
    def __init__(self, config: Config, num_classes: int):
        super().__init__(config, num_classes)
        self.branches = nn.Linear(self.embedding_dimensions, num_classes * (num_classes - 1))
        self.confidence = nn.Sequential(nn.Linear(2 * num_classes, 32), nn.PReLU(), nn.Linear(32, 1), nn.Sigmoid())


class DMUE(Comparator):
    network_class = DMUENetwork
    smallest_batch = 2
    needs_warm_up = True
    temperature = 1.2  # T
    latent_weight = 0.5
    ramp = 6  # b, epochs
    others: Tensor  # int [C, C-1]

    def __init__(self, config: Config, train: FaceSet):
        super().__init__(config, train)
        classes = torch.arange(self.num_classes)
        others = classes.repeat(self.num_classes, 1)[~torch.eye(self.num_classes, dtype=torch.bool)]
        self.register_buffer("others", others.view(self.num_classes, -1), persistent=False)  # row j: all classes but j

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        vector = network.parts(batch.images).vector
        given = self.given[batch.index]
        logits = network.classifier(vector)
        branches = network.branches(vector).float().view(-1, *self.others.shape)  # [B, C, C-1]
        similar = class_similarity(vector.detach().float(), given, self.num_classes)
        w = network.confidence(torch.cat([similar, F.one_hot(given, self.num_classes)], dim=1))  # [B, 1]

        own = branches[torch.arange(len(given), device=given.device), given].detach()
        latent = (own / self.temperature).softmax(1)  # q, [B, C-1]
        predicted = logits.float().softmax(1).gather(1, self.others[given])  # p, [B, C-1]; of y both are 0
        distance = ((predicted - latent) ** 2).sum(1) / self.num_classes
        up, down = ramps(int(self.epochs_done) + 1, self.ramp)
        if self.epochs_done >= self.config.warm_up:
            logits = w * logits
        return {
            "cross_entropy": up * self.cross_entropy(logits, self.targets[batch.index]),
            "latent": up * self.latent_weight * distance.mean(),
            "auxiliary": down * auxiliary_loss(branches, given),
        }


def auxiliary_loss(branches: Tensor, given: Tensor) -> Tensor:
    """Mean cross-entropy of every branch's logits [B, C, C-1] on the faces that are not of its class."""
    branch = torch.arange(branches.shape[1], device=given.device)[None]  # [1, C]
    given = given[:, None]
    place = (given - (given > branch).long()).clamp(max=branches.shape[2] - 1)  # of the label among the other classes
    losses = F.cross_entropy(branches.flatten(0, 1), place.flatten(), reduction="none").view_as(place)
    trained = (given != branch).float()
    return (losses * trained).sum() / trained.sum()


def class_similarity(vector: Tensor, given: Tensor, num_classes: int) -> Tensor:
    """Mean cosine [B, C] of each face with the batch's other faces of each class; 0 where there is none."""
    unit = F.normalize(vector, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(0)
    member = F.one_hot(given, num_classes).float()
    return cosine @ member / (member.sum(0) - member).clamp(min=1)


def ramps(epoch: int, ramp: int) -> tuple[float, float]:
    """Weights of the target branch, rising to 1 in epoch ``ramp``, and of the auxiliary ones, falling after it."""
    if epoch <= ramp:
        return math.exp(-((1 - epoch / ramp) ** 2)), 1.0
    return 1.0, math.exp(-((1 - ramp / epoch) ** 2))
