"""How the rendered faces are drawn: everything that numba compiles (source: ours).

A face is a triangle mesh and a few thousand strands of hair. Both go into one depth buffer, from the camera and from
the key light (a shadow map). Then each visible sample is painted by its place on the head *at rest*, so that brows,
lips and freckles move with the skin, and lit. Lengths are decimetres, y up, z towards the viewer; colours are linear
RGB.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ferlab.compiled import compiled

SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER, TONGUE, LASH = range(7)            # materials
EYE_X, EYE_Y, EYE_Z, EYE_RADIUS = 0.3078, 7.284, 1.2455, 0.1466                        # left eye of the head at rest
POINTS = 10                                                                            # of each strand
Triple = tuple[float, float, float]                      # a colour or a direction; an array would cost numba more


class Head(NamedTuple):
    """The asset (see tools/build_head.py): V vertices, T triangles and S morph targets."""

    rest: np.ndarray          # float64 [V, 3]
    triangles: np.ndarray     # int64 [T, 3]
    material: np.ndarray      # int64 [T]
    openness: np.ndarray      # float64 [V], 1 = sees the whole sky
    lip: np.ndarray           # float64 [V], 1 = red of the lips
    starts: np.ndarray        # int64 [S + 1]: target s moves the vertices moved[starts[s]:starts[s + 1]] by delta
    moved: np.ndarray         # int64 [M]
    delta: np.ndarray         # float64 [M, 3]


class Look(NamedTuple):
    """Colours and marks of a person; strengths run from 0 to 1."""

    skin: Triple
    lips: Triple
    iris: Triple
    hair: Triple
    brow: Triple
    cloth: Triple
    shadow: Triple            # on the lids, with strength make_up
    make_up: float
    lash: float               # 0 = skin, 1 = black
    blush: float
    beard: float              # of shaven stubble; above .75 it is worn
    freckles: float
    wrinkles: float
    eye_bags: float
    brow_width: float         # half the height of a brow, dm
    brow_arch: float          # dm
    brow_density: float
    hairline: float           # dm that the hairline stands higher than usual
    scalp: float              # how much of the hair's colour the scalp takes
    collar: float             # height of the garment's neckline, dm
    grain: float              # offset of the noise that mottles the skin


class Style(NamedTuple):
    """A way to wear the hair."""

    women: float              # how many women and men wear it, relative
    men: float
    length: float             # dm
    lift: float               # off the head at the root, relative to the combed direction; so are gravity and curl
    gravity: float
    curl: float
    volume: float             # room between hair and head, as a share of the head's radius


class Light(NamedTuple):
    """A key light from ``direction`` (unit vector), sky and ground around the head, and what stands behind it."""

    direction: Triple
    key: Triple
    sky: Triple
    ground: Triple
    rim: float                # strength of the light along the outline
    above: Triple             # colours of the background at the upper and the lower edge of the image
    below: Triple


class Shadow(NamedTuple):
    """What the key light sees: ``depth`` [n, n] against the direction ``ahead``, ``scale`` pixels a dm across it."""

    right: Triple
    up: Triple
    ahead: Triple
    scale: float
    depth: np.ndarray


# ---------------------------------------------------------------------------------------------------------- small tools

@compiled
def unit(x, y, z):
    size = math.sqrt(x * x + y * y + z * z) + 1e-9
    return x / size, y / size, z / size


@compiled
def between(values, a, b, c, v, w):
    """values [V, 3] of three corners, mixed with the weights 1 - v - w, v and w."""
    u = 1 - v - w
    return (u * values[a, 0] + v * values[b, 0] + w * values[c, 0],
            u * values[a, 1] + v * values[b, 1] + w * values[c, 1],
            u * values[a, 2] + v * values[b, 2] + w * values[c, 2])


@compiled
def smooth(low, high, x):
    """0 at ``low``, 1 at ``high``, without a corner."""
    t = min(1.0, max(0.0, (x - low) / (high - low)))
    return t * t * (3 - 2 * t)


@compiled
def spot(x, y, centre_x, centre_y, width, height):
    return math.exp(-((x - centre_x) / width) ** 2 - ((y - centre_y) / height) ** 2)


@compiled
def blend(colour, other, share):
    for k in range(3):
        colour[k] += share * (other[k] - colour[k])


@compiled
def scale_colour(colour, red, green, blue):
    colour[0] *= red
    colour[1] *= green
    colour[2] *= blue


@compiled
def hash_unit(i, j, k):
    """A number in [0, 1] that looks random and depends on three integers."""
    n = (i * 374761393 + j * 668265263 + k * 2147483647) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@compiled
def noise(x, y, z):
    """Value noise in [0, 1] with cells of size 1."""
    i, j, k = int(math.floor(x)), int(math.floor(y)), int(math.floor(z))
    u, v, w = smooth(0, 1, x - i), smooth(0, 1, y - j), smooth(0, 1, z - k)
    total = 0.0
    for a in range(2):
        for b in range(2):
            for c in range(2):
                share = (u if a else 1 - u) * (v if b else 1 - v) * (w if c else 1 - w)
                total += share * hash_unit(i + a, j + b, k + c)
    return total


# ------------------------------------------------------------------------------------------------------------- geometry

@compiled
def morph(vertices, weights, head):
    """Add the morph targets with these ``weights`` [S] to ``vertices`` [V, 3], in place."""
    for s in range(len(weights)):
        if weights[s] != 0.0:
            for m in range(head.starts[s], head.starts[s + 1]):
                for k in range(3):
                    vertices[head.moved[m], k] += weights[s] * head.delta[m, k]


@compiled
def vertex_normals(vertices, triangles):
    normals = np.zeros_like(vertices)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ux, uy, uz = vertices[b] - vertices[a]
        vx, vy, vz = vertices[c] - vertices[a]
        normal = (uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx)
        for corner in (a, b, c):
            for k in range(3):
                normals[corner, k] += normal[k]
    for i in range(len(normals)):
        normals[i, 0], normals[i, 1], normals[i, 2] = unit(normals[i, 0], normals[i, 1], normals[i, 2])
    return normals


@compiled
def brow_height(t, arch):
    """Height of the middle of a brow, from its inner (t = 0) to its outer end (t = 1)."""
    return 7.50 + arch * math.sin(2.7 * t) - 0.035 * t


HAIRLINE = np.array([[-0.5, 6.55], [0.05, 6.75], [0.22, 7.55], [0.52, 7.50], [0.62, 7.30], [0.74, 7.62], [0.95, 7.86],
                     [1.20, 7.95], [1.60, 7.98]])         # its height over z, from the neck to the forehead


@compiled
def above_hairline(x, y, z, raised):
    """Height of a point of the head at rest above the hairline; positive = hair grows here."""
    if y < 7.58 and abs(x) > 0.735 and z > 0.1:          # the ears
        return -1.0
    k = 0
    while k < len(HAIRLINE) - 2 and z > HAIRLINE[k + 1, 0]:
        k += 1
    t = min(1.0, max(0.0, (z - HAIRLINE[k, 0]) / (HAIRLINE[k + 1, 0] - HAIRLINE[k, 0])))
    line = HAIRLINE[k, 1] + t * (HAIRLINE[k + 1, 1] - HAIRLINE[k, 1])
    if z > 0.65:                                         # it recedes at the temples first
        line += raised * min(1.0, (z - 0.65) / 0.3) * (1.0 + 0.5 * min(1.0, abs(x) / 0.5))
    return y - line


@compiled
def hairy(points, raised):
    """Whether hair grows at ``points`` [N, 3] of the head at rest."""
    grows = np.zeros(len(points), np.bool_)
    for i in range(len(points)):
        grows[i] = above_hairline(points[i, 0], points[i, 1], points[i, 2], raised) > 0
    return grows


@compiled
def on_skull(x, y, z, centre, radii):
    """A point relative to the skull: an ellipsoid, and below its centre a cylinder, where the squares sum to 1."""
    return (x - centre[0]) / radii[0], max(0.0, (y - centre[1]) / radii[1]), (z - centre[2]) / radii[2]


@compiled
def grow_hair(roots, lengths, style, forward, side, part, fringe, tied, phase, centre, radii, forehead):
    """Hair [K, POINTS, 3] from its ``roots`` [K, 3]: combed along the skull, lifted, curled, kept out of the face.

    forward, side: direction of the comb, to both sides of the parting at x = ``part``, or (``tied``) to a knot behind
    the head. fringe: bool [K], combed onto the forehead, which reaches out to ``forehead`` (1 = the skull).
    """
    strands = np.empty((len(roots), POINTS, 3))
    for i in range(len(roots)):
        x, y, z = roots[i]
        sign = 1.0 if x > part + 0.02 * math.sin(40 * z) else -1.0
        ex, ey, ez = on_skull(x, y, z, centre, radii)
        base = max(0.97, math.sqrt(ex * ex + ey * ey + ez * ez))
        step = lengths[i] / (POINTS - 1)
        for p in range(POINTS):
            strands[i, p, 0], strands[i, p, 1], strands[i, p, 2] = x, y, z
            t = p / (POINTS - 1)
            ex, ey, ez = on_skull(x, y, z, centre, radii)
            nx, ny, nz = unit(ex / radii[0], ey / radii[1], ez / radii[2])
            if fringe[i]:
                dx, dy, dz = 0.25 * sign, -0.6, 1.0
            elif tied:
                dx, dy, dz = -2 * x, 2 * (7.8 - y), 2 * (-0.6 - z)
            else:
                dx, dy, dz = sign * side, -style.gravity * (0.3 + 1.6 * t), forward
            into = dx * nx + dy * ny + dz * nz                           # only what runs along the skull counts
            dx, dy, dz = unit(dx - into * nx, dy - into * ny, dz - into * nz)
            up, wave, angle = style.lift * (1 - t), style.curl * (0.4 + 0.6 * t), 9.0 * t + phase[i]
            dx, dy, dz = unit(dx + up * nx + wave * math.sin(angle),
                              dy + up * ny + wave * 0.7 * math.cos(angle + phase[i]),
                              dz + up * nz + wave * math.cos(1.3 * angle))
            x, y, z = x + step * dx, y + step * dy, z + step * dz

            ex, ey, ez = on_skull(x, y, z, centre, radii)
            level = math.sqrt(ex * ex + ey * ey + ez * ez) + 1e-9
            room = style.volume * min(1.0, 2.5 * t + 0.2)
            wanted = base - 0.7 * t * (base - 0.97) + room
            if fringe[i]:
                wanted = max(wanted - 0.6 * style.volume, forehead * min(1.0, 0.9 + 0.3 * t))
            if level < wanted:
                x, z = centre[0] + (x - centre[0]) * wanted / level, centre[2] + (z - centre[2]) * wanted / level
                if y > centre[1]:
                    y = centre[1] + (y - centre[1]) * wanted / level
            if not fringe[i] and z > 0.6 and y < 8.0:                    # the window of the face
                edge = radii[0] * (0.86 + 0.10 * min(1.0, 8.0 - y))
                if abs(x) < edge:
                    x += 0.6 * (edge * (1.0 if x > 0 else -1.0) - x)
                z -= 0.3 * max(0.0, z - 1.0)
    return strands


# ----------------------------------------------------------------------------------------------------------- visibility

def buffers(height: int, width: int):
    """Empty depth [height, width], index of what is nearest (-1 = nothing) and its two weights [height, width, 2]."""
    return np.full((height, width), np.inf), np.full((height, width), -1), np.zeros((height, width, 2))


@compiled
def rasterise(points, triangles, push, depth, index, weight):
    """Keep for each pixel the nearest triangle that faces the viewer, and its second and third barycentric weights.

    points: [V, 3] column, row, depth. push: [T], added to a triangle's depth where it is compared.
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


@compiled
def hidden(x, y, z, depth):
    """Whether something stands well before the point, or it is outside of the picture."""
    row, column = int(y), int(x)
    if row < 0 or column < 0 or row >= depth.shape[0] or column >= depth.shape[1]:
        return True
    return depth[row, column] < z - 0.06


@compiled
def draw_strands(points, radius, first, depth, index, weight):
    """Draw strands [K, POINTS, 3] (column, row, depth) of ``radius`` [K] pixels; the index of their segments starts at
    ``first``, and the first weight says how far along its segment a pixel lies."""
    height, width = depth.shape
    for i in range(len(points)):
        for p in range(POINTS - 1):
            ax, ay, az = points[i, p, 0], points[i, p, 1], points[i, p, 2]
            bx, by, bz = points[i, p + 1, 0], points[i, p + 1, 1], points[i, p + 1, 2]
            if hidden(ax, ay, az, depth) and hidden(bx, by, bz, depth):
                continue
            r = max(0.5, radius[i] * (1.0 - 0.75 * p / POINTS))          # thinner towards the tip
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
                            depth[row, column], index[row, column] = z, first + i * (POINTS - 1) + p
                            weight[row, column, 0] = t


@compiled
def displacement_map(index, weight, triangles, moved, full):
    """uint8 [16, 16]: mean of ``moved`` [V] over what is visible in each cell of the image, 255 = ``full`` or more."""
    side = len(index)
    total, samples = np.zeros((16, 16)), np.zeros((16, 16))
    for row in range(side):
        for column in range(side):
            t, i, j = index[row, column], row * 16 // side, column * 16 // side
            samples[i, j] += 1
            if 0 <= t < len(triangles):
                a, b, c = triangles[t]
                v, w = weight[row, column]
                total[i, j] += (1 - v - w) * moved[a] + v * moved[b] + w * moved[c]
    return np.minimum(255.0, total / samples * (255 / full)).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- painting the head

@compiled
def crease_lines(x, y, creases):
    """Darkness of the folds at a point of the face. creases [5]: forehead, frown, nose, crow's feet, cheeks."""
    side, line = abs(x), 0.0
    if 7.6 < y < 8.0 and side < 0.55:
        wave = math.cos(62 * (y - 0.06 * math.cos(3 * x)))
        line += creases[0] * (0.5 + 0.5 * wave) ** 4 * smooth(0.55, 0.3, side)
    line += 1.2 * creases[1] * spot(side, y, 0.055 + 0.02 * (y - 7.5), 7.47, 0.014, 0.09)
    if side < 0.16 and 7.15 < y < 7.42:
        line += 0.8 * creases[2] * (0.5 + 0.5 * math.cos(90 * y + 30 * side)) ** 3 * smooth(0.16, 0.05, side)
    if 0.47 < side < 0.66:
        fan = math.cos(70 * (y - 7.27) / (side + 0.25))
        line += 0.8 * creases[3] * (0.5 + 0.5 * fan) ** 4 * spot(side, y, 0.56, 7.26, 0.08, 0.1)
    if 6.5 < y < 6.98:
        fold = math.exp(-((side - 0.17 - 0.42 * (6.93 - y)) / 0.02) ** 2)
        line += 0.7 * creases[4] * fold * smooth(6.5, 6.65, y) * smooth(6.98, 6.9, y)
    return min(1.0, line)


@compiled
def paint_face(colour, x, y, z, lip, creases, look):
    """Shadows, folds, freckles, make-up, stubble, brows and lips on the front of the head."""
    side, grain = abs(x), look.grain
    bags = look.eye_bags * spot(side, y, 0.30, 7.16, 0.14, 0.06)
    dark = 1 - 0.35 * bags - 0.075 * spot(side, y, 0.26, 7.34, 0.16, 0.10)
    dark *= 1 - 0.38 * crease_lines(x, y, creases)
    scale_colour(colour, dark ** 0.8, dark, dark)
    if look.freckles > 0:
        dots = smooth(0.72, 0.8, noise(34 * x + grain, 34 * y, 34 * z)) * look.freckles
        dots *= spot(side, y, 0.3, 7.0, 0.4, 0.25)
        scale_colour(colour, 1 - 0.12 * dots, 1 - 0.26 * dots, 1 - 0.40 * dots)
    blend(colour, look.shadow, 0.75 * look.make_up * spot(side, y, 0.32, 7.36, 0.14, 0.055))
    if look.beard > 0:
        area = min(1.0, smooth(6.86, 6.72, y) + 0.9 * smooth(0.45, 0.6, side) * smooth(7.15, 6.9, y))
        area *= smooth(6.0, 6.25, y) * (1 - spot(side, y, 0.42, 6.85, 0.16, 0.12)) * (1 - lip)
        blend(colour, look.brow, 0.6 * look.beard * area * (0.5 + 0.5 * noise(60 * x, 60 * y, 60 * z)))
    t = (side - 0.11) / 0.42
    if 0 < t < 1:
        off = abs(y - brow_height(t, look.brow_arch)) / (1.2 * look.brow_width * (1 - 0.8 * t * t))
        ends = smooth(0.0, 0.12, t) * smooth(1.0, 0.85, t)
        blend(colour, look.brow, 0.6 * look.brow_density * smooth(1.2, 0.3, off) * ends)
    red = smooth(0.22, 0.5, lip)
    if red > 0:
        blend(colour, look.lips, red)
        furrow = 1 - 0.12 * red * (noise(70 * x, 6 * y, grain) - 0.5)
        scale_colour(colour, furrow, furrow, furrow)


@compiled
def paint_skin(colour, x, y, z, lip, openness, creases, look):
    """Colour of the skin, the scalp or the garment at the point (x, y, z) of the head at rest."""
    side, grain = abs(x), look.grain
    if y < min(6.1, look.collar + 0.35 * side * side):
        weave = 0.8 + 0.4 * noise(20 * x + grain, 20 * y, 20 * z)
        for k in range(3):
            colour[k] = look.cloth[k] * weave
        return
    if z < 0.6 and openness < 0.15 and y < 6.9 and side < 0.4:           # inside of the mouth
        colour[0], colour[1], colour[2] = 0.12, 0.02, 0.02
        return
    mottle = 0.90 + 0.14 * noise(9 * x + grain, 9 * y, 9 * z) + 0.06 * noise(40 * x + grain, 40 * y, 40 * z)
    for k in range(3):
        colour[k] = look.skin[k] * mottle
    if z > 0.8:
        red = look.blush * (spot(side, y, 0.42, 6.92, 0.22, 0.18) + 0.6 * spot(side, y, 0.0, 6.95, 0.14, 0.14))
        scale_colour(colour, 1 + 0.10 * red, 1 - 0.22 * red, 1 - 0.18 * red)
        paint_face(colour, x, y, z, lip, creases, look)
    height = above_hairline(x, y, z, look.hairline) + 0.05 * (noise(14 * x + grain, 14 * y, 14 * z) - 0.5)
    share = look.scalp * smooth(-0.03, 0.08, height)
    for k in range(3):
        colour[k] += share * (0.6 * look.hair[k] - colour[k])


@compiled
def paint_eye(colour, x, y, z, look):
    """White, iris and pupil at the point (x, y, z) of an eye at rest; ``x`` counts from the eye's own centre."""
    dx, dy = x / EYE_RADIUS, (y - EYE_Y) / EYE_RADIUS
    r = math.sqrt(dx * dx + dy * dy)
    rim, lid = 0.25 * smooth(0.55, 0.95, r), 1 - 0.3 * smooth(0.2, 0.6, dy)
    colour[0], colour[1], colour[2] = 0.74 * (1 - 0.4 * rim) * lid, 0.70 * (1 - 0.7 * rim) * lid, 0.66 * (1 - rim) * lid
    if z > EYE_Z:
        rays = (0.7 + 0.6 * noise(9 * math.atan2(dy, dx), 3 * r, look.grain)) * (1 - 0.75 * smooth(0.38, 0.49, r))
        inside, pupil = smooth(0.52, 0.47, r), 1 - 0.98 * smooth(0.22, 0.18, r)
        for k in range(3):
            colour[k] = (colour[k] + inside * (look.iris[k] * rays - colour[k])) * pupil


# -------------------------------------------------------------------------------------------------------------- shading

@compiled
def lit(x, y, z, shadow, slack):
    """Share of the key light that reaches a point: the shadow map around it, averaged over three pixels."""
    size, right, up, ahead = len(shadow.depth), shadow.right, shadow.up, shadow.ahead
    column = size / 2 + shadow.scale * (right[0] * x + right[1] * y + right[2] * z) - 0.5
    row = size / 2 - shadow.scale * (up[0] * x + up[1] * y + up[2] * z) - 0.5
    depth = -(ahead[0] * x + ahead[1] * y + ahead[2] * z) - slack
    i, j = int(math.floor(row)), int(math.floor(column))
    if i < 1 or j < 1 or i >= size - 2 or j >= size - 2:
        return 1.0
    v, u = row - i, column - j
    total = 0.0
    for a in range(-1, 3):
        for b in range(-1, 3):
            share = (1 - v if a == -1 else v if a == 2 else 1.0) * (1 - u if b == -1 else u if b == 2 else 1.0)
            total += share * (depth <= shadow.depth[i + a, j + b])
    return total / 9


@compiled
def shade_strand(out, lines, i, p, along, short, glasses, light, half, shadow, look):
    """Colour of a strand (Kajiya and Kay): hair, from ``short`` on brows and beard, from ``glasses`` on metal."""
    a, b = lines[i, p], lines[i, p + 1]
    tx, ty, tz = unit(b[0] - a[0], b[1] - a[1], b[2] - a[2])
    with_light = tx * light.direction[0] + ty * light.direction[1] + tz * light.direction[2]
    with_half = tx * half[0] + ty * half[1] + tz * half[2]
    diffuse, gloss = math.sqrt(max(0.0, 1 - with_light * with_light)), max(0.0, 1 - with_half * with_half) ** 30
    seen = lit(a[0] + along * (b[0] - a[0]), a[1] + along * (b[1] - a[1]), a[2] + along * (b[2] - a[2]), shadow, 0.10)
    tone, deep = 0.75 + 0.5 * hash_unit(i, 7, 3), 0.45 + 0.55 * min(1.0, (p + along) / 2.5)
    if i >= short:
        deep, gloss = 1.0, 0.0 if i < glasses else gloss
    for k in range(3):
        key = light.key[k] * seen
        if i >= glasses:
            out[k] = 0.02 * (light.sky[k] + key) + 0.075 * key * gloss
        else:
            base = look.brow[k] if i >= short else look.hair[k] * tone
            out[k] = deep * (0.75 * base * (light.sky[k] + key * diffuse) + (0.018 + 0.125 * base) * gloss * key)


@compiled
def shade_surface(out, colour, t, v, w, head, position, normal, light, half, shadow, creases, look):
    """Colour of triangle ``t`` at the weights v and w: paint, sky, key light with its shadow, gloss and outline."""
    a, b, c = head.triangles[t]
    px, py, pz = between(position, a, b, c, v, w)
    nx, ny, nz = between(normal, a, b, c, v, w)
    nx, ny, nz = unit(nx, ny, nz)
    x, y, z = between(head.rest, a, b, c, v, w)
    u = 1 - v - w
    openness = u * head.openness[a] + v * head.openness[b] + w * head.openness[c]
    kind, through = head.material[t], 0.02                               # through: key light that comes through shadow
    if kind == SKIN:
        lip = u * head.lip[a] + v * head.lip[b] + w * head.lip[c]
        paint_skin(colour, x, y, z, lip, openness, creases, look)
        power, shine = (40.0, 0.10) if lip > 0.3 else (18.0, 0.045 + 0.03 * spot(abs(x), y, 0.0, 7.2, 0.3, 0.6))
        openness = 0.25 + 0.75 * openness
    elif kind == EYE_LEFT or kind == EYE_RIGHT:  # noqa: SIM109 (numba compiles this faster)
        paint_eye(colour, x - EYE_X if kind == EYE_LEFT else -EYE_X - x, y, z, look)
        power, shine, openness = 250.0, 1.6, 0.55 + 0.45 * openness
    elif kind == TEETH_UPPER or kind == TEETH_LOWER:  # noqa: SIM109
        gap = smooth(0.40, 0.5, abs((abs(x) / 0.072) % 1.0 - 0.5))
        white = (0.35 + 0.65 * smooth(1.15, 1.45, z)) * (1 - 0.22 * gap)
        colour[0], colour[1], colour[2] = 0.78 * white, 0.74 * white, 0.66 * white
        power, shine, openness = 60.0, 0.15, 1.0 if kind == TEETH_UPPER else 0.65
        through = 0.55 if kind == TEETH_UPPER else 0.02
    elif kind == TONGUE:
        colour[0], colour[1], colour[2] = 0.42, 0.13, 0.13
        power, shine, openness = 18.0, 0.05, 0.45
    else:
        for k in range(3):
            colour[k] = look.skin[k] * 0.35 * (1 - look.lash) + 0.015 * look.lash
        power, shine = 18.0, 0.0

    facing = nx * light.direction[0] + ny * light.direction[1] + nz * light.direction[2]
    seen = lit(px + 0.03 * nx, py + 0.03 * ny, pz + 0.03 * nz, shadow, 0.03)
    gloss = shine * seen * max(0.0, nx * half[0] + ny * half[1] + nz * half[2]) ** power
    outline = light.rim * (1 - max(0.0, nz)) ** 3
    for k in range(3):
        wrap = 0.30 - 0.10 * k if kind == SKIN else 0.1                  # light goes round skin, red furthest
        diffuse = max(0.0, (facing + wrap) / (1 + wrap))
        bleed = 0.10 if kind == SKIN and k == 0 else through
        ambient = (light.ground[k] + (0.5 + 0.5 * ny) * (light.sky[k] - light.ground[k])) * openness
        direct = light.key[k] * diffuse * (seen + (1 - seen) * bleed)
        back = outline * light.sky[k]
        out[k] = colour[k] * (ambient + direct + back) + gloss * light.key[k] + 0.04 * back


@compiled
def shade(index, weight, head, position, normal, lines, short, glasses, light, shadow, creases, look):
    """Linear colour [n, n, 3] of what ``rasterise`` and ``draw_strands`` left visible, and of the background.

    position, normal: [V, 3]. lines: strands [K, POINTS, 3]; those from number ``short`` on are brows and beard, those
    from ``glasses`` on the rims of glasses. creases: [5], see ``crease_lines``.
    """
    size = len(index)
    image, colour = np.zeros((size, size, 3)), np.zeros(3)
    half = unit(light.direction[0], light.direction[1], light.direction[2] + 1.0)
    for row in range(size):
        up = row / (size - 1)
        for column in range(size):
            t, out = index[row, column], image[row, column]
            if t < 0:
                for k in range(3):
                    out[k] = light.above[k] * (1 - up) + light.below[k] * up
            elif t < len(head.triangles):
                v, w = weight[row, column]
                shade_surface(out, colour, t, v, w, head, position, normal, light, half, shadow, creases, look)
            else:
                i, p = (t - len(head.triangles)) // (POINTS - 1), (t - len(head.triangles)) % (POINTS - 1)
                shade_strand(out, lines, i, p, weight[row, column, 0], short, glasses, light, half, shadow, look)
    return image
