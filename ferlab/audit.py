"""Finds the labels that are likely wrong: every face is judged by a network that was not trained on it.

    found = audit(faces, config.profile(method="plain"), "audits/mine")    # k trainings, each on all folds but one
    found.table()                                                          # most suspicious first

What the face looks like, to the network and by retrieval among the faces of the other folds, is weighed against what a
label of the given class is worth in this data set (``confusion.label_posterior``; ours).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ferlab import metrics
from ferlab.config import Config
from ferlab.confusion import label_posterior
from ferlab.data import FaceSet, Splits
from ferlab.decisions import face_names, write_labels
from ferlab.errors import FerlabError
from ferlab.retrieval import KINDS, class_average_precision, nearest_neighbours, relabel
from ferlab.runs import json_object, write_json, write_whole
from ferlab.training import Trainer, train

if TYPE_CHECKING:
    import pandas as pd

    from ferlab.plots import Picture

NEIGHBOURS = 10  # kept of each face


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found of N faces, in their order.

    given: int [N]; probability: [N, C] and average_precision: [N, C], both of a network that did not see the face.
    neighbours: int [N, 10], the faces nearest to it among those that network trained on and believes, nearest first,
    -1 = no more; fold: int [N], which network.
    """

    names: np.ndarray
    classes: tuple[str, ...]
    given: np.ndarray
    probability: np.ndarray
    average_precision: np.ndarray
    neighbours: np.ndarray
    fold: np.ndarray

    @cached_property
    def _posterior(self) -> tuple[torch.Tensor, torch.Tensor]:
        opinion = torch.from_numpy(self.probability).double() * relabel(self.average_precision)
        return label_posterior(opinion, torch.from_numpy(self.given))

    @property
    def soft_label(self) -> np.ndarray:
        """Posterior of the true class, float64 [N, C]; rows sum to 1.

        Of the powers 0.5, 1, 1.5, 2 and 4 of the average precisions, 1 set most labels of FER2013's validation split
        right: 73.3 %, of 67.0 before.
        """
        return self._posterior[0].numpy()

    @property
    def confusion(self) -> torch.Tensor:
        """P(given | true), as estimated, float64 [C, C]."""
        return self._posterior[1]

    @cached_property
    def _others(self) -> np.ndarray:
        """The posterior without the given class, [N, C]."""
        return np.where(np.arange(len(self.classes)) == self.given[:, None], 0, self.soft_label)

    @property
    def score(self) -> np.ndarray:
        """Probability that the label is wrong, [N] in [0, 1]."""
        return self._others.sum(1)

    @property
    def order(self) -> np.ndarray:
        """Rows by score, most suspicious first, int [N]."""
        return np.argsort(-self.score, kind="stable")

    @property
    def suspected(self) -> np.ndarray:
        """bool [N], whether the label is more likely wrong than right."""
        return self.score > 0.5

    @property
    def better(self) -> np.ndarray:
        """bool [N], whether the suggested label is more likely than the given one."""
        return self.soft_label.argmax(1) != self.given

    @property
    def agreement(self) -> float:
        """Share of the faces that networks which have not seen them give their label."""
        return float((self.probability.argmax(1) == self.given).mean())

    @property
    def learned(self) -> bool:
        """Whether the networks have learned the classes (``metrics.has_learned``)."""
        return metrics.has_learned(self.agreement, self.given)

    @property
    def suggested(self) -> np.ndarray:
        """The most likely class but the given one, int [N]."""
        return self._others.argmax(1)

    def table(self) -> pd.DataFrame:
        """name, given, suggested, score, and the soft label's share of each class; most suspicious first."""
        import pandas as pd

        classes = np.array(self.classes)
        columns = {"name": self.names, "given": classes[self.given], "suggested": classes[self.suggested],
                   "score": self.score.round(6)}
        columns |= {f"soft {name}": share.round(4) for name, share in zip(classes, self.soft_label.T)}
        return pd.DataFrame(columns).iloc[self.order].reset_index(drop=True)

    def contact_sheet(self, faces: FaceSet, count: int = 48) -> Picture:
        """The most suspicious faces, each under its row in ``table``, its given label and what is suggested."""
        from ferlab import plots

        top = self.order[:count]
        captions = [f"{rank}: {self.classes[self.given[i]]}\n{self.classes[self.suggested[i]]}?"
                    for rank, i in enumerate(top, 1)]
        return plots.face_grid(faces.images[top], captions, columns=8, size=1.5,
                               title="Most suspicious labels: given, and suggested")

    def quality(self, truth: np.ndarray) -> dict:
        """How right it is, by reference labels int [N], -1 = unknown, left out: of finding the wrong labels, AUROC and
        average precision; right_if_wrong, the share of the wrong labels whose suggestion is right."""
        known = truth >= 0
        wrong = known & (self.given != truth)
        right = (self.suggested == truth)[wrong]
        return metrics.noise_detection(self.score[known], wrong[known]) | {
            "wrong_share": float(wrong[known].mean()) if known.any() else None,
            "right_if_wrong": float(right.mean()) if len(right) else None,
        }


def audit(
    faces: FaceSet, config: Config, directory: str | Path, folds: int = 4, progress: bool | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> Audit:
    """Judge every face by cross-validation; ``directory`` keeps each fold's training and outcome.

    An interrupted audit goes on where it stopped. A face alone in its class is not judged: its label counts as right.
    ``tell`` hears of that, and of each fold. The truth and the votes are not used.
    Raises FerlabError for fewer than two folds or fewer faces than folds, or if the directory is of a training or of
    another audit.
    """
    if not 2 <= folds <= len(faces):
        raise FerlabError(f"{folds} folds of {len(faces)} faces: give at least 2 folds, and no more than faces.")
    directory = Path(directory)
    names = face_names(faces)
    _check_same(directory, {"faces": faces.fingerprint, "folds": folds, "settings": asdict(config)})
    fold = fold_of(faces.labels, folds, config.seed)
    probability, precision = (np.zeros((len(faces), len(faces.classes)), np.float32) for _ in range(2))
    neighbours = np.full((len(faces), NEIGHBOURS), -1)
    for k in range(folds):
        file = directory / f"fold_{k}.npz"
        if not file.is_file():
            trainer = train(config, Splits(faces.subset(fold != k), None, None), directory / f"fold_{k}", progress)
            outcome = judge(trainer, faces.subset(fold == k))
            write_whole(file, lambda path, outcome=outcome: np.savez(path, **outcome))  # type: ignore[misc]
        try:
            with np.load(file, allow_pickle=False) as saved:
                probability[fold == k], precision[fold == k] = saved["probability"], saved["average_precision"]
                nearest = np.flatnonzero(fold != k)[saved["neighbours"]]
                neighbours[fold == k, : nearest.shape[1]] = nearest
        except Exception as error:  # whatever a damaged file makes of its reader
            raise FerlabError(f"{file} cannot be read ({type(error).__name__}): delete it and audit again.") from error
        alone = np.flatnonzero((fold == k) & ~np.isin(faces.labels, faces.labels[fold != k]))
        if len(alone):  # in its class: no network has learned it
            probability[alone] = precision[alone] = np.eye(len(faces.classes))[faces.labels[alone]]
            tell(f"{names[alone[0]]} is the only face called {faces.classes[faces.labels[alone[0]]]}: with nothing to "
                 "compare it with, its label counts as right.")
        agree = (probability.argmax(1) == faces.labels)[fold == k].mean()
        tell(f"fold {k + 1}/{folds}: the network gives {100 * agree:.1f} % of the faces it has not seen their label")
    found = Audit(names, faces.classes, faces.labels, probability, precision, neighbours, fold)
    if not found.learned:
        most = metrics.most_frequent(found.given)
        tell(f"The networks have hardly learned from these {len(faces):,} faces ({100 * most:.1f} % are of one class): "
             "do not trust the list; audit into another --out with more epochs (--set epochs=...) or more faces.")
    return found


def fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A random fold for every face, int [N] in [0, folds), with equal shares of each given label."""
    fold = np.zeros(len(labels), np.int64)
    fold[np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))] = np.arange(len(labels)) % folds
    return fold


def judge(trainer: Trainer, unseen: FaceSet) -> dict[str, np.ndarray]:
    """Of faces that the trainer's network has not seen, probabilities and class average precisions, [M, C] each, and
    neighbours, the nearest gallery faces' rows among the trainer's training faces, int [M, <= 10].

    The gallery is of the faces it was trained on, without those whose label it does not itself give them (ours); of a
    class that would be left without any, all.
    """
    config, seen = trainer.config, trainer.collect(trainer.train)
    given = torch.as_tensor(trainer.train.labels, device=seen.logits.device)
    agreed = seen.logits.argmax(1) == given
    for c in range(len(unseen.classes)):
        if not agreed[given == c].any():
            agreed |= given == c
    found = trainer.collect(unseen)
    precision = class_average_precision(
        found.embedding, seen.embedding[agreed], given[agreed], len(unseen.classes), config.top_k,
        **KINDS[config.average_precision])
    nearest = nearest_neighbours(found.embedding, seen.embedding[agreed], NEIGHBOURS)
    return {"probability": found.logits.softmax(1).cpu().numpy(), "average_precision": precision.cpu().numpy(),
            "neighbours": agreed.nonzero()[:, 0][nearest].cpu().numpy()}


def write(found: Audit, faces: FaceSet, directory: str | Path, count: int = 48) -> dict[str, Path]:
    """suspicious.csv (``table``), suspicious.png (``contact_sheet``), audit.npz, and suggested.csv, the suggested
    labels where they are ``better`` than the given ones, as training takes them; all in ``directory``.

    The picture shows the data set's own faces: whether it may be passed on is a question of the data set's terms.
    """
    directory = Path(directory)
    paths = {"csv": directory / "suspicious.csv", "png": directory / "suspicious.png", "npz": directory / "audit.npz",
             "labels": directory / "suggested.csv"}
    picture = found.contact_sheet(faces, count).png()
    arrays = {"names": found.names, "classes": np.array(found.classes), "given": found.given,
              "probability": found.probability, "average_precision": found.average_precision,
              "neighbours": found.neighbours, "fold": found.fold}
    if faces.truth is not None:
        arrays["truth"] = faces.truth  # for benchmarks/audit.py
    rows = found.better
    suggested = np.array(found.classes)[found.suggested[rows]]
    write_labels(paths["labels"], dict(zip(found.names[rows].tolist(), suggested.tolist())))
    write_whole(paths["csv"], lambda path: found.table().to_csv(path, index=False, errors="surrogateescape"))
    write_whole(paths["png"], lambda path: path.write_bytes(picture))
    write_whole(paths["npz"], lambda path: np.savez(path, **arrays))  # type: ignore[arg-type]
    return paths


def read(directory: str | Path) -> tuple[Audit, np.ndarray | None]:
    """The audit that ``write`` left in a directory, and the reference labels int [N] where there are any.

    Raises FerlabError if there is none or it cannot be read.
    """
    file = Path(directory) / "audit.npz"
    try:
        with np.load(file, allow_pickle=False) as saved:
            state = dict(saved)
        found = Audit(state["names"], tuple(map(str, state["classes"])), state["given"], state["probability"],
                      state["average_precision"], state["neighbours"], state["fold"])
    except Exception as error:
        raise FerlabError(f"{file} holds no audit ({type(error).__name__}): make one with ferlab audit.") from error
    return found, state.get("truth")


def _check_same(directory: Path, about: dict) -> None:
    """FerlabError if the directory holds a training, or an audit of other faces, labels or settings; else note what
    this one is of."""
    if (directory / "config.json").is_file():
        raise FerlabError(f"{directory} holds a training: choose another directory for the audit.")
    record = directory / "audit.json"
    if record.is_file():
        try:
            former = json_object(record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FerlabError(f"{record} is damaged: choose another directory or delete it.") from error
        changed = [key for key, value in about.items() if former.get(key) != json.loads(json.dumps(value))]
        if changed:
            raise FerlabError(
                f"{directory} holds an audit with other {' and '.join(changed)}: choose another directory or delete it."
            )
        return
    write_json(record, about)
