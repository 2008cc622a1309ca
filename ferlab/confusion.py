"""What a given label is worth, by an estimate of who is taken for whom: the confusion of the labels.

Under uniform noise a given label that the face contradicts is still a strong hint at itself, as any one wrong label is
rare; among raters who take fear for surprise a third of the time, "surprise" hardly speaks against fear. Dawid and
Skene (Applied Statistics 28, 1979) estimate such confusions from several raters of each item; here there is one rater,
and the face itself, as a trained network sees it, is the other witness (ours).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ferlab.errors import FerlabError


def label_posterior(
    opinion: Tensor | np.ndarray, given: Tensor | np.ndarray, temperature: float = 1.0, aligned: bool = False,
    iterations: int = 100, tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Posterior of the true class of each face, and the confusion of the labels, by expectation-maximisation.

    posterior_ic is proportional to opinion_ic confusion_c,y_i, and confusion_cg to the sum of the posterior_ic of the
    faces that were given g, plus 1 (Laplace's prior); each row sums to 1. The posterior is tempered at the end.

    opinion: [N, C], not negative: how much each face looks like each class, without a look at its given label; rows
    need not sum to 1. given: int [N] in [0, C). Returns float64 [N, C] and [C, C], P(given | true).
    aligned: weigh the classes' opinions so that all classes are labelled rightly equally often (ours); the confusion's
    rows are then multiplied by the weights, at most 1. For a network leans towards what it sees often, which then seems
    to be labelled wrongly more than the rest. Not for annotators who know some classes much better than others.
    Raises FerlabError if they do not match.
    """
    opinion, given = torch.as_tensor(opinion), torch.as_tensor(given).long()
    if opinion.ndim != 2 or len(opinion) != len(given):
        raise FerlabError(f"opinion {tuple(opinion.shape)} and {len(given)} labels do not match: give [N, C] and [N].")
    classes = opinion.shape[1]
    labels = F.one_hot(given, classes).double()
    confusion = labels.new_full((classes, classes), 1 / classes)  # of labels that say nothing
    weight = labels.new_ones(classes)
    for _ in range(iterations):
        counts = posterior_under(confusion, opinion, given).T @ labels
        if aligned:
            right = counts.diagonal()
            rate = right.sum() / len(given)
            of_class = (right + rate) / (counts.sum(1) + 1)  # as if each had one label more, as right as everybody's
            weight = weight * (of_class / rate).sqrt()
            weight = weight / weight.max()
        former, confusion = confusion, weight[:, None] * (counts + 1) / (counts + 1).sum(1, keepdim=True)
        if (confusion - former).abs().max() < tolerance:
            break
    return posterior_under(confusion, opinion, given, temperature), confusion


def posterior_under(confusion: Tensor, opinion: Tensor, given: Tensor, temperature: float = 1.0) -> Tensor:
    """Posterior of the true class under a known confusion [C, C], P(given | true): [N, C], rows sum to 1.

    temperature: above 1 for an opinion that is too sure of itself; the posterior is raised to 1 / temperature.
    """
    weight = opinion.double().clamp(min=1e-12) * confusion.T[given]
    return (weight.log() / temperature).softmax(1)  # w^(1/T), normalised, without underflow
