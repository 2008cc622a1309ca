"""Every picture of the README and the notebooks: one style, and one fixed colour an emotion.

    plots.labelled_faces(faces.images[:16], faces.labels[:16], faces.truth[:16], faces.classes)

Each function takes arrays and returns its ``Picture``, which a notebook shows when it is the last value of a cell.
``python -m ferlab.plots`` (or ``make figures``) draws those of ``FIGURES`` into figures/, from rendered faces only, and
copies those of ``SHOWN`` out of the notebooks.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import click
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from ferlab.data import FaceSet
from ferlab.errors import FerlabError
from ferlab.mixture import TwoGaussians

# Ours: chosen so that any two differ by at least 30 (CIE76), to normal eyes and to protanopes, deuteranopes and
# tritanopes (Machado's simulation; tests/test_plots.py measures it). Names stand beside them all the same.
EMOTIONS = {
    "neutral": "#c2c2c2",
    "happiness": "#f7c010",
    "surprise": "#68bcf7",
    "sadness": "#05169b",
    "anger": "#bb6806",
    "disgust": "#04784d",
    "fear": "#82468a",
    "contempt": "#1f0601",
}
CLEAN, WRONG = "#a9bcc6", "#d6006c"  # right and wrong labels, in every picture; wrong ones are hatched or framed too
FAINT = "#e9e9e9"  # what only shows where the others lie
# Runs and methods (Okabe and Ito), each with its own dash.
LINES = ("#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
STYLES = [(colour, DASHES[(i + turn) % 5], "osD^v"[(i + turn) % 5])  # colour, dash, marker: no two alike
          for turn in range(5) for i, colour in enumerate(LINES)]
# What several pictures show has one colour in all of them, whatever else is there: a place in STYLES.
FIXED = {r"^plain": 0, r"^(DR-FER|full|quick|softer|two views)|\bwith (MIM|DCL)": 1, r"\bwithout |^no |^symmetric": 2,
         r"^none": 3, r"^annotators": 4}
YARDSTICK = ("#777777", ":", "X")  # of what others are measured by
STYLE: Any = {
    "font.size": 12, "axes.titlesize": 13, "axes.labelsize": 12, "figure.titlesize": 14, "legend.fontsize": 11,
    "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "figure.dpi": 90, "savefig.dpi": 90, "image.cmap": "gray", "lines.linewidth": 2.2,
    "hatch.linewidth": 0.8, "text.parse_math": False,  # names of files and classes are shown as they are
}


class Picture(Figure):
    """A figure that shows itself in a notebook as a small PNG, whatever the backend, and that nobody has to close."""

    def png(self, colours: int = 256) -> bytes:
        """The picture as PNG in at most so many colours, which makes it several times smaller."""
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.08)
        pixels = Image.open(buffer).convert("RGB").quantize(  # a photo leaves the other colours as they are
            colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        pixels.save(buffer, format="png", optimize=True)
        return buffer.getvalue()

    def _ipython_display_(self) -> None:
        from IPython import display

        display.display(display.Image(data=self.png(64)))  # a whole notebook should stay below 500 kB


_Plot = TypeVar("_Plot", bound=Callable[..., Picture])


def _styled(plot: _Plot) -> _Plot:
    """The same function, drawing in ``STYLE``."""

    @functools.wraps(plot)
    def styled(*args: Any, **options: Any) -> Picture:
        with mpl.rc_context(STYLE):
            return plot(*args, **options)

    return cast(_Plot, styled)


def _brief(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def class_colours(classes: Sequence[str]) -> list[str]:
    """A colour for each class: its own for the eight emotions (by name), the rest of those in turn for other names."""
    rest = [colour for name, colour in EMOTIONS.items() if name not in classes] or list(EMOTIONS.values())
    others = itertools.cycle(rest)
    return [EMOTIONS[name] if name in EMOTIONS else next(others) for name in classes]


def line_styles(names: Sequence[str]) -> list[tuple]:
    """Colour, dash and marker of each name: those of ``FIXED`` (of several alike the colour), of the rest in turn."""
    fixed = {name: place for name in names for start, place in FIXED.items() if re.search(start, name)}
    free = (i for i in range(len(STYLES)) if i % len(LINES) not in fixed.values())
    taken: set[int] = set()
    styles = []
    for name in names:
        alike = range(fixed[name], len(STYLES), len(LINES)) if name in fixed else free
        place = next(i for i in alike if i not in taken)
        taken.add(place)
        styles.append(YARDSTICK if name in ("grey", "spread evenly") else STYLES[place])
    return styles


def _ink(colour: str) -> str:
    """Black or white, whichever is read more easily on ``colour``."""
    return "black" if np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.5 else "white"


def _figure(rows: int, columns: int, width: float, height: float, title: str = "", **options: Any
            ) -> tuple[Picture, np.ndarray]:
    """A picture of width x height inches with axes [rows, columns]."""
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if title:
        figure.suptitle(title)
    return figure, axes


def _face(axes: Axes, image: np.ndarray, title: str = "", wrong: bool = False, **where: Any) -> None:
    """Draw an image uint8 [H, W] or [H, W, 3] with a title; wrong = framed, title in the same colour.

    where: extent and aspect, if the axes hold more than this image.
    """
    axes.imshow(image, vmin=0, vmax=255, interpolation="nearest" if len(image) <= 64 else None, **where)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=wrong, color=WRONG, linewidth=4)
    if title:
        axes.set_title(title, fontsize=11, pad=5, color=WRONG if wrong else "black")


def _heat(axes: Axes, image: np.ndarray, heat: np.ndarray, peak: float | None = None, **where: Any) -> None:
    """Draw an image and over it a map [g, g], not negative, bright = high; peak = the brightest, None = its highest."""
    height, width = image.shape[:2]
    smooth = Image.fromarray(np.asarray(heat, np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    shown = np.clip(np.asarray(smooth) / max(peak or float(heat.max()), 1e-12), 0, 1)
    _face(axes, image, **where)
    axes.imshow(shown, cmap="plasma", vmin=0, vmax=1, alpha=0.75 * np.sqrt(shown), **where)


def with_sliders(draw: Callable[..., Any], **controls: Any) -> Any:
    """A widget: controls beside what ``draw`` makes of their values, drawn anew whenever one changes.

    draw: takes the values by name and returns a ``Picture`` or an image uint8 [H, W] or [H, W, 3].
    controls: ipywidgets that have a value, such as FloatSlider. (No Output widget, unlike ``interact``: those swallow
    the errors of ``draw``, and an executor of notebooks may wait for them for ever.)
    """
    import ipywidgets as widgets

    class Sliders(widgets.HBox):
        def __repr__(self) -> str:
            """What a reader without a kernel sees in their place."""
            return "Sliders, which need a running notebook (make lab)."

    picture = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        drawn, buffer = draw(**{name: control.value for name, control in controls.items()}), io.BytesIO()
        if isinstance(drawn, Picture):
            buffer.write(drawn.png())
        else:
            Image.fromarray(drawn).save(buffer, format="png")
        picture.value = buffer.getvalue()

    for name, control in controls.items():
        control.description = control.description or name.replace("_", " ")
        control.observe(redraw, "value")
    redraw()
    return Sliders([widgets.VBox(list(controls.values())), picture])


# -------------------------------------------------------------------------------------------------------------- faces

@_styled
def face_grid(images: Any, captions: Sequence[str] = (), wrong: Sequence[bool] | None = None, columns: int = 8,
              row_names: Sequence[str] = (), title: str = "", size: float = 1.25) -> Picture:
    """Faces in rows of ``columns``.

    images: uint8 [N, H, W] or [N, H, W, 3]. captions: one a face, or one a column (then above the first row only).
    wrong: bool [N], True = framed. row_names: to the left of each row. size: side of a face in inches.
    """
    count, columns = len(images), min(columns, max(1, len(images)))
    rows = max(1, -(-count // columns))
    every = len(captions) > columns or rows == 1
    lines = max((text.count("\n") + 1 for text in captions), default=0)
    height = size * rows + 0.22 * lines * (rows if every else 1) + 0.3 * bool(title)
    margin = 0.1 * max(map(len, row_names), default=0)
    figure, axes = _figure(rows, columns, size * columns + margin, height, title)
    for i, each in enumerate(axes.flat):
        if i >= count:
            each.set_axis_off()
            continue
        text = captions[i] if i < len(captions) and (every or i < columns) else ""
        _face(each, images[i], text, wrong is not None and bool(wrong[i]))
    for each, name in zip(axes[:, 0], row_names):
        each.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def labelled_faces(images: Any, given: np.ndarray, truth: np.ndarray | None, classes: Sequence[str],
                   title: str = "") -> Picture:
    """Faces [N] under their given label; a wrong one is framed, and its true class named below it.

    given, truth: int [N]; truth may be None, or -1 for a face whose class nobody knows.
    """
    given = np.asarray(given)
    truth = np.full(len(given), -1) if truth is None else np.asarray(truth)
    wrong = (truth >= 0) & (truth != given)
    captions = [f"{classes[g]}\n{f'truly {classes[t]}' if w else ' '}" if wrong.any() else classes[g]
                for g, t, w in zip(given, truth, wrong)]
    return face_grid(images, captions, wrong, title=title, size=1.4)


@_styled
def vote_bars(images: Any, votes: np.ndarray, classes: Sequence[str], captions: Sequence[str] = (),
              title: str = "") -> Picture:
    """Each face beside a bar that stacks its raters' votes; votes [N, C], not negative, the same sum not required."""
    votes, rows = np.asarray(votes), -(-len(images) // 2)
    figure, axes = _figure(rows, 4, 10.4, 1.22 * rows + 0.8, title, width_ratios=[1, 3.6] * 2)
    colours, most = class_colours(classes), max(1.0, float(votes.sum(1).max()))
    for each in axes.flat[2 * len(images):]:
        each.set_axis_off()
    for i, (image, counts) in enumerate(zip(images, votes)):
        face, bar = axes.flat[2 * i:2 * i + 2]
        _face(face, image)
        starts = np.cumsum(counts) - counts
        for c in np.flatnonzero(counts).tolist():
            bar.barh(0, counts[c], left=starts[c], color=colours[c], edgecolor="white", height=0.5)
            name = classes[c] if counts[c] >= 0.23 * most else classes[c][:3]
            if counts[c] >= 0.09 * most:
                middle = starts[c] + counts[c] / 2
                bar.text(middle, 0, name, ha="center", va="center", fontsize=11, color=_ink(colours[c]))
        bar.set(xlim=(0, most), ylim=(-0.5, 0.5), xticks=[], yticks=[])
        bar.spines[:].set_visible(False)
        if captions:
            bar.set_title(captions[i], loc="left", fontsize=12, pad=-6)
    seen = np.flatnonzero(votes.sum(0)).tolist()
    figure.legend([Patch(color=colours[c]) for c in seen], [classes[c] for c in seen], loc="outside lower center",
                  ncols=min(8, len(seen)), handlelength=1, columnspacing=1)
    return figure


@_styled
def heat_on_faces(images: Any, maps: np.ndarray, captions: Sequence[str] = (), peak: float | None = None,
                  title: str = "") -> Picture:
    """Faces, and below each the same with a map laid over it: bright = high.

    maps: [N, g, g], not negative, of any resolution. peak: the value that is drawn brightest, None = each map's own
    highest, so that only the place can be compared and not the amount.
    """
    figure, axes = _figure(2, len(images), 1.3 * len(images), 2.75 + 0.3 * bool(title), title)
    for column, image, heat in zip(axes.T, images, np.asarray(maps, np.float32)):
        _face(column[0], image)
        _heat(column[1], image, heat, peak)
    for each, text in zip(axes[0], captions):
        each.set_title(text, fontsize=12, pad=5)
    return figure


@_styled
def heat_rows(images: Any, maps: Mapping[str, np.ndarray], captions: Sequence[str] = ()) -> Picture:
    """Faces, and below them one row for each of several maps [N, g, g] laid over the same faces: bright = high.

    maps: {name of the row: [N, g, g], not negative, of any resolution}; each is drawn up to its own highest value.
    """
    margin = 0.1 * max(map(len, maps), default=0)
    figure, axes = _figure(1 + len(maps), len(images), 1.2 * len(images) + margin, 1.2 * (1 + len(maps)) + 0.3)
    for column, image in zip(axes[0], images):
        _face(column, image)
    for row, (name, heats) in zip(axes[1:], maps.items()):
        for each, image, heat in zip(row, images, heats):
            _heat(each, image, heat)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for each, text in zip(axes[0], captions):
        each.set_title(text, fontsize=12, pad=5)
    return figure


@_styled
def crops(image: np.ndarray, boxes: Mapping[str, tuple[float, float, float]], size: int = 48) -> Picture:
    """An image with boxes drawn on it, and beside it what each cuts out, as a network of ``size`` pixels sees it.

    boxes: {name: (left, top, side)} in pixels of the image.
    """
    figure, axes = _figure(1, 1 + len(boxes), 1.9 * (1 + len(boxes)), 2.3)
    _face(axes[0, 0], image, "whole image")
    for each, (name, (left, top, side)), colour, dash in zip(axes[0, 1:], boxes.items(), LINES, DASHES):
        box = Rectangle((left, top), side, side, fill=False, edgecolor=colour, linestyle=dash, linewidth=2.5)
        axes[0, 0].add_patch(box)
        cut = Image.fromarray(image).crop((round(left), round(top), round(left + side), round(top + side)))
        _face(each, np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)), name)
        each.spines[:].set(visible=True, color=colour, linestyle=dash, linewidth=2.5)
    return figure


# ------------------------------------------------------------------------------------------------------------- labels

@_styled
def class_counts(counts: np.ndarray, classes: Sequence[str], title: str = "") -> Picture:
    """A bar for each class with its number of faces; counts int [C]."""
    figure, axes = _figure(1, 1, 8, 3.4, title)
    bars = axes[0, 0].bar(classes, counts, color=class_colours(classes), edgecolor="black", linewidth=0.6)
    axes[0, 0].bar_label(bars, [f"{count:,}" for count in counts], padding=2, fontsize=11)
    axes[0, 0].set_ylabel("faces")
    axes[0, 0].margins(y=0.1)
    if max(map(len, classes)) * len(classes) > 80:
        axes[0, 0].tick_params(axis="x", rotation=30)
    return figure


@_styled
def class_matrices(matrices: Mapping[str, np.ndarray], classes: Sequence[str], rows: str = "true class",
                   columns: str = "given label", title: str = "") -> Picture:
    """One or several matrices [C, C] side by side, each row as per cent of its sum; under 1 % no number is written.

    matrices: {title: matrix}, not negative. An empty row stays blank.
    """
    import seaborn

    count, number = len(classes), len(matrices)
    side = 0.36 * count + 0.3
    figure, axes = _figure(1, number, side * number + 1.6, side + 1.6 + 0.3 * bool(title), title, sharey=True)
    for each, (name, matrix) in zip(axes[0], matrices.items()):
        matrix = np.asarray(matrix, float)
        shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-12)
        numbers = [[f"{share:.0f}" if share >= 1 else "" for share in row] for row in shares]
        seaborn.heatmap(shares, vmin=0, vmax=100, cmap="Blues", annot=numbers, fmt="", annot_kws={"size": 11},
                        square=True, cbar=False, xticklabels=classes, yticklabels=classes, ax=each)
        each.set(xlabel=columns, title=name)
        each.tick_params(length=0, axis="x", rotation=90)
        each.tick_params(length=0, axis="y", rotation=0)
    axes[0, 0].set_ylabel(f"{rows}  (rows: %)")
    return figure


def transition_matrices(labels: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str],
                        title: str = "") -> Picture:
    """Where the given labels of each true class went.

    labels: {title: (truth int [N], given int [N])}; faces of truth -1 are left out.
    """
    return class_matrices({name: count_pairs(truth, given, len(classes)) for name, (truth, given) in labels.items()},
                          classes, title=title)


def confusion_matrix(matrix: Any, classes: Sequence[str]) -> Picture:
    """Where a recogniser's answers went; matrix: counts [C, C], rows = true class, as in ``metrics.classification``."""
    mean_recall = np.mean([row[i] / sum(row) for i, row in enumerate(np.asarray(matrix)) if sum(row)])
    name = f"mean-class accuracy {100 * mean_recall:.1f} %"
    return class_matrices({name: matrix}, classes, columns="recognised as")


def count_pairs(rows: np.ndarray, columns: np.ndarray, num_classes: int) -> np.ndarray:
    """int [C, C]: how often label r of ``rows`` [N] meets label c of ``columns`` [N]; pairs with a -1 are left out."""
    rows, columns = np.asarray(rows), np.asarray(columns)
    known = (rows >= 0) & (columns >= 0)
    pairs = rows[known] * num_classes + columns[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@_styled
def disagreement(entropy: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str = "") -> Picture:
    """For each class the histogram of its faces' vote entropy (bits, 0 = all raters agree), and its mean.

    entropy: [N]; labels: int [N].
    """
    rows = -(-len(classes) // 4)
    figure, axes = _figure(rows, 4, 10, 1.9 * rows + 0.5, title, sharex=True)
    edges = np.linspace(0, max(1.0, float(np.max(entropy, initial=0))), 13)
    for each in axes.flat[len(classes):]:
        each.set_axis_off()
    for c, (each, colour) in enumerate(zip(axes.flat, class_colours(classes))):
        mine = np.asarray(entropy)[np.asarray(labels) == c]
        each.hist(mine, edges, color=colour, edgecolor="white", linewidth=0.6)
        mean = float(mine.mean()) if len(mine) else float("nan")
        each.axvline(mean, color="white", linewidth=4)  # a rim, so that the line shows on dark bars
        each.axvline(mean, color="black", linestyle="--")
        each.set_title(f"{classes[c]}: mean {mean:.2f}" if len(mine) else f"{classes[c]}: no faces", fontsize=12)
    _label_faces(axes, "entropy (bits)")
    return figure


def _label_faces(axes: np.ndarray, name: str, count: str = "faces") -> None:
    """Label histograms [rows, columns] that count faces, in whole numbers."""
    for each in axes.flat:
        each.yaxis.set_major_locator(MaxNLocator(integer=True))
    for each in axes[-1]:
        each.set_xlabel(name)
    for each in axes[:, 0]:
        each.set_ylabel(count)


# ----------------------------------------------------------------------------------------------------------- training

@_styled
def loss_histogram(losses: np.ndarray, given: np.ndarray, classes: Sequence[str], wrong: np.ndarray | None = None,
                   mixtures: Mapping[int, TwoGaussians | None] | None = None, columns: int = 4,
                   title: str = "", xlabel: str = "loss") -> Picture:
    """For each given class the histogram of its faces' losses, right and wrong labels stacked, and its fitted mixture.

    losses: [N]; given: int [N]; wrong: bool [N], True = the label is wrong, None = not known.
    mixtures: {class: its two Gaussians, or None where it was not split}, as ``ClassMixture.mixtures``. Their curves
    are scaled to the counts: solid the low component, dashed the high one. Counts are drawn by their square roots, so
    that the few wrong labels can be seen beside the many right ones.
    """
    losses, given = np.asarray(losses, float), np.asarray(given)
    wrong_ones = np.zeros(len(losses), bool) if wrong is None else np.asarray(wrong, bool)
    rows = -(-len(classes) // columns)
    figure, axes = _figure(rows, columns, 11, 2.1 * rows + 0.6, title)
    low, high = (losses.min(), losses.max()) if len(losses) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-9), 31)
    line = np.linspace(edges[0], edges[-1], 400)
    for each in axes.flat[len(classes):]:
        each.set_axis_off()
    for c, each in enumerate(axes.flat[:len(classes)]):
        mine = given == c
        parts = each.hist([losses[mine & ~wrong_ones], losses[mine & wrong_ones]], edges, stacked=True,
                          color=[CLEAN, WRONG])[2]
        for bar in parts[1]:
            bar.set(hatch="////", edgecolor="white", linewidth=0)
        mixture = (mixtures or {}).get(c)
        if mixture is not None:
            curves = mine.sum() * (edges[1] - edges[0]) * np.exp(mixture.log_densities(line))
            each.plot(line, curves[0], "black", linewidth=1.8)
            each.plot(line, curves[1], "black", linewidth=1.8, linestyle="--")
        share = f", {100 * wrong_ones[mine].mean():.0f} % wrong" if wrong is not None and mine.any() else ""
        each.set_title(f"{classes[c]}{share}", fontsize=12)
    _label_faces(axes, xlabel, "faces, root scale")
    for each in axes.flat[:len(classes)]:
        most = each.get_ylim()[1]
        each.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
        each.set(ylim=(0, most), yticks=np.square(MaxNLocator(4, integer=True).tick_values(0, most**0.5))[:-1])
    marks: dict[str, Any] = {}
    if wrong is not None:
        marks = {"right label": Patch(facecolor=CLEAN),
                 "wrong label": Patch(facecolor=WRONG, hatch="////", edgecolor="white")}
    if any((mixtures or {}).values()):
        marks |= {"low Gaussian": Line2D([], [], color="black", linewidth=1.8),
                  "high Gaussian": Line2D([], [], color="black", linewidth=1.8, linestyle="--")}
    if marks:
        figure.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=4)
    return figure


@_styled
def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], values: Sequence[str],
                    marks: Sequence[float] = ()) -> Picture:
    """Values of each epoch, one panel a value, one line a run; an epoch without the value leaves a gap that is bridged.

    runs: {name: records}, as ``runs.Run.metrics``. values: where in a record, dots between the keys; where that
    holds several terms (as "loss" does), their sum. marks: epochs at which something happens, a dotted line each.
    """
    figure, axes = _figure(1, len(values), 4.6 * len(values), 3.4)
    for each, value in zip(axes[0], values):
        for (name, records), (colour, dash, _) in zip(runs.items(), line_styles([*runs])):
            points = [(record["epoch"], found) for record in records if (found := _look_up(record, value)) is not None]
            marker = "o" if len(points) < 3 else None
            each.plot([x for x, _ in points], [y for _, y in points], color=colour, linestyle=dash, label=name,
                      marker=marker)
        for mark in marks:
            each.axvline(mark, color="#888888", linestyle=":", linewidth=1.6, zorder=0)
        title = value.replace("mean_class_accuracy", "mean over classes")
        each.set(xlabel="epoch", title=title.replace(".", ": ").replace("_", " "))
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.grid(axis="y", color="#dddddd")
    if len(runs) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _look_up(record: Mapping[str, Any], path: str) -> float | None:
    found: Any = record
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return sum(found.values()) if isinstance(found, Mapping) else found


# ----------------------------------------------------------------------------------------------------------- explorer

class HowSplit(NamedTuple):
    """How a training came to split a face off.

    history: [E], its losses after ``epochs``; class_history: [E, 3], quartiles of its class's. loss: the evidence it
    was split by; losses: [n], that of the faces of its ``mixture`` (None = not split); whose: these faces in words.
    evidence: what it is, in words.
    """

    history: np.ndarray
    class_history: np.ndarray
    epochs: Sequence[int]
    loss: float
    losses: np.ndarray
    mixture: TwoGaussians | None
    whose: str
    evidence: str


@_styled
def suspect_card(image: np.ndarray, attention: np.ndarray | None, classes: Sequence[str], given: int,
                 soft: np.ndarray, precision: np.ndarray, votes: np.ndarray | None, neighbours: Any,
                 neighbour_labels: np.ndarray, split: HowSplit | None = None) -> Picture:
    """All that is known of one suspected face.

    image: uint8 [H, W] or [H, W, 3]; attention: [g, g], not negative, or None. given: its class.
    soft, precision, votes: [C], its new soft label, class AP and raters' votes (None = not known).
    neighbours: images of its nearest clean faces, nearest first; neighbour_labels: int, their classes.
    split: its losses and its place in the mixture, drawn as in ``loss_histogram``; None = left out.
    """
    wide, low, high = 8.6, 2.1 if split is None else 0.0, 6.3
    figure = Picture(figsize=(wide, high - low))
    colours, new = class_colours(classes), int(np.argmax(soft))

    def place(left: float, bottom: float, width: float, height: float, **options: Any) -> Axes:
        span = high - low
        return figure.add_axes((left / wide, (bottom - low) / span, width / wide, height / span), **options)

    sheet = place(0, low, wide, high - low, xlim=(0, wide), ylim=(low, high), aspect="auto")  # in inches; axes of
    sheet.set_axis_off()  # their own for each image and panel would take twice as long to draw

    def square(left: float, bottom: float, side: float) -> dict[str, Any]:
        return {"extent": (left, left + side, bottom, bottom + side), "aspect": "auto"}

    def frame(left: float, bottom: float, width: float, height: float, colour: str, line: float) -> None:
        sheet.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor=colour, linewidth=line))

    _face(sheet, image, **square(0.05, 3.85, 2.1))
    if attention is not None:
        _heat(sheet, image, attention - attention.min(), **square(2.25, 3.85, 2.1))
        sheet.text(3.3, 6.0, "attention (bare: lowest)", fontsize=11, ha="center")

    panels = {"soft label": soft, "class AP": precision} | ({} if votes is None else {"votes": votes})
    width = (3.15 - 0.1 * (len(panels) - 1)) / len(panels)
    rows = 5.95 - 2.1 * (np.arange(len(classes)) + 0.6) / (len(classes) + 0.2)
    for i, (name, values) in enumerate(panels.items()):
        left = 5.35 + i * (width + 0.1)
        top = max(1.0, float(np.sum(values) if name == "votes" else np.max(values)))
        lowest = min(0.0, float(np.min(values)))
        scale = width / (1.02 * top - lowest)
        zero = left - lowest * scale
        sheet.barh(rows, values * scale, left=zero, color=colours, edgecolor="black", linewidth=0.5,
                   height=1.5 / (len(classes) + 0.2))
        frame(left, 3.85, width, 2.1, "black", 0.8)
        sheet.text(left + width / 2, 6.0, name, fontsize=11, ha="center")
        sheet.text(zero + top * scale, 3.8, f"{top:g}", fontsize=9, ha="center", va="top")
    size = min(11, max(7, 105 / max(map(len, classes))))
    for c, row in enumerate(rows.tolist()):
        sheet.text(5.3, row, _brief(classes[c], 14), fontsize=size, ha="right", va="center",
                   color=WRONG if c == given != new else "black",
                   fontweight="bold" if c in (given, new) else "normal")

    if len(neighbours):
        sheet.text(0.05, 3.4, "nearest clean faces", fontsize=11)
    for i, (each, label) in enumerate(zip(neighbours, neighbour_labels)):
        left = 0.08 + 1.068 * i
        _face(sheet, each, **square(left, 2.36, 0.98))
        frame(left, 2.36, 0.98, 0.98, colours[label], 3)
        sheet.text(left + 0.49, 2.28, f"{i + 1}  {_brief(classes[label], 10)}", fontsize=10, ha="center", va="top")

    if split is None:
        return figure
    history, class_history, epochs, loss, losses, mixture, whose, evidence = split
    # left to itself, matplotlib measures all ticks before it places a title
    caption: dict[str, Any] = {"fontsize": 11, "pad": 4, "loc": "left", "y": 1}

    axes = place(0.75, 0.5, 3.15, 1.25)
    if len(history):
        axes.fill_between(epochs, class_history[:, 0], class_history[:, 2], color=CLEAN, alpha=0.5, linewidth=0)
        axes.plot(epochs, class_history[:, 1], color="#5c7482", linestyle="--", linewidth=1.6)
        axes.plot(epochs, history, color="black", marker="o", markersize=4)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        ticks: list[int] = []
        for epoch in reversed(epochs):  # the last, and before it whatever has room
            if not ticks or ticks[-1] - epoch >= (epochs[-1] - epochs[0]) / 8:
                ticks.append(epoch)
        axes.set_xticks(ticks)
    axes.set_xlabel("epoch", fontsize=11)
    axes.set_ylabel("loss", fontsize=11)
    axes.set_title(f"its loss (line) among given {_brief(classes[given], 12)}", **caption)

    axes = place(4.95, 0.5, 3.4, 1.25)
    edges = np.linspace(min(losses.min(), loss), max(losses.max(), loss) + 1e-9, 41)
    axes.margins(x=0.03)
    axes.hist(losses, edges.tolist(), color=CLEAN, histtype="stepfilled")  # one shape is drawn sooner than 40 bars
    if mixture is not None:
        line = np.linspace(edges[0], edges[-1], 200)
        for curve, dash in zip(len(losses) * (edges[1] - edges[0]) * np.exp(mixture.log_densities(line)), "-:"):
            axes.plot(line, curve, "black", linewidth=1.5, linestyle=dash)
    axes.axvline(loss, color=WRONG, linewidth=2.5)
    axes.set_xlabel(evidence, fontsize=11)
    axes.set_ylabel("faces", fontsize=11)
    axes.set_ylim(0, None)
    axes.set_title(f"where it sits in the mixture ({whose})", **caption)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


# ---------------------------------------------------------------------------------------------- retrieval and results

@_styled
def ranked_faces(query: np.ndarray, images: Any, labels: np.ndarray, classes: Sequence[str], caption: str = "",
                 similarity: np.ndarray | None = None, wrong: bool = False) -> Picture:
    """A face, and beside it the gallery faces that resemble it most, each framed in the colour of its class.

    query: uint8 [H, W] or [H, W, 3] under ``caption``; wrong = its label is wrong. images: [K, ...], most similar
    first; labels: int [K], their classes; similarity: [K], written above them.
    """
    count = len(images)
    figure, axes = _figure(1, 1 + count, 1.5 + 1.12 * count, 1.95, width_ratios=[1.3] + [1.0] * count)
    _face(axes[0, 0], query, caption, wrong)
    colours = class_colours(classes)
    for rank, (each, image, label) in enumerate(zip(axes[0, 1:], images, np.asarray(labels).tolist())):
        cosine = "" if similarity is None else f"\n{similarity[rank]:.2f}"
        _face(each, image, f"{rank + 1}. {classes[label]}{cosine}")
        each.spines[:].set(visible=True, color=colours[label], linewidth=5)
    return figure


@_styled
def rankings(rows: Mapping[str, np.ndarray], classes: Sequence[str]) -> Picture:
    """Rankings of a gallery as ribbons, one below the other: the nearest at the left, each in the colour of its class.

    rows: {name: int [G], classes in the order of the ranking}. Where ranks are narrower than the picture's dots, the
    colour is that of the class which most of them have.
    """
    figure, axes = _figure(1, 1, 9.5, 1.3 + 0.3 * len(rows))
    pixels, seen = 480, np.zeros(len(classes), bool)
    ribbons = np.ones((len(rows), pixels, 3))
    colours = np.array([to_rgb(colour) for colour in class_colours(classes)])
    longest = max(map(len, rows.values()))
    for ribbon, ranked in zip(ribbons, rows.values()):
        edges = np.arange(pixels + 1) * longest / pixels
        for pixel, (start, stop) in enumerate(zip(edges[:-1].astype(int), np.ceil(edges[1:]).astype(int))):
            if start < len(ranked):
                counts = np.bincount(ranked[start:stop], minlength=len(classes))
                ribbon[pixel] = colours[counts.argmax()]
                seen[counts.argmax()] = True
    axes[0, 0].imshow(ribbons, aspect="auto", interpolation="nearest", extent=(0.5, longest + 0.5, len(rows), 0))
    for row in range(1, len(rows)):
        axes[0, 0].axhline(row, color="white", linewidth=3)
    axes[0, 0].set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes[0, 0].set(xlabel="rank in the gallery")
    axes[0, 0].tick_params(axis="y", length=0)
    axes[0, 0].spines[:].set_visible(False)
    shown = np.flatnonzero(seen).tolist()
    figure.legend([Patch(color=colours[c]) for c in shown], [classes[c] for c in shown], loc="outside lower center",
                  ncols=8, handlelength=1, columnspacing=1)
    return figure


@_styled
def precision_recall(precision: np.ndarray, recall: np.ndarray, classes: Sequence[str]) -> Picture:
    """For each class its precision against its recall down the ranking; the area below its steps is its AP.

    precision, recall: [M, C], among the first 1, 2, ... M ranks. A class without items (recall 0 always) is left out.
    """
    figure, axes = _figure(1, 1, 8.2, 4.2)
    rises = np.diff(recall, axis=0, prepend=0)  # M, C
    areas = (rises * precision).sum(0)
    colours = class_colours(classes)
    for c in np.argsort(-areas, kind="stable").tolist():
        hit = rises[:, c] > 0
        if hit.any():
            height = precision[hit, c]
            axes[0, 0].step(np.append(0, recall[hit, c]), np.append(height[0], height), where="pre", color=colours[c],
                            linestyle=DASHES[c % len(DASHES)], linewidth=2.6, label=f"{classes[c]}: AP {areas[c]:.2f}")
    axes[0, 0].set(xlabel="recall: share of the class's clean faces found so far", xlim=(0, 1), ylim=(0, 1.03),
                   ylabel="precision: share of the class")
    figure.legend(loc="outside right center", handlelength=2.6)
    return figure


@_styled
def label_bars(images: Any, labels: Mapping[str, np.ndarray], classes: Sequence[str]) -> Picture:
    """Each face beside several labels of it, one above the other, each a bar that stacks the shares of the classes.

    labels: {name: [N, C]}, not negative; rows are normalised, and one without anything stays empty.
    """
    rows = -(-len(images) // 2)
    figure, axes = _figure(rows, 4, 10.8, (0.55 + 0.34 * len(labels)) * rows + 0.6, width_ratios=[1, 3.1] * 2)
    colours, seen = class_colours(classes), np.zeros(len(classes), bool)
    for each in axes.flat[2 * len(images):]:
        each.set_axis_off()
    for i, image in enumerate(images):
        face, bars = axes.flat[2 * i:2 * i + 2]
        _face(face, image)
        for row, soft in enumerate(labels.values()):
            shares = np.asarray(soft[i], float) / max(float(np.sum(soft[i])), 1e-12)
            starts = np.cumsum(shares) - shares
            seen |= shares > 0.01
            for c in np.flatnonzero(shares > 0.002).tolist():
                bars.barh(row, shares[c], left=starts[c], color=colours[c], edgecolor="white", height=0.84)
                if shares[c] > 0.13:
                    name = classes[c] if shares[c] > 0.3 else classes[c][:3]
                    bars.text(starts[c] + shares[c] / 2, row, name, ha="center", va="center", fontsize=11,
                              color=_ink(colours[c]))
        bars.set(xlim=(0, 1), ylim=(len(labels) - 0.4, -0.6), xticks=[], yticks=range(len(labels)))
        bars.set_yticklabels(labels, fontsize=11)
        bars.tick_params(length=0)
        bars.spines[:].set_visible(False)
    shown = np.flatnonzero(seen).tolist()
    figure.legend([Patch(color=colours[c]) for c in shown], [classes[c] for c in shown], loc="outside lower center",
                  ncols=8, handlelength=1, columnspacing=1)
    return figure


@_styled
def grouped_bars(values: Mapping[str, Any], groups: Sequence[str], ylabel: str, title: str = "") -> Picture:
    """Bars in groups: values {series: [G]}, not negative, nan = no bar; every series with a colour and a hatch."""
    figure, axes = _figure(1, 1, max(7.0, min(11.0, 1.3 * len(groups) + 2)), 3.9, title)
    hatches, width = ("", "///", "...", "\\\\\\", "xx"), 0.84 / len(values)
    for s, (name, heights) in enumerate(values.items()):
        place = np.arange(len(groups)) + (s - (len(values) - 1) / 2) * width
        axes[0, 0].bar(place, heights, width, label=name, color=LINES[s % len(LINES)], edgecolor="white",
                       hatch=hatches[s % len(hatches)])
    axes[0, 0].set_xticks(range(len(groups)), groups)
    axes[0, 0].set_ylabel(ylabel)
    axes[0, 0].grid(axis="y", color="#dddddd")
    axes[0, 0].set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=5, handlelength=1.6)
    return figure


@_styled
def dots_with_intervals(values: Mapping[str, Sequence[tuple[float, float]]], groups: Sequence[str], xlabel: str,
                        reference: float | None = None) -> Picture:
    """Means as dots and their intervals as whiskers, a row for each group; the axis need not begin at 0.

    values: {series: (mean, half-width) of each group}; half-width nan = no whisker (one seed), mean nan = no dot.
    reference: where a line is drawn, such as 0 for differences.
    """
    figure, axes = _figure(1, 1, 9.5, 0.9 + (0.26 + 0.07 * len(values)) * len(groups))
    step = 0.7 / max(len(values), 1)
    for s, ((name, pairs), (colour, _, marker)) in enumerate(zip(values.items(), line_styles([*values]))):
        mean, half = np.asarray(pairs, float).reshape(-1, 2).T
        row = np.arange(len(groups)) + (s - (len(values) - 1) / 2) * step
        axes[0, 0].errorbar(mean, row, xerr=np.nan_to_num(half), fmt=marker, color=colour, markersize=8, capsize=4,
                            label=name, linewidth=1.8)
    if reference is not None:
        axes[0, 0].axvline(reference, color="black", linewidth=1.2, zorder=0)
    axes[0, 0].set_yticks(range(len(groups)), groups)
    axes[0, 0].set(ylim=(len(groups) - 0.5, -0.5), xlabel=xlabel)
    axes[0, 0].grid(axis="x", color="#dddddd")
    axes[0, 0].tick_params(axis="y", length=0)
    if len(values) > 1:
        figure.legend(loc="outside right upper")
    return figure


@_styled
def trade_off(values: Mapping[str, Any], xlabel: str, ylabel: str, notes: Sequence[str] = (), title: str = ""
              ) -> Picture:
    """Paths in the plane: values {name: [K, 2]}, x and y of each step; their first step larger.

    notes: what the K steps are; they stand at those of the longest path, as on shorter ones, where only the last is
    told, they would overlap.
    """
    figure, axes = _figure(1, 1, 8, 4.6, title)
    paths = {name: np.asarray(steps, float).reshape(-1, 2) for name, steps in values.items()}
    longest = max(paths, key=lambda name: np.ptp(paths[name], axis=0).sum(), default=None)
    for (name, path), (colour, dash, marker) in zip(paths.items(), line_styles([*paths])):
        axes[0, 0].plot(*path.T, color=colour, linestyle=dash, marker=marker, markersize=6, label=name)
        axes[0, 0].plot(*path[:1].T, color=colour, marker=marker, markersize=12, linestyle="")
        for each, place in list(zip(notes, path))[0 if name == longest else -1:]:
            axes[0, 0].annotate(each, place, (6, 5), textcoords="offset points", fontsize=10, color=colour)
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel)
    axes[0, 0].margins(0.12)
    axes[0, 0].grid(color="#dddddd")
    if len(values) > 1:
        figure.legend(loc="outside right upper", handlelength=2.6)
    return figure


@_styled
def lines(x: Any, values: Mapping[str, Any], xlabel: str, ylabel: str, log: bool = False, title: str = "") -> Picture:
    """Curves over x [K]: values {name: [K]}, each with a colour, a dash and, if they are few, dots; log: the x-axis."""
    figure, axes = _figure(1, 1, 8, 3.8, title)
    for (name, y), (colour, dash, _) in zip(values.items(), line_styles([*values])):
        axes[0, 0].plot(x, y, color=colour, linestyle=dash, label=name, markersize=5,
                        marker="o" if len(x) <= 30 else "")
    if log:
        axes[0, 0].set_xscale("log")
        axes[0, 0].minorticks_off()
    if log or len(x) <= 6:
        axes[0, 0].set_xticks(x, [f"{each:,g}" for each in x])
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel)
    axes[0, 0].grid(axis="y", color="#dddddd")
    if len(values) > 1:
        figure.legend(loc="outside right upper", handlelength=2.6)
    return figure


@_styled
def schedule(spans: Mapping[str, tuple[float, float]], moments: Mapping[str, Sequence[float]], rate: np.ndarray
             ) -> Picture:
    """A training in time: what goes on from when to when, what happens at a moment, and the learning rate above.

    spans: {name: (from, to)} and moments: {name: when}, in epochs; rate: [E], at the end of epochs 1 to E.
    """
    rows = len(spans) + len(moments)
    figure, axes = _figure(2, 1, 9.5, 1.7 + 0.36 * rows, sharex=True, height_ratios=[1.1, 0.36 * rows])
    epochs = np.arange(1, len(rate) + 1)
    axes[0, 0].plot(epochs, rate, color="black")
    axes[0, 0].set(ylabel="learning\nrate", yticks=[0, float(np.max(rate))], ylim=(0, None))
    for row, ((start, stop), colour) in enumerate(zip(spans.values(), LINES * 9)):
        axes[1, 0].barh(row, stop - start, left=start, color=colour, height=0.62)
    for row, times in enumerate(moments.values(), len(spans)):
        axes[1, 0].plot(times, [row] * len(times), "D", color="black", markersize=9)
        for time in times:
            axes[1, 0].axvline(time, color="#888888", linestyle=":", linewidth=1.4, zorder=0)
    axes[1, 0].set_yticks(range(rows), [*spans, *moments])
    axes[1, 0].set(ylim=(rows - 0.4, -0.6), xlim=(0, 1.02 * len(rate)), xlabel="epoch")
    axes[1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1, 0].tick_params(axis="y", length=0)
    return figure


# ------------------------------------------------------------------------------------- scores of labels, embeddings

@_styled
def roc_curves(scores: Mapping[str, np.ndarray], wrong: np.ndarray) -> Picture:
    """How many wrong labels are found (true positive rate) for how many right ones suspected (false positive rate).

    scores: {name: [N]}, higher = more likely wrong; wrong: bool [N], of both kinds. The legend tells each area (AUROC).
    """
    figure, axes = _figure(1, 1, 7.2, 4.2)
    for (name, score), (colour, dash, _) in zip(scores.items(), line_styles([*scores])):
        false, true, _ = roc_curve(wrong, score)
        axes[0, 0].plot(false, true, color=colour, linestyle=dash, label=f"{name}: {roc_auc_score(wrong, score):.3f}")
    axes[0, 0].plot([0, 1], [0, 1], color="#999999", linewidth=1)
    axes[0, 0].set(xlabel="right labels suspected", ylabel="wrong labels found", aspect="equal", xlim=(0, 1),
                   ylim=(0, 1.01))
    figure.legend(loc="outside right center", title="AUROC", handlelength=2.6)
    return figure


@_styled
def embedding_maps(maps: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str],
                   wrong: np.ndarray | None = None) -> Picture:
    """Maps of the same N faces side by side, in their class's colour; below, of those with a wrong label only.

    maps: {title: [N, 2]}, coordinates of no unit; labels: int [N], true ones; wrong: bool [N], None = no second row.
    """
    rows = 1 if wrong is None else 2
    figure, axes = _figure(rows, len(maps), 3.6 * len(maps), 3.2 * rows + 0.7)
    labels, colours = np.asarray(labels), class_colours(classes)
    for column, (name, place) in zip(axes.T, maps.items()):
        column[0].scatter(*place.T, s=7, c=[colours[c] for c in labels], linewidths=0)
        column[0].set_title(name)
        if wrong is not None:
            column[1].scatter(*place[~wrong].T, s=6, color=FAINT, linewidths=0)
            column[1].scatter(*place[wrong].T, s=16, c=[colours[c] for c in labels[wrong]], marker="x", linewidths=1.2)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
        each.spines[:].set(visible=True, color="#cccccc")
    marks = [Line2D([], [], marker="o", linestyle="", color=colours[c]) for c in np.unique(labels)]
    names = [classes[c] for c in np.unique(labels)]
    if wrong is not None:
        marks += [Line2D([], [], marker="o", linestyle="", color=FAINT),
                  Line2D([], [], marker="x", linestyle="", color="black", markeredgewidth=2)]
        names += ["right label", "wrong label"]
    figure.legend(marks, names, loc="outside lower center", ncols=5, handletextpad=0.1, columnspacing=1.2)
    return figure


@_styled
def class_regions(regions: Mapping[str, np.ndarray], extent: tuple[float, float, float, float], samples: np.ndarray,
                  labels: np.ndarray, classes: Sequence[str]) -> Picture:
    """Which class each point of a plane is given to, by several rules side by side, and samples of the classes on it.

    regions: {rule: int [H, W]}, the first row at the lowest y; extent: (left, right, bottom, top) of the plane;
    samples: [N, 2]; labels: int [N].
    """
    height = 3.6 * (extent[3] - extent[2]) / (extent[1] - extent[0]) + 0.8
    figure, axes = _figure(1, len(regions), 3.7 * len(regions), height)
    colours = class_colours(classes)
    pale = np.array([to_rgb(colour) for colour in colours]) * 0.45 + 0.55
    for each, (name, region) in zip(axes[0], regions.items()):
        each.imshow(pale[region], origin="lower", extent=extent, interpolation="nearest")
        for c, colour in enumerate(colours):
            each.scatter(*samples[labels == c].T, s=9, color=colour, edgecolors="white", linewidths=0.3)
        each.set(xticks=[], yticks=[], title=name, xlim=extent[:2], ylim=extent[2:])
    figure.legend([Patch(color=colour) for colour in colours], classes, loc="outside lower center", ncols=5)
    return figure


@_styled
def newcomers(points: np.ndarray, samples: np.ndarray, labels: np.ndarray, before: tuple[np.ndarray, np.ndarray],
              after: tuple[np.ndarray, np.ndarray], shift: np.ndarray, classes: Sequence[str]) -> Picture:
    """What each class's mean and spread would become if a point joined it; below, how far they would shift.

    points: [P, 2], a column each; samples: [N, 2]; labels: int [N]. before: mean and std, [C, 2] each, drawn as solid
    ellipses of one std; after: [P, C, 2] each, dashed; shift: [P, C], not negative, lower = nearer (bold).
    """
    figure, axes = _figure(2, len(points), 3.6 * len(points) + 0.8, 4.6, height_ratios=[3.2, 1])
    colours = class_colours(classes)
    low, high = np.vstack([samples, points]).min(0), np.vstack([samples, points]).max(0)
    for p, (plane, bars) in enumerate(axes.T):
        for c, colour in enumerate(colours):
            plane.scatter(*samples[labels == c].T, s=7, color=colour, alpha=0.35, linewidths=0)
            for mean, std, dash in [(before[0][c], before[1][c], "-"), (after[0][p, c], after[1][p, c], "--")]:
                plane.add_patch(Ellipse(tuple(mean), *(2 * std), fill=False, edgecolor=colour, linestyle=dash,
                                        linewidth=2.2))
        plane.plot(*points[p], marker="*", markersize=17, color="black", markeredgecolor="white")
        margin = 0.05 * (high - low)
        plane.set(xticks=[], yticks=[], aspect="equal", xlim=(low[0] - margin[0], high[0] + margin[0]),
                  ylim=(low[1] - margin[1], high[1] + margin[1]))
        nearest = int(np.argmin(shift[p]))
        plane.set_title(f"least shifted: {classes[nearest]}", fontsize=12)
        bars.barh(range(len(classes)), shift[p], color=colours, edgecolor="black", linewidth=0.5)
        bars.set(ylim=(len(classes) - 0.5, -0.5), yticks=[], xlabel="shift")
        bars.xaxis.get_major_locator().set_params(nbins=4)
        if not p:
            bars.set_yticks(range(len(classes)), classes)
            bars.tick_params(axis="y", length=0)
    return figure


@_styled
def photo_faces(photo: np.ndarray, boxes: np.ndarray, faces: np.ndarray, probability: np.ndarray,
                classes: Sequence[str], title: str = "") -> Picture:
    """A photo with a numbered box around each face, and beside it each face with the probability of each class.

    photo: uint8 [H, W, 3]; boxes: int [F, 3], left, top and side; faces: uint8 [F, h, w, 3]; probability: [F, C].
    """
    count = max(1, len(boxes))
    figure = Picture(figsize=(11.5, max(4.2, 1.75 * count)), layout="constrained")
    left, right = cast(Any, figure.subfigures(1, 2, width_ratios=(1.5, 1)))
    whole = left.subplots()
    whole.imshow(photo)
    whole.set_axis_off()
    whole.set_title(title, fontsize=12)
    colours = class_colours(classes)
    rows = right.subplots(count, 2, squeeze=False, width_ratios=(1, 2.2))
    for i, (x, y, side) in enumerate(np.asarray(boxes).tolist()):
        colour = colours[int(probability[i].argmax())]
        whole.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor="white", linewidth=5))
        whole.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=3))
        whole.text(x, y, f" {i + 1} ", color=_ink(colour), backgroundcolor=colour, fontsize=11, va="bottom")
        _face(rows[i, 0], faces[i], str(i + 1))
        bars = rows[i, 1]
        bars.barh(range(len(classes)), probability[i], color=colours, edgecolor="black", linewidth=0.5, height=0.75)
        bars.set(xlim=(0, 1), ylim=(len(classes) - 0.4, -0.6), xticks=[0, 1])
        bars.set_yticks(range(len(classes)), classes, fontsize=9)
        bars.tick_params(axis="y", length=0)
    for axes in rows[len(boxes):].flat:
        axes.set_axis_off()
    return figure


# ---------------------------------------------------------------------------------------------- the figures in figures/

def figure_expressions() -> Picture:
    """Five people showing the eight classes."""
    from ferlab import rendered

    people = (9, 14, 5, 35, 28)
    images = [rendered.render_face(rendered.expression_units(name), identity=i, size=112, yaw=yaw)
              for i, yaw in zip(people, (0, -14, 10, 16, -8)) for name in rendered.CLASSES]
    return face_grid(images, rendered.CLASSES, title="Rendered faces: posed prototypes of eight expressions")


def figure_intensity() -> Picture:
    """Three expressions rising from rest to full strength."""
    from ferlab import rendered

    levels, names = np.linspace(0, 1, 6), ("happiness", "anger", "fear")
    images = [rendered.render_face(rendered.expression_units(name, level), identity=24, size=112)
              for name in names for level in levels]
    return face_grid(images, [f"{level:.0%}" for level in levels], columns=6, row_names=names,
                     title="The same face, its units at rising strength")


def figure_counts() -> Picture:
    """How many training faces each class has."""
    faces = _faces(48, 6000)
    return class_counts(faces.class_counts, faces.classes, title=f"{len(faces):,} rendered training faces")


def figure_votes() -> Picture:
    """Ten raters' votes on faces, from agreement to none."""
    faces = _faces()
    assert faces.votes is not None
    order = np.argsort(-faces.votes.max(1), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, 8).astype(int)]
    return vote_bars(faces.images[chosen], faces.votes[chosen], faces.classes,
                     title="Ten raters, one face: their votes")


def figure_noise() -> Picture:
    """Where labels go under the three kinds of noise."""
    faces = _faces(48, 6000)
    noisy = {kind: faces.with_noise(kind, 0.3).labels for kind in ("symmetric", "asymmetric", "annotators")}
    return transition_matrices({kind: (faces.labels, given) for kind, given in noisy.items()}, faces.classes,
                               title="Three kinds of label noise, 30 % each")


def figure_wrong_labels() -> Picture:
    """Faces whose annotator erred among faces whose annotator did not."""
    faces = _faces().with_noise("annotators", 0.3).subset(slice(0, 96, 6))  # one face a person
    return labelled_faces(faces.images, faces.labels, faces.truth, faces.classes,
                          title="What training is given: 30 % annotators' noise")


def figure_parts() -> Picture:
    """Where each expression moves the skin."""
    faces = _faces()
    chosen = [pure(faces, c)[0] for c in range(1, len(faces.classes))]
    return heat_on_faces(faces.images[chosen], faces.extras["parts"][chosen], faces.classes[1:], peak=255,
                         title="The informative parts: where the expression moved the skin")


def pure(faces: FaceSet, label: int) -> np.ndarray:
    """Rows of the rendered faces of a class that are no blend, int [M], those that most raters recognise first."""
    assert faces.votes is not None and faces.truth is not None
    rows = np.flatnonzero((faces.truth == label) & (faces.extras["mixture"].max(1) > 0.999))
    return rows[np.argsort(-faces.votes[rows, label], kind="stable")]


@functools.lru_cache
def _faces(size: int = 96, train: int = 600) -> FaceSet:
    """Training faces that the figures show; those of 48 pixels are the notebooks'."""
    from ferlab import rendered

    others: Any = {} if size == 48 else {"valid": 0, "test": 0}
    faces = rendered.load(size=size, train=train, **others).train
    assert faces is not None
    return faces


FIGURES: dict[str, Callable[[], Picture]] = {
    "expressions": figure_expressions,
    "intensity": figure_intensity,
    "counts": figure_counts,
    "votes": figure_votes,
    "noise": figure_noise,
    "wrong_labels": figure_wrong_labels,
    "parts": figure_parts,
}
SHOWN = {  # notebook and cell
    "mixture": ("03_class_wise_loss_mixture", "cell027"),
    "embeddings": ("04_distribution_contrastive_learning", "cell-30"),
    "neighbours": ("05_retrieval_relabelling", "cell-08"),
}


def shown_in(notebook: str, cell: str) -> bytes:
    """The first picture that a cell of a notebook, as it is stored, shows, as PNG."""
    import nbformat

    from ferlab.walkthrough import notebook_folder, pictures

    stored = nbformat.read(notebook_folder() / f"{notebook}.ipynb", as_version=4)
    stored.cells = [each for each in stored.cells if each.id == cell]
    return next(iter(pictures(stored, notebook).values()))


@click.command()
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default="figures", show_default=True)
@click.option("--only", type=click.Choice([*FIGURES, *SHOWN]), multiple=True, help="Draw only this; may be repeated.")
def main(output: Path, only: tuple[str, ...]) -> None:
    """Draw the README's pictures, each from its function in ferlab/plots.py or as a notebook shows it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in only or (*FIGURES, *SHOWN):
            (output / f"{name}.png").write_bytes(FIGURES[name]().png() if name in FIGURES else shown_in(*SHOWN[name]))
            click.echo(f"{output / name}.png")
    except OSError as error:
        raise FerlabError(f"{error.filename or output} cannot be written ({error.strerror}).") from error


if __name__ == "__main__":
    main()
