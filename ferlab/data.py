"""Faces with given labels, the truth about them that only evaluation may see, and label noise.

    faces = ferlab.benchmarks.load("ferplus", "ferplus.zip").train
    noisy = faces.with_noise("symmetric", 0.3, seed=0)      # noisy.labels may be wrong, noisy.truth is not
    noisy.noise                                             # 'symmetric 30 % (achieved 30.0 %, seed 0)'
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ferlab.config import NOISE_KINDS
from ferlab.errors import FerlabError

CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
RATERS = 10
IN_MEMORY = 1 << 30  # bytes; chosen faces that take more stay on disk


def cache_directory(cache: str | Path | None = None) -> Path:
    """Where ferlab keeps what it prepared: ``cache``, else $FERLAB_CACHE, $XDG_CACHE_HOME/ferlab, ~/.cache/ferlab."""
    if cache is None:
        cache = os.environ.get("FERLAB_CACHE") or None
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ferlab"
    return Path(cache).expanduser()


class ImageView:
    """Chosen images of a memory map too large to copy: ``view[index]`` reads just those from disk, as an array."""

    def __init__(self, base: np.ndarray, index: np.ndarray):
        self.base, self.index = base, np.asarray(index, dtype=np.int64)
        self.shape, self.dtype, self.ndim = (len(self.index), *base.shape[1:]), base.dtype, base.ndim

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        rows = self.index[rows]
        images = np.asarray(self.base[rows])
        return images[(slice(None),) * np.ndim(rows) + tuple(rest)] if rest else images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def take_images(images: Any, index: np.ndarray) -> Any:
    """``images[index]`` for int ``index`` [M]; a view where the copy would not belong in memory."""
    if isinstance(images, ImageView):
        return take_images(images.base, images.index[index])
    item = int(np.prod(images.shape[1:])) * images.dtype.itemsize
    if isinstance(images, np.memmap) and len(index) * item > IN_MEMORY:
        return ImageView(images, index)
    return np.asarray(images[index])


@dataclass(eq=False)
class FaceSet:
    """N faces of one split.

    Training may look at ``images``, ``labels`` and ``label_distribution``. ``truth``, ``votes`` and ``extras`` are for
    evaluation only.

    images: uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB); an array, a read-only memory map, or an ``ImageView`` of one.
    labels: int64 [N], the given label, 0 <= label < len(classes), possibly wrong.
    classes: names of the classes, in the data set's own order.
    truth: int64 [N] reference label, -1 where none is known; or None.
    votes: float32 [N, C], raters' votes per class; or None.
    label_distribution: float32 [N, C], rows sum to 1: the given *soft* label, where the label rule makes one; or None.
    names: str [N], the file name of each face (its path below its split's folder), or its id.
    extras: further per-face arrays [N, ...] for evaluation (rendered faces: mixture, identity, units, parts).
    dataset, split, rule: where the faces come from and which label rule made ``labels``.
    noise: what was done to the labels, e.g. "symmetric 30 % (achieved 29.8 %, seed 0)"; "" for nothing.
    skipped: names of files that were left out because they could not be read.

    Arrays that do not fit together raise FerlabError.
    """

    images: Any
    labels: np.ndarray
    classes: tuple[str, ...]
    truth: np.ndarray | None = None
    votes: np.ndarray | None = None
    label_distribution: np.ndarray | None = None
    names: np.ndarray | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    dataset: str = ""
    split: str = ""
    rule: str = ""
    noise: str = ""
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        what = f"{self.dataset or 'a face set'} {self.split}".strip()
        self.classes = tuple(str(name) for name in self.classes)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise FerlabError(f"{what}: class names must be given and differ from each other, not {self.classes}.")

        images, grey_or_rgb = self.images, "uint8 [N, H, W] or [N, H, W, 3]"
        shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
        if dtype != np.uint8 or shape is None or len(shape) < 3 or 0 in shape[1:] or shape[3:] not in ((), (3,)):
            raise FerlabError(f"{what}: images must be {grey_or_rgb}, not {dtype} {shape}.")

        count = len(self.classes)
        self.labels = _integers(self.labels, count, f"{what}: labels")
        if self.truth is not None:
            self.truth = _integers(self.truth, count, f"{what}: truth", lowest=-1)
        for name in ("votes", "label_distribution"):
            if getattr(self, name) is not None:
                array = np.asarray(getattr(self, name), dtype=np.float32)
                if array.ndim != 2 or array.shape[1] != count or not (array >= 0).all():
                    raise FerlabError(f"{what}: {name} must be [N, {count}] and not negative, not {array.shape}.")
                setattr(self, name, array)
        soft = self.label_distribution
        if soft is not None and not np.allclose(soft.sum(1), 1, atol=1e-3):
            raise FerlabError(f"{what}: every row of label_distribution must sum to 1; divide each by its sum.")
        if self.names is not None:
            self.names = np.asarray(self.names, dtype=str)
        self.extras = {key: np.asarray(value) for key, value in self.extras.items()}

        for name, array in [("images", images), ("truth", self.truth), ("votes", self.votes), ("names", self.names),
                            ("label_distribution", soft), *self.extras.items()]:
            if array is not None and (array.ndim == 0 or len(array) != len(self.labels)):
                raise FerlabError(f"{what}: {len(self.labels)} labels do not fit {name} of shape {array.shape}.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Short digest of what training is told: which faces, in which order and size, and the given labels.

        Of the pixels, those of 64 faces: all would take as long as to read the data set.
        """
        names = range(len(self)) if self.names is None else self.names.tolist()
        told = hashlib.sha256(repr((self.dataset, self.classes, self.images.shape, list(names))).encode())
        told.update(self.labels.tobytes())
        for i in np.unique(np.linspace(0, len(self) - 1, 64).astype(int)) if len(self) else ():
            told.update(np.ascontiguousarray(self.images[i]).tobytes())
        if self.label_distribution is not None:
            told.update(self.label_distribution.tobytes())
        return told.hexdigest()[:16]

    @property
    def grey(self) -> bool:
        """Whether the images are without colours; of those with three channels 256, spread over the set, are seen."""
        if len(self.images.shape) == 3:
            return True
        few = np.asarray(self.images[np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int)])
        return bool((few == few[..., :1]).all())

    @property
    def class_counts(self) -> np.ndarray:
        """int64 [C]: how many faces were given each label."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def noise_rate(self) -> float:
        """Share of faces, among those whose truth is known, that were given another label; nan without any truth."""
        known = np.zeros(len(self), bool) if self.truth is None else self.truth >= 0
        return float((self.labels != self.truth)[known].mean()) if known.any() else float("nan")

    def subset(self, index: Any) -> FaceSet:
        """The faces at ``index`` (int [M], bool [N] or a slice), in that order."""
        index = np.asarray(index, dtype=None if len(index) else np.int64) if not isinstance(index, slice) else index
        index = np.arange(len(self))[index]

        def take(array: np.ndarray | None) -> Any:
            return None if array is None else array[index]

        return replace(
            self, images=take_images(self.images, index), labels=self.labels[index], truth=take(self.truth),
            votes=take(self.votes), label_distribution=take(self.label_distribution), names=take(self.names),
            extras={key: take(value) for key, value in self.extras.items()},
        )

    def draw(self, count: int, seed: int = 0) -> FaceSet:
        """At most ``count`` of the faces, drawn at random, in their former order."""
        if len(self) <= count:
            return self
        return self.subset(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def reorder(self, classes: Sequence[str]) -> FaceSet:
        """The same faces with ``classes`` in another order, which may name further classes that no face here has.

        A class may be left out only if no face has it (as label or truth); otherwise FerlabError.
        """
        classes = tuple(classes)
        new_index = np.array([classes.index(name) if name in classes else -1 for name in self.classes])
        used = np.bincount(self.labels, minlength=len(new_index)) > 0
        if self.truth is not None:
            used |= np.bincount(self.truth[self.truth >= 0], minlength=len(new_index)) > 0
        lost = [name for name, new, has in zip(self.classes, new_index, used) if new < 0 and has]
        if lost:
            raise FerlabError(f"{self.dataset} {self.split} has faces of {', '.join(lost)}, which the new class order "
                              "lacks; name it there, or leave those faces out with subset().")
        kept = new_index >= 0

        def columns(array: np.ndarray | None) -> Any:
            if array is None:
                return None
            moved = np.zeros((len(array), len(classes)), array.dtype)
            moved[:, new_index[kept]] = array[:, kept]
            return moved

        extras = dict(self.extras)
        if "mixture" in extras:
            extras["mixture"] = columns(extras["mixture"])
        soft = columns(self.label_distribution)
        if soft is not None and not kept.all():
            soft = soft / np.maximum(soft.sum(1, keepdims=True), 1e-12)
        truth = None if self.truth is None else np.where(self.truth >= 0, new_index[self.truth], -1)
        return replace(self, labels=new_index[self.labels], truth=truth, classes=classes, votes=columns(self.votes),
                       label_distribution=soft, extras=extras)

    def with_noise(self, kind: str, rate: float, seed: int = 0, *, confusion: np.ndarray | None = None,
                   distribution: np.ndarray | None = None) -> FaceSet:
        """The same faces with wrong labels put among the given ones; see ``inject_noise``.

        ``truth`` stays, or becomes the former labels where there was none; ``label_distribution``, which would give
        the former labels away, is dropped. The confusion of asymmetric noise and of annotators defaults to
        ``human_confusion(self.classes)``; annotators also follow ``extras["mixture"]`` where a face has one.
        ``noise`` tells the rate asked for and the achieved share of changed labels.
        """
        if kind == "annotators" and distribution is None:
            distribution = self.extras.get("mixture")
        if confusion is None and len(self.classes) > 1:
            confusion = human_confusion(self.classes)
        labels = inject_noise(self.labels, kind, rate, len(self.classes), seed,
                              confusion=confusion, distribution=distribution)
        changed = float((labels != self.labels).mean()) if len(self) else 0.0
        text = f"{kind} {100 * rate:g} % (achieved {100 * changed:.1f} %, seed {seed})"
        return replace(self, labels=labels, truth=self.labels.copy() if self.truth is None else self.truth,
                       label_distribution=None if changed else self.label_distribution,
                       noise=f"{self.noise}; {text}" if self.noise else text)


class Splits(NamedTuple):
    """The three splits of a data set; one that it lacks is None."""

    train: FaceSet | None
    valid: FaceSet | None
    test: FaceSet | None

    def with_faces(self) -> dict[str, FaceSet]:
        """Those that hold faces, by name."""
        return {name: faces for name, faces in self._asdict().items() if faces is not None and len(faces)}


def as_array(values: Any, dtype: Any = None) -> np.ndarray:
    """``values`` as an array; a tensor may be of any kind and on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values  # NumPy knows no bfloat16
    return np.asarray(values, dtype)


def check_whole(what: str, lowest: int, **numbers: Any) -> None:
    """FerlabError, begun with ``what``, for a number that is not whole or is below ``lowest``."""
    for name, value in numbers.items():
        if not isinstance(value, (int, np.integer)) or value < lowest:
            raise FerlabError(f"{what}: {name}={value!r} is not a whole number from {lowest} up; pass one, e.g. "
                              f"{name}=100.")


def _integers(values: Any, count: int, what: str, lowest: int = 0) -> np.ndarray:
    """``values`` as int64 [N], each checked to lie in lowest..count-1."""
    array = as_array(values)
    if array.size == 0 and array.ndim == 1:
        return array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise FerlabError(f"{what} must be whole numbers [N], not {array.dtype} {list(array.shape)}.")
    outside = (array < lowest) | (array >= count)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise FerlabError(f"{what} must lie in {lowest}..{count - 1} for {count} classes; "
                          f"number {first} is {array[first]}.")
    return array.astype(np.int64)


# ---------------------------------------------------------------------------------------------------- label noise

# For faces of one class (row), where the raters' other votes go (per cent): measured on the FER+ training faces, whose
# ten raters' majority is the row. Fear goes to surprise, sadness to neutral, disgust to anger.
_CONFUSION = np.array([
    [00, 14,  8, 49, 13,  4,  2, 10],  # neutral
    [53, 00, 26,  6,  5,  3,  2,  4],  # happiness
    [28, 17, 00,  5,  7,  2, 40,  1],  # surprise
    [65,  6,  4, 00,  9,  5,  7,  4],  # sadness
    [28, 10, 23, 12, 00, 13,  9,  4],  # anger
    [23,  5,  5, 23, 32, 00,  3,  9],  # disgust
    [13,  4, 48, 21,  9,  4, 00,  1],  # fear
    [41,  6,  4, 15, 12, 19,  3, 00],  # contempt
])


def human_confusion(classes: Sequence[str]) -> np.ndarray:
    """float [C, C], zero diagonal, rows sum to 1: where a wrong label of each class (row) goes.

    For two or more of the eight expression names, in any order, what FER+'s ten raters confuse (measured on its
    training faces). For any other names a ring: class c is mistaken for class c + 1.
    """
    if len(classes) > 1 and set(classes) <= set(CLASSES):
        index = [CLASSES.index(name) for name in classes]
        chosen = _CONFUSION[np.ix_(index, index)].astype(float)
        return chosen / chosen.sum(1, keepdims=True)
    return np.roll(np.eye(len(classes)), 1, axis=1)


def inject_noise(labels: Any, kind: str, rate: float, num_classes: int, seed: int = 0, *,
                 confusion: np.ndarray | None = None, distribution: np.ndarray | None = None) -> Any:
    """A copy of ``labels`` in which a share ``rate`` is wrong.

    labels: int [N], NumPy or torch or a list; 0 <= label < num_classes.
    kind: what makes them wrong.
        ``symmetric``   round(rate * N) faces, each given a *different* class, all others being equally likely.
        ``asymmetric``  round(rate * N) faces, each given a class drawn from its own class's row of ``confusion``
                        (a class whose row names no other class keeps its labels, so that fewer may change).
        ``annotators``  ten simulated raters look at each face, and its label is the vote of one of them. A rater's
                        chance to err differs from face to face: it grows with the share of *other* classes in the
                        face's row of ``distribution``, or else with an ambiguity drawn from Beta(0.6, 2); the odds of
                        all faces are scaled by one factor, found by bisection, so that the expected share of wrong
                        labels is ``rate``. A wrong vote goes to another class of the face's distribution, or else of
                        ``confusion``.
    rate: 0 <= rate <= 1.
    seed: the same arguments give the same labels.
    confusion: [C, C], not negative; the diagonal is ignored. By default ``human_confusion``, for 7 or 8 classes of the
        expressions in the order neutral happiness surprise sadness anger disgust fear (contempt), otherwise a ring;
        ``FaceSet.with_noise`` goes by the names of its classes.
    distribution: [N, C], not negative: how much of each class is in each face.

    Returns int64 [N] (for a torch tensor: one of its own type and device). FerlabError for anything out of range.
    """
    if kind not in NOISE_KINDS:
        raise FerlabError(f"There is no label noise called {kind!r}; choose one of {', '.join(NOISE_KINDS)}.")
    if not 0 <= rate <= 1:
        raise FerlabError(f"The noise rate must lie between 0 and 1 (0.3 for 30 %), not {rate}.")
    given = _integers(labels, num_classes, "labels")
    if rate > 0 and num_classes < 2:
        raise FerlabError(f"A wrong label needs a second class to go to, and num_classes is {num_classes}.")

    rng = np.random.default_rng(seed)
    noisy = given.copy()
    if rate > 0 and len(given):
        if kind == "annotators":
            votes = _rater_votes(given, rate, num_classes, rng, confusion, distribution)  # N, 10
            noisy = votes[np.arange(len(given)), rng.integers(RATERS, size=len(given))]
        else:
            others = 1 - np.eye(num_classes) if kind == "symmetric" else _other_classes(confusion, num_classes)
            mistakable = np.flatnonzero(others.sum(1)[given] > 0)
            wanted = min(int(np.floor(rate * len(given) + 0.5)), len(mistakable))
            chosen = rng.choice(mistakable, size=wanted, replace=False)
            noisy[chosen] = _draw(others[given[chosen]], rng)
    if hasattr(labels, "new_tensor"):
        return labels.new_tensor(noisy)
    return noisy


def _other_classes(confusion: np.ndarray | None, num_classes: int) -> np.ndarray:
    """[C, C] weights of the classes that each class is mistaken for, the diagonal zero."""
    if confusion is None:
        known = num_classes in (len(CLASSES) - 1, len(CLASSES))
        confusion = human_confusion(CLASSES[:num_classes] if known else [str(c) for c in range(num_classes)])
    matrix = np.array(confusion, dtype=float)
    if matrix.shape != (num_classes, num_classes) or not (np.isfinite(matrix) & (matrix >= 0)).all():
        raise FerlabError(f"confusion must be [{num_classes}, {num_classes}] and not negative, not {matrix.shape}.")
    np.fill_diagonal(matrix, 0)
    return matrix


def _draw(weights: np.ndarray, rng: np.random.Generator, size: int | None = None) -> np.ndarray:
    """For each row of ``weights`` [M, C] one class [M] (or ``size`` classes [M, size]) drawn in its proportions."""
    edges = np.cumsum(weights, axis=1)
    point = rng.random((len(weights), size or 1)) * edges[:, -1:]
    drawn = (point[:, :, None] >= edges[:, None, :]).sum(2)
    return drawn if size else drawn[:, 0]


def _rater_votes(given: np.ndarray, rate: float, num_classes: int, rng: np.random.Generator,
                 confusion: np.ndarray | None, distribution: np.ndarray | None) -> np.ndarray:
    """int64 [N, 10]: simulated votes, wrong with a chance that differs between faces and is ``rate`` on average."""
    count, faces = len(given), np.arange(len(given))
    others = _other_classes(confusion, num_classes)
    others[others.sum(1) == 0] = 1
    np.fill_diagonal(others, 0)
    others = (others / others.sum(1, keepdims=True))[given]  # N, C
    if distribution is None:
        ambiguity = rng.beta(0.6, 2.0, size=count)
    else:
        mixture = np.array(distribution, dtype=float)
        if mixture.shape != (count, num_classes) or not (mixture >= 0).all() or not (mixture.sum(1) > 0).all():
            raise FerlabError(f"distribution must be [{count}, {num_classes}], not negative, and no row all zero; "
                              f"it is {mixture.shape}.")
        mixture /= mixture.sum(1, keepdims=True)
        ambiguity = 1 - mixture[faces, given]
        mixture[faces, given] = 0
        others = mixture + 0.05 * others  # even a pure face may be mistaken, as its class usually is

    ambiguity = ambiguity.clip(0.05, 0.95)  # nobody is sure of every face, nor lost on any
    odds = ambiguity / (1 - ambiguity)
    low, high = -40.0, 40.0  # logarithm of the factor
    for _ in range(80):
        middle = (low + high) / 2
        scaled = odds * np.exp(middle)
        low, high = (middle, high) if (scaled / (1 + scaled)).mean() < rate else (low, middle)
    error = scaled / (1 + scaled)  # N, each rater's chance to err on the face
    wrong = rng.random((count, RATERS)) < error[:, None]
    return np.where(wrong, _draw(others, rng, RATERS), given[:, None])
