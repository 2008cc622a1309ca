"""How well a recogniser does on a split, whatever the split's class order."""

from __future__ import annotations

from typing import Any

import numpy as np

from ferlab import metrics
from ferlab.data import FaceSet
from ferlab.errors import FerlabError
from ferlab.recogniser import Recogniser
from ferlab.runs import environment
from ferlab.training import reference

# Folder names that people use for the expressions.
SYNONYMS = {
    "angry": "anger", "disgusted": "disgust", "fearful": "fear", "afraid": "fear", "happy": "happiness",
    "sad": "sadness", "surprised": "surprise",
}


def evaluate(
    recogniser: Recogniser, faces: FaceSet, *, against: str = "reference", mirror: bool = True,
    balance: float = 0.0,
) -> dict[str, Any]:
    """Scores of ``recogniser`` on ``faces``, ready for JSON.

    Classes are matched by name, whatever their order; "happy" is happiness. Where one side has further classes, faces
    of classes that the recogniser lacks are left out, its own further classes cannot be chosen, and ``note`` says so.

    against: "reference", the truth where there is one and else the given labels; or "given", the given labels.
    mirror: average over each face and its mirror image, as in all results here; papers mostly do not.
    balance: of the classes, see ``Recogniser.predict``.

    Returns data, split, rule, against (what there was), noise (how the given labels were changed), mirror, balance,
    classes, accuracy, mean_class_accuracy, macro_f1, recall, counts, confusion_matrix (rows = true class), faces, note,
    skipped (names of the images that could not be read), run (settings, data, environment) and environment; and, where
    raters' votes are known, divergence: the mean Jensen-Shannon divergence of the outputs from the votes, in bits,
    lower = nearer; and by_agreement (``metrics.by_agreement``).

    Raises FerlabError where fewer than two classes match or no face is left.
    """
    if against not in ("reference", "given"):
        raise FerlabError(f"against is {against!r}: choose reference or given.")
    what = f"{faces.dataset} {faces.split}".strip() or "the face set"
    known, found = recogniser.classes, translate(faces.classes, recogniser.classes)
    shared = tuple(name for name in known if name in found)
    if len(shared) < 2:
        raise FerlabError(f"The recogniser knows {', '.join(known)}, but {what} has {', '.join(faces.classes)}: "
                          f"{'only one class' if shared else 'no class'} is the same; name the classes alike.")
    columns = [known.index(name) for name in shared]
    source = [found.index(name) for name in shared]
    place = np.full(len(found) + 1, -1)  # the last is for the label -1, unknown
    place[source] = np.arange(len(shared))

    original = faces.labels if against == "given" else reference(faces)
    labels = place[original]
    if not (labels >= 0).any():
        raise FerlabError(f"No face of {what} is of a class that the recogniser knows ({', '.join(known)}).")
    probabilities = recogniser.predict(faces.images, mirror, balance)[:, columns]
    probabilities = probabilities / np.maximum(probabilities.sum(1, keepdims=True), 1e-12)

    result = {"data": faces.dataset, "split": faces.split, "rule": faces.rule,
              "against": "given" if faces.truth is None else against, "noise": faces.noise,
              "mirror": mirror, "balance": balance, "classes": list(shared)}
    result |= metrics.classification(probabilities, labels, shared)
    votes = faces.votes if faces.label_distribution is None else faces.label_distribution
    if votes is not None:
        votes = votes[:, source]
        voted = (votes.sum(1) > 0) & (labels >= 0)
        if voted.any():
            result["divergence"] = float(metrics.jensen_shannon(probabilities[voted], votes[voted]).mean())
            result["by_agreement"] = metrics.by_agreement(probabilities.argmax(1) == labels, votes * voted[:, None])
    about = {key: value for key, value in recogniser.about.items() if value not in (None, {})}
    return result | {
        "note": _note(what, known, found, shared, int(((original >= 0) & (labels < 0)).sum())),
        "skipped": list(faces.skipped), "run": about | {"settings": vars(recogniser.config)},
        "environment": environment(),
    }


def most_taken_for(result: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """For each class of ``evaluate``'s result the one that its faces are most often mistaken for, and how many."""
    wrong = np.array(result["confusion_matrix"])
    np.fill_diagonal(wrong, 0)
    names = result["classes"]
    return {name: (names[row.argmax()], int(row.max())) for name, row in zip(names, wrong, strict=True)}


def translate(classes: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """``classes`` under the names that ``known`` has for the same expressions, where it has one."""

    def plain(name: str) -> str:
        return SYNONYMS.get(name.lower(), name.lower())

    names = {plain(name): name for name in known}
    named = tuple(names.get(plain(name), name) for name in classes)
    return named if len(set(named)) == len(named) else classes


def _note(what: str, known: tuple[str, ...], found: tuple[str, ...], shared: tuple[str, ...], lost: int) -> str:
    """What the classes that do not match meant for the scores, in words; "" where all match."""
    notes = []
    if lost:
        lacking = [name for name in found if name not in shared]
        notes.append(f"{lost:,} faces are left out, of classes that the recogniser lacks ({', '.join(lacking)}).")
    if len(shared) < len(known):
        unused = [name for name in known if name not in shared]
        notes.append(f"{what} lacks {', '.join(unused)}, which the recogniser could therefore not choose.")
    return " ".join(notes)
