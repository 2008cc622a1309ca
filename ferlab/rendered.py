"""``rendered``: 3-D faces whose expression, class mixture and moving parts are known exactly (source: ours).

A head (MakeHuman, CC0; made by ``tools/build_head.py``) is given a person's shape and colours, the weights of 52 face
units, a camera and a light, and is drawn by ``ferlab.drawing``. The labels are posed FACS prototypes: nothing here says
how a network trained on these faces does on photographs. Lengths are decimetres, y up, z towards the viewer.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from ferlab import drawing
from ferlab.config import SPLITS
from ferlab.data import CLASSES, FaceSet, Splits, cache_directory, check_whole
from ferlab.drawing import (
    EYE_LEFT,
    EYE_RIGHT,
    LASH,
    POINTS,
    SKIN,
    TEETH_LOWER,
    TEETH_UPPER,
    Head,
    Light,
    Look,
    Style,
    Triple,
)
from ferlab.errors import FerlabError

VERSION = 7                       # part of the cache key: raise it whenever the same arguments give other bytes
SHARES = (0.32, 0.24, 0.13, 0.11, 0.08, 0.04, 0.05, 0.03)      # of the classes, imbalanced like FER+
FACES_PER_IDENTITY = 6
CHUNK = 50                        # faces that one task draws
ASSET = Path(__file__).parent / "assets" / "head.npz"


# ------------------------------------------------------------------------------------------------------------- the head

@lru_cache(maxsize=1)
def _asset() -> tuple[Head, tuple[str, ...]]:
    """The head and the names of its morph targets."""
    with np.load(ASSET) as file:
        rest, triangles, material = file["rest"].astype(float), file["triangles"].astype(int), file["material"]
        shown = (material != LASH) | (rest[triangles, 1].mean(1) > drawing.EYE_Y)      # the lower lashes are too coarse
        head = Head(rest, triangles[shown], material[shown].astype(int), file["openness"] / 255, file["lip"] / 255,
                    file["starts"].astype(int), file["index"].astype(int), file["delta"] / 1000)
        return head, tuple(str(name) for name in file["names"])


UNITS = tuple(name.removeprefix("unit:") for name in _asset()[1] if name.startswith("unit:"))


def _vertices_of(head: Head, *materials: int) -> np.ndarray:
    """Numbers of the vertices of these materials."""
    return np.unique(head.triangles[np.isin(head.material, materials)])


# --------------------------------------------------------------------------------------------------------- expressions

# FACS prototypes as unit weights; "_" stands for Left and Right. Each class: (probability, weights) of its variants.
PROTOTYPES = {
    "neutral": [(1.0, "")],
    "happiness": [
        (0.55, "mouthSmile_ 1.05 cheekSquint_ .7 eyeSquint_ .1 mouthUpperUp_ .45 mouthLowerDown_ .15 jawOpen .14"),
        (0.45, "mouthSmile_ 1.05 cheekSquint_ .8 eyeSquint_ .15 mouthUpperUp_ .55 mouthLowerDown_ .35 jawOpen .3")],
    "surprise": [
        (0.7, "browInnerUp 1.1 browOuterUp_ 1.1 eyeWide_ .9 jawOpen .8 mouthFunnel .3"),
        (0.3, "browInnerUp 1.1 browOuterUp_ 1.2 eyeWide_ .9 jawOpen .5 mouthPucker .25")],
    "sadness": [
        (0.65, "browInnerUp 1.35 browDown_ .25 mouthFrown_ 1 mouthShrugLower .6"
               " eyeSquint_ .15 eyeBlink_ .12 eyeLookDown_ .2"),
        (0.35, "browInnerUp 1.35 mouthFrown_ .9 mouthShrugLower .9 mouthPress_ .3"
               " eyeBlink_ .22 eyeLookDown_ .5 cheekSquint_ .2")],
    "anger": [
        (0.6, "browDown_ 1.4 browOuterUp_ .35 eyeSquint_ .35 eyeWide_ .6 noseSneer_ .5 jawForward .35"
              " mouthPress_ .4 mouthRollLower .5 mouthRollUpper .45 mouthFrown_ .35"),
        (0.4, "browDown_ 1.4 browOuterUp_ .35 eyeSquint_ .25 eyeWide_ .6 noseSneer_ .45 jawOpen .25"
              " mouthUpperUp_ .55 mouthLowerDown_ .9 mouthStretch_ .3 mouthFunnel .35")],
    "disgust": [
        (0.65, "noseSneer_ 1.3 browDown_ .55 cheekSquint_ .7 eyeSquint_ .25"
               " mouthUpperUp_ 1 mouthFrown_ .45 mouthShrugLower .4"),
        (0.35, "noseSneer_ 1.2 browDown_ .5 cheekSquint_ .5 eyeSquint_ .3 jawOpen .18 tongueOut .25"
               " mouthUpperUp_ .9 mouthLowerDown_ .5 mouthFrown_ .5")],
    "fear": [
        (0.7, "browInnerUp 1.1 browOuterUp_ .45 browDown_ .4 eyeWide_ 1.15 jawOpen .22"
              " mouthStretch_ 1.1 mouthLowerDown_ .55 mouthFrown_ .25"),
        (0.3, "browInnerUp 1.1 browOuterUp_ .5 browDown_ .35 eyeWide_ 1.1 jawOpen .3"
              " mouthStretch_ 1.1 mouthLowerDown_ .5")],
    "contempt": [
        (0.5, "mouthSmileLeft .95 mouthDimpleLeft .3 mouthPressLeft .3 mouthLeft .3 mouthPressRight .4"
              " mouthFrownRight .2 cheekSquintLeft .3 eyeSquintLeft .2 browDownLeft .3 browOuterUpRight .6"
              " eyeBlink_ .1"),
        (0.5, "mouthSmileRight .95 mouthDimpleRight .3 mouthPressRight .3 mouthRight .3 mouthPressLeft .4"
              " mouthFrownLeft .2 cheekSquintRight .3 eyeSquintRight .2 browDownRight .3 browOuterUpLeft .6"
              " eyeBlink_ .1")],
}
CONFUSED = {"neutral": "sadness contempt", "happiness": "contempt surprise", "surprise": "fear happiness",
            "sadness": "neutral fear", "anger": "disgust sadness", "disgust": "anger contempt",
            "fear": "surprise sadness", "contempt": "happiness neutral"}


def _weights(text: str) -> np.ndarray:
    weights = np.zeros(len(UNITS))
    words = text.split()
    for name, weight in zip(words[::2], words[1::2], strict=True):
        for side in ("Left", "Right") if name.endswith("_") else ("",):
            weights[UNITS.index(name.rstrip("_") + side)] = float(weight)
    return weights


def _strengthen(weights: np.ndarray) -> np.ndarray:
    """The units act weakly at 1: most are raised by a quarter, and all are capped."""
    gain = np.array([1.0 if name.startswith(("jaw", "eyeBlink", "eyeLook", "tongue")) else 1.25 for name in UNITS])
    return np.clip(weights * gain, 0, 1.7)


def expression_units(label: str | int, intensity: float = 1.0, variant: int = 0) -> np.ndarray:
    """Unit weights float32 [52] of the FACS prototype of a class.

    label: a name in ``CLASSES`` or its index. intensity: 0 = neutral, 1 = full. variant: 0, the commonest way to show
    the class, or 1 where there is a second. Raises FerlabError for a label or variant that does not exist.
    """
    name = CLASSES[label] if isinstance(label, (int, np.integer)) and 0 <= label < len(CLASSES) else label
    if name not in PROTOTYPES:
        raise FerlabError(f"expression_units: no class {label!r}; choose one of {', '.join(CLASSES)}.")
    variants = PROTOTYPES[name]
    if not 0 <= variant < len(variants):
        raise FerlabError(f"expression_units: {name} has no variant {variant}; choose 0 to {len(variants) - 1}.")
    return _strengthen(_weights(variants[variant][1]) * intensity).astype(np.float32)


class Expression(NamedTuple):
    units: np.ndarray         # float64 [52]
    mixture: np.ndarray       # float64 [8], sums to 1; the argmax is the truth
    votes: np.ndarray         # float64 [8], ten raters


def _expression(rng: np.random.Generator, label: int) -> Expression:
    """A posed expression of class ``label``: variant, intensity, in one face of four a blend, jitter, asymmetry."""
    def pose(name):
        variants = PROTOTYPES[name]
        return _weights(variants[rng.choice(len(variants), p=[share for share, _ in variants])][1])

    name, mixture = CLASSES[label], np.zeros(len(CLASSES))
    mixture[label] = 1.0
    weights, intensity = pose(name), rng.uniform(0.7, 1.15)
    others = CONFUSED[name].split() if rng.random() < 0.75 else [other for other in CLASSES if other != name]
    other, share, blended, leaking = rng.choice(others), rng.uniform(0.1, 0.4), rng.random() < 0.25, rng.random() < 0.6
    second = pose(other)
    if blended:
        mixture[label], mixture[CLASSES.index(other)] = 1 - share, share
        weights = (1 - share) * weights + share * second
    elif name == "neutral" and leaking:                 # a resting face is never quite at rest
        weights = rng.uniform(0, 0.18) * second
    weights = weights * intensity * rng.normal(1, 0.18, len(UNITS)).clip(0.4, 1.6)
    tilt = rng.normal(0, 0.10)                          # one side shows more than the other
    weights *= [1 + tilt if unit.endswith("Left") else 1 - tilt if unit.endswith("Right") else 1.0 for unit in UNITS]
    stray = rng.choice(len(UNITS), 3, replace=False)
    strong = [UNITS[unit].startswith(("jaw", "tongue", "mouthFunnel", "mouthPucker")) for unit in stray]
    weights[stray] += rng.uniform(0, 0.15, 3) * np.where(strong, 0.3, 1.0)

    seen = 0.8 * mixture                                # what raters see: the mixture, its usual confusions, anything
    for i, confused in enumerate(CONFUSED.values()):
        for each in confused.split():
            seen[CLASSES.index(each)] += 0.08 * mixture[i]
    faint = max(0.0, 0.9 - intensity) * (name != "neutral")
    seen = (1 - faint) * (seen + 0.04 / len(CLASSES)) + faint * np.eye(len(CLASSES))[0]
    return Expression(_strengthen(weights), mixture, rng.multinomial(10, seen / seen.sum()).astype(float))


# -------------------------------------------------------------------------------------------------------------- people

def _linear(*srgb) -> np.ndarray:
    return (np.array(srgb) / 255.0) ** 2.2


def _triple(values) -> Triple:
    x, y, z = values
    return float(x), float(y), float(z)


SKIN_TONES = np.stack([_linear(230, 190, 168), _linear(218, 170, 140), _linear(198, 146, 112), _linear(152, 103, 76),
                       _linear(108, 70, 51), _linear(72, 46, 36)])
HAIR_TONES = {"black": _linear(26, 22, 21), "brown": _linear(62, 42, 30), "chestnut": _linear(96, 60, 38),
              "blond": _linear(186, 146, 94), "red": _linear(140, 68, 36)}
GREY_TONES = np.stack([_linear(150, 148, 146), _linear(214, 212, 208)])
IRIS_TONES = np.stack([_linear(70, 44, 28), _linear(96, 66, 40), _linear(104, 118, 78), _linear(92, 128, 160),
                       _linear(120, 136, 140)])
LIPSTICKS = np.stack([_linear(176, 46, 58), _linear(190, 88, 92), _linear(150, 50, 70), _linear(200, 108, 100)])
EYE_SHADOWS = np.stack([_linear(90, 60, 60), _linear(70, 70, 95), _linear(110, 78, 58)])
STYLES = {
    "bald": Style(women=0.0, men=0.06, length=0.0, lift=0.0, gravity=0.0, curl=0.0, volume=0.0),
    "buzz": Style(women=0.02, men=0.20, length=0.08, lift=0.9, gravity=0.0, curl=0.1, volume=0.02),
    "short": Style(women=0.08, men=0.42, length=0.30, lift=0.55, gravity=0.3, curl=0.15, volume=0.06),
    "swept": Style(women=0.04, men=0.16, length=0.42, lift=0.75, gravity=0.1, curl=0.15, volume=0.12),
    "curly": Style(women=0.10, men=0.09, length=0.65, lift=0.7, gravity=0.4, curl=0.95, volume=0.14),
    "afro": Style(women=0.07, men=0.03, length=0.70, lift=1.4, gravity=0.0, curl=1.0, volume=0.22),
    "bob": Style(women=0.22, men=0.01, length=1.45, lift=0.12, gravity=1.1, curl=0.12, volume=0.09),
    "long": Style(women=0.34, men=0.03, length=2.60, lift=0.12, gravity=1.1, curl=0.2, volume=0.10),
    "tied": Style(women=0.14, men=0.01, length=0.95, lift=0.05, gravity=0.0, curl=0.04, volume=0.03),
}
# How women's shapes differ from the mean on average; men's differ by half as much the other way.
FEMININE = {
    "chin-width-incr": -0.35, "chin-bones-incr": -0.25, "chin-prominent-incr": -0.15, "nose-scale-horiz-incr": -0.35,
    "nose-scale-vert-incr": -0.2, "nose-hump-incr": -0.3, "eye-scale-incr": 0.4, "eyebrows-trans-forward": -0.5,
    "mouth-upperlip-volume-incr": 0.15, "mouth-lowerlip-volume-incr": 0.2, "head-oval": 0.3, "head-square": -0.25,
    "neck-scale-horiz-incr": -0.5, "mouth-scale-horiz-incr": -0.15, "eye-height2-incr": 0.2}
MOODY = ("mouth-angles-up", "eyebrows-angle-up", "eye-height2-incr")        # shapes that look like an expression


class Build(NamedTuple):
    """What decides a person's shape and colours; the three origins sum to 1."""

    male: bool
    grown: bool
    child: float              # share of the child's shape
    old: float                # share of the old person's
    african: float
    asian: float
    caucasian: float


class Person(NamedTuple):
    vertices: np.ndarray      # float64 [V, 3], all units at zero
    look: Look
    strands: np.ndarray       # float64 [K, POINTS, 3], hair
    radius: np.ndarray        # float64 [K], half the thickness of each strand, dm
    anchor: np.ndarray        # int64 [B, 2], triangles that carry root and tip of a strand of brow or beard ...
    weight: np.ndarray        # float64 [B, 2, 2], ... and where on them
    anchor_radius: np.ndarray # float64 [B]
    glasses: np.ndarray       # float64 [R, POINTS, 3], R = 0 without


@lru_cache(maxsize=64)
def _person(seed: int, identity: int) -> Person:
    """The person with this number; nothing but (seed, identity) decides about them."""
    rng = np.random.default_rng([seed, identity, 0])
    head, _ = _asset()
    build = _build(rng)
    vertices = _vertices(rng, build)
    look = _look(rng, build)
    share = np.array([style.men if build.male else style.women for style in STYLES.values()])
    style = str(rng.choice(list(STYLES), p=share / share.sum()))
    if style == "bald":
        look = look._replace(hairline=0.4, scalp=0.15)
    strands, radius = _hair(rng, vertices, look, style)
    anchor, weight, anchor_radius = _brows_and_beard(rng, look)
    glasses = _glasses(rng, vertices) if rng.random() < 0.12 else np.zeros((0, POINTS, 3))
    return Person(vertices, look, strands, radius, anchor, weight, anchor_radius, glasses)


def _build(rng: np.random.Generator) -> Build:
    age = rng.choice(4, p=[0.10, 0.50, 0.25, 0.15])                         # child, young, middle-aged, old
    child = rng.uniform(0.35, 0.6) if age == 0 else 0.0
    old = (0.0, rng.uniform(0, 0.25), rng.uniform(0.3, 0.65), rng.uniform(0.75, 1.0))[age]
    return Build(bool(rng.random() < 0.5), age > 0, child, old, *rng.dirichlet([0.35, 0.35, 0.45]))


def _vertices(rng: np.random.Generator, build: Build) -> np.ndarray:
    """Vertices [V, 3] of a new person at rest, eyes and height of the head where the average's are."""
    head, names = _asset()
    sex = "male" if build.male else "female"
    ages = {"child": build.child, "old": build.old, "young": 1 - build.child - build.old}
    plump = rng.normal(0, 0.35)
    weights = np.zeros(len(names))
    for s, name in enumerate(names):
        kind, _, rest = name.partition(":")
        if kind == "macro":
            origin, gender, age = rest.split("-")
            weights[s] = getattr(build, origin) * (gender == sex) * ages[age]
        elif kind == "weight":
            gender, age, extreme = rest.split("-")
            weights[s] = (gender == sex) * ages[age] * max(0.0, plump if extreme == "maxweight" else -plump)
        elif kind == "shape":
            calm = rest.startswith(("head-", "forehead-", "chin-", "mouth-"))
            spread = 0.1 if rest in MOODY else 0.2 if calm else 0.3
            weights[s] = np.clip(rng.normal(0, spread), -2 * spread, 2 * spread)
            weights[s] += FEMININE.get(rest, 0.0) * (-0.5 if build.male else 1.0)
    vertices = head.rest.copy()
    drawing.morph(vertices, weights, head)
    eyes, above_neck = _vertices_of(head, EYE_LEFT, EYE_RIGHT), head.rest[:, 1] > 6.3
    scale = (np.ptp(head.rest[above_neck, 1]) / np.ptp(vertices[above_neck, 1])) ** 0.8
    vertices = (vertices - vertices[eyes].mean(0)) * scale + head.rest[eyes].mean(0)
    vertices[_vertices_of(head, TEETH_UPPER, TEETH_LOWER), 0] *= 0.86       # or they poke through the mouth's corners
    return vertices


def _look(rng: np.random.Generator, build: Build) -> Look:
    man, woman, fair = build.male and build.grown, not build.male and build.grown, build.caucasian > 0.5
    tone = rng.uniform(0, 1.3) * build.caucasian + 1.5 * build.asian + 4.1 * build.african + rng.normal(0, 0.4)
    tone = np.clip(tone, 0, 4.99)
    skin = SKIN_TONES[int(tone)] + tone % 1 * (SKIN_TONES[int(tone) + 1] - SKIN_TONES[int(tone)])
    skin = skin * rng.normal(1, 0.03, 3)
    light = 1 - tone / 5
    common = [0.1, 0.35, 0.22, 0.25, 0.08] if fair else [0.7, 0.24, 0.06, 0, 0]
    hair = HAIR_TONES[rng.choice(list(HAIR_TONES), p=common)] * rng.uniform(0.8, 1.25)
    brow = 0.75 * hair + 0.1 * skin
    grey = np.clip(1.5 * build.old - 0.55 + rng.normal(0, 0.15), 0, 1)
    hair = hair + grey * (GREY_TONES[rng.integers(2)] - hair)
    brow = brow + 0.6 * grey * (GREY_TONES[0] - brow)
    lips = skin * ([0.92, 0.58, 0.60] if light > 0.4 else [1.05, 0.72, 0.75])
    if woman and rng.random() < 0.55:
        lips = lips + rng.uniform(0.35, 0.8) * (LIPSTICKS[rng.integers(4)] * (0.5 + 0.5 * light) - lips)
    return Look(
        skin=_triple(skin), lips=_triple(lips), hair=_triple(hair), brow=_triple(brow),
        iris=_triple(IRIS_TONES[rng.choice(5, p=[0.2, 0.25, 0.2, 0.25, 0.1] if fair else [0.5, 0.5, 0, 0, 0])]),
        cloth=_triple(rng.dirichlet([1, 1, 1]) * rng.uniform(0.05, 0.9) + 0.02),
        shadow=_triple(EYE_SHADOWS[rng.integers(3)]),
        make_up=rng.uniform(0.25, 0.7) if woman and rng.random() < 0.7 else 0.0,
        lash=rng.uniform(0.6, 1.0) if woman else rng.uniform(0.1, 0.5),
        blush=rng.uniform(0.1, 0.5) * (1.3 if woman else 1.0),
        beard=rng.choice([0.15, 0.4, 1.0], p=[0.45, 0.3, 0.25]) * rng.uniform(0.78, 1) if man else 0.0,
        freckles=rng.uniform(0.3, 1) if light > 0.7 and rng.random() < 0.25 else 0.0,
        wrinkles=0.25 + 0.75 * build.old, eye_bags=rng.uniform(0.1, 0.4) + 0.4 * build.old,
        brow_width=rng.uniform(0.016, 0.026) if woman else rng.uniform(0.024, 0.040),
        brow_arch=rng.uniform(0.05, 0.085) if woman else rng.uniform(0.025, 0.06), brow_density=rng.uniform(0.6, 1.0),
        hairline=rng.normal(0, 0.03) + (rng.uniform(0, 0.35) * build.old if man else -0.05), scalp=1.0,
        collar=rng.uniform(5.5, 5.95), grain=rng.uniform(0, 50))


def _hair(rng: np.random.Generator, vertices: np.ndarray, look: Look, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Strands [K, POINTS, 3] and radius [K] of a hair style on a head."""
    head, _ = _asset()
    style = STYLES[name]
    count = 3000 if style.length else 0
    triangles = head.triangles[head.material == SKIN]
    corner = head.rest[triangles]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    area *= drawing.hairy(corner.mean(1), look.hairline)
    chosen = triangles[rng.choice(len(triangles), count, p=area / area.sum())]
    u, v = np.sort(rng.random((2, count)), axis=0)
    share = np.stack([u, v - u, 1 - v], 1)[:, :, None]                      # a point anywhere on the triangle
    roots, rest = (vertices[chosen] * share).sum(1), (head.rest[chosen] * share).sum(1)

    scalp = vertices[np.unique(triangles[area > 0])]
    low, high = scalp.min(0), scalp.max(0)
    radii = np.array([(high[0] - low[0]) / 2, 0.95, 0.53 * (high[2] - low[2])])
    centre = np.array([0.0, high[1] - radii[1], (high[2] + low[2]) / 2])
    brow = vertices[(head.rest[:, 1] > 7.55) & (head.rest[:, 1] < 7.95) & (head.rest[:, 2] > 1.1)]
    forehead = np.linalg.norm((brow - centre) / radii, axis=1).max() + 0.02

    lengths = style.length * rng.uniform(0.75, 1.1) * rng.uniform(0.65, 1.0, count) ** 0.7
    if style.length < 1:
        forward, side = rng.uniform(-1.0, -0.25), rng.uniform(0.1, 0.8)
        lengths *= 0.3 + 0.7 * np.clip((rest[:, 1] - 7.3) / 0.6, 0, 1)      # shorter at the sides and in the neck
    else:
        forward, side = -0.35, 0.9
    fringe = np.zeros(count, bool)
    if name in ("short", "bob", "long", "tied") and rng.random() < 0.35:
        fringe = (rest[:, 2] > 0.8) & (np.abs(rest[:, 0]) < rng.uniform(0.45, 0.6)) & (rest[:, 1] > 7.9)
        lengths[fringe] = ((rest[:, 1] - rng.uniform(7.6, 7.8)) * rng.uniform(0.95, 1.2, count))[fringe]
    part = rng.choice([-0.28, 0.0, 0.28]) + rng.normal(0, 0.04)
    phase = rng.uniform(0, 6.3, count) if style.curl > 0.5 else 3.0 * rest[:, 0] + rng.normal(0, 0.6, count)
    strands = drawing.grow_hair(
        roots, lengths, style, forward, side, part, fringe, name == "tied", phase, centre, radii, forehead)
    return strands, rng.uniform(0.010, 0.017, count)


MAP_LEFT, MAP_TOP, MAP_PIXEL = -1.0, 8.6, 0.005          # dm


@lru_cache(maxsize=1)
def _front_map() -> tuple[np.ndarray, np.ndarray]:
    """Triangle (or -1) and weights under each pixel of a frontal map of the head at rest."""
    head, _ = _asset()
    x, y, z = head.rest.T
    points = np.stack([(x - MAP_LEFT) / MAP_PIXEL, (MAP_TOP - y) / MAP_PIXEL, -z], 1)
    skin = np.flatnonzero(head.material == SKIN)
    depth, index, weight = drawing.buffers(520, 400)
    drawing.rasterise(points, head.triangles[skin], np.zeros(len(skin)), depth, index, weight)
    return np.where(index >= 0, skin[index], -1), weight


def _brows_and_beard(rng: np.random.Generator, look: Look) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anchors [B, 2], their weights [B, 2, 2] and radius [B] of short strands whose roots and tips the skin carries."""
    count = int(130 * look.brow_density)
    t, sign = rng.random(2 * count), np.repeat([-1, 1], count)
    across = rng.uniform(-1, 1, 2 * count) * look.brow_width * (1 - 0.8 * t ** 2)
    height = np.array([drawing.brow_height(each, look.brow_arch) for each in t])
    slope = np.radians(55 - 75 * t + rng.normal(0, 10, 2 * count)) * np.where(across > 0, 0.5, 1)
    length = rng.uniform(0.04, 0.075, 2 * count)
    root = np.stack([sign * (0.11 + 0.42 * t), height + across], 1)
    tip = root + np.stack([sign * length * np.cos(slope), 0.7 * length * np.sin(slope)], 1)
    radius = np.full(2 * count, 0.0055)
    if look.beard > 0.75:
        x, y = rng.uniform(-0.62, 0.62, 5000), rng.uniform(6.2, 6.9, 5000)
        side, reach = np.abs(x), rng.choice([0.2, 0.6])                     # a goatee or a full beard
        moustache = (side < 0.25) & (y > 6.73 - 0.25 * side) & (y < 6.81 - 0.15 * side)
        beard = (y < 6.44) & (side < reach) | (side > 0.36) & (side < reach) & (y < 6.42 + 1.1 * (side - 0.26))
        worn = np.flatnonzero(moustache | beard)[:1200]
        root = np.concatenate([root, np.stack([x, y], 1)[worn]])
        fall = np.stack([0.04 * x + rng.normal(0, 0.015, 5000), -rng.uniform(0.05, 0.09, 5000)], 1)
        tip = np.concatenate([tip, root[2 * count:] + fall[worn]])
        radius = np.concatenate([radius, np.full(len(worn), 0.007)])

    ends = np.stack([root, tip], 1)                                         # [B, 2, 2]
    triangle, weight = _front_map()
    column = np.clip((ends[..., 0] - MAP_LEFT) / MAP_PIXEL, 0, 399).astype(int)
    row = np.clip((MAP_TOP - ends[..., 1]) / MAP_PIXEL, 0, 519).astype(int)
    head, _ = _asset()
    anchor = triangle[row, column]
    front = head.rest[head.triangles[anchor[:, 0]], 2].mean(1) > 0.95       # the neck lies further back
    on_face = front & (anchor >= 0).all(1)
    return anchor[on_face], weight[row, column][on_face], radius[on_face]


def _glasses(rng: np.random.Generator, vertices: np.ndarray) -> np.ndarray:
    """Two rims, two temples and a bridge as polylines [7, POINTS, 3]."""
    head, _ = _asset()
    angle, power = np.linspace(0, 2 * np.pi, 2 * POINTS - 1), 2 / rng.uniform(2, 5)
    across, up = np.cos(angle), np.sin(angle)
    ring = np.stack([np.sign(across) * np.abs(across) ** power * rng.uniform(0.22, 0.26),
                     np.sign(up) * np.abs(up) ** power * rng.uniform(0.16, 0.22), 0 * angle], 1)
    ear = 0.83 * np.abs(vertices[head.rest[:, 1] > 6.5, 0]).max()
    t = np.linspace(0, 1, POINTS)[:, None]
    lines = []
    for material, sign in ((EYE_LEFT, 1), (EYE_RIGHT, -1)):
        eye = vertices[_vertices_of(head, material)].mean(0)
        rim = eye + [0.0, -0.03, 0.34] + ring
        rim[:, 2] -= 0.25 * rim[:, 0] ** 2
        outer = rim[np.argmax(np.abs(rim[:, 0]))]
        lines += [rim[:POINTS], rim[POINTS - 1:], outer + t * ([sign * ear, eye[1] + 0.05, 0.5] - outer)]
    inner = min(lines[0][:, 0].min(), lines[1][:, 0].min())
    height, front = lines[0][:, 1].mean() + 0.02, lines[0][:, 2].max()
    lines.append(np.concatenate([inner * (2 * t - 1), height + 0.16 * t * (1 - t), front + 0 * t], 1))
    return np.stack(lines)


# ------------------------------------------------------------------------------------------------------------- pictures

class Camera(NamedTuple):
    """Turn of the head in degrees, framing, and what spoils the picture."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)              # dm, right and up
    exposure: float = 1.0
    blur: float = 0.0                                    # standard deviation in pixels of a 64-pixel image
    grain: float = 0.0                                   # standard deviation, 1 = white
    occluder: tuple[float, ...] | None = None            # x, y, angle, radius (1 = width of the picture), three colours


STUDIO = Light(direction=(0.40, 0.42, 0.81), key=(1.65, 1.57, 1.5), sky=(0.55, 0.58, 0.64), ground=(0.30, 0.26, 0.24),
               rim=0.5, above=(0.42, 0.45, 0.50), below=(0.20, 0.22, 0.25))
DISTANCE, FRAME, PIVOT = 11.0, 2.2, np.array([0.0, 7.17, 0.5])             # dm: camera to head, height seen, centre
SHADOW_PIXELS, SHADOW_FRAME = 160, 3.6
# dm that eyes, teeth and tongue are set back, or they would poke through lids and lips; by material
SET_BACK = np.array([0, 0.045, 0.045, 0.045, 0.045, 0.045, 0])
FULL_MOTION = 0.2                                       # dm that count as 255 in the map of parts


def _draw(person: Person, units: np.ndarray, camera: Camera, light: Light, size: int,
          noise: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [size, size, 3] and parts uint8 [16, 16] of a person with these units [52]."""
    head, names = _asset()
    weights = np.zeros(len(names))
    weights[[names.index(f"unit:{name}") for name in UNITS]] = units
    vertices = person.vertices.copy()
    drawing.morph(vertices, weights, head)
    short = _carried(person, vertices, head)
    turn = _rotation(camera)
    position = (vertices - PIVOT) @ turn
    lines = np.ascontiguousarray((np.concatenate([person.strands, short, person.glasses]) - PIVOT) @ turn)
    radius = np.concatenate([person.radius, person.anchor_radius, np.full(len(person.glasses), 0.016)])

    side = 2 * size                                      # two by two samples a pixel
    focal = side * camera.zoom / FRAME
    depth, index, weight = drawing.buffers(side, side)
    drawing.rasterise(_project(position, camera, side, focal), head.triangles, SET_BACK[head.material],
                      depth, index, weight)
    drawing.draw_strands(_project(lines, camera, side, focal), radius * focal, len(head.triangles),
                         depth, index, weight)
    shadow = _shadow(position, lines[:len(person.strands)], person.radius, light)
    image = drawing.shade(
        index, weight, head, position, drawing.vertex_normals(position, head.triangles), lines, len(person.strands),
        len(person.strands) + len(short), light, shadow, _creases(units, person.look), person.look)
    if camera.occluder:
        cover, colour = _occluder(camera.occluder, side)
        image += cover[..., None] * (colour * np.add(light.sky, light.key) - image)
        index[cover > 0.5] = -1
    moved = np.linalg.norm(vertices - person.vertices, axis=1)
    return _film(image, camera, noise), drawing.displacement_map(index, weight, head.triangles, moved, FULL_MOTION)


def _carried(person: Person, vertices: np.ndarray, head: Head) -> np.ndarray:
    """Brows and beard [B, POINTS, 3] where the skin has carried them, just above it."""
    corner = vertices[head.triangles[person.anchor]]                        # [B, 2, 3, 3]
    v, w = person.weight[..., :1], person.weight[..., 1:]
    ends = corner[:, :, 0] * (1 - v - w) + corner[:, :, 1] * v + corner[:, :, 2] * w + [0, 0, 0.012]
    t = np.linspace(0, 1, POINTS)[:, None]
    return ends[:, :1] + t * (ends[:, 1:] - ends[:, :1])


def _rotation(camera: Camera) -> np.ndarray:
    """Matrix [3, 3] that turns row vectors by yaw, then pitch, then roll."""
    angles = np.radians([camera.yaw, camera.pitch, camera.roll])
    (cy, cp, cr), (sy, sp, sr) = np.cos(angles), np.sin(angles)
    yaw = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    roll = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return yaw @ pitch @ roll


def _project(points: np.ndarray, camera: Camera, side: int, focal: float) -> np.ndarray:
    """Column, row and depth [..., 3] of points [..., 3] in an image of ``side`` samples."""
    depth = DISTANCE - points[..., 2]
    scale = focal * DISTANCE / depth
    return np.stack([side / 2 + scale * (points[..., 0] + camera.shift[0]),
                     side / 2 - scale * (points[..., 1] + camera.shift[1]), depth], -1)


def _shadow(position: np.ndarray, strands: np.ndarray, radius: np.ndarray, light: Light) -> drawing.Shadow:
    """The shadow map of the skin and of every second strand."""
    head, _ = _asset()
    right = np.cross([0.0, 1.0, 0.0], light.direction)
    right /= np.linalg.norm(right)
    up = np.cross(light.direction, right)
    axes = np.stack([right, up, light.direction])
    scale, half = SHADOW_PIXELS / SHADOW_FRAME, SHADOW_PIXELS / 2

    def cast(points):
        seen = points @ axes.T
        return np.stack([half + scale * seen[..., 0], half - scale * seen[..., 1], -seen[..., 2]], -1)

    depth, index, weight = drawing.buffers(SHADOW_PIXELS, SHADOW_PIXELS)
    skin = head.triangles[head.material == SKIN]
    drawing.rasterise(cast(position), skin, np.zeros(len(skin)), depth, index, weight)
    drawing.draw_strands(cast(strands[::2]), 1.5 * scale * radius[::2], 0, depth, index, weight)
    return drawing.Shadow(_triple(right), _triple(up), light.direction, scale, depth)


def _creases(units: np.ndarray, look: Look) -> np.ndarray:
    """Depth [5] of the folds that these units make in forehead, between the brows, on the nose, at eyes and cheeks."""
    def pull(*names):
        return np.mean([units[UNITS.index(name)] for name in names])

    smile, sneer = pull("mouthSmileLeft", "mouthSmileRight"), pull("noseSneerLeft", "noseSneerRight")
    made = [0.7 * pull("browInnerUp", "browOuterUpLeft", "browOuterUpRight"), pull("browDownLeft", "browDownRight"),
            0.8 * sneer, 0.7 * pull("cheekSquintLeft", "cheekSquintRight"), 0.5 * (smile + sneer)]
    return 0.35 * (look.wrinkles - 0.25) + look.wrinkles ** 0.5 * np.array(made)


def _occluder(occluder: tuple[float, ...], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage [side, side] and colour [side, side, 3] of a round bar whose end is in the picture."""
    x, y, angle, radius, *colour = occluder
    row, column = (np.mgrid[:side, :side] + 0.5) / side
    along = (column - x) * np.cos(angle) + (row - y) * np.sin(angle)
    across = (row - y) * np.cos(angle) - (column - x) * np.sin(angle)
    away = np.hypot(np.maximum(along, 0), across)
    shade = np.sqrt(np.clip(1 - (away / radius) ** 2, 0.05, 1)) * (0.8 - 0.3 * across / radius)
    return np.clip((radius - away) / 0.02, 0, 1), shade[..., None] * colour


def _film(image: np.ndarray, camera: Camera, noise: np.random.Generator | None) -> np.ndarray:
    """Linear samples [2n, 2n, 3] to an image uint8 [n, n, 3]: averaging, exposure, blur, tone curve, grain."""
    size = len(image) // 2
    image = image.reshape(size, 2, size, 2, 3).mean((1, 3)) * camera.exposure
    if camera.blur > 0:
        image = gaussian_filter(image, (camera.blur * size / 64, camera.blur * size / 64, 0))
    image = image * (1 + image / 4) / (1 + image)        # roll the highlights off instead of clipping them
    image = np.clip(1.25 * image, 0, 1) ** (1 / 2.2)
    if noise is not None:
        image = image + noise.normal(0, camera.grain, image.shape)
    return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)


def _camera(rng: np.random.Generator) -> Camera:
    yaw, pitch, roll = rng.normal(0, (12, 7, 6))
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.22, 0.4)
    colour = 2 * rng.uniform(0.05, 0.5) * rng.dirichlet([30, 26, 22])
    bar = (0.5 - depth * np.cos(angle), 0.55 - depth * np.sin(angle), angle, rng.uniform(0.07, 0.14), *colour)
    return Camera(yaw, pitch, roll, zoom=rng.uniform(0.92, 1.08), shift=tuple(rng.normal(0, 0.05, 2)),
                  exposure=rng.uniform(0.75, 1.12), blur=max(0.0, rng.uniform(-0.8, 0.45)), grain=rng.uniform(0, 0.015),
                  occluder=bar if rng.random() < 0.1 else None)


def _direction(azimuth: float, height: float) -> Triple:
    """Unit vector towards a light, from its angles in degrees."""
    azimuth, height = math.radians(azimuth), math.radians(height)
    return math.sin(azimuth) * math.cos(height), math.sin(height), math.cos(azimuth) * math.cos(height)


def _light(rng: np.random.Generator) -> Light:
    direction = _direction(rng.uniform(-70, 70), rng.uniform(0, 55))
    warm, strength, fill = rng.normal(0, 0.08), rng.uniform(1.0, 1.65), rng.uniform(0.35, 0.75)
    above, below = 3 * rng.dirichlet([25, 25, 25], 2) * rng.uniform(0.04, 0.6, (2, 1))
    return Light(direction, key=(strength * (1 + warm), strength, strength * (1 - warm)),
                 sky=(0.95 * fill, fill, 1.08 * fill), ground=(0.5 * fill, 0.45 * fill, 0.4 * fill),
                 rim=rng.uniform(0, 1), above=_triple(above), below=_triple(below))


# ------------------------------------------------------------------------------------------------------------- data set

def _truth(count: int, split: int, seed: int) -> np.ndarray:
    """Labels int64 [count] in the shares of SHARES, shuffled."""
    counts = np.floor(np.array(SHARES) * count).astype(int)
    counts[0] += count - counts.sum()
    return np.random.default_rng([seed, split, 1]).permutation(np.repeat(np.arange(len(CLASSES)), counts))


def _identities(count: int, split: int) -> np.ndarray:
    """Identity numbers int64 [count]: a person's faces follow one another, and no person is in two splits."""
    return 1_000_000 * split + np.arange(count) // FACES_PER_IDENTITY


def _face(seed: int, split: int, index: int, label: int, identity: int, size: int,
          units: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, Expression]:
    """Image, parts and expression of one face of the data set; ``units`` [52] replace those of its expression.

    Expression, camera, light and noise have a random stream each, and the person another: changing one leaves the rest.
    """
    def stream(number):
        return np.random.default_rng([seed, split, index, number])

    expression = _expression(stream(3), label)
    image, parts = _draw(_person(seed, identity), expression.units if units is None else units, _camera(stream(4)),
                         _light(stream(5)), size, stream(6))
    return image, parts, expression


def _unit_weights(units) -> np.ndarray:
    """float64 [52] from None, a mapping of unit names, or an array."""
    if units is None:
        return np.zeros(len(UNITS))
    if isinstance(units, Mapping):
        for name in units:
            if name not in UNITS:
                raise FerlabError(f"rendered: there is no face unit {name!r}; the names are in ferlab.rendered.UNITS.")
        units = [units.get(name, 0.0) for name in UNITS]
    weights = np.asarray(units, float)
    if weights.shape != (len(UNITS),) or not np.isfinite(weights).all():
        raise FerlabError(f"rendered: units of shape {weights.shape} are not 52 finite weights; pass one for each name"
                          " in ferlab.rendered.UNITS, or a mapping from names to weights.")
    return weights


def render_face(units=None, identity: int = 0, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0,
                light: tuple[float, float] | None = None, size: int = 128, seed: int = 0) -> np.ndarray:
    """One face in a plain studio, uint8 [size, size, 3].

    units: None (at rest), a mapping from names in ``UNITS`` to weights, or an array [52]; 0 = at rest, 1 = full, at
    most 1.7. identity: number of the person; with the same ``seed``, ``extras["identity"]`` of ``load`` names the same
    people. yaw, pitch, roll: turn of the head in degrees. light: azimuth and height of the key light in degrees, None =
    the studio's. Raises FerlabError for unknown units, a wrong shape, and numbers out of range.
    """
    _check_size(size)
    check_whole("rendered", 0, identity=identity, seed=seed)
    angles = {"yaw": (yaw,), "pitch": (pitch,), "roll": (roll,), "light": (0, 0) if light is None else light}
    for name, degrees in angles.items():
        if np.shape(degrees) != ((2,) if name == "light" else (1,)) or not all(
                isinstance(each, Real) and math.isfinite(each) for each in degrees):
            raise FerlabError(f"render_face: {name} is {degrees}: give degrees.")
    lamp = STUDIO if light is None else STUDIO._replace(direction=_direction(light[0], min(80.0, max(-80.0, light[1]))))
    return _draw(_person(seed, int(identity)), _unit_weights(units), Camera(yaw, pitch, roll), lamp, size)[0]


def render_again(faces: FaceSet, index: int, units=None, size: int = 64, seed: int = 0) -> np.ndarray:
    """Face ``index`` of a FaceSet of ``load`` once more, uint8 [size, size, 3]: same person, camera and light.

    units: what replaces its expression, as in ``render_face`` (an array of zeros = the face at rest); None = its own.
    seed: that of ``load``. Raises FerlabError for faces of another data set, unknown units and a size out of range.
    """
    _check_size(size)
    if faces.dataset != "rendered" or faces.names is None or faces.truth is None:
        raise FerlabError(f"render_again: the faces of {faces.dataset or 'this set'} are not rendered; pass those of"
                          " ferlab.rendered.load.")
    _, split, number = str(faces.names[index]).split("-")
    weights = faces.extras["units"][index].astype(float) if units is None else _unit_weights(units)
    identity, label = int(faces.extras["identity"][index]), int(faces.truth[index])
    return _face(seed, SPLITS.index(split), int(number), label, identity, size, weights)[0]


def load(size: int = 64, seed: int = 0, train: int = 6000, valid: int = 1000, test: int = 1500,
         cache: str | Path | None = None, workers: int | None = None, progress: bool | None = None) -> Splits:
    """The rendered faces: on the first call they are drawn (about 100 a second), later they open from the cache.

    size: pixels, 24 to 512. train, valid, test: number of faces; a split of 0 faces is None. cache: folder, else
    $FERLAB_CACHE, else ferlab in the user's cache directory. Other numbers make other faces: the first 30 of 60 are not
    those of 30. workers: threads (None = one a core); their number does
    not change a byte. progress: True or False shows or hides the bar, None shows it on a terminal.

    Each FaceSet has RGB images uint8 [N, size, size, 3] (a read-only memory map), labels = truth, the votes of ten
    simulated raters (float32 [N, 8]), and the extras

        mixture   float32 [N, 8]       share of each class in the pose; max < 1 marks a blend, argmax = truth
        identity  int64   [N]          number of the person; no person is in two splits
        units     float32 [N, 52]      weights of UNITS
        parts     uint8   [N, 16, 16]  where the expression moved the visible skin; 255 = 2 cm or more

    Raises FerlabError for arguments out of range and for a cache that cannot be written or read.
    """
    _check_size(size)
    counts = {"train": train, "valid": valid, "test": test}
    check_whole("rendered", 0, seed=seed, **counts)
    if not any(counts.values()):
        raise FerlabError("rendered: train, valid and test are all 0; ask for at least one face.")
    if workers is not None and workers < 1:
        raise FerlabError(f"rendered: workers={workers!r} is less than 1; pass 1 or more, or None for one a core.")
    folder = cache_directory(cache) / f"rendered-v{VERSION}-size{size}-seed{seed}-{train}-{valid}-{test}"
    try:
        if not folder.exists():
            _check_room(folder, sum(counts.values()) * size * size * 3)
            _render_all(folder, size, seed, counts, workers, progress)
    except OSError as error:
        if not folder.exists():                          # else another process was first, with the same bytes
            raise FerlabError(f"rendered: cannot write {error.filename or folder} ({error.strerror}); pass cache=FOLDER"
                              " or set FERLAB_CACHE to a folder that can be written.") from error
    try:
        return Splits(*(_open(folder, split) if count else None for split, count in counts.items()))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FerlabError(f"rendered: {folder} is damaged ({error}); delete it to have it made anew.") from error


def _check_room(folder: Path, needed: int) -> None:
    """FerlabError where the images' bytes do not fit on the folder's disk."""
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if needed > (left := shutil.disk_usage(there).free):
        raise FerlabError(f"rendered: so many faces take {needed / 1e9:,.0f} GB, and {there} has {left / 1e9:,.1f} GB "
                          "left; ask for fewer or smaller ones, or pass cache=FOLDER or set FERLAB_CACHE.")


def _check_size(size) -> None:
    if not isinstance(size, (int, np.integer)) or not 24 <= size <= 512:
        raise FerlabError(f"rendered: size={size!r} is not a whole number from 24 to 512 (pixels); pass e.g. size=64.")


def _open(folder: Path, split: str) -> FaceSet:
    images = np.load(folder / f"{split}-images.npy", mmap_mode="r")
    with np.load(folder / f"{split}.npz") as file:
        arrays = dict(file)
    names = np.array([f"rendered-{split}-{i:05d}" for i in range(len(images))])
    return FaceSet(
        images=images, labels=arrays["truth"], classes=CLASSES, truth=arrays["truth"].copy(), votes=arrays["votes"],
        names=names, extras={key: arrays[key] for key in ("mixture", "identity", "units", "parts")},
        dataset="rendered", split=split, rule="truth")


def _render_chunk(path: Path, size: int, seed: int, split: int, start: int, truth: np.ndarray,
                  identity: np.ndarray) -> None:
    """Draw the faces start, start + 1, ... with these labels and identities, and write them whole or not at all."""
    faces = [_face(seed, split, start + i, int(label), int(person), size)
             for i, (label, person) in enumerate(zip(truth, identity, strict=True))]
    images, parts, expressions = zip(*faces, strict=True)
    arrays: dict[str, Any] = {key: np.array([getattr(each, key) for each in expressions], np.float32)
                              for key in ("mixture", "units", "votes")}
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, images=np.stack(images), parts=np.stack(parts), truth=truth, identity=identity, **arrays)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _render_all(folder: Path, size: int, seed: int, counts: dict[str, int], workers, progress) -> None:
    """Draw all splits chunk by chunk (chunks that an interrupted run left are kept), then join them into ``folder``."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    chunks = {}
    for split, count in counts.items():
        number = SPLITS.index(split)
        truth, identity = _truth(count, number, seed), _identities(count, number)
        for start in range(0, count, CHUNK):
            rows = slice(start, start + CHUNK)
            chunks[partial / f"{split}-{start:06d}.npz"] = (size, seed, number, start, truth[rows], identity[rows])
    todo = {path: task for path, task in chunks.items() if not path.exists()}
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    total = sum(counts.values())
    done = total - sum(len(task[-1]) for task in todo.values())
    with tqdm(total=total, initial=done, desc=f"rendering faces ({size} px)", unit="face", disable=hidden) as bar, \
            ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        futures = [(pool.submit(_render_chunk, path, *task), len(task[-1])) for path, task in todo.items()]
        try:
            for future, faces in futures:
                future.result()
                bar.update(faces)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    joined = partial / f"joined.{os.getpid()}"
    joined.mkdir(exist_ok=True)
    try:
        for split, count in counts.items():
            paths = [path for path in chunks if path.name.startswith(split)]
            if count:
                _join(joined, split, count, size, paths)
        os.rename(joined, folder)
    finally:
        shutil.rmtree(joined, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)


def _join(folder: Path, split: str, count: int, size: int, paths: list[Path]) -> None:
    """Write the chunks of a split as one array of images and one file of everything else."""
    chunks: list[dict[str, Any]] = []
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    with open(folder / f"{split}-images.npy", "wb") as images:  # not a memory map, which kills where the disk is full
        np.lib.format.write_array_header_1_0(images, header)
        for path in paths:
            with np.load(path) as chunk:
                chunks.append(dict(chunk))
            images.write(chunks[-1].pop("images").tobytes())
    arrays: dict[str, Any] = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    np.savez(folder / f"{split}.npz", **arrays)
