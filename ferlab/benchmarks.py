"""Readers of every benchmark, in the layout its makers ship it in.

    train, valid, test = load("ferplus", "ferplus.zip", rule="majority")    # a split that is not on disk is None

Labels are read at once. Pixels are decoded once, into a packed cache (a memory map, uint8, all faces of a split at one
size), so that the next start is instant and a data set of any size needs no memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import filelock
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from ferlab.config import LABEL_RULES, NOISE_KINDS, SPLITS
from ferlab.data import CLASSES, FaceSet, Splits, cache_directory, check_whole, inject_noise, take_images
from ferlab.errors import FerlabError

COMMON_CLASSES = CLASSES
OPTIONS = ("train", "valid", "test", "seed")

MAX_PIXELS = 50_000_000  # an image that claims to hold more is refused before it is decoded
SMALLEST = 8  # pixels: an image of which a side is shorter holds no face
MAX_BYTES = 100_000_000  # likewise a larger file
CHUNK = 512  # images decoded between two saved states of a pack
WORKERS = min(4, os.cpu_count() or 1)
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm")
UNREAD_ENDINGS = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw")  # of images, too


# -------------------------------------------------------------------------------------------------------- public

def load(name: str, root: str | Path | None = None, *, rule: str = "majority", size: int | None = None,
         skip_bad: bool = False, splits: Sequence[str] = SPLITS, holdout: float = 0.0, holdout_seed: int = 0,
         noise: str | None = None, noise_rate: float = 0.0, noise_seed: int = 0,
         cache: str | Path | None = None, progress: bool | None = None, **options: Any) -> Splits:
    """The splits of benchmark ``name`` as FaceSets; one that is not on disk is None.

    name: one of ``NAMES``; ``layout(name)`` shows the files each expects.
    root: the data set's folder, or a .zip of it, which is read without unpacking. ``rendered`` needs none.
    rule: FER+ only, which label the ten raters' votes make:
        ``majority``      Microsoft's rule: single votes are set to zero; the class with more than half of the remaining
                          votes is the label; other faces, and those that are unknown or no face (NF), are left out.
        ``argmax``        the most frequent of the ten columns; left out where that is unknown or NF.
        ``distribution``  the faces and labels of ``argmax``, and as ``label_distribution`` their votes over the 8
                          classes, divided by their sum.
    size: side of the square faces in pixels; 48 for FER, 100 for RAF-DB, 64 for rendered, 112 for the others. An image
        that is not square is cut around its centre.
    skip_bad: leave out images that are missing or cannot be read, and list them in ``skipped``, instead of an error.
    splits: read only these.
    holdout: for data sets that come in two parts, a share of the training faces (stratified, ``holdout_seed``) that
        becomes ``valid``, so that nothing needs to be chosen on the test faces. Where the official second part is
        called validation (AffectNet, SFEW), it becomes ``test``. 0 leaves the official parts.
    noise, noise_rate, noise_seed: label noise for ``train``; see ``FaceSet.with_noise``.
    cache: folder of the packed pixels, by default ``data.cache_directory()``.
    progress: True or False to show or hide the bar; by default it shows on a terminal.
    options: train, valid, test: keep at most so many faces of the split, drawn at random by ``seed`` (0), before any
        noise. ``rendered`` makes so many instead, and has further ones: see ``ferlab.rendered.load``.

    ``fer2013`` gives the faces that FER+'s rule keeps, but contempt, which FER2013 lacks, and the few without a FER2013
    annotation: ``labels`` are the original annotation in all splits, ``truth`` is FER+'s.

    Raises FerlabError, in one sentence, for a wrong argument or for files that are not as they should be; warns about a
    class without faces, and about a holdout that is not needed.
    """
    benchmark = check(name, rule, size, splits, holdout, **options)
    if noise is None and noise_rate:
        raise FerlabError(f"noise_rate {noise_rate} needs a kind of noise; choose one of {', '.join(NOISE_KINDS)}.")
    if noise is not None:
        inject_noise([0, 1], noise, noise_rate, 2)  # a wrong kind or rate is told before the long work
    if benchmark is None:
        if root is not None:
            raise FerlabError(f"rendered takes no root, as its faces are made here: say which data set {root} holds, "
                              'such as "folder".')
        from ferlab import rendered

        wanted = dict(options) if size is None else {**options, "size": size}
        loaded = rendered.load(cache=cache, progress=progress, **wanted)
        found = {split: faces for split, faces in zip(SPLITS, loaded) if faces is not None}
        if holdout:
            found = _hold_out(found, name, holdout, holdout_seed)
    else:
        ask = _Ask(name, rule, skip_bad, cache, progress)
        found = {}
        for rows in _read(name, root, SPLITS if holdout else splits, ask):
            found[rows.split] = _face_set(rows, benchmark, size or benchmark.size, ask)
        if holdout:
            found = _hold_out(found, name, holdout, holdout_seed)
        for split in found.keys() & options.keys():
            found[split] = found[split].draw(options[split], options.get("seed", 0))
    if noise is not None and "train" in found:
        found["train"] = found["train"].with_noise(noise, noise_rate, noise_seed)
    return Splits(*(found.get(split) if split in splits else None for split in SPLITS))


def pack(name: str, root: str | Path | None = None, *, size: int | None = None, skip_bad: bool = False,
         splits: Sequence[str] = SPLITS, cache: str | Path | None = None, progress: bool | None = None,
         **options: Any) -> dict[str, Path]:
    """Decode the pixels of benchmark ``name`` into the cache, as ``load`` does when it first needs them.

    Returns the file of each split that is on disk (for ``rendered``, which keeps its own cache, nothing). Raises
    FerlabError as ``load`` does, and goes on where it was interrupted.
    """
    benchmark = check(name, size=size, splits=splits, **options)
    if benchmark is None:
        load(name, root, size=size, splits=splits, cache=cache, progress=progress, **options)
        return {}
    ask = _Ask(name, "majority", skip_bad, cache, progress)
    made = {}
    for rows in _read(name, root, splits, ask):
        made[rows.split] = _packed(rows, size or benchmark.size, benchmark.mode, ask)[2]
    return made


def layout(name: str) -> str:
    """The files that benchmark ``name`` expects below its root, as a small tree."""
    if name == "rendered":
        return "nothing: faces are rendered on the first use"
    if name not in _BENCHMARKS:
        raise FerlabError(f"There is no benchmark {name!r}; choose one of {', '.join(NAMES)}.")
    return _BENCHMARKS[name].tree


# --------------------------------------------------------------------------------------------------------- parts

@dataclass(frozen=True)
class _Ask:
    """What the caller asked for, as far as the readers need it."""

    name: str
    rule: str
    skip_bad: bool
    cache: str | Path | None
    progress: bool | None


@dataclass
class _Rows:
    """All images of one split that its data set lists, before any is decoded. The pack holds them in this order.

    family: what the pack is called; the two FER and the two AffectNet benchmarks share theirs.
    base, names: base + names[i] is the path of image i below the root; its name alone is the face's.
    stamps: [N] size and time of each file, None where it is missing.
    labels: int64 [N], -1 where the label rule leaves the face out. boxes: int64 [N, 4] left top right bottom, or None.
    picture: opens image number i.
    """

    family: str
    split: str
    root: Path
    base: str
    names: list[str]
    stamps: list[Any]
    picture: Callable[[int], Image.Image]
    labels: np.ndarray
    truth: np.ndarray | None = None
    votes: np.ndarray | None = None
    soft: np.ndarray | None = None
    boxes: np.ndarray | None = None
    classes: tuple[str, ...] = ()  # where the files decide
    unlabelled: list[str] = field(default_factory=list)  # images without a readable label, left out by skip_bad


@dataclass(frozen=True)
class _Benchmark:
    classes: tuple[str, ...]  # () where the files decide
    size: int
    mode: str
    markers: tuple[str, ...]  # one of these lies at the root
    tree: str
    read: Callable[[Any, Sequence[str], _Ask], list[_Rows]]


def check(name: str, rule: str = "majority", size: int | None = None, splits: Sequence[str] = SPLITS,
          holdout: float = 0.0, **options: Any) -> _Benchmark | None:
    """The benchmark called ``name``, None for rendered; FerlabError for an argument that does not fit."""
    if name not in NAMES:
        raise FerlabError(f"There is no benchmark {name!r}; choose one of {', '.join(NAMES)}.")
    if rule not in LABEL_RULES:
        raise FerlabError(f"There is no label rule {rule!r}; choose one of {', '.join(LABEL_RULES)}.")
    if rule != "majority" and name not in ("ferplus", "fer2013"):
        raise FerlabError(f"The label rule {rule!r} is for the votes of ferplus and fer2013; leave it out for {name}.")
    if isinstance(splits, str) or not splits or not set(splits) <= set(SPLITS):
        raise FerlabError(f"splits must be some of {SPLITS}, not {splits!r}.")
    if not 0 <= holdout < 1:
        raise FerlabError(f"holdout is the share of training faces to validate on, 0 to below 1, not {holdout}.")
    strange = sorted(set(options) - {*OPTIONS, *(["workers"] if name == "rendered" else [])})
    if strange:
        raise FerlabError(f"{name} takes no option {', '.join(strange)}; its options are {', '.join(OPTIONS)}.")
    if name == "rendered":
        return None
    for option, value in options.items():
        check_whole(name, int(option != "seed"), **{option: value})
    if size is not None and not (isinstance(size, (int, np.integer)) and 8 <= size <= 1024):
        raise FerlabError(f"size is the side of a face in pixels, 8 to 1024, not {size!r}.")
    return _BENCHMARKS[name]


def _read(name: str, root: str | Path | None, splits: Sequence[str], ask: _Ask) -> list[_Rows]:
    """What the files below ``root`` list for ``splits``; each split that is there has a face with a label."""
    benchmark = _BENCHMARKS[name]
    expected = f"{name} expects there:\n{benchmark.tree}"
    if root is None:
        raise FerlabError(f"{name} needs root, the folder or .zip of the data set; {expected}")
    files = _open(Path(root).expanduser(), benchmark.markers, expected, or_images=name == "folder")
    try:
        found = benchmark.read(files, splits, ask)
    except (OSError, RuntimeError, NotImplementedError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise FerlabError(f"{root} cannot be read ({error}); is it whole, and may you read it?") from error
    if not found:
        raise FerlabError(f"{root} holds no {' or '.join(splits)} faces: name another --split that it has; {expected}")
    for rows in found:
        if not (rows.labels >= 0).any():
            raise FerlabError(f"The {rows.split} split of {name} in {root} is empty: no face is left; {expected}")
    return found


def _face_set(rows: _Rows, benchmark: _Benchmark, size: int, ask: _Ask) -> FaceSet:
    """The faces of a split that have a label and can be read."""
    images, bad, _ = _packed(rows, size, benchmark.mode, ask)
    labelled = np.flatnonzero(rows.labels >= 0)
    kept = np.array([i for i in labelled if i not in bad], dtype=np.int64)
    skipped = [*rows.unlabelled, *(rows.names[i] for i in labelled if i in bad)]
    if not len(kept):
        raise FerlabError(f"None of the {len(labelled)} {rows.split} images of {ask.name} in {rows.root} can be read "
                          f"(first: {skipped[0]}); unpack the data set again.")

    def take(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array[kept]

    faces = FaceSet(
        images=images if len(kept) == len(images) else take_images(images, kept), labels=rows.labels[kept],
        classes=rows.classes or benchmark.classes, truth=take(rows.truth), votes=take(rows.votes),
        label_distribution=take(rows.soft), names=np.array(rows.names)[kept], dataset=ask.name, split=rows.split,
        rule=ask.rule if rows.votes is not None else "", skipped=tuple(skipped))
    empty = [name for name, count in zip(faces.classes, faces.class_counts) if count == 0]
    lonely = [name for name, count in zip(faces.classes, faces.class_counts) if count == 1]
    lacking = [f"{words} {', '.join(names)}" for words, names in (("no face of", empty), ("a single face of", lonely))
               if names]
    if lacking:
        warnings.warn(f"The {rows.split} split of {ask.name} has {' and '.join(lacking)}: that is too little to learn "
                      "or to judge such a class by; add faces, or take the class as absent.", stacklevel=3)
    return faces


def _hold_out(found: dict[str, FaceSet], name: str, share: float, seed: int) -> dict[str, FaceSet]:
    """Make a validation split of a share of train, where the data set comes in two parts; see ``load``."""
    train, found = found.get("train"), dict(found)
    if name in ("affectnet7", "affectnet8", "sfew") and "valid" in found and "test" not in found:
        found["test"] = replace(found.pop("valid"), split="test")
    if "valid" in found:
        warnings.warn(f"{name} has validation faces of its own: nothing was held out.", stacklevel=3)
    if train is None or "valid" in found:
        return found
    rng, held = np.random.default_rng(seed), np.zeros(len(train), bool)
    for label in range(len(train.classes)):
        members = rng.permutation(np.flatnonzero(train.labels == label))
        held[members[:round(share * len(members))]] = True
    if not held.any() or held.all():
        raise FerlabError(f"A holdout of {share} of {len(train)} faces leaves a split empty; choose another share.")
    return {**found, "train": train.subset(~held), "valid": replace(train.subset(held), split="valid")}


# ----------------------------------------------------------------------------------------- files, in a folder or zip

class _Folder:
    """The files below a folder, by their path from there, written with '/'."""

    def __init__(self, root: Path, inner: str = ""):
        self.root, self.base = root, root / inner

    def files(self, folder: str = "", endings: tuple[str, ...] = ("",)) -> list[str]:
        """Names of the plain files directly in ``folder``, sorted; hidden ones are not seen."""
        return self._names(folder, lambda entry: entry.is_file() and entry.name.lower().endswith(endings))

    def folders(self, folder: str = "") -> list[str]:
        return self._names(folder, lambda entry: entry.is_dir() and entry.name != "__MACOSX")

    def _names(self, folder: str, wanted: Callable[[os.DirEntry], bool]) -> list[str]:
        if not (self.base / folder).is_dir():
            return []
        with os.scandir(self.base / folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and wanted(entry))

    def has(self, path: str) -> bool:
        return (self.base / path).exists()

    def stamp(self, path: str) -> tuple[int, int] | None:
        """Size and time of a file; None where there is none, or where the path leads out of the data set."""
        if os.path.isabs(path) or os.path.splitdrive(path)[0] or ".." in re.split(r"[/\\]", path):
            return None
        try:
            status = os.stat(os.path.join(self.base, path))
        except (OSError, ValueError):  # ValueError: a 0 byte in the name
            return None
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    def open(self, path: str) -> Any:
        return open(self.base / path, "rb")

    def read(self, path: str) -> bytes:
        if os.path.getsize(self.base / path) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        return (self.base / path).read_bytes()


class _Zip:
    """The members of a zip, likewise; nothing is unpacked. Members with '..' in their path are not seen."""

    def __init__(self, root: Path, inner: str = ""):
        self.root, self.inner = root, f"{inner}/" if inner else ""
        try:
            self.zip = zipfile.ZipFile(root)
        except (zipfile.BadZipFile, OSError) as error:
            raise FerlabError(f"{root} is not a whole zip file ({error}); download it again.") from error
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.inside: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}  # folder -> its folders, its files
        for info in self.zip.infolist():
            parts = PurePosixPath(info.filename.replace("\\", "/")).parts
            path = "/".join(parts)
            if info.is_dir() or not path.startswith(self.inner) or {"..", "/", "__MACOSX"} & set(parts):
                continue
            path = path.removeprefix(self.inner)
            self.members[path] = info
            parts = PurePosixPath(path).parts
            for depth in range(len(parts)):
                here = self.inside.setdefault("/".join(parts[:depth]), (set(), set()))
                here[depth == len(parts) - 1].add(parts[depth])

    def files(self, folder: str = "", endings: tuple[str, ...] = ("",)) -> list[str]:
        names = self.inside.get(folder, ((), ()))[1]
        return sorted(name for name in names if name.lower().endswith(endings) and not name.startswith("."))

    def folders(self, folder: str = "") -> list[str]:
        return sorted(name for name in self.inside.get(folder, ((), ()))[0] if not name.startswith("."))

    def has(self, path: str) -> bool:
        return path in self.members or path in self.inside

    def stamp(self, path: str) -> tuple[int, int] | None:
        info = self.members.get(path)
        return None if info is None else (info.file_size, info.CRC)

    def open(self, path: str) -> Any:
        return self.zip.open(self.members[path])

    def read(self, path: str) -> bytes:
        if self.members[path].file_size > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
        return self.zip.read(self.members[path])


_Files = _Folder | _Zip


def _open(root: Path, markers: Sequence[str], expected: str, or_images: bool = False) -> _Files:
    """The files of a data set: in ``root``, or in the only folder in it that holds one of ``markers``.

    or_images: where no folder does, folders of images are enough.
    """
    if not root.exists():
        raise FerlabError(f"There is no {root}; {expected}")
    if root.is_file() and root.suffix.lower() != ".zip":
        raise FerlabError(f"{root} is a file; give the folder of the data set or a .zip of it; {expected}")
    kind = _Folder if root.is_dir() else _Zip
    files: _Files = kind(root.resolve())

    def fits(folder: str = "") -> bool:
        return any(name.lower() in known for name in files.folders(folder) + files.files(folder))

    known = {marker.lower() for marker in markers}
    if fits():
        return files
    inner = [name for name in files.folders() if fits(name)]
    if len(inner) == 1:
        return kind(root.resolve(), inner[0])
    if or_images and any(files.files(name, IMAGE_ENDINGS) for name in files.folders()):
        return files
    raise FerlabError(f"{root} has none of {', '.join(markers)}; {expected}")


def _table(files: _Files, path: str, columns: Sequence[str], **how: Any) -> pd.DataFrame:
    """A CSV's ``columns``, as text where not told otherwise; FerlabError where it lacks one or is no CSV."""
    if not files.has(path):
        raise FerlabError(f"{files.root} lacks {path}; put it there, beside the images.")
    try:
        with files.open(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # it has left out cells
            table = pd.read_csv(stream, dtype=str, skipinitialspace=True, keep_default_na=False, encoding="utf-8-sig",
                                index_col=False, **how).fillna("")
        if "\0" in "".join(table.columns) or any(
                table[column].str.contains("\0", regex=False).any() for column in table.columns):
            raise ValueError("null bytes in it")
    except (ValueError, OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile,
            pd.errors.ParserWarning) as error:
        raise FerlabError(f"{path} in {files.root} cannot be read as a CSV file ({str(error).strip()}); download it "
                          "again.") from error
    table.columns = [str(column).strip() for column in table.columns]
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise FerlabError(f"{path} in {files.root} lacks the column {', '.join(lacking)}; its columns are "
                          f"{', '.join(table.columns[:12])}.")
    return table


def _numbers(table: pd.DataFrame, columns: Sequence[str], path: str, lowest: int, highest: int,
             empty: int | None = None) -> np.ndarray:
    """Whole numbers [N, len(columns)] of a table, each in lowest..highest; an empty field counts as ``empty``."""
    text = table[list(columns)]
    values = text.apply(pd.to_numeric, errors="coerce").to_numpy(float, copy=True)
    inside = (values >= lowest) & (values <= highest) & (values == np.round(values))
    if empty is not None:
        blank = (text == "").to_numpy()
        values[blank], inside[blank] = empty, True
    if not inside.all():
        row, column = np.argwhere(~inside)[0]
        raise FerlabError(f"{path}, line {table.index[row] + 2}: {columns[column]} is "
                          f"{str(text.iloc[row, column])[:60]!r}; it must be a whole number in {lowest}..{highest}.")
    return values.astype(np.int64)


def _distinct(names: Iterable[Any], labels: np.ndarray, path: str) -> np.ndarray:
    """Index of each name's first place; a name that stands twice with different ``labels`` [N, ...] is an error."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        j = first.setdefault(name, i)
        if j != i and not np.array_equal(labels[i], labels[j]):
            raise FerlabError(f"{path} lists {name} twice with different labels ({labels[j]} and {labels[i]}); "
                              "take out the wrong one.")
    return np.fromiter(first.values(), dtype=np.int64, count=len(first))


def _rows(files: _Files, family: str, split: str, base: str, names: Iterable[Any], labels: np.ndarray,
          **more: Any) -> _Rows:
    """Rows whose images are files of their own, base + name."""
    listed = [str(name) for name in names]

    def picture(i: int) -> Image.Image:
        return Image.open(io.BytesIO(files.read(base + listed[i])))

    return _Rows(family, split, files.root, base, listed, [files.stamp(base + name) for name in listed], picture,
                 np.asarray(labels, dtype=np.int64), **more)


# ------------------------------------------------------------------------------------------------ FER+ and FER2013

_FER_PARTS = {"train": ("Training", "FER2013Train"), "valid": ("PublicTest", "FER2013Valid"),
              "test": ("PrivateTest", "FER2013Test")}
_FER_VOTES = (*COMMON_CLASSES, "unknown", "NF")
_FER2013_CODES = np.array([4, 5, 6, 1, 3, 2, 0, -1])  # angry disgust fear happy sad surprise neutral, none given


def ferplus_labels(votes: np.ndarray, rule: str) -> np.ndarray:
    """int64 [N]: the label that ``rule`` makes of ``votes`` [N, 10] (the 8 classes, unknown, no face); -1 for none.

    Source: Barsoum et al., "Training deep networks for facial expression recognition with crowd-sourced label
    distribution", 2016, and the counts of faces that its authors' majority rule keeps.
    """
    votes = np.asarray(votes, dtype=np.int64)
    counted = np.where(votes > 1, votes, 0) if rule == "majority" else votes
    winner, most = counted.argmax(1), counted.max(1)
    keep = (winner < len(COMMON_CLASSES)) & (most > 0)
    if rule == "majority":
        keep &= 2 * most > counted.sum(1)
    return np.where(keep, winner, -1)


def _read_fer(files: _Files, splits: Sequence[str], ask: _Ask) -> list[_Rows]:
    """FER+, and FER2013 with FER+ as its truth, from folders of images or from Kaggle's fer2013.csv."""
    table = _table(files, "fer2013new.csv", ("Usage", "Image name", *_FER_VOTES))
    table["Image name"], usage = table["Image name"].str.strip(), table["Usage"].str.strip().to_numpy()
    strange = set(usage) - {part for part, _ in _FER_PARTS.values()}
    if strange:
        raise FerlabError(f"fer2013new.csv in {files.root} has the Usage {min(strange)[:60]!r}; it must be Training, "
                          "PublicTest or PrivateTest.")
    votes = _numbers(table, _FER_VOTES, "fer2013new.csv", 0, 1000)
    names = table["Image name"].to_numpy(str)

    folders = any(files.has(folder) for _, folder in _FER_PARTS.values())
    if not folders and not files.has("fer2013.csv"):
        raise FerlabError(f"{files.root} has fer2013new.csv, but neither the images nor Kaggle's fer2013.csv: "
                          f"{ask.name} expects there:\n{_FER_TREE}")
    original = None
    if files.has("fer2013.csv") and (not folders or (ask.name == "fer2013" and not files.has("fer2013_emotion.csv"))):
        original = _kaggle_emotions(files, usage)
    elif ask.name == "fer2013":
        if not files.has("fer2013_emotion.csv"):
            raise FerlabError(f"fer2013 needs the original annotation in {files.root}: fer2013_emotion.csv (Image "
                              "name, emotion) or Kaggle's fer2013.csv.")
        given = _table(files, "fer2013_emotion.csv", ("Image name", "emotion"))
        codes = _numbers(given, ("emotion",), "fer2013_emotion.csv", 0, 6, empty=-1)[:, 0]
        first = _distinct(given["Image name"].str.strip(), codes, "fer2013_emotion.csv")
        by_name = dict(zip(given["Image name"].str.strip().iloc[first], codes[first]))
        original = np.array([by_name.get(name, -1) for name in names], dtype=np.int64)

    labels = ferplus_labels(votes, ask.rule)
    truth, classes = labels, votes[:, :8].astype(np.float32)
    if ask.name == "fer2013":
        classes = classes[:, :7]
        truth = np.where(labels < 7, labels, -1)
        labels = np.where(truth >= 0, _FER2013_CODES[original], -1)  # [-1] is the code for none given

    found = []
    for split in splits:
        part, folder = _FER_PARTS[split]
        if folders and not files.has(folder):
            continue
        rows = np.flatnonzero((usage == part) & (names != ""))
        rows = rows[_distinct(names[rows], votes[rows], "fer2013new.csv")]
        if not len(rows):
            if folders:
                raise FerlabError(f"{files.root} has {folder}, but fer2013new.csv lists no image with Usage {part}; "
                                  "take the whole fer2013new.csv.")
            continue
        soft = None
        if ask.rule == "distribution" and ask.name == "ferplus":
            soft = classes[rows] / np.maximum(classes[rows].sum(1, keepdims=True), 1)
        more: dict[str, Any] = {"truth": truth[rows], "votes": classes[rows], "soft": soft}
        if folders:
            found.append(_rows(files, "ferplus", split, f"{folder}/", names[rows], labels[rows], **more))
        else:
            stamp = files.stamp("fer2013.csv")
            found.append(_Rows("ferplus", split, files.root, "", [str(name) for name in names[rows]],
                               [stamp] * len(rows), _KagglePixels(files, rows), labels[rows], **more))
    return found


def _kaggle_emotions(files: _Files, usage: np.ndarray) -> np.ndarray:
    """FER2013 codes [N] from Kaggle's fer2013.csv, whose rows must be those of fer2013new.csv."""
    columns = ("emotion", "Usage")
    table = _table(files, "fer2013.csv", columns, usecols=lambda name: name.strip() in columns)
    if len(table) != len(usage) or (table["Usage"].str.strip() != usage).any():
        raise FerlabError(f"fer2013.csv and fer2013new.csv in {files.root} do not belong together: their rows must be "
                          f"the same faces in the same order (they have {len(table):,} and {len(usage):,}).")
    return _numbers(table, ("emotion",), "fer2013.csv", 0, 6, empty=-1)[:, 0]


class _KagglePixels:
    """Opens faces kept as text, 48 x 48 numbers in a row of Kaggle's fer2013.csv, which is read when first needed."""

    def __init__(self, files: _Files, rows: np.ndarray):
        self.files, self.rows, self.lock = files, rows, Lock()
        self.text: np.ndarray | None = None

    def __call__(self, i: int) -> Image.Image:
        with self.lock:
            if self.text is None:
                table = _table(self.files, "fer2013.csv", ("pixels",), usecols=lambda name: name.strip() == "pixels")
                self.text = table["pixels"].to_numpy()[self.rows]
        values = np.array(self.text[i].split(), dtype=np.int64)
        if values.shape != (48 * 48,) or values.min() < 0 or values.max() > 255:
            raise ValueError(f"line {self.rows[i] + 2} of fer2013.csv does not hold 2304 numbers in 0..255")
        return Image.fromarray(values.reshape(48, 48).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------- RAF-DB

def _read_rafdb(files: _Files, splits: Sequence[str], ask: _Ask) -> list[_Rows]:
    path = "EmoLabel/list_patition_label.txt"
    if not files.has(path):
        there = [split for split in ("train", "test") if any(name.isdigit() for name in files.folders(split))]
        if not there:
            raise FerlabError(f"{files.root} lacks {path}; unpack RAF-DB's basic part there, or put its faces into "
                              "train/1 to train/7 and test/1 to test/7.")
        return [_rafdb_folders(files, split) for split in splits if split in there]
    names, labels = [], []
    for number, line in enumerate(files.read(path).decode("utf-8-sig", "replace").splitlines(), 1):
        name, *rest = line.split() or [""]
        if not name:
            continue
        if not name.startswith(("train_", "test_")) or len(rest) != 1 or rest[0] not in set("1234567"):
            raise FerlabError(f"{path}, line {number}: {line[:60]!r} is not an image name (train_… or test_…) and a "
                              "label in 1..7.")
        names.append(name)
        labels.append(int(rest[0]) - 1)
    if not files.has("Image/aligned"):
        packed = " (unpack Image/aligned.zip)" if files.has("Image/aligned.zip") else ""
        raise FerlabError(f"{files.root} lacks the folder Image/aligned{packed}; RAF-DB's aligned faces belong there.")
    index = np.array(labels, dtype=np.int64)
    first = _distinct(names, index, path)
    found = []
    for split in splits:
        rows = [i for i in first if names[i].startswith(f"{split}_")]
        images = [f"{PurePosixPath(names[i]).stem}_aligned.jpg" for i in rows]
        part = _rows(files, "rafdb", split, "Image/aligned/", images, index[rows])
        if any(part.stamps):  # else this part of RAF-DB is not on disk
            found.append(part)
    if not found and {"train", "test"} & set(splits):
        raise FerlabError(f"Image/aligned in {files.root} has none of the {len(first):,} images that {path} lists; its "
                          "files must be called train_00001_aligned.jpg and so on.")
    return found


def _rafdb_folders(files: _Files, split: str) -> _Rows:
    """train/1/….jpg to train/7/….jpg, as copies of RAF-DB's aligned faces go round; the label is the folder's."""
    if strange := sorted(set(files.folders(split)) - set("1234567")):
        raise FerlabError(f"{files.root}/{split} has a folder {strange[0]}; RAF-DB's labels are 1 to 7.")
    images = {str(label): files.files(f"{split}/{label}", IMAGE_ENDINGS) for label in range(1, 8)}
    names = [f"{split}/{label}/{image}" for label, here in images.items() for image in here]
    labels = [int(label) - 1 for label, here in images.items() for _ in here]
    return _rows(files, "rafdb", split, "", names, np.array(labels, dtype=np.int64))


# ------------------------------------------------------------------------------------------------------- AffectNet

_AFFECTNET_COLUMNS = ("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks",
                      "expression", "valence", "arousal")


def _read_affectnet(files: _Files, splits: Sequence[str], ask: _Ask) -> list[_Rows]:
    read = _affectnet_2021 if files.has("train_set") or files.has("val_set") else _affectnet_csv
    found = []
    for split in splits:
        rows = None if split == "test" else read(files, split, ask)
        if rows is not None:
            if ask.name == "affectnet7":
                rows.labels = np.where(rows.labels < 7, rows.labels, -1)
            found.append(rows)
    return found


def _affectnet_2021(files: _Files, split: str, ask: _Ask) -> _Rows | None:
    """train_set/images/1.jpg with its label in train_set/annotations/1_exp.npy."""
    folder = {"train": "train_set", "valid": "val_set"}[split]
    if not files.has(folder):
        return None
    images = files.files(f"{folder}/images", IMAGE_ENDINGS)
    notes = files.files(f"{folder}/annotations", ("_exp.npy",))
    if not images or not notes:
        raise FerlabError(f"{folder} in {files.root} needs images in {folder}/images and their labels in "
                          f"{folder}/annotations/…_exp.npy; one of them is empty or missing.")
    by_id = {name.rsplit(".", 1)[0]: name for name in images}
    ids = sorted({*by_id, *(name[:-len("_exp.npy")] for name in notes)}, key=lambda name: (len(name), name))
    names = [f"{folder}/images/{by_id.get(name, f'{name}.jpg')}" for name in ids]
    labels, wrong = _affectnet_notes(files, [f"{folder}/annotations/{name}_exp.npy" for name in ids], split, ask)
    if wrong and not ask.skip_bad:
        path, reason = next(iter(wrong.items()))
        raise FerlabError(f"{len(wrong):,} of {len(ids):,} AffectNet annotations in {files.root} are of no use (first: "
                          f"{path}: {reason}); unpack them again, or leave their images out with --skip-bad "
                          "(in Python, skip_bad=True).")
    skipped = [name for name, label in zip(names, labels) if label == -2]
    labelled = np.flatnonzero(labels != -2)
    return _rows(files, "affectnet", split, "", [names[i] for i in labelled], labels[labelled], unlabelled=skipped)


def _affectnet_notes(files: _Files, paths: list[str], split: str, ask: _Ask) -> tuple[np.ndarray, dict[str, str]]:
    """Labels [N] of many .npy files, -2 for a bad one, and what is wrong with those; cached when all are good."""
    stamps = [files.stamp(path) for path in paths]
    kept = _pack_folder(ask.cache) / f"affectnet-{split}-labels-{_digest(str(files.root), paths, stamps)}.npy"
    with suppress(OSError, ValueError, EOFError):  # absent, or damaged: then they are read once more
        labels = np.load(kept)
        if labels.shape == (len(paths),) and labels.dtype == np.int64:
            return labels, {}

    def read(i: int) -> int | str:
        if stamps[i] is None:
            return "missing"
        try:
            value = np.load(io.BytesIO(files.read(paths[i])), allow_pickle=False)
            label = int(value.item())
        except Exception as error:  # noqa: BLE001 - whatever a broken file makes NumPy or zipfile raise
            return f"unreadable ({error})"
        return label if 0 <= label <= 7 else f"the label {label} is not in 0..7"

    with ThreadPool(WORKERS) as pool:
        results = list(_bar(pool.imap(read, range(len(paths)), chunksize=64), len(paths), f"{ask.name} {split} labels",
                            ask.progress))
    wrong = {path: result for path, result in zip(paths, results) if isinstance(result, str)}
    labels = np.array([-2 if isinstance(result, str) else result for result in results], dtype=np.int64)
    if not wrong:
        data = io.BytesIO()
        np.save(data, labels)
        with suppress(OSError):  # it only saves time
            _write(kept, data.getvalue())
    return labels, wrong


def _affectnet_csv(files: _Files, split: str, ask: _Ask) -> _Rows | None:
    """The older release: training.csv and validation.csv, with a face box in a larger photo; 8..10 are left out."""
    path = {"train": "training.csv", "valid": "validation.csv"}[split]
    if not files.has(path):
        return None
    with files.open(path) as stream:
        headless = stream.read(4096).decode("utf-8-sig", "replace").splitlines()[:1]
    names = _AFFECTNET_COLUMNS if headless and headless[0].count(",") == 8 and "expression" not in headless[0] else None
    needed = ("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "expression")
    table = _table(files, path, needed, **({"names": list(names), "header": None} if names else {}))
    table.index -= 1 if names else 0  # so that errors name the right line
    table = table[_numbers(table, ("expression",), path, 0, 10)[:, 0] <= 7]
    numbers = _numbers(table, needed[1:], path, -100_000, 100_000)
    places = table["subDirectory_filePath"].str.strip().str.replace("\\", "/").to_numpy(str)
    rows = _distinct(places, numbers, path)
    places, labels, boxes = places[rows], numbers[rows, 4], numbers[rows, :4]
    boxes[:, 2:] += boxes[:, :2]  # left top right bottom
    for base in ("Manually_Annotated_Images/", "Manually_Annotated/Manually_Annotated_Images/",
                 "Manually_Annotated_compressed/Manually_Annotated_Images/", ""):
        if any(files.stamp(base + place) for place in places[:100]):
            break
    return _rows(files, "affectnet", split, base, places, labels, boxes=boxes)


# -------------------------------------------------------------------------------------- SFEW, and folders of classes

_SFEW = {"angry": "anger", "disgust": "disgust", "fear": "fear", "happy": "happiness", "neutral": "neutral",
         "sad": "sadness", "surprise": "surprise"}
_SPLIT_FOLDERS = {"train": ("train", "training"), "valid": ("valid", "val", "validation"), "test": ("test", "testing")}


def _sfew_aligned(files: _Files, split: str) -> list[str]:
    """The folder of a split's aligned faces, beside or in that of its film stills, if it goes by its usual name and has
    one for each emotion."""
    begins = tuple(f"{name}_aligned" for name in _SPLIT_FOLDERS[split])
    inside = [f"{name}/{inner}" for name in files.folders() for inner in files.folders(name)]
    return [name for name in [*files.folders(), *inside]
            if name.split("/")[-1].lower().startswith(begins) and files.folders(name)][:1]


def _read_folders(files: _Files, splits: Sequence[str], ask: _Ask) -> list[_Rows]:
    """<split>/<class>/<image>, the names of the faces: ``folder`` with the classes it finds, ``sfew`` with its seven.

    Of ``folder``, <class>/<image> without splits are training faces.
    """
    places = {}
    aligned = {split: _sfew_aligned(files, split) for split in SPLITS} if ask.name == "sfew" else {}
    for split in SPLITS:
        named = [name for name in files.folders() if name.lower() in _SPLIT_FOLDERS[split] and files.folders(name)]
        if any(aligned.values()):
            named = aligned[split]  # not the film stills
        if len(named) > 1:
            raise FerlabError(f"{files.root} has both {named[0]} and {named[1]}; keep one of them for {split}.")
        if named:
            places[split] = named[0]
    if ask.name == "folder":
        flat = [name for name in files.folders() if any(name.lower() in known for known in _SPLIT_FOLDERS.values())
                and name not in places.values() and files.files(name, IMAGE_ENDINGS)]
        if flat and (places or len(flat) == len(files.folders())):
            raise FerlabError(f"{files.root}/{flat[0]} has no folder for each class: put its images into "
                              f"{flat[0]}/<class>/, or take it away.")
        if not places:
            for other, benchmark in _BENCHMARKS.items():
                own = [mark for mark in benchmark.markers if mark.lower() not in _BENCHMARKS["folder"].markers]
                if benchmark.read is not _read_folders and (marks := [mark for mark in own if files.has(mark)]):
                    raise FerlabError(f"{files.root} has {marks[0]}, as {other} has it: read it with --data {other}, "
                                      f"or take it away; folder expects there:\n{_BENCHMARKS['folder'].tree}")
            places["train"] = ""
    kinds = {place: files.folders(place) for place in places.values()}
    if ask.name == "sfew":
        classes = tuple(_SFEW.values())
        alias = {**_SFEW, **{name: name for name in classes}}
        if "test" in places and not any(name.lower() in alias for name in kinds[places["test"]]):
            del kinds[places.pop("test")]  # the official test faces have no labels
        for place, names in kinds.items():
            strange = [name for name in names if name.lower() not in alias]
            if strange:
                raise FerlabError(f"{files.root}/{place} has a folder {strange[0]}; SFEW's emotions are "
                                  f"{', '.join(name.title() for name in _SFEW)}.")
    else:
        classes = tuple(sorted({name for names in kinds.values() for name in names}))
        plainly: dict[str, str] = {}
        for name in classes:
            if (other := plainly.setdefault(name.strip().casefold(), name)) != name:
                warnings.warn(f"{files.root} has two classes called {other!r} and {name!r}: if they are one, give "
                              "their folders one name.", stacklevel=4)
        alias = {name: name for name in classes}

    found = []
    for split in (split for split in splits if split in places):
        names, labels = [], []
        base = places[split] and f"{places[split]}/"
        _pass_over(files, base, files.files(places[split], IMAGE_ENDINGS), "in no class's folder, and passed over.")
        for kind in kinds[places[split]]:
            images = files.files(base + kind, IMAGE_ENDINGS)
            _pass_over(files, f"{base}{kind}/", files.files(base + kind, UNREAD_ENDINGS),
                       "of a kind that is not read, and passed over: save as JPEG.")
            if deeper := files.folders(base + kind):
                warnings.warn(f"{files.root}/{base}{kind}/{deeper[0]} is a folder in a class's folder, and passed "
                              "over: put its images beside the others.", stacklevel=4)
            names += [f"{base}{kind}/{image}" for image in images]
            labels += [classes.index(alias[kind if kind in alias else kind.lower()])] * len(images)
        found.append(_rows(files, ask.name, split, "", names, np.array(labels), classes=classes))
    return found


def _pass_over(files: _Files, folder: str, names: Sequence[str], why: str) -> None:
    """Warn of the names in a folder, if there are any."""
    if names:
        verb = "is" if len(names) == 1 else "are"
        warnings.warn(f"{files.root}/{folder}{first_of(names)} {verb} {why}", stacklevel=5)


def first_of(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are, as in "a.png and 2 more"."""
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


# ------------------------------------------------------------------------------------------------- the packed pixels

def plain_picture(picture: Image.Image, mode: str, turn: bool = True) -> Image.Image:
    """Any picture in mode "L" or "RGB", transparent parts black; with ``turn`` upright by its EXIF orientation.

    Of whole numbers beyond a byte the fewest even bits, 10 to 16, that hold its brightest pixel are taken for white.

    Raises ValueError, before any pixel is decoded, for one of more than ``MAX_PIXELS``.
    """
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it claims {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        most = values.max()
        if picture.mode.startswith("I"):  # cameras write 10, 12 or 14 bits into 16
            values = values / (next((full for full in (255, 1023, 4095, 16383) if most <= full), 65535) / 255)
        elif most <= 1:
            values = values * 255
        picture = Image.fromarray(np.round(values).clip(0, 255).astype(np.uint8))
    elif turn:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture.convert(mode)


def _square(picture: Image.Image, size: int, mode: str, box: Sequence[int] | None = None) -> np.ndarray:
    """uint8 [size, size] (mode L) or [size, size, 3] (RGB) of any image; a box is in the pixels as they are stored."""
    width, height = picture.size
    if min(width, height) < SMALLEST:
        raise ValueError(f"it has {width} x {height} pixels only")
    picture = plain_picture(picture, mode, turn=box is None)
    if box is not None:
        left, top = max(int(box[0]), 0), max(int(box[1]), 0)
        right, bottom = min(int(box[2]), picture.width), min(int(box[3]), picture.height)
        if left >= right or top >= bottom:
            raise ValueError(f"its face box {tuple(map(int, box))} does not lie in the image of {width} x {height}")
        picture = picture.crop((left, top, right, bottom))
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.uint8)


def _packed(rows: _Rows, size: int, mode: str, ask: _Ask) -> tuple[np.ndarray, dict[int, str], Path]:
    """Memory map [N, size, size(, 3)] of all images of a split, what is wrong with those that it lacks, and its file.

    FerlabError if a face with a label is among those, unless they are to be skipped.
    """
    shape = (len(rows.names), size, size, 3)[:4 if mode == "RGB" else 3]
    home = f"{rows.family}-{rows.split}-{size}-{_digest(str(rows.root))}"
    boxes = None if rows.boxes is None else rows.boxes.tolist()
    path = _pack_folder(ask.cache) / f"{home}-{_digest(rows.base, rows.names, rows.stamps, boxes)}.npy"
    missing = {i: "missing" for i, stamp in enumerate(rows.stamps) if stamp is None}
    if not ask.skip_bad:
        _complain(rows, missing)

    def decode(i: int) -> np.ndarray | str:
        if i in missing:
            return missing[i]
        try:
            return _square(rows.picture(i), size, mode, None if boxes is None else boxes[i])
        except FerlabError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a broken file makes Pillow, zlib or zipfile raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            return re.sub(r" <[^>]* at 0x[0-9a-f]+>", "", said)  # which file it is, is told beside it

    def mended(i: int) -> bool:
        return i not in missing and not isinstance(decode(i), str)

    with _alone(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about odd files
        for _ in range(2):
            if not path.exists():
                _fill(path, shape, decode, f"{ask.name} {rows.split}", ask.progress)
            try:
                images = np.load(path, mmap_mode="r")
                state = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                bad = {int(i): reason for i, reason in state["bad"].items()}
                if images.shape == shape and images.dtype == np.uint8 and not any(mended(i) for i in bad):
                    break
            except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
                pass
            images = None  # damaged, or it lacks what can be read by now: pack once more
            with suppress(OSError):
                path.unlink()
        else:
            raise FerlabError(f"{path} cannot be read back; is the disk sound? Give another folder as cache.")
        for old in path.parent.glob(f"{home}-*"):  # of the same data set before it was changed
            if old.stem != path.stem:
                with suppress(OSError):
                    old.unlink()
    if not ask.skip_bad:
        _complain(rows, bad)
    return images, bad, path


def _fill(path: Path, shape: tuple[int, ...], decode: Callable[[int], np.ndarray | str], title: str,
          progress: bool | None) -> None:
    """Write a pack, in chunks, going on where a run was interrupted; it gets its name when it is whole."""
    part, state = path.with_suffix(".part"), path.with_suffix(".json")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    item = int(np.prod(shape[1:]))
    done, bad = 0, {}
    try:
        saved = json.loads(state.read_text(encoding="utf-8"))
        if part.stat().st_size >= header.tell() + saved["done"] * item:
            done, bad = saved["done"], saved["bad"]
    except (OSError, ValueError, KeyError, TypeError):
        pass

    room = shutil.disk_usage(path.parent).free
    if room < (shape[0] - done) * item:
        raise FerlabError(f"{path.parent} has room for {room / 1e6:,.0f} MB, and the faces of {title} take "
                          f"{shape[0] * item / 1e6:,.0f} MB; free some, or give another folder as cache.")
    try:
        with open(part, "r+b" if done else "wb") as file, ThreadPool(WORKERS) as pool:
            file.write(header.getvalue())
            file.seek(header.tell() + done * item)
            file.truncate()
            with _bar(None, shape[0], title, progress) as bar:
                bar.update(done)
                for start in range(done, shape[0], CHUNK):
                    numbers = range(start, min(start + CHUNK, shape[0]))
                    for i, image in zip(numbers, pool.map(decode, numbers)):
                        if isinstance(image, str):
                            bad[str(i)] = image
                            image = np.zeros(shape[1:], np.uint8)
                        file.write(image.tobytes())
                    file.flush()
                    _write(state, json.dumps({"done": numbers.stop, "bad": bad}).encode())
                    bar.update(len(numbers))
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        state.unlink(missing_ok=True)
        raise FerlabError(f"The faces of {title} cannot be written to {path.parent} ({error.strerror or error}); free "
                          "some room, or give another folder as cache.") from error


def _complain(rows: _Rows, bad: dict[int, str]) -> None:
    """FerlabError if an image whose label is needed is missing or unreadable."""
    needed = rows.labels >= 0
    faulty = [i for i in bad if needed[i]]
    if not faulty:
        return
    lacking = bad[faulty[0]] == "missing"
    reason = "" if lacking else f": {bad[faulty[0]]}"
    wrong, mend = ("are missing", "put them there") if lacking else ("cannot be read", "replace them")
    if lacking and len(faulty) == needed.sum():
        mend = "are the folders mixed up? Unpack the data set again"
    raise FerlabError(f"{len(faulty):,} of {needed.sum():,} {rows.split} images in {rows.root} {wrong} (first: "
                      f"{rows.base}{rows.names[faulty[0]]}{reason}); {mend}, or leave them out "
                      "with --skip-bad (in Python, skip_bad=True).")


def _pack_folder(cache: str | Path | None) -> Path:
    folder = cache_directory(cache) / "packs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FerlabError(f"The cache {folder} cannot be made ({error.strerror}); give another folder as cache, or set "
                          "FERLAB_CACHE.") from error
    return folder


def _write(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``; the others wait, and find it made."""
    with ExitStack() as stack:
        try:
            stack.enter_context(filelock.FileLock(path.with_suffix(".lock")))
        except OSError as error:
            if not path.exists():  # what is there already can be used from a disk that is read-only
                raise FerlabError(f"{path.parent} cannot be written ({error.strerror}); give another folder as cache, "
                                  "or set FERLAB_CACHE.") from error
        yield


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _bar(iterable: Any, total: int, title: str, progress: bool | None) -> tqdm:
    return tqdm(iterable, total=total, desc=title, unit="face", disable=None if progress is None else not progress)


# -------------------------------------------------------------------------------------------------------- the table

_FER_TREE = """\
    FER2013Train/fer0000000.png …   FER2013Valid/…   FER2013Test/…   (or Kaggle's fer2013.csv: emotion,pixels,Usage)
    fer2013new.csv                  (Usage,Image name,neutral,happiness,…,unknown,NF)"""
_AFFECTNET_TREE = """\
    train_set/images/0.jpg …   train_set/annotations/0_exp.npy …   val_set/…
    or, for the older release,
    training.csv   validation.csv   Manually_Annotated_Images/<folder>/<image>"""
_AFFECTNET = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
_FER_MARKERS = ("fer2013new.csv", "FER2013Train", "FER2013Valid", "FER2013Test", "fer2013.csv")
_AFFECTNET_MARKERS = ("train_set", "val_set", "training.csv", "validation.csv")

_BENCHMARKS = {
    "ferplus": _Benchmark(COMMON_CLASSES, 48, "L", _FER_MARKERS, _FER_TREE, _read_fer),
    "fer2013": _Benchmark(COMMON_CLASSES[:7], 48, "L", _FER_MARKERS, _FER_TREE + """
    fer2013_emotion.csv             (Image name,emotion; not needed beside Kaggle's fer2013.csv)""", _read_fer),
    "rafdb": _Benchmark(("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"), 100, "RGB",
                        ("EmoLabel", "Image", "train", "test"), """\
    Image/aligned/train_00001_aligned.jpg …   Image/aligned/test_0001_aligned.jpg …
    EmoLabel/list_patition_label.txt          (train_00001.jpg 5)
    or the same faces by their label, 1 surprise to 7 neutral: train/1/….jpg …   test/1/….jpg …""", _read_rafdb),
    "affectnet7": _Benchmark(_AFFECTNET[:7], 112, "RGB", _AFFECTNET_MARKERS, _AFFECTNET_TREE, _read_affectnet),
    "affectnet8": _Benchmark(_AFFECTNET, 112, "RGB", _AFFECTNET_MARKERS, _AFFECTNET_TREE, _read_affectnet),
    "sfew": _Benchmark(tuple(_SFEW.values()), 112, "RGB",
                       ("Train", "Val", "Train_Aligned_Faces", "Val_Aligned_Faces", "Val_Aligned_Faces_new"), """\
    Train/Angry/….png   Train/Disgust/…   Train/Fear/…   Train/Happy/…   Train/Neutral/…   Train/Sad/…
    Train/Surprise/…    Val/Angry/….png …   (or Train_Aligned_Faces/…, Val_Aligned_Faces/…: then these)""",
                       _read_folders),
    "folder": _Benchmark((), 112, "RGB", tuple(name for names in _SPLIT_FOLDERS.values() for name in names), """\
    train/<class>/<image>   valid/<class>/<image>   test/<class>/<image>   (any of the three),
    or <class>/<image> alone, which are training faces""", _read_folders),
}
NAMES = ("rendered", *_BENCHMARKS)
