"""DMUE: auxiliary branches, each blind to one class, tell what else a face could be; uncertainty weighs it.

She, Hu, Shi, Wang, Shen and Mei, Dive into Ambiguity: Latent Distribution Mining and Pairwise Uncertainty Estimation
for Facial Expression Recognition, CVPR 2021. Details as in its authors' code (github.com/JDAI-CV/FaceX-Zoo).

    branch j, of C: a stage 4 and a (C-1)-way classifier of its own, trained by L_aux on the faces not of class j
    q_i = softmax(branch_{y_i}(x_i) / T)                        latent distribution over the other C-1 classes
    L_soft = mean over faces and classes of (p_ic - q_ic)^2     p_i: the target branch's softmax, 0 for y_i, as is q_i
    L_wce = CE(w_i W x_i, y_i)                                  w_i = sigmoid(MLP(mean cosine with each class, y_i))
    L_sp = mean over branches j and pairs of faces not of class j of (S - S_j)^2    S: the target branch's Gram matrix
                                                 of vectors, S_j: the branch's of logits, rows of these faces normalised
    L = up(e) (L_wce + 0.5 L_soft + 1000 L_sp) + down(e) L_aux  e: epoch
    up(e) = exp(-(1 - e/b)^2) until epoch b, then 1;   down(e) = 1 until epoch b, then exp(-(1 - b/e)^2)

Source: all of this, T = 1.2, normalised vectors before the classifiers, b = 6 (as for AffectNet; 10 to 14 for FER+);
the ramps are the paper's (the authors' code has exp(-5 (1 - e/b)^2), e from 0). Ours: branches share the local vector;
faces of class j pass branch j, too, which has batch statistics of its own; L_aux is the mean over all pairs of branch
and face, not over the branches' means; a class that a batch lacks has similarity 0; and logits are weighed, and L_sp
begins, only after ``warm_up`` epochs. (From scratch, w = 0 is the cheapest answer to a class that the network does not
find yet, and then it never learns it; and vectors that are all alike are the cheapest answer to L_sp.) Left out:
dropout, and batches that hold every class equally often. On a CPU a step costs about three times plain's.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab.comparators._parts import Backbone, Comparator
from ferlab.config import Config
from ferlab.data import FaceSet
from ferlab.errors import FerlabError
from ferlab.model import Features
from ferlab.training import Batch


class DMUENetwork(Backbone):
    by_face = ("parts", "branches", "reconstruct")

    def __init__(self, config: Config, num_classes: int):
        super().__init__(config, num_classes)
        width = self.embedding_dimensions
        self.neck = nn.BatchNorm1d(width)
        self.stages = nn.ModuleList(copy.deepcopy(self.stage4) for _ in range(num_classes))
        self.heads = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, num_classes - 1))
                                   for _ in range(num_classes))
        self.confidence = nn.Sequential(
            nn.Linear(2 * num_classes, num_classes), nn.PReLU(), nn.Linear(num_classes, 1), nn.Sigmoid())

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The target branch's vector before and after its normalisation, [B, D] each; the others' logits [B, C, C-1].
        """
        shared = self.trunk(x)
        local = self.local(shared)[0]
        vector, *others = (torch.cat([local, stage(shared).mean((2, 3))], dim=1)
                           for stage in (self.stage4, *self.stages))
        logits = [head(other) for head, other in zip(self.heads, others, strict=True)]
        return vector, self.neck(vector), torch.stack(logits, dim=1)

    def forward(self, x: Tensor) -> Features:
        parts = self.parts(x)
        vector = self.neck(parts.vector)
        return self.features(parts, self.classifier(vector), vector)


class DMUE(Comparator):
    network_class = DMUENetwork
    smallest_batch = 2
    needs_warm_up = True
    temperature = 1.2  # T
    latent_weight = 0.5
    similarity_weight = 1000.0
    ramp = 6  # b, epochs
    others: Tensor  # int [C, C-1]

    def __init__(self, config: Config, train: FaceSet):
        super().__init__(config, train)
        if self.num_classes < 2:
            raise FerlabError("dmue asks each branch for the other classes: give faces of two classes or more.")
        classes = torch.arange(self.num_classes)
        others = classes.repeat(self.num_classes, 1)[~torch.eye(self.num_classes, dtype=torch.bool)]
        self.register_buffer("others", others.view(self.num_classes, -1), persistent=False)  # row j: all classes but j

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        vector, normalised, branches = (each.float() for each in network.branches(batch.images))
        given = self.given[batch.index]
        logits = network.classifier(normalised)
        with torch.autocast(vector.device.type, enabled=False):  # bfloat16 cannot tell similar cosines apart
            similar = class_similarity(vector, given, self.num_classes)
            similarity = similarity_loss(normalised, branches, given)
        w = network.confidence(torch.cat([similar, F.one_hot(given, self.num_classes)], dim=1))  # [B, 1]

        own = branches[torch.arange(len(given), device=given.device), given].detach()
        latent = (own / self.temperature).softmax(1)  # q, [B, C-1]
        predicted = logits.float().softmax(1).gather(1, self.others[given])  # p, [B, C-1]; of y both are 0
        distance = ((predicted - latent) ** 2).sum(1) / self.num_classes
        up, down = ramps(int(self.epochs_done) + 1, self.ramp)
        warm = int(self.epochs_done >= self.config.warm_up)
        if warm:
            logits = w * logits
        return {
            "cross_entropy": up * self.cross_entropy(logits, self.targets[batch.index]),
            "latent": up * self.latent_weight * distance.mean(),
            "similarity": warm * up * self.similarity_weight * similarity,
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


def similarity_loss(vector: Tensor, branches: Tensor, given: Tensor) -> Tensor:
    """Mean over the branches of the mean squared difference between two similarities of the faces not of its class:
    of vectors [B, D] and of the branch's logits [B, C, C-1], both Gram matrices with rows of length 1."""
    seen = given != torch.arange(branches.shape[1], device=given.device)[:, None]  # [C, B]
    pairs = (seen[:, :, None] & seen[:, None, :]).float()
    target, branch = (F.normalize(gram * pairs, dim=2)
                      for gram in (vector @ vector.T, torch.einsum("bck,dck->cbd", branches, branches)))
    return (((target - branch) ** 2).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).mean()


def class_similarity(vector: Tensor, given: Tensor, num_classes: int) -> Tensor:
    """Mean cosine [B, C] of each face with the batch's faces of each class, a face's least one put at 0 and its largest
    at 1; 0 where there is none of a class."""
    unit = F.normalize(vector, dim=1)
    member = F.one_hot(given, num_classes).float()
    present = member.any(0)
    mean = unit @ unit.T @ member / member.sum(0).clamp(min=1)
    least = torch.where(present, mean, torch.inf).amin(1, keepdim=True)
    most = torch.where(present, mean, -torch.inf).amax(1, keepdim=True)
    return torch.where(present, (mean - least) / (most - least).clamp(min=1e-6), 0)


def ramps(epoch: int, ramp: int) -> tuple[float, float]:
    """Weights of the target branch, rising to 1 in epoch ``ramp``, and of the auxiliary ones, falling after it."""
    if epoch <= ramp:
        return math.exp(-((1 - epoch / ramp) ** 2)), 1.0
    return 1.0, math.exp(-((1 - ramp / epoch) ** 2))
