"""Each picture shows the numbers it was given, to every kind of eyes."""

from __future__ import annotations

import io
import itertools
import json
import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY
from matplotlib.colors import to_hex, to_rgb, to_rgba
from PIL import Image

from ferlab import plots
from ferlab.mixture import ClassMixture
from ferlab.plots import CLEAN, EMOTIONS, WRONG, Picture

CLASSES = tuple(EMOTIONS)
RNG = np.random.default_rng(0)
FACES = RNG.integers(0, 256, (10, 24, 24, 3), dtype=np.uint8)
GREY = FACES[..., 0]

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
EYES = {
    "usual": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, eyes: str) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as these eyes see it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(EYES[eyes]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    x, y, z = np.cbrt(xyz / [0.9505, 1, 1.089])  # the linear foot of the curve matters for near-black only
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours: tuple[str, ...], eyes: str) -> float:
    return min(float(np.linalg.norm(lab(a, eyes) - lab(b, eyes))) for a, b in itertools.combinations(colours, 2))


def shown(picture: Picture) -> Image.Image:
    """The picture as it appears, drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Image.open(io.BytesIO(picture.png()))


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


# -------------------------------------------------------------------------------------------------------------- style

@pytest.mark.parametrize("eyes", EYES)
def test_emotions_differ_to_all_eyes(eyes: str):
    assert nearest(tuple(EMOTIONS.values()), eyes) > 30
    assert nearest((CLEAN, WRONG, "#000000"), eyes) > 30


def test_measure_of_difference_finds_confusable_colours():
    assert nearest(("#ff0000", "#00ff00"), "usual") > 150
    assert nearest(("#c00000", "#606000"), "usual") > 2 * nearest(("#c00000", "#606000"), "deutan")


def test_an_emotion_keeps_its_colour_in_any_order_and_others_get_one():
    assert plots.class_colours(("fear", "anger")) == [EMOTIONS["fear"], EMOTIONS["anger"]]
    assert len(set(plots.class_colours([f"class {i}" for i in range(8)]))) == 8
    assert len(plots.class_colours([f"class {i}" for i in range(20)])) == 20
    assert len(set(plots.class_colours(["happiness", "scorn", "awe", "fear"]))) == 4


def test_text_is_legible_and_the_style_stays_in_the_pictures():
    sizes = {key: value for key, value in plots.STYLE.items() if key.endswith("size")}
    assert sizes and min(sizes.values()) >= 11
    before = mpl.rcParams.copy()
    picture = plots.class_counts(np.array([3, 1]), ("a", "b"), title="two")
    shown(picture)
    assert mpl.rcParams == before
    assert all(text.get_fontsize() >= 11 for text in picture.findobj(mpl.text.Text) if text.get_text())
    assert plt.get_fignums() == []  # nobody has to close them


def test_names_with_dollars_are_no_formulas():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    names = (r"$\x$", "a$_$.png", "c")
    plots.face_grid(images[:2], names[:2], title=names[0]).png()
    plots.photo_faces(images[0], np.array([[0, 0, 8]]), images[:1], np.full((1, 3), 1 / 3), names, names[1]).png()


def test_picture_shows_itself_as_small_png(monkeypatch: pytest.MonkeyPatch):
    from IPython import display

    sent: list = []
    monkeypatch.setattr(display, "display", sent.append)
    picture = plots.face_grid(FACES)
    picture._ipython_display_()
    image = Image.open(io.BytesIO(sent[0].data))
    assert len(sent) == 1 and image.format == "PNG" and image.mode == "P"
    assert len(sent[0].data) < len(picture.png())


def test_sliders_draw_anew_when_moved():
    from ipywidgets import FloatSlider, IntSlider

    def grey(level, add):
        return np.full((8, 8), 100 * level + add, np.uint8)

    level, add = FloatSlider(0.5, min=0, max=2), IntSlider(3, description="more")
    panel = plots.with_sliders(grey, level=level, add=add)
    controls, picture = panel.children
    assert controls.children == (level, add) and (level.description, add.description) == ("level", "more")
    assert (np.asarray(Image.open(io.BytesIO(picture.value))) == 53).all()
    level.value = 2
    assert (np.asarray(Image.open(io.BytesIO(picture.value))) == 203).all()
    drawn = plots.with_sliders(lambda number: plots.face_grid(FACES[:number]), number=IntSlider(2, min=1))
    assert drawn.children[1].value == plots.face_grid(FACES[:2]).png()
    with pytest.raises(ZeroDivisionError):
        plots.with_sliders(lambda number: 1 / number, number=IntSlider(0))


# -------------------------------------------------------------------------------------------------------------- faces

@pytest.mark.parametrize("images", [FACES, GREY])
def test_face_grid_shows_each_face_under_its_caption(images: np.ndarray):
    picture = plots.face_grid(images, [f"face {i}" for i in range(10)], columns=4, title="ten")
    assert isinstance(picture, Picture) and len(picture.axes) == 12
    for i, axes in enumerate(picture.axes[:10]):
        np.testing.assert_array_equal(axes.images[0].get_array(), images[i])
        assert axes.get_title() == f"face {i}"
    assert [axes.axison for axes in picture.axes[10:]] == [False, False]
    shown(picture)


def test_a_suspect_card_draws_labels_to_scale_and_frames_neighbours_in_their_colour():
    soft, precision = np.array([0.2, 0.5, 0.3]), np.array([-0.1, 0.4, 0.2])
    picture = plots.suspect_card(FACES[0], None, CLASSES[:3], 0, soft, precision, None, FACES[1:3], np.array([1, 2]))
    (sheet,) = picture.axes
    one, two = (np.array([bar.get_width() for bar in bars]) for bars in sheet.containers)
    np.testing.assert_allclose(one / one.sum(), soft)
    np.testing.assert_allclose(two / two[1], precision / precision[1])
    texts = {text.get_text(): text for text in sheet.texts}
    assert [texts[name].get_color() == WRONG for name in CLASSES[:3]] == [True, False, False]  # given, and not kept
    assert [texts[name].get_fontweight() for name in CLASSES[:3]] == ["bold", "bold", "normal"]
    colours = plots.class_colours(CLASSES[:3])
    frames = [patch for patch in sheet.patches if not patch.fill and patch.get_linewidth() == 3]
    assert [frame.get_edgecolor() for frame in frames] == [to_rgba(colours[1]), to_rgba(colours[2])]
    assert len(sheet.images) == 3 and "attention (bare: lowest)" not in texts


def test_face_grid_names_rows_and_columns():
    picture = plots.face_grid(FACES[:6], ["0 %", "50 %", "100 %"], columns=3, row_names=["anger", "fear"])
    assert [axes.get_title() for axes in picture.axes] == ["0 %", "50 %", "100 %", "", "", ""]
    assert [axes.get_ylabel() for axes in picture.axes] == ["anger", "", "", "fear", "", ""]
    shown(picture)


def test_wrong_labels_are_framed_and_no_others():
    given, truth = np.array([0, 1, 2, 3]), np.array([0, 4, 2, -1])
    picture = plots.labelled_faces(FACES[:4], given, truth, CLASSES)
    framed = [all(spine.get_visible() for spine in axes.spines.values()) for axes in picture.axes]
    assert framed == [False, True, False, False]
    assert to_hex(picture.axes[1].spines["left"].get_edgecolor()) == WRONG
    assert picture.axes[1].get_title() == "happiness\ntruly anger"
    assert picture.axes[3].get_title().strip() == "sadness"
    pixels = np.asarray(shown(picture).convert("RGB"), int)
    assert (np.abs(pixels - 255 * np.array(to_rgb(WRONG))).max(-1) < 12).mean() > 0.01
    unknown = plots.labelled_faces(FACES[:4], given, None, CLASSES)
    assert [axes.get_title() for axes in unknown.axes] == list(CLASSES[:4])


def test_votes_stack_to_the_raters():
    votes = np.array([[10, 0, 0, 0, 0, 0, 0, 0], [0, 5, 3, 0, 0, 0, 1, 1], [0, 0, 0, 4, 0, 0, 0, 0]], np.float32)
    picture = plots.vote_bars(FACES[:3], votes, CLASSES, captions=["a", "b", "c"])
    assert len(picture.axes) == 8 and [axes.axison for axes in picture.axes[6:]] == [False, False]
    for i in range(3):
        bar = picture.axes[2 * i + 1]
        assert [each.get_width() for each in bar.patches] == [vote for vote in votes[i] if vote]
        assert bar.patches[-1].get_x() + bar.patches[-1].get_width() == votes[i].sum()
        assert bar.get_xlim() == (0, 10)
    second = picture.axes[3]
    assert texts(second) == ["happiness", "surprise", "fea", "con"]
    assert [to_hex(each.get_facecolor()) for each in second.patches] == [
        EMOTIONS[name] for name in ("happiness", "surprise", "fear", "contempt")]
    names = {text.get_text() for text in picture.legends[0].get_texts()}
    assert names == {"neutral", "happiness", "surprise", "sadness", "fear", "contempt"}
    shown(picture)


def test_heat_is_brightest_where_the_map_is():
    maps = np.zeros((2, 4, 4), np.uint8)
    maps[0, 3, 0], maps[1, 0, 3] = 255, 51
    picture = plots.heat_on_faces(FACES[:2], maps, ("low left", "top right"), peak=255)
    assert len(picture.axes) == 4
    first, second = (picture.axes[2 + i].images[1].get_array() for i in range(2))
    assert first.shape == (24, 24) and first.max() == 1
    assert np.unravel_index(first.argmax(), first.shape)[0] >= 18 and first[:, 18:].max() < 0.05
    assert 0.15 < second.max() < 0.25  # on the common scale
    own = plots.heat_on_faces(FACES[:2], maps)
    assert own.axes[3].images[1].get_array().max() == 1
    np.testing.assert_array_equal(own.axes[3].images[0].get_array(), FACES[1])
    shown(picture)


def test_heat_rows_lay_each_map_over_its_face():
    low, high = np.zeros((2, 2, 4, 4))
    low[:, 3], high[:, 0] = 0.1, 7
    picture = plots.heat_rows(FACES[:2], {"low": low, "high": high}, ("a", "b"))
    axes = np.reshape(picture.axes, (3, 2))
    assert [each.get_title() for each in axes[0]] == ["a", "b"] and axes[2, 0].get_ylabel() == "high"
    for (name, row), first in zip([("low", axes[1]), ("high", axes[2])], (False, True)):
        for each, face in zip(row, FACES):
            np.testing.assert_array_equal(each.images[0].get_array(), face)
            heat = each.images[1].get_array()
            assert heat.max() == 1 and (heat.argmax() < heat.size / 2) == first, name
    shown(picture)


def test_crops_cut_out_their_boxes():
    image = np.zeros((40, 40), np.uint8)
    image[10:20, 20:30] = 200
    picture = plots.crops(image, {"on": (20, 10, 10), "off": (0, 25, 10)}, size=8)
    whole, on, off = picture.axes
    assert [(box.get_x(), box.get_y(), box.get_width()) for box in whole.patches] == [(20, 10, 10), (0, 25, 10)]
    assert (np.asarray(on.images[0].get_array()) == 200).all() and not np.asarray(off.images[0].get_array()).any()
    shown(picture)


# ------------------------------------------------------------------------------------------------------------- labels

def test_bars_are_as_high_as_the_counts():
    counts = np.array([1900, 1440, 780, 660, 480, 240, 300, 18])
    axes = plots.class_counts(counts, CLASSES).axes[0]
    assert [bar.get_height() for bar in axes.patches] == counts.tolist()
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == list(EMOTIONS.values())
    assert texts(axes)[0] == "1,900"
    assert [label.get_text() for label in axes.get_xticklabels()] == list(CLASSES)


def test_matrices_write_each_row_as_per_cent():
    truth, given = np.array([0, 0, 0, 0, 1, 1, -1]), np.array([0, 0, 0, 1, 1, 0, 1])
    assert plots.count_pairs(truth, given, 3).tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
    picture = plots.transition_matrices({"one": (truth, given), "two": (truth, truth)}, ("a", "b", "c"))
    one, two = picture.axes
    assert texts(one) == ["75", "25", "", "50", "50", *[""] * 4] and [t for t in texts(two) if t] == ["100", "100"]
    np.testing.assert_allclose(one.collections[0].get_array(), [[75, 25, 0], [50, 50, 0], [0, 0, 0]])
    assert one.get_title() == "one" and one.get_xlabel() == "given label" and "true class" in one.get_ylabel()
    shown(picture)


def test_confusion_matrix_tells_mean_class_accuracy_of_classes_with_faces():
    axes = plots.confusion_matrix([[3, 1, 0], [1, 1, 0], [0, 0, 0]], ("a", "b", "c")).axes[0]
    assert "62.5 %" in axes.get_title() and axes.get_xlabel() == "recognised as"


def test_disagreement_counts_every_face_in_its_class():
    labels = np.array([0] * 5 + [1] * 3)
    entropy = np.array([0, 0, 0, 1, 2, 0.5, 0.5, 0.5])
    picture = plots.disagreement(entropy, labels, ("neutral", "fear", "anger"))
    assert [sum(bar.get_height() for bar in axes.patches) for axes in picture.axes[:3]] == [5, 3, 0]
    titles = [axes.get_title() for axes in picture.axes[:3]]
    assert titles == ["neutral: mean 0.60", "fear: mean 0.50", "anger: no faces"]
    assert picture.axes[0].lines[0].get_xdata()[0] == pytest.approx(0.6)
    shown(picture)


# ----------------------------------------------------------------------------------------------------------- training

def test_loss_histogram_counts_clean_and_wrong_and_draws_the_mixture():
    given = np.repeat([0, 1], 300)
    wrong = RNG.random(600) < 0.3
    losses = np.where(wrong, RNG.normal(3, 0.3, 600), RNG.normal(0.5, 0.3, 600))
    mixture = ClassMixture().fit(losses, given)
    assert mixture.mixtures[0] is not None
    mixtures = {0: mixture.mixtures[0], 1: None}
    picture = plots.loss_histogram(losses, given, ("neutral", "fear"), wrong, mixtures, columns=2)
    for c, axes in enumerate(picture.axes):
        heights = {colour: sum(bar.get_height() for bar in axes.patches if to_hex(bar.get_facecolor()) == colour)
                   for colour in (CLEAN, WRONG)}
        mine = given == c
        assert heights == {CLEAN: (mine & ~wrong).sum(), WRONG: (mine & wrong).sum()}
        assert all(bar.get_hatch() for bar in axes.patches if to_hex(bar.get_facecolor()) == WRONG)
    clean, other = picture.axes[0].lines
    width = picture.axes[0].patches[0].get_width()
    for curve, share in [(clean, mixture.mixtures[0].low_weight), (other, 1 - mixture.mixtures[0].low_weight)]:
        line, height = curve.get_data()
        assert height.sum() * (line[1] - line[0]) / width == pytest.approx(300 * share, rel=0.1)
    assert clean.get_xdata()[clean.get_ydata().argmax()] == pytest.approx(0.5, abs=0.1)
    assert other.get_linestyle() == "--" and not picture.axes[1].lines
    assert [text.get_text() for text in picture.legends[0].get_texts()] == [
        "right label", "wrong label", "low Gaussian", "high Gaussian"]
    shown(picture)
    assert not plots.loss_histogram(losses, given, ("neutral", "fear")).legends


def test_training_curves_read_records_as_runs_hold_them():
    records = [{"epoch": e, "loss": {"cross_entropy": 1.0 / e, "masked": 0.5}, "valid": {"accuracy": 0.1 * e}}
               for e in (1, 2, 3)]
    records[2]["split"] = {"auroc": 0.9}
    records = [json.loads(json.dumps(record)) for record in records]
    picture = plots.training_curves({"plain": records, "other": records[:2]}, ("loss", "valid.accuracy", "split.auroc"))
    loss, accuracy, auroc = picture.axes
    assert loss.lines[0].get_ydata() == pytest.approx([1.5, 1.0, 1 / 3 + 0.5])
    assert list(accuracy.lines[1].get_xdata()) == [1, 2]
    assert list(auroc.lines[0].get_xdata()) == [3] and not len(auroc.lines[1].get_xdata())
    assert len({line.get_linestyle() for line in loss.lines}) == 2 == len({line.get_color() for line in loss.lines})
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["plain", "other"]
    shown(picture)


# ---------------------------------------------------------------------------------------------- retrieval and results

def test_ranked_faces_are_framed_in_the_colour_of_their_class():
    picture = plots.ranked_faces(FACES[0], GREY[1:4], np.array([6, 2, 6]), CLASSES, "given anger",
                                 np.array([0.9, 0.8, 0.7]), wrong=True)
    assert [axes.get_title() for axes in picture.axes] == [
        "given anger", "1. fear\n0.90", "2. surprise\n0.80", "3. fear\n0.70"]
    frames = [to_hex(axes.spines["left"].get_edgecolor()) for axes in picture.axes]
    assert frames == [WRONG, EMOTIONS["fear"], EMOTIONS["surprise"], EMOTIONS["fear"]]
    np.testing.assert_array_equal(picture.axes[2].images[0].get_array(), GREY[2])
    shown(picture)


def test_rankings_show_each_rank_in_the_colour_of_its_class():
    rows = {"clear": np.array([6, 6, 6, 2]), "shorter": np.array([0, 2])}
    axes = plots.rankings(rows, CLASSES).axes[0]
    ribbon = axes.images[0].get_array()
    colours = [to_hex(ribbon[0, int((rank + 0.5) * ribbon.shape[1] / 4)]) for rank in range(4)]
    assert colours == [EMOTIONS["fear"]] * 3 + [EMOTIONS["surprise"]]
    assert to_hex(ribbon[1, 0]) == EMOTIONS["neutral"] and to_hex(ribbon[1, -1]) == "#ffffff"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["clear", "shorter"]
    long = plots.rankings({"a": np.repeat([1, 3], 5000)}, CLASSES).axes[0].images[0].get_array()
    assert {to_hex(colour) for colour in long[0]} == {EMOTIONS["happiness"], EMOTIONS["sadness"]}
    shown(axes.figure)


def test_area_below_precision_and_recall_is_sklearns_average_precision():
    from sklearn.metrics import average_precision_score

    labels = RNG.integers(0, 3, 60)
    hit = labels[:, None] == np.arange(4)  # no item of class 3
    precision, recall = hit.cumsum(0) / np.arange(1, 61)[:, None], hit.cumsum(0) / hit.sum(0).clip(1)
    axes = plots.precision_recall(precision, recall, CLASSES[:4]).axes[0]
    assert len(axes.lines) == 3
    for line in axes.lines:
        x, y = line.get_data()
        c = [to_hex(EMOTIONS[name]) for name in CLASSES].index(to_hex(line.get_color()))
        expected = average_precision_score(labels == c, -np.arange(60))
        assert (np.diff(x) * y[1:]).sum() == pytest.approx(expected)
        assert line.get_label() == f"{CLASSES[c]}: AP {expected:.2f}" and x[-1] == 1
    shown(axes.figure)


def test_label_bars_stack_each_label_to_one():
    labels = {"given": np.eye(8)[:3], "new": np.array([[0.6, 0.4] + [0] * 6, [0] * 8, [0.125] * 8])}
    picture = plots.label_bars(FACES[:3], labels, CLASSES)
    assert [axes.axison for axes in picture.axes[6:]] == [False, False]
    bars = picture.axes[1]
    widths = [bar.get_width() for bar in bars.patches]
    assert widths == pytest.approx([1, 0.6, 0.4]) and bars.patches[2].get_x() == pytest.approx(0.6)
    assert texts(bars) == ["neutral", "neutral", "happiness"]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["given", "new"]
    assert len(picture.axes[3].patches) == 1 and len(picture.axes[5].patches) == 9
    assert len(picture.legends[0].get_texts()) == 8
    shown(picture)


def test_grouped_bars_are_as_high_as_their_values():
    picture = plots.grouped_bars({"plain": [0.5, np.nan], "full": [0.6, 0.7]}, ["a", "b"], "share")
    heights = [bar.get_height() for bar in picture.axes[0].patches]
    assert heights[0] == 0.5 and np.isnan(heights[1]) and heights[2:] == [0.6, 0.7]
    assert len({to_hex(bar.get_facecolor()) for bar in picture.axes[0].patches}) == 2
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["plain", "full"]
    shown(picture)


def test_dots_stand_at_their_mean_with_their_interval():
    values = {"plain": [(0.80, 0.02), (0.7, np.nan)], "full": [(0.85, 0.01), (np.nan, np.nan)]}
    picture = plots.dots_with_intervals(values, ["symmetric", "annotators"], "accuracy")
    plain, full = picture.axes[0].containers
    assert list(plain.lines[0].get_xdata()) == [0.80, 0.7] and np.isnan(full.lines[0].get_xdata()[1])
    (whiskers,) = plain.lines[2]
    first, second = whiskers.get_segments()
    assert first[:, 0] == pytest.approx([0.78, 0.82]) and second[:, 0] == pytest.approx([0.7, 0.7])
    assert plain.lines[0].get_ydata()[0] < full.lines[0].get_ydata()[0]
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == ["symmetric", "annotators"]
    shown(picture)


@pytest.mark.parametrize("log", [False, True])
def test_lines_are_the_values(log: bool):
    axes = plots.lines([1, 10, 100], {"a": [1, 2, 3], "b": [3, 2, 1]}, "k", "share", log=log).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 2, 3], [3, 2, 1]]
    assert axes.get_xscale() == ("log" if log else "linear")
    shown(axes.figure)


def test_trade_off_goes_from_step_to_step_and_notes_those_of_the_longest_path():
    axes = plots.trade_off({"b": [(2, 2), (2, 3)], "a": [(1, 2), (3, 4)]}, "accuracy", "mean", ["0", "0.5"]).axes[0]
    path, start = axes.lines[2:]
    assert path.get_xydata().tolist() == [[1, 2], [3, 4]] and start.get_xydata().tolist() == [[1, 2]]
    notes = [(note.get_text(), list(note.xy)) for note in axes.texts]  # of a shorter path the last alone
    assert notes == [("0.5", [2, 3]), ("0", [1, 2]), ("0.5", [3, 4])]
    shown(axes.figure)


def test_schedule_shows_spans_and_moments_at_their_epochs():
    picture = plots.schedule({"all labels": (0, 20), "soft labels": (20, 30)}, {"split": [20]}, np.ones(30))
    rate, parts = picture.axes
    assert [(bar.get_x(), bar.get_width()) for bar in parts.patches] == [(0, 20), (20, 10)]
    assert list(parts.lines[0].get_xdata()) == [20] and list(rate.lines[0].get_xdata()) == list(range(1, 31))
    assert [label.get_text() for label in parts.get_yticklabels()] == ["all labels", "soft labels", "split"]
    shown(picture)


def test_training_curves_mark_epochs():
    records = [{"epoch": e, "loss": {"cross_entropy": 1.0}} for e in (1, 2, 3)]
    axes = plots.training_curves({"plain": records}, ("loss",), marks=[2]).axes[0]
    assert list(axes.lines[-1].get_xdata()) == [2, 2] and axes.lines[-1].get_linestyle() == ":"


# --------------------------------------------------------------------------------------- scores of labels, embeddings

def test_roc_curves_start_at_nothing_and_end_at_all_and_tell_their_area():
    wrong = np.repeat([True, False], [30, 70])
    scores = {"perfect": wrong * 1.0, "useless": np.zeros(100), "backwards": -1.0 * wrong}
    picture = plots.roc_curves(scores, wrong)
    for line in picture.axes[0].lines[:3]:
        x, y = line.get_data()
        assert (x[0], y[0]) == (0, 0) and (x[-1], y[-1]) == (1, 1)
    names = [text.get_text() for text in picture.legends[0].get_texts()]
    assert names == ["perfect: 1.000", "useless: 0.500", "backwards: 0.000"]
    x, y = picture.axes[0].lines[0].get_data()
    assert (0, 1) in zip(x, y)
    shown(picture)


def test_embedding_maps_put_each_face_in_its_place_and_colour():
    place = RNG.normal(size=(40, 2))
    labels, wrong = np.repeat([1, 6], 20), np.arange(40) % 4 == 0
    picture = plots.embedding_maps({"before": place, "after": 2 * place}, labels, CLASSES, wrong)
    assert len(picture.axes) == 4
    first, second = picture.axes[0].collections[0], picture.axes[1].collections[0]
    np.testing.assert_array_equal(first.get_offsets(), place)
    np.testing.assert_array_equal(second.get_offsets(), 2 * place)
    assert [to_hex(first.get_facecolors()[i]) for i in (0, 39)] == [EMOTIONS["happiness"], EMOTIONS["fear"]]
    clean, marked = picture.axes[2].collections
    np.testing.assert_array_equal(marked.get_offsets(), place[wrong])
    assert len(clean.get_offsets()) == 30
    assert {to_hex(colour) for colour in marked.get_edgecolors()} == {EMOTIONS["happiness"], EMOTIONS["fear"]}  # true
    names = [text.get_text() for text in picture.legends[0].get_texts()]
    assert names == ["happiness", "fear", "right label", "wrong label"]
    shown(picture)
    assert len(plots.embedding_maps({"one": place}, labels, CLASSES).axes) == 1


def test_class_regions_colour_the_plane_from_below():
    region = np.array([[0, 0], [1, 1]])
    samples, labels = np.array([[0.5, 0.2], [0.5, 1.8]]), np.array([0, 1])
    picture = plots.class_regions({"a": region, "b": 1 - region}, (0, 1, 0, 2), samples, labels, ("anger", "fear"))
    for axes, lower in zip(picture.axes, ("anger", "fear")):
        image = axes.images[0]
        assert image.origin == "lower" and tuple(image.get_extent()) == (0, 1, 0, 2)
        np.testing.assert_allclose(image.get_array()[0, 0], 0.45 * np.array(to_rgb(EMOTIONS[lower])) + 0.55)
    shown(picture)


def test_newcomers_show_each_class_before_and_after_and_name_the_least_shifted():
    samples, labels = RNG.normal(size=(60, 2)), np.repeat([0, 1], 30)
    mean, std = np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([[1.0, 0.5], [0.2, 0.3]])
    points, shift = np.array([[0.0, 0.0], [3.0, 1.0], [9.0, 9.0]]), np.array([[0.1, 0.4], [0.5, 0.2], [3, 1]])
    after = np.tile(mean + 1, (3, 1, 1)), np.tile(std / 2, (3, 1, 1))
    picture = plots.newcomers(points, samples, labels, (mean, std), after, shift, ("anger", "fear"))
    planes, bars = picture.axes[:3], picture.axes[3:]
    assert [axes.get_title() for axes in planes] == [f"least shifted: {name}" for name in ("anger", "fear", "fear")]
    solid, dashed = planes[0].patches[:2]
    assert solid.center == (0, 0) and (solid.width, solid.height) == (2, 1)
    assert dashed.center == (1, 1) and (dashed.width, dashed.height) == (1, 0.5)
    assert tuple(planes[2].lines[0].get_xydata()[0]) == (9, 9)
    assert [bar.get_width() for bar in bars[1].patches] == [0.5, 0.2]
    shown(picture)


# ------------------------------------------------------------------------------------------------------------ figures

def test_command_draws_figures(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(plots.FIGURES, "counts", lambda: plots.class_counts(np.arange(1, 9), CLASSES))
    options = ["--output", str(tmp_path / "figures"), "--only", "counts", "--only", "intensity"]
    result = CliRunner().invoke(plots.main, options)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"counts.png", "intensity.png"}
    assert Image.open(tmp_path / "figures" / "intensity.png").width > 500
    (tmp_path / "file").write_text("")
    assert CliRunner().invoke(plots.main, ["--output", str(tmp_path / "file" / "deep")]).exit_code == 2


@pytest.mark.parametrize("name", plots.SHOWN)
def test_readme_shows_what_the_notebooks_show(name):
    assert (REPOSITORY / "figures" / f"{name}.png").read_bytes() == plots.shown_in(*plots.SHOWN[name]), "make figures"
    assert f"figures/{name}.png" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_figures_of_the_rendered_faces(monkeypatch: pytest.MonkeyPatch):
    from ferlab import rendered

    faces = rendered.load(size=24, train=150, valid=0, test=0, workers=1).train
    monkeypatch.setattr(plots, "_faces", lambda *_: faces)
    for name in ("counts", "votes", "noise", "wrong_labels", "parts"):
        assert isinstance(plots.FIGURES[name](), Picture)
    rows = plots.pure(faces, 1)
    assert (faces.truth[rows] == 1).all() and (np.diff(faces.votes[rows, 1]) <= 0).all()


def test_what_several_pictures_show_looks_alike_in_all_of_them():
    def colours(*names):
        styles = plots.line_styles(names)
        assert len(set(styles)) == len(names)
        return dict(zip(names, (colour for colour, _, _ in styles)))

    plain, whole = colours("plain", "DR-FER").values()
    assert colours("ran", "softer two views", "plain two views", "plain") | {"ran": None} == {
        "ran": None, "softer two views": whole, "plain two views": plain, "plain": plain}
    parts = colours("own, with MIM", "own, without MIM", "Grad-CAM, with MIM", "Grad-CAM, without MIM")
    assert [*parts.values()][:2] == [*parts.values()][2:] and parts["own, with MIM"] == whole
    one, other = colours("symmetric 30%", "annotators 30%"), colours("annotators 30%, CPU", "annotators 30%, H100")
    assert set(other.values()) == {one["annotators 30%"]} and one["symmetric 30%"] not in (plain, whole)
    unnamed = colours("a", "b", "c", "plain", "full")
    assert not {plain, whole} & {unnamed[name] for name in "abc"}
    assert len(colours(*"abcde")) == len(set(colours(*"abcde").values())) == 5
