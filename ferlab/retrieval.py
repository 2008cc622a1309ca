"""Retrieval relabelling: a suspected face asks the clean gallery which class it resembles.

DR-FER: the average precision (AP) of the retrieval, with gallery items of class c as the relevant ones, is the face's
similarity to c; the normalised APs are its new soft label. The chance-corrected and the class-balanced AP are ours:
plain AP has the share of the class as its chance level, so big classes win on poor embeddings.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ferlab.compiled import compiled
from ferlab.config import KindOfAP
from ferlab.errors import FerlabError

# What each kind of average precision that the settings know is to ``class_average_precision``.
KINDS: dict[KindOfAP, dict[str, Any]] = {
    "plain": {}, "chance": {"chance_corrected": True}, "balanced": {"balanced": True}}


@torch.no_grad()
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
    similar items, equal rows of the gallery among them, form one rank, as in scikit-learn's
    ``average_precision_score``, so their order does not matter. A class without gallery items has AP 0.

    queries: [Q, D]; gallery: [N, D]; gallery_labels: int [N] in [0, num_classes).
    top_k: look at the first k ranks only (ties with the k-th included); a class's AP is then over min(n_c, k) items.
    balanced (ours): every item weighs 1 / n_c in the precision, so that classes of many items have the same chance
    level, about 1 / C; of a few items, each of which weighs much at its own rank, the mean AP of random rankings is
    higher. That holds for the whole ranking: in the first k ranks a big class has more of its items by chance, too.
    chance_corrected (ours): (AP - chance) / (1 - chance), chance = n_c / N, if balanced 1 / C; with top_k about the
    mean AP of random rankings. It can be negative.
    exclude: int [Q], the gallery row that is the query itself and must not answer, -1 for none.
    chunk: queries ranked at a time, by all of torch's threads together; memory grows with chunk x N, not Q x N.

    Raises FerlabError for an empty gallery, labels out of range, or embeddings that are not finite or do not match.
    """
    queries, gallery = (torch.as_tensor(a) for a in (queries, gallery))
    if not queries.dtype == gallery.dtype == torch.float64:
        queries, gallery = queries.float(), gallery.float()
    labels = torch.as_tensor(gallery_labels, device=gallery.device).long()
    _check(queries, gallery, labels, num_classes, top_k)
    counts = torch.bincount(labels, minlength=num_classes)  # [C]
    repeat, original = _repeats(gallery)
    excluded = None if exclude is None else torch.as_tensor(exclude, device=gallery.device).long()

    on_cpu = gallery.device.type == "cpu"
    workers = min(torch.get_num_threads(), chunk) if on_cpu else 1
    if not on_cpu:  # ranking takes some 70 bytes for each similarity
        chunk = max(1, min(chunk, 20_000_000 // len(gallery)))

    def some(start: int, similarity: Tensor) -> Tensor:  # of the queries from ``start`` on, [b, N]
        members = counts.repeat(len(similarity), 1)  # [b, C]
        if excluded is not None:
            own = excluded[start : start + len(similarity)]
            row = (own >= 0).nonzero().squeeze(1)
            similarity[row, own[row]] = -torch.inf
            members[row, labels[own[row]]] -= 1
        depth = members.sum(1, keepdim=True).clamp(max=top_k or len(gallery))  # ranks to look at, [b, 1]
        weight = torch.ones_like(members, dtype=torch.float64)
        if balanced:
            weight /= members.clamp(min=1)
        rank = _sum_of_precision_numba if on_cpu else _sum_of_precision_torch
        best = torch.minimum(members, depth).clamp(min=1)  # relevant items that the ranks can hold
        precision = (rank(similarity, labels, weight, depth) / best).clamp(max=1)
        if chance_corrected:
            precision = _chance_corrected(precision, members, weight, depth, top_k is not None)
        return precision.to(gallery.dtype)

    parts = [gallery.new_zeros(0, num_classes)]
    with ThreadPoolExecutor(workers) as threads:
        side_by_side = map if workers == 1 else threads.map  # a thread of its own would have to find the GPU anew
        for start in range(0, len(queries), chunk):
            similarity = queries[start : start + chunk] @ gallery.T  # by all threads of PyTorch; then one a block,
            similarity[:, repeat] = similarity[:, original]
            share = -(-len(similarity) // workers)  # for sorting lets go of the interpreter
            parts += side_by_side(some, range(start, len(queries), share), similarity.split(share))
    return torch.cat(parts)


def _repeats(gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a gallery [N, D] that are equal to an earlier one, int [M], and the first such, int [M].

    Their similarities have to be equal, too, and products are rounded as the place in the matrix has it.
    """
    some = gallery if gallery.numel() < 2**22 else gallery[:, :: -(-gallery.shape[1] // 16)]  # enough to tell apart
    bits = (some + 0.0).contiguous().view(torch.int64 if some.dtype == torch.float64 else torch.int32)  # no -0.0
    weight = torch.randint(2**62, (bits.shape[1],), generator=torch.Generator().manual_seed(0)).to(bits.device)
    _, group = (bits * weight).sum(1).unique(return_inverse=True)
    row = torch.arange(len(gallery), device=gallery.device)
    first = torch.full_like(row, len(gallery)).scatter_reduce(0, group, row, "amin")[group]
    repeat = torch.nonzero(first != row).squeeze(1)
    repeat = repeat[(gallery[repeat] == gallery[first[repeat]]).all(1)]
    return repeat, first[repeat]


def _ranking(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each row of [b, N] from most to least similar, int64: the label in the low 32 bits, and above it a number that is
    the same for equals."""
    negated = 0.0 - similarity  # no -0.0
    if negated.dtype == np.float32:
        return _radix_sort(negated.view(np.int32), labels)
    order = np.argsort(negated, axis=1)
    rises = np.diff(np.take_along_axis(negated, order, 1), axis=1, prepend=-np.inf) > 0
    place = np.cumsum(rises, axis=1, dtype=np.int64)
    return place << 32 | labels[order]


@compiled
def _radix_sort(bits, labels):  # pragma: no cover (compiled)
    """``_ranking`` of the bits of float32 [b, N], by 11, 11 and 10 bits from the lowest: faster than comparing."""
    rows, items = bits.shape
    ranking, other = np.empty((rows, items), np.int64), np.empty(items, np.int64)
    for row in range(rows):
        one = ranking[row]
        count = np.zeros((3, 2048), np.int64)
        for i in range(items):
            b = np.int64(bits[row, i])
            place = b + 0x80000000 if b >= 0 else -b - 1  # in [0, 2^32), in the order of the floats
            one[i] = place << 32 | labels[i]
            for digit in range(3):
                count[digit, place >> 11 * digit & 2047] += 1
        source, target = one, other
        for digit in range(3):
            at, mask = count[digit], 2047 if digit < 2 else 1023  # above 32 + 32 bits there is only the sign
            before = 0
            for d in range(2048):
                before, at[d] = before + at[d], before
            for i in range(items):
                d = source[i] >> 32 + 11 * digit & mask
                target[at[d]] = source[i]
                at[d] += 1
            source, target = target, source
        one[:] = other  # where the third pass ended
    return ranking


@compiled
def _sum_of_precision(ranking, weight, depth, total):  # pragma: no cover (compiled)
    """Adds to total [Q, C] the precision at each relevant item of ``ranking`` [Q, N], rank by rank."""
    hits = np.zeros(total.shape[1])
    for q in range(len(total)):
        hits[:] = 0
        retrieved = 0.0
        first = 0
        while first < depth[q, 0]:
            after = first
            while after < ranking.shape[1] and ranking[q, after] >> 32 == ranking[q, first] >> 32:
                c = ranking[q, after] & 0xFFFFFFFF
                hits[c] += weight[q, c]
                retrieved += weight[q, c]
                after += 1
            for rank in range(first, after):
                c = ranking[q, rank] & 0xFFFFFFFF
                total[q, c] += hits[c] / retrieved
            first = after


def _sum_of_precision_numba(similarity: Tensor, labels: Tensor, weight: Tensor, depth: Tensor) -> Tensor:
    """Sum [b, C] of each class's precision at its items in the first ``depth`` [b, 1] ranks of similarity [b, N]."""
    total = np.zeros(weight.shape)
    _sum_of_precision(_ranking(similarity.numpy(), labels.numpy()), weight.numpy(), depth.numpy(), total)
    return torch.from_numpy(total)


def _sum_of_precision_torch(similarity: Tensor, labels: Tensor, weight: Tensor, depth: Tensor) -> Tensor:
    """The same without a loop over items, for a GPU."""
    ordered, order = similarity.sort(dim=1, descending=True)
    taking_part = ordered >= ordered.gather(1, depth.clamp(min=1) - 1)
    taking_part &= ordered > -torch.inf
    width = int(taking_part.sum(1).max())
    ordered, taking_part, ranked = ordered[:, :width], taking_part[:, :width], labels[order[:, :width]]
    last = torch.ones_like(taking_part)  # of a run of equals
    last[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    position = torch.arange(width, device=last.device).expand_as(last)
    run_end = torch.where(last, position, width).flip(1).cummin(1).values.flip(1)
    item_weight = weight.gather(1, ranked) * taking_part
    retrieved = item_weight.cumsum(1).gather(1, run_end)
    total = torch.zeros_like(weight)
    for c in range(weight.shape[1]):
        relevant = (ranked == c) & taking_part
        hits = (item_weight * relevant).cumsum(1).gather(1, run_end)
        total[:, c] = (hits / retrieved.clamp(min=1e-12) * relevant).sum(1)
    return total


def _chance_corrected(precision: Tensor, members: Tensor, weight: Tensor, depth: Tensor, cut: bool) -> Tensor:
    """(AP - chance) / (1 - chance); 0 for a class that is the whole gallery.

    In a random ranking class c has its share of the weight at every rank: n_c / N, if balanced 1 / C. That is the
    chance level of the whole ranking; in the first ranks it is more, where the item itself is much of what was
    retrieved.
    """
    mass = members * weight
    chance = share = mass / mass.sum(1, keepdim=True).clamp(min=1e-12)
    if cut:
        harmonic = torch.arange(1, int(depth.max()) + 1, device=depth.device).double().reciprocal().cumsum(0)
        mean_share = harmonic[depth.clamp(min=1) - 1] / depth.clamp(min=1)  # of the item itself, over the ranks
        there = members * depth / members.sum(1, keepdim=True).clamp(min=1)  # of the class's items, as many expected
        chance = (share + (1 - share) * mean_share) * there / torch.minimum(members, depth).clamp(min=1)
    return torch.where(chance < 1, (precision - chance) / (1 - chance).clamp(min=1e-12), 0.0)


def _check(queries: Tensor, gallery: Tensor, labels: Tensor, num_classes: int, top_k: int | None) -> None:
    if not len(gallery):
        raise FerlabError("The gallery is empty: no face was found clean; lower the threshold or split later.")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or len(labels) != len(gallery):
        raise FerlabError(
            f"Queries {tuple(queries.shape)}, gallery {tuple(gallery.shape)} and {len(labels)} labels do not match: "
            "give [Q, D], [N, D] and [N]."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise FerlabError(f"Gallery labels span {int(labels.min())}..{int(labels.max())}: give 0..{num_classes - 1}.")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1):
        raise FerlabError(f"top_k is {top_k!r}: give a whole number from 1 on, or None for the whole ranking.")
    if not all(torch.isfinite(torch.stack(x.aminmax())).all() for x in (queries, gallery) if x.numel()):
        raise FerlabError("An embedding is not finite: the training has diverged; lower the learning rate.")


def relabel(average_precision: Tensor | np.ndarray, sharpness: float = 1.0) -> Tensor:
    """New soft labels [Q, C], rows sum to 1: the APs, normalised.

    The poster's example: APs in the proportion 3 : 2 : 0 become [0.6, 0.4, 0.0].

    average_precision: [Q, C]; negative values (chance-corrected APs) count as 0; a row without a positive AP becomes
    uniform. sharpness: the APs are raised to this power first; 1 is the source's, higher = more decided (ours).
    Raises FerlabError for what is no table of numbers.
    """
    similarity = torch.as_tensor(average_precision).clamp(min=0)
    if similarity.ndim != 2 or similarity.isnan().any():
        raise FerlabError(f"Average precisions {tuple(similarity.shape)} are no table of numbers: give [Q, C] without "
                          "nan.")
    best = similarity.max(1, keepdim=True).values
    similarity = torch.where(best > 0, similarity / best, 1.0) ** sharpness  # relative, so that no power underflows
    return similarity / similarity.sum(1, keepdim=True)


def retrieval_margin(average_precision: Tensor | np.ndarray, given: Tensor | np.ndarray) -> Tensor:
    """AP of the given class minus the best other AP, [Q], within [-1, 1] but for chance-corrected APs; lower = more
    likely mislabelled (ours). average_precision: [Q, C], C >= 2; given: int [Q]."""
    average_precision, given = torch.as_tensor(average_precision), torch.as_tensor(given).long()
    own = average_precision.gather(1, given[:, None]).squeeze(1)
    others = average_precision.scatter(1, given[:, None], -torch.inf)
    return own - others.max(1).values


def nearest_neighbours(
    queries: Tensor | np.ndarray, gallery: Tensor | np.ndarray, k: int, chunk: int = 1024
) -> Tensor:
    """Rows of the k most similar gallery items by inner product, most similar first: int [Q, min(k, N)].

    queries: [Q, D]; gallery: [N, D]; chunk: queries compared at a time.
    """
    queries = torch.as_tensor(queries)
    gallery = torch.as_tensor(gallery).to(queries.dtype)
    k = min(k, len(gallery))
    parts = [(part @ gallery.T).topk(k, dim=1).indices for part in queries.split(chunk)]
    return torch.cat(parts) if parts else torch.zeros(0, k, dtype=torch.long)
