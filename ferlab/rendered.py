"""``rendered``: 3-D faces whose expression, class mixture and moving parts are known exactly (source: ours).

A head (MakeHuman, CC0; built by ``tools/build_head.py``) is given an identity, 52 face units, a camera and a light, and
is drawn by a small rasteriser. The labels are posed FACS prototypes: nothing here says how a network trained on these
faces does on photographs. Lengths are decimetres, y up, z towards the viewer; angles are degrees; colours are linear RGB.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from ferlab.data import FaceSet, Splits
from ferlab.errors import FerlabError

VERSION = 5                       # part of the cache key: raise it whenever the same arguments give other bytes
CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
SHARES = (0.32, 0.24, 0.13, 0.11, 0.08, 0.04, 0.05, 0.03)      # of the classes, imbalanced like FER+
FACES_PER_IDENTITY = 6
CHUNK = 50                        # faces that one task renders
ASSET = Path(__file__).parent / "assets" / "head.npz"

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
        (0.65, "browInnerUp 1.35 browDown_ .25 mouthFrown_ 1 mouthShrugLower .6 eyeSquint_ .15 eyeBlink_ .12 eyeLookDown_ .2"),
        (0.35, "browInnerUp 1.35 mouthFrown_ .9 mouthShrugLower .9 mouthPress_ .3 eyeBlink_ .22 eyeLookDown_ .5 cheekSquint_ .2")],
    "anger": [
        (0.6, "browDown_ 1.4 browOuterUp_ .35 eyeSquint_ .35 eyeWide_ .6 mouthPress_ .4 mouthRollLower .5 mouthRollUpper .45"
              " noseSneer_ .5 jawForward .35 mouthFrown_ .35"),
        (0.4, "browDown_ 1.4 browOuterUp_ .35 eyeSquint_ .25 eyeWide_ .6 jawOpen .25 mouthUpperUp_ .55 mouthLowerDown_ .9"
              " mouthStretch_ .3 noseSneer_ .45 mouthFunnel .35")],
    "disgust": [
        (0.65, "noseSneer_ 1.3 mouthUpperUp_ 1 browDown_ .55 cheekSquint_ .7 eyeSquint_ .25 mouthFrown_ .45 mouthShrugLower .4"),
        (0.35, "noseSneer_ 1.2 mouthUpperUp_ .9 browDown_ .5 cheekSquint_ .5 eyeSquint_ .3 mouthLowerDown_ .5 jawOpen .18"
               " tongueOut .25 mouthFrown_ .5")],
    "fear": [
        (0.7, "browInnerUp 1.1 browOuterUp_ .45 browDown_ .4 eyeWide_ 1.15 mouthStretch_ 1.1 mouthLowerDown_ .55 jawOpen .22"
              " mouthFrown_ .25"),
        (0.3, "browInnerUp 1.1 browOuterUp_ .5 browDown_ .35 eyeWide_ 1.1 mouthStretch_ 1.1 jawOpen .3 mouthLowerDown_ .5")],
    "contempt": [
        (0.5, "mouthSmileLeft .95 mouthDimpleLeft .3 mouthPressLeft .3 mouthPressRight .4 mouthFrownRight .2 cheekSquintLeft .3 mouthLeft .3"
              " browOuterUpRight .6 browDownLeft .3 eyeSquintLeft .2 eyeBlink_ .1"),
        (0.5, "mouthSmileRight .95 mouthDimpleRight .3 mouthPressRight .3 mouthPressLeft .4 mouthFrownLeft .2 cheekSquintRight .3 mouthRight .3"
              " browOuterUpLeft .6 browDownRight .3 eyeSquintRight .2 eyeBlink_ .1")],
}
CONFUSED = {"neutral": "sadness contempt", "happiness": "contempt surprise", "surprise": "fear happiness",
            "sadness": "neutral fear", "anger": "disgust sadness", "disgust": "anger contempt",
            "fear": "surprise sadness", "contempt": "happiness neutral"}


# ------------------------------------------------------------------------------------------------------------ the head

SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER, TONGUE, LASH = range(7)
PUSH = np.array([0, 0.045, 0.045, 0.045, 0.045, 0.045, 0])       # dm: what lies behind lids and lips must not poke through
EYE, EYE_RADIUS = np.array([0.3078, 7.284, 1.2455]), 0.1466     # the left eye of the head at rest


class Head(NamedTuple):
    """The asset (see tools/build_head.py): V vertices, T triangles and S morph targets."""

    rest: np.ndarray          # float64 [V, 3]
    triangles: np.ndarray     # int64 [T, 3]
    material: np.ndarray      # int64 [T]: SKIN, EYES, TEETH, ...
    openness: np.ndarray      # float64 [V], 1 = sees the whole sky
    lip: np.ndarray           # float64 [V], 1 = red of the lips
    starts: np.ndarray        # int64 [S + 1]
    index: np.ndarray         # int64 [M]
    delta: np.ndarray         # float64 [M, 3]


@lru_cache(maxsize=1)
def _asset() -> tuple[Head, tuple[str, ...]]:
    with np.load(ASSET) as file:
        rest, triangles, material = file["rest"].astype(float), file["triangles"].astype(int), file["material"].astype(int)
        shown = (material != LASH) | (rest[triangles, 1].mean(1) > EYE[1])           # the lower lashes are too coarse
        head = Head(rest, triangles[shown], material[shown],
                    file["openness"] / 255.0, file["lip"] / 255.0, file["starts"].astype(int),
                    file["index"].astype(int), file["delta"] / 1000.0)
        return head, tuple(str(name) for name in file["names"])


def _named(kind: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(kind) for name in _asset()[1] if name.startswith(kind))


UNITS = _named("unit:")



@njit(cache=True, nogil=True)
def _morph(vertices, weights, starts, index, delta):
    """Add the weighted morph targets to ``vertices`` [V, 3] in place."""
    for s in range(len(weights)):
        if weights[s] != 0.0:
            for m in range(starts[s], starts[s + 1]):
                for k in range(3):
                    vertices[index[m], k] += weights[s] * delta[m, k]


@njit(cache=True, nogil=True)
def _normals(vertices, triangles):
    normals = np.zeros_like(vertices)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ux, uy, uz = vertices[b] - vertices[a]
        vx, vy, vz = vertices[c] - vertices[a]
        n = (uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx)
        for corner in (a, b, c):
            for k in range(3):
                normals[corner, k] += n[k]
    for i in range(len(normals)):
        size = math.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2) + 1e-12
        for k in range(3):
            normals[i, k] /= size
    return normals


# -------------------------------------------------------------------------------------------------------- expressions

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

    label: a name in ``CLASSES`` or its index. intensity: 0 = neutral, 1 = full. variant: 0, the commonest way to show the
    class, or 1 where there is a second. Raises FerlabError for a label or variant that does not exist.
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
    calm = np.array([0.3 if UNITS[unit].startswith(("jaw", "tongue", "mouthFunnel", "mouthPucker")) else 1 for unit in stray])
    weights[stray] += rng.uniform(0, 0.15, 3) * calm

    seen = 0.8 * mixture                                # what raters see: the mixture, its usual confusions, anything
    for i, confused in enumerate(CONFUSED.values()):
        for each in confused.split():
            seen[CLASSES.index(each)] += 0.08 * mixture[i]
    faint = max(0.0, 0.9 - intensity) * (name != "neutral")
    seen = (1 - faint) * (seen + 0.04 / len(CLASSES)) + faint * np.eye(len(CLASSES))[0]
    return Expression(_strengthen(weights), mixture, rng.multinomial(10, seen / seen.sum()).astype(float))


# ------------------------------------------------------------------------------------------------------------- people

class Look(NamedTuple):
    """Colours and marks of a person; every colour is float64 [3]."""

    skin: np.ndarray
    lips: np.ndarray
    iris: np.ndarray
    hair: np.ndarray
    brow: np.ndarray
    cloth: np.ndarray
    shadow: np.ndarray        # colour on the lids
    make_up: float            # strength of that colour, 0 to 1
    lash: float               # 0 to 1
    blush: float
    beard: float              # darkness of shaven stubble, 0 to 1
    freckles: float
    wrinkles: float
    eye_bags: float
    brow_width: float         # half the height of a brow, dm
    brow_arch: float
    brow_density: float
    hairline: float           # dm that the hairline stands higher than usual
    scalp: float              # how much of the hair's colour the scalp takes
    collar: float             # height of the garment's neckline, dm
    grain: float              # offset of the noise that mottles skin and hair


class Person(NamedTuple):
    vertices: np.ndarray      # float64 [V, 3], with all units at zero
    look: Look
    strands: np.ndarray       # float64 [K, P, 3]: hair, each strand a polyline
    radius: np.ndarray        # float64 [K], half the thickness of each strand
    anchor: np.ndarray        # int64 [B, P]: triangle that carries each point of a brow or beard strand
    weight: np.ndarray        # float64 [B, P, 2]: where on it
    anchor_radius: np.ndarray # float64 [B]
    glasses: np.ndarray       # float64 [R, P, 3] polylines; R = 0 without glasses


def _linear(*srgb):
    return (np.array(srgb) / 255.0) ** 2.2


SKIN_TONES = np.array([_linear(230, 190, 168), _linear(218, 170, 140), _linear(198, 146, 112), _linear(152, 103, 76),
                       _linear(108, 70, 51), _linear(72, 46, 36)])
HAIR_TONES = {"black": _linear(26, 22, 21), "brown": _linear(62, 42, 30), "chestnut": _linear(96, 60, 38),
              "blond": _linear(186, 146, 94), "red": _linear(140, 68, 36), "grey": _linear(150, 148, 146),
              "white": _linear(214, 212, 208)}
IRIS_TONES = np.array([_linear(70, 44, 28), _linear(96, 66, 40), _linear(104, 118, 78), _linear(92, 128, 160),
                       _linear(120, 136, 140)])


class Style(NamedTuple):
    """A way to wear the hair; lengths in dm, the rest relative to the strand's own direction."""

    women: float              # how many women and men wear it, relative
    men: float
    length: float
    lift: float               # off the head, at the root
    gravity: float
    curl: float
    volume: float             # room between hair and head, share of the head's radius


STYLES = {
    "bald": Style(0.0, 0.06, 0.0, 0.0, 0.0, 0.0, 0.0),
    "buzz": Style(0.02, 0.20, 0.08, 0.9, 0.0, 0.1, 0.02),
    "short": Style(0.08, 0.42, 0.30, 0.55, 0.3, 0.15, 0.06),
    "swept": Style(0.04, 0.16, 0.42, 0.75, 0.1, 0.15, 0.12),
    "curly": Style(0.10, 0.09, 0.65, 0.7, 0.4, 0.95, 0.14),
    "afro": Style(0.07, 0.03, 0.70, 1.4, 0.0, 1.0, 0.22),
    "bob": Style(0.22, 0.01, 1.45, 0.12, 1.1, 0.12, 0.09),
    "long": Style(0.34, 0.03, 2.60, 0.12, 1.1, 0.2, 0.10),
    "tied": Style(0.14, 0.01, 0.95, 0.05, 0.0, 0.04, 0.03),
}
# How women's shapes differ from the mean on average; men's differ by half as much the other way.
FEMININE = {"chin-width-incr": -0.35, "chin-bones-incr": -0.25, "chin-prominent-incr": -0.15, "nose-scale-horiz-incr": -0.35,
            "nose-scale-vert-incr": -0.2, "nose-hump-incr": -0.3, "eye-scale-incr": 0.4, "eyebrows-trans-forward": -0.5,
            "mouth-upperlip-volume-incr": 0.15, "mouth-lowerlip-volume-incr": 0.2, "head-oval": 0.3, "head-square": -0.25,
            "neck-scale-horiz-incr": -0.5, "mouth-scale-horiz-incr": -0.15, "eye-height2-incr": 0.2}


@njit(cache=True, nogil=True)
def _brow_height(t, arch):
    """Height of the middle of a brow, from its inner (t = 0) to its outer end (t = 1)."""
    return 7.50 + arch * math.sin(2.7 * t) - 0.035 * t


@njit(cache=True, nogil=True)
def _hairline(x, y, z, raised):
    """Signed height above the hairline of a point of the head at rest; positive = hair grows here."""
    knots = ((-0.5, 6.55), (0.05, 6.75), (0.22, 7.55), (0.52, 7.50), (0.62, 7.30), (0.74, 7.62), (0.95, 7.86),
             (1.20, 7.95), (1.60, 7.98))
    line = knots[8][1]
    if z < knots[0][0]:
        line = knots[0][1]
    for k in range(8):
        if knots[k][0] <= z < knots[k + 1][0]:
            t = (z - knots[k][0]) / (knots[k + 1][0] - knots[k][0])
            line = knots[k][1] + t * (knots[k + 1][1] - knots[k][1])
    if z > 0.65:
        line += raised * min(1.0, (z - 0.65) / 0.3) * (1.0 + 0.5 * min(1.0, abs(x) / 0.5))
    if y < 7.58 and abs(x) > 0.735 and z > 0.1:         # the ears
        return -1.0
    return y - line


@njit(cache=True, nogil=True)
def _above_hairline(points, raised):
    hairy = np.zeros(len(points), np.bool_)
    for i in range(len(points)):
        hairy[i] = _hairline(points[i, 0], points[i, 1], points[i, 2], raised) > 0
    return hairy


@njit(cache=True, nogil=True)
def _grow(roots, lengths, style, forward, side, part, fringe, tied, phase, centre, radii, forehead):
    """Hair strands [K, 10, 3] from their roots [K, 3]: combed along the head, curled, falling, never across the face.

    The head is an ellipsoid above its centre and a cylinder below, in units of which the forehead reaches to ``forehead``.
    fringe: bool [K], combed onto the forehead.
    """
    points = 10
    strands = np.empty((len(roots), points, 3))
    for i in range(len(roots)):
        x, y, z = roots[i]
        sign = 1.0 if x > part + 0.02 * math.sin(40 * z) else -1.0
        step, base = lengths[i] / (points - 1), 0.0
        for p in range(points):
            strands[i, p, 0], strands[i, p, 1], strands[i, p, 2] = x, y, z
            t = p / (points - 1)
            ex, ey, ez = (x - centre[0]) / radii[0], max(0.0, (y - centre[1]) / radii[1]), (z - centre[2]) / radii[2]
            if p == 0:
                base = max(0.97, math.sqrt(ex * ex + ey * ey + ez * ez))
            nx, ny, nz = ex / radii[0], ey / radii[1], ez / radii[2]
            size = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
            nx, ny, nz = nx / size, ny / size, nz / size
            if fringe[i]:
                dx, dy, dz = 0.25 * sign, -0.6, 1.0
            elif tied:
                dx, dy, dz = -2 * x, 2 * (7.8 - y), 2 * (-0.6 - z)
            else:
                dx, dy, dz = sign * side, -style.gravity * (0.3 + 1.6 * t), forward
            into = dx * nx + dy * ny + dz * nz
            dx, dy, dz = dx - into * nx, dy - into * ny, dz - into * nz
            size = math.sqrt(dx * dx + dy * dy + dz * dz) + 1e-9
            up, wave, angle = style.lift * (1 - t), style.curl * (0.4 + 0.6 * t), 9.0 * t + phase[i]
            dx = dx / size + up * nx + wave * math.sin(angle)
            dy = dy / size + up * ny + wave * 0.7 * math.cos(angle + phase[i])
            dz = dz / size + up * nz + wave * math.cos(1.3 * angle)
            size = math.sqrt(dx * dx + dy * dy + dz * dz) + 1e-9
            x, y, z = x + step * dx / size, y + step * dy / size, z + step * dz / size
            ex, ey, ez = (x - centre[0]) / radii[0], max(0.0, (y - centre[1]) / radii[1]), (z - centre[2]) / radii[2]
            level = math.sqrt(ex * ex + ey * ey + ez * ez)
            wanted = base - 0.7 * t * (base - 0.97) + style.volume * min(1.0, 2.5 * t + 0.2)
            if fringe[i]:
                wanted = max(wanted - 0.6 * style.volume, forehead * min(1.0, 0.9 + 0.3 * t))
            if level < wanted:
                grow = wanted / (level + 1e-9)
                x, z = centre[0] + (x - centre[0]) * grow, centre[2] + (z - centre[2]) * grow
                if y > centre[1]:
                    y = centre[1] + (y - centre[1]) * grow
            if not fringe[i] and z > 0.6 and y < 8.0:                # the window of the face
                edge = radii[0] * (0.86 + 0.10 * min(1.0, 8.0 - y))
                if abs(x) < edge:
                    x += 0.6 * (edge * (1.0 if x > 0 else -1.0) - x)
                z -= 0.3 * max(0.0, z - 1.0)
    return strands


def _weights_of_people(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[np.ndarray, dict]:
    """Morph weights [S] of a new person, and what the look needs to know: sex, age and the mix of origins."""
    male = float(rng.random() < 0.5)
    sex = {"male": 1.0, "female": 0.0} if male else {"male": 0.0, "female": 1.0}
    age = rng.choice(["child", "young", "middle", "old"], p=[0.10, 0.50, 0.25, 0.15])
    old = {"child": 0.0, "young": rng.uniform(0, 0.25), "middle": rng.uniform(0.3, 0.65), "old": rng.uniform(0.75, 1.0)}[age]
    child = rng.uniform(0.35, 0.6) if age == "child" else 0.0
    ages = {"child": child, "old": old, "young": 1 - child - old}
    origin = dict(zip(("african", "asian", "caucasian"), rng.dirichlet([0.35, 0.35, 0.45]), strict=True))
    weight = rng.normal(0, 0.35)
    weights = np.zeros(len(names))
    for s, name in enumerate(names):
        kind, _, rest = name.partition(":")
        if kind == "macro":
            race, gender, stage = rest.split("-")
            weights[s] = origin[race] * sex[gender] * ages[stage]
        elif kind == "weight":
            gender, stage, extreme = rest.split("-")
            weights[s] = sex[gender] * ages[stage] * max(0.0, weight if extreme == "maxweight" else -weight)
        elif kind == "shape":
            spread = 0.2 if rest.startswith(("head-", "forehead-", "chin-", "mouth-")) else 0.3
            spread = 0.1 if rest in ("mouth-angles-up", "eyebrows-angle-up", "eye-height2-incr") else spread    # no moods
            weights[s] = np.clip(rng.normal(0, spread), -2 * spread, 2 * spread) + FEMININE.get(rest, 0.0) * (-0.5 if male else 1)
    return weights, {"male": male, "age": age, "old": old, **origin}


def _person_look(rng: np.random.Generator, who: dict) -> Look:
    tone = np.clip(1.1 * who["caucasian"] * rng.uniform(0, 1.2) + 1.5 * who["asian"] + 4.1 * who["african"]
                   + rng.normal(0, 0.4), 0, 5)
    low = min(int(tone), 4)
    skin = (SKIN_TONES[low] + (tone - low) * (SKIN_TONES[low + 1] - SKIN_TONES[low])) * rng.normal(1, 0.03, 3)
    light = 1 - tone / 5
    fair = who["caucasian"] > 0.5
    names = ["black", "brown", "chestnut", "blond", "red"]
    hair = HAIR_TONES[rng.choice(names, p=[0.1, 0.35, 0.22, 0.25, 0.08] if fair else [0.7, 0.24, 0.06, 0, 0])]
    hair = hair * rng.uniform(0.8, 1.25)
    brow = 0.75 * hair + 0.1 * skin
    grey = np.clip(who["old"] * 1.5 - 0.55 + rng.normal(0, 0.15), 0, 1)
    hair = hair + grey * (HAIR_TONES[rng.choice(["grey", "white"])] - hair)
    brow = brow + 0.6 * grey * (HAIR_TONES["grey"] - brow)
    woman = who["male"] == 0 and who["age"] != "child"
    lips = skin * np.array([0.92, 0.58, 0.60]) if light > 0.4 else skin * np.array([1.05, 0.72, 0.75])
    stick = rng.random() < 0.55 and woman
    colour = np.array([_linear(176, 46, 58), _linear(190, 88, 92), _linear(150, 50, 70), _linear(200, 108, 100)][rng.integers(4)])
    lips = lips + (rng.uniform(0.35, 0.8) if stick else 0.0) * (colour * (0.5 + 0.5 * light) - lips)
    iris = IRIS_TONES[rng.choice(5, p=[0.2, 0.25, 0.2, 0.25, 0.1]) if fair else rng.choice(2)]
    cloth = np.array(rng.dirichlet([1, 1, 1]) * rng.uniform(0.05, 0.9)) + 0.02
    man = who["male"] == 1 and who["age"] != "child"
    return Look(
        skin=skin, lips=lips, iris=np.asarray(iris), hair=hair, brow=brow, cloth=cloth,
        shadow=np.array([_linear(90, 60, 60), _linear(70, 70, 95), _linear(110, 78, 58)][rng.integers(3)]),
        make_up=float(woman and rng.random() < 0.7) * rng.uniform(0.25, 0.7), lash=rng.uniform(0.6, 1.0) if woman else rng.uniform(0.1, 0.5),
        blush=rng.uniform(0.1, 0.5) * (1.3 if woman else 1), beard=float(man) * rng.choice([0.15, 0.4, 1.0], p=[0.45, 0.3, 0.25]) * rng.uniform(0.78, 1),
        freckles=float(light > 0.7 and rng.random() < 0.25) * rng.uniform(0.3, 1), wrinkles=0.25 + 0.75 * who["old"],
        eye_bags=rng.uniform(0.1, 0.4) + 0.4 * who["old"],
        brow_width=rng.uniform(0.016, 0.026) if woman else rng.uniform(0.024, 0.040),
        brow_arch=rng.uniform(0.05, 0.085) if woman else rng.uniform(0.025, 0.06), brow_density=rng.uniform(0.6, 1.0),
        hairline=rng.normal(0.0 if man else -0.05, 0.03) + (rng.uniform(0, 0.35) * who["old"] if man else 0.0), scalp=1.0,
        collar=rng.uniform(5.5, 5.95), grain=rng.uniform(0, 50))


@lru_cache(maxsize=64)
def _person(seed: int, identity: int) -> Person:
    """The person with this number; its look depends on nothing but (seed, identity)."""
    rng = np.random.default_rng([seed, identity, 0])
    head, names = _asset()
    weights, who = _weights_of_people(rng, names)
    look = _person_look(rng, who)
    vertices = head.rest.copy()
    _morph(vertices, weights, head.starts, head.index, head.delta)
    eyes = np.isin(np.arange(len(vertices)), head.triangles[(head.material == EYE_LEFT) | (head.material == EYE_RIGHT)])
    front = head.rest[:, 1] > 6.3
    scale = (np.ptp(head.rest[front, 1]) / np.ptp(vertices[front, 1])) ** 0.8
    vertices = (vertices - vertices[eyes].mean(0)) * scale + head.rest[eyes].mean(0)
    teeth = np.unique(head.triangles[(head.material == TEETH_UPPER) | (head.material == TEETH_LOWER)])
    vertices[teeth, 0] *= 0.86                          # or they poke through the corners of the mouth

    share = np.array([style.men if who["male"] else style.women for style in STYLES.values()])
    style = rng.choice(list(STYLES), p=share / share.sum())
    strands, radius = _hair(rng, head, vertices, look, style)
    if style == "bald":
        look = look._replace(hairline=0.4, scalp=0.15)
    anchor, weight, anchor_radius = _brows_and_beard(rng, look, who)
    glasses = _glasses(vertices, head, rng) if rng.random() < 0.12 else np.zeros((0, 10, 3))
    return Person(vertices, look, strands, radius, anchor, weight, anchor_radius, glasses)


def _hair(rng, head, vertices, look, name):
    """Strands [K, 10, 3] and radius [K] of a hair style on a person's head."""
    style = STYLES[name]
    triangles = head.triangles[head.material == SKIN]
    corner = head.rest[triangles]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    hairy = _above_hairline(corner.mean(1), look.hairline)
    count = 3000 if style.length > 0 else 0
    chosen = triangles[rng.choice(len(triangles), count, p=area * hairy / (area * hairy).sum())]
    u, v = np.sort(rng.random((2, count)), axis=0)
    share = np.stack([u, v - u, 1 - v], 1)[:, :, None]
    roots, rest = (vertices[chosen] * share).sum(1), (head.rest[chosen] * share).sum(1)
    scalp = vertices[np.unique(triangles[hairy])]
    low, high = scalp.min(0), scalp.max(0)
    radii = np.array([0.5 * (high[0] - low[0]), 0.95, 0.53 * (high[2] - low[2])])
    centre = np.array([0.0, high[1] - 0.95, 0.5 * (high[2] + low[2])])

    brow = vertices[(head.rest[:, 1] > 7.55) & (head.rest[:, 1] < 7.95) & (head.rest[:, 2] > 1.1)]
    forehead = np.linalg.norm((brow - centre) / radii, axis=1).max() + 0.02

    lengths = style.length * rng.uniform(0.75, 1.1) * rng.uniform(0.65, 1.0, count) ** 0.7
    if style.length < 1:                                # short at the sides and in the neck
        lengths *= 0.3 + 0.7 * np.clip((rest[:, 1] - 7.3) / 0.6, 0, 1)
    fringe = np.zeros(count, bool)
    if name in ("bob", "long", "tied", "short") and rng.random() < 0.35:
        fringe = (rest[:, 2] > 0.8) & (np.abs(rest[:, 0]) < rng.uniform(0.45, 0.6)) & (rest[:, 1] > 7.9)
        lengths[fringe] = ((rest[:, 1] - rng.uniform(7.6, 7.8)) * rng.uniform(0.95, 1.2, count))[fringe]
    part = rng.choice([-0.28, 0.0, 0.28]) + rng.normal(0, 0.04)
    if style.length < 1:
        forward, side = rng.uniform(-1.0, -0.25), rng.uniform(0.1, 0.8)
    else:
        forward, side = -0.35, 0.9
    loose = style.curl > 0.5
    phase = rng.uniform(0, 6.3, count) if loose else 3.0 * rest[:, 0] + rng.normal(0, 0.6, count)
    strands = _grow(roots, lengths, style, forward, side, part, fringe, name == "tied", phase, centre, radii, forehead)
    return strands, rng.uniform(0.010, 0.017, count)


@lru_cache(maxsize=1)
def _front_map():
    """Triangle (or -1) and weights under each pixel of a frontal map of the head at rest; pixel = 0.005 dm."""
    head, _ = _asset()
    points = np.stack([(head.rest[:, 0] + 1) / 0.005, (8.6 - head.rest[:, 1]) / 0.005, -head.rest[:, 2]], 1)
    skin = head.triangles[head.material == SKIN]
    depth, index, weight = _buffers(520, 400)
    _rasterise(points, skin, np.zeros(len(skin)), depth, index, weight)
    return np.where(index >= 0, np.flatnonzero(head.material == SKIN)[index], -1), weight


def _brows_and_beard(rng, look, who):
    """Short strands of brows, moustache and beard, tied to the triangles of the skin that carry them."""
    lines, radius = [], []
    count = int(130 * look.brow_density)
    for sign in (-1, 1):
        t = rng.random(count)
        across = rng.uniform(-1, 1, count) * look.brow_width * (1 - 0.8 * t ** 2)
        x, y = 0.11 + 0.42 * t, np.array([_brow_height(each, look.brow_arch) for each in t]) + across
        length = rng.uniform(0.04, 0.075, count)
        slope = np.radians(55 - 75 * t + rng.normal(0, 10, count)) * np.where(across > 0, 0.5, 1)
        tip = np.stack([sign * (x + length * np.cos(slope)), y + 0.7 * length * np.sin(slope)], 1)
        lines.append(np.stack([np.stack([sign * x, y], 1), tip], 1))
        radius.append(np.full(count, 0.0055))
    if look.beard > 0.75:
        x, y = rng.uniform(-0.62, 0.62, 5000), rng.uniform(6.2, 6.9, 5000)
        side = np.abs(x)
        moustache = (side < 0.25) & (y > 6.73 - 0.25 * side) & (y < 6.81 - 0.15 * side)
        chin = (y < 6.44) & (side < rng.choice([0.2, 0.62])) | (side > 0.36) & (y < 6.42 + 1.1 * (side - 0.26)) & (side < 0.6)
        x, y = x[moustache | chin][:1200], y[moustache | chin][:1200]
        drop = rng.uniform(0.05, 0.09, len(x))
        tip = np.stack([x * 1.04 + rng.normal(0, 0.015, len(x)), y - drop], 1)
        lines.append(np.stack([np.stack([x, y], 1), tip], 1))
        radius.append(np.full(len(x), 0.007))
    triangle, weight = _front_map()
    lines = np.concatenate(lines)
    column = np.clip(((lines[..., 0] + 1) / 0.005).astype(int), 0, 399)
    row = np.clip(((8.6 - lines[..., 1]) / 0.005).astype(int), 0, 519)
    anchor = triangle[row, column]
    head, _ = _asset()
    good = (anchor >= 0).all(1) & (head.rest[head.triangles[anchor[:, 0]], 2].mean(1) > 0.95)       # not on the neck
    return anchor[good], weight[row, column][good], np.concatenate(radius)[good]


def _glasses(vertices, head, rng):
    def centre(material):
        return vertices[np.unique(head.triangles[head.material == material])].mean(0)

    angle = np.linspace(0, 2 * np.pi, 19)
    square = rng.uniform(2, 5)
    ring = np.stack([np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / square) * rng.uniform(0.22, 0.26),
                     np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / square) * rng.uniform(0.16, 0.22), 0 * angle], 1)
    lines = []
    for eye in (centre(EYE_LEFT), centre(EYE_RIGHT)):
        rim = eye + [0.0, -0.03, 0.34] + ring
        rim[:, 2] -= 0.25 * rim[:, 0] ** 2
        outer = rim[np.argmax(np.abs(rim[:, 0]))]
        ear = [np.sign(eye[0]) * 0.83 * np.abs(vertices[head.rest[:, 1] > 6.5, 0]).max(), eye[1] + 0.05, 0.5]
        lines += [rim[:10], rim[9:], outer + np.linspace(0, 1, 10)[:, None] * (ear - outer)]
    t, inner = np.linspace(-1, 1, 10), min(lines[0][:, 0].min(), lines[1][:, 0].min())
    bridge = np.stack([inner * t, np.full(10, lines[0][:, 1].mean() + 0.02), np.full(10, lines[0][:, 2].max())], 1)
    bridge[:, 1] += 0.04 * (1 - t ** 2)
    lines.append(bridge)
    return np.stack(lines)


# ----------------------------------------------------------------------------------------------------------- drawing

class Camera(NamedTuple):
    """Turn of the head (degrees), zoom (1 = usual), shift (dm), exposure, and what spoils the picture.

    blur: of a 64-pixel image, in pixels. grain: of the film, 1 = white. occluder: (x, y, angle, radius, then its colour) of
    a round bar before the face that enters the picture at (x, y) (1 = the picture's width), or None.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    blur: float = 0.0
    grain: float = 0.0
    exposure: float = 1.0
    occluder: tuple[float, ...] | None = None


class Light(NamedTuple):
    """One key light from ``direction`` with its colour, the sky's and the ground's, and a background."""

    direction: np.ndarray
    key: np.ndarray
    sky: np.ndarray
    ground: np.ndarray
    rim: float
    background: np.ndarray    # [2, 3]: upper and lower colour


DISTANCE, FRAME, PIVOT = 11.0, 2.2, np.array([0.0, 7.17, 0.5])
SHADOW = 160                                            # pixels of the shadow map, which spans 3.6 dm


def _buffers(height, width):
    return np.full((height, width), np.inf), np.full((height, width), -1), np.zeros((height, width, 2))


@njit(cache=True, nogil=True)
def _rasterise(points, triangles, push, depth, index, weight):
    """Keep for each pixel the nearest triangle facing the viewer, and its second and third barycentric weights.

    points: [V, 3] column, row, depth. push: [T] added to a triangle's depth where it is compared.
    """
    height, width = depth.shape
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, ay, az = points[a]
        bx, by, bz = points[b]
        cx, cy, cz = points[c]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= -1e-9:
            continue
        left, right = max(0, int(math.ceil(min(ax, bx, cx) - 0.5))), min(width - 1, int(max(ax, bx, cx) - 0.5))
        top, bottom = max(0, int(math.ceil(min(ay, by, cy) - 0.5))), min(height - 1, int(max(ay, by, cy) - 0.5))
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                x, y = column + 0.5 - ax, row + 0.5 - ay
                v = (x * (cy - ay) - y * (cx - ax)) / area
                w = (y * (bx - ax) - x * (by - ay)) / area
                if v >= 0 and w >= 0 and v + w <= 1:
                    z = az + v * (bz - az) + w * (cz - az) + push[t]
                    if z < depth[row, column]:
                        depth[row, column], index[row, column] = z, t
                        weight[row, column, 0], weight[row, column, 1] = v, w


@njit(cache=True, nogil=True)
def _hidden(x, y, z, depth):
    """Whether something stands well before the point, or it is outside of the picture."""
    i, j = int(y), int(x)
    return i < 0 or j < 0 or i >= depth.shape[0] or j >= depth.shape[1] or depth[i, j] < z - 0.06


@njit(cache=True, nogil=True)
def _draw_strands(points, radius, first, depth, index, weight):
    """Draw polylines [K, P, 3] of ``radius`` [K] pixels; their segments are numbered on from ``first``."""
    height, width = depth.shape
    count, length = points.shape[0], points.shape[1]
    for i in range(count):
        for p in range(length - 1):
            ax, ay, az = points[i, p, 0], points[i, p, 1], points[i, p, 2]
            bx, by, bz = points[i, p + 1, 0], points[i, p + 1, 1], points[i, p + 1, 2]
            if _hidden(ax, ay, az, depth) and _hidden(bx, by, bz, depth):
                continue
            r = max(0.5, radius[i] * (1.0 - 0.75 * p / length))
            left, right = max(0, int(min(ax, bx) - r)), min(width - 1, int(max(ax, bx) + r))
            top, bottom = max(0, int(min(ay, by) - r)), min(height - 1, int(max(ay, by) + r))
            dx, dy = bx - ax, by - ay
            per_square = 1.0 / (dx * dx + dy * dy + 1e-9)
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    x, y = column + 0.5 - ax, row + 0.5 - ay
                    t = min(1.0, max(0.0, (x * dx + y * dy) * per_square))
                    if (x - t * dx) ** 2 + (y - t * dy) ** 2 <= r * r:
                        z = az + t * (bz - az)
                        if z < depth[row, column]:
                            depth[row, column], index[row, column] = z, first + i * (length - 1) + p
                            weight[row, column, 0] = t


@njit(cache=True, nogil=True)
def _hash(i, j, k):
    n = (i * 374761393 + j * 668265263 + k * 2147483647) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@njit(cache=True, nogil=True)
def _noise(x, y, z):
    """Value noise in [0, 1] with cells of size 1."""
    i, j, k = int(math.floor(x)), int(math.floor(y)), int(math.floor(z))
    u, v, w = x - i, y - j, z - k
    u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
    total = 0.0
    for a in range(2):
        for b in range(2):
            for c in range(2):
                total += (u if a else 1 - u) * (v if b else 1 - v) * (w if c else 1 - w) * _hash(i + a, j + b, k + c)
    return total


@njit(cache=True, nogil=True)
def _bump(x, y, cx, cy, sx, sy):
    return math.exp(-((x - cx) / sx) ** 2 - ((y - cy) / sy) ** 2)


@njit(cache=True, nogil=True)
def _smooth(low, high, x):
    t = min(1.0, max(0.0, (x - low) / (high - low)))
    return t * t * (3 - 2 * t)


@njit(cache=True, nogil=True)
def _mix(colour, other, share):
    for k in range(3):
        colour[k] += share * (other[k] - colour[k])


@njit(cache=True, nogil=True)
def _paint_skin(colour, x, y, z, lip, openness, creases, look):
    """Colour of the skin at a point of the head at rest. creases [5]: forehead, frown, nose, crow's feet, cheek folds."""
    side, g = abs(x), look.grain
    for k in range(3):
        colour[k] = look.skin[k]
    if y < look.collar + 0.35 * side * side and y < 6.1:
        shade = 0.8 + 0.4 * _noise(20 * x + g, 20 * y, 20 * z)
        for k in range(3):
            colour[k] = look.cloth[k] * shade
        return
    mottle = 0.93 + 0.14 * _noise(9 * x + g, 9 * y, 9 * z) + 0.06 * (_noise(40 * x + g, 40 * y, 40 * z) - 0.5)
    red = look.blush * (_bump(side, y, 0.42, 6.92, 0.22, 0.18) + 0.6 * _bump(side, y, 0.0, 6.95, 0.14, 0.14)) * (z > 0.8)
    colour[0] *= mottle * (1 + 0.10 * red)
    colour[1] *= mottle * (1 - 0.22 * red)
    colour[2] *= mottle * (1 - 0.18 * red)
    if z < 0.6 and openness < 0.15 and y < 6.9 and side < 0.4:           # inside of the mouth
        colour[0], colour[1], colour[2] = 0.12, 0.02, 0.02
        return
    if z > 0.8:
        bags = look.eye_bags * _bump(side, y, 0.30, 7.16, 0.14, 0.06)
        socket = 0.25 * _bump(side, y, 0.26, 7.34, 0.16, 0.10)
        dark = 1 - 0.35 * bags - 0.3 * socket
        line = 0.0
        if 7.6 < y < 8.0 and side < 0.55:
            line += creases[0] * (0.5 + 0.5 * math.cos(62 * (y - 0.06 * math.cos(3 * x)))) ** 4 * _smooth(0.55, 0.3, side)
        line += creases[1] * 1.2 * _bump(side, y, 0.055 + 0.02 * (y - 7.5), 7.47, 0.014, 0.09)
        if side < 0.16 and 7.15 < y < 7.42:
            line += 0.8 * creases[2] * (0.5 + 0.5 * math.cos(90 * y + 30 * side)) ** 3 * _smooth(0.16, 0.05, side)
        if 0.47 < side < 0.66:
            line += 0.8 * creases[3] * (0.5 + 0.5 * math.cos(70 * (y - 7.27) / (side + 0.25))) ** 4 * _bump(side, y, 0.56, 7.26, 0.08, 0.1)
        fold = 0.17 + 0.42 * (6.93 - y)
        if 6.5 < y < 6.98:
            line += 0.7 * creases[4] * math.exp(-((side - fold) / 0.02) ** 2) * _smooth(6.5, 6.65, y) * _smooth(6.98, 6.9, y)
        dark *= 1 - 0.38 * min(1.0, line)
        colour[0] *= dark ** 0.8
        colour[1] *= dark
        colour[2] *= dark
        if look.freckles > 0:
            spots = _smooth(0.72, 0.8, _noise(34 * x + g, 34 * y, 34 * z)) * _bump(side, y, 0.3, 7.0, 0.4, 0.25)
            for k in range(3):
                colour[k] *= 1 - (0.12 + 0.14 * k) * spots * look.freckles
        if look.make_up > 0:
            _mix(colour, look.shadow, look.make_up * 0.75 * _bump(side, y, 0.32, 7.36, 0.14, 0.055))
        if look.beard > 0:
            area = _smooth(6.86, 6.72, y) + 0.9 * _smooth(0.45, 0.6, side) * _smooth(7.15, 6.9, y)
            area = min(1.0, area) * _smooth(6.0, 6.25, y) * (1 - _bump(side, y, 0.42, 6.85, 0.16, 0.12))
            grain = 0.5 + 0.5 * _noise(60 * x, 60 * y, 60 * z)
            _mix(colour, look.brow, 0.6 * look.beard * area * grain * (1 - lip))
        t = (side - 0.11) / 0.42
        if 0 < t < 1:
            reach = look.brow_width * (1 - 0.8 * t * t) * 1.2
            off = abs(y - _brow_height(t, look.brow_arch)) / max(reach, 1e-4)
            _mix(colour, look.brow, 0.6 * look.brow_density * _smooth(1.2, 0.3, off) * _smooth(0.0, 0.12, t) * _smooth(1.0, 0.85, t))
        if lip > 0.02:
            edge = _smooth(0.22, 0.5, lip)
            _mix(colour, look.lips, edge)
            seam = 1 - 0.12 * edge * (_noise(70 * x, 6 * y, g) - 0.5)
            for k in range(3):
                colour[k] *= seam
    hair = _hairline(x, y, z, look.hairline) + 0.05 * (_noise(14 * x + g, 14 * y, 14 * z) - 0.5)
    share = look.scalp * _smooth(-0.03, 0.08, hair)
    for k in range(3):
        colour[k] += share * (0.6 * look.hair[k] - colour[k])


@njit(cache=True, nogil=True)
def _paint_eye(colour, x, y, z, sign, look):
    dx, dy = (x - sign * EYE[0]) / EYE_RADIUS, (y - EYE[1]) / EYE_RADIUS
    r = math.sqrt(dx * dx + dy * dy)
    white = (0.74, 0.70, 0.66)
    for k in range(3):
        colour[k] = white[k] * (1 - 0.25 * _smooth(0.55, 0.95, r) * (0.4 + 0.3 * k)) * (1 - 0.3 * _smooth(0.2, 0.6, dy))
    if z > EYE[2]:
        rays = 0.7 + 0.6 * _noise(9 * math.atan2(dy, dx), 3 * r, look.grain)
        for k in range(3):
            iris = look.iris[k] * rays * (1 - 0.75 * _smooth(0.38, 0.49, r))
            colour[k] += (iris - colour[k]) * _smooth(0.52, 0.47, r)
            colour[k] *= 1 - 0.98 * _smooth(0.22, 0.18, r)


@njit(cache=True, nogil=True)
def _shade(size, head_triangles, material, position, normal, rest, openness, lip, lines, tangents_first, brow_first, glass_first,
           index, weight, light_points, light_scale, shadow, direction, key, sky, ground, rim, creases, look):
    """Linear colour [size, size, 3] and coverage [size, size] of the visible surface."""
    image, cover = np.zeros((size, size, 3)), np.zeros((size, size))
    colour = np.zeros(3)
    count = len(head_triangles)
    hx, hy, hz = direction[0], direction[1], direction[2] + 1.0
    h = math.sqrt(hx * hx + hy * hy + hz * hz)
    hx, hy, hz = hx / h, hy / h, hz / h
    span = lines.shape[1] - 1
    for row in range(size):
        for column in range(size):
            t = index[row, column]
            if t < 0:
                continue
            cover[row, column] = 1.0
            if t >= count:                                               # a strand of hair
                i, p = (t - count) // span, (t - count) % span
                w = weight[row, column, 0]
                px = lines[i, p, 0] + w * (lines[i, p + 1, 0] - lines[i, p, 0])
                py = lines[i, p, 1] + w * (lines[i, p + 1, 1] - lines[i, p, 1])
                pz = lines[i, p, 2] + w * (lines[i, p + 1, 2] - lines[i, p, 2])
                tx, ty, tz = lines[i, p + 1, 0] - lines[i, p, 0], lines[i, p + 1, 1] - lines[i, p, 1], lines[i, p + 1, 2] - lines[i, p, 2]
                s = math.sqrt(tx * tx + ty * ty + tz * tz) + 1e-9
                tx, ty, tz = tx / s, ty / s, tz / s
                along = tx * direction[0] + ty * direction[1] + tz * direction[2]
                diffuse = math.sqrt(max(0.0, 1 - along * along))
                half = tx * hx + ty * hy + tz * hz
                gloss = max(0.0, 1 - half * half) ** 30
                lit = _lit(px, py, pz, light_points, light_scale, shadow, 0.10)
                tone = 0.75 + 0.5 * _hash(i, 7, 3)
                deep = 0.45 + 0.55 * min(1.0, (p + w) / 2.5)
                if i >= glass_first:
                    for k in range(3):
                        image[row, column, k] = 0.02 * (sky[k] + key[k] * lit) + 0.25 * key[k] * gloss * lit * 0.3
                    continue
                brow = i >= brow_first
                if brow:
                    deep, gloss = 1.0, 0.0
                for k in range(3):
                    base = look.brow[k] if brow else look.hair[k] * tone
                    image[row, column, k] = (base * (0.75 * sky[k] * deep + key[k] * lit * diffuse * deep * 0.75)
                                             + (0.035 + 0.25 * base) * gloss * lit * key[k] * 0.5 * deep)
                continue
            a, b, c = head_triangles[t]
            v, w = weight[row, column]
            u = 1 - v - w
            px = u * position[a, 0] + v * position[b, 0] + w * position[c, 0]
            py = u * position[a, 1] + v * position[b, 1] + w * position[c, 1]
            pz = u * position[a, 2] + v * position[b, 2] + w * position[c, 2]
            nx = u * normal[a, 0] + v * normal[b, 0] + w * normal[c, 0]
            ny = u * normal[a, 1] + v * normal[b, 1] + w * normal[c, 1]
            nz = u * normal[a, 2] + v * normal[b, 2] + w * normal[c, 2]
            s = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
            nx, ny, nz = nx / s, ny / s, nz / s
            x = u * rest[a, 0] + v * rest[b, 0] + w * rest[c, 0]
            y = u * rest[a, 1] + v * rest[b, 1] + w * rest[c, 1]
            z = u * rest[a, 2] + v * rest[b, 2] + w * rest[c, 2]
            seen = u * openness[a] + v * openness[b] + w * openness[c]
            red = u * lip[a] + v * lip[b] + w * lip[c]
            kind = material[t]
            power, shine, wet = 18.0, 0.05, 0.0
            if kind == SKIN:
                _paint_skin(colour, x, y, z, red, seen, creases, look)
                shine = 0.045 + 0.03 * _bump(abs(x), y, 0.0, 7.2, 0.3, 0.6)
                if red > 0.3:
                    power, shine = 40.0, 0.10
                seen = 0.25 + 0.75 * seen
            elif kind == EYE_LEFT or kind == EYE_RIGHT:
                _paint_eye(colour, x, y, z, 1.0 if kind == EYE_LEFT else -1.0, look)
                power, shine, wet = 250.0, 1.6, 1.0
                seen = 0.55 + 0.45 * seen
            elif kind == TEETH_UPPER or kind == TEETH_LOWER:
                gap = abs((abs(x) / 0.072) % 1.0 - 0.5)
                shade = (0.35 + 0.65 * _smooth(1.15, 1.45, z)) * (1 - 0.22 * _smooth(0.40, 0.5, gap))
                colour[0], colour[1], colour[2] = 0.78 * shade, 0.74 * shade, 0.66 * shade
                power, shine, seen = 60.0, 0.15, 1.0 if kind == TEETH_UPPER else 0.65
            elif kind == TONGUE:
                colour[0], colour[1], colour[2] = 0.42, 0.13, 0.13
                seen = 0.45
            else:
                for k in range(3):
                    colour[k] = look.skin[k] * 0.35 * (1 - look.lash) + 0.015 * look.lash
                shine = 0.0
            facing = nx * direction[0] + ny * direction[1] + nz * direction[2]
            lit = _lit(px + 0.03 * nx, py + 0.03 * ny, pz + 0.03 * nz, light_points, light_scale, shadow, 0.03)
            half = max(0.0, nx * hx + ny * hy + nz * hz)
            gloss = shine * half ** power
            up = 0.5 + 0.5 * ny
            edge = rim * (1 - max(0.0, nz)) ** 3
            for k in range(3):
                wrap = 0.30 - 0.10 * k if kind == SKIN else 0.1
                diffuse = max(0.0, (facing + wrap) / (1 + wrap))
                glow = lit + (1 - lit) * (0.55 if kind == TEETH_UPPER else 0.10 if k == 0 and kind == SKIN else 0.02)
                ambient = (ground[k] + up * (sky[k] - ground[k])) * seen
                image[row, column, k] = colour[k] * (ambient + key[k] * diffuse * glow + edge * sky[k]) + gloss * key[k] * lit \
                    + 0.04 * edge * sky[k]
    return image, cover


@njit(cache=True, nogil=True)
def _lit(x, y, z, axes, scale, shadow, slack):
    """Share of the key light that reaches a point: four samples of the shadow map, blended."""
    size = len(shadow)
    column = size / 2 + scale * (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z) - 0.5
    row = size / 2 - scale * (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z) - 0.5
    depth = -(axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z) - slack
    i, j = int(math.floor(row)), int(math.floor(column))
    if i < 1 or j < 1 or i >= size - 2 or j >= size - 2:
        return 1.0
    v, u = row - i, column - j
    total = 0.0
    for a in range(-1, 3):
        for b in range(-1, 3):
            share = (1 - v if a == -1 else v if a == 2 else 1.0) * (1 - u if b == -1 else u if b == 2 else 1.0)
            total += share * (depth <= shadow[i + a, j + b])
    return total / 9


def _rotation(yaw, pitch, roll):
    (cy, cp, cr), (sy, sp, sr) = np.cos(np.radians([yaw, pitch, roll])), np.sin(np.radians([yaw, pitch, roll]))
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return tilt @ nod @ turn


def _creases(units, look):
    def strength(*names):
        return float(np.mean([units[UNITS.index(name)] for name in names]))

    base = 0.35 * (look.wrinkles - 0.25)
    return base + look.wrinkles ** 0.5 * np.array([
        0.7 * strength("browInnerUp", "browOuterUpLeft", "browOuterUpRight"), strength("browDownLeft", "browDownRight"),
        0.8 * strength("noseSneerLeft", "noseSneerRight"), 0.7 * strength("cheekSquintLeft", "cheekSquintRight"),
        0.5 * (strength("mouthSmileLeft", "mouthSmileRight") + strength("noseSneerLeft", "noseSneerRight"))])


def _draw(person: Person, units, camera: Camera, light: Light, size: int, noise: np.random.Generator | None = None):
    """Image uint8 [size, size, 3] and parts uint8 [16, 16] of a person with these units [52]."""
    head, names = _asset()
    weights = np.zeros(len(names))
    weights[[names.index("unit:" + name) for name in UNITS]] = units
    vertices = person.vertices.copy()
    _morph(vertices, weights, head.starts, head.index, head.delta)
    moved = np.linalg.norm(vertices - person.vertices, axis=1)

    turn = _rotation(camera.yaw, camera.pitch, camera.roll)
    position = (vertices - PIVOT) @ turn.T
    carried = vertices[head.triangles[person.anchor]]                    # [B, 2, 3 corners, 3]
    v, w = person.weight[..., :1], person.weight[..., 1:]
    short = carried[:, :, 0] * (1 - v - w) + carried[:, :, 1] * v + carried[:, :, 2] * w
    t = np.linspace(0, 1, 10)[None, :, None]
    short = short[:, :1] + t * (short[:, 1:] - short[:, :1]) + [0, 0, 0.012]
    lines = np.ascontiguousarray((np.concatenate([person.strands, short, person.glasses]) - PIVOT) @ turn.T)
    radius = np.concatenate([person.radius, person.anchor_radius, np.full(len(person.glasses), 0.016)])
    normal = _normals(position, head.triangles)

    side = 2 * size
    focal = side * camera.zoom / FRAME

    def project(points):
        depth = DISTANCE - points[..., 2]
        scale = focal * DISTANCE / depth
        return np.stack([side / 2 + scale * (points[..., 0] + camera.shift[0]),
                         side / 2 - scale * (points[..., 1] + camera.shift[1]), depth], -1)

    depth, index, weight = _buffers(side, side)
    _rasterise(project(position), head.triangles, PUSH[head.material], depth, index, weight)
    _draw_strands(project(lines), radius * focal, len(head.triangles), depth, index, weight)

    z = light.direction
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    axes = np.stack([x, np.cross(z, x), z])
    scale = SHADOW / 3.6

    def cast(points):
        seen = points @ axes.T
        return np.stack([SHADOW / 2 + scale * seen[..., 0], SHADOW / 2 - scale * seen[..., 1], -seen[..., 2]], -1)

    shadow, index_s, weight_s = _buffers(SHADOW, SHADOW)
    solid = head.triangles[head.material == SKIN]
    _rasterise(cast(position), solid, np.zeros(len(solid)), shadow, index_s, weight_s)
    _draw_strands(cast(lines[:len(person.strands):2]), 1.5 * scale * person.radius[::2], 0, shadow, index_s, weight_s)

    image, cover = _shade(
        side, head.triangles, head.material, position, normal, head.rest, head.openness, head.lip, lines, 0,
        len(person.strands), len(person.strands) + len(short), index, weight, axes, scale, shadow, light.direction, light.key,
        light.sky, light.ground, light.rim, _creases(units, person.look), person.look)
    image += (1 - cover)[..., None] * _between(light.background, np.linspace(0, 1, side)[:, None, None])
    if camera.occluder:
        hidden, colour = _occluder(camera.occluder, side)
        image += hidden[..., None] * (colour * (light.sky + light.key)[None, None] - image)
        index[hidden > 0.5] = -1
    return _film(image, camera, size, noise), _parts(index, weight, head.triangles, moved)


def _between(ends, share):
    return ends[0] + share * (ends[1] - ends[0])


def _occluder(occluder, side):
    """Coverage [side, side] and colour [side, side, 3] of a round bar that ends in the picture."""
    x, y, angle, radius, *colour = occluder
    row, column = (np.mgrid[:side, :side] + 0.5) / side
    along = (column - x) * np.cos(angle) + (row - y) * np.sin(angle)
    across = (row - y) * np.cos(angle) - (column - x) * np.sin(angle)
    beyond = np.hypot(np.maximum(along, 0), across)
    shade = np.sqrt(np.clip(1 - (beyond / radius) ** 2, 0.05, 1)) * (0.8 - 0.3 * across / radius)
    return np.clip((radius - beyond) / 0.02, 0, 1), shade[..., None] * colour


def _film(image, camera, size, noise):
    """Two by two averaging, exposure, blur, grain, and the curve from linear to uint8 sRGB."""
    image = image.reshape(size, 2, size, 2, 3).mean((1, 3)) * camera.exposure
    if camera.blur > 0:
        image = gaussian_filter(image, (camera.blur * size / 64, camera.blur * size / 64, 0))
    image = image * (1 + image / 4.0) / (1 + image)     # roll the highlights off instead of clipping them
    image = np.clip(1.25 * image, 0, 1) ** (1 / 2.2)
    if noise is not None and camera.grain > 0:
        image = image + noise.normal(0, camera.grain, image.shape)
    return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)


@njit(cache=True, nogil=True)
def _parts(index, weight, triangles, moved):
    """Mean displacement of the visible skin in each cell of a 16 x 16 grid; 255 = 0.2 dm or more."""
    side = len(index)
    total, pixels = np.zeros((16, 16)), np.zeros((16, 16))
    for row in range(side):
        for column in range(side):
            t = index[row, column]
            i, j = row * 16 // side, column * 16 // side
            pixels[i, j] += 1
            if 0 <= t < len(triangles):
                a, b, c = triangles[t]
                v, w = weight[row, column]
                total[i, j] += (1 - v - w) * moved[a] + v * moved[b] + w * moved[c]
    return np.minimum(255.0, total / pixels * (255 / 0.2)).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------- data set

SPLITS = ("train", "valid", "test")
STUDIO = Light(np.array([0.40, 0.42, 0.81]), np.array([1.65, 1.57, 1.5]), np.array([0.55, 0.58, 0.64]), np.array([0.30, 0.26, 0.24]),
               0.5, np.array([[0.42, 0.45, 0.50], [0.20, 0.22, 0.25]]))


def _camera(rng: np.random.Generator) -> Camera:
    yaw, pitch, roll = rng.normal(0, (12, 7, 6))
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.22, 0.4)
    colour = rng.uniform(0.05, 0.5) * rng.dirichlet([30, 26, 22]) * 2
    bar = (0.5 - depth * np.cos(angle), 0.55 - depth * np.sin(angle), angle, rng.uniform(0.07, 0.14), *colour)
    return Camera(yaw, pitch, roll, zoom=rng.uniform(0.92, 1.08), shift=tuple(rng.normal(0, 0.05, 2)),
                  exposure=rng.uniform(0.75, 1.2), blur=max(0.0, rng.uniform(-0.8, 0.45)), grain=rng.uniform(0, 0.02),
                  occluder=bar if rng.random() < 0.1 else None)


def _light(rng: np.random.Generator) -> Light:
    azimuth, height = np.radians(rng.uniform(-70, 70)), np.radians(rng.uniform(0, 55))
    direction = np.array([np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)])
    warm, strength, fill = rng.normal(0, 0.08), rng.uniform(1.0, 1.9), rng.uniform(0.35, 0.8)
    background = rng.dirichlet([25, 25, 25], 2) * 3 * rng.uniform(0.04, 0.6, (2, 1))
    return Light(direction, strength * np.array([1 + warm, 1, 1 - warm]), fill * np.array([0.95, 1, 1.08]),
                 fill * np.array([0.5, 0.45, 0.4]), rng.uniform(0, 1), background)


def _stream(seed: int, split: int, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, split, index, stream])


def _truth(count: int, split: int, seed: int) -> np.ndarray:
    """Labels int64 [count] in the shares of SHARES, shuffled."""
    counts = np.floor(np.array(SHARES) * count).astype(int)
    counts[0] += count - counts.sum()
    return np.random.default_rng([seed, split, 1]).permutation(np.repeat(np.arange(len(CLASSES)), counts))


def _identities(count: int, split: int) -> np.ndarray:
    """Identity numbers int64 [count]: a person's faces follow one another, and no person is in two splits."""
    return 1_000_000 * split + np.arange(count) // FACES_PER_IDENTITY


def _face(seed: int, split: int, index: int, label: int, identity: int, size: int, units=None):
    """(image, parts, expression) of one face of the data set; ``units`` [52] replace those of its expression."""
    expression = _expression(_stream(seed, split, index, 3), label)
    image, parts = _draw(_person(seed, identity), expression.units if units is None else units,
                         _camera(_stream(seed, split, index, 4)), _light(_stream(seed, split, index, 5)), size,
                         _stream(seed, split, index, 6))
    return image, parts, expression


def render_face(units=None, identity: int = 0, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0,
                light: tuple[float, float] | None = None, size: int = 128, seed: int = 0) -> np.ndarray:
    """One face, uint8 [size, size, 3], in a plain studio.

    units: None (at rest), a mapping from names in ``UNITS`` to weights, or an array [52]; 0 = at rest, 1 = full, up to 1.7.
    identity: number of the person (those of ``load``'s ``extras["identity"]`` with the same ``seed`` are the same people).
    yaw, pitch, roll: turn of the head in degrees. light: (azimuth, height) of the key light in degrees, None = the studio's.
    Raises FerlabError for units that do not exist, for a wrong shape and for a size outside of 24 to 512.
    """
    _check_size(size)
    if units is None or isinstance(units, Mapping):
        weights = np.zeros(len(UNITS))
        for name, weight in (units or {}).items():
            if name not in UNITS:
                raise FerlabError(f"render_face: no face unit {name!r}; the names are in ferlab.rendered.UNITS.")
            weights[UNITS.index(name)] = weight
    else:
        weights = np.asarray(units, float)
        if weights.shape != (len(UNITS),):
            raise FerlabError(f"render_face: units have the shape {weights.shape}; pass one weight for each of the 52 units.")
    lamp = STUDIO
    if light is not None:
        azimuth, height = np.radians(light)
        lamp = STUDIO._replace(direction=np.array([np.sin(azimuth) * np.cos(height), np.sin(height),
                                                   np.cos(azimuth) * np.cos(height)]))
    return _draw(_person(seed, int(identity)), weights, Camera(yaw, pitch, roll), lamp, size)[0]


def render_again(faces: FaceSet, index: int, units=None, size: int = 64, seed: int = 0) -> np.ndarray:
    """Face ``index`` of a FaceSet of ``load`` once more, uint8 [size, size, 3]: same person, camera and light.

    units: array [52] that replaces its expression (zeros = the face at rest); None = its own. seed: that of ``load``.
    """
    _check_size(size)
    _, split, number = str(faces.names[index]).split("-")
    own = faces.extras["units"][index] if units is None else np.asarray(units, float)
    return _face(seed, SPLITS.index(split), int(number), int(faces.truth[index]), int(faces.extras["identity"][index]), size, own)[0]


def load(size: int = 64, seed: int = 0, train: int = 6000, valid: int = 1000, test: int = 1500,
         cache: str | os.PathLike | None = None, workers: int | None = None, progress: bool | None = None) -> Splits:
    """The rendered faces: on the first call they are drawn (about 100 a second), later they open from the cache.

    size: pixels, 24 to 512. train, valid, test: number of faces; a split of 0 faces is None. cache: folder, else
    $FERLAB_CACHE, else ferlab in the user's cache directory. workers: threads (None = one a core); their number does not
    change the result. progress: True or False shows or hides the bar, None shows it on a terminal.

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
    for name, value in {"seed": seed, **counts}.items():
        if not isinstance(value, (int, np.integer)) or value < 0:
            raise FerlabError(f"rendered: {name}={value!r} is not a whole number of at least 0; pass one, e.g. {name}=100.")
    if workers is not None and workers < 1:
        raise FerlabError(f"rendered: workers={workers!r} is less than 1; pass 1 or more, or None for one a core.")
    folder = _cache_folder(cache) / f"rendered-v{VERSION}-size{size}-seed{seed}-{train}-{valid}-{test}"
    try:
        if not folder.exists():
            _render_all(folder, size, seed, counts, workers, progress)
    except OSError as error:
        raise FerlabError(f"rendered: cannot write {error.filename or folder} ({error.strerror}); pass cache=FOLDER or set"
                          " FERLAB_CACHE to a folder that can be written.") from error
    try:
        return Splits(*(_open(folder, split) if count else None for split, count in counts.items()))
    except (OSError, ValueError, KeyError) as error:
        raise FerlabError(f"rendered: {folder} is damaged ({error}); delete that folder and the faces are drawn anew.") from error


def _check_size(size) -> None:
    if not isinstance(size, (int, np.integer)) or not 24 <= size <= 512:
        raise FerlabError(f"rendered: size={size!r} is not a whole number from 24 to 512 pixels; pass one, e.g. size=64.")


def _cache_folder(cache) -> Path:
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ferlab"
    return Path(cache or os.environ.get("FERLAB_CACHE") or user)


def _open(folder: Path, split: str) -> FaceSet:
    images = np.load(folder / f"{split}-images.npy", mmap_mode="r")
    with np.load(folder / f"{split}.npz") as file:
        arrays = dict(file)
    names = np.array([f"rendered-{split}-{i:05d}" for i in range(len(images))])
    return FaceSet(images=images, labels=arrays["truth"], classes=CLASSES, truth=arrays["truth"].copy(), votes=arrays["votes"],
                   names=names, extras={key: arrays[key] for key in ("mixture", "identity", "units", "parts")},
                   dataset="rendered", split=split, rule="truth")


def _render_chunk(path: Path, size: int, seed: int, split: int, start: int, truth: np.ndarray, identity: np.ndarray) -> None:
    """Draw the faces start, start + 1, ... with these labels and identities, and write them as a whole."""
    faces = [_face(seed, split, start + i, int(label), int(person), size)
             for i, (label, person) in enumerate(zip(truth, identity, strict=True))]
    images, parts, expressions = zip(*faces, strict=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    with open(unfinished, "wb") as file:
        np.savez(file, images=np.stack(images), parts=np.stack(parts), truth=truth, identity=identity,
                 **{key: np.stack([getattr(each, key) for each in expressions]).astype(np.float32)
                    for key in ("mixture", "units", "votes")})
    os.replace(unfinished, path)


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
    joined = folder.with_name(f"{folder.name}.{os.getpid()}")
    joined.mkdir(exist_ok=True)
    for split, count in counts.items():
        paths = [path for path in chunks if path.name.startswith(split)]
        if count:
            _join(joined, split, count, size, paths)
    try:
        os.rename(joined, folder)
    except OSError:                                     # another process was first, with the same bytes
        shutil.rmtree(joined)
        if not folder.exists():
            raise
    shutil.rmtree(partial, ignore_errors=True)


def _join(folder: Path, split: str, count: int, size: int, paths: list[Path]) -> None:
    images = np.lib.format.open_memmap(folder / f"{split}-images.npy", "w+", np.uint8, (count, size, size, 3))
    columns, start = [], 0
    for path in paths:
        with np.load(path) as file:
            arrays = dict(file)
        chunk = arrays.pop("images")
        images[start:start + len(chunk)] = chunk
        start += len(chunk)
        columns.append(arrays)
    images.flush()
    np.savez(folder / f"{split}.npz", **{key: np.concatenate([each[key] for each in columns]) for key in columns[0]})
