"""EAC, erasing attention consistency: a face and its mirror image must attend alike, so that no label is memorised.

Zhang, Wang, Ling and Deng, Learn from All: Erasing Attention Consistency for Noisy Label Facial Expression
Recognition, ECCV 2022.

    M_ic = sum_d W_cd F_id            class activation map; F: last feature map of face i; W has no gradient from it
    L_c = 1/(N C H W) sum_ic ||M_ic - flip(M'_ic)||^2            M': of the mirror image
    L = CE(the face, y) + lambda L_c                             the mirror image has no cross-entropy: imbalanced

Both are of the face with one part randomly erased. Source: these formulas, lambda = 5, the erased share of 2 to 25 % of
the area in half of the faces. Ours: it is a square, erased after the common augmentation; the maps are of the global
branch (stage 4), by the part of the classifier that reads G. Left out: nothing. A step costs twice
plain's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ferlab.comparators._parts import Comparator, Parts
from ferlab.training import Batch


class EAC(Comparator):
    consistency_weight = 5.0  # lambda
    erased_area = (0.02, 0.25)
    erased_share = 0.5

    def loss(self, network: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        images = erase(batch.images, self.erased_area, self.erased_share, generator)
        face, mirrored = network.parts(images), network.parts(images.flip(3))
        maps = (activation_maps(parts, network.classifier.weight.detach()) for parts in (face, mirrored))
        return {"cross_entropy": self.cross_entropy(network.classifier(face.vector), self.targets[batch.index]),
                "consistency": self.consistency_weight * flip_consistency(*maps)}


def activation_maps(parts: Parts, weight: Tensor) -> Tensor:
    """Class activation maps [B, C, h, w] of the stage-4 map by the classifier's weight [C, D], whose end reads G."""
    width = parts.whole_map.shape[1]
    return torch.einsum("cd,bdhw->bchw", weight[:, -width:], parts.whole_map).float()


def flip_consistency(maps: Tensor, mirrored: Tensor) -> Tensor:
    """Mean squared difference of maps [B, C, h, w] and the mirror image's, flipped back."""
    return ((maps - mirrored.flip(3)) ** 2).mean()


def erase(images: Tensor, area: tuple[float, float], share: float, generator: torch.Generator) -> Tensor:
    """Images [B, 3, size, size] of which a random share lost a random square, of ``area`` (least, most), set to 0."""
    count, size = len(images), images.shape[-1]
    draw = torch.rand(count, 4, generator=generator).to(images.device)
    side = (area[0] + draw[:, :1] * (area[1] - area[0])).sqrt() * (draw[:, 1:2] < share)  # share of the width, [B, 1]
    start = draw[:, 2:] * (1 - side)  # top and left, [B, 2]
    place = (torch.arange(size, device=images.device) + 0.5) / size
    row, column = ((place >= s[:, None]) & (place < s[:, None] + side) for s in start.T)  # bool [B, size]
    return images.masked_fill((row[:, :, None] & column[:, None, :])[:, None], 0.0)
