"""The explorer: look at the faces that a run split off as noisy or an audit suspects, and decide about their labels.

    from ferlab import explorer
    view = explorer.View(explorer.open_run("runs/full"))   # what is shown, without a widget: a state and pictures of it
    view.gallery()
    view.card()
    explorer.Explorer(view)                                # the same with controls, in a notebook

``ferlab explore --run runs/full`` serves it as a page. A run's settings can be moved, and the new labels follow; an
audit's networks do not share an embedding, so that only its threshold can. All of it is ours.
"""

from __future__ import annotations

import asyncio
import html
import io
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import anywidget
import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
import torch
import traitlets
from PIL import Image

from ferlab import audit, benchmarks, plots
from ferlab.config import SPLITS, Config, KindOfAP
from ferlab.data import FaceSet
from ferlab.decisions import DecisionLog, face_names, read_labels, relabelled
from ferlab.drfer import epochs_to_split, soft_labels, with_given
from ferlab.errors import FerlabError
from ferlab.mixture import ClassMixture, TwoGaussians, evidence
from ferlab.model import DRFER, standardise
from ferlab.recogniser import Recogniser
from ferlab.retrieval import KINDS, class_average_precision, nearest_neighbours, retrieval_margin
from ferlab.runs import Run, json_object, tells_data

SIDE = 72  # pixels of a thumbnail
# what a served page may load: Voila's template asks others for icons, which the explorer does not use
ALONE = ("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws://127.0.0.1:*; "
         "frame-ancestors 'self'")
COLUMNS, ROWS = 6, 6  # thumbnails of a page
NEIGHBOURS = 8
ANY = -1  # in a Dropdown
PATIENCE = 0.25  # seconds that retrieval may hold up what is shown

# -------------------------------------------------------------------------------------------------------- the run

@dataclass(frozen=True, eq=False)
class Suspects:
    """What a run knows of its N training faces, as ``runs.Run.state("train")`` and its network tell, or an audit of
    the N faces that it judged.

    clean_probability, loss: [N]; average_precision, probability: [N, C]; embedding: [N, D]; history: [E, N];
    confusion: [C, C], P(given | true); network_of: the network that judged a face, by its row.
    nearest: int [N, K], of an audit: each face's nearest clean faces, -1 = no more. It has no embedding (D = 0) and no
    history (E = 0).
    """

    faces: FaceSet
    config: Config
    directory: Path
    clean_probability: np.ndarray
    loss: np.ndarray
    average_precision: np.ndarray
    embedding: torch.Tensor
    history: np.ndarray
    probability: np.ndarray
    confusion: torch.Tensor
    network_of: Callable[[int], DRFER | None] = lambda row: None
    nearest: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def of_audit(self) -> bool:
        """Whether an audit suspects them, and no run."""
        return self.nearest is not None

    @cached_property
    def names(self) -> np.ndarray:
        """Name of each face, str [N]."""
        return face_names(self.faces)

    @cached_property
    def given(self) -> torch.Tensor:
        """Given labels, int [N]."""
        return torch.as_tensor(self.faces.labels, device=self.embedding.device)

    @cached_property
    def targets(self) -> np.ndarray:
        """The given labels as rows [N, C]: soft where the label rule makes them so, else one-hot."""
        soft = self.faces.label_distribution
        return np.eye(len(self.faces.classes), dtype=np.float32)[self.faces.labels] if soft is None else soft

    @cached_property
    def evidence(self) -> np.ndarray:
        """The score that the faces were split by, [N], higher = more likely wrong; where retrieval counts for it, by
        the clean gallery (the split asks all faces)."""
        recent = self.history[-self.config.smooth_collections:]
        loss = recent.mean(0) if len(recent) else self.loss
        margin = None
        if self.config.evidence in ("margin", "both"):
            margin = retrieval_margin(torch.as_tensor(self.average_precision), self.given.cpu()).numpy()
        return evidence(self.config.evidence, loss, margin)

    @cached_property
    def collected(self) -> list[int]:
        """The epochs after which the losses of ``history`` were collected, [E]."""
        return [epoch for epoch in range(1, 1 + self.config.epochs) if epochs_to_split(self.config, epoch) is not None]

    @cached_property
    def mixtures(self) -> dict[int, TwoGaussians | None]:
        """The mixture of each given class, fitted as in the training."""
        scope: Literal["class", "shared"] = "class" if self.config.split == "class" else "shared"
        return ClassMixture(scope, self.config.tied).fit(self.evidence, self.faces.labels).mixtures

    def attention(self, row: int) -> np.ndarray | None:
        """The highest of the network's attention maps on a face, [h, w] in [0, 1]; None without a network."""
        network = self.network_of(row)
        if network is None:
            return None
        device = next(network.parameters()).device
        image = standardise(torch.from_numpy(np.array(self.faces.images[[row]])).to(device), network.size)
        with torch.no_grad():
            return network(image).attention[0].amax(0).float().cpu().numpy()


def open_run(directory: str | Path, faces: FaceSet | None = None, name: str | None = None,
             root: str | Path | None = None, progress: bool | None = None) -> Suspects:
    """A finished run and its training faces, or an audit and its faces.

    faces: the faces; by default they are read as data.json there tells, with ``name`` and ``root`` instead of its data
    set and root if given. Raises FerlabError if the run is not finished, its method does not split its faces, or the
    faces are others than it was made with.
    """
    if _is_audit(directory):
        found, _ = audit.read(directory)
        return _open_audit(
            Path(directory), found, judged_faces(directory, name, root, progress) if faces is None else faces)
    run = Run.open(directory)
    state, config = run.state("train"), run.config
    lacking = {"clean_probability", "average_precision", "embedding", "loss_history"} - set(state)
    if lacking:
        raise FerlabError(f"{directory} has no suspected faces (method {config.method}): explore a run of drfer, or "
                          "an audit.")
    faces = judged_faces(directory, name, root, progress) if faces is None else faces
    method = run.read_checkpoint().get("method", {})
    given, confusion = method.get("given"), method.get("confusion", torch.eye(len(faces.classes)).double())
    _check_faces(directory, faces, np.zeros(0) if given is None else given.numpy())
    recogniser = Recogniser.from_run(directory)
    return Suspects(
        faces, config, Path(directory), state["clean_probability"], state["loss"], state["average_precision"],
        torch.from_numpy(state["embedding"]).float().to(recogniser.device), state["loss_history"],
        state["probability"], confusion, lambda row: recogniser.network)


def _open_audit(directory: Path, found: audit.Audit, faces: FaceSet) -> Suspects:
    _check_faces(directory, faces, found.given)

    @cache
    def network(fold: int) -> DRFER | None:
        trained = directory / f"fold_{fold}"
        return Recogniser.from_run(trained).network if (trained / "checkpoint.pt").is_file() else None

    return Suspects(
        replace(faces, label_distribution=None),  # an audit judges the given class, not the raters' soft label
        Config(sharpness=1, temperature=1), directory, 1 - found.score,  # as Audit.soft_label is made
        -np.log(found.probability[np.arange(len(faces)), found.given].clip(1e-12)), found.average_precision,
        torch.zeros(len(faces), 0), np.zeros((0, len(faces)), np.float32), found.probability, found.confusion,
        lambda row: network(int(found.fold[row])), found.neighbours)


def _is_audit(directory: str | Path) -> bool:
    return (Path(directory) / "audit.json").is_file()


def _check_faces(directory: str | Path, faces: FaceSet, given: np.ndarray) -> None:
    if not np.array_equal(given, faces.labels):
        raise FerlabError(f"These are not the faces of {directory}: give the data set, options and noise that it was "
                          "made with.")


def judged_faces(directory: str | Path, name: str | None = None, root: str | Path | None = None,
                 progress: bool | None = None) -> FaceSet:
    """The training faces of a run that ``ferlab train`` made, with its noise and labels, or those of an audit; see
    ``open_run``."""
    directory = Path(directory)
    seed = None if _is_audit(directory) else Run.open(directory).config.seed
    try:
        record = json_object((directory / "data.json").read_text(encoding="utf-8"))
        if not tells_data(record):
            raise ValueError("root, options or holdout")
    except FileNotFoundError:
        record = {}
    except ValueError as error:
        raise FerlabError(f"{directory / 'data.json'} is damaged: make the run or the audit again.") from error
    name, root = name or record.get("data"), root or record.get("root")
    if name is None:
        raise FerlabError(f"{directory} does not tell its data set, as it was not made by ferlab train or audit: open "
                          "it in Python, with explorer.open_run(directory, faces).")
    holdout, noise, split = record.get("holdout", 0.0), record.get("noise"), record.get("split", "train")
    loaded = benchmarks.load(
        name, root, rule=record.get("rule", "majority"), skip_bad=record.get("skip_bad", False),
        holdout=holdout, noise=noise, noise_rate=record.get("noise_rate") or 0.0,
        noise_seed=record.get("noise_seed", seed or 0), splits=SPLITS if holdout else (split,),
        progress=progress, **record.get("options", {}))
    if record.get("labels"):
        path = directory / "labels.csv"
        loaded = relabelled(loaded, read_labels(path), path, split, holdout)
    faces = loaded._asdict()[split]
    if faces is None:
        raise FerlabError(f"{root or name} has no {split} faces: give --root.")
    return faces


# ------------------------------------------------------------------------------------------ the state, and what follows

@dataclass(frozen=True)
class Settings:
    """What decides the split and the new labels.

    threshold: a face below this clean probability is noisy. average_precision: "plain", "chance" or "balanced";
    top_k: None = the whole gallery.
    """

    threshold: float = 0.5
    average_precision: KindOfAP = "balanced"
    top_k: int | None = None

    @classmethod
    def of(cls, config: Config) -> Settings:
        """Those of a run."""
        return cls(config.clean_threshold, config.average_precision, config.top_k)


@dataclass(frozen=True)
class Filter:
    """Which of the noisy faces are shown, and in which order.

    given, new: a class, None = any. clean, margin: least and greatest clean probability and AP margin.
    changed: only faces whose new label is not the given one.
    reference: "any", "given wrong", "given right", "new right" or "new wrong", where the reference is known.
    decided: "any", "no" or "yes". sort: one of ``ORDERS``.
    """

    given: int | None = None
    new: int | None = None
    clean: tuple[float, float] = (-np.inf, np.inf)
    margin: tuple[float, float] = (-np.inf, np.inf)
    changed: bool = False
    reference: str = "any"
    decided: str = "any"
    sort: str = "most suspicious"


ORDERS = ("most suspicious", "least suspicious", "lowest AP margin", "most certain new label", "highest loss", "name")
REFERENCES = ("any", "given wrong", "given right", "new right", "new wrong")


class Relabelling:
    """The split and the new labels under some settings.

    noisy: bool [N]; precision: class AP in the gallery of clean faces, [N, C]; soft: new soft label, [N, C], rows sum
    to 1; new: int [N]; margin: AP of the given class minus the best other, [N]; lower = more likely mislabelled.

    Under the run's own settings all is known at once. Under others, ``pending`` holds the noisy faces that are yet to
    be retrieved: call ``retrieve``; until then these have the values of ``former``.
    """

    def __init__(self, suspects: Suspects, settings: Settings, former: Relabelling | None = None):
        self.suspects, self.settings = suspects, settings
        self.noisy = suspects.clean_probability < settings.threshold
        own = settings == Settings.of(suspects.config)
        self.precision: np.ndarray
        precision = suspects.average_precision if own or former is None else former.precision
        self.precision = precision.copy()
        self.soft = np.empty_like(suspects.targets)
        self.margin = np.empty(len(suspects), np.float32)
        self._derive(np.arange(len(suspects)))
        self.gallery = torch.from_numpy(np.flatnonzero(~self.noisy)).to(suspects.embedding.device)
        settled = own or suspects.of_audit or not len(self.gallery)
        self.pending = np.zeros(0, int) if settled else np.flatnonzero(self.noisy)

    @property
    def new(self) -> np.ndarray:
        return self.soft.argmax(1)

    @cached_property
    def _gallery_embedding(self) -> torch.Tensor:
        return self.suspects.embedding[self.gallery]

    def retrieve(self, rows: np.ndarray | None = None, seconds: float = np.inf) -> int:
        """Relabel pending faces, those of ``rows`` or all, for so long; returns how many are left."""
        known = self.suspects
        ended = time.perf_counter() + seconds
        wanted = self.pending if rows is None else rows[np.isin(rows, self.pending)]
        for part in np.array_split(wanted, -(-len(wanted) // 64)) if len(wanted) else []:
            index = torch.from_numpy(part).to(known.embedding.device)
            self.precision[part] = class_average_precision(
                known.embedding[index], self._gallery_embedding, known.given[self.gallery], len(known.faces.classes),
                self.settings.top_k, **KINDS[self.settings.average_precision]).cpu().numpy()
            self._derive(part)
            self.pending = np.setdiff1d(self.pending, part, assume_unique=True)
            if time.perf_counter() > ended:
                break
        return len(self.pending)

    def _derive(self, rows: np.ndarray) -> None:
        """Soft labels and margins of ``rows`` from their AP, as ``DRFERMethod.split_and_relabel`` makes them."""
        known, config = self.suspects, self.suspects.config
        precision, given = torch.from_numpy(self.precision[rows]), known.given[rows].cpu()
        soft = soft_labels(config, precision, torch.from_numpy(known.probability[rows]), given, known.confusion)
        w, targets = torch.from_numpy(known.clean_probability[rows]), torch.from_numpy(known.targets[rows])
        noisy = torch.from_numpy(self.noisy[rows])
        self.soft[rows] = with_given(soft, w, given, targets, noisy, config.keep_given).numpy()
        self.margin[rows] = retrieval_margin(precision, given).numpy()

    def neighbours(self, row: int, count: int = NEIGHBOURS) -> np.ndarray:
        """Rows of the nearest clean faces of a noisy face, nearest first, int [<= count]."""
        if self.suspects.nearest is not None:
            known = self.suspects.nearest[row, :count]
            return known[known >= 0]
        if not len(self.gallery):
            return np.zeros(0, int)
        nearest = nearest_neighbours(self.suspects.embedding[[row]], self._gallery_embedding, count + 1)[0]
        found = self.gallery[nearest].cpu().numpy()
        return found[found != row][:count]


def choose(relabelling: Relabelling, wanted: Filter, decided: np.ndarray | None = None) -> np.ndarray:
    """Rows of the noisy faces that pass a filter, in its order, int [M]; decided: bool [N], None = nothing is."""
    known, new = relabelling.suspects, relabelling.new
    given, w, margin = known.faces.labels, known.clean_probability, relabelling.margin
    truth = known.faces.truth
    shown = relabelling.noisy.copy()
    shown &= (w >= wanted.clean[0]) & (w <= wanted.clean[1])
    shown &= (margin >= wanted.margin[0]) & (margin <= wanted.margin[1])
    if wanted.given is not None:
        shown &= given == wanted.given
    if wanted.new is not None:
        shown &= new == wanted.new
    if wanted.changed:
        shown &= new != given
    if wanted.reference != "any" and truth is not None:
        which, _, right = wanted.reference.partition(" ")
        shown &= (truth >= 0) & (((given if which == "given" else new) == truth) == (right == "right"))
    if wanted.decided != "any":
        shown &= (np.zeros(len(known), bool) if decided is None else decided) == (wanted.decided == "yes")
    rows = np.flatnonzero(shown)
    keys: dict[str, Callable[[], tuple[np.ndarray, ...]]] = {
        "most suspicious": lambda: (margin[rows], w[rows]),
        "least suspicious": lambda: (-margin[rows], -w[rows]),
        "lowest AP margin": lambda: (margin[rows],),
        "most certain new label": lambda: (-relabelling.soft[rows].max(1),),
        "highest loss": lambda: (-known.loss[rows],),
        "name": lambda: (known.names[rows],),
    }
    if wanted.sort not in keys:
        raise FerlabError(f'There is no order "{wanted.sort}": choose one of {", ".join(keys)}.')
    return rows[np.lexsort(keys[wanted.sort]())]


class View:
    """What the explorer shows: settings, filter, the faces that pass it, the page and the chosen face, and decisions.

    rows: int [M], the faces shown, in order; row: the chosen one, None if there is none; page: of the gallery, from 0.
    """

    def __init__(self, suspects: Suspects, log: DecisionLog | str | Path | None = None,
                 page_size: int = COLUMNS * ROWS):
        self.suspects, self.page_size = suspects, page_size
        path = suspects.directory / "decisions.csv" if log is None else log
        self.log = path if isinstance(path, DecisionLog) else DecisionLog(path)
        self.filter = Filter()
        self.settings = Settings.of(suspects.config)
        self.relabelling = Relabelling(suspects, self.settings)
        self._row_of = {name: row for row, name in enumerate(suspects.names.tolist())}
        self._mine: list[str] = []  # names decided here, for undo
        self.row: int | None = None
        self.refresh()

    # what is shown

    def refresh(self, row: int | None = None) -> None:
        """Filter anew, and choose ``row``, or else keep the chosen face if it is still shown, or else the first."""
        self.log.refresh()
        row = self.row if row is None else row
        self.rows = choose(self.relabelling, self.filter, self.decided)
        self.row = None
        if len(self.rows):
            self.choose(row if row is not None and (self.rows == row).any() else int(self.rows[0]))
        else:
            self.page = 0

    def set_filter(self, **changes: Any) -> None:
        """Change the filter; see ``Filter``."""
        self.filter = replace(self.filter, **changes)
        self.refresh()

    def set_settings(self, **changes: Any) -> None:
        """Change the settings of split and relabelling. What takes long is left in ``relabelling.pending``."""
        self.settings = replace(self.settings, **changes)
        self.relabelling = Relabelling(self.suspects, self.settings, self.relabelling)
        self.relabelling.retrieve(seconds=PATIENCE)
        self.refresh()
        self.relabelling.retrieve(self.page_rows)  # what is looked at comes first

    @property
    def decided(self) -> np.ndarray:
        """bool [N]: faces about which a decision is in force; a skipped face counts."""
        decided = np.zeros(len(self.suspects), bool)
        decided[[self._row_of[name] for name in self.log.current if name in self._row_of]] = True
        return decided

    @property
    def pages(self) -> int:
        return max(1, -(-len(self.rows) // self.page_size))

    @property
    def page_rows(self) -> np.ndarray:
        """The faces of the page, int [<= page_size]."""
        return self.rows[self.page * self.page_size:(self.page + 1) * self.page_size]

    @property
    def position(self) -> int:
        """The chosen face's place in ``rows``, -1 if there is none."""
        return -1 if self.row is None else int(np.flatnonzero(self.rows == self.row)[0])

    def choose(self, row: int) -> None:
        """Choose a face that is shown, and turn to its page."""
        if not (self.rows == row).any():
            raise FerlabError(f"Face {row} is not among the {len(self.rows):,} shown: change the filter.")
        self.row = row
        self.page = self.position // self.page_size

    def move(self, by: int) -> None:
        """Choose the face so many places on, or the last there is in that direction."""
        if len(self.rows):
            self.choose(int(self.rows[np.clip(self.position + by, 0, len(self.rows) - 1)]))

    def turn(self, by: int) -> None:
        """Turn so many pages, and choose the first face there."""
        if len(self.rows):
            page = int(np.clip(self.page + by, 0, self.pages - 1))
            self.choose(int(self.rows[page * self.page_size]))

    # decisions

    @property
    def new_label(self) -> str:
        """The chosen face's new class."""
        return "" if self.row is None else self.suspects.faces.classes[self.relabelling.new[self.row]]

    @property
    def given_label(self) -> str:
        """The chosen face's given class."""
        return "" if self.row is None else self.suspects.faces.classes[self.suspects.faces.labels[self.row]]

    def decide(self, decision: str, label: str | None = None) -> None:
        """Write a decision about the chosen face to the disk, then choose the next face.

        decision: "accept" the new label, "keep" the given one, "choose" the class ``label``, or "skip".
        """
        if self.row is None:
            return
        labels = {"accept": self.new_label, "keep": self.given_label, "choose": label, "skip": ""}
        if decision not in labels:
            raise FerlabError(f'There is no decision "{decision}": choose one of {", ".join(labels)}.')
        wanted = labels[decision]
        if wanted is None or (wanted and wanted not in self.suspects.faces.classes):
            raise FerlabError(f"There is no class {wanted}: choose one of {', '.join(self.suspects.faces.classes)}.")
        name = str(self.suspects.names[self.row])
        self.log.append(name, self.given_label, decision, wanted)
        self._mine.append(name)
        self.move(1)

    def undo(self) -> None:
        """Take back the latest decision made here, or else the log's latest; and choose its face if it is shown."""
        self.log.refresh()
        while self._mine and self.log.get(self._mine[-1]) is None:  # taken back elsewhere
            self._mine.pop()
        latest = self.log.get(self._mine.pop()) if self._mine else self.log.latest
        if latest is None:
            return
        self.log.append(latest.name, latest.given, "undo")
        row = self._row_of.get(latest.name)
        if row is not None and (self.rows == row).any():
            self.choose(row)

    # pictures

    def caption(self, row: int) -> str:
        """Given and new class, or the one decided on."""
        classes, given = self.suspects.faces.classes, self.suspects.faces.labels[row]
        decision = self.log.get(str(self.suspects.names[row]))
        if decision is not None:
            return f"✓ {decision.label}" if decision.label else "skipped"
        new = self.relabelling.new[row]
        return f"{classes[given]} →\N{NO-BREAK SPACE}{classes[new]}" if new != given else f"{classes[given]}"

    def gallery(self) -> plots.Picture:
        """The page of the gallery as a picture: given class, and below it the new one or the decision."""
        rows = self.page_rows
        captions = [self.caption(row).replace(" →", "\n→") for row in rows.tolist()]
        if any("\n" in text for text in captions):
            captions = [text if "\n" in text else text + "\n " for text in captions]
        chosen = [row == self.row for row in rows.tolist()]
        return plots.face_grid(self.suspects.faces.images[rows], captions, chosen, COLUMNS,
                               title=self.summary.replace("; ", ";\n"))

    def card(self) -> plots.Picture | None:
        """All that is known of the chosen face as a picture; None if there is no face."""
        if self.row is None:
            return None
        row, known, now = self.row, self.suspects, self.relabelling
        now.retrieve(np.array([row]))
        faces, given = known.faces, int(known.faces.labels[row])
        nearest = now.neighbours(row)
        return plots.suspect_card(
            np.asarray(faces.images[row]), known.attention(row), faces.classes, given, now.soft[row],
            now.precision[row], None if faces.votes is None else faces.votes[row], faces.images[nearest],
            faces.labels[nearest], None if known.of_audit else self._how_split(row))

    def _how_split(self, row: int) -> plots.HowSplit:
        known, given = self.suspects, int(self.suspects.faces.labels[row])
        of_class = known.config.split == "class"  # else all classes have one mixture
        return plots.HowSplit(
            known.history[:, row], self._class_history(given), known.collected, float(known.evidence[row]),
            known.evidence[known.faces.labels == given] if of_class else known.evidence, known.mixtures.get(given),
            f"given {known.faces.classes[given]}" if of_class else "all classes", self.evidence_name)

    def _class_history(self, given: int) -> np.ndarray:
        """Quartiles of the losses of a given class over the collections, [E, 3]."""
        mine = self.suspects.faces.labels == given
        return np.quantile(self.suspects.history[:, mine], (0.25, 0.5, 0.75), axis=1).T

    @property
    def evidence_name(self) -> str:
        """What the faces were split by, in words."""
        recent = min(self.suspects.config.smooth_collections, len(self.suspects.history))
        mean = f" (mean of the last {recent})" if recent > 1 else ""
        return {"loss": f"loss{mean}", "root": f"square root of the loss{mean}", "margin": "negative AP margin",
                "both": "loss and AP margin"}[self.suspects.config.evidence]

    @property
    def summary(self) -> str:
        """Counts of the split, the new labels, the filter and the decisions."""
        now, known = self.relabelling, self.suspects
        noisy = now.noisy
        changed = int((now.new != known.faces.labels)[noisy].sum())
        faces, why = ("training faces", "split off as noisy") if not known.of_audit else ("faces", "suspected")
        return (f"{len(known):,} {faces}, {int(noisy.sum()):,} {why}, another class likelier for {changed:,} of them; "
                f"{len(self.rows):,} in the list, {len(self.log.current):,} decided")


def sheet(images: Sequence[np.ndarray] | np.ndarray, side: int = SIDE, columns: int = COLUMNS) -> bytes:
    """Thumbnails side by side in rows of ``columns``, as one PNG; images uint8 [N, H, W] or [N, H, W, 3]."""
    rows = max(1, -(-len(images) // columns))
    page = Image.new("RGB", (columns * side, rows * side), "white")
    for i, image in enumerate(images):
        thumbnail = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        page.paste(thumbnail, (i % columns * side, i // columns * side))
    buffer = io.BytesIO()
    page.save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------------- widgets

_GALLERY = """
const KEYS = "aksu123456789";
const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown"];

function render({ model, el }) {
  const grid = document.createElement("div");
  grid.className = "ferlab-gallery";
  grid.tabIndex = 0;
  grid.setAttribute("role", "listbox");
  grid.setAttribute("aria-label", "faces split off as noisy");
  el.append(grid);
  let url = "";

  const mark = () => {
    for (const tile of grid.children) {
      const chosen = Number(tile.dataset.row) === model.get("chosen");
      tile.classList.toggle("chosen", chosen);
      tile.setAttribute("aria-selected", chosen);
    }
  };
  const draw = () => {
    const side = model.get("side"), columns = model.get("columns");
    URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([model.get("sheet")], { type: "image/png" }));
    grid.style.gridTemplateColumns = `repeat(auto-fill, ${side + 8}px)`;  // fewer than columns in a narrow window
    grid.replaceChildren(...model.get("tiles").map(({ row, caption, name, decided }, i) => {
      const [tile, face, text] = Array.from({ length: 3 }, () => document.createElement("div"));
      tile.className = decided ? "tile decided" : "tile";
      tile.dataset.row = row;
      tile.title = `${name}: ${caption}`;           // as text, whatever a file is called
      tile.setAttribute("role", "option");
      face.style.cssText = `width: ${side}px; height: ${side}px; background: url(${url}) ` +
        `-${(i % columns) * side}px -${Math.floor(i / columns) * side}px`;
      text.className = "caption";
      text.append(...caption.split(/(?<= )(?=→)/).map((part) => {  // the given class, and below it the new one
        const line = document.createElement("div");
        line.textContent = part;
        return line;
      }));
      tile.append(face, text);
      tile.onclick = () => { grid.focus({ preventScroll: true }); model.send({ row }); };
      return tile;
    }));
    mark();
  };
  model.on("change:tiles", draw);
  model.on("change:chosen", mark);
  draw();

  // Before anyone else hears of it: in JupyterLab's command mode letters insert, cut and delete cells.
  const press = (event) => {
    const panel = el.closest(".ferlab-explorer");
    if (!panel || !panel.isConnected) return;
    const alone = model.get("alone") && event.target === document.body;
    if (!(panel.contains(event.target) || alone) || event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.matches("input, textarea, select, [contenteditable=true], [role=slider], .noUi-handle");
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const ours = !field && (KEYS.includes(key) || MOVES.includes(key));
    if (ours || key.length === 1 || (key === "Enter" && !field && !event.shiftKey)) event.stopImmediatePropagation();
    if (ours) event.preventDefault();
    if (!ours || (event.repeat && KEYS.includes(key))) return;  // a key held down decides once
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    model.send({ key, row: model.get("chosen"), columns });
  };
  window.addEventListener("keydown", press, true);
  return () => { window.removeEventListener("keydown", press, true); URL.revokeObjectURL(url); };
}
export default { render };
"""

_STYLE = """
.ferlab-gallery { display: grid; gap: 2px; outline: none; justify-content: start; }
.ferlab-gallery:focus-visible { outline: 1px solid var(--jp-brand-color1, #1976d2); outline-offset: -1px; }
.ferlab-gallery .tile { padding: 3px; border: 2px solid transparent; border-radius: 4px; cursor: pointer;
  box-sizing: border-box; min-width: 0; }
.ferlab-gallery .tile:hover { background: var(--jp-layout-color2, #eee); }
.ferlab-gallery .chosen { border-color: #d6006c; background: var(--jp-layout-color2, #eee); }
.ferlab-gallery .decided > div:first-child { opacity: 0.45; }
.ferlab-gallery .caption { font: 11px/1.25 var(--jp-ui-font-family, sans-serif); text-align: center;
  color: var(--jp-ui-font-color1, #222); height: 2.5em; }
.ferlab-gallery .caption div { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.ferlab-explorer details { max-width: 860px; }
.ferlab-explorer { color: var(--jp-ui-font-color1, #222); font-family: var(--jp-ui-font-family, sans-serif); }
.ferlab-explorer .widget-hslider .widget-readout { min-width: 92px; max-width: none; }
.ferlab-explorer .widget-html-content { line-height: 1.4; }
.ferlab-explorer kbd { border: 1px solid #999; border-radius: 3px; padding: 0 4px; font-size: 11px; }
"""


_LEGEND = """<details><summary>What is shown?</summary>
<p>The list holds the faces whose given label is doubted. Of the chosen one:</p><ul>
<li><b>soft label</b>: the shares that the classes get in its new label. The given class is pink, the new one bold.</li>
<li><b>class AP</b>: how far ahead the clean faces of each class come when all are ordered by their likeness to it;
1 = before all others (average precision). Below, the <b>nearest clean faces</b>, framed in the colours of their
classes.</li>
<li><b>attention</b>: where the network looks.</li>
<li><b>its loss</b>: of the given label in the epochs before each split, beside the middle half (band) and the median
(dashed) of all faces with that label. A loss that stays high makes a label suspicious.</li>
<li><b>where it sits</b>: its place (pink) among all losses, and the two groups that were fitted to them, of right
(line) and of wrong labels (dotted).</li></ul>
<p>Each decision is on the disk at once; <code>ferlab data apply-decisions</code> makes corrected labels of them.</p>
</details>"""


class Gallery(anywidget.AnyWidget):
    """A page of thumbnails to click on, which also hears the keys of the whole explorer.

    sheet: the page as one PNG; tiles: of each thumbnail its row, caption, name, and whether it is decided; chosen: row.
    alone: whether the browser's page holds nothing else, so that all keys are meant for it.
    Sends {"row": r} for a click and {"key": k, "row": the chosen one, "columns": as the browser shows them} for a key.
    """

    _esm, _css = _GALLERY, _STYLE
    sheet = traitlets.Bytes(b"").tag(sync=True)
    tiles: Any = traitlets.List([]).tag(sync=True)
    chosen = traitlets.Int(-1).tag(sync=True)
    columns = traitlets.Int(COLUMNS).tag(sync=True)
    side = traitlets.Int(SIDE).tag(sync=True)
    alone = traitlets.Bool(False).tag(sync=True)


class Explorer(widgets.VBox):
    """The widget: a thin shell around a ``View``. Its controls are attributes, so that a program can move them, too.

    alone: whether it has its browser page to itself.
    """

    def __init__(self, view: View, alone: bool = False):
        self.view = view
        faces = view.suspects.faces
        classes = [(name, c) for c, name in enumerate(faces.classes)]
        self._quiet = False
        self.summary, self.message, self.heading = (widgets.HTML() for _ in range(3))
        self.gallery, self.picture = Gallery(alone=alone), widgets.Image(format="png")
        self.picture.layout = widgets.Layout(width="100%", max_width="860px")

        # filter
        self.given = _dropdown("given", [("any", ANY), *classes], "The label that the face came with")
        self.new = _dropdown("new", [("any", ANY), *classes], "The likeliest class of its new soft label")
        self.changed = widgets.Checkbox(description="changed only", indent=False, layout=_width("120px"),
                                        tooltip="Only faces for which another class than the given one is likelier")
        self.reference = _dropdown("reference", REFERENCES, "What is known of the true label, to try the method out")
        self.decided = _dropdown("decided", ["any", "no", "yes"], "Whether you have decided about the face")
        self.sort = _dropdown("sort", ORDERS, "The order of the list", "230px")
        self.clean = _range("clean probability", 0, 1, 0.01, "How likely the given label is right: low = suspicious")
        self.margin = _range("AP margin", -1, 1, 0.02, "Below 0: another class's faces resemble it more than those of "
                                                       "its given class")
        for control in (self.given, self.new, self.changed, self.reference, self.decided, self.sort, self.clean,
                        self.margin):
            control.observe(self._filter, "value")

        # settings
        depths = sorted({10, 20, 50, 100, 200, 500, view.settings.top_k or 10})
        self.threshold = widgets.FloatSlider(
            min=0, max=1, step=0.01, description="threshold", continuous_update=False, readout_format=".2f",
            style={"description_width": "auto"}, layout=_width("300px"),
            tooltip="Faces whose clean probability is below it are suspected, and listed")
        self.average_precision = _dropdown("AP", ["plain", "chance", "balanced"], "How class APs are computed: as they "
                                           "are, corrected for chance, or as if all classes were equally frequent")
        self.top_k = _dropdown("top-k", [("whole gallery", ANY), *((str(k), k) for k in depths)],
                               "How many of the most similar clean faces count")
        self.as_it_was = _button("As it was", self._as_it_was, "The settings that the run or the audit was made with")
        self._show_settings()
        for control in (self.threshold, self.average_precision, self.top_k):
            control.observe(self._settings, "value")

        # decisions
        self.accept = _button("Accept", lambda _: self.decide("accept"), "The new label is right (key a)", "success")
        self.keep = _button("Keep", lambda _: self.decide("keep"), "The given label is right (key k)", "info")
        self.skip = _button("Skip", lambda _: self.decide("skip"), "Leave it undecided (key s)")
        self.undo = _button("Undo (u)", lambda _: self._act(self.view.undo), "Take back the latest decision (key u)")
        self.others = [_button(f"{c + 1} {name}" if c < 9 else name, self._choose_class(name), f"It is {name}")
                       for c, name in enumerate(faces.classes)]
        self.back = _button("‹ Page", lambda _: self._act(lambda: self.view.turn(-1)), "Page up")
        self.forth = _button("Page ›", lambda _: self._act(lambda: self.view.turn(1)), "Page down")
        self.back.layout.width = self.forth.layout.width = "80px"
        self.place = widgets.HTML()
        self.gallery.on_msg(self._heard)

        if view.suspects.of_audit:
            self.average_precision.layout.display = self.top_k.layout.display = "none"
        known_truth = faces.truth is not None and bool((faces.truth >= 0).any())
        self.reference.layout.display = None if known_truth else "none"
        keys = ("<kbd>a</kbd> accept <kbd>k</kbd> keep <kbd>s</kbd> skip <kbd>u</kbd> undo <kbd>1</kbd>…<kbd>9</kbd> "
                "class <kbd>←</kbd> <kbd>→</kbd> <kbd>↑</kbd> <kbd>↓</kbd> face")
        left = widgets.VBox(
            [self.gallery, _row(self.back, self.place, self.forth), widgets.HTML(keys), widgets.HTML(_LEGEND)],
            layout=widgets.Layout(width=f"{COLUMNS * (SIDE + 10) + 16}px", max_width="100%", flex="0 1 auto"))
        right = widgets.VBox([self.heading, _row(self.accept, self.keep, self.skip, self.undo), _row(*self.others),
                              self.picture], layout=widgets.Layout(flex="1 1 340px", min_width="0", max_width="860px"))
        super().__init__([
            self.summary,
            _row(widgets.HTML("<b>Show</b>"), self.given, self.new, self.changed, self.reference, self.decided,
                 self.sort),
            _row(self.clean, self.margin),
            _row(widgets.HTML("<b>Split and relabel</b>"), self.threshold, self.average_precision, self.top_k,
                 self.as_it_was),
            self.message,
            # where there is no room for both side by side, the face to decide about comes first
            widgets.HBox([left, right], layout=widgets.Layout(flex_flow="row wrap-reverse", align_items="flex-end",
                                                              grid_gap="16px")),
        ])
        self.add_class("ferlab-explorer")
        self._show()

    # what the controls do

    def decide(self, decision: str, label: str | None = None) -> None:
        """Decide about the chosen face and go on to the next; see ``View.decide``."""
        self._act(lambda: self.view.decide(decision, label))

    def _choose_class(self, name: str) -> Callable[[Any], None]:
        return lambda _: self.decide("choose", name)

    def _act(self, action: Callable[[], Any]) -> None:
        """Do something and show what became of it; what goes wrong is told, too, for in a callback it would vanish."""
        self.message.value = ""
        try:
            action()
            self._show()
        except Exception as error:
            text = str(error) if isinstance(error, FerlabError) else f"{type(error).__name__}: {error}"
            self.message.value = f'<span style="color: #b00020">{html.escape(text)}</span>'
            if not isinstance(error, FerlabError):
                raise

    def _filter(self, _: Any = None) -> None:
        def ends(slider: widgets.FloatRangeSlider) -> tuple[float, float]:
            low, high = slider.value  # an end of the slider leaves nothing out
            return (low if low > slider.min else -np.inf, high if high < slider.max else np.inf)

        self._act(lambda: self.view.set_filter(
            given=_or_none(self.given.value), new=_or_none(self.new.value), changed=self.changed.value,
            reference=self.reference.value, decided=self.decided.value, sort=self.sort.value,
            clean=ends(self.clean), margin=ends(self.margin)))

    def _settings(self, _: Any = None) -> None:
        if self._quiet:
            return
        self._act(lambda: self.view.set_settings(
            threshold=self.threshold.value, average_precision=self.average_precision.value,
            top_k=_or_none(self.top_k.value)))
        self._relabel_the_rest()

    def _as_it_was(self, _: Any = None) -> None:
        own = Settings.of(self.view.suspects.config)
        self._act(lambda: self.view.set_settings(**vars(own)))
        self._show_settings()

    def _show_settings(self) -> None:
        self._quiet = True  # all three at once, not one after the other
        for each in fields(Settings):
            value = getattr(self.view.settings, each.name)
            getattr(self, each.name).value = ANY if value is None else value
        self._quiet = False

    def _relabel_the_rest(self) -> None:
        """Retrieve what is pending: between the messages of a running notebook, or at once where nothing runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if len(self.view.relabelling.pending):
                self.view.relabelling.retrieve()
                self._act(self.view.refresh)
            return
        self._task = loop.create_task(self._relabel_between_messages())  # kept, for the loop alone would drop it

    async def _relabel_between_messages(self) -> None:
        relabelling = self.view.relabelling
        total = len(relabelling.pending)
        while self.view.relabelling is relabelling and len(relabelling.pending):
            left = relabelling.retrieve(seconds=PATIENCE / 2)
            self.message.value = f"Relabelling: {total - left:,} of {total:,} ..." if left else ""
            await asyncio.sleep(0.02)
        if total and self.view.relabelling is relabelling:
            self._act(self.view.refresh)

    def _heard(self, _: Any, content: dict[str, Any], __: Any = None) -> None:
        """A click on a thumbnail, or a key."""
        key, row = content.get("key"), content.get("row")
        if key is None:
            self._act(lambda: self.view.choose(content["row"]))
            return
        columns = content.get("columns", COLUMNS)
        view, moves = self.view, {"ArrowLeft": -1, "ArrowRight": 1, "ArrowUp": -columns, "ArrowDown": columns}
        pages = {"PageUp": -1, "PageDown": 1}
        classes = view.suspects.faces.classes
        if key in moves:
            self._act(lambda: view.move(moves[key]))
        elif key in pages:
            self._act(lambda: view.turn(pages[key]))
        elif key == "u":
            self._act(view.undo)
        elif row != view.row:
            return  # pressed before the browser showed this face
        elif key in (shortcuts := {"a": "accept", "k": "keep", "s": "skip"}):
            self.decide(shortcuts[key])
        elif key.isdecimal() and 0 < int(key) <= len(classes):
            self.decide("choose", classes[int(key) - 1])

    # what is shown

    def _show(self) -> None:
        view = self.view
        faces, rows = view.suspects.faces, view.page_rows
        self.summary.value = f"<b>{html.escape(view.suspects.directory.name)}</b> &nbsp; {html.escape(view.summary)}"
        self.heading.value = self._heading()
        decisions = [view.log.get(str(view.suspects.names[row])) for row in rows]
        with self.gallery.hold_sync():
            self.gallery.sheet = sheet(faces.images[rows])
            self.gallery.tiles = [
                {"row": row, "caption": view.caption(row), "name": str(view.suspects.names[row]), "decided": bool(made)}
                for row, made in zip(rows.tolist(), decisions)]
            self.gallery.chosen = -1 if view.row is None else view.row
        first = view.page * view.page_size
        self.place.value = (f"{first + 1:,}–{first + len(rows):,} of {len(view.rows):,}" if len(rows)
                            else "no face passes the filter")
        self.back.disabled, self.forth.disabled = view.page == 0, view.page + 1 >= view.pages
        for button in (self.accept, self.keep, self.skip, *self.others):
            button.disabled = view.row is None
        self.undo.disabled = view.log.latest is None
        if view.row is not None:
            self.accept.description = f"Accept {view.new_label} (a)"
            self.keep.description = f"Keep {view.given_label} (k)"
            self.skip.description = "Skip (s)"
        self.accept.layout.display = "none" if view.new_label == view.given_label else None
        card = view.card()  # last, for it takes longest
        self.picture.layout.display = "none" if card is None else None
        if card is not None:
            self.picture.value = _png(card)

    def _heading(self) -> str:
        view = self.view
        if view.row is None:
            return "<i>No face passes the filter.</i>"
        row, known = view.row, view.suspects
        name = str(known.names[row])
        parts = [f"given <b>{html.escape(view.given_label)}</b>, new <b>{html.escape(view.new_label)}</b>",
                 f"clean probability {known.clean_probability[row]:.2f}",
                 f"AP margin {view.relabelling.margin[row]:+.2f}"]
        if view.filter.reference != "any" and known.faces.truth is not None and known.faces.truth[row] >= 0:
            parts.append(f"reference <b>{html.escape(known.faces.classes[known.faces.truth[row]])}</b>")
        decision = view.log.get(name)
        if decision is not None:
            label = f" {html.escape(decision.label)}" if decision.label else ""
            parts.append(f"decided: {decision.decision}{label}")
        return " · ".join([*parts, f"<code>{html.escape(name)}</code>"])

    def __repr__(self) -> str:
        """What a reader without a kernel sees in its place."""
        return "The explorer, which needs a running notebook (make lab)."


def _png(picture: plots.Picture) -> bytes:
    """A picture as PNG, quickly: its size on the page is known, and nobody keeps it."""
    buffer = io.BytesIO()
    with mpl.rc_context(plots.STYLE):
        picture.savefig(buffer, format="png", dpi=110, pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def _or_none(value: int) -> int | None:
    """What a Dropdown of ``ANY`` and others says; it cannot offer None, which means that nothing is chosen."""
    return None if value == ANY else value


def _width(width: str) -> widgets.Layout:
    return widgets.Layout(width=width)


def _dropdown(name: str, options: Sequence[Any], tooltip: str, width: str = "auto") -> widgets.Dropdown:
    return widgets.Dropdown(options=options, description=name, tooltip=tooltip, layout=_width(width),
                            style={"description_width": "auto"})


def _range(name: str, low: float, high: float, step: float, tooltip: str) -> widgets.FloatRangeSlider:
    return widgets.FloatRangeSlider(
        value=(low, high), min=low, max=high, step=step, description=name, layout=_width("420px"), tooltip=tooltip,
        continuous_update=False, readout_format=".2f", style={"description_width": "auto"})


def _button(text: str, action: Callable[[Any], None], tooltip: str, style: str = "") -> widgets.Button:
    button = widgets.Button(description=text, tooltip=tooltip, button_style=style, layout=_width("auto"))
    button.on_click(action)
    return button


def _row(*children: widgets.Widget) -> widgets.HBox:
    layout = widgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 12px")
    return widgets.HBox(children, layout=layout)


# ----------------------------------------------------------------------------------------------------- as a page

def serve(directory: str | Path, name: str | None = None, root: str | Path | None = None,
          decisions: str | Path | None = None, port: int = 8866, ready: Callable[[str], Any] = print) -> None:
    """Serve the explorer of a run or an audit as a page on this machine alone (127.0.0.1, behind a token) until
    interrupted.

    decisions: the CSV, by default decisions.csv of the run. port: where the search for a free port begins.
    ready: is told the address once the page is there. Each visitor has a kernel, and all write to one log.
    """
    import nbformat
    from voila.app import Voila

    suspects = open_run(directory, name=name, root=root)  # what is wrong is told here, and pixels are decoded once
    log = DecisionLog(Path(decisions or suspects.directory / "decisions.csv").resolve())
    arguments = [str(Path(directory).resolve()), name, None if root is None else str(Path(root).resolve())]
    source = (f"from ferlab import explorer\n"
              f"suspects = explorer.open_run({arguments[0]!r}, name={arguments[1]!r}, root={arguments[2]!r})\n"
              f"explorer.Explorer(explorer.View(suspects, {str(log.path)!r}), alone=True)")
    token = secrets.token_urlsafe(24)

    class Page(Voila):
        def launch_browser(self) -> None:
            ready(f"{self.connection_url}?token={token}")

    with tempfile.TemporaryDirectory(prefix="ferlab-") as folder:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata={
            "title": f"ferlab: {suspects.directory.name}",
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}})
        path = Path(folder) / "explore.ipynb"
        nbformat.write(notebook, path)
        page = Page()
        sockets = os.name == "posix" and len(folder) <= 30  # the path of one, 70 longer, may have 103 characters
        page.initialize([str(path), "--Voila.ip=127.0.0.1", f"--port={port}", "--Voila.log_level=ERROR",
                         "--Voila.open_browser=True", f"--Voila.connection_dir_root={folder}",
                         *(["--KernelManager.transport=ipc"] if sockets else [])])
        page.token = token
        page.tornado_settings = {"headers": {"Content-Security-Policy": ALONE}, "ws_ping_timeout": 30_000}
        page.start()
