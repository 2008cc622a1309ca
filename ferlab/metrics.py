"""Scores of predictions, of the split into clean and noisy, and of new labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import entr
from sklearn.metrics import average_precision_score, roc_auc_score


def classification(probabilities: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Accuracy, mean-class accuracy, macro-F1, recall and count of each class, confusion matrix (rows = true class).

    probabilities: [N, C]; labels: int [N], -1 = unknown, left out. Classes without a face have recall None and do not
    enter the means.
    """
    known = np.asarray(labels) >= 0
    labels = np.asarray(labels)[known]
    predicted = np.asarray(probabilities)[known].argmax(1)
    count = len(classes)
    matrix = np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)
    counts, right = matrix.sum(1), matrix.diagonal()
    present = counts > 0
    recall = right / np.maximum(counts, 1)
    f1 = 2 * right / np.maximum(counts + matrix.sum(0), 1)
    return {
        "accuracy": _mean(predicted == labels, np.ones(len(labels), bool)),
        "mean_class_accuracy": _mean(recall, present),
        "macro_f1": _mean(f1, present),
        "recall": {name: float(r) if n else None for name, r, n in zip(classes, recall, counts, strict=True)},
        "counts": {name: int(n) for name, n in zip(classes, counts, strict=True)},
        "confusion_matrix": matrix.tolist(),
        "faces": int(len(labels)),
    }


def balanced(probabilities: np.ndarray, frequencies: np.ndarray, balance: float) -> np.ndarray:
    """Probabilities [N, C] under which classes count more alike: p_c / f_c^balance, made to sum to 1 again.

    frequencies: f [C], of the classes among the labels that were learned from; one of frequency 0 was never learned and
    keeps what it has. balance: 0 = as they are, 1 = as if all classes were equally frequent: fewer faces are named
    rightly, but more of the rare classes'. Source: Menon et al., ICLR 2021, post-hoc logit adjustment.
    """
    weighed = probabilities / np.where(frequencies > 0, frequencies, 1) ** balance
    return weighed / np.maximum(weighed.sum(1, keepdims=True), 1e-12)


def noise_detection(suspicion: np.ndarray, wrong: np.ndarray) -> dict:
    """AUROC and average precision of finding wrong labels: suspicion [N], higher = more likely wrong; wrong bool [N].

    None where all labels are right or all are wrong.
    """
    if wrong.all() or not wrong.any():
        return {"auroc": None, "average_precision": None}
    return {
        "auroc": float(roc_auc_score(wrong, suspicion)),
        "average_precision": float(average_precision_score(wrong, suspicion)),
    }


def split_quality(clean_probability: np.ndarray, given: np.ndarray, truth: np.ndarray, threshold: float) -> dict:
    """How well the clean set was found: AUROC, average precision, precision, recall and share kept.

    clean_probability: [N], higher = cleaner; a sample at or above ``threshold`` is clean. Faces of unknown truth
    (-1) are left out.
    """
    known = truth >= 0
    w, wrong = clean_probability[known], (given != truth)[known]
    clean = w >= threshold
    return noise_detection(-w, wrong) | {
        "clean_precision": float((~wrong[clean]).mean()) if clean.any() else None,
        "clean_recall": float(clean[~wrong].mean()) if (~wrong).any() else None,
        "clean_share": float(clean.mean()) if len(clean) else None,
    }


def relabelling_quality(
    soft: np.ndarray, noisy: np.ndarray, given: np.ndarray, truth: np.ndarray, votes: np.ndarray | None
) -> dict:
    """How right the new labels are.

    soft: [N, C] new labels; noisy: bool [N], the faces that were relabelled; given, truth: int [N], truth -1 = unknown.

    right_if_wrong: share of the relabelled faces whose given label was wrong that now have their true label on top.
    right_if_clean: share of those wrongly suspected that keep theirs.
    recovered: share of *all* wrong labels that are right after relabelling.
    right_after: share of all labels that are right now (clean ones keep theirs).
    divergence: mean Jensen-Shannon divergence (bits, lower = nearer) of the new labels from the raters' votes.
    Each is None where there is no face to count.
    """
    known = truth >= 0
    wrong = known & (given != truth)
    now = np.where(noisy, soft.argmax(1), given)
    result = {
        "right_if_wrong": _mean(now == truth, noisy & wrong),
        "right_if_clean": _mean(now == truth, noisy & known & ~wrong),
        "recovered": _mean(now == truth, wrong),
        "right_after": _mean(now == truth, known),
    }
    if votes is not None:
        rated = noisy & (votes.sum(1) > 0)
        result["divergence"] = float(jensen_shannon(soft[rated], votes[rated]).mean()) if rated.any() else None
    return result


def by_class(quality: Callable[[Any], dict], given: np.ndarray, classes: Sequence[str]) -> dict:
    """``quality`` of all faces and, under "per_class", of those of each given label, int [N], that there is.

    quality: takes an index of rows, a slice or bool [N].
    """
    present = {name: given == c for c, name in enumerate(classes) if (given == c).any()}
    return quality(slice(None)) | {"per_class": {name: quality(rows) for name, rows in present.items()}}


def by_agreement(right: np.ndarray, votes: np.ndarray) -> list[dict]:
    """Accuracy of faces that raters agree on and of those that they do not, each with from, to, faces, accuracy (ours).

    right: bool [N]; votes: [N, C], rows without one are left out. Agreement is the share of a face's votes that its
    most voted class has, in [1 / C, 1]: 0.9 and more, then below 0.9, 0.7 and 0.5, as far as there are faces.
    """
    votes = votes.astype(float)
    rated = votes.sum(1) > 0
    right, share = right[rated], votes[rated].max(1) / votes[rated].sum(1)
    found = []
    for high, low in pairwise((1.0, 0.9, 0.7, 0.5, 0.0)):
        mine = (share >= low) & ((share < high) | (high == 1))
        if mine.any():
            found.append({"from": low, "to": high, "faces": int(mine.sum()), "accuracy": float(right[mine].mean())})
    return found


def fisher_ratio(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Spread between the class means over spread within the classes, tr(S_b) / tr(S_w); >= 0, higher = better apart.

    S_b weighs each class mean by its share of the faces. embeddings: [N, D]; labels: int [N], each at least once.
    inf where no face differs from its class's mean; nan where all faces are alike.
    """
    embeddings, labels = np.asarray(embeddings, float), np.asarray(labels)
    groups = [embeddings[labels == c] for c in np.unique(labels)]
    within = sum(((group - group.mean(0)) ** 2).sum() for group in groups)
    between = sum(len(group) * ((group.mean(0) - embeddings.mean(0)) ** 2).sum() for group in groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(between) / within)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of rows, in bits, in [0, 1]; rows [N, C] are normalised first."""
    p, q = (a / np.maximum(a.sum(1, keepdims=True), 1e-12) for a in (np.asarray(p, float), np.asarray(q, float)))
    return (entr((p + q) / 2) - (entr(p) + entr(q)) / 2).sum(1) / np.log(2)


def has_learned(agreement: float, labels: np.ndarray) -> bool:
    """Whether a network that gives ``agreement`` of faces their label, int [N], does so for a tenth of them more than
    who always names the most frequent class (ours). New labels by a network that has not are worth nothing."""
    return agreement >= most_frequent(labels) + 0.1


def most_frequent(labels: np.ndarray) -> float:
    """Share of the most frequent of the labels, int [N]."""
    return float(np.bincount(labels).max() / len(labels))


def _mean(values: np.ndarray, among: np.ndarray) -> float | None:
    return float(values[among].mean()) if among.any() else None
