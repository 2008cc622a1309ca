"""What a person decided about suspected labels: a log that only grows, and the corrected label file made from it.

    log = DecisionLog("runs/full/decisions.csv")
    log.append("0007.png", "fear", "accept", "surprise")   # on disk when it returns
    labels = corrected_labels(faces, log)                  # int [N]
    write_labels("corrected.csv", named(faces, labels))    # what ferlab train --labels takes

All of it is ours: DR-FER's source trains on the new labels without asking anyone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ferlab.data import FaceSet, Splits
from ferlab.errors import FerlabError
from ferlab.runs import write_whole

KINDS = ("accept", "keep", "choose", "skip")  # and "undo", which takes back the face's latest
LABELS_HEADER = ["name", "label"]


class Decision(NamedTuple):
    """One row of the log. label: the class decided on, "" for a face that was skipped."""

    time: str
    name: str
    given: str
    decision: str
    label: str


class DecisionLog:
    """Decisions on disk, one row each, in the order they were made: time, name, given, decision, label.

    Rows are only ever appended, under a lock, and are on the disk before ``append`` returns; so a kernel may die at any
    time and several explorers may write to one file. Undo is a row, too. Reading a damaged file raises FerlabError; a
    last row without its end, left by a crash, is passed over, and removed by the next ``append``.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows: list[Decision] = []
        self._stacks: dict[str, list[Decision]] = {}
        self._read = 0  # bytes
        self.refresh()

    @property
    def current(self) -> dict[str, Decision]:
        """The decision in force about each face that has one, by name."""
        return {name: stack[-1] for name, stack in self._stacks.items() if stack}

    def get(self, name: str) -> Decision | None:
        """The decision in force about a face; None if there is none."""
        stack = self._stacks.get(name)
        return stack[-1] if stack else None

    @property
    def latest(self) -> Decision | None:
        """The last decision of the log that is in force."""
        alive = {id(row) for stack in self._stacks.values() for row in stack}
        return next((row for row in reversed(self.rows) if id(row) in alive), None)

    def append(self, name: str, given: str, decision: str, label: str = "") -> Decision:
        """Write one row to the disk, and read what others wrote meanwhile.

        decision: one of ``KINDS``, or "undo". Raises FerlabError if it cannot be written.
        """
        if decision not in (*KINDS, "undo"):
            raise FerlabError(f'There is no decision "{decision}": choose one of {", ".join(KINDS)} and undo.')
        if self.path.is_file():
            self.refresh()  # a file of another kind is told, and stays as it is
        row = Decision(datetime.now(timezone.utc).isoformat(timespec="microseconds"), name, given, decision, label)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file, _locked(file):
                end = _cut_unfinished_row(file)
                header = b"" if end else (",".join(Decision._fields) + "\n").encode()
                file.write(header + text.getvalue().encode(errors="surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FerlabError(f"The decision could not be written to {self.path} ({error.strerror}): free some space "
                              "or choose a file that you may write to; it does not count.") from error
        self.refresh()
        return row

    def refresh(self) -> bool:
        """Read the rows that were appended since; True if there were any."""
        try:
            with open(self.path, "rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:  # another file took its place
                    self.rows, self._stacks, self._read = [], {}, 0
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise FerlabError(f"{self.path} cannot be read ({error.strerror}).") from error
        begun, whole, _ = new.partition(b"\n")
        try:
            header = ",".join(Decision._fields).encode()
            if not self._read and not (begun.rstrip(b"\r") == header if whole else header.startswith(begun)):
                raise ValueError("another header")
            new = new[: new.rfind(b"\n") + 1]
            if not new:
                return False
            rows = list(csv.reader(io.StringIO(new.decode(errors="surrogateescape"), newline="")))
            if not self._read:
                del rows[0]
            decisions = [Decision(*row) for row in rows]
            if unknown := [row for row in decisions if row.decision not in (*KINDS, "undo")]:
                raise ValueError(f"decision {unknown[0].decision}")
        except (ValueError, TypeError, csv.Error) as error:
            raise FerlabError(f"{self.path} is not a log of decisions (time, name, given, decision, label): choose "
                              "another file or mend it.") from error
        self._read += len(new)
        for row in decisions:
            self.rows.append(row)
            stack = self._stacks.setdefault(row.name, [])
            if row.decision != "undo":
                stack.append(row)
            elif stack:
                stack.pop()
        return bool(decisions)


def _cut_unfinished_row(file: Any) -> int:
    """Remove what follows the last line break, the row of a writer that died; returns the length then."""
    end = file.seek(0, os.SEEK_END)
    if not end:
        return 0
    start = max(0, end - 65536)
    file.seek(start)
    tail = file.read()
    whole = start + tail.rfind(b"\n") + 1
    if whole < end:
        file.truncate(whole)
    return whole


@contextmanager
def _locked(file: Any):
    """Alone with the file, among all that lock it."""
    try:
        import fcntl
    except ImportError:  # Windows has no flock; rows of one write stay whole there as well
        yield
        return
    with suppress(OSError):  # some network disks have no locks; rows of one write mostly stay whole there, too
        fcntl.flock(file, fcntl.LOCK_EX)  # ends when the file is closed
    yield


# ---------------------------------------------------------------------------------------------------- corrected labels

def face_names(faces: FaceSet) -> np.ndarray:
    """The name of each face, str [N]: its file name, or its row where the data set has no names."""
    return np.arange(len(faces)).astype(str) if faces.names is None else faces.names


def corrected_labels(faces: FaceSet, log: DecisionLog) -> np.ndarray:
    """The labels of ``faces`` after the decisions, int [N]; faces that were skipped or never decided keep theirs.

    Raises FerlabError if a decision is about a face, a given label or a class that is not there: it belongs to others.
    """
    decisions = list(log.current.values())
    rows = _rows_of(faces, [each.name for each in decisions], log.path)
    labels = faces.labels.copy()
    for row, each in zip(rows, decisions):
        if faces.classes[faces.labels[row]] != each.given:
            raise FerlabError(f"{log.path} has {each.name} as given {each.given}, but here it is given "
                              f"{faces.classes[faces.labels[row]]}: take the data and the noise that were explored.")
        if each.label:
            labels[row] = _class_of(faces, each.label, each.name, log.path)
    return labels


def named(faces: FaceSet, labels: np.ndarray) -> dict[str, str]:
    """{name: class name} of each face; labels: int [N]. Raises FerlabError where faces share a name."""
    names = face_names(faces).tolist()
    pairs = {name: faces.classes[label] for name, label in zip(names, labels.tolist())}
    if len(pairs) < len(names):
        raise FerlabError(f"{len(names) - len(pairs):,} of the faces share a name with another: give each its own.")
    return pairs


def write_labels(path: str | Path, labels: Mapping[str, str]) -> None:
    """A CSV of name and label, one row a face, whole or not at all; labels: {name: class name}."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([LABELS_HEADER, *labels.items()])
    write_whole(Path(path), lambda temporary: temporary.write_bytes(text.getvalue().encode(errors="surrogateescape")))


def fingerprint(labels: Mapping[str, str]) -> str:
    """Tells one set of labels {name: class name} from another."""
    return hashlib.sha256("\n".join(f"{name},{label}" for name, label in sorted(labels.items())).encode(
        errors="surrogateescape")).hexdigest()[:16]


def read_labels(path: str | Path) -> dict[str, str]:
    """{name: label} from a CSV with these two columns. Raises FerlabError if it is another file or names one twice."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except OSError as error:
        raise FerlabError(f"The label file {path} cannot be read ({error.strerror}): give a CSV whose first line is "
                          "name,label.") from error
    except (ValueError, csv.Error) as error:
        raise FerlabError(f"The label file {path} is no CSV in UTF-8.") from error
    if header != LABELS_HEADER:
        begun = ascii(",".join(header)[:60])
        raise FerlabError(f"The label file {path} begins with {begun}: its first line must be name,label.")
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != 2:
            raise FerlabError(f"{path}, row {number}, has {len(row)} fields: each needs a name and a label.")
        if labels.setdefault(row[0], row[1]) != row[1]:
            raise FerlabError(f"{path} gives {row[0]} two labels, {labels[row[0]]} and {row[1]}: leave one.")
    return labels


def with_labels(faces: FaceSet, labels: Mapping[str, str], path: str | Path = "The label file") -> FaceSet:
    """The same faces with other given labels; faces that are not listed keep theirs.

    labels: {name: class name}. A soft label (``label_distribution``) gives way where the label changes. Raises
    FerlabError for a name or class that is not there.
    """
    rows = _rows_of(faces, list(labels), path)
    new = faces.labels.copy()
    new[rows] = [_class_of(faces, label, name, path) for name, label in labels.items()]
    changed, soft = new != faces.labels, faces.label_distribution
    if soft is not None:
        soft = np.where(changed[:, None], np.eye(len(faces.classes), dtype=soft.dtype)[new], soft)
    text = f"labels changed by a file: {int(changed.sum()):,}"
    return replace(faces, labels=new, label_distribution=soft,
                   noise=f"{faces.noise}; {text}" if faces.noise else text)


def relabelled(splits: Splits, labels: Mapping[str, str], path: str | Path, split: str = "train",
               holdout: float = 0.0) -> Splits:
    """``with_labels`` for a split, and with a ``holdout`` for ``valid``, too, whose faces were among its own."""
    names = ("valid", split) if holdout else (split,)  # a name that both have is of the split
    found = {name: faces for name in names if (faces := getattr(splits, name)) is not None}
    where = {face: name for name, faces in found.items() for face in face_names(faces).tolist()}
    return splits._replace(**{
        name: with_labels(faces, {face: label for face, label in labels.items() if where.get(face, name) == name}, path)
        for name, faces in found.items()})


def _rows_of(faces: FaceSet, names: list[str], path: str | Path) -> np.ndarray:
    """Row of each name, int [M]."""
    rows: dict[str, int] = {}
    twice = set()
    for row, name in enumerate(face_names(faces).tolist()):
        if rows.setdefault(name, row) != row:
            twice.add(name)
    for name in names:
        if name not in rows or name in twice:
            what = "stands for several faces" if name in twice else "is none"
            raise FerlabError(f"{path} names {name}, which {what} of the {len(faces):,} faces of "
                              f"{faces.dataset or 'this data set'}, such as {next(iter(rows), 'none')}: take it out of "
                              "the file, or leave no faces out, as --option train= and --skip-bad do.")
    return np.array([rows[name] for name in names], dtype=np.int64)


def _class_of(faces: FaceSet, label: str, name: str, path: str | Path) -> int:
    if label not in faces.classes:
        raise FerlabError(f"{path} calls {name[:60]} {label[:60]!r}, which is no class: the classes are "
                          f"{', '.join(faces.classes)}.")
    return faces.classes.index(label)
