"""Distribution contrastive learning: a face belongs to the class whose (mean, std) it would shift least.

DR-FER: "when adding P into the embedding distribution of its true class, the shifts of (mu, sigma) should be minimal".
The softmax over negative shifts, the one effective count for all classes and the running estimates are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferlab.errors import FerlabError


def distribution_shift(embeddings: Tensor, mean: Tensor, std: Tensor, count: float) -> Tensor:
    """How far each class's (mean, std) would move if each embedding joined it: [B, C], >= 0, lower = nearer.

    With n = count members, mean mu and (population) standard deviation sigma of class c, and P the newcomer:

        mu'      = mu + (P - mu) / (n + 1)
        sigma'^2 = n / (n + 1) * (sigma^2 + (P - mu)^2 / (n + 1))
        shift    = ||mu' - mu||^2 + ||sigma' - sigma||^2

    embeddings: [B, D]; mean, std: [C, D]; count: one effective n for all classes, so that a big class, which any
    newcomer moves little, is not near to everybody. NumPy arrays are taken too. Raises FerlabError for a count that is
    not above 0, or shapes that do not match.
    """
    embeddings, mean, std = (torch.as_tensor(a) for a in (embeddings, mean, std))
    n, dtype = count, embeddings.dtype
    if not 0 < n < float("inf"):
        raise FerlabError(f"The count is {n}: give a number of members above 0.")
    if embeddings.ndim != 2 or mean.ndim != 2 or mean.shape != std.shape or embeddings.shape[1] != mean.shape[1]:
        raise FerlabError(f"Embeddings {tuple(embeddings.shape)}, means {tuple(mean.shape)} and standard deviations "
                          f"{tuple(std.shape)} do not match: give [B, D], [C, D] and [C, D].")
    if n > 100:  # sigma' - sigma would cancel in single precision
        embeddings, mean, std = embeddings.double(), mean.double(), std.double()
    # sigma' expands to a term linear in the squared offset, which a [B, C, D] tensor has to hold
    offset = embeddings[:, None, :] - mean  # [B, C, D]
    new_std = (n / (n + 1) * (std.square() + offset.square() / (n + 1))).clamp(min=1e-12).sqrt()
    return ((offset / (n + 1)).square().sum(-1) + (new_std - std).square().sum(-1)).to(dtype)


class ClassDistributions(nn.Module):
    """Running mean and standard deviation of each class's embeddings, from the clean samples of each batch.

    A class that no clean sample was seen of is left out of the loss (``seen`` is False).
    """

    mean: Tensor
    square: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, dimensions: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(num_classes, dimensions))
        self.register_buffer("square", torch.zeros(num_classes, dimensions))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @property
    def std(self) -> Tensor:
        """[C, D]."""
        return (self.square - self.mean.square()).clamp(min=1e-8).sqrt()

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor, weight: Tensor) -> None:
        """Move the statistics towards a batch: embeddings [B, D], labels int [B], weight [B] in [0, 1] (1 = clean)."""
        embeddings = embeddings.float()
        member = F.one_hot(labels, len(self.seen)).to(embeddings) * weight[:, None].to(embeddings)  # [B, C]
        total = member.sum(0)  # [C]
        present = total > 0
        share = member.T / total.clamp(min=1e-8)[:, None]  # [C, B]
        with torch.autocast(embeddings.device.type, enabled=False):  # bfloat16 would blur the spread
            mean, square = share @ embeddings, share @ embeddings.square()
        # a class with few samples in the batch moves less, so that one face does not stand for its class
        step = torch.where(self.seen, (1 - self.momentum) * total.clamp(max=4) / 4, torch.ones_like(total))
        step = (step * present)[:, None]
        self.mean += step * (mean - self.mean)
        self.square += step * (square - self.square)
        self.seen |= present


def distribution_contrastive_loss(
    embeddings: Tensor, labels: Tensor, weight: Tensor, classes: ClassDistributions, count: float, temperature: float
) -> Tensor:
    """Cross-entropy of softmax_c(-shift_c / temperature) against the label, averaged over clean samples; a scalar >= 0.

    embeddings: [B, D]; labels: int [B]; weight: [B] in [0, 1], 1 = clean. The shift is scaled by (n + 1)², so that
    of the mean alone, the offset's square, means the same for every count; that of the spread grows with the count
    where offsets are far above the spread. 0 where the batch has no clean sample of a class seen before.
    """
    shift = distribution_shift(embeddings.float(), classes.mean, classes.std, count) * (count + 1) ** 2
    logits = (-shift / temperature).masked_fill(~classes.seen, -1e4)
    weight = weight * classes.seen[labels]
    loss = F.cross_entropy(logits, labels, reduction="none")
    return (weight * loss).sum() / weight.sum().clamp(min=1)
