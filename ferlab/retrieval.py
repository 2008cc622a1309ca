"""Retrieval relabelling: a suspected face asks the clean gallery which class it resembles.

DR-FER: the average precision (AP) of the retrieval, with gallery items of class c as the relevant ones, is the face's
similarity to c; the normalised APs are its new soft label. The chance-corrected and the class-balanced AP are ours:
plain AP has the share of the class as its chance level, so big classes win on poor embeddings.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ferlab.errors import FerlabError


def class_average_precision(
    queries: Tensor | np.ndarray,
    gallery: Tensor | np.ndarray,
    gallery_labels: Tensor | np.ndarray,
    num_classes: int,
    top_k: int | None = None,
    balanced: bool = False,
    chance_corrected: bool = False,
    exclude: Tensor | np.ndarray | None = None,
    chunk: int = 256,
) -> Tensor:
    """Average precision of every class in the ranking of the gallery by similarity to each query: [Q, C] in [0, 1].

    Higher = the class ranks higher. Similarity is the inner product: give l2-normalised rows for the cosine. Equally
    similar items form one rank, as in scikit-learn's ``average_precision_score``, so their order does not matter. A
    class without gallery items has AP 0.

    queries: [Q, D]; gallery: [N, D]; gallery_labels: int [N] in [0, num_classes).
    top_k: look at the first k ranks only (ties with the k-th included); a class's AP is then over min(n_c, k) items.
    balanced: every item weighs 1 / n_c in the precision, so that each class has the same chance level, 1 / C.
    chance_corrected: (AP - chance) / (1 - chance), chance = n_c / N (1 / C if balanced); then it can be negative.
    exclude: int [Q], the gallery row that is the query itself and must not answer, -1 for none.
    chunk: queries ranked at a time; memory grows with chunk x N, not Q x N.

    Raises FerlabError for an empty gallery, labels out of range, or embeddings that are not finite or do not match.
    """
    queries, gallery = (torch.as_tensor(a) for a in (queries, gallery))
    labels = torch.as_tensor(gallery_labels, device=gallery.device).long()
    _check(queries, gallery, labels, num_classes)
    counts = torch.bincount(labels, minlength=num_classes)  # [C]
    excluded = None if exclude is None else torch.as_tensor(exclude, device=gallery.device).long()
    parts = []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ gallery.T  # [b, N]
        members = counts.expand(len(similarity), -1)  # [b, C]
        if excluded is not None:
            own = excluded[start : start + chunk]
            row = (own >= 0).nonzero().squeeze(1)
            similarity[row, own[row]] = -torch.inf
            members = members.clone()
            members[row, labels[own[row]]] -= 1
        parts.append(_ranked_average_precision(similarity, labels, members, top_k, balanced))
    precision = torch.cat(parts) if parts else gallery.new_zeros(0, num_classes)
    if chance_corrected:
        present = counts > 0
        chance = present / present.sum() if balanced else counts / counts.sum()
        precision = (precision - chance) / (1 - chance).clamp(min=1e-12)
    return precision


def _ranked_average_precision(
    similarity: Tensor, labels: Tensor, members: Tensor, top_k: int | None, balanced: bool
) -> Tensor:
    """AP [b, C] of each class for similarities [b, N]; an item of similarity -inf does not take part."""
    ordered, order = similarity.sort(dim=1, descending=True)
    if top_k is not None and top_k < ordered.shape[1]:
        taking_part = ordered >= ordered[:, top_k - 1 : top_k]
        width = int(taking_part.sum(1).max())
        ordered, order, taking_part = ordered[:, :width], order[:, :width], taking_part[:, :width]
    else:
        taking_part = ordered > -torch.inf
    ranked = labels[order]  # [b, M]
    last = torch.ones_like(taking_part)
    last[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    tied = not bool(last.all())
    if tied:  # the last position of each item's group of equals
        position = torch.arange(last.shape[1], device=last.device).expand_as(ranked)
        last_position = torch.where(last, position, last.shape[1])
        group_end = last_position.flip(1).cummin(1).values.flip(1)

    def up_to_rank(value: Tensor) -> Tensor:
        total = value.cumsum(1, dtype=torch.float64 if balanced else torch.float32)
        return total.gather(1, group_end) if tied else total

    weight = 1 / members.clamp(min=1).double() if balanced else torch.ones_like(members, dtype=torch.float32)
    item_weight = weight.gather(1, ranked) * taking_part
    retrieved = up_to_rank(item_weight).clamp(min=1e-12)
    precision = torch.zeros(members.shape, dtype=torch.float64, device=similarity.device)
    for c in range(members.shape[1]):
        relevant = (ranked == c) & taking_part
        hits = up_to_rank(relevant) * weight[:, c : c + 1]
        precision[:, c] = (hits / retrieved * relevant).sum(1, dtype=torch.float64)
    depth = members.clamp(max=top_k) if top_k is not None else members
    return (precision / depth.clamp(min=1)).clamp(max=1).to(similarity.dtype)


def _check(queries: Tensor, gallery: Tensor, labels: Tensor, num_classes: int) -> None:
    if not len(gallery):
        raise FerlabError("The gallery is empty: no face was found clean; lower the threshold or split later.")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or len(labels) != len(gallery):
        raise FerlabError(
            f"Queries {tuple(queries.shape)}, gallery {tuple(gallery.shape)} and {len(labels)} labels do not match: "
            "give [Q, D], [N, D] and [N]."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise FerlabError(f"Gallery labels span {int(labels.min())}..{int(labels.max())}: give 0..{num_classes - 1}.")
    if not (bool(torch.isfinite(queries).all()) and bool(torch.isfinite(gallery).all())):
        raise FerlabError("An embedding is not finite: the training has diverged; lower the learning rate.")


def relabel(average_precision: Tensor | np.ndarray, sharpness: float = 1.0) -> Tensor:
    """New soft labels [Q, C], rows sum to 1: the APs, normalised.

    The poster's example: APs in the proportion 3 : 2 : 0 become [0.6, 0.4, 0.0].

    average_precision: [Q, C]; negative values (chance-corrected APs) count as 0; a row without a positive AP becomes
    uniform. sharpness: the APs are raised to this power first; 1 is the source's, higher = more decided (ours).
    """
    similarity = torch.as_tensor(average_precision).clamp(min=0) ** sharpness
    total = similarity.sum(1, keepdim=True)
    uniform = torch.full_like(similarity, 1 / similarity.shape[1])
    return torch.where(total > 0, similarity / total.clamp(min=1e-30), uniform)


def retrieval_margin(average_precision: Tensor, given: Tensor) -> Tensor:
    """AP of the given class minus the best other AP, [Q]; lower = more likely mislabelled (ours)."""
    own = average_precision.gather(1, given[:, None]).squeeze(1)
    others = average_precision.scatter(1, given[:, None], -torch.inf)
    return own - others.max(1).values


def nearest_neighbours(queries: Tensor, gallery: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Rows of the k most similar gallery items, most similar first: int [Q, min(k, N)]."""
    k = min(k, len(gallery))
    parts = [(part @ gallery.T).topk(k, dim=1).indices for part in queries.split(chunk)]
    return torch.cat(parts) if parts else torch.zeros(0, k, dtype=torch.long)
